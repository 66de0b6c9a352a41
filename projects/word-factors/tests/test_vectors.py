"""Embeddings in and out: every format against gensim, counts only from where they are true."""

from __future__ import annotations

import dataclasses
import gzip
import pickle
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gensim.corpora import Dictionary
from gensim.models import FastText, KeyedVectors, Word2Vec
from gensim.models.fasttext import load_facebook_vectors
from gensim.test.utils import common_texts, datapath

from shared.config import UserError
from word_factors.corpus import Corpus
from word_factors.embedding import Embedding
from word_factors.vectors import EMBEDDINGS, open_embedding, read_counts, read_vectors, write_vectors


@pytest.fixture
def toy() -> Embedding:
    vectors = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
    vectors[2] *= 1e-30
    return Embedding(("the", "Über", "naïve", "x"), vectors, np.array([9.0, 4.0, 2.5, 1.0]), "corpus", "toy")


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def test_npz_keeps_everything_bit_for_bit(toy: Embedding, tmp_path: Path) -> None:
    spaced = dataclasses.replace(toy, words=("the", "New York", "naïve", "x"))
    write_vectors(spaced, tmp_path / "a.npz")
    read = read_vectors(tmp_path / "a.npz", quiet=True)
    assert read.words == spaced.words
    np.testing.assert_array_equal(read.vectors, toy.vectors)
    np.testing.assert_array_equal(read.counts, toy.counts)
    assert (read.counts_from, read.name) == ("vectors", "a.npz")


@pytest.mark.parametrize("suffix", [".txt", ".vec", ".bin"])
def test_written_files_are_read_alike_by_us_and_by_gensim(suffix: str, toy: Embedding, tmp_path: Path) -> None:
    path = tmp_path / ("a" + suffix)
    write_vectors(toy, path)
    with pytest.warns(UserWarning, match="Zipf"):
        read = read_vectors(path, quiet=True)
    loaded = KeyedVectors.load_word2vec_format(str(path), binary=suffix == ".bin")
    assert list(read.words) == loaded.index_to_key == list(toy.words)
    np.testing.assert_array_equal(read.vectors, toy.vectors)
    np.testing.assert_array_equal(loaded.vectors, toy.vectors)


def test_formats_without_counts_are_written_most_frequent_first(toy: Embedding, tmp_path: Path) -> None:
    write_vectors(toy.take([3, 1, 0, 2]), tmp_path / "a.txt")
    with pytest.warns(UserWarning, match="Zipf"):
        assert read_vectors(tmp_path / "a.txt", quiet=True).words == toy.words


def test_counts_made_from_ranks_are_not_written_as_if_true(toy: Embedding, tmp_path: Path) -> None:
    write_vectors(dataclasses.replace(toy, counts_from="rank"), tmp_path / "a.npz")
    with pytest.warns(UserWarning, match="Zipf"):
        read = read_vectors(tmp_path / "a.npz", quiet=True)
    assert read.counts_from == "rank"
    np.testing.assert_allclose(read.counts, [1, 1 / 2, 1 / 3, 1 / 4])


@pytest.mark.parametrize("kind", [Word2Vec, FastText])
def test_gensims_own_files_keep_vectors_and_true_counts(kind: Any, tmp_path: Path) -> None:
    model = kind(common_texts, vector_size=6, min_count=1, seed=1, workers=1, epochs=1, **_small(kind))
    for name, saved in (("a.model", model), ("a.kv", model.wv)):
        saved.save(str(tmp_path / name))
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            read = read_vectors(tmp_path / name, limit=5, quiet=True)
        assert list(read.words) == model.wv.index_to_key[:5]
        np.testing.assert_array_equal(read.vectors, model.wv.vectors[:5])
        flat = [word for text in common_texts for word in text]
        np.testing.assert_array_equal(read.counts, [flat.count(word) for word in read.words])
        assert read.counts_from == "vectors"


def _small(kind: Any) -> dict[str, int]:
    return {"bucket": 100} if kind is FastText else {}


def test_counts_that_gensim_makes_up_are_not_taken(tmp_path: Path) -> None:
    loaded = KeyedVectors.load_word2vec_format(datapath("word2vec_pre_kv_c"))
    assert loaded.get_vecattr("the", "count") == len(loaded)  # made up
    loaded.save(str(tmp_path / "a.kv"))
    with pytest.warns(UserWarning, match="Zipf"):
        read = read_vectors(tmp_path / "a.kv", quiet=True)
    assert read.counts_from == "rank"


