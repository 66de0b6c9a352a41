"""The figures of a reproduction, from its outcomes. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.claims import Outcomes
from superposition import figures

FC = ((784, 256), (256, 256), (256, 256), (256, 10))  # inputs and outputs of the layers of the usual perceptron


def _curves(outcomes: Outcomes, names: Mapping[str, str]) -> dict[str, list[Any]]:
    found = {}
    for shown, name in names.items():
        if name in outcomes:
            found[shown] = [[(step, first) for step, first, _ in run["history"]] for run in outcomes.raw(name)]
    return found


def draw(outcomes: Outcomes, folder: Path) -> list[Path]:
    """All figures for which there are outcomes; the PNG files."""
    made: list[Path] = []
    kinds = {k: f"permute10 {k}" for k in ("standard", "binary", "complex", "power", "rotation")}
    if lines := _curves(outcomes, kinds | {"EWC 10": "permute10 ewc 10", "SI 30": "permute10 si 30"}):
        marks = range(200, 2000, 200)
        near = ("binary", "complex", "power", "rotation")
        seen = "accuracy on the first task"
        made.append(figures.curves(folder / "kinds", lines, seen, marks, "permuting pixels", near))
    widths = {
        f"{kind}, {width} units": f"permute30 {kind} H={width}"
        for kind in ("standard", "binary")
        for width in (64, 256, 512)
    }
    if lines := _curves(outcomes, widths):
        made.append(figures.curves(folder / "widths", lines, "accuracy on the first task", (), "thirty permutations"))
    if lines := _curves(outcomes, {"standard": "rotating standard", "binary": "rotating binary"}):
        made.append(figures.curves(folder / "rotating", lines, "accuracy on upright images", (500,), "turning images"))
    fast = {name.removeprefix("fast "): name for name in outcomes.names() if name.startswith("fast ")}
    if lines := _curves(outcomes, fast):
        title = "turning images, a context a step"
        made.append(figures.curves(folder / "fast", lines, "accuracy on upright images", (500, 1000, 1500), title))
    if lines := _curves(outcomes, {"standard": "icifar-lite standard", "binary": "icifar-lite binary"}):
        made.append(figures.curves(folder / "icifar", lines, "accuracy on the first five classes", (400,), "CIFAR-10"))
    for stem in ("units", "perm-units", "perm-kinds"):
        sized: dict[str, dict[int, Any]] = {}
        for name in outcomes.names():
            if name.startswith(stem + " ") and " H=" in name:
                way, units = name.removeprefix(stem + " ").split(" H=")
                sized.setdefault(way, {})[int(units)] = outcomes.values(name, "average")
        if not sized:
            continue
        if stem == "perm-kinds":  # two widths, on other numbers of tasks
            for units in sorted({u for found in sized.values() for u in found}):
                own = {way: found[units] for way, found in sized.items() if units in found}
                title = f"{units} units a layer"
                made.append(figures.bars(folder / f"{stem}-{units}", own, "average accuracy on all tasks", title))
        else:
            made.append(figures.by_width(folder / stem, sized, "average accuracy on all tasks", "permuting pixels"))
    for stem in ("rot-mnist", "rot-fast", "rot-fmnist", "icifar", "icifar100", "supsup"):
        names = {n.removeprefix(stem + " "): n for n in outcomes.names() if n.startswith(stem + " ")}
        if lines := _curves(outcomes, names):
            seen = "upright images" if stem.startswith("rot-") else "the first task"
            made.append(figures.curves(folder / stem, lines, f"accuracy on {seen}", (), stem))
    if "permute10 binary" in outcomes and "permute10 complex" in outcomes:
        matrix = outcomes.raw("permute10 binary")[0]["matrix"]
        made.append(figures.heat_map(folder / "keys", matrix, "accuracy under key i on task j"))
    if "noise" in outcomes:
        made.append(figures.noise_scaling(folder / "noise", outcomes.raw("noise")[0]["rows"]))
        made.append(figures.storage(folder / "storage", FC, (1, 3, 10, 30, 100, 300, 1000)))
    grid = [n for n in outcomes.names() if n.startswith(("permute10 ewc ", "permute10 si "))]
    if grid:
        values = {n.removeprefix("permute10 "): outcomes.values(n, "average") for n in grid}
        values |= {k: outcomes.values(f"permute10 {k}", "average") for k in ("standard", "binary")}
        made.append(figures.bars(folder / "baselines", values, "average accuracy on ten tasks"))
    return made
