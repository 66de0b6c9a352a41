"""Anderson acceleration and the implicit gradient of a fixed point (identity 8)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from rpg.deq import anderson, fixed_point

B, N = 3, 12
TIGHT = {"forward_iterations": 200, "backward_iterations": 200, "tolerance": 1e-13}


def contraction(size: int, norm: float, seed: int = 0) -> Tensor:
    """A random matrix [size, size] with the given spectral norm."""
    matrix = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return matrix * (norm / torch.linalg.matrix_norm(matrix, 2))


def test_iterates_equal_a_numpy_reference():
    a, b = contraction(N, 0.9).numpy(), np.random.default_rng(0).normal(size=N)

    def f(z: np.ndarray) -> np.ndarray:
        return np.tanh(a @ z + b)

    memory, beta = 4, 0.8
    zs, gs = [np.zeros(N)], []
    for k in range(8):
        gs.append(f(zs[k]) - zs[k])
        step = beta * gs[k]
        if k > 0:
            old = max(0, k - memory)
            dg = np.stack([gs[j + 1] - gs[j] for j in range(old, k)], axis=1)
            dz = np.stack([zs[j + 1] - zs[j] for j in range(old, k)], axis=1)
            step = step - (dz + beta * dg) @ np.linalg.lstsq(dg, gs[k], rcond=None)[0]
        zs.append(zs[k] + step)

    seen: list[Tensor] = []

    def watched(z: Tensor) -> Tensor:
        seen.append(z.clone())
        return torch.tanh(z @ torch.from_numpy(a).T + torch.from_numpy(b))

    anderson(watched, torch.zeros(2, N, dtype=torch.float64), memory=memory, beta=beta, iterations=8, tolerance=0)
    assert len(seen) == 8
    for ours, reference in zip(seen, zs, strict=False):
        np.testing.assert_allclose(ours[0].numpy(), reference, rtol=1e-7, atol=1e-9)
        np.testing.assert_array_equal(ours[0].numpy(), ours[1].numpy())


def test_linear_map_of_dimension_m_is_solved_in_m_plus_2_evaluations():
    a, b = contraction(5, 0.99), torch.ones(1, 5, dtype=torch.float64)
    z, solve = anderson(lambda z: z @ a.T + b, torch.zeros_like(b), memory=5, iterations=50, tolerance=1e-8)
    assert solve.converged
    assert solve.iterations <= 7
    torch.testing.assert_close(z, torch.linalg.solve(torch.eye(5, dtype=z.dtype) - a, b[0])[None])


def test_memory_zero_is_the_plain_iteration_and_slower():
    a, b = contraction(N, 0.95), torch.ones(B, N, dtype=torch.float64)
    solves = [
        anderson(lambda z: z @ a.T + b, torch.zeros_like(b), memory=m, iterations=500, tolerance=1e-6)[1]
        for m in (0, 5)
    ]
    assert all(solve.converged for solve in solves)
    assert solves[1].iterations < solves[0].iterations
    z, expected = torch.zeros_like(b), torch.zeros_like(b)
    z, _ = anderson(lambda z: z @ a.T + b, z, memory=0, iterations=3, tolerance=0)
    for _ in range(3):
        expected = expected @ a.T + b
    torch.testing.assert_close(z, expected)


def test_samples_do_not_influence_each_other():
    a, b = contraction(N, 0.9), torch.randn(B, N, dtype=torch.float64)
    together, _ = anderson(lambda z: torch.tanh(z @ a.T + b), torch.zeros_like(b), iterations=6, tolerance=0)
    alone, _ = anderson(lambda z: torch.tanh(z @ a.T + b[:1]), torch.zeros_like(b[:1]), iterations=6, tolerance=0)
    torch.testing.assert_close(together[:1], alone)


def test_divergence_is_reported_and_the_best_state_returned():
    z, solve = anderson(lambda z: z**3 + 2, torch.full((1, 2), 3.0), memory=0, iterations=50)
    assert not solve.converged
    assert solve.iterations < 50
    assert z.isfinite().all()


def test_state_that_starts_at_the_fixed_point():
    z, solve = anderson(lambda z: z, torch.ones(2, 3))
    assert (solve.iterations, solve.converged) == (1, True)
    torch.testing.assert_close(z, torch.ones(2, 3))


def test_float32_converges_to_the_default_tolerance():
    a, b = contraction(N, 0.8).float(), torch.randn(B, N)
    _, solve = anderson(lambda z: torch.tanh(z @ a.T + b), torch.zeros(B, N))
    assert solve.converged
    assert solve.iterations <= 18


def test_implicit_gradient_equals_unrolled_to_convergence():
    a, u = contraction(N, 0.8).requires_grad_(), contraction(N, 1.0, seed=1).requires_grad_()
    x = torch.randn(B, N, dtype=torch.float64).requires_grad_()
    loss_weights = torch.randn(B, N, dtype=torch.float64)

    def f(z: Tensor) -> Tensor:
        return torch.tanh(z @ a.T + x @ u.T)

    z = torch.zeros(B, N, dtype=torch.float64)
    solved, report = fixed_point(f, z, **TIGHT)
    implicit = torch.autograd.grad((loss_weights * solved**2).sum(), (a, u, x))
    assert report.forward.converged
    assert report.backward is not None
    assert report.backward.converged
    for _ in range(300):
        z = f(z)
    torch.testing.assert_close(solved, z, rtol=1e-10, atol=1e-10)
    unrolled = torch.autograd.grad((loss_weights * z**2).sum(), (a, u, x))
    for ours, reference in zip(implicit, unrolled, strict=True):
        assert (ours - reference).norm() / reference.norm() < 1e-5


def test_linear_fixed_point_has_the_closed_form_gradient():
    a, b = contraction(N, 0.7).requires_grad_(), torch.randn(B, N, dtype=torch.float64).requires_grad_()
    c = torch.randn(B, N, dtype=torch.float64)
    z, _ = fixed_point(lambda z: z @ a.T + b, torch.zeros(B, N, dtype=torch.float64), **TIGHT)
    (c * z).sum().backward()
    inverse = torch.linalg.inv(torch.eye(N, dtype=torch.float64) - a.detach())
    z_star, u = b.detach() @ inverse.T, c @ inverse  # z* = (I - A)^-1 b,  u = (I - A)^-T c
    torch.testing.assert_close(z.detach(), z_star)
    torch.testing.assert_close(b.grad, u)
    torch.testing.assert_close(a.grad, u.T @ z_star)


def test_backward_can_be_taken_twice():
    a = contraction(N, 0.7).requires_grad_()
    z, _ = fixed_point(lambda z: torch.tanh(z @ a.T + 1), torch.zeros(B, N, dtype=torch.float64), **TIGHT)
    first = torch.autograd.grad(z.sum(), a, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(z.sum(), a)[0], first)


def test_no_gradient_no_backward_report():
    with torch.no_grad():
        z, report = fixed_point(lambda z: 0.5 * z + 1, torch.zeros(1, 2))
    assert not z.requires_grad
    assert report.backward is None


def test_at_least_one_evaluation():
    with pytest.raises(ValueError, match="iterations"):
        anderson(lambda z: z, torch.zeros(1, 2), iterations=0)
