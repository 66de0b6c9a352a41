"""Any network with products of linear layers in the places of its linear layers and convolutions, and back.

    wide, report = overparameterize(model, depth=3)         # train this one
    plain = collapse(wide)                                  # torch modules only, of the original's shapes

A weight [o, i, k, k'] becomes d factors through h hidden channels. The product can be any weight of the layer's shape
if at each hidden node h >= min(o K, i L), with L taps before the node and K after it; for kernels k, 1, ..., 1 that is
h >= min(o, i k k'). Groups count one by one.

Dimension letters: o outputs, i inputs, h hidden channels, d factors, g groups, k kernel, r rank.
"""

from __future__ import annotations

import copy
import fnmatch
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from low_rank.overparam.compose import effective_kernel, skip_sources
from low_rank.overparam.layers import (
    RELU_GAIN,
    Expanded,
    ExpandedConv2d,
    ExpandedLinear,
    Mode,
    check_depth,
    check_gain,
    check_width,
    kernel_list,
)
from shared.config import UserError, check_choice

Kind = Literal["linear", "conv"]
KINDS: tuple[Kind, ...] = ("linear", "conv")
Init = Literal["reset", "preserve"]
INITS: tuple[Init, ...] = ("reset", "preserve")
Mismatch = Literal["refuse", "skip"]
MISMATCHES: tuple[Mismatch, ...] = ("refuse", "skip")


@dataclass(frozen=True)
class Replaced:
    """One layer that was replaced."""

    module: str
    """Its first path in the model."""
    shape: tuple[int, ...]
    """Of the weight that it had."""
    factors: tuple[tuple[int, ...], ...]
    """Shapes of the factors, first to last."""
    parameters_before: int
    """Weight and bias."""
    parameters_after: int
    """Factors, their biases and batch norms."""
    capacity_reduced: bool
    """Some weight of this shape is no product of such factors: a hidden node is too narrow."""
    kernel_changed: bool
    """The composed kernel is larger than the layer's was: it is another architecture."""
    bias_added: bool
    """The layer had no bias, and batch norms give the composed one."""
    residual: bool
    """It has skips."""


