"""Codes against scikit-learn's Lasso, closed forms, and the conditions of optimality."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso
from torch import Tensor

from shared.capture import WARM, CudaGraphs
from shared.config import UserError
from shared.elsewhere import PretendedGraphs
from word_factors import inference
from word_factors.descent import solve_words
from word_factors.inference import (
    Kernel,
    duality_gap,
    energy,
    fista,
    ista,
    kkt_gap,
    lam_max,
    lipschitz,
    solve,
    spectral_bound,
)

D, K, B, LAM = 12, 30, 40, 0.15
KERNELS = ("words", "batched")


def problem(
    seed: int = 0, dtype: torch.dtype = torch.float64, d: int = D, k: int = K, b: int = B
) -> tuple[Tensor, Tensor]:
    """X [d, b] and a dictionary [d, k] with unit columns."""
    generator = torch.Generator().manual_seed(seed)
    phi = torch.randn(d, k, generator=generator, dtype=dtype)
    X = torch.randn(d, b, generator=generator, dtype=dtype)
    return X / X.norm(dim=0), phi / phi.norm(dim=0)


def lasso(X: Tensor, phi: Tensor, lam: float) -> Tensor:
    """The same problem to scikit-learn, whose data term is divided by d."""
    model = Lasso(alpha=lam / len(X), positive=True, fit_intercept=False, tol=1e-13, max_iter=1_000_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return torch.from_numpy(np.stack([model.fit(phi, x).coef_.copy() for x in X.T], axis=1))


def objective(X: Tensor, phi: Tensor, alpha: Tensor, lam: float = LAM) -> Tensor:
    return energy(X - phi @ alpha, alpha, lam)


@pytest.mark.parametrize("form", ["residual", "gram"])
def test_fista_converges_to_the_lasso_of_scikit_learn(form: str) -> None:
    X, phi = problem()
    codes = fista(X, phi, LAM, 20_000, tol=1e-9, form=form)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(codes.alpha, lasso(X, phi, LAM), rtol=0, atol=1e-6)
    assert float(codes.gap.max()) <= 1e-6
    torch.testing.assert_close(codes.residual, X - phi @ codes.alpha)


def test_restarts_lead_to_the_same_minimum_in_fewer_steps() -> None:
    X, phi = problem(1)
    plain = fista(X, phi, LAM, 20_000, tol=1e-8)
    restarted = fista(X, phi, LAM, 20_000, tol=1e-8, restart=True)
    torch.testing.assert_close(restarted.alpha, plain.alpha, rtol=0, atol=1e-6)
    assert restarted.steps < plain.steps


@pytest.mark.parametrize("kernel", KERNELS)
def test_solve_converges_to_the_lasso_of_scikit_learn(kernel: Kernel) -> None:
    X, phi = problem(2, d=20, k=80, b=60)
    codes = solve(X, phi, LAM, tol=1e-9, candidates=8, kernel=kernel)  # few candidates: several rounds are needed
    torch.testing.assert_close(codes.alpha, lasso(X, phi, LAM), rtol=0, atol=1e-6)
    assert float(codes.gap.max()) <= 1e-9 * LAM
    assert codes.steps > 1


@pytest.mark.parametrize("kernel", KERNELS)
def test_solve_does_not_depend_on_how_vectors_are_batched(kernel: Kernel) -> None:
    X, phi = problem(3)
    whole = solve(X, phi, LAM, tol=1e-10, kernel=kernel)
    pieces = solve(X, phi, LAM, tol=1e-10, chunk=7, kernel=kernel)
    torch.testing.assert_close(whole.alpha, pieces.alpha, rtol=0, atol=1e-9)


def test_threads_share_the_words_and_change_nothing() -> None:
    X, phi = problem(16, b=101)
    push, gram = (X.T @ phi).numpy(), (phi.T @ phi).numpy()
    alone, gaps, _ = solve_words(push, gram, LAM, 1e-6, 20, threads=1)
    shared, _, _ = solve_words(push, gram, LAM, 1e-6, 20, threads=4)
    np.testing.assert_array_equal(shared, alone)
    assert alone.any(axis=1).all()
    X32 = X.double()
    exact = phi.double().T @ (X32 - phi.double() @ torch.from_numpy(alone).double().T)
    expected = kkt_gap(torch.from_numpy(alone).double().T, exact, LAM).numpy()
    np.testing.assert_allclose(gaps, expected, atol=1e-6)  # what is left, on all factors
    none, _, rounds = solve_words(push[:0], gram, LAM, 1e-6, 20, threads=4)
    assert none.shape == (0, K)
    assert rounds == 0


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("lam", [0.01, 0.003])
def test_codes_of_many_factors_keep_the_tolerance(kernel: Kernel, lam: float) -> None:
    X, phi = problem(19, d=100, k=300, b=40)
    codes = solve(X, phi, lam, kernel=kernel)
    assert float((codes.alpha > 0).sum(dim=0).double().mean()) > 50
    assert float(codes.gap.max()) <= 1e-4 * lam


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("distance", [0.0, 1e-3, 1e-2, 0.05])
def test_factors_that_are_equal_or_nearly_so_do_not_hold_up_the_codes(distance: float, kernel: Kernel) -> None:
    """Sweeps crawl along a valley between such factors: linear systems must take over, and survive singular ones."""
    X, phi = problem(17, d=20, k=40, b=30)
    near = phi + distance * torch.randn(phi.shape, generator=torch.Generator().manual_seed(1), dtype=phi.dtype)
    crowded = torch.cat([phi, near / near.norm(dim=0)], dim=1)
    codes = solve(X, crowded, 0.02, tol=1e-6, kernel=kernel)
    assert float(codes.gap.max()) <= 1e-6 * 0.02
    assert float(duality_gap(X, crowded, codes.alpha, 0.02).max()) < 1e-7


def test_double_precision_is_exact_and_reached_from_any_start() -> None:
    X, phi = problem(19, k=60, b=50)
    codes = solve(X, phi, LAM, tol=1e-9, kernel="words")
    assert codes.alpha.dtype == torch.float64
    assert float(kkt_gap(codes.alpha, phi.T @ (X - phi @ codes.alpha), LAM).max()) <= 2e-9 * LAM
    torch.testing.assert_close(codes.residual, X - phi @ codes.alpha, rtol=0, atol=1e-12)
    torch.testing.assert_close(codes.alpha, lasso(X, phi, LAM), rtol=0, atol=1e-7)
    push, gram = (X.T @ phi).numpy(), (phi.T @ phi).numpy()
    far = np.random.default_rng(0).exponential(size=push.shape)
    again, gaps, _ = solve_words(push, gram, LAM, 1e-9, 200, threads=1, start=far)
    np.testing.assert_allclose(again.T, codes.alpha.numpy(), rtol=0, atol=1e-7)
    assert gaps.max() <= 1e-9 * LAM


@pytest.mark.parametrize("form", ["residual", "gram"])
def test_compiled_steps_are_the_steps(form: str) -> None:
    from torch._dynamo.utils import counters

    inference._compiled_step.cache_clear()
    torch._dynamo.reset()
    counters.clear()
    X, phi = problem(18)
    plain = fista(X, phi, LAM, 40, form=form)  # pyright: ignore[reportArgumentType]
    compiled = fista(X, phi, LAM, 40, form=form, compile=True)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(compiled.alpha, plain.alpha, rtol=0, atol=1e-12)
    assert compiled.steps == 40
    # Traced at the first step, where a and y are one tensor, and perhaps again where they are two: not at every step.
    assert counters["stats"]["unique_graphs"] in (1, 2)


@pytest.mark.parametrize("kernel", KERNELS)
def test_solve_keeps_its_tolerance_in_single_precision(kernel: Kernel) -> None:
    X, phi = problem(4, torch.float32, d=100, k=160, b=200)
    codes = solve(X, phi, LAM, kernel=kernel)
    assert float(codes.gap.max()) <= 1e-4 * LAM
    exact = solve(X.double(), phi.double(), LAM, tol=1e-10)
    torch.testing.assert_close(codes.alpha.double(), exact.alpha, rtol=0, atol=5e-4)


def test_orthonormal_dictionary_has_the_closed_form() -> None:
    generator = torch.Generator().manual_seed(5)
    phi, _ = torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64))
    X = torch.randn(D, B, generator=generator, dtype=torch.float64)
    expected = (phi.T @ X - LAM).clamp(min=0)
    for codes in (fista(X, phi, LAM, 3), solve(X, phi, LAM, tol=1e-12)):
        torch.testing.assert_close(codes.alpha, expected, rtol=0, atol=1e-12)


def test_codes_are_zero_from_the_largest_correlation_on_and_not_below() -> None:
    X, phi = problem(6)
    largest = lam_max(X, phi)
    assert float(fista(X, phi, largest, 50).alpha.abs().max()) == 0
    assert float(solve(X, phi, largest).alpha.abs().max()) == 0
    assert float(solve(X, phi, 0.99 * largest).alpha.max()) > 0


def test_fista_is_never_behind_ista_on_average_from_ten_steps_on() -> None:
    X, phi = problem(7)
    for steps in range(10, 101):
        ahead = objective(X, phi, fista(X, phi, LAM, steps).alpha).mean()
        behind = objective(X, phi, ista(X, phi, LAM, steps).alpha).mean()
        assert ahead <= behind + 1e-12, steps


def test_ista_descends_at_every_step() -> None:
    X, phi = problem(8)
    energies = torch.stack([objective(X, phi, ista(X, phi, LAM, steps).alpha) for steps in range(1, 30)])
    assert bool((energies.diff(dim=0) <= 1e-12).all())


def test_scaling_vectors_and_lam_scales_the_codes() -> None:
    X, phi = problem(9)
    one, tripled = solve(X, phi, LAM, tol=1e-11).alpha, solve(3 * X, phi, 3 * LAM, tol=1e-11).alpha
    torch.testing.assert_close(tripled, 3 * one, rtol=0, atol=1e-8)


def test_permuting_factors_permutes_the_codes() -> None:
    X, phi = problem(10)
    order = torch.randperm(K, generator=torch.Generator().manual_seed(0))
    for encode in (lambda p: fista(X, p, LAM, 5000, tol=1e-11).alpha, lambda p: solve(X, p, LAM, tol=1e-11).alpha):
        torch.testing.assert_close(encode(phi[:, order]), encode(phi)[order], rtol=0, atol=1e-8)


def test_one_factor_more_never_raises_the_minimum() -> None:
    X, phi = problem(11)
    fewer = objective(X, phi[:, :-1], solve(X, phi[:, :-1], LAM, tol=1e-11).alpha)
    more = objective(X, phi, solve(X, phi, LAM, tol=1e-11).alpha)
    assert bool((more <= fewer + 1e-10).all())
    assert bool((more < fewer - 1e-6).any())


def test_gap_is_zero_at_the_minimum_and_the_duality_gap_bounds_the_energy() -> None:
    X, phi = problem(12)
    best = solve(X, phi, LAM, tol=1e-11).alpha
    minimum = objective(X, phi, best)
    assert float(duality_gap(X, phi, best, LAM).abs().max()) < 1e-9
    for steps in (1, 5, 20):
        alpha = fista(X, phi, LAM, steps).alpha
        gap = duality_gap(X, phi, alpha, LAM)
        assert bool((gap >= objective(X, phi, alpha) - minimum - 1e-9).all())
        assert float(kkt_gap(alpha, phi.T @ (X - phi @ alpha), LAM).max()) > 1e-3


def test_warm_start_at_the_minimum_stays_there() -> None:
    X, phi = problem(13)
    best = solve(X, phi, LAM, tol=1e-11).alpha
    torch.testing.assert_close(fista(X, phi, LAM, 5, start=best).alpha, best, rtol=0, atol=1e-8)


def test_step_size_comes_from_the_exact_largest_eigenvalue() -> None:
    for d, k in ((12, 30), (30, 12)):
        _, phi = problem(14, d=d, k=k)
        assert lipschitz(phi) == pytest.approx(float(torch.linalg.matrix_norm(phi, 2) ** 2), rel=1e-10)


@pytest.mark.gpu
def test_codes_on_a_gpu_are_those_of_the_cpu() -> None:
    torch.set_float32_matmul_precision("highest")
    X, phi = problem(15, torch.float32, d=50, k=120)
    codes = solve(X.cuda(), phi.cuda(), LAM)
    assert float(codes.gap.max()) <= 1e-4 * LAM
    torch.testing.assert_close(codes.alpha.cpu(), solve(X, phi, LAM).alpha, rtol=0, atol=1e-3)


@pytest.mark.parametrize("lam", [-1.0, float("nan")])
def test_bad_lam_is_refused(lam: float) -> None:
    X, phi = problem()
    with pytest.raises(UserError, match="--lam"):
        fista(X, phi, lam, 5)
    with pytest.raises(UserError, match="--lam"):
        solve(X, phi, 0.0)


def test_vectors_of_another_dimension_are_refused() -> None:
    X, phi = problem()
    with pytest.raises(UserError, match="d = 12"):
        fista(X[:-1], phi, LAM, 5)


@pytest.mark.parametrize("n", [1, 20, 300])
def test_the_bound_for_gpus_is_an_upper_one_and_close(n: int) -> None:
    for seed, columns in ((0, n), (1, max(1, n // 2)), (2, 3 * n)):  # of full rank, singular, wide
        phi = torch.randn(n, columns, generator=torch.Generator().manual_seed(seed))
        gram = phi @ phi.T
        largest = float(torch.linalg.eigvalsh(gram.double())[-1])
        assert largest * (1 - 1e-9) <= float(spectral_bound(gram)) <= largest * n ** (1 / 512) * (1 + 1e-9)


@pytest.mark.parametrize("form", ["residual", "gram"])
def test_recorded_steps_are_the_steps(form: Any) -> None:
    recorded = inference.RecordedSteps(PretendedGraphs())
    for seed in range(WARM + 3):  # other words, another dictionary, another weight, another start
        X, phi = problem(seed)
        lam = LAM * (1 + 0.1 * seed)
        start = None if seed % 2 else torch.rand(phi.shape[1], X.shape[1], dtype=X.dtype)
        plain = fista(X, phi, lam, 40, form=form, start=start)
        codes = fista(X, phi, lam, 40, form=form, start=start, recorded=recorded)
        torch.testing.assert_close(codes.alpha, plain.alpha, rtol=0, atol=1e-12)
        torch.testing.assert_close(codes.gap, plain.gap, rtol=0, atol=1e-11)
        assert codes.steps == 40
    (captured,) = recorded.captured.values()
    assert captured.recorded == 1
    for other in ({"restart": True}, {"momentum": False}, {"tol": 1e-3}):  # these are not recorded
        plain, codes = (fista(X, phi, LAM, 40, form=form, recorded=r, **other) for r in (None, recorded))
        assert torch.equal(codes.alpha, plain.alpha)
    assert len(recorded.captured) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("form", ["residual", "gram"])
def test_recorded_steps_are_the_steps_on_a_gpu(form: Any) -> None:
    recorded = inference.RecordedSteps(CudaGraphs(torch.device("cuda")))
    for seed in range(WARM + 3):
        X, phi = (part.cuda() for part in problem(seed))
        plain = fista(X, phi, LAM, 100, form=form)
        codes = fista(X, phi, LAM, 100, form=form, recorded=recorded)
        torch.testing.assert_close(codes.alpha, plain.alpha, rtol=0, atol=1e-9)
    assert [captured.recorded for captured in recorded.captured.values()] == [1]
