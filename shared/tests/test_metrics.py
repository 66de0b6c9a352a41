"""Metrics files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from shared.config import UserError
from shared.metrics import MetricsWriter, read_metrics


def test_rows_are_readable_while_the_writer_is_open_and_a_torn_line_is_skipped(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    writer.write([{"step": 1, "split": "train", "loss": 2.0}, {"step": 2, "split": "train", "loss": float("inf")}])
    with open(tmp_path / "metrics.jsonl", "a") as handle:
        handle.write('{"step": 3, "spl')
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path)] == [(1, 2.0), (2, None)]
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()[:2]] == [1, 2]
    writer.close()


def test_rows_after_the_checkpoint_are_dropped_on_resume(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    writer.write([{"step": step, "split": "train"} for step in range(1, 6)])
    writer.close()
    writer = MetricsWriter(tmp_path, keep_until=3)
    writer.write([{"step": 4, "split": "train", "again": 1.0}])
    writer.close()
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4]
    assert [row["step"] for row in read_metrics(tmp_path, "eval")] == []


def test_tensorboard_shows_the_last_row_of_each_write(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    writer.write([{"step": step, "split": "train", "loss": 1.0 / step} for step in (1, 2)])
    writer.write([{"step": 2, "split": "eval", "accuracy": 0.5}])
    writer.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(2, 0.5)]
    assert [(e.step, e.value) for e in events.Scalars("eval/accuracy")] == [(2, 0.5)]


def test_missing_metrics_are_refused_by_path(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics\.jsonl"):
        list(read_metrics(tmp_path))


def test_full_disk_is_named_with_the_path_and_closing_does_not_hide_it(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    writer = MetricsWriter(tmp_path)
    with pytest.raises(UserError, match=r"metrics\.jsonl(?s:.*)no space left on the device.*intact"):
        writer.write([{"step": 1, "loss": 0.5}])
    writer.close()