@pytest.mark.parametrize("name", ["lee_fasttext_new.bin", "crime-and-punishment.bin", "lee_fasttext.bin"])
def test_fasttext_binary_gives_the_full_words_of_gensim(name: str) -> None:
    loaded = load_facebook_vectors(datapath(name))
    read = read_vectors(Path(datapath(name)), quiet=True)
    assert list(read.words) == loaded.index_to_key
    np.testing.assert_array_equal(read.vectors, np.stack([loaded[word] for word in read.words]))
    assert read.counts_from == "vectors"
    np.testing.assert_array_equal(read.counts, [loaded.get_vecattr(word, "count") for word in read.words])


def test_float16_and_limit(tmp_path: Path) -> None:
    half = np.arange(1, 7).reshape(3, 2).astype(np.float16)
    path = npz(tmp_path / "a.npz", vectors=half, words=np.array(["a", "b", "c"]), counts=np.array([3, 2, 1]))
    read = read_vectors(path, limit=2, quiet=True)
    assert read.words == ("a", "b")
    assert read.vectors.dtype == np.float32
    np.testing.assert_array_equal(read.vectors, half[:2])
    np.testing.assert_array_equal(read.counts, [3.0, 2.0])


# -- counts -----------------------------------------------------------------------------------------------------------


def test_counts_come_from_a_mapping_a_list_or_running_text_alike(toy: Embedding, tmp_path: Path) -> None:
    write_vectors(toy, tmp_path / "a.txt")
    (tmp_path / "list.txt").write_text("the 3\nx\t2\nother 7\nzero 0\n")
    (tmp_path / "text.gz").write_bytes(gzip.compress(b"the the x other\nx the other other\n"))
    for counts in ({"the": 3, "x": 2}, tmp_path / "list.txt", tmp_path / "text.gz"):
        read = read_vectors(tmp_path / "a.txt", counts=counts, quiet=True)
        np.testing.assert_array_equal(read.counts, [3, 0.5, 0.5, 2])
        assert read.counts_from == "corpus"


def test_counts_of_a_corpus_are_its_words() -> None:
    assert read_counts(Corpus("toy", lambda: [["a", "b"], ["a"]])) == {"a": 2, "b": 1}


def test_unsound_counts_are_refused(toy: Embedding, tmp_path: Path) -> None:
    write_vectors(toy, tmp_path / "a.txt")
    good = "".join(f"w{number} 1\n" for number in range(20))
    for text, says in ((good + "w3 5\n", "line 21.*distinct"), (good + "the many\n", "line 21.*word count")):
        (tmp_path / "list.txt").write_text(text)
        with pytest.raises(UserError, match=says):
            read_vectors(tmp_path / "a.txt", counts=tmp_path / "list.txt", quiet=True)
    with pytest.raises(UserError, match="Not one is in it"):
        read_vectors(tmp_path / "a.txt", counts={"elsewhere": 1}, quiet=True)
    with pytest.raises(UserError, match="count of the"):
        read_vectors(tmp_path / "a.txt", counts={"the": -1}, quiet=True)
    with pytest.raises(UserError, match="a file that exists"):
        read_vectors(tmp_path / "a.txt", counts=tmp_path / "none", quiet=True)


# -- bad input --------------------------------------------------------------------------------------------------------

