"""Layers that are products of linear factors: the same map as one linear layer or convolution, another way to learn it.

    layer = ExpandedConv2d(64, 128, 3, depth=3, stride=2, padding=1)     # kernels 3, 1, 1
    y = layer(x)                    # trains the factors
    plain = layer.collapsed()       # the nn.Conv2d that it is

All padding is done before the first factor and all stride in the last, so that the factors and their product agree
everywhere, borders included. Two ways to run one, `mode`:
    weights      compose the kernel, run one convolution. Value and gradient are those of the factors in turn.
    activations  run the factors in turn. With batch normalisation between them there is no other way to train.

Dimension letters: B batch, d factors, h hidden channels, k kernel, g groups.
"""

from __future__ import annotations

import contextlib
import math
import numbers
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from low_rank.overparam.compose import (
    Affine,
    check_skips,
    collapse_graph,
    effective_kernel,
    fold_batch_norm,
    skip_sources,
)
from shared.config import UserError, check_choice, check_range

Mode = Literal["auto", "weights", "activations"]
MODES: tuple[Mode, ...] = ("auto", "weights", "activations")
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
PADDING_MODES: tuple[PaddingMode, ...] = ("zeros", "reflect", "replicate", "circular")
RELU_GAIN = math.sqrt(2)
DEPTH = 2  # the authors' default


