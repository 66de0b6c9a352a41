"""Random networks against plain loops, closed forms, NumPy and SciPy, and distributions that are known."""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from low_rank import random_networks
from low_rank.models import gain
from low_rank.names import ACTIVATIONS
from low_rank.random_networks import (
    CUT,
    INITS,
    NORMALISATIONS,
    RESIDUALS,
    Architecture,
    Weights,
    dkw,
    dominance,
    draw,
    draw_weights,
    empirical_cdf,
    end_to_end,
    feature_ranks,
    features,
    forward,
    gram_ranks,
    init_gain,
    product_ranks,
)
from low_rank.rank import effective_rank, gram_effective_rank
from low_rank.spectra import deficit
from shared.config import UserError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs(samples: int = 12, dims: int = 6) -> Tensor:
    return torch.randn(samples, dims, generator=seeded(99), dtype=torch.float64)


def digits(samples: int = 256) -> Tensor:
    from sklearn.datasets import load_digits

    x = torch.tensor(load_digits().data)  # type: ignore[attr-defined]
    return ((x - x.mean()) / x.std())[:samples]


# -- weights


@pytest.mark.parametrize("init", INITS)
def test_entries_have_the_promised_mean_and_variance(init: str) -> None:
    w = draw_weights(init, 40, 24, 48, seeded())
    assert w.shape == (40, 24, 48)
    assert w.dtype == torch.float64
    # Orthonormal rows of length 48 have entries of variance 1/48 too; Xavier's is 2/(24 + 48).
    variance = 2 / (24 + 48) if init == "xavier" else 1 / 48
    count = w.numel()
    assert abs(float(w.mean())) < 5 * math.sqrt(variance / count)
    assert float(w.var()) == pytest.approx(variance, rel=5 * math.sqrt(2 / count))
    torch.testing.assert_close(draw_weights(init, 40, 24, 48, seeded(), gain=3.0), 3 * w)


@pytest.mark.parametrize(
    ("init", "law"),
    [
        ("normal", stats.norm(scale=1 / 4)),
        ("kaiming", stats.norm(scale=1 / 4)),
        ("xavier", stats.norm(scale=math.sqrt(2 / 24))),
        ("uniform", stats.uniform(-math.sqrt(3) / 4, 2 * math.sqrt(3) / 4)),
        ("truncated", stats.truncnorm(-CUT, CUT, scale=1 / 4 / stats.truncnorm(-CUT, CUT).std())),
    ],
)
def test_entries_follow_their_distribution(init: str, law: stats.rv_continuous) -> None:
    entries = draw_weights(init, 30, 8, 16, seeded(3)).flatten().numpy()
    assert stats.kstest(entries, law.cdf).pvalue > 1e-3


@pytest.mark.parametrize(("outputs", "inputs"), [(5, 5), (7, 4), (4, 7)])
def test_orthogonal_matrices_have_singular_values_of_1(outputs: int, inputs: int) -> None:
    w = draw_weights("orthogonal", 20, outputs, inputs, seeded())
    torch.testing.assert_close(torch.linalg.svdvals(w), torch.ones(20, 4 + (outputs == inputs), dtype=torch.float64))


def test_orthogonal_matrices_prefer_no_sign() -> None:
    """QR alone would give the first column a preferred sign."""
    w = draw_weights("orthogonal", 2000, 3, 3, seeded())
    assert float(w[:, 0, 0].mean().abs()) < 5 / math.sqrt(3 * 2000)
    # Uniform over O(3): both determinants are as likely.
    assert float(torch.linalg.det(w).mean().abs()) < 5 / math.sqrt(2000)


def test_the_gain_belongs_to_kaiming_and_orthogonal_weights() -> None:
    for activation in ACTIVATIONS:
        assert init_gain("kaiming", activation) == init_gain("orthogonal", activation) == gain(activation)
        assert {init_gain(init, activation) for init in ("normal", "uniform", "xavier", "truncated")} == {1.0}
    assert init_gain("kaiming", "relu") == torch.nn.init.calculate_gain("relu")
    assert init_gain("kaiming", "leaky_relu") == torch.nn.init.calculate_gain("leaky_relu", 0.2)


# -- products


