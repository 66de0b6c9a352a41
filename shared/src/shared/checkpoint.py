"""Checkpoints that survive: atomic files, checksums, the newest k and the best, and no code run on loading.

A checkpoint is one `torch.save` file of tensors and plain values, read with `weights_only=True`. Beside the files
lies `manifest.json` with their checksums; a file that does not match is passed over for the one before it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import pickle
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from shared.config import UserError
from shared.run import replacing, write_json, writing

FORMAT = 1


@dataclass(frozen=True)
class Entry:
    """A line of the manifest."""

    name: str
    step: int
    sha256: str
    score: float | None = None


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they lie; made at the first save.
        keep: how many of the newest stay. The best by score stays beside them.
        mode: whether the best score is the largest or the smallest.
    """

    def __init__(self, folder: Path, keep: int = 2, mode: Literal["max", "min"] = "max") -> None:
        self.folder, self.keep, self.mode = folder, keep, mode

    def save(self, state: dict[str, Any], step: int, score: float | None = None) -> Path:
        """Write `state` for `step`; then drop what `keep` no longer covers.

        Raises:
            UserError: the disk is full or refuses the write. The earlier checkpoints are untouched.
        """
        path = self.folder / f"step-{step:09d}.pt"
        try:
            digest = save_atomically({"format": FORMAT, "step": step, **state}, path)
            entries = [entry for entry in self.entries() if entry.name != path.name]
            entries.append(Entry(path.name, step, digest, score))
            entries.sort(key=lambda entry: entry.step)
            kept = {entry.name for entry in entries[-self.keep :]}
            best = self._best(entries)
            if best is not None:
                kept.add(best.name)
            survivors = [entry for entry in entries if entry.name in kept]
            write_json(self.folder / "manifest.json", {"checkpoints": [asdict(entry) for entry in survivors]})
        except UserError as error:
            hint = f"{error.hint} Checkpoints written earlier are intact."
            raise UserError("checkpoint", error.value, error.valid, hint) from error
        for old in self.folder.glob("step-*.pt"):
            if old.name not in kept:
                old.unlink(missing_ok=True)
        return path

    def entries(self) -> list[Entry]:
        """What the manifest lists, oldest first, with files it does not know (a kill came between) appended."""
        listed: list[Entry] = []
        with contextlib.suppress(OSError, json.JSONDecodeError, KeyError, TypeError):
            manifest = json.loads((self.folder / "manifest.json").read_text(encoding="utf-8"))
            listed = [Entry(**line) for line in manifest["checkpoints"]]
        known = {entry.name for entry in listed}
        for path in sorted(self.folder.glob("step-*.pt")):
            if path.name not in known and path.stem[5:].isdigit():
                listed.append(Entry(path.name, int(path.stem[5:]), ""))
        return sorted((e for e in listed if (self.folder / e.name).exists()), key=lambda entry: entry.step)

    def _best(self, entries: list[Entry]) -> Entry | None:
        sign = 1.0 if self.mode == "max" else -1.0
        scored = [(sign * entry.score, entry.step, entry) for entry in entries if entry.score is not None]
        return max(scored, key=lambda item: item[:2])[2] if scored else None

    def load(self, which: Literal["newest", "best"] = "newest", map_location: Any = "cpu") -> dict[str, Any] | None:
        """The newest (or best) checkpoint that is whole; None where there is none at all.

        A damaged file is passed over with a warning for the one before it.

        Raises:
            UserError: there are checkpoints, and every one of them is damaged.
        """
        order = list(reversed(self.entries()))
        if which == "best":
            best = self._best(order)
            if best is not None:
                order.sort(key=lambda entry: entry.name != best.name)
        for entry in order:
            path = self.folder / entry.name
            try:
                return load_file(path, entry.sha256, map_location)
            except UserError as error:
                warnings.warn(f"{error}\nPassing over it.", stacklevel=2)
        if order:
            raise UserError("checkpoint", self.folder, "at least one undamaged file", "All of them are damaged.")
        return None

    def newest(self) -> Path | None:
        """Path of the newest checkpoint."""
        entries = self.entries()
        return self.folder / entries[-1].name if entries else None


class _HashingFile:
    """What torch.save writes to: passes bytes on and digests them on the way, so that nothing is held twice."""

    def __init__(self, handle: Any) -> None:
        self.handle, self.digest = handle, hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        try:
            return self.handle.write(data)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        self.handle.flush()


def save_atomically(value: Any, path: Path) -> str:
    """`torch.save` into a temporary file of the same folder, fsync, rename. Returns the SHA-256 of the file.

    Raises:
        UserError: the disk is full or refuses the write. `path` is as it was before.
    """
    with writing(path), replacing(path) as handle:
        target = _HashingFile(handle)
        try:
            torch.save(value, target)  # pyright: ignore[reportArgumentType]
        except RuntimeError:
            # torch's zip writer answers a failed write with an error about its own positions.
            if target.failure is None:
                raise
            raise target.failure from None
    return target.digest.hexdigest()


def load_plain(path: Path, field: str, valid: str, map_location: Any = "cpu") -> Any:
    """Read a file of tensors and plain values; never runs code it contains.

    Args:
        path: the file. field: what it is, in the user's words. valid: what would be right.
        map_location: as for `torch.load`.

    Raises:
        UserError: no such file, damaged, another kind of file, or one that wants to run code.
    """
    if not path.exists():
        raise UserError(field, path, "a file that exists")
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # garbage can make the unpickler raise anything
        # Not torch's own words: they advise to load the file without the guard.
        if isinstance(error, pickle.UnpicklingError):
            why = "It is damaged, or asks for more than that; no code of it was run."
        else:
            why = f"It cannot be read ({type(error).__name__})."
        raise UserError(field, path, valid, why) from error


def load_file(path: Path, sha256: str = "", map_location: Any = "cpu") -> dict[str, Any]:
    """Read one checkpoint; never runs code it contains.

    Raises:
        UserError: no such file, damaged, not a checkpoint of ours, or one that wants to run code.
    """
    if sha256 and path.exists():
        digest = hashlib.sha256()
        with open(path, "rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
        if digest.hexdigest() != sha256:
            raise UserError("checkpoint", path, "an undamaged file", "Its checksum is not the one it was written with.")
    value = load_plain(path, "checkpoint", "an undamaged file of tensors and plain values", map_location)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise UserError("checkpoint", path, f"a checkpoint of format {FORMAT}, written by `train`")
    return value
