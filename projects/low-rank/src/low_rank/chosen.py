"""Which of the settings that were tried, by samples held out of the training set. Imports no torch."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Run = Mapping[str, Any]


def chosen(tried: Sequence[tuple[Mapping[str, Any], Sequence[Run | None]]], seeds: int | None = None) -> dict[str, Any]:
    """Of several settings of one way of training, the one of the highest mean accuracy on held-out samples.

    A setting under which a network diverged is out of the choice, and counted. The test set has no part in it.

    Args:
        tried: (setting, its runs). A setting says what it is: {"strength": 1e-3, "lr": 0.05}. A run is a seed's
            results, `accuracy` (held-out), `test`, `train` and `hidden_ranks` (name -> rank) among them; None, or
            results with `diverged`, for a network that diverged.
        seeds: runs that a setting must have. Default: as many as the setting with the most.

    Returns:
        `settings`, how many were tried; `diverged`, how many are out. Where one is left: what the chosen setting says;
        `validation`, `test`, `train`, `rank`, means over seeds; `tests`, each seed's; `test_se`,
        the standard error of their mean; `edges`, the numbers of the setting at an end of what was tried, where more
        than one was.
    """
    needed = max((len(runs) for _, runs in tried), default=0) if seeds is None else seeds
    whole = [
        (setting, good)
        for setting, runs in tried
        if (good := [run for run in runs if run is not None and "diverged" not in run]) and len(good) == needed
    ]
    row: dict[str, Any] = {"settings": len(tried), "diverged": len(tried) - len(whole)}
    if not whole:
        return row
    setting, runs = max(whole, key=lambda each: statistics.fmean(run["accuracy"] for run in each[1]))
    tests = [run["test"] for run in runs]
    error = statistics.stdev(tests) / math.sqrt(len(tests)) if len(tests) > 1 else 0.0
    edges = [name for name, value in setting.items() if _at_an_end(value, [each.get(name) for each, _ in tried])]
    return row | {
        **setting,
        "validation": statistics.fmean(run["accuracy"] for run in runs),
        "test": statistics.fmean(tests),
        "tests": tests,
        "test_se": error,
        "train": statistics.fmean(run["train"] for run in runs),
        "rank": statistics.fmean(rank for run in runs for rank in run["hidden_ranks"].values()),
        "edges": edges,
    }


def _at_an_end(value: Any, others: Sequence[Any]) -> bool:
    numbers = {other for other in others if isinstance(other, (int, float))}
    return len(numbers) > 1 and value in (min(numbers), max(numbers))


def more_rates(rates: Sequence[float], count: int) -> tuple[float, ...]:
    """At least `count` learning rates, increasing, the given ones among them: for a way of training that has no
    strength, so that it is searched as long as one that has.

    First a quarter of the smallest and four times the largest, then the middles, on a logarithmic scale, of the widest
    gaps: from 0.1 and 5 come 0.025, 0.05, 0.1, 0.2, 0.4.
    """
    found = sorted(set(rates))
    ends = [found[0] / 4, found[-1] * 4]
    while len(found) < count:
        if ends:
            found = sorted([*found, ends.pop(0)])
            continue
        gaps = [math.log(high / low) for low, high in itertools.pairwise(found)]
        widest = max(gaps)
        # Of gaps that are the same but for rounding, the first.
        place = next(i for i, gap in enumerate(gaps) if gap > 0.999 * widest)
        middle = float(f"{math.sqrt(found[place] * found[place + 1]):.4g}")
        found.insert(place + 1, middle)
    return tuple(found)
