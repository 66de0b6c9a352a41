"""Weights agree where their exponents do; batches are a function of seed and position alone."""

from __future__ import annotations

import numpy as np
import pytest

from shared.config import UserError
from word_factors.weighting import WEIGHTINGS, WordSampler, root_frequency, weights

COUNTS = 1e6 / (np.arange(200) + 1.0) ** 1.1


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_weights_have_mean_one_under_the_draw(weighting: str) -> None:
    q, c = weights(COUNTS, weighting)  # pyright: ignore[reportArgumentType]
    assert q.sum() == pytest.approx(1)
    assert q @ c == pytest.approx(1)


def test_weightings_with_equal_sum_of_exponents_have_one_expectation() -> None:
    """What the dictionary step sees on average is q c: the root of the frequency in three of the five."""
    for weighting in ("sqrt", "sqrt-uniform", "corpus"):
        q, c = weights(COUNTS, weighting)  # pyright: ignore[reportArgumentType]
        np.testing.assert_allclose(q * c, root_frequency(COUNTS), rtol=1e-12)
    q, c = weights(COUNTS, "uniform")
    assert not np.allclose(q * c, root_frequency(COUNTS), rtol=0.1)


def test_gradients_of_sqrt_and_sqrt_uniform_agree_in_expectation() -> None:
    """The same on sampled batches: the mean weighted residual of many draws."""
    residual = np.random.default_rng(0).standard_normal((200, 5))
    means = []
    for weighting in ("sqrt", "sqrt-uniform"):
        q, c = weights(COUNTS, weighting)  # pyright: ignore[reportArgumentType]
        sampler = WordSampler(q, 1000, seed=1)
        rows = np.concatenate([sampler.batch(t) for t in range(400)])
        means.append((c[rows, None] * residual[rows]).mean(axis=0))
    expected = root_frequency(COUNTS) @ residual
    np.testing.assert_allclose(means, [expected, expected], atol=0.01)


def test_words_are_drawn_as_often_as_q_says() -> None:
    q, _ = weights(COUNTS, "frequency")
    sampler = WordSampler(q, 5000, seed=3)
    drawn = np.bincount(np.concatenate([sampler.batch(t) for t in range(100)]), minlength=200) / 500_000
    np.testing.assert_allclose(drawn, q, atol=5 * np.sqrt(q.max() / 500_000))


def test_uniform_draws_every_word_once_an_epoch() -> None:
    q, _ = weights(COUNTS, "uniform")
    sampler = WordSampler(q, 32, seed=4)
    rows = np.concatenate([sampler.batch(t) for t in range(25)])  # 800 places: four epochs
    for epoch in range(4):
        assert sorted(rows[200 * epoch : 200 * (epoch + 1)]) == list(range(200))
    assert not np.array_equal(rows[:200], rows[200:400])
    assert len(sampler) == 7


def test_corpus_walks_the_text_in_order() -> None:
    tokens = np.arange(10, dtype=np.int32) % 4
    sampler = WordSampler(np.full(4, 0.25), 4, seed=0, tokens=tokens)
    assert [sampler.batch(t).tolist() for t in range(3)] == [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 0, 1]]
    assert len(sampler) == 3


def test_sampler_resumes_at_its_position() -> None:
    q, _ = weights(COUNTS, "sqrt")
    sampler = WordSampler(q, 8, seed=5)
    stream = iter(sampler)
    for _ in range(3):
        next(stream)
    other = WordSampler(q, 8, seed=5)
    other.load_state_dict(sampler.state_dict())
    assert next(iter(other)).tolist() == next(stream).tolist()


@pytest.mark.parametrize("weighting", ["sqrt", "uniform"])
def test_two_processes_share_the_batch_of_one_twice_as_large(weighting: str) -> None:
    q, _ = weights(COUNTS, weighting)  # pyright: ignore[reportArgumentType]
    whole = WordSampler(q, 16, seed=6).batch(2)
    halves = [WordSampler(q, 8, seed=6, rank=rank, world=2).batch(2) for rank in (0, 1)]
    assert whole.tolist() == np.concatenate(halves).tolist()


def test_unknown_weighting_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'uniform'"):
        weights(COUNTS, "unifrom")  # pyright: ignore[reportArgumentType]
