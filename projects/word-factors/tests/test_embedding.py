"""Rows, case folding, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from shared.config import UserError
from word_factors.embedding import Embedding


def embedding(words: tuple[str, ...], counts: list[float]) -> Embedding:
    vectors = np.arange(2 * len(words), dtype=np.float32).reshape(-1, 2)
    return Embedding(words, vectors, np.array(counts), "corpus", "toy")


def test_folding_keeps_the_most_frequent_form_and_counts_collisions() -> None:
    folded = embedding(("apple", "Bank", "Apple", "bank", "IT"), [5, 2, 9, 7, 1]).fold_case()
    assert folded.words == ("Apple", "bank", "IT")
    assert folded.folded == 2
    np.testing.assert_array_equal(folded.vectors, [[4, 5], [6, 7], [8, 9]])
    assert folded.fold_case().folded == 2


def test_equally_frequent_forms_give_the_earlier() -> None:
    assert embedding(("A", "a"), [1, 1]).fold_case().words == ("A",)


def test_unknown_word_names_the_nearest_spellings() -> None:
    toy = embedding(("queen", "Queens", "king"), [3, 2, 1])
    assert toy.row("king") == 2
    for word in ("quen", "QUEEN"):
        with pytest.raises(UserError, match="queen"):
            toy.row(word)
    with pytest.raises(UserError, match="of the 3 of toy"):
        toy.rows(["king", "zzzzzz"])


def test_digest_depends_on_words_their_order_and_vectors_and_not_on_counts() -> None:
    one, other = embedding(("a", "b"), [2, 1]), embedding(("a", "b"), [9, 8])
    assert one.digest == other.digest
    assert one.digest != embedding(("b", "a"), [2, 1]).digest
    turned = Embedding(one.words, one.vectors[:, ::-1].copy(), one.counts, "corpus", "another training")
    assert one.digest != turned.digest
    wider = Embedding(("a", "b"), np.zeros((2, 3), np.float32), np.ones(2), "corpus", "wide")
    assert wider.digest != one.digest


def test_unit_vectors_keep_a_zero_vector() -> None:
    toy = embedding(("a", "b"), [1, 1])
    np.testing.assert_allclose(np.linalg.norm(toy.unit, axis=1), [1, 1], rtol=1e-6)
    zero = Embedding(("a",), np.zeros((1, 2), np.float32), np.ones(1), "corpus", "zero")
    assert not zero.unit.any()


def test_first_words_and_mismatched_lengths() -> None:
    toy = embedding(("a", "b", "c"), [3, 2, 1])
    assert toy.first(2).words == ("a", "b")
    assert toy.first(None) is toy
    with pytest.raises(ValueError, match="one vector and one count"):
        Embedding(("a",), np.zeros((2, 2), np.float32), np.ones(1), "corpus", "bad")
