"""What a host network tells the wrapper about itself.

By the paper's rule the ring makes the convolution and linear weights; the stem, the classifier, biases and
normalisation stay the host's own (section 3.3 and the authors' code). A host says so with `fnmatch` patterns over its
parameter names, and lists the prefixes of its stages, blocks and repeated sub-networks, so that a ring's scope
can be read off a parameter's name.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import ClassVar

import torch
from torch import Tensor, nn

from rpg.hosts.names import SCOPES
from shared.config import UserError, check_choice

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
# Positively homogeneous: a scaled input stays scaled, so a norm that follows still takes the scale out.
_HOMOGENEOUS = (nn.ReLU, nn.LeakyReLU, nn.Identity, nn.MaxPool2d, nn.AvgPool2d, nn.Dropout)
REST = "rest"  # ring of the generated layers that lie in no listed stage, block or sub-network


class Host(nn.Module):
    """Base of the host networks: plain `nn.Module`s that also say which of their parameters are generated."""

    generated_patterns: ClassVar[tuple[str, ...]] = ()
    """`fnmatch` patterns of the parameters that a ring makes by default."""
    width_step: int = 1
    """`width` must be a multiple of this; the narrow baseline searches in such steps."""

    def initialisation(self, name: str) -> str:
        """How the generated parameter `name` starts, one of `rpg.ring.INITS` (Section 3; the authors: fan_out)."""
        return "fan_out"

    def stages(self) -> tuple[str, ...]:
        """Name prefixes of the stages (groups of blocks at one resolution)."""
        return ()

    def blocks(self) -> tuple[str, ...]:
        """Name prefixes of the blocks."""
        return ()

    def subnetworks(self) -> tuple[str, ...]:
        """Name prefixes of the equal copies (calls, pose stages, decoders) that can draw from one ring."""
        return ()


def matching_names(module: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Names of the parameters that match any of the patterns, in order of registration, tied ones once.

    Raises:
        UserError: a pattern matches no parameter; the names are listed.
    """
    names = [name for name, _ in module.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError("pattern", pattern, names, "The pattern matches no parameter of the network.")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def generated_names(host: nn.Module) -> list[str]:
    """Names of the parameters that a ring makes by default, in order of registration.

    A module that is no `Host` has all of its convolution and linear weights made.
    """
    if isinstance(host, Host):
        # Variants of a host may lack what a pattern names (no shortcut in R18's first stage), so no check here.
        names = [name for name, _ in host.named_parameters()]
        return [name for name in names if any(fnmatchcase(name, pattern) for pattern in host.generated_patterns)]
    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    weights = {id(module.weight) for module in host.modules() if isinstance(module, kinds)}
    return [name for name, parameter in host.named_parameters() if id(parameter) in weights]


def generated_count(host: nn.Module, prefix: str = "") -> int:
    """N, the number of generated weights, of the whole host or of the part whose names start with `prefix`.

    `generated_count(host, host.subnetworks()[0])` is the ring size that gives all copies the freedom of one.
    """
    inside = prefix + "." if prefix else ""
    parameters = dict(host.named_parameters())
    return sum(parameters[name].numel() for name in generated_names(host) if name.startswith(inside))


def parameter_count(module: nn.Module) -> int:
    """Trainable numbers of a module, tied parameters counted once."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def scope_of(host: Host, name: str, scope: str) -> str:
    """Name of the ring that makes parameter `name` when rings have this scope.

    `global` -> "global"; `stage` and `block` -> the prefix in which the parameter lies; `layer` -> its module;
    `subnetwork` -> one name for all the equal copies. What lies in no such part goes to the ring "rest".

    Raises:
        UserError: unknown scope, or `subnetwork` for a host that has no repeated part.
    """
    check_choice("scope", scope, SCOPES)
    if scope == "global":
        return "global"
    if scope == "layer":
        return name.rpartition(".")[0]
    prefixes = {"stage": host.stages, "block": host.blocks, "subnetwork": host.subnetworks}[scope]()
    if not prefixes:
        valid = [other for other in SCOPES if other != scope]
        raise UserError("scope", scope, valid, f"A {type(host).__name__} has no {scope}s.")
    # Longest first: a stage may be nested in another's name.
    for prefix in sorted(prefixes, key=len, reverse=True):
        if name.startswith(prefix + "."):
            return "subnetwork" if scope == "subnetwork" else prefix
    return REST


def unnormalised_layers(host: nn.Module, names: Iterable[str] | None = None) -> list[str]:
    """Generated weights whose output feeds no normalisation; with these the host is not invariant to their scale.

    Without that invariance the ring's step grows with the number of uses (r = N/M), hence the warning to divide
    its learning rate. A layer counts as normalised when the module registered next to it in the same parent,
    activations aside, is a norm. This is a convention, not a trace, so that it works for data-dependent
    hosts too; for the hosts of this package the tests verify it by scaling each weight.

    Args:
        host: any module.
        names: parameter names to look at; the default is `generated_names(host)`.
    """
    normalised: set[int] = set()
    for parent in host.modules():
        children = [child for child in parent.children() if not isinstance(child, _HOMOGENEOUS)]
        for child, following in itertools.pairwise(children):
            if isinstance(following, NORMS):
                normalised |= {id(parameter) for parameter in child.parameters(recurse=False)}
    parameters = dict(host.named_parameters())
    chosen = generated_names(host) if names is None else names
    return [name for name in chosen if id(parameters[name]) not in normalised]


@torch.no_grad()
def kaiming_init(module: nn.Module) -> None:
    """Convolutions from N(0, 2/fan_out), what the paper's layer constants aim at; norms (1, 0)."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, NORMS):
            if isinstance(part.weight, Tensor):
                nn.init.ones_(part.weight)
            if isinstance(bias := getattr(part, "bias", None), Tensor):
                nn.init.zeros_(bias)
