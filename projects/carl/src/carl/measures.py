"""What is measured for the claims: one environment's whole experiment, and the cost of a batch of problems."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from carl.adaptation import Branch, Log, adapt, branch, run_branches
from carl.catastrophe import LOSSES
from carl.commands import by_lead_time, described_risk, head_quality
from carl.episodes import Episode, Start, context_of, planner_of
from carl.experiments import BETAS, GAMMAS, SCALES, VARIANTS, ZERO_SHOT
from carl.kept import Kept
from carl.learner import Learner
from carl.noise import Streams
from carl.pretraining import Iteration, fresh_fit, make_learners, pretrain
from carl.risk import Risk
from carl.settings import SETTINGS, Setting
from carl.task import PlanningTask, task_of
from carl.train import SOURCE_FILE

CAUTIONS = {
    "mb-finetune": Risk("none"), "mb-frozen": Risk("none"), "pets-scratch": Risk("none"),
    "carl-reward": Risk("reward"), "carl-state": Risk("state"), "carl-reward+state": Risk("reward+state"),
}  # fmt: skip
POINTS = 101  # thresholds of a receiver curve


def experiment(
    preset: str,
    device: str,
    seed: int,
    *,
    env: str,
    seeds: int,
    zero_shot: int,
    targets: Sequence[float] | None = None,
    adapt_targets: Sequence[float] | None = None,
    variants: Sequence[str] = VARIANTS,
    head: bool = False,
    ablations: bool = False,
    scratch: Path | None = None,
) -> dict[str, Any]:
    """Source phase, adaptation of every variant, zero-shot episodes. JSON values; `seeds` holds one mapping a seed.

    Args:
        preset: whose sizes. device: where nets live. seed: the first of `seeds`, planned side by side.
        env: the environment.
        zero_shot: episodes a target and caution. targets: of these; default: the environment's first.
        adapt_targets: of adaptation; default: the first alone.
        variants: that adapt.
        head: also train the catastrophe head afresh with every loss. ablations: also vary beta, gamma and lambda.
        scratch: folder in which all phases are kept after every iteration, and gone on with.
    """
    kept = Kept(scratch)
    setting, task = SETTINGS[preset][env], task_of(env)
    numbers = [seed + number for number in range(seeds)]
    learners, log = pretrain(env, setting, numbers, device, kept=kept)
    targets, adapt_targets = targets or setting.targets[:1], adapt_targets or setting.targets[:1]
    branches: list[Branch] = []
    for (number, learner), variant, target in itertools.product(
        zip(numbers, learners, strict=True), variants, adapt_targets
    ):
        if possible(variant, learner):
            branches.append(variant_of(variant, learner, env, setting, target, number, device))
    logs = adapt(branches, env, task, setting, kept=kept)
    tried = zero_shot_episodes(learners, numbers, env, task, setting, targets, zero_shot)
    found = []
    for place, (number, learner) in enumerate(zip(numbers, learners, strict=True)):
        mine = tried[place]
        values: dict[str, Any] = {
            "seed": number, "steps": setting.in_target().steps,
            "refused": [variant for variant in variants if not possible(variant, learner)],
            **source_outline([row[place] for row in log]),
            "adaptation": [
                adaptation_outline(each, way)
                for each, way in zip(branches, logs, strict=True)
                if each.seed == number
            ],
            "zero_shot": [zero_shot_outline(v, t, e, learner) for (v, t), e in mine.items()],
        }  # fmt: skip
        if head:
            near = [e for (_, target), some in mine.items() if target == targets[0] for e in some]
            values |= head_measures(learner, task, number, near, setting)
        if env == "duckietown":
            values["paths"] = {v: [path_of(e) for e in some[:6]] for (v, _), some in mine.items()}
        if ablations:
            values["ablations"] = ablated(learner, number, env, task, setting, kept)
        found.append(values)
    return {"seeds": found, "source_plan_ms": plan_ms([episode for row in log for episode in row[0].episodes])}


def possible(variant: str, learner: Learner) -> bool:
    """Whether a variant can branch off a source phase: votes need a head that has met a catastrophe."""
    allowed = learner.met_catastrophe or (learner.head and learner.setting.untrained_head)
    return variant == "pets-scratch" or not CAUTIONS[variant].penalty or allowed


def variant_of(
    variant: str, learner: Learner, env: str, setting: Setting, target: float, seed: int, device: str
) -> Branch:
    """A variant's branch off a source-trained learner; `pets-scratch` starts from new weights."""
    if variant == "pets-scratch":
        fresh = make_learners(env, setting, [seed], device)[0]
        return Branch(variant, fresh, CAUTIONS[variant], target, seed)
    return branch(learner, CAUTIONS[variant], target, seed, variant, variant != "mb-frozen")


