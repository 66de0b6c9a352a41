"""The paper's figures, from runs and from studies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rpg.experiments import NARROW, RINGS, chosen, conv_data, specified, stems
from shared.claims import Outcomes, bootstrap_interval
from shared.figures import COLOURS, figure
from shared.metrics import read_metrics

if TYPE_CHECKING:
    from rpg.tasks import NetworkTask

FREE = "free parameters in all (ring and own)"


def run_figures(folder: Path, task: NetworkTask) -> list[Path]:
    """Curves of a run and, for a ring, the similarity of its layers. Returns the PNG files."""
    made = [curves(folder)]
    if task.model is not None:
        import torch

        with torch.no_grad():
            made += [similarity(task.model.weights(), folder / "figures" / "similarity")]
    return [path for path in made if path is not None]


def curves(folder: Path, path: Path | None = None) -> Path:
    """Training loss of every step and held-out metrics of a run folder; drawn at `path`, else in the folder."""
    train, held_out = list(read_metrics(folder, "train")), list(read_metrics(folder, "eval"))
    path = path or folder / "figures" / "curves"
    with figure(path, 1, 2, figsize=(8, 3.2)) as (_, (left, right)):
        loss = [(row["step"], row["loss"]) for row in train if row.get("loss") is not None]
        left.plot(*zip(*loss, strict=True), color=COLOURS[0], alpha=0.35, linewidth=0.8, label="training, each step")
        window = max(1, len(loss) // 50)
        smooth = [
            (loss[i][0], math.fsum(v for _, v in loss[i - window : i]) / window) for i in range(window, len(loss))
        ]
        if smooth:
            left.plot(*zip(*smooth, strict=True), color=COLOURS[0], label=f"mean of {window}")
        test = [(row["step"], row["loss"]) for row in held_out if row.get("loss") is not None]
        if test:
            left.plot(*zip(*test, strict=True), "o-", color=COLOURS[1], label="test")
        left.set(xlabel="step", ylabel="loss", yscale="log")
        left.legend()
        for index, name in enumerate(("accuracy", "pckh", "depth_error")):
            points = [(row["step"], row[name]) for row in held_out if row.get(name) is not None]
            if points:
                right.plot(*zip(*points, strict=True), "o-", color=COLOURS[index + 1], label=f"test {name}")
        right.set(xlabel="step", ylabel="held-out metric")
        right.legend()
    return path.with_suffix(".png")


def similarity(weights: Any, path: Path) -> Path | None:
    """Cosines between layers of the most common shape; None where there are not two of them."""
    from rpg.analysis import cosine_matrix

    names, cosines = cosine_matrix(weights)
    if len(names) < 2:
        return None
    with figure(path, figsize=(4.8, 4.0)) as (drawn, axes):
        image = axes.imshow(cosines, vmin=-1, vmax=1, cmap="RdBu_r")
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=5)
        axes.set_yticks(range(len(names)), names, fontsize=5)
        axes.set_title("cosine between generated layers", fontsize=9)
        axes.grid(False)
        drawn.colorbar(image, ax=axes, shrink=0.8)
    return path.with_suffix(".png")


def draw_study(outcomes: Outcomes, folder: Path) -> list[Path]:
    """Every figure that the finished cells allow; SVGs are left to those who want them."""
    made: list[Path] = []
    sets = {"digits": "digits", "mnist5k": "MNIST-5k", "mnist": "MNIST", "fashion": "Fashion-MNIST"}
    present = {data: title for data, title in sets.items() if stems(outcomes, f"{data} mlp vanilla")}
    if present:
        made.append(perceptron(outcomes, present, folder / "accuracy-vs-dof"))
    for place, data in enumerate(conv_data(outcomes)):
        end = f"-{data}" if place else ""  # the first is the one whose figures the README shows by their plain names
        made += [
            plans(outcomes, data, folder / f"plans{end}"),
            afterwards(outcomes, data, folder / f"keys-pruning-quantisation{end}"),
            generalisation(outcomes, data, folder / f"train-test-gap{end}"),
            convergence(outcomes, data, folder / f"convergence{end}"),
            pruning_curve(outcomes, data, folder / f"pruning{end}"),
        ]
    if "resnet18 vanilla" in outcomes:
        made.append(resnet(outcomes, folder / "resnet18"))
    for data in ("cifar10", "cifar100"):
        if f"{data} resnet18 vanilla" in outcomes and f"{data} resnet34 vanilla" in outcomes:
            made.append(hosts(outcomes, data, folder / f"{data}-hosts"))
        if f"{data} resnet18 even 1/8 layer" in outcomes:
            made.append(scopes(outcomes, data, folder / f"{data}-scopes"))
        if f"{data} msblock deq" in outcomes:
            made.append(implicit(outcomes, data, folder / f"{data}-implicit"))
    return made


def hosts(outcomes: Outcomes, data: str, path: Path) -> Path:
    """Accuracy against the logarithm of all free parameters, two hosts, beside narrow and pruned networks."""
    with figure(path, figsize=(6.2, 4.0), svg=False) as (_, axes):
        for place, host in enumerate(("resnet18", "resnet34")):
            for kind, style in (("even", "o-"), ("narrow", "s:"), ("pruned", "^:")):
                names = [name for name in outcomes.names() if name.startswith(f"{data} {host} {kind} ")]
                names = [name for name in names if not name.endswith(("stage", "block", "layer"))]
                points = sorted((_free(outcomes, name), outcomes.values(name, "accuracy")) for name in names)
                x, y = [point[0] for point in points], [math.fsum(v) / len(v) for _, v in points]
                axes.plot(
                    x, y, style, color=COLOURS[place], alpha=1 if kind == "even" else 0.6, label=f"{host}, {kind}"
                )
            full = outcomes.values(f"{data} {host} vanilla", "accuracy")
            label = f"{host}, plain"
            axes.axhline(math.fsum(full) / len(full), color=COLOURS[place], linestyle="--", linewidth=1, label=label)
        axes.set(xscale="log", xlabel=FREE, ylabel="test accuracy", title=data)
        axes.legend(fontsize=7)
    return path.with_suffix(".png")


def _free(outcomes: Outcomes, name: str) -> int:
    return int(outcomes.raw(name)[0]["parameters"])


def scopes(outcomes: Outcomes, data: str, path: Path) -> Path:
    """One global ring against local ones of equal total size."""
    kinds = {"global": "", "stage": " stage", "block": " block", "layer": " layer"}
    with figure(path, svg=False) as (_, axes):
        for place, suffix in enumerate(kinds.values()):
            values = outcomes.values(f"{data} resnet18 even 1/8{suffix}", "accuracy")
            axes.bar(place, math.fsum(values) / len(values), color=COLOURS[place], alpha=0.75)
            axes.plot([place] * len(values), values, "k_", markersize=10)
        axes.set_xticks(range(len(kinds)), list(kinds))
        axes.set(ylabel="test accuracy", xlabel="a ring for each", title=f"ResNet-18 at an eighth, {data}")
    return path.with_suffix(".png")


def implicit(outcomes: Outcomes, data: str, path: Path) -> Path:
    """Accuracy against the time of a forward pass: the implicit model, and unrolled ones from a ring."""
    names = [name for name in outcomes.names() if name.startswith(f"{data} msblock ")]
    with figure(path, svg=False) as (_, axes):
        for place, name in enumerate(names):
            values, times = outcomes.values(name, "accuracy"), outcomes.values(name, "inference_ms")
            mean = math.fsum(values) / len(values), math.fsum(times) / len(times)
            marker = "s" if name.endswith("deq") else "o"
            label = f"{name.removeprefix(f'{data} msblock ')}: {outcomes.raw(name)[0]['parameters']:,}"
            axes.plot(mean[1], mean[0], marker, color=COLOURS[place % len(COLOURS)], label=label)
        axes.set(xscale="log", xlabel="milliseconds for 100 images", ylabel="test accuracy", title=data)
        axes.legend(fontsize=7, title="model: parameters")
    return path.with_suffix(".png")


def _residual(outcomes: Outcomes, data: str) -> dict[str, str]:
    """Label -> cells of the residual network on a data set, all methods at the specified learning rate."""
    prefix = f"conv {data}"
    return {stem.removeprefix(f"{prefix} "): specified(stem) for stem in stems(outcomes, prefix)}


def _title(outcomes: Outcomes, data: str, what: str) -> str:
    return f"{what}\n{outcomes.raw(specified(f'conv {data} vanilla'))[0]['data']}"


def _marks(axes: Any, place: float, values: Sequence[float], colour: str, label: str | None = None) -> None:
    """The mean with its interval over the seeds, and every seed."""
    mean = math.fsum(values) / len(values)
    low, high = bootstrap_interval(values)
    axes.errorbar(
        place, mean, [[mean - low], [high - mean]], fmt="o", color=colour, capsize=4, markersize=6, label=label
    )
    axes.plot([place + 0.12] * len(values), values, "_", color="black", markersize=8)


def perceptron(outcomes: Outcomes, sets: dict[str, str], path: Path) -> Path:
    """The paper's headline figure: accuracy against the logarithm of the degrees of freedom."""
    with figure(path, 1, len(sets), figsize=(4.2 * len(sets), 3.6), squeeze=False, sharey=True, svg=False) as (_, rows):
        for axes, (data, title) in zip(rows[0], sets.items(), strict=True):
            for plan, colour, label in (("even", COLOURS[0], "ring, even plan"), ("reuse", COLOURS[2], "plain reuse")):
                points = []
                for size in RINGS:
                    stem = f"{data} mlp {plan} M={size}"
                    if stems(outcomes, stem):
                        name = chosen(outcomes, stem)
                        points.append((_free(outcomes, name), outcomes.values(name, "accuracy")))
                _band(axes, points, colour, label)
            narrow = []
            for width in NARROW:
                if not stems(outcomes, f"{data} mlp narrow h={width}"):
                    continue
                name = chosen(outcomes, f"{data} mlp narrow h={width}")
                narrow.append((_free(outcomes, name), outcomes.values(name, "accuracy")))
            _band(axes, narrow, COLOURS[1], "narrow network")
            name = chosen(outcomes, f"{data} mlp vanilla")
            full, label = outcomes.values(name, "accuracy"), f"full network ({_free(outcomes, name):,})"
            axes.axhline(math.fsum(full) / len(full), color="black", linestyle="--", linewidth=1, label=label)
            axes.set(xscale="log", xlabel=FREE, title=title, ylim=(0, 1))
        rows[0][0].set_ylabel("test accuracy")
        rows[0][0].legend(loc="lower right", fontsize=7)  # the panel that has every line
    return path.with_suffix(".png")


