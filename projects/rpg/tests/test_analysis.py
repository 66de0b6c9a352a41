"""Fits and closed forms, against draws and against linear algebra."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from rpg.analysis import (
    constrained_spectrum,
    cosine_matrix,
    cosine_moments,
    descend,
    fit_loglinear,
    fit_loglog,
    least_squares_ring,
    mean_absolute_cosine,
    slice_product_variance,
    unused_fraction,
)
from rpg.plan import make_plan
from shared.config import UserError


def test_loglinear_fit_agrees_with_scipy_and_its_interval_covers_the_truth() -> None:
    stream = np.random.default_rng(1)
    dof = 10 ** stream.uniform(2, 5, 40)
    accuracy = 0.1 + 0.15 * np.log10(dof) + 0.02 * stream.normal(size=40)
    fit = fit_loglinear(dof, accuracy)
    theirs = stats.linregress(np.log10(dof), accuracy)
    assert fit.slope == pytest.approx(theirs.slope)  # pyright: ignore
    assert fit.intercept == pytest.approx(theirs.intercept)  # pyright: ignore
    assert fit.r2 == pytest.approx(theirs.rvalue**2)  # pyright: ignore
    assert fit.ci[0] < 0.15 < fit.ci[1]


def test_loglog_fit_recovers_a_power_law() -> None:
    dof = np.array([100, 1000, 10000, 50000])
    fit = fit_loglog(dof, 3.0 * dof**-0.25)
    assert (fit.slope, 10**fit.intercept, fit.r2) == pytest.approx((-0.25, 3.0, 1.0))


@pytest.mark.parametrize("dof", [[1, 2], [5, 5, 5], [0, 1, 2]])
def test_fits_refuse_what_gives_no_line(dof: list[int]) -> None:
    with pytest.raises(UserError, match="dof"):
        fit_loglinear(dof, [0.1] * len(dof))


def _layers(kind: str, n: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` independent layers, each the whole ring of n numbers as `make_plan` deals it: indices and signs."""
    if kind in ("ring", "sign_only"):  # a cursor that walks on: layer after layer takes the whole ring
        plan = make_plan([n] * count, n, kind, 2, offset="continue")
        return plan.all_indices().reshape(count, n), plan.all_signs().reshape(count, n)
    plans = [make_plan([n], n, kind, seed) for seed in range(count)]
    return np.stack([plan.all_indices() for plan in plans]), np.stack([plan.all_signs() for plan in plans])


# Identity 5, on the plans themselves. A plan a draw takes 60 microseconds: ten seconds for the two kinds that need it.
@pytest.mark.parametrize(
    "kind",
    [
        "ring",
        "sign_only",
        pytest.param("even", marks=pytest.mark.slow),
        pytest.param("perm_only", marks=pytest.mark.slow),
    ],
)
def test_cosine_moments_agree_with_the_plans(kind: str) -> None:
    n, draws = 64, 100_000
    ring = np.random.default_rng(2).exponential(size=n)  # far from symmetric: permutation alone leaves a large mean
    indices, signs = _layers(kind, n, draws + 1)
    layers = signs * ring[indices]
    # Neighbours share a layer; given that one, the other is a fresh draw, so that the cosines are uncorrelated.
    cosine = (layers[1:] * layers[:-1]).sum(1) / (ring**2).sum()
    mean, variance = cosine_moments("even" if kind == "ring" else kind, ring)
    assert cosine.mean() == pytest.approx(mean, abs=4 * np.sqrt(variance / draws))
    assert cosine.var() / variance == pytest.approx(1.0, abs=0.03)
    if kind in ("ring", "even"):
        assert 0.97 <= cosine.var() * n <= 1.03
    if kind == "perm_only":
        assert cosine.mean() == pytest.approx(ring.sum() ** 2 / (n * (ring**2).sum()), rel=0.01)


