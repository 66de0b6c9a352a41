"""Training: reproducible, the vocabulary the same for every method, structure of the text in the vectors."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections import Counter

import numpy as np
import pytest

from shared.config import UserError
from word_factors.corpus import Corpus
from word_factors.embedding import Embedding
from word_factors.train_vectors import METHODS, Method, train_vectors

WITH_GENSIM: tuple[Method, ...] = ("cbow", "sg", "fasttext")


def topics() -> Corpus:
    """Two sets of words that never share a sentence: 600 sentences of 12 words each."""
    rng = np.random.default_rng(3)
    halves = [[f"sea{name}" for name in "abcdefgh"], [f"sky{name}" for name in "abcdefgh"]]
    text = [[str(word) for word in rng.choice(halves[number % 2], 12)] for number in range(600)]
    return Corpus("topics", lambda: text)


def separation(embedding: Embedding) -> float:
    """Mean cosine within a topic minus mean cosine across."""
    cosines = embedding.unit @ embedding.unit.T
    sea = np.array([word.startswith("sea") for word in embedding.words])
    same = sea[:, None] == sea[None, :]
    off = ~np.eye(len(sea), dtype=bool)
    return float(cosines[same & off].mean() - cosines[~same].mean())


@pytest.mark.parametrize("method", METHODS)
def test_words_of_one_topic_come_to_lie_together(method: Method) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        embedding = train_vectors(topics(), method, dim=8, window=5, epochs=30, seed=1, quiet=True)
    assert embedding.vectors.shape == (16, 8)
    assert embedding.vectors.dtype == np.float32
    assert separation(embedding) > 0.3


@pytest.mark.parametrize("method", METHODS)
def test_one_worker_is_reproducible_bit_for_bit_and_a_seed_matters(method: Method) -> None:
    first, again, other = (
        train_vectors(topics(), method, dim=6, epochs=2, seed=seed, quiet=True).vectors for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_another_process_with_another_hash_seed_trains_the_same_vectors() -> None:
    text = [[f"w{i * k % 17}" for i in range(12)] for k in range(1, 40)]
    here = train_vectors(Corpus("text", lambda: text), "cbow", dim=4, epochs=2, quiet=True)
    code = (
        "from word_factors.corpus import Corpus; from word_factors.train_vectors import train_vectors;"
        f"e = train_vectors(Corpus('text', lambda: {text}), 'cbow', dim=4, epochs=2, quiet=True);"
        "print(e.words, e.vectors.tobytes().hex())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    there = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert there.stdout.strip() == f"{here.words} {here.vectors.tobytes().hex()}"


@pytest.mark.parametrize("method", METHODS)
def test_words_are_by_falling_frequency_with_the_counts_of_the_corpus(method: Method) -> None:
    text = topics()
    true = Counter(word for tokens in text for word in tokens)
    embedding = train_vectors(text, method, dim=3, epochs=1, max_words=9, quiet=True)
    assert len(embedding) == 9
    assert embedding.counts_from == "corpus"
    assert embedding.name == f"{method} on topics"
    np.testing.assert_array_equal(embedding.counts, sorted(true.values(), reverse=True)[:9])
    assert [true[word] for word in embedding.words] == embedding.counts.tolist()


def test_min_count_leaves_out_what_is_rarer() -> None:
    text = Corpus("text", lambda: [["a", "b"] * 6, ["c", "a"] * 2])
    assert train_vectors(text, "cbow", dim=2, epochs=1, quiet=True).words == ("a", "b")
    assert train_vectors(text, "cbow", dim=2, epochs=1, min_count=1, quiet=True).words == ("a", "b", "c")


def test_unsound_settings_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="did you mean 'cbow'"):
        train_vectors(topics(), "cbwo", quiet=True)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="--min-count"):
        train_vectors(topics(), min_count=10_000, quiet=True)
    with pytest.raises(UserError, match="--dim"):
        train_vectors(topics(), dim=0, quiet=True)
    with pytest.raises(UserError, match="at least one token"):
        train_vectors(Corpus("empty", lambda: []), quiet=True)
    monkeypatch.setitem(sys.modules, "gensim", None)
    for method in WITH_GENSIM:
        with pytest.raises(UserError, match="not installed"):
            train_vectors(topics(), method, quiet=True)