def _band(axes: Any, points: Sequence[tuple[float, Sequence[float]]], colour: str, label: str) -> None:
    points = sorted(points)
    if not points:
        return
    x = [size for size, _ in points]
    axes.plot(x, [math.fsum(values) / len(values) for _, values in points], "o-", color=colour, label=label)
    axes.fill_between(x, [min(v) for _, v in points], [max(v) for _, v in points], color=colour, alpha=0.2)


def plans(outcomes: Outcomes, data: str, path: Path, tuned: bool = False) -> Path:
    """Plans, scopes and baselines on the residual network: means with intervals, and every seed; at the specified
    learning rate, or each at the best of those that were tried."""
    names = _residual(outcomes, data)
    if tuned:
        names = {label: chosen(outcomes, f"conv {data} {label}") for label in names}
    what = "Residual network" + (", each at its best learning rate" if tuned else "")
    with figure(path, figsize=(6.2, 3.8), svg=False) as (_, axes):
        for place, name in enumerate(names.values()):
            _marks(axes, place, outcomes.values(name, "accuracy"), COLOURS[place % len(COLOURS)])
        labels = [f"{label}\n{_free(outcomes, name):,}" for label, name in names.items()]
        axes.set_xticks(range(len(names)), labels, fontsize=7)
        axes.set(ylabel="test accuracy (mean, 95 % interval, seeds)", title=_title(outcomes, data, what))
        axes.set_xlabel("parameterisation; below it: free parameters in all")
    return path.with_suffix(".png")


