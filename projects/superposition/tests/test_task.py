"""Runs: what is learned under which key, resumption, what a checkpoint refuses, metrics of forgetting."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from shared.config import RunFailed, UserError
from shared.loop import Loop
from superposition.config import METHODS, TRAIN_PRESETS, TrainConfig
from superposition.kinds import KINDS
from superposition.metrics import backward_transfer, forgetting, off_diagonal, select_context, spread
from superposition.nets import Superposed, count_parameters
from superposition.norm import PerTaskBatchNorm2d
from superposition.task import Record, Spec, StreamTask
from superposition.train import measure, open_run, resolved, train

SMALL = replace(TRAIN_PRESETS["smoke"], device="cpu", quiet=True, period=40, width=32, eval_every=40)


# Reflections along one direction leave nearly all of a weight as it is, mixed phases stay alike.
WEAK = ("householder", "local-mix")


def ran(**fields: Any) -> StreamTask:
    config = resolved(replace(SMALL, **fields))
    task = StreamTask(config)
    Loop(task, config, "superposition", folder=False).run()
    return task


@pytest.mark.parametrize("method", [m for m in METHODS if m != "psp"])
def test_every_method_learns_the_last_task(method: Any) -> None:
    task = ran(method=method, period=60)
    assert task.on_task(2) > 0.5
    if method == "separate":
        assert min(task.on_task(j) for j in range(3)) > 0.5


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("none", "ternary", "mask", "normal", *WEAK)])
def test_superposition_keeps_old_tasks_and_hides_them_from_other_keys(kind: Any) -> None:
    task = ran(kind=kind, period=60, width=64, contexts=6)
    own = [task.on_task(j) for j in range(3)]
    wrong = task.wrong_context(task.key_matrix())
    assert min(own) > 0.6
    assert wrong is not None
    assert wrong < min(own) - 0.2


@pytest.mark.parametrize(
    "fields",
    [{"kind": k} for k in ("none", "binary", "complex", "power", "rotation")] + [{"method": m} for m in METHODS[1:]],
)
def test_mixed_precision_runs_whole_and_learns(fields: dict[str, Any]) -> None:
    task = ran(**fields, period=60, tasks=2, precision="bf16")
    assert task.on_task(1) > 0.5
    found = task.noise()
    assert (len(found) > 0) == (isinstance(task.network, Superposed) and fields.get("method") != "joint")
    for value in found.values():
        assert 0 < value < 100


@pytest.mark.parametrize(("method", "more"), [("agem", {"memory": 20}), ("ewc", {"consolidation": "online"})])
def test_where_tasks_come_again_baselines_take_stock_of_each_once(method: Any, more: dict[str, Any]) -> None:
    turning = {"stream": "rotating", "tasks": 3, "period": 40, "contexts": 4, **more}
    task = ran(method=method, **turning)
    if method == "agem":
        assert task.regulariser.x is not None  # pyright: ignore
        assert len(task.regulariser.x) == 4 * 20  # pyright: ignore
    with pytest.raises(UserError, match="online"):
        replace(SMALL, **{**turning, "method": "ewc", "consolidation": "separate", "memory": 256})


def test_the_standard_network_forgets_what_superposition_keeps() -> None:
    standard, binary = ran(method="standard", period=60, width=64), ran(period=60, width=64)
    assert binary.on_task(0) > standard.on_task(0) + 0.1
    assert standard.key(2) == 2
    assert count_parameters(standard.network) == count_parameters(binary.network)


@pytest.mark.parametrize(
    "fields",
    [
        {"stream": "rotating", "tasks": 2, "period": 40, "contexts": 4},
        {"stream": "rotating", "tasks": 1, "period": 40, "contexts": 4, "kind": "power", "schedule": "continuous"},
        {"stream": "rotating", "tasks": 1, "period": 40, "contexts": 40, "kind": "local-mix", "schedule": "random"},
        {"stream": "permuting-labels"},
        {"stream": "split", "tasks": 2, "bn": "per-task", "net": "small-resnet", "period": 3, "width": 256},
        {"stream": "split", "tasks": 2, "net": "small-resnet", "period": 3, "method": "si", "width": 256},
        {"kind": "complex", "part": "real"},
        {"kind": "binary", "learn_context": True, "optimizer": "adam", "weight_decay": 0.01},
        {"method": "ewc", "consolidation": "online", "gamma": 0.9, "fisher": "empirical"},
        {"schedule": "constant"},
        {"schedule": "period", "context_every": 10, "contexts": 3},
        {"quirks": "authors"},
        {"widths": (20, 10)},
    ],
)
def test_every_stream_and_option_runs_and_is_measured(fields: dict[str, Any]) -> None:
    values = measure(replace(SMALL, **fields))
    assert 0 <= values["task1"] <= 1
    assert values["history"]
    assert all(isinstance(value, float) for value in values["tasks"])


def test_a_run_is_measured_under_the_keys_it_was_trained_with() -> None:
    task = ran(tasks=4, steps=100)  # stops in the third task
    matrix = task.key_matrix()
    assert [row[0] is None for row in matrix] == [False, False, False, True]
    final = task.final()
    assert final["untrained"] == 1
    assert "task1_loss" not in final


def test_a_key_that_was_not_reached_is_untrained_though_its_task_was_seen() -> None:
    """Contexts held for 10 of a task's 40 steps: task 1's key is that of its middle, which step 50 does not reach."""
    fields = {"tasks": 4, "schedule": "period", "context_every": 10, "contexts": 16}
    task = ran(steps=50, **fields)
    assert 1 in task.record.seen
    assert task.key(1) == 6
    assert [row[0] is None for row in task.key_matrix()] == [False, True, True, True]
    assert task.final()["untrained"] == 3
    assert task.trained_key(6) is None
    assert ran(steps=70, **fields).trained_key(6) == 1


def test_real_contexts_are_compared_and_kept_in_checkpoints() -> None:
    task = ran(kind="power", schedule="continuous", context_rate=0.25, tasks=2, period=40)
    assert 0.25 in task.record.used
    assert 0 < task.final()["context_cosine"] < 1
    assert task.record.state_dict()["used"][:3] == [0, 0.25, 0.5]
    other = Record()
    other.load_state_dict(task.record.state_dict())
    assert other.used == task.record.used


def test_a_killed_cell_goes_on_to_what_it_would_have_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measure(SMALL)
    step, calls = StreamTask.step, []

    def mortal(self: StreamTask, batch: Any) -> Any:
        calls.append(self.loop.step)
        if len(calls) == 60:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(StreamTask, "step", mortal)
    with pytest.raises(KeyboardInterrupt):
        measure(SMALL, scratch=tmp_path)
    again = measure(SMALL, scratch=tmp_path)
    assert calls[60] == 40  # the last evaluation, and the checkpoint with it
    clocks = ("train_seconds",)
    assert {k: v for k, v in again.items() if k not in clocks} == {k: v for k, v in whole.items() if k not in clocks}


def test_values_are_spread_evenly() -> None:
    assert spread([3, 5], 4) == [3, 5]
    assert spread(range(100), 4) == [0, 33, 66, 99]


def test_the_matrix_after_every_task_gives_forgetting() -> None:
    task = ran(matrix=True, method="standard")
    after = task.record.after
    assert [len(row) for row in after] == [1, 2, 3]
    assert after[2] == pytest.approx([task.on_task(j) for j in range(3)])
    final = task.final()
    assert final["forgetting"] == pytest.approx(forgetting(after))
    assert final["task1_loss"] == pytest.approx(after[0][0] - after[2][0])


def test_weak_families_bind_weakly() -> None:
    """What the names promise and no more: a reflection along one direction hardly changes a weight."""
    task = ran(kind="householder", period=60, width=64)
    wrong = task.wrong_context(task.key_matrix())
    assert wrong is not None
    assert wrong > 0.2


@pytest.mark.parametrize("stream", ["permuting", "rotating", "permuting-labels", "split"])
@pytest.mark.parametrize(
    ("method", "fields"), [("ewc", {"strength": 100.0}), ("si", {"strength": 100.0}), ("agem", {})]
)
def test_a_baseline_is_not_the_standard_network_under_another_name(
    stream: Any, method: Any, fields: dict[str, Any]
) -> None:
    more = {"contexts": 4} if stream == "rotating" else {}
    fields = {**fields, "consolidation": "online"} if (stream, method) == ("rotating", "ewc") else fields
    common = {"stream": stream, "tasks": 2, "lr": 3e-3, **more}
    plain, other = ran(method="standard", **common), ran(method=method, **common, **fields)
    assert any(
        not torch.equal(a, b) for a, b in zip(plain.network.parameters(), other.network.parameters(), strict=True)
    )


@pytest.mark.parametrize("method", ["ewc", "multi-head", "separate"])
def test_statistics_for_every_task_go_with_every_method(method: Any) -> None:
    task = ran(stream="split", tasks=2, net="small-resnet", width=256, period=4, method=method, bn="per-task")
    norms = [m for m in task.network.modules() if isinstance(m, PerTaskBatchNorm2d)]
    kept = [m.mean[1].abs().sum() for m in norms]
    assert all(float(value) > 0 for value in (kept[len(kept) // 2 :] if method == "separate" else kept))
    x = task.test(1)[0][:5]
    plain = task.network.retrieve(1).eval()
    task.network.eval()
    torch.testing.assert_close(plain(x), task.network(x, 1))
    assert not [m for m in plain.modules() if isinstance(m, PerTaskBatchNorm2d)]


def test_joint_training_draws_every_task_and_no_key() -> None:
    task = ran(method="joint", tasks=3, period=60)
    assert task.wrong_context(task.key_matrix()) is None
    assert [task.key(j) for j in range(3)] == [0, 0, 0]
    x, y = task._batch(7)
    j = task.task_of(7)
    same = task.stream.of_task(j, task.stream.chosen(7, task.stream.size(j), j))
    assert torch.equal(x, same[0])
    assert torch.equal(y, same[1])


def test_metrics_of_forgetting_on_known_numbers() -> None:
    after = [[0.9], [0.5, 0.8], [0.6, 0.7, 0.95]]
    assert forgetting(after) == pytest.approx(((0.9 - 0.6) + (0.8 - 0.7) + 0) / 3)
    assert forgetting([[0.5], [0.7, 0.8]]) == 0  # better than ever is not forgotten
    assert backward_transfer(after) == pytest.approx((-0.3 - 0.1) / 2)
    assert off_diagonal([[1.0, 0.1], [None, None]]) == pytest.approx(0.1)
    assert off_diagonal([[None]]) is None


def test_the_context_of_least_entropy_is_taken() -> None:
    class Sure(torch.nn.Module):
        def forward(self, x: torch.Tensor, k: int) -> torch.Tensor:
            return x * (10.0 if k == 3 else 0.1)

    assert select_context(Sure(), torch.randn(8, 4), [0, 3, 5]) == 3


def test_noise_of_layers_is_none_right_after_the_first_task_and_grows() -> None:
    task = ran(tasks=1)
    assert max(task.noise().values()) == 0
    later = ran(tasks=3, method="standard")
    quiet = ran(tasks=3)
    assert isinstance(quiet.network, Superposed)
    assert len(later.noise()) == 4
    assert sum(later.noise().values()) > sum(quiet.noise().values()) > 0
    assert len(ran(kind="complex").noise()) == 4
    turning = ran(stream="rotating", tasks=1, period=40, contexts=4)
    assert min(turning.noise().values()) > 0


def rows(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in found]


FLAGS = ["--preset", "smoke", "--device", "cpu", "--quiet", "--checkpoint-every", "20", "--log-every", "1"]


def test_killed_and_resumed_is_never_stopped(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "superposition", "train", *FLAGS, "--kind", "rotation"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    outright = [*command, "--out", str(tmp_path / "whole")]
    whole = subprocess.run(outright, env=environment, capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen([*command, "--out", str(tmp_path / "cut")], env=environment)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "cut" / "checkpoints").glob("*80*")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if not (tmp_path / "cut" / "summary.json").exists():
        resume = [sys.executable, "-m", "superposition", "train", "--resume", str(tmp_path / "cut"), "--quiet"]
        again = subprocess.run(resume, env=environment, capture_output=True, text=True)
        assert again.returncode == 0, again.stderr
    assert same_runs(tmp_path / "cut", tmp_path / "whole")


def same_runs(one: Path, other: Path) -> bool:
    """Whether two runs have the same metrics at every step, and the same matrix of keys and tasks."""
    matrices = [json.loads((folder / "matrix.json").read_text()) for folder in (one, other)]
    return rows(one) == rows(other) and matrices[0] == matrices[1]


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "ewc"},
        {"method": "si"},
        {"method": "agem"},
        {"kind": "binary", "learn_context": True, "optimizer": "adam"},
        {"kind": "power", "schedule": "continuous", "context_rate": 0.1},
    ],
)
def test_what_a_method_knows_is_in_its_checkpoint(
    tmp_path: Path, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off without warning in the second task, and gone on with from the last checkpoint."""
    config = replace(SMALL, checkpoint_every=20, log_every=1, **fields)
    train(replace(config, out=tmp_path / "whole"))
    step = StreamTask.step

    def mortal(self: StreamTask, batch: Any) -> Any:
        if self.loop.step == 71:
            raise KeyboardInterrupt
        return step(self, batch)

    with monkeypatch.context() as patched:
        patched.setattr(StreamTask, "step", mortal)
        with pytest.raises(KeyboardInterrupt):
            train(replace(config, out=tmp_path / "cut"))
    assert rows(tmp_path / "cut")[-1]["step"] == 71
    train(replace(config, out=tmp_path / "cut", resume=tmp_path / "cut"))
    assert same_runs(tmp_path / "cut", tmp_path / "whole")


