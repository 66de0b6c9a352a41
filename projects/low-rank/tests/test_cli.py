"""Every verb once, as a user types it; manuals and refusals without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from low_rank import figures
from low_rank.classification import Classification, make_model
from low_rank.cli import app, main
from low_rank.config import INITIALISATIONS, OPTIMISERS, SKIPS, TRAIN_PRESETS, TrainConfig
from low_rank.models import build_model
from low_rank.names import ACTIVATIONS, MODEL_DESCRIPTIONS, MODELS, REGULARISERS
from low_rank.random_networks import INITS, RESIDUALS
from low_rank.rank import MEASURES, effective_rank
from low_rank.train import open_run
from shared.augment import normalise
from shared.cli import member_home
from shared.config import from_json
from shared.figures import png_only
from shared.loop import Loop
from shared.metrics import read_metrics

VERBS = (
    "train", "evaluate", "volume", "regress", "optimizers", "kernels", "compare", "collapse", "ranks", "reproduce",
    "bench",
)  # fmt: skip
SMOKE = ["--preset", "smoke", "--device", "cpu", "--quiet"]
SMALL = {
    "volume": ["--n", "4", "--draws", "2", "--device", "cpu"],
    "regress": ["--n", "4", "--samples", "2", "--rank", "1", "--draws", "2", "--steps", "5", "--device", "cpu"],
    "optimizers": ["--n", "4", "--samples", "2", "--rank", "1", "--draws", "2", "--steps", "5", "--depths", "1"],
    "kernels": SMOKE,
    "compare": SMOKE,
}


@pytest.fixture(scope="module", autouse=True)
def png_alone() -> Iterator[None]:
    with png_only():
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", *SMOKE, "--out", str(out)]) == 0
    return out


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take seconds, and are looked at elsewhere."""
    monkeypatch.setattr(figures, "run_figures", lambda folder, history: [])


def one_line(text: str) -> str:
    return " ".join(text.replace("│", " ").split())


# -- manuals -----------------------------------------------------------------------------------------------------------


def test_all_verbs_are_there() -> None:
    assert tuple(app.verbs) == VERBS
    assert set(MODEL_DESCRIPTIONS) == set(MODELS)
    assert set(SKIPS) == set(RESIDUALS)  # the manual's names are those that the code knows
    assert set(INITIALISATIONS) == set(INITS)


