"""What a user can say, and how a wrong word is answered. Imports no torch: `--help` must be instant.

Every verb of every member takes one frozen dataclass; those that start a run inherit from `RunConfig`, so that
a flag means the same everywhere. `UserError` is the only way a member refuses input.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

Preset = Literal["smoke", "cpu", "gpu", "paper"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Config = TypeVar("Config")

# Flags that say where or how long a run runs, not what it computes: they may differ between a run and its resumption.
CIRCUMSTANCES = frozenset(
    {"out", "resume", "data_root", "device", "max_minutes", "compile", "capture", "quiet", "force", "log_every", "keep"}
)


class UserError(ValueError):
    """Something a user can cause and mend. The command line prints it without a traceback and exits with 2.

    A `ValueError`, so that whoever imports a member as a library need not know this class. Hence, where code catches
    `ValueError` around a call that can refuse, it must let `UserError` through first.

    Args:
        field: what was wrong, in the user's words: a flag (`--ring-size`), a parameter name, a file.
        value: what was given.
        valid: what would be right: a range, a list of names (the nearest is suggested), or a sentence.
        hint: one more sentence that helps to go on.
    """

    def __init__(self, field: str, value: object, valid: str | Iterable[object], hint: str = "") -> None:
        self.field, self.value = field, value
        nearest: list[str] = []
        if not isinstance(valid, str):
            names = [str(name) for name in valid]
            nearest = difflib.get_close_matches(str(value), names, n=1)
            valid = ", ".join(names)
        self.valid, self.hint = valid, hint
        message = f"{field}: got {str(value)!r}; valid: {valid}"
        if nearest:
            message += f" (did you mean {nearest[0]!r}?)"
        super().__init__(message + (f"\n{hint}" if hint else ""))

    def __reduce__(self) -> tuple[Any, ...]:
        # An error raised in a worker process must arrive whole in the parent.
        return type(self), (self.field, self.value, self.valid, self.hint)


class RunFailed(Exception):
    """A run that cannot go on (a loss that is not finite). Printed without a traceback; exit code 1."""


class Stopped(Exception):
    """A run that was told to stop and did so in good order.

    Args:
        code: the exit code, 128 plus the signal's number.
        message: where it stopped and how to go on.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, message)
        self.code, self.message = code, message


def check_choice(field: str, value: object, valid: Iterable[object]) -> None:
    """Raise `UserError` with the list (and the nearest name) unless `value` is one of `valid`."""
    names = list(valid)
    if value not in names:
        raise UserError(field, value, names)


