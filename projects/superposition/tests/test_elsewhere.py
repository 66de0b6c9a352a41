"""Whole runs on a pretended accelerator: nothing of them is left on the CPU that a GPU would miss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from shared.elsewhere import elsewhere
from superposition.commands import offline_cell
from superposition.config import TRAIN_PRESETS
from superposition.train import measure

SMALL = replace(
    TRAIN_PRESETS["smoke"], device="meta", quiet=True, period=6, width=16, eval_every=6, tasks=2, max_train=300,
    max_test=200, batch_size=16,
)  # fmt: skip


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "binary"}, {"kind": "rotation"}, {"kind": "power", "schedule": "continuous"},
        {"kind": "complex", "learn_context": True}, {"kind": "hadamard", "schedule": "random", "width": 32},
        {"method": "separate"}, {"method": "multi-head"}, {"method": "joint"}, {"method": "si"}, {"method": "agem"},
        {"method": "ewc", "fisher_samples": 20}, {"stream": "rotating", "contexts": 3},
        {"stream": "permuting-labels", "kind": "permutation"},
        {"stream": "split", "net": "small-resnet", "bn": "per-task", "width": 256, "max_train": 100},
    ],
)  # fmt: skip
def test_runs(fields: dict[str, Any]) -> None:
    with elsewhere():
        select = not {"method", "net"} & set(fields)
        assert 0 <= measure(replace(SMALL, **fields), select)["average"] <= 1


def test_superposition_after_training() -> None:
    with elsewhere():
        found = offline_cell(2, 16, 5, 3, 0, "meta", "digits")
    assert all(layer["ratio"] > 0 for layer in found["layers"].values())
