"""Compression on top of a ring: fewer numbers, fewer multiply-adds, fewer bits.

- pruning the ring drops its smallest numbers: fewer free parameters, the network costs the same to run;
- pruning the host drops the smallest generated weights: fewer multiply-adds, the ring stays as it is;
- 8-bit rings hold W_j = q_j * scale with integers q_j in -127..127, one scale a ring or one for a group of numbers.

A file of any of these forms is read by `RPGModel.load`; none holds an index or a sign. Everything here works on what
an `RPGModel` has (its rings, its generated weights) and knows nothing of how networks are trained.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from shared.config import UserError, check_range

if TYPE_CHECKING:
    from rpg.wrap import RPGModel

# --- pruning the ring


@torch.no_grad()
def prune_ring(model: RPGModel, fraction: float) -> dict[str, Tensor]:
    """Set the smallest numbers of all rings together to zero, in place.

    Args:
        model: its rings change.
        fraction: share of the M numbers that goes, in [0, 1); rounded down to whole numbers.

    Returns:
        What is kept, by the key of `model.rings`: booleans `[M]`. Multiply them into the rings after each step of
        further training to hold the zeros.

    Raises:
        UserError: fraction out of range.
    """
    check_range("fraction", fraction, 0, 1, open_high=True)
    weights = {key: ring.weight for key, ring in model.rings.items()}
    magnitudes = torch.cat([weight.abs() for weight in weights.values()])
    kept = torch.ones_like(magnitudes, dtype=torch.bool)
    # Tied magnitudes break by position, so that exactly this many go.
    kept[magnitudes.argsort(stable=True)[: int(fraction * len(magnitudes))]] = False
    masks = dict(zip(weights, kept.split([len(weight) for weight in weights.values()]), strict=True))  # pyright: ignore
    for key, weight in weights.items():
        weight.mul_(masks[key])  # pyright: ignore[reportCallIssue]
    return masks


def remaining_dof(model: RPGModel) -> int:
    """Free parameters that are left: ring numbers other than zero, and the host's own parameters."""
    return model.dof() - sum(int((weight == 0).sum()) for weight in model.ring_parameters())


def save_pruned(model: RPGModel, path: Path) -> int:
    """Write a model file whose rings hold their non-zero numbers and one bit an entry. Returns its bytes."""
    return _save(model, path, sparse)


# --- pruning the host


class PrunedHost(nn.Module):
    """A model whose small generated weights are zero: theta_i stays where |theta_i| > threshold.

    The mask is a function of the ring, so a file holds the threshold alone.

    Attributes:
        model: the ring's model. threshold: the largest magnitude that went; below 0 where none did.
    """

    def __init__(self, model: RPGModel, threshold: float) -> None:
        super().__init__()
        self.model, self.threshold = model, threshold

    def weights(self) -> dict[str, Tensor]:
        """Host name -> generated weight, small ones zero."""
        return {name: weight * (weight.abs() > self.threshold) for name, weight in self.model.weights().items()}

    def masks(self) -> dict[str, Tensor]:
        """Host name (first of tied ones) -> what is kept: booleans in the weight's shape."""
        weights = self.model.weights()
        return {slot.name: weights[slot.name].abs() > self.threshold for slot in self.model.slots}

    def nonzeros(self) -> int:
        """Generated weights that are kept, of N."""
        return sum(int(mask.sum()) for mask in self.masks().values())

    def stored(self) -> dict[str, Any]:
        """What its file holds: the model's, and the threshold."""
        return {**self.model.stored(), "host_threshold": self.threshold}

    def save(self, path: Path) -> int:
        """Write its model file. Returns its bytes."""
        from rpg.wrap import write_model

        return write_model(self.stored(), path)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return functional_call(self.model.host, self.weights(), inputs, named)


@torch.no_grad()
def prune_host(model: RPGModel, fraction: float) -> PrunedHost:
    """Drop the smallest of all generated weights.

    All weights that share a magnitude stay or go together (a ring entry used twice in a layer gives two of them), so
    the share that goes may be lower by a few uses of one entry, never higher.

    Args:
        model: stays as it is, and is held by the result.
        fraction: share of the N weights that goes, in [0, 1).

    Raises:
        UserError: fraction out of range.
    """
    check_range("fraction", fraction, 0, 1, open_high=True)
    weights = model.weights()
    magnitudes = torch.cat([weights[slot.name].abs().flatten() for slot in model.slots])
    dropped = int(fraction * len(magnitudes))
    ordered = magnitudes.sort().values
    # The largest magnitude all of whose copies lie among the first `dropped`.
    below = ordered[:dropped][ordered[:dropped] < ordered[dropped]]
    return PrunedHost(model, float(below[-1]) if len(below) else -1.0)


def load_pruned_host(model: RPGModel, path: Path) -> PrunedHost:
    """Read the file of a `PrunedHost` into a model of the same config.

    Raises:
        UserError: another kind of file, or another model's.
    """
    from rpg.wrap import read_model

    stored = read_model(path)
    if "host_threshold" not in stored:
        raise UserError("model file", path, "a model with a pruned host", "RPGModel.load reads the others.")
    model.restore({name: value for name, value in stored.items() if name != "host_threshold"})
    try:
        return PrunedHost(model, float(stored["host_threshold"]))
    except (TypeError, ValueError) as error:
        raise UserError("model file: threshold", stored["host_threshold"], "a number") from error


