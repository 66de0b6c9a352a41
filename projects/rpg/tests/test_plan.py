"""Plans: counts, independence, what is frozen for ever, what is refused."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rpg.plan import KINDS, PERMUTED, PILE, VERSION, Plan, by_halves, histogram, make_plan, split_budget
from shared.config import UserError

PICKING = [kind for kind in KINDS if kind != "haar"]


# Identity 1: even use.
@given(
    sizes=st.lists(st.integers(1, 97), min_size=1, max_size=6),
    fraction=st.floats(0, 1),
    kind=st.sampled_from(["even", "perm_only"]),
    seed=st.integers(0, 2**63 - 1),
)
@settings(max_examples=80, deadline=None)
def test_even_counts_differ_by_one_and_n_mod_m_entries_have_the_larger(
    sizes: list[int], fraction: float, kind: str, seed: int
) -> None:
    total = sum(sizes)
    size = max(1, round(fraction * total))
    counts = make_plan(sizes, size, kind, seed).counts()
    assert counts.sum() == total
    assert set(counts) <= {total // size, total // size + 1}
    assert (counts > total // size).sum() == total % size


@pytest.mark.parametrize("size", [1, 60])
def test_even_counts_at_both_ends(size: int) -> None:
    counts = make_plan([10, 20, 30], size).counts()
    assert counts.tolist() == [60 // size] * size


def test_whole_ring_is_a_permutation() -> None:
    assert sorted(make_plan([10, 20, 30], 60).all_indices()) == list(range(60))


@given(blocks=st.integers(1, 30), chunk=st.sampled_from([2, 16, 32, 64]), total=st.integers(1, 5000))
@settings(max_examples=60, deadline=None)
def test_chunked_counts_stay_even_and_blocks_stay_whole(blocks: int, chunk: int, total: int) -> None:
    size = blocks * chunk
    if size > total:
        return
    plan = make_plan([total], size, chunk=chunk)
    counts = plan.counts()
    assert counts.max() - counts.min() <= 1 + (total % chunk > 0)
    # A block of weights is a block of the ring, in order; signs are drawn an entry.
    whole = plan.all_indices()[: total // chunk * chunk].reshape(-1, chunk)
    assert (whole == whole[:, :1] + np.arange(chunk)).all()
    assert (whole[:, 0] % chunk == 0).all()
    if total >= 512:
        assert (plan.all_signs().reshape(-1)[:chunk].min() < 0) or chunk < 16


def test_chunked_counts_of_a_cut_block_differ_by_one_at_most() -> None:
    # 5 blocks of 4 for 19 weights of a ring of 3 blocks: the last one is used in part.
    for seed in range(20):
        counts = make_plan([7, 12], 12, seed=seed, chunk=4).counts()
        assert counts.max() - counts.min() <= 1


def test_ring_walk_takes_runs_around_the_ring() -> None:
    plan = make_plan([5, 7, 6], 8, "ring", offset="continue")
    cursor = 0
    for layer, size in enumerate(plan.sizes):
        assert sorted(plan.indices(layer)) == sorted((cursor + np.arange(size)) % 8)
        cursor += size
    assert plan.counts().max() - plan.counts().min() <= 1
    # Random starts: every run is still one run, but counts are even on average alone.
    for seed in range(5):
        random = make_plan([5, 7, 6], 8, "ring", seed)
        for layer, size in enumerate(random.sizes):
            found = set(random.indices(layer).tolist())
            assert any(found == {(start + i) % 8 for i in range(size)} for start in range(8))
    spread = np.mean([make_plan([5, 7, 6], 8, "ring", seed).counts() for seed in range(2000)], axis=0)
    np.testing.assert_allclose(spread, 18 / 8, rtol=0.05)


def test_plain_plans_by_hand() -> None:
    reuse = make_plan([3, 5], 4, "reuse")
    assert reuse.indices(0).tolist() == [0, 1, 2]
    assert reuse.indices(1).tolist() == [0, 1, 2, 3, 0]
    assert (reuse.all_signs() == 1).all()
    seq = make_plan([3, 5], 4, "seq")
    assert seq.indices(1).tolist() == [3, 0, 1, 2, 3]
    sign_only = make_plan([3, 5], 4, "sign_only")
    assert (sign_only.all_indices() == seq.all_indices()).all()
    assert (make_plan([3000], 400, "perm_only").all_signs() == 1).all()


def test_hash_leaves_the_derived_share_unused() -> None:
    # Identity 5: a ring entry escapes N independent uniform draws with probability (1 - 1/M)^N -> exp(-N / M).
    size = 100_000
    for uses in (0.5, 1.0, 3.0):
        plan = make_plan([round(uses * size)], size, "hash", allow_unused=True)
        unused = (plan.counts() == 0).mean()
        assert unused == pytest.approx(np.exp(-uses), abs=4 * np.sqrt(np.exp(-uses) / size))


@pytest.mark.parametrize("kind", ["even", "ring", "hash", "sign_only"])
def test_signs_are_fair_and_independent_of_the_permutation(kind: str) -> None:
    plan = make_plan([200_000], 1000, kind, seed=3)
    signs, indices = plan.all_signs(), plan.all_indices()
    assert set(np.unique(signs)) == {-1, 1}
    assert abs(signs.mean()) < 4 / np.sqrt(len(signs))
    assert abs(np.corrcoef(signs, indices)[0, 1]) < 4 / np.sqrt(len(signs))
    assert abs(np.corrcoef(signs[1:], signs[:-1])[0, 1]) < 4 / np.sqrt(len(signs))


def test_permutation_is_uniform() -> None:
    # All 24 orders of four entries, 24,000 draws.
    draws = [tuple(make_plan([4], 4, seed=seed).all_indices()) for seed in range(24_000)]
    _, counts = np.unique(draws, axis=0, return_counts=True)
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("total", [PILE - 1, PILE, PILE + 1, 3 * PILE])
def test_permutation_of_one_pile_and_of_many_is_uniform(total: int) -> None:
    indices = make_plan([total], total, seed=7).all_indices()
    assert (np.sort(indices) == np.arange(total)).all()
    # Where a value lands says nothing of the value: tenths of places against tenths of values.
    table = np.histogram2d(np.arange(total), indices, bins=10)[0]
    assert stats.chi2_contingency(table).pvalue > 1e-3
    # Nor does a value of its neighbour: half of the steps rise, steps of one are as rare as they should be.
    rises = (np.diff(indices) > 0).mean()
    assert abs(rises - 0.5) < 4 / np.sqrt(12 * total)
    assert abs((np.abs(np.diff(indices)) == 1).sum() - 2) < 9


def test_order_by_halves_is_the_stable_order() -> None:
    keys = np.random.default_rng(0).integers(0, 2**32, 10_000, dtype=np.uint32) & np.uint32(0x00030007)
    low, high = (keys & np.uint32(0xFFFF)).astype(np.uint16), (keys >> np.uint32(16)).astype(np.uint16)
    assert (by_halves(low, high) == np.argsort(keys, kind="stable")).all()


@pytest.mark.parametrize("kind", PERMUTED)
def test_every_entry_can_be_drawn_and_layers_share_one_permutation(kind: str) -> None:
    plan = make_plan([50_000, 50_000], 1000, kind, seed=1)
    assert plan.counts().min() > 0  # the last entry included
    if kind in ("even", "perm_only"):
        # One permutation over all layers: a layer's own counts are not even, those of all layers are.
        assert np.ptp(np.bincount(plan.indices(0), minlength=1000)) > 1


@pytest.mark.parametrize("kind", PICKING)
def test_plan_is_a_function_of_its_specification(kind: str) -> None:
    first, again = make_plan([30, 41], 20, kind, 5), make_plan([30, 41], 20, kind, 5)
    assert first == again
    assert (first.all_indices() == again.all_indices()).all()
    assert (first.all_signs() == again.all_signs()).all()
    assert (np.concatenate([first.indices(0), first.indices(1)]) == first.all_indices()).all()
    assert first.indices(1).dtype == np.int32
    other = make_plan([30, 41], 20, kind, 6)
    drawn = kind in PERMUTED or first.signed
    same = (first.all_indices() == other.all_indices()).all() and (first.all_signs() == other.all_signs()).all()
    assert same != drawn
    assert (first.spec() == other.spec()) is False


def test_rings_of_other_names_are_independent_and_order_does_not_matter() -> None:
    one, two = make_plan([5000], 500, ring="a"), make_plan([5000], 500, ring="b")
    assert abs(np.corrcoef(one.all_indices(), two.all_indices())[0, 1]) < 0.06
    assert abs(np.corrcoef(one.all_signs(), two.all_signs())[0, 1]) < 0.06
    assert (make_plan([5000], 500, ring="a").all_indices() == one.all_indices()).all()


# What a released version once made of a seed, it makes for ever: a model file holds nothing else.
DIGESTS = {
    ("even", 1): "d62d5bd1a1ae",
    ("even", 16): "fc31a54ad887",
    ("ring", 1): "2f955d19e65b",
    ("ring", 16): "42ecd9d06d3c",
    ("hash", 1): "0127222c5157",
    ("hash", 16): "a0ed555839af",
    ("reuse", 1): "b9bbcd71b2d7",
    ("seq", 1): "835916058eb7",
    ("perm_only", 1): "29e3976e1c2b",
    ("perm_only", 16): "6b221908c157",
    ("sign_only", 1): "5304a232dcf1",
}


def _digest(plan: Plan) -> str:
    data = plan.all_indices().astype("<i4").tobytes() + plan.all_signs().astype("i1").tobytes()
    return hashlib.sha256(data).hexdigest()[:12]


@pytest.mark.parametrize(("kind", "chunk"), list(DIGESTS))
def test_plans_of_this_version_never_change(kind: str, chunk: int) -> None:
    assert VERSION == 2
    plan = make_plan([90, 61, 200], 96, kind, seed=2021, chunk=chunk, offset="random")
    assert _digest(plan) == DIGESTS[kind, chunk]


def test_a_plan_of_many_piles_of_this_version_never_changes() -> None:
    assert _digest(make_plan([90_000, 210_001], 40_000, "even", seed=2021)) == "995fb5f314e6"


def test_rotations_of_this_version_never_change() -> None:
    corner = make_plan([9, 6], 8, "haar", seed=2021).rotation(1)[0, :3]  # to the rounding of a factorisation
    np.testing.assert_allclose(corner, [-0.542167529, -0.036103893, -0.398675233], atol=1e-8)


def test_every_kind_is_frozen() -> None:
    assert {kind for kind, _ in DIGESTS} | {"haar"} == set(KINDS)


def test_matrix_is_the_definition() -> None:
    plan = make_plan([6, 9], 5, seed=4)
    dense = plan.matrix([2.0, 0.5]).toarray()
    assert dense.shape == (15, 5)
    for row, (entry, sign) in enumerate(zip(plan.all_indices(), plan.all_signs(), strict=True)):
        expected = np.zeros(5)
        expected[entry] = sign * (2.0 if row < 6 else 0.5)
        assert (dense[row] == expected).all()


# Identity 3: the diagonal Gram matrix, the projector.
@pytest.mark.parametrize("kind", PICKING)
def test_gram_matrix_is_diagonal(kind: str) -> None:
    scales = [1.5, 0.25]
    plan = make_plan([30, 41], 20, kind)
    gram = (plan.matrix(scales).T @ plan.matrix(scales)).toarray()
    expected = np.bincount(plan.all_indices(), np.repeat(np.square(scales), plan.sizes), minlength=20)
    np.testing.assert_allclose(gram, np.diag(expected), atol=1e-14)


@pytest.mark.parametrize("kind", ["even", "seq", "sign_only", "perm_only"])
def test_even_plan_gives_a_projector(kind: str) -> None:
    size, uses = 12, 5
    plan = make_plan([20, 40], size, kind)
    g = plan.matrix().toarray()
    np.testing.assert_allclose(g.T @ g, uses * np.eye(size))
    projector = g @ g.T / uses
    np.testing.assert_allclose(projector @ projector, projector, atol=1e-12)
    assert np.trace(projector) == pytest.approx(size)


def test_haar_rows_are_orthonormal_and_unbiased() -> None:
    plan = make_plan([30, 8], 16, "haar")
    tall, wide = plan.rotation(0), plan.rotation(1)
    np.testing.assert_allclose(tall.T @ tall, np.eye(16), atol=1e-12)
    np.testing.assert_allclose(wide @ wide.T, np.eye(8), atol=1e-12)
    # Uniform: the first entry of a random rotation in two dimensions is the cosine of a uniform angle.
    corner = [make_plan([2], 2, "haar", seed).rotation(0)[0, 0] for seed in range(2000)]
    angles = np.arccos(np.clip(corner, -1, 1)) / np.pi
    assert stats.kstest(angles, "uniform").pvalue > 1e-3


def test_histogram() -> None:
    assert histogram(np.array([2, 3, 3, 2, 2])) == {2: 3, 3: 2}


@given(weights=st.lists(st.integers(1, 10**7), min_size=1, max_size=40), extra=st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_budget_is_split_exactly_and_nobody_gets_nothing(weights: list[int], extra: int) -> None:
    total = len(weights) + extra
    shares = split_budget(total, weights)
    assert sum(shares) == total
    assert min(shares) >= 1
    exact = [total * weight / sum(weights) for weight in weights]
    # Those who had to be given their one number are paid for by those who have most.
    paid = sum(1 for share in exact if share < 1)
    assert all(abs(share - fair) <= 1 + paid for share, fair in zip(shares, exact, strict=True))


# -- refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ring_size": 0}, r"ring_size.*0.*\[1, 30\].*N = 30"),
        ({"ring_size": -4}, r"ring_size.*-4"),
        ({"ring_size": 31}, r"ring_size.*31.*\[1, 30\].*allow_unused"),
        ({"ring_size": 5, "kind": "evn"}, r"plan.*evn.*even.*ring.*hash.*reuse"),
        ({"ring_size": 5, "seed": -1}, "seed"),
        ({"ring_size": 10, "chunk": 4}, "chunk.*4.*divisor"),
        ({"ring_size": 10, "chunk": 0}, "chunk"),
        ({"ring_size": 10, "chunk": 5, "kind": "reuse"}, "chunk.*5.*permutes nothing"),
        ({"ring_size": 10, "offset": "later", "kind": "ring"}, "offset.*later.*random.*continue"),
    ],
)
def test_refusals(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=f"(?s){message}"):
        make_plan([10, 20], **arguments)


def test_refusals_of_sizes() -> None:
    with pytest.raises(UserError, match="sizes"):
        make_plan([], 1)
    with pytest.raises(UserError, match="sizes"):
        make_plan([3, 0], 1)
    with pytest.raises(UserError, match=r"haar.*2048"):
        make_plan([3000], 10, "haar")
    with pytest.raises(UserError, match="haar"):
        make_plan([30], 10, "haar").all_indices()
    with pytest.raises(UserError, match=r"at least 2"):
        split_budget(1, [1, 1])


def test_more_ring_than_weights_if_asked_for() -> None:
    counts = make_plan([10], 25, allow_unused=True).counts()
    assert sorted(counts)[-11:] == [0] + [1] * 10
