"""The experiments behind the claims: which cells a preset runs, and what is computed from them. Imports no torch.

A cell is one environment under one seed (or several side by side): the source phase, then every variant branched off it
in the target, then zero-shot episodes of several cautions that meet the same first states and random numbers. The cell
`batch` times a batch of planning problems against one at a time.
"""

from __future__ import annotations

import importlib.util
import itertools
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from carl.config import ENVS, MODEL_FREE
from carl.settings import PUBLISHED
from shared.claims import LADDER, Cell, Ladder, Missing, Outcomes, ReproduceConfig, Study

VARIANTS = ("pets-scratch", "mb-finetune", "carl-reward", "carl-state")
ZERO_SHOT = ("mb-frozen", "carl-reward", "carl-state")
CAPPED = 100  # steps: later catastrophes of zero-shot cartpole count as if they had come then
BATCHED = 9  # problems of the timed batch
GAMMAS, BETAS, SCALES = (30.0, 50.0, 70.0), (0.25, 0.5, 0.75), (0.5, 1.0, 1.5, 2.0)
HAND = "baoding"
TRUSTED = 0.01  # share of false votes above which planning goes by noise


def cells_of(preset: str) -> list[tuple[str, dict[str, Any], int]]:
    """(name, settings, seed) of a preset's cells."""
    if preset == "smoke":
        return [(env, {"env": env, "seeds": 1, "zero_shot": 1}, 0) for env in ENVS if env != HAND or hand_there()]
    if preset == "cpu":
        cartpole = {"env": "cartpole", "seeds": 1, "zero_shot": 7, "targets": [1.0, 1.5, 2.0], "head": True}
        car = {"env": "duckietown", "seeds": 1, "zero_shot": 7, "targets": [0.15]}
        cells = [
            (name, fields, seed) for seed in range(3) for name, fields in (("cartpole", cartpole), ("duckietown", car))
        ]
        return [*cells, ("batch", {"problems": BATCHED}, 0)]
    if preset == "cpu-long":  # cartpole of the preset cpu, beside the baselines that learn no model
        cells = [cell for cell in cells_of("cpu") if cell[0] == "cartpole"]
        free = {f"{method} cartpole": {"method": method, "env": "cartpole"} for method in MODEL_FREE}
        return [*cells, *((name, fields, seed) for seed in range(3) for name, fields in free.items())]
    if preset == "gpu":
        fields = {
            "env": "cartpole", "seeds": 2, "zero_shot": 3, "targets": [1.0, 1.5], "adapt_targets": [1.0, 1.5],
            "variants": ["mb-finetune", "carl-reward", "carl-state"],
        }  # fmt: skip
        return [("cartpole", fields, 0), ("batch", {"problems": BATCHED}, 0)]
    planned = {}
    for env, targets in (("cartpole", [1.0, 1.25, 1.5, 2.0]), ("duckietown", [0.15]), ("half-cheetah", [5.0])):
        planned[env] = {
            "env": env, "seeds": 1, "zero_shot": 5, "targets": targets, "adapt_targets": targets,
            "variants": [*VARIANTS, "mb-frozen", "carl-reward+state"], "head": env == "cartpole",
            "ablations": env == "cartpole",
        }  # fmt: skip
    if hand_there():
        planned[HAND] = {
            "env": HAND, "seeds": 1, "zero_shot": 5, "targets": list(PUBLISHED[HAND].targets),
            "adapt_targets": list(PUBLISHED[HAND].targets), "variants": ["mb-finetune", "carl-reward", "carl-state"],
        }  # fmt: skip
    for env in ENVS:
        if env != HAND or hand_there():
            free = {"env": env, "targets": planned[env]["adapt_targets"]}
            planned |= {f"{method} {env}": {"method": method, **free} for method in MODEL_FREE}
    return [(name, fields, seed) for seed in range(5) for name, fields in planned.items()]


def hand_there() -> bool:
    """Whether the files of the hand are installed."""
    return importlib.util.find_spec("gymnasium_robotics") is not None


