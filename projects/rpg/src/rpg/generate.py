"""The generator: ring -> weights of all layers, and the gradient back.

    theta_l = a_l * s_l (.) W[pi_l]                       forward: a gather
    dL/dW_j = sum over i with pi(i) = j of a_i s_i dL/dtheta_i      backward: a signed accumulation

Both are linear maps, each the transpose of the other, and are written as such: differentiating one calls the other,
to any order. The cost is that of moving N numbers through a permutation and does not depend on the batch; it is a
cost of memory latency, so the maps are worked out once, in the form that suits the device (see `tables_of`).
`benchmarks/generator.py` races them.

Legend: M ring size, N generated weights, L layers, B chunk, K entries of a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rpg.plan import Plan, by_halves

TILE = 2**17  # K: a tile of numbers twice over, and its indices, fit the second-level cache of current CPUs
NEAR = 2**18  # a ring of up to so many numbers stays in that cache, so that it can be read in any order


class Tables(Protocol):
    """A plan worked out for a device: the linear map G and its transpose. Rebuilt from a plan, never saved."""

    sizes: tuple[int, ...]

    def gather(self, ring: Tensor) -> tuple[Tensor, ...]:
        """G W: theta_l, `[n_l]` each, for a ring `[M]`, in its dtype; not differentiable by itself."""
        ...

    def accumulate(self, gradients: Sequence[Tensor]) -> Tensor:
        """G^T g: `[M]` from `[n_l]` each. Sums run, and are returned, in single precision or better."""
        ...


def tables_of(plan: Plan, scales: Sequence[float], device: torch.device | str = "cpu") -> Tables:
    """Work out a plan's tables for a device.

    Args:
        plan: the plan.
        scales: a_l, one a layer.
        device: where the ring lives.
    """
    device = torch.device(device)
    constants = tuple(float(scale) for scale in scales)
    if plan.kind == "haar":
        rotations = [torch.from_numpy(plan.rotation(layer)) for layer in range(len(plan.sizes))]
        return Rotations(plan.sizes, tuple((a * r).to(device) for a, r in zip(constants, rotations, strict=True)))
    if device.type != "cpu":
        return Flat.of(plan, constants, device)
    if plan.chunk > 1 and all(size % plan.chunk == 0 for size in plan.sizes):
        return Blocks.of(plan, constants)
    return Tiles.of(plan, constants)


def _precise(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


# --- GPUs: few kernels, whatever the number of layers


@dataclass(frozen=True)
class Flat:
    """One gather and one accumulation for all layers.

    Additions on a GPU are atomic and come in any order; under `torch.use_deterministic_algorithms` the uses of an entry
    are summed in a fixed order instead.

    Attributes:
        rows: ring rows gathered: entries `[N]`, or blocks of `width` entries `[N / width]`; int32.
        width: B where every layer is a whole number of blocks, else 1. height: rows of the ring, M / width.
        signs: `[N]` int8, or None for a plan without signs.
        uses: places of each ring row, `[height, most uses]`, padded with one past the end; worked out when needed.
    """

    sizes: tuple[int, ...]
    scales: tuple[float, ...]
    rows: Tensor
    width: int
    height: int
    signs: Tensor | None
    uses: list[Tensor]

    @classmethod
    def of(cls, plan: Plan, scales: tuple[float, ...], device: torch.device) -> Flat:
        """Work out for a device."""
        whole = plan.chunk > 1 and all(size % plan.chunk == 0 for size in plan.sizes)
        blocks = plan.blocks() if whole else None
        rows = torch.from_numpy(np.ascontiguousarray(plan.all_indices() if blocks is None else blocks))
        width = plan.chunk if whole else 1
        signs = torch.from_numpy(plan.all_signs()).to(device) if plan.signed else None
        return cls(plan.sizes, scales, rows.to(device), width, plan.ring_size // width, signs, [])

    def gather(self, ring: Tensor) -> tuple[Tensor, ...]:
        """G W."""
        source = ring.view(-1, self.width) if self.width > 1 else ring
        flat = source.index_select(0, self.rows).view(-1)  # [N]
        if self.signs is not None:
            flat.mul_(self.signs)
        return tuple(torch._foreach_mul(list(flat.split(list(self.sizes))), list(self.scales)))

    def accumulate(self, gradients: Sequence[Tensor]) -> Tensor:
        """G^T g."""
        precise = _precise(gradients[0].dtype)
        flat = torch.cat(torch._foreach_mul([g.to(precise) for g in gradients], list(self.scales)))  # [N]
        if self.signs is not None:
            flat.mul_(self.signs)
        values = flat.view(-1, self.width)
        if torch.are_deterministic_algorithms_enabled():
            return self.in_order(values)
        total = values.new_zeros(self.height, self.width)
        return total.index_add_(0, self.rows, values).view(-1)

    def in_order(self, values: Tensor) -> Tensor:
        """Sum of the rows `[N / width, width]` over the uses of each ring row: one addition of whole rings a use."""
        if not self.uses:
            self.uses.append(_uses(self.rows.cpu().numpy(), self.height).to(values.device))
        padded = torch.cat([values, values.new_zeros(1, self.width)])
        total = values.new_zeros(self.height, self.width)
        for places in self.uses[0].unbind(1):
            total += padded.index_select(0, places)
        return total.view(-1)


def _uses(rows: NDArray[np.int32], height: int) -> Tensor:
    """Where each row is used, `[height, most uses]`, padded with one past the end: ceil(N / M) columns if even."""
    order = np.argsort(rows, kind="stable").astype(np.int32)
    counts = np.bincount(rows, minlength=height)
    table = np.full((height, max(1, int(counts.max()))), len(rows), np.int32)
    found = rows[order]
    table[found, np.arange(len(rows)) - (np.cumsum(counts) - counts)[found]] = order
    return torch.from_numpy(table)


# --- CPUs: pieces that fit the caches


@dataclass(frozen=True)
class Tile:
    """A piece of one layer: weights `begin` to `end` of layer `layer`, K of them.

    Attributes:
        entries: the ring entries it draws from, `[K]` int32, ascending, so that the ring is read (and written) from
            one end to the other and memory keeps up. For a near ring: in the order of the weights, an entry drawn
            with a minus counted from M on.
        places: where among `entries` each weight stands, `[K]` int32; from K on with a minus. None for a near ring.
        origins: where among the weights each entry stands, `[K]` int32; from K on with a minus. None for a near ring.
    """

    layer: int
    begin: int
    end: int
    entries: Tensor
    places: Tensor | None = None
    origins: Tensor | None = None


@dataclass(frozen=True)
class Tiles:
    """Weights are worked out tile by tile, each in two steps: a sweep over the ring, and a permutation inside the
    cache. A ring that is itself small enough for the cache takes one step.

    Signs cost no memory of their own: what is permuted is a tile and its negative, one after the other.
    """

    sizes: tuple[int, ...]
    scales: tuple[float, ...]
    ring_size: int
    signed: bool
    near: bool
    tiles: tuple[Tile, ...]

    @classmethod
    def of(cls, plan: Plan, scales: tuple[float, ...], near: bool | None = None) -> Tiles:
        """Work out; `near` is set by the ring's size unless given."""
        near = plan.ring_size <= NEAR if near is None else near
        indices, signs = plan.all_indices(), plan.all_signs() if plan.signed else None
        tiles = []
        for layer, (first, last) in enumerate(plan.bounds):
            for begin in range(first, last, TILE):
                end = min(begin + TILE, last)
                minus = signs[begin:end] < 0 if signs is not None else None
                tables = _near(indices[begin:end], minus, plan.ring_size) if near else _far(indices[begin:end], minus)
                tiles.append(Tile(layer, begin - first, end - first, *map(torch.from_numpy, tables)))
        return cls(plan.sizes, scales, plan.ring_size, plan.signed, near, tuple(tiles))

    def gather(self, ring: Tensor) -> tuple[Tensor, ...]:
        """G W."""
        layers = tuple(ring.new_empty(size) for size in self.sizes)
        if self.near:
            source = torch.cat((ring, -ring)) if self.signed else ring
            for tile in self.tiles:
                out = layers[tile.layer][tile.begin : tile.end]
                torch.index_select(source, 0, tile.entries, out=out)
                out.mul_(self.scales[tile.layer])
            return layers
        pair = ring.new_empty(2 * TILE)
        for tile in self.tiles:
            k = tile.end - tile.begin
            plus = pair[:k]
            torch.index_select(ring, 0, tile.entries, out=plus)
            plus.mul_(self.scales[tile.layer])
            if self.signed:
                torch.neg(plus, out=pair[k : 2 * k])
            assert tile.places is not None
            torch.index_select(pair, 0, tile.places, out=layers[tile.layer][tile.begin : tile.end])
        return layers

    def accumulate(self, gradients: Sequence[Tensor]) -> Tensor:
        """G^T g."""
        precise = _precise(gradients[0].dtype)
        pair, sorted_ = (gradients[0].new_empty(size, dtype=precise) for size in (2 * TILE, TILE))
        total = gradients[0].new_zeros(self.ring_size * (2 if self.near and self.signed else 1), dtype=precise)
        for tile in self.tiles:
            k, scale = tile.end - tile.begin, self.scales[tile.layer]
            gradient = gradients[tile.layer][tile.begin : tile.end].to(precise)
            torch.mul(gradient, scale, out=pair[:k])
            if tile.origins is None:
                total.index_add_(0, tile.entries, pair[:k])
                continue
            if self.signed:
                torch.mul(gradient, -scale, out=pair[k : 2 * k])
            torch.index_select(pair, 0, tile.origins, out=sorted_[:k])
            total.index_add_(0, tile.entries, sorted_[:k])
        if len(total) == self.ring_size:
            return total
        plus, minus = total.split(self.ring_size)
        return plus - minus


