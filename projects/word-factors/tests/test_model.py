"""A model saved, loaded and attached encodes bit for bit as before; it refuses what is not its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse

from shared.checkpoint import save_atomically
from shared.config import UserError
from word_factors.embedding import Embedding
from word_factors.model import FactorModel, load_codes, save_codes
from word_factors.preprocess import Transform

Planted = tuple[Embedding, np.ndarray, np.ndarray]


@pytest.fixture
def model(planted: Planted) -> FactorModel:
    embedding, phi, _ = planted
    return FactorModel(
        torch.from_numpy(phi), 0.02, Transform.fit("none", embedding.vectors), embedding.digest, embedding
    )


def test_encoding_finds_the_planted_activations(model: FactorModel, planted: Planted) -> None:
    _, _, alpha = planted
    codes = model.encode().toarray()
    assert np.corrcoef(codes.ravel(), alpha.ravel())[0, 1] > 0.97
    assert codes.min() >= 0
    assert model.residual_share(model.encode()).mean() < 0.01


def test_saved_loaded_and_encoded_again_is_equal_to_the_bit(model: FactorModel, tmp_path: Path) -> None:
    model.save(tmp_path / "model.pt")
    assert model.embedding is not None
    again = FactorModel.load(tmp_path / "model.pt").attach(model.embedding)
    one, other = model.encode(), again.encode()
    assert (one != other).nnz == 0
    assert again.digest == model.digest
    save_codes(one, model.digest, tmp_path / "codes.npz")
    back, digest = load_codes(tmp_path / "codes.npz")
    assert (back != one).nnz == 0
    assert digest == model.digest


def test_words_vectors_and_vocabulary_give_the_same_codes(model: FactorModel) -> None:
    assert model.embedding is not None
    whole = model.encode(tol=1e-6)
    words = ["word7", "word399", "word7"]
    np.testing.assert_allclose(model.encode(words, tol=1e-6).toarray(), whole[[7, 399, 7]].toarray(), atol=1e-5)
    raw = model.embedding.vectors[[7, 399]]
    np.testing.assert_allclose(model.encode(raw, tol=1e-6).toarray(), whole[[7, 399]].toarray(), atol=1e-5)
    np.testing.assert_allclose(model.encode(tol=1e-6, batch_size=33).toarray(), whole.toarray(), atol=1e-5)


def test_decoding_comes_back_to_the_vectors(model: FactorModel) -> None:
    assert model.embedding is not None
    back = model.decode(model.encode())
    left = np.square(back - model.embedding.vectors).sum() / np.square(model.embedding.vectors).sum()
    assert left < 0.01


def test_unit_preprocessing_is_undone_with_the_norms(planted: Planted) -> None:
    embedding, phi, _ = planted
    transform = Transform.fit("unit", embedding.vectors)
    model = FactorModel(torch.from_numpy(phi), 0.01, transform, embedding.digest, embedding)
    back = model.decode(model.encode(), np.linalg.norm(embedding.vectors, axis=1))
    assert np.square(back - embedding.vectors).sum() / np.square(embedding.vectors).sum() < 0.01


def test_factors_of_a_word_and_top_words_of_a_factor(model: FactorModel) -> None:
    codes = model.encode().toarray()
    found = model.factors_of("word3", 2)
    assert [j for j, _ in found] == np.argsort(-codes[3])[:2].tolist()
    assert [alpha for _, alpha in found] == pytest.approx(sorted(codes[3], reverse=True)[:2], abs=1e-3)
    top = model.top_words(5, 4)
    assert [word for word, _ in top] == [f"word{row}" for row in np.argsort(-codes[:, 5])[:4]]
    with pytest.raises(UserError, match=r"\[0, 23\]"):
        model.top_words(24)


def test_dictionary_of_another_embedding_is_refused(model: FactorModel) -> None:
    assert model.embedding is not None
    other = replace(model.embedding, words=("other", *model.embedding.words[1:]))
    rotated = replace(model.embedding, vectors=model.embedding.vectors[:, ::-1].copy())
    for another in (other, rotated):
        with pytest.raises(UserError, match="other words or other vectors"):
            model.attach(another)
    narrower = Embedding(other.words, other.vectors[:, :8], other.counts, "corpus", "narrow")
    with pytest.raises(UserError, match="8 dimensions"):
        model.attach(narrower)
    model.embedding = None
    with pytest.raises(UserError, match="attach"):
        model.encode(["word1"])


def test_unknown_words_and_vectors_of_another_dimension_are_refused(model: FactorModel) -> None:
    with pytest.raises(UserError, match="word39"):
        model.encode(["word39x"])
    with pytest.raises(UserError, match=r"\[n, 16\]"):
        model.encode(np.zeros((2, 3), np.float32))


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    save_atomically({"format": 1, "step": 3}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="word-factors train"):
        FactorModel.load(tmp_path / "other.pt")
    with pytest.raises(UserError, match="exists"):
        load_codes(tmp_path / "none.npz")
    np.savez(tmp_path / "wrong.npz", x=np.zeros(3))
    with pytest.raises(UserError, match="encode"):
        load_codes(tmp_path / "wrong.npz")


def test_no_vectors_give_no_codes(model: FactorModel) -> None:
    codes = model.encode(np.zeros((0, 16), np.float32))
    assert isinstance(codes, sparse.csr_array)
    assert codes.shape == (0, 24)
