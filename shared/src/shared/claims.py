"""From `claims.toml` to a verdict: run the experiments, measure, compare, write `results/`, draw the tables.

A member describes its experiments as a `Study`: cells (one setting under one seed), a function that runs a cell, and
quantities computed from finished cells. A claim names a quantity, the paper's figure, and the threshold for each
preset. Nothing here imports torch: a study's `run` does, in a process of its own.

    python -m shared.claims docs            regenerate the tables of every README
    python -m shared.claims docs --check    exit with 1 where they have drifted from the results
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import inspect
import json
import math
import os
import re
import shutil
import signal
import sys
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from shared.config import RunFailed, Stopped, UserError, check_choice, check_range

Comparison = Literal[">=", ">", "<=", "within", "between"]
KEPT = "Stopped. Finished cells are kept; the same command goes on."
COMPARISONS = (">=", ">", "<=", "within", "between")
# The presets of `reproduce`, from the shortest on; cpu-long is what the minutes of cpu leave out.
Ladder = Literal["smoke", "cpu", "cpu-long", "gpu", "paper"]
LADDER: tuple[Ladder, ...] = get_args(Ladder)
LONG: tuple[Ladder, ...] = ("gpu", "paper")  # whose cells are long enough to be kept half done


@dataclass(frozen=True)
class Claim:
    """One claim of a paper, as `claims.toml` states it.

    Attributes:
        id: short name, unique in the member.
        statement: the claim in our words.
        source: where it stands in the paper.
        paper: the paper's own figure, if it gives one.
        quantity: name of the measured quantity in the member's study.
        comparison: `>=`, `>` or `<=` a threshold, `within` a distance of `paper`, `between` two thresholds.
        threshold: by preset; a preset without one does not test the claim.
        scaled: by preset, what is smaller than in the paper.
        gated: whether a failure makes `reproduce` exit with 1. The verdict is the same either way.
        percent: whether figures are fractions to be shown as percentages.
    """

    id: str
    statement: str
    source: str
    quantity: str
    comparison: Comparison
    threshold: Mapping[str, Any] = field(default_factory=dict)
    paper: float | None = None
    scaled: Mapping[str, str] = field(default_factory=dict)
    gated: bool = True
    percent: bool = False

    def holds(self, value: float, preset: str) -> bool:
        """Compare a mean with the preset's threshold; NaN holds nothing."""
        threshold = self.threshold[preset]
        if self.comparison == ">=":
            return value >= threshold
        if self.comparison == ">":
            return value > threshold
        if self.comparison == "<=":
            return value <= threshold
        if self.comparison == "between":
            return threshold[0] <= value <= threshold[1]
        assert self.paper is not None
        return abs(value - self.paper) <= threshold


@dataclass(frozen=True)
class ClaimsFile:
    """A member's `claims.toml`: the paper's title, its headline claim, all claims."""

    title: str
    arxiv: str
    headline: str
    claims: tuple[Claim, ...]