def _near(indices: NDArray[np.int32], minus: NDArray[np.bool_] | None, size: int) -> tuple[NDArray[np.int32], ...]:
    return (indices.copy() if minus is None else indices + minus * np.int32(size),)


def _far(indices: NDArray[np.int32], minus: NDArray[np.bool_] | None) -> tuple[NDArray[np.int32], ...]:
    """(entries, places, origins) of a tile."""
    k = len(indices)
    halves = indices.astype("<i4", copy=False).view("<u2").reshape(k, 2)
    order = by_halves(np.ascontiguousarray(halves[:, 0], np.uint16), np.ascontiguousarray(halves[:, 1], np.uint16))
    entries, origins = indices.take(order), order.astype(np.int32)
    places = np.empty(k, np.int32)
    places[origins] = np.arange(k, dtype=np.int32)
    if minus is not None:
        places += minus * np.int32(k)
        origins += minus[origins] * np.int32(k)
    return entries, places, origins


@dataclass(frozen=True)
class Blocks:
    """Chunked plans: whole rows of B entries move, which memory delivers at nearly the speed of a copy.

    Attributes:
        rows: block of each run of B weights, `[N / B]` int32. signs: `[N]` int8 or None.
        order: the runs, sorted by their block, `[N / B]` int32. starts: where each block's runs begin in `order`,
            `[M / B + 1]` int32.
    """

    sizes: tuple[int, ...]
    scales: tuple[float, ...]
    width: int
    rows: Tensor
    signs: Tensor | None
    order: Tensor
    starts: Tensor

    @classmethod
    def of(cls, plan: Plan, scales: tuple[float, ...]) -> Blocks:
        """Work out for a plan whose layers are whole numbers of blocks."""
        rows = plan.blocks()
        assert rows is not None
        counts = np.bincount(rows, minlength=plan.ring_size // plan.chunk)
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        order = np.argsort(rows, kind="stable").astype(np.int32)
        signs = torch.from_numpy(plan.all_signs()) if plan.signed else None
        tables = (torch.from_numpy(table) for table in (order, starts))
        return cls(plan.sizes, scales, plan.chunk, torch.from_numpy(np.ascontiguousarray(rows)), signs, *tables)

    def _pieces(self) -> list[tuple[int, slice, slice, slice]]:
        """(layer, piece of the layer, piece of the rows, piece of all weights)."""
        pieces, first, step = [], 0, max(1, TILE // 4 // self.width) * self.width
        for layer, size in enumerate(self.sizes):
            for begin in range(0, size, step):
                end = min(begin + step, size)
                where = slice(first + begin, first + end)
                rows = slice(where.start // self.width, where.stop // self.width)
                pieces.append((layer, slice(begin, end), rows, where))
            first += size
        return pieces

    def gather(self, ring: Tensor) -> tuple[Tensor, ...]:
        """G W."""
        layers = tuple(ring.new_empty(size) for size in self.sizes)
        source = ring.view(-1, self.width)
        for layer, piece, rows, where in self._pieces():
            out = layers[layer][piece]
            torch.index_select(source, 0, self.rows[rows], out=out.view(-1, self.width))
            if self.signs is not None:
                out.mul_(self.signs[where])
            if self.scales[layer] != 1:
                out.mul_(self.scales[layer])
        return layers

    def accumulate(self, gradients: Sequence[Tensor]) -> Tensor:
        """G^T g: the bags of an embedding are the uses of a block."""
        flat = gradients[0].new_empty(sum(self.sizes), dtype=_precise(gradients[0].dtype))
        for layer, piece, _, where in self._pieces():
            out = flat[where]
            torch.mul(gradients[layer][piece], self.scales[layer], out=out)
            if self.signs is not None:
                out.mul_(self.signs[where])
        values = flat.view(-1, self.width)
        return torch.nn.functional.embedding_bag(
            self.order, values, self.starts, mode="sum", include_last_offset=True
        ).view(-1)


# --- theory's reference


@dataclass(frozen=True)
class Rotations:
    """Plan `haar`: dense matrices a_l A_l, `[n_l, M]` in double precision."""

    sizes: tuple[int, ...]
    matrices: tuple[Tensor, ...]

    def gather(self, ring: Tensor) -> tuple[Tensor, ...]:
        """G W."""
        with torch.autocast(ring.device.type, enabled=False):
            return tuple((matrix @ ring.to(matrix.dtype)).to(ring.dtype) for matrix in self.matrices)

    def accumulate(self, gradients: Sequence[Tensor]) -> Tensor:
        """G^T g."""
        with torch.autocast(gradients[0].device.type, enabled=False):
            parts = [m.T @ g.to(m.dtype) for m, g in zip(self.matrices, gradients, strict=True)]
            return torch.stack(parts).sum(0).to(_precise(gradients[0].dtype))


# --- for autograd


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ring: Tensor, tables: Tables, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return tables.gather(ring.detach().to(dtype).contiguous())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ring, ctx.tables, ctx.dtype = inputs
        ctx.ring_dtype = ring.dtype

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _Accumulate.apply(ctx.tables, ctx.ring_dtype, *gradients), None, None  # pyright: ignore

    @staticmethod
    def jvp(ctx: Any, ring: Tensor, *_: None) -> tuple[Tensor, ...]:
        return _Gather.apply(ring, ctx.tables, ctx.dtype)  # pyright: ignore[reportReturnType]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], ring: Tensor, tables: Tables, dtype: torch.dtype) -> Any:
        made = [_Gather.apply(one, tables, dtype) for one in ring.movedim(in_dims[0] or 0, 0)]
        layers = tuple(torch.stack(layer) for layer in zip(*made, strict=True))  # pyright: ignore
        return layers, (0,) * len(layers)


class _Accumulate(torch.autograd.Function):
    @staticmethod
    def forward(tables: Tables, dtype: torch.dtype, *gradients: Tensor) -> Tensor:
        return tables.accumulate([gradient.detach() for gradient in gradients]).to(dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.tables, ctx.dtype, first, *_ = inputs
        ctx.gradient_dtype = first.dtype

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        return None, None, *_Gather.apply(gradients[0], ctx.tables, ctx.gradient_dtype)  # pyright: ignore

    @staticmethod
    def jvp(ctx: Any, _: None, __: None, *gradients: Tensor) -> Tensor:
        return _Accumulate.apply(ctx.tables, ctx.dtype, *gradients)  # pyright: ignore[reportReturnType]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], tables: Tables, dtype: torch.dtype, *gradients: Tensor) -> Any:
        count = info.batch_size
        batched = [
            g.expand(count, *g.shape) if dim is None else g.movedim(dim, 0)
            for g, dim in zip(gradients, in_dims[2:], strict=True)
        ]
        totals = [_Accumulate.apply(tables, dtype, *(g[index] for g in batched)) for index in range(count)]
        return torch.stack(totals), 0  # pyright: ignore[reportArgumentType]


def generate(ring: Tensor, tables: Tables, dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
    """Weights of all layers from a ring, differentiable to any order and under `torch.func`'s transforms.

    Args:
        ring: W, `[M]`.
        tables: the plan's, for the ring's device.
        dtype: of the weights; the ring's by default. The gradient is summed in single precision or better in any case.

    Returns:
        theta_l, `[n_l]` each.
    """
    return _Gather.apply(ring, tables, dtype or ring.dtype)  # pyright: ignore[reportReturnType]