# --- 8 bits


def to_int8(values: Tensor, group: int | None = None) -> tuple[Tensor, Tensor]:
    """Symmetric 8-bit numbers: q = round(v / scale), scale = max |v| / 127 over a group.

    Args:
        values: `[M]`.
        group: how many neighbours share a scale; None for all.

    Returns:
        (q `[M]` int8, scales `[ceil(M / group)]` in single precision).

    Raises:
        UserError: a group below 1, or values that are not finite.
    """
    check_range("group", group, 1)
    if not bool(values.isfinite().all()):
        raise UserError("ring", "numbers that are not finite", "finite numbers")
    width = min(group or len(values), len(values))
    rows = nn.functional.pad(values.detach().float(), (0, -len(values) % width)).view(-1, width)  # [groups, width]
    scales = rows.abs().amax(1) / 127
    steps = torch.where(scales > 0, scales, 1.0)  # a group of zeros
    integers = (rows / steps[:, None]).round().clamp(-127, 127).to(torch.int8)
    return integers.view(-1)[: len(values)].contiguous(), scales


def from_int8(integers: Tensor, scales: Tensor, group: int | None = None) -> Tensor:
    """What `to_int8` stood for, `[M]` in single precision; off by half a scale at most."""
    width = min(group or len(integers), len(integers))
    return integers.float() * scales.repeat_interleave(width)[: len(integers)]


@torch.no_grad()
def quantized(model: RPGModel, group: int | None = None) -> RPGModel:
    """A copy of a model whose rings hold only values that 8 bits can hold.

    Args:
        model: stays as it is.
        group: ring numbers that share a scale, e.g. 256; None for one scale a ring.

    Raises:
        UserError: a group below 1, or a ring that is not finite.
    """
    reduced = copy.deepcopy(model)
    for weight in reduced.ring_parameters():
        weight.copy_(from_int8(*to_int8(weight, group), group))
    return reduced


def save_quantized(model: RPGModel, path: Path, group: int | None = None) -> int:
    """Write a model file with 8-bit rings; the host's own parameters stay as they are. Returns its bytes."""
    return _save(model, path, lambda weight: int8(weight, group))


# --- the forms in which a ring is stored

Stored = Tensor | Mapping[str, Any]


def sparse(weight: Tensor) -> dict[str, Any]:
    """A ring as its non-zero numbers and one bit an entry."""
    weight = weight.detach().cpu()
    bits = np.packbits((weight != 0).numpy())
    return {"form": "sparse", "size": len(weight), "kept": torch.from_numpy(bits), "values": weight[weight != 0]}


def int8(weight: Tensor, group: int | None = None) -> dict[str, Any]:
    """A ring in 8 bits."""
    integers, scales = to_int8(weight, group)
    return {"form": "int8", "values": integers.cpu(), "scales": scales.cpu(), "group": group}


def unpacked(stored: Stored) -> Tensor:
    """A stored ring as plain numbers `[M]`.

    Raises:
        UserError: a form that this version does not know, or one that is damaged.
    """
    if isinstance(stored, Tensor):
        return stored
    try:
        if stored["form"] == "int8":
            return from_int8(stored["values"], stored["scales"], stored["group"])
        if stored["form"] == "sparse":
            kept = np.unpackbits(stored["kept"].numpy(), count=stored["size"]).astype(bool)
            values = stored["values"].new_zeros(stored["size"])
            values[torch.from_numpy(kept)] = stored["values"]
            return values
    except (KeyError, RuntimeError, ValueError, AttributeError, TypeError, IndexError) as error:
        raise UserError("model file", "a damaged ring", "an undamaged file", str(error)[:200]) from error
    raise UserError("model file: form of a ring", stored["form"], ("plain", "int8", "sparse"))


def stored_bytes(model: RPGModel, form: str = "plain", group: int | None = None) -> dict[str, int]:
    """Bytes of tensors that a model file holds, without its headers (at most 64 KiB): `ring`, `own`, `total`.

    Args:
        form: `plain`, `int8` or `sparse`.
        group: for `int8`.
    """
    rings = model.ring_parameters()
    if form == "int8":
        scales = [math.ceil(len(weight) / min(group or len(weight), len(weight))) for weight in rings]
        ring = sum(len(weight) for weight in rings) + 4 * sum(scales)
    elif form == "sparse":
        kept = sum(int((weight != 0).sum()) * weight.element_size() for weight in rings)
        ring = kept + sum(math.ceil(len(weight) / 8) for weight in rings)
    elif form == "plain":
        ring = sum(len(weight) * weight.element_size() for weight in rings)
    else:
        raise UserError("form", form, ("plain", "int8", "sparse"))
    own = sum(value.numel() * value.element_size() for value in model.own_state().values())
    return {"ring": ring, "own": own, "total": ring + own}


def _save(model: RPGModel, path: Path, form: Callable[[Tensor], Stored]) -> int:
    from rpg.wrap import write_model

    stored = model.stored()
    return write_model({**stored, "rings": {key: form(weight) for key, weight in stored["rings"].items()}}, path)
