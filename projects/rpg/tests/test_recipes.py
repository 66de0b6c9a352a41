"""Schedules pass through the values that the paper and its code give."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rpg.recipes import make_optimizer, make_schedule, schedule_factor


@pytest.mark.parametrize(
    ("recipe", "epochs", "expected"),
    [
        ("paper", 200, {0: 1.0, 59: 1.0, 60: 0.1, 119: 0.1, 120: 0.01, 160: 0.001, 199: 0.001}),
        ("imagenet", 225, {0: 1.0, 74: 1.0, 75: 0.1, 150: 0.01, 224: 0.01}),
        ("repo", 90, {0: 1.0, 45: 0.1, 90: 0.01}),
        ("adam", 100, {0: 1.0, 50: 0.5, 100: 0.0}),
    ],
)
def test_schedule_has_the_published_factors(recipe: str, epochs: int, expected: dict[int, float]) -> None:
    for epoch, factor in expected.items():
        assert schedule_factor(recipe, epoch / epochs) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize("recipe", ["onecycle", "adam", "paper", "imagenet", "repo"])
def test_groups_keep_the_ratio_of_their_rates_over_the_whole_run(recipe: str) -> None:
    one, two = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = make_optimizer(recipe, [{"params": [one], "lr": 0.1}, {"params": [two], "lr": 0.02}])
    schedule = make_schedule(recipe, optimizer, 10)
    peaks = []
    for _ in range(10):
        first, second = (group["lr"] for group in optimizer.param_groups)
        assert second == pytest.approx(first / 5)
        if recipe != "adam":
            assert {group["momentum"] for group in optimizer.param_groups} == {0.9}  # no cycle of momentum
        peaks.append(first)
        (one.sum() + two.sum()).backward()
        optimizer.step()
        schedule.step()
    assert max(peaks) == pytest.approx(0.1, rel=0.05)
