"""Figures of runs and of the studies, in the shared style. Every axis of an effective rank says nats."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shared.figures import figure

if TYPE_CHECKING:
    from low_rank.classification import History

RANK = "effective rank (nats)"
GRAM_RANK = "effective rank of the Gram matrix (nats)"


def run_figures(folder: Path, history: History) -> list[Path]:
    """Accuracy, ranks and singular values of one run."""
    if not history.rows:
        return []
    return [curves(folder / "curves", history), spectra(folder / "spectra", history)]


def curves(path: Path, history: History) -> Path:
    """Accuracy, rank of weights and rank of features over the steps."""
    steps = [row["step"] for row in history.rows]
    with figure(path, 1, 3, figsize=(11, 3.4)) as (_, axes):
        for name, shown in (("accuracy", "new images"), ("train", "training images")):
            axes[0].plot(steps, [row[name] for row in history.rows], label=shown)
        axes[0].set(xlabel="step", ylabel="accuracy", ylim=(0, 1.02))
        axes[0].legend()
        for layer in history.ranks[0]:
            axes[1].plot(steps, [ranks[layer] for ranks in history.ranks], label=layer)
        axes[1].set(xlabel="step", ylabel=RANK, title="weights, multiplied out")
        if len(history.ranks[0]) <= 8:
            axes[1].legend(fontsize=7)
        axes[2].plot(steps, [row["gram_rank"] for row in history.rows], color="C2")
        axes[2].set(xlabel="step", ylabel=GRAM_RANK, title="last hidden layer")
    return path.with_suffix(".png")


def spectra(path: Path, history: History) -> Path:
    """Singular values of every weight at first and at the end, relative to the largest."""
    layers = list(history.spectra[0])
    shown = layers if len(layers) <= 8 else [layers[round(i * (len(layers) - 1) / 7)] for i in range(8)]
    columns = min(4, len(shown))
    with figure(path, -(-len(shown) // columns), columns, figsize=(2.8 * columns, 2.6 * -(-len(shown) // columns)),
                squeeze=False) as (_, axes):  # fmt: skip
        for axis, layer in zip(axes.flat, shown, strict=False):
            for values, name in ((history.spectra[0][layer], "at first"), (history.spectra[-1][layer], "now")):
                axis.semilogy(np.arange(1, len(values) + 1), np.maximum(values, 1e-12), label=name)
            axis.set(title=layer, xlabel="singular value", ylim=(1e-6, 1.5))
        axes[0][0].legend(fontsize=7)
        for axis in axes.flat[len(shown) :]:
            axis.set_visible(False)
    return path.with_suffix(".png")


def volume(path: Path, values: Mapping[str, Any], title: str = "", others: Mapping[str, Any] | None = None) -> Path:
    """Distribution functions of the rank by depth, and its mean, beside the closed form where there is one.

    Args:
        others: name -> values of further networks, whose means are drawn too.
    """
    rows = values["rows"]
    with figure(path, 1, 2, figsize=(9, 3.6)) as (_, axes):
        for place, row in enumerate(rows):
            colour = f"C{place}"
            share = np.linspace(0, 1, len(row["quantiles"]))
            axes[0].plot(row["quantiles"], share, color=colour, label=f"{row['depth']}")
        axes[0].set(xlabel=RANK if "limit" in rows[0] else GRAM_RANK, ylabel="share of networks below", title=title)
        axes[0].legend(title="layers", fontsize=7)
        depths = [row["depth"] for row in rows]
        means = np.array([row["mean"] for row in rows])
        spread = np.array([row["deviation"] for row in rows])
        axes[1].errorbar(depths, means, yerr=spread, marker="o", label="mean and deviation of networks")
        if "limit" in rows[0]:
            most = rows[0]["mean"] + rows[0]["deficit"]
            axes[1].plot(depths, [most - row["limit"] for row in rows], "k--", label="limit of large matrices")
        for place, (name, other) in enumerate((others or {}).items(), 1):
            means = [row["mean"] for row in other["rows"]]
            axes[1].plot(
                [row["depth"] for row in other["rows"]], means, "s-", markersize=4, color=f"C{place}", label=name
            )
        if "input_rank" in values:
            axes[1].axhline(values["input_rank"], color="0.5", linestyle=":", label="the images themselves")
        axes[1].set(xscale="log", xlabel="layers", ylabel=RANK if "limit" in rows[0] else GRAM_RANK)
        axes[1].set_xticks(depths, [str(d) for d in depths])
        axes[1].minorticks_off()
        axes[1].legend(fontsize=7)
    return path.with_suffix(".png")


def density(path: Path, drawn: Mapping[str, Sequence[float]], n: int) -> Path:
    """Singular values of products of d Gaussian matrices beside the Fuss-Catalan law.

    Args:
        drawn: depth -> singular values of sampled products. n: side of the matrices.
    """
    from low_rank.spectra import end, singular_density

    with figure(path, 1, len(drawn), figsize=(2.9 * len(drawn), 2.8), squeeze=False) as (_, axes):
        for axis, (depth, values) in zip(axes[0], drawn.items(), strict=True):
            d = int(depth)
            s, f = singular_density(d)
            axis.hist(
                values, bins=60, range=(0, end(d)), density=True, color="C0", alpha=0.5, label=f"sampled, n = {n}"
            )
            axis.plot(s, f, "k-", linewidth=1, label="limit")
            axis.set(title=f"{d} factors", xlabel="singular value", ylim=(0, float(np.quantile(f, 0.97))))
        axes[0][0].set(ylabel="density")
        axes[0][0].legend(fontsize=7)
    return path.with_suffix(".png")


def regression(path: Path, values: Mapping[str, Any], title: str = "") -> Path:
    """Test error and rank of the map by depth, with the fit of least norm and the truth as lines."""
    rows = values["rows"]
    depths = [row["depth"] for row in rows]
    with figure(path, 1, 3, figsize=(11, 3.4)) as (_, axes):
        for axis, name, what in ((axes[0], "test", "relative test error"), (axes[1], "rho", RANK)):
            axis.errorbar(depths, [row[name] for row in rows], yerr=[row[name + "_se"] for row in rows], marker="o",
                          label="product of d factors")  # fmt: skip
            axis.axhline(values["minimum_norm"][name], color="0.4", linestyle="--", label="fit of least norm")
            axis.set(xlabel="factors", ylabel=what)
        axes[1].axhline(values["true_rank"], color="k", linestyle=":", label="truth")
        if all("rho_start" in row for row in rows):
            axes[1].plot(depths, [row["rho_start"] for row in rows], "C0--", linewidth=1, label="before training")
        axes[0].set(title=title)
        axes[0].legend(fontsize=7)
        axes[1].legend(fontsize=7)
        axes[2].semilogy(depths, [max(row["train"], 1e-12) for row in rows], marker="o", color="C3")
        axes[2].set(xlabel="factors", ylabel="relative training error")
        for axis in axes:
            axis.set_xticks(depths)
    return path.with_suffix(".png")


def trajectories(path: Path, values: Mapping[str, Any]) -> Path:
    """All singular values of the product over the steps, a panel a depth: those of the first draw, and below them their
    means over draws; the true ones as marks."""
    paths = values["trajectories"]
    kinds = [("singular_values", "true_singular_values", "first draw"), ("mean", "true_mean", "mean of draws")]
    kinds = [kind for kind in kinds if all(kind[0] in found for found in paths.values())]
    columns = min(4, len(paths))
    rows = -(-len(paths) // columns)
    count = rows * len(kinds)
    with figure(path, count, columns, figsize=(2.8 * columns, 2.4 * count), squeeze=False, sharey=True) as (_, axes):
        for axis in axes.flat:
            axis.set_visible(False)
        for place, (depth, found) in enumerate(paths.items()):
            for below, (name, truth, what) in enumerate(kinds):
                axis = axes[len(kinds) * (place // columns) + below][place % columns]
                axis.set_visible(True)
                axis.plot(found["steps"], found[name], linewidth=0.8)
                for value in values.get(truth, ()):
                    axis.axhline(value, color="0.6", linestyle=":", linewidth=0.7)
                axis.set(title=f"{depth} factor{'s' if depth != '1' else ''}, {what}", xlabel="step")
        for row in axes:
            row[0].set(ylabel="singular value")
    return path.with_suffix(".png")


def lines(
    path: Path, rows: Sequence[Mapping[str, Any]], title: str = "", xlabel: str = "factors", ylabel: str = RANK
) -> Path:
    """Rank against depth, one line an optimiser; hollow where fewer than half of the draws reached the target. Dashed
    the rank before training, which is the same for all of them."""
    with figure(path, figsize=(5.4, 3.8)) as (_, axes):
        for place, name in enumerate(dict.fromkeys(row["optimizer"] for row in rows)):
            own = [row for row in rows if row["optimizer"] == name and row["rho"] is not None]
            axes.plot([row["depth"] for row in own], [row["rho"] for row in own], color=f"C{place}", label=name)
            for row in own:
                face = f"C{place}" if row["reached"] >= 0.5 else "white"
                axes.plot(row["depth"], row["rho"], "o", color=f"C{place}", markerfacecolor=face)
        depths = sorted({row["depth"] for row in rows})
        started: dict[int, Any] = {}
        for row in sorted(rows, key=lambda row: row["reached"]):  # last that of which most draws arrived
            if row.get("rho_start") is not None:
                started[row["depth"]] = row["rho_start"]
        if started:
            axes.plot(sorted(started), [started[d] for d in sorted(started)], "k--", linewidth=1, label="at the start")
        axes.set(xscale="log", xlabel=xlabel, ylabel=ylabel)
        axes.set_title(title, fontsize=9)
        axes.set_xticks(depths, [str(d) for d in depths])
        axes.minorticks_off()
        axes.legend(fontsize=7)
    return path.with_suffix(".png")


def _styles(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Networks by name to (colour, line): a colour a depth, a line a kind of what the name says after it."""
    names = list(names)
    depths = list(dict.fromkeys(name.partition(", ")[0] for name in names))
    kinds = list(dict.fromkeys(name.partition(", ")[2] for name in names))
    styles = ("-", "--", ":", "-.")
    return {
        name: (f"C{depths.index(depth)}", styles[kinds.index(kind) % 4])
        for name in names
        for depth, _, kind in [name.partition(", ")]
    }