@pytest.mark.parametrize("verb", VERBS)
def test_manual_of_every_verb(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"usage: low-rank {verb}" in text
    listed = {"train": {**MODEL_DESCRIPTIONS, **REGULARISERS}, "volume": INITIALISATIONS, "optimizers": OPTIMISERS}
    flat = one_line(text)
    for name, line in listed.get(verb, {}).items():
        assert f"{name} {one_line(line)}" in flat
    if verb in ("train", "volume"):
        assert ", ".join(ACTIVATIONS) in flat


def test_manuals_and_refusals_import_no_torch() -> None:
    code = (
        "import sys; from low_rank.cli import app, main; import contextlib, io\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):\n"
        "    manuals = {main([verb, '--help']) for verb in app.verbs}\n"
        "    refused = (['train', '--model', 'cnm'], ['volume', '--depths', '0'], ['regress', '--rank', '99'],\n"
        "               ['optimizers', '--optimizers', 'adm'], ['compare', '--validation', '0'])\n"
        "    codes = {main(arguments) for arguments in refused}\n"
        "import low_rank.experiments, low_rank.study_figures\n"
        "print(manuals, codes, 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "{0} {2} False", result.stderr


# -- runs --------------------------------------------------------------------------------------------------------------


def test_a_run_leaves_its_files(run: Path) -> None:
    assert {path.name for path in (run / "figures").glob("*.png")} == {"curves.png", "spectra.png"}
    summary = json.loads((run / "summary.json").read_text())
    assert {"accuracy", "train", "gap", "gram_rank", "weight_rank"} <= set(summary["metrics"])
    assert from_json(TrainConfig, {**config_of(run)}).width == 32
    assert not (run / "plain.pt").exists()


def config_of(run: Path) -> dict[str, Any]:
    values = json.loads((run / "config.json").read_text())
    del values["member"]
    return values


@pytest.mark.usefixtures("no_figures")
def test_train_prints_its_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["train", "--preset", "smoke", "--device", "cpu", "--steps", "2", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "all layers as products of 3" in one_line(text)
    assert all(name in text for name in ("linear1", "linear2", "classifier", "32 x 64", str(out)))
    before = (out / "summary.json").read_bytes()
    assert main(["train", *SMOKE, "--out", str(out)]) == 2
    assert "--force" in capsys.readouterr().err
    assert (out / "summary.json").read_bytes() == before
    assert main(["train", *SMOKE, "--steps", "1", "--width", "16", "--out", str(out), "--force"]) == 0
    assert config_of(out)["width"] == 16


@pytest.mark.usefixtures("no_figures")
def test_resuming_goes_on_to_where_it_would_have_been(run: Path, tmp_path: Path) -> None:
    """A run that ends early, by its clock, goes on to the very numbers of the run that did not."""
    out = tmp_path / "run"
    flags = [*SMOKE, "--max-minutes", "1e-9", "--out", str(out)]
    assert main(["train", *flags]) == 0
    assert json.loads((out / "summary.json").read_text())["status"] != "finished"
    # Its clock is a circumstance and may be another.
    assert main(["train", "--resume", str(out), "--max-minutes", "9", "--quiet"]) == 0
    assert len(steps_of(out)) == 20
    assert steps_of(out) == steps_of(run)
    one, other = (open_run(folder, device="cpu")[0] for folder in (out, run))
    wanted = other.model.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in one.model.state_dict().items())
    assert one.history.ranks[-1] == other.history.ranks[-1]


def steps_of(folder: Path) -> list[dict[str, Any]]:
    """What every step said, but for its time."""
    rows = [row for row in read_metrics(folder) if row["split"] == "train"]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_resuming_refuses_another_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != ".lock"}
    assert main(["train", "--resume", str(run), *SMOKE, "--width", "64", "--depth", "2"]) == 2
    said = capsys.readouterr().err
    assert "width: 32 there, 64 here" in said
    assert "depth: 3 there, 2 here" in said
    assert main(["train", "--resume", str(tmp_path / "none")]) == 2
    assert "config.json" in capsys.readouterr().err
    assert main(["kernels", *SMOKE, "--resume", str(run)]) == 2
    assert "finished networks are kept" in one_line(capsys.readouterr().err)
    assert main(["compare", *SMOKE, "--resume", str(run)]) == 2
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != ".lock"} == before


