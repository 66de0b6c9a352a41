"""Optimisers brought to one training error: each stops where it says, and steps as its rule does."""

from __future__ import annotations

import math

import pytest
import torch

from low_rank.config import OPTIMISERS
from low_rank.optimizers import RATES, fit_to_target
from low_rank.rank import effective_rank
from low_rank.regression import Problem, draw_factors, draw_problem, map_error, product, training_error
from shared.config import UserError


def problem(draws: int = 4) -> Problem:
    return draw_problem(8, 2, 5, draws, torch.Generator().manual_seed(0), new=4)


@pytest.mark.parametrize("optimizer", list(OPTIMISERS))
def test_all_draws_reach_the_target_and_depth_lowers_their_rank(optimizer: str) -> None:
    made = problem(8)
    rates = RATES[optimizer][:2] if optimizer in RATES else None
    shallow, deep = (fit_to_target(made, d, optimizer, target=1e-3, steps=3000, rates=rates) for d in (1, 6))
    for found in (shallow, deep):
        assert found.reached == 1
        assert bool((found.steps >= 1).all())
        if optimizer == "lbfgs":
            assert bool(found.rate.isnan().all())
        else:
            assert set(found.rate.tolist()) <= set(RATES[optimizer])
    assert float(shallow.rho.mean()) > float(deep.rho.mean()) + 0.3


def test_a_draw_is_looked_at_where_it_arrives() -> None:
    made = problem()
    found = fit_to_target(made, 2, "gd", target=0.05, rates=[0.1])
    for b in range(4):
        ws = [w[b : b + 1].requires_grad_() for w in draw_factors(8, 2, 4, torch.Generator().manual_seed(0))]
        steps = 0
        while float((error := training_error(ws, made.X[b : b + 1], made.Y[b : b + 1])).detach()) > 0.05:
            steps += 1
            gradients = torch.autograd.grad(error.sum(), ws)
            with torch.no_grad():
                for w, g in zip(ws, gradients, strict=True):
                    w -= 0.1 * g
        assert found.steps[b] == steps
        with torch.no_grad():
            assert float(found.rho[b]) == pytest.approx(float(effective_rank(product(ws))), abs=1e-9)
            assert float(found.test[b]) == pytest.approx(float(map_error(product(ws), made.A[b : b + 1])), abs=1e-9)


def test_lbfgs_is_another_road_to_the_minimum() -> None:
    made = problem()
    one = fit_to_target(made, 1, "lbfgs", target=1e-8)
    other = fit_to_target(made, 1, "gd", target=1e-8, steps=20_000, rates=[0.5])
    # One factor under gradients keeps what the samples do not see, however it gets there.
    torch.testing.assert_close(one.rho, other.rho, rtol=0, atol=1e-3)
    torch.testing.assert_close(one.test, other.test, rtol=0, atol=1e-3)
    assert bool((one.steps < other.steps / 5).all())


def test_a_target_out_of_reach_is_said_to_be() -> None:
    found = fit_to_target(problem(), 3, "adam", target=1e-9, steps=20)
    assert found.reached == 0
    assert bool(found.rho.isnan().all())
    lost = fit_to_target(problem(), 3, "gd", rates=[1e4], steps=500)
    assert lost.reached == 0


def test_every_draw_has_the_rate_that_brings_it_soonest() -> None:
    made = problem()
    rates = (1e-5, 1e-3, 3e-3, 1e-2)
    alone = [fit_to_target(made, 2, "adam", rates=[rate], target=0.01, steps=400) for rate in rates]
    assert alone[0].reached == 0
    chosen = fit_to_target(made, 2, "adam", rates=rates, target=0.01, steps=400)
    for b in range(4):
        steps = [float(found.steps[b].nan_to_num(math.inf)) for found in alone]
        assert float(chosen.steps[b]) == min(steps) < math.inf
        best = alone[steps.index(min(steps))]
        assert (chosen.rate[b], chosen.rho[b], chosen.test[b]) == (best.rate[b], best.rho[b], best.test[b])


def test_what_is_unknown_is_refused() -> None:
    with pytest.raises(UserError, match="adam"):
        fit_to_target(problem(), 1, "adan")
    with pytest.raises(UserError, match="--batch"):
        fit_to_target(problem(), 1, "sgd", batch=6)
