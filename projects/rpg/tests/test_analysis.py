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


@pytest.mark.parametrize("kind", ["even", "sign_only", "perm_only"])
def test_cosine_moments_agree_with_draws(kind: str) -> None:
    n, draws = 64, 100_000
    stream = np.random.default_rng(2)
    ring = stream.exponential(size=n)  # far from symmetric: permutation alone leaves a large mean
    indices = np.tile(np.arange(n), (2, draws, 1))
    signs = np.ones((2, draws, n))
    if kind != "sign_only":
        indices = stream.permuted(indices, axis=2)
    if kind != "perm_only":
        signs = stream.choice([-1.0, 1.0], size=signs.shape)
    layers = signs * ring[indices]
    cosine = (layers[0] * layers[1]).sum(1) / (ring**2).sum()
    mean, variance = cosine_moments(kind, ring)
    assert cosine.mean() == pytest.approx(mean, abs=4 * np.sqrt(variance / draws))
    assert cosine.var() / variance == pytest.approx(1.0, abs=0.03)


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
    assert found.full[0] - 1e-12 <= found.constrained[0] <= found.constrained[1] <= found.full[1] + 1e-12
    assert found.condition[1] <= found.condition[0] * (1 + 1e-12)


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
