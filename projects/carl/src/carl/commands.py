"""What the verbs other than `train` and `reproduce` do."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from carl.adaptation import Branch, Log, adapt_iteration, branch, check_head, is_test_point, run_branches, take_tests
from carl.catastrophe import calibrate
from carl.config import (
    ENV_DESCRIPTIONS,
    ENVS,
    MODEL_FREE,
    AdaptConfig,
    CautionFlags,
    EnvsConfig,
    EvaluateConfig,
    RecordConfig,
    SweepConfig,
    TrainConfig,
)
from carl.episodes import Episode, Start, make_env, run_episodes
from carl.figures import adaptation, heat_map, target_sweep
from carl.learner import Learner
from carl.noise import mixed
from carl.pretraining import make_learners, source_of
from carl.risk import Risk
from carl.settings import PUBLISHED, Setting
from carl.task import task_of
from carl.train import (
    MEMBER,
    SOURCE_FILE,
    TARGET_COLUMNS,
    CautiousAdaptation,
    account,
    described,
    label_of,
    open_source,
    outline,
    range_of,
    target_rows,
)
from shared.cli import print_table
from shared.config import UserError
from shared.loop import Loop, load_checkpoint
from shared.run import free_path, saved_config, write_json, writing

CATASTROPHES = {
    "cartpole": "the pole is beyond 90 degrees or the cart beyond 2.4 m",
    "duckietown": "a wall is hit",
    "half-cheetah": "the head touches the floor",
    "baoding": "a ball falls off the hand",
}


def free_folder(path: Path, force: bool) -> Path:
    """A folder for results, if nothing is lost by writing there.

    Raises:
        UserError: it holds something and `--force` was not given.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())) and not force:
        raise UserError("--out", path, "a new or empty folder", "Replace what is there by --force.")
    path.mkdir(parents=True, exist_ok=True)
    return path


def risk_of_flags(config: CautionFlags, env: str, name: str | None = None) -> Risk:
    """The caution that flags describe."""
    penalty = config.penalty_of(PUBLISHED[env].penalty)
    return Risk(name or config.risk, config.gamma, config.beta, penalty)  # pyright: ignore


def targets_of(
    run: TrainConfig, given: Sequence[float], in_distribution: bool, field: str = "--targets"
) -> list[float]:
    """Targets to look at: those given, checked against the run's sources, or all outside these that the environment
    lists."""
    source = range_of(run)
    listed = [t for t in PUBLISHED[run.env].targets if in_distribution or not source.contains(t) or t in source.listed]
    chosen = list(given) or listed
    if not chosen:
        hint = f"All that {run.env} lists lie inside the source range."
        raise UserError(field, "none", f"targets outside {source}, or --in-distribution", hint)
    return [source.check_target(target, in_distribution, field) for target in chosen]


# -- adapt --------------------------------------------------------------------------------------------------------


def adapt(config: AdaptConfig) -> int:
    """`carl adapt`."""
    run, learners = open_source(config.run, config.device)
    setting = run.setting()
    if config.iterations is not None:
        setting = dataclasses.replace(setting, adapt_iterations=config.iterations)
    risk = risk_of_flags(config, run.env) if config.method == "carl" else Risk("none")
    wanted = () if config.target is None else (config.target,)
    target = targets_of(run, wanted, config.in_distribution, "--target")[0]
    label = label_of(config.method, risk)
    seeds = [(run.seed if config.seed is None else config.seed) + number for number in range(len(learners))]
    if config.method == "pets-scratch":
        fresh = make_learners(run.env, setting, seeds, str(learners[0].device), run.catastrophe_loss)
        branches = [Branch(label, made, risk, target, seed) for made, seed in zip(fresh, seeds, strict=True)]
    else:
        fits, frozen = config.method != "mb-frozen", config.adapt_head == "frozen"
        branches = [
            branch(learner, risk, target, seed, label, fits, frozen)
            for learner, seed in zip(learners, seeds, strict=True)
        ]
    name = label.replace(" ", "-").replace("(", "").replace(")", "").replace("+", "-").lower()
    out = free_folder(config.out or config.run / f"adapt-{name}-{target:g}", config.force)
    logs = go_through(branches, run.env, setting, config.tests, config.quiet)
    write_json(out / "adaptation.json", account(branches, logs, run.env))
    print_table(f"in the target of {run.env}", TARGET_COLUMNS, target_rows(branches, logs), config.quiet)
    if setting.adapt_iterations:
        returns = {label: [log.running_maximum() for log in logs]}
        deaths = {label: [[float(c) for c in log.catastrophes()] for log in logs]}
        made = adaptation(out / "adaptation", returns, deaths, f"target {target:g}")
        if not config.quiet:
            print(f"figure: {made}")
    if not config.quiet:
        print(out / "adaptation.json")
    return 0


