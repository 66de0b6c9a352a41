"""The target phase: one unseen domain, in which a catastrophe ends the episode and counts.

Every variant branches off the same source-trained learner and meets the same first states and random numbers. Tests are
episodes that are not learned from, before some iterations and after the last; before the first they are zero-shot.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from carl.episodes import Episode, Start, packed, run_episodes, unpacked
from carl.kept import Kept
from carl.learner import Learner
from carl.noise import mixed
from carl.risk import Risk
from carl.settings import TESTS, Setting
from carl.task import PlanningTask
from shared.config import UserError


@dataclass
class Branch:
    """One variant's way through the target.

    Attributes:
        label: of tables and figures.
        learner: its own.
        risk: its caution, in every episode of the target.
        target: the domain. seed: of first states and random numbers.
        fits: whether it keeps learning.
        voter: whose head votes, where that stays as the source phase left it (`adapt_head` frozen).
    """

    label: str
    learner: Learner
    risk: Risk
    target: float
    seed: int
    fits: bool = True
    voter: Learner | None = None


@dataclass
class Log:
    """What a branch went through.

    Attributes:
        adaptation: episodes learned from, in order. tests: iteration -> test episodes.
    """

    adaptation: list[Episode] = field(default_factory=list)
    tests: dict[int, list[Episode]] = field(default_factory=dict)

    def running_maximum(self) -> list[float]:
        """Highest return so far, after every adaptation episode."""
        best, found = float("-inf"), []
        for episode in self.adaptation:
            best = max(best, episode.reward)
            found.append(best)
        return found

    def catastrophes(self) -> list[int]:
        """Adaptation episodes with a catastrophe so far."""
        count, found = 0, []
        for episode in self.adaptation:
            count += episode.catastrophe
            found.append(count)
        return found

    def test_catastrophes(self) -> int:
        """Test episodes with a catastrophe."""
        return sum(episode.catastrophe for episodes in self.tests.values() for episode in episodes)


def packed_logs(logs: Sequence[Log]) -> list[dict[str, Any]]:
    """Logs as tensors and plain values."""
    return [
        {
            "adaptation": [packed(episode) for episode in log.adaptation],
            "tests": {str(i): [packed(episode) for episode in some] for i, some in log.tests.items()},
        }
        for log in logs
    ]


def unpacked_logs(states: Sequence[dict[str, Any]]) -> list[Log]:
    """The inverse of `packed_logs`."""
    return [
        Log(
            [unpacked(episode) for episode in state["adaptation"]],
            {int(i): [unpacked(episode) for episode in some] for i, some in state["tests"].items()},
        )
        for state in states
    ]


def check_head(learner: Learner, risk: Risk) -> None:
    """Refuse votes of a head that never saw what it is to predict; where the setting allows them, warn.

    Raises:
        UserError: caution by votes, and a source phase without a single catastrophe.
    """
    if risk.penalty and learner.head and learner.setting.untrained_head and not learner.met_catastrophe:
        warnings.warn("the source phase met no catastrophe: the votes are those of an untrained head", stacklevel=2)
    elif risk.penalty and not learner.met_catastrophe:
        hint = "Train the source phase longer and with the catastrophe head, or plan by --risk reward."
        raise UserError(
            "--risk", risk.name, "a source phase that met a catastrophe: the head has nothing to go by", hint
        )


def branch(
    source: Learner, risk: Risk, target: float, seed: int, label: str, fits: bool = True, frozen_head: bool = False
) -> Branch:
    """A variant that starts from a source-trained learner.

    Raises:
        UserError: see `check_head`.
    """
    check_head(source, risk)
    return Branch(label, source.copy(), risk, target, seed, fits, source.copy() if frozen_head else None)


def is_test_point(iteration: int, setting: Setting) -> bool:
    """Whether there are tests before an iteration (`adapt_iterations`: after the last)."""
    return iteration == setting.adapt_iterations or iteration in TESTS


def run_branches(
    branches: Sequence[Branch],
    name: str,
    task: PlanningTask,
    setting: Setting,
    kind: str,
    iteration: int,
    episodes: int = 1,
    traced: bool = False,
) -> list[list[Episode]]:
    """Episodes of all branches side by side: [branch][episode].

    Args:
        kind: `adapt` or `test`, part of the seed with the iteration. episodes: of every branch.
    """
    starts = [
        Start(each.target, "target", mixed(each.seed, kind, iteration, number), each.learner, each.risk, each.voter)
        for each in branches
        for number in range(episodes)
    ]
    found = run_episodes(starts, name, task, setting.in_target(), traced)
    return [found[place * episodes : (place + 1) * episodes] for place in range(len(branches))]


def take_tests(
    branches: Sequence[Branch],
    logs: Sequence[Log],
    name: str,
    task: PlanningTask,
    setting: Setting,
    iteration: int,
    episodes: int = 1,
) -> None:
    """Test episodes before an iteration, into the logs."""
    for log, found in zip(logs, run_branches(branches, name, task, setting, "test", iteration, episodes), strict=True):
        log.tests[iteration] = found


def adapt_iteration(
    branches: Sequence[Branch], logs: Sequence[Log], name: str, task: PlanningTask, setting: Setting, iteration: int
) -> list[dict[str, float]]:
    """Episodes in the target and one fit of every branch that learns. Returns the losses of the fits."""
    losses = []
    played = run_branches(branches, name, task, setting, "adapt", iteration, setting.episodes)
    for each, log, found in zip(branches, logs, played, strict=True):
        log.adaptation += found
        if each.fits:
            for episode in found:
                each.learner.remember(episode)
        can_fit = each.fits and len(each.learner.buffer) > 0
        losses.append(each.learner.fit(mixed(each.seed, "refit", iteration)) if can_fit else {})
    return losses


def adapt(
    branches: Sequence[Branch],
    name: str,
    task: PlanningTask,
    setting: Setting,
    test_episodes: int = 1,
    kept: Kept | None = None,
    part: str = "adaptation",
) -> list[Log]:
    """The whole target phase of several variants, planned side by side.

    Args:
        branches: the variants. name, task, setting: the experiment.
        test_episodes: a test point; 0 for none.
        kept: where it is saved under the name `part` after every iteration, and gone on with.
    """
    kept, logs, first = kept or Kept(), [Log() for _ in branches], 0
    if (state := kept.load(part)) is not None:
        first, logs = int(state["iterations"]), unpacked_logs(state["logs"])
        for each, learner in zip(branches, state["learners"], strict=True):
            each.learner.load_state_dict(learner)
    for iteration in range(first, setting.adapt_iterations + 1):
        if test_episodes and is_test_point(iteration, setting):
            take_tests(branches, logs, name, task, setting, iteration, test_episodes)
        if iteration < setting.adapt_iterations:
            adapt_iteration(branches, logs, name, task, setting, iteration)
        learners = [each.learner.state_dict() for each in branches]
        kept.save(part, {"iterations": iteration + 1, "learners": learners, "logs": packed_logs(logs)})
    return logs
