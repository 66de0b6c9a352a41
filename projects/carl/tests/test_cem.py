"""The optimisers on problems with known answers."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch

from carl.cem import CEM, shifted, truncated_normal
from carl.mppi import MPPI
from carl.noise import Streams
from shared.config import UserError

LOW, HIGH = torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 2.0])
OPTIMISER = CEM(LOW, HIGH, candidates=300, elites=30, iterations=20, epsilon=1e-9)


def bowl(centre: torch.Tensor):
    return lambda actions: ((actions - centre) ** 2).sum(dim=(-1, -2))


def test_optimum_inside_the_box_is_found() -> None:
    centre = torch.tensor([[[0.3, -1.2], [-0.5, 0.7]], [[0.0, 0.1], [0.6, 1.5]]])  # (G, H, A)
    found = OPTIMISER.minimise(bowl(centre.unsqueeze(1)), *OPTIMISER.first(2, 2), torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, centre, rtol=0, atol=1e-2)


def test_optimum_outside_is_found_at_the_bound() -> None:
    optimiser = CEM(LOW, HIGH, iterations=40, epsilon=1e-9)  # the paper's candidates and elites
    found = optimiser.minimise(
        bowl(torch.tensor([3.0, -9.0])), *optimiser.first(1, 1), torch.Generator().manual_seed(0)
    )
    torch.testing.assert_close(found, torch.tensor([[[1.0, -2.0]]]), rtol=0, atol=1e-2)


def test_problems_of_a_batch_with_one_stream_are_the_problem_alone() -> None:
    optimiser = CEM(LOW, HIGH, candidates=50, elites=5, iterations=4)
    centre = torch.tensor([[[0.3, -1.2]], [[0.9, 1.0]]])
    both = optimiser.minimise(bowl(centre.unsqueeze(1)), *optimiser.first(2, 1), Streams([3, 3]))
    for g in range(2):
        alone = optimiser.minimise(bowl(centre[g : g + 1].unsqueeze(1)), *optimiser.first(1, 1), Streams([3]))
        assert torch.equal(both[g : g + 1], alone)


def test_first_distribution_is_the_middle_and_a_quarter_of_the_width() -> None:
    mean, var = OPTIMISER.first(3, 4)
    assert mean.shape == var.shape == (3, 4, 2)
    assert not mean.any()
    torch.testing.assert_close(var[0, 0], torch.tensor([0.25, 1.0]))


def test_one_iteration_smooths_mean_and_biased_variance_of_the_elites() -> None:
    optimiser = CEM(LOW, HIGH, candidates=40, elites=6, iterations=1, alpha=0.1)
    seen: list[torch.Tensor] = []

    def cost(actions: torch.Tensor) -> torch.Tensor:
        seen.append(actions)
        return actions.square().sum(dim=(-1, -2))

    mean, var = optimiser.first(1, 1)
    mean = mean + 0.2
    found = optimiser.minimise(cost, mean, var, torch.Generator().manual_seed(5))
    tried = seen[0][0]
    elite = tried[tried.square().sum(dim=(-1, -2)).argsort()[:6]]
    torch.testing.assert_close(found[0], 0.1 * mean[0] + 0.9 * elite.mean(dim=0))
    # The variance shows in the next iteration's samples: the same variates, another spread.
    again: list[torch.Tensor] = []
    two = CEM(LOW, HIGH, candidates=40, elites=6, iterations=2, alpha=0.1)
    two.minimise(lambda a: again.append(a) or cost(a), mean, var, torch.Generator().manual_seed(5))
    smoothed = 0.1 * var[0] + 0.9 * elite.var(dim=0, correction=0)
    room = torch.minimum(((found[0] - LOW) / 2) ** 2, ((HIGH - found[0]) / 2) ** 2)
    generator = torch.Generator().manual_seed(5)
    truncated_normal(1, (40, 1, 2), generator)
    z = truncated_normal(1, (40, 1, 2), generator)[0]
    torch.testing.assert_close(again[1][0], found[0] + torch.minimum(room, smoothed).sqrt() * z)
    # No sample leaves the box: its spread is at most half of the distance to the nearer bound.
    assert bool((tried >= LOW).all())
    assert bool((tried <= HIGH).all())


def test_costs_that_are_no_numbers_rank_last_and_change_nothing_alone() -> None:
    def partly(actions: torch.Tensor) -> torch.Tensor:
        costs = bowl(torch.tensor([0.3, -1.2]))(actions)
        return torch.where(actions[..., 0, 0] < 0, torch.nan, costs)

    found = OPTIMISER.minimise(partly, *OPTIMISER.first(1, 1), torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, torch.tensor([[[0.3, -1.2]]]), rtol=0, atol=2e-2)
    mean, var = OPTIMISER.first(1, 1)
    stuck = OPTIMISER.minimise(lambda a: torch.full(a.shape[:2], torch.nan), mean, var)
    torch.testing.assert_close(stuck, mean)


def test_truncated_normals_have_the_moments_of_the_truncated_normal() -> None:
    z = truncated_normal(1, (200_000,), torch.Generator().manual_seed(0)).double()
    assert float(z.abs().max()) <= 2
    density = math.exp(-2) / math.sqrt(2 * math.pi)
    variance = 1 - 4 * density / math.erf(math.sqrt(2))
    assert float(z.mean()) == pytest.approx(0, abs=5 * math.sqrt(variance / 200_000))
    assert float(z.var()) == pytest.approx(variance, rel=0.01)


def test_a_plan_moves_on_by_a_step() -> None:
    plan = torch.arange(6.0).reshape(1, 3, 2)
    assert shifted(plan).tolist() == [[[2, 3], [4, 5], [0, 0]]]


def test_mppi_smooths_from_the_executed_action_and_weighs_by_return() -> None:
    optimiser = MPPI(LOW, HIGH, candidates=500, kappa=20.0, sigma=0.5, tail_sigma=0.1)
    mean, last = torch.zeros(1, 4, 2), torch.zeros(1, 2)
    generator = torch.Generator().manual_seed(0)
    centre = torch.tensor([0.4, -0.8])
    for _ in range(30):
        mean = optimiser.minimise(bowl(centre), mean, last, generator)
    torch.testing.assert_close(mean[0, 1:], centre.expand(3, 2), rtol=0, atol=0.15)
    seen: list[torch.Tensor] = []

    def cost(actions: torch.Tensor) -> torch.Tensor:
        seen.append(actions)
        return torch.arange(actions.shape[1]).float()[None]

    frozen = MPPI(LOW, HIGH, candidates=3, kappa=1e3, sigma=1e-9, tail_sigma=1e-9, smoothing=0.7)
    best = frozen.minimise(cost, torch.full((1, 3, 2), 0.5), torch.full((1, 2), -0.5))
    torch.testing.assert_close(best[0, :, 0], torch.tensor([0.2, 0.41, 0.473]), rtol=0, atol=1e-4)
    torch.testing.assert_close(best, seen[0][:, 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("settings", [{"elites": 0}, {"elites": 11}, {"candidates": 0, "elites": 0}, {"iterations": 0}])
def test_bad_settings_are_refused(settings: dict) -> None:
    with pytest.raises(UserError):
        CEM(LOW, HIGH, **{"candidates": 10, "elites": 2, **settings})
    with pytest.raises(UserError, match="box"):
        CEM(HIGH, LOW)


@pytest.mark.skipif("CARL_MBRL_PYTHON" not in os.environ, reason="CARL_MBRL_PYTHON names no interpreter with mbrl-lib")
def test_optima_are_those_of_mbrl_lib_in_the_mean_over_fifty_seeds() -> None:
    """mbrl-lib wants versions that this project does not: it runs in an environment of its own."""
    import importlib.util

    path = Path(__file__).parents[1] / "benchmarks" / "planning.py"
    found = importlib.util.spec_from_file_location("planning", path)
    assert found is not None
    assert found.loader is not None
    planning = importlib.util.module_from_spec(found)
    found.loader.exec_module(planning)
    assert planning.same_optima(Path(os.environ["CARL_MBRL_PYTHON"])) < 4  # standard errors, the largest of six
