"""A learned dictionary with all that is needed to use it: `FactorModel`."""

from __future__ import annotations

import hashlib
import io
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor
from tqdm import tqdm

from shared.checkpoint import FORMAT, load_file, save_atomically
from shared.config import UserError
from shared.run import write_atomically
from word_factors.embedding import Embedding
from word_factors.inference import ACTIVE, solve
from word_factors.preprocess import Transform

ENCODED = 2048  # words at a time
KIND = "word-factors model"


@dataclass
class FactorModel:
    """Word factors of one embedding.

    Attributes:
        phi: [d, K] dictionary, unit columns.
        lam: weight of the activations, in the units after preprocessing.
        transform: the preprocessing.
        vocabulary: digest of the embedding that it was learned on.
        embedding: that embedding, if it is at hand; needed for everything that takes words.
    """

    phi: Tensor
    lam: float
    transform: Transform
    vocabulary: str
    embedding: Embedding | None = None

    @property
    def K(self) -> int:
        """Number of factors."""
        return int(self.phi.shape[1])

    @property
    def digest(self) -> str:
        """Hash of the dictionary, lam and embedding: what codes, groups and names belong to."""
        content = self.phi.cpu().contiguous().numpy().tobytes() + f"{self.lam!r} {self.vocabulary}".encode()
        return hashlib.sha256(content).hexdigest()[:16]

    def attach(self, embedding: Embedding) -> FactorModel:
        """Give the model its embedding.

        Raises:
            UserError: the dictionary was learned on another one.
        """
        if embedding.dim != self.phi.shape[0]:
            raise UserError(
                "embedding", f"{embedding.name}, {embedding.dim} dimensions", f"{self.phi.shape[0]} dimensions"
            )
        if embedding.digest != self.vocabulary:
            hint = "The dictionary was learned on other words or other vectors."
            raise UserError("embedding", f"{embedding.name} ({embedding.digest})", f"digest {self.vocabulary}", hint)
        self.embedding = embedding
        return self

    def _attached(self) -> Embedding:
        if self.embedding is None:
            raise UserError("model", "no embedding", "one with its embedding: call `attach` first")
        return self.embedding

    def vectors(self, words: Sequence[str] | None = None) -> NDArray[np.float32]:
        """[n, d] preprocessed vectors of words; of the whole vocabulary for None."""
        embedding = self._attached()
        return self.transform.apply(embedding.vectors if words is None else embedding.vectors[embedding.rows(words)])

    def encode(
        self,
        what: Sequence[str] | NDArray[np.float32] | None = None,
        *,
        tol: float = 1e-4,
        batch_size: int = ENCODED,
        device: torch.device | str = "cpu",
        quiet: bool = True,
    ) -> sparse.csr_array:
        """Codes to a tolerance; words that miss it are counted in a warning.

        Args:
            what: words; or raw vectors [n, d]; or None for the whole vocabulary.
            tol: largest violation of the optimality conditions, relative to lam.
            batch_size: words at a time: memory does not grow with the vocabulary, but for the sparse codes.

        Returns: [n, K] float32; activations of at most 1e-6 are left out.

        Raises:
            UserError: a word that is not in the vocabulary, vectors of another dimension.
        """
        if isinstance(what, np.ndarray):
            if what.ndim != 2 or what.shape[1] != self.phi.shape[0]:
                raise UserError("vectors", f"shape {what.shape}", f"[n, {self.phi.shape[0]}]")
            raw, rows = what, None
        else:
            embedding = self._attached()
            raw, rows = embedding.vectors, None if what is None else embedding.rows(what)
        count = len(raw) if rows is None else len(rows)
        phi = self.phi.to(device)
        parts, missed, worst = [], 0, 0.0
        with tqdm(total=count, unit="word", desc="encode", disable=True if quiet else None) as bar:
            for begin in range(0, count, batch_size):
                part = slice(begin, begin + batch_size)
                x = self.transform.apply(np.asarray(raw[part if rows is None else rows[part]], np.float32))
                piece = torch.from_numpy(x).to(device).T  # [d, B]
                found = solve(piece, phi, self.lam, tol)
                missed += int((found.gap > tol * self.lam).sum())
                worst = max(worst, float(found.gap.max()) / self.lam)
                alpha = found.alpha
                parts.append(sparse.csr_array(torch.where(alpha > ACTIVE, alpha, 0).T.cpu().numpy()))
                bar.update(piece.shape[1])
        if missed:
            warnings.warn(
                f"codes of {missed:,} words violate optimality by up to {worst:.2g} of lam, not {tol:g}.", stacklevel=2
            )
        return sparse.csr_array(sparse.vstack(parts)) if parts else sparse.csr_array((0, self.K), dtype=np.float32)

    def decode(self, codes: sparse.csr_array, norms: NDArray[np.floating] | None = None) -> NDArray[np.float32]:
        """[n, d] vectors that codes [n, K] stand for, preprocessing undone (see `Transform.undo` for `norms`)."""
        return self.transform.undo(np.asarray(codes @ self.phi.numpy().T, dtype=np.float32), norms)

    def residual_share(self, codes: sparse.csr_array, words: Sequence[str] | None = None) -> NDArray[np.float32]:
        """[n] share of each preprocessed vector's energy that its code leaves over: what bars show as "other"."""
        embedding = self._attached()
        rows = None if words is None else embedding.rows(words)
        found = np.empty(codes.shape[0], np.float32)
        phi = self.phi.numpy().T
        for begin in range(0, len(found), ENCODED):
            part = slice(begin, begin + ENCODED)
            x = self.transform.apply(embedding.vectors[part if rows is None else rows[part]])
            left = np.square(x - codes[part] @ phi).sum(axis=1)
            whole = np.square(x).sum(axis=1)
            found[part] = left / np.where(whole == 0, 1, whole)
        return found

    def top_words(self, j: int, n: int = 10, codes: sparse.csr_array | None = None) -> list[tuple[str, float]]:
        """The n words in which factor j is most active, with their activations."""
        from word_factors.naming import top_words

        self._check_factor(j)
        return top_words(self.encode() if codes is None else codes, self._attached(), j, n)

    def factors_of(self, word: str, n: int | None = None) -> list[tuple[int, float]]:
        """Active factors of a word with their activations, largest first."""
        row: Any = self.encode([word])
        order = np.argsort(-row.data, kind="stable")[:n]
        return [(int(row.indices[place]), float(row.data[place])) for place in order]

    def _check_factor(self, j: int) -> None:
        if not 0 <= j < self.K:
            raise UserError("factor", j, f"a number in [0, {self.K - 1}]")

    def save(self, path: Path) -> None:
        """Write the model file: tensors and plain values, no code."""
        state: dict[str, Any] = {
            "format": FORMAT,
            "kind": KIND,
            "phi": self.phi.cpu(),
            "lam": self.lam,
            "transform": self.transform.state_dict(),
            "vocabulary": self.vocabulary,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        save_atomically(state, path)

    @classmethod
    def load(cls, path: Path) -> FactorModel:
        """Read a model file.

        Raises:
            UserError: no such file, damaged, or something else.
        """
        state = load_file(path)
        if state.get("kind") != KIND:
            raise UserError("model file", path, "one written by `word-factors train`")
        return cls(state["phi"], float(state["lam"]), Transform.from_state(state["transform"]), state["vocabulary"])


def save_codes(codes: sparse.csr_array, digest: str, path: Path) -> None:
    """Write codes [V, K] as a compressed npz, with the digest of their model."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        data=codes.data.astype(np.float32),
        indices=codes.indices.astype(np.int32),
        indptr=codes.indptr.astype(np.int64),
        shape=np.array(codes.shape),
        digest=np.array(digest),
    )
    write_atomically(path, buffer.getvalue())


def load_codes(path: Path) -> tuple[sparse.csr_array, str]:
    """Codes [V, K] and the digest they were written with.

    Raises:
        UserError: no such file, or another kind of file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            codes = sparse.csr_array((file["data"], file["indices"], file["indptr"]), shape=tuple(file["shape"]))
            return codes, str(file["digest"])
    except FileNotFoundError:
        raise UserError("codes", path, "a file that exists") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError("codes", path, "an npz file written by `word-factors encode`", str(error)) from None
