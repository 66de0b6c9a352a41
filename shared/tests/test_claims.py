"""Claims: what is run, what is judged, what is written, what is shown."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from shared import claims as module
from shared.claims import (
    Cell,
    Claim,
    Missing,
    Outcomes,
    ReproduceConfig,
    Study,
    bootstrap_interval,
    markdown,
    member_section,
    number,
    read_claims,
    replace_section,
    reproduce,
)
from shared.config import RunFailed, Stopped, UserError

CLAIMS = """
title = "Toy"
arxiv = "0000.00000"
headline = "large"
[[claim]]
id = "large"
statement = "The mean is large."
source = "Table 1"
paper = 0.9
quantity = "mean"
comparison = ">="
threshold = { cpu = 0.5 }
percent = true
[[claim]]
id = "small"
statement = "The mean is small."
source = "Table 1"
quantity = "mean"
comparison = "<="
threshold = { cpu = 0.1 }
gated = false
[[claim]]
id = "elsewhere"
statement = "Needs a cell that only the GPU preset has."
source = "Table 2"
quantity = "other"
comparison = ">="
threshold = { gpu = 0.1 }
"""


class ToyStudy(Study):
    """Cells write a line each time they run, so that a test can count."""

    member = "toy"
    package = "toy"
    seeds = 3

    def cells(self, config: ReproduceConfig) -> list[Cell]:
        return [Cell("draw", {"log": str(config.data_root)}, seed) for seed in range(config.seeds or self.seeds)]

    def run(self, cell: Cell, config: ReproduceConfig) -> dict[str, Any]:
        with open(cell.settings["log"], "a") as log:
            log.write(f"{cell.seed} {os.environ['OMP_NUM_THREADS']}\n")
        if os.environ.get("TOY_FAILS") == str(cell.seed):
            raise RuntimeError("out of luck")
        time.sleep(float(os.environ.get("TOY_SLEEP", "0")))
        if self.scratch is not None:  # half of the work is kept, and then the lights go out
            begun = (self.scratch / "half").exists()
            (self.scratch / "half").touch()
            if not begun:
                raise RuntimeError("killed")
        return {"value": 0.6 + 0.1 * cell.seed, "curve": [1, 2]}

    def absent(self, config: ReproduceConfig) -> Mapping[str, str]:
        return {"on data": "the data are not there"} if os.environ.get("TOY_LACKS") else {}

    def quantities(self) -> Mapping[str, Callable[[Outcomes], Sequence[float]]]:
        return {
            "mean": lambda o: o.values("draw", "value"),
            "other": lambda o: o.values("gpu only", "value"),
            "misspelt": lambda o: o.values("draw", "valeu"),
            "wanting": lambda o: o.values("on data, tuned", "value"),
        }


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "claims.toml").write_text(CLAIMS)
    monkeypatch.setattr("shared.cli.member_home", lambda package: tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    return tmp_path


def settings(home: Path, **changes: Any) -> ReproduceConfig:
    options = {"out": home / "out", "data_root": home / "log", "device": "cpu", "quiet": True, "jobs": 1}
    return ReproduceConfig(**{**options, **changes})


def runs(home: Path) -> list[str]:
    return sorted(line.split()[0] for line in (home / "log").read_text().splitlines())


def test_reproduce_writes_every_row_with_values_interval_and_verdict(home: Path) -> None:
    assert reproduce(ToyStudy(), settings(home)) == 0
    report = json.loads((home / "results" / "cpu.json").read_text())
    rows = {row["id"]: row for row in report["claims"]}
    assert rows["large"]["measured"]["values"] == pytest.approx([0.6, 0.7, 0.8])
    assert rows["large"]["measured"]["mean"] == pytest.approx(0.7)
    assert rows["large"]["verdict"] == "pass"
    assert rows["small"]["verdict"] == "fail"  # not gated: the exit code is 0, the verdict is honest
    assert rows["elsewhere"]["verdict"] == "not-run"
    for name in ("id", "statement", "source", "paper", "measured", "comparison", "threshold", "verdict", "seconds"):
        assert name in rows["large"]
    for name in ("preset", "config", "versions", "hardware", "commit"):
        assert report[name]
    assert len(report["cells"]) == 3
    assert str(home) not in json.dumps({**report, "cells": []})


def test_finished_cells_are_not_run_again_but_for_force(home: Path) -> None:
    reproduce(ToyStudy(), settings(home, seeds=2))
    reproduce(ToyStudy(), settings(home, seeds=3))
    assert runs(home) == ["0", "1", "2"]
    reproduce(ToyStudy(), settings(home, seeds=2, force=True))
    assert runs(home) == ["0", "0", "1", "1", "2"]


def test_a_long_cell_goes_on_from_what_it_kept_unless_the_code_is_another(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(home, preset="paper")
    store = home / "out" / "cells"
    with pytest.raises(RunFailed, match="killed"):
        reproduce(ToyStudy(), config)
    assert len(list(store.glob("*.part/half"))) == 3
    assert not list(store.glob("*.json"))
    assert reproduce(ToyStudy(), config) == 0  # nothing is asked for under `paper`
    assert len(list(store.glob("*.json"))) == 3
    assert not list(store.glob("*.part"))
    with pytest.raises(RunFailed, match="killed"):
        reproduce(ToyStudy(), replace(config, force=True))
    for path in store.glob("*.part/begun.json"):
        path.write_text('{"code": "another"}')
    for path in store.glob("*.json"):
        path.unlink()
    with pytest.raises(RunFailed, match="killed"):
        reproduce(ToyStudy(), config)


def test_cores_are_shared_out_among_jobs(home: Path) -> None:
    reproduce(ToyStudy(), settings(home, jobs=2))
    threads = {line.split()[1] for line in (home / "log").read_text().splitlines()}
    assert threads == {str(max(1, (os.cpu_count() or 1) // 2))}


def test_smoke_runs_its_cells_in_this_process_and_leaves_it_as_it_was(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    seen: list[int] = []
    run = ToyStudy.run
    monkeypatch.setattr(ToyStudy, "run", lambda *given: seen.append(os.getpid()) or run(*given))
    monkeypatch.setenv("TOY_FAILS", "1")
    threads = torch.get_num_threads()
    smoke = settings(home, preset="smoke", jobs=None)
    assert reproduce(ToyStudy(), smoke) == 1
    assert "draw, seed 1: RuntimeError: out of luck" in capsys.readouterr().err
    monkeypatch.delenv("TOY_FAILS")
    assert reproduce(ToyStudy(), smoke) == 0
    assert seen == [os.getpid()] * 4  # three seeds, and the one that had failed again
    assert torch.get_num_threads() == threads

    def stopped(*given: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(ToyStudy, "run", stopped)
    with pytest.raises(Stopped, match="goes on"):
        reproduce(ToyStudy(), replace(smoke, force=True))


def test_the_longer_cpu_preset_shares_cells_and_has_results_of_its_own(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="cpu-long"):
        reproduce(ToyStudy(), settings(home, preset="cpu-long"))
    monkeypatch.setattr(ToyStudy, "presets", (*ToyStudy.presets, "cpu-long"))
    monkeypatch.chdir(home)
    (home / "claims.toml").write_text(CLAIMS.replace("threshold = { gpu = 0.1 }", "threshold = { cpu-long = 0.1 }"))
    for preset in ("cpu", "cpu-long"):
        assert reproduce(ToyStudy(), settings(home, preset=preset, out=None)) == (preset == "cpu-long")
    assert runs(home) == ["0", "1", "2"]
    assert [path.name for path in sorted((home / "results").glob("*.json"))] == ["cpu-long.json", "cpu.json"]
    section = member_section(home)
    assert section.index("Preset `cpu`") < section.index("Preset `cpu-long`")
    assert section.count("Asked for under other presets") == 1


def test_a_failed_gate_exits_with_1(home: Path) -> None:
    (home / "claims.toml").write_text(CLAIMS.replace("gated = false", "gated = true"))
    assert reproduce(ToyStudy(), settings(home)) == 1


def test_a_failed_cell_is_named_the_rest_is_kept_and_no_complete_result_is_replaced(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOY_FAILS", "1")
    assert reproduce(ToyStudy(), settings(home)) == 1
    assert "draw, seed 1: RuntimeError: out of luck" in capsys.readouterr().err
    assert not (home / "results" / "cpu.json").exists()
    assert json.loads((home / "out" / "cpu.json").read_text())["failed"][0]["seed"] == 1
    monkeypatch.delenv("TOY_FAILS")
    assert reproduce(ToyStudy(), settings(home)) == 0
    assert runs(home) == ["0", "1", "1", "2"]


def test_fewer_seeds_than_the_presets_do_not_replace_the_results(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reproduce(ToyStudy(), settings(home)) == 0
    before = (home / "results" / "cpu.json").read_bytes()
    assert reproduce(ToyStudy(), settings(home, seeds=1)) == 0
    assert "--seeds 1" in capsys.readouterr().err
    assert (home / "results" / "cpu.json").read_bytes() == before
    assert len(json.loads((home / "out" / "cpu.json").read_text())["cells"]) == 1
    reproduce(ToyStudy(), settings(home, only="draw"))
    assert (home / "results" / "cpu.json").read_bytes() == before
    assert reproduce(ToyStudy(), settings(home, seeds=4)) == 0  # more than the preset's: a better result
    assert len(json.loads((home / "results" / "cpu.json").read_text())["cells"]) == 4


def test_a_machine_without_the_data_does_not_replace_results_that_had_them(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "claims.toml").write_text(
        CLAIMS.replace('quantity = "other"', 'quantity = "wanting"').replace("gpu", "cpu")
    )
    assert reproduce(ToyStudy(), settings(home)) == 1  # the data are there, and nothing of that name was run
    assert "not judged: claim elsewhere asks for 'on data, tuned'" in capsys.readouterr().err
    before = (home / "results" / "cpu.json").read_bytes()
    monkeypatch.setenv("TOY_LACKS", "1")
    assert reproduce(ToyStudy(), settings(home)) == 0  # the study says that they cannot be
    assert (home / "results" / "cpu.json").read_bytes() == before
    row = json.loads((home / "out" / "cpu.json").read_text())["claims"][-1]
    assert (row["verdict"], row["reason"]) == ("not-run", "the data are not there")
    assert module.table_rows([row])[0][-1] == "not-run: the data are not there"
    (home / "results" / "cpu.json").unlink()
    assert reproduce(ToyStudy(), settings(home)) == 0  # where there is nothing to lose, it is the result
    assert json.loads((home / "results" / "cpu.json").read_text())["absent"] == {"on data": "the data are not there"}


def test_a_metric_that_a_cell_did_not_return_is_an_error_not_a_claim_unjudged(home: Path) -> None:
    (home / "claims.toml").write_text(CLAIMS.replace('quantity = "other"', 'quantity = "misspelt"'))
    with pytest.raises(RunFailed, match=r"draw, seed 0: returned no 'valeu', only value, curve.*--force"):
        reproduce(ToyStudy(), settings(home))


def test_an_experiment_that_lacks_a_seed_is_left_out() -> None:
    cells = [Cell(name, {}, seed) for name in ("a", "b") for seed in (0, 1)]
    finished = [(cell, {"values": {"x": 1.0}, "seconds": 1.0}) for cell in cells[:3]]
    outcomes = Outcomes(finished, cells)
    assert outcomes.names() == ["a"]
    with pytest.raises(Missing) as caught:
        outcomes.values("b", "x")
    assert caught.value.name == "b"
    assert Outcomes(finished).values("b", "x") == [1.0]


PROGRAM = """
import signal, sys
from pathlib import Path
import shared.cli
from shared.claims import ReproduceConfig, reproduce
from shared.config import Stopped
from test_claims import ToyStudy
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
    home = Path(sys.argv[1])
    shared.cli.member_home = lambda package: home
    try:
        sys.exit(reproduce(ToyStudy(), ReproduceConfig(
            out=home / "out", data_root=home / "log", device="cpu", jobs=1, quiet=True)))
    except Stopped as stop:
        print(stop.message)
        sys.exit(stop.code)
    except KeyboardInterrupt:
        sys.exit(99)
