"""One HTML page to explore a dictionary: type a word, see its factors; click a factor, see its words.

The page is one file without any address in it: it opens from a disk, without a server or a network. What it shows is
computed in the reader's browser from the sparse codes, which it carries in full:

    words       a JSON list, most frequent first: the row is the rank, and ties are broken by it
    codes       rows as in a CSR matrix, base64: indptr uint32, indices uint16, and values as uint16 on a logarithmic
                scale between the smallest and the largest, so that the relative error is the same everywhere: about
                0.01 % for values spread over a factor of a million
    weights     one uint16 a word on such a scale: sqrt(count), for co-activation
    residual    one uint16 a word on the linear scale 0..1

Four bytes for each active factor, a third more in base64: 8,000 words with 12 factors each take 0.8 MB, 20,000 words
1.9 MB. Imports no torch.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

from shared.config import UserError, check_range
from shared.run import write_atomically
from word_factors.embedding import Embedding

NEIGHBOURS = 6  # factors of the nearest direction that a factor's view names
MOST_FACTORS = 1 << 16  # that a uint16 can tell apart
ORDER_SEED = 0  # of the order in which the page shows random factors


@dataclass(frozen=True)
class PageContent:
    """What a page shows. Dimensions: V words on the page, K factors.

    Attributes:
        title, details: heading, and what it is about as names and values (embedding, lambda, ...).
        words: V words, most frequent first.
        codes: [V, K] alpha of these words, >= 0.
        weights: [V] sqrt(count), positive: weight of a word in co-activations.
        residual: [V] share of a vector's squared norm that its factors leave over, 0..1.
        names: K names. use: [K] share of the whole vocabulary in which a factor is active.
        labels: [K] group of each factor. reliability: [K] best-match cosine in another run, NaN where unknown.
        neighbours, cosines: [K, n] the factors of nearest direction and their cosines, nearest first.
        top: words listed for a factor before one asks for more.
    """

    title: str
    details: Mapping[str, str]
    words: tuple[str, ...]
    codes: csr_array
    weights: NDArray[np.float64]
    residual: NDArray[np.float64]
    names: tuple[str, ...]
    use: NDArray[np.float64]
    labels: NDArray[np.int64] | None
    reliability: NDArray[np.float64] | None
    neighbours: NDArray[np.int64]
    cosines: NDArray[np.float64]
    top: int


def page_content(
    embedding: Embedding,
    phi: ArrayLike,
    codes: csr_array,
    *,
    residual: ArrayLike,
    names: Sequence[str] | None = None,
    labels: ArrayLike | None = None,
    reliability: ArrayLike | None = None,
    top: int = 30,
    max_words: int | None = None,
    title: str = "Word factors",
    details: Mapping[str, str] | None = None,
) -> PageContent:
    """Gather what a page shows.

    Args:
        embedding: V words with counts.
        phi: [d, K] dictionary, columns of norm 1.
        codes: [V, K] alpha >= 0, row w the code of word w.
        residual: [V] ||x - phi alpha||^2 / ||x||^2; above 1 (a code worse than none) is shown as 1.
        names: of the K factors. Default: the three words in which a factor is most active.
        labels: [K] group of each factor, whole numbers >= 0.
        reliability: [K] best-match cosine of each factor in another run; NaN where unknown.
        top: words listed for a factor, >= 1.
        max_words: only this many of the most frequent words are on the page. Names, use and directions are those of
            the whole vocabulary all the same.

    Raises:
        UserError: parts that do not belong together (lengths, dimensions), negative or non-finite codes.
    """
    columns = np.asarray(phi, dtype=np.float64)
    alpha: Any = csr_array(codes, dtype=np.float64, copy=True)
    alpha.sum_duplicates()
    alpha.eliminate_zeros()
    size, factors = alpha.shape
    left_over = _vector("residual", residual, len(embedding), "word")
    if size != len(embedding):
        raise UserError("codes", f"{size:,} rows", f"one for each of the {len(embedding):,} words of {embedding.name}")
    if factors > MOST_FACTORS:
        raise UserError("codes", f"{factors:,} factors", f"at most {MOST_FACTORS:,}")
    if columns.shape != (embedding.dim, factors):
        valid = f"{embedding.dim} x {factors}: dimensions of {embedding.name}, factors of the codes"
        raise UserError("phi", " x ".join(map(str, columns.shape)), valid)
    if not np.isfinite(alpha.data).all() or (alpha.data < 0).any():
        raise UserError("codes", alpha.data.min(), "finite numbers >= 0")
    if not np.isfinite(left_over).all() or (left_over < 0).any():
        raise UserError("residual", left_over.min(), "a share of the squared norm, 0 to 1")
    if names is not None and len(names) != factors:
        raise UserError("names", f"{len(names)} names", f"one for each of the {factors} factors")
    groups = None if labels is None else _vector("labels", labels, factors, "factor").astype(np.int64)
    if groups is not None and (groups < 0).any():
        raise UserError("labels", groups.min(), "groups from 0 on")
    known = None if reliability is None else _vector("reliability", reliability, factors, "factor")
    check_range("top", top, 1)
    check_range("max_words", max_words, 1)

    order = np.argsort(-embedding.counts, kind="stable")  # row on the page = rank by frequency
    alpha = csr_array(alpha[order])
    use = np.bincount(alpha.indices, minlength=factors) / max(size, 1)
    words = [_printable(embedding.words[row]) for row in order]
    named = _three_top_words(words, alpha) if names is None else [_printable(name) for name in names]
    neighbours, cosines = _nearest_directions(columns)
    shown = slice(0, size if max_words is None else max_words)
    return PageContent(
        title=title,
        details=dict(details or {}),
        words=tuple(words[shown]),
        codes=csr_array(alpha[shown]),
        weights=np.sqrt(embedding.counts[order][shown]),
        residual=np.minimum(left_over[order][shown], 1.0),
        names=tuple(named),
        use=use,
        labels=groups,
        reliability=known,
        neighbours=neighbours,
        cosines=cosines,
        top=top,
    )


def write_page(path: Path, content: PageContent) -> int:
    """Write the page as one self-contained HTML file (UTF-8); folders above it are made.

    Returns:
        its size in bytes.

    Raises:
        UserError: `path` is a folder.
    """
    if path.is_dir():
        raise UserError("--out", path, "a file name such as explore.html, not a folder")
    template = files("word_factors").joinpath("explore.html").read_text(encoding="utf-8")
    # Split, not replace: a title or a word that reads like a marker must not be taken for one.
    head, middle = template.split("{{title}}")
    middle, tail = middle.split("{{content}}")
    page = (head + html.escape(content.title) + middle + _json(_packed(content)) + tail).encode()
    write_atomically(path, page)
    return len(page)


def _packed(content: PageContent) -> dict[str, Any]:
    """The content as JSON values, arrays in base64."""
    codes: Any = content.codes
    reliability = None
    if content.reliability is not None:
        reliability = [round(float(value), 4) if np.isfinite(value) else None for value in content.reliability]
    return {
        "title": content.title,
        "details": [[str(name), str(value)] for name, value in content.details.items()],
        "words": content.words,
        "names": content.names,
        "use": [float(f"{value:.4g}") for value in content.use],
        "labels": None if content.labels is None else content.labels.tolist(),
        "reliability": reliability,
        "neighbours": content.neighbours.tolist(),
        "cosines": np.round(content.cosines, 3).tolist(),
        "order": np.random.default_rng(ORDER_SEED).permutation(len(content.names)).tolist(),
        "seed": ORDER_SEED,
        "top": content.top,
        "indptr": _base64(codes.indptr.astype("<u4")),
        "indices": _base64(codes.indices.astype("<u2")),
        "values": _log_scale(codes.data),
        "weights": _log_scale(content.weights),
        "residual": _base64(np.round(content.residual * 65535).astype("<u2")),
    }


def _log_scale(values: NDArray[np.float64]) -> dict[str, Any]:
    """Positive numbers as uint16 q with value = low * exp(q * step)."""
    if not len(values):
        return {"low": 1.0, "step": 0.0, "data": ""}
    low, high = float(values.min()), float(values.max())
    step = float(np.log(high / low)) / 65535
    levels = np.log(values / low) / step if step > 0 else np.zeros(len(values))
    return {"low": low, "step": step, "data": _base64(np.round(levels).clip(0, 65535).astype("<u2"))}


def _base64(values: NDArray[Any]) -> str:
    return base64.b64encode(values.tobytes()).decode("ascii")


def _json(values: Any) -> str:
    """JSON that may stand inside a script element: ASCII, and nothing in it opens or closes a tag."""
    text = json.dumps(values, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _printable(word: str) -> str:
    """A word read from damaged bytes may hold halves of surrogate pairs, which no link can carry: spell them out."""
    return word.encode("utf-8", "backslashreplace").decode("utf-8")


def _vector(field: str, values: ArrayLike, length: int, of: str) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (length,):
        raise UserError(field, " x ".join(map(str, array.shape)) or "a number", f"{length:,} numbers, one a {of}")
    return array


def _three_top_words(words: Sequence[str], codes: csr_array) -> list[str]:
    """Names of the factors; rows of the codes are ordered by frequency, so that the stable sort breaks ties by it."""
    columns: Any = codes.tocsc()
    names: list[str] = []
    for factor in range(columns.shape[1]):
        part = slice(columns.indptr[factor], columns.indptr[factor + 1])
        first = np.argsort(-columns.data[part], kind="stable")[:3]
        rows: list[int] = columns.indices[part][first].tolist()
        names.append(", ".join([words[row] for row in rows]) or "never active")
    return names


def _nearest_directions(phi: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For each column the others of largest cosine, nearest first: indices and cosines, [K, min(n, K - 1)]."""
    norms = np.linalg.norm(phi, axis=0)
    unit = phi / np.where(norms == 0, 1, norms)
    cosines = unit.T @ unit
    np.fill_diagonal(cosines, -np.inf)
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, : min(NEIGHBOURS, max(phi.shape[1] - 1, 0))]
    return nearest, np.take_along_axis(cosines, nearest, axis=1)