@dataclass(frozen=True)
class Report:
    """What `overparameterize` did, a row for each layer that was replaced."""

    rows: tuple[Replaced, ...]

    @property
    def parameters_before(self) -> int:
        """Of the layers that were replaced."""
        return sum(row.parameters_before for row in self.rows)

    @property
    def parameters_after(self) -> int:
        """Of what replaced them."""
        return sum(row.parameters_after for row in self.rows)

    @property
    def capacity_reduced(self) -> bool:
        """Whether any layer can be less than before."""
        return any(row.capacity_reduced for row in self.rows)

    def __str__(self) -> str:
        """A table of plain text."""
        notes = {
            "capacity_reduced": "capacity reduced", "kernel_changed": "kernel changed", "bias_added": "bias added",
            "residual": "residual",
        }  # fmt: skip
        lines = [("module", "shape", "factors", "before", "after", "")]
        for row in self.rows:
            told = ", ".join(text for name, text in notes.items() if getattr(row, name))
            factors = " ".join(_times(shape) for shape in row.factors)
            lines.append((row.module, _times(row.shape), factors, f"{row.parameters_before:,}",
                          f"{row.parameters_after:,}", told))  # fmt: skip
        lines.append(("total", "", "", f"{self.parameters_before:,}", f"{self.parameters_after:,}", ""))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def overparameterize(
    model: nn.Module,
    depth: int = 3,
    width: float = 1.0,
    *,
    kernels: Sequence[int] | None = None,
    include: str | Sequence[str] = ("*",),
    exclude: str | Sequence[str] = (),
    kinds: Kind | Sequence[Kind] = KINDS,
    batch_norm: bool = False,
    residual: int | Sequence[int] = (),
    on_mismatch: Mismatch = "refuse",
    init: Init = "reset",
    mode: Mode = "auto",
    gain: float = RELU_GAIN,
    authors_init: bool = False,
) -> tuple[nn.Module, Report]:
    """A copy of a network with products of `depth` factors in the places of its linear layers and convolutions.

    The model itself is left as it is. Groups, stride, padding, padding mode, dilation, device, type, frozen parameters
    and evaluation mode are taken over; a layer that the model uses under two names stays one.

    Args:
        model: any network; of its layers, nn.Linear and nn.Conv2d themselves are replaced.
        depth: d. width: hidden over output channels.
        kernels: one for each factor, for square convolutions of their composed kernel, and for those of their largest
            one, whose kernel then grows (3, 3 makes 5 x 5 of 3 x 3: another capacity) with its padding. Others, and all
            by default, get their own kernel first and 1 x 1 after it.
        include, exclude: one pattern or several for paths of layers, as `fnmatch` reads them: * is any text, dots too
            (`layer1.*`, `*.conv2`), ? one letter, [ab] one of these. A layer that the model has under several names is
            meant by each of them.
        kinds: linear, conv or both.
        batch_norm, mode: as in `ExpandedConv2d`.
        residual: intervals of skips, as in `ExpandedConv2d`.
        on_mismatch: what becomes of a layer that cannot have these skips, as its inputs and outputs differ: refuse, or
            leave them out there, as the report says.
        init: `reset` draws the factors anew; `preserve` splits the weight evenly, so that the function is the same.
        gain: of the last factors, for the activation that follows: sqrt(2) for ReLU, 1 for tanh, as
            `low_rank.models.gain` says. The others have 1.
        authors_init: this gain for the output layer too; else that has 1. The output layer is taken to be the last
            linear layer, or the last convolution where there is none.

    Returns:
        The network, and a report with a row for each layer that was replaced.

    Raises:
        UserError: a pattern, or kernels, that meet no layer; a layer that cannot be replaced, named by its path: of a
            derived class (as in `nn.MultiheadAttention`, or under a parametrisation), with hooks on it or on its
            parameters, or with a weight that another module has too; what `ExpandedLinear` and `ExpandedConv2d` refuse;
            `preserve` with batch norms or skips, with too few hidden channels, or of weights that are not finite.

    Warns:
        UserWarning: layers whose capacity is reduced.
    """
    depth = check_depth(depth)
    check_width(width)
    check_gain(gain)
    check_choice("init", init, INITS)
    check_choice("on_mismatch", on_mismatch, MISMATCHES)
    kinds = cast("Sequence[Kind]", _several("kinds", kinds))
    for kind in kinds:
        check_choice("kinds", kind, KINDS)
    include, exclude = _several("include", include), _several("exclude", exclude)
    skip_sources(depth, residual)
    skips = list(residual) if isinstance(residual, Sequence) else [residual]
    if init == "preserve" and (batch_norm or skips):
        value = "preserve with " + ("batch_norm" if batch_norm else "residual")
        raise UserError("init", value, "preserve for plain products", "Either would change the function.")
    composed = None
    if kernels is not None:
        whole = isinstance(kernels, Sequence) and all(isinstance(each, int) for each in kernels)
        if not whole:
            raise UserError("kernels", kernels, f"{depth} whole numbers, a square kernel for each factor")
        kernels = [height for height, _ in kernel_list(kernels, depth)]
        composed = effective_kernel([(each, each) for each in kernels])[0]
    found = dict(model.named_modules(remove_duplicate=False))
    chosen = _chosen(found, include, exclude, kinds)
    last = _output_layer(found)
    _check_replaceable(found, chosen)
    replacements: dict[nn.Module, Expanded] = {}
    rows: list[Replaced] = []
    met = kernels is None
    for name in chosen:
        plain = cast("nn.Linear | nn.Conv2d", found[name])
        if plain in replacements:
            continue
        sizes: Sequence[int | tuple[int, int]] | None = None
        if isinstance(plain, nn.Conv2d):
            own = cast(tuple[int, int], plain.kernel_size)
            sizes = [own, *[(1, 1)] * (depth - 1)]
            if kernels is not None and own in ((composed, composed), (max(kernels), max(kernels))):
                sizes, met = list(kernels), True
        own_gain = 1.0 if plain is last and not authors_init else gain
        options = {"batch_norm": batch_norm, "residual_intervals": skips, "mode": mode, "gain": own_gain}
        try:
            try:
                layer = _expanded(plain, depth, width, sizes, options)
            except UserError as error:
                if error.field != "residual_intervals" or on_mismatch == "refuse":
                    raise
                layer = _expanded(plain, depth, width, sizes, {**options, "residual_intervals": ()})
            if init == "preserve":
                _preserve(layer, plain)
        except UserError as error:
            hint = error.hint
            if error.field == "residual_intervals":
                hint = f"{hint} Leave the layer out, exclude=[{name!r}], or its skips, on_mismatch='skip'.".strip()
            raise UserError(f"layer {name!r}: {error.field}", error.value, error.valid, hint) from error
        replacements[plain] = _alike(layer, plain)
        rows.append(_row(name, plain, layer))
    if not met:
        raise UserError("kernels", list(kernels or ()), "kernels that compose to, or hold, that of some convolution")
    if skips and not any(row.residual for row in rows):
        raise UserError("residual", residual, "skips that fit at least one layer: as many inputs as outputs, width 1")
    report = Report(tuple(rows))
    if report.capacity_reduced:
        names = ", ".join(row.module for row in rows if row.capacity_reduced)
        warnings.warn(f"capacity reduced by too few hidden channels in: {names}", stacklevel=2)
    return _replaced(model, replacements), report


