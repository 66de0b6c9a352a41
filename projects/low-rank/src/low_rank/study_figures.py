"""Figures of `reproduce`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from low_rank import figures
from low_rank.experiments import at_best_rate, compared
from shared.claims import Outcomes
from shared.figures import figure


def draw(outcomes: Outcomes, folder: Path) -> list[Path]:
    """All figures that the finished cells allow."""
    drawn = []
    names = outcomes.names()
    for name, file in (("volume products", "products"), ("volume relu", "relu"), ("volume fashion", "fashion")):
        if name in outcomes:
            others = {}
            if name == "volume products" and "volume orthogonal products" in outcomes:
                others["orthogonal factors"] = outcomes.raw("volume orthogonal products")[0]
            drawn.append(figures.volume(folder / file, outcomes.raw(name)[0], name.removeprefix("volume "), others))
    if "volume products" in outcomes and (sampled := outcomes.raw("volume products")[0].get("sampled")):
        n = outcomes.raw("volume products")[0]["n"]
        drawn.append(figures.density(folder / "density", sampled, n))
    if sum(name.startswith("volume ") for name in names) > 3:
        drawn.append(exceptions(folder / "exceptions", outcomes))
    regressions = [name for name in names if name.startswith("regress r=2 d=")]
    if len(regressions) > 1:
        values = _joined(outcomes, regressions)
        drawn.append(figures.regression(folder / "regression", values, "rank 2"))
        drawn.append(figures.trajectories(folder / "trajectories", values))
    for prefix, file, told in (
        ("optimizer ", "optimizers", {}),
        ("classify ", "classification", {"xlabel": "hidden layers", "ylabel": figures.GRAM_RANK}),
    ):
        own = [name for name in names if name.startswith(prefix) and "=" not in name]
        lines = [row for name in own for row in outcomes.raw(name)[0]["rows"]]
        if len({row["optimizer"] for row in lines}) > 1:
            drawn.append(figures.lines(folder / file, lines, **told))
    searched = [outcomes.raw(name)[0]["rows"][0] for name in names if name.startswith("search ")]
    if len(searched) > 1:
        drawn.append(search(folder / "search", sorted(searched, key=lambda row: row["depth"])))
    kernels = {_kernel_name(name): list(outcomes.raw(name)) for name in names if name.startswith("kernels ")}
    plain = {depth: kernels[depth] for depth in sorted((name for name in kernels if name.isdigit()), key=int)}
    if len(plain) > 1:
        drawn += [
            figures.kernel_curves(folder / "kernels", plain),
            figures.ordered_grams(folder / "ordered", {depth: runs[0]["gram"] for depth, runs in plain.items()}),
            figures.accuracy_against_rank(folder / "accuracy", {**plain, **kernels}),
        ]
        if rows := _by_skip(kernels):
            drawn.append(figures.rank_against_depth(folder / "skips", rows))
    if rows := compared(outcomes):
        drawn.append(figures.bars(folder / "compare", rows))
    networks = {name: outcomes.raw(name) for name in names if all("spectra" in run for run in outcomes.raw(name))}
    tuned = {name.partition(", lr ")[0] for name in networks if ", lr " in name}
    shown = {at_best_rate(outcomes, name) for name in tuned}
    networks = {name: runs for name, runs in networks.items() if ", lr " not in name or name in shown}
    for stem in ("digits", "mnist5k", "cifar", "gpu"):
        own = {name: runs for name, runs in networks.items() if name.startswith(stem + " ")}
        if len(own) > 1:
            drawn.append(spectra(folder / f"{stem}-spectra", own))
    return drawn


def _kernel_name(name: str) -> str:
    """`kernels d=4 skip=1` as the figures want it: the depth, then what else there is."""
    return name.removeprefix("kernels d=").replace(" ", ", ", 1)


def _by_skip(kernels: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Rank of the Gram matrix before and after training, by depth and skips; empty without skips."""
    rows = []
    for name, runs in kernels.items():
        depth, _, rest = name.partition(", ")
        if rest and not rest.startswith("skip="):
            continue
        first = float(np.mean([run["history"][0]["gram_rank"] for run in runs]))
        last = float(np.mean([run["gram_rank"] for run in runs]))
        skip = int(rest.removeprefix("skip=") or 0)
        rows.append({"depth": int(depth), "skip": skip, "first_rank": first, "gram_rank": last})
    rows.sort(key=lambda row: (row["skip"], row["depth"]))
    return rows if any(row["skip"] for row in rows) else []


