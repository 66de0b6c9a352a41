"""Running text: what word vectors are trained on, and where the frequencies of words come from. Imports no gensim.

A corpus is read anew at each pass and never held as a whole (except gensim's articles, which are slow to parse), so
that text larger than memory can be used.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from shared.config import UserError, check_choice
from shared.data import require

CORPORA: tuple[str, ...] = ("articles", "wiki44", "text8")
ARTICLES = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"  # in gensim's wheel
WIKI44 = ("wikipedia_en_2014/wiki44.txt.xz",)
TEXT8 = ("text8", "text8.gz", "text8.xz", "text8.zip")
LONGEST = 10_000  # tokens of a sentence: gensim drops what is beyond, without a word
TEXT8_CHUNK = 1_000  # tokens: text8 is one line without sentences
_BLOCK = 1 << 20  # characters read at a time: a line may be the whole file

UNREADABLE = (OSError, EOFError, lzma.LZMAError, zlib.error, zipfile.BadZipFile)  # a damaged archive, each in its way


class Corpus:
    """Sentences, each a list of tokens, that can be iterated any number of times.

    Args:
        name: what tables and errors call it.
        read: starts a pass over the text. Sentences of more than `longest` tokens are cut into pieces.
        longest: tokens a sentence.

    Raises:
        UserError: while iterating, when a pass ends without a token.
    """

    def __init__(self, name: str, read: Callable[[], Iterable[list[str]]], longest: int = LONGEST) -> None:
        self.name, self._read, self.longest = name, read, longest

    def __iter__(self) -> Iterator[list[str]]:
        empty = True
        for tokens in self._read():
            for start in range(0, len(tokens), self.longest):
                empty = False
                yield tokens[start : start + self.longest]
        if empty:
            raise UserError("corpus", self.name, "text with at least one token")


def open_corpus(name: str, data_root: Path) -> Corpus:
    """A corpus by its name.

    Args:
        name: articles: 106 Wikipedia articles inside gensim; wiki44: English Wikipedia of 2014, an article a line;
            text8: the first 100 MB of cleaned Wikipedia.
        data_root: folder that wiki44 and text8 lie in.

    Raises:
        UserError: no such name; a file that is not there; gensim missing.
    """
    check_choice("--data", name, CORPORA)
    if name == "articles":
        return wikipedia_articles()
    if name == "wiki44":
        path = require(data_root, WIKI44, what="wiki44", how="English Wikipedia text, an article a line.")
        return read_corpus(path, name=name)
    path = require(data_root, TEXT8, what="text8", how="Fetch text8.zip from mattmahoney.net/dc/textdata.html.")
    return read_corpus(path, name=name, longest=TEXT8_CHUNK)


def read_corpus(path: Path, *, name: str | None = None, lower: bool = False, longest: int = LONGEST) -> Corpus:
    """A plain text file as a corpus: a line is a sentence or a paragraph, tokens are separated by white space.

    Args:
        path: text in UTF-8, plain or compressed (gzip, xz, bzip2, a zip with one member).
        name: default: the file's.
        lower: fold to lower case.
        longest: tokens a sentence; longer lines are cut.

    Raises:
        UserError: not there or a folder at once; while iterating: damaged, not UTF-8, or empty.
    """
    _check_file("--corpus", path)

    def sentences() -> Iterator[list[str]]:
        try:
            with open_decompressed(path) as raw, io.TextIOWrapper(raw, encoding="utf-8") as text:
                for line in _lines(text, longest):
                    yield [token.lower() for token in line] if lower else line
        except UnicodeDecodeError as error:
            raise UserError(
                "corpus", path, "text in UTF-8", f"{error.reason}: {error.object[error.start]:#x}"
            ) from None
        except UNREADABLE as error:
            raise UserError("corpus", path, "a file that can be read to its end", str(error)) from error

    return Corpus(name or path.name, sentences, longest)


def wikipedia_articles() -> Corpus:
    """The 106 Wikipedia articles that ship inside gensim as a dump, tokenised as gensim's `WikiCorpus` does: lower
    case, tokens of 2 to 15 letters. Parsed once, in this process, and kept: about 450,000 tokens.

    Raises:
        UserError: gensim missing.
    """
    require_gensim("the corpus 'articles'")
    kept: list[list[str]] = []

    def articles() -> list[list[str]]:
        if not kept:
            kept.extend(_parse_articles())
        return kept

    return Corpus("articles", articles)


def count_words(corpus: Iterable[list[str]]) -> Counter[str]:
    """Uses of each word, in order of first use."""
    counts: Counter[str] = Counter()
    for tokens in corpus:
        counts.update(tokens)
    return counts


def vocabulary_of(counts: Mapping[str, float], min_count: float = 1, max_words: int | None = None) -> list[str]:
    """Words used at least `min_count` times, most frequent first (ties: first met first), at most `max_words`.

    Raises:
        UserError: none is left.
    """
    kept = [word for word, count in counts.items() if count >= min_count]
    if not kept:
        raise UserError(
            "--min-count", min_count, f"at most {max(counts.values(), default=0):g}, the most frequent word's"
        )
    kept.sort(key=lambda word: -counts[word])  # stable
    return kept[:max_words]


def sentence_ids(corpus: Iterable[list[str]], index: Mapping[str, int]) -> Iterator[NDArray[np.int32]]:
    """Each sentence as word rows, int32; words outside the vocabulary are dropped."""
    for tokens in corpus:
        yield np.fromiter((index[token] for token in tokens if token in index), np.int32)


def token_ids(corpus: Iterable[list[str]], index: Mapping[str, int]) -> NDArray[np.int32]:
    """The running text as word rows, [tokens] int32; words outside the vocabulary are dropped."""
    return np.concatenate([np.zeros(0, np.int32), *sentence_ids(corpus, index)])


def require_gensim(purpose: str) -> None:
    """Raise `UserError` unless gensim can be imported."""
    try:
        import gensim  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        hint = f"Install it: pip install 'gensim>=4.4'. ({error})"
        raise UserError("gensim", "not installed", f"gensim, which {purpose} needs", hint) from error


@contextmanager
def open_decompressed(path: Path, raw: IO[bytes] | None = None) -> Iterator[IO[bytes]]:
    """The content of a file as bytes; gzip, xz, bzip2 and zip are known by their first bytes, not by their suffix.

    Args:
        path: the file.
        raw: the file, already open at its start, for a caller that watches its position.

    Raises:
        UserError: a zip with several members.
    """
    with ExitStack() as stack:
        raw = raw or stack.enter_context(open(path, "rb"))
        magic = raw.read(6)
        raw.seek(0)
        if magic.startswith(b"\x1f\x8b"):
            yield stack.enter_context(gzip.GzipFile(fileobj=raw))  # pyright: ignore[reportReturnType]
        elif magic.startswith(b"\xfd7zXZ\x00"):
            yield stack.enter_context(lzma.open(raw))
        elif magic.startswith(b"BZh"):
            yield stack.enter_context(bz2.open(raw))
        elif magic.startswith(b"PK\x03\x04"):
            archive = stack.enter_context(zipfile.ZipFile(raw))
            members = [member for member in archive.namelist() if not member.endswith("/")]
            if len(members) != 1:
                hint = f"It holds {', '.join(members[:5])}: unpack it."
                raise UserError("file", path, "a zip with one member", hint)
            yield stack.enter_context(archive.open(members[0]))
        else:
            yield raw


def _check_file(field: str, path: Path) -> None:
    if not path.is_file():
        raise UserError(field, path, "a file that exists")


def _lines(text: IO[str], longest: int) -> Iterator[list[str]]:
    """Tokens of each line, in pieces where a line is long; never holds more than a block and a piece."""
    pending: list[str] = []  # tokens of a line whose end has not been seen
    begun = ""  # a token cut by the end of the block
    while block := text.readline(_BLOCK):
        block = begun + block
        tokens = block.split()
        ended = block.endswith("\n")
        begun = "" if ended or block[-1].isspace() else tokens.pop()
        pending += tokens
        whole = len(pending) if ended else len(pending) // longest * longest
        for start in range(0, whole, longest):
            yield pending[start : min(start + longest, whole)]
        del pending[:whole]
    if begun:
        pending.append(begun)
    if pending:
        yield pending


def _parse_articles() -> Iterator[list[str]]:
    # WikiCorpus itself starts worker processes at each pass, which a worker of a seed pool may not.
    from gensim.corpora import wikicorpus
    from gensim.test.utils import datapath

    dump = Path(datapath(ARTICLES))
    if not dump.exists():
        hint = "This build of gensim comes without its test data; PyPI's wheels have it."
        raise UserError("articles", "no such file", f"data at {dump}", hint)
    with bz2.open(dump) as file:
        for title, text, page in wikicorpus.extract_pages(file, ("0",)):  # pyright: ignore[reportArgumentType]
            tokens, _, _ = wikicorpus.process_article((text, title, page))
            ignored = any(title.startswith(space + ":") for space in wikicorpus.IGNORED_NAMESPACES)
            if len(tokens) >= wikicorpus.ARTICLE_MIN_WORDS and not ignored:  # redirects and stubs
                yield tokens
