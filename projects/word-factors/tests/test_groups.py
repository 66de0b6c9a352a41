"""Groups: co-activation against a loop, graphs by hand, planted blocks, scikit-learn's clustering of the same graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import sparse
from sklearn.cluster import SpectralClustering
from sklearn.metrics import adjusted_rand_score

from shared.config import UserError
from word_factors.groups import (
    coactivation,
    cross_run_groups,
    factor_groups,
    group_activation,
    hierarchical_groups,
    knn_graph,
    spectral_groups,
)


def random_codes(V: int = 80, K: int = 12, seed: int = 0, density: float = 0.2) -> sparse.csr_array:
    stream = np.random.default_rng(seed)
    return sparse.csr_array((stream.exponential(size=(V, K)) * (stream.random((V, K)) < density)).astype(np.float32))


def block_codes(sizes: list[int], words: int = 60, seed: int = 0) -> tuple[sparse.csr_array, np.ndarray]:
    """Words that use factors of one block each, and now and then one of another; factors in shuffled order."""
    stream = np.random.default_rng(seed)
    truth = np.repeat(np.arange(len(sizes)), sizes)
    alpha = np.zeros((words * len(sizes), len(truth)), np.float32)
    for row in range(len(alpha)):
        block = np.flatnonzero(truth == row % len(sizes))
        chosen = stream.choice(block, min(3, len(block)), replace=False)
        alpha[row, chosen] = stream.uniform(0.5, 1, len(chosen))
        if stream.random() < 0.1:
            alpha[row, stream.integers(len(truth))] = 0.2
    order = stream.permutation(len(truth))
    return sparse.csr_array(alpha[:, order]), truth[order]


def even(codes: sparse.csr_array) -> np.ndarray:
    """Equal weights for the words."""
    return np.ones(len(codes.toarray()))


def test_coactivation_is_the_weighted_sum_of_products() -> None:
    codes, p = random_codes(), np.random.default_rng(1).random(80)
    alpha: Any = codes.toarray()
    expected = np.zeros((12, 12))
    for word in range(80):
        expected += p[word] / p.sum() * np.outer(alpha[word], alpha[word])
    np.testing.assert_allclose(coactivation(codes, p, normalised=False), expected, rtol=1e-6)
    similarity = coactivation(codes, p)
    scale = np.sqrt(np.diag(expected))
    off = ~np.eye(12, dtype=bool)
    np.testing.assert_allclose(similarity[off], (expected / np.outer(scale, scale))[off], rtol=1e-6)
    np.testing.assert_array_equal(similarity, similarity.T)
    np.testing.assert_array_equal(np.diag(similarity), 0)
    assert similarity.max() <= 1


def test_normalised_coactivation_ignores_the_scale_of_factors_and_of_weights() -> None:
    codes, p = random_codes(), np.random.default_rng(1).random(80)
    scaled = sparse.csr_array(codes * np.linspace(0.5, 4, 12, dtype=np.float32))
    np.testing.assert_allclose(coactivation(codes, p), coactivation(scaled, 7 * p), atol=1e-6)


def test_a_dead_factor_has_zeros_and_no_nan() -> None:
    alpha: Any = random_codes().toarray()
    alpha[:, 3] = 0
    similarity = coactivation(sparse.csr_array(alpha), np.ones(80))
    assert np.isfinite(similarity).all()
    np.testing.assert_array_equal(similarity[3], 0)


def test_the_graph_keeps_the_largest_of_each_row_and_the_larger_of_both_ways() -> None:
    similarity = np.array(
        [
            [9.0, 0.9, 0.8, 0.1, 0.0],
            [0.9, 9.0, 0.7, 0.0, 0.0],
            [0.8, 0.7, 9.0, 0.2, -0.5],
            [0.1, 0.0, 0.2, 9.0, 0.0],
            [0.0, 0.0, -0.5, 0.0, 9.0],
        ]
    )
    graph: Any = knn_graph(similarity, 1).toarray()
    expected = np.zeros((5, 5))
    expected[0, 1] = expected[1, 0] = 0.9
    expected[2, 0] = expected[0, 2] = 0.8  # the best of 2, not of 0
    expected[3, 2] = expected[2, 3] = 0.2  # 3 is nobody's best, and keeps its own
    np.testing.assert_array_equal(graph, expected)  # 4 has no positive edge: isolated
    full: Any = knn_graph(similarity, 99).toarray()
    np.testing.assert_array_equal(full, np.where(np.eye(5), 0, np.maximum(similarity, 0)))


@pytest.mark.parametrize("k", [2, 5, 20])
def test_every_node_with_a_positive_similarity_has_an_edge(k: int) -> None:
    similarity = coactivation(random_codes(60, 40, 5, 0.05), np.ones(60))
    graph: Any = knn_graph(similarity, k)
    dense = graph.toarray()
    np.testing.assert_array_equal(dense, dense.T)
    np.testing.assert_array_equal((dense > 0).any(1), (similarity > 0).any(1))
    assert ((dense > 0).sum(1) >= np.minimum(k, (similarity > 0).sum(1))).all()
    np.testing.assert_array_equal(dense[dense > 0], similarity[dense > 0])


@pytest.mark.parametrize("seed", range(4))
def test_spectral_groups_recover_a_planted_block_model_exactly(seed: int) -> None:
    codes, truth = block_codes([4, 5, 6, 8, 12], seed=seed)
    found = factor_groups(codes, even(codes), k=20, c=5, seed=seed)
    assert adjusted_rand_score(truth, found.labels) == 1
    assert len(found) == 5
    np.testing.assert_array_equal(found.sizes, [12, 8, 6, 5, 4])  # larger groups first
    np.testing.assert_array_equal(np.sort(np.concatenate([found.members(g) for g in range(5)])), np.arange(35))


def test_hierarchical_groups_recover_a_planted_block_model_exactly() -> None:
    codes, truth = block_codes([4, 5, 6, 8, 12])
    found = hierarchical_groups(codes, even(codes), c=5)
    assert adjusted_rand_score(truth, found.labels) == 1


def test_spectral_groups_equal_scikit_learn_on_the_same_graph() -> None:
    codes, _ = block_codes([6, 6, 7, 9, 10], seed=2)
    graph = knn_graph(coactivation(codes, even(codes)), 8)
    reference = SpectralClustering(5, affinity="precomputed", random_state=0, assign_labels="kmeans")
    expected = reference.fit_predict(graph.toarray())
    assert adjusted_rand_score(expected, spectral_groups(graph, 5).labels) == 1


def test_disconnected_parts_are_the_groups() -> None:
    blocks = [np.ones((size, size)) - np.eye(size) for size in (3, 4, 7)]
    found = spectral_groups(sparse.csr_array(sparse.block_diag(blocks)), 3)
    np.testing.assert_array_equal(found.labels, [2] * 3 + [1] * 4 + [0] * 7)


def test_isolated_factors_are_groups_of_their_own_after_the_others() -> None:
    codes, truth = block_codes([4, 5, 6])
    dead = sparse.csr_array((len(even(codes)), 2), dtype=np.float32)
    widened = sparse.csr_array(sparse.hstack([dead, codes]))
    for found in (factor_groups(widened, even(codes), c=3), hierarchical_groups(widened, np.ones(180), 3)):
        np.testing.assert_array_equal(found.isolated, [0, 1])
        np.testing.assert_array_equal(found.labels[:2], [3, 4])
        assert len(found) == 5
        assert found.clustered == 3
        assert adjusted_rand_score(truth, found.labels[2:]) == 1


def test_codes_without_any_common_word_leave_every_factor_by_itself() -> None:
    codes = sparse.csr_array(np.eye(6, dtype=np.float32))
    for found in (factor_groups(codes, np.ones(6)), hierarchical_groups(codes, np.ones(6))):
        np.testing.assert_array_equal(found.labels, np.arange(6))
        assert found.clustered == 0


def test_the_default_number_of_groups_is_the_published_proportion() -> None:
    codes = random_codes(400, 200, density=0.1)
    found = factor_groups(codes, np.ones(400))
    assert found.clustered == len(found) == 35
    np.testing.assert_array_equal(np.unique(found.labels), np.arange(35))
    assert hierarchical_groups(codes, np.ones(400)).clustered == 35
    np.testing.assert_array_equal(found.labels, factor_groups(codes, np.ones(400)).labels)


@pytest.mark.parametrize("c", [0, 13])
def test_more_groups_than_factors_or_none_are_refused(c: int) -> None:
    with pytest.raises(UserError, match=r"groups: .*\[1, 12\]"):
        factor_groups(random_codes(), np.ones(80), c=c)
    with pytest.raises(UserError, match=r"groups: .*\[1, 12\]"):
        hierarchical_groups(random_codes(), np.ones(80), c)


def test_wrong_weights_and_neighbours_are_refused() -> None:
    with pytest.raises(UserError, match="one for each of the 80 words"):
        coactivation(random_codes(), np.ones(79))
    with pytest.raises(UserError, match="weights >= 0"):
        coactivation(random_codes(), np.zeros(80))
    with pytest.raises(UserError, match="neighbours"):
        knn_graph(np.eye(3), 0)


def planted_runs(seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Three runs that share 12 orthogonal factors, noised and in other orders; the first has 5 more of its own.
    Returns runs and, for each, what its columns are (12 and above: its own)."""
    stream = np.random.default_rng(seed)
    directions = np.linalg.qr(stream.standard_normal((80, 17)))[0]
    runs, truth = [], []
    for size in (17, 12, 12):
        order = stream.permutation(size)
        runs.append(directions[:, order] + 0.02 * stream.standard_normal((80, size)))
        truth.append(order)
    return runs, truth


