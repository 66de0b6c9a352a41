"""Studies of trained networks: what depth does to their kernels, and products against explicit penalties.

Each trains many networks; a finished one is kept in the study's folder and not trained again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from low_rank import figures
from low_rank.chosen import chosen, more_rates
from low_rank.classification import Classification, spaced
from low_rank.commands import results_folder, written
from low_rank.config import CompareConfig, KernelsConfig, TrainConfig
from low_rank.kernels import layer_ranks, ordered_gram
from low_rank.train import MEMBER, measure
from shared.augment import normalise
from shared.cli import print_table
from shared.config import RunFailed, to_json
from shared.data import Batches
from shared.loop import Loop
from shared.run import write_json

RUN = tuple(field.name for field in dataclasses.fields(TrainConfig))
PLACES = {"out", "resume", "force", "quiet", "preset"}  # of a network, not part of what it is


def network_config(config: KernelsConfig | CompareConfig, **changes: Any) -> TrainConfig:
    """The config of one network of a study."""
    fields = {name: getattr(config, name) for name in RUN}
    return TrainConfig(**{**fields, "out": None, "force": False, "quiet": True, **changes})


def _kept(
    folder: Path, config: TrainConfig, force: bool, made: Callable[[TrainConfig], dict[str, Any]], **more: Any
) -> dict[str, Any]:
    """What is made of a network, from the folder if it is there; `more` is what it depends on beside its config."""
    said = {name: value for name, value in to_json(config).items() if name not in PLACES} | more
    key = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:16]
    path = folder / "networks" / f"{key}.json"
    if path.exists() and not force:
        try:
            return json.loads(path.read_text("utf-8"))["values"]
        except (ValueError, KeyError, TypeError):
            pass  # damaged: trained again
    values = made(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"config": said, "values": values})
    return values


# -- kernels ---------------------------------------------------------------------------------------------------------

AXES = {"skips": "skip", "lrs": "lr", "decays": "weight_decay", "batches": "batch_size", "noises": "label_noise"}
"""Flags of `kernels` that list settings, and the field of a network that each sets."""
SHOWN = {"skip": "skips of", "lr": "rate", "weight_decay": "decay", "batch_size": "batch", "label_noise": "noise"}


class Watched(Classification):
    """A classifier of which the rank of every hidden layer is noted at each evaluation: once an epoch, if not said
    otherwise."""

    def start(self, loop: Loop) -> None:
        super().start(loop)
        self.layers: dict[int, dict[str, float]] = {}  # step -> layer -> rank

    def batches(self) -> Batches:
        found = super().batches()
        self.epoch = len(found)
        if self.config.epochs is not None and self.config.eval_every is None:
            self.loop.config = dataclasses.replace(self.loop.config, eval_every=self.epoch)
        return found

    def evaluate_now(self) -> dict[str, float]:
        metrics = super().evaluate_now()
        self.layers[self.loop.step] = layer_ranks(self.model, normalise(self.probes()[0], self.data))
        return metrics


def kernel_network(config: TrainConfig, linkage: int) -> dict[str, Any]:
    """Train one network and look at its kernels on test images.

    Returns: the final metrics; `history`, a row an evaluation, with `epoch` and `layers`, the effective rank of the
    Gram matrix of each hidden layer (of `--probes` images); `layer_ranks`, these after training; `layer_ranks_first`,
    before it; `gram`, the last hidden layer's of `linkage` images in the order of their tree; `cophenetic`, `within`
    and `between`, as in `low_rank.kernels`. Warns of layers with constant features.
    """
    task = Watched(config)
    summary = Loop(task, config, MEMBER, folder=False).run()
    features = task.features()
    last = list(features)[-1]
    labels = task.probes()[1]
    some = spaced(len(labels), linkage)
    ordered = ordered_gram(features[last][some].double(), labels[some])
    assert ordered.contrast is not None
    history = [
        {**row, "epoch": row["step"] / task.epoch, "layers": list(task.layers[int(row["step"])].values())}
        for row in task.history.rows
    ]
    return {
        **summary["metrics"],
        "history": history,
        "layer_ranks": history[-1]["layers"],
        "layer_ranks_first": history[0]["layers"],
        "cophenetic": ordered.cophenetic,
        "within": ordered.contrast.within,
        "between": ordered.contrast.between,
        "gram": [[round(value, 4) for value in row] for row in ordered.gram.tolist()],
    }


def kernel_settings(config: KernelsConfig) -> dict[str, TrainConfig]:
    """Every network of the study by name, but for its seed: the depth, or the architecture where that is its depth,
    then what differs beside it."""
    axes = {field: getattr(config, flag) or (getattr(config, field),) for flag, field in AXES.items()}
    depths = [{"hidden": depth} for depth in config.depths] if config.model == "mlp" else [{}]
    found = {}
    for depth, values in itertools.product(depths, itertools.product(*axes.values())):
        fields = dict(zip(axes, values, strict=True))
        name = str(depth.get("hidden", config.model))
        for field, value in fields.items():
            if len(axes[field]) > 1:
                name += f", {SHOWN[field]} {value:g}"
        found[name] = network_config(config, **depth, **fields)
    return found


def kernel_study(config: KernelsConfig, folder: Path) -> dict[str, Any]:
    """Networks of every setting and seed.

    Returns: `rows`, one a setting, means over seeds; `networks`, each by the setting's name; `main`, names of the
    settings that differ by depth and skips alone; `falls`, of each kind of skips among them, what the largest depth
    takes off the rank that the smallest leaves, at first and after training.
    """
    settings = kernel_settings(config)
    networks: dict[str, list[dict[str, Any]]] = {}
    pairs = [(name, seed) for name in settings for seed in range(config.seeds)]
    for name, seed in tqdm(pairs, unit="network", disable=True if config.quiet else None, desc="kernels"):
        own = dataclasses.replace(settings[name], seed=config.seed + seed)
        values = _kept(
            folder, own, config.force, lambda each: kernel_network(each, config.linkage), linkage=config.linkage
        )
        networks.setdefault(name, []).append(values)
    names = ("accuracy", "train", "gram_rank", "cophenetic", "within", "between")
    rows = [
        {"network": name, "model": own.model, "depth": own.hidden if own.model == "mlp" else None}
        | {field: getattr(own, field) for field in AXES.values()}
        | {"first_rank": statistics.fmean(run["history"][0]["gram_rank"] for run in networks[name])}
        | {metric: statistics.fmean(run[metric] for run in networks[name]) for metric in names}
        for name, own in settings.items()
    ]
    others = [field for field in AXES.values() if field != "skip"]
    first = [rows[0][field] for field in others]
    main = [row for row in rows if [row[field] for field in others] == first]
    falls = []
    for skip in dict.fromkeys(row["skip"] for row in main):
        own = [row for row in main if row["skip"] == skip]
        falls.append({"skip": skip, **{k: own[0][k] - own[-1][k] for k in ("first_rank", "gram_rank")}})
    return {"rows": rows, "networks": networks, "main": [row["network"] for row in main], "falls": falls}


def kernels(config: KernelsConfig) -> int:
    """`low-rank kernels`."""
    folder, table = results_folder(config.out, "kernels", config.force)
    values = kernel_study(config, folder)
    deep = config.model == "mlp"
    columns = ("network", "accuracy", "train", "first_rank", "gram_rank", "cophenetic", "within", "between")
    shown = ("hidden layers" if deep else "network", "test", "training", "Gram rank at first", "after", "cophenetic",
             "cosine within classes", "between")  # fmt: skip
    rows = [[row[name] for name in columns] for row in values["rows"]]
    what = f"{config.activation} networks of width {config.width}" if deep else config.model
    print_table(f"{what} on {config.data}, {config.seeds} seeds", shown, rows, config.quiet)
    if deep and len(config.depths) > 1 and len(values["falls"]) > 1:
        falls = [[fall[k] for k in ("skip", "first_rank", "gram_rank")] for fall in values["falls"]]
        print_table(
            f"what {config.depths[-1]} hidden layers take off the rank of {config.depths[0]}",
            ("skips around", "at first", "after training"),
            falls,
            config.quiet,
        )
    kept = [row for row in values["rows"] if row["network"] in values["main"]]
    main = {}  # named by depth and skips alone, which is all that differs
    for row in kept:
        skips = f", skips of {row['skip']}" if len(config.skips) > 1 else ""
        main[f"{row['depth'] or row['model']}{skips}"] = values["networks"][row["network"]]
    drawn = [
        figures.kernel_curves(folder / "kernels", main),
        figures.ordered_grams(folder / "ordered", {name: runs[0]["gram"] for name, runs in main.items()}),
        figures.accuracy_against_rank(folder / "accuracy", values["networks"]),
    ]
    if deep and len(config.depths) > 1:
        drawn.append(figures.rank_against_depth(folder / "depth", kept))
    return written(table, config, values, drawn, config.quiet)


# -- compare ---------------------------------------------------------------------------------------------------------


def variants(config: CompareConfig) -> dict[str, list[TrainConfig]]:
    """Every way of regularising by name, with its settings: all strengths at all learning rates. A way without a
    strength has as many settings, by further learning rates, so that none is searched for longer than another."""
    rates = config.lrs or (config.lr,)
    more = more_rates(rates, len(config.strengths) * len(rates))
    grid = list(itertools.product(config.strengths, rates))
    plain = network_config(config, expand="none")
    found = {"plain": [dataclasses.replace(plain, lr=lr) for lr in more]}
    for name in config.regularisers:
        found[name] = [dataclasses.replace(plain, regulariser=name, strength=strength, lr=lr) for strength, lr in grid]
    for depth in config.expansions:
        products = network_config(config, expand="all", depth=depth)
        found[f"products of {depth}"] = [dataclasses.replace(products, lr=lr) for lr in more]
        found[f"products of {depth}, decay"] = [
            dataclasses.replace(products, weight_decay=strength, lr=lr) for strength, lr in grid
        ]
    return found


def comparison(config: CompareConfig, folder: Path) -> dict[str, Any]:
    """Networks of every way, setting and seed: `rows`, of each way the setting that held-out samples choose, as
    `low_rank.chosen` does."""
    made = variants(config)
    todo = [(name, own, seed) for name, settings in made.items() for own in settings for seed in range(config.seeds)]
    found: dict[str, list[Mapping[str, Any] | None]] = {}
    for name, setting, seed in tqdm(todo, unit="network", disable=True if config.quiet else None, desc="compare"):
        own = dataclasses.replace(setting, seed=config.seed + seed)
        try:
            values: Mapping[str, Any] | None = _kept(folder, own, config.force, measure)
        except RunFailed:
            values = None
        found.setdefault(name, []).append(values)
    rows = []
    for name, settings in made.items():
        said = [{"strength": own.strength or own.weight_decay or None, "lr": own.lr} for own in settings]
        runs = [found[name][i * config.seeds : (i + 1) * config.seeds] for i in range(len(settings))]
        rows.append({"way": name, **chosen(list(zip(said, runs, strict=True)), config.seeds)})
    return {"rows": rows}


def compare(config: CompareConfig) -> int:
    """`low-rank compare`."""
    folder, table = results_folder(config.out, "compare", config.force)
    values = comparison(config, folder)
    names = ("way", "settings", "diverged", "strength", "lr", "validation", "test", "test_se", "train", "rank")
    shown = (
        "regularised by",
        "settings",
        "diverged",
        "strength",
        "learning rate",
        "held-out",
        "test",
        "its s.e.",
        "training",
        "rank of hidden weights",
    )
    rows = [[row.get(name) for name in names] for row in values["rows"]]
    title = f"{config.model} on {config.data}: settings chosen on {config.validation} held-out samples"
    print_table(title, shown, rows, config.quiet)
    drawn = [figures.bars(folder / "compare", values["rows"])]
    return written(table, config, values, drawn, config.quiet)
