"""Contextual layers: one weight, used through the context of the day.

    layer = PSPLinear(784, 256, make_contexts("binary", 784, layer="first"))
    y = layer(x, k)                 # W (C_k x) + b; k a number, or a LongTensor [B] with one for every sample
    layer.bound(k)                  # W C_k: the weight of the plain layer that context k retrieves

Convolutions bind the kernel and not the image (section 2.3): W * o, broadcast over output channels. Complex layers hold
W = U + iV as [2, m, d] and take real inputs or `Complex` ones (section 2.4).

Dimension letters: B batch, d inputs, m outputs, C channels, g groups.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.config import UserError
from superposition.complex import Complex
from superposition.contexts import Contexts, Index, Matrix, Phasors, Plain
from superposition.kinds import DIAGONALS


class Contextual(nn.Module):
    """What contextual layers have in common.

    Attributes:
        contexts: the family, this layer's own.
        k: the context that is used where none is given.
    """

    contexts: Contexts

    def __init__(self) -> None:
        super().__init__()
        self.k: Index = 0

    def chosen(self, k: Index | None) -> Index:
        """The context to use: the given one, else the one that was set; checked."""
        k = self.k if k is None else k
        self.contexts.check(k)
        return k

    def bound(self, k: int | float) -> Tensor:
        """The kernel of the plain layer that context k retrieves."""
        raise NotImplementedError

    def retrieved(self, k: int | float) -> nn.Module:
        """That plain layer, with copies of its tensors."""
        raise NotImplementedError

    def _refuse_complex(self, x: Tensor | Complex) -> Tensor:
        if isinstance(x, Complex):
            raise TypeError(
                f"{type(self).__name__} ({self.contexts.layer!r}) is real and was fed the Complex output of a complex "
                "layer: take its real part, or use ComplexPSPLinear or ComplexPSPConv2d"
            )
        return x


class PSPLinear(Contextual):
    """y = W (C_k x) + b.

    Args:
        inputs, outputs: d, m.
        contexts: a family of real contexts for d inputs.
        bias: whether there is one; all contexts share it.
    """

    def __init__(self, inputs: int, outputs: int, contexts: Contexts, bias: bool = True) -> None:
        super().__init__()
        check_family(contexts, inputs)
        self.contexts = contexts
        self.weight = nn.Parameter(torch.empty(outputs, inputs))  # [m, d]
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        nn.init.xavier_normal_(self.weight)

    def forward(self, x: Tensor, k: Index | None = None) -> Tensor:
        """[B, d] to [B, m].

        Raises:
            TypeError: fed the output of a complex layer. IndexError: no such context.
        """
        x = self._refuse_complex(x)
        return F.linear(self.contexts.bind(x, self.chosen(k)), self.weight, self.bias)

    def bound(self, k: int | float) -> Tensor:
        return self.contexts.bind_weight(self.weight, k)

    def retrieved(self, k: int | float) -> nn.Linear:
        plain = nn.utils.skip_init(nn.Linear, self.weight.shape[1], self.weight.shape[0], self.bias is not None)
        return cast(nn.Linear, _filled(plain, self.bound(k), self.bias))


class PSPConv2d(Contextual):
    """A convolution whose kernel is bound: W * o_k, broadcast over output channels.

    With groups, an output channel sees the part of o_k that belongs to its group's input channels. For several contexts
    in a batch every sample is convolved with a kernel of its own, in one grouped convolution.

    Args:
        host: the plain convolution whose shape, padding and weights are taken over.
        contexts: a family for `kernel_inputs(host)` inputs.

    Raises:
        UserError: padding that is not zeros; a matrix family with groups.
    """

    def __init__(self, host: nn.Conv2d, contexts: Contexts) -> None:
        super().__init__()
        check_conv(host, contexts)
        self.contexts = contexts
        self.host_options = conv_options(host)
        self.channels = (host.in_channels, host.out_channels)
        self.kernel_size = cast(tuple[int, int], host.kernel_size)
        self.weight = nn.Parameter(host.weight.detach().clone())  # [C_out, C_in / g, kh, kw]
        self.bias = nn.Parameter(host.bias.detach().clone()) if host.bias is not None else None

    @property
    def groups(self) -> int:
        return int(self.host_options["groups"])

    def bound(self, k: int | float) -> Tensor:
        if isinstance(self.contexts, Matrix):
            return self.contexts.bind_weight(self.weight.flatten(1), k).view_as(self.weight)
        factor = self.contexts.bind(self._ones(), k)  # [1, C_in kh kw]
        return _times(self.weight, factor[0], self.groups)

    def _ones(self) -> Tensor:
        return self.weight.new_ones(1, self.contexts.dim)

    def forward(self, x: Tensor, k: Index | None = None) -> Tensor:
        """[B, C_in, H, W] to [B, C_out, H', W']."""
        x = self._refuse_complex(x)
        k = self.chosen(k)
        if not isinstance(k, Tensor):
            return F.conv2d(x, self.bound(k), self.bias, **self.host_options)  # pyright: ignore
        chosen, where = k.unique(return_inverse=True)
        if isinstance(self.contexts, Matrix):
            kernels = torch.stack([self.bound(int(each)) for each in chosen])[where]
        else:
            factors = self.contexts.bind(self._ones().expand(len(k), -1), k)  # [B, C_in kh kw]
            kernels = torch.func.vmap(lambda factor: _times(self.weight, factor, self.groups))(factors)
        batch = len(x)
        options = {**self.host_options, "groups": batch * self.groups}
        y = F.conv2d(x.reshape(1, -1, *x.shape[2:]), kernels.flatten(0, 1), None, **options)  # pyright: ignore
        y = y.view(batch, -1, *y.shape[2:])
        return y if self.bias is None else y + self.bias.view(1, -1, 1, 1)

    def retrieved(self, k: int | float) -> nn.Conv2d:
        inputs, outputs = self.channels
        options = {**self.host_options, "bias": self.bias is not None}
        plain = nn.utils.skip_init(nn.Conv2d, inputs, outputs, self.kernel_size, **options)
        return cast(nn.Conv2d, _filled(plain, self.bound(k), self.bias))


class ComplexPSPLinear(Contextual):
    """y = W (C_k x) + b with complex W, x and C_k; the bias is real (section 2.4).

    Weights begin with xavier_normal's modulus, sign included, and a uniform phase: |W|^2 has xavier's variance, each
    part half of it.

    Args:
        inputs, outputs: d, m.
        contexts: phasors, or `Plain` for a complex network without contexts.
        bias: whether there is one.
        part: `real` drops the imaginary part of the output, so that the next layer sees real numbers (an ablation).
    """

    def __init__(self, inputs: int, outputs: int, contexts: Contexts, bias: bool = True, part: str = "full") -> None:
        super().__init__()
        check_phasors(contexts, inputs)
        self.contexts, self.part = contexts, part
        modulus, phase = nn.init.xavier_normal_(torch.empty(outputs, inputs)), torch.rand(outputs, inputs)
        phase = 2 * math.pi * phase
        self.weight = nn.Parameter(torch.stack([modulus * phase.cos(), modulus * phase.sin()]))  # [2, m, d]
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x: Tensor | Complex, k: Index | None = None) -> Complex:
        """[B, d] to [B, m]: (a; b) of 2B rows times (U; V) of 2m columns is one product, whose four blocks are
        combined: y_re = a' U - b' V + bias, y_im = b' U + a' V."""
        parts = bound_input(self.contexts, x, self.chosen(k)).parts  # [2, B, d]
        outputs = self.weight.shape[1]
        blocks = F.linear(parts.flatten(0, 1), self.weight.flatten(0, 1))  # [2B, 2m]
        blocks = blocks.view(2, -1, 2, outputs)
        real = blocks[0, :, 0] - blocks[1, :, 1]
        if self.bias is not None:
            real = real + self.bias
        if self.part == "real":
            return Complex(torch.stack([real, torch.zeros_like(real)]))
        return Complex(torch.stack([real, blocks[1, :, 0] + blocks[0, :, 1]]))

    def bound(self, k: int | float) -> Tensor:
        """W C_k as parts [2, m, d]."""
        return bound_parts(self.contexts, self.weight, k)

    def retrieved(self, k: int | float) -> ComplexPSPLinear:
        """The complex layer without contexts."""
        plain = ComplexPSPLinear(
            self.weight.shape[2], self.weight.shape[1], Plain(self.contexts.dim, layer=self.contexts.layer),
            self.bias is not None, self.part,
        )  # fmt: skip
        return cast(ComplexPSPLinear, _filled(plain, self.bound(k), self.bias))


class ComplexPSPConv2d(Contextual):
    """A complex convolution with a bound kernel. The modulus begins uniform on +-1/sqrt(fan_in), the phase uniform.

    Args:
        host: the plain convolution whose shape is taken over.
        contexts: phasors or `Plain`, for `kernel_inputs(host)` inputs.
    """

    def __init__(self, host: nn.Conv2d, contexts: Contexts) -> None:
        super().__init__()
        check_conv(host, contexts)
        check_phasors(contexts, kernel_inputs(host))
        self.contexts = contexts
        self.host_options = conv_options(host)
        shape = host.weight.shape
        bound = 1 / math.sqrt(shape[1:].numel())
        modulus, phase = torch.empty(shape).uniform_(-bound, bound), 2 * math.pi * torch.rand(shape)
        self.weight = nn.Parameter(torch.stack([modulus * phase.cos(), modulus * phase.sin()]))  # [2, C_out, ...]
        self.bias = nn.Parameter(torch.zeros(shape[0])) if host.bias is not None else None

    def bound(self, k: int | float) -> Tensor:
        """W * o_k as parts [2, C_out, C_in / g, kh, kw]."""
        if isinstance(self.contexts, Plain):
            return self.weight
        return self._kernel(cast(Phasors, self.contexts).rows(k, self.weight))

    def _kernel(self, row: Tensor) -> Tensor:
        """W * o of a context's cosines and sines [2, C_in kh kw]."""
        groups = int(self.host_options["groups"])
        p, q = row
        real, imaginary = self.weight
        return torch.stack([
            _times(real, p, groups) - _times(imaginary, q, groups),
            _times(real, q, groups) + _times(imaginary, p, groups),
        ])  # fmt: skip

    def forward(self, x: Tensor | Complex, k: Index | None = None) -> Complex:
        """[B, C_in, H, W] to [B, C_out, H', W']; with a context for every sample in one grouped convolution."""
        k = self.chosen(k)
        parts = x.parts if isinstance(x, Complex) else Complex.of(x).parts  # [2, B, C, H, W]
        batch, groups = parts.shape[1], int(self.host_options["groups"])
        mixed = isinstance(k, Tensor) and isinstance(self.contexts, Phasors)
        if mixed:
            kernels = torch.func.vmap(self._kernel)(self.contexts.rows(k, self.weight))  # pyright: ignore
        else:
            kernels = self.bound(0 if isinstance(k, Tensor) else k)[None]
        outputs = kernels.shape[2]
        # Output channels of a group lie together: its real ones, then its imaginary ones.
        stacked = kernels.view(-1, 2, groups, outputs // groups, *kernels.shape[3:]).transpose(1, 2).flatten(0, 3)
        fed = parts.flatten(1, 2) if mixed else parts.flatten(0, 1)  # [2, B C, H, W], or [2 B, C, H, W]
        options = {**self.host_options, "groups": batch * groups if mixed else groups}
        y = F.conv2d(fed, stacked, None, **options)  # pyright: ignore
        y = y.view(2, batch, groups, 2, outputs // groups, *y.shape[2:])
        real = (y[0, :, :, 0] - y[1, :, :, 1]).flatten(1, 2)
        imaginary = (y[1, :, :, 0] + y[0, :, :, 1]).flatten(1, 2)
        return Complex(torch.stack([real if self.bias is None else real + self.bias.view(1, -1, 1, 1), imaginary]))

    def retrieved(self, k: int | float) -> ComplexPSPConv2d:
        plain = nn.Conv2d(
            self.weight.shape[2] * int(self.host_options["groups"]), self.weight.shape[1],
            cast(tuple[int, int], tuple(self.weight.shape[3:])), bias=self.bias is not None, **self.host_options,
        )  # fmt: skip
        layer = ComplexPSPConv2d(plain, Plain(self.contexts.dim, layer=self.contexts.layer))
        return cast(ComplexPSPConv2d, _filled(layer, self.bound(k), self.bias))


class SplitReLU(nn.Module):
    """ReLU of the real and the imaginary part separately; of a real tensor, plain ReLU."""

    def forward(self, x: Tensor | Complex) -> Tensor | Complex:
        return x.relu()


class RealPart(nn.Module):
    """Logits of a complex network: the real part of its output."""

    def forward(self, x: Complex) -> Tensor:
        return x.real


def bound_input(contexts: Contexts, x: Tensor | Complex, k: Index) -> Complex:
    """C_k x of a real or complex input."""
    if isinstance(contexts, Phasors):
        return contexts.turn(x, k)
    return x if isinstance(x, Complex) else Complex.of(x)


def bound_parts(contexts: Contexts, weight: Tensor, k: int | float) -> Tensor:
    """W C_k of parts [2, m, d]."""
    return contexts.bind_parts(weight, k) if isinstance(contexts, Phasors) else weight


def kernel_inputs(host: nn.Conv2d) -> int:
    """Numbers of a context that binds the kernels of a convolution: C_in kh kw, whatever the groups."""
    height, width = cast(tuple[int, int], host.kernel_size)
    return host.in_channels * height * width


def conv_options(host: nn.Conv2d) -> dict[str, object]:
    """What `F.conv2d` must be told."""
    return {"stride": host.stride, "padding": host.padding, "dilation": host.dilation, "groups": host.groups}


def check_family(contexts: Contexts, inputs: int) -> None:
    """Refuse contexts of another dimension, or phasors in a real layer."""
    if contexts.dim != inputs:
        raise UserError(f"contexts of layer {contexts.layer!r}", contexts.dim, f"the layer's {inputs} inputs")
    if isinstance(contexts, Phasors):
        valid = ["none", "rotation", "householder", "permutation", "signed-permutation", *DIAGONALS]
        raise UserError(f"kind of layer {contexts.layer!r}", contexts.kind, valid, "Phasors need a complex layer.")


def check_phasors(contexts: Contexts, inputs: int) -> None:
    """Refuse contexts of another dimension, or real contexts in a complex layer."""
    if contexts.dim != inputs:
        raise UserError(f"contexts of layer {contexts.layer!r}", contexts.dim, f"the layer's {inputs} inputs")
    if not isinstance(contexts, (Phasors, Plain)):
        valid = ["none", "complex", "power", "local-mix", "local-mult"]
        raise UserError(f"kind of the complex layer {contexts.layer!r}", contexts.kind, valid)


def check_conv(host: nn.Conv2d, contexts: Contexts) -> None:
    """Refuse convolutions that cannot be bound by these contexts."""
    if host.padding_mode != "zeros":
        raise UserError(f"padding mode of layer {contexts.layer!r}", host.padding_mode, "zeros")
    if contexts.dim != kernel_inputs(host):
        raise UserError(f"contexts of layer {contexts.layer!r}", contexts.dim, f"{kernel_inputs(host)}, C_in kh kw")
    if isinstance(contexts, Matrix) and host.groups > 1:
        raise UserError(f"kind of the grouped layer {contexts.layer!r}", contexts.kind, ["none", *DIAGONALS])


def _times(weight: Tensor, factor: Tensor, groups: int) -> Tensor:
    """W * o: [C_out, C_in / g, kh, kw] times [C_in kh kw]."""
    outputs, inputs, height, width = weight.shape
    parts = weight.reshape(groups, outputs // groups, inputs, height, width)
    return (parts * factor.reshape(groups, 1, inputs, height, width)).reshape(weight.shape)


def _filled(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """A layer with copies of a weight and a bias."""
    layer.to(device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        cast(Tensor, layer.weight).copy_(weight)
        if bias is not None:
            cast(Tensor, layer.bias).copy_(bias)
    return layer