def read_claims(path: Path) -> ClaimsFile:
    """Read and check a `claims.toml`.

    Raises:
        UserError: unreadable, an unknown field, a missing one, an unknown comparison, an id used twice.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError("claims file", path, "a file that exists") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError("claims file", path, "valid TOML", str(error)) from None
    for name in ("title", "arxiv", "headline", "claim"):
        if name not in content:
            raise UserError(f"{path.name}: {name}", "nothing", "a value")
    fields = Claim.__dataclass_fields__
    claims: list[Claim] = []
    for entry in content["claim"]:
        where = f"{path.name}: {entry.get('id', '?')}"
        for name in entry:
            check_choice(f"{where}: field", name, fields)
        for name in ("id", "statement", "source", "quantity", "comparison"):
            if name not in entry:
                raise UserError(f"{where}: {name}", "nothing", "a value")
        check_choice(f"{where}: comparison", entry["comparison"], COMPARISONS)
        if entry["comparison"] == "within" and "paper" not in entry:
            raise UserError(f"{where}: paper", "nothing", "the figure that `within` compares with")
        if entry["id"] in {claim.id for claim in claims}:
            raise UserError(f"{path.name}: id", entry["id"], "an id that is used once")
        claims.append(Claim(**entry))
    check_choice(f"{path.name}: headline", content["headline"], [claim.id for claim in claims])
    return ClaimsFile(content["title"], content["arxiv"], content["headline"], tuple(claims))


@dataclass(frozen=True)
class Cell:
    """One experiment under one seed.

    Attributes:
        name: what it is, the same for all its seeds: `mlp even M=3000`.
        settings: everything that decides the outcome but the seed, as JSON values.
        seed: the seed.
        data: what tells the data at hand from another copy; empty where they are always the same.
    """

    name: str
    settings: Mapping[str, Any]
    seed: int
    data: str = ""

    def key(self) -> str:
        """File name under which the outcome is kept: another setting is another file."""
        parts: list[Any] = [self.name, dict(self.settings), self.seed, *([self.data] if self.data else [])]
        content = json.dumps(parts, sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest()[:20]


class Missing(KeyError):
    """A quantity asks for an experiment that was not run, or did not finish under every seed. The only error that
    leaves a claim unjudged; any other in a quantity is a fault of the study.

    Args:
        name: the experiment's.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Outcomes:
    """Finished cells, looked up by name; remembers which were used, so that a claim knows its cost.

    Args:
        finished: cells and what they returned.
        planned: the cells that were to finish; an experiment that lacks a seed of these is left out, so that
            differences between experiments are taken over the same seeds.
    """

    def __init__(self, finished: Iterable[tuple[Cell, Mapping[str, Any]]], planned: Iterable[Cell] = ()) -> None:
        self._by_name: dict[str, dict[int, Mapping[str, Any]]] = {}
        for cell, outcome in finished:
            self._by_name.setdefault(cell.name, {})[cell.seed] = outcome
        for cell in planned:
            if cell.seed not in self._by_name.get(cell.name, {cell.seed}):
                del self._by_name[cell.name]
        self.used: set[tuple[str, int]] = set()

    def _runs(self, name: str) -> dict[int, Mapping[str, Any]]:
        if name not in self._by_name:
            raise Missing(name)
        return self._by_name[name]

    def values(self, name: str, metric: str) -> list[float]:
        """One value a seed, in the order of seeds.

        Raises:
            Missing: the experiment was not run under this preset, or did not finish.
            RunFailed: it was, and returned no such metric.
        """
        runs = self._runs(name)
        self.used |= {(name, seed) for seed in runs}
        for seed, run in runs.items():
            if metric not in run["values"]:
                raise RunFailed(
                    f"{name}, seed {seed}: returned no {metric!r}, only {', '.join(run['values'])}. If an earlier "
                    f"version of the code ran it, --force runs it again."
                )
        return [float(runs[seed]["values"][metric]) for seed in sorted(runs)]

    def raw(self, name: str) -> list[Mapping[str, Any]]:
        """Everything the cells of one name returned, in the order of seeds.

        Raises:
            Missing: the experiment was not run under this preset, or did not finish.
        """
        runs = self._runs(name)
        self.used |= {(name, seed) for seed in runs}
        return [runs[seed]["values"] for seed in sorted(runs)]

    def names(self) -> list[str]:
        """Names of finished experiments, in the order they were planned."""
        return list(self._by_name)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def seconds(self) -> float:
        """Seconds of the cells used so far."""
        return sum(float(self._by_name[name][seed]["seconds"]) for name, seed in self.used)


class Study:
    """A member's experiments. Subclasses live in a module that imports no torch at its top.

    Attributes:
        member: the paper. package: its import name.
        presets: those that there are cells for.
    """

    member: ClassVar[str]
    package: ClassVar[str]
    presets: ClassVar[tuple[Ladder, ...]] = ("smoke", "cpu", "gpu", "paper")

    def cells(self, config: ReproduceConfig) -> list[Cell]:
        """What must be run for a preset. Refuses here, before hours are spent, what cannot work."""
        raise NotImplementedError

    def absent(self, config: ReproduceConfig) -> Mapping[str, str]:
        """What the preset would run too, were it not for data that are not at hand: prefix of the experiments' names
        -> reason. Claims that ask for these are left unjudged; any other gated claim must be judged."""
        return {}

    scratch: Path | None = None
    """Where `run` may keep what a cell has done so far, so that a killed one goes on; None for presets whose cells are
    short. It is empty for a new cell, and gone when the cell has finished."""

    def run(self, cell: Cell, config: ReproduceConfig) -> dict[str, Any]:
        """Run one cell in a worker process. Returns JSON values; `values(...)` reads the scalar ones."""
        raise NotImplementedError

    def quantities(self) -> Mapping[str, Callable[[Outcomes], Sequence[float]]]:
        """What claims can name: a function from outcomes to one value a seed."""
        raise NotImplementedError

    def tables(self, outcomes: Outcomes) -> Mapping[str, tuple[Sequence[str], Sequence[Sequence[Any]]]]:
        """Further tables for the results file and the README: title -> (columns, rows)."""
        return {}

    def figures(self, outcomes: Outcomes, folder: Path) -> list[Path]:
        """Draw the paper's figures from outcomes; returns the PNG files written."""
        return []


