"""Embeddings from files and back: npz, word2vec, GloVe and fastText formats, gensim's own. Imports no torch, no gensim.

Where frequencies come from is part of an embedding: the file itself if it holds true counts, a corpus or a list of
counts named beside it, else Zipf's law by rank, with a warning.
"""

from __future__ import annotations

import io
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.config import UserError, check_choice, check_range
from shared.data import require
from shared.run import write_atomically
from word_factors.corpus import UNREADABLE, Corpus, count_words, open_decompressed, read_corpus, require_gensim
from word_factors.embedding import CountsFrom, Embedding
from word_factors.vector_rows import header_of, read_rows

UNSEEN = 0.5  # count of a word that the corpus never uses: below the least seen
WRITTEN = (".npz", ".txt", ".vec", ".bin")
PICKLES = (".kv", ".model")


@dataclass(frozen=True)
class KnownVectors:
    """A file that has a name on the command line.

    Attributes:
        files: where it may lie, relative to the data root. what: the data, in words. home: where it comes from.
    """

    files: tuple[str, ...]
    what: str
    home: str


EMBEDDINGS: Mapping[str, KnownVectors] = {
    "googlenews": KnownVectors(
        ("word_vectors/word2vec_googlenews_8k_300d.npz",),
        "8,000 words of word2vec on Google News, 300 dimensions (arrays `words` and `vectors`)",
        "Or use googlenews-full, which has a public home.",
    ),
    "glove-twitter": KnownVectors(
        ("word_vectors/glove_twitter_12k_25d.npz",),
        "11,925 words of GloVe on Twitter, 25 dimensions (arrays `words` and `vectors`)",
        "Or cut it from glove.twitter.27B, at nlp.stanford.edu/projects/glove.",
    ),
    "glove6b": KnownVectors(
        ("glove.6B.300d.txt", "glove.6B.300d.txt.gz"),
        "GloVe on 6 billion tokens, 300 dimensions",
        "Fetch glove.6B.zip from nlp.stanford.edu/projects/glove and unpack it.",
    ),
    "glove840b": KnownVectors(
        ("glove.840B.300d.txt", "glove.840B.300d.txt.gz", "glove.840B.300d.zip"),
        "GloVe on 840 billion tokens, 300 dimensions",
        "Fetch glove.840B.300d.zip from nlp.stanford.edu/projects/glove.",
    ),
    "googlenews-full": KnownVectors(
        ("GoogleNews-vectors-negative300.bin", "GoogleNews-vectors-negative300.bin.gz"),
        "word2vec on Google News, 3 million words and phrases, 300 dimensions",
        "Fetch it from code.google.com/archive/p/word2vec.",
    ),
    "fasttext-wiki": KnownVectors(
        ("wiki-news-300d-1M.vec", "wiki-news-300d-1M.vec.gz", "wiki-news-300d-1M.vec.zip"),
        "fastText on Wikipedia and news, 1 million words, 300 dimensions",
        "Fetch wiki-news-300d-1M.vec.zip from fasttext.cc/docs/en/english-vectors.html.",
    ),
}


def find_embedding(name: str, data_root: Path) -> Path:
    """The file of an embedding. Raises as `open_embedding`."""
    check_choice("--data", name, EMBEDDINGS)
    known = EMBEDDINGS[name]
    return require(data_root, known.files, what=f"{name} ({known.what})", how=known.home)


def open_embedding(
    name: str, data_root: Path, limit: int | None = None, *, counts: Path | Mapping[str, float] | None = None,
    quiet: bool = False,
) -> Embedding:  # fmt: skip
    """An embedding by its name in `EMBEDDINGS`.

    Raises:
        UserError: no such name; the file is not there (says which to put where); see `read_vectors`.
    """
    return read_vectors(find_embedding(name, data_root), limit=limit, counts=counts, name=name, quiet=quiet)