def collapse(model: nn.Module) -> nn.Module:
    """A copy of a network with plain torch layers in the places of the products, as they are in evaluation mode.

    Products are all modules of a class derived from `Expanded`; each gives its own `collapsed()`. What was frozen stays
    so. The state dict is that of the original architecture, and loads into it, unless kernels were changed, or batch
    norms made a bias where the original has none.

    Raises:
        UserError: named by its path: a product that vanished in its precision or overflowed; one with hooks on it, on
            its parts or on its parameters, which would be lost.

    Warns:
        UserWarning: layers with a bias that the original had not.
    """
    replacements: dict[nn.Module, nn.Module] = {}
    biased: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, Expanded):
            if any(_hooked(part) for part in module.modules()):
                raise UserError(
                    f"layer {name!r}", "hooks, which would be lost", "a layer without", "Remove them first."
                )
            try:
                replacements[module] = module.collapsed()
            except UserError as error:
                raise UserError(f"layer {name!r}: {error.field}", error.value, error.valid, error.hint) from error
            if len(getattr(module, "norms", ())) and not len(getattr(module, "biases", ())):
                biased.append(name)
    if biased:
        text = "biases that the original layers have not, from batch norms: a strict load into them would refuse "
        warnings.warn(text + ", ".join(f"{name}.bias" if name else "bias" for name in biased), stacklevel=2)
    return _replaced(model, replacements)