def check_range(
    field: str,
    value: float | None,
    low: float = float("-inf"),
    high: float = float("inf"),
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    """Raise `UserError` unless `value` is None or lies in the interval; NaN is in no interval."""
    if value is None:
        return
    above = value > low if open_low else value >= low
    below = value < high if open_high else value <= high
    if not (above and below):
        raise UserError(field, value, f"a number {_interval(low, high, open_low, open_high)}")


def _interval(low: float, high: float, open_low: bool, open_high: bool) -> str:
    """An interval in words; an end at infinity is left out."""

    def text(bound: float) -> str:
        # 2**63 - 1 is no "9.22337e+18": a bound that is shown must be one that can be typed.
        return str(bound) if isinstance(bound, int) else f"{bound:g}"

    bounded = [math.isfinite(bound) for bound in (low, high)]
    if all(bounded):
        return f"in {'(' if open_low else '['}{text(low)}, {text(high)}{')' if open_high else ']'}"
    if bounded[0]:
        return f"{'>' if open_low else '>='} {text(low)}"
    if bounded[1]:
        return f"{'<' if open_high else '<='} {text(high)}"
    return "that is one"


@dataclass(frozen=True)
class RunConfig:
    """The flags that mean the same in every member. Members inherit and add the paper's own."""

    exclusive: ClassVar[tuple[tuple[str, ...], ...]] = (("steps", "epochs"),)
    """Groups of which one may be given; a flag drops what the preset says for the others of its group."""

    preset: Preset = "cpu"
    """Named setting to start from; any other flag overrides a field of it."""
    out: Path | None = None
    """Run folder. Default: runs/<member>/<time>."""
    resume: Path | None = None
    """Run folder to go on with; its own config is used."""
    seed: int = 0
    """Seeds weights, data order and everything else that is random."""
    data_root: Path | None = None
    """Folder that holds data sets. Default: $PAPERS_DATA, else the user cache."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    precision: Precision = "auto"
    """auto is bf16 on a CUDA device that has it, else fp32."""
    devices: int = 1
    """Processes on this machine, one a device; with --device cpu they talk through gloo."""
    steps: int | None = None
    """Optimiser steps. One of --steps and --epochs."""
    epochs: float | None = None
    """Passes over the training data."""
    accumulate: int = 1
    """Micro-batches that one step's batch is split into, to save memory."""
    max_minutes: float | None = None
    """Stop after this time with a checkpoint to resume from."""
    eval_every: int | None = None
    """Steps between evaluations. Default: a tenth of the run."""
    checkpoint_every: int | None = None
    """Steps between checkpoints. Default: at each evaluation."""
    keep: int = 2
    """Newest checkpoints kept, beside the best."""
    log_every: int = 10
    """Steps between writes to metrics.jsonl and TensorBoard; every step has its row all the same."""
    compile: bool = False
    """torch.compile the model; falls back with a warning."""
    deterministic: bool = False
    """Deterministic algorithms on CUDA too (the CPU always is)."""
    quiet: bool = False
    """No progress bar, no table; errors are still shown."""
    force: bool = False
    """Replace an existing run folder."""

    def __post_init__(self) -> None:
        check_choice("--preset", self.preset, typing.get_args(Preset))
        check_choice("--precision", self.precision, typing.get_args(Precision))
        for group in self.exclusive:
            given = [name for name in group if getattr(self, name) is not None]
            if len(given) > 1:
                flags = " and ".join("--" + name.replace("_", "-") for name in given)
                raise UserError(flags, [getattr(self, name) for name in given], "one of them")
        check_range("--devices", self.devices, 1)
        check_range("--steps", self.steps, 1)
        check_range("--epochs", self.epochs, 0, open_low=True)
        check_range("--accumulate", self.accumulate, 1)
        check_range("--max-minutes", self.max_minutes, 0, open_low=True)
        check_range("--eval-every", self.eval_every, 1)
        check_range("--checkpoint-every", self.checkpoint_every, 1)
        check_range("--keep", self.keep, 1)
        check_range("--log-every", self.log_every, 1)
        check_range("--seed", self.seed, 0, 2**63 - 1)


def to_json(config: Any) -> dict[str, Any]:
    """A config as plain JSON values, ready for `config.json`."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, Mapping):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple, set, frozenset)):
            return [plain(item) for item in value]
        return value

    return plain(config)


def from_json(kind: type[Config], values: Mapping[str, Any], where: str = "config.json") -> Config:
    """Rebuild a config of type `kind` from JSON values. Unknown fields are refused by name; fields that the constructor
    does not take are worked out by it again."""
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    for name in values:
        check_choice(f"{where}: field", name, fields)
    values = {name: value for name, value in values.items() if fields[name].init}
    for name, value in values.items():
        if value is None and type(None) not in typing.get_args(hints[name]):
            raise UserError(
                f"{where}: {name}", "null", f"a value of type {getattr(hints[name], '__name__', hints[name])}"
            )
    try:
        return kind(**{name: _cast(value, hints[name]) for name, value in values.items()})
    except UserError:
        raise  # a field's own refusal says more than we could
    except (TypeError, ValueError) as error:
        raise UserError(where, json.dumps(dict(values), default=str)[:200], str(error)) from error


def _cast(value: Any, hint: Any) -> Any:
    """JSON has no paths, tuples or dataclasses: give `value` the type that `hint` names."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _cast(value, next(argument for argument in arguments if argument is not type(None)))
    if hint is Path:
        return Path(value)
    if origin is tuple:
        item = arguments[0] if arguments else Any
        return tuple(_cast(part, item) for part in value)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_json(hint, value)
    return value


def differences(one: Any, other: Any, ignore: Iterable[str] = CIRCUMSTANCES) -> dict[str, tuple[Any, Any]]:
    """Fields in which two configs differ, `{field: (one's value, other's value)}`, circumstances aside."""
    left, right = to_json(one), to_json(other)
    skipped = set(ignore)
    names = [name for name in {**left, **right} if name not in skipped]
    return {name: (left.get(name), right.get(name)) for name in names if left.get(name) != right.get(name)}