class Expanded(nn.Module):
    """A linear layer or convolution in another parametrisation, and what products of linear factors have in common.

    What `collapse` and the tables of ranks ask of a subclass:
        composed()   weight and bias (or None) of the plain layer that this is in evaluation mode; differentiable.
        collapsed()  that layer itself, of a class of torch's, with tensors of its own.
    One with parameters of another kind calls `nn.Module.__init__`, defines both and `forward`, and needs nothing else
    of what follows. Where it has `expanded(x)`, the same map by another route, runs compare the two. One that stands
    for an nn.Linear has `in_features`.

    Where no gradient is asked for, the composed map is kept until it is no longer that of the factors. Every call finds
    that out from the numbers themselves, for much writes them unseen: fused optimisers, replayed graphs, `.data`,
    functions that are given a batch norm's statistics. Each factor is multiplied by a fixed random vector, and the
    answers, with biases and batch norms as they are, compared with those of before: some percent of a convolution of
    one image, and a wait for an accelerator. What rounding hides in those sums is not seen: changes of about the
    relative precision of a row of weights. A network that is only used is faster after `collapse`.

    Attributes:
        weights, biases: of the factors, first to last; `biases` is empty without any.
        norms: batch normalisation after each factor, or empty.
        skips: for a node, the earlier nodes that are added to it.
        mode: how it trains: weights or activations.
        collapse_on_eval: in evaluation mode, run the composed map, kept until a factor changes.
        gain: of the last factor's initial weights.
    """

    def __init__(
        self,
        shapes: Sequence[Sequence[int]],
        groups: int,
        bias: bool,
        norms: Sequence[nn.Module],
        residual_intervals: int | Sequence[int],
        mode: Mode,
        gain: float,
        collapse_on_eval: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        check_choice("mode", mode, MODES)
        check_gain(gain)
        if mode == "weights" and norms:
            hint = "In training, batch normalisation between the factors depends on the batch: there is no one kernel."
            raise UserError("mode", mode, "auto or activations with batch_norm=True", hint)
        self.mode = mode if mode != "auto" else "activations" if norms else "weights"
        self.groups, self.gain, self.collapse_on_eval = groups, gain, collapse_on_eval
        self.skips = skip_sources(len(shapes), residual_intervals)
        channels = [shapes[0][1] * groups, *(shape[0] for shape in shapes)]
        check_skips(self.skips, channels, [(*shape[2:], 1, 1)[:2] for shape in shapes])
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(*s, device=device, dtype=dtype)) for s in shapes)
        self.biases = nn.ParameterList(
            nn.Parameter(torch.empty(s[0], device=device, dtype=dtype)) for s in (shapes if bias else ())
        )
        self.norms = nn.ModuleList(norms)
        self._kept: tuple[Tensor, Tensor, Affine] | None = None
        self._checked = False
        self.reset_parameters()

    @property
    def depth(self) -> int:
        """d, the number of factors."""
        return len(self.weights)

    @property
    def weight(self) -> Tensor:
        """The composed weight, as code that reads it off a plain layer expects. A tensor of its own: to write it
        changes nothing here."""
        return self._current()[0].clone()

    @property
    def bias(self) -> Tensor | None:
        """The composed bias; a tensor of its own."""
        bias = self._current()[1]
        return None if bias is None else bias.clone()

    def fan(self, weight: Tensor) -> int:
        """The number that Kaiming's variance of a factor is divided by."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Kaiming normal weights, of gain 1 up to the last factor, which has `gain`; PyTorch's uniform biases; batch
        normalisation as new (section 2.6)."""
        self._checked = False
        for number, weight in enumerate(self.weights, start=1):
            gain = self.gain if number == self.depth else 1.0
            nn.init.normal_(weight, std=gain / math.sqrt(self.fan(weight)))
        for weight, bias in zip(self.weights, self.biases, strict=False):
            bound = 1 / math.sqrt(weight.shape[1:].numel())
            nn.init.uniform_(bias, -bound, bound)
        for norm in self.norms:
            cast(nn.BatchNorm1d, norm).reset_parameters()

    def composed(self) -> Affine:
        """Weight and bias of the one layer that this is in evaluation mode, batch norms folded in. Differentiable.

        The bias is None without biases and batch norms. Precision is the factors' own, at least single, whatever
        autocast says.
        """
        dtype = self.weights[0].dtype
        wide = torch.promote_types(dtype, torch.float32)
        with _no_autocast(self.weights[0].device.type):
            factors = [(w.to(wide), None if b is None else b.to(wide)) for w, b in self._factors()]
            if self.norms:
                factors = [fold_batch_norm(w, b, n) for (w, b), n in zip(factors, self.norms, strict=True)]
            weight, bias = self._composed(factors)
        return weight.to(dtype), None if bias is None else bias.to(dtype)

    def _composed(self, factors: Sequence[Affine]) -> Affine:
        return collapse_graph(factors, self.skips, self.groups)

    def _factors(self) -> Iterator[Affine]:
        for number, weight in enumerate(self.weights):
            yield weight, self.biases[number] if len(self.biases) else None

    def collapsed(self) -> nn.Linear | nn.Conv2d:
        """The plain layer that this is in evaluation mode, with tensors of its own.

        Its weight asks for gradients where that of some factor or batch norm does, its bias likewise.

        Raises:
            UserError: the product of finite factors that are not zero vanishes in their precision, or is not finite.
        """
        with torch.no_grad():
            weight, bias = (None if each is None else self._own(each) for each in self.composed())
        assert weight is not None
        self._check_product(weight, bias)
        with torch.device("meta"):  # no time for initial values
            plain = self._plain(bias is not None)
        norms = [(norm.weight, norm.bias) for norm in self.norms]
        weights, biases = [*self.weights, *(one for one, _ in norms)], [*self.biases, *(other for _, other in norms)]
        plain.weight = nn.Parameter(weight, _trained(weights))
        if bias is not None:
            plain.bias = nn.Parameter(bias, _trained(biases))
        return plain.train(self.training)

    def _own(self, composed: Tensor) -> Tensor:
        """A composed tensor that shares nothing with a factor, which a product of one would."""
        shared = any(composed.data_ptr() == each.data_ptr() for each in self.parameters())
        return composed.clone() if shared else composed.contiguous()

    def _plain(self, bias: bool) -> nn.Linear | nn.Conv2d:
        """A layer of torch's of the same sizes and options."""
        raise NotImplementedError

    def _check_product(self, weight: Tensor, bias: Tensor | None) -> None:
        """Refuse a product that has left the range of its precision, where the factors have not."""
        low, high = (None, None) if weight.is_meta else (float(each) for each in weight.aminmax())
        if low is None or high is None:
            return
        finite = math.isfinite(low + high) and (bias is None or bool(bias.isfinite().all()))
        if finite and (low or high):
            return
        if not all(bool(each.isfinite().all()) for each in self._sources()):
            return
        if finite and not all(bool(each.any()) for each in self.weights):
            return
        hint = "Use float64 (layer.double()), fewer factors, or "
        hint += "a larger initial gain or width." if finite else "smaller weights."
        value = f"{'0 everywhere' if finite else 'numbers that are not finite'}, in {str(weight.dtype)[6:]}"
        valid = "a matrix that is not zero" if finite else "finite numbers"
        raise UserError(f"product of {self.depth} factors", value, valid, hint)

    def _current(self) -> Affine:
        """The composed map: fresh where gradients must reach the factors or where it is recorded to be run again, else
        kept until a factor changes."""
        if _recorded():
            return self.composed()
        if torch.is_grad_enabled() and any(t.requires_grad for t in self._sources()):
            return self._seen(self.composed())
        # What inference mode makes could not be used outside it.
        with torch.inference_mode(False), torch.no_grad():
            try:
                if self._kept is not None and self._is_current(*self._kept[:2]):
                    return self._kept[2]
                probe = self._probe()
                self._kept = probe, self._answers(probe), self._seen(self.composed())
            except RuntimeError:  # tensors of transforms tell no numbers
                return self.composed()
        return self._kept[2]

    def _seen(self, composed: Affine) -> Affine:
        """Look at what is composed, the first time that its numbers can be told."""
        if not self._checked:
            with contextlib.suppress(RuntimeError), torch.no_grad():
                self._check_product(*composed)
                self._checked = True
        return composed

    def _sources(self) -> Iterator[Tensor]:
        """What the composed map depends on."""
        yield from self.weights
        yield from self._vectors()

    def _vectors(self) -> Iterator[Tensor]:
        """Biases, and what batch norms hold."""
        yield from self.biases
        for norm in self.norms:
            for name in ("weight", "bias", "running_mean", "running_var"):
                tensor = getattr(norm, name)
                if tensor is not None:
                    yield tensor

    def _probe(self) -> Tensor:
        """The random vector of `_answers`: as long as the longest row of a factor, in their precision, at least
        single."""
        length = max(weight[0].numel() for weight in self.weights)
        stream = torch.Generator().manual_seed(length)  # none of the user's random numbers
        dtype = torch.promote_types(self.weights[0].dtype, torch.float32)
        return torch.randn(length, generator=stream, dtype=torch.float64).to(self.weights[0].device, dtype)

    def _answers(self, probe: Tensor) -> Tensor:
        """Numbers that are others where any source has changed: rows of factors times a random vector, since plain sums
        and norms are kept by gradients of many losses, and all vectors as they are."""
        with _no_autocast(probe.device.type):
            rows = [weight.detach().flatten(1).to(probe.dtype) for weight in self.weights]
            parts = [matrix.mv(probe[: matrix.shape[1]]) for matrix in rows]
            parts += [vector.detach().to(probe.dtype) for vector in self._vectors()]
            if self.norms:
                epsilons = [cast(float, norm.eps) for norm in self.norms]
                parts.append(torch.tensor(epsilons, dtype=probe.dtype).to(probe.device))
            return torch.cat(parts)

    def _is_current(self, probe: Tensor, answers: Tensor) -> bool:
        weight = self.weights[0]
        if weight.device != probe.device or torch.promote_types(weight.dtype, torch.float32) != probe.dtype:
            return False
        if any(each[0].numel() > len(probe) for each in self.weights):
            return False
        return torch.equal(self._answers(probe), answers)

    def _uses_product(self) -> bool:
        return self.mode == "weights" or (self.collapse_on_eval and not self.training)

    def _normalised(self, y: Tensor, number: int) -> Tensor:
        """y [B, C, ...] after the batch norm of a factor, if there is one."""
        if not self.norms:
            return y
        norm = self.norms[number]
        if norm.training and y.numel() == y.shape[1]:
            value = f"a batch of shape {list(y.shape)} in training"
            raise UserError("batch norm", value, "more than one value per channel: a larger batch, or eval()")
        return norm(y)

    def _apply(self, fn: Any, recurse: bool = True) -> Expanded:
        self._kept, self._checked = None, False
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        # Copies and files need not hold what can be had again.
        return {**self.__dict__, "_kept": None}

    def _repr_end(self) -> str:
        hidden = [weight.shape[0] for weight in self.weights][:-1]
        parts = [f"hidden={hidden}", f"bias={len(self.biases) > 0}", f"batch_norm={len(self.norms) > 0}"]
        if self.skips:
            parts.append(f"skips={self.skips}")
        return ", ".join([*parts, f"mode={self.mode!r}"])


