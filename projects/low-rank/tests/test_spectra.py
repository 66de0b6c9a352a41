"""The Fuss-Catalan law: moments, density, and what depth takes off the effective rank, against numbers and sampling."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from low_rank.rank import effective_rank
from low_rank.spectra import _masses, cdf, deficit, end, moment, singular_density, squared_density
from shared.config import UserError

DEFICITS = {
    1: 0.216861662, 2: 0.401387711, 3: 0.559632906, 4: 0.697414907, 8: 1.116099045, 16: 1.640218072, 32: 2.237939238,
}  # fmt: skip


def products(d: int, n: int, draws: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    w = torch.eye(n, dtype=torch.float64).expand(draws, n, n)
    for _ in range(d):
        w = torch.randn(draws, n, n, generator=generator, dtype=torch.float64) / math.sqrt(n) @ w
    return w


def test_moments_are_fuss_catalan_numbers() -> None:
    for d in (1, 2, 3, 5):
        assert moment(d, 0) == pytest.approx(1)
        assert moment(d, 1) == pytest.approx(1)
        for k in (2, 3, 4):
            assert moment(d, k) == pytest.approx(math.comb((d + 1) * k, k) / (d * k + 1))
    assert moment(1, 0.5) == pytest.approx(8 / (3 * math.pi))
    with pytest.raises(UserError, match="depth"):
        moment(0, 1)


def test_deficit_is_the_entropy_that_the_density_lacks() -> None:
    for d, value in DEFICITS.items():
        assert deficit(d) == pytest.approx(value, abs=5e-9)
    assert all(deficit(d) < deficit(d + 1) for d in range(1, 64))
    # ln n - rho tends to -ln m(1/2) + E[s ln s] / m(1/2), by differences of the moment.
    for d in (1, 4, 16):
        h = 1e-5
        slope = (moment(d, 0.5 + h) - moment(d, 0.5 - h)) / (2 * h) / 2
        assert deficit(d) == pytest.approx(slope / moment(d, 0.5) - math.log(moment(d, 0.5)), abs=1e-7)


@pytest.mark.parametrize("d", [1, 2, 4, 8, 32])
def test_density_integrates_to_the_moments(d: int) -> None:
    x, mass = _masses(d, 200_000)
    assert bool((mass > 0).all())
    for k in (0.0, 0.5, 1.0, 2.0):
        assert (mass * x**k).sum() == pytest.approx(moment(d, k), rel=1e-6)
    entropy = (mass * np.sqrt(x) * np.log(x) / 2).sum() / moment(d, 0.5)
    assert deficit(d) == pytest.approx(entropy - math.log(moment(d, 0.5)), abs=1e-6)


@pytest.mark.parametrize("d", [1, 2, 4, 8])
def test_density_is_the_slope_of_the_distribution(d: int) -> None:
    s, density = singular_density(d, 500)
    x, squared = squared_density(d, 500)
    np.testing.assert_allclose(density, 2 * s * squared)
    assert x[0] == pytest.approx(end(d) ** 2, rel=1e-3)
    at = s[60:-100:20]  # at the edge itself the density has no slope
    h = 1e-3 * at
    slope = (cdf(d, at + h, 400_000) - cdf(d, at - h, 400_000)) / (2 * h)
    np.testing.assert_allclose(slope, density[60:-100:20], rtol=2e-3)
    assert cdf(d, [0.0, end(d), 2 * end(d)]).tolist() == [0.0, 1.0, 1.0]


def test_one_factor_is_the_quarter_circle_law() -> None:
    s, f = singular_density(1, 1000)
    np.testing.assert_allclose(f, np.sqrt(np.clip(4 - s**2, 0, None)) / math.pi, atol=1e-9)
    np.testing.assert_allclose(cdf(1, [0, 1, 2, 3]), [0, math.sqrt(3) / (2 * math.pi) + 1 / 3, 1, 1], atol=1e-4)


@pytest.mark.parametrize("d", [1, 2, 4])
def test_sampled_singular_values_follow_the_law(d: int) -> None:
    s = np.sort(torch.linalg.svdvals(products(d, 128, 20)).numpy().ravel())
    at = np.quantile(s, [0.1, 0.3, 0.5, 0.7, 0.9])
    np.testing.assert_allclose(cdf(d, at), [0.1, 0.3, 0.5, 0.7, 0.9], atol=0.015)


@pytest.mark.parametrize(("d", "measured"), [(1, 0.2215), (2, 0.4085), (4, 0.7061), (8, 1.129), (16, 1.660)])
def test_sampled_effective_ranks_lack_the_deficit(d: int, measured: float) -> None:
    lack = math.log(64) - float(effective_rank(products(d, 64, 200)).mean())
    assert lack == pytest.approx(measured, abs=0.03)
    assert lack == pytest.approx(deficit(d), abs=0.03)
