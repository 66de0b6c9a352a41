"""Figures of a reproduction, from the outcomes of its cells."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from carl.config import ENVS, MODEL_FREE
from carl.experiments import BETAS, GAMMAS, SCALES, runs, steps_until
from carl.figures import (
    adaptation,
    by_lead_time,
    heat_map,
    paths_from_above,
    receiver_curves,
    source_curve,
    target_sweep,
)
from shared.claims import Outcomes

SOURCES = {"cartpole": ((0.4, 0.8), "pole length (m)"), "duckietown": ((0.05, 0.1), "car width (m)")}


def draw(outcomes: Outcomes, folder: Path) -> list[Path]:
    """Every figure that the finished cells allow."""
    made: list[Path] = []
    present = [env for env in ENVS if env in outcomes]
    for env in present:
        found = runs(outcomes, env)
        made.append(source_curve(folder / f"{env}-source", {env: [run["source_returns"] for run in found]}, env))
        made += adaptations(outcomes, env, folder)
        if env in SOURCES and len({each["target"] for each in found[0]["zero_shot"]}) > 1:
            made.append(sweep_of(outcomes, env, folder / f"{env}-targets"))
        if "paths" in found[0]:
            made.append(paths_from_above(folder / f"{env}-paths", found[best_seed(found)]["paths"]))
        if "receiver" in found[0]:
            made += heads(found, folder)
        if found[0].get("ablations"):
            made += ablations(found, folder)
    return made


def best_seed(found: Sequence[Mapping[str, Any]]) -> int:
    """The seed whose source phase ended best: a car that cannot drive shows nothing of caution."""
    return max(range(len(found)), key=lambda seed: statistics.fmean(found[seed]["source_returns"][-3:]))


def adaptations(outcomes: Outcomes, env: str, folder: Path) -> list[Path]:
    """The paper's main figure, one a target: all methods that were run, those without a model among them."""
    logs = [log for run in runs(outcomes, env) for log in run["adaptation"]]
    logs += [
        {**log, "variant": method}
        for method in MODEL_FREE
        if f"{method} {env}" in outcomes
        for each in outcomes.raw(f"{method} {env}")
        for log in each["adaptation"]
    ]
    made = []
    for target in dict.fromkeys(log["target"] for log in logs):
        returns: dict[str, list[list[float]]] = {}
        deaths: dict[str, list[list[float]]] = {}
        for log in logs:
            if log["target"] == target:
                returns.setdefault(log["variant"], []).append(np.maximum.accumulate(log["returns"]).tolist())
                deaths.setdefault(log["variant"], []).append(np.cumsum(log["catastrophes"]).astype(float).tolist())
        path = folder / f"{env}-adaptation-{target:g}".replace(".", "_")  # what follows a point would be a suffix
        made.append(adaptation(path, returns, deaths, f"{env}, target {target:g}"))
    return made


def sweep_of(outcomes: Outcomes, env: str, path: Path) -> Path:
    """Zero-shot steps until the catastrophe over targets."""
    points: dict[str, dict[float, list[float]]] = {}
    found = runs(outcomes, env)
    for variant, target in dict.fromkeys(
        (each["variant"], each["target"]) for run in found for each in run["zero_shot"]
    ):
        seeds = [steps_until(run, variant, target) for run in found]
        points.setdefault(variant, {})[target] = [statistics.fmean(seed) for seed in seeds if seed]
    ends, name = SOURCES[env]
    return target_sweep(path, points, ends, "steps until the catastrophe, zero-shot", name)


def heads(found: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Receiver curves of the head, mean of the seeds, and votes by lead time."""
    curves = {}
    for loss in dict.fromkeys(loss for run in found for loss in run["receiver"]):
        some = [run["receiver"][loss] for run in found if loss in run["receiver"]]
        curves[loss] = (np.array(some[0]["false"]), np.mean([each["found"] for each in some], axis=0))
    made = [receiver_curves(folder / "head-receiver", curves, "catastrophe head on target states")] if curves else []
    false, missed = (
        {"as trained": [[np.nan if value is None else value for value in run["lead"][kind]] for run in found]}
        for kind in ("false_votes", "missed")
    )
    return [*made, by_lead_time(folder / "head-lead-time", false, missed)]


def ablations(found: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Highest return over gamma, beta and lambda, by target."""
    logs = [log for run in found for log in run["ablations"]]
    targets = sorted({log["target"] for log in logs})
    made = []
    knobs = (("reward", "gamma", GAMMAS), ("state", "beta", BETAS), ("state", "weight", [1e4 * s for s in SCALES]))
    for name, knob, values in knobs:
        grid = np.full((len(values), len(targets)), np.nan)
        for i, value in enumerate(values):
            for j, target in enumerate(targets):
                some = [
                    max(log["returns"]) for log in logs
                    if log["target"] == target and log["risk"]["name"] == name and log["risk"][knob] == value
                    and (knob == "beta" or log["risk"]["beta"] == 0.5)
                    and (knob == "weight" or log["risk"]["weight"] == 1e4)
                ]  # fmt: skip
                grid[i, j] = statistics.fmean(some) if some else np.nan
        label = "lambda" if knob == "weight" else knob
        made.append(
            heat_map(folder / f"cartpole-{label}", grid, values, targets, (label, "pole length (m)", "highest return"))
        )
    return made
