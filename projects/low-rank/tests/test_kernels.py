"""Gram matrices: planted hierarchies, SciPy on the same input, trees walked by hand, and linear networks."""

from __future__ import annotations

import copy
import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.cluster import hierarchy
from scipy.spatial.distance import pdist, squareform
from torch import Tensor, nn

from low_rank.kernels import (
    OrderedGram,
    class_contrast,
    cluster,
    compact,
    cosines,
    feature_rank,
    gram,
    is_constant,
    layer_ranks,
    ordered_gram,
)
from low_rank.models import build_model
from low_rank.names import REGULARISERS
from low_rank.rank import effective_rank, gram_effective_rank
from low_rank.regularizers import penalty
from shared.config import UserError
from shared.elsewhere import ELSEWHERE, elsewhere


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shuffled(n: int, seed: int = 0) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def planted(noise: float = 0.1) -> tuple[Tensor, Tensor]:
    """Four groups of six samples, of which 0 is like 1 and 2 is like 3."""
    labels = torch.arange(4).repeat_interleave(6)
    centres = torch.eye(8, dtype=torch.float64)[:4] + torch.eye(8, dtype=torch.float64)[[4, 4, 5, 5]]
    return centres[labels] + noise * drawn(24, 8), labels


def blocks(labels: Tensor) -> list[int]:
    """Labels without repetitions."""
    return [int(labels[0])] + [int(b) for a, b in pairwise(labels.tolist()) if a != b]


def test_gram_matrices_by_hand() -> None:
    f = drawn(6, 4)
    torch.testing.assert_close(gram(f.float()), f.float().double() @ f.float().double().T)
    centred = f - f.mean(dim=0)
    torch.testing.assert_close(gram(f, center=True), centred @ centred.T)
    torch.testing.assert_close(gram(f, normalize=True), cosine(f))
    torch.testing.assert_close(gram(f.T, center=False, normalize=True), cosine(f.T))
    # Rows that are centred and normalised have Pearson's correlations: SciPy and NumPy agree on them.
    rows = f - f.mean(dim=1, keepdim=True)
    torch.testing.assert_close(gram(rows, normalize=True), torch.from_numpy(np.corrcoef(f.numpy())))
    torch.testing.assert_close(cosines(gram(f)), cosine(f))
    with_zero = torch.cat([f, torch.zeros(1, 4, dtype=torch.float64)])
    assert (
        float(gram(with_zero, normalize=True)[-1].abs().max()) == 0 == float(cosines(gram(with_zero))[-1].abs().max())
    )
    torch.testing.assert_close(torch.linalg.eigvalsh(gram(f)).flip(0)[:4], torch.linalg.svdvals(f).square())


def cosine(f: Tensor) -> Tensor:
    return 1 - torch.from_numpy(squareform(pdist(f.numpy(), "cosine")))


def test_planted_groups_come_out_as_blocks_in_order() -> None:
    f, labels = planted()
    mixed = shuffled(24)
    for center in (False, True):
        found = ordered_gram(f[mixed], labels[mixed], center=center)
        assert found.labels is not None
        assert sorted(found.order.tolist()) == list(range(24))
        assert torch.equal(found.labels, labels[mixed][found.order])
        order = blocks(found.labels)
        assert len(order) == 4, "groups are whole"
        assert {frozenset(order[:2]), frozenset(order[2:])} == {frozenset({0, 1}), frozenset({2, 3})}
        torch.testing.assert_close(found.gram, gram(f[mixed][found.order], center=center, normalize=True))
        assert found.cophenetic > 0.9


def test_a_chain_of_angles_is_put_in_order() -> None:
    """On an arc the neighbours are known; average linkage alone would leave its leaves in any of many orders."""
    angles = torch.cumsum(torch.rand(15, generator=torch.Generator().manual_seed(0), dtype=torch.float64), 0) / 10
    mixed = shuffled(15)
    f = torch.stack([angles.cos(), angles.sin()], dim=1)[mixed]
    order = mixed[ordered_gram(f).order].tolist()
    assert order in (list(range(15)), list(range(15))[::-1])


def test_the_tree_is_scipys_on_raw_features() -> None:
    f = drawn(20, 6)
    distances = pdist(f.numpy(), "cosine")
    theirs = hierarchy.linkage(distances, "average", optimal_ordering=True)
    tree = cluster(gram(f))
    np.testing.assert_allclose(tree.linkage[:, 2:], theirs[:, 2:], atol=1e-12)
    assert tree.order.tolist() in (hierarchy.leaves_list(theirs).tolist(), hierarchy.leaves_list(theirs)[::-1].tolist())
    assert tree.cophenetic == pytest.approx(float(hierarchy.cophenet(theirs, distances)[0]), abs=1e-12)
    assert ordered_gram(f).cophenetic == pytest.approx(tree.cophenetic, abs=1e-12)


