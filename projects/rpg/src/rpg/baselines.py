"""The other ways to a small number of parameters (paper section 4; names and one line each in `BASELINES`).

Each takes a host, or the recipe of one, and gives a module that trains in the same loop as the host.

N weights of the host that the method acts on, M trainable numbers, q rank.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from rpg.baseline_names import BASELINES
from rpg.hosts import make_host
from rpg.hosts.host import Host, generated_names, matching_names, parameter_count
from shared.config import UserError, check_choice, check_range

__all__ = [
    "BASELINES",
    "LowRankConv2d",
    "LowRankLinear",
    "MagnitudePruning",
    "RandomSubspace",
    "low_rank",
    "narrow_host",
    "narrow_width",
    "pruning_rounds",
    "tie_layers",
]


def _chosen(host: nn.Module, patterns: Sequence[str] | None) -> list[str]:
    """Parameter names a method acts on: those that match, by default those a ring would make."""
    return generated_names(host) if patterns is None else matching_names(host, patterns)


def _refuse_tied(host: nn.Module, names: Sequence[str]) -> None:
    """Raise `UserError` if a weight belongs to several modules: a method that works module by module would untie it."""
    parameters = dict(host.named_parameters())
    chosen = {id(parameters[name]): name for name in names}
    seen: set[int] = set()
    for module in host.modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) in seen and id(parameter) in chosen:
                raise UserError("pattern", chosen[id(parameter)], "weights of one layer each: this one is tied")
            seen.add(id(parameter))


# --- narrow


def narrow_width(
    build: Callable[[int], nn.Module],
    budget: int,
    *,
    count: Callable[[nn.Module], int] = parameter_count,
    step: int = 1,
) -> int:
    """The largest width, a multiple of `step`, whose network stays within the budget.

    Args:
        build: a network of a given width. It is called on the meta device: nothing is allocated or drawn.
        budget: most parameters, in total or as `count` counts them.
        count: what is counted; it must not fall when the width grows.
        step: widths that are tried.

    Raises:
        UserError: the narrowest network does not fit; its size is named.
    """

    def size(steps: int) -> int:
        with torch.device("meta"):
            return count(build(steps * step))

    if (least := size(1)) > budget:
        raise UserError("budget", budget, f"at least {least} parameters, those of the network of width {step}")
    low, high = 1, 2  # size(low) fits
    while size(high) <= budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= budget else (low, middle)
    return low * step


def narrow_host(
    name: str, budget: int, *, count: Callable[[nn.Module], int] = parameter_count, **options: Any
) -> tuple[Host, int]:
    """A host by name at the largest width that stays within the budget, and that width.

    `options` are those of `make_host`, without `width`; `count` as in `narrow_width` (the whole host's parameters by
    default, `generated_count` to compare generated weights alone).

    Raises:
        UserError: as `make_host`, or the narrowest host does not fit.
    """
    if "width" in options:
        raise UserError("width", options["width"], "no width: the budget sets it")
    with torch.device("meta"):
        step = make_host(name, **options).width_step
    width = narrow_width(lambda width: make_host(name, width=width, **options), budget, count=count, step=step)
    return make_host(name, width=width, **options), width


# --- low rank


def _factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The closest product of rank q to a matrix [out, in] up to a factor, as [out, q] and [q, in] of equal norms.

    The factor keeps the matrix's norm: a random matrix loses most of its energy with its small singular values, and
    a network of such layers would start with vanishing outputs.
    """
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    kept = s[:rank]
    root = (kept * (s.norm() / kept.norm().clamp_min(torch.finfo(s.dtype).tiny))).sqrt()
    return u[:, :rank] * root, root[:, None] * vh[:rank]


class LowRankConv2d(nn.Sequential):
    """k x k convolution to q channels, then 1x1 to the outputs: a kernel [out, in*k*k] of rank q.

    Starts as the closest such kernel to the convolution it replaces, at that one's norm.
    """

    def __init__(self, dense: nn.Conv2d, rank: int) -> None:
        kind: dict[str, Any] = {"device": dense.weight.device, "dtype": dense.weight.dtype}
        reduce = nn.Conv2d(
            dense.in_channels,
            rank,
            dense.kernel_size,  # pyright: ignore[reportArgumentType]
            dense.stride,  # pyright: ignore[reportArgumentType]
            dense.padding,  # pyright: ignore[reportArgumentType]
            dense.dilation,  # pyright: ignore[reportArgumentType]
            bias=False,
            padding_mode=dense.padding_mode,
            **kind,
        )
        expand = nn.Conv2d(rank, dense.out_channels, 1, bias=dense.bias is not None, **kind)
        with torch.no_grad():
            left, right = _factors(dense.weight.flatten(1), rank)
            expand.weight.copy_(left[:, :, None, None])
            reduce.weight.copy_(right.unflatten(1, dense.weight.shape[1:]))
            if dense.bias is not None and expand.bias is not None:
                expand.bias.copy_(dense.bias)
        super().__init__(reduce, expand)