@dataclass(frozen=True)
class ReproduceConfig:
    """Flags of `reproduce`."""

    preset: Ladder = "cpu"
    """smoke: seconds; cpu: some minutes on two cores; cpu-long: what these leave out, where a member has it; gpu: one
    large GPU; paper: the paper's own setting."""
    out: Path | None = None
    """Where finished cells are kept; default: runs/<member>/reproduce-<preset>, cpu-long with cpu. They are not run
    again."""
    results: Path | None = None
    """Where <preset>.json and the figures go. Default: the member's results/ in a checkout, else --out."""
    data_root: Path | None = None
    """Folder that holds data sets. Default: $PAPERS_DATA, else the user cache."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    seeds: int | None = None
    """Seeds a cell is run under. Default: as the preset says."""
    jobs: int | None = None
    """Cells at a time, each in a process of its own. Default: one a core on the CPU, one on a GPU; under smoke all in
    this process."""
    only: str | None = None
    """Run only cells whose name contains this text; claims that need others are not judged."""
    max_minutes: float | None = None
    """Start no further cell after this time; the next call goes on."""
    ray: bool = False
    """Run cells on the Ray cluster at hand (extra `shared[cluster]`)."""
    quiet: bool = False
    """No progress bar, no table."""
    force: bool = False
    """Run finished cells again."""

    def __post_init__(self) -> None:
        check_choice("--preset", self.preset, LADDER)
        check_range("--seeds", self.seeds, 1)
        check_range("--jobs", self.jobs, 1)
        check_range("--max-minutes", self.max_minutes, 0, open_low=True)

    @property
    def scale(self) -> str:
        """The preset of single runs: cpu for cpu-long too."""
        return self.preset.removesuffix("-long")


def reproduce(study: Study, config: ReproduceConfig) -> int:
    """Run what a preset needs, judge the claims, write results and figures. Returns the exit code: 1 if a gated
    claim failed, or could not be judged although its data were there, or cells did not finish.

    A run of less than the preset (`--only`, fewer seeds, unfinished cells, data that the committed results had)
    goes to `--out` and leaves the committed results as they are.

    Raises:
        UserError: bad flags, missing data, an unreadable claims file.
        RunFailed: every cell failed, or a cell lacks a metric that a claim asks for.
    """
    from shared.cli import member_home, print_table
    from shared.figures import png_only

    check_choice("--preset", config.preset, study.presets)
    home = member_home(study.package)
    claims = read_claims(home / "claims.toml")
    out = config.out or Path("runs") / study.member / f"reproduce-{config.scale}"
    results = config.results or home / "results"
    cells = study.cells(config)
    if config.only is not None:
        cells = [cell for cell in cells if config.only in cell.name]
        if not cells:
            raise UserError("--only", config.only, sorted({cell.name for cell in study.cells(config)}))
    finished, failed = run_cells(study, cells, config, out)
    for cell, error in failed:
        print(f"failed: {cell.name}, seed {cell.seed}: {error.splitlines()[-1]}", file=sys.stderr)
    if not finished:
        raise RunFailed(f"no cell finished; the first error was:\n{failed[0][1] if failed else 'none was started'}")
    outcomes = Outcomes(finished, cells)
    absent = study.absent(config)
    rows = [judge(claim, study, outcomes, config.preset, absent) for claim in claims.claims]
    report = results_file(study, config, claims, rows, finished, failed, cells)
    partial = lesser(study, config, cells, finished, results / f"{config.preset}.json")
    figures = (out if partial or config.preset == "smoke" else results) / "figures"
    with png_only():
        drawn = study.figures(Outcomes(finished, cells), figures / "long" if config.preset == "cpu-long" else figures)
    target = (out if partial else results) / f"{config.preset}.json"
    report["figures"] = [
        path.relative_to(target.parent).as_posix() for path in drawn if path.is_relative_to(target.parent)
    ]
    from shared.run import write_json

    write_json(target, report)
    columns = ("claim", "paper", "ours", "verdict")
    here, elsewhere = by_preset(rows)
    print_table(f"{claims.title}: preset {config.preset}", columns, table_rows(here), config.quiet)
    if not config.quiet:
        if elsewhere:
            print(f"{len(elsewhere)} more claims belong to other presets.")
        for path in (target, *drawn):
            print(path)
    if partial:
        print(f"Not the whole preset ({'; '.join(partial)}): {results} is left as it was.", file=sys.stderr)
    if len(finished) < len(cells):
        print(f"{len(finished)} of {len(cells)} cells finished; the same command goes on.", file=sys.stderr)
    bad = [row for row in rows if row["gated"] and row["verdict"] == "fail"]
    if config.only is None and len(finished) == len(cells):
        for row in rows:
            if row["gated"] and row["threshold"] is not None and row["verdict"] == "not-run" and not row["absent"]:
                print(f"not judged: claim {row['id']} asks for {row['reason']}", file=sys.stderr)
                bad.append(row)
    return 1 if bad or failed or len(finished) < len(cells) else 0


def lesser(
    study: Study,
    config: ReproduceConfig,
    cells: Sequence[Cell],
    finished: Sequence[tuple[Cell, Mapping[str, Any]]],
    committed: Path,
) -> list[str]:
    """Why this run must not take the place of the results at `committed`; empty where it may.

    Args:
        study, config: the run. cells: what was planned of it. finished: what came of that.
        committed: the results file of the whole preset, there or not.
    """
    reasons = []
    if config.only is not None:
        reasons.append(f"--only {config.only}")
    if len(finished) < len(cells):
        reasons.append(f"{len(cells) - len(finished)} cells did not finish")
    whole = study.cells(dataclasses.replace(config, seeds=None))
    if config.seeds is not None and not {cell.key() for cell in whole} <= {cell.key() for cell in study.cells(config)}:
        reasons.append(f"--seeds {config.seeds}, fewer than the preset's")
    if committed.exists():
        with contextlib.suppress(OSError, ValueError):  # a damaged file is no loss
            before = json.loads(committed.read_text(encoding="utf-8")).get("absent", {})
            absent = study.absent(config)
            reasons += [reason for name, reason in absent.items() if name not in before]
    return reasons


def judge(
    claim: Claim, study: Study, outcomes: Outcomes, preset: str, absent: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """A claim's row in the results file.

    Args:
        claim, study, outcomes, preset: what is judged, by what.
        absent: as `Study.absent` returned it; a claim that asks for one of these gives the reason.

    Raises:
        RunFailed: a cell was run and lacks a metric that the claim asks for.
    """
    row: dict[str, Any] = {
        "id": claim.id,
        "statement": claim.statement,
        "source": claim.source,
        "paper": claim.paper,
        "measured": None,
        "comparison": claim.comparison,
        "threshold": claim.threshold.get(preset),
        "verdict": "not-run",
        "reason": "",  # why it was not run
        "absent": False,  # whether for want of data
        "gated": claim.gated,
        "percent": claim.percent,
        "scaled": claim.scaled.get(preset, ""),
        "seconds": 0.0,
    }
    quantities = study.quantities()
    check_choice(f"claims.toml: {claim.id}: quantity", claim.quantity, quantities)
    outcomes.used = set()
    try:
        values = [float(value) for value in quantities[claim.quantity](outcomes)]
    except Missing as missing:  # its cells are not part of this preset, or did not finish
        wanting = next((why for prefix, why in (absent or {}).items() if missing.name.startswith(prefix)), None)
        row["absent"] = wanting is not None
        row["reason"] = wanting or f"{missing.name!r}, which no finished experiment is called"
        return row
    mean = math.fsum(values) / len(values)
    low, high = bootstrap_interval(values)
    row["measured"] = {"mean": mean, "interval": [low, high], "values": values}
    row["seconds"] = round(outcomes.seconds(), 1)
    if preset in claim.threshold:
        row["verdict"] = "pass" if claim.holds(mean, preset) else "fail"
    return row


def bootstrap_interval(values: Sequence[float], level: float = 0.95, draws: int = 10_000) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean; with few seeds it is narrower than the truth. Seeded, so that the
    same values give the same interval."""
    import numpy as np

    array = np.asarray(values, dtype=float)
    if len(array) == 1:
        return float(array[0]), float(array[0])
    means = array[np.random.default_rng(0).integers(0, len(array), (draws, len(array)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


# -- running cells ----------------------------------------------------------------------------------------------


def write_sweep(
    path: Path, member: str, finished: Sequence[tuple[Cell, Mapping[str, Any]]], failed: Sequence[tuple[Cell, str]]
) -> None:
    """Keep the runs of a sweep, as `run_cells` returned them, in one JSON file."""
    from shared.run import write_json

    cells = [
        {"name": c.name, "seed": c.seed, "settings": dict(c.settings), "values": o["values"], "seconds": o["seconds"]}
        for c, o in finished
    ]
    write_json(path, {"member": member, "cells": cells, "failed": [[c.name, c.seed, error] for c, error in failed]})


def run_cells(
    study: Study, cells: Sequence[Cell], config: ReproduceConfig, out: Path
) -> tuple[list[tuple[Cell, dict[str, Any]]], list[tuple[Cell, str]]]:
    """Run cells that are not finished yet, several at a time; returns (finished with outcomes, failed with errors).

    Every outcome is on disk the moment its cell ends, so a killed run loses the cells in flight and no other.
    """
    from tqdm import tqdm

    from shared.run import commit, write_json

    store = out / "cells"
    done: dict[Cell | str, dict[str, Any]] = {}
    for cell in cells:
        path = store / f"{cell.key()}.json"
        if not config.force and path.exists():
            try:
                done[cell.key()] = json.loads(path.read_text(encoding="utf-8"))
            except json.JSONDecodeError:
                continue
    waiting = [cell for cell in cells if cell.key() not in done]
    if done and waiting and not config.quiet:
        print(
            f"{len(done)} of {len(cells)} cells are finished already; --force runs them again.",
            file=sys.stderr,
        )
    failed: list[tuple[Cell, str]] = []
    revision = commit()
    began = time.monotonic()
    bar = tqdm(
        total=len(cells),
        initial=len(done),
        unit="cell",
        disable=True if config.quiet else None,
        desc=study.member,
    )
    try:
        with bar:
            for cell, outcome, error in _outcomes(study, waiting, config, began, store):
                if error is not None:
                    failed.append((cell, error))
                else:
                    record = {"name": cell.name, "seed": cell.seed, "settings": dict(cell.settings), **outcome}
                    record["commit"] = revision
                    write_json(store / f"{cell.key()}.json", record)
                    done[cell.key()] = record
                bar.set_postfix_str(cell.name[:40], refresh=False)
                bar.update()
    except KeyboardInterrupt:  # between two cells, where `_outcomes` is not the one to see it
        raise Stopped(128 + signal.SIGINT, KEPT) from None
    return [(cell, done[cell.key()]) for cell in cells if cell.key() in done], failed


def _outcomes(
    study: Study, cells: Sequence[Cell], config: ReproduceConfig, began: float, store: Path
) -> Iterator[tuple[Cell, dict[str, Any], str | None]]:
    if not cells:
        return
    on_gpu = config.device not in ("auto", "cpu") or (config.device == "auto" and _has_gpu())
    jobs = min(config.jobs or (1 if on_gpu else os.cpu_count() or 1), len(cells))
    threads = max(1, (os.cpu_count() or 1) // jobs)
    deadline = None if config.max_minutes is None else began + 60 * config.max_minutes
    target = f"{type(study).__module__}:{type(study).__qualname__}"
    if config.ray:
        executor = _ray_executor(threads, on_gpu)
    elif config.preset == "smoke" and config.jobs is None:
        # Cells of a moment: processes would spend most of the time on importing torch.
        jobs, executor = 1, _HereExecutor()
    else:
        executor = _process_executor(jobs, threads)
    queue = list(reversed(cells))
    running: dict[Future[Any], Cell] = {}
    try:
        while queue or running:
            while queue and len(running) < jobs and (deadline is None or time.monotonic() < deadline):
                cell = queue.pop()
                scratch = None
                if config.preset in LONG:
                    scratch = store / f"{cell.key()}.part"
                    if config.force:
                        shutil.rmtree(scratch, ignore_errors=True)
                running[executor.submit(_run_cell, target, cell, config, threads, scratch)] = cell
            if not running:
                return
            future = next(as_completed(running))
            cell = running.pop(future)
            try:
                yield cell, future.result(), None
            except UserError:
                raise  # the same for every cell: say it once, as the user's to mend
            except Exception as error:
                yield cell, {}, f"{type(error).__name__}: {error}"
    except (KeyboardInterrupt, Stopped) as stop:
        code = stop.code if isinstance(stop, Stopped) else 128 + signal.SIGINT
        raise Stopped(code, KEPT) from None
    finally:
        _shut(executor, not running and not queue)


def _run_cell(
    target: str, cell: Cell, config: ReproduceConfig, threads: int, scratch: Path | None = None
) -> dict[str, Any]:
    """In the worker: import the study, run one cell, time it, say on what it ran."""
    import torch

    from shared.device import choose_device, describe

    torch.set_num_threads(threads)
    module, name = target.split(":")
    study: Study = getattr(importlib.import_module(module), name)()
    began = time.perf_counter()
    if scratch is not None:
        _open_scratch(scratch, Path(inspect.getfile(type(study))).parent)
        study.scratch = scratch.resolve()
    values = study.run(cell, config)
    if scratch is not None:
        shutil.rmtree(scratch, ignore_errors=True)
    seconds = time.perf_counter() - began
    return {
        "values": values,
        "seconds": round(seconds, 3),
        "hardware": describe(choose_device(config.device)),
    }


def _open_scratch(scratch: Path, package: Path) -> None:
    """Make the folder, or keep it as a killed attempt left it; what other code has begun is not gone on with."""
    from shared.run import write_json

    path, mine = scratch / "begun.json", {"code": _fingerprint(Path(__file__).parent, package)}
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        begun = None
    if begun != mine:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        write_json(path, mine)


def _fingerprint(*packages: Path) -> str:
    """Of the code of packages; the same whatever else the repository holds."""
    found = hashlib.sha256()
    for package in packages:
        for file in sorted(package.rglob("*.py")):
            found.update(f"{file.relative_to(package)}\0".encode() + file.read_bytes())
    return found.hexdigest()[:16]


class _HereExecutor(Executor):
    """Runs what is submitted at once, in this process."""

    def submit(self, function: Any, /, *arguments: Any, **named: Any) -> Future[Any]:
        import torch

        threads = torch.get_num_threads()
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments, **named))
        except Stopped:
            raise
        except Exception as error:
            future.set_exception(error)
        finally:
            torch.set_num_threads(threads)
        return future


def _process_executor(jobs: int, threads: int) -> Executor:
    import multiprocessing

    # Read by OpenMP and MKL when torch is loaded in the child.
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    # spawn: CUDA and OpenMP do not survive a fork.
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_ignore_sigint)


def _ignore_sigint() -> None:
    # Ctrl-C reaches the whole process group; the parent alone decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _ray_executor(threads: int, on_gpu: bool) -> Executor:
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError("--ray", "ray is not installed", "the extra: uv sync --extra cluster") from None
    if not ray.is_initialized():
        ray.init(address="auto", log_to_driver=False)
    remote = ray.remote(num_cpus=threads, num_gpus=1 if on_gpu else 0)(_run_cell)

    class RayExecutor(Executor):
        def submit(self, function: Any, /, *arguments: Any, **named: Any) -> Future[Any]:
            return remote.remote(*arguments, **named).future()

    return RayExecutor()


def _shut(executor: Executor, finished: bool) -> None:
    processes = list((getattr(executor, "_processes", None) or {}).values())
    executor.shutdown(wait=finished, cancel_futures=True)
    if finished:  # the workers have left in order and taken their semaphores with them
        return
    for process in processes:  # cells still running: the caller has left
        if process.is_alive():
            process.terminate()


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def results_file(
    study: Study,
    config: ReproduceConfig,
    claims: ClaimsFile,
    rows: list[dict[str, Any]],
    finished: Sequence[tuple[Cell, Mapping[str, Any]]],
    failed: Sequence[tuple[Cell, str]],
    planned: Sequence[Cell],
) -> dict[str, Any]:
    """What `results/<preset>.json` holds."""
    from shared.config import to_json
    from shared.run import versions

    hardware: list[Any] = []
    for _, outcome in finished:
        if outcome["hardware"] not in hardware:
            hardware.append(outcome["hardware"])
    flags = to_json(config)
    for place in ("out", "results", "data_root"):  # where files lay on one machine means nothing on another
        flags.pop(place)
    return {
        "member": study.member,
        "preset": config.preset,
        "headline": claims.headline,
        "config": flags,
        "versions": versions("torchvision", study.member, *getattr(study, "libraries", ())),
        "hardware": hardware,
        "commit": sorted({str(outcome["commit"]) for _, outcome in finished}),
        "seconds": round(sum(float(outcome["seconds"]) for _, outcome in finished), 1),
        "cells_planned": len(planned),
        "absent": dict(study.absent(config)),
        "claims": rows,
        "tables": {
            title: {"columns": list(columns), "rows": [list(row) for row in body]}
            for title, (columns, body) in study.tables(Outcomes(finished, planned)).items()
        },
        "cells": [
            {
                "name": cell.name,
                "seed": cell.seed,
                "settings": dict(cell.settings),
                "seconds": outcome["seconds"],
                "values": {k: v for k, v in outcome["values"].items() if isinstance(v, (int, float, str))},
            }
            for cell, outcome in finished
        ],
        "failed": [{"name": cell.name, "seed": cell.seed, "error": error} for cell, error in failed],
    }


# -- tables -----------------------------------------------------------------------------------------------------


def number(value: float | None, percent: bool = False) -> str:
    """A figure as the tables show it: percentages to one decimal, else three significant digits."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if percent:
        return f"{100 * value:.1f} %"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def by_preset(claims: Iterable[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Claims of a results file: (asked for under its preset, asked for under others). A number that a claim of another
    preset would have here was asked for by nobody, and would read as a verdict."""
    rows = list(claims)
    return [row for row in rows if row["threshold"] is not None], [row for row in rows if row["threshold"] is None]


def table_rows(claims: Iterable[Mapping[str, Any]]) -> list[tuple[str, str, str, str]]:
    """(claim, paper, ours, verdict) for claims of a results file."""
    rows = []
    for row in claims:
        percent = row["percent"]
        measured = row["measured"]
        ours = "-"
        if measured is not None:
            low, high = measured["interval"]
            ours = number(measured["mean"], percent)
            if len(measured["values"]) > 1:
                ours += f" [{number(low, percent)}, {number(high, percent)}]"
        threshold = row["threshold"]
        gate = ""
        if threshold is not None:
            bounds = threshold if isinstance(threshold, list) else [threshold]
            gate = f" ({row['comparison']} {' and '.join(number(bound, percent) for bound in bounds)})"
        wanting = f": {row['reason']}" if row.get("absent") else ""
        verdict = row["verdict"] + wanting + ("" if row["gated"] or row["verdict"] == "not-run" else ", not gated")
        rows.append((row["statement"], number(row["paper"], percent), ours + gate, verdict))
    return rows


def markdown(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; floats as `number` shows them, bars escaped."""
    cells = [[number(c) if isinstance(c, float) else str(c).replace("|", "\\|") for c in row] for row in rows]
    lines = [list(columns), ["---"] * len(columns), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def member_section(home: Path) -> str:
    """The generated part of a member's README: a table for every results file, then its further tables."""
    parts = []
    for preset in LADDER:
        path = home / "results" / f"{preset}.json"
        if preset == "smoke" or not path.exists():
            continue
        report = json.loads(path.read_text(encoding="utf-8"))
        on = "; ".join(
            f"{item.get('gpu') or item['cpu']}, {item['threads']} thread{'s' if item['threads'] != 1 else ''} a run"
            for item in report["hardware"]
        )
        versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
        here, elsewhere = by_preset(report["claims"])
        parts.append(f"### Preset `{preset}`\n")
        parts.append(markdown(("claim", "paper", "ours [95 % interval] (gate)", "verdict"), table_rows(here)) + "\n")
        if elsewhere and preset != "cpu-long":
            parts.append(
                "Asked for under other presets:\n\n" + "\n".join(f"- {row['statement']}" for row in elsewhere) + "\n"
            )
        scaled = [f"- `{row['id']}`: {row['scaled']}" for row in report["claims"] if row["scaled"]]
        if scaled:
            parts.append("Scaled down here:\n\n" + "\n".join(scaled) + "\n")
        for title, table in report["tables"].items():
            parts.append(f"**{title}**\n\n{markdown(table['columns'], table['rows'])}\n")
        parts += [f"![{Path(figure).stem}](results/{figure})\n" for figure in report.get("figures", ())]
        parts.append(
            f"Written by `{report['member']} reproduce --preset {preset}`: {len(report['cells'])} runs, "
            f"{report['seconds'] / 60:.0f} minutes of run time, on {on}; {versions}; "
            f"commit {', '.join(report['commit'])}.\n"
        )
    parts += races_section(home / "results" / "bench.json")
    return "\n".join(parts) if parts else "No results yet.\n"


def races_section(path: Path) -> list[str]:
    """The tables of `bench --record`, if there are any."""
    if not path.exists():
        return []
    parts = ["### Races\n"]
    for name, race in json.loads(path.read_text(encoding="utf-8")).items():
        parts.append(f"**{race['title']}**\n\n{markdown(race['columns'], race['rows'])}\n")
        hardware = race["hardware"]
        threads = f"{hardware['threads']} thread{'s' if hardware['threads'] != 1 else ''}"
        where = hardware.get("gpu") or hardware["cpu"]
        parts.append(f"Written by `bench --record`, race `{name}`: {where}, {threads}; torch {race['torch']}.\n")
    return parts


def papers_section(root: Path) -> str:
    """The table of papers in the root README: what was claimed, what we measured."""
    listed = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["papers"]["planned"]
    rows: list[tuple[str, str, str, str, str]] = []
    for entry in listed:
        home = root / "projects" / entry["member"]
        paper = f"[{entry['title']}](https://arxiv.org/abs/{entry['arxiv']})"
        if not (home / "claims.toml").exists():
            rows.append((f"`{entry['member']}`", paper, "planned", "", ""))
            continue
        file = read_claims(home / "claims.toml")
        name = f"[`{entry['member']}`](projects/{entry['member']})"
        reports = [json.loads(p.read_text("utf-8")) for p in _results(home)]
        if not reports:
            headline = next(claim for claim in file.claims if claim.id == file.headline)
            rows.append((name, paper, headline.statement, number(headline.paper, headline.percent), "not run"))
            continue
        report = reports[-1]
        row = next(row for row in report["claims"] if row["id"] == file.headline)
        shown = dict(zip((r["id"] for r in report["claims"]), table_rows(report["claims"]), strict=True))[row["id"]]
        # Claims that are not gated stand in the member's table: they were expected to go either way.
        verdicts = [r["verdict"] for r in report["claims"] if r["gated"]]
        held, judged = verdicts.count("pass"), len(verdicts) - verdicts.count("not-run")
        ours = f"{shown[2]}: {row['verdict']}; {held} of {judged} claims hold (`{report['preset']}`)"
        rows.append((name, paper, row["statement"], shown[1], ours))
    return markdown(("member", "paper", "claim", "paper's figure", "ours"), rows) + "\n"


def _results(home: Path) -> list[Path]:
    """Results files from the smallest preset to the largest."""
    return [p for preset in ("cpu", "gpu", "paper") if (p := home / "results" / f"{preset}.json").exists()]


def replace_section(text: str, name: str, content: str) -> str:
    """Put `content` between `<!-- name:begin -->` and `<!-- name:end -->`.

    Raises:
        UserError: the marks are not there, once each.
    """
    pattern = re.compile(rf"(<!-- {name}:begin[^>]*-->\n).*?(<!-- {name}:end -->)", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise UserError(
            "README", f"no section {name!r}", f"one pair of marks <!-- {name}:begin --> <!-- {name}:end -->"
        )
    return pattern.sub(lambda match: f"{match[1]}\n{content}\n{match[2]}", text)


def generated_readmes(root: Path) -> dict[Path, str]:
    """Every README with generated parts, as it should read."""
    readmes = {
        root / "README.md": replace_section((root / "README.md").read_text("utf-8"), "papers", papers_section(root))
    }
    for home in sorted((root / "projects").iterdir()):
        if (home / "claims.toml").exists() and (home / "README.md").exists():
            text = (home / "README.md").read_text(encoding="utf-8")
            readmes[home / "README.md"] = replace_section(text, "claims", member_section(home))
    return readmes


def drifted(root: Path) -> list[Path]:
    """READMEs whose tables are not what the results say."""
    return [path for path, text in generated_readmes(root).items() if path.read_text(encoding="utf-8") != text]


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m shared.claims docs [--check]`, run in a checkout."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] != ["docs"] or set(arguments[1:]) - {"--check"}:
        print("usage: python -m shared.claims docs [--check]", file=sys.stderr)
        return 2
    root = Path(__file__).resolve().parents[3]
    try:
        stale = drifted(root)
        for path in stale:
            print(("drifted: " if "--check" in arguments else "written: ") + str(path.relative_to(root)))
            if "--check" not in arguments:
                path.write_text(generated_readmes(root)[path], encoding="utf-8")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main())