def test_cophenetic_correlation_by_walking_the_tree() -> None:
    f = drawn(12, 5)
    tree = cluster(gram(f))
    members: dict[int, list[int]] = {i: [i] for i in range(12)}
    meeting = np.zeros((12, 12))
    for step, (a, b, height, _) in enumerate(tree.linkage):
        for i in members[int(a)]:
            for j in members[int(b)]:
                meeting[i, j] = meeting[j, i] = height
        members[12 + step] = members[int(a)] + members[int(b)]
    pairs = np.triu_indices(12, 1)
    expected = np.corrcoef((1 - cosine(f).numpy())[pairs], meeting[pairs])[0, 1]
    assert tree.cophenetic == pytest.approx(expected, abs=1e-12)


def test_distances_of_a_tree_are_recovered_exactly() -> None:
    """Cosines that are themselves a hierarchy have a cophenetic correlation of 1."""
    similar = torch.full((6, 6), 0.2, dtype=torch.float64)
    similar[:4, :4], similar[4:, 4:], similar[:2, :2], similar[2:4, 2:4] = 0.5, 0.6, 0.8, 0.7
    similar.fill_diagonal_(1)
    tree = cluster(similar)
    assert tree.cophenetic == pytest.approx(1, abs=1e-12)
    assert sorted(tree.linkage[:, 2]) == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.8])


def same(a: OrderedGram, b: OrderedGram) -> None:
    torch.testing.assert_close(a.gram, b.gram)
    assert a.labels is not None
    assert b.labels is not None
    assert torch.equal(a.labels, b.labels)
    assert a.cophenetic == pytest.approx(b.cophenetic, abs=1e-10)
    assert a.contrast is not None
    assert b.contrast is not None
    assert a.contrast.within == pytest.approx(b.contrast.within, abs=1e-12)
    assert a.contrast.between == pytest.approx(b.contrast.between, abs=1e-12)


def test_permuted_samples_and_rotated_features_change_nothing_but_the_order() -> None:
    for f, labels in ((drawn(24, 9), torch.arange(24) % 3), planted(0.3)):
        found = ordered_gram(f, labels)
        like = found.gram.mean(dim=1)
        assert float(like[0]) >= float(like[-1])
        for seed in range(12):
            mixed = shuffled(24, seed)
            other = ordered_gram(f[mixed], labels[mixed])
            same(found, other)
            assert torch.equal(mixed[other.order], found.order)
        turned = torch.linalg.qr(drawn(f.shape[1], f.shape[1], seed=1)).Q
        same(found, ordered_gram(f @ turned, labels))
        same(found, ordered_gram(f * torch.linspace(0.5, 3, 24)[:, None], labels))  # lengths of rows do not matter


def test_contrast_in_closed_form() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    one_hot = torch.eye(3, dtype=torch.float64)[labels]
    found = class_contrast(gram(one_hot), labels)
    assert (found.within, found.between, found.difference) == (1, 0, 1)
    simplex = class_contrast(gram(one_hot, center=True), labels)  # class means at the corners of a simplex
    assert simplex.within == pytest.approx(1)
    assert simplex.between == pytest.approx(-1 / 2)
    turned = class_contrast(gram(one_hot), torch.tensor([0, 1, 2, 0, 1, 2]))
    assert (turned.within, turned.between) == pytest.approx((0, 3 / 12))
    # Pairs counted one by one.
    f, kinds = drawn(9, 4), torch.tensor([0, 1, 1, 2, 0, 2, 2, 1, 0])
    similar, sums = cosine(f), {True: [], False: []}
    for i in range(9):
        for j in range(i):
            sums[bool(kinds[i] == kinds[j])].append(float(similar[i, j]))
    found = class_contrast(gram(f), kinds)
    assert found.within == pytest.approx(np.mean(sums[True]))
    assert found.between == pytest.approx(np.mean(sums[False]))
    assert found.difference == pytest.approx(np.mean(sums[True]) - np.mean(sums[False]))


@pytest.mark.parametrize("options", [{}, {"center": True}, {"normalize": True}, {"center": True, "normalize": True}])
def test_compact_features_have_the_same_gram_matrix_and_rank(options: dict[str, bool]) -> None:
    for f in (drawn(7, 40), drawn(7, 5)):
        small = compact(f)
        assert small.shape == (7, min(7, f.shape[1]))
        torch.testing.assert_close(gram(small, **options), gram(f, **options))
        assert feature_rank(f, **options) == pytest.approx(float(gram_effective_rank(f, **options)), abs=1e-10)


def test_compact_features_keep_small_singular_values() -> None:
    s = 10.0 ** -torch.arange(0, 12, 2, dtype=torch.float64)
    f = torch.linalg.qr(drawn(6, 6)).Q @ torch.diag(s) @ torch.linalg.qr(drawn(50, 6, seed=1)).Q.T
    torch.testing.assert_close(torch.linalg.svdvals(compact(f)), s, rtol=1e-4, atol=0)