def go_through(branches: Sequence[Branch], env: str, setting: Setting, tests: int, quiet: bool) -> list[Log]:
    """The target phase of some branches, with a progress bar."""
    from tqdm import tqdm

    logs = [Log() for _ in branches]
    bar = tqdm(total=setting.adapt_iterations, unit="episode", disable=True if quiet else None, desc=MEMBER)
    with bar:
        for iteration in range(setting.adapt_iterations + 1):
            if tests and is_test_point(iteration, setting):
                take_tests(branches, logs, env, task_of(env), setting, iteration, tests)
            if iteration < setting.adapt_iterations:
                adapt_iteration(branches, logs, env, task_of(env), setting, iteration)
                bar.update()
    return logs


# -- evaluate -----------------------------------------------------------------------------------------------------


def open_phase(
    folder: Path, phase: str, device: str
) -> tuple[TrainConfig, list[tuple[Learner, Learner | None]], float]:
    """A run's config, its models of a phase each with whose head votes (None: its own), and the target it adapted to.

    Raises:
        UserError: no run, no model of that phase.
    """
    if phase == "source":
        config, learners = open_source(folder, device)
        return config, [(learner, None) for learner in learners], config.target_domain()
    config: TrainConfig = saved_config(folder, TrainConfig, MEMBER)
    if config.method in MODEL_FREE:
        raise UserError("run folder", config.method, "a run that learns a model")
    task = CautiousAdaptation(dataclasses.replace(config, device=device, resume=None, quiet=True))
    loop = Loop(task, task.config, MEMBER, folder=False)
    task.start(loop)
    load_checkpoint(folder, task, MEMBER, "newest")
    if not task.branches:
        raise UserError("--phase", phase, "source: the run has not reached its target yet")
    own = task.branches[: len(task.seeds)]
    return config, [(each.learner, each.voter) for each in own], task.target


def evaluate_policies(config: EvaluateConfig) -> int:
    """`carl evaluate` of a baseline that learns no model: its mean actions, under no caution."""
    from carl.model_free import greedy_episodes, learned_in, open_policies

    run, agents = open_policies(config.run, config.phase, config.device)
    rows: list[tuple[object, ...]] = []
    found: list[dict[str, Any]] = []
    for target in targets_of(run, config.targets, config.in_distribution):
        seeds = [[mixed(config.seed + n, "evaluate", 0, e) for e in range(config.episodes)] for n in range(len(agents))]
        ready = learned_in(run, agents, target, config.after, config.seed)
        episodes = [
            e for agent, starts in zip(ready, seeds, strict=True) for e in greedy_episodes(agent, run, target, starts)
        ]
        values = described(episodes)
        until = statistics.fmean(e.first_catastrophe or e.length for e in episodes)
        share = f"{100 * values['catastrophe']:.0f} %"
        rows.append((f"{target:g}", len(episodes), values["return"], share, until, values["length"]))
        found.append({"target": target, "risk": "none", "episodes": [outline(e) for e in episodes], **values})
    columns = ("target", "episodes", "return", "catastrophes", "steps until", "length")
    print_table(f"{run.method} on {run.env}, {described_phase(config, 'policy')}", columns, rows, config.quiet)
    if config.out is not None:
        write_json(
            config.out,
            {"run": config.run.name, "env": run.env, "phase": config.phase, "after": config.after, "found": found},
        )
    return 0


def described_phase(config: EvaluateConfig, what: str) -> str:
    """Of which phase a model or policy is."""
    learned = f", after {config.after} target episodes" if config.after else ""
    return f"{config.phase} {what}{learned}"


def without_model(folder: Path) -> bool:
    """Whether a run is of a baseline that learns no model.

    Raises:
        UserError: no run.
    """
    config: TrainConfig = saved_config(folder, TrainConfig, MEMBER)
    return config.method in MODEL_FREE


