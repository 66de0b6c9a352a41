"""The baselines that learn no model, on the shared loop: a step is an update over the sources, or a target episode."""

from __future__ import annotations

import copy
import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from carl.adaptation import Branch, Log, is_test_point, packed_logs, unpacked_logs
from carl.config import TrainConfig
from carl.episodes import Episode
from carl.figures import adaptation, source_curve
from carl.maml import MAML
from carl.noise import mixed
from carl.policies import Paths, rollout
from carl.ppo import PPO
from carl.rarl import RARL
from carl.risk import Risk
from carl.task import task_of
from carl.train import (
    MEMBER,
    SOURCE_FILE,
    TARGET_COLUMNS,
    account,
    described,
    sources_of,
    target_rows,
)
from shared.checkpoint import load_plain, save_atomically
from shared.cli import print_table
from shared.config import UserError
from shared.loop import Loop, Task, load_checkpoint
from shared.run import saved_config, write_json

Agent = PPO | MAML | RARL


class ModelFree(Task):
    """One baseline, for one seed or several one after the other."""

    def __init__(self, config: TrainConfig) -> None:
        self.config, self.setting, self.task = config, config.setting(), task_of(config.env)
        self.sizes = config.policy_setting()
        self.source, self.target = sources_of(config)
        self.seeds = [config.seed + number for number in range(config.seeds)]

    def start(self, loop: Loop) -> None:
        self.loop = loop
        self.agents = [self._agent(seed) for seed in self.seeds]
        self.logs = [Log() for _ in self.seeds]
        self.returns: list[list[float]] = [[] for _ in self.seeds]  # of the source phase, mean of an update's episodes
        self.used = [0] * len(self.seeds)  # environment steps of the source phase

    def _agent(self, seed: int) -> Agent:
        if self.config.method == "ppo-maml":
            return MAML(self.task, seed)
        if self.config.method == "ppo-dr":
            return PPO(self.task, seed)
        return RARL(self.config.env, self.task, seed)

    def step(self, batch: Any) -> dict[str, float]:
        iteration = self.loop.step - self.config.source_steps()
        rows = []
        for place, (agent, seed) in enumerate(zip(self.agents, self.seeds, strict=True)):
            if iteration < 0:
                rows.append(self._source_step(agent, seed, place))
            else:
                rows.append(self._target_step(agent, seed, place, iteration))
        names = dict.fromkeys(name for row in rows for name in row)
        means = {name: statistics.fmean(row[name] for row in rows if name in row) for name in names}
        return {"target_phase": float(iteration >= 0), **means}

    def _source_step(self, agent: Agent, seed: int, place: int) -> dict[str, float]:
        """As many updates as this part of the budget pays for, one at least; `--source-iterations` are updates."""
        number, total = self.loop.step, self.config.source_steps()
        paid = 0.0 if self.config.source_iterations is not None else self.sizes.budget * (number + 1) / total
        found = self._update(agent, seed, place)
        while self.used[place] < paid:
            found = self._update(agent, seed, place)
        if number == total - 1 and place == len(self.agents) - 1 and self.loop.folder is not None:
            save_policies(self.loop.folder.path / SOURCE_FILE, self.config, self.agents)
        return {**found, "source_steps": float(self.used[place])}

    def _update(self, agent: Agent, seed: int, place: int) -> dict[str, float]:
        """One update over the sources."""
        number, sizes, steps, after = (
            len(self.returns[place]),
            self.sizes,
            self.setting.steps,
            self.setting.after_catastrophe,
        )
        stream = np.random.default_rng(mixed(seed, "domain", number))
        own = mixed(seed, "source", number)
        if isinstance(agent, MAML):
            domains = [self.source.sample(stream) for _ in range(sizes.maml_domains)]
            losses, played, again = agent.iteration(self.config.env, domains, sizes.maml_episodes, own, steps, after)
        else:
            domains = [self.source.sample(stream) for _ in range(sizes.episodes)]
            if isinstance(agent, RARL):
                losses, paths = agent.iteration(domains, own, steps, number, after)
            else:
                paths = rollout(agent.policy, self.config.env, self.task, domains, "source", own, steps, after=after)
                losses = agent.update(paths, own)
            played, again = [paths], []
        self.used[place] += sum(int(paths.alive.sum()) for paths in (*played, *again))
        if number == 0:  # from the first episodes on: policies see inputs of one size
            self._normalise(agent, played)
        self.returns[place].append(statistics.fmean(r for paths in played for r in paths.returns()))
        share = statistics.fmean(float(paths.catastrophes.any(dim=1).float().mean()) for paths in played)
        return {"return": self.returns[place][-1], "catastrophe": share, **losses}

    def _normalise(self, agent: Agent, played: list[Paths]) -> None:
        import torch

        rows = torch.cat([self.task.features(paths.states[:, :-1])[paths.learned] for paths in played])
        for each in (agent.agent, agent.adversary) if isinstance(agent, RARL) else (agent,):
            each.policy.normalise(rows)

    def _target_step(self, agent: Agent, seed: int, place: int, iteration: int) -> dict[str, float]:
        config, log = self.config, self.logs[place]
        if config.tests and is_test_point(iteration, self.setting):
            self._test(agent, seed, log, iteration)
        own = mixed(seed, "adapt", iteration)
        paths = self._target_paths(agent, seed, "adapt", iteration, self.setting.episodes)
        log.adaptation += paths.episodes(self.task.high)
        losses: dict[str, float] = {}
        if not paths.steps:  # every simulation broke down
            pass
        elif isinstance(agent, MAML):
            agent.settle({k: v.detach() for k, v in agent.adapted(agent.parameters(), paths).items()})
        elif isinstance(agent, PPO):
            losses = agent.update(paths, own)
        elif config.method == "rarl-finetune":
            losses = agent.agent.update(paths, own)
        if config.tests and iteration == self.setting.adapt_iterations - 1:
            self._test(agent, seed, log, self.setting.adapt_iterations)
        return {**described(log.adaptation[-self.setting.episodes :]), **losses}

    def adapt(self, agents: Sequence[Agent]) -> list[Log]:
        """The target phase alone, of agents whose source phase is over: the logs, one a seed. Call `start` before."""
        self.agents = list(agents)
        for iteration in range(self.setting.adapt_iterations):
            for place, (agent, seed) in enumerate(zip(self.agents, self.seeds, strict=True)):
                self._target_step(agent, seed, place, iteration)
        return self.logs

    def _target_paths(self, agent: Agent, seed: int, kind: str, iteration: int, episodes: int) -> Paths:
        """Target episodes that begin where those of `run_branches` do: all methods meet the same first states."""
        starts = [mixed(seed, kind, iteration, number) for number in range(episodes)]
        return rollout(
            agent.policy, self.config.env, self.task, [self.target] * episodes, "target", mixed(seed, kind, iteration),
            self.setting.in_target().steps, greedy=kind == "test", starts=starts,
        )  # fmt: skip

    def _test(self, agent: Agent, seed: int, log: Log, iteration: int) -> None:
        paths = self._target_paths(agent, seed, "test", iteration, self.config.tests)
        log.tests[iteration] = paths.episodes(self.task.high)

    def evaluate(self) -> dict[str, float]:
        found: dict[str, float] = {}
        if self.returns[0]:
            found["source_return_last_3"] = statistics.fmean(r for each in self.returns for r in each[-3:])
            found["source_updates"] = statistics.fmean(len(each) for each in self.returns)
            found["source_steps"] = statistics.fmean(self.used)
        if self.logs[0].adaptation:
            found["max_return"] = statistics.fmean(log.running_maximum()[-1] for log in self.logs)
            found["catastrophes"] = statistics.fmean(log.catastrophes()[-1] for log in self.logs)
            if self.logs[0].tests:
                found["test_catastrophes"] = statistics.fmean(log.test_catastrophes() for log in self.logs)
        return found

    def state(self) -> Mapping[str, Any]:
        return {"run": _State(self)}

    def branches(self) -> list[Branch]:
        """The seeds as branches, for accounts."""
        none: Any = None
        return [Branch(self.config.method, none, Risk("none"), self.target, seed) for seed in self.seeds]

    def report(self, folder: Path, summary: Mapping[str, Any]) -> int:
        """Tables and figures of a finished run; returns the exit code."""
        config, branches = self.config, self.branches()
        write_json(folder / "adaptation.json", account(branches, self.logs, config.env))
        made = [source_curve(folder / "figures" / "source", {config.method: self.returns}, "mean return of an update")]
        if self.logs[0].adaptation:
            returns = {config.method: [log.running_maximum() for log in self.logs]}
            deaths = {config.method: [[float(c) for c in log.catastrophes()] for log in self.logs]}
            made.append(adaptation(folder / "figures" / "adaptation", returns, deaths, f"target {self.target:g}"))
        rows = list(summary["metrics"].items())
        print_table(f"{config.method} on {config.env}: {summary['status']}", ("", "value"), rows, config.quiet)
        print_table("in the target", TARGET_COLUMNS, target_rows(branches, self.logs), config.quiet)
        if not config.quiet:
            print(f"run folder: {folder}")
            for path in made:
                print(f"figure: {path}")
        return 0


