"""Races: contestants run in turns in one process, so that a noisy machine disturbs all alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping

import torch

from shared.device import Timer


def race(
    contestants: Mapping[str, Callable[[], object]], repeats: int, device: torch.device | str = "cpu"
) -> dict[str, list[float]]:
    """Milliseconds of every turn, by name; one turn each to warm up."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(repeats + 1):
        for name, run in contestants.items():
            timer = Timer(torch.device(device))
            with timer:
                run()
            if turn:
                times[name].append(timer.milliseconds())
    return times


def ratio(times: Mapping[str, list[float]], slower: str, faster: str) -> float:
    """Median over turns of one contestant's time over another's: each turn saw both under the same disturbance."""
    return statistics.median(a / b for a, b in zip(times[slower], times[faster], strict=True))
