"""Episodes of several problems side by side: one plan for all at every step, and each environment stepped.

Episodes with the same seed meet the same first state and the same random numbers in planning, whatever else is in the
batch: variants differ by their caution alone, and what one of them does can be run again alone.
"""

from __future__ import annotations

import dataclasses
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from carl.domains import Phase
from carl.noise import Streams, mixed
from carl.planner import Planner, PlanTrace
from carl.registry import NAMES, register
from carl.risk import Risk
from carl.settings import Setting
from carl.simulation import SafetyEnv
from carl.task import PlanningTask
from shared.config import check_choice

if TYPE_CHECKING:
    from carl.learner import Learner


SLOW, FAST, HELD = 0.05, 0.15, 2  # of a random walk of actions: share of half the box a step; steps in one direction


@dataclass(frozen=True)
class Start:
    """An episode to be run.

    Attributes:
        domain: the dynamics parameter. phase: in the target phase a catastrophe ends the episode.
        seed: of the first state and of planning.
        learner: whose ensemble plans; None, or one that was never fitted: uniformly random actions.
        risk: what the planner is cautious of.
        voter: whose head votes in place of the learner's own.
    """

    domain: float
    phase: Phase
    seed: int
    learner: Learner | None = None
    risk: Risk = field(default_factory=Risk)
    voter: Learner | None = None

    @property
    def planned(self) -> bool:
        return self.learner is not None and self.learner.fitted


@dataclass
class Episode:
    """What happened.

    Attributes:
        domain, phase, seed: of the start.
        states: (n + 1, s) float32. actions: (n, a) float32. rewards, catastrophes: (n,) of the states that followed.
        unstable: the simulation broke down; the step that did is not among these.
        votes, disagreement: (n, H) of the plans, where they were traced.
        failed: particles without a finite cost. blind: steps at which no particle had one.
        planning: seconds, the episode's share of the batch's.
    """

    domain: float
    phase: Phase
    seed: int
    states: NDArray[np.float32]
    actions: NDArray[np.float32]
    rewards: NDArray[np.float64]
    catastrophes: NDArray[np.bool_]
    unstable: bool = False
    votes: NDArray[np.float32] | None = None
    disagreement: NDArray[np.float32] | None = None
    failed: int = 0
    blind: int = 0
    planning: float = 0.0

    @property
    def length(self) -> int:
        """Steps."""
        return len(self.actions)

    @property
    def reward(self) -> float:
        """Undiscounted return."""
        return float(self.rewards.sum())

    @property
    def catastrophe(self) -> bool:
        """Whether there was one."""
        return bool(self.catastrophes.any())

    @property
    def first_catastrophe(self) -> int | None:
        """Steps until the first one, counted from 1; None if there was none."""
        return int(self.catastrophes.argmax()) + 1 if self.catastrophe else None


def packed(episode: Episode) -> dict[str, Any]:
    """An episode as tensors and plain values."""
    values = {each.name: getattr(episode, each.name) for each in dataclasses.fields(Episode)}
    return {k: torch.from_numpy(v.copy()) if isinstance(v, np.ndarray) else v for k, v in values.items()}


def unpacked(values: Mapping[str, Any]) -> Episode:
    """The inverse of `packed`."""
    plain: dict[str, Any] = {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in values.items()}
    return Episode(**plain)


def make_env(name: str, **options: Any) -> SafetyEnv:
    """An environment by its name, without gymnasium's wrappers: horizons are the experiment's.

    Raises:
        UserError: no such environment.
    """
    check_choice("--env", name, NAMES)
    register()
    made = gymnasium.make(NAMES[name][0], disable_env_checker=True, **options).unwrapped
    assert isinstance(made, SafetyEnv)
    return made


def context_of(name: str, domain: float) -> float:
    """The parameter of the *reward*: cartpole's task is to hold the tip where a pole of that length has it."""
    return domain if name == "cartpole" else 0.0


@dataclass
class _Running:
    """An episode that goes on."""

    start: Start
    env: SafetyEnv
    random: np.random.Generator
    states: list[NDArray[Any]]
    actions: list[NDArray[Any]] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    catastrophes: list[bool] = field(default_factory=list)
    votes: list[NDArray[Any]] = field(default_factory=list)
    disagreement: list[NDArray[Any]] = field(default_factory=list)
    unstable: bool = False
    failed: int = 0
    blind: int = 0
    planning: float = 0.0
    drift: NDArray[Any] = field(default_factory=lambda: np.zeros(0))

    def wandered(self, low: NDArray[Any], high: NDArray[Any], step: int) -> NDArray[Any]:
        """The next action of a slow random walk: each dimension moves by `SLOW` to `FAST` of half its range a step, the
        same way for `HELD` steps."""
        if step % HELD == 0:
            way = self.random.choice([-1.0, 1.0], size=low.shape)
            self.drift = way * self.random.uniform(SLOW, FAST, size=low.shape) * (high - low) / 2
        before = self.actions[-1] if self.actions else (low + high) / 2
        return np.clip(before + self.drift, low, high)

    def step(self, action: NDArray[Any]) -> bool:
        """Whether the episode goes on."""
        state, reward, terminated, _, info = self.env.step(action)
        if info["unstable"]:
            self.unstable = True
            return False
        self.states.append(state)
        self.actions.append(np.asarray(action, np.float32))
        self.rewards.append(float(reward))
        self.catastrophes.append(bool(info["catastrophe"]))
        return not terminated

    def episode(self) -> Episode:
        start, width = self.start, int(np.prod(self.env.action_space.shape or ()))
        return Episode(
            start.domain, start.phase, start.seed,
            np.asarray(self.states, np.float32),
            np.asarray(self.actions, np.float32).reshape(-1, width),
            np.asarray(self.rewards, np.float64),
            np.asarray(self.catastrophes, bool),
            self.unstable,
            np.asarray(self.votes, np.float32) if self.votes else None,
            np.asarray(self.disagreement, np.float32) if self.disagreement else None,
            self.failed, self.blind, self.planning,
        )  # fmt: skip