def save_policies(path: Path, config: TrainConfig, agents: Sequence[Agent]) -> None:
    """What the source phase left, atomically."""
    states = [agent.state_dict() for agent in agents]
    save_atomically({"member": MEMBER, "env": config.env, "method": config.method, "agents": states}, path)


def load_policies(path: Path, config: TrainConfig, agents: Sequence[Agent]) -> None:
    """Put what a source phase left into agents.

    Raises:
        UserError: no such file, or one of another method.
    """
    found = load_plain(path, "source phase", f"{SOURCE_FILE} of a run whose source phase is over")
    mine = {"member": MEMBER, "method": config.method, "env": config.env}
    if not isinstance(found, dict) or any(found.get(name) != value for name, value in mine.items()):
        raise UserError("source phase", path, f"a file written by `carl train` for {config.method} on {config.env}")
    if len(found["agents"]) != len(agents):
        raise UserError("source phase", f"{path}: {len(found['agents'])} policies", f"{len(agents)}, one a seed")
    for agent, state in zip(agents, found["agents"], strict=True):
        agent.load_state_dict(state)


def open_policies(folder: Path, phase: Literal["source", "adapted"], device: str) -> tuple[TrainConfig, list[Agent]]:
    """A run's config and its agents, one a seed: as the source phase left them, or as they are now.

    Raises:
        UserError: no run, a source phase that is not over, a run that has not reached its target.
    """
    config: TrainConfig = saved_config(folder, TrainConfig, MEMBER)
    task = ModelFree(dataclasses.replace(config, device=device, resume=None, quiet=True))
    loop = Loop(task, task.config, MEMBER, folder=False)
    task.start(loop)
    if phase == "source":
        load_policies(folder / SOURCE_FILE, config, task.agents)
        return config, task.agents
    load_checkpoint(folder, task, MEMBER, "newest")
    if not task.logs[0].adaptation:
        raise UserError("--phase", phase, "source: the run has not reached its target yet")
    return config, task.agents