def test_evaluate(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "e.json"
    assert main(["evaluate", str(run), "--device", "cpu", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert "difference to the multiplied-out network" in capsys.readouterr().out
    task, step = open_run(run, device="cpu")
    assert (found["step"], found["run"]) == (step, "run")
    assert found["metrics"]["test accuracy"] == task.history.rows[-1]["accuracy"]
    assert found["metrics"]["gram_rank"] == pytest.approx(task.history.rows[-1]["gram_rank"])
    assert found["metrics"]["difference to the multiplied-out network, relative"] < 1e-12
    for row in found["ranks"]:
        assert set(row) == {"layer", "shape", *MEASURES}
        assert row[next(iter(MEASURES))] == pytest.approx(task.history.ranks[-1][row["layer"]])
    before = out.read_bytes()
    assert main(["evaluate", str(run), "--device", "cpu", "--out", str(out)]) == 2
    assert "--force" in capsys.readouterr().err
    assert out.read_bytes() == before
    out.write_text("{}")
    assert main(["evaluate", str(run), "--device", "cpu", "--out", str(out), "--force", "--which", "best"]) == 0
    best = max(row["accuracy"] for row in task.history.rows)
    again = json.loads(out.read_text())
    assert again["metrics"]["test accuracy"] == best
    assert again["step"] in [row["step"] for row in task.history.rows if row["accuracy"] == best]
    assert main(["evaluate", str(run), "--which", "worst"]) == 2
    assert "newest, best" in one_line(capsys.readouterr().err)


def test_the_best_is_not_the_newest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--preset", "smoke", "--device", "cpu", "--quiet", "--lr", "1", "--schedule", "constant"]
    words += ["--steps", "12", "--eval-every", "1"]
    assert main(["train", *words, "--out", str(tmp_path / "run")]) == 0
    found = {}
    for which in ("newest", "best"):
        out = tmp_path / f"{which}.json"
        assert main(["evaluate", str(tmp_path / "run"), "--device", "cpu", "--which", which, "--out", str(out)]) == 0
        found[which] = json.loads(out.read_text())
    assert found["best"]["step"] < found["newest"]["step"] == 12
    assert found["best"]["metrics"]["test accuracy"] > found["newest"]["metrics"]["test accuracy"]
    assert "the best on the test set" in one_line(capsys.readouterr().out)


def test_a_run_of_another_kind_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint of another network: the weights that do not fit are named."""
    odd = tmp_path / "odd"
    (odd / "checkpoints").mkdir(parents=True)
    for path in (run / "checkpoints").iterdir():
        (odd / "checkpoints" / path.name).write_bytes(path.read_bytes())
    fields = json.loads((run / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps({**fields, "width": 16}))
    for verb in ("evaluate", "collapse", "ranks"):
        assert main([verb, str(odd)]) == 2
        assert "linear1" in capsys.readouterr().err
    (odd / "config.json").write_text(json.dumps({**fields, "member": "rpg"}))
    assert main(["evaluate", str(odd)]) == 2
    assert "a run of rpg" in capsys.readouterr().err
    (odd / "config.json").write_text(json.dumps({**fields, "widht": 16}))
    assert main(["evaluate", str(odd)]) == 2
    assert "did you mean 'width'" in capsys.readouterr().err
    (odd / "config.json").write_bytes(b"\xff{")
    assert main(["evaluate", str(odd)]) == 2
    assert "readable JSON" in capsys.readouterr().err


# -- plain networks ----------------------------------------------------------------------------------------------------


def rebuilt(path: Path) -> torch.nn.Module:
    """The architecture that a file of `collapse` names, with its weights: none of the package's layers in it."""
    saved = torch.load(path, weights_only=True)
    fields = dict(saved["config"])
    shape = from_json(TrainConfig, {"data": fields.pop("data"), "side": fields.pop("side")}).shape
    skip = fields.pop("skip")
    model = build_model(fields.pop("model"), shape, residual=str(skip) if skip else "none", **fields)
    model.load_state_dict(saved["state"], strict=True)
    return model.eval()


SMALL_CNN: dict[str, Any] = {"model": "cnn-small", "depth": 2, "max_train": 100, "steps": 1}


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"depth": 2, "factor_norm": True},
        {"skip": 1, "hidden": 3, "factor_skips": (2, -1), "activation": "tanh"}, {"expand": "none", "side": 6},
        SMALL_CNN, {**SMALL_CNN, "kernels": (1, 3)}, {**SMALL_CNN, "channels": 0.25},
    ],
    ids=["mlp", "normalised", "skips", "plain", "cnn", "kernels", "channels"],
)  # fmt: skip
def test_collapse_leaves_the_plain_network(fields: dict[str, Any], tmp_path: Path) -> None:
    folder, out = tmp_path / "run", tmp_path / "plain.pt"
    config = replace(
        TRAIN_PRESETS["smoke"], device="cpu", quiet=True, out=folder, max_test=80, **{"steps": 3, **fields}
    )
    Loop(Classification(config), config, "low-rank").run()
    assert main(["collapse", str(folder), "--out", str(out), "--device", "cpu", "--quiet"]) == 0
    task, step = open_run(folder, device="cpu")
    assert torch.load(out, weights_only=True)["step"] == step
    x = normalise(task.x_test[:64], task.data)
    plain = rebuilt(out)
    assert not any(type(module).__module__.startswith("low_rank.overparam") for module in plain.modules())
    with torch.no_grad():
        here, there = task.model(x), plain(x)
    torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-5)
    assert float(here.std()) > 1e-3


