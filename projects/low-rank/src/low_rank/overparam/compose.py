"""Composition of linear maps: kernels of convolutions in a row, batch normalisation folded in, skips added up.

Factor l of d maps node l-1 to node l: x_l = W_l * x_{l-1} + b_l, plus the nodes whose skips end in l. Node 0 is the
input, node d the output. Without padding or stride between the factors, all of it is one convolution, whose kernel and
bias are worked out here; linear layers are convolutions with kernels of 1 x 1.

Dimension letters: o outputs, h hidden channels, i inputs, g groups, k taps of a kernel along an axis.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.config import UserError

LONG = 12  # factors whose best order is still searched for
Affine = tuple[Tensor, Tensor | None]
"""A factor: its weight, and its bias if it has one."""
Skips = Mapping[int, Sequence[int]]
"""For a node, the earlier nodes that are added to it."""


def compose_linear(w2: Tensor, b2: Tensor | None, w1: Tensor, b1: Tensor | None) -> Affine:
    """W_2 (W_1 x + b_1) + b_2 as one map: ([o, h], [o], [h, i], [h]) to ([o, i], [o]). Differentiable.

    The bias is None if both are.
    """
    return w2 @ w1, _sum(None if b1 is None else w2 @ b1, b2)


def compose_conv(w2: Tensor, b2: Tensor | None, w1: Tensor, b1: Tensor | None, groups: int = 1) -> Affine:
    """One convolution for W_2 * (W_1 * x + b_1) + b_2, where the second pads nothing and the first has stride 1.

    Both may have any one dilation, which the result has too: taps are counted, not pixels. Differentiable.

    Args:
        w2: [o, h / g, k2, k2']. b2: [o] or None. w1: [h, i / g, k1, k1']. b1: [h] or None.
        groups: g, the same for both.

    Returns:
        The kernel [o, i / g, k1 + k2 - 1, k1' + k2' - 1], and the bias [o], None if both are.

    Raises:
        UserError: w2 does not take what w1 gives.
    """
    if w2.shape[1] * groups != w1.shape[0]:
        raise UserError("w2", list(w2.shape), f"[o, {w1.shape[0]} / {groups} groups, k, k], as w1 gives")
    height, width = w2.shape[2:]
    if height * width == 1 or w1.shape[2:].numel() == 1:
        second = w2.unflatten(0, (groups, -1)).flatten(3)  # [g, o / g, h / g, k2 k2']
        first = w1.unflatten(0, (groups, -1)).flatten(3)  # [g, h / g, i / g, k1 k1']
        if height * width == 1:
            taps, size = torch.matmul(second[..., 0], first.flatten(2)), w1.shape[2:]
        else:
            taps, size = torch.einsum("gohk,ghi->goik", second, first[..., 0]), w2.shape[2:]
        weight = taps.reshape(w2.shape[0], w1.shape[1], *size)
    else:
        # Each input channel of W_1 is an image of h channels; the kernels' convolution is a correlation with the flip.
        weight = F.conv2d(w1.transpose(0, 1), w2.flip(2, 3), padding=(height - 1, width - 1), groups=groups)
        weight = weight.transpose(0, 1)
    return weight, _sum(None if b1 is None else through(w2, b1, groups), b2)


def through(weight: Tensor, constant: Tensor, groups: int = 1) -> Tensor:
    """A convolution of an image that is constant in every channel: kernel [o, h / g, k, k], [h] to [o]."""
    summed = weight.sum(dim=(2, 3)).unflatten(0, (groups, -1))  # [g, o / g, h / g]
    return torch.matmul(summed, constant.view(groups, -1, 1)).flatten()


def fold_batch_norm(weight: Tensor, bias: Tensor | None, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """A factor and the batch normalisation after it, in evaluation mode, as one factor. Differentiable.

    Scales outputs by gamma / sqrt(var + eps), with the layer's own eps and its running statistics, and so makes a bias
    where there was none.

    Args:
        weight: [o, ...]. bias: [o] or None. norm: nn.BatchNorm1d, 2d or nn.SyncBatchNorm of o channels.

    Raises:
        UserError: it keeps no running statistics.
    """
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        raise UserError("batch norm", "no running statistics", "track_running_stats=True, to fold it")
    assert isinstance(mean, Tensor)
    assert isinstance(variance, Tensor)
    mean, variance = mean.to(weight.dtype), variance.to(weight.dtype)
    scale = torch.rsqrt(variance + norm.eps)  # pyright: ignore[reportOperatorIssue]
    if isinstance(norm.weight, Tensor):
        scale = scale * norm.weight
    shift = -mean * scale if bias is None else (bias - mean) * scale
    if isinstance(norm.bias, Tensor):
        shift = shift + norm.bias
    return weight * scale.view(-1, *[1] * (weight.dim() - 1)), shift


def dirac(channels: int, groups: int, like: Tensor) -> Tensor:
    """The kernel that changes nothing: [channels, channels / g, 1, 1]."""
    eye = torch.eye(channels // groups, dtype=like.dtype, device=like.device)
    return eye.repeat(groups, 1)[..., None, None]


def centre_pad(kernel: Tensor, size: Sequence[int]) -> Tensor:
    """Zeros around a kernel [o, i, k, k'] up to the given (height, width), the same number on opposite sides.

    Raises:
        UserError: the difference is odd or negative.
    """
    missing = [want - have for want, have in zip(size, kernel.shape[2:], strict=True)]
    if any(each < 0 or each % 2 for each in missing):
        raise UserError("kernel", list(kernel.shape[2:]), f"sizes below {list(size)} by an even number of taps")
    height, width = (each // 2 for each in missing)
    return F.pad(kernel, (width, width, height, height)) if height or width else kernel


def effective_kernel(kernels: Iterable[Sequence[int]]) -> tuple[int, int]:
    """(height, width) of the composed kernel: sum over factors of (k - 1), plus 1."""
    sizes = list(kernels)
    return 1 + sum(height - 1 for height, _ in sizes), 1 + sum(width - 1 for _, width in sizes)


def skip_sources(depth: int, intervals: int | Sequence[int]) -> dict[int, tuple[int, ...]]:
    """Where skips end and start: for each interval m, node j m receives node (j - 1) m.

    Args:
        depth: d. intervals: one m or several, each in 1 ... d, or -1 for d.

    Raises:
        UserError: an interval beyond the depth, or no whole number.
    """
    given = list(intervals) if isinstance(intervals, Sequence) else [intervals]
    for m in given:
        whole = isinstance(m, numbers.Integral) and not isinstance(m, bool)
        if not whole or (m != -1 and not 1 <= m <= depth):
            raise UserError("residual_intervals", m, f"1 to the depth {depth}, or -1 for the whole of it")
    lengths = dict.fromkeys(depth if m == -1 else m for m in given)
    ends = {end: tuple(end - m for m in lengths if end % m == 0) for end in range(1, depth + 1)}
    return {end: starts for end, starts in ends.items() if starts}


def check_skips(skips: Skips, channels: Sequence[int], kernels: Sequence[Sequence[int]]) -> None:
    """Refuse skips between nodes that cannot be added.

    Args:
        skips: as `skip_sources`. channels: of the d + 1 nodes. kernels: (height, width) of the d factors.

    Raises:
        UserError: names both nodes and their sizes: other channels, or kernels between them that lose an odd number of
            pixels, so that there is no centre.
    """
    last = len(channels) - 1

    def node(number: int) -> str:
        place = "input" if number == 0 else "output" if number == last else f"node {number}"
        return f"{place} of {channels[number]} channels"

    for end, starts in skips.items():
        for start in starts:
            between = f"a skip from the {node(start)} to the {node(end)}"
            if channels[start] != channels[end]:
                hint = "The inputs must be as many as the outputs, and the width 1 where a skip ends inside."
                raise UserError("residual_intervals", between, "nodes of as many channels", hint)
            height, width = effective_kernel(kernels[start:end])
            if height % 2 == 0 or width % 2 == 0:
                valid = "odd kernels, whose middle the skip can meet"
                raise UserError("residual_intervals", f"{between} over a kernel of {height} x {width}", valid)


def collapse_graph(factors: Sequence[Affine], skips: Skips | None = None, groups: int = 1) -> Affine:
    """Kernel and bias of all factors and skips together, in one pass over the nodes. Differentiable.

    With T_0 the Dirac kernel and B_0 = 0, node v has T_v = W_v * T_(v-1) + sum of T_r and B_v = W_v B_(v-1) + b_v + sum
    of B_r over the skips r that end in it; kernels are padded around their centre. Without skips the product is
    associative, and it is taken in the order of the fewest multiplications.

    Args:
        factors: weights [h_l, h_(l-1) / g, k, k] with biases [h_l] or None, the first one first, batch norms folded in.
        skips: as `skip_sources`. groups: g.
    """
    if not skips:
        return _chain(factors, groups)
    first = factors[0][0]
    nodes: list[Affine] = [(dirac(first.shape[1] * groups, groups, first), None)]
    for v, (weight, bias) in enumerate(factors, start=1):
        if v == 1:
            kernel, constant = weight, bias
        else:
            kernel, constant = compose_conv(weight, bias, *nodes[-1], groups)
        for r in skips.get(v, ()):
            kernel = kernel + centre_pad(nodes[r][0], kernel.shape[2:])
            constant = _sum(constant, nodes[r][1])
        nodes.append((kernel, constant))
    return nodes[-1]


def _chain(factors: Sequence[Affine], groups: int) -> Affine:
    """The product of all factors, in the order of the fewest multiplications."""
    sizes = [tuple(map(int, weight.shape)) for weight, _ in factors]
    shapes = tuple((outputs // groups, *rest) for outputs, *rest in sizes)  # of one group
    nodes = dict(enumerate(factors))
    # A compiler warns of caches, and does this once anyway.
    order = _order.__wrapped__ if torch.compiler.is_compiling() else _order
    for lower, upper in order(shapes):
        nodes[lower] = compose_conv(*nodes.pop(upper), *nodes[lower], groups)
    return nodes[0]


@lru_cache(maxsize=1024)
def _order(shapes: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, int], ...]:
    """Which neighbours to compose after each other: pairs of the first factors of what is put together by then. Of more
    than `LONG` factors, from the cheaper end.

    Args:
        shapes: (o, i, k, k') of the factors.
    """
    count = len(shapes)
    if count > LONG:  # the search takes the cube of them
        ends = {
            tuple((0, n) for n in range(1, count)): sum(_cost(shapes, 0, n, n + 1) for n in range(count - 1)),
            tuple((n, n + 1) for n in reversed(range(count - 1))):
                sum(_cost(shapes, n, n, count - 1) for n in range(count - 1)),
        }  # fmt: skip
        return min(ends, key=lambda each: ends[each])
    best: dict[tuple[int, int], tuple[int, int]] = {(n, n): (0, n) for n in range(count)}
    for length in range(1, count):
        for start in range(count - length):
            end = start + length
            costs = {
                cut: best[start, cut][0] + best[cut + 1, end][0] + _cost(shapes, start, cut, end)
                for cut in reversed(range(start, end))  # of equals, the one from the first factor on
            }  # fmt: skip
            cut = min(costs, key=lambda each: costs[each])
            best[start, end] = costs[cut], cut

    def steps(start: int, end: int) -> list[tuple[int, int]]:
        if start == end:
            return []
        cut = best[start, end][1]
        return [*steps(start, cut), *steps(cut + 1, end), (start, cut + 1)]

    return tuple(steps(0, count - 1))


def _cost(shapes: Sequence[Sequence[int]], start: int, cut: int, end: int) -> int:
    """Multiplications of composing the product of factors start ... cut with that of cut + 1 ... end."""
    first, second, both = (
        math.prod(effective_kernel([(shape[2], shape[3]) for shape in shapes[a : b + 1]]))
        for a, b in ((start, cut), (cut + 1, end), (start, end))
    )  # fmt: skip
    taps = first * second if min(first, second) == 1 else both * second  # `compose_conv` looks at zeros too
    return shapes[end][0] * shapes[cut][0] * shapes[start][1] * taps


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other


__all__ = [
    "Affine",
    "Skips",
    "centre_pad",
    "check_skips",
    "collapse_graph",
    "compose_conv",
    "compose_linear",
    "dirac",
    "effective_kernel",
    "fold_batch_norm",
    "skip_sources",
    "through",
]