class CarlStudy(Study):
    """Cautious Adaptation for Reinforcement Learning."""

    member: ClassVar[str] = "carl"
    package: ClassVar[str] = "carl"
    presets: ClassVar[tuple[Ladder, ...]] = LADDER
    libraries: ClassVar[tuple[str, ...]] = ("gymnasium", "mujoco")

    def cells(self, config: ReproduceConfig) -> list[Cell]:
        planned = cells_of(config.preset)
        if config.seeds is not None:
            first = [(name, fields) for name, fields, seed in planned if seed == 0]
            planned = []
            for name, fields in first:
                if name == "batch":
                    planned.append((name, fields, 0))
                elif fields.get("seeds", 1) > 1:  # side by side in one cell
                    planned.append((name, {**fields, "seeds": config.seeds}, 0))
                else:
                    planned += [(name, fields, seed) for seed in range(config.seeds)]
        return [Cell(name, fields, seed) for name, fields, seed in planned]

    def absent(self, config: ReproduceConfig) -> Mapping[str, str]:
        wanted = config.preset in ("smoke", "paper") and not hand_there()
        return {HAND: "the extra `hand` is not installed"} if wanted else {}

    def run(self, cell: Cell, config: ReproduceConfig) -> dict[str, Any]:
        from carl.measures import batch_cost, experiment, model_free
        from shared.device import choose_device

        device = str(choose_device(config.device))
        if "method" in cell.settings:
            return model_free(config.scale, device, cell.seed, **cell.settings, scratch=self.scratch)
        if cell.name == "batch":
            return batch_cost(config.scale, device, **cell.settings)
        return experiment(config.scale, device, cell.seed, **cell.settings, scratch=self.scratch)

    def quantities(self) -> Mapping[str, Callable[[Outcomes], Sequence[float]]]:
        found: dict[str, Callable[[Outcomes], Sequence[float]]] = {
            "smoke-finite": finite,
            "source-return": lambda o: [statistics.fmean(each["source_returns"][-3:]) for each in runs(o, "cartpole")],
            "far-reward-over-mb": partial(
                pooled_ratio, env="cartpole", one="carl-reward", other="mb-frozen", target=1.5, cap=CAPPED
            ),
            "far-state-over-mb": partial(
                pooled_ratio, env="cartpole", one="carl-state", other="mb-frozen", target=1.5, cap=CAPPED
            ),
            "car-state-over-mb": partial(
                pooled_ratio, env="duckietown", one="carl-state", other="mb-frozen", target=0.15
            ),
            "car-reward-over-mb": partial(
                pooled_ratio, env="duckietown", one="carl-reward", other="mb-frozen", target=0.15
            ),
            "false-votes-worst": lambda o: [max(head(o, "as trained"))],
            "false-votes-afresh": lambda o: [max(head(o, "scaled"))],
            "false-votes-fewer": fewer_false_votes,
            "batch-cost": lambda o: o.values("batch", "ratio"),
            "state-first-over-reward": lambda o: [
                a - b for a, b in zip(first_returns(o, "carl-state"), first_returns(o, "carl-reward"), strict=True)
            ],
        }
        for method in MODEL_FREE:
            found[f"safer-than-{method}"] = partial(safer_than, method=method)
            found[f"better-than-{method}"] = partial(better_than, method=method)
        for env in ENVS:
            found[f"fewer-{env}"] = partial(fewer_catastrophes, env=env)
            found[f"return-{env}"] = partial(higher_return, env=env)
        for variant in (*VARIANTS, "carl-reward+state", "mb-frozen"):
            for target in (1.0, 1.5):
                key = f"{variant}-{target:g}"
                found[f"catastrophes-{key}"] = partial(catastrophes, variant=variant, target=target)
                found[f"max-return-{key}"] = partial(max_return, variant=variant, target=target)
        return found

    def tables(self, outcomes: Outcomes) -> Mapping[str, tuple[Sequence[str], Sequence[Sequence[Any]]]]:
        tables: dict[str, tuple[Sequence[str], Sequence[Sequence[Any]]]] = {}
        for env in (name for name in ENVS if name in outcomes):
            tables[f"{env}: source phase, by seed"] = source_rows(outcomes, env)
            tables[f"{env}: adaptation"] = adaptation_rows(outcomes, env)
            tables[f"{env}: zero-shot, all seeds' episodes"] = zero_shot_rows(outcomes, env)
            tables[f"{env}: zero-shot steps until the catastrophe, paired"] = ratio_rows(outcomes, env)
        free = [name for name in outcomes.names() if name.split()[0] in MODEL_FREE]
        if free:
            tables["Baselines that learn no model"] = model_free_rows(outcomes, free)
        if "cartpole" in outcomes and "head" in runs(outcomes, "cartpole")[0]:
            tables["The catastrophe head, trained afresh on what the source phase met (target states at 1.0 m)"] = (
                head_rows(outcomes)
            )
        if "cartpole" in outcomes and runs(outcomes, "cartpole")[0].get("ablations"):
            tables["cartpole: beta, gamma and lambda"] = ablation_rows(outcomes)
        return tables

    def figures(self, outcomes: Outcomes, folder: Path) -> list[Path]:
        from carl.study_figures import draw

        return draw(outcomes, folder)