def zero_shot_episodes(
    learners: Sequence[Learner],
    seeds: Sequence[int],
    env: str,
    task: PlanningTask,
    setting: Setting,
    targets: Sequence[float],
    episodes: int,
) -> list[dict[tuple[str, float], list[Episode]]]:
    """Paired episodes of the source-trained models: for every seed, (variant, target) -> episodes."""
    branches = [
        Branch(variant, learner, CAUTIONS[variant], target, seed, False)
        for (seed, learner), variant, target in itertools.product(zip(seeds, learners, strict=True), ZERO_SHOT, targets)
        if possible(variant, learner)
    ]
    found = run_branches(branches, env, task, setting, "zero-shot", 0, episodes)
    by_seed: list[dict[tuple[str, float], list[Episode]]] = [{} for _ in seeds]
    for each, some in zip(branches, found, strict=True):
        by_seed[list(seeds).index(each.seed)][each.label, each.target] = some
    return by_seed


def source_outline(iterations: Sequence[Iteration]) -> dict[str, Any]:
    """Returns, catastrophes and losses of a source phase."""
    return {
        "source_returns": [each.reward for each in iterations],
        "source_catastrophes": [each.catastrophes for each in iterations],
        "source_losses": [each.fit.get("loss") for each in iterations],
        "source_mse": next((each.errors["mse"] for each in reversed(iterations) if each.errors), None),
    }


def adaptation_outline(each: Branch, log: Log) -> dict[str, Any]:
    """What a branch went through."""
    tests = [episode for some in log.tests.values() for episode in some]
    return {
        "variant": each.label, "target": each.target, "seed": each.seed,
        "returns": [episode.reward for episode in log.adaptation],
        "catastrophes": [int(episode.catastrophe) for episode in log.adaptation],
        "test_returns": [episode.reward for episode in tests],
        "test_catastrophes": [int(episode.catastrophe) for episode in tests],
        "plan_ms": plan_ms(log.adaptation),
    }  # fmt: skip


def zero_shot_outline(variant: str, target: float, episodes: Sequence[Episode], learner: Learner) -> dict[str, Any]:
    """Paired episodes, and how well the model foresees their steps."""
    return {
        "variant": variant, "target": target,
        "returns": [episode.reward for episode in episodes],
        "first_catastrophe": [episode.first_catastrophe for episode in episodes],
        **learner.errors(episodes),
    }  # fmt: skip


def plan_ms(episodes: Sequence[Episode]) -> float:
    """Milliseconds of planning a step."""
    return 1000 * sum(e.planning for e in episodes) / max(sum(e.length for e in episodes), 1)


def path_of(episode: Episode) -> list[list[float]]:
    """(x, z, hit) of a car, for a figure."""
    hit = np.concatenate([[0.0], episode.catastrophes.astype(float)])
    return [
        [round(float(x), 3), round(float(z), 3), float(h)] for (x, z), h in zip(episode.states[:, :2], hit, strict=True)
    ]


def head_measures(
    learner: Learner, task: PlanningTask, seed: int, episodes: Sequence[Episode], setting: Setting
) -> dict[str, Any]:
    """The head on target states under every loss, each trained afresh on the same buffer for as many fits as the source
    phase had; its receiver curves, and the votes some steps ahead."""
    found: dict[str, Any] = {"as trained": head_quality(learner, episodes, 0.5) | early(learner, episodes)}
    curves: dict[str, Any] = {}
    for loss in LOSSES:
        made = fresh_fit(learner, task, seed, loss, setting.source_iterations)
        found[loss] = head_quality(made, episodes, 0.5) | early(made, episodes)
        probability, happened = made.catastrophe_probability(episodes)
        if happened.any() and not happened.all():
            curves[loss] = receiver(probability.mean(axis=0), happened)
    lead = by_lead_time(learner, episodes, setting.horizon, 0.5)
    return {"head": found, "receiver": curves, "lead": lead}


def early(learner: Learner, episodes: Sequence[Episode], margin: int = 5) -> dict[str, float]:
    """False votes on states that have more than `margin` steps to the catastrophe, or to the end of an episode without
    one: a vote that comes a few steps too soon is another mistake than one out of nothing."""
    probability, _ = learner.catastrophe_probability(episodes)
    voted = (probability > 0.5).mean(axis=0) > 0.5
    far = np.concatenate([np.arange(e.length, 0, -1) > margin for e in episodes])
    return {"early_false_votes": float(voted[far].mean()) if far.any() else 0.0}


def receiver(probability: np.ndarray, happened: np.ndarray) -> dict[str, list[float]]:
    """Receiver curve at evenly spread ranks: shares of safe and of catastrophic states voted against."""
    order = np.argsort(-probability, kind="stable")
    found = np.concatenate([[0.0], np.cumsum(happened[order]) / happened.sum()])
    false = np.concatenate([[0.0], np.cumsum(~happened[order]) / (~happened).sum()])
    grid = np.linspace(0, 1, POINTS)
    return {"false": grid.tolist(), "found": np.interp(grid, false, found).round(4).tolist()}