def evaluate(config: EvaluateConfig) -> int:
    """`carl evaluate`."""
    if config.out is not None:
        free_path(config.out, config.force)
    if without_model(config.run):
        return evaluate_policies(config)
    run, learners, _ = open_phase(config.run, config.phase, config.device)
    targets = targets_of(run, config.targets, config.in_distribution)
    setting, task = run.setting(), task_of(run.env)
    rows: list[tuple[object, ...]] = []
    heads: list[tuple[object, ...]] = []
    found: list[dict[str, Any]] = []
    for target in targets:
        branches = []
        for name, (number, (learner, voter)) in itertools.product(config.risks, enumerate(learners)):
            risk = risk_of_flags(config, run.env, name)
            check_head(voter or learner, risk)
            if config.after:
                frozen = run.adapt_head == "frozen"
                branches.append(branch(learner, risk, target, config.seed + number, name, True, frozen))
            else:
                branches.append(Branch(name, learner, risk, target, config.seed + number, False, voter))
        if config.after:
            few = dataclasses.replace(setting, adapt_iterations=config.after)
            go_through(branches, run.env, few, 0, config.quiet)
        episodes = run_branches(branches, run.env, task, setting, "evaluate", 0, config.episodes)
        for name in config.risks:
            of = [e for each, some in zip(branches, episodes, strict=True) if each.label == name for e in some]
            values = described(of)
            until = statistics.fmean(e.first_catastrophe or e.length for e in of)
            rows.append(
                (f"{target:g}", name, len(of), values["return"], f"{100 * values['catastrophe']:.0f} %", until,
                 values["length"], values["plan_ms"])
            )  # fmt: skip
            found.append({"target": target, "risk": name, "episodes": [outline(e) for e in of], **values})
        seen = [e for some in episodes for e in some]
        first = branches[0].learner
        votes = branches[0].voter or first
        judged = head_quality(votes, seen, config.beta)
        heads.append((f"{target:g}", *judged.values()))
        lead = by_lead_time(votes, seen, setting.horizon, config.beta)
        found.append({"target": target, "head": judged, "lead": lead, **first.errors(seen)})
    columns = ("target", "risk", "episodes", "return", "catastrophes", "steps until", "length", "ms an action")
    print_table(f"{run.env}, {described_phase(config, 'model')}", columns, rows, config.quiet)
    columns = ("target", "states", "catastrophes", "AUROC", "Brier", "false votes", "mean vote", "missed")
    which = f" and caution, {config.risks[0]}" if config.after else ""
    print_table(f"the catastrophe head of the first seed{which}, on these states", columns, heads, config.quiet)
    if config.out is not None:
        write_json(
            config.out,
            {"run": config.run.name, "env": run.env, "phase": config.phase, "after": config.after, "found": found},
        )
    return 0


def head_quality(learner: Learner, episodes: Sequence[Episode], beta: float) -> dict[str, Any]:
    """The head on the states of some episodes; NaN where only one kind was met becomes None."""
    judged = calibrate(*learner.catastrophe_probability(episodes), beta=beta)
    values = {
        "states": judged.states, "catastrophes": judged.catastrophes, "auroc": judged.auroc, "brier": judged.brier,
        "false_votes": judged.false_votes, "vote_rate": judged.vote_rate, "missed": judged.missed,
    }  # fmt: skip
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def by_lead_time(learner: Learner, episodes: Sequence[Episode], horizon: int, beta: float) -> dict[str, list[Any]]:
    """Votes of the nets 1 to `horizon` steps ahead: share of safe states with a majority against, and of catastrophes
    without; None where there was no such state."""
    votes, came = learner.votes_ahead(episodes, horizon, beta)
    found: dict[str, list[Any]] = {"false_votes": [], "missed": []}
    for h in range(horizon):
        safe, caught = votes[came[:, h] == 0, h] > 0.5, votes[came[:, h] == 1, h] > 0.5
        found["false_votes"].append(float(safe.mean()) if len(safe) else None)
        found["missed"].append(1 - float(caught.mean()) if len(caught) else None)
    return found


# -- sweep --------------------------------------------------------------------------------------------------------