Table = tuple[Sequence[str], Sequence[Sequence[Any]]]

# -- quantities: one value a seed ------------------------------------------------------------------------------------


def runs(outcomes: Outcomes, env: str) -> list[Mapping[str, Any]]:
    """What was measured of an environment, one mapping a seed."""
    return [each for cell in outcomes.raw(env) for each in cell["seeds"]]


def finite(outcomes: Outcomes) -> list[float]:
    """Of every environment: 1 where every variant ran and every return is a number, of tests too, else 0."""
    found = []
    for env in (name for name in ENVS if name in outcomes):
        for run in runs(outcomes, env):
            returns = [run["source_returns"]]
            returns += [log[name] for log in run["adaptation"] for name in ("returns", "test_returns")]
            returns += [each["returns"] for each in run["zero_shot"]]
            numbers = all(value == value and abs(value) < float("inf") for row in returns for value in row)
            found.append(float(numbers and not run["refused"]))
    return found


def adapted(outcomes: Outcomes, env: str, variant: str, target: float) -> list[Mapping[str, Any]]:
    """A variant's way through a target, one a seed.

    Raises:
        Missing: it was not run.
    """
    found = [
        log for run in runs(outcomes, env) for log in run["adaptation"]
        if log["variant"] == variant and log["target"] == target
    ]  # fmt: skip
    if not found:
        raise Missing(f"{env}: {variant} at {target:g}")
    return found


def catastrophes(outcomes: Outcomes, variant: str, target: float) -> list[float]:
    """Cartpole: adaptation episodes with a catastrophe."""
    return [float(sum(log["catastrophes"])) for log in adapted(outcomes, "cartpole", variant, target)]


def at_usual_target(outcomes: Outcomes, method: str) -> list[Mapping[str, Any]]:
    """Cartpole at 1 m: the way of a baseline that learns no model, one a seed."""
    return [log for each in outcomes.raw(f"{method} cartpole") for log in each["adaptation"] if log["target"] == 1.0]


def safer_than(outcomes: Outcomes, method: str) -> list[float]:
    """Cartpole at its usual target: catastrophes of a baseline that learns no model less those of CARL (State), mean
    over seeds."""
    theirs = [float(sum(log["catastrophes"])) for log in at_usual_target(outcomes, method)]
    return [statistics.fmean(theirs) - statistics.fmean(catastrophes(outcomes, "carl-state", 1.0))]


def better_than(outcomes: Outcomes, method: str) -> list[float]:
    """Cartpole at its usual target: highest return of CARL (State) less that of a baseline that learns no model, means
    over seeds."""
    theirs = [max(log["returns"]) for log in at_usual_target(outcomes, method)]
    return [statistics.fmean(max_return(outcomes, "carl-state", 1.0)) - statistics.fmean(theirs)]


def fewer_catastrophes(outcomes: Outcomes, env: str) -> list[float]:
    """At a task's usual target: catastrophes of MB + Finetune less those of CARL (State), by seed."""
    target = PUBLISHED[env].targets[0]
    pairs = zip(*(adapted(outcomes, env, v, target) for v in ("mb-finetune", "carl-state")), strict=True)
    return [float(sum(plain["catastrophes"]) - sum(state["catastrophes"])) for plain, state in pairs]


def higher_return(outcomes: Outcomes, env: str) -> list[float]:
    """At a task's usual target: highest return of CARL (State) less that of MB + Finetune, by seed."""
    target = PUBLISHED[env].targets[0]
    pairs = zip(*(adapted(outcomes, env, v, target) for v in ("mb-finetune", "carl-state")), strict=True)
    return [max(state["returns"]) - max(plain["returns"]) for plain, state in pairs]


def max_return(outcomes: Outcomes, variant: str, target: float) -> list[float]:
    """Cartpole: highest return of the adaptation episodes."""
    return [max(log["returns"]) for log in adapted(outcomes, "cartpole", variant, target)]


def first_returns(outcomes: Outcomes, variant: str) -> list[float]:
    """Cartpole at 1 m: return of the first target episode."""
    return [log["returns"][0] for log in adapted(outcomes, "cartpole", variant, 1.0)]


