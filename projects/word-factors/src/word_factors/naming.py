"""Reading factors: their top words, names for them that follow their content, and what a word is made of.

A name that a person gives is kept with a signature of the factor's top words, not with its number: another dictionary
has other factors under the same numbers. Imports no torch.

Dimensions: V words, K factors, c groups.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from shared.config import UserError, check_choice, check_range
from word_factors.embedding import Embedding

Weight = Literal["alpha", "sqrt"]
SIGNED = 20  # top words behind a signature
NEVER = "never active"  # the name of a factor without words


def top_words(
    codes: sparse.csr_array,
    embedding: Embedding,
    j: int,
    n: int = 10,
    min_rank: int | None = None,
    weight: Weight = "alpha",
    fold_case: bool = True,
) -> list[tuple[str, float]]:
    """The words in which factor j is most active, with their activations; ties by frequency.

    Args:
        codes: [V, K].
        n: words, at most; fewer where the factor is active in fewer.
        min_rank: only words among this many most frequent ones.
        weight: order by alpha, or by alpha * sqrt(frequency). The activation returned is alpha either way.
        fold_case: of spellings that differ in case, only the one that comes first.

    Raises:
        UserError: no such factor; codes of another vocabulary; n or min_rank below 1.
    """
    check_range("factor", j, 0, _size(codes)[1] - 1)
    return next(_tops(codes, embedding, [j], n, min_rank, weight, fold_case))


def all_top_words(
    codes: sparse.csr_array,
    embedding: Embedding,
    n: int = 10,
    min_rank: int | None = None,
    weight: Weight = "alpha",
    fold_case: bool = True,
) -> list[list[tuple[str, float]]]:
    """`top_words` of every factor; an empty list for one that is never active. Errors as there."""
    return list(_tops(codes, embedding, range(_size(codes)[1]), n, min_rank, weight, fold_case))


def _tops(
    codes: sparse.csr_array,
    embedding: Embedding,
    factors: Sequence[int],
    n: int,
    min_rank: int | None,
    weight: Weight,
    fold_case: bool,
) -> Iterator[list[tuple[str, float]]]:
    _check_vocabulary(codes, embedding)
    check_range("n", n, 1)
    check_range("min_rank", min_rank, 1)
    check_choice("weight", weight, ("alpha", "sqrt"))
    rank = np.empty(len(embedding), np.int64)
    rank[np.argsort(-embedding.counts, kind="stable")] = np.arange(len(embedding))
    columns: Any = sparse.csc_array(codes[:, list(factors)])
    for place in range(len(factors)):
        part = slice(columns.indptr[place], columns.indptr[place + 1])
        rows, alpha = columns.indices[part], columns.data[part].astype(np.float64)
        kept = (alpha > 0) & (rank[rows] < (len(rank) if min_rank is None else min_rank))
        rows, alpha = rows[kept], alpha[kept]
        value = alpha * np.sqrt(embedding.counts[rows]) if weight == "sqrt" else alpha
        found: dict[str, tuple[str, float]] = {}
        for at in np.lexsort((rank[rows], -value)).tolist():
            word = embedding.words[rows[at]]
            found.setdefault(word.lower() if fold_case else word, (word, float(alpha[at])))
            if len(found) == n:
                break
        yield list(found.values())


def _check_vocabulary(codes: sparse.csr_array, embedding: Embedding) -> None:
    words, _ = _size(codes)
    if words != len(embedding):
        raise UserError("codes", f"{words:,} words", f"the {len(embedding):,} of {embedding.name}")


def _size(codes: sparse.csr_array) -> tuple[int, int]:
    """(V, K); scipy's own type allows None."""
    return cast(tuple[int, int], codes.shape)


def automatic_names(
    codes: sparse.csr_array,
    embedding: Embedding,
    lexicon: Mapping[str, Sequence[str]] | None = None,
    least: float = 0.2,
) -> list[str]:
    """[K] names: the three top words, and the class of words that the factor finds best where its average precision
    over the vocabulary is above `least`.

    Args:
        lexicon: class -> words, see `classes.class_lexicon`. A label found here was chosen among all classes on the
            words it is about: a reading aid, no measurement (`classes.heldout_ap` is).
    """
    names = [", ".join(word for word, _ in top) or NEVER for top in all_top_words(codes, embedding, 3)]
    if not lexicon:
        return names
    from word_factors.classes import index_classes, precision_of_columns

    indexed = index_classes(lexicon, embedding)
    if not indexed.names:
        return names
    precision = precision_of_columns(codes, indexed)  # [classes, K]
    for j, best in enumerate(precision.argmax(axis=0).tolist()):
        if precision[best, j] > least:
            names[j] += f" ({indexed.names[best]})"
    return names


