"""Host networks: what a ring is unpacked into.

    host = make_host("resnet18", in_channels=3, num_classes=10, image_size=32, width=64)

This package imports no torch until a host is made. What the wrapper asks a host (which of its parameters are
generated, in which stage a layer lies, what feeds no normalisation) stands in `rpg.hosts.host`.
"""

from __future__ import annotations

import importlib
import inspect
import typing
from typing import TYPE_CHECKING, Any, NamedTuple

from rpg.hosts.names import HOST_DESCRIPTIONS, HOSTS, SCOPES, HostName, Scope
from shared.config import UserError, check_choice, check_range

if TYPE_CHECKING:
    from rpg.hosts.host import Host

__all__ = ["HOSTS", "HOST_DESCRIPTIONS", "SCOPES", "HostName", "Scope", "check_options", "host_options", "make_host"]


class _Entry(NamedTuple):
    module: str
    cls: str
    fixed: dict[str, Any] = {}  # noqa: RUF012 - never written to


_REGISTRY: dict[HostName, _Entry] = {
    "mlp": _Entry("rpg.hosts.mlp", "MLP"),
    "patch-resnet": _Entry("rpg.hosts.patch_resnet", "PatchResNet"),
    "resnet18": _Entry("rpg.hosts.resnet", "ResNet", {"depth": 18}),
    "resnet34": _Entry("rpg.hosts.resnet", "ResNet", {"depth": 34}),
    "resnet50": _Entry("rpg.hosts.resnet", "ResNet", {"depth": 50}),
    "vit-mini": _Entry("rpg.hosts.vit", "ViT", {"depth": 4, "width": 64, "heads": 4}),
    "vit-tiny": _Entry("rpg.hosts.vit", "ViT", {"depth": 12, "width": 192, "heads": 3}),
    "msblock": _Entry("rpg.hosts.msblock", "MSBlockNet"),
    "hourglass": _Entry("rpg.hosts.hourglass", "Hourglass"),
    "multitask": _Entry("rpg.hosts.multitask", "MultiTaskNet"),
}
# What every host is told about the data; the rest of a constructor's keywords are the host's own options.
_DATA = ("in_channels", "num_classes", "image_size")


def _find(name: str) -> tuple[type[Host], dict[str, Any]]:
    check_choice("host", name, HOSTS)
    entry = _REGISTRY[name]  # pyright: ignore[reportArgumentType]
    return getattr(importlib.import_module(entry.module), entry.cls), dict(entry.fixed)


def host_options(name: str) -> dict[str, Any]:
    """The options of a host and their defaults, `{option: default}`. Imports torch.

    Raises:
        UserError: no host of that name.
    """
    cls, fixed = _find(name)
    parameters = inspect.signature(cls.__init__).parameters.values()
    options = {p.name: p.default for p in parameters if p.name not in (*_DATA, "self")}
    # A ResNet's depth is in its name; a transformer's is a default that may be overridden.
    named = ("depth",) if name.startswith("resnet") else ()
    return {option: fixed.get(option, default) for option, default in options.items() if option not in named}


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", type(None): "nothing"}


def check_options(name: str, options: dict[str, Any]) -> None:
    """Refuse options that a host has not, and values of another type than it takes. Imports torch.

    Raises:
        UserError: names the option, the value, and what is valid.
    """
    valid = host_options(name)
    kinds = typing.get_type_hints(_find(name)[0].__init__)
    for option, value in options.items():
        if option not in valid:
            hint = "Those of the data (" + ", ".join(_DATA) + ") follow from --data."
            raise UserError(f"{name}: option", option, list(valid), hint)
        allowed = typing.get_args(kinds[option]) or (kinds[option],)
        # A whole number is a number; True is one to Python, and to no user.
        fits = isinstance(value, (*allowed, *([int] if float in allowed else []))) and (
            bool in allowed or not isinstance(value, bool)
        )
        if not fits:
            wanted = " or ".join(_WORDS[kind] for kind in allowed if kind is not type(None))
            raise UserError(f"{name}: option {option}", value, f"{wanted} (default {valid[option]})")


def make_host(name: str, *, in_channels: int = 3, num_classes: int = 10, image_size: int = 32, **options: Any) -> Host:
    """A host network by name, freshly initialised from torch's global generator.

    Args:
        name: one of `HOSTS`.
        in_channels: channels of the input images.
        num_classes: outputs; for `hourglass` the number of joints; `multitask` has fixed outputs and ignores it.
        image_size: height and width of the (square) input images.
        options: the host's own, see `host_options`; every host has `width`, which the narrow baseline varies.

    Returns:
        A module that maps images `[B, in_channels, image_size, image_size]` to logits `[B, num_classes]`
        (`hourglass` and `multitask`: see there).

    Raises:
        UserError: unknown name or option (the valid ones are listed), a value of another type or out of range.
    """
    cls, fixed = _find(name)
    check_options(name, options)
    check_range("in_channels", in_channels, 1)
    check_range("num_classes", num_classes, 1)
    check_range("image_size", image_size, 1)
    return cls(in_channels=in_channels, num_classes=num_classes, image_size=image_size, **{**fixed, **options})