class LowRankLinear(nn.Sequential):
    """Linear to q units, then to the outputs; starts as the closest to the layer it replaces."""

    def __init__(self, dense: nn.Linear, rank: int) -> None:
        kind: dict[str, Any] = {"device": dense.weight.device, "dtype": dense.weight.dtype}
        reduce = nn.Linear(dense.in_features, rank, bias=False, **kind)
        expand = nn.Linear(rank, dense.out_features, bias=dense.bias is not None, **kind)
        with torch.no_grad():
            left, right = _factors(dense.weight, rank)
            expand.weight.copy_(left)
            reduce.weight.copy_(right)
            if dense.bias is not None:
                expand.bias.copy_(dense.bias)
        super().__init__(reduce, expand)


RANK_GRID = 10_000  # the common fraction of the full ranks is searched in such steps


def low_rank(
    host: nn.Module, budget: int | None = None, *, fraction: float | None = None, patterns: Sequence[str] | None = None
) -> tuple[nn.Module, dict[str, int]]:
    """A copy of a host with its convolution and linear layers factorised, and the rank of each by name.

    All layers keep the same fraction of their full rank min(out, in*k*k), at least rank 1.

    Args:
        host: any network; it stays as it is.
        budget: most trainable parameters of the result; the largest fraction that fits is taken.
        fraction: the fraction itself, in (0, 1], instead of a budget.
        patterns: `fnmatch` patterns of weights; by default those a ring would make.

    Raises:
        UserError: neither or both of budget and fraction, a layer that is neither a plain convolution nor linear, a
            weight tied across layers, or a budget below the size at rank 1.
    """
    if (budget is None) == (fraction is None):
        raise UserError("budget, fraction", (budget, fraction), "one of the two")
    check_range("fraction", fraction, 0, 1, open_low=True)
    names = _chosen(host, patterns)
    _refuse_tied(host, names)
    layers: dict[str, nn.Conv2d | nn.Linear] = {}
    for name in names:
        path, _, attribute = name.rpartition(".")
        layer = host.get_submodule(path)
        plain = isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
        if not plain or attribute != "weight":
            raise UserError("pattern", name, "weights of linear layers and ungrouped 2-d convolutions")
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        layers[path] = layer
    shapes = {path: (layer.weight.shape[0], layer.weight[0].numel()) for path, layer in layers.items()}
    owned = parameter_count(host) - sum(out * inputs for out, inputs in shapes.values())

    def ranks(fraction: float) -> dict[str, int]:
        return {path: max(1, math.floor(fraction * min(shape))) for path, shape in shapes.items()}

    def size(fraction: float) -> int:
        return owned + sum(rank * sum(shapes[path]) for path, rank in ranks(fraction).items())

    if budget is not None:
        if (least := size(0)) > budget:
            raise UserError("budget", budget, f"at least {least} parameters, those at rank 1")
        low, high = 0, RANK_GRID + 1  # in steps of the grid; size(low) fits
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if size(middle / RANK_GRID) <= budget else (low, middle)
        fraction = low / RANK_GRID
    assert fraction is not None
    chosen = ranks(fraction)
    replaced: dict[int, nn.Module] = {}
    for path, layer in layers.items():
        make = LowRankConv2d if isinstance(layer, nn.Conv2d) else LowRankLinear
        replaced[id(layer)] = make(layer, chosen[path])  # pyright: ignore[reportArgumentType]
    # A module that is called from several places is replaced by one module in all of them.
    memo: dict[int, Any] = {key: module for key, module in replaced.items()}  # noqa: C416 - deepcopy writes into it
    return copy.deepcopy(host, memo), chosen


# --- recurrent (tied) layers


def tie_layers(host: nn.Module, patterns: Sequence[str] | None = None) -> tuple[nn.Module, list[list[str]]]:
    """A copy of a host in which the weights of one shape are one parameter, and the groups of names tied.

    With equal strides this is one convolution called L times; norms and biases stay each layer's own. It is the
    classic recurrent convolution, to which plan `reuse` reduces where all generated layers have one shape.

    Args:
        host: any network; it stays as it is.
        patterns: `fnmatch` patterns of weights; by default those a ring would make.
    """
    names = _chosen(host, patterns)
    host = copy.deepcopy(host)
    parameters = dict(host.named_parameters())
    groups: dict[torch.Size, list[str]] = {}
    for name in names:
        groups.setdefault(parameters[name].shape, []).append(name)
    first = {id(parameters[name]): parameters[group[0]] for group in groups.values() for name in group}
    for module in host.modules():  # by identity: an already shared parameter moves in all its places
        for attribute, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if id(parameter) in first:
                setattr(module, attribute, first[id(parameter)])
    return host, list(groups.values())