def balanced_factors(weight: Tensor, kernels: Sequence[tuple[int, int]], hidden: int, groups: int = 1) -> list[Tensor]:
    """Factors whose product is the given weight, each with the d-th root of its singular values.

    One of the kernels is that of the weight, the others are 1 x 1. With M = U S V^T the factors are
    Q_1 S^(1/d) V^T, Q_2 S^(1/d) Q_1^T, ..., U S^(1/d) Q_(d-1)^T for random Q_l [h, r] of orthonormal columns:
    neighbours are balanced, W_(l+1)^T W_(l+1) = W_l W_l^T, as gradient flow keeps them. Where the wide kernel is
    neither first nor last, the factors after it are split off first, then those before it.

    Args:
        weight: [o, i / g, k, k'] . kernels: of the d factors. hidden: h. groups: g.

    Returns:
        d weights, first to last, in the weight's type.

    Raises:
        UserError: kernels that spread over several factors; fewer hidden channels than singular values.
    """
    size = tuple(weight.shape[2:])
    wide = [number for number, kernel in enumerate(kernels) if kernel != (1, 1)]
    if effective_kernel(kernels) != size or len(wide) > 1:
        raise UserError("init", f"preserve with kernels {list(kernels)}",
                        f"one kernel of {size[0]} x {size[1]}, and 1 x 1 for the other factors")  # fmt: skip
    place, depth, h = wide[0] if wide else 0, len(kernels), hidden // groups
    w = weight.detach().double().unflatten(0, (groups, -1)).flatten(3)  # [g, o, i, k k']
    _, outputs, inputs, taps = w.shape
    after, core = _split(w.reshape(groups, outputs, inputs * taps), depth - place - 1, depth, h)
    core = core.view(groups, -1, inputs, taps).transpose(2, 3)  # [g, rows, k k', i]
    rows = core.shape[1]
    # The core holds S^((place + 1) / d): to be shared by itself and the factors before it.
    transposed = core.reshape(groups, rows * taps, inputs).transpose(1, 2)
    before, core = _split(transposed, place, place + 1, h)
    core = core.transpose(1, 2).reshape(groups, rows, taps, -1).transpose(2, 3)
    parts = (
        [each.transpose(1, 2)[..., None] for each in before] + [core] + [each[..., None] for each in reversed(after)]
    )
    return [
        part.flatten(0, 1).unflatten(2, kernel).to(weight.dtype)
        for part, kernel in zip(parts, kernels, strict=True)
    ]  # fmt: skip


def _split(matrix: Tensor, factors: int, depth: int, hidden: int) -> tuple[list[Tensor], Tensor]:
    """Take factors U S^(1/d) Q_1^T, Q_1 S^(1/d) Q_2^T, ... off the left of M = U S V^T; leave Q S^(1 - factors/d) V^T.

    Args:
        matrix: [g, m, n]. factors: how many. depth: d. hidden: h, rows of the remainder (all of M's, without factors).
    """
    if not factors:
        return [], matrix
    # Tall matrices take LAPACK a third of the time that wide ones do.
    v, s, uh = torch.linalg.svd(matrix.transpose(1, 2), full_matrices=False)
    u, vh = uh.transpose(1, 2), v.transpose(1, 2)
    if s.shape[-1] > hidden:
        valid = f"one that leaves {s.shape[-1]} hidden channels (in every group), as init='preserve' needs"
        raise UserError("width", f"one of {hidden}", valid)
    root = s ** (1 / depth)
    taken, left = [], u
    for _ in range(factors):
        basis = torch.linalg.qr(torch.randn(len(matrix), hidden, s.shape[-1]).to(matrix)).Q
        taken.append(left * root[:, None] @ basis.transpose(1, 2))
        left = basis
    return taken, left * (s ** ((depth - factors) / depth))[:, None] @ vh