def test_collapse_replaces_nothing_unasked(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "plain.pt"
    assert main(["collapse", str(run), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    plain = sum(p.numel() for p in make_model(TrainConfig(width=32, expand="none")).parameters())
    assert f"{plain:,}" in text
    before = out.read_bytes()
    assert main(["collapse", str(run), "--out", str(out)]) == 2
    assert "--force" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert main(["collapse", str(run), "--out", str(out), "--force", "--quiet"]) == 0
    assert main(["collapse", str(run), "--out", str(tmp_path / "p.pt"), "--onnx", str(out)]) == 2
    assert "--onnx" in capsys.readouterr().err
    assert not (tmp_path / "p.pt").exists()
    assert out.read_bytes() == before


def test_ranks_of_a_run_and_of_a_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def numbers(source: Path) -> list[list[float]]:
        capsys.readouterr()
        assert main(["ranks", str(source)]) == 0
        rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│ ") and " x " in line]
        return [[float(cell) for cell in line.split("│")[3:-1]] for line in rows]

    assert main(["collapse", str(run), "--out", str(tmp_path / "plain.pt"), "--quiet"]) == 0
    found = numbers(run)
    assert len(found) == 3
    assert numbers(tmp_path / "plain.pt") == found
    state = torch.load(tmp_path / "plain.pt", weights_only=True)["state"]
    assert found[0][0] == pytest.approx(float(effective_rank(state["linear1.weight"])), abs=1e-3)
    state["conv"] = torch.randn(4, 3, 3, 3)
    state["count"] = torch.arange(12).view(3, 4)  # no weight
    torch.save(state, tmp_path / "bare.pt")
    assert len(numbers(tmp_path / "bare.pt")) == 4
    for broken, words in ((b"no model", "state dict"), (None, "a file that exists")):
        path = tmp_path / "broken.pt"
        path.unlink(missing_ok=True)
        if broken is not None:
            path.write_bytes(broken)
        assert main(["ranks", str(path)]) == 2
        assert words in one_line(capsys.readouterr().err)
    for content in ({"a": torch.zeros(3)}, {"a": 1}, [torch.zeros(2, 2)]):
        torch.save(content, tmp_path / "broken.pt")
        assert main(["ranks", str(tmp_path / "broken.pt")]) == 2
        assert "state dict" in one_line(capsys.readouterr().err)


# -- studies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "flags", "files", "words"),
    [
        ("volume", ["--n", "8", "--draws", "60", "--depths", "1", "4", "--device", "cpu"], {"volume", "density"},
         ("its limit", "0.2169")),
        ("volume", ["--nets", "features", "--n", "8", "--draws", "3", "--images", "16", "--depths", "1", "2",
                    "--device", "cpu"], {"volume"}, ("relu networks of width 8 on 16 images of digits",)),
        ("regress", ["--n", "6", "--samples", "4", "--draws", "2", "--steps", "20", "--depths", "1", "2",
                     "--device", "cpu"], {"regress", "trajectories"}, ("least norm", "truth")),
        ("optimizers", ["--optimizers", "adam", "lbfgs", "--n", "5", "--samples", "3", "--draws", "2", "--target",
                        "0.2", "--steps", "100", "--depths", "1", "2", "--search", "3", "--cma", "1"],
         {"optimizers"}, ("search: networks without an error", "cma: networks without an error")),
        ("kernels", [*SMOKE[:4], "--steps", "2", "--width", "16", "--max-test", "64"],
         {"kernels", "ordered", "accuracy", "depth"}, ("relu networks of width 16 on digits, 1 seeds",)),
        ("kernels", [*SMOKE[:4], "--steps", "2", "--model", "cnn-small", "--channels", "0.2", "--max-train", "80",
                     "--lrs", "0.01", "0.1"], {"kernels", "ordered", "accuracy"}, ("cnn-small on digits, 1 seeds",)),
        ("compare", [*SMOKE[:4], "--steps", "2", "--width", "16"], {"compare"},
         ("products of 2, decay", "nuclear", "plain")),
    ],
    ids=["products", "features", "regress", "optimizers", "kernels", "cnn", "compare"],
)  # fmt: skip
def test_studies_write_and_replace_nothing_unasked(
    verb: str,
    flags: list[str],
    files: set[str],
    words: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "deep" / "study"
    assert main([verb, *flags, "--out", str(out)]) == 0
    text = one_line(capsys.readouterr().out)
    assert all(word in text for word in words), text
    assert {path.stem for path in out.glob("*.png")} == files
    table = out / f"{verb}.json"
    values = json.loads(table.read_text())
    assert values["rows"]
    assert values["config"]["out"] == str(out)
    table.write_text('{"mine": 1}')
    drawn = {path: path.stat().st_mtime_ns for path in out.glob("*.png")}
    assert main([verb, *flags, "--out", str(out)]) == 2
    assert "--force" in capsys.readouterr().err
    assert table.read_text() == '{"mine": 1}'
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.png")} == drawn
    if verb in ("volume", "regress"):
        assert main([verb, *flags, "--out", str(out), "--force", "--quiet"]) == 0
        assert capsys.readouterr().out == ""
        again = json.loads(table.read_text())
        assert again.pop("config").pop("force") is True
        assert again == {name: value for name, value in values.items() if name != "config"}
    (tmp_path / "file").write_text("mine")
    assert main([verb, *flags, "--out", str(tmp_path / "file")]) == 2
    assert "a folder" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_optimisers_of_a_classification(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--problem", "classification", "--optimizers", "gd", "lbfgs", "--depths", "1", "2", "--draws", "2"]
    flags += ["--width", "12", "--images", "8", "--loss", "0.3", "--steps", "200", "--cma", "1"]
    assert main(["optimizers", *flags, "--out", str(tmp_path)]) == 0
    assert "width 12, 8 images of digits 0 and 1: no training error, loss 0.3" in one_line(capsys.readouterr().out)
    values = json.loads((tmp_path / "optimizers.json").read_text())
    assert "rows" not in values, "no regression was asked for"
    assert {row["optimizer"] for row in values["classified"]["rows"]} == {"gd", "lbfgs", "cma"}
    assert {path.name for path in tmp_path.glob("*.png")} == {"classification.png"}


def test_a_product_too_small_for_single_precision_trains_in_double(tmp_path: Path) -> None:
    flags = ["--n", "8", "--samples", "5", "--draws", "2", "--steps", "2", "--depths", "300", "--gain", "0.5"]
    assert main(["regress", *flags, "--device", "cpu", "--double", "--quiet", "--out", str(tmp_path)]) == 0


def test_reproduce_smoke(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = member_home("low_rank") / "results"
    before = {path: path.stat().st_mtime_ns for path in results.rglob("smoke*")}
    flags = ["reproduce", "--preset", "smoke", "--device", "cpu", "--out", str(tmp_path / "runs"), "--quiet"]
    flags += ["--results", str(tmp_path / "results")]
    assert main(flags) == 0
    report = json.loads((tmp_path / "results" / "smoke.json").read_text())
    [smoke] = [row for row in report["claims"] if row["id"] == "smoke"]
    assert (smoke["verdict"], smoke["measured"]["mean"]) == ("pass", 1.0)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs" / "cells").iterdir()}
    assert len(kept) == 14
    assert main(flags) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs" / "cells").iterdir()} == kept
    assert {path: path.stat().st_mtime_ns for path in results.rglob("smoke*")} == before
    assert main([*flags, "--only", "no such cell"]) == 2
    assert "train normalised" in capsys.readouterr().err


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--depth", "0"], "--depth: got '0'; valid: a number >= 1"),
        (["--expand-width", "0.001"], "'linear1': width: got '0.001'"),
        (["--expand-width", "0.001"], "at least 0.03125"),
        (["--start", "preserve", "--expand-width", "0.1"], "'linear1'"),
        (["--kernels", "3", "1"], "--kernels: got '[3, 1]'; valid: 3 sizes"),
        (["--model", "cnn-small", "--kernels", "1", "2", "--depth", "2"], "kernels: got '[1, 2]'"),
        (["--model", "cnn-small", "--depth", "2", "--kernels", "2", "2", "--factor-skips", "1"], "residual"),
        (["--factor-skips", "7"], "-1, or 1 to the 3 factors"),
        (["--model", "resnet65"], "did you mean 'resnet56'"),
        (["--model", "cnn-smal"], "did you mean 'cnn-small'"),
        (["--activation", "rellu"], "did you mean 'relu'"),
        (["--regulariser", "nuclaer", "--strength", "1"], "did you mean 'nuclear'"),
        (["--optimizer", "adm"], "did you mean 'adam'"),
        (["--data", "fasion"], "did you mean 'fashion'"),
        (["--strength", "3"], "with --regulariser"),
        (["--expand", "none", "--factor-norm"], "--factor-norm"),
        (["--mode", "weights", "--factor-norm"], "auto or activations with --factor-norm"),
        (["--skip", "1", "--model", "cnn-small"], "--skip"),
        (["--activation", "tanh", "--model", "resnet20"], "--activation"),
        (["--channels", "2"], "--channels: got '2.0'; valid: 1 for mlp"),
        (["--model", "alexnet"], "63"),
        (["--data", "fashion", "--data-root", "/nowhere"], "/nowhere"),
        (["--validation", "1297"], "less than the 1,297 training samples"),
        (["--max-train", "5000"], "at most the 1297"),
        (["--label-noise", "1.5"], "--label-noise"),
        (["--probes", "1"], "--probes"),
        (["--steps", "5", "--epochs", "2"], "--steps and --epochs"),
        (["--seed", "-1"], "--seed"),
        (["--device", "cuda:77"], "--device"),
        (["--batch-size", "0"], "--batch-size"),
    ],
)
def test_bad_input_names_the_flag_and_leaves_nothing(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *SMOKE, "--out", str(tmp_path / "run"), *arguments]) == 2
    assert words in one_line(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_data_that_are_not_there_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = ["--data-root", str(tmp_path), "--out", str(tmp_path / "run")]
    assert main(["train", "--data", "fashion", *root]) == 2
    assert str(tmp_path / "FashionMNIST" / "raw" / "train-images-idx3-ubyte") in one_line(capsys.readouterr().err)
    assert main(["volume", "--nets", "features", "--data", "cifar10", *root]) == 2
    assert "cifar" in capsys.readouterr().err.lower()
    assert not list(tmp_path.rglob("*.json"))


def test_normalising_a_single_sample_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*SMOKE, "--factor-norm", "--batch-size", "1", "--out", str(tmp_path / "run")]
    assert main(["train", *flags]) == 2
    assert "--batch-size: got '1'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_as_many_samples_as_dimensions_are_warned_of(tmp_path: Path) -> None:
    flags = ["--n", "4", "--samples", "4", "--steps", "1", "--depths", "1", "--draws", "1", "--out", str(tmp_path)]
    with pytest.warns(UserWarning, match="4 samples of 4 dimensions determine the map"):
        assert main(["regress", *flags, "--device", "cpu", "--quiet"]) == 0


@pytest.mark.parametrize(
    ("verb", "arguments", "words"),
    [
        ("volume", ["--depths", "2", "1"], "increasing numbers"),
        ("volume", ["--depths", "0"], "increasing numbers"),
        ("volume", ["--depths"], "--depths"),
        ("volume", ["--skips", "blok"], "did you mean 'block'"),
        ("volume", ["--init", "ortogonal"], "did you mean 'orthogonal'"),
        ("volume", ["--nets", "feature"], "did you mean 'features'"),
        ("volume", ["--normalisation", "bach"], "did you mean 'batch'"),
        ("volume", ["--every", "2"], "1 without --skips"),
        ("volume", ["--level", "0"], "--level"),
        ("volume", ["--n", "1"], "--n"),
        ("volume", ["--seed", str(2**64)], "--seed"),
        ("volume", ["--device", "cuda:77"], "--device"),
        ("regress", ["--rank", "5"], "a number in [1, 4]"),
        ("regress", ["--gain", "0"], "--gain"),
        ("regress", ["--gain", "inf"], "--gain: got 'inf'; valid: a finite number"),
        ("regress", ["--lr", "inf"], "--lr: got 'inf'; valid: a finite number"),
        ("regress", ["--noise", "inf"], "--noise: got 'inf'; valid: a finite number"),
        ("regress", ["--depths", "300", "--gain", "0.5"], "in double precision with --double"),
        ("regress", ["--depths", "2", "2"], "increasing numbers"),
        ("regress", ["--seed", str(2**64)], "--seed"),
        ("optimizers", ["--optimizers", "adam", "lbgfs"], "did you mean 'lbfgs'"),
        ("optimizers", ["--rank", "5"], "--rank"),
        ("optimizers", ["--target", "0"], "--target"),
        ("optimizers", ["--seed", "-1"], "--seed"),
        ("optimizers", ["--target", "inf"], "--target"),
        ("optimizers", ["--loss", "inf"], "--loss"),
        ("optimizers", ["--problem", "clasification"], "did you mean 'classification'"),
        ("optimizers", ["--images", "7"], "--images"),
        ("optimizers", ["--classes", "3", "3"], "two different labels"),
        ("optimizers", ["--problem", "classification", "--cma", "1"], "smaller --width: 12"),
        ("kernels", ["--model", "cnn", "--skips", "1"], "--skips"),
        ("kernels", ["--model", "cnn", "--preset", "cpu", "--depths", "1", "2"], "--depths"),
        ("kernels", ["--skips", "3"], "--skips"),
        ("kernels", ["--lrs", "0.1", "0.1"], "every value once"),
        ("kernels", ["--decays", "inf"], "--decays"),
        ("kernels", ["--batches", "0"], "--batches"),
        ("kernels", ["--noises", "1.1"], "--noises"),
        ("kernels", ["--linkage", "3"], "--linkage"),
        ("kernels", ["--linkage", "500", "--depths", "1", "--steps", "1"], "--linkage"),
        ("kernels", ["--depths", "4", "2"], "--depths"),
        ("compare", ["--validation", "0"], "--validation"),
        ("compare", ["--regularisers", "nuclera"], "did you mean 'nuclear'"),
        ("compare", ["--strengths", "0"], "--strengths"),
        ("compare", ["--lrs", "inf"], "--lrs"),
        ("compare", ["--expansions", "1"], "--expansions"),
        ("compare", ["--weight-decay", "0.1"], "--weight-decay"),
    ],
)
def test_bad_input_of_studies(
    verb: str, arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    assert main([verb, *SMALL[verb], "--out", str(out), *arguments]) == 2
    assert words in one_line(capsys.readouterr().err)
    assert not list(out.glob("*.json"))


def test_a_regression_that_diverges_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--n", "8", "--samples", "4", "--draws", "2", "--lr", "1e9", "--steps", "20", "--depths", "8", "--quiet"]
    assert main(["regress", *flags, "--device", "cpu", "--out", str(tmp_path)]) == 1
    assert "lower --lr or --gain" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize("verb", ["evaluate", "collapse", "ranks"])
def test_what_is_no_run_is_refused(verb: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for source in (tmp_path / "none", empty, run / "config.json"):
        assert main([verb, str(source)]) == 2, source
        assert str(source) in one_line(capsys.readouterr().err)
    (empty / "config.json").write_text((run / "config.json").read_text())
    assert main([verb, str(empty)]) == 2
    assert "checkpoint" in capsys.readouterr().err
    assert {path.name for path in empty.iterdir()} == {"config.json"}


def test_train_into_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    for flags in ([], ["--force"]):
        assert main(["train", *SMOKE, "--out", str(tmp_path / "file"), *flags]) == 2
        assert "--out" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"
    assert main(["train", *SMOKE, "--out", str(tmp_path / "file" / "below")]) == 2


def test_bench_names_its_races(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--only", "no-such-race"]) == 2
    assert "--only" in capsys.readouterr().err