def test_groups_over_runs_tell_what_recurs_from_what_does_not() -> None:
    runs, truth = planted_runs()
    found = cross_run_groups(runs, c=12)
    assert [len(labels) for labels in found.labels] == [17, 12, 12]
    assert adjusted_rand_score(np.concatenate(truth), np.concatenate(found.labels)) == 1
    np.testing.assert_array_equal(found.groups.isolated, np.flatnonzero(truth[0] >= 12))
    common = {int(group) for group in found.labels[1]}
    assert set(found.robust.tolist()) == common
    np.testing.assert_array_equal(np.sort(found.runs), [1] * 5 + [3] * 12)
    cohesion = found.cohesion[found.robust]
    assert cohesion.min() > 0.9
    assert np.isnan(found.cohesion[found.runs == 1]).all()


def test_cohesion_is_the_mean_cosine_between_factors_of_different_runs() -> None:
    runs, _ = planted_runs(1)
    found = cross_run_groups(runs, c=4, k=3, threshold=0)
    group = int(found.robust[0])
    unit = [phi / np.linalg.norm(phi, axis=0) for phi in runs]
    pairs = [
        float(unit[r][:, i] @ unit[s][:, j])
        for r in range(3)
        for s in range(3)
        if r != s
        for i in np.flatnonzero(found.labels[r] == group)
        for j in np.flatnonzero(found.labels[s] == group)
    ]
    assert found.cohesion[group] == pytest.approx(np.mean(pairs))


