"""The generator: ring -> weights of all layers, and the gradient back.

    theta_l = a_l * s_l (.) W[pi_l]                       forward: a gather
    dL/dW_j = sum over i with pi(i) = j of a_i s_i dL/dtheta_i      backward: a signed accumulation

Both are linear maps, each the transpose of the other, and are written as such: differentiating one calls the other,
to any order. The cost does not depend on the batch. On the CPU layers are gathered one by one (pieces that fit the
caches and need no fresh pages), on a GPU in one flat gather (few kernels).

Legend: M ring size, N generated weights, B chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rpg.plan import Plan


@dataclass
class Tables:
    """A plan's index and sign tensors on one device. Rebuilt from the plan, never saved.

    Attributes:
        sizes: n_l. ring_size: M.
        rows: gathered rows: ring entries `[N]`, or blocks of `width` entries `[N / width]`; int32.
        width: B where every layer is a whole number of blocks, else 1.
        signs: `[N]` int8, or None for a plan without signs.
        scales: a_l.
    """

    sizes: tuple[int, ...]
    ring_size: int
    rows: Tensor
    width: int
    signs: Tensor | None
    scales: tuple[float, ...]
    _inverse: list[Tensor] = field(default_factory=list, repr=False)

    @classmethod
    def of(cls, plan: Plan, scales: Sequence[float], device: torch.device | str = "cpu") -> Tables:
        """Work out a plan's tables on a device."""
        whole = plan.chunk > 1 and all(size % plan.chunk == 0 for size in plan.sizes)
        blocks = plan.blocks() if whole else None
        rows = plan.all_indices() if blocks is None else blocks
        signs = torch.from_numpy(plan.all_signs()).to(device) if plan.signed else None
        return cls(
            plan.sizes,
            plan.ring_size,
            torch.from_numpy(np.ascontiguousarray(rows)).to(device),
            plan.chunk if whole else 1,
            signs,
            tuple(float(scale) for scale in scales),
        )

    def pieces(self) -> list[tuple[Tensor, Tensor | None, float]]:
        """(rows, signs, a_l) of each layer."""
        rows = self.rows.split([size // self.width for size in self.sizes])
        signs = self.signs.split(list(self.sizes)) if self.signs is not None else [None] * len(self.sizes)
        return list(zip(rows, signs, self.scales, strict=True))

    def inverse(self) -> Tensor:
        """Uses of each gathered row, `[M / B, most uses]`, padded with an index one past the end: what a sum in a
        fixed order needs."""
        if not self._inverse:
            rows = self.rows.cpu().numpy()
            order = np.argsort(rows, kind="stable")
            counts = np.bincount(rows, minlength=self.ring_size // self.width)
            table = np.full((len(counts), max(1, int(counts.max()))), len(rows), np.int64)
            sorted_rows = rows[order]
            table[sorted_rows, np.arange(len(rows)) - (np.cumsum(counts) - counts)[sorted_rows]] = order
            self._inverse.append(torch.from_numpy(table).to(self.rows.device))
        return self._inverse[0]


def gather(ring: Tensor, tables: Tables) -> tuple[Tensor, ...]:
    """theta_l, flat, for a ring `[M]`; not differentiable by itself."""
    source = ring.view(-1, tables.width) if tables.width > 1 else ring
    if ring.device.type == "cpu":
        layers = []
        for rows, signs, scale in tables.pieces():
            layer = source.index_select(0, rows).reshape(-1)
            if signs is not None:
                layer = layer.mul_(signs)
            layers.append(layer if scale == 1.0 else layer.mul_(scale))
        return tuple(layers)
    flat = source.index_select(0, tables.rows).reshape(-1)
    if tables.signs is not None:
        flat = flat.mul_(tables.signs)
    layers = list(flat.split(list(tables.sizes)))
    return tuple(torch._foreach_mul(layers, list(tables.scales)))


def accumulate(
    gradients: Sequence[Tensor], tables: Tables, dtype: torch.dtype, *, fixed_order: bool | None = None
) -> Tensor:
    """dL/dW `[M]` from dL/dtheta_l, flat. Sums run in single precision or better whatever comes in.

    Args:
        gradients: one for each layer, `[n_l]`.
        tables: the plan's.
        dtype: of the result.
        fixed_order: sum in an order that never changes, which atomic additions on a GPU do not. Default: as
            `torch.use_deterministic_algorithms` says; the CPU is in order anyway.
    """
    first = gradients[0]
    precise = torch.promote_types(first.dtype, torch.float32)
    on_cpu = first.device.type == "cpu"
    if fixed_order is None:
        fixed_order = not on_cpu and torch.are_deterministic_algorithms_enabled()
    width = tables.width
    if on_cpu and not fixed_order:
        total = first.new_zeros(tables.ring_size // width, width, dtype=precise)
        total = total if width > 1 else total.squeeze(1)
        for gradient, (rows, signs, scale) in zip(gradients, tables.pieces(), strict=True):
            signed = gradient.to(precise) if signs is None else gradient.to(precise) * signs
            signed = signed if scale == 1.0 else signed * scale
            if width > 1:
                total.index_add_(0, rows, signed.view(-1, width))
            else:
                total.scatter_add_(0, rows.long(), signed)  # a third faster than index_add_ on single entries
        return total.reshape(-1).to(dtype)
    scaled = torch._foreach_mul([gradient.to(precise) for gradient in gradients], list(tables.scales))
    flat = torch.cat(scaled)
    if tables.signs is not None:
        flat = flat * tables.signs
    values = flat.view(-1, width)
    if fixed_order:
        padded = torch.cat([values, values.new_zeros(1, width)])
        return padded[tables.inverse()].sum(1).reshape(-1).to(dtype)
    total = values.new_zeros(tables.ring_size // width, width)
    return total.index_add_(0, tables.rows, values).reshape(-1).to(dtype)


class _Gather(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(ring: Tensor, tables: Tables) -> tuple[Tensor, ...]:
        return gather(ring, tables)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ring, ctx.tables = inputs
        ctx.dtype = ring.dtype

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _Accumulate.apply(ctx.tables, ctx.dtype, *gradients), None  # pyright: ignore[reportReturnType]

    @staticmethod
    def jvp(ctx: Any, ring: Tensor, _: None) -> tuple[Tensor, ...]:
        return gather(ring, ctx.tables)


class _Accumulate(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(tables: Tables, dtype: torch.dtype, *gradients: Tensor) -> Tensor:
        return accumulate(gradients, tables, dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.tables = inputs[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        return None, None, *_Gather.apply(gradient, ctx.tables)

    @staticmethod
    def jvp(ctx: Any, _: None, __: None, *gradients: Tensor) -> Tensor:
        return accumulate(gradients, ctx.tables, gradients[0].dtype)


def generate(ring: Tensor, tables: Tables) -> tuple[Tensor, ...]:
    """Weights of all layers from a ring: the differentiable form of `gather`.

    Args:
        ring: W, `[M]`.
        tables: the plan's, on the ring's device.

    Returns:
        theta_l, `[n_l]` each, in the ring's dtype.
    """
    return _Gather.apply(ring, tables)  # pyright: ignore[reportReturnType]