"""


def test_interrupted_reproduction_keeps_finished_cells(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_SLEEP", "0.5")
    (home / "program.py").write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, str(home / "program.py"), str(home)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not list((home / "out" / "cells").glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, "goes on" in out) == (130, True)
    finished = len(list((home / "out" / "cells").glob("*.json")))
    assert 1 <= finished < 3
    monkeypatch.delenv("TOY_SLEEP")
    before = len(runs(home))
    assert reproduce(ToyStudy(), settings(home)) == 0
    assert len(runs(home)) - before == 3 - finished


def test_only_runs_a_part_and_leaves_the_results_alone(home: Path) -> None:
    reproduce(ToyStudy(), settings(home, only="dra"))
    assert not (home / "results" / "cpu.json").exists()
    with pytest.raises(UserError, match="--only"):
        reproduce(ToyStudy(), settings(home, only="nothing"))


@pytest.mark.parametrize(
    ("comparison", "threshold", "value", "holds"),
    [
        (">=", 0.5, 0.5, True),
        (">=", 0.5, 0.499, False),
        ("<=", 0.5, 0.5, True),
        ("<=", 0.5, 0.51, False),
        ("between", [0.1, 0.2], 0.2, True),
        ("between", [0.1, 0.2], 0.21, False),
        ("within", 0.05, 0.94, True),
        ("within", 0.05, 0.96, False),
        (">=", 0.5, float("nan"), False),
        ("<=", 0.5, float("nan"), False),
    ],
)
def test_comparisons(comparison: Any, threshold: Any, value: float, holds: bool) -> None:
    claim = Claim("i", "s", "t", "q", comparison, {"cpu": threshold}, paper=0.9)
    assert claim.holds(value, "cpu") is holds


def test_bootstrap_interval_agrees_with_scipy() -> None:
    values = np.random.default_rng(3).normal(size=12)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=100_000, rng=0)
    interval = theirs.confidence_interval
    # 0.03 is about three standard errors of our quantiles, estimated from 10,000 draws
    assert bootstrap_interval(list(values)) == pytest.approx((interval.low, interval.high), abs=0.03)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('quantity = "mean"\ncomparison = ">="', 'quantity = "mean"\ncomparison = "=>"', "comparison"),
        ('id = "small"', 'id = "large"', "used once"),
        ('headline = "large"', 'headline = "larg"', "did you mean 'large'"),
        ('source = "Table 2"', 'sauce = "Table 2"', "did you mean 'source'"),
        ("[[claim]]", "[[claim", "TOML"),
    ],
)
def test_bad_claims_files_are_refused_by_name(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in CLAIMS
    (tmp_path / "claims.toml").write_text(CLAIMS.replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        read_claims(tmp_path / "claims.toml")


def test_readme_section_is_made_from_the_results(home: Path) -> None:
    reproduce(ToyStudy(), settings(home))
    section = member_section(home)
    assert "| The mean is large. | 90.0 % | 70.0 % [60.0 %, 80.0 %] (>= 50.0 %) | pass |" in section
    assert "| fail, not gated |" in section
    text = "# A\n<!-- claims:begin -->\nold\n<!-- claims:end -->\ntail\n"
    replaced = replace_section(text, "claims", section)
    assert "old" not in replaced
    assert replace_section(replaced, "claims", section) == replaced
    with pytest.raises(UserError, match="marks"):
        replace_section("no marks", "claims", section)


def test_numbers_as_tables_show_them() -> None:
    assert [number(x) for x in (None, 0.12345, 12345.6, 1.0)] == ["-", "0.123", "12,346", "1"]
    assert number(0.672, percent=True) == "67.2 %"
    assert markdown(["a"], [["x|y"]]).splitlines()[-1] == "| x\\|y |"


def test_readmes_have_not_drifted_from_the_results() -> None:
    root = Path(module.__file__).resolve().parents[3]
    if not (root / "projects").is_dir():
        pytest.skip("not a checkout")
    assert [str(path.relative_to(root)) for path in module.drifted(root)] == []


def test_drift_is_noticed(home: Path) -> None:
    root = home / "root"
    member = root / "projects" / "rpg"
    (member / "results").mkdir(parents=True)
    listed = '[tool.papers]\nplanned = [{member="rpg", arxiv="1", title="T"}, {member="carl", arxiv="2", title="C"}]\n'
    (root / "pyproject.toml").write_text(listed)
    (root / "README.md").write_text("<!-- papers:begin -->\n<!-- papers:end -->\n")
    (member / "README.md").write_text("<!-- claims:begin -->\n<!-- claims:end -->\n")
    (member / "claims.toml").write_text(CLAIMS)
    reproduce(ToyStudy(), settings(home))
    (member / "results" / "cpu.json").write_bytes((home / "results" / "cpu.json").read_bytes())
    for path, text in module.generated_readmes(root).items():
        path.write_text(text)
    assert module.drifted(root) == []
    assert "1 of 1 claims hold" in (root / "README.md").read_text()
    assert "planned" in (root / "README.md").read_text()
    (member / "README.md").write_text((member / "README.md").read_text().replace("70.0", "99.9"))
    assert module.drifted(root) == [member / "README.md"]
