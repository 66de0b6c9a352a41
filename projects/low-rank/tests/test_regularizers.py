"""Penalties against closed forms, finite differences, and the factorings that the Schatten one speaks of."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from low_rank.names import REGULARISERS
from low_rank.regularizers import penalty, schatten
from shared.config import UserError

EXACT: dict[str, Any] = {"smoothing": 0.0}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(n: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(drawn(n, n, seed=seed)).Q


def spectrum(*values: float) -> Tensor:
    """A 5 x 4 matrix with these singular values."""
    s = torch.zeros(5, 4, dtype=torch.float64)
    for i, value in enumerate(values):
        s[i, i] = value
    return rotation(5, 1) @ s @ rotation(4, 2)


def norms(factors: list[Tensor]) -> Tensor:
    return torch.stack([w.square().sum() for w in factors]).sum()


def balanced(weight: Tensor, depth: int, width: int) -> list[Tensor]:
    """W = W_d ... W_1, first factor first, each with singular values s^(1/d); `width` units between them."""
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    root = torch.zeros(width, width, dtype=weight.dtype)
    root[: len(s), : len(s)] = torch.diag(s ** (1 / depth))
    first = root[:, : len(s)] @ v
    last = u @ root[: len(s)]
    return [first, *(root for _ in range(depth - 2)), last]


def product(factors: list[Tensor]) -> Tensor:
    out = factors[0]
    for w in factors[1:]:
        out = w @ out
    return out


def moved(factors: list[Tensor], changes: list[Tensor]) -> list[Tensor]:
    """G_l W_l G_(l-1)^-1 with G_0 = G_d = 1: another factoring of the same product."""
    made = list(factors)
    for l, g in enumerate(changes):
        made[l] = g @ made[l]
        made[l + 1] = torch.linalg.solve(g, made[l + 1], left=False)
    return made


def test_closed_forms() -> None:
    w = spectrum(4, 3, 2, 1)
    values = {"squared-l2": 30, "nuclear": 10, "effective-rank": 1.2798542258, "stable-rank": 30 / 16}
    for name, value in values.items():
        assert float(penalty([w], name)) == pytest.approx(value, abs=1e-9), name
    assert float(penalty([w], "l1")) == pytest.approx(float(np.abs(w.numpy()).sum()))
    for d in (1, 2, 3, 8):
        expected = sum(s ** (2 / d) for s in (1, 2, 3, 4))
        assert float(penalty([w], "schatten", depth=d, smoothing=0)) == pytest.approx(expected)
    s = np.linalg.svd(drawn(6, 3).numpy(), compute_uv=False)
    assert float(penalty([drawn(6, 3)], "effective-rank")) == pytest.approx(scipy.stats.entropy(s))
    assert float(penalty([drawn(6, 3)], "nuclear")) == pytest.approx(np.linalg.norm(drawn(6, 3).numpy(), "nuc"))


@pytest.mark.parametrize("name", REGULARISERS)
def test_layers_add_up_and_kernels_are_matrices(name: str) -> None:
    one, kernel = drawn(5, 4), drawn(6, 2, 3, 3)
    both = penalty((w for w in (one, kernel)), name)
    assert both.shape == ()
    parts = penalty([one], name) + penalty([kernel.reshape(6, 18)], name)
    torch.testing.assert_close(both, parts)
    single = penalty([one.float(), kernel.float()], name)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), both, rtol=1e-5, atol=1e-5)
    assert penalty([one.bfloat16()], name).dtype == torch.float32


def test_invariances() -> None:
    w = drawn(5, 4)
    degrees = {"squared-l2": 2, "l1": 1, "nuclear": 1, "effective-rank": 0, "stable-rank": 0, "schatten": 2 / 3}
    for name, degree in degrees.items():
        value = penalty([w], name, depth=3, **EXACT)
        for other in (w.T, w.flip(0), -w):
            torch.testing.assert_close(penalty([other], name, depth=3, **EXACT), value)
        torch.testing.assert_close(penalty([2.5 * w], name, depth=3, **EXACT), 2.5**degree * value)
        turned = penalty([rotation(5) @ w], name, depth=3, **EXACT)
        assert torch.allclose(turned, value, rtol=1e-9) == (name != "l1"), name
    for d, name in ((1, "squared-l2"), (2, "nuclear")):
        torch.testing.assert_close(penalty([w], "schatten", depth=d), penalty([w], name))


def test_the_deeper_the_closer_to_the_rank() -> None:
    w = spectrum(0.9, 0.5, 0.1)
    found = [float(penalty([w], "schatten", depth=d, smoothing=0)) for d in (2, 4, 16, 4096)]
    assert found[-1] == pytest.approx(3, abs=2e-3)
    assert all(abs(a - 3) > abs(b - 3) for a, b in pairwise(found))


@pytest.mark.parametrize(("depth", "width"), [(2, 4), (3, 4), (4, 4), (3, 7)])
def test_weight_decay_on_factors_comes_to_the_schatten_quasi_norm(depth: int, width: int) -> None:
    """min over factorings of sum |W_l|^2 is d sum s^(2/d): balanced factors attain it, none is below, and descent over
    factorings of one product goes there."""
    w = drawn(5, 4)
    least = depth * float(penalty([w], "schatten", depth=depth, smoothing=0))
    factors = balanced(w, depth, width)
    torch.testing.assert_close(product(factors), w)
    assert float(norms(factors)) == pytest.approx(least, rel=1e-12)

    for seed in range(20):
        size = 10.0 ** (-1 - seed % 3)
        eye = torch.eye(width, dtype=torch.float64)
        changes = [eye + size * drawn(width, width, seed=100 * seed + l) for l in range(depth - 1)]
        other = moved(factors, changes)
        torch.testing.assert_close(product(other), w, rtol=1e-6, atol=1e-6)
        assert float(norms(other)) >= least * (1 - 1e-12)
    independent = [drawn(width, 4, seed=7), *(drawn(width, width, seed=8 + l) for l in range(depth - 2))]
    last = w @ torch.linalg.pinv(product(independent))  # solves for the last factor
    assert float(norms([*independent, last])) > least

    start = [*independent, last]
    changes = [torch.eye(width, dtype=torch.float64).requires_grad_() for _ in range(depth - 1)]
    rule = torch.optim.LBFGS(changes, max_iter=300, tolerance_grad=1e-9, tolerance_change=1e-14,
                             line_search_fn="strong_wolfe")  # fmt: skip

    def close() -> Tensor:
        rule.zero_grad()
        cost = norms(moved(start, changes))
        cost.backward()
        return cost

    rule.step(close)
    with torch.no_grad():
        ended = moved(start, changes)
    torch.testing.assert_close(product(ended), w, rtol=1e-6, atol=1e-6)
    # Units that hold nothing of the product leave only as their size goes to 0: with spare ones the end is approached.
    assert float(norms(ended)) == pytest.approx(least, rel=1e-6 if width == 4 else 1e-2)


@pytest.mark.parametrize("name", REGULARISERS)
def test_gradients_are_finite_differences(name: str) -> None:
    w, kernel = drawn(5, 4).requires_grad_(), drawn(4, 2, 3, 1, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: penalty([a, b], name, depth=5), (w, kernel))
    assert torch.autograd.gradcheck(lambda a: penalty([a], name, depth=5, smoothing=0), (w,))


def test_gradients_are_those_of_the_books() -> None:
    w = drawn(5, 4).requires_grad_()
    u, s, v = torch.linalg.svd(w.detach(), full_matrices=False)

    def gradient(name: str, **options: Any) -> Tensor:
        return torch.autograd.grad(penalty([w], name, **options), w)[0]

    torch.testing.assert_close(gradient("nuclear"), u @ v)
    torch.testing.assert_close(gradient("squared-l2"), 2 * w.detach())
    torch.testing.assert_close(gradient("l1"), w.detach().sign())
    torch.testing.assert_close(gradient("schatten", depth=4, smoothing=0), u @ torch.diag(0.5 * s**-0.5) @ v)
    p = s / s.sum()
    slope = -(p.log() + scipy.stats.entropy(p.numpy())) / s.sum()
    torch.testing.assert_close(gradient("effective-rank"), u @ torch.diag(slope) @ v)
    for name in ("effective-rank", "stable-rank"):
        assert float((gradient(name) * w.detach()).sum()) == pytest.approx(0, abs=1e-9)  # Euler: of degree 0


def lacking() -> dict[str, Tensor]:
    """Weights that lack rank, exactly, up to rounding in either precision, or altogether; equal singular values."""
    thin = drawn(6, 2) @ drawn(2, 5, seed=1)
    padded = torch.zeros(6, 5, dtype=torch.float64)
    padded[:3, :2] = drawn(3, 2)
    return {
        "rounded": thin,
        "single": thin.float(),
        "padded": padded,
        "equal": torch.eye(6, 5, dtype=torch.float64),
        "repeated": torch.diag(torch.tensor([2.0, 2.0, 0.0, 0.0])),
        "zero": torch.zeros(4, 3),
    }


@pytest.mark.filterwarnings("ignore:a matrix of zeros")
@pytest.mark.parametrize("name", REGULARISERS)
@pytest.mark.parametrize("case", lacking())
def test_gradients_are_finite_where_rank_is_lacking(name: str, case: str) -> None:
    w = lacking()[case].requires_grad_()
    for options in ({}, EXACT):
        value = penalty([w], name, depth=8, **options)
        (gradient,) = torch.autograd.grad(value, w)
        assert bool(value.isfinite())
        assert bool(gradient.isfinite().all())
        assert float(gradient.norm()) < 1e4


def test_lost_directions_are_not_counted_and_not_pushed() -> None:
    for w in (drawn(6, 2) @ drawn(2, 5, seed=1), (drawn(6, 2) @ drawn(2, 5, seed=1)).float()):
        w.requires_grad_()
        u, s, v = torch.linalg.svd(w.detach().double(), full_matrices=False)
        for p in (0.25, 0.5, 1.0):
            value = schatten(w, p)
            assert float(value.detach()) == pytest.approx(float((s[:2] ** p).sum()), rel=1e-6)
            (gradient,) = torch.autograd.grad(value, w)
            expected = u[:, :2] @ torch.diag(p * s[:2] ** (p - 1)) @ v[:2]
            torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=1e-5)


def test_smoothing_rounds_the_cusp() -> None:
    e, p = 0.01, 0.25
    for s in (1e-9, 1e-3, 0.01, 1.0):
        w = torch.diag(torch.tensor([2.0, s], dtype=torch.float64)).requires_grad_()
        sharp, smooth = schatten(w, p), schatten(w, p, e)
        assert 0 <= float(sharp.detach()) - float(smooth.detach()) <= 2 * e**p
        expected = sum((x * x + e * e) ** (p / 2) - e**p for x in (2.0, s))
        assert float(smooth.detach()) == pytest.approx(expected, rel=1e-9)
        (gradient,) = torch.autograd.grad(smooth, w)
        assert float(gradient.abs().max()) <= p * e ** (p - 1)


def test_subgradients_support_the_nuclear_norm() -> None:
    """|Z| >= |W| + <G, Z - W> for every Z: also where W lacks rank."""
    for w in (drawn(5, 4), drawn(5, 2) @ drawn(2, 4, seed=3)):
        w.requires_grad_()
        value = penalty([w], "nuclear")
        (g,) = torch.autograd.grad(value, w)
        assert float(torch.linalg.matrix_norm(g, 2)) <= 1 + 1e-9
        for seed in range(30):
            z = w.detach() + 10.0 ** (-(seed % 4)) * drawn(5, 4, seed=seed)
            assert float(penalty([z], "nuclear")) >= float(value.detach() + (g * (z - w.detach())).sum()) - 1e-10


@pytest.mark.parametrize("name", ["nuclear", "l1", "squared-l2"])
def test_proximal_points_minimise(name: str) -> None:
    """argmin |X - A|^2 / 2 + t R(X): soft-thresholded singular values, soft-thresholded entries, A / (1 + 2t)."""
    a, t = drawn(5, 4), 0.7
    u, s, v = torch.linalg.svd(a, full_matrices=False)
    points = {
        "nuclear": u @ torch.diag((s - t).clamp_min(0)) @ v,
        "l1": a.sign() * (a.abs() - t).clamp_min(0),
        "squared-l2": a / (1 + 2 * t),
    }

    def cost(x: Tensor) -> float:
        return float((x - a).square().sum() / 2 + t * penalty([x], name))

    best = points[name]
    for seed in range(60):
        other = best + 10.0 ** (-(seed % 5)) * drawn(5, 4, seed=seed + 1)
        assert cost(other) > cost(best)
    for step in (0.9, 1.1):  # another threshold is worse
        assert cost(best + (step - 1) * (a - best)) > cost(best)


def test_bad_input_is_refused() -> None:
    w = drawn(3, 2)
    with pytest.raises(UserError, match="did you mean 'nuclear'"):
        penalty([w], "nuclaer")
    with pytest.raises(UserError, match="none"):
        penalty([], "l1")
    with pytest.raises(UserError, match="--depth"):
        penalty([w], "schatten", depth=0)
    with pytest.raises(UserError, match="shape"):
        penalty([torch.ones(3)], "l1")
    with pytest.raises(UserError, match="finite"):
        penalty([torch.full((2, 2), math.nan)], "nuclear")
    for p in (0.0, -1.0, math.nan):
        with pytest.raises(UserError, match="p:"):
            schatten(w, p)
    with pytest.raises(UserError, match="smoothing"):
        schatten(w, 0.5, -1e-3)
