"""Runs: what a config becomes, what a run leaves behind, what a killed run resumes to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rpg.baselines import MagnitudePruning
from rpg.config import METHODS, TRAIN_PRESETS, UNSIZED, TrainConfig
from rpg.hosts.host import generated_names, parameter_count
from rpg.networks import Shape, build_host, build_network
from rpg.tasks import StepClock, make_task
from rpg.train import MEMBER, measure, open_run, train
from rpg.wrap import RPGModel
from shared.config import UserError
from shared.device import set_seed
from shared.loop import Loop
from shared.metrics import read_metrics

SMOKE = replace(TRAIN_PRESETS["smoke"], device="cpu", quiet=True)
SHAPE = Shape(1, 8, 10)


def rows(folder: Path) -> list[dict[str, Any]]:
    """Metrics without what depends on the clock."""
    clock = ("seconds", "images_per_second", "generation_ms")
    return [{k: v for k, v in row.items() if k not in clock} for row in read_metrics(folder)]


def test_smoke_run_halves_its_loss_and_leaves_a_whole_run_folder(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert train(replace(SMOKE, out=out)) == 0
    losses = [row["loss"] for row in read_metrics(out, "train")]
    assert sum(losses[-10:]) / 10 < 0.5 * losses[0]
    for name in ("config.json", "metrics.jsonl", "summary.json", "model.pt", "figures/curves.png", "tensorboard"):
        assert (out / name).exists(), name
    summary = json.loads((out / "summary.json").read_text())
    assert summary["metrics"]["accuracy"] > 0.5
    logged = {name for row in read_metrics(out) for name in row}
    assert {"lr", "ring_norm", "effective_step", "ring_gradient_norm", "generation_ms", "mean_abs_cosine"} <= logged
    held_out = list(read_metrics(out, "eval"))
    assert all(row["dof"] == build_network(SMOKE, SHAPE).parameters for row in held_out)
    assert all(row["accuracy"] <= row["top5"] <= 1 for row in held_out)


def test_only_training_steps_are_on_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(100))
    monkeypatch.setattr("rpg.tasks.time.perf_counter", lambda: float(next(now)))
    clock = StepClock()
    clock.begin()  # the first step, at 0, is not counted
    clock.begin()  # at 1
    clock.pause()  # evaluation begins at 2
    assert (clock.steps, clock.seconds) == (1, 1.0)
    for _ in range(50):  # it takes long
        next(now)
    clock.pause()
    clock.begin()
    clock.begin()
    assert clock.steps == 2
    assert clock.seconds < 4


def test_a_ring_without_normalisation_is_told_of_its_rate_once_unless_the_rate_was_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    untuned = replace(SMOKE, steps=1, recipe="onecycle", lr=0.01, ring_lr=None, quiet=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*normalisation.*")
        train(replace(untuned, out=tmp_path / "a"))
        assert capsys.readouterr().err.count("feed no normalisation") == 1
        for place, settled in enumerate((replace(untuned, quiet=True), replace(SMOKE, steps=1, quiet=False))):
            train(replace(settled, out=tmp_path / str(place)))
            assert "normalisation" not in capsys.readouterr().err


def test_free_parameters_are_an_eighth_and_no_host_weight_is_a_parameter() -> None:
    network = build_network(replace(SMOKE, compression=8.0), SHAPE)
    assert isinstance(network.module, RPGModel)
    assert network.ring == round(network.generated / 8)
    assert network.parameters == sum(p.numel() for p in network.module.parameters())
    plain = build_host(SMOKE, SHAPE)
    assert not set(generated_names(plain)) & {name for name, _ in network.module.host.named_parameters()}


def test_the_step_of_the_weights_is_read_off_the_ring_alone(tmp_path: Path) -> None:
    config = replace(SMOKE, out=tmp_path / "run", steps=1, log_every=1)
    task = make_task(config)
    loop = Loop(task, config, MEMBER)
    set_seed(config.seed)  # as the loop does
    task.start(loop)
    assert task.model is not None
    before = torch.cat([w.detach().flatten() for w in task.model.weights().values()]).clone()
    assert loop.folder is not None
    loop.folder.discard()
    Loop(task, config, MEMBER).run()
    after = torch.cat([w.detach().flatten() for w in task.model.weights().values()])
    expected = (after - before).norm() / after.norm()
    assert next(read_metrics(tmp_path / "run", "train"))["effective_step"] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_within_the_budget_of_the_ring(method: Any) -> None:
    config = replace(SMOKE, method=method, steps=120, host="mlp")
    if method == "low-rank":  # the classifier is left with rank 1, and learns slowly
        config = replace(config, lr=1e-2)
    values = measure(config)
    ring = measure(replace(config, method="rpg", steps=1))
    if method not in UNSIZED:
        assert values["parameters"] <= ring["parameters"]
    assert values["accuracy"] > 0.2


def test_pruned_baseline_ends_with_exactly_the_rings_number_of_weights() -> None:
    config = replace(SMOKE, method="pruned", steps=40)
    task = make_task(config)
    Loop(task, config, MEMBER, folder=False).run()
    assert task.network.pruning is not None
    pruning, keep = task.network.pruning
    assert isinstance(pruning, MagnitudePruning)
    assert pruning.nonzeros == keep == config.ring_numbers(pruning.total)


def test_methods_see_the_same_batches() -> None:
    tasks = [make_task(replace(SMOKE, method=method)) for method in ("rpg", "narrow")]
    firsts = []
    for task in tasks:
        Loop(task, replace(task.config, steps=1), MEMBER, folder=False).run()
        firsts.append(next(iter(task.batches())))  # pyright: ignore
    assert torch.equal(firsts[0][0], firsts[1][0])


def test_a_whole_ring_with_equal_constants_learns_as_the_plain_network() -> None:
    """M = N: the same network in other coordinates. The draws differ, so the curves agree in distribution only; the
    exact identity is tested on matched starts in test_wrap."""
    plain = measure(replace(SMOKE, method="vanilla", lr=3e-3, ring_lr=None))
    whole = measure(replace(SMOKE, compression=1.0, lr=3e-3, ring_lr=3e-3, ring_init="fan_in"))
    assert whole["ring"] == whole["generated"]
    assert abs(whole["accuracy"] - plain["accuracy"]) < 0.08


def test_evaluating_a_run_gives_the_metrics_it_ended_with(tmp_path: Path) -> None:
    train(replace(SMOKE, out=tmp_path / "run"))
    task, _, step = open_run(tmp_path / "run", which="newest", device="cpu")
    assert step == SMOKE.steps
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert task.measure()["accuracy"] == pytest.approx(summary["metrics"]["accuracy"])


def test_killed_and_resumed_run_is_the_run_never_killed(tmp_path: Path) -> None:
    flags = ["--preset", "smoke", "--device", "cpu", "--quiet", "--checkpoint-every", "8", "--log-every", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(*arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "rpg", "train", *map(str, arguments)]
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    whole = start("--out", tmp_path / "whole", *flags)
    assert whole.wait(120) == 0
    killed = start("--out", tmp_path / "killed", *flags)
    metrics = tmp_path / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while (not metrics.exists() or metrics.read_bytes().count(b"\n") < 30) and time.monotonic() < deadline:
        time.sleep(0.001)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(30) == -signal.SIGKILL
    resumed = start("--resume", tmp_path / "killed")
    assert resumed.wait(120) == 0, resumed.communicate()
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")


def test_accumulated_step_is_the_step_of_the_whole_batch(tmp_path: Path) -> None:
    def losses(folder: Path, accumulate: int) -> list[float]:
        train(replace(SMOKE, out=folder, steps=15, accumulate=accumulate))
        return [row["loss"] for row in read_metrics(folder, "train")]

    assert losses(tmp_path / "4", 4) == pytest.approx(losses(tmp_path / "1", 1), rel=1e-4)


def test_narrow_baseline_is_the_widest_that_fits() -> None:
    config = replace(SMOKE, method="narrow", compression=8.0)
    network = build_network(config, SHAPE)
    width = int(network.note.split()[1])
    ring = build_network(replace(config, method="rpg"), SHAPE)
    wider = parameter_count(build_host(config, SHAPE, width=width + 1))
    assert network.parameters <= ring.parameters < wider


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"host": "hourglass"}, "--host"),
        ({"ring_size": 10**9}, r"\[1, N = \d+\]"),
        ({"include": ("nothing.*",)}, "matches no parameter"),
        ({"host_options": ("widht=3",)}, "widht"),
        ({"host_options": ("width",)}, "name=value"),
        ({"compression": 2.0, "ring_size": 5}, "one of them"),
        ({"dof_ratio": 1.5, "compression": None}, r"\(0, 1\]"),
        ({"plan": "evn"}, "did you mean 'even'"),
        ({"data": "cifar10", "data_root": Path("/nowhere")}, "--data-root"),
        ({"batch_size": 10**6}, "--batch-size"),
        ({"chunk": 7, "ring_size": 3232}, "divisor"),
        ({"rings": ("body.0.weight",)}, "pattern=ring"),
        ({"rings": ("*=a",), "scope": "layer"}, "one of them"),
        ({"rings": ("nothing=a",)}, "matches no generated parameter"),
        ({"rings": ("*=a", "*=b")}, "'a' and 'b'"),
    ],
)
def test_refusals_name_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        measure(replace(SMOKE, **({"compression": None} | changes)))


def test_rings_can_be_listed_by_pattern() -> None:
    config = replace(SMOKE, host="patch-resnet", data="mnist5k", rings=("*conv1.weight=first", "*conv2.weight=second"))
    network = build_network(config, Shape(1, 28, 10))
    assert isinstance(network.module, RPGModel)
    assert list(network.module.rings) == ["first", "second"]
    generated = [slot.ring for slot in network.module.slots if "conv1" in slot.name]
    assert generated
    assert set(generated) == {"first"}


def test_an_implicit_models_solves_are_logged(tmp_path: Path) -> None:
    config = replace(
        SMOKE, method="vanilla", host="msblock", data="digits", host_options=("mode=deq",), recipe="onecycle", lr=0.05,
        steps=2, log_every=1, batch_size=16, max_train=64, max_test=32, out=tmp_path / "run",
    )  # fmt: skip
    assert train(config) == 0
    for row in read_metrics(tmp_path / "run", "train"):
        assert 1 <= row["deq_forward_iterations"] <= 18
        assert 1 <= row["deq_backward_iterations"] <= 20
        assert 0 < row["deq_forward_residual"] < 1
        assert 0 < row["deq_backward_residual"] < 1
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert 1 <= summary["metrics"]["deq_forward_iterations"] <= 18


def test_presets_are_configs_under_their_own_names() -> None:
    assert {name: preset.preset for name, preset in TRAIN_PRESETS.items()} == {n: n for n in TRAIN_PRESETS}
    assert isinstance(TRAIN_PRESETS["cpu"], TrainConfig)


@pytest.mark.gpu
def test_gpu_run_in_half_precision_learns(tmp_path: Path) -> None:
    config = replace(SMOKE, host="patch-resnet", data="mnist5k", recipe="onecycle", lr=0.1, ring_lr=0.1, device="cuda")
    assert measure(replace(config, steps=200))["accuracy"] > 0.7
