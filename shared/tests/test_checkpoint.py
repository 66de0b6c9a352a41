"""Checkpoints: whole or not there, harmless to load, and the one before is always at hand."""

from __future__ import annotations

import os
import pickle
import random
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
    """/dev/full answers every write as a full disk does: while torch writes, and when the rest is flushed."""
    checkpoints = store(tmp_path)
    for size in (10, 1_000_000):

        def full(**place: Any) -> tuple[int, str]:
            return os.open("/dev/full", os.O_WRONLY), str(tmp_path / "temporary")

        monkeypatch.setattr("tempfile.mkstemp", full)
        with pytest.raises(UserError, match=r"step-000000004\.pt.*valid: .*\n.*no space left on the device") as caught:
            checkpoints.save({"task": {"w": torch.ones(size)}}, 4)
        monkeypatch.undo()
        assert "intact" in caught.value.hint
        assert "inline_container" not in str(caught.value)
    assert newest_value(checkpoints) == 3.0


def mutated(content: bytes, dice: random.Random) -> bytes:
    """A file after one accident: bits flipped, a piece lost, doubled, zeroed, or the end cut off."""
    piece = bytearray(content)
    begin = dice.randrange(len(piece))
    end = min(len(piece), begin + dice.choice([1, 4, 64, 1024]))
    how = dice.randrange(5)
    if how == 0:
        for _ in range(dice.choice([1, 8, 64])):
            piece[dice.randrange(len(piece))] ^= 1 << dice.randrange(8)
    elif how == 1:
        del piece[begin:end]
    elif how == 2:
        piece[begin:begin] = piece[begin:end]
    elif how == 3:
        piece[begin:end] = bytes(end - begin)
    else:
        del piece[begin:]
    return bytes(piece)


def test_no_damage_is_anything_but_a_refusal_or_a_whole_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1.0), 1)
    (entry,) = checkpoints.entries()
    path = tmp_path / entry.name
    content, dice = path.read_bytes(), random.Random(7)
    said: list[str] = []
    for _ in range(200):
        path.write_bytes(mutated(content, dice))
        try:
            assert load_file(path)["format"] == 1  # a file without its manifest: torch's own checks alone
        except UserError as error:
            said.append(str(error))
        if path.read_bytes() != content:  # with the checksum, no change at all passes
            with pytest.raises(UserError):
                load_file(path, entry.sha256)
    assert len(said) > 50
    assert not any("weights_only" in message for message in said)  # torch's advice to drop the guard is not passed on
    for junk in (b"", b"key = 1\n", b"(", b"\x80\x02.", b"PK\x03\x04", bytes(range(256)), b"hello world\n" * 100):
        path.write_bytes(junk)
        with pytest.raises(UserError, match="checkpoint"):
            load_file(path)