def read_vectors(
    path: Path, *, limit: int | None = None, counts: Path | Mapping[str, float] | None = None,
    name: str | None = None, quiet: bool = False,
) -> Embedding:  # fmt: skip
    """A file of word vectors, its format known by its content.

    Formats: npz (arrays `vectors` [V, d], `words` [V], optional `counts` [V]); word2vec text and binary, fastText
    `.vec`, GloVe text, each plain or compressed; fastText `.bin` (full-word vectors); gensim's `.kv` and `.model` as
    its `save` writes them. The last are pickles, and **reading a pickle can run any code its author chose**: load only
    your own. They are refused under any other suffix; nothing else here runs code.

    Args:
        path: the file.
        limit: keep the first words only. Text and binary files are read no further.
        counts: uses of words: a mapping, a file of `word count` lines, or a corpus as `read_corpus` takes it. Words of
            the embedding that it lacks get 0.5, less than any word seen. Default: the file's own counts; where it has
            none, 1 / (rank + 1) with a warning.
        name: default: the file's.
        quiet: no progress bar.

    Raises:
        UserError: not there, not a known format, unsound (line or row named, see `read_rows`), or counts without any
            of its words.
    """
    check_range("limit", limit, 1)
    if not path.is_file():
        raise UserError("vectors", path, "a file that exists")
    words, vectors, own = _reader(path)(path, limit, quiet)
    source: CountsFrom
    if counts is not None:
        found, source = counts_of(words, counts), "corpus"
    elif own is not None:
        found, source = own, "vectors"
    else:
        message = (
            f"{path.name} says nothing about frequencies: taking Zipf's law, 1 / (rank + 1), by the order of its words."
            " Name a corpus or a file of counts for true ones."
        )
        warnings.warn(message, stacklevel=2)
        found, source = 1 / (np.arange(len(words)) + 1.0), "rank"
    return Embedding(tuple(words), vectors, found, source, name or path.name)


def write_vectors(embedding: Embedding, path: Path) -> None:
    """Write an embedding in the format of the suffix; the file appears whole or not at all.

    `.npz` holds everything, counts too unless they were made from ranks; `.txt` and `.vec` are word2vec text with a
    header and nine digits (float32 exactly), `.bin` is word2vec binary: both without counts, most frequent first.

    Raises:
        UserError: another suffix; a word with white space for any format but npz.
    """
    check_choice("--out", path.suffix, WRITTEN)
    vectors = np.ascontiguousarray(embedding.vectors, "<f4")
    buffer = io.BytesIO()
    if path.suffix == ".npz":
        arrays: dict[str, Any] = {"vectors": vectors, "words": np.array(embedding.words, dtype=np.str_)}
        if embedding.counts_from != "rank":
            arrays["counts"] = embedding.counts
        np.savez_compressed(buffer, **arrays)
        write_atomically(path, buffer.getvalue())
        return
    spaced = next((word for word in embedding.words if word.split() != [word]), None)
    if spaced is not None:
        raise UserError(
            "--out", path, "an .npz file", f"{spaced!r} holds white space, which {path.suffix} cannot keep."
        )
    order = np.argsort(-embedding.counts, kind="stable")  # readers take the order for the frequency
    buffer.write(f"{len(embedding)} {embedding.dim}\n".encode())
    line = " ".join(["%.9g"] * embedding.dim) + "\n"
    for row in order:
        buffer.write(embedding.words[row].encode() + b" ")
        buffer.write(
            vectors[row].tobytes() + b"\n" if path.suffix == ".bin" else (line % tuple(vectors[row].tolist())).encode()
        )
    write_atomically(path, buffer.getvalue())


# -- formats ----------------------------------------------------------------------------------------------------------

_Read = tuple[list[str], NDArray[np.float32], NDArray[np.float64] | None]