def steps_until(run: Mapping[str, Any], variant: str, target: float, cap: int | None = None) -> list[float] | None:
    """Zero-shot, of one seed: steps until the catastrophe of every episode; an episode without one counts as long as
    episodes are (or `cap`). None where the source phase did not allow the variant."""
    limit = run["steps"] if cap is None else cap
    for each in run["zero_shot"]:
        if each["variant"] == variant and each["target"] == target:
            return [float(limit if t is None else min(limit, t)) for t in each["first_catastrophe"]]
    return None


def pooled_ratio(
    outcomes: Outcomes, env: str, one: str, other: str, target: float, cap: int | None = None
) -> list[float]:
    """Ratio of the means of `steps_until` over the paired episodes of all seeds that have both: one value.

    Raises:
        Missing: that was not run.
    """
    pairs = [(steps_until(run, one, target, cap), steps_until(run, other, target, cap)) for run in runs(outcomes, env)]
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    if not both:
        raise Missing(f"{env}: zero-shot {one} and {other} at {target:g}")
    return [sum(sum(a) for a, _ in both) / sum(sum(b) for _, b in both)]


def ratio_rows(outcomes: Outcomes, env: str) -> Table:
    """A row a target and caution: steps until the catastrophe over those without caution, on the paired episodes of all
    seeds, with a bootstrap interval over the pairs, and by seed."""
    rows = []
    targets = dict.fromkeys(each["target"] for run in runs(outcomes, env) for each in run["zero_shot"])
    for target, variant in itertools.product(targets, ("carl-reward", "carl-state")):
        for cap in (None, CAPPED) if env == "cartpole" else (None,):
            seeds = [
                list(zip(one, other, strict=True))
                for run in runs(outcomes, env)
                if (one := steps_until(run, variant, target, cap)) is not None
                and (other := steps_until(run, "mb-frozen", target, cap)) is not None
            ]
            pairs = [pair for some in seeds for pair in some]
            if not pairs:
                continue
            drawn = random.Random(0)
            ratios = sorted(ratio_of(drawn.choices(pairs, k=len(pairs))) for _ in range(2000))
            rows.append(
                [variant, f"{target:g}", "-" if cap is None else cap, len(pairs), f"{ratio_of(pairs):.3f}",
                 f"{ratios[50]:.3f} to {ratios[1949]:.3f}", ", ".join(f"{ratio_of(some):.2f}" for some in seeds)]
            )  # fmt: skip
    return ("variant", "target", "capped at", "pairs", "over mb-frozen", "95 % of bootstraps", "by seed"), rows


def ratio_of(pairs: Sequence[tuple[float, float]]) -> float:
    """Sum of the first over sum of the second."""
    return sum(a for a, _ in pairs) / sum(b for _, b in pairs)


def head(outcomes: Outcomes, loss: str) -> list[float]:
    """Share of false votes of a head that was trained with some loss, one a seed."""
    found = [run["head"][loss]["false_votes"] for run in runs(outcomes, "cartpole") if "head" in run]
    if not found:
        raise Missing("cartpole: head")
    return found


def fewer_false_votes(outcomes: Outcomes) -> list[float]:
    """Of the seeds where `pos_weight` votes falsely on more than 1 %: share where `scaled` votes falsely less often.

    Raises:
        Missing: there is no such seed.
    """
    pairs = list(zip(head(outcomes, "scaled"), head(outcomes, "pos_weight"), strict=True))
    asked = [scaled < weighted for scaled, weighted in pairs if weighted > TRUSTED]
    if not asked:
        raise Missing("cartpole: a head trained with pos_weight that votes falsely on more than 1 %")
    return [sum(asked) / len(asked)]


# -- tables -----------------------------------------------------------------------------------------------------------


def source_rows(outcomes: Outcomes, env: str) -> Table:
    """A row a seed: returns, catastrophes, and how well the last source episode was foreseen, a step ahead."""
    rows = []
    for seed, run in enumerate(runs(outcomes, env)):
        returns = run["source_returns"]
        rows.append(
            [seed, len(returns), statistics.fmean(returns[-3:]), max(returns), sum(run["source_catastrophes"]),
             run["source_mse"], ", ".join(f"{value:.0f}" for value in returns)]
        )  # fmt: skip
    columns = (
        "seed", "iterations", "mean return of the last 3", "highest", "with a catastrophe", "one-step mse of the last",
        "returns",
    )  # fmt: skip
    return columns, rows