def _layers(names: Iterable[str]) -> str:
    """Title of a legend of networks: numbers are depths."""
    return "hidden layers" if all(name[:1].isdigit() for name in names) else "network"


def kernel_curves(path: Path, networks: Mapping[str, Sequence[Mapping[str, Any]]]) -> Path:
    """Rank of the last hidden layer's Gram matrix over training, and of every layer's after it (thin: before it); a
    line a network, mean of seeds."""
    styles = _styles(networks)
    with figure(path, 1, 2, figsize=(9, 3.6)) as (_, axes):
        time = "epoch" if all("epoch" in run["history"][0] for runs in networks.values() for run in runs) else "step"
        for name, runs in networks.items():
            colour, line = styles[name]
            at = [row[time] for row in runs[0]["history"]]
            ranks = np.array([[row["gram_rank"] for row in run["history"]] for run in runs])
            axes[0].plot(at, ranks.mean(0), color=colour, linestyle=line, label=name)
            axes[0].fill_between(at, ranks.min(0), ranks.max(0), color=colour, alpha=0.15, linewidth=0)
            for key, width in (("layer_ranks", 1.5), ("layer_ranks_first", 0.6)):
                if all(key in run for run in runs):
                    layers = np.array([run[key] for run in runs]).mean(0)
                    axes[1].plot(np.arange(1, len(layers) + 1), layers, marker="o", markersize=1.5 + width,
                                 color=colour, linestyle=line, linewidth=width)  # fmt: skip
        axes[0].set(xlabel=time, ylabel=GRAM_RANK, title="last hidden layer, test images")
        axes[1].set(xlabel="hidden layer", title="every layer, after training (thin: before)")
        axes[0].legend(title=_layers(networks), fontsize=7)
    return path.with_suffix(".png")