def planner_of(starts: Sequence[Start], task: PlanningTask, setting: Setting) -> Planner:
    """A planner for episodes that are planned."""
    learners = [start.learner for start in starts]
    ensembles = [learner.ensemble for learner in learners if learner is not None]
    voters = None
    if any(start.voter is not None for start in starts):
        voters = [(start.voter or start.learner).ensemble for start in starts]  # pyright: ignore
    return Planner(
        ensembles, task, [start.risk for start in starts], horizon=setting.horizon, particles=setting.particles,
        candidates=setting.candidates, elites=setting.elites, iterations=setting.cem_iterations, alpha=setting.alpha,
        voters=voters, optimiser=setting.optimiser, compile=setting.compile,
    )  # fmt: skip


def run_episodes(
    starts: Sequence[Start], name: str, task: PlanningTask, setting: Setting, traced: bool = False, **options: Any
) -> list[Episode]:
    """Run episodes side by side, in the order of `starts`; those that have ended are planned for no more.

    Args:
        starts: what to run. name: of the environment. task, setting: how it is planned.
        traced: keep votes and disagreement of every plan; costs a simulation more a step.
        options: of the environment.
    """
    if name == "duckietown":
        options.setdefault("hit_wall_observation", setting.hit_wall_observation)
    running: dict[int, _Running] = {}
    for place, start in enumerate(starts):
        env = make_env(name, **options)
        state, _ = env.reset(
            seed=mixed(start.seed, "reset") % 2**31, options={"domain": start.domain, "phase": start.phase}
        )
        running[place] = _Running(start, env, np.random.default_rng(mixed(start.seed, "actions")), [state])
    episodes = dict(running)
    planned = [place for place in running if starts[place].planned]
    planner = streams = None
    if planned:
        chosen = [starts[place] for place in planned]
        planner = planner_of(chosen, task, setting)
        streams = Streams([mixed(start.seed, "plan") for start in chosen], planner.device)
    workers = min(len(starts), os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:  # MuJoCo steps without the interpreter's lock
        for step in range(setting.steps):
            actions = _actions(running, planned, planner, streams, name, step, traced, setting.walk)
            places = list(running)
            jobs = [(running[place], actions[place]) for place in places]
            stepped = map(_stepped, jobs) if len(jobs) == 1 or workers == 1 else pool.map(_stepped, jobs)
            goes_on = dict(zip(places, stepped, strict=True))
            running = {place: run for place, run in running.items() if goes_on[place] and not _over(run, setting)}
            left = [index for index, place in enumerate(planned) if place in running]
            if planner is not None and streams is not None and len(left) < len(planned):
                planned = [planned[index] for index in left]
                if planned:
                    planner.keep(left)
                    streams.keep(left)
            if not running:
                break
    for run in episodes.values():
        run.env.close()
    made = [run.episode() for run in episodes.values()]
    if blind := sum(episode.blind for episode in made):
        warnings.warn(f"no plan had a finite cost at {blind} steps: the action was the middle of its box", stacklevel=2)
    if any(episode.unstable for episode in made):
        warnings.warn("a simulation broke down; its episode ends before and is not learned from", stacklevel=2)
    return made


def _stepped(job: tuple[_Running, NDArray[Any]]) -> bool:
    run, action = job
    return run.step(action)


def _over(run: _Running, setting: Setting) -> bool:
    """Whether a source episode has gone on for long enough after its first catastrophe."""
    if setting.after_catastrophe is None or run.start.phase == "target" or not any(run.catastrophes):
        return False
    return len(run.catastrophes) - 1 - run.catastrophes.index(True) >= setting.after_catastrophe


def _actions(
    running: dict[int, _Running],
    planned: Sequence[int],
    planner: Planner | None,
    streams: Streams | None,
    name: str,
    step: int,
    traced: bool,
    walk: bool,
) -> dict[int, NDArray[Any]]:
    """The next action of every episode."""
    actions: dict[int, NDArray[Any]] = {}
    if planner is not None and streams is not None and planned:
        runs = [running[place] for place in planned]
        began = time.perf_counter()
        state = torch.from_numpy(np.asarray([run.states[-1] for run in runs], np.float32)).to(planner.device)
        context = torch.tensor([context_of(name, run.start.domain) for run in runs], device=planner.device)
        chosen, trace = planner.act(state, context, streams.at(step), traced)
        counts = torch.stack([planner.failed, planner.blind.long()], dim=1)
        found = torch.cat([chosen, counts], dim=1).cpu().numpy()  # one transfer
        share = (time.perf_counter() - began) / len(runs)
        for place, run, row in zip(planned, runs, found, strict=True):
            actions[place] = row[:-2]
            run.failed, run.blind, run.planning = (
                run.failed + int(row[-2]),
                run.blind + int(row[-1]),
                run.planning + share,
            )
        if trace is not None:
            _keep(runs, trace)
    for place, run in running.items():
        if place not in actions:
            space = run.env.action_space
            assert isinstance(space, gymnasium.spaces.Box)
            if walk:
                actions[place] = run.wandered(space.low, space.high, step)
            else:
                actions[place] = run.random.uniform(space.low, space.high)
    return actions


def _keep(runs: Sequence[_Running], trace: PlanTrace) -> None:
    votes, spread = (part.cpu().numpy() for part in (trace.votes, trace.disagreement))
    for g, run in enumerate(runs):
        run.votes.append(votes[g])
        run.disagreement.append(spread[g])
