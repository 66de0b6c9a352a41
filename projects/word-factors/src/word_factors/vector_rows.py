"""Word vectors as text or binary, read row by row. Imports no torch and no gensim.

gensim's loader is the reference on sound files; this reader names the line of an unsound one, finds out whether there
is a header, allows spaces inside words (GloVe 840B has them), and holds no more than the rows that are asked for.

Dimensions: V words, d coordinates of a vector.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from shared.config import UserError
from word_factors.corpus import UNREADABLE, open_decompressed

Layout = Literal["text", "binary"]
_BLOCK = 1 << 20  # bytes of a binary file read at a time
_ROWS = 4096  # rows gathered before they become an array
_LONGEST_WORD = 4096  # bytes; a binary file with a wrong dimension shows as a word without end
_HEADER = re.compile(rb"\s*(\d+)\s+(\d+)\s*")
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")


def header_of(line: bytes) -> tuple[int, int] | None:
    """(V, d) if a line is a header: two whole numbers."""
    found = _HEADER.fullmatch(line)
    return (int(found[1]), int(found[2])) if found else None


def layout_of(path: Path) -> tuple[Layout, bool]:
    """Whether a file is text or binary, and whether it has a header, by its first two lines.

    Raises:
        UserError: neither.
    """
    with open_decompressed(path) as file:
        line = file.readline(_BLOCK)
        if header_of(line) is None:
            if _CONTROL.search(line) or len(line.split()) < 2:
                raise UserError("vectors", path, "a file of word vectors", "Its first line is no word with numbers.")
            return "text", False
        numbers = file.readline(_BLOCK).partition(b" ")[2]
    try:
        numbers.decode("utf-8")
    except UnicodeDecodeError:
        return "binary", True
    return ("binary" if _CONTROL.search(numbers) else "text"), True


def read_rows(path: Path, limit: int | None = None, quiet: bool = False) -> tuple[list[str], NDArray[np.float32]]:
    """The words and vectors of a text or binary file, plain or compressed.

    Args:
        path: word2vec text or binary with a header `V d`, or text without one (GloVe). In text a word may hold
            spaces; the last d fields of a line are its vector.
        limit: stop after this many words. What follows is not looked at.
        quiet: no progress bar.

    Returns:
        (words, vectors [V, d] float32), in the order of the file.

    Raises:
        UserError: names the line (text) or row (binary) of a wrong number of coordinates, a field that is no number,
            a coordinate that is not finite, a vector of zeros, a word met before, a word that is not UTF-8; a header
            that does not fit; a file without words.
    """
    try:
        layout, header = layout_of(path)
        rows = _Rows(path, "line" if layout == "text" else "row")
        bar = tqdm(
            total=path.stat().st_size, unit="B", unit_scale=True, desc="vectors", disable=True if quiet else None
        )
        with bar, open(path, "rb") as raw, open_decompressed(path, raw) as file:
            source = _text(file, rows, header, limit) if layout == "text" else _binary(file, rows, limit)
            for number, _ in enumerate(source):
                if number % 256 == 0:
                    bar.update(raw.tell() - bar.n)
            bar.update(raw.tell() - bar.n)
    except UNREADABLE as error:
        raise UserError("vectors", path, "a file that can be read to its end", str(error)) from error
    return rows.done()


@dataclass
class _Rows:
    """What has been read so far, each row checked as it comes."""

    path: Path
    unit: str
    words: list[str] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)
    full: list[NDArray[np.float32]] = field(default_factory=list)
    fresh: list[NDArray[np.float32]] = field(default_factory=list)

    def refuse(self, place: int, value: object, valid: str, hint: str = "") -> UserError:
        return UserError(f"{self.path}, {self.unit} {place}", value, valid, hint)

    def add(self, place: int, name: bytes, vector: NDArray[np.float32]) -> None:
        try:
            word = name.decode("utf-8")
        except UnicodeDecodeError:
            raise self.refuse(place, _shown(name), "a word in UTF-8") from None
        if not word:
            raise self.refuse(place, word, "a word before the vector")
        if word in self.places:
            raise self.refuse(place, word, f"distinct words (it stands on {self.unit} {self.places[word]} too)")
        if not np.isfinite(vector).all():
            raise self.refuse(place, f"{word}: {vector[~np.isfinite(vector)][0]}", "finite coordinates")
        if not vector.any():
            raise self.refuse(place, word, "a vector that is not zero: it has no direction")
        self.places[word] = place
        self.words.append(word)
        self.fresh.append(vector)
        if len(self.fresh) == _ROWS:
            self.full.append(np.stack(self.fresh))
            self.fresh.clear()

    def done(self) -> tuple[list[str], NDArray[np.float32]]:
        if not self.words:
            raise UserError("vectors", self.path, "a file with at least one word")
        blocks = [*self.full, np.stack(self.fresh)] if self.fresh else self.full
        return self.words, np.concatenate(blocks)


def _text(file: IO[bytes], rows: _Rows, header: bool, limit: int | None) -> Iterator[None]:
    place, d = 0, 0
    promised: int | None = None
    source = "line 1"
    if header:
        place, (promised, d) = 1, header_of(file.readline()) or (0, 0)
        source = "the header on line 1"
        if d < 1:
            raise rows.refuse(1, f"{promised} {d}", "a header with a number of coordinates of at least 1")
    for line in file:
        place += 1
        if limit is not None and len(rows.words) == limit:
            return
        if not line.strip():
            continue
        if len(rows.words) == promised:
            raise rows.refuse(place, "another word", f"the {promised:,} words of {source}")
        d = d or _dimension(line)
        if d == 0:
            raise rows.refuse(place, _shown(line), "a word and the coordinates of its vector")
        rows.add(place, *_split(line, d, source, place, rows))
        yield
    if promised is not None and len(rows.words) < promised and (limit is None or len(rows.words) < limit):
        raise rows.refuse(place, f"the end after {len(rows.words):,} words", f"the {promised:,} words of {source}")


def _dimension(line: bytes) -> int:
    """d by the first line: fields at its end that are numbers, where the first field is a word whatever it looks
    like."""
    fields = line.split()
    count = 0
    while count < len(fields) - 1 and _number(fields[-1 - count]):
        count += 1
    return count


def _split(line: bytes, d: int, source: str, place: int, rows: _Rows) -> tuple[bytes, NDArray[np.float32]]:
    name, *fields = line.strip().rsplit(None, d)
    parts = name.split()
    extra = len(parts) > 1 and _number(parts[-1])  # a word with a space, or a number too many?
    if len(fields) < d or extra:
        found = len(line.split()) - 1
        raise rows.refuse(place, f"{found} coordinates", f"{d}, as {source} has it")
    try:
        # By way of float64, as gensim rounds; a coordinate beyond float32 becomes infinite and is refused as such.
        with np.errstate(over="ignore"):
            return name, np.array([float(text) for text in fields]).astype(np.float32)
    except ValueError:
        wrong = next(text for text in fields if not _number(text))
        short = sum(_number(text) for text in fields)
        hint = f"Numbers on the line: {short}; expected {d}, as {source} has it."
        raise rows.refuse(place, _shown(wrong), "a number", hint) from None


def _number(text: bytes) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _shown(text: bytes) -> str:
    return text[:60].decode("utf-8", "replace").strip()


def _binary(file: IO[bytes], rows: _Rows, limit: int | None) -> Iterator[None]:
    promised, d = header_of(file.readline()) or (0, 0)
    if d < 1:
        raise rows.refuse(0, f"{promised} {d}", "a header with a number of coordinates of at least 1")
    size = 4 * d
    wanted = promised if limit is None else min(limit, promised)
    buffer, start = b"", 0
    for place in range(1, wanted + 1):
        while (space := buffer.find(b" ", start)) < 0 or len(buffer) - space - 1 < size:
            if space < 0 and len(buffer) - start > _LONGEST_WORD:
                hint = f"The header says {d} coordinates; a wrong one shows here."
                raise rows.refuse(place, f"no end of the word in {_LONGEST_WORD} bytes", "a word and a space", hint)
            block = file.read(_BLOCK)
            if not block:
                raise rows.refuse(place, "the end of the file", f"{promised:,} words of {d} coordinates, by the header")
            buffer, start = buffer[start:] + block, 0
        # Some writers end a row with a new line, which then stands before the next word.
        name = buffer[start:space].lstrip(b"\n")
        rows.add(place, name, np.frombuffer(buffer, "<f4", d, space + 1).astype(np.float32))
        start = space + 1 + size
        yield
    if wanted == promised and (buffer[start:] + file.read(16)).strip():
        raise rows.refuse(promised, "more bytes after it", f"the {promised:,} words of {d} coordinates of the header")