def afterwards(outcomes: Outcomes, data: str, path: Path) -> Path:
    """What another key, pruning and 8 bits do to the trained ring."""
    kinds = {
        "accuracy": "as trained",
        "pruned_at_once_accuracy": "30 %\npruned",
        "pruned_accuracy": "30 % pruned,\none epoch",
        "int8_accuracy": "8 bits",
        "first_wrong_key_accuracy": "another key",
    }
    with figure(path, figsize=(5.0, 3.6), svg=False) as (_, axes):
        for place, metric in enumerate(kinds):
            values = outcomes.values(specified(f"conv {data} even 1/8"), metric)
            axes.bar(place, math.fsum(values) / len(values), color=COLOURS[place], alpha=0.75)
            axes.plot([place] * len(values), values, "k_", markersize=10)
        axes.axhline(0.1, color="black", linestyle=":", linewidth=1, label="chance")
        axes.set_xticks(range(len(kinds)), list(kinds.values()))
        axes.set(ylabel="test accuracy", title=_title(outcomes, data, "Residual network from a ring of an eighth"))
        axes.legend(loc="upper right")
    return path.with_suffix(".png")


def convergence(outcomes: Outcomes, data: str, path: Path) -> Path:
    """Training loss of the residual network under every parameterisation, mean of the seeds."""
    with figure(path, svg=False) as (_, axes):
        for place, (label, name) in enumerate(_residual(outcomes, data).items()):
            curves = [values["curve"] for values in outcomes.raw(name)]
            steps = [step for step, _ in curves[0]]
            means = [math.fsum(curve[i][1] for curve in curves) / len(curves) for i in range(len(steps))]
            axes.plot(steps, means, color=COLOURS[place % len(COLOURS)], label=label)
        title = _title(outcomes, data, "Residual network, mean of the seeds")
        axes.set(xlabel="step", ylabel="training loss", yscale="log", title=title)
        axes.legend(fontsize=7)
    return path.with_suffix(".png")


