"""Identities on real word vectors: run where they are at hand (`PAPERS_DATA`), skipped elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from word_factors.analogy import Space, answer, three_cos_add, three_cos_mul
from word_factors.analysis import google_questions
from word_factors.dictionary import OnlineUpdate, unit_columns
from word_factors.embedding import Embedding
from word_factors.inference import fista, solve
from word_factors.questions import AnalogyTask
from word_factors.vectors import find_embedding, read_vectors

ROOT = Path(os.environ.get("PAPERS_DATA", "nowhere"))
FILE = ROOT / "word_vectors" / "word2vec_googlenews_8k_300d.npz"
pytestmark = pytest.mark.skipif(not FILE.exists(), reason="word2vec of Google News is not under PAPERS_DATA")


@pytest.fixture(scope="module")
def embedding() -> Embedding:
    with pytest.warns(UserWarning, match="frequencies"):
        return read_vectors(find_embedding("googlenews", ROOT), quiet=True)


@pytest.fixture(scope="module")
def phi(embedding: Embedding) -> torch.Tensor:
    """[300, 400] after a few online steps."""
    generator = torch.Generator().manual_seed(0)
    X = torch.from_numpy(embedding.unit.T.copy())
    phi = unit_columns(X[:, torch.randperm(X.shape[1], generator=generator)[:400]])
    online = OnlineUpdate(300, 400, 0.97)
    for _ in range(20):
        batch = X[:, torch.randint(0, X.shape[1], (256,), generator=generator)]
        phi, _ = online.update(phi, batch, fista(batch, phi, 0.1, 50).alpha, torch.ones(256))
    return phi


def test_codes_of_real_words_are_the_lasso_of_scikit_learn(embedding: Embedding, phi: torch.Tensor) -> None:
    from sklearn.linear_model import Lasso

    X = torch.from_numpy(embedding.unit[:1000:20].T.copy()).double()
    model = Lasso(alpha=0.1 / 300, positive=True, fit_intercept=False, tol=1e-12, max_iter=1_000_000)
    expected = np.stack([model.fit(phi.double(), x).coef_.copy() for x in X.T], axis=1)
    exact = solve(X, phi.double(), 0.1, tol=1e-8).alpha
    converged = fista(X, phi.double(), 0.1, 5000, tol=1e-8, restart=True).alpha
    np.testing.assert_allclose(exact, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(converged, expected, rtol=0, atol=1e-6)
    # After 150 plain steps most words are within 5e-4; the claim `fista-exact` holds that against the worst.
    off = np.abs(fista(X, phi.double(), 0.1, 150).alpha.numpy() - expected).max(axis=0)
    assert np.median(off) <= 5e-4
    restarted = fista(X, phi.double(), 0.1, 150, restart=True).alpha.numpy()
    np.testing.assert_allclose(restarted, expected, rtol=0, atol=5e-4)


@pytest.mark.parametrize(("rule", "method"), [("add", "most_similar"), ("mul", "most_similar_cosmul")])
def test_answers_on_real_vectors_are_gensims_question_by_question(embedding: Embedding, rule: str, method: str) -> None:
    from gensim.models import KeyedVectors

    keyed = KeyedVectors(embedding.dim)
    keyed.add_vectors(list(embedding.words), embedding.vectors)
    task = AnalogyTask.from_file(google_questions()).in_vocabulary(embedding)
    space = Space(embedding.vectors, task.forms)
    asked = 0
    for section in task.sections:
        abc = section.abc()
        ours = answer(space, three_cos_add if rule == "add" else three_cos_mul, abc)
        for question, found in zip(abc.tolist(), ours.tolist(), strict=True):
            a, b, c = (embedding.words[row] for row in question)
            # As gensim's evaluation folds case: another spelling of a, b or c is no answer, any of the answer is.
            best = getattr(keyed, method)(positive=[b, c], negative=[a], topn=10)
            theirs = next(word.lower() for word, _ in best if word.lower() not in {a.lower(), b.lower(), c.lower()})
            assert theirs == embedding.words[found].lower(), (section.name, a, b, c)
            asked += 1
    assert asked == len(task) == 4686
