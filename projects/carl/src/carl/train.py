"""One run on the shared loop: a step is an episode and a fit, first in the sources, then in the target."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from carl.adaptation import (
    Branch,
    Log,
    adapt_iteration,
    branch,
    is_test_point,
    packed_logs,
    take_tests,
    unpacked_logs,
)
from carl.config import MODEL_FREE, TrainConfig
from carl.domains import DomainDistribution
from carl.episodes import Episode
from carl.learner import Learner
from carl.noise import mixed
from carl.pretraining import make_learners, source_iteration, source_of
from carl.risk import Risk
from carl.settings import Setting
from carl.task import task_of
from shared.checkpoint import load_plain, save_atomically
from shared.cli import print_table
from shared.config import RunConfig, UserError
from shared.loop import Loop, Task
from shared.run import RunFolder, saved_config, write_json

MEMBER = "carl"
SOURCE_FILE = "source.pt"  # what the source phase left, for variants to branch off


def risk_of(config: TrainConfig) -> Risk:
    """The caution of a run in its target."""
    if config.method != "carl":
        return Risk("none")
    return Risk(config.risk, config.gamma, config.beta, config.penalty_of(config.setting().penalty))


def range_of(config: TrainConfig) -> DomainDistribution:
    """The source range of a run."""
    found = source_of(config.env)
    return found if config.source_range is None else found.between(*config.source_range)


def sources_of(config: TrainConfig) -> tuple[DomainDistribution, float]:
    """Where a run's source domains come from, and its target.

    Raises:
        UserError: a range that cannot be, a target inside it.
    """
    found = range_of(config)
    target = found.check_target(config.target_domain(), config.in_distribution)
    if config.source_domains is not None:
        found = found.few(config.source_domains, mixed(config.seed, "sources"))
    return found, target


def label_of(method: str, risk: Risk) -> str:
    """A variant's name in tables and figures."""
    return f"CARL ({risk.name})" if method == "carl" else method