def adaptation_rows(outcomes: Outcomes, env: str) -> Table:
    """A row a variant and target: means over seeds, and every seed's catastrophes."""
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for run in runs(outcomes, env):
        for log in run["adaptation"]:
            groups.setdefault((log["variant"], log["target"]), []).append(log)
    rows = []
    for (variant, target), logs in groups.items():
        counts = [sum(log["catastrophes"]) for log in logs]
        tests = [value for log in logs for value in log["test_catastrophes"]]
        rows.append(
            [variant, f"{target:g}", statistics.fmean(log["returns"][0] for log in logs),
             statistics.fmean(max(log["returns"]) for log in logs), statistics.fmean(counts),
             ", ".join(map(str, counts)), f"{sum(tests)} of {len(tests)}"]
        )  # fmt: skip
    columns = (
        "variant", "target", "first return", "highest return", "catastrophes", "by seed", "test episodes with one",
    )  # fmt: skip
    return columns, rows


def zero_shot_rows(outcomes: Outcomes, env: str) -> Table:
    """A row a variant and target: returns, catastrophes, steps until one; one-step errors and disagreement there."""
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for run in runs(outcomes, env):
        for each in run["zero_shot"]:
            groups.setdefault((each["variant"], each["target"]), []).append(each)
    rows = []
    for (variant, target), found in groups.items():
        returns = [value for each in found for value in each["returns"]]
        hit = [t for each in found for t in each["first_catastrophe"]]
        until = [s for run in runs(outcomes, env) for s in steps_until(run, variant, target) or ()]
        rows.append(
            [variant, f"{target:g}", len(returns), statistics.fmean(returns), sum(t is not None for t in hit),
             statistics.fmean(until), statistics.fmean(each["mse"] for each in found),
             statistics.fmean(each["nll"] for each in found), statistics.fmean(each["disagreement"] for each in found)]
        )  # fmt: skip
    columns = (
        "variant", "target", "episodes", "return", "with a catastrophe", "steps until", "one-step mse", "nll",
        "disagreement",
    )  # fmt: skip
    return columns, rows


def model_free_rows(outcomes: Outcomes, names: Sequence[str]) -> Table:
    """A row a baseline, environment and target: means over seeds."""
    rows = []
    for name in names:
        found = outcomes.raw(name)
        for place, first in enumerate(found[0]["adaptation"]):
            logs = [each["adaptation"][place] for each in found]
            rows.append(
                [name, f"{first['target']:g}", statistics.fmean(each["source_steps"] for each in found),
                 statistics.fmean(each["source_updates"] for each in found),
                 statistics.fmean(each["source_return"] for each in found),
                 statistics.fmean(log["returns"][0] for log in logs),
                 statistics.fmean(max(log["returns"]) for log in logs),
                 statistics.fmean(sum(log["catastrophes"]) for log in logs)]
            )  # fmt: skip
    columns = ("baseline", "target", "source steps", "updates", "source return", "first return", "highest return")
    return (*columns, "catastrophes"), rows


def head_rows(outcomes: Outcomes) -> Table:
    """A row a loss: means over seeds, and every seed's false votes."""
    found = [run["head"] for run in runs(outcomes, "cartpole")]
    rows = []
    for loss in found[0]:
        of = [each[loss] for each in found]
        names = ("auroc", "brier", "false_votes", "early_false_votes", "vote_rate", "missed")
        numbers = [[each[m] for each in of if each[m] is not None] for m in names]
        shown = [statistics.fmean(values) if values else None for values in numbers]
        rows.append([loss, *shown, ", ".join(f"{100 * each['false_votes']:.2f} %" for each in of)])
    columns = (
        "loss", "AUROC", "Brier", "false votes", "more than 5 steps before the end", "mean vote on safe states",
        "missed", "false votes by seed",
    )  # fmt: skip
    return columns, rows


def ablation_rows(outcomes: Outcomes) -> Table:
    """A row a caution and target: highest return and catastrophes of the adaptation, means over seeds."""
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for run in runs(outcomes, "cartpole"):
        for log in run["ablations"]:
            groups.setdefault((log["caution"], log["target"]), []).append(log)
    rows = [
        [caution, f"{target:g}", statistics.fmean(max(log["returns"]) for log in logs),
         statistics.fmean(sum(log["catastrophes"]) for log in logs)]
        for (caution, target), logs in groups.items()
    ]  # fmt: skip
    return ("caution", "target", "highest return", "catastrophes"), rows