def test_ranks_of_a_linear_perceptron_are_those_of_products() -> None:
    torch.manual_seed(0)
    model = build_model("mlp", (1, 8, 10), width=24, hidden=4, activation="linear").double()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    x = drawn(30, 1, 8, 8)
    found = layer_ranks(model, x)
    assert list(found) == ["act1", "act2", "act3", "act4"]
    W = torch.eye(64, dtype=torch.float64)
    for l in range(1, 5):
        W = model.get_parameter(f"linear{l}.weight").detach() @ W
        kernel = x.flatten(1) @ W.T @ W @ x.flatten(1).T
        # Both ends of the same identity: the entropy of K's eigenvalues, and of the squares of x W^T.
        assert found[f"act{l}"] == pytest.approx(float(effective_rank(kernel)), abs=1e-7)
        assert found[f"act{l}"] == pytest.approx(float(gram_effective_rank(x.flatten(1) @ W.T)), abs=1e-10)
    assert list(layer_ranks(model, x, ["act3"], batch=7).values()) == pytest.approx([found["act3"]], abs=1e-10)
    mixed = layer_ranks(model, x[shuffled(30)])
    assert list(mixed.values()) == pytest.approx(list(found.values()), abs=1e-10)
    centred = layer_ranks(model, x, ["act2"], center=True)["act2"]
    plain = layer_ranks(model, x - x.mean(dim=0), ["act2"])["act2"]
    assert centred == pytest.approx(plain, abs=1e-10)


def test_depth_lowers_the_rank_and_scaled_skips_keep_it() -> None:
    """Untrained ReLU perceptrons on images of digits (section 2.2): means of a few networks."""
    from sklearn.datasets import load_digits

    pixels, _ = load_digits(return_X_y=True)
    x = torch.from_numpy(pixels[:200]).float().view(-1, 1, 8, 8)
    x = (x - x.mean()) / x.std()

    def mean(hidden: int, residual: str) -> float:
        ranks = []
        for seed in range(4):
            torch.manual_seed(seed)
            model = build_model("mlp", (1, 8, 10), width=96, hidden=hidden, residual=residual)
            ranks.append(list(layer_ranks(model, x).values())[-1])
        return float(np.mean(ranks))

    plain = [mean(d, "none") for d in (1, 4, 12)]
    assert plain[0] - 0.3 > plain[1]
    assert plain[1] - 0.3 > plain[2]
    for every in ("1", "2"):
        assert abs(mean(12, every) - mean(4, every)) < (plain[1] - plain[2]) / 2


def test_constant_features_warn() -> None:
    same_rows = torch.full((5, 3), 0.1, dtype=torch.float64)
    assert is_constant(same_rows)
    assert is_constant(torch.zeros(4, 2))
    assert not is_constant(drawn(5, 3))
    assert not is_constant(same_rows + 1e-4 * drawn(5, 3))
    for make in (gram, ordered_gram):
        with pytest.warns(UserWarning, match="same features"):
            make(same_rows)
    with pytest.warns(UserWarning, match="same features"):
        assert math.isnan(ordered_gram(same_rows, torch.tensor([0, 0, 1, 1, 1])).cophenetic)
    model = build_model("mlp", (1, 8, 10), width=8, hidden=2)
    with torch.no_grad():
        model.get_parameter("linear2.weight").zero_()
    for center in (False, True):
        with pytest.warns(UserWarning, match="'act2'") as caught:
            ranks = layer_ranks(model, drawn(6, 1, 8, 8).float(), center=center)
        assert len(caught) == 1
        assert ranks["act2"] == 0 < ranks["act1"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gram(drawn(5, 3))
        ordered_gram(drawn(5, 3))


def test_bad_input_is_refused() -> None:
    f = drawn(5, 3)
    for bad in (torch.ones(3), torch.ones(0, 3), torch.ones(2, 3, 4)):
        for take in (gram, ordered_gram, compact, feature_rank):
            with pytest.raises(UserError, match="shape"):
                take(bad)
    with pytest.raises(UserError, match="finite"):
        gram(torch.full((2, 2), math.nan))
    for bad in (drawn(1, 1), drawn(3, 4), drawn(3)):
        with pytest.raises(UserError, match="N >= 2"):
            cluster(bad)
    with pytest.raises(UserError, match="one for every sample"):
        class_contrast(gram(f), torch.zeros(4))
    for labels in ([0, 0, 0, 0, 0], [0, 1, 2, 3, 4]):
        with pytest.raises(UserError, match="two or more"):
            class_contrast(gram(f), torch.tensor(labels))


def test_on_another_device_nothing_changes() -> None:
    torch.manual_seed(0)
    model = build_model("cnn-small", (1, 8, 10), channels=0.25)
    x, labels = drawn(10, 1, 8, 8).float(), torch.arange(10) % 2
    f = drawn(10, 40)
    ranks, shown = layer_ranks(model, x), ordered_gram(f, labels)
    sizes = {name: float(penalty([f], name)) for name in REGULARISERS}
    with elsewhere():
        moved = layer_ranks(copy.deepcopy(model).to(ELSEWHERE), x.to(ELSEWHERE))
        away = ordered_gram(f.to(ELSEWHERE), labels.to(ELSEWHERE))
        assert away.labels is not None
        other = OrderedGram(away.order, away.gram.cpu(), away.labels.cpu(), away.cophenetic, away.contrast)
        there = {name: float(penalty([f.to(ELSEWHERE)], name)) for name in REGULARISERS}
    assert moved == pytest.approx(ranks, abs=1e-6)
    same(other, shown)
    assert there == pytest.approx(sizes)
