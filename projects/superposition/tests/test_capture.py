"""Steps that are recorded and replayed are the steps."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from shared.capture import CudaGraphs, Graphs
from shared.elsewhere import PretendedGraphs, elsewhere
from shared.loop import Loop
from superposition.config import TRAIN_PRESETS
from superposition.contexts import Contexts
from superposition.task import StreamTask
from superposition.train import resolved, train

SMALL = replace(
    TRAIN_PRESETS["smoke"], device="cpu", quiet=True, period=12, width=16, eval_every=6, tasks=2, max_train=300,
    max_test=200, batch_size=16, log_every=3,
)  # fmt: skip


class Replaying(StreamTask):
    """Replays steps on any device."""

    def graphs(self) -> Graphs | None:
        return PretendedGraphs()


def run(task: StreamTask) -> tuple[StreamTask, list[dict[str, Any]]]:
    rows = []
    step = task.step

    def noted(batch: Any) -> dict[str, Any]:
        metrics = step(batch)
        rows.append({name: float(value) for name, value in metrics.items()})
        return metrics

    task.step = noted
    Loop(task, task.config, "superposition", folder=False).run()
    return task, rows


def recorded(task: StreamTask) -> int:
    return 0 if task._captured is None else task._captured.recorded


@pytest.mark.parametrize(
    ("fields", "recordings"),
    [
        ({"kind": "binary"}, 2), ({"kind": "rotation", "optimizer": "sgd", "momentum": 0.9}, 2),
        ({"kind": "power"}, 2), ({"kind": "complex", "learn_context": True}, 2),
        ({"kind": "binary", "learn_context": True, "weight_decay": 0.01}, 2),
        ({"kind": "permutation", "stream": "permuting-labels"}, 2),
        ({"method": "standard"}, 2), ({"method": "multi-head"}, 2), ({"method": "separate"}, 2),
        ({"method": "joint"}, 1),
        ({"stream": "rotating", "contexts": 2}, 2),  # contexts that come again are not recorded again
        ({"kind": "power", "schedule": "continuous"}, 0),
        ({"kind": "complex", "schedule": "random", "contexts": 50}, 0),
        ({"method": "ewc", "fisher_samples": 20}, 0), ({"method": "si"}, 0), ({"method": "agem"}, 0),
        ({"capture": False}, 0),
        ({"stream": "split", "net": "small-resnet", "bn": "per-task", "width": 256, "max_train": 100}, 2),
    ],
)  # fmt: skip
def test_replayed_steps_are_the_steps(fields: dict[str, Any], recordings: int) -> None:
    config = resolved(replace(SMALL, **fields))
    plain, expected = run(StreamTask(config))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that steps are not recorded
        replaying, rows = run(Replaying(config))
    assert plain._captured is None
    assert recorded(replaying) == recordings
    assert rows == expected
    mine, theirs = replaying.network.state_dict(), plain.network.state_dict()
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(mine[name], value), name
    assert replaying.record.history == plain.record.history


@pytest.mark.parametrize("kind", ["binary", "rotation", "complex"])
def test_contexts_are_not_drawn_while_a_step_is_recorded(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Under bf16 an evaluation looks at layers in single precision, for which contexts are made anew.
    recording, drawn = [], []
    record, draw = PretendedGraphs.record, Contexts._draw

    def recorded_now(self: Any, function: Any) -> Any:
        recording.append(1)
        try:
            return record(self, function)
        finally:
            recording.pop()

    def noted(self: Any, *arguments: Any) -> Any:
        drawn.extend(recording)
        return original[type(self)](self, *arguments)

    original = {}
    for family in leaves(Contexts):
        if family._draw is not draw:
            original[family] = family._draw
            monkeypatch.setattr(family, "_draw", noted)
    monkeypatch.setattr(PretendedGraphs, "record", recorded_now)
    config = replace(SMALL, kind=kind, precision="bf16", tasks=3, eval_every=14)  # right before a recording
    task, _ = run(Replaying(resolved(config)))
    assert recorded(task) == 3
    assert drawn == []


def leaves(family: type) -> list[type]:
    below = family.__subclasses__()
    return [leaf for each in below for leaf in leaves(each)] if below else [family]


@pytest.mark.parametrize("kind", ["binary", "rotation", "local-mix", "complex"])
def test_nothing_of_a_recorded_step_comes_from_the_cpu(kind: Any) -> None:
    with elsewhere(), warnings.catch_warnings():
        warnings.simplefilter("error")
        task, _ = run(Replaying(resolved(replace(SMALL, device="meta", kind=kind, contexts=4, optimizer="sgd"))))
    assert recorded(task) == 2


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["rmsprop", "adam", "sgd"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["binary", "complex", "rotation", "permutation"])
def test_replayed_steps_are_the_steps_on_a_gpu(kind: Any, optimizer: Any, precision: Any) -> None:
    config = resolved(replace(SMALL, device="cuda", kind=kind, optimizer=optimizer, precision=precision, period=50))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not recorded")
        plain, expected = run(StreamTask(replace(config, capture=False)))
        replaying, rows = run(StreamTask(config))
    assert isinstance(replaying.graphs(), CudaGraphs)
    assert recorded(replaying) == 2
    for row, other in zip(rows, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-3, abs=1e-5)
    for name, value in plain.network.state_dict().items():
        torch.testing.assert_close(replaying.network.state_dict()[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize(("first", "then"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_a_run_goes_on_on_another_device(first: str, then: str, tmp_path: Path) -> None:
    config = replace(SMALL, device=first, out=tmp_path / "run", optimizer="adam", checkpoint_every=6, max_minutes=1e-9)
    train(resolved(config))
    train(replace(resolved(config), device=then, out=None, resume=tmp_path / "run", max_minutes=None))
