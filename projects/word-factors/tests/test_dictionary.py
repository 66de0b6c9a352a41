"""Dictionary steps against hand-written loops, and on data whose dictionary is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from word_factors.dictionary import (
    BLOCK,
    Averages,
    DeadFactors,
    OnlineUpdate,
    annealed,
    coherence,
    move_tensors,
    quadratic_update,
    random_dictionary,
    unit_columns,
)
from word_factors.inference import Codes, fista


def batch(seed: int = 0, d: int = 6, k: int = 9, b: int = 20) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """phi, X, codes, h, weight in float64."""
    generator = torch.Generator().manual_seed(seed)
    phi = random_dictionary(d, k, generator, torch.float64)
    X = torch.randn(d, b, generator=generator, dtype=torch.float64)
    alpha = fista(X, phi, 0.1, 100).alpha
    h = torch.rand(k, generator=generator, dtype=torch.float64)
    weight = torch.rand(b, generator=generator, dtype=torch.float64) + 0.5
    return phi, X, alpha, h, weight


def test_quadratic_update_is_the_hand_written_loop() -> None:
    phi, X, alpha, h, weight = batch()
    R = X - phi @ alpha
    step, floor = 0.05, 0.001
    expected = phi.clone()
    for i in range(phi.shape[0]):
        for j in range(phi.shape[1]):
            total = sum(float(weight[b] * R[i, b] * alpha[j, b]) for b in range(X.shape[1]))
            expected[i, j] += step * total / X.shape[1] / (float(h[j]) + floor)
    expected = torch.stack([column / column.square().sum().sqrt() for column in expected.T], dim=1)
    new, norm = quadratic_update(phi, R, alpha, h, step, floor, weight)
    torch.testing.assert_close(new, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(new.norm(dim=0), torch.ones(9, dtype=torch.float64), rtol=0, atol=1e-6)
    assert float(norm) > 0


def test_quadratic_step_is_the_gradient_of_the_energy() -> None:
    """Before scaling, the change is minus the derivative of the mean weighted energy in Phi, divided by h + floor."""
    phi, X, alpha, h, weight = batch(1)
    variable = phi.clone().requires_grad_()
    (((X - variable @ alpha).square().sum(dim=0) / 2) * weight).mean().backward()
    assert variable.grad is not None
    new, norm = quadratic_update(phi, X - phi @ alpha, alpha, h, 1.0, 0.01, weight)
    change = -variable.grad / (h + 0.01)
    torch.testing.assert_close(norm, change.norm())
    torch.testing.assert_close(new, unit_columns(phi + change))


def test_constant_weights_leave_the_direction_unchanged() -> None:
    phi, X, alpha, h, _ = batch(2)
    R = X - phi @ alpha
    one, _ = quadratic_update(phi, R, alpha, h, 0.1, 0.001, torch.ones(20, dtype=torch.float64))
    two, _ = quadratic_update(phi, R, alpha, h, 0.05, 0.001, torch.full((20,), 2.0, dtype=torch.float64))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def test_averages_start_at_zero_and_forget_over_their_length() -> None:
    averages, corrected = Averages(3, 10, False), Averages(3, 10, True)
    alpha = torch.tensor([[1.0, 3.0], [0.0, 2.0], [0.0, 0.0]])
    X = torch.ones(4, 2)
    codes = Codes(alpha, 0.1 * X, torch.zeros(2), 1)
    expected = torch.zeros(3)
    for _ in range(7):
        averages.update(X, codes)
        corrected.update(X, codes)
        expected = (1 - 1 / 10) * expected + torch.tensor([5.0, 2.0, 0.0]) / 10
    torch.testing.assert_close(averages.mean_square(), expected)
    torch.testing.assert_close(corrected.mean_square(), torch.tensor([5.0, 2.0, 0.0]))
    assert float(averages.snr()) == pytest.approx(20.0, rel=1e-5)
    other = Averages(3, 10, False)
    other.load_state_dict(averages.state_dict())
    torch.testing.assert_close(other.mean_square(), averages.mean_square())


def test_online_update_is_the_hand_written_loop() -> None:
    phi, X, alpha, _, weight = batch(3)
    update = OnlineUpdate(6, 9, 0.9)
    update.A, update.B = update.A.double(), update.B.double()
    A, C, expected = torch.zeros(9, 9, dtype=torch.float64), torch.zeros(6, 9, dtype=torch.float64), phi.clone()
    for _ in range(3):
        A = 0.9 * A + sum(weight[b] * torch.outer(alpha[:, b], alpha[:, b]) for b in range(20)) / 20
        C = 0.9 * C + sum(weight[b] * torch.outer(X[:, b], alpha[:, b]) for b in range(20)) / 20
        for j in range(9):
            u = (C[:, j] - expected @ A[:, j]) / A[j, j] + expected[:, j]
            expected[:, j] = u / u.norm()
        phi, _ = update.update(phi, X, alpha, weight)
    torch.testing.assert_close(phi, expected, rtol=0, atol=1e-10)


def test_columns_move_in_blocks_as_they_do_one_by_one() -> None:
    """More columns than a block holds, some unused; compiled, in tensors, and by hand."""
    generator = torch.Generator().manual_seed(6)
    d, K, B = 7, 2 * BLOCK + 5, 90
    phi = random_dictionary(d, K, generator).double()
    X = torch.randn(d, B, generator=generator, dtype=torch.float64)
    alpha = torch.rand(K, B, generator=generator, dtype=torch.float64)
    alpha[[3, BLOCK, K - 1]] = 0
    update = OnlineUpdate(d, K, 0.9)
    update.A, update.B = update.A.double(), update.B.double()
    compiled, _ = update.update(phi, X, alpha, torch.ones(B, dtype=torch.float64))
    A, C = alpha @ alpha.T / B, X @ alpha.T / B
    by_hand = phi.clone()
    for j in range(K):
        if A[j, j] > 0:
            u = (C[:, j] - by_hand @ A[:, j]) / A[j, j] + by_hand[:, j]
            by_hand[:, j] = u / u.norm()
    torch.testing.assert_close(compiled, by_hand, rtol=0, atol=1e-10)
    rows = phi.T.contiguous()
    move_tensors(rows, C.T - A @ rows, A, A.diagonal().tolist(), 0.0, 1e-300)
    torch.testing.assert_close(rows.T, by_hand, rtol=0, atol=1e-10)


def test_online_update_never_raises_its_surrogate_and_leaves_unused_factors() -> None:
    phi, X, alpha, _, weight = batch(4)
    alpha[3] = 0
    update = OnlineUpdate(6, 9, 1.0)
    update.A, update.B = update.A.double(), update.B.double()

    def surrogate(p: Tensor) -> float:
        return float(((X - p @ alpha).square().sum(dim=0) * weight).mean())

    new, _ = update.update(phi, X, alpha, weight)
    assert surrogate(new) < surrogate(phi)
    torch.testing.assert_close(new[:, 3], phi[:, 3])


def planted(samples: int = 20_000) -> tuple[Tensor, Tensor]:
    """d = 32, K = 48, four active factors with Exp(1) activations, noise 0.01: (X [d, samples], phi)."""
    generator = torch.Generator().manual_seed(11)
    phi = random_dictionary(32, 48, generator)
    alpha = torch.zeros(48, samples)
    chosen = torch.rand(48, samples, generator=generator).topk(4, dim=0).indices
    alpha.scatter_(0, chosen, torch.empty(4, samples).exponential_(1.0, generator=generator))
    return phi @ alpha + 0.01 * torch.randn(32, samples, generator=generator), phi


def recovered(phi: Tensor, truth: Tensor) -> float:
    """Share of true factors with cosine above 0.95 to a learned one."""
    return float(((truth.T @ phi).amax(dim=1) > 0.95).float().mean())


@pytest.mark.slow
def test_quadratic_update_recovers_a_planted_dictionary_from_noise() -> None:
    X, truth = planted()
    generator = torch.Generator().manual_seed(1)
    phi = random_dictionary(32, 48, generator)
    averages = Averages(48, 300, False)
    for _ in range(3000):
        x = X[:, torch.randint(0, X.shape[1], (100,), generator=generator)]
        codes = fista(x, phi, 0.1, 40)
        averages.update(x, codes)
        phi, _ = quadratic_update(
            phi, codes.residual, codes.alpha, averages.mean_square(), 0.05, 0.001, torch.ones(100)
        )
    assert recovered(phi, truth) >= 0.9


@pytest.mark.slow
def test_online_update_recovers_a_planted_dictionary_from_data() -> None:
    X, truth = planted()
    generator = torch.Generator().manual_seed(2)
    phi = unit_columns(X[:, torch.randperm(X.shape[1], generator=generator)[:48]])
    update = OnlineUpdate(32, 48, 0.98)
    for _ in range(10):
        for rows in torch.randperm(X.shape[1], generator=generator).split(200):
            x = X[:, rows]
            phi, _ = update.update(phi, x, fista(x, phi, 0.1, 40).alpha, torch.ones(200))
    assert recovered(phi, truth) >= 0.9


def test_dead_factors_are_counted_by_words_and_reseeded_with_the_largest_residual() -> None:
    dead = DeadFactors(3, patience=50)
    h = torch.tensor([1.0, 0.0, 1.0])
    assert not dead.update(h, 30).any()
    assert dead.update(h, 30).tolist() == [False, True, False]
    phi = unit_columns(torch.eye(4)[:, :3])
    R = torch.tensor([[0.1, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, -3.0]])
    new = dead.reseed(phi, torch.tensor([False, True, False]), R)
    torch.testing.assert_close(new[:, 1], torch.tensor([0.0, 0.0, 0.0, -1.0]))
    torch.testing.assert_close(new[:, [0, 2]], phi[:, [0, 2]])
    assert dead.reseeded == 1
    assert not dead.update(h, 30).any()  # the count begins anew


def test_a_factor_in_use_is_never_idle() -> None:
    dead = DeadFactors(1, patience=50)
    dead.update(torch.zeros(1), 40)
    dead.update(torch.ones(1), 40)
    assert not dead.update(torch.zeros(1), 40).any()


def test_coherence_is_the_largest_cosine_off_the_diagonal() -> None:
    phi = unit_columns(torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]))
    assert float(coherence(phi)) == pytest.approx(2**-0.5)


def test_step_sizes_run_from_the_first_to_the_last() -> None:
    for decay in ("exponential", "inverse"):
        sizes = [annealed(0.05, 0.005, progress, decay) for progress in (0, 0.25, 0.5, 1)]  # pyright: ignore
        assert sizes[0] == 0.05
        assert sizes[-1] == pytest.approx(0.005)
        assert sizes == sorted(sizes, reverse=True)
    assert annealed(0.05, None, 0.7, "inverse") == 0.05
