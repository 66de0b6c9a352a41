"""Every verb once, as a user types it; manuals and refusals without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from superposition.cli import app, main
from superposition.config import METHOD_DESCRIPTIONS, METHODS, STREAM_DESCRIPTIONS, STREAMS, TRAIN_PRESETS
from superposition.kinds import DESCRIPTIONS
from superposition.train import train

VERBS = ("train", "evaluate", "sweep", "reproduce", "noise", "retrieve", "superpose", "inspect", "plot", "bench")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    train(replace(TRAIN_PRESETS["smoke"], device="cpu", quiet=True, out=out))
    return out


def test_all_verbs_are_there() -> None:
    assert tuple(app.verbs) == VERBS
    assert set(METHOD_DESCRIPTIONS) == set(METHODS)
    assert set(STREAM_DESCRIPTIONS) == set(STREAMS)


@pytest.mark.parametrize("verb", VERBS)
def test_manual_of_every_verb(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"usage: superposition {verb}" in text
    if verb == "train":
        flat = " ".join(text.replace("│", " ").split())
        assert all(" ".join(line.split()) in flat for line in DESCRIPTIONS.values())


def test_manuals_and_refusals_import_no_torch() -> None:
    code = (
        "import sys; from superposition.cli import main; import contextlib, io\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):\n"
        "    codes = [main(['train', *flags]) for flags in (['--help'], ['--kind', 'binari'], ['--tasks', '0'])]\n"
        "import superposition.experiments, superposition.study_figures\n"
        "print(codes, 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[0, 2, 2] False", result.stderr


def test_a_run_leaves_its_files(run: Path) -> None:
    assert {p.name for p in (run / "figures").glob("*.png")} == {"accuracy.png", "keys.png"}
    matrix = json.loads((run / "matrix.json").read_text())
    assert len(matrix["accuracy"]) == len(matrix["keys"]) == 3
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("step_norm" in row for row in rows)
    assert any("noise/1" in row for row in rows)


def test_evaluate(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--device", "cpu", "--select", "--select-batch", "64", "--out", str(tmp_path / "e.json")]
    assert main(["evaluate", str(run), *flags]) == 0
    found = json.loads((tmp_path / "e.json").read_text())
    assert found["metrics"]["context_found"] > 0.6
    assert found["metrics"]["average"] == pytest.approx(sum(found["accuracy"][j][j] for j in range(3)) / 3)
    assert "key 2" in capsys.readouterr().out
    assert main(["evaluate", str(run), "--device", "cpu", "--out", str(tmp_path / "e.json")]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--select", "--select-batch", "9999"]) == 2
    assert "--select-batch" in capsys.readouterr().err


def test_retrieve_and_superpose(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / f"{k}.pt" for k in range(3)]
    for k, path in enumerate(paths):
        assert main(["retrieve", str(run), "--device", "cpu", "--context", str(k), "--out", str(path)]) == 0
    state = torch.load(paths[0], weights_only=True)
    assert [tuple(t.shape) for t in state["state"].values()][:2] == [(256, 64), (256,)]
    capsys.readouterr()
    assert main(["retrieve", str(run), "--context", "1", "--out", str(paths[1])]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["retrieve", str(run), "--context", "7", "--out", str(tmp_path / "no.pt")]) == 2
    assert "trained: 0, 1, 2" in capsys.readouterr().err
    merge = ["superpose", *map(str, paths), "--device", "cpu", "--out", str(tmp_path / "sum.pt")]
    assert main(merge) == 0
    assert "in superposition" in capsys.readouterr().out
    assert torch.load(tmp_path / "sum.pt", weights_only=True)["spec"]["kind"] == "rotation"
    assert main(merge) == 2
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "sum.pt"), "--device", "cpu", "--out", str(tmp_path / "s.json")]) == 0
    assert json.loads((tmp_path / "s.json").read_text())["tasks"] == [0, 1, 2]
    for broken in ({}, {"kind": "rotation", "context_seed": 0, "parts": []}, {"kind": "rotation"}):
        torch.save({"member": "superposition", "form": "superposed", "spec": broken, "state": {}}, tmp_path / "odd.pt")
        assert main(["evaluate", str(tmp_path / "odd.pt"), "--device", "cpu"]) == 2
        assert "specification" in capsys.readouterr().err
    del state["spec"]["task"]
    torch.save(state, tmp_path / "odd.pt")
    assert main(["superpose", str(tmp_path / "odd.pt"), str(paths[1]), "--out", str(tmp_path / "x.pt")]) == 2
    assert "task" in capsys.readouterr().err
    assert main(["evaluate", str(paths[0]), "--device", "cpu"]) == 2
    (tmp_path / "bad.pt").write_bytes(b"no model")
    assert main(["superpose", str(paths[0]), str(tmp_path / "bad.pt"), "--out", str(tmp_path / "x.pt")]) == 2
    assert main(["superpose", str(paths[0]), str(paths[1]), "--kind", "mask", "--out", str(tmp_path / "x.pt")]) == 2
    assert "--kind" in capsys.readouterr().err


def test_noise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--models", "2", "5", "--dims", "32", "--draws", "50", "--out", str(tmp_path), "--device", "cpu"]
    assert main(["noise", *flags, "--offline", "2", "--offline-width", "16", "--offline-steps", "20"]) == 0
    found = json.loads((tmp_path / "noise.json").read_text())
    assert len(found["rows"]) == 8
    assert set(found["offline"]["kept"]) == {"binary 2", "rotation 2"}
    assert (tmp_path / "noise.png").exists()
    assert main(["noise", *flags]) == 2
    assert "--force" in capsys.readouterr().err
    for flag in ("--dims", "--models"):
        assert main(["noise", flag, "--out", str(tmp_path / "none")]) == 2
        assert flag in capsys.readouterr().err


def test_inspect_counts_what_the_paper_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--table"]) == 0
    text = capsys.readouterr().out
    assert "335,114" in text  # 784-256-256-256-10
    assert "15,520" in text  # ten contexts of 784 + 3 x 256 signs
    assert "3,351,140" in text
    assert "811,264" in text  # a rotation: 784^2 + 3 x 256^2
    assert "1,552 of 1 bit" in text
    assert main(["inspect", "--method", "ewc", "--strength", "10", "--table"]) == 0
    assert "1,552 of 1 bit" in capsys.readouterr().out


def test_sweep_and_plot(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--data", "digits", "--period", "10", "--eval-every", "10", "--device", "cpu", "--jobs", "1"]
    flags += ["--kinds", "binary", "--methods", "si", "--strengths", "1", "10", "--hidden-widths", "16", "--tasks", "2"]
    assert main(["sweep", *flags, "--seeds", "1", "--out", str(tmp_path / "sweep")]) == 0
    cells = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["cells"]
    assert [cell["name"] for cell in cells] == ["binary H=16 K=2", "si H=16 K=2 strength=1", "si H=16 K=2 strength=10"]
    assert main(["plot", str(run), "--out", str(tmp_path / "both")]) == 0
    assert (tmp_path / "both.png").exists()
    assert main(["plot", str(run), "--out", str(tmp_path / "both")]) == 2
    assert "--force" in capsys.readouterr().err
    twin = tmp_path / "twin" / run.name  # of the same label and name, measured at other steps, cut off while writing
    twin.mkdir(parents=True)
    (twin / "config.json").write_text((run / "config.json").read_text())
    lines = (run / "metrics.jsonl").read_text().splitlines()
    measured = [line for line in lines if "task1" in line]
    (twin / "metrics.jsonl").write_text("\n".join(measured[1:]) + '\n{"step": 9')
    assert main(["plot", str(run), str(twin), "--out", str(tmp_path / "twins")]) == 0
    (twin / "config.json").write_bytes(b"\xff{")
    assert main(["plot", str(twin), "--out", str(tmp_path / "twins"), "--force"]) == 2
    for flags, words in (
        (["--experiment", "perm-unit"], "perm-units"),
        (["--experiment", "perm-units", "--lr", "1"], "--lr"),
        (["--method", "ewc"], "--method"),
        (["--strengths", "1"], "--methods ewc or si"),
    ):
        assert main(["sweep", *flags]) == 2
        assert words in capsys.readouterr().err
    (run.parent / "empty").mkdir()
    (run.parent / "empty" / "config.json").write_text((run / "config.json").read_text())
    assert main(["plot", str(run.parent / "empty")]) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--kind", "powr"], "did you mean 'power'"),
        (["--period", "0"], "--period"),
        (["--stream", "split", "--classes-per-task", "3", "--tasks", "2"], "1, 2, 5, 10"),
        (["--stream", "split", "--tasks", "3"], "at most 2"),
        (["--stream", "rotating", "--period", "200", "--contexts", "7"], "a divisor of --period"),
        (["--kind", "hadamard"], "power of 2"),
        (["--kind", "local-mix", "--tasks", "3"], ">= 4"),
        (["--schedule", "continuous"], "kind power"),
        (["--schedule", "continuous", "--method", "multi-head"], "--schedule"),
        (["--schedule", "continuous", "--method", "standard"], "--schedule"),
        (["--method", "si", "--kind", "complex"], "--method psp"),
        (["--numbers", "real", "--kind", "power"], "phasors"),
        (["--part", "real"], "--part"),
        (["--net", "resnet18", "--kind", "complex"], "--kind"),
        (["--bn", "per-task"], "--bn"),
        (["--strength", "3"], "--method ewc or si"),
        (["--learn-context", "--kind", "householder"], "--learn-context"),
        (["--epochs", "3"], "--epochs"),
        (["--contexts", "2", "--tasks", "3"], "at least the 3 tasks"),
        (["--contexts", "20", "--method", "si"], "--contexts"),
        (["--optimizer", "adam", "--momentum", "0.9"], "--momentum"),
        (["--context-every", "5"], "--schedule period"),
        (["--classes-per-task", "2"], "--stream split"),
        (["--stream", "three-sets", "--tasks", "3", "--data", "digits"], "--data"),
        (["--stream", "rotating", "--matrix"], "--matrix"),
        (["--numbers", "complex", "--method", "separate"], "--numbers"),
        (["--data", "mnist", "--data-root", "/nowhere"], "/nowhere"),
        (["--batch-size", "5000"], "at most the 4000"),
        (["--max-train", "5000"], "--max-train"),
    ],
)
def test_bad_input_names_the_flag_and_leaves_nothing(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--device", "cpu", "--out", str(tmp_path / "run"), *arguments]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_reproduce_smoke_runs_one_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags: list[Any] = ["--preset", "smoke", "--device", "cpu", "--only", "smoke hadamard", "--out", str(tmp_path)]
    assert main(["reproduce", *flags]) == 0
    assert (tmp_path / "smoke.json").exists()
    capsys.readouterr()