# -- names given by hand -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NamedFactor:
    """A name given to a factor. Attributes: signature: of its top words; name; words: some of them, for readers."""

    signature: str
    name: str
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class MatchedNames:
    """Names found again in a dictionary. Attributes: names: factor -> name; unmatched: entries of no factor here."""

    names: dict[int, str]
    unmatched: tuple[NamedFactor, ...]


def signature(codes: sparse.csr_array, embedding: Embedding, j: int) -> str:
    """What a name is tied to: a hash of the set of the factor's 20 top words, lower-cased. Their order is left out, so
    that a difference in the last digit of two activations does not lose a name.

    Raises:
        UserError: the factor is never active, so that nothing tells it from another such one; else as `top_words`.
    """
    top = top_words(codes, embedding, j, SIGNED)
    if not top:
        raise UserError("factor", j, "a factor that is active in some word")
    return _signature([word for word, _ in top])


def signatures(codes: sparse.csr_array, embedding: Embedding) -> list[str | None]:
    """[K] `signature` of every factor, None for one that is never active."""
    tops = all_top_words(codes, embedding, SIGNED)
    return [_signature([word for word, _ in top]) if top else None for top in tops]


def _signature(words: Sequence[str]) -> str:
    content = "\n".join(sorted(word.lower() for word in words))
    # With a prefix YAML takes no signature for a number.
    return "words-" + hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def match_names(entries: Sequence[NamedFactor], signatures: Sequence[str | None]) -> MatchedNames:
    """The factors that entries of a names file belong to.

    Raises:
        UserError: there are entries, and none of them matches: the file is of another dictionary.
    """
    place = {sign: j for j, sign in enumerate(signatures) if sign is not None}
    names = {place[entry.signature]: entry.name for entry in entries if entry.signature in place}
    if entries and not names:
        some = ", ".join(repr(entry.name) for entry in entries[:3])
        hint = "Names follow the top words of a factor; a dictionary trained anew has to be named anew."
        raise UserError("names file", f"{len(entries)} names ({some}, ...)", "a file for this dictionary", hint)
    return MatchedNames(names, tuple(entry for entry in entries if entry.signature not in place))


def read_names(path: Path) -> tuple[NamedFactor, ...]:
    """Read a names file: YAML, a list of entries with `signature`, `name` and, for readers, `words`.

    Raises:
        UserError: no such file, no YAML (tags that would build objects are refused), or an entry that is not as above,
            with its number.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("names file", path, "a text file that can be read", str(error)) from error
    except yaml.YAMLError as error:
        raise UserError("names file", path, "YAML: a list of entries", str(error)) from error
    if content is None:
        return ()
    if not isinstance(content, list):
        raise UserError("names file", path, "a list of entries, each with a signature and a name")
    entries: dict[str, NamedFactor] = {}
    for number, item in enumerate(content, 1):
        entry = _entry(item, f"{path}, entry {number}")
        if entry.signature in entries:
            hint = f"{entries[entry.signature].name!r} has it already."
            raise UserError(f"{path}, entry {number}", entry.signature, "each signature once", hint)
        entries[entry.signature] = entry
    return tuple(entries.values())


def _entry(item: object, where: str) -> NamedFactor:
    if not isinstance(item, dict):
        raise UserError(where, item, "a mapping with signature and name")
    for key in item:
        check_choice(where, key, ("signature", "name", "words"))
    for key in ("signature", "name"):
        if not isinstance(item.get(key), str) or not item[key].strip():
            raise UserError(f"{where}, {key}", item.get(key), "text (in quotes where it reads like a number)")
    words = item.get("words", [])
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise UserError(f"{where}, words", words, "a list of words")
    return NamedFactor(item["signature"], item["name"].strip(), tuple(words))


def write_names(path: Path, entries: Sequence[NamedFactor]) -> None:
    """Write a names file, which `read_names` reads back; the old one stays whole until the new one is."""
    import yaml

    from shared.run import write_atomically

    content = [{"signature": entry.signature, "name": entry.name, "words": list(entry.words)} for entry in entries]
    text = yaml.safe_dump(content, allow_unicode=True, sort_keys=False, default_flow_style=None, width=120)
    write_atomically(path, text.encode())


# -- what a word is made of --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sense:
    """A sense of a word. Attributes: index: of the group, or of the factor where there are no groups; share: of the
    word's code; factors: (factor, share) within, largest first."""

    index: int
    share: float
    factors: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class WordReport:
    """A word taken apart.

    Attributes:
        word: as the vocabulary spells it.
        factors: (factor, alpha, share of sum alpha) of every active factor, largest first. Shares sum to 1 over the
            active factors only: they say nothing of what the code leaves over.
        senses: groups (or factors) with at least the threshold's share, largest first.
        rest: share of the code outside the senses.
        left_over: share of the vector's energy that the code does not explain, "other" in the bars.
    """

    word: str
    factors: tuple[tuple[int, float, float], ...]
    senses: tuple[Sense, ...]
    rest: float
    left_over: float


