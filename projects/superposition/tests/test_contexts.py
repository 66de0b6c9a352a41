"""Context families: identities of their maps, independence of layers and tasks, refusals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from shared.config import UserError
from superposition.complex import Complex
from superposition.contexts import FAMILIES, TABLE, Contexts, Phasors, Power, Rotation, make_contexts
from superposition.kinds import DESCRIPTIONS, INVERTIBLE, KINDS, LEARNABLE, MATRICES, PHASES, Kind
from superposition.theory import mix_correlations

D, K = 16, 5


def family(kind: Kind, dim: int = D, **options: Any) -> Contexts:
    return make_contexts(kind, dim, 3, "layer", **{"limit": K, **options})


def inputs(kind: Kind, rows: int = 7) -> torch.Tensor:
    real = torch.randn(rows, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return torch.complex(real, real.flip(0)) if kind in PHASES else real


def test_every_kind_has_a_family_and_a_line() -> None:
    assert set(FAMILIES) == set(DESCRIPTIONS) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_binding_a_weight_is_binding_the_input(kind: Kind) -> None:
    contexts, x = family(kind), inputs(kind)
    weight = inputs(kind, 3)
    for k in range(K):
        torch.testing.assert_close(contexts.bind(x, k) @ weight.T, x @ contexts.bind_weight(weight, k).T)
        if kind not in PHASES:
            matrix = contexts.sample(k).double()
            matrix = torch.diag(matrix) if matrix.dim() == 1 else matrix
            torch.testing.assert_close(contexts.bind(x, k), x @ matrix.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", INVERTIBLE)
def test_unbinding_undoes_binding(kind: Kind) -> None:
    contexts, x = family(kind), inputs(kind)
    for k in (0, K - 1):
        torch.testing.assert_close(contexts.unbind(contexts.bind(x, k), k), x)
        torch.testing.assert_close(contexts.unbind_weight(contexts.bind_weight(x, k), k), x)


@pytest.mark.parametrize("kind", ["mask", "ternary"])
def test_what_cannot_be_undone_is_refused(kind: Kind) -> None:
    with pytest.raises(UserError, match="invertible"):
        family(kind).unbind(inputs(kind), 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_context_for_every_row_is_the_loop_over_rows(kind: Kind) -> None:
    contexts, x = family(kind), inputs(kind)
    ks = torch.tensor([0, 3, 3, 1, 0, 4, 2])
    together = contexts.bind(x, ks)
    for row, k in enumerate(ks.tolist()):
        torch.testing.assert_close(together[row : row + 1], contexts.bind(x[row : row + 1], k))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [3, 7])
def test_a_context_for_every_sequence_is_the_loop_over_them(kind: Kind, steps: int) -> None:
    contexts = family(kind)
    x = torch.stack([inputs(kind) * (step + 1) for step in range(steps)], 1)  # [7, steps, D]
    ks = torch.tensor([0, 3, 3, 1, 0, 4, 2])
    together = contexts.bind(x, ks)
    for row, k in enumerate(ks.tolist()):
        torch.testing.assert_close(together[row], contexts.bind(x[row], k))
    if kind in INVERTIBLE:
        torch.testing.assert_close(contexts.unbind(together, ks), x)
    assert contexts.bind(x[:0], ks[:0]).shape == (0, steps, D)


@pytest.mark.parametrize("kind", ["complex", "normal"])
def test_a_family_that_is_converted_is_drawn_anew(kind: Kind) -> None:
    contexts, exact = family(kind), family(kind)
    like = torch.zeros(1, dtype=torch.float32)
    contexts.rows(2, like)  # pyright: ignore
    wide = torch.zeros(1, dtype=torch.float64)
    found, expected = contexts.half().double().rows(2, wide), exact.rows(2, wide)  # pyright: ignore
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_binary_is_signs_and_its_own_inverse() -> None:
    contexts = family("binary", 10_000)
    row = contexts.sample(2)
    assert set(row.tolist()) == {-1.0, 1.0}
    assert abs(float(row.mean())) < 0.05
    assert torch.equal(row * row, torch.ones(10_000))


@pytest.mark.parametrize("kind", MATRICES)
def test_matrices_are_orthogonal(kind: Kind) -> None:
    contexts = make_contexts(kind, 30, 1, "l")
    q = contexts.bind_weight(torch.eye(30, dtype=torch.float64), 4)
    assert float((q.T @ q - torch.eye(30, dtype=torch.float64)).abs().max()) < 1e-12


def test_rotations_have_the_moments_of_the_uniform_distribution() -> None:
    """E[Q_11] = 0, which a QR without its signs misses by far, and E[(tr Q)^2] = 1."""
    d, draws = 8, 4000
    first, traces, uncorrected = [], [], []
    for seed in range(draws):
        q = Rotation(d, seed).sample(0).double()
        first.append(float(q[0, 0]))
        traces.append(float(q.trace()) ** 2)
    for seed in range(300):
        gaussian = torch.randn(d, d, generator=Rotation(d, seed).stream(0), dtype=torch.float64)
        uncorrected.append(float(torch.linalg.qr(gaussian)[0][0, 0]))
    error = 1 / math.sqrt(d * draws)
    assert abs(np.mean(first)) < 4 * error
    assert np.mean(traces) == pytest.approx(1, abs=4 * np.std(traces) / math.sqrt(draws))
    assert np.mean(uncorrected) < -0.5 / math.sqrt(d)


def test_hadamard_gram_is_d_times_the_identity() -> None:
    contexts = make_contexts("hadamard", 32, 0, "l")
    assert torch.equal(contexts.gram(range(32)), 32 * torch.eye(32, dtype=torch.float64))
    other = make_contexts("hadamard", 32, 0, "m")
    assert not torch.equal(contexts.sample(0), other.sample(0))


def test_local_mixes_have_the_derived_correlations() -> None:
    contexts = make_contexts("local-mix", 200_000, 0, "l", limit=20)
    gram = contexts.gram(range(10)).real / 200_000
    assert mix_correlations(5) == pytest.approx([1, 0.6839, 0.4677, 0.3199, 0.3199], abs=1e-4)
    for lag, expected in enumerate(mix_correlations(6)):
        assert float(gram[0, lag]) == pytest.approx(expected, abs=0.003)
    around = contexts.gram([0, 19]).real / 200_000
    assert float(around[0, 1]) == pytest.approx(mix_correlations(2)[1], abs=0.003)


def test_powers_take_real_numbers_and_meet_the_whole_ones() -> None:
    contexts = Power(D, 0, "l")
    x = inputs("power")
    torch.testing.assert_close(contexts.bind(contexts.bind(x, 0.5), 0.5), contexts.bind(x, 1))
    torch.testing.assert_close(contexts.bind(contexts.bind(x, -2), 2), x)
    ks = torch.tensor([0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5])
    torch.testing.assert_close(contexts.bind(x, ks)[2:3], contexts.bind(x[2:3], 1.5))
    assert torch.equal(contexts.bind(x, 0), x)


def test_turning_parts_is_multiplying_by_phasors() -> None:
    contexts = Phasors(D, 0, "l")
    x = inputs("complex")
    turned = contexts.turn(Complex.of(x), 3)
    torch.testing.assert_close(turned.native(), contexts.bind(x, 3))
    torch.testing.assert_close(contexts.turn(x.real, 3).native(), contexts.bind(x.real + 0j, 3))
    torch.testing.assert_close(contexts.turn(turned, 3, -1.0).native(), x)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "none"])
def test_a_context_is_a_function_of_seed_layer_and_k_alone(kind: Kind) -> None:
    first, again = family(kind), family(kind)
    assert torch.equal(first.sample(2), again.sample(2))
    again.sample(4)
    assert torch.equal(first.sample(3), again.sample(3))
    torch.manual_seed(17)
    assert torch.equal(first.sample(1), family(kind).sample(1))
    assert not torch.equal(make_contexts(kind, D, 3, "other", limit=K).sample(2), first.sample(2))
    assert not torch.equal(make_contexts(kind, D, 4, "layer", limit=K).sample(2), first.sample(2))
    assert not torch.equal(first.sample(1), first.sample(2))
    assert not first.state_dict()


def test_far_contexts_keep_their_digits_in_double_precision() -> None:
    """Beyond the table too, where single precision was asked for first."""
    k = TABLE + 5
    family = make_contexts("complex", 6, 0, "l")
    family.rows(k, torch.empty(0))
    row = family.rows(k, torch.empty(0, dtype=torch.float64))
    assert row.dtype == torch.float64
    torch.testing.assert_close(row.square().sum(0), torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-15)


def test_contexts_without_end_have_none() -> None:
    contexts = make_contexts("binary", D, 0, "l")
    x = inputs("binary")
    assert not torch.equal(contexts.bind(x, 5000), contexts.bind(x, 10**9))
    ks = torch.tensor([5000, 1, 10**9, 1, 5000, 2, 3])
    torch.testing.assert_close(contexts.bind(x, ks)[:1], contexts.bind(x[:1], 5000))


@pytest.mark.parametrize("kind", ["binary", "complex", "power", "rotation", "local-mix", "none"])
@pytest.mark.parametrize("k", [-1, 5, torch.tensor([0, 5, 1, 1, 1, 1, 1]), torch.tensor([0, -1, 1, 1, 1, 1, 1])])
def test_an_index_outside_is_refused_and_never_wraps(kind: Kind, k: Any) -> None:
    contexts = family(kind)
    if kind == "none":
        with pytest.raises(IndexError):
            contexts.check(k)
        return
    with pytest.raises(IndexError, match=r"'layer'.*contexts 0 to 4"):
        contexts.bind(inputs(kind), k)


def test_powers_keep_to_their_end_and_to_finite_numbers() -> None:
    contexts = family("power")
    for k in (4.5, 99.0, -0.5, torch.tensor([0.5] * 6 + [7.5])):
        with pytest.raises(IndexError, match="0 to 4"):
            contexts.bind(inputs("power"), k)
    free = family("power", limit=None)
    for k in (float("nan"), float("inf"), torch.tensor([0.5] * 6 + [float("nan")])):
        with pytest.raises(UserError, match="finite"):
            free.bind(inputs("power"), k)
    ks = torch.tensor([-1, 0, 1, 2, -3, 4, 5])
    torch.testing.assert_close(free.bind(inputs("power"), ks)[4:5], free.bind(inputs("power")[4:5], -3))


def test_bad_families_are_refused() -> None:
    with pytest.raises(UserError, match="power of 2"):
        make_contexts("hadamard", 10)
    with pytest.raises(UserError, match="at most the 8 inputs"):
        make_contexts("hadamard", 8, limit=9)
    with pytest.raises(UserError, match="neighbours"):
        make_contexts("local-mix", 8)
    with pytest.raises(UserError, match="all three"):
        make_contexts("local-mult", 8, limit=3)
    with pytest.raises(UserError, match="learn-context"):
        make_contexts("power", 8, limit=2, learn=True)
    with pytest.raises(UserError, match="number of contexts"):
        make_contexts("binary", 8, learn=True)
    with pytest.raises(UserError, match="power"):
        make_contexts("binary", 8).bind(torch.ones(1, 8), 0.5)
    with pytest.raises(UserError, match="did you mean 'binary'"):
        make_contexts("binari", 8)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("kind", LEARNABLE)
def test_learned_contexts_begin_as_drawn_ones(kind: Kind) -> None:
    drawn, learned = family(kind), family(kind, learn=True)
    torch.testing.assert_close(learned.sample(1).detach(), drawn.sample(1), rtol=1e-6, atol=1e-6, check_dtype=False)
    assert len(learned.state_dict()) == K


def test_storage_is_accounted_as_the_families_need_it() -> None:
    assert make_contexts("binary", 100).nbytes(8) == 100
    assert make_contexts("complex", 100).numbers(8) == 800
    assert make_contexts("power", 100).numbers(8) == 108
    assert make_contexts("rotation", 100).numbers(8) == 80_000
    assert make_contexts("none", 100).numbers(8) == 0


def test_collisions_fall_with_the_dimension() -> None:
    small, large = (make_contexts("binary", d).collisions(range(10)) for d in (16, 4096))
    assert large < small / 4
    assert make_contexts("binary", 16).collisions([0]) == 0
