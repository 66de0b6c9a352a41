"""Text and binary vectors: equal to gensim's loader on sound files, the place named on unsound ones."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gensim.models import KeyedVectors
from gensim.test.utils import datapath
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.config import UserError
from word_factors.vector_rows import _binary, _Rows, layout_of, read_rows

TEXT_WITH_HEADER = (
    "word2vec_pre_kv_c",
    "EN.1-10.cbow1_wind5_hs0_neg10_size300_smpl1e-05.txt",
    "lee_fasttext.vec",
    "crime-and-punishment.vec",
    "high_precision.kv.txt",
)
BINARY = ("euclidean_vectors.bin", "poincare_vectors.bin", "high_precision.kv.bin")


def reference(name: str, **options: Any) -> KeyedVectors:
    return KeyedVectors.load_word2vec_format(datapath(name), **options)


def assert_equal_to(loaded: KeyedVectors, words: list[str], vectors: np.ndarray) -> None:
    assert words == loaded.index_to_key
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, loaded.vectors)


@pytest.mark.parametrize("name", TEXT_WITH_HEADER)
def test_text_with_header_equals_gensim(name: str) -> None:
    path = Path(datapath(name))
    assert layout_of(path) == ("text", True)
    assert_equal_to(reference(name), *read_rows(path, quiet=True))


@pytest.mark.parametrize("name", BINARY)
def test_binary_equals_gensim(name: str) -> None:
    path = Path(datapath(name))
    assert layout_of(path) == ("binary", True)
    assert_equal_to(reference(name, binary=True), *read_rows(path, quiet=True))


def test_glove_text_equals_gensim_without_header() -> None:
    path = Path(datapath("test_glove.txt"))
    assert layout_of(path) == ("text", False)
    assert_equal_to(reference("test_glove.txt", no_header=True), *read_rows(path, quiet=True))


@pytest.mark.parametrize("name", ["word2vec_pre_kv_c", "test_glove.txt", "euclidean_vectors.bin"])
def test_compressed_is_the_same_and_limit_takes_the_first(name: str, tmp_path: Path) -> None:
    words, vectors = read_rows(Path(datapath(name)), quiet=True)
    packed = tmp_path / (name + ".gz")
    packed.write_bytes(gzip.compress(Path(datapath(name)).read_bytes()))
    for limit in (1, 7, len(words), len(words) + 1, None):
        some, few = read_rows(packed, limit, quiet=True)
        assert some == words[:limit]
        np.testing.assert_array_equal(few, vectors[:limit])


def test_what_lies_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("3 2\na 1 2\nb 3 4\nc bad\n")
    assert read_rows(path, 2, quiet=True)[0] == ["a", "b"]
    with pytest.raises(UserError, match="line 4"):
        read_rows(path, 3, quiet=True)


def test_many_rows_stay_in_order(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((9_001, 2)).astype(np.float32)
    path = tmp_path / "a.txt"
    path.write_text("".join(f"w{row} {x:.9g} {y:.9g}\n" for row, (x, y) in enumerate(vectors)))
    words, read = read_rows(path, quiet=True)
    assert words == [f"w{row}" for row in range(9_001)]
    np.testing.assert_array_equal(read, vectors)


def test_words_may_hold_spaces_and_be_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("1 0.5 -1e-3\n. . . 1 2\nat name@domain.com 3 4\n\t x\t5   6 \n", encoding="utf-8")
    words, vectors = read_rows(path, quiet=True)
    assert words == ["1", ". . .", "at name@domain.com", "x"]
    np.testing.assert_array_equal(vectors, np.array([[0.5, -1e-3], [1, 2], [3, 4], [5, 6]], np.float32))


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False).filter(bool), min_size=3, max_size=3),
    st.booleans(),
)
def test_binary_with_and_without_new_lines_round_trips(values: list[float], newline: bool) -> None:
    vectors = np.array([values, values[::-1]], "<f4")
    content = b"2 3\n" + b"".join(
        word + b" " + row.tobytes() + (b"\n" if newline else b"")
        for word, row in zip((b"one", "zwölf".encode()), vectors, strict=True)
    )
    rows = _Rows(Path("memory"), "row")
    list(_binary(io.BytesIO(content), rows, None))
    words, read = rows.done()
    assert words == ["one", "zwölf"]
    np.testing.assert_array_equal(read, vectors)


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a 1 2\nb 1 2 3\n", r"line 2: got '3 coordinates'; valid: 2, as line 1"),
        ("a 1 2\nb 1\n", r"line 2: got '1 coordinates'"),
        ("2 3\na 1 2 3\nb 1 2\n", r"line 3: got '2 coordinates'; valid: 3, as the header on line 1"),
        ("2 4\na 1 2 3\nb 1 2 3\n", r"line 2: got '3 coordinates'; valid: 4, as the header"),
        ("a 1 2\nb 1 x\n", r"line 2: got 'x'; valid: a number"),
        ("a 1 2\nb nan 2\n", r"line 2: got 'b: nan'; valid: finite"),
        ("a 1 2\nb 1 -inf\n", r"line 2: got 'b: -inf'"),
        ("a 1 2\nb 1 1e39\n", r"line 2: got 'b: inf'"),
        ("a 1 2\nb 0 -0.0\n", r"line 2: got 'b'; valid: a vector that is not zero"),
        ("a 1 2\nb 1 2\n\na 3 4\n", r"line 4: got 'a'; valid: distinct words \(it stands on line 1 too"),
        ("3 2\na 1 2\nb 1 2\n", r"line 3: got 'the end after 2 words'; valid: the 3 words of the header"),
        ("1 2\na 1 2\nb 1 2\n", r"line 3: got 'another word'; valid: the 1 words of the header"),
        ("1 0\na\n", r"line 1: got '1 0'"),
        ("0 2\n", "at least one word"),
        ("", "a file of word vectors"),
        ("word\nother\n", "a file of word vectors"),
        ("some words here\n", r"line 1: got 'some words here"),
    ],
)
def test_unsound_text_names_the_line(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=says):
        read_rows(path, quiet=True)


def test_a_header_that_promises_more_is_refused_as_by_gensim() -> None:
    with pytest.raises(EOFError):
        reference("pretrained.vec")
    with pytest.raises(UserError, match=r"the end after 1 words.*the 3 words of the header"):
        read_rows(Path(datapath("pretrained.vec")), quiet=True)


def test_a_word_that_is_not_utf8_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"modeldata, line 2.*UTF-8"):
        read_rows(Path(datapath("w2v_keyedvectors_load_test.modeldata")), quiet=True)


def row(word: bytes, *values: float) -> bytes:
    return word + b" " + np.array(values, "<f4").tobytes()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"2 2\n" + row(b"a", 1, 2) + row(b"b", 1, 2)[:-1], r"row 2: got 'the end of the file'"),
        (b"3 2\n" + row(b"a", 1, 2) + row(b"b", 1, 2), r"row 3: got 'the end of the file'"),
        (b"1 2\n" + row(b"a", 1, 2) + row(b"b", 1, 2), r"row 1: got 'more bytes after it'"),
        (b"2 2\n" + row(b"a", 1, 2) + row(b"a", 1, 3), r"row 2: got 'a'.*row 1 too"),
        (b"2 2\n" + row(b"a", 1, 2) + row(b"b", 1, np.nan), r"row 2: got 'b: nan'"),
        (b"2 2\n" + row(b"a", 1, 2) + row(b"b", 0, 0), r"row 2: got 'b'; valid: a vector that is not zero"),
        (b"2 2\n" + row(b"a", 1, 2) + b"\xff" + row(b"b", 1, 2), r"row 2.*UTF-8"),
        (b"1 2\n" + b"\x00 \x01" + b"x" * 9_000, r"row 1"),
    ],
)
def test_unsound_binary_names_the_row(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    assert layout_of(path) == ("binary", True)
    with pytest.raises(UserError, match=says):
        read_rows(path, quiet=True)


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(Path(datapath("word2vec_pre_kv_c")).read_bytes())[:-2_000])
    with pytest.raises(UserError, match="read to its end"):
        read_rows(path, quiet=True)
