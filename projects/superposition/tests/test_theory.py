"""Retrieval noise: closed forms against Monte Carlo with the families that layers use."""

from __future__ import annotations

import pytest
import torch

from shared.config import UserError
from superposition.kinds import Kind
from superposition.theory import capacity, effective_dimension, monte_carlo, noise_variance, relative_noise

K, D, DRAWS = 6, 50, 40_000


def models(d: int = D) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(2, d, generator=generator, dtype=torch.float64) for _ in range(K)]
    weights[2][1] = -0.8 * weights[4][1] + 0.2 * weights[2][1]  # a mirrored pair around k = 3
    return weights, torch.randn(d, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["binary", "complex", "power"])
def test_noise_has_mean_zero_and_the_derived_variance(kind: Kind) -> None:
    weights, x = models()
    for k in (0, 3):
        real, imaginary = monte_carlo(kind, weights, x, k, DRAWS)
        exact = noise_variance(kind, weights, x, k)
        error = (exact / DRAWS).sqrt()
        assert bool((real.mean(0).abs() < 4 * error).all())
        measured = real.square().mean(0) + imaginary.square().mean(0)
        torch.testing.assert_close(measured, exact, rtol=0.03, atol=0)
        if kind != "binary":
            torch.testing.assert_close(
                real.square().mean(0), noise_variance(kind, weights, x, k, "real"), rtol=0.03, atol=0
            )


def test_powers_have_a_mirror_term_and_independent_contexts_none() -> None:
    weights, x = models()
    half = noise_variance("power", weights, x, 3) / 2
    mirrored = noise_variance("power", weights, x, 3, "real")
    assert float(((mirrored - half) / half).abs().max()) > 0.05
    torch.testing.assert_close(noise_variance("complex", weights, x, 3, "real"), half)
    torch.testing.assert_close(
        noise_variance("power", weights, x, 0, "real"), noise_variance("power", weights, x, 0) / 2
    )


def test_noise_of_rotations_is_isotropic() -> None:
    weights, x = models(20)
    real, _ = monte_carlo("rotation", weights, x, 1, 4000)
    error = (noise_variance("rotation", weights, x, 1) / 4000).sqrt()
    assert bool((real.mean(0).abs() < 4 * error).all())
    torch.testing.assert_close(real.square().mean(0), noise_variance("rotation", weights, x, 1), rtol=0.1, atol=0)


def test_batches_of_inputs_are_inputs_one_by_one() -> None:
    weights, x = models()
    batch = torch.stack([x, 2 * x.flip(0)])
    for kind in ("binary", "rotation", "power"):
        together = noise_variance(kind, weights, batch, 2, "real")
        for row in range(2):
            torch.testing.assert_close(together[row], noise_variance(kind, weights, batch[row], 2, "real"))
    with pytest.raises(UserError, match="closed form"):
        noise_variance("mask", weights, x, 0)


@pytest.mark.parametrize("k", [-1, K])
def test_a_model_that_is_not_there_is_refused(k: int) -> None:
    weights, x = models()
    with pytest.raises(IndexError, match=f"model {k} asked for; there are models 0 to {K - 1}"):
        noise_variance("binary", weights, x, k)
    with pytest.raises(IndexError, match="asked for"):
        monte_carlo("binary", weights, x, k, 2)
    with pytest.raises(UserError, match="closed form"):
        monte_carlo("mask", weights, x, 0, 2)


def test_spread_and_capacity() -> None:
    assert float(effective_dimension(torch.ones(10))) == pytest.approx(10)
    assert float(effective_dimension(torch.eye(10)[0])) == pytest.approx(1)
    assert relative_noise(1, 100) == 0
    assert relative_noise(capacity(400, 0.5), 400) <= 0.5 < relative_noise(capacity(400, 0.5) + 1, 400)
