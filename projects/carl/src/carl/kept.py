"""What a long experiment has done so far, on disk after every iteration. Random numbers need no place: they follow from
seed and iteration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shared.checkpoint import load_plain, save_atomically


class Kept:
    """States under names, each in a file of its own; without a folder nothing is kept.

    Args:
        folder: where; it exists.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    def save(self, name: str, state: Any) -> None:
        """Put a state in the place of the last one of that name, atomically."""
        if self.folder is not None:
            save_atomically({"state": state}, self.folder / f"{name}.pt")

    def load(self, name: str) -> Any:
        """The newest state of a name; None where there is none.

        Raises:
            UserError: a damaged file.
        """
        if self.folder is None or not (path := self.folder / f"{name}.pt").exists():
            return None
        return load_plain(path, "state of a cell", "one that an earlier call has begun")["state"]
