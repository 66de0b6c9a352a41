"""Figures of runs and of the study, in the shared style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shared.figures import figure

if TYPE_CHECKING:
    from superposition.task import StreamTask

Curve = Sequence[tuple[float, float]]


def curves(
    path: Path,
    lines: Mapping[str, Sequence[Curve]],
    ylabel: str,
    marks: Sequence[float] = (),
    title: str = "",
    closer: Sequence[str] = (),
) -> Path:
    """Accuracy against steps: the mean of several seeds as a line, their range as a band.

    Args:
        path: where to, without suffix. lines: name -> one curve a seed. ylabel: what is drawn.
        marks: steps at which a vertical line stands.
        closer: lines that lie near each other, drawn once more beside, on a scale of their own.
    """
    closer = [name for name in closer if name in lines]
    size = {"figsize": (10.5, 3.9)} if closer else {}
    with figure(path, 1, 2 if closer else 1, squeeze=False, **size) as (_, panels):
        axes = panels[0]
        colours = {name: f"C{place}" for place, name in enumerate(lines)}
        for own, shown in zip(axes, (list(lines), closer), strict=False):
            for mark in marks:
                own.axvline(mark, color="0.85", linewidth=0.6, zorder=0)
            for name in shown:
                steps = np.array([step for step, _ in lines[name][0]])
                values = np.array([[value for _, value in curve] for curve in lines[name]])
                own.plot(steps, values.mean(0), label=name, color=colours[name])
                if len(values) > 1:
                    low, high = values.min(0), values.max(0)
                    own.fill_between(steps, low, high, color=colours[name], alpha=0.15, linewidth=0)
            own.set(xlabel="step", ylabel=ylabel)
            own.legend(fontsize=8)
        axes[0].set(ylim=(0, 1), title=title)
        if closer:
            axes[1].set(title="the same, closer: mean and range of seeds")
    return path.with_suffix(".png")


def heat_map(path: Path, matrix: Sequence[Sequence[float | None]], title: str = "") -> Path:
    """Accuracy under key i on task j; untrained keys stay white."""
    values = np.array([[np.nan if v is None else v for v in row] for row in matrix], float)
    with figure(path, figsize=(4.4, 3.8)) as (drawn, axes):
        image = axes.imshow(values, vmin=0, vmax=1, cmap="viridis")
        axes.grid(False)
        axes.set(xlabel="task", ylabel="key", title=title)
        drawn.colorbar(image, ax=axes, label="accuracy")
    return path.with_suffix(".png")


def bars(path: Path, values: Mapping[str, Sequence[float]], ylabel: str, title: str = "") -> Path:
    """One bar a name, the seeds as dots."""
    with figure(path) as (_, axes):
        for place, (_name, seeds) in enumerate(values.items()):
            axes.bar(place, float(np.mean(seeds)), color="C0", alpha=0.6)
            axes.plot([place] * len(seeds), seeds, "k.", markersize=3)
        axes.set_xticks(range(len(values)), list(values), rotation=30, ha="right")
        axes.set(ylabel=ylabel, title=title)
    return path.with_suffix(".png")


def by_width(path: Path, values: Mapping[str, Mapping[int, Sequence[float]]], ylabel: str, title: str = "") -> Path:
    """Accuracy against units of a layer, a line for each way of training: mean of the seeds, their range as a band.

    Args:
        values: name -> units -> one value a seed.
    """
    with figure(path) as (_, axes):
        for name, found in values.items():
            units = sorted(found)
            (line,) = axes.plot(units, [float(np.mean(found[each])) for each in units], "o-", label=name)
            low, high = ([float(pick(found[each])) for each in units] for pick in (min, max))
            axes.fill_between(units, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        axes.set(xlabel="units of a hidden layer", ylabel=ylabel, ylim=(0, 1), xscale="log", title=title)
        axes.set_xticks(units := sorted({u for found in values.values() for u in found}), [str(u) for u in units])
        axes.minorticks_off()
        axes.legend(fontsize=8)
    return path.with_suffix(".png")


def noise_scaling(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Relative retrieval noise against sqrt((K - 1) / d), a mark for each kind; the line is equality."""
    with figure(path) as (_, axes):
        kinds = sorted({row["kind"] for row in rows})
        for kind, marker in zip(kinds, "osD^v", strict=False):
            own = [row for row in rows if row["kind"] == kind]
            axes.plot([r["predicted"] for r in own], [r["measured"] for r in own], marker, label=kind, alpha=0.7)
        top = max(row["predicted"] for row in rows)
        axes.plot([0, top], [0, top], color="0.5", linewidth=1, zorder=0)
        axes.set(xlabel=r"$\sqrt{(K-1)/d}$", ylabel="noise / (|w| |x|)", title="retrieval noise")
        axes.legend(fontsize=8)
    return path.with_suffix(".png")


def storage(path: Path, layers: Sequence[tuple[int, int]], contexts: Sequence[int]) -> Path:
    """Numbers stored against the number of models, by kind, of linear layers (inputs, outputs)."""
    shared = sum(d * m for d, m in layers)
    ways = {
        "separate networks": lambda K: K * shared,
        "rotation": lambda K: shared + K * sum(d * d for d, _ in layers),
        "complex": lambda K: 2 * shared + K * sum(d for d, _ in layers),
        "binary (bits / 32)": lambda K: shared + K * sum(d for d, _ in layers) / 32,
        "power": lambda K: 2 * shared + sum(d for d, _ in layers) + K,
    }
    with figure(path) as (_, axes):
        for name, count in ways.items():
            axes.plot(contexts, [count(K) for K in contexts], label=name)
        axes.set(xlabel="models K", ylabel="numbers stored", xscale="log", yscale="log", title="storage")
        axes.legend(fontsize=8)
    return path.with_suffix(".png")


def run_figures(folder: Path, task: StreamTask, matrix: Sequence[Sequence[float | None]]) -> list[Path]:
    """The figures of one run: accuracies through training, the matrix of keys and tasks."""
    history = task.record.history
    first = "upright images" if task.config.stream == "rotating" else "first task"
    lines = {first: [[(s, a) for s, a, _ in history]], "task being learned": [[(s, c) for s, _, c in history]]}
    every = task.config.period
    marks = range(every, task.config.planned_steps, every) if task.config.planned_steps // every <= 60 else ()
    made = [curves(folder / "figures" / "accuracy", lines, "test accuracy", list(marks))]
    if len(matrix) > 1:
        made.append(heat_map(folder / "figures" / "keys", matrix, "accuracy under key i on task j"))
    return made