def _reader(path: Path) -> Callable[[Path, int | None, bool], _Read]:
    with open(path, "rb") as raw:
        magic = raw.read(4)
    if magic == b"PK\x03\x04" and _is_npz(path):
        return _read_npz
    if magic[:1] == b"\x80":
        if path.suffix not in PICKLES:
            hint = "It is a pickle, which can run code: if it is your own gensim file, give it that suffix."
            raise UserError("vectors", path, " or ".join(PICKLES) + " for a file saved by gensim", hint)
        return _read_gensim
    try:
        with open_decompressed(path) as file:
            start = file.readline(1 << 16)
    except UNREADABLE as error:
        raise UserError("vectors", path, "a file that can be read", str(error)) from error
    if start[:4] == b"\xba\x16\x4f\x2f" or (path.suffix == ".bin" and header_of(start) is None):
        return _read_facebook
    return _read_rows


def _is_npz(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(member.endswith(".npy") for member in archive.namelist())
    except zipfile.BadZipFile as error:
        raise UserError("vectors", path, "an npz file that is whole", str(error)) from error


def _read_rows(path: Path, limit: int | None, quiet: bool) -> _Read:
    return *read_rows(path, limit, quiet), None


def _read_npz(path: Path, limit: int | None, quiet: bool) -> _Read:
    try:
        with np.load(path, allow_pickle=False) as file:
            for name in ("vectors", "words"):
                if name not in file.files:
                    raise UserError(f"{path}, array", name, file.files, f"It holds {', '.join(file.files)}.")
            vectors, words = file["vectors"], file["words"]
            counts = file["counts"] if "counts" in file.files else None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        # Object arrays are pickles, and raise here.
        raise UserError("vectors", path, "an npz file of plain arrays", str(error)) from error
    if vectors.ndim != 2 or vectors.dtype.kind not in "fiu" or words.ndim != 1 or words.dtype.kind != "U":
        found = f"vectors {vectors.dtype} {vectors.shape}, words {words.dtype} {words.shape}"
        raise UserError(f"{path}", found, "vectors [V, d] of numbers and words [V] of text")
    if len(words) != len(vectors) or (counts is not None and counts.shape != words.shape):
        found = f"{len(vectors)} vectors, {len(words)} words, counts {None if counts is None else counts.shape}"
        raise UserError(f"{path}", found, "as many vectors and counts as words")
    checked = _checked(path, words[:limit].tolist(), vectors[:limit])
    return *checked, _own_counts(path, counts[:limit]) if counts is not None else None


def _read_gensim(path: Path, limit: int | None, quiet: bool) -> _Read:
    require_gensim(f"{path.name}")
    from gensim.models import KeyedVectors

    try:
        loaded: Any = KeyedVectors.load(str(path))
    except Exception as error:  # any bytes at all reach the unpickler here
        raise UserError("vectors", path, "a file that gensim has saved", repr(error)) from error
    return _from_keyed_vectors(path, getattr(loaded, "wv", loaded), limit)


def _read_facebook(path: Path, limit: int | None, quiet: bool) -> _Read:
    require_gensim(f"{path.name}")
    from gensim.models.fasttext import load_facebook_vectors

    try:
        loaded = load_facebook_vectors(str(path))
    except Exception as error:  # any bytes at all reach gensim's parser here
        hint = f"Its first line is no header `V d`, and gensim cannot read it as fastText: {error!r}"
        raise UserError("vectors", path, "a word2vec or fastText binary file", hint) from error
    return _from_keyed_vectors(path, loaded, limit)


def _from_keyed_vectors(path: Path, loaded: Any, limit: int | None) -> _Read:
    words = getattr(loaded, "index_to_key", None)
    if words is None or len(words) == 0:
        raise UserError("vectors", path, "a gensim file with word vectors", f"It holds a {type(loaded).__name__}.")
    expandos: Mapping[str, Any] = getattr(loaded, "expandos", {})
    counts = np.asarray(expandos["count"]) if "count" in expandos else None
    # gensim's text loaders make up counts V, V - 1, ... where the file has none.
    if counts is not None and (counts == np.arange(len(words), 0, -1)).all():
        counts = None
    checked = _checked(path, list(words[:limit]), loaded.vectors[: len(words)][:limit])
    return *checked, _own_counts(path, counts[:limit]) if counts is not None else None


def _checked(path: Path, words: list[str], vectors: NDArray[Any]) -> tuple[list[str], NDArray[np.float32]]:
    """Refuse what `read_rows` refuses, by row."""
    if not words or vectors.shape[1] == 0:
        raise UserError("vectors", path, "at least one word of at least one coordinate")
    first: dict[str, int] = {}
    for row, word in enumerate(words, 1):
        if first.setdefault(word, row) != row:
            raise UserError(f"{path}, row {row}", word, f"distinct words (it stands on row {first[word]} too)")
    with np.errstate(over="ignore"):
        single = np.ascontiguousarray(vectors, np.float32)
    for good, valid in (
        (np.isfinite(single).all(axis=1), "finite coordinates"),
        (single.any(axis=1), "a vector that is not zero: it has no direction"),
    ):
        if not good.all():
            row = int(np.argmin(good))
            raise UserError(f"{path}, row {row + 1}", words[row], valid)
    return words, single


# -- counts -----------------------------------------------------------------------------------------------------------


def _own_counts(path: Path, counts: NDArray[Any]) -> NDArray[np.float64]:
    if counts.dtype.kind not in "fiu" or not (np.isfinite(counts) & (counts > 0)).all():
        raise UserError(f"{path}, counts", "a count that is not positive", "positive, finite counts")
    return counts.astype(np.float64)


def counts_of(words: list[str], counts: Path | Mapping[str, float]) -> NDArray[np.float64]:
    table = counts if isinstance(counts, Mapping) else read_counts(counts)
    found = np.array([table.get(word, 0) for word in words], dtype=np.float64)
    if not (np.isfinite(found) & (found >= 0)).all():
        word = words[int(np.argmin(np.isfinite(found) & (found >= 0)))]
        raise UserError(f"count of {word}", table[word], "a positive, finite number")
    if not found.any():
        where = "the mapping" if isinstance(counts, Mapping) else counts
        raise UserError("--counts", where, "a corpus that uses words of the embedding", "Not one is in it.")
    return np.where(found == 0, UNSEEN, found)


def is_count_list(source: Path) -> bool:
    """Whether a file is a list of counts: its first 20 lines are each two fields, the second a whole number.

    Raises:
        UserError: no such file, or one that cannot be read.
    """
    if not source.is_file():
        raise UserError("--counts", source, "a file that exists")
    try:
        with open_decompressed(source) as file:
            lines = [line.split() for line in islice(iter(lambda: file.readline(1 << 16), b""), 20)]
    except UNREADABLE as error:
        raise UserError("--counts", source, "a file that can be read", str(error)) from error
    return bool(lines) and all(len(line) == 2 and line[1].isdigit() for line in lines)


def read_counts(source: Path | Corpus) -> Mapping[str, float]:
    """Uses of words: from a corpus, or from a file, either of `word count` lines or of running text.

    A file is a list of counts if its first 20 lines are each two fields, the second a whole number.

    Raises:
        UserError: not there or not readable; a malformed line or a word twice in a list of counts (line named).
    """
    if isinstance(source, Corpus):
        return count_words(source)
    if not is_count_list(source):
        return count_words(read_corpus(source))
    try:
        with open_decompressed(source) as file:
            return _count_list(file, source)
    except UNREADABLE as error:
        raise UserError("--counts", source, "a file that can be read", str(error)) from error


def _count_list(lines: Iterable[bytes], source: Path) -> dict[str, float]:
    """A list of counts has the grammar of vectors of one coordinate, but counts of 0 are sound in it."""
    table: dict[str, float] = {}
    for place, line in enumerate(lines, 1):
        if not (fields := line.split()):
            continue
        if len(fields) != 2 or not fields[1].isdigit():
            raise UserError(f"{source}, line {place}", line[:60].decode("utf-8", "replace"), "`word count`")
        word = fields[0].decode("utf-8", "replace")
        if word in table:
            raise UserError(f"{source}, line {place}", word, "distinct words")
        table[word] = int(fields[1])
    return table
