"""Deep linear regression: the problem's identities, what gradient flow keeps, and that draws do not meet."""

from __future__ import annotations

import math

import pytest
import torch

from low_rank.rank import effective_rank, threshold_rank
from low_rank.regression import (
    FITTED,
    balance,
    draw_factors,
    draw_problem,
    map_error,
    minimum_norm,
    product,
    regress,
    training_error,
)
from shared.config import RunFailed, UserError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_problems_have_the_rank_and_size_they_are_asked_for() -> None:
    problem = draw_problem(12, 3, 7, 5, generator(), new=4000)
    assert problem.A.shape == (5, 12, 12)
    assert problem.X.shape == problem.Y.shape == (5, 12, 7)
    torch.testing.assert_close(
        torch.linalg.matrix_norm(problem.A), torch.full((5,), math.sqrt(12), dtype=torch.float64)
    )
    assert threshold_rank(problem.A, 1e-9).tolist() == [3] * 5
    torch.testing.assert_close(problem.Y, problem.A @ problem.X)
    noisy = draw_problem(12, 3, 7, 200, generator(), noise=0.5)
    assert float((noisy.Y - noisy.A @ noisy.X).std()) == pytest.approx(0.5, rel=0.02)


def test_factors_have_the_variance_they_are_asked_for() -> None:
    ws = draw_factors(32, 3, 50, generator(), gain=0.5)
    assert len(ws) == 3
    for w in ws:
        assert float(w.mean()) == pytest.approx(0, abs=2e-3)
        assert float(w.std()) == pytest.approx(0.5 / math.sqrt(32), rel=0.01)


def test_errors_are_those_of_the_product_and_of_new_samples() -> None:
    problem = draw_problem(10, 2, 6, 4, generator(), new=200_000)
    ws = draw_factors(10, 4, 4, generator(1))
    P = ws[3] @ ws[2] @ ws[1] @ ws[0]
    torch.testing.assert_close(product(ws), P)
    by_product = (P @ problem.X - problem.Y).square().sum((1, 2)) / problem.Y.square().sum((1, 2))
    torch.testing.assert_close(training_error(ws, problem.X, problem.Y), by_product)
    expected = map_error(P, problem.A)
    torch.testing.assert_close(training_error(ws, problem.X_new, problem.Y_new), expected, rtol=0.02, atol=0)


def test_minimum_norm_fits_and_is_the_shortest_that_does() -> None:
    problem = draw_problem(10, 2, 6, 3, generator())
    fit = minimum_norm(problem)
    assert float(fit.train.max()) < 1e-20
    free = torch.eye(10, dtype=torch.float64) - problem.X @ torch.linalg.pinv(problem.X)  # what samples do not see
    other = fit.P + 0.1 * torch.randn(3, 10, 10, generator=generator(2), dtype=torch.float64) @ free
    assert float(training_error([other], problem.X, problem.Y).max()) < 1e-20
    assert bool((torch.linalg.matrix_norm(other) > torch.linalg.matrix_norm(fit.P)).all())
    # Of a random subspace of 6 in 10 dimensions a map keeps 6 tenths of its square: the rest is the error.
    many = minimum_norm(draw_problem(10, 2, 6, 400, generator(3)))
    assert float(many.test.mean()) == pytest.approx(0.4, abs=0.02)


def test_one_factor_keeps_of_its_start_what_the_samples_do_not_see() -> None:
    problem = draw_problem(8, 2, 5, 3, generator())
    start = draw_factors(8, 1, 3, generator(7))[0]
    fit = regress(problem, 1, generator(7), steps=4000, lr=0.02, dtype=torch.float64,
                  optimizer=lambda ws: torch.optim.SGD(ws, lr=0.5))  # fmt: skip
    unseen = torch.eye(8, dtype=torch.float64) - problem.X @ torch.linalg.pinv(problem.X)
    assert float(fit.train.max()) < 1e-6
    torch.testing.assert_close(fit.P @ unseen, start @ unseen, rtol=0, atol=1e-9)
    torch.testing.assert_close(fit.P, minimum_norm(problem).P + start @ unseen, rtol=0, atol=1e-2)


def test_gradient_flow_keeps_neighbours_balanced() -> None:
    problem = draw_problem(6, 2, 4, 2, generator())
    moved = []
    for step in (1e-2, 1e-3):  # the same time in steps a tenth as long: the drift is of first order in the step
        ws = [w.requires_grad_() for w in draw_factors(6, 3, 2, generator(1))]
        before, at_first = (
            balance([w.detach() for w in ws]),
            float(training_error(ws, problem.X, problem.Y).detach().sum()),
        )
        for _ in range(round(2 / step)):
            gradients = torch.autograd.grad(training_error(ws, problem.X, problem.Y).sum(), ws)
            with torch.no_grad():
                for w, g in zip(ws, gradients, strict=True):
                    w -= step * g
        assert float(training_error(ws, problem.X, problem.Y).detach().sum()) < 0.7 * at_first
        after = balance([w.detach() for w in ws])
        moved.append(max(float((a - b).abs().max()) for a, b in zip(after, before, strict=True)))
    assert moved[1] < 2e-3
    assert moved[1] < 0.2 * moved[0]
    with pytest.raises(UserError, match="two or more"):
        balance(draw_factors(3, 1, 1, generator()))