def pruning_curve(outcomes: Outcomes, data: str, path: Path) -> Path:
    """Accuracy against the share of ring numbers that are pruned, without further training."""
    from rpg.train import PRUNED_SHARES

    name = specified(f"conv {data} even 1/8")
    points = [(0.0, outcomes.values(name, "accuracy"))]
    points += [(share, outcomes.values(name, f"pruned_{share:g}_accuracy")) for share in PRUNED_SHARES]
    again = outcomes.values(name, "pruned_accuracy")
    with figure(path, svg=False) as (_, axes):
        _band(axes, points, COLOURS[0], "pruned at once")
        axes.plot([0.3] * len(again), again, "^", color=COLOURS[1], label="30 %, one more epoch")
        axes.axhline(0.1, color="black", linestyle=":", linewidth=1, label="chance")
        axes.set(xlabel="share of the ring pruned by magnitude", ylabel="test accuracy", ylim=(0, None))
        axes.set_title(_title(outcomes, data, "Residual network from a ring of an eighth"))
        axes.legend()
    return path.with_suffix(".png")


def generalisation(outcomes: Outcomes, data: str, path: Path) -> Path:
    """Training and test accuracy side by side: the gap that a ring narrows by fitting less."""
    names = _residual(outcomes, data)
    with figure(path, figsize=(6.2, 3.8), svg=False) as (_, axes):
        kinds = ((-0.2, "train_accuracy", "training set"), (0.2, "accuracy", "test set"))
        for colour, (shift, metric, label) in zip(COLOURS, kinds, strict=False):
            for place, name in enumerate(names.values()):
                values = outcomes.values(name, metric)
                mean, shown = math.fsum(values) / len(values), None if place else label
                axes.bar(place + shift, mean, width=0.38, color=colour, alpha=0.75, label=shown)
                axes.plot([place + shift] * len(values), values, "k_", markersize=8)
        axes.set_xticks(range(len(names)), list(names), fontsize=7)
        axes.set(xlabel="parameterisation", ylabel="accuracy (mean, seeds)", ylim=(0, 1.15))
        axes.set_title(_title(outcomes, data, "Training and test accuracy of the residual network"))
        axes.legend(loc="upper right", ncol=2)
    return path.with_suffix(".png")


