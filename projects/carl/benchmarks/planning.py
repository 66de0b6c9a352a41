"""Race: one action of the planner, alone and in a batch of problems, against mbrl-lib at the same sizes.

    python projects/carl/benchmarks/planning.py [--threads 1 2] [--peer-python PATH] [--quick]

Cartpole at the sizes of the cpu preset. mbrl-lib wants versions that this project does not, so it runs in an
environment of its own: --peer-python names one that has mbrl 0.2; by default uv makes one (which downloads it and
torch). The two take turns. Required: at most 0.7 of mbrl-lib's time for one problem, at most 0.4 a problem in a batch
of 8, and at most 0.7 of our own single plans in a batch of 9.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from carl.cem import CEM
from carl.learner import Learner
from carl.measures import ready_planner
from carl.pretraining import make_learners
from carl.settings import SETTINGS, Setting
from carl.task import task_of
from shared.config import UserError
from shared.races import conditions, race, ratio, record

REQUIRED_ONE, REQUIRED_EIGHT, REQUIRED_NINE = 0.7, 0.4, 0.7
PEER = ("hydra-core>=1.3", "gymnasium<1", "numpy<2", "tqdm", "termcolor", "matplotlib", "imageio", "pytest")


def peer_python(folder: Path) -> Path:
    """The interpreter of a new environment with mbrl-lib.

    Raises:
        UserError: uv is missing, or the packages cannot be had.
    """
    version = torch.__version__.split("+")[0]
    python = folder / "bin" / "python"
    install = ["uv", "pip", "install", "--quiet", "--python", str(python)]
    commands = (
        ["uv", "venv", "--quiet", "--python", "3.11", str(folder)],
        [*install, "--no-deps", "mbrl==0.2.0"],
        [*install, f"torch=={version}", *PEER],
    )
    for command in commands:
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            why = getattr(error, "stderr", "") or str(error)
            raise UserError(
                "--peer-python", "nothing", "an interpreter that has mbrl 0.2", why.strip()[-300:]
            ) from None
    return python


def same_optima(python: Path, seeds: int = 50) -> float:
    """Largest difference, in standard errors, between the mean optimum that our CEM and mbrl-lib's find on one bowl."""
    script = Path(__file__).with_name("peers") / "mbrl_peer.py"
    asked = json.dumps({"bowl": seeds}) + "\n"
    answer = subprocess.run([str(python), str(script)], input=asked, check=True, capture_output=True, text=True)
    theirs = torch.tensor(json.loads(answer.stdout), dtype=torch.float64)
    centre = torch.linspace(-0.6, 0.7, 6).reshape(3, 2)
    cem = CEM(torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 2.0]), 100, 10, 5, 0.1)
    ours = torch.stack([
        cem.minimise(
            lambda plans: (plans - centre).square().sum((2, 3)), *cem.first(1, 3), torch.Generator().manual_seed(seed)
        ).flatten()
        for seed in range(seeds)
    ]).double()  # fmt: skip
    noise = ((ours.var(dim=0) + theirs.var(dim=0)) / seeds).sqrt()
    return float(((ours.mean(dim=0) - theirs.mean(dim=0)).abs() / noise).max())