@pytest.mark.parametrize("depth", [1, 3])
def test_draws_do_not_meet(depth: int) -> None:
    problem = draw_problem(6, 2, 4, 3, generator(), new=10)
    together = regress(problem, depth, generator(1), steps=60, dtype=torch.float64, looks=4)
    ws = draw_factors(6, depth, 3, generator(1))
    for b in range(3):  # one draw, by a loop written out
        own = [w[b].clone().requires_grad_() for w in ws]
        rule = torch.optim.Adam(own, lr=3e-3)
        for step in range(60):
            for group in rule.param_groups:
                group["lr"] = 3e-3 * (1 + math.cos(math.pi * step / 60)) / 2
            P = product(own)
            loss = (P @ problem.X[b] - problem.Y[b]).square().sum() / problem.Y[b].square().sum()
            rule.zero_grad()
            loss.backward()
            rule.step()
        with torch.no_grad():
            torch.testing.assert_close(together.P[b], product(own), rtol=0, atol=1e-10)
            assert float(together.rho[b]) == pytest.approx(float(effective_rank(product(own))), abs=1e-9)
    assert together.steps.tolist() == [0, 20, 40, 60]
    torch.testing.assert_close(together.singular_values[0], torch.linalg.svdvals(product(ws)))
    torch.testing.assert_close(together.singular_values[-1], torch.linalg.svdvals(together.P))
    torch.testing.assert_close(together.rho_start, effective_rank(product(ws)))


def test_the_step_at_which_a_draw_has_fitted_is_the_first_below() -> None:
    problem = draw_problem(6, 1, 3, 4, generator(), new=10)
    fit = regress(problem, 1, generator(1), steps=400, lr=0.1, dtype=torch.float64)
    assert bool(fit.fitted_at.isfinite().all())
    for step in sorted({int(s) for s in fit.fitted_at.tolist()}):

        def stopped(at: int) -> torch.Tensor:
            ws = [w.requires_grad_() for w in draw_factors(6, 1, 4, generator(1))]
            rule = torch.optim.Adam(ws, lr=0.1)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(rule, 400)
            for _ in range(at):
                rule.zero_grad()
                training_error(ws, problem.X, problem.Y).sum().backward()
                rule.step()
                schedule.step()
            return training_error(ws, problem.X, problem.Y).detach()

        now, before = stopped(step), stopped(step - 1)
        for b in (fit.fitted_at == step).nonzero()[:, 0].tolist():
            assert now[b] < FITTED <= before[b]
    never = regress(problem, 1, generator(1), steps=3, lr=1e-4)
    assert bool(never.fitted_at.isnan().all())


def test_depth_lowers_the_rank_of_what_is_found() -> None:
    problem = draw_problem(16, 2, 10, 12, generator(), new=10)
    ranks = [regress(problem, d, generator(1), steps=800, lr=5e-3).rho.mean() for d in (1, 4, 8)]
    assert ranks[0] > ranks[1] + 0.2
    assert ranks[1] > ranks[2] + 0.2


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match="--rank"):
        draw_problem(4, 5, 2, 1, generator())
    with pytest.raises(UserError, match="--depth"):
        draw_factors(4, 0, 1, generator())
    with pytest.warns(UserWarning, match="determine"):
        draw_problem(4, 1, 4, 1, generator())
    with pytest.raises(RunFailed, match="depth 6 is not finite at step"):
        regress(draw_problem(4, 1, 2, 1, generator(), new=2), 6, generator(), steps=300, lr=1e6, gain=30)


def test_a_product_that_vanishes_is_refused_and_trains_in_double_precision() -> None:
    problem = draw_problem(8, 2, 5, 2, generator(), new=2)
    with pytest.raises(UserError, match=r"--depths: got '300'.*float32 \(2 of 2 did\)\n.*--gain.*0\.5.*--double"):
        regress(problem, 300, generator(), steps=2, gain=0.5)
    fit = regress(problem, 300, generator(), steps=2, gain=0.5, dtype=torch.float64)
    assert bool((fit.rho_start > 0).all() & fit.P.any())
    with pytest.raises(UserError, match=r"in float64 \(2 of 2 did\)\nRaise --gain, which is 1e-05\.$"):
        regress(problem, 300, generator(), steps=2, gain=1e-5, dtype=torch.float64)


def test_infinite_numbers_are_refused() -> None:
    with pytest.raises(UserError, match="--noise"):
        draw_problem(4, 1, 2, 1, generator(), noise=math.inf)
    problem = draw_problem(4, 1, 2, 1, generator(), new=2)
    with pytest.raises(UserError, match="--gain"):
        regress(problem, 1, generator(), gain=math.inf)
    with pytest.raises(UserError, match="--lr"):
        regress(problem, 1, generator(), lr=math.inf)


def test_the_fit_of_least_norm_starts_nowhere() -> None:
    assert bool(minimum_norm(draw_problem(4, 1, 2, 2, generator(), new=2)).rho_start.isnan().all())


@pytest.mark.gpu
def test_a_gpu_finds_the_same() -> None:
    problem = draw_problem(8, 2, 5, 3, generator(), new=10)
    here = regress(problem, 3, generator(1), steps=50, dtype=torch.float64)
    there = regress(problem, 3, generator(1), steps=50, dtype=torch.float64, device="cuda")
    torch.testing.assert_close(there.P, here.P, rtol=1e-6, atol=1e-6)
