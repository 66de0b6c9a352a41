"""Corpora: the same sentences at each pass, whatever the file looks like."""

from __future__ import annotations

import bz2
import gzip
import lzma
import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.config import UserError
from word_factors import corpus as module
from word_factors.corpus import (
    Corpus,
    count_words,
    open_corpus,
    read_corpus,
    sentence_ids,
    token_ids,
    vocabulary_of,
    wikipedia_articles,
)

TEXT = "The cat sat\n\non the mat\nThe end\n"
SENTENCES = [["The", "cat", "sat"], ["on", "the", "mat"], ["The", "end"]]


@pytest.fixture(scope="module")
def articles() -> Corpus:
    return wikipedia_articles()


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    content = text.encode()
    pack = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}.get(path.suffix)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("inside", content)
    else:
        path.write_bytes(pack(content) if pack else content)
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.gz", "a.xz", "a.bz2", "a.zip"])
def test_a_line_is_a_sentence_at_every_pass_and_in_every_compression(name: str, tmp_path: Path) -> None:
    corpus = read_corpus(written(tmp_path, name, TEXT))
    assert list(corpus) == SENTENCES
    assert list(corpus) == SENTENCES
    assert corpus.name == name


def test_compression_is_known_by_content_not_by_suffix(tmp_path: Path) -> None:
    path = written(tmp_path, "a.gz", TEXT).rename(tmp_path / "a.txt")
    assert list(read_corpus(path)) == SENTENCES


def test_lower_folds_case(tmp_path: Path) -> None:
    corpus = read_corpus(written(tmp_path, "a.txt", TEXT), lower=True)
    assert list(corpus)[2] == ["the", "end"]


@given(
    lines=st.lists(st.lists(st.text("ab", min_size=1, max_size=7), max_size=9), max_size=6),
    block=st.integers(1, 12),
    longest=st.integers(1, 5),
)
def test_tokens_survive_any_block_and_any_longest_sentence(lines: list[list[str]], block: int, longest: int) -> None:
    import io

    text = "\n".join(" ".join(line) for line in lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", block)
        read = [piece for piece in module._lines(io.StringIO(text), longest) if piece]
    expected = [line[start : start + longest] for line in lines for start in range(0, len(line), longest)]
    assert read == expected


def test_long_sentences_are_cut_and_nothing_is_lost() -> None:
    tokens = [str(number) for number in range(25_000)]
    pieces = list(Corpus("long", lambda: [tokens]))
    assert [len(piece) for piece in pieces] == [10_000, 10_000, 5_000]
    assert [token for piece in pieces for token in piece] == tokens


def test_text8_comes_in_chunks_of_a_thousand(tmp_path: Path) -> None:
    written(tmp_path, "text8.gz", " " + " ".join(["word"] * 2_500))
    assert [len(piece) for piece in open_corpus("text8", tmp_path)] == [1_000, 1_000, 500]


def test_wiki44_is_an_article_a_line(tmp_path: Path) -> None:
    (tmp_path / "wikipedia_en_2014").mkdir()
    written(tmp_path / "wikipedia_en_2014", "wiki44.txt.xz", "one article\n" + "word " * 10_001 + "\n")
    assert [len(article) for article in open_corpus("wiki44", tmp_path)] == [2, 10_000, 1]


def test_articles_are_those_of_gensims_wiki_corpus(articles: Corpus) -> None:
    from gensim.corpora import WikiCorpus
    from gensim.test.utils import datapath

    reference = WikiCorpus(datapath(module.ARTICLES), processes=1, dictionary={}).get_texts()
    expected = [tokens for text in reference for tokens in text]
    assert [token for tokens in articles for token in tokens] == expected
    assert len(expected) == 452_944
    counts = count_words(articles)
    assert len(vocabulary_of(counts, 5)) == 9_002
    assert max(len(tokens) for tokens in articles) <= 10_000


def test_counts_and_ids_are_those_of_a_plain_loop(articles: Corpus) -> None:
    flat = [token for tokens in articles for token in tokens]
    counts = count_words(articles)
    assert counts == Counter(flat)
    index = {word: row for row, word in enumerate(vocabulary_of(counts, max_words=50))}
    expected = [index[token] for token in flat if token in index]
    ids = token_ids(articles, index)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, expected)
    pieces = list(sentence_ids(articles, index))
    assert len(pieces) == len(list(articles))
    np.testing.assert_array_equal(np.concatenate(pieces), expected)


def test_vocabulary_is_by_falling_frequency_and_ties_by_first_use() -> None:
    counts = Counter(["c", "b", "b", "a", "a", "d", "d", "d"])
    assert vocabulary_of(counts) == ["d", "b", "a", "c"]
    assert vocabulary_of(counts, min_count=2, max_words=2) == ["d", "b"]
    with pytest.raises(UserError, match=r"--min-count.*at most 3"):
        vocabulary_of(counts, min_count=4)


# -- bad input --------------------------------------------------------------------------------------------------------


def test_a_missing_corpus_says_where_it_was_sought(tmp_path: Path) -> None:
    for name, file in (("wiki44", "wikipedia_en_2014/wiki44.txt.xz"), ("text8", "text8.gz")):
        with pytest.raises(UserError, match=name) as error:
            open_corpus(name, tmp_path)
        assert str(tmp_path / file) in str(error.value)
    with pytest.raises(UserError, match="a file that exists"):
        read_corpus(tmp_path / "nothing.txt")
    with pytest.raises(UserError, match="did you mean 'text8'"):
        open_corpus("text9", tmp_path)


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_corpus_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least one token"):
        count_words(read_corpus(written(tmp_path, "a.txt", text)))


def test_damaged_and_undecodable_text_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "a.gz", "some words " * 10_000)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="read to its end"):
        list(read_corpus(path))
    (tmp_path / "latin").write_bytes("café\n".encode("latin-1"))
    with pytest.raises(UserError, match="UTF-8"):
        list(read_corpus(tmp_path / "latin"))
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a", "a")
        archive.writestr("b", "b")
    with pytest.raises(UserError, match="one member"):
        list(read_corpus(tmp_path / "two.zip"))


def test_a_missing_gensim_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gensim", None)
    with pytest.raises(UserError, match="not installed"):
        wikipedia_articles()


def test_importing_needs_neither_gensim_nor_torch() -> None:
    import subprocess

    code = "import sys, word_factors.corpus, word_factors.vectors; assert not {'torch', 'gensim'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
