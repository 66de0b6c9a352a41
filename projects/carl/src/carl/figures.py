"""The paper's figures, from runs and from studies."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from carl.adaptation import Branch, Log
from carl.duckietown import COLUMNS, DRIVABLE, GOAL, ROWS, TILE
from shared.figures import COLOURS, figure

DASHES = ("-", (0, (5, 2)), (0, (2, 2)), (0, (7, 2, 1, 2)), (0, (1, 3)), "-", (0, (4, 4)), (0, (1, 1)))
MARKERS = "osD^vP*X"
Curves = Mapping[str, Sequence[Sequence[float]]]
"""Label -> one curve a seed."""


def run_figures(
    folder: Path, source: Sequence[Sequence[float]], branches: Sequence[Branch], logs: Sequence[Log]
) -> list[Path]:
    """A run's source curve (returns of every seed), and what it did in the target. Returns the PNG files."""
    made = []
    if source:
        made.append(source_curve(folder / "figures" / "source", {"source": source}))
    if logs and logs[0].adaptation:
        returns: dict[str, list[list[float]]] = {}
        deaths: dict[str, list[list[float]]] = {}
        for each, log in zip(branches, logs, strict=True):
            returns.setdefault(each.label, []).append(log.running_maximum())
            deaths.setdefault(each.label, []).append([float(count) for count in log.catastrophes()])
        made.append(adaptation(folder / "figures" / "adaptation", returns, deaths, f"target {branches[0].target:g}"))
    return made


def _bands(axes: Any, curves: Curves, start: int = 1) -> None:
    for place, (label, seeds) in enumerate(curves.items()):
        values = np.array(seeds, float)  # [seeds, iterations]
        x = np.arange(start, start + values.shape[1])
        colour = COLOURS[place % len(COLOURS)]
        # Another dash and a mark each: lines that lie on each other stay to be seen.
        marks = {"marker": MARKERS[place % len(MARKERS)], "markersize": 4} if len(curves) > 1 and len(x) < 30 else {}
        dash = DASHES[place % len(DASHES)]
        axes.plot(x, values.mean(axis=0), color=colour, label=label, linestyle=dash, **marks)
        if len(values) > 1:
            axes.fill_between(x, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15)


def source_curve(path: Path, curves: Curves, title: str = "") -> Path:
    """Return of every source episode; band: all seeds."""
    with figure(path, svg=False) as (_, axes):
        _bands(axes, curves)
        axes.set(xlabel="source iteration", ylabel="return (mean, range of seeds)", title=title or "source phase")
        axes.legend()
    return path.with_suffix(".png")


def adaptation(path: Path, returns: Curves, catastrophes: Curves, title: str = "") -> Path:
    """The paper's main figure: highest return so far, and catastrophes so far, over the target's episodes."""
    with figure(path, 1, 2, figsize=(9.4, 3.4), svg=False) as (_, (left, right)):
        _bands(left, returns)
        _bands(right, catastrophes)
        left.set(xlabel="target episode", ylabel="highest return so far", title=title)
        right.set(xlabel="target episode", ylabel="catastrophes so far", title="mean, range of seeds")
        right.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    return path.with_suffix(".png")


def target_sweep(
    path: Path, points: Mapping[str, Mapping[float, Sequence[float]]], source: tuple[float, float], what: str, name: str
) -> Path:
    """A measure over the dynamics parameter, a line a variant; the source range is shaded.

    Args:
        points: variant -> domain -> one value a seed. source: ends of the source range.
        what: is measured. name: of the parameter.
    """
    with figure(path, svg=False) as (_, axes):
        axes.axvspan(*source, color="black", alpha=0.08, label="source range")
        for place, (label, by_domain) in enumerate(points.items()):
            x = sorted(by_domain)
            colour = COLOURS[place % len(COLOURS)]
            axes.plot(x, [statistics.fmean(by_domain[d]) for d in x], "o-", color=colour, label=label)
            axes.fill_between(
                x, [min(by_domain[d]) for d in x], [max(by_domain[d]) for d in x], color=colour, alpha=0.15
            )
        axes.set(xlabel=name, ylabel=what, title="mean and range of seeds")
        axes.legend()
    return path.with_suffix(".png")


