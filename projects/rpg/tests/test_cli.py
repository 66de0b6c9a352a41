"""Every verb once, as a user types it; manuals and refusals without torch."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rpg.baseline_names import BASELINES
from rpg.cli import app, main
from rpg.commands import sweep_cells
from rpg.config import TRAIN_PRESETS, SweepConfig
from rpg.hosts.names import HOST_DESCRIPTIONS
from rpg.tasks import NetworkTask
from rpg.train import train
from shared.image_names import CIFAR10

VERBS = (
    "train",
    "evaluate",
    "sweep",
    "reproduce",
    "inspect",
    "prune",
    "quantize",
    "export",
    "key",
    "fit",
    "plot",
    "bench",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    train(replace(TRAIN_PRESETS["smoke"], device="cpu", quiet=True, out=out))
    return out


def test_all_verbs_are_there() -> None:
    assert tuple(app.verbs) == VERBS


@pytest.mark.parametrize("verb", VERBS)
def test_manual_of_every_verb(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    assert f"usage: rpg {verb}" in capsys.readouterr().out


def test_manuals_and_refusals_import_no_torch_and_answer_at_once() -> None:
    code = (
        "import sys; from rpg.cli import main; import contextlib, io\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):\n"
        "    codes = [main(['train', '--help']), main(['train', '--plan', 'evn']), main(['train', '--chunk', '0'])]\n"
        "    codes += [main(['key'])]\n"
        "print(codes, 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[0, 2, 2, 0] False", result.stderr


def test_evaluate(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "--device", "cpu", "--corruptions", "--out", str(tmp_path / "e.json")]) == 0
    metrics = json.loads((tmp_path / "e.json").read_text())["metrics"]
    assert metrics["train_test_gap"] == pytest.approx(metrics["train_accuracy"] - metrics["accuracy"])
    assert any("noise" in name for name in metrics)
    assert "multiply-adds" in capsys.readouterr().out


def test_inspect_gives_the_published_counts(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["inspect", "--host", "resnet18", "--image", "3", "224", "1000", "--ring-size", "2359296", "--layers"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    for number in ("11,157,504", "2,359,296", "layer4.1.conv2.weight", "4: 638,976", "5: 1,720,320"):
        assert number in out


def test_prune_ring_and_host(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--device", "cpu", "--fraction", "0.3"]
    assert main(["prune", str(run), *flags, "--out", str(tmp_path / "ring.pt")]) == 0
    assert main(["prune", str(run), *flags, "--target", "host", "--out", str(tmp_path / "host.pt")]) == 0
    assert main(["prune", str(run), *flags, "--out", str(tmp_path / "ring.pt")]) == 2
    assert "--force" in capsys.readouterr().err


def test_quantize_writes_a_file_of_a_quarter(run: Path, tmp_path: Path) -> None:
    assert main(["quantize", str(run), "--device", "cpu", "--group", "256", "--out", str(tmp_path / "q.pt")]) == 0
    assert (tmp_path / "q.pt").stat().st_size < (run / "model.pt").stat().st_size


def test_export_dense_loads_into_the_plain_host(run: Path, tmp_path: Path) -> None:
    from rpg.hosts import make_host

    assert main(["export", str(run), "--out", str(tmp_path / "dense.pt")]) == 0
    state = torch.load(tmp_path / "dense.pt", weights_only=True)
    host = make_host("mlp", in_channels=1, num_classes=10, image_size=8)
    host.load_state_dict(state)


def test_keys(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key"]) == 0
    assert int(capsys.readouterr().out) >= 0
    assert main(["key", "--run", str(run), "--device", "cpu", "--tries", "2"]) == 0
    file = tmp_path / "hidden.pt"
    assert main(["export", str(run), "--form", "compact", "--hide-key", "--out", str(file)]) == 0
    assert main(["key", "--model-file", str(file), "--key", "0"]) == 0
    assert main(["key", "--model-file", str(file), "--key", "1"]) == 1


def test_sweep_fit_and_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sweep"
    flags = ["--preset", "smoke", "--device", "cpu", "--steps", "20", "--seeds", "1", "--jobs", "1", "--out", str(out)]
    grid = ["--ratios", "0.5", "0.1", "0.02", "--methods", "rpg", "vanilla"]
    assert main(["sweep", *flags, *grid]) == 0
    cells = json.loads((out / "sweep.json").read_text())["cells"]
    assert sorted(cell["name"] for cell in cells) == sorted(
        ["mlp vanilla", *(f"mlp even global M/N={ratio}" for ratio in ("0.5", "0.1", "0.02"))]
    )
    began = time.monotonic()
    assert main(["sweep", *flags, *grid]) == 0  # nothing is run again
    assert time.monotonic() - began < 5
    capsys.readouterr()
    assert main(["fit", str(out / "sweep.json"), "--below", "1", "--out", str(tmp_path / "fit")]) == 0
    assert "log10 M" in capsys.readouterr().out
    assert (tmp_path / "fit.png").exists()
    assert main(["fit", str(out / "sweep.json"), "--below", "1", "--out", str(tmp_path / "fit")]) == 2
    assert main(["fit", str(out / "sweep.json"), "--below", "1", "--out", str(tmp_path / "fit"), "--force"]) == 0
    for _ in range(2):  # the default is drawn anew
        assert main(["plot", str(out)]) == 0
    for code, more in ((0, []), (2, []), (0, ["--force"])):
        assert main(["plot", str(out), "--out", str(tmp_path / "drawn"), *more]) == code
    assert (out / "figures" / "sweep.png").exists()


def test_manual_says_what_hosts_and_baselines_are(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("train", "sweep", "inspect"):
        assert main([verb, "--help"]) == 0
        out = capsys.readouterr().out
        for line in (*HOST_DESCRIPTIONS.values(), *BASELINES.values()):
            assert line in out


def test_sweep_varies_hosts_at_one_size_chunks_rates_and_norms() -> None:
    def names(**changes: Any) -> list[str]:
        return [cell.name for cell in sweep_cells(SweepConfig(steps=5, seeds=1, **changes))]

    assert names(hosts=("resnet18", "resnet34"), ring_sizes=(500_000,), methods=("rpg", "tied", "narrow")) == [
        f"{host} {rest}"
        for host in ("resnet18", "resnet34")
        for rest in ("even global M=500000", "tied", "narrow M=500000")
    ]
    assert names(host="mlp", ratios=(0.5,), chunks=(1, 16), lr_scales=("none", "sqrt_r")) == [
        f"mlp even global M/N=0.5 chunk={chunk} lr-scale={scale}" for chunk in (1, 16) for scale in ("none", "sqrt_r")
    ]
    cells = sweep_cells(
        SweepConfig(
            steps=5,
            seeds=2,
            data="rooms",
            host="multitask",
            ratios=(0.5,),
            host_options=("width=4", "variant=rpg"),
            host_variants=("variant=reuse", "variant=reuse-bn,calls=3"),
        )
    )
    assert [(cell.settings["host_options"], cell.seed) for cell in cells] == [
        (options, seed)
        for options in (["width=4", "variant=reuse"], ["width=4", "variant=reuse-bn", "calls=3"])
        for seed in (0, 1)
    ]
    assert len(names(host="mlp")) == 8  # the specified ratios


def test_tied_and_pruned_at_once_run_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--preset", "smoke", "--device", "cpu", "--host", "patch-resnet", "--recipe", "onecycle", "--lr", "0.05"]
    flags += ["--host-options", "width=8", "patch=2", "--steps", "20"]
    assert main(["train", *flags, "--method", "tied", "--out", str(tmp_path / "tied")]) == 0
    assert "1 kernels for 8 layers" in capsys.readouterr().out
    for rounds, kept in (("1", {4608, 576}), ("3", {4608, 2304, 1152, 576})):
        seen: set[int] = set()
        original = NetworkTask.step

        def step(self: NetworkTask, batch: Any, seen: set[int] = seen, original: Any = original) -> Any:
            metrics = original(self, batch)
            assert self.network.pruning is not None
            seen.add(self.network.pruning[0].nonzeros)
            return metrics

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(NetworkTask, "step", step)
            out = ["--out", str(tmp_path / f"pruned-{rounds}")]
            assert main(["train", *flags, "--method", "pruned", "--prune-rounds", rounds, *out]) == 0
        assert seen == kept


def test_plot_a_run(run: Path, tmp_path: Path) -> None:
    assert main(["plot", str(run), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "curves.png").exists()


@pytest.mark.slow
def test_reproduce_smoke_runs_every_kind_of_cell(tmp_path: Path) -> None:
    flags = ["--preset", "smoke", "--device", "cpu", "--quiet", "--out", str(tmp_path / "out")]
    assert main(["reproduce", *flags, "--results", str(tmp_path / "results")]) == 0
    report = json.loads((tmp_path / "results" / "smoke.json").read_text())
    assert report["failed"] == []
    kinds = {" ".join(cell["name"].split()[:2]) for cell in report["cells"]}
    assert kinds == {"digits mlp", "conv digits", "digits eighth"}
    (measured,) = [row for row in report["claims"] if row["measured"] is not None]
    assert measured["id"] == "smoke-loss-halves"  # no row without a verdict
    assert any("afterwards" in title for title in report["tables"])  # keys, pruning and 8 bits ran
    verdicts = {row["id"]: row["verdict"] for row in report["claims"]}
    assert verdicts.pop("smoke-loss-halves") == "pass"
    assert set(verdicts.values()) == {"not-run"}  # seconds of training judge nothing else


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--data", "cifra10"], "cifar10"),
        (["train", "--ring-size", "0"], "--ring-size"),
        (["train", "--dof-ratio", "1.5"], "--dof-ratio"),
        (["train", "--preset", "smoke", "--ring-size", "100000000"], "[1, N = "),
        (["train", "--preset", "smoke", "--exclude", "nothing.*"], "matches no parameter"),
        (["train", "--preset", "smoke", "--host-options", "width=abc"], "mlp: option width: got 'abc'; valid: a whole"),
        (["train", "--preset", "smoke", "--host-options", "width=1.5"], "mlp: option width: got '1.5'; valid: a whole"),
        (["train", "--preset", "smoke", "--host-options", "widht=8"], "did you mean 'width'"),
        (["train", "--preset", "smoke", "--host-options", "in-channels=8"], "mlp: option: got 'in_channels'"),
        (["inspect", "--host", "msblock", "--host-options", "calls=x"], "msblock: option calls: got 'x'"),
        (["train", "--plan", "evn"], "did you mean 'even'"),
        (["sweep", "--methods", "rpg", "narow"], "did you mean 'narrow'"),
        (["train", "--ring-size", "0"], "valid: a number >= 1"),
        (["key", "--model-file", __file__, "--key", "1"], "an undamaged model file"),
        (["train", "--device", "cuda:9"], "--device"),
        (["evaluate", "nowhere"], "config.json"),
        (["fit", "nowhere.json"], "sweep.json"),
        (["plot", "nowhere"], "cells/"),
        (["key", "--model-file", "nowhere.pt"], "--key"),
        (["sweep", "--ring-size", "300"], "--ring-sizes"),
        (["sweep", "--ratios", "0.5", "--ring-sizes", "300"], "one of them"),
        (["sweep", "--resume", "runs/sweep"], "--resume: got 'this flag'; valid: none"),
        (["sweep", "--plans", "reuse", "--chunks", "16"], "permutes nothing"),
        (["sweep", "--host-variants", "variant"], "name=value"),
        (["train", "--prune-rounds", "2"], "--prune-rounds"),
        (["bench", "--only", "nothing"], "--only"),
        (["reproduce", "--preset", "paper", "--data-root", "/nowhere"], "--data-root"),
    ],
)
def test_bad_input_exits_with_2_and_says_what_is_valid(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err + captured.out
    assert "weights_only" not in captured.err
    assert "Traceback" not in captured.err
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"] == []


def test_results_of_another_shape_are_refused_by_their_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = {"ring": 10, "generated": 100, "accuracy": 0.5, "data": "digits"}
    good = [{"name": f"c{n}", "values": {**values, "ring": 10 + n}} for n in range(3)]
    for content, metric in (
        ({"cells": [{"name": "x"}]}, "accuracy"), ({"cells": ["x"]}, "accuracy"), ({"cells": good}, "data"),
    ):  # fmt: skip
        (tmp_path / "cpu.json").write_text(json.dumps(content))
        assert main(["fit", str(tmp_path / "cpu.json"), "--metric", metric]) == 2
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err + shown.out
    (tmp_path / "study" / "cells").mkdir(parents=True)
    (tmp_path / "study" / "cells" / "a.json").write_text('{"name": ')
    assert main(["plot", str(tmp_path / "study")]) == 2
    assert "a.json" in capsys.readouterr().err


def test_verbs_work_on_the_weights_that_train_reported(tmp_path: Path) -> None:
    run = tmp_path / "pruned"
    flags = ["--preset", "smoke", "--device", "cpu", "--quiet", "--method", "pruned", "--compression", "200"]
    assert main(["train", *flags, "--out", str(run)]) == 0
    ended = json.loads((run / "summary.json").read_text())["metrics"]["accuracy"]
    assert main(["evaluate", str(run), "--device", "cpu", "--quiet", "--out", str(tmp_path / "e.json")]) == 0
    assert json.loads((tmp_path / "e.json").read_text())["metrics"]["accuracy"] == pytest.approx(ended)
    assert main(["evaluate", str(run), "--device", "cpu", "--which", "best"]) == 2  # perhaps from before it pruned


def test_a_sweep_runs_its_cells_whole_and_tells_data_apart(tmp_path: Path) -> None:
    small = SweepConfig(steps=5, seeds=1, max_minutes=0.01)
    assert all("max_minutes" not in cell.settings for cell in sweep_cells(small))
    keys = []
    for number in (3, 4):
        root = tmp_path / str(number)
        for part in ("train", "test"):
            for name in CIFAR10:
                (root / "cifar10" / part / name).mkdir(parents=True)
        (root / "cifar10" / "train" / CIFAR10[0] / "x.png").write_bytes(b"x" * number)
        (root / "cifar10" / "train" / f"note{number}").write_bytes(b"x" * number)
        cells = sweep_cells(SweepConfig(steps=5, seeds=1, data="cifar10", data_root=root))
        keys.append([cell.key() for cell in cells])
    assert not set(keys[0]) & set(keys[1])


def test_another_recipe_brings_its_own_rates(tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ["--host", "mlp", "--recipe", "adam", "--ring-init", "unit", "--ring-size", "3000", "--steps", "2"]
    assert main(["train", *flags, "--device", "cpu", "--quiet", "--out", str(run)]) == 0
    saved = json.loads((run / "config.json").read_text())
    assert (saved["recipe"], saved["lr"], saved["ring_lr"]) == ("adam", None, None)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["sweep", "--plan", "hash"], "--plan"),
        (["sweep", "--method", "vanilla"], "--method"),
        (["sweep", "--scope", "layer"], "--scope"),
        (["key", "--key", "5"], "--key"),
        (["train", "--method", "vanilla", "--ring-size", "50"], "--ring-size"),
        (["train", "--method", "vanilla", "--plan", "hash"], "--plan"),
        (["train", "--method", "narrow", "--scope", "layer"], "--scope"),
        (["train", "--method", "narrow", "--chunk", "16"], "--chunk"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert named in capsys.readouterr().err


def test_places_that_cannot_be_written_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for verb in ("prune", "export", "quantize"):
        assert main([verb, str(run), "--device", "cpu", "--out", str(tmp_path / "file" / "x.pt")]) == 2
        assert "--out" in capsys.readouterr().err
    assert main(["prune", str(run), "--device", "cpu", "--target", "host", "--finetune-epochs", "3"]) == 2
    for content in ("[1]", '{"member": "rpg", "seed": null}'):
        other = tmp_path / "other"
        other.mkdir(exist_ok=True)
        (other / "config.json").write_text(content)
        assert main(["evaluate", str(other)]) == 2
        assert "Traceback" not in capsys.readouterr().err