class CautiousAdaptation(Task):
    """The model-based methods: source iterations, then adaptation, for one seed or several side by side."""

    def __init__(self, config: TrainConfig) -> None:
        self.config, self.setting, self.task = config, config.setting(), task_of(config.env)
        self.sources, self.target = sources_of(config)
        self.seeds = [config.seed + number for number in range(config.seeds)]
        self.folder: Path | None = None

    def start(self, loop: Loop) -> None:
        self.loop = loop
        device, loss = str(loop.device), self.config.catastrophe_loss
        head = self.config.with_head()
        self.learners = make_learners(self.config.env, self.setting, self.seeds, device, loss, head)
        # Beside a run that looks for catastrophes, what its baselines branch off where sources are to be separate.
        self.headless: list[Learner] = []
        if self.config.separate_sources and head and {"mb-finetune", "mb-frozen"} & set(self.config.against):
            self.headless = make_learners(self.config.env, self.setting, self.seeds, device, loss, head=False)
        self.branches: list[Branch] = []  # the run's own, one a seed, then those of --against
        self.logs: list[Log] = []
        self.source: list[list[tuple[float, int]]] = []  # [iteration][seed]: mean return, catastrophes
        if loop.folder is not None:
            self.folder = loop.folder.path

    def step(self, batch: Any) -> dict[str, float]:
        iteration = self.loop.step - self.config.source_steps()
        return self._source_step(self.loop.step) if iteration < 0 else self._target_step(iteration)

    def _source_step(self, iteration: int) -> dict[str, float]:
        learners, seeds = [*self.learners, *self.headless], self.seeds * (2 if self.headless else 1)
        done = source_iteration(learners, seeds, self.config.env, self.setting, iteration, self.sources)
        done = done[: len(self.learners)]
        episodes = [episode for each in done for episode in each.episodes]
        self.source.append([(each.reward, each.catastrophes) for each in done])
        if iteration == self.config.source_steps() - 1 and self.folder is not None:
            save_source(self.folder / SOURCE_FILE, self.config, self.learners)
        found = {f"source_{name}": value for name, value in _mean([each.errors for each in done]).items()}
        if iteration == self.config.source_steps() - 1 and not self.setting.adapt_iterations and self.config.tests:
            self._branch()  # nothing to adapt: the test before the first iteration is the one after the last
            found |= self._test(0)
        return {"target_phase": 0.0, **described(episodes), **_mean([each.fit for each in done]), **found}

    def _target_step(self, iteration: int) -> dict[str, float]:
        if not self.branches:
            self._branch()
        config, setting = self.config, self.setting
        found: dict[str, float] = {}
        if config.tests and is_test_point(iteration, setting):
            found |= self._test(iteration)
        own = self.branches[: len(self.seeds)]
        foreseeing = all(each.learner.fitted for each in own)
        before = [each.learner.copy() for each in own]  # fresh data are foreseen by who has not seen them
        fits = adapt_iteration(self.branches, self.logs, config.env, self.task, setting, iteration)[: len(own)]
        latest = [log.adaptation[-setting.episodes :] for log in self.own_logs]
        episodes = [episode for some in latest for episode in some]
        if foreseeing:
            errors = [each.errors(some) for each, some in zip(before, latest, strict=True)]
            found |= {f"target_{name}": value for name, value in _mean(errors).items()}
        if config.tests and iteration == setting.adapt_iterations - 1:
            found |= self._test(setting.adapt_iterations)
        return {"target_phase": 1.0, **described(episodes), **_mean(fits), **found}

    def _branch(self) -> None:
        """The variant leaves the source phase behind."""
        config, risk = self.config, risk_of(self.config)
        fits, frozen = config.method != "mb-frozen", config.adapt_head == "frozen"
        if config.method == "pets-scratch":
            self.branches = [
                Branch("pets-scratch", learner, risk, self.target, seed)
                for learner, seed in zip(self.learners, self.seeds, strict=True)
            ]
        else:
            self.branches = [
                branch(learner, risk, self.target, seed, label_of(config.method, risk), fits, frozen)
                for learner, seed in zip(self.learners, self.seeds, strict=True)
            ]
        for name in config.against if config.method == "carl" else ():
            for learner, seed in zip(self.headless or self.learners, self.seeds, strict=True):
                if name == "pets-scratch":
                    device, loss = str(self.loop.device), config.catastrophe_loss
                    head = not config.separate_sources
                    fresh = make_learners(config.env, self.setting, [seed], device, loss, head)[0]
                    self.branches.append(Branch(name, fresh, Risk("none"), self.target, seed))
                else:
                    self.branches.append(branch(learner, Risk("none"), self.target, seed, name, name != "mb-frozen"))
        self.logs = [Log() for _ in self.branches]

    @property
    def own_logs(self) -> list[Log]:
        """Of the run's own method, one a seed."""
        return self.logs[: len(self.seeds)]

    def _test(self, iteration: int) -> dict[str, float]:
        take_tests(self.branches, self.logs, self.config.env, self.task, self.setting, iteration, self.config.tests)
        episodes = [episode for log in self.own_logs for episode in log.tests[iteration]]
        return {f"test_{name}": value for name, value in described(episodes).items()}

    def evaluate(self) -> dict[str, float]:
        """What the run came to so far."""
        found: dict[str, float] = {}
        if self.source:
            found["source_return_last_3"] = statistics.fmean(reward for row in self.source[-3:] for reward, _ in row)
            found["source_catastrophes"] = sum(count for row in self.source for _, count in row) / len(self.seeds)
        if self.logs and self.logs[0].adaptation:
            found["max_return"] = statistics.fmean(log.running_maximum()[-1] for log in self.own_logs)
            found["catastrophes"] = statistics.fmean(log.catastrophes()[-1] for log in self.own_logs)
        if self.logs and self.logs[0].tests:
            found["test_catastrophes"] = statistics.fmean(log.test_catastrophes() for log in self.own_logs)
        return found

    def state(self) -> Mapping[str, Any]:
        return {"run": _RunState(self)}