def senses(
    codes: sparse.csr_array,
    embedding: Embedding,
    word: str,
    labels: NDArray[np.integer] | None = None,
    threshold: float = 0.15,
) -> tuple[Sense, ...]:
    """The senses of a word: groups of factors, or factors where `labels` is None, that hold at least `threshold` of its
    code, alpha_j / sum alpha. Largest first; none for a word without active factors.

    Raises:
        UserError: a word that is not in the vocabulary (the nearest spellings are named), codes of another vocabulary,
            not one label a factor, a threshold outside [0, 1].
    """
    check_range("threshold", threshold, 0, 1)
    _, K = _size(codes)
    if labels is not None and len(labels) != K:
        raise UserError("labels", f"{len(labels)} labels", f"one for each of {K} factors")
    gathered: dict[int, list[tuple[int, float]]] = {}
    for j, _, share in _shares(codes, embedding, word):
        gathered.setdefault(j if labels is None else int(labels[j]), []).append((j, share))
    found = [Sense(index, sum(share for _, share in parts), tuple(parts)) for index, parts in gathered.items()]
    # A sum of shares may miss the threshold by a rounding.
    kept = [sense for sense in found if sense.share >= threshold - 1e-9]
    return tuple(sorted(kept, key=lambda sense: (-sense.share, sense.index)))


def word_report(
    codes: sparse.csr_array,
    embedding: Embedding,
    word: str,
    phi: ArrayLike,
    vectors: ArrayLike,
    labels: NDArray[np.integer] | None = None,
    threshold: float = 0.15,
) -> WordReport:
    """A word's factors, its senses, and what they leave over.

    Args:
        phi: [d, K]. vectors: [V, d], preprocessed as the codes were. Else as `senses`, errors too.
    """
    found = senses(codes, embedding, word, labels, threshold)
    factors = _shares(codes, embedding, word)
    x = np.asarray(vectors)[embedding.row(word)].astype(np.float64)
    columns = np.asarray(phi)[:, [j for j, _, _ in factors]].astype(np.float64)
    residual = x - columns @ np.array([alpha for _, alpha, _ in factors])
    energy = float(x @ x)
    left_over = float(residual @ residual) / energy if energy else 0.0
    rest = max(0.0, 1 - sum(sense.share for sense in found)) if factors else 0.0
    return WordReport(word, tuple(factors), found, rest, left_over)


def _shares(codes: sparse.csr_array, embedding: Embedding, word: str) -> list[tuple[int, float, float]]:
    """(factor, alpha, alpha_j / sum alpha) of a word's active factors, largest first."""
    _check_vocabulary(codes, embedding)
    row: Any = codes[[embedding.row(word)]]
    alpha = row.data.astype(np.float64)
    total = float(alpha.sum())
    order = np.lexsort((row.indices, -alpha))
    return [(int(row.indices[at]), float(alpha[at]), float(alpha[at]) / total) for at in order if alpha[at] > 0]
