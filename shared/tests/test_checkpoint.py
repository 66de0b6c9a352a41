"""Checkpoints: whole or not there, harmless to load, and the one before is always at hand."""

from __future__ import annotations

import pickle
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from shared.checkpoint import Checkpoints, load_file
from shared.config import UserError


def state(value: float) -> dict[str, Any]:
    return {"member": "toy", "task": {"w": torch.full((100,), value)}}


def store(folder: Path, **options: Any) -> Checkpoints:
    checkpoints = Checkpoints(folder, **options)
    for step in (1, 2, 3):
        checkpoints.save(state(float(step)), step)
    return checkpoints


def newest_value(checkpoints: Checkpoints) -> float:
    loaded = checkpoints.load()
    assert loaded is not None
    return float(loaded["task"]["w"][0])


def test_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2, mode="max")
    for step, score in enumerate([0.1, 0.9, 0.3, 0.4, 0.5], start=1):
        checkpoints.save(state(step), step, score)
    assert [entry.step for entry in checkpoints.entries()] == [2, 4, 5]
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == [f"step-{s:09d}.pt" for s in (2, 4, 5)]
    best = checkpoints.load("best")
    assert best is not None
    assert best["step"] == 2


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_damaged_newest_is_passed_over_with_a_warning(tmp_path: Path, damage: str) -> None:
    checkpoints = store(tmp_path)
    path = checkpoints.newest()
    assert path is not None
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    path.write_bytes({"truncated": content[:-50], "flipped": content, "empty": b""}[damage])
    with pytest.warns(UserWarning, match="step-000000003"):
        assert newest_value(checkpoints) == 2.0


def test_all_damaged_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    checkpoints = store(tmp_path)
    for path in tmp_path.glob("*.pt"):
        path.write_bytes(b"junk")
    with pytest.warns(UserWarning, match="Passing over it"), pytest.raises(UserError, match="damaged"):
        checkpoints.load()


def test_file_unknown_to_the_manifest_is_found(tmp_path: Path) -> None:
    """A kill between the rename of the file and that of the manifest must not lose the newest checkpoint."""
    checkpoints = store(tmp_path)
    manifest = (tmp_path / "manifest.json").read_text()
    checkpoints.save(state(4.0), 4)
    (tmp_path / "manifest.json").write_text(manifest)
    assert newest_value(checkpoints) == 4.0


def test_damaged_manifest_does_not_hide_the_files(tmp_path: Path) -> None:
    checkpoints = store(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    assert newest_value(checkpoints) == 3.0


class Hostile:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path(self.target),))

    def __init__(self, target: Path) -> None:
        self.target = str(target)


def test_hostile_file_runs_no_code(tmp_path: Path) -> None:
    marker = tmp_path / "owned"
    torch.save({"format": 1, "step": 1, "task": Hostile(marker)}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="undamaged file of tensors"):
        load_file(tmp_path / "evil.pt")
    (tmp_path / "evil2.pt").write_bytes(pickle.dumps(Hostile(marker)))
    with pytest.raises(UserError):
        load_file(tmp_path / "evil2.pt")
    assert not marker.exists()
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert marker.exists(), "the control: without the guard the file does run code"


FULL_DISK = """
import resource, signal, sys, torch
from pathlib import Path
from shared.checkpoint import Checkpoints
from shared.config import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = Checkpoints(Path(sys.argv[1]))
store.save({"task": {"w": torch.ones(10)}}, 1)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    store.save({"task": {"w": torch.ones(1_000_000)}}, 2)
except UserError as error:
    print(error)
    sys.exit(2)
"""


def test_write_that_fails_half_way_leaves_the_earlier_checkpoint_and_no_litter(tmp_path: Path) -> None:
    assert signal.SIGXFSZ
    assert resource.RLIMIT_FSIZE
    result = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    assert "earlier are intact" in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "step-000000001.pt"]
    loaded = Checkpoints(tmp_path).load()
    assert loaded is not None
    assert loaded["step"] == 1


def test_full_device_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    checkpoints = store(tmp_path)
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="no space left"):
        checkpoints.save(state(4.0), 4)
    monkeypatch.undo()
    assert newest_value(checkpoints) == 3.0
