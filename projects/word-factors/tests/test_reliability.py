"""Matching of dictionaries against planted permutations, other formulas, and the exact law of random cosines."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, sparse, stats

from shared.config import UserError
from word_factors.embedding import Embedding
from word_factors.reliability import (
    found_in,
    match_factors,
    match_profiles,
    random_control,
    reliability,
    shared_rows,
    shuffled_control,
    stable_factors,
)


def dictionary(d: int, K: int, seed: int) -> np.ndarray:
    phi = np.random.default_rng(seed).standard_normal((d, K))
    return phi / np.linalg.norm(phi, axis=0)


def sparse_codes(V: int, K: int, seed: int) -> sparse.csr_array:
    stream = np.random.default_rng(seed)
    return sparse.csr_array((stream.exponential(size=(V, K)) * (stream.random((V, K)) < 0.1)).astype(np.float32))


def embedding(words: str, counts: list[float] | None = None) -> Embedding:
    listed = tuple(words.split())
    frequency = np.array(counts or range(len(listed), 0, -1), float)
    return Embedding(listed, np.ones((len(listed), 3), np.float32), frequency, "corpus", words)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_a_permuted_noised_dictionary_recovers_the_permutation(seed: int) -> None:
    stream = np.random.default_rng(seed)
    phi = dictionary(40, 30, seed)
    order = stream.permutation(30)
    psi = phi[:, order] + 0.3 / np.sqrt(40) * stream.standard_normal((40, 30))
    found = match_factors(phi, psi)
    truth = np.argsort(order)
    np.testing.assert_array_equal(found.columns, truth)
    np.testing.assert_array_equal(found.nearest, truth)
    # Noise of norm 0.3 at a right angle: cosine 1 / sqrt(1.09).
    assert found.mean == pytest.approx(1 / np.sqrt(1.09), abs=0.03)


def test_a_dictionary_matches_itself_whatever_the_length_of_its_columns() -> None:
    phi = dictionary(16, 24, 0)
    found = match_factors(phi, phi * np.linspace(0.1, 9, 24))
    np.testing.assert_allclose(found.best, 1, atol=1e-12)
    np.testing.assert_allclose(found.assigned, 1, atol=1e-12)
    np.testing.assert_array_equal(found.nearest, np.arange(24))
    assert found.share(0.9) == 1


def test_the_assignment_is_the_best_of_all_permutations() -> None:
    phi, psi = dictionary(3, 6, 1), dictionary(3, 6, 2)
    cosines = phi.T @ psi
    best = max(cosines[np.arange(6), list(order)].mean() for order in itertools.permutations(range(6)))
    found = match_factors(phi, psi)
    assert found.assigned_mean == pytest.approx(best)
    assert found.assigned_mean <= found.mean


def test_the_assignment_is_symmetric_and_the_best_match_need_not_be() -> None:
    phi, psi = dictionary(5, 12, 3), dictionary(5, 9, 4)
    forth, back = match_factors(phi, psi), match_factors(psi, phi)
    assert len(forth.rows) == len(back.rows) == 9
    assert forth.assigned.sum() == pytest.approx(back.assigned.sum())
    assert set(zip(forth.rows.tolist(), forth.columns.tolist(), strict=True)) == set(
        zip(back.columns.tolist(), back.rows.tolist(), strict=True)
    )
    np.testing.assert_allclose(forth.best, (phi.T @ psi).max(1))
    np.testing.assert_allclose(back.best, (phi.T @ psi).max(0))


def test_what_is_reported_is_the_best_cosines_summarised() -> None:
    phi, psi = dictionary(5, 40, 3), dictionary(5, 40, 4)
    found = match_factors(phi, psi)
    report = found.to_json()
    assert report["mean"] == pytest.approx(found.best.mean())
    assert report["shares"]["0.8"] == pytest.approx((found.best > 0.8).sum() / 40)
    assert report["quantiles"]["0.5"] == pytest.approx(np.median(found.best))
    assert report["shares"]["0.6"] >= report["shares"]["0.8"] >= report["shares"]["0.9"]


def test_a_zero_column_matches_nothing() -> None:
    phi = dictionary(8, 5, 0)
    dead = phi.copy()
    dead[:, 2] = 0
    found = match_factors(dead, phi)
    assert found.best[2] == 0
    assert np.isfinite(found.best).all()


def test_the_random_control_has_the_exact_mean_of_the_largest_of_independent_cosines() -> None:
    # The cosine t with a random unit vector has (t + 1) / 2 ~ Beta((d - 1) / 2, (d - 1) / 2), and the cosines of one
    # vector with L independent ones are independent: E max = 1 - integral of F^L over [-1, 1].
    d, L = 30, 50
    law = stats.beta((d - 1) / 2, (d - 1) / 2, loc=-1, scale=2)
    expected = 1 - integrate.quad(lambda t: law.cdf(t) ** L, -1, 1)[0]
    found = random_control(d, 2000, L, seed=3, draws=4)
    assert found.shape == (8000,)
    assert found.mean() == pytest.approx(expected, abs=0.005)
    np.testing.assert_array_equal(found, random_control(d, 2000, L, seed=3, draws=4))
    assert not np.array_equal(found, random_control(d, 2000, L, seed=4, draws=4))


def test_profiles_of_permuted_factors_match_and_scale_does_not_matter() -> None:
    codes = sparse_codes(300, 20, 0)
    order = np.random.default_rng(1).permutation(20)
    others = sparse.csr_array(codes[:, order] * np.linspace(0.5, 2, 20, dtype=np.float32))
    found = match_profiles(codes, others)
    np.testing.assert_array_equal(found.columns, np.argsort(order))
    np.testing.assert_allclose(found.best, 1, atol=1e-6)


def test_profiles_are_cosines_of_dense_columns_and_a_dead_factor_matches_nothing() -> None:
    codes, others = sparse_codes(200, 12, 2), sparse_codes(200, 15, 3)
    dense: Any = codes.toarray()
    dense[:, 4] = 0
    found = match_profiles(sparse.csr_array(dense), others)
    other: Any = others.toarray()
    with np.errstate(invalid="ignore"):
        cosines = (dense / np.linalg.norm(dense, axis=0)).T @ (other / np.linalg.norm(other, axis=0))
    np.testing.assert_allclose(found.best, np.nan_to_num(cosines).max(1), rtol=1e-5)
    assert found.best[4] == 0


def test_shuffling_the_words_takes_away_what_factors_share() -> None:
    codes = sparse_codes(400, 20, 0)
    control = shuffled_control(codes, codes, seed=0)
    assert control.shape == (60,)
    assert match_profiles(codes, codes).mean == pytest.approx(1)
    assert control.mean() < 0.35
    # Shuffled profiles are as those of unrelated codes.
    assert control.mean() == pytest.approx(match_profiles(codes, sparse_codes(400, 20, 9)).mean, abs=0.05)


def test_shared_rows_are_the_words_that_both_have() -> None:
    one, other = embedding("the cat Paris sat"), embedding("paris dog sat the The", [1, 1, 1, 2, 9])
    rows, others = shared_rows(one, other)
    assert [one.words[row] for row in rows] == ["the", "Paris", "sat"]
    assert [other.words[row] for row in others] == ["The", "paris", "sat"]
    exact, exacts = shared_rows(one, other, fold_case=False)
    assert [one.words[row] for row in exact] == [other.words[row] for row in exacts] == ["the", "sat"]
    back, backs = shared_rows(other, one)
    assert set(zip(rows.tolist(), others.tolist(), strict=True)) == set(zip(backs.tolist(), back.tolist(), strict=True))


def test_reliability_and_stable_factors_of_planted_runs() -> None:
    stream = np.random.default_rng(0)
    common, runs = dictionary(60, 10, 0), []
    for seed in range(4):
        own = dictionary(60, 10, 10 + seed)
        if seed >= 2:
            own[:, 3] = common[:, 9]  # the last common factor leaves, and comes back under another number
        mixed = np.concatenate([common[:, :9] + 0.01 * stream.standard_normal((60, 9)), own], axis=1)
        runs.append(mixed if seed == 0 else mixed[:, stream.permutation(19)])
    runs[0][:, 9] = common[:, 9]
    np.testing.assert_array_equal(stable_factors(runs, 4), np.arange(9))
    np.testing.assert_array_equal(stable_factors(runs, 3), np.arange(10))
    np.testing.assert_array_equal(stable_factors(runs, 1), np.arange(19))
    np.testing.assert_array_equal(found_in(runs)[:10], [4] * 9 + [3])
    expected = np.mean([match_factors(runs[0], other).best for other in runs[1:]], axis=0)
    np.testing.assert_allclose(reliability(runs), expected)
    assert reliability(runs)[:9].min() > 0.98
    assert reliability(runs)[10:].max() < 0.7


def test_refusals_name_what_is_wrong() -> None:
    phi = dictionary(8, 5, 0)
    with pytest.raises(UserError, match=r"(?s)dictionary.*9 dimensions.*activations on shared words") as refusal:
        match_factors(phi, dictionary(9, 5, 0))
    assert refusal.value.valid.startswith("8")
    with pytest.raises(UserError, match="same 10 words"):
        match_profiles(sparse_codes(10, 3, 0), sparse_codes(11, 3, 0))
    with pytest.raises(UserError, match="two or more"):
        reliability([phi])
    with pytest.raises(UserError, match=r"^r: got '3'"):
        stable_factors([phi, phi], 3)
    with pytest.raises(UserError, match="shares words"):
        shared_rows(embedding("a b"), embedding("c d"))
    with pytest.raises(UserError, match="at least one factor"):
        match_factors(phi, np.zeros((8, 0)))