# --- magnitude pruning


class Mask(nn.Module):
    """Parametrization that holds pruned weights at zero, whatever the optimiser does."""

    keep: Tensor

    def __init__(self, shape: torch.Size, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("keep", torch.ones(shape, dtype=torch.bool, device=device))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.keep


class MagnitudePruning:
    """Global magnitude (L1) pruning of a host, in place: the smallest weights of all layers together go.

    The masks are parametrizations, not `torch.nn.utils.prune` (whose weights are stale until the next forward pass and
    cannot be copied): they follow the host through `deepcopy`, `state_dict` and `.to`, and hold through
    fine-tuning. An optimiser made before keeps its parameters.

    One-shot: `pruning.prune_to(keep)`, fine-tune. Iterative: for each of `pruning_rounds(pruning.total, keep, 3)`.

    Args:
        host: any network.
        patterns: `fnmatch` patterns of the weights; by default those a ring would make.

    Raises:
        UserError: a matched weight is tied across layers, or already pruned.
    """

    def __init__(self, host: nn.Module, patterns: Sequence[str] | None = None) -> None:
        if any(parametrize.is_parametrized(module) for module in host.modules()):
            raise UserError("host", type(host).__name__, "a network without parametrizations, such as masks")
        names = _chosen(host, patterns)
        _refuse_tied(host, names)
        parameters = dict(host.named_parameters())
        self.host, self.names = host, names
        for name in names:
            path, _, attribute = name.rpartition(".")
            module, parameter = host.get_submodule(path), parameters[name]
            parametrize.register_parametrization(module, attribute, Mask(parameter.shape, parameter.device))

    def _lists(self) -> Iterator[parametrize.ParametrizationList]:
        for name in self.names:
            path, _, attribute = name.rpartition(".")
            yield self.host.get_submodule(path).parametrizations[attribute]  # pyright: ignore

    def masks(self) -> dict[str, Tensor]:
        """What is kept, by the parameter's name before pruning: booleans of its shape."""
        return {name: parts[0].keep for name, parts in zip(self.names, self._lists(), strict=True)}  # pyright: ignore

    @property
    def total(self) -> int:
        """N, weights under pruning."""
        return sum(mask.numel() for mask in self.masks().values())

    @property
    def nonzeros(self) -> int:
        """Weights not pruned."""
        return sum(int(mask.sum()) for mask in self.masks().values())

    @torch.no_grad()
    def prune_to(self, keep: int) -> None:
        """Keep exactly the `keep` largest of the weights not pruned so far; ties break arbitrarily.

        Raises:
            UserError: `keep` is negative or more than are left.
        """
        check_range("keep", keep, 0, self.nonzeros)
        masks = list(self.masks().values())
        magnitudes = torch.cat([parts.original.abs().flatten() for parts in self._lists()])  # pyright: ignore
        # What was pruned cannot come back: it ranks below a weight of zero.
        magnitudes[~torch.cat([mask.flatten() for mask in masks])] = -1
        kept = torch.zeros_like(magnitudes, dtype=torch.bool)
        kept[magnitudes.topk(keep, sorted=False).indices] = True
        for mask, part in zip(masks, kept.split([mask.numel() for mask in masks]), strict=True):
            mask.copy_(part.view_as(mask))

    def make_permanent(self) -> nn.Module:
        """The host with plain parameters again, zeros written in; nothing holds them there any more."""
        for name in self.names:
            path, _, attribute = name.rpartition(".")
            parametrize.remove_parametrizations(self.host.get_submodule(path), attribute)
        return self.host


def pruning_rounds(total: int, keep: int, rounds: int = 3) -> tuple[int, ...]:
    """Weights to keep after each round when every round keeps the same share; the last is exactly `keep`.

    Raises:
        UserError: rounds below 1, or `keep` outside 1 .. total.
    """
    check_range("rounds", rounds, 1)
    check_range("keep", keep, 1, total)
    return (*(round(total * (keep / total) ** (r / rounds)) for r in range(1, rounds)), keep)


# --- random fixed subspace


def _signs_and_orders(blocks: int, d: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """B, Pi and G of every Fastfood block, each [blocks, d], from the CPU's generator: the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (blocks, d), generator=generator, dtype=torch.float32) * 2 - 1
    order = torch.rand(blocks, d, generator=generator).argsort(dim=1)
    return signs, order, torch.randn(blocks, d, generator=generator)


def hadamard(x: Tensor) -> Tensor:
    """Walsh-Hadamard transform of the last dimension (a power of two), unnormalised, in d log d additions."""
    d, h = x.shape[-1], 1
    while h < d:
        pairs = x.unflatten(-1, (d // (2 * h), 2, h))
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        x = torch.stack([a + b, a - b], dim=-2).flatten(-3)
        h *= 2
    return x


class _DenseProjection(torch.autograd.Function):
    """E w and E^T g for a Gaussian E [N, M] that exists only a few rows at a time."""

    @staticmethod
    def _rows(size: int, w: Tensor, seed: int) -> Iterator[tuple[int, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        step = max(1, 2**22 // len(w))
        for start in range(0, size, step):
            rows = torch.randn(min(step, size - start), len(w), generator=generator)
            yield start, rows.to(w) / math.sqrt(size)

    @staticmethod
    def forward(ctx: Any, w: Tensor, size: int, seed: int) -> Tensor:
        ctx.save_for_backward(w)
        ctx.seed = seed
        return torch.cat([rows @ w for _, rows in _DenseProjection._rows(size, w, seed)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (w,) = ctx.saved_tensors
        (g,) = gradients
        out = torch.zeros_like(w)
        for start, rows in _DenseProjection._rows(len(g), w, ctx.seed):
            out += rows.T @ g[start : start + len(rows)]
        return out, None, None


class RandomSubspace(nn.Module):
    """theta = theta0 + E w: the host's weights move in a random subspace of M dimensions (Li et al. 2018).

    E [N, M] has columns of unit expected length, is fixed by the seed and never stored. `fastfood` (Le et al. 2013)
    multiplies by it in N log M steps through E = H G Pi H B; `dense` draws a Gaussian E anew, a few rows at a time,
    in every pass: exact, and slow beyond some 10^7 entries.

    The host is held inside: its chosen weights are frozen at theta0, the others train as before.

    Args:
        host: a small network; it becomes part of this module.
        dimension: M, at most N.
        patterns: `fnmatch` patterns of the weights; by default those a ring would make.
        seed: of E.
        projection: `fastfood` or `dense`.

    Raises:
        UserError: M outside 1 .. N, or an unknown projection.
    """

    def __init__(
        self,
        host: nn.Module,
        dimension: int,
        *,
        patterns: Sequence[str] | None = None,
        seed: int = 0,
        projection: str = "fastfood",
    ) -> None:
        super().__init__()
        check_choice("projection", projection, ("fastfood", "dense"))
        self.names = _chosen(host, patterns)
        parameters = dict(host.named_parameters())
        self.sizes = [parameters[name].numel() for name in self.names]
        check_range("dimension", dimension, 1, sum(self.sizes))
        for name in self.names:
            parameters[name].requires_grad_(False)
        self.host, self.seed, self.projection = host, seed, projection
        like = parameters[self.names[0]]
        self.coordinates = nn.Parameter(torch.zeros(dimension, device=like.device, dtype=like.dtype))
        if projection == "fastfood":
            d = 2 ** math.ceil(math.log2(dimension))
            parts = _signs_and_orders(math.ceil(sum(self.sizes) / d), d, seed)
            for name, part in zip(("signs", "order", "gains"), parts, strict=True):
                part = part.to(like) if part.is_floating_point() else part.to(like.device)
                self.register_buffer(name, part, persistent=False)

    def displacement(self) -> Tensor:
        """E w [N]."""
        size = sum(self.sizes)
        if self.projection == "dense":
            return _DenseProjection.apply(self.coordinates, size, self.seed)  # pyright: ignore[reportReturnType]
        signs, order, gains = self.get_buffer("signs"), self.get_buffer("order"), self.get_buffer("gains")
        d = signs.shape[1]
        w = nn.functional.pad(self.coordinates, (0, d - len(self.coordinates)))
        mixed = hadamard(signs * w).gather(1, order)  # [blocks, d]
        return (hadamard(gains * mixed) / math.sqrt(d * size)).flatten()[:size]

    def weights(self) -> dict[str, Tensor]:
        """theta, by the host's parameter names."""
        parameters = dict(self.host.named_parameters())
        parts = self.displacement().split(self.sizes)
        return {
            name: parameters[name] + part.view_as(parameters[name])
            for name, part in zip(self.names, parts, strict=True)
        }

    def forward(self, *inputs: Tensor) -> Any:
        return functional_call(self.host, self.weights(), inputs)
