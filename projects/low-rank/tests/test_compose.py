"""Composed kernels against the convolutions themselves, and against closed forms."""

from __future__ import annotations

import itertools
import math
import random
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from low_rank.overparam.compose import (
    LONG,
    _cost,
    _order,
    centre_pad,
    check_skips,
    collapse_graph,
    compose_conv,
    compose_linear,
    dirac,
    effective_kernel,
    fold_batch_norm,
    skip_sources,
)
from shared.config import UserError


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize(("k2", "k1"), [*itertools.product([(1, 1), (3, 3), (2, 3)], repeat=2)])
def test_two_convolutions_are_one(k2: tuple[int, int], k1: tuple[int, int], dilation: int, groups: int) -> None:
    torch.manual_seed(0)
    w1, b1, w2, b2 = normal(6, 4 // groups, *k1), normal(6), normal(8, 6 // groups, *k2), normal(8)
    x = normal(2, 4, 11, 12)
    inner = F.conv2d(x, w1, b1, 1, 2, dilation, groups)
    expected = F.conv2d(inner, w2, b2, (2, 1), 0, dilation, groups)
    weight, bias = compose_conv(w2, b2, w1, b1, groups)
    assert tuple(weight.shape[2:]) == effective_kernel([k1, k2])
    torch.testing.assert_close(F.conv2d(x, weight, bias, (2, 1), 2, dilation, groups), expected)
    for one, other in ((None, b2), (b1, None), (None, None)):
        weight, bias = compose_conv(w2, other, w1, one, groups)
        assert (bias is None) == (one is None and other is None)
        inner = F.conv2d(x, w1, one, 1, 0, dilation, groups)
        expected = F.conv2d(inner, w2, other, 1, 0, dilation, groups)
        torch.testing.assert_close(F.conv2d(x, weight, bias, 1, 0, dilation, groups), expected)


def test_a_known_composition() -> None:
    """Kernels of one channel multiply as polynomials: (1 + 2 z)(3 + 4 z) = 3 + 10 z + 8 z^2."""
    w1, w2 = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[3.0, 4.0]]]])
    weight, bias = compose_conv(w2, torch.tensor([1.0]), w1, torch.tensor([10.0]))
    assert weight.tolist() == [[[[3.0, 10.0, 8.0]]]]
    assert bias is not None
    assert bias.tolist() == [71.0]


def test_two_linear_layers_are_one() -> None:
    w1, b1, w2, b2, x = normal(5, 4), normal(5), normal(3, 5), normal(3), normal(7, 4)
    torch.testing.assert_close(F.linear(x, *compose_linear(w2, b2, w1, b1)), F.linear(F.linear(x, w1, b1), w2, b2))
    assert compose_linear(w2, None, w1, None)[1] is None


