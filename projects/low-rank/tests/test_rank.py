"""Measures of rank against closed forms, SciPy's entropy, and finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from low_rank.rank import (
    MEASURES,
    effective_rank,
    flattened,
    gram_effective_rank,
    most,
    nuclear_ratio,
    participation_ratio,
    pca_rank,
    stable_rank,
    threshold_rank,
)
from shared.config import UserError


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rank_two() -> Tensor:
    i, j = torch.arange(6.0, dtype=torch.float64)[:, None], torch.arange(5.0, dtype=torch.float64)
    return torch.sin(1 + i + 2 * j)


def test_closed_forms() -> None:
    assert float(effective_rank(torch.diag(torch.tensor([4.0, 3, 2, 1])))) == pytest.approx(1.2798542258, abs=1e-10)
    for n in (1, 2, 7):
        assert float(effective_rank(torch.eye(n))) == pytest.approx(math.log(n), abs=1e-12) == most(n, n + 1)
    assert float(effective_rank(torch.outer(drawn(5), drawn(4, seed=1)))) == pytest.approx(0, abs=1e-12)
    assert float(effective_rank(torch.eye(7), exponentiate=True)) == pytest.approx(7)
    a = rank_two()
    assert float(effective_rank(a)) == pytest.approx(0.6897026231, abs=1e-10)
    assert float(stable_rank(a)) == pytest.approx(1.7170739722, abs=1e-10)
    assert int(threshold_rank(a)) == int(threshold_rank(a, None)) == 2
    d = torch.diag(torch.tensor([4.0, 3, 2, 1]))
    assert float(nuclear_ratio(d)) == pytest.approx(2.5)
    assert float(participation_ratio(d)) == pytest.approx(30**2 / (256 + 81 + 16 + 1))
    assert float(stable_rank(d)) == pytest.approx(30 / 16)
    assert [int(pca_rank(d, q)) for q in (0.5, 16 / 30, 0.54, 0.97, 1.0)] == [1, 1, 2, 4, 4]
    assert [int(threshold_rank(d, t)) for t in (0.0, 0.25, 0.3, 0.9)] == [4, 3, 3, 1]


def test_entropy_is_scipys() -> None:
    for shape in ((6, 4), (4, 6), (5, 5)):
        a = drawn(*shape)
        s = np.linalg.svd(a.numpy(), compute_uv=False)
        assert float(effective_rank(a)) == pytest.approx(scipy.stats.entropy(s), abs=1e-12)
        assert float(gram_effective_rank(a)) == pytest.approx(scipy.stats.entropy(s**2), abs=1e-12)
        centred = a - a.mean(dim=0)
        cosines = torch.nn.functional.normalize(centred, dim=1)
        for made, options in ((centred, {"center": True}), (cosines, {"center": True, "normalize": True})):
            eigenvalues = np.clip(np.linalg.eigvalsh((made @ made.T).numpy()), 0, None)
            found = float(gram_effective_rank(a, **options))
            assert found == pytest.approx(scipy.stats.entropy(eigenvalues), abs=1e-6)
        assert float(gram_effective_rank(a, exponentiate=True)) == pytest.approx(math.exp(scipy.stats.entropy(s**2)))


@settings(max_examples=40, deadline=None)
@given(m=st.integers(1, 7), n=st.integers(1, 7), scale=st.floats(1e-6, 1e6), seed=st.integers(0, 1000))
def test_invariances(m: int, n: int, scale: float, seed: int) -> None:
    a = drawn(m, n, seed=seed)
    q = torch.linalg.qr(drawn(m, m, seed=seed + 1)).Q
    for name, measure in MEASURES.items():
        value = measure(a).double()
        for other in (scale * a, -a, a.T, q @ a, a.flip(0)):
            torch.testing.assert_close(measure(other).double(), value, rtol=1e-7, atol=1e-7, msg=name)
    assert 0 <= float(effective_rank(a)) <= most(m, n) + 1e-12
    assert float(effective_rank(torch.cat([a, torch.zeros(3, n)]))) == pytest.approx(float(effective_rank(a)), abs=1e-9)


def test_batches_are_matrices_one_by_one_in_double_precision() -> None:
    batch = drawn(2, 3, 6, 4).float()
    for name, measure in MEASURES.items():
        found = measure(batch)
        assert found.shape == (2, 3), name
        one = torch.stack([torch.stack([measure(m) for m in row]) for row in batch])
        torch.testing.assert_close(found, one, rtol=1e-10, atol=1e-10)
    assert effective_rank(batch).dtype == torch.float64
    assert gram_effective_rank(batch).shape == (2, 3)


@pytest.mark.parametrize("measure", [effective_rank, stable_rank, nuclear_ratio, participation_ratio])
def test_gradients(measure: object) -> None:
    a = drawn(5, 4).requires_grad_()
    assert torch.autograd.gradcheck(measure, (a,))
    (gradient,) = torch.autograd.grad(measure(a), a)  # pyright: ignore
    assert float((gradient * a.detach()).sum()) == pytest.approx(0, abs=1e-9)  # a multiple has the same rank: Euler


def test_gradient_of_a_gram_rank_and_of_lost_directions() -> None:
    f = drawn(6, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: gram_effective_rank(x, center=True, normalize=True), (f,))
    thin = torch.diag(torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64)).requires_grad_()
    (gradient,) = torch.autograd.grad(effective_rank(thin), thin)
    assert bool(gradient.isfinite().all())


def test_a_product_that_spans_many_decades_keeps_its_small_values() -> None:
    s = 10.0 ** -torch.arange(0, 30, 3, dtype=torch.float64)
    a = torch.linalg.qr(drawn(10, 10)).Q @ torch.diag(s)
    assert int(threshold_rank(torch.diag(s), None)) == 5
    p = (s**2 / (s**2).sum()).numpy()
    assert float(gram_effective_rank(a.T)) == pytest.approx(scipy.stats.entropy(p), rel=1e-9)


def test_what_has_no_rank_is_refused_or_zero() -> None:
    for bad in (torch.ones(3), torch.ones(0, 3)):
        with pytest.raises(UserError, match="shape"):
            effective_rank(bad)
    for value in (math.nan, math.inf):
        with pytest.raises(UserError, match="finite"):
            effective_rank(torch.tensor([[1.0, value]]))
    with pytest.warns(UserWarning, match="zeros"):
        assert float(effective_rank(torch.zeros(3, 2))) == 0
    with pytest.warns(UserWarning, match="zeros"):
        assert float(gram_effective_rank(torch.ones(4, 3), center=True)) == 0  # a batch of constant features
    for measure in (stable_rank, nuclear_ratio, participation_ratio, threshold_rank, pca_rank):
        assert float(measure(torch.zeros(3, 2))) == 0
    with pytest.raises(UserError, match="share"):
        pca_rank(torch.eye(2), 1.5)


def test_kernels_are_flattened_by_output() -> None:
    assert flattened(torch.zeros(8, 3, 5, 5)).shape == (8, 75)
    assert flattened(torch.zeros(8, 3)).shape == (8, 3)