def _preserve(layer: Expanded, plain: nn.Linear | nn.Conv2d) -> None:
    """Give a product the weight and bias of the plain layer; hidden biases are 0."""
    weight = plain.weight.detach()
    if not all(bool(each.isfinite().all()) for each in plain.parameters()):
        raise UserError("init", "preserve with weights that are not finite", "finite weights and biases")
    if isinstance(layer, ExpandedConv2d):
        kernels = list(layer.kernel_sizes)
        own = tuple(weight.shape[2:])
        if layer.kernel_size != own:
            kernels = _embedding(kernels, own)
    else:
        weight, kernels = weight[..., None, None], [(1, 1)] * layer.depth
    hidden = layer.weights[0].shape[0]
    factors = balanced_factors(weight, kernels, hidden, layer.groups)
    with torch.no_grad():
        for target, factor in zip(layer.weights, factors, strict=True):
            if target.dim() == 2:
                target.copy_(factor[..., 0, 0])
                continue
            margins = [(want - have) // 2 for want, have in zip(target.shape[2:], factor.shape[2:], strict=True)]
            target.copy_(F.pad(factor, (margins[1], margins[1], margins[0], margins[0])))
        for bias in layer.biases:
            bias.zero_()
        if plain.bias is not None:
            layer.biases[-1].copy_(plain.bias)


def _embedding(kernels: Sequence[tuple[int, int]], own: tuple[int, ...]) -> list[tuple[int, int]]:
    """Where a kernel of size `own` fits into a product of larger ones: in the first that holds it, 1 x 1 in the others,
    all of them centred.

    Raises:
        UserError: even kernels, which have no centre, or none that holds it.
    """
    holds = [n for n, size in enumerate(kernels) if all(k >= o for k, o in zip(size, own, strict=True))]
    if not holds or any(k % 2 == 0 for size in (*kernels, own) for k in size):
        raise UserError("init", f"preserve with kernels {list(kernels)}",
                        f"odd kernels, one of which holds {own[0]} x {own[1]}")  # fmt: skip
    return [(own[0], own[1]) if n == holds[0] else (1, 1) for n in range(len(kernels))]


def _expanded(
    plain: nn.Linear | nn.Conv2d,
    depth: int,
    width: float,
    sizes: Sequence[int | tuple[int, int]] | None,
    options: Mapping[str, Any],
) -> Expanded:
    """The product for a plain layer, with weights as its initialisation gives them."""
    options = {**options, "device": plain.weight.device, "dtype": plain.weight.dtype}
    if isinstance(plain, nn.Linear):
        return ExpandedLinear(plain.in_features, plain.out_features, depth, width, plain.bias is not None, **options)
    assert sizes is not None
    kernel = cast(tuple[int, int], plain.kernel_size)
    padding = cast("tuple[int, int] | str", plain.padding)
    composed = effective_kernel(kernel_list(sizes))
    if composed != kernel and padding != "same":  # which adapts by itself
        padding = cast(tuple[int, int], (0, 0) if padding == "valid" else padding)
        more = [new - old for new, old in zip(composed, kernel, strict=True)]
        if any(each % 2 for each in more):
            value = f"{list(sizes)}, {composed[0]} x {composed[1]} for {kernel[0]} x {kernel[1]}"
            raise UserError("kernels", value, "kernels that grow by an even number of taps, to keep the image's size")
        dilation = cast(tuple[int, int], plain.dilation)
        padding = (padding[0] + more[0] // 2 * dilation[0], padding[1] + more[1] // 2 * dilation[1])
    return ExpandedConv2d(
        plain.in_channels, plain.out_channels, sizes, depth, width, cast(tuple[int, int], plain.stride), padding,
        cast(tuple[int, int], plain.dilation), plain.groups, plain.bias is not None, padding_mode=plain.padding_mode,
        **options,
    )  # fmt: skip


def _alike(layer: Expanded, plain: nn.Linear | nn.Conv2d) -> Expanded:
    """What was frozen stays so, and what was in evaluation mode."""
    for weight in layer.weights:
        weight.requires_grad_(plain.weight.requires_grad)
    for parameter in layer.norms.parameters():
        parameter.requires_grad_(plain.weight.requires_grad)
    if plain.bias is not None:
        for bias in layer.biases:
            bias.requires_grad_(plain.bias.requires_grad)
    return layer.train(plain.training)


def _row(name: str, plain: nn.Linear | nn.Conv2d, layer: Expanded) -> Replaced:
    composed = layer.kernel_size if isinstance(layer, ExpandedConv2d) else (1, 1)
    return Replaced(
        module=name,
        shape=tuple(plain.weight.shape),
        factors=tuple(tuple(weight.shape) for weight in layer.weights),
        parameters_before=sum(parameter.numel() for parameter in plain.parameters()),
        parameters_after=sum(parameter.numel() for parameter in layer.parameters()),
        capacity_reduced=_reduced(layer),
        kernel_changed=isinstance(plain, nn.Conv2d) and composed != tuple(plain.kernel_size),
        bias_added=plain.bias is None and len(layer.norms) > 0,
        residual=bool(layer.skips),
    )


def _reduced(layer: Expanded) -> bool:
    """Whether some hidden node is narrower than what must pass it: h < min(o K, i L), for one group."""
    shapes = [(*weight.shape, 1, 1)[:4] for weight in layer.weights]
    outputs, inputs = shapes[-1][0] // layer.groups, shapes[0][1]
    for number in range(1, len(shapes)):
        before = math.prod(effective_kernel([shape[2:] for shape in shapes[:number]]))
        after = math.prod(effective_kernel([shape[2:] for shape in shapes[number:]]))
        if shapes[number][1] < min(outputs * after, inputs * before):
            return True
    return False


def _chosen(
    found: Mapping[str, nn.Module], include: Sequence[str], exclude: Sequence[str], kinds: Sequence[Kind]
) -> list[str]:
    """Names of the layers to replace.

    Raises:
        UserError: a pattern that meets no layer, or no layer left.
    """
    types = tuple({"linear": nn.Linear, "conv": nn.Conv2d}[kind] for kind in kinds)
    names = [name for name, module in found.items() if isinstance(module, (nn.Linear, nn.Conv2d))]
    for pattern in (*(p for p in include if p != "*"), *exclude):
        if not fnmatch.filter(names, pattern):
            raise UserError("layer pattern", pattern, names)
    kept = {found[name] for name in names if _meets(name, exclude)}  # under whatever other name
    chosen = [n for n in names if isinstance(found[n], types) and _meets(n, include) and found[n] not in kept]
    if not chosen:
        raise UserError("layers to replace", "none", "a network with layers of these kinds, and patterns that meet one")
    return chosen


def _several(field: str, given: str | Sequence[str]) -> tuple[str, ...]:
    """One name or several, as several."""
    names = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Iterable) else (None,)
    if not all(isinstance(name, str) for name in names):
        raise UserError(field, given, "one name, or a list of names")
    return names  # pyright: ignore[reportReturnType]


def _meets(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _output_layer(found: Mapping[str, nn.Module]) -> nn.Module | None:
    """The last linear layer, else the last convolution."""
    for kind in (nn.Linear, nn.Conv2d):
        layers = [module for module in found.values() if isinstance(module, kind)]
        if layers:
            return layers[-1]
    return None


def _check_replaceable(found: Mapping[str, nn.Module], chosen: Sequence[str]) -> None:
    """Refuse layers whose replacements would do something else than what their network means.

    Raises:
        UserError: names the first layer and its reason, and all of them to be left out.
    """
    refused = {name: reason for name in chosen if (reason := _unfit(found, name)) is not None}
    if refused:
        name, (value, valid) = next(iter(refused.items()))
        raise UserError(f"layer {name!r}", value, valid, f"Leave out what cannot be replaced: exclude={list(refused)}.")


def _unfit(found: Mapping[str, nn.Module], name: str) -> tuple[str, str] | None:
    """What a layer has that forbids its replacement, and what it should have."""
    layer = found[name]
    if type(layer) not in (nn.Linear, nn.Conv2d):
        return type(layer).__name__, "nn.Linear or nn.Conv2d itself"
    if "weight" not in layer._parameters:
        return "a weight that is computed", "a parameter"
    if _hooked(layer):
        return "hooks, which would be lost", "a layer without"
    own = {id(parameter) for parameter in layer.parameters()}
    for other, module in found.items():
        if module is not layer and own & {id(p) for p in module.parameters(recurse=False)}:
            return f"a weight that {other!r} has too", "one of its own"
    return None


def _hooked(module: nn.Module) -> bool:
    """Whether anything is called when it runs, is saved or loaded, or when its parameters have gradients."""
    kinds = [name for name in vars(module) if name.endswith("_hooks")]
    if any(getattr(module, name) for name in kinds):
        return True
    of_parameters = ("_backward_hooks", "_post_accumulate_grad_hooks")
    parameters = module.parameters(recurse=False)
    return any(getattr(each, name, None) for each in parameters for name in of_parameters)


def _replaced(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """A deep copy in which other modules stand for some, wherever the model refers to them."""
    return copy.deepcopy(model, {id(module): other for module, other in replacements.items()})


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


__all__ = ["Replaced", "Report", "balanced_factors", "collapse", "overparameterize"]