def sweep_points(config: SweepConfig, env: str, targets: Sequence[float]) -> list[tuple[Risk, float, int]]:
    """The grid: cautions with what matters to each, targets, seeds."""
    penalties = config.penalties or (PUBLISHED[env].penalty,)
    risks: list[Risk] = []
    for name in config.risks:
        gammas = config.gammas if "reward" in name else (50.0,)
        votes = itertools.product(config.betas, penalties) if "state" in name else [(0.5, 1e4)]
        risks += [Risk(name, gamma, beta, penalty) for gamma, (beta, penalty) in itertools.product(gammas, votes)]
    return [(risk, target, seed) for risk in risks for target in targets for seed in range(config.seeds)]


def described_risk(risk: Risk) -> str:
    """A caution in words, with what matters to it."""
    parts = [risk.name]
    if "reward" in risk.name:
        parts.append(f"gamma={risk.gamma:g}")
    if "state" in risk.name:
        parts += [f"beta={risk.beta:g}", f"lambda={risk.weight:g}"]
    return " ".join(parts)


def sweep(config: SweepConfig) -> int:
    """`carl sweep`."""
    from tqdm import tqdm

    run, learners = open_source(config.run, config.device)
    targets = targets_of(run, config.targets, config.in_distribution)
    setting = run.setting()
    if config.iterations is not None:
        setting = dataclasses.replace(setting, adapt_iterations=config.iterations)
    for name, learner in itertools.product(config.risks, learners):
        check_head(learner, Risk(name))  # pyright: ignore
    out = config.out or config.run / "sweep"
    if out.exists() and not out.is_dir():
        raise UserError("--out", out, "a folder")
    with writing(out, "--out"):
        out.mkdir(parents=True, exist_ok=True)
    points = sweep_points(config, run.env, targets)
    done: dict[str, dict[str, Any]] = {}
    path = out / "sweep.json"
    if path.exists():
        try:
            done = {entry["key"]: entry for entry in json.loads(path.read_text(encoding="utf-8"))["points"]}
        except (ValueError, KeyError, TypeError) as error:
            if not config.force:
                hint = f"{error}. --force begins anew."
                raise UserError("--out", path, "a file written by `carl sweep`", hint) from None
    source = hashlib.sha256((config.run / SOURCE_FILE).read_bytes()).hexdigest()[:12]  # points are of one source phase
    order = []
    with tqdm(total=len(points), unit="point", disable=True if config.quiet else None, desc=MEMBER) as bar:
        for risk, target, seed in points:
            key = f"{source} {described_risk(risk)} target={target:g} seed={seed} episodes={setting.adapt_iterations}"
            order.append(key)
            if key not in done or config.force:
                each = branch(learners[seed % len(learners)], risk, target, seed, described_risk(risk))
                log = go_through([each], run.env, setting, 0, True)[0]
                done[key] = {
                    "key": key, "risk": dataclasses.asdict(risk), "label": each.label, "target": target, "seed": seed,
                    "max_return": log.running_maximum()[-1], "catastrophes": log.catastrophes()[-1],
                    "first_return": log.adaptation[0].reward, "episodes": [outline(e) for e in log.adaptation],
                }  # fmt: skip
                write_json(path, {"member": MEMBER, "env": run.env, "points": list(done.values())})
            bar.update()
    chosen = [done[key] for key in order]
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for entry in chosen:
        groups.setdefault((entry["label"], entry["target"]), []).append(entry)
    rows = [
        (
            label,
            f"{target:g}",
            *(statistics.fmean(e[m] for e in some) for m in ("first_return", "max_return", "catastrophes")),
        )
        for (label, target), some in groups.items()
    ]
    columns = ("caution", "target", "first return", "highest return", "catastrophes")
    print_table(f"sweep on {run.env}, {setting.adapt_iterations} episodes each", columns, rows, config.quiet)
    for figure in sweep_figures(run, groups, config, targets, out):
        if not config.quiet:
            print(f"figure: {figure}")
    return 0