def ablated(
    learner: Learner, seed: int, env: str, task: PlanningTask, setting: Setting, kept: Kept | None = None
) -> list[dict[str, Any]]:
    """Adaptation at every target under other gammas, betas and lambdas, planned side by side."""
    risks = [Risk("reward", gamma) for gamma in GAMMAS]
    risks += [Risk("state", beta=beta) for beta in BETAS]
    risks += [Risk("state", weight=1e4 * scale) for scale in SCALES if scale != 1]
    branches = [
        branch(learner, risk, target, seed, described_risk(risk))
        for risk, target in itertools.product(risks, setting.targets)
    ]
    logs = adapt(branches, env, task, setting, test_episodes=0, kept=kept, part=f"ablations-{seed}")
    return [
        {**adaptation_outline(each, log), "caution": each.label, "risk": dataclasses.asdict(each.risk)}
        for each, log in zip(branches, logs, strict=True)
    ]


def model_free(
    preset: str,
    device: str,
    seed: int,
    *,
    method: str,
    env: str,
    targets: Sequence[float] = (),
    scratch: Path | None = None,
) -> dict[str, Any]:
    """A baseline that learns no model: source phase and adaptation, as `carl train` does it.

    Args:
        targets: to adapt to after one source phase; default: the environment's first alone.
        scratch: folder in which the run is kept, and gone on with.
    """
    from carl.config import TrainConfig
    from carl.model_free import ModelFree, load_policies
    from shared.loop import Loop, cell_loop

    first, *others = targets or SETTINGS[preset][env].targets[:1]
    config = TrainConfig(
        preset=preset, method=method, env=env, seed=seed, device=device, target=first, quiet=True,  # pyright: ignore
        checkpoint_every=1,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as made:
        loop = cell_loop(ModelFree(config), config, "carl", scratch or Path(made))
        summary = loop.run()
        logs = {first: loop.task.logs[0]}  # pyright: ignore
        for target in others:
            again = ModelFree(dataclasses.replace(config, target=target))
            again.start(Loop(again, again.config, "carl", folder=False))
            assert loop.folder is not None
            load_policies(loop.folder.path / SOURCE_FILE, config, again.agents)
            logs[target] = again.adapt(again.agents)[0]
    return {
        "source_return": summary["metrics"]["source_return_last_3"],
        "source_updates": summary["metrics"]["source_updates"],
        "source_steps": summary["metrics"]["source_steps"],
        "adaptation": [
            {
                "target": target,
                "returns": [episode.reward for episode in log.adaptation],
                "catastrophes": [int(episode.catastrophe) for episode in log.adaptation],
                "test_catastrophes": log.test_catastrophes(),
            }
            for target, log in logs.items()
        ],
    }


# -- the batch of problems ----------------------------------------------------------------------------------------


def batch_cost(preset: str, device: str, problems: int, repeats: int = 9) -> dict[str, Any]:
    """Time of one action for a batch of problems, over that of as many single ones: medians of turns in alternation."""
    setting = SETTINGS[preset]["cartpole"]
    task = task_of("cartpole")
    learners = make_learners("cartpole", setting, list(range(problems)), device)
    for learner in learners:  # planning asks for nothing of a fit but that there was one
        learner.ensemble.normalise(torch.randn(64, task.input_dim, device=learner.device))
    sizes = (1, problems)
    planners = {n: ready_planner(learners[:n], task, setting) for n in sizes}
    times: dict[int, list[float]] = {n: [] for n in sizes}
    for turn in range(repeats + 1):
        for n, act in planners.items():
            began = time.perf_counter()
            act(turn)
            if turn:
                times[n].append(time.perf_counter() - began)
    single, whole = (1000 * statistics.median(times[n]) for n in sizes)
    return {"ratio": whole / (problems * single), "single_ms": single, "batch_ms": whole, "problems": problems}


def ready_planner(learners: Sequence[Learner], task: PlanningTask, setting: Setting) -> Any:
    """A function of a step that plans for learners, cautions in turn; for timing."""
    risks = itertools.cycle([Risk("none"), Risk("reward"), Risk("state")])
    starts = [Start(1.0, "target", seed, learner, risk) for seed, (learner, risk) in enumerate(zip(learners, risks))]  # noqa: B905
    planner = planner_of(starts, task, setting)
    streams = Streams([start.seed for start in starts], planner.device)
    state = torch.zeros(len(starts), task.state_dim, device=planner.device)
    context = torch.full((len(starts),), context_of("cartpole", 1.0), device=planner.device)

    def act(step: int) -> None:
        planner.act(state, context, streams.at(step))[0].cpu()

    return act