def test_end_to_end_is_the_layers_one_after_the_other() -> None:
    ws = [torch.randn(3, 4, 5, 5, generator=seeded(l), dtype=torch.float64) for l in range(4)]
    x = torch.randn(5, generator=seeded(9), dtype=torch.float64)
    y = x.expand(3, 4, 5)
    for w in ws:
        y = torch.einsum("...ij,...j->...i", w, y)
    torch.testing.assert_close(end_to_end(ws) @ x, y)
    torch.testing.assert_close(end_to_end([w[0, 0] for w in ws]), ws[3][0, 0] @ ws[2][0, 0] @ ws[1][0, 0] @ ws[0][0, 0])
    assert torch.equal(end_to_end(ws[:1]), ws[0])


def test_matrices_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="matrix 2"):
        end_to_end([torch.eye(3), torch.eye(4)])
    with pytest.raises(UserError, match="none"):
        end_to_end([])
    assert end_to_end([torch.ones(4, 3), torch.ones(2, 4)]).shape == (2, 3)


def test_product_ranks_are_those_of_a_plain_loop() -> None:
    generator = seeded(5)
    expected = []
    for _ in range(6):
        factors = torch.randn(3, 5, 5, generator=generator, dtype=torch.float64).numpy() / math.sqrt(5)
        s = np.linalg.svd(factors[2] @ factors[1] @ factors[0], compute_uv=False)
        expected.append(stats.entropy(s))
    np.testing.assert_allclose(product_ranks(5, 3, 6, "normal", seeded(5)).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("init", INITS)
def test_neither_chunks_nor_calls_nor_threads_change_what_is_drawn(init: str) -> None:
    whole = product_ranks(5, 3, 7, init, seeded(2))
    torch.testing.assert_close(product_ranks(5, 3, 7, init, seeded(2), chunk=2), whole, rtol=1e-12, atol=1e-12)
    generator = seeded(2)
    singly = torch.cat([product_ranks(5, 3, 1, init, generator) for _ in range(7)])
    torch.testing.assert_close(singly, whole, rtol=1e-12, atol=1e-12)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        torch.testing.assert_close(product_ranks(5, 3, 7, init, seeded(2)), whole, rtol=1e-12, atol=1e-12)
    finally:
        torch.set_num_threads(before)


def test_memory_is_bounded_by_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def recorded(ws: list[Tensor]) -> Tensor:
        sizes.append(len(ws[0]))
        return end_to_end(ws)

    monkeypatch.setattr(random_networks, "end_to_end", recorded)
    product_ranks(4, 2, 11, chunk=4)
    assert sizes == [4, 4, 3]
    sizes.clear()
    monkeypatch.setattr(random_networks, "BYTES", 3 * 2 * 4 * 4 * 8 * 5)
    product_ranks(4, 2, 11)
    assert sizes == [5, 5, 1]


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_orthogonal_products_keep_the_full_rank(depth: int) -> None:
    ranks = product_ranks(12, depth, 10, "orthogonal", seeded(depth))
    torch.testing.assert_close(ranks, torch.full((10,), math.log(12), dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("depth", "lacking"), [(1, 0.229), (2, 0.420), (4, 0.728), (8, 1.151), (16, 1.641)])
def test_small_products_lack_what_was_measured(depth: int, lacking: float) -> None:
    """n = 16, to five standard errors of both measurements."""
    missing = math.log(16) - product_ranks(16, depth, 400, "normal", seeded(depth))
    error = float(missing.std()) * math.sqrt(1 / 400 + 1 / 200)
    assert float(missing.mean()) == pytest.approx(lacking, abs=5 * error + 5e-4)


def test_larger_products_lack_what_the_limit_says() -> None:
    missing = [math.log(64) - float(product_ranks(64, d, 60, "normal", seeded(d)).mean()) for d in (1, 2, 4, 8, 16)]
    for d, measured in zip((1, 2, 4, 8, 16), missing, strict=True):
        assert measured == pytest.approx(deficit(d), abs=0.04)
    assert missing == sorted(missing)


@pytest.mark.parametrize("init", ["uniform", "truncated"])
def test_the_limit_does_not_depend_on_the_distribution_of_entries(init: str) -> None:
    missing = math.log(64) - float(product_ranks(64, 4, 40, init, seeded()).mean())
    assert missing == pytest.approx(deficit(4), abs=0.03)


def test_a_gain_changes_no_rank() -> None:
    torch.testing.assert_close(product_ranks(6, 5, 8, "normal", seeded(), gain=1e-3), product_ranks(6, 5, 8, "normal"))


def test_products_that_vanish_in_single_precision_are_refused() -> None:
    with pytest.raises(UserError, match="vanish in float32") as caught:
        product_ranks(4, 60, 5, gain=0.1, dtype=torch.float32)
    assert "float64" in caught.value.hint
    assert bool((product_ranks(4, 60, 5, gain=0.1) >= 0).all())
    with pytest.raises(UserError, match="finite in float32"):
        product_ranks(4, 60, 5, gain=100.0, dtype=torch.float32)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"n": 4, "depth": 0, "draws": 2}, "--depth"),
        ({"n": 0, "depth": 1, "draws": 2}, "--n"),
        ({"n": 4, "depth": 1, "draws": 0}, "--draws"),
        ({"n": 4, "depth": 1, "draws": 2, "chunk": 0}, "chunk"),
        ({"n": 4, "depth": 1, "draws": 2, "init": "orthogonl"}, "did you mean 'orthogonal'"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        product_ranks(**arguments)


# -- networks


def test_one_linear_layer_is_one_matrix_product() -> None:
    x = inputs()
    w = draw_weights("kaiming", 3, 5, 6, seeded(4))
    h = features(x, 1, 5, 3, "linear", generator=seeded(4))
    for s in range(3):
        torch.testing.assert_close(h[s], x @ w[s].T, rtol=1e-13, atol=1e-13)


ACTS = {
    "linear": lambda z: z,
    "relu": lambda z: z.clamp_min(0),
    "leaky_relu": lambda z: torch.where(z > 0, z, 0.2 * z),
    "tanh": lambda z: 1 - 2 / ((2 * z).exp() + 1),
    "sigmoid": lambda z: 1 / (1 + (-z).exp()),
    "gelu": lambda z: z * 0.5 * (1 + torch.erf(z / math.sqrt(2))),
    "sin": torch.sin,
}


def by_hand(net: Architecture, weights: Weights, x: Tensor, s: int) -> Tensor:
    """Network s, layer by layer, as the table of `RESIDUALS` reads."""
    act = ACTS[net.activation]

    def normed(z: Tensor) -> Tensor:
        if net.normalisation == "batch":
            return F.batch_norm(z, None, None, training=True)
        return F.layer_norm(z, z.shape[1:]) if net.normalisation == "layer" else z

    first, hidden = weights.first[s], weights.hidden[s]
    states = [x @ first.T] if net.residual not in ("none", "post") else [act(normed(x @ first.T))]
    for l in range(len(hidden)):
        h = states[-1]
        z = normed(h @ hidden[l].T)
        if net.residual == "linear":
            step = z
        elif weights.branch is not None:
            step = act(z) @ weights.branch[s, l].T
        else:
            step = act(z)
        if net.residual not in ("none", "branch") and (l + 1) % net.every == 0:
            step = states[l + 1 - net.every] + step / (math.sqrt(net.depth) if net.residual == "block-scaled" else 1)
        states.append(step)
    return states[-1]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_features_are_those_of_a_plain_loop(activation: str, normalisation: str) -> None:
    x = inputs()
    net = Architecture(6, 5, 4, activation, normalisation=normalisation)
    weights = draw(net, 3, generator=seeded(1))
    found = features(x, 4, 5, 3, activation, normalisation=normalisation, generator=seeded(1))
    for s in range(3):
        torch.testing.assert_close(found[s], by_hand(net, weights, x, s))


@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_skips_lead_where_a_plain_loop_leads_them(residual: str, depth: int, every: int, normalisation: str) -> None:
    if every > 1 and residual in ("none", "branch"):
        with pytest.raises(UserError, match="a skip leads"):
            Architecture(6, 5, depth, residual=residual, every=every)
        return
    x = inputs()
    net = Architecture(6, 5, depth, "relu", residual, every, normalisation)
    weights = draw(net, 3, generator=seeded(1))
    found = forward(net, weights, x)
    assert found.shape == (3, 12, 5)
    for s in range(3):
        torch.testing.assert_close(found[s], by_hand(net, weights, x, s))


def test_only_weights_before_an_activation_have_its_gain() -> None:
    for residual in RESIDUALS:
        net = Architecture(40, 30, 6, "relu", residual)
        weights = draw(net, 40, generator=seeded())
        sizes = {"first": weights.first.var() * 40, "hidden": weights.hidden.var() * 30}
        if weights.branch is not None:
            sizes["branch"] = weights.branch.var() * 30
        expected = {
            "first": 2 if residual in ("none", "post") else 1,
            "hidden": 1 if residual == "linear" else 2,
            "branch": 1,
        }
        for name, size in sizes.items():
            assert float(size) == pytest.approx(expected[name], rel=0.04), (residual, name)
        assert sum(w.numel() for w in vars(weights).values() if w is not None) == 40 * net.parameters


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("residual", RESIDUALS)
def test_a_batch_of_networks_is_one_after_the_other(init: str, residual: str) -> None:
    x, generator = inputs(), seeded(8)
    whole = features(x, 3, 5, 4, init=init, residual=residual, generator=seeded(8))
    singly = [features(x, 3, 5, 1, init=init, residual=residual, generator=generator) for _ in range(4)]
    torch.testing.assert_close(torch.cat(singly), whole, rtol=1e-12, atol=1e-12)
    ranks = gram_ranks(x, 3, 5, 4, init=init, residual=residual, generator=seeded(8), chunk=3)
    torch.testing.assert_close(ranks, gram_effective_rank(whole), rtol=1e-10, atol=1e-10)


def test_networks_can_be_chosen_and_joined() -> None:
    net, x = Architecture(6, 5, 3, "relu", "block"), inputs()
    weights = draw(net, 6, generator=seeded())
    mask = torch.tensor([True, False, True, True, False, False])
    parts = Weights.cat([weights[mask], weights[~mask]])
    assert len(parts) == 6
    torch.testing.assert_close(forward(net, parts, x), forward(net, weights, x)[torch.tensor([0, 2, 3, 1, 4, 5])])


@pytest.mark.parametrize("activation", ["linear", "relu", "leaky_relu"])
def test_the_size_of_weights_changes_no_rank_of_a_homogeneous_network(activation: str) -> None:
    x = inputs()
    ranks = gram_ranks(x, 6, 8, 5, activation, generator=seeded())
    torch.testing.assert_close(gram_ranks(x, 6, 8, 5, activation, generator=seeded(), gain=0.01), ranks)
    torch.testing.assert_close(gram_ranks(x, 6, 8, 5, activation, "normal", generator=seeded()), ranks)
    torch.testing.assert_close(gram_ranks(37 * x, 6, 8, 5, activation, generator=seeded()), ranks)


def test_the_size_of_weights_does_change_the_rank_of_a_tanh_network() -> None:
    x = inputs()
    small, large = (gram_ranks(x, 2, 8, 5, "tanh", generator=seeded(), gain=gain) for gain in (0.01, 3.0))
    linear = gram_ranks(x, 2, 8, 5, "linear", generator=seeded())
    torch.testing.assert_close(small, linear, rtol=1e-3, atol=1e-3)
    assert float((large - linear).abs().min()) > 1e-2


def test_a_linear_network_of_orthogonal_weights_keeps_the_rank_of_its_inputs() -> None:
    x = inputs()
    expected = gram_effective_rank(x)
    ranks = gram_ranks(x, 9, 6, 4, "linear", "orthogonal", generator=seeded())
    torch.testing.assert_close(ranks, expected.expand(4), rtol=1e-10, atol=1e-10)


def test_linear_networks_are_their_products() -> None:
    x = torch.eye(7, dtype=torch.float64)
    net = Architecture(7, 7, 4, "linear")
    weights = draw(net, 5, generator=seeded())
    product = end_to_end([weights.first, *weights.hidden.unbind(1)])
    h = forward(net, weights, x)
    torch.testing.assert_close(h, product.mT)
    torch.testing.assert_close(effective_rank(h), effective_rank(product))


# -- what the specification measured on 256 digits: ReLU, width 128, means of 20 networks (one's deviation about 0.16)


@pytest.mark.parametrize(
    ("residual", "expected"),
    [
        ("none", (1.763, 1.483, 1.144, 0.689, 0.373)),
        ("post", (1.805, 1.326, 0.690, 0.156, 0.010)),
        ("block", (1.90, 1.84, 1.47, 1.14, 0.69)),
    ],
)
def test_the_rank_on_digits_falls_with_depth(residual: str, expected: tuple[float, ...]) -> None:
    x = digits()
    assert float(gram_effective_rank(x)) == pytest.approx(2.060, abs=5e-4)
    means = []
    for depth, value in zip((1, 2, 4, 8, 16), expected, strict=True):
        ranks = gram_ranks(x, depth, 128, 12, residual=residual, generator=seeded(depth))
        error = max(float(ranks.std()), 0.02) * math.sqrt(1 / 12 + 1 / 20)
        assert float(ranks.mean()) == pytest.approx(value, abs=4 * error), depth
        means.append(float(ranks.mean()))
    assert means == sorted(means, reverse=True)
    if residual == "none":
        assert means[0] - means[-1] > 1.1


def test_scaled_branches_keep_the_rank_on_digits() -> None:
    x = digits()
    shallow, deep = (
        gram_ranks(x, depth, 128, 12, residual="block-scaled", generator=seeded(1)).mean() for depth in (1, 16)
    )
    assert abs(float(shallow - deep)) < 0.3


# -- inputs and features that are refused


def test_unknown_names_and_sizes_are_refused() -> None:
    for bad, named in (
        ({"activation": "rleu"}, "did you mean 'relu'"),
        ({"residual": "blok"}, "did you mean 'block'"),
        ({"normalisation": "bach"}, "did you mean 'batch'"),
        ({"depth": 0}, "--depth"),
        ({"width": 0}, "--width"),
    ):
        with pytest.raises(UserError, match=named):
            Architecture(**{"inputs": 4, "width": 3, "depth": 2, **bad})  # pyright: ignore
    with pytest.raises(UserError, match="did you mean 'kaiming'"):
        features(inputs(), 2, 4, 2, init="kaimin")


def test_numbers_that_are_not_finite_are_refused_with_their_layer() -> None:
    x = inputs()
    x[3, 2] = math.nan
    with pytest.raises(UserError, match="inputs"):
        features(x, 2, 4, 2)
    with pytest.raises(UserError, match="layer 2"):
        features(inputs().float(), 3, 4, 2, "linear", gain=1e25)
    with pytest.raises(UserError, match="before layer 1"):
        forward(net := Architecture(6, 4, 2, residual="block"), draw(net, 2), inputs().sign() * 1.7e308)
    with pytest.raises(UserError, match=r"\[N, 6\]"):
        forward(Architecture(6, 4, 2), draw(Architecture(6, 4, 2), 2), inputs(4, 5))


def test_features_that_vanish_in_single_precision_are_refused() -> None:
    x = inputs()
    with pytest.raises(UserError, match="vanish in float32") as caught:
        gram_ranks(x.float(), 60, 8, 3, "linear", gain=0.1)
    assert "float64" in caught.value.hint
    assert bool((gram_ranks(x, 60, 8, 3, "linear", gain=0.1) > 0).all())


def test_constant_features_have_rank_0_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="constant features"):
        ranks = gram_ranks(inputs(), 40, 8, 3, "sigmoid", center=True)
    assert torch.equal(ranks, torch.zeros(3, dtype=torch.float64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bool((gram_ranks(inputs(), 4, 8, 3, "sigmoid", center=True) > 0.5).all())


def test_feature_ranks_of_a_batch_are_those_of_its_members() -> None:
    h = torch.randn(5, 9, 4, generator=seeded(), dtype=torch.float64)
    h[2] = h[2, :1]
    for options in ({}, {"center": True}, {"normalize": True}):
        ranks = feature_ranks(h, **options)
        assert float(ranks[2]) == 0
        for s in (0, 1, 3, 4):
            torch.testing.assert_close(ranks[s], gram_effective_rank(h[s], **options))


# -- distribution functions


def test_the_empirical_distribution_function_is_scipys() -> None:
    sample = torch.randn(50, generator=seeded(), dtype=torch.float64).round(decimals=1)  # with ties
    r = torch.cat([sample, torch.linspace(-4, 4, 30, dtype=torch.float64)])
    expected = stats.ecdf(sample.numpy()).cdf.evaluate(r.numpy())
    np.testing.assert_allclose(empirical_cdf(sample, r).numpy(), expected, atol=1e-15)


def test_the_band_solves_the_inequality() -> None:
    for n, alpha in ((10, 0.05), (4096, 0.01)):
        assert 2 * math.exp(-2 * n * dkw(n, alpha) ** 2) == pytest.approx(alpha)
    with pytest.raises(UserError, match="samples"):
        dkw(0)
    with pytest.raises(UserError, match="--level"):
        dkw(10, 0.0)


def test_the_band_holds_the_true_function_as_often_as_promised() -> None:
    u = torch.rand(2000, 40, generator=seeded(), dtype=torch.float64).sort(dim=1).values
    steps = torch.arange(1, 41, dtype=torch.float64) / 40
    furthest = torch.maximum(steps - u, u - steps + 1 / 40).amax(dim=1)
    missed = float((furthest > dkw(40, 0.1)).double().mean())
    assert 0.03 < missed < 0.1 + 4 * math.sqrt(0.1 * 0.9 / 2000)  # Massart's constant is sharp for many samples


def test_dominance_of_known_distributions() -> None:
    low = torch.randn(500, generator=seeded(1), dtype=torch.float64)
    high = torch.randn(500, generator=seeded(2), dtype=torch.float64) + 1
    same = dominance(low, torch.randn(700, generator=seeded(3), dtype=torch.float64))
    assert same.holds
    assert not same.strict
    assert same.band == dkw(500) + dkw(700)
    right, reversed_ = dominance(high, low), dominance(low, high)
    assert right.holds
    assert right.strict
    assert not reversed_.holds
    # A shift by 1 moves the distribution function by 2 Phi(1/2) - 1 at most.
    largest = 2 * stats.norm.cdf(0.5) - 1
    assert right.excess == pytest.approx(largest, abs=right.band)
    assert (reversed_.violation, reversed_.excess) == (right.excess, right.violation)
    crossing = dominance(low, 3 * low)
    assert crossing.strict, "wider on both sides: above on the left"
    assert not crossing.holds, "and below on the right"


def test_dominance_is_a_one_sided_kolmogorov_smirnov_statistic() -> None:
    a = torch.rand(80, generator=seeded(1), dtype=torch.float64)
    b = torch.rand(60, generator=seeded(2), dtype=torch.float64) ** 1.3
    found = dominance(a, b)
    for alternative, value in (("less", found.violation), ("greater", found.excess)):
        # SciPy's `greater` is the largest amount by which the first function exceeds the second.
        peer: Any = stats.ks_2samp(b.numpy(), a.numpy(), alternative=alternative)
        assert peer.statistic == pytest.approx(value)
    with pytest.raises(UserError, match="finite"):
        dominance(a, b / 0)


def test_deeper_products_dominate_shallower_ones() -> None:
    ranks = [product_ranks(16, d, 300, "normal", seeded(d)) for d in (1, 2, 4, 8)]
    for shallow, deep in itertools.pairwise(ranks):
        assert dominance(shallow, deep).holds
        assert dominance(shallow, deep).strict
        assert not dominance(deep, shallow).holds


@pytest.mark.gpu
def test_ranks_on_a_gpu_have_the_distribution_of_those_on_the_cpu() -> None:
    there = product_ranks(16, 4, 400, "normal", torch.Generator("cuda").manual_seed(0)).cpu()
    here = product_ranks(16, 4, 400, "normal", seeded())
    peer: Any = stats.ks_2samp(there.numpy(), here.numpy())
    assert peer.pvalue > 1e-3
    x = inputs().cuda()
    net = Architecture(6, 5, 3, "relu", "block")
    weights = draw(net, 4, generator=torch.Generator("cuda").manual_seed(0))
    on_cpu = Weights(*(w.cpu() for w in vars(weights).values()))
    torch.testing.assert_close(forward(net, weights, x).cpu(), forward(net, on_cpu, x.cpu()))