class Peer:
    """mbrl-lib in its own process."""

    def __init__(self, python: Path, sizes: dict[str, Any]) -> None:
        script = Path(__file__).with_name("peers") / "mbrl_peer.py"
        self.process = subprocess.Popen(
            [str(python), str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.torch = self._ask(json.dumps(sizes))["torch"]

    def _ask(self, line: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise UserError("--peer-python", self.process.args, "an interpreter that has mbrl 0.2 and torch")
        return json.loads(answer)

    def plan(self) -> None:
        """One action."""
        self._ask("plan")

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(10)


def main() -> int:
    """Run the race and print it; 1 if a requirement is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--peer-python", type=Path, help="an interpreter that has mbrl 0.2")
    parser.add_argument("--quick", action="store_true", help="few turns, no peer; the ratios mean little")
    parser.add_argument("--json", type=Path, help="write the table here")
    options = parser.parse_args()
    setting, task = SETTINGS["cpu"]["cartpole"], task_of("cartpole")
    learners = make_learners("cartpole", setting, list(range(9)))
    for learner in learners:
        learner.ensemble.normalise(torch.randn(64, task.input_dim))
    rows: list[tuple[str, str, str, str, str]] = []
    with tempfile.TemporaryDirectory() as scratch:
        python = None
        if not options.quick:
            python = options.peer_python or peer_python(Path(scratch) / "peer")
            apart = same_optima(python)
            print(f"On a quadratic bowl both optimisers' means over 50 seeds are within {apart:.1f} standard errors")
            if apart > 4:
                raise UserError("optimisers", f"{apart:.1f} standard errors apart", "at most 4")
            rows.append(
                ("CEM on a bowl: means of 50 seeds, from mbrl-lib's", "-", f"{apart:.1f} errors", "<= 4", "met")
            )
        for threads in options.threads:
            rows += raced(learners, setting, threads, python, 2 if options.quick else options.repeats)
    print(f"One action of cartpole, {conditions()}; nets 3 x 64, 60 candidates, 15 steps ahead")
    columns = ("what", "an action of a problem", "of the other's time", "required", "verdict")
    for row in (columns, *rows):
        print("  ".join(f"{cell:<62}" if place == 0 else f"{cell:<24}" for place, cell in enumerate(row)).rstrip())
    title = "One action of the planner, cartpole at the sizes of the cpu preset"
    record(options.json, title, columns, rows, "cpu")
    return int(any(row[-1] == "missed" for row in rows) and not options.quick)


def raced(
    learners: list[Learner], setting: Setting, threads: int, python: Path | None, repeats: int
) -> list[tuple[str, str, str, str, str]]:
    """Rows of one race, under a number of threads for both."""
    torch.set_num_threads(threads)
    task = task_of("cartpole")
    contestants: dict[str, Callable[[], object]] = {}
    for count in (1, 8, 9):
        act = ready_planner(learners[:count], task, setting)
        contestants[f"ours, {count}"] = lambda act=act: act(0)
    if python is not None:
        compiled = ready_planner(learners[:1], task, replace(setting, compile=True))
        contestants["ours, compiled"] = lambda: compiled(0)
    sizes = {
        "layers": len(setting.hidden), "width": setting.hidden[0], "nets": setting.nets, "horizon": setting.horizon,
        "particles": setting.particles, "candidates": setting.candidates, "elites": setting.elites,
        "iterations": setting.cem_iterations, "alpha": setting.alpha, "threads": threads,
    }  # fmt: skip
    peer = None if python is None else Peer(python, sizes)
    if peer is not None:
        contestants["mbrl-lib"] = peer.plan
    times = race(contestants, repeats)
    own = ratio(times, "ours, 9", "ours, 1") / 9
    comparisons = [("a batch of 9, a problem, against one at a time", "ours, 9", 9, own, REQUIRED_NINE)]
    if peer is not None:
        peer.close()
        one, eight = ratio(times, "ours, 1", "mbrl-lib"), ratio(times, "ours, 8", "mbrl-lib") / 8
        comparisons += [
            (f"one problem, against mbrl-lib (torch {peer.torch})", "ours, 1", 1, one, REQUIRED_ONE),
            ("the same by --compile", "ours, compiled", 1, ratio(times, "ours, compiled", "mbrl-lib"), REQUIRED_ONE),
            ("a batch of 8, a problem, against mbrl-lib", "ours, 8", 8, eight, REQUIRED_EIGHT),
        ]
        print(f"{threads} threads: mbrl-lib {statistics.median(times['mbrl-lib']):.1f} ms")
    rows = []
    for label, name, count, share, required in comparisons:
        verdict = "-" if python is None else "met" if share <= required else "missed"
        ms = statistics.median(times[name]) / count
        of = f"{label}; {threads} thread{'s' if threads > 1 else ''}"
        rows.append((of, f"{ms:.1f} ms", f"{share:.2f}", f"<= {required:g}", verdict))
    return rows


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as refused:
        print(f"error: {refused}", file=sys.stderr)
        sys.exit(2)