@pytest.mark.parametrize("uses", [0.5, 1.0, 3.0])
def test_hash_leaves_the_derived_share_of_the_ring_unused(uses: float) -> None:
    size = 100_000
    plan = make_plan([round(uses * size)], size, "hash", 5, allow_unused=True)
    assert (plan.counts() == 0).mean() == pytest.approx(unused_fraction(uses), abs=4 * np.sqrt(np.exp(-uses) / size))


def test_slices_of_one_even_plan_have_the_variance_of_drawing_without_replacement() -> None:
    m, uses, size = 12, 3, 10
    ring = np.random.default_rng(3).exponential(size=m)
    products = []
    for seed in range(6000):
        plan = make_plan([size, size, m * uses - 2 * size], m, "even", seed)
        products.append(float((plan.signs(0) * ring[plan.indices(0)]) @ (plan.signs(1) * ring[plan.indices(1)])))
    expected = slice_product_variance(ring, uses, size)
    assert np.var(products) / expected == pytest.approx(1.0, abs=0.1)
    assert np.mean(products) == pytest.approx(0.0, abs=4 * np.sqrt(expected / 6000))


def quadratic(n: int, seed: int = 0) -> np.ndarray:
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]
    return basis @ np.diag(np.geomspace(0.01, 10, n)) @ basis.T


@pytest.mark.parametrize("seed", range(5))
def test_condition_number_cannot_grow_under_the_constraint(seed: int) -> None:
    hessian = quadratic(48, seed)
    generator = make_plan([30, 18], 12, "even", seed).matrix().toarray()
    found = constrained_spectrum(hessian, generator)
    assert found.condition[1] <= found.condition[0] * (1 + 1e-12)


# Identity 9: Poincare separation of every eigenvalue.
@pytest.mark.parametrize(("kind", "size"), [("even", 1), ("even", 12), ("even", 48), ("seq", 16), ("perm_only", 24)])
def test_every_eigenvalue_interlaces(kind: str, size: int) -> None:
    total = 48
    for seed in range(5):
        generator = make_plan([30, 18], size, kind, seed).matrix().toarray()
        found = constrained_spectrum(quadratic(total, seed), generator)
        assert (len(found.full), len(found.constrained)) == (total, size)
        assert (found.full[:size] <= found.constrained + 1e-10).all()
        assert (found.constrained <= found.full[total - size :] + 1e-10).all()
    if size == total:
        assert found.constrained == pytest.approx(found.full)  # the whole ring: the same network


def test_descent_on_the_ring_converges_at_least_as_fast() -> None:
    hessian = quadratic(48)
    generator = make_plan([48], 12, "even", 0).matrix().toarray()
    start = np.random.default_rng(0).normal(size=48)
    plain = descend(hessian, start, None, 50)
    ring = descend(hessian, generator.T @ start / 4, generator, 50)
    assert ring[-1] / ring[0] <= plain[-1] / plain[0]


def test_least_squares_ring_is_where_gradient_descent_ends() -> None:
    stream = np.random.default_rng(4)
    x, y = stream.normal(size=(80, 24)), stream.normal(size=80)
    generator = make_plan([24], 6, "even", 1).matrix().toarray()
    best = least_squares_ring(x, y, generator)
    ring = np.zeros(6)
    for _ in range(5000):
        ring -= 1e-3 * generator.T @ x.T @ (x @ generator @ ring - y)
    assert ring == pytest.approx(best, abs=1e-8)


def test_similarity_of_layers_by_hand() -> None:
    weights = {
        "a": torch.tensor([[1.0, 0.0]]),
        "b": torch.tensor([[0.0, 2.0]]),
        "c": torch.tensor([[-1.0, 1.0]]),
        "other": torch.ones(3),
    }
    names, cosines = cosine_matrix(weights)
    assert names == ["a", "b", "c"]
    half = 2**-0.5
    assert cosines == pytest.approx(np.array([[1, 0, -half], [0, 1, half], [-half, half, 1]]))
    assert float(mean_absolute_cosine(weights)) == pytest.approx(2 * half / 3)
    assert float(mean_absolute_cosine({"a": weights["a"]})) == 0.0