@pytest.mark.parametrize("groups", [1, 2])
def test_composition_is_associative(groups: int) -> None:
    a, b, c = ((normal(4, 4 // groups, k, k), normal(4)) for k in (3, 1, 2))
    left = compose_conv(*compose_conv(*c, *b, groups), *a, groups)
    right = compose_conv(*c, *compose_conv(*b, *a, groups), groups)
    for one, other in zip(left, right, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("widths", [(2, 9, 9, 3), (9, 2, 2, 8), (3, 4, 30, 2)])
def test_a_chain_is_the_same_from_either_end(widths: tuple[int, ...]) -> None:
    factors = [(normal(o, i, k, k), normal(o)) for i, o, k in zip(widths, widths[1:], (3, 1, 2), strict=False)]
    check_chain(factors)


def by_every_order(shapes: list[tuple[int, ...]]) -> int:
    """The fewest multiplications of a chain of (o, i, k, k'), by trying everything."""
    found = [0] if len(shapes) == 1 else []
    for n, (one, two) in enumerate(pairwise(shapes)):
        kernel = effective_kernel([one[2:], two[2:]])
        first, second = math.prod(one[2:]), math.prod(two[2:])
        taps = first * second if 1 in (first, second) else math.prod(kernel) * second
        joined = (two[0], one[1], *kernel)
        spent = two[0] * two[1] * one[1] * taps
        found.append(spent + by_every_order([*shapes[:n], joined, *shapes[n + 2 :]]))
    return min(found)


@pytest.mark.parametrize("seed", range(6))
def test_products_are_taken_in_the_order_of_the_fewest_multiplications(seed: int) -> None:
    draw = random.Random(seed)
    nodes = [draw.choice((2, 3, 8, 20)) for _ in range(3 + seed // 2)]
    shapes = [(o, i, k, k) for i, o in pairwise(nodes) for k in [draw.choice((1, 1, 2, 3))]]
    spent, left = 0, list(range(len(shapes)))
    for lower, upper in _order(tuple(shapes)):
        end = min((n for n in left if n > upper), default=len(shapes)) - 1
        spent += _cost(shapes, lower, upper - 1, end)
        left.remove(upper)
    assert left == [0]
    assert spent == by_every_order(shapes)
    check_chain([(normal(*shape), normal(shape[0])) for shape in shapes])


@pytest.mark.parametrize("ends", [(2, 9), (9, 2)])
def test_long_chains_are_taken_from_the_cheaper_end(ends: tuple[int, int]) -> None:
    nodes = [ends[0], *[6] * LONG, ends[1]]
    order = _order(tuple((o, i, 1, 1) for i, o in pairwise(nodes)))
    assert order[0] == ((0, 1) if ends[0] < ends[1] else (LONG - 1, LONG))
    check_chain([(normal(o, i, 1, 1), normal(o)) for i, o in pairwise(nodes)])


def check_chain(factors: Any) -> None:
    expected = factors[0]
    for factor in factors[1:]:
        expected = compose_conv(*factor, *expected)
    for one, other in zip(collapse_graph(factors), expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("groups", "k1", "k2"), [(1, 3, 2), (2, 2, 1), (2, 1, 2), (2, 2, 2)])
def test_composition_has_the_gradients_of_finite_differences(groups: int, k1: int, k2: int) -> None:
    shapes = ((4, 2 // groups, k2, k2), (4,), (2, 2 // groups, k1, k1), (2,))
    tensors = [normal(*shape).requires_grad_() for shape in shapes]

    def run(*t: torch.Tensor) -> Any:
        return compose_conv(*t, groups=groups)

    assert torch.autograd.gradcheck(run, tensors)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_batch_norm_is_folded_with_its_own_epsilon(affine: bool, bias: bool) -> None:
    conv = nn.Conv2d(3, 4, 3, bias=bias).double()
    norm = nn.BatchNorm2d(4, eps=0.3, affine=affine).double().eval()
    norm.running_mean = normal(4)
    norm.running_var = normal(4).square()
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = normal(2, 3, 6, 6)
    torch.testing.assert_close(F.conv2d(x, *fold_batch_norm(conv.weight, conv.bias, norm)), norm(conv(x)))
    with pytest.raises(UserError, match="running statistics"):
        fold_batch_norm(conv.weight, conv.bias, nn.BatchNorm2d(4, track_running_stats=False))


def test_skips_of_every_interval() -> None:
    assert skip_sources(4, 1) == {1: (0,), 2: (1,), 3: (2,), 4: (3,)}
    assert skip_sources(4, [2]) == {2: (0,), 4: (2,)}
    assert skip_sources(5, [2, -1]) == {2: (0,), 4: (2,), 5: (0,)}
    assert skip_sources(3, [3, -1]) == {3: (0,)}, "one skip, said twice"
    assert skip_sources(3, ()) == {}
    for wrong in (0, -2, 4, None, "1", 1.0, [1.5], [True]):
        with pytest.raises(UserError, match="depth 3"):
            skip_sources(3, wrong)  # pyright: ignore


def test_skips_over_every_factor_are_the_product_of_i_plus_w() -> None:
    ws = [normal(3, 3) for _ in range(4)]
    weight, bias = collapse_graph([(w[..., None, None], None) for w in ws], skip_sources(4, 1))
    eye = torch.eye(3, dtype=torch.float64)
    expected = eye
    for w in ws:
        expected = (eye + w) @ expected
    torch.testing.assert_close(weight[..., 0, 0], expected)
    assert bias is None


def test_a_skip_over_a_kernel_adds_one_to_its_middle() -> None:
    w = normal(4, 2, 3, 5)
    weight, _ = collapse_graph([(w, None)], skip_sources(1, 1), groups=2)
    difference = weight - w
    assert int(difference.count_nonzero()) == 4
    torch.testing.assert_close(difference[:, :, 1, 2], dirac(4, 2, w)[..., 0, 0])
    x = normal(1, 4, 5, 7)
    torch.testing.assert_close(F.conv2d(x, dirac(4, 2, w), groups=2), x)


def test_what_cannot_be_composed_is_refused() -> None:
    with pytest.raises(UserError, match="as w1 gives"):
        compose_conv(normal(4, 3, 1, 1), None, normal(4, 3, 1, 1), None)
    with pytest.raises(UserError, match="even number"):
        centre_pad(normal(1, 1, 3, 3), (4, 4))
    with pytest.raises(UserError, match="input of 3 channels to the output of 5 channels"):
        check_skips(skip_sources(2, -1), [3, 5, 5], [(3, 3), (1, 1)])
    with pytest.raises(UserError, match="kernel of 2 x 2"):
        check_skips(skip_sources(1, 1), [3, 3], [(2, 2)])