def exceptions(path: Path, outcomes: Outcomes) -> Path:
    """Mean Gram rank by depth: activations; inputs, starts and normalisation; skip connections."""
    names = [n for n in outcomes.names() if n.startswith("volume ") and not n.endswith(("products", "fashion"))]
    panels = {
        "activations": [n for n in names if "," not in n and "skips" not in n] + ["volume sigmoid, centred"],
        "ReLU": ["volume relu", *(n for n in names if n.startswith("volume relu, "))],
        "skip connections, ReLU": ["volume relu", *(n for n in names if n.startswith("volume skips "))],
    }
    with figure(path, 1, 3, figsize=(12.5, 3.9), sharey=True) as (_, axes):
        for axis, (title, shown) in zip(axes, panels.items(), strict=True):
            for name in [n for n in shown if n in outcomes]:
                rows = outcomes.raw(name)[0]["rows"]
                label = name.removeprefix("volume ").removeprefix("relu, ").removeprefix("skips ")
                axis.plot([row["depth"] for row in rows], [row["mean"] for row in rows], "o-", markersize=3,
                          label="plain" if label == "relu" and title != "activations" else label)  # fmt: skip
            axis.set(xscale="log", xlabel="layers", title=title)
            axis.set_xticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
            axis.minorticks_off()
            axis.legend(fontsize=7)
        axes[0].set(ylabel=figures.GRAM_RANK)
    return path.with_suffix(".png")


def _joined(outcomes: Outcomes, names: list[str]) -> dict[str, Any]:
    """Regressions at one depth each as one study."""
    runs = sorted((outcomes.raw(name)[0] for name in names), key=lambda run: run["rows"][0]["depth"])
    paths = {depth: found for run in runs for depth, found in run["trajectories"].items()}
    return {**runs[0], "rows": [run["rows"][0] for run in runs], "trajectories": paths}


def search(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rank of networks without a training error beside that of all, by depth; hollow where few were found."""
    depths = [row["depth"] for row in rows]
    with figure(path, figsize=(5, 3.6)) as (_, axes):
        for place, (name, label) in enumerate((("rho", "without an error"), ("rho_all", "all"))):
            axes.plot(depths, [row[name] for row in rows], color=f"C{place}", label=label)
            for row in rows:
                face = "white" if row["hollow"] else f"C{place}"
                axes.plot(row["depth"], row[name], "o", color=f"C{place}", markerfacecolor=face)
        axes.set(xscale="log", xlabel="layers", ylabel=figures.GRAM_RANK)
        axes.set_xticks(depths, [str(d) for d in depths])
        axes.minorticks_off()
        axes.legend()
    return path.with_suffix(".png")


def spectra(path: Path, networks: dict[str, list[Any]]) -> Path:
    """Singular values of the weights after training, relative to the largest: plain and over-parameterised networks."""
    layers = list(next(iter(networks.values()))[0]["spectra"])[:6]
    columns = min(3, len(layers))
    rows = -(-len(layers) // columns)
    with figure(path, rows, columns, figsize=(3.3 * columns, 2.8 * rows), squeeze=False) as (_, axes):
        for axis, layer in zip(axes.flat, layers, strict=False):
            for name, runs in networks.items():
                values = np.array([run["spectra"][layer] for run in runs])
                mean = np.exp(np.log(np.maximum(values, 1e-12)).mean(0))
                axis.semilogy(np.arange(1, len(mean) + 1), mean, label=name.partition(" ")[2])
            axis.set(title=layer, xlabel="singular value", ylim=(1e-5, 1.5))
        axes[0][0].legend(fontsize=7)
        for axis in axes.flat[len(layers) :]:
            axis.set_visible(False)
    return path.with_suffix(".png")