class _RunState:
    """Learners, branches and logs in a checkpoint. Random numbers need no place: they follow from seed and step."""

    def __init__(self, task: CautiousAdaptation) -> None:
        self.task = task

    def state_dict(self) -> dict[str, Any]:
        task = self.task
        return {
            "learners": [learner.state_dict() for learner in task.learners],
            "headless": [learner.state_dict() for learner in task.headless],
            "source": [[list(entry) for entry in row] for row in task.source],
            "branches": [each.learner.state_dict() for each in task.branches],
            "logs": packed_logs(task.logs),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        task = self.task
        for learner, saved in zip(
            [*task.learners, *task.headless], [*state["learners"], *state["headless"]], strict=True
        ):
            learner.load_state_dict(saved)
        task.source = [[(float(reward), int(count)) for reward, count in row] for row in state["source"]]
        task.branches, task.logs = [], []
        if state["branches"]:
            task._branch()
            for each, saved in zip(task.branches, state["branches"], strict=True):
                each.learner.load_state_dict(saved)
            task.logs = unpacked_logs(state["logs"])


def described(episodes: Sequence[Episode]) -> dict[str, float]:
    """Means over episodes: return, steps, share with a catastrophe, milliseconds of planning a step; counts: particles
    without a finite cost, steps at which all were."""
    steps = max(sum(episode.length for episode in episodes), 1)
    return {
        "return": statistics.fmean(episode.reward for episode in episodes),
        "length": statistics.fmean(episode.length for episode in episodes),
        "catastrophe": statistics.fmean(float(episode.catastrophe) for episode in episodes),
        "plan_ms": 1000 * sum(episode.planning for episode in episodes) / steps,
        "failed_particles": float(sum(episode.failed for episode in episodes)),
        "blind_steps": float(sum(episode.blind for episode in episodes)),
    }


def _mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each number over the rows that have it and for which it is one."""
    names = dict.fromkeys(name for row in rows for name in row)
    found = {name: [row[name] for row in rows if name in row and math.isfinite(row[name])] for name in names}
    return {name: statistics.fmean(values) for name, values in found.items() if values}


# -- the source phase's file ---------------------------------------------------------------------------------------


def sizes(setting: Setting) -> dict[str, Any]:
    """What a checkpoint's tensors depend on."""
    return {"hidden": list(setting.hidden), "nets": setting.nets}


def save_source(path: Path, config: TrainConfig, learners: Sequence[Learner]) -> None:
    """What the source phase left, atomically."""
    content = {
        "member": MEMBER, "env": config.env, "sizes": sizes(config.setting()), "seed": config.seed,
        "head": config.with_head(),
    }  # fmt: skip
    save_atomically({**content, "learners": [learner.state_dict() for learner in learners]}, path)


def load_source(path: Path, env: str, learners: Sequence[Learner]) -> None:
    """Put what a source phase left into learners.

    Raises:
        UserError: no such file, or one of another environment, of other sizes or seeds.
    """
    found = load_plain(path, "source phase", f"{SOURCE_FILE} of a run whose source phase is over")
    if not isinstance(found, dict) or found.get("member") != MEMBER or "learners" not in found:
        raise UserError("source phase", path, "a file written by `carl train`")
    if found["env"] != env:
        raise UserError("source phase", found["env"], f"one of {env}")
    wanted = sizes(learners[0].setting)
    if found["sizes"] != wanted:
        raise UserError("source phase: sizes", found["sizes"], str(wanted))
    if len(found["learners"]) != len(learners):
        raise UserError("source phase: seeds", len(found["learners"]), str(len(learners)))
    for learner, state in zip(learners, found["learners"], strict=True):
        learner.load_state_dict(state)


def open_source(folder: Path, device: str) -> tuple[TrainConfig, list[Learner]]:
    """A run's config and what its source phase left.

    Raises:
        UserError: no run, a run without a source phase or one that is not over.
    """
    config: TrainConfig = saved_config(folder, TrainConfig, MEMBER)
    if config.method in MODEL_FREE or config.method == "pets-scratch":
        raise UserError(
            "run folder", config.method, "a run with a model and a source phase", "Train one by --method carl."
        )
    from shared.device import choose_device

    seeds = [config.seed + number for number in range(config.seeds)]
    where, head = str(choose_device(device)), config.with_head()
    learners = make_learners(config.env, config.setting(), seeds, where, config.catastrophe_loss, head)
    load_source(folder / SOURCE_FILE, config.env, learners)
    return config, learners


# -- the verb ------------------------------------------------------------------------------------------------------


def make_task(config: TrainConfig) -> Task:
    """The task of a method."""
    if config.method in MODEL_FREE:
        from carl.model_free import ModelFree

        return ModelFree(config)
    return CautiousAdaptation(config)


def train(config: TrainConfig) -> int:
    """`carl train`. Returns the exit code."""
    task = make_task(config)
    loop = Loop(task, _looped(config), MEMBER)
    assert isinstance(loop.folder, RunFolder)
    folder = loop.folder.path
    summary = loop.run()
    if not isinstance(task, CautiousAdaptation):
        return task.report(folder, summary)  # pyright: ignore[reportAttributeAccessIssue]
    from carl.figures import run_figures

    write_json(folder / "adaptation.json", account(task.branches, task.logs, config.env))
    source = [[row[seed][0] for row in task.source] for seed in range(len(task.seeds))] if task.source else []
    made = run_figures(folder, source, task.branches, task.logs)
    label = label_of(config.method, risk_of(config))
    rows = [(name, value) for name, value in summary["metrics"].items()]
    print_table(f"{label} on {config.env}: {summary['status']}", ("", "value"), rows, config.quiet)
    print_table("in the target", TARGET_COLUMNS, target_rows(task.branches, task.logs), config.quiet)
    if not config.quiet:
        print(f"run folder: {folder}")
        for path in made:
            print(f"figure: {path}")
    return 0


def _looped(config: TrainConfig) -> RunConfig:
    """An episode is long: keep a checkpoint of each unless told otherwise."""
    return config if config.checkpoint_every is not None else dataclasses.replace(config, checkpoint_every=1)


TARGET_COLUMNS = (
    "variant", "seed", "target", "episodes", "highest return", "catastrophes", "zero-shot return", "tests",
    "catastrophes in tests",
)  # fmt: skip


def target_rows(branches: Sequence[Branch], logs: Sequence[Log]) -> list[tuple[object, ...]]:
    """A row a branch."""
    rows: list[tuple[object, ...]] = []
    for each, log in zip(branches, logs, strict=True):
        first = log.tests.get(0, [])
        zero = statistics.fmean(e.reward for e in first) if first else float("nan")
        best = log.running_maximum()[-1] if log.adaptation else float("nan")
        tests = sum(len(found) for found in log.tests.values())
        rows.append(
            (each.label, each.seed, f"{each.target:g}", len(log.adaptation), best,
             log.catastrophes()[-1] if log.adaptation else 0, zero, tests, log.test_catastrophes())
        )  # fmt: skip
    return rows


def account(branches: Sequence[Branch], logs: Sequence[Log], env: str) -> dict[str, Any]:
    """What happened in the target, as JSON values."""
    return {
        "env": env,
        "branches": [
            {
                "label": each.label, "target": each.target, "seed": each.seed, "risk": dataclasses.asdict(each.risk),
                "adaptation": [outline(episode) for episode in log.adaptation],
                "tests": {str(i): [outline(episode) for episode in found] for i, found in log.tests.items()},
            }
            for each, log in zip(branches, logs, strict=True)
        ],
    }  # fmt: skip


def outline(episode: Episode) -> dict[str, Any]:
    """An episode in a few JSON values."""
    return {
        "return": episode.reward, "length": episode.length, "catastrophe": episode.catastrophe,
        "first_catastrophe": episode.first_catastrophe, "unstable": episode.unstable,
    }  # fmt: skip