def heat_map(
    path: Path, values: np.ndarray, rows: Sequence[float], columns: Sequence[float], labels: tuple[str, str, str]
) -> Path:
    """A grid of one measure. labels: of rows, columns, and the measure."""
    with figure(path, figsize=(1.2 + 0.9 * len(columns), 1.4 + 0.6 * len(rows)), svg=False) as (drawn, axes):
        image = axes.imshow(values, aspect="auto", cmap="viridis")
        axes.set_xticks(range(len(columns)), [f"{value:g}" for value in columns])
        axes.set_yticks(range(len(rows)), [f"{value:g}" for value in rows])
        axes.set(xlabel=labels[1], ylabel=labels[0])
        axes.grid(False)
        middle = (np.nanmin(values) + np.nanmax(values)) / 2
        for i, j in np.ndindex(*values.shape):
            colour = "white" if values[i, j] < middle else "black"
            axes.text(j, i, f"{values[i, j]:.3g}", ha="center", va="center", color=colour, fontsize=8)
        drawn.colorbar(image, ax=axes, label=labels[2])
    return path.with_suffix(".png")


def paths_from_above(path: Path, episodes: Mapping[str, Sequence[Sequence[Sequence[float]]]]) -> Path:
    """Where cars drove, a panel a variant; a cross where one hit a wall.

    Args:
        episodes: variant -> episodes of (x, z, hit) a step.
    """
    with figure(path, 1, len(episodes), figsize=(2.6 * len(episodes), 4.6), squeeze=False, svg=False) as (_, rows):
        for axes, (label, paths) in zip(rows[0], episodes.items(), strict=True):
            for column in range(COLUMNS):
                for row in range(ROWS):
                    on = (column, row) in DRIVABLE
                    colour = "#BFE3BF" if (column, row) == GOAL else "#E6E6E6" if on else "#808080"
                    axes.add_patch(_tile(column, row, colour))
            for place, driven in enumerate(paths):
                points = np.array(driven, float)
                colour = COLOURS[place % len(COLOURS)]
                axes.plot(points[:, 0], points[:, 1], color=colour, linewidth=1)
                hit = points[points[:, 2] > 0]
                axes.plot(hit[:, 0], hit[:, 1], "x", color=colour, markersize=7)
            axes.set(xlim=(0, COLUMNS * TILE), ylim=(ROWS * TILE, 0), aspect="equal", title=label, xlabel="x (m)")
            axes.grid(False)
        rows[0][0].set_ylabel("z (m)")
    return path.with_suffix(".png")


def _tile(column: int, row: int, colour: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((column * TILE, row * TILE), TILE, TILE, facecolor=colour, edgecolor="white")


def receiver_curves(path: Path, curves: Mapping[str, tuple[np.ndarray, np.ndarray]], title: str) -> Path:
    """ROC of the catastrophe head. curves: label -> (false votes, found catastrophes), both rising from 0 to 1."""
    with figure(path, figsize=(4.2, 3.8), svg=False) as (_, axes):
        for place, (label, (false, found)) in enumerate(curves.items()):
            axes.plot(false, found, color=COLOURS[place % len(COLOURS)], label=label)
        axes.plot([0, 1], [0, 1], ":", color="black", linewidth=1, label="chance")
        axes.set(xlabel="share of safe states voted against", ylabel="share of catastrophes foreseen", title=title)
        axes.legend(loc="lower right")
    return path.with_suffix(".png")


def by_lead_time(path: Path, false: Curves, missed: Curves) -> Path:
    """Votes of the nets some steps ahead: share of safe states with a majority against, of catastrophes without."""
    with figure(path, 1, 2, figsize=(8.0, 3.4), svg=False) as (_, (left, right)):
        _bands(left, false)
        _bands(right, missed)
        left.set(xlabel="steps ahead", ylabel="false votes", title="of states that were safe")
        right.set(xlabel="steps ahead", ylabel="missed", title="of catastrophes")
        right.legend()
    return path.with_suffix(".png")