def test_a_checkpoint_of_other_contexts_says_which(tmp_path: Path) -> None:
    train(replace(SMALL, out=tmp_path / "run", tasks=1, period=5, eval_every=5))
    task, step = open_run(tmp_path / "run", "cpu")
    assert step == 5
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert task.first() == pytest.approx(summary["metrics"]["task1"])
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    for name, value in (("kind", "permutation"), ("width", 48), ("context_seed", 9)):
        path.write_text(json.dumps({**config, name: value}))
        with pytest.raises(UserError, match={"width": "hidden"}.get(name, name)):
            open_run(tmp_path / "run", "cpu")
    with pytest.raises(UserError, match="kind"):
        Spec({"kind": "binary"}).load_state_dict({"kind": "complex"})


def test_a_loss_that_is_not_finite_stops_and_names_the_task(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"loss.*step.*task 0 of the stream"):
        train(replace(SMALL, out=tmp_path / "run", optimizer="sgd", lr=1e30))
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize(
    ("fields", "flag"),
    [
        ({"steps": 121, "matrix": True}, "--steps"),
        ({"steps": 121, "method": "ewc"}, "--steps"),
        ({"kind": "power", "schedule": "continuous", "contexts": 3, "context_rate": 0.1}, "--context-rate"),
    ],
)
def test_what_would_run_off_an_end_is_refused(fields: dict[str, Any], flag: str) -> None:
    with pytest.raises(UserError) as caught:
        replace(SMALL, **fields)
    assert caught.value.field == flag


def test_circles_and_joint_training_may_go_on() -> None:
    assert replace(SMALL, steps=500, stream="rotating", contexts=4).planned_steps == 500
    assert replace(SMALL, steps=500, method="joint").planned_steps == 500
    assert replace(SMALL, kind="power", schedule="continuous", contexts=13, context_rate=0.1).planned_steps == 120


def test_a_config_knows_its_streams() -> None:
    assert TrainConfig(stream="split", data="cifar100", classes_per_task=5, tasks=20).possible_tasks == 20
    assert TrainConfig(tasks=7, period=11).planned_steps == 77
    assert TrainConfig(stream="rotating", period=1000).context_count == 10
    assert not TrainConfig(quirks="authors").has_bias
    assert TrainConfig(quirks="authors", kind="rotation").has_bias