def resnet(outcomes: Outcomes, path: Path) -> Path:
    """ResNet-18: accuracy against the ring's size, with the plain and the narrow network."""
    with figure(path, svg=False) as (_, axes):
        long, short = [], []
        for name in outcomes.names():
            if name.startswith(("resnet18 even", "resnet18 short")):
                entry = (_free(outcomes, name), outcomes.values(name, "accuracy"))
                (short if "short" in name else long).append(entry)
        _band(axes, long, COLOURS[0], "ring, 30 epochs")
        _band(axes, short, COLOURS[2], "ring, 10 epochs")
        if "resnet18 narrow 1/50" in outcomes:
            name = "resnet18 narrow 1/50"
            _band(axes, [(_free(outcomes, name), outcomes.values(name, "accuracy"))], COLOURS[1], "narrow")
        full = outcomes.values("resnet18 vanilla", "accuracy")
        axes.axhline(math.fsum(full) / len(full), color="black", linestyle="--", linewidth=1, label="plain ResNet-18")
        title = f"ResNet-18, {outcomes.raw('resnet18 vanilla')[0]['data']}"
        axes.set(xscale="log", xlabel=FREE, ylabel="test accuracy", title=title)
        axes.legend()
    return path.with_suffix(".png")


def scaling(dof: Sequence[float], accuracy: Sequence[float], path: Path, title: str = "") -> Path:
    """Points and the log-linear fit with its equation."""
    import numpy as np

    from rpg.analysis import fit_loglinear

    fit = fit_loglinear(dof, accuracy)
    with figure(path) as (_, axes):
        axes.plot(dof, accuracy, "o", color=COLOURS[0])
        x = np.geomspace(min(dof), max(dof), 50)
        label = f"{fit.slope:.3f} log10 M {fit.intercept:+.3f}, r2 = {fit.r2:.3f}"
        axes.plot(x, fit.slope * np.log10(x) + fit.intercept, color=COLOURS[1], label=label)
        axes.set(xscale="log", xlabel="ring numbers M", ylabel="accuracy", title=title)
        axes.legend()
    return path.with_suffix(".png")


def sweep_figures(outcomes: Outcomes, folder: Path) -> list[Path]:
    """Accuracy against the ring's size for every host, plan and scope of a sweep, and its convergence laws."""
    lines: dict[str, list[tuple[float, Sequence[float]]]] = {}
    for name in outcomes.names():
        stem, found, _ = name.rpartition(" M/N=")
        first = outcomes.raw(name)[0]
        metric = next((m for m in ("accuracy", "pckh", "depth_error") if m in first), None)
        if found and metric is not None:
            size = first["parameters"]
            lines.setdefault(stem, []).append((size, outcomes.values(name, metric)))
    if not lines:
        return []
    path = folder / "sweep"
    with figure(path) as (_, axes):
        for place, (stem, points) in enumerate(lines.items()):
            _band(axes, points, COLOURS[place % len(COLOURS)], stem)
        for name in outcomes.names():
            if name.endswith(" vanilla"):
                values = outcomes.values(name, "accuracy")
                axes.axhline(math.fsum(values) / len(values), color="black", linestyle="--", linewidth=1, label=name)
        axes.set(xscale="log", xlabel=FREE, ylabel="held-out metric")
        axes.legend(fontsize=7)
    return [path.with_suffix(".png")]