def test_groups_over_runs_refuse_one_run_and_different_spaces() -> None:
    runs, _ = planted_runs()
    with pytest.raises(UserError, match="two or more"):
        cross_run_groups(runs[:1])
    with pytest.raises(UserError, match="dictionary 1: got '79 dimensions'"):
        cross_run_groups([runs[0], runs[1][:79]])
    with pytest.raises(UserError, match="groups"):
        cross_run_groups(runs, c=42)


def test_group_activation_sums_over_the_group_and_the_norm_is_that_of_its_part_of_the_word() -> None:
    codes, labels = random_codes(), np.arange(12) % 4
    phi = np.random.default_rng(2).standard_normal((7, 12))
    phi /= np.linalg.norm(phi, axis=0)
    alpha: Any = codes.toarray()
    sums, norms = np.zeros((80, 4)), np.zeros((80, 4))
    for word in range(80):
        for group in range(4):
            members = labels == group
            sums[word, group] = alpha[word, members].sum()
            norms[word, group] = np.linalg.norm(phi[:, members] @ alpha[word, members])
    summed, normed = group_activation(codes, labels), group_activation(codes, labels, phi)
    assert isinstance(summed, sparse.csr_array)
    assert isinstance(normed, sparse.csr_array)
    np.testing.assert_allclose(summed.toarray(), sums, rtol=1e-5)
    np.testing.assert_allclose(normed.toarray(), norms, rtol=1e-5, atol=1e-6)
    assert (normed.toarray() <= summed.toarray() + 1e-5).all()


def test_group_activation_refuses_labels_of_another_dictionary() -> None:
    with pytest.raises(UserError, match="each of 12 factors"):
        group_activation(random_codes(), np.zeros(11, int))
    with pytest.raises(UserError, match="phi"):
        group_activation(random_codes(), np.zeros(12, int), np.ones((7, 11)))
