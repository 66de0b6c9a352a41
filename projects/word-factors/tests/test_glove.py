"""GloVe: counts against a plain loop, gradients against finite differences, a low-rank matrix recovered."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
import torch
from scipy import sparse

from shared.config import UserError
from word_factors.glove import GloveParameters, cooccurrences, fit_weight, loss_and_gradients, train_glove

TEXT = [
    ["a", "b", "c", "a", "d", "b", "x", "a"],
    ["b"],
    [],
    ["x", "d", "d", "d", "c", "a", "b", "c", "a", "b"],
    ["x", "y", "z"],
    ["c", "d"],
]
INDEX = {"a": 0, "b": 1, "c": 2, "d": 3}


def plain_loop(text: list[list[str]], window: int) -> np.ndarray:
    counts = defaultdict(float)
    for tokens in text:
        known = [INDEX[token] for token in tokens if token in INDEX]
        for here, word in enumerate(known):
            for there, other in enumerate(known):
                if here != there and abs(here - there) <= window:
                    counts[word, other] += 1 / abs(here - there)
    dense = np.zeros((4, 4))
    for (row, column), value in counts.items():
        dense[row, column] = value
    return dense


@pytest.mark.parametrize("window", [1, 2, 5, 10])
@pytest.mark.parametrize("chunk", [1, 4, 1_000])
def test_cooccurrences_equal_a_plain_double_loop(window: int, chunk: int) -> None:
    found = cooccurrences(TEXT, INDEX, window, chunk)
    np.testing.assert_allclose(found.toarray(), plain_loop(TEXT, window), atol=1e-12)
    assert (found != found.T).nnz == 0


def test_no_pair_spans_a_boundary() -> None:
    found = cooccurrences([["a", "b"], ["c", "d"]], INDEX)
    expected = np.zeros((4, 4))
    expected[0, 1] = expected[1, 0] = expected[2, 3] = expected[3, 2] = 1
    np.testing.assert_array_equal(found.toarray(), expected)


def test_weight_is_equation_9() -> None:
    np.testing.assert_allclose(fit_weight(np.array([1.0, 50, 100, 1e4])), [10**-1.5, 0.5**0.75, 1, 1])


def random_parameters(V: int, d: int) -> GloveParameters:
    stream = torch.Generator().manual_seed(0)
    shapes = ((V, d), (V, d), (V,), (V,))
    return GloveParameters(*(torch.randn(shape, generator=stream, dtype=torch.float64) for shape in shapes))


def test_gradient_equals_finite_differences_where_words_repeat() -> None:
    parameters = random_parameters(5, 3)
    stream = torch.Generator().manual_seed(1)
    row, column = torch.randint(0, 5, (2, 40), generator=stream)  # every word many times, many pairs twice
    log_count = torch.randn(40, generator=stream, dtype=torch.float64)
    weight = torch.rand(40, generator=stream, dtype=torch.float64)
    batch = (row, column, log_count, weight)
    loss, gradients = loss_and_gradients(parameters, *batch)
    word, context, word_bias, context_bias = parameters.all()
    by_hand = torch.zeros((), dtype=torch.float64)
    for i, j, x, f in zip(*batch, strict=True):
        by_hand += 0.5 * f * (word[i] @ context[j] + word_bias[i] + context_bias[j] - x) ** 2
    torch.testing.assert_close(loss, by_hand)
    for part, gradient in zip(parameters.all(), gradients.all(), strict=True):
        flat, slopes = part.view(-1), gradient.reshape(-1)
        for place in range(len(flat)):
            kept = float(flat[place])
            flat[place] = kept + 1e-6
            above = loss_and_gradients(parameters, *batch)[0]
            flat[place] = kept - 1e-6
            below = loss_and_gradients(parameters, *batch)[0]
            flat[place] = kept
            assert float(above - below) / 2e-6 == pytest.approx(float(slopes[place]), rel=1e-6, abs=1e-7)


def planted(V: int = 30) -> np.ndarray:
    """log X of rank 2 plus biases, so that d = 2 fits it exactly."""
    rng = np.random.default_rng(2)
    word, context = rng.standard_normal((2, V, 2))
    return word @ context.T + rng.standard_normal((V, 1)) + rng.standard_normal((1, V)) + 3


def test_a_rank_2_log_count_matrix_is_recovered() -> None:
    log_x = planted()
    counts = sparse.csr_array(np.exp(log_x))
    model = train_glove(counts, 2, epochs=4_000, step=0.2, x_max=1e-9, batch_size=900, quiet=True)
    word, context, word_bias, context_bias = (part.numpy() for part in model.parameters.all())
    fitted = word @ context.T + word_bias[:, None] + context_bias[None, :]
    assert np.abs(fitted - log_x).max() < 1e-3
    assert model.losses[-1] < 1e-6 < model.losses[0]
    np.testing.assert_array_equal(model.vectors, word + context)


def test_mini_batches_reach_what_one_batch_reaches() -> None:
    counts = sparse.csr_array(np.exp(planted()))
    losses = [train_glove(counts, 2, epochs=600, x_max=1e-9, batch_size=size, quiet=True).losses for size in (100, 900)]
    assert len(losses[0]) == 600
    assert losses[0][-1] < 0.1 * losses[0][0]
    assert losses[0][-1] < losses[1][-1]  # nine steps an epoch for one


def test_a_word_without_counts_stays_where_it_started() -> None:
    dense = np.zeros((3, 3))
    dense[0, 1] = dense[1, 0] = 2.0
    once, twice = (train_glove(sparse.csr_array(dense), 4, epochs=n, seed=1, quiet=True).vectors for n in (1, 9))
    np.testing.assert_array_equal(once[2], twice[2])
    assert not np.array_equal(once[0], twice[0])


def test_a_seed_decides_everything() -> None:
    counts = sparse.csr_array(np.exp(planted()))
    first, again, other = (
        train_glove(counts, 3, epochs=2, batch_size=50, seed=seed, quiet=True).vectors for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_nothing_to_fit_is_refused() -> None:
    with pytest.raises(UserError, match="co-occurrences"):
        train_glove(sparse.csr_array((3, 3)), 2, quiet=True)
    with pytest.raises(UserError, match="--dim"):
        train_glove(sparse.csr_array(np.ones((3, 3))), 0, quiet=True)