def learned_in(config: TrainConfig, agents: Sequence[Agent], target: float, iterations: int, seed: int) -> list[Agent]:
    """What so many target iterations, under `seed` and those that follow it, make of agents, which stay as they are."""
    if not iterations:
        return list(agents)
    own = dataclasses.replace(
        config,
        target=target,
        adapt_iterations=iterations,
        tests=0,
        in_distribution=True,
        resume=None,
        quiet=True,
        seed=seed,
    )
    task = ModelFree(own)
    task.start(Loop(task, own, MEMBER, folder=False))
    task.adapt([copy.deepcopy(agent) for agent in agents])
    return task.agents


def greedy_episodes(agent: Agent, config: TrainConfig, target: float, starts: Sequence[int]) -> list[Episode]:
    """Test episodes in a target, whose first states are those of `run_episodes` under the seeds `starts`."""
    task, setting = task_of(config.env), config.setting().in_target()
    many = [target] * len(starts)
    paths = rollout(
        agent.policy, config.env, task, many, "target", starts[0], setting.steps, greedy=True, starts=starts
    )
    return paths.episodes(task.high)


class _State:
    """Agents, returns and logs in a checkpoint."""

    def __init__(self, task: ModelFree) -> None:
        self.task = task

    def state_dict(self) -> dict[str, Any]:
        task = self.task
        return {
            "agents": [agent.state_dict() for agent in task.agents],
            "returns": [list(each) for each in task.returns],
            "used": list(task.used),
            "logs": packed_logs(task.logs),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        task = self.task
        for agent, saved in zip(task.agents, state["agents"], strict=True):
            agent.load_state_dict(saved)
        task.returns = [list(each) for each in state["returns"]]
        task.used = list(state["used"])
        task.logs = unpacked_logs(state["logs"])
