"""The source phase: many domains in which failure is free. One iteration is one episode in a new domain and one fit.

Nothing is cautious here: the ensemble is to see what failure is, and the head is trained on it.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from carl.catastrophe import LossName
from carl.domains import DomainDistribution
from carl.episodes import Episode, Start, packed, run_episodes, unpacked
from carl.kept import Kept
from carl.learner import Learner
from carl.noise import mixed
from carl.registry import NAMES
from carl.settings import Setting
from carl.task import PlanningTask, task_of
from shared.config import check_choice


@dataclass(frozen=True)
class Iteration:
    """One iteration of one learner: its episodes, how well they were foreseen before they were learned from, and the
    losses of the fit (both empty where there was none)."""

    episodes: list[Episode]
    errors: dict[str, float]
    fit: dict[str, float]

    @property
    def reward(self) -> float:
        """Mean return of the episodes."""
        return sum(episode.reward for episode in self.episodes) / len(self.episodes)

    @property
    def catastrophes(self) -> int:
        """Episodes with one."""
        return sum(episode.catastrophe for episode in self.episodes)


def source_of(name: str) -> DomainDistribution:
    """Where an environment's source domains come from.

    Raises:
        UserError: no such environment.
    """
    check_choice("--env", name, NAMES)
    module, _, kind = NAMES[name][1].partition(":")
    return getattr(importlib.import_module(module), kind).source


def make_learners(
    name: str,
    setting: Setting,
    seeds: Sequence[int],
    device: str = "cpu",
    loss: LossName = "scaled",
    head: bool = True,
) -> list[Learner]:
    """New learners, one a seed."""
    task = task_of(name)
    return [Learner(task, setting, seed, device, loss, head) for seed in seeds]


def source_iteration(
    learners: Sequence[Learner],
    seeds: Sequence[int],
    name: str,
    setting: Setting,
    iteration: int,
    sources: DomainDistribution | None = None,
) -> list[Iteration]:
    """Episodes in source domains of their own and one fit, for every learner.

    Args:
        learners, seeds: side by side. name, setting: the experiment.
        iteration: counts from 0; the first `setting.initial` episodes take random actions.
        sources: where domains come from; default: the environment's.
    """
    sources = sources or source_of(name)
    random = iteration < setting.initial
    count = (setting.initial_episodes or setting.episodes) if random else setting.episodes
    starts = []
    for learner, seed in zip(learners, seeds, strict=True):
        stream = np.random.default_rng(mixed(seed, "domain", iteration))
        starts += [
            Start(sources.sample(stream), "source", mixed(seed, "source", iteration, n), None if random else learner)
            for n in range(count)
        ]
    played = run_episodes(starts, name, task_of(name), setting.at_random() if random else setting.in_source())
    found = []
    for place, (learner, seed) in enumerate(zip(learners, seeds, strict=True)):
        episodes = played[place * count : (place + 1) * count]
        errors = learner.errors(episodes) if learner.fitted else {}
        for episode in episodes:
            learner.remember(episode)
        found.append(
            Iteration(episodes, errors, learner.fit(mixed(seed, "fit", iteration)) if len(learner.buffer) else {})
        )
    return found


def pretrain(
    name: str,
    setting: Setting,
    seeds: Sequence[int],
    device: str = "cpu",
    loss: LossName = "scaled",
    sources: DomainDistribution | None = None,
    kept: Kept | None = None,
) -> tuple[list[Learner], list[list[Iteration]]]:
    """The whole source phase of one learner a seed, planned side by side.

    Args:
        name, setting, seeds, device, loss, sources: the experiment.
        kept: where it is saved after every iteration, and gone on with.

    Returns: the learners, and their iterations, [iteration][learner].
    """
    kept, log = kept or Kept(), []
    learners = make_learners(name, setting, seeds, device, loss)
    if (state := kept.load("source")) is not None:
        for learner, saved in zip(learners, state["learners"], strict=True):
            learner.load_state_dict(saved)
        log = [
            [Iteration([unpacked(e) for e in each["episodes"]], each["errors"], each["fit"]) for each in row]
            for row in state["log"]
        ]
    for iteration in range(len(log), setting.source_iterations):
        log.append(source_iteration(learners, seeds, name, setting, iteration, sources))
        rows = [
            [{"episodes": [packed(e) for e in i.episodes], "errors": i.errors, "fit": i.fit} for i in row]
            for row in log
        ]
        kept.save("source", {"learners": [learner.state_dict() for learner in learners], "log": rows})
    return learners, log


def fresh_fit(learner: Learner, task: PlanningTask, seed: int, loss: LossName, fits: int) -> Learner:
    """Another learner with new weights and the same buffer, fitted `fits` times: what another loss would have made of
    what was met."""
    other = Learner(task, learner.setting, seed, learner.device, loss)
    other.buffer.load_state_dict(learner.buffer.state_dict())
    for number in range(fits):
        other.fit(mixed(seed, "fit", number))
    return other
