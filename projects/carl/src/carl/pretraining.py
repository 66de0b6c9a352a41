"""The source phase: many domains in which failure is free. One iteration is one episode in a new domain and one fit.

Nothing is cautious here: the ensemble is to see what failure is, and the head is trained on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from carl.catastrophe import LossName
from carl.domains import DomainDistribution
from carl.episodes import Episode, Start, make_env, run_episodes
from carl.learner import Learner
from carl.noise import mixed
from carl.settings import Setting
from carl.task import PlanningTask, task_of


@dataclass(frozen=True)
class Iteration:
    """One iteration of one learner: its episode, and the losses of its fit (empty where there was none)."""

    episode: Episode
    fit: dict[str, float]


def source_of(name: str) -> DomainDistribution:
    """Where an environment's source domains come from."""
    return make_env(name).source


def make_learners(
    name: str, setting: Setting, seeds: Sequence[int], device: str = "cpu", loss: LossName = "scaled"
) -> list[Learner]:
    """New learners, one a seed."""
    task = task_of(name)
    return [Learner(task, setting, seed, device, loss) for seed in seeds]


def source_iteration(
    learners: Sequence[Learner],
    seeds: Sequence[int],
    name: str,
    setting: Setting,
    iteration: int,
    sources: DomainDistribution | None = None,
) -> list[Iteration]:
    """One episode in a source domain of its own and one fit, for every learner.

    Args:
        learners, seeds: side by side. name, setting: the experiment.
        iteration: counts from 0; the first `setting.initial` episodes take random actions.
        sources: where domains come from; default: the environment's.
    """
    sources = sources or source_of(name)
    starts = []
    for learner, seed in zip(learners, seeds, strict=True):
        drawn = sources.sample(np.random.default_rng(mixed(seed, "domain", iteration)))
        random = iteration < setting.initial
        starts.append(Start(drawn, "source", mixed(seed, "source", iteration), None if random else learner))
    episodes = run_episodes(starts, name, task_of(name), setting)
    found = []
    for learner, seed, episode in zip(learners, seeds, episodes, strict=True):
        learner.remember(episode)
        found.append(Iteration(episode, learner.fit(mixed(seed, "fit", iteration)) if len(learner.buffer) else {}))
    return found


def pretrain(
    name: str,
    setting: Setting,
    seeds: Sequence[int],
    device: str = "cpu",
    loss: LossName = "scaled",
    sources: DomainDistribution | None = None,
) -> tuple[list[Learner], list[list[Iteration]]]:
    """The whole source phase of one learner a seed, planned side by side.

    Returns: the learners, and their iterations, [iteration][learner].
    """
    learners = make_learners(name, setting, seeds, device, loss)
    log = [source_iteration(learners, seeds, name, setting, i, sources) for i in range(setting.source_iterations)]
    return learners, log


def fresh_fit(learner: Learner, task: PlanningTask, seed: int, loss: LossName, fits: int) -> Learner:
    """Another learner with new weights and the same buffer, fitted `fits` times: what another loss would have made of
    what was met."""
    other = Learner(task, learner.setting, seed, learner.device, loss)
    other.buffer.load_state_dict(learner.buffer.state_dict())
    for number in range(fits):
        other.fit(mixed(seed, "fit", number))
    return other
