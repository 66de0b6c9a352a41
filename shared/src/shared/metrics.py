"""`metrics.jsonl` and TensorBoard events: one row a step, whole lines only, safe to read while a run is writing."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from shared.config import UserError
from shared.run import writing

CHECKPOINTS_STAY = "Checkpoints written so far are intact."


class MetricsWriter:
    """Appends rows of scalars to `folder/metrics.jsonl` and to TensorBoard event files in `folder/tensorboard`.

    A row is `{"step": int, "split": "train" | "eval", name: value, ...}`. Rows of one call go out in one write, so
    a reader (or a kill) sees whole lines. On resume, rows after `keep_until` are dropped: those steps run again.

    Args:
        folder: the run's folder.
        keep_until: last step whose rows stay; None for a new run.

    Raises:
        UserError: (when writing) the disk is full or refuses the write.
    """

    def __init__(self, folder: Path, keep_until: int | None = None) -> None:
        self.path = folder / "metrics.jsonl"
        if keep_until is not None and self.path.exists():
            kept = [row for row in read_metrics(self.path) if row["step"] <= keep_until]
            self.path.write_text("".join(_line(row) for row in kept), encoding="utf-8")
        self._file = open(self.path, "a", encoding="utf-8")
        self._board: Any = None
        self._board_folder = folder / "tensorboard"
        self._purge = None if keep_until is None else keep_until + 1

    def write(self, rows: Iterable[Mapping[str, Any]], board: bool = True) -> None:
        """Append rows; the last of them also goes to TensorBoard, where every step would be needlessly heavy."""
        rows = list(rows)
        if not rows:
            return
        with writing(self.path, "metrics", CHECKPOINTS_STAY):
            self._file.write("".join(_line(row) for row in rows))
            self._file.flush()
        if board:
            with writing(self._board_folder, "TensorBoard events", CHECKPOINTS_STAY):
                self._to_board(rows[-1])

    def _to_board(self, row: Mapping[str, Any]) -> None:
        if self._board is None:
            # Imported late: it costs half a second, which a run of a few seconds need not pay before it starts.
            from torch.utils.tensorboard.writer import SummaryWriter

            self._board = SummaryWriter(str(self._board_folder), purge_step=self._purge)
        split = row.get("split", "train")
        for name, value in row.items():
            if name not in ("step", "split") and isinstance(value, (int, float)):
                self._board.add_scalar(f"{split}/{name}", value, row["step"])

    def add_figure(self, name: str, figure: Any, step: int) -> None:
        """Show a matplotlib figure in TensorBoard as well."""
        self._to_board({"step": step})
        self._board.add_figure(name, figure, step, close=False)

    def close(self) -> None:
        # Every row was flushed when it came: what cannot be written now has been refused then.
        with contextlib.suppress(OSError):
            self._file.close()
        if self._board is not None:
            with contextlib.suppress(OSError):
                self._board.close()


def _line(row: Mapping[str, Any]) -> str:
    # JSON has no NaN: a value that is not finite is written as null, and the loop has already named it.
    clean = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()
    }
    return json.dumps(clean) + "\n"


def read_metrics(path: Path, split: str | None = None) -> Iterator[dict[str, Any]]:
    """Rows of a `metrics.jsonl` (or of the run folder that holds one). A last line still being written is skipped.

    Raises:
        UserError: there is no such file.
    """
    if path.is_dir():
        path = path / "metrics.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        raise UserError("run folder", path, "a folder that holds metrics.jsonl, written by `train`") from None
    for line in lines:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if split is None or row.get("split") == split:
            yield row
