"""Studies of trained networks: what depth does to their kernels, and products against explicit penalties.

Each trains many networks; a finished one is kept in the study's folder and not trained again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from low_rank import figures
from low_rank.classification import Classification, spaced
from low_rank.commands import results_folder, written
from low_rank.config import CompareConfig, KernelsConfig, TrainConfig
from low_rank.kernels import feature_rank, ordered_gram
from low_rank.train import MEMBER, measure
from shared.cli import print_table
from shared.config import RunFailed, to_json
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


def kernel_network(config: TrainConfig, linkage: int) -> dict[str, Any]:
    """Train one network and look at its kernels on test images.

    Returns: the final metrics; `history`; `layer_ranks`, effective rank of the Gram matrix of each hidden layer (of
    `--probes` images); `gram`, the last hidden layer's of `linkage` images in the order of their tree; `cophenetic`,
    `within` and `between`, as in `low_rank.kernels`.
    """
    task = Classification(config)
    summary = Loop(task, config, MEMBER, folder=False).run()
    features = task.features()
    last = list(features)[-1]
    labels = task.probes()[1]
    some = spaced(len(labels), linkage)
    ordered = ordered_gram(features[last][some].double(), labels[some])
    assert ordered.contrast is not None
    return {
        **summary["metrics"],
        "history": task.history.rows,
        "layer_ranks": [feature_rank(value) for value in features.values()],
        "cophenetic": ordered.cophenetic,
        "within": ordered.contrast.within,
        "between": ordered.contrast.between,
        "gram": [[round(value, 4) for value in row] for row in ordered.gram.tolist()],
    }


def kernel_study(config: KernelsConfig, folder: Path) -> dict[str, Any]:
    """Networks of every depth and seed: `rows`, means over seeds, and `networks`, each."""
    networks: dict[str, list[dict[str, Any]]] = {}
    pairs = [(depth, seed) for depth in config.depths for seed in range(config.seeds)]
    for depth, seed in tqdm(pairs, unit="network", disable=True if config.quiet else None, desc="kernels"):
        own = network_config(config, hidden=depth, seed=config.seed + seed)
        values = _kept(
            folder, own, config.force, lambda each: kernel_network(each, config.linkage), linkage=config.linkage
        )
        networks.setdefault(str(depth), []).append(values)
    names = ("accuracy", "train", "gram_rank", "cophenetic", "within", "between")
    rows = [
        {"depth": int(depth), "first_rank": statistics.fmean(run["history"][0]["gram_rank"] for run in runs)}
        | {name: statistics.fmean(run[name] for run in runs) for name in names}
        for depth, runs in networks.items()
    ]
    return {"rows": rows, "networks": networks}


def kernels(config: KernelsConfig) -> int:
    """`low-rank kernels`."""
    folder, table = results_folder(config.out, "kernels", config.force)
    values = kernel_study(config, folder)
    columns = ("depth", "accuracy", "train", "first_rank", "gram_rank", "cophenetic", "within", "between")
    shown = ("hidden layers", "test", "training", "Gram rank at first", "after", "cophenetic", "cosine within classes",
             "between")  # fmt: skip
    rows = [[row[name] for name in columns] for row in values["rows"]]
    title = f"{config.activation} networks of width {config.width} on {config.data}, {config.seeds} seeds"
    print_table(title, shown, rows,
                config.quiet)  # fmt: skip
    drawn = [
        figures.kernel_curves(folder / "kernels", values["networks"]),
        figures.ordered_grams(
            folder / "ordered", {depth: runs[0]["gram"] for depth, runs in values["networks"].items()}
        ),
        figures.accuracy_against_rank(folder / "accuracy", values["networks"]),
    ]
    return written(table, config, values, drawn, config.quiet)


# -- compare ---------------------------------------------------------------------------------------------------------


def variants(config: CompareConfig) -> dict[str, list[TrainConfig]]:
    """Every way of regularising by name, with its settings: the same number for each way that has a strength, so that
    none is searched for longer than another."""
    found = {"plain": [network_config(config, expand="none")]}
    for name in config.regularisers:
        found[name] = [
            network_config(config, expand="none", regulariser=name, strength=strength) for strength in config.strengths
        ]
    for depth in config.expansions:
        products = network_config(config, expand="all", depth=depth)
        found[f"products of {depth}"] = [products]
        found[f"products of {depth}, decay"] = [
            dataclasses.replace(products, weight_decay=strength) for strength in config.strengths
        ]
    return found


def comparison(config: CompareConfig, folder: Path) -> dict[str, Any]:
    """Networks of every way, setting and seed: `rows`, of each way the setting that held-out samples choose.

    A setting under which a network diverges is out of the choice, and counted.
    """
    rows = []
    todo = [
        (name, place, seed)
        for name, settings in variants(config).items()
        for place in range(len(settings))
        for seed in range(config.seeds)
    ]
    found: dict[tuple[str, int], list[Mapping[str, Any] | None]] = {}
    made = variants(config)
    for name, place, seed in tqdm(todo, unit="network", disable=True if config.quiet else None, desc="compare"):
        own = dataclasses.replace(made[name][place], seed=config.seed + seed)
        try:
            values: Mapping[str, Any] | None = _kept(folder, own, config.force, measure)
        except RunFailed:
            values = None
        found.setdefault((name, place), []).append(values)
    for name, settings in made.items():
        whole = {place: [run for run in found[name, place] if run is not None] for place in range(len(settings))}
        whole = {place: runs for place, runs in whole.items() if len(runs) == config.seeds}
        row: dict[str, Any] = {"way": name, "settings": len(settings), "diverged": len(settings) - len(whole)}
        if whole:
            best = max(whole, key=lambda place: statistics.fmean(run["accuracy"] for run in whole[place]))
            runs, chosen = whole[best], settings[best]
            tests = [run["test"] for run in runs]
            row |= {
                "strength": chosen.strength or chosen.weight_decay or None,
                "validation": statistics.fmean(run["accuracy"] for run in runs),
                "test": statistics.fmean(tests),
                "test_se": statistics.stdev(tests) / math.sqrt(len(tests)) if len(tests) > 1 else 0.0,
                "train": statistics.fmean(run["train"] for run in runs),
                "rank": statistics.fmean(v for run in runs for v in run["hidden_ranks"].values()),
                "at_the_edge": len(settings) > 1 and best in (0, len(settings) - 1),
            }
        rows.append(row)
    return {"rows": rows}


def compare(config: CompareConfig) -> int:
    """`low-rank compare`."""
    folder, table = results_folder(config.out, "compare", config.force)
    values = comparison(config, folder)
    names = ("way", "strength", "validation", "test", "test_se", "train", "rank", "diverged")
    shown = (
        "regularised by",
        "strength",
        "held-out",
        "test",
        "its s.e.",
        "training",
        "rank of hidden weights",
        "diverged",
    )
    rows = [[row.get(name) for name in names] for row in values["rows"]]
    title = f"{config.model} on {config.data}: strengths chosen on {config.validation} held-out samples"
    print_table(title, shown, rows,
                config.quiet)  # fmt: skip
    drawn = [figures.bars(folder / "compare", values["rows"])]
    return written(table, config, values, drawn, config.quiet)
