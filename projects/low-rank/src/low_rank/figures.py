"""Figures of runs and of the studies, in the shared style. Every axis of an effective rank says nats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        axes[0].set(title=title)
        axes[0].legend(fontsize=7)
        axes[1].legend(fontsize=7)
        axes[2].semilogy(depths, [max(row["train"], 1e-12) for row in rows], marker="o", color="C3")
        axes[2].set(xlabel="factors", ylabel="relative training error")
    return path.with_suffix(".png")


def trajectories(path: Path, values: Mapping[str, Any]) -> Path:
    """The largest singular values of one draw's product over the steps, a panel a depth; the truth as marks."""
    paths = values["trajectories"]
    columns = min(4, len(paths))
    rows = -(-len(paths) // columns)
    with figure(path, rows, columns, figsize=(2.8 * columns, 2.6 * rows), squeeze=False, sharey=True) as (_, axes):
        for axis, (depth, found) in zip(axes.flat, paths.items(), strict=False):
            axis.plot(found["steps"], found["singular_values"], linewidth=1)
            for value in values["true_singular_values"]:
                axis.axhline(value, color="0.6", linestyle=":", linewidth=0.7)
            axis.set(title=f"{depth} factors", xlabel="step")
        axes[0][0].set(ylabel="singular value")
        for axis in axes.flat[len(paths) :]:
            axis.set_visible(False)
    return path.with_suffix(".png")


def lines(path: Path, rows: Sequence[Mapping[str, Any]], title: str = "") -> Path:
    """Rank against depth, one line an optimiser; hollow where fewer than half of the draws reached the target."""
    with figure(path, figsize=(5.4, 3.8)) as (_, axes):
        for place, name in enumerate(dict.fromkeys(row["optimizer"] for row in rows)):
            own = [row for row in rows if row["optimizer"] == name and row["rho"] is not None]
            axes.plot([row["depth"] for row in own], [row["rho"] for row in own], color=f"C{place}", label=name)
            for row in own:
                face = f"C{place}" if row["reached"] >= 0.5 else "white"
                axes.plot(row["depth"], row["rho"], "o", color=f"C{place}", markerfacecolor=face)
        depths = sorted({row["depth"] for row in rows})
        axes.set(xscale="log", xlabel="factors", ylabel=RANK, title=title)
        axes.set_xticks(depths, [str(d) for d in depths])
        axes.minorticks_off()
        axes.legend(fontsize=7)
    return path.with_suffix(".png")


def kernel_curves(path: Path, networks: Mapping[str, Sequence[Mapping[str, Any]]]) -> Path:
    """Rank of the last hidden layer's Gram matrix over training, and of every layer's after it; a line a depth, mean of
    seeds."""
    with figure(path, 1, 2, figsize=(9, 3.6)) as (_, axes):
        for place, (depth, runs) in enumerate(networks.items()):
            steps = [row["step"] for row in runs[0]["history"]]
            ranks = np.array([[row["gram_rank"] for row in run["history"]] for run in runs])
            axes[0].plot(steps, ranks.mean(0), color=f"C{place}", label=depth)
            axes[0].fill_between(steps, ranks.min(0), ranks.max(0), color=f"C{place}", alpha=0.15, linewidth=0)
            layers = np.array([run["layer_ranks"] for run in runs]).mean(0)
            axes[1].plot(np.arange(1, len(layers) + 1), layers, "o-", markersize=3, color=f"C{place}", label=depth)
        axes[0].set(xlabel="step", ylabel=GRAM_RANK, title="last hidden layer, test images")
        axes[1].set(xlabel="hidden layer", title="every layer, after training")
        axes[0].legend(title="hidden layers", fontsize=7)
    return path.with_suffix(".png")


def ordered_grams(path: Path, grams: Mapping[str, Sequence[Sequence[float]]]) -> Path:
    """Gram matrices of cosines, images in the order of their tree."""
    with figure(path, 1, len(grams), figsize=(2.7 * len(grams), 2.9), squeeze=False) as (_, axes):
        for axis, (depth, matrix) in zip(axes[0], grams.items(), strict=True):
            axis.imshow(np.array(matrix), vmin=-1, vmax=1, cmap="RdBu_r")
            axis.grid(False)
            axis.set(title=f"{depth} hidden layers", xticks=[], yticks=[])
    return path.with_suffix(".png")


def accuracy_against_rank(path: Path, networks: Mapping[str, Sequence[Mapping[str, Any]]]) -> Path:
    """Test accuracy against the rank of the Gram matrix, a dot a network."""
    with figure(path, figsize=(4.8, 3.6)) as (_, axes):
        for place, (depth, runs) in enumerate(networks.items()):
            axes.plot([run["gram_rank"] for run in runs], [run["accuracy"] for run in runs], "o", color=f"C{place}",
                      label=depth)  # fmt: skip
        axes.set(xlabel=GRAM_RANK, ylabel="test accuracy")
        axes.legend(title="hidden layers", fontsize=7)
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