class ExpandedLinear(Expanded):
    """y = W_d (... (W_1 x + b_1) ...) + b_d, with W_1 [h, in], W_l [h, h], W_d [out, h], h = int(out width).

    Args:
        in_features, out_features: of the whole.
        depth: d; the authors use 2.
        width: hidden over output features.
        bias: whether each factor has one.
        batch_norm: normalise after every factor, the last included; the composed map has a bias then.
        residual_intervals: for each m, node j m receives node (j - 1) m; -1 for m = d.
        mode: `auto` is weights without batch norm, activations with it.
        gain: of the last factor's initial weights: sqrt(2) before a ReLU, 1 for outputs.
        collapse_on_eval: in evaluation mode run the composed map whatever the mode.

    Raises:
        UserError: depth below 1; no hidden feature; a skip between nodes of different size; batch norm in mode weights;
            numbers of another kind than these.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        depth: int = DEPTH,
        width: float = 1.0,
        bias: bool = True,
        batch_norm: bool = False,
        residual_intervals: int | Sequence[int] = (),
        mode: Mode = "auto",
        *,
        gain: float = RELU_GAIN,
        collapse_on_eval: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        in_features, out_features = _whole("in_features", in_features, 1), _whole("out_features", out_features, 1)
        nodes = _nodes(in_features, out_features, depth, width, 1)
        norms = [nn.BatchNorm1d(n, device=device, dtype=dtype) for n in nodes[1:]] if batch_norm else []
        shapes = [(outputs, inputs) for inputs, outputs in pairwise(nodes)]
        super().__init__(shapes, 1, bias, norms, residual_intervals, mode, gain, collapse_on_eval, device, dtype)
        self.in_features, self.out_features = in_features, out_features

    def fan(self, weight: Tensor) -> int:
        return weight.shape[1]

    def _composed(self, factors: Sequence[Affine]) -> Affine:
        weight, bias = collapse_graph([(w[..., None, None], b) for w, b in factors], self.skips)
        return weight[..., 0, 0], bias

    def _plain(self, bias: bool) -> nn.Linear:
        return nn.Linear(self.in_features, self.out_features, bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        return F.linear(x, *self._current()) if self._uses_product() else self.expanded(x)

    def expanded(self, x: Tensor) -> Tensor:
        """The factors in turn, whatever the mode: [..., in] to [..., out].

        Raises:
            UserError: batch norm in training with a single sample.
        """
        nodes = [x]
        for v, (weight, bias) in enumerate(self._factors(), start=1):
            y = F.linear(nodes[-1], weight, bias)
            y = self._normalised(y.reshape(-1, y.shape[-1]), v - 1).view(y.shape)
            for r in self.skips.get(v, ()):
                y = y + nodes[r]
            nodes.append(y)
        return nodes[-1]

    def collapsed(self) -> nn.Linear:
        return cast(nn.Linear, super().collapsed())

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, depth={self.depth}, {self._repr_end()}"


class ExpandedConv2d(Expanded):
    """A convolution that is d convolutions in a row, with kernels whose taps add up: k = sum k_l - d + 1.

    Hidden nodes have h = int(out width) channels, with groups g int(out width / g) for each group. Every factor has the
    given groups and dilation.

    Args:
        in_channels, out_channels: of the whole.
        kernel_sizes: k for kernels k, 1, 1, ..., or one for each factor; each a number or (height, width).
        depth: d; by default as many as there are kernels, 2 for a single number.
        width: hidden over output channels.
        stride: of the last factor.
        padding: before the first factor, as nn.Conv2d reads it, `same` and `valid` too.
        dilation, groups: of all factors.
        bias, batch_norm, residual_intervals, mode, gain, collapse_on_eval: as in `ExpandedLinear`. Skips take the
            centre of a larger node, and every stride-th pixel of it where they end in the output.
        padding_mode: as nn.Conv2d; exact, since all padding comes first.

    Raises:
        UserError: depth below 1, or another number of kernels; no hidden channel; groups that do not divide channels;
            `same` with an even kernel or a stride; an unknown padding mode; skips between nodes of different channels
            or over even kernels; batch norm in mode weights; numbers of another kind than these.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_sizes: int | Sequence[int | tuple[int, int]],
        depth: int | None = None,
        width: float = 1.0,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        batch_norm: bool = False,
        residual_intervals: int | Sequence[int] = (),
        mode: Mode = "auto",
        *,
        padding_mode: PaddingMode = "zeros",
        gain: float = RELU_GAIN,
        collapse_on_eval: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        in_channels, out_channels = _whole("in_channels", in_channels, 1), _whole("out_channels", out_channels, 1)
        groups = _whole("groups", groups, 1)
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels % groups:
                raise UserError(name, channels, f"a multiple of the {groups} groups")
        kernels = kernel_list(kernel_sizes, depth)
        nodes = _nodes(in_channels, out_channels, len(kernels), width, groups)
        stride, dilation = _pair("stride", stride, 1), _pair("dilation", dilation, 1)
        kernel = effective_kernel(kernels)
        check_choice("padding_mode", padding_mode, PADDING_MODES)
        norms = [nn.BatchNorm2d(n, device=device, dtype=dtype) for n in nodes[1:]] if batch_norm else []
        shapes = [(o, i // groups, *size) for i, o, size in zip(nodes, nodes[1:], kernels, strict=False)]
        padding = _padding(padding, kernel, stride, dilation)
        super().__init__(shapes, groups, bias, norms, residual_intervals, mode, gain, collapse_on_eval, device, dtype)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_sizes, self.kernel_size = kernels, kernel
        self.stride, self.padding, self.dilation, self.padding_mode = stride, padding, dilation, padding_mode

    def fan(self, weight: Tensor) -> int:
        """fan_out: output channels of a group times taps. PyTorch's does not divide by the groups; a product of
        depthwise factors would vanish under it."""
        return weight.shape[0] // self.groups * weight.shape[2:].numel()

    def _plain(self, bias: bool) -> nn.Conv2d:
        return nn.Conv2d(
            self.in_channels, self.out_channels, self.kernel_size, stride=self.stride, padding=self.padding,
            dilation=self.dilation, groups=self.groups, bias=bias, padding_mode=self.padding_mode,  # pyright: ignore
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] to [B, out, H', W']."""
        if not self._uses_product():
            return self.expanded(x)
        weight, bias = self._current()
        if self.padding_mode == "zeros":
            return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return F.conv2d(self._padded(x), weight, bias, self.stride, 0, self.dilation, self.groups)

    def _padded(self, x: Tensor) -> Tensor:
        height, width = self.padding
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return F.pad(x, (width, width, height, height), mode=mode) if height or width else x

    def expanded(self, x: Tensor) -> Tensor:
        """The factors in turn, whatever the mode: [B, in, H, W] to [B, out, H', W'].

        Raises:
            UserError: batch norm in training with a single value per channel.
        """
        # Zeros that no skip reads are left to the first convolution.
        inside = self.padding_mode == "zeros" and not any(0 in starts for starts in self.skips.values())
        nodes = [x if inside else self._padded(x)]
        for v, (weight, bias) in enumerate(self._factors(), start=1):
            stride = self.stride if v == self.depth else (1, 1)
            padding = self.padding if inside and v == 1 else (0, 0)
            y = F.conv2d(nodes[-1], weight, bias, stride, padding, self.dilation, self.groups)
            y = self._normalised(y, v - 1)
            for r in self.skips.get(v, ()):
                y = y + self._centre(nodes[r], self.kernel_sizes[r:v], stride)
            nodes.append(y)
        return nodes[-1]

    def _centre(self, x: Tensor, kernels: Sequence[tuple[int, int]], stride: tuple[int, int]) -> Tensor:
        """The part of a node that the middle tap of the kernels after it sees, every stride-th pixel."""
        for axis, taps in zip((-2, -1), effective_kernel(kernels), strict=True):
            margin = (taps - 1) // 2 * self.dilation[axis]
            x = x.narrow(axis, margin, x.shape[axis] - 2 * margin)
        return x[..., :: stride[0], :: stride[1]]

    def collapsed(self) -> nn.Conv2d:
        return cast(nn.Conv2d, super().collapsed())

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_sizes={self.kernel_sizes}, stride={self.stride}"
        text += f", padding={self.padding}"
        for name, usual in (("dilation", (1, 1)), ("groups", 1), ("padding_mode", "zeros")):
            if getattr(self, name) != usual:
                text += f", {name}={getattr(self, name)!r}"
        return f"{text}, {self._repr_end()}"


def kernel_list(
    kernel_sizes: int | Sequence[int | tuple[int, int]], depth: int | None = None
) -> tuple[tuple[int, int], ...]:
    """(height, width) of each factor: a number k means k, 1, ..., 1.

    Raises:
        UserError: depth below 1, another number of kernels than that, a kernel below 1, or no whole numbers.
    """
    depth = None if depth is None else check_depth(depth)
    if _is_whole(kernel_sizes):
        kernel_sizes = [cast(int, kernel_sizes), *[1] * ((depth or DEPTH) - 1)]
    if not isinstance(kernel_sizes, Sequence) or isinstance(kernel_sizes, str):
        raise UserError("kernel_sizes", kernel_sizes, "a whole number >= 1, or one for each factor")
    if not kernel_sizes or len(kernel_sizes) != (depth or len(kernel_sizes)):
        raise UserError("kernel_sizes", list(kernel_sizes), f"a kernel for each of {depth or 'the'} factors")
    return tuple(_pair("kernel_sizes", size, 1) for size in kernel_sizes)


def check_width(width: float) -> None:
    """Refuse what is no finite number above 0."""
    _number("width", width)
    check_range("width", width, 0, open_low=True)


def check_depth(depth: int) -> int:
    """The number of factors; refuses what is no whole number above 0."""
    return _whole("depth", depth, 1)


def check_gain(gain: float) -> None:
    """Refuse what is no finite number from 0 on."""
    _number("gain", gain)
    check_range("gain", gain, 0)


def hidden_channels(outputs: int, width: float, groups: int = 1) -> int:
    """h = int(out width), with groups g int(out width / g).

    Raises:
        UserError: less than one in a group.
    """
    check_width(width)
    hidden = int(outputs // groups * width)
    if hidden < 1:
        whole = f"{outputs} outputs" + (f" in {groups} groups" if groups > 1 else "")
        hint = f"With {whole}, it must be at least {groups / outputs:g}."
        raise UserError("width", width, "a number that leaves at least one hidden channel (in every group)", hint)
    return hidden * groups


def _nodes(inputs: int, outputs: int, depth: int, width: float, groups: int) -> list[int]:
    """Channels of the d + 1 nodes."""
    depth = check_depth(depth)
    hidden = hidden_channels(outputs, width, groups) if depth > 1 else 0
    return [inputs, *[hidden] * (depth - 1), outputs]


def _pair(field: str, value: Any, low: int) -> tuple[int, int]:
    """A number, or one for height and one for width, as a pair."""
    pair = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(pair) != 2 or not all(_is_whole(each) and each >= low for each in pair):
        raise UserError(field, value, f"a whole number >= {low}, or (height, width)")
    return int(pair[0]), int(pair[1])


def _is_whole(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _whole(field: str, value: Any, low: int) -> int:
    """A whole number from `low` on, of whatever type.

    Raises:
        UserError: anything else; a truth value or a float with nothing behind the point too.
    """
    if not _is_whole(value) or value < low:
        raise UserError(field, value, f"a whole number >= {low}")
    return int(value)


def _number(field: str, value: object) -> None:
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not math.isfinite(value):
        raise UserError(field, value, "a finite number")


def _padding(
    padding: int | tuple[int, int] | str, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, int]:
    """Pixels on each side, (height, width)."""
    if not isinstance(padding, str):
        return _pair("padding", padding, 0)
    check_choice("padding", padding, ("same", "valid"))
    if padding == "valid":
        return 0, 0
    if stride != (1, 1):
        raise UserError("padding", f"same, with stride {stride}", "same only with stride 1")
    if not all(size % 2 for size in kernel):
        size = f"{kernel[0]} x {kernel[1]}"
        raise UserError("padding", f"same, with an even kernel of {size}", "same only with odd kernels")
    return dilation[0] * (kernel[0] - 1) // 2, dilation[1] * (kernel[1] - 1) // 2


def _trained(parameters: Sequence[Any]) -> bool:
    return any(each is not None and each.requires_grad for each in parameters)


def _recorded() -> bool:
    """Whether what is done now is compiled, traced or captured, and will be done again without this code."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # pyright: ignore
        return True
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


@contextlib.contextmanager
def _no_autocast(device: str) -> Iterator[None]:
    """The composed weight is as exact as the factors are: autocast would round it at each of them."""
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            yield
    else:
        yield


__all__ = [
    "Expanded",
    "ExpandedConv2d",
    "ExpandedLinear",
    "Mode",
    "check_depth",
    "check_gain",
    "check_width",
    "hidden_channels",
    "kernel_list",
]