def sweep_figures(
    run: TrainConfig,
    groups: dict[tuple[str, float], list[dict[str, Any]]],
    config: SweepConfig,
    targets: Sequence[float],
    out: Path,
) -> list[Path]:
    """Returns over targets; heat maps where a knob of a caution and the target both vary."""
    source = range_of(run)
    ends = (min(source.choices), max(source.choices)) if source.choices else (source.low, source.high)
    points: dict[str, dict[float, list[float]]] = {}
    for (label, target), some in groups.items():
        points.setdefault(label, {})[target] = [entry["max_return"] for entry in some]
    made = [target_sweep(out / "targets", points, ends, "highest return", source.name)]
    knobs = (("reward", "gamma", config.gammas), ("state", "beta", config.betas), ("state", "weight", config.penalties))
    for risk, knob, values in knobs:
        if risk not in config.risks or len(values) < 2:
            continue
        grid = np.full((len(values), len(targets)), np.nan)
        for i, j in np.ndindex(*grid.shape):  # the mean over seeds, and over what else was varied
            some = [
                entry["max_return"] for group in groups.values() for entry in group
                if entry["risk"]["name"] == risk and entry["risk"][knob] == values[i] and entry["target"] == targets[j]
            ]  # fmt: skip
            grid[i, j] = statistics.fmean(some) if some else np.nan
        knob = "lambda" if knob == "weight" else knob
        made.append(heat_map(out / f"{risk}-{knob}", grid, values, targets, (knob, source.name, "highest return")))
    return made


# -- envs and record ----------------------------------------------------------------------------------------------


def envs(config: EnvsConfig) -> int:
    """`carl envs`."""
    rows = []
    for name in ENVS:
        source = source_of(name)
        targets = ", ".join(f"{target:g}" for target in PUBLISHED[name].targets)
        rows.append((name, ENV_DESCRIPTIONS[name], source.name, source.describe(), targets, CATASTROPHES[name]))
    columns = ("name", "what", "hidden parameter", "sources", "targets", "catastrophe")
    print_table("environments", columns, rows, config.quiet)
    return 0


def record(config: RecordConfig) -> int:
    """`carl record`."""
    agents = learners = None
    if without_model(config.run):
        from carl.model_free import open_policies

        run, agents = open_policies(config.run, config.phase, config.device)
        adapted = run.target_domain()
    else:
        run, learners, adapted = open_phase(config.run, config.phase, config.device)
    wanted = (adapted,) if config.target is None else (config.target,)
    target = targets_of(run, wanted, config.in_distribution or config.target is None, "--target")[0]
    out = free_path(config.out or config.run / "episode.npz", config.force)
    if config.video:
        free_path(out.with_suffix(".gif"), config.force, "--video")
    risk, learner, voter = Risk("none"), None, None
    if learners is not None:
        risk, (learner, voter) = risk_of_flags(config, run.env), learners[0]
        check_head(voter or learner, risk)
    start = Start(target, "target", config.seed, learner, risk, voter)
    if config.video:
        make_env(run.env, render_mode="rgb_array").render()  # refuses here, before the episode, where nothing can draw
    if agents is not None:
        from carl.model_free import greedy_episodes

        episode = greedy_episodes(agents[0], run, target, [config.seed])[0]
    else:
        episode = run_episodes([start], run.env, task_of(run.env), run.setting().in_target(), traced=True)[0]
    traces = {n: v for n in ("votes", "disagreement") if (v := getattr(episode, n)) is not None}
    np.savez(
        out, states=episode.states, actions=episode.actions, rewards=episode.rewards,
        catastrophes=episode.catastrophes, domain=episode.domain, **traces,
    )  # fmt: skip
    rows: list[tuple[str, object]] = [
        ("return", episode.reward), ("steps", episode.length), ("catastrophe", episode.catastrophe),
        ("votes of the first plan", float(episode.votes[0].mean()) if episode.votes is not None else None),
        ("trajectory", out),
    ]  # fmt: skip
    if config.video:
        rows.append(("video", filmed(run.env, start, episode, out.with_suffix(".gif"))))
    print_table(
        f"one episode of {run.env}, {run.method if agents is not None else risk.name}",
        ("", "value"),
        rows,
        config.quiet,
    )
    return 0


def filmed(env: str, start: Start, episode: Episode, path: Path) -> Path:
    """The episode once more, drawn: the same reset and the same actions."""
    from PIL import Image

    made = make_env(env, render_mode="rgb_array")
    made.reset(seed=mixed(start.seed, "reset") % 2**31, options={"domain": start.domain, "phase": start.phase})
    frames = [Image.fromarray(np.asarray(made.render()))]
    for action in episode.actions:
        made.step(action.astype(np.float64))
        frames.append(Image.fromarray(np.asarray(made.render())))
    made.close()
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=40, loop=0)
    return path