def rank_against_depth(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Rank of the last hidden layer's Gram matrix against the number of layers, before training (dashed) and after it;
    a colour a kind of skips."""
    with figure(path, figsize=(5, 3.6)) as (_, axes):
        for place, skip in enumerate(dict.fromkeys(row["skip"] for row in rows)):
            own = [row for row in rows if row["skip"] == skip]
            label = f"skips around {skip}" if skip else "no skips"
            for key, line in (("gram_rank", "o-"), ("first_rank", "--")):
                axes.plot([row["depth"] for row in own], [row[key] for row in own], line, color=f"C{place}",
                          label=label if key == "gram_rank" else None)  # fmt: skip
        depths = sorted({row["depth"] for row in rows})
        axes.set(xscale="log", xlabel="hidden layers", ylabel=GRAM_RANK, title="after training; dashed: before")
        axes.set_xticks(depths, [str(d) for d in depths])
        axes.minorticks_off()
        axes.legend(fontsize=7)
    return path.with_suffix(".png")


def ordered_grams(path: Path, grams: Mapping[str, Sequence[Sequence[float]]]) -> Path:
    """Gram matrices of cosines, images in the order of their tree."""
    columns = min(5, len(grams))
    rows = -(-len(grams) // columns)
    with figure(path, rows, columns, figsize=(2.7 * columns, 2.9 * rows), squeeze=False) as (_, axes):
        for axis, (name, matrix) in zip(axes.flat, grams.items(), strict=False):
            axis.imshow(np.array(matrix), vmin=-1, vmax=1, cmap="RdBu_r")
            axis.grid(False)
            depth, comma, rest = name.partition(", ")
            title = f"{depth} hidden layers{comma}{rest}" if depth.isdigit() else name
            axis.set_title(title, fontsize=9)
            axis.set(xticks=[], yticks=[])
        for axis in axes.flat[len(grams) :]:
            axis.set_visible(False)
    return path.with_suffix(".png")


def accuracy_against_rank(path: Path, networks: Mapping[str, Sequence[Mapping[str, Any]]]) -> Path:
    """Test accuracy against the rank of the Gram matrix, a dot a network, a colour a depth."""
    styles = _styles(networks)
    named = set()
    with figure(path, figsize=(4.8, 3.6)) as (_, axes):
        for name, runs in networks.items():
            depth = name.partition(", ")[0]
            axes.plot([run["gram_rank"] for run in runs], [run["accuracy"] for run in runs], "o", markersize=4,
                      color=styles[name][0], label=None if depth in named else depth)  # fmt: skip
            named.add(depth)
        axes.set(xlabel=GRAM_RANK, ylabel="test accuracy")
        axes.legend(title=_layers(networks), fontsize=7)
    return path.with_suffix(".png")


def bars(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Test accuracy of every way of regularising, with standard errors."""
    shown = [row for row in rows if "test" in row]
    with figure(path, figsize=(6.5, 0.38 * len(shown) + 1.2)) as (_, axes):
        axes.barh([row["way"] for row in shown], [row["test"] for row in shown], xerr=[row["test_se"] for row in shown],
                  color=["C1" if "products" in row["way"] else "C0" for row in shown])  # fmt: skip
        low = min((row["test"] for row in shown), default=0.0)
        axes.set(xlabel="test accuracy", xlim=(max(0.0, low - 0.05), None))
        axes.invert_yaxis()
    return path.with_suffix(".png")
