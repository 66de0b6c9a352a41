"""Races: contestants run in turns in one process, so that a noisy machine disturbs all alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from shared.device import Timer, describe
from shared.run import write_json


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


def conditions(device: torch.device | str = "cpu") -> str:
    """What a race is run on, for its first line."""
    hardware = describe(torch.device(device))
    threads = hardware["threads"]
    where = hardware.get("gpu") or hardware["cpu"]
    return f"torch {torch.__version__}, {where}, {threads} thread{'s' if threads != 1 else ''}"


def record(
    path: Path | None, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], device: torch.device | str
) -> None:
    """Write a race's table for `bench --record`, with what it was run on; nothing where no path is given.

    Args:
        path: the JSON file. title: what raced. columns, rows: the table. device: what on.
    """
    if path is None:
        return
    write_json(path, {
        "title": title, "columns": list(columns), "rows": [list(row) for row in rows],
        "hardware": describe(torch.device(device)), "torch": torch.__version__,
    })  # fmt: skip
