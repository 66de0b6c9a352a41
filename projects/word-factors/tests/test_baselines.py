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


def test_spine_codes_lie_in_the_unit_interval_and_the_seed_decides(vectors: np.ndarray) -> None:
    one, same, other = (spine(vectors, 12, seed, steps=30) for seed in (0, 0, 1))
    assert one.dtype == np.float32
    assert one.min() >= 0
    assert one.max() <= 1
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_units_of_spine_come_to_follow_planted_features() -> None:
    # Vectors that are sums of a few of 12 directions. Some units die, so that not every direction finds one.
    stream = np.random.default_rng(0)
    features = (stream.random((1000, 12)) < 0.15).astype(np.float32)
    planted = (features @ np.linalg.qr(stream.normal(size=(16, 12)))[0].T).astype(np.float32)

    def found(codes: np.ndarray) -> np.ndarray:
        used = codes[:, codes.std(axis=0) > 0]
        return np.corrcoef(features.T, used.T)[:12, 12:].max(axis=1)

    before, after = (spine(planted, 24, steps=steps, batch_size=128, rate=5e-3) for steps in (0, 1500))
    assert after.min() >= 0
    assert after.max() <= 1
    assert (after > 0).mean() < (before > 0).mean()  # learning makes codes sparser
    assert (found(after) > 0.98).sum() >= 5
    assert not (found(before) > 0.98).any()


def test_an_unknown_baseline_is_refused_with_the_nearest_name(vectors: np.ndarray) -> None:
    with pytest.raises(UserError, match="did you mean 'rotation'"):
        baseline_scores("rotations", vectors, 12, 0.1)  # pyright: ignore[reportArgumentType]