TWO = np.ones((2, 3), np.float32)
WORDS = np.array(["a", "b"])


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"words": WORDS}, "vectors"),
        ({"vectors": TWO}, "words"),
        ({"vectors": TWO, "words": np.array(["a", "b", "c"])}, "as many"),
        ({"vectors": TWO, "words": WORDS, "counts": np.ones(3)}, "as many"),
        ({"vectors": TWO[0], "words": WORDS}, r"vectors \[V, d\]"),
        ({"vectors": TWO, "words": np.array([1, 2])}, r"words \[V\] of text"),
        ({"vectors": TWO, "words": np.array(["a", "a"])}, r"row 2: got 'a'.*row 1 too"),
        ({"vectors": TWO * [[1], [np.inf]], "words": WORDS}, r"row 2: got 'b'; valid: finite"),
        ({"vectors": TWO * [[1], [0]], "words": WORDS}, r"row 2: got 'b'; valid: a vector that is not zero"),
        ({"vectors": TWO, "words": WORDS, "counts": np.array([1, 0])}, "positive"),
        ({"vectors": TWO[:, :0], "words": WORDS}, "at least one coordinate"),
        ({"vectors": TWO, "words": np.array(["a", "b"], dtype=object)}, "plain arrays"),
    ],
)
def test_unsound_npz_is_refused(arrays: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        read_vectors(npz(tmp_path / "a.npz", **arrays), quiet=True)


class Hostile:
    """Unpickled, makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_under_another_suffix_is_never_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    for name in ("glove.txt", "vectors.bin", "vectors"):
        (tmp_path / name).write_bytes(pickle.dumps(Hostile(trace)))
        with pytest.raises(UserError, match="pickle"):
            read_vectors(tmp_path / name, quiet=True)
    objects = np.array([Hostile(trace)] * 2, dtype=object)
    with pytest.raises(UserError, match="plain arrays"):
        read_vectors(npz(tmp_path / "a.npz", vectors=TWO, words=objects), quiet=True)
    assert not trace.exists()


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    Dictionary([["a"]]).save(str(tmp_path / "a.model"))
    with pytest.raises(UserError, match="It holds a Dictionary"):
        read_vectors(tmp_path / "a.model", quiet=True)
    (tmp_path / "b.kv").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UserError, match="gensim has saved"):
        read_vectors(tmp_path / "b.kv", quiet=True)
    (tmp_path / "a.bin").write_bytes(b"\xba\x16\x4f\x2f\x0c\x00\x00\x00broken")
    with pytest.raises(UserError, match="fastText"):
        read_vectors(tmp_path / "a.bin", quiet=True)
    whole = npz(tmp_path / "a.npz", vectors=TWO, words=WORDS).read_bytes()
    (tmp_path / "b.npz").write_bytes(whole[:-30])
    with pytest.raises(UserError, match="whole"):
        read_vectors(tmp_path / "b.npz", quiet=True)
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("glove.50d.txt", "a 1 2")
        archive.writestr("glove.100d.txt", "a 1 2 3")
    with pytest.raises(UserError, match="one member"):
        read_vectors(tmp_path / "c.zip", quiet=True)
    with pytest.raises(UserError, match="a file that exists"):
        read_vectors(tmp_path / "nothing", quiet=True)


@pytest.mark.parametrize("damage", ["cut", "flipped", "no zip", "cut further on"])
def test_damaged_counts_are_refused(damage: str, toy: Embedding, tmp_path: Path) -> None:
    path = tmp_path / ("counts.zip" if damage == "no zip" else "counts.gz")
    whole = gzip.compress("".join(f"word{n} {n + 1}\n" for n in range(5000)).encode())
    cut = {"cut": whole[:40], "flipped": whole[:12] + bytes(60) + whole[72:], "cut further on": whole[:-4000]}
    path.write_bytes(cut.get(damage, b"PK\x03\x04junk"))
    with pytest.raises(UserError) as caught:
        read_counts(path)
    assert str(path) in str(caught.value)


def test_any_bytes_under_gensims_suffix_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.kv").write_bytes(b"\x80\x04\x95" + np.random.default_rng(0).bytes(200))
    with pytest.raises(UserError, match="gensim has saved"):
        read_vectors(tmp_path / "a.kv", quiet=True)


def test_a_zip_of_one_text_file_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.vec.zip", "w") as archive:
        archive.writestr("a.vec", "2 2\na 1 2\nb 3 4\n")
    with pytest.warns(UserWarning, match="Zipf"):
        assert read_vectors(tmp_path / "a.vec.zip", quiet=True).words == ("a", "b")


def test_writing_refuses_what_a_format_cannot_hold(toy: Embedding, tmp_path: Path) -> None:
    spaced = dataclasses.replace(toy, words=("the", "New York", "naïve", "x"))
    for suffix in (".txt", ".bin"):
        with pytest.raises(UserError, match="white space"):
            write_vectors(spaced, tmp_path / ("a" + suffix))
    with pytest.raises(UserError, match=r"\.npz"):
        write_vectors(toy, tmp_path / "a.csv")
    assert not list(tmp_path.iterdir())


def test_a_missing_gensim_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.kv").write_bytes(pickle.dumps(1))
    monkeypatch.setitem(sys.modules, "gensim", None)
    with pytest.raises(UserError, match="not installed"):
        read_vectors(tmp_path / "a.kv", quiet=True)


# -- names ------------------------------------------------------------------------------------------------------------


def test_embeddings_open_by_name_and_a_missing_one_says_what_to_put_where(tmp_path: Path) -> None:
    for name, known in EMBEDDINGS.items():
        with pytest.raises(UserError, match="no such file") as error:
            open_embedding(name, tmp_path)
        assert str(tmp_path / known.files[0]) in str(error.value)
        assert known.home in str(error.value)
    (tmp_path / "glove.6B.300d.txt.gz").write_bytes(gzip.compress(Path(datapath("test_glove.txt")).read_bytes()))
    read = open_embedding("glove6b", tmp_path, 3, counts={"the": 10}, quiet=True)
    assert (len(read), read.dim, read.name, read.counts[0]) == (3, 50, "glove6b", 10)
    with pytest.raises(UserError, match="did you mean 'glove6b'"):
        open_embedding("glove6", tmp_path)
