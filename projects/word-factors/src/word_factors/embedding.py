"""An embedding: words, their vectors, and how often each is used. Imports no torch.

Dimensions: V words, d coordinates of a vector.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shared.config import UserError

CountsFrom = Literal["corpus", "vectors", "rank"]


@dataclass(frozen=True)
class Embedding:
    """Word vectors with frequencies.

    Attributes:
        words: the vocabulary, distinct, most frequent first where the source says so.
        vectors: [V, d] float32.
        counts: [V] float64, positive: uses of each word, or a stand-in proportional to them.
        counts_from: where counts come from: the corpus the vectors were trained on or a corpus named beside them, the
            vector file itself, or the rank in the file (Zipf's law, 1 / (rank + 1)).
        name: what tables and results call it.
        folded: words dropped because a more frequent word differs from them in case only.
    """

    words: tuple[str, ...]
    vectors: NDArray[np.float32]
    counts: NDArray[np.float64]
    counts_from: CountsFrom
    name: str
    folded: int = field(default=0)

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or len(self.words) != len(self.vectors) or len(self.words) != len(self.counts):
            shapes = f"{len(self.words)} words, vectors {self.vectors.shape}, {len(self.counts)} counts"
            raise ValueError(f"one vector and one count for each word, not {shapes}")

    def __len__(self) -> int:
        return len(self.words)

    @property
    def dim(self) -> int:
        """d, coordinates of a vector."""
        return int(self.vectors.shape[1])

    @cached_property
    def index(self) -> dict[str, int]:
        """Row of each word."""
        return {word: row for row, word in enumerate(self.words)}

    @cached_property
    def digest(self) -> str:
        """Hash of words and vectors: what a dictionary learned on this embedding belongs to. Two trainings on one
        corpus share their words and nothing else."""
        found = hashlib.sha256("\n".join((str(self.dim), *self.words)).encode("utf-8", "surrogatepass"))
        found.update(np.ascontiguousarray(self.vectors, np.float32).tobytes())
        return found.hexdigest()[:16]

    @cached_property
    def unit(self) -> NDArray[np.float32]:
        """[V, d] vectors of norm 1; a zero vector stays zero."""
        norms = np.linalg.norm(self.vectors, axis=1, keepdims=True)
        return (self.vectors / np.where(norms == 0, 1, norms)).astype(np.float32)

    def row(self, word: str) -> int:
        """Row of a word.

        Raises:
            UserError: not in the vocabulary; the nearest spellings are named.
        """
        if word in self.index:
            return self.index[word]
        lower = word.lower()
        near = [other for other in self.words if other.lower() == lower][:3]
        near += [found for found in difflib.get_close_matches(word, self.words, n=3, cutoff=0.75) if found not in near]
        hint = f"Nearest spellings: {', '.join(near)}." if near else ""
        raise UserError("word", word, f"a word of the {len(self):,} of {self.name}", hint)

    def rows(self, words: Iterable[str]) -> NDArray[np.int64]:
        """Rows of several words. Raises as `row`."""
        return np.array([self.row(word) for word in words], dtype=np.int64)

    def take(self, rows: Sequence[int] | NDArray[np.integer]) -> Embedding:
        """The embedding of some of the words, in the order of `rows`."""
        chosen = np.asarray(rows, dtype=np.int64)
        words = tuple(self.words[row] for row in chosen)
        return replace(self, words=words, vectors=self.vectors[chosen], counts=self.counts[chosen])

    def first(self, size: int | None) -> Embedding:
        """The first `size` words; all where there are no more, or for None."""
        return self if size is None or size >= len(self) else self.take(np.arange(size))

    @cached_property
    def form_rows(self) -> dict[str, int]:
        """For each lower-cased form the row of its most frequent spelling (ties: the earlier)."""
        best: dict[str, int] = {}
        for row, word in enumerate(self.words):
            key = word.lower()
            if key not in best or self.counts[row] > self.counts[best[key]]:
                best[key] = row
        return best

    def fold_case(self) -> Embedding:
        """Of words that differ in case only keep the most frequent form (ties: the earlier), spelled as it is.
        `folded` counts the collisions."""
        kept = self.take(sorted(self.form_rows.values()))
        return replace(kept, folded=self.folded + len(self) - len(kept))
