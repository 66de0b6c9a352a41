"""Baselines: what each must keep of the vectors, and that seeds decide."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shared.config import UserError
from word_factors.baselines import (
    BASELINES,
    baseline_scores,
    both_signs,
    independent_components,
    principal_components,
    random_rotation,
    sklearn_dictionary,
    spine,
)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    stream = np.random.default_rng(0)
    return (stream.laplace(size=(300, 8)) @ stream.normal(size=(8, 8))).astype(np.float32)


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "spine"])
def test_every_baseline_gives_finite_scores_for_every_word_and_the_same_for_the_same_seed(
    name: Any, vectors: np.ndarray
) -> None:
    scores = baseline_scores(name, vectors, 12, 0.1, seed=1)
    assert scores.dtype == np.float32
    assert scores.shape == (300, 12 if name == "sklearn" else 16)
    assert np.isfinite(scores).all()
    np.testing.assert_array_equal(scores, baseline_scores(name, vectors, 12, 0.1, seed=1))


@pytest.mark.parametrize("name", ["raw", "pca", "ica", "rotation"])
def test_signed_baselines_hold_each_column_in_both_directions(name: Any, vectors: np.ndarray) -> None:
    scores = baseline_scores(name, vectors, 12, 0.1)
    np.testing.assert_array_equal(scores[:, :8], -scores[:, 8:])


def test_a_rotation_keeps_lengths_and_angles_and_differs_by_seed(vectors: np.ndarray) -> None:
    turned = random_rotation(vectors, 0)[:, :8]
    np.testing.assert_allclose(turned @ turned.T, vectors @ vectors.T, rtol=1e-3, atol=1e-2)
    assert not np.allclose(turned, random_rotation(vectors, 1)[:, :8])
    np.testing.assert_array_equal(both_signs(vectors), np.hstack([vectors, -vectors]))


def test_principal_components_are_uncorrelated_with_falling_variance(vectors: np.ndarray) -> None:
    covariance = np.cov(principal_components(vectors)[:, :8].T)
    np.testing.assert_allclose(covariance - np.diag(np.diag(covariance)), 0, atol=1e-3 * covariance.max())
    assert (np.diff(np.diag(covariance)) <= 0).all()


def test_independent_components_find_planted_sources() -> None:
    stream = np.random.default_rng(1)
    sources = stream.laplace(size=(4000, 4))
    found = independent_components(sources @ stream.normal(size=(4, 4)))[:, :4]
    assert np.abs(np.corrcoef(sources.T, found.T)[:4, 4:]).max(1).min() > 0.97


def test_the_dictionary_of_scikit_learn_gives_sparse_codes_that_are_not_negative(vectors: np.ndarray) -> None:
    codes = sklearn_dictionary(vectors, 16, 2.0)
    assert codes.min() >= 0
    assert 0 < (codes > 0).mean() < 0.6


def test_spine_codes_lie_in_the_unit_interval_and_learning_makes_them_sparse(vectors: np.ndarray) -> None:
    start, end = spine(vectors, 24, steps=0), spine(vectors, 24, steps=800, rate=3e-3)
    for codes in (start, end):
        assert codes.min() >= 0
        assert codes.max() <= 1
    # What the two sparsity losses ask for: little mean activity beyond 0.15, and units that are on or off.
    assert end.mean() < 0.25
    partial = (end * (1 - end)).sum(1).mean()
    assert partial < 0.7 * (start * (1 - start)).sum(1).mean() or partial < 2
    # And what reconstruction asks for: the vectors can be read off the codes better than before.
    assert _unexplained(end, vectors) < 0.8 * _unexplained(start, vectors)
    assert not np.array_equal(end, spine(vectors, 24, seed=1, steps=800, rate=3e-3))


def _unexplained(codes: np.ndarray, vectors: np.ndarray) -> float:
    design = np.hstack([codes, np.ones((len(codes), 1))])
    residual = vectors - design @ np.linalg.lstsq(design, vectors, rcond=None)[0]
    return float(np.square(residual).sum() / np.square(vectors - vectors.mean(0)).sum())


def test_an_unknown_baseline_is_refused_with_the_nearest_name(vectors: np.ndarray) -> None:
    with pytest.raises(UserError, match="did you mean 'rotation'"):
        baseline_scores("rotations", vectors, 12, 0.1)  # pyright: ignore[reportArgumentType]
