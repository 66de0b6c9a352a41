"""Risk functionals against the numbers of the specification and against each other."""

from __future__ import annotations

import pytest
import torch

from carl.risk import FAILED, Risk, candidate_cost, catastrophe_penalty, catastrophe_votes, kept_count, worst_mean
from shared.config import UserError


def test_mean_of_the_worst_of_twenty() -> None:
    costs = torch.arange(1.0, 21.0)
    expected = {100: 10.5, 75: 13, 50: 15.5, 25: 18, 10: 19.5, 5: 20, 1: 20}
    for keep, value in expected.items():
        assert float(worst_mean(costs, keep)) == value, keep


def test_gamma_leaves_out_the_best_and_is_no_percentile_kept() -> None:
    """At 70 the two readings differ: three tenths of the particles count, the worst ones."""
    assert Risk("reward", gamma=70).keep == 30
    assert float(worst_mean(torch.arange(1.0, 11.0), Risk("reward", gamma=70).keep)) == 9


def test_all_ties_at_the_bar_are_kept() -> None:
    costs = torch.tensor([4.0, 3, 3, 3, 1, 1, 1, 1, 0, 0])
    assert float(worst_mean(costs, 20)) == 3.25


def test_optimism_keeps_the_best() -> None:
    costs = torch.arange(1.0, 21.0)
    assert float(worst_mean(costs, 150)) == 5.5
    assert float(worst_mean(costs, 200 - 5)) == 1
    assert kept_count(20, 195) == 1


def test_risk_is_of_sums_and_not_a_sum_of_risks() -> None:
    steps = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # (P, H): each particle is the worse one once
    assert float(worst_mean(steps.sum(dim=1), 50)) == 1
    assert float(worst_mean(steps.T, 50).sum()) == 2


def test_costs_that_are_no_numbers_rank_last() -> None:
    assert float(worst_mean(torch.tensor([1.0, float("nan")]), 50)) == FAILED
    assert float(worst_mean(torch.tensor([1.0, float("inf")]), 100)) == pytest.approx((1 + FAILED) / 2)


def test_votes_and_costs_are_joined_without_rounding_the_task_away() -> None:
    costs = torch.tensor([[0.100, 0.101], [0.1001, 0.101]])  # candidates that differ by 5e-5 on the mean
    votes = torch.full((2, 2), 25)
    joined = candidate_cost(costs, votes, 100, 1e4)
    plain = candidate_cost(costs, torch.zeros_like(votes), 100, 1e4)
    assert joined.dtype == torch.float64
    torch.testing.assert_close(joined - plain, torch.full((2,), 25e4, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(joined.diff(), plain.diff(), rtol=0, atol=1e-9)
    summed = (costs + 1e4 * votes).mean(dim=1)  # as in float32: the difference is gone
    assert float(summed.diff()) == 0


def test_votes_are_hard_and_never_at_beta_one() -> None:
    logit = torch.tensor([-50.0, -1.0, 0.0, 1.0, 50.0])
    assert catastrophe_votes(logit, 0.5).tolist() == [False, False, False, True, True]
    assert not catastrophe_votes(logit, 1.0).any()
    assert catastrophe_penalty(logit, 0.5, 3.0).tolist() == [0, 0, 0, 3, 3]


@pytest.mark.parametrize(
    "settings", [{"gamma": 100.0}, {"gamma": -1.0}, {"beta": 1.5}, {"weight": -1.0}, {"name": "rewards"}]
)
def test_bad_settings_are_refused(settings: dict) -> None:
    with pytest.raises(UserError):
        Risk(**{"name": "reward", **settings})
    for keep in (0, -1, 201, float("nan")):
        with pytest.raises(UserError):
            kept_count(20, keep)


def test_a_risk_that_is_off_is_the_plain_mean() -> None:
    assert (Risk("none", gamma=70).keep, Risk("none").penalty) == (100, 0)
    assert (Risk("state", gamma=70).keep, Risk("state").penalty) == (100, 1e4)
    assert (Risk("reward+state").keep, Risk("reward+state").penalty) == (50, 1e4)


def test_costs_without_end_either_way_are_failures() -> None:
    inf = float("inf")
    costs = torch.tensor([[-inf, -inf, 0.0, 0.0], [inf, 0.0, 0.0, 0.0], [float("nan"), 0.0, 0.0, 0.0]])
    assert worst_mean(costs, 100).tolist() == [FAILED / 2, FAILED / 4, FAILED / 4]
    assert worst_mean(costs, 25).tolist() == [FAILED] * 3
