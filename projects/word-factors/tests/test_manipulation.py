"""Factors within analogies, against NumPy written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array

from shared.config import UserError
from word_factors.analogy import Rule, Space, answer, batches, three_cos_add
from word_factors.groups import group_activation
from word_factors.manipulation import (
    Factors,
    KeyFactors,
    boost,
    code_cosine,
    differences,
    direction,
    explain,
    group_direction,
    key_factors,
    mask,
    named_factors,
    random_direction,
    section_profile,
    set_factors,
)

V, D, K, C = 60, 12, 20, 6


def world(seed: int = 0) -> tuple[Space, Factors]:
    """Random vectors that are sparse sums of random factors."""
    stream = np.random.default_rng(seed)
    phi = stream.normal(size=(D, K))
    phi /= np.linalg.norm(phi, axis=0)
    alpha = stream.exponential(size=(V, K)) * (stream.random((V, K)) < 0.25)
    vectors = alpha @ phi.T + 0.1 * stream.normal(size=(V, D))
    space = Space(vectors)
    return space, Factors(phi, csr_array(alpha), np.arange(K) % C, space.norms)


def questions(seed: int = 0, n: int = 40) -> np.ndarray:
    stream = np.random.default_rng(seed)
    return np.array([stream.choice(V, 3, replace=False) for _ in range(n)])


def scores(space: Space, rule: Rule, abc: np.ndarray) -> np.ndarray:
    return np.concatenate([rule(space, batch).numpy() for _, batch in batches(space, abc)])


def key(targets: tuple[int, ...], sources: tuple[int, ...] = (), groups: tuple[int, ...] = ()) -> KeyFactors:
    return KeyFactors(targets, sources, groups, np.random.default_rng(7).normal(size=K))


def test_explain_lists_the_largest_differences_of_factors_and_groups() -> None:
    alpha = np.zeros((4, 5), np.float32)
    alpha[0, [0, 1]] = 1.0, 0.2  # a
    alpha[1, [0, 2]] = 0.9, 0.6  # b
    alpha[2, [1, 3]] = 0.1, 1.0  # c
    alpha[3, [2, 4]] = 0.5, 1.0  # d
    found = explain(csr_array(alpha), 0, 1, 2, 3, np.array([0, 0, 1, 2, 2]))
    assert [j for j, _ in found.ab.factors] == [2, 1, 0]
    assert [value for _, value in found.ab.factors] == pytest.approx([0.6, -0.2, -0.1])
    assert dict(found.ab.groups) == pytest.approx({0: -0.3, 1: 0.6})
    assert dict(found.cd.factors) == pytest.approx({3: -1.0, 4: 1.0, 2: 0.5, 1: -0.1})
    assert dict(found.shared) == pytest.approx({2: 0.5, 1: -0.1})
    assert len(explain(csr_array(alpha), 0, 1, 2, 3, most=2).cd.factors) == 2


def test_an_analogy_of_a_word_with_itself_has_nothing_to_explain() -> None:
    found = explain(world()[1].codes, 3, 3, 4, 4)
    assert (found.ab.factors, found.shared) == ((), ())


def test_codes_are_scaled_to_unit_vectors() -> None:
    space, factors = world()
    raw = Factors(factors.phi, factors.codes)
    rows = np.arange(V)
    recovered = factors.codes.toarray() * space.norms[:, None]
    scaled = Factors(factors.phi, csr_array(recovered), norms=space.norms)
    assert scaled.codes.toarray() == pytest.approx(raw.codes.toarray(), rel=1e-6)
    # and so they rebuild the unit vectors as well as they rebuilt the vectors
    rebuilt = factors.codes.toarray() @ factors.phi.T
    assert (rebuilt[rows] * space.unit.numpy()).sum(1).min() > 0.5


def test_profile_is_the_mean_over_the_floored_spread() -> None:
    _, factors = world()
    pairs = questions(1)[:, :2]
    alpha = factors.codes.toarray().astype(float)
    deltas = np.array([alpha[b] - alpha[a] for a, b in pairs])
    assert differences(factors.codes, pairs) == pytest.approx(deltas)
    profile = section_profile(factors.codes, pairs)
    assert profile.mean == pytest.approx(deltas.mean(0))
    assert profile.t == pytest.approx(np.sqrt(len(pairs)) * deltas.mean(0) / (deltas.std(0) + 0.02))


def test_groups_sum_their_factors() -> None:
    _, factors = world()
    assert factors.labels is not None
    alpha = factors.codes.toarray()
    expected = np.stack([alpha[:, factors.labels == g].sum(1) for g in range(C)], axis=1)
    assert group_activation(factors.codes, factors.labels).toarray() == pytest.approx(expected, rel=1e-6)


def test_key_factors_are_the_planted_ones_and_at_most_five_and_two() -> None:
    stream = np.random.default_rng(3)
    alpha = stream.exponential(0.3, size=(V, K)) * (stream.random((V, K)) < 0.2)
    alpha[:, :9] = 0
    alpha[30:, :7] = np.linspace(0.2, 0.8, 7) + 0.05 * stream.random((30, 7))  # b has seven more factors
    alpha[:30, 7:9] = 0.5  # a has two
    pairs = np.column_stack([np.arange(30), np.arange(30, 60)])
    labels = np.array([0] * 3 + [1] * 2 + [2] * 2 + [3] * 13)
    found = key_factors(Factors(np.eye(K), csr_array(alpha), labels), pairs)
    assert len(found.targets) == 5
    assert set(found.targets) <= set(range(7))
    assert set(found.sources) == {7, 8}
    assert len(found.groups) == 2
    assert set(found.groups) <= {0, 1, 2}
    assert found.mean[7:9] == pytest.approx([-0.5, -0.5])


def test_factors_that_differ_by_chance_are_not_key_factors() -> None:
    _, factors = world()
    pairs = np.array([[i, i] for i in range(20)])
    found = key_factors(factors, pairs)
    assert (found.targets, found.sources, found.groups) == ((), (), ())


def test_directions_are_sums_of_mean_times_factor() -> None:
    _, factors = world()
    assert factors.labels is not None
    chosen = key((4, 9), groups=(2,))
    assert direction(factors, chosen.targets, chosen.mean) == pytest.approx(
        chosen.mean[4] * factors.phi[:, 4] + chosen.mean[9] * factors.phi[:, 9]
    )
    members = [j for j in range(K) if factors.labels[j] == 2]
    assert group_direction(factors, chosen) == pytest.approx(sum(chosen.mean[j] * factors.phi[:, j] for j in members))
    assert (direction(factors, (), chosen.mean) == 0).all()


def test_random_direction_has_the_norm_of_the_targets_and_other_factors() -> None:
    _, factors = world()
    chosen = key((4, 9))
    real = direction(factors, chosen.targets, chosen.mean)
    drawn = [random_direction(factors, chosen, seed) for seed in range(6)]
    assert [np.linalg.norm(one) for one in drawn] == pytest.approx([np.linalg.norm(real)] * 6)
    assert not np.allclose(drawn[0], drawn[1])
    assert (drawn[0] == random_direction(factors, chosen, 0)).all()
    one = random_direction(factors, key((4,)), 0)
    cosines = np.abs(factors.phi.T @ one / np.linalg.norm(one))
    assert int(cosines.argmax()) != 4
    assert cosines.max() == pytest.approx(1.0, abs=1e-6)
    assert (random_direction(factors, key(()), 0) == 0).all()


def test_boost_of_strength_zero_is_three_cos_add_exactly() -> None:
    space, factors = world()
    offset = direction(factors, (1, 2), key(()).mean)
    abc = questions()
    assert (scores(space, boost(space, offset, 0.0), abc) == scores(space, three_cos_add, abc)).all()
    assert (answer(space, boost(space, offset, 3.0), abc) != answer(space, three_cos_add, abc)).any()


def test_boost_mask_set_and_code_equal_their_formulas() -> None:
    space, factors = world()
    abc = questions()
    x, alpha, phi = space.unit.numpy(), factors.codes.toarray(), factors.phi
    a, b, c = abc.T
    chosen = key((3, 8), (11,))
    m = np.isin(np.arange(K), chosen.both())
    offset = direction(factors, chosen.targets, chosen.mean)
    assert scores(space, boost(space, offset, 1.5), abc) == pytest.approx(
        (x[b] - x[a] + x[c] + 1.5 * offset) @ x.T, abs=1e-5
    )
    masked = (x[c] + (m * (alpha[b] - alpha[a])) @ phi.T) @ x.T
    assert scores(space, mask(space, factors, chosen), abc) == pytest.approx(masked, abs=1e-5)
    swapped = (x[c] - (m * alpha[c]) @ phi.T + (m * alpha[b]) @ phi.T) @ x.T
    assert scores(space, set_factors(space, factors, chosen), abc) == pytest.approx(swapped, abs=1e-5)
    norms = np.linalg.norm(alpha, axis=1, keepdims=True)
    unit = alpha / np.where(norms == 0, 1, norms)
    assert scores(space, code_cosine(factors), abc) == pytest.approx((unit[b] - unit[a] + unit[c]) @ unit.T, abs=1e-5)


def test_edits_without_key_factors_leave_c_as_it_is() -> None:
    space, factors = world()
    abc = questions()
    for rule in (mask(space, factors, key(())), set_factors(space, factors, key(()))):
        assert scores(space, rule, abc) == pytest.approx((space.unit @ space.unit.T).numpy()[abc[:, 2]], abs=1e-6)


def test_permuting_factors_changes_no_direction() -> None:
    space, factors = world()
    order = np.random.default_rng(5).permutation(K)
    assert factors.labels is not None
    moved = Factors(factors.phi[:, order], csr_array(factors.codes.toarray()[:, order]), factors.labels[order])
    # Left words have factor 5 and not 3, right words 3 and not 5: there are targets and sources to find again.
    alpha = factors.codes.toarray()
    left = np.flatnonzero((alpha[:, 5] > 0) & (alpha[:, 3] == 0))
    right = np.flatnonzero((alpha[:, 3] > 0) & (alpha[:, 5] == 0))
    size = min(len(left), len(right))
    pairs = np.column_stack([left[:size], right[:size]])
    one, other = key_factors(factors, pairs), key_factors(moved, pairs)
    assert 3 in one.targets
    assert 5 in one.sources
    assert tuple(order[list(other.targets)]) == one.targets
    assert tuple(order[list(other.sources)]) == one.sources
    assert other.groups == one.groups
    assert group_direction(moved, other) == pytest.approx(group_direction(factors, one))
    assert random_direction(moved, other, 3) == pytest.approx(random_direction(factors, one, 3))
    abc = questions()
    for rule, same in (
        (mask(space, factors, one), mask(space, moved, other)),
        (set_factors(space, factors, one), set_factors(space, moved, other)),
        (code_cosine(factors), code_cosine(moved)),
    ):
        assert scores(space, rule, abc) == pytest.approx(scores(space, same, abc), abs=1e-5)


def test_named_factors_have_their_strength_in_the_words_that_have_them() -> None:
    _, factors = world()
    alpha = factors.codes.toarray()
    found = named_factors(factors, (2, 5), (1,))
    assert (found.targets, found.sources, found.groups) == ((2, 5), (), (1,))
    assert found.mean == pytest.approx([alpha[alpha[:, j] > 0, j].mean() for j in range(K)])


def test_factors_and_groups_that_are_not_there_are_refused() -> None:
    _, factors = world()
    with pytest.raises(UserError, match=r"factor: got '20'; valid: 0 \.\. 19"):
        named_factors(factors, (K,))
    with pytest.raises(UserError, match=r"group: got '6'; valid: 0 \.\. 5"):
        named_factors(factors, (), (C,))
    with pytest.raises(UserError, match="not grouped"):
        named_factors(Factors(factors.phi, factors.codes), (), (0,))


def test_a_dictionary_of_another_embedding_is_refused() -> None:
    space, factors = world()
    with pytest.raises(UserError, match="dictionary"):
        factors.check(Space(np.ones((V + 1, D))))
    with pytest.raises(UserError, match="dictionary"):
        factors.check(Space(np.ones((V, D + 1))))
    with pytest.raises(UserError, match="codes"):
        Factors(factors.phi[:, 1:], factors.codes)
    with pytest.raises(UserError, match="codes"):
        Factors(factors.phi, factors.codes, norms=space.norms[1:])
    with pytest.raises(UserError, match="groups"):
        Factors(factors.phi, factors.codes, np.zeros(K - 1, int))
