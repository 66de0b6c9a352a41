"""The ring: what it starts with, what it keeps between forward passes, what it refuses to load."""

from __future__ import annotations

import copy
import io
import math
import pickle

import numpy as np
import pytest
import torch

from rpg.config import RING_INITS
from rpg.generate import generate
from rpg.plan import make_plan
from rpg.ring import INITS, Ring, check_spec, initial_scales, target_std
from shared.config import UserError

SHAPES = [(16, 8, 3, 3), (32, 16, 3, 3), (10, 32)]
SIZES = [math.prod(shape) for shape in SHAPES]


def ring_of(size: int = 60, seed: int = 0, **options: object) -> Ring:
    torch.manual_seed(0)
    return Ring(make_plan([90, 61], size, seed=seed, **options), [0.5, 2.0], std=1.0)  # pyright: ignore


@pytest.mark.parametrize(
    ("kind", "shape", "expected"),
    [
        ("fan_out", (64, 32, 3, 3), math.sqrt(2 / (64 * 9))),
        ("fan_in", (64, 32, 3, 3), math.sqrt(2 / (32 * 9))),
        ("xavier", (64, 32), math.sqrt(2 / 96)),
        ("linear", (64, 32), math.sqrt(1 / 32)),
        ("trunc_normal", (64, 32), 0.02),
        ("authors", (64, 32, 3, 3), math.sqrt(2 / (64 * 9))),
    ],
)
def test_target_std(kind: str, shape: tuple[int, ...], expected: float) -> None:
    assert target_std(shape, kind) == pytest.approx(expected)


def test_targets_agree_with_torch() -> None:
    from torch import nn

    weight = torch.empty(128, 64, 3, 3)
    for kind, draw in {
        "fan_out": lambda: nn.init.kaiming_normal_(weight, mode="fan_out"),
        "fan_in": lambda: nn.init.kaiming_normal_(weight, mode="fan_in"),
        "xavier": lambda: nn.init.xavier_normal_(weight),
    }.items():
        draw()
        assert weight.std().item() == pytest.approx(target_std(weight.shape, kind), rel=0.02)


@pytest.mark.parametrize("kind", ["fan_out", "fan_in", "xavier", "trunc_normal"])
def test_layers_start_at_their_target_and_the_mean_square_constant_is_one(kind: str) -> None:
    scales, std = initial_scales(SHAPES, kind)
    for shape, scale in zip(SHAPES, scales, strict=True):
        assert scale * std == pytest.approx(target_std(shape, kind))
    assert sum(n * a**2 for n, a in zip(SIZES, scales, strict=True)) / sum(SIZES) == pytest.approx(1)
    torch.manual_seed(0)
    ring = Ring(make_plan(SIZES, 3000), scales, std)
    for layer, shape in zip(ring.layers(), SHAPES, strict=True):
        assert layer.std().item() == pytest.approx(target_std(shape, kind), rel=0.15)


def test_authors_initialisation_is_theirs() -> None:
    scales, std = initial_scales(SHAPES[:2], "authors")
    assert std == pytest.approx(math.sqrt(2 / 4608))
    assert scales == pytest.approx([math.sqrt(4608 / (16 * 9)), math.sqrt(4608 / (32 * 9))])
    assert initial_scales(SHAPES, "unit")[1] == 1.0
    assert initial_scales(SHAPES, "constant")[0] == (1.0, 1.0, 1.0)
    with pytest.raises(UserError, match=r"ring_init.*none.*fan_out"):
        initial_scales(SHAPES, "none")
    names = {"host", "fan_out", "fan_in", "xavier", "linear", "trunc_normal", "unit", "constant", "authors"}
    assert set(INITS) == set(RING_INITS) == names


def test_weights_are_made_once_until_the_ring_changes() -> None:
    ring = ring_of()
    first = ring.layers()
    assert ring.layers() is first
    assert ring.layer(1) is first[1]
    with torch.no_grad():
        ring.weight.add_(1)
    changed = ring.layers()
    assert changed is not first
    assert not torch.equal(changed[0], first[0])
    with torch.no_grad():
        still = ring.layers()
        assert still[0].grad_fn is None
        assert ring.layers() is still
    assert ring.layers()[0].grad_fn is not None
    ring.weight.requires_grad_(False)
    assert ring.layers()[0].grad_fn is None
    ring.double()
    assert ring.layers()[0].dtype == torch.float64


def test_an_optimiser_step_and_a_loaded_state_are_changes() -> None:
    ring = ring_of()
    optimizer = torch.optim.SGD(ring.parameters(), lr=0.1)
    before = ring.layers()
    sum(layer.sum() for layer in before).backward()  # pyright: ignore
    optimizer.step()
    after = ring.layers()
    assert not torch.equal(before[0], after[0])
    ring.load_state_dict(ring_of().state_dict())
    torch.testing.assert_close(ring.layers()[0], before[0])


def test_what_no_version_counter_sees_can_be_forgotten() -> None:
    ring = ring_of()
    before = ring.layers()[0].clone()
    ring.weight.data.mul_(2)
    ring.forget()
    torch.testing.assert_close(ring.layers()[0], 2 * before)


def test_inference_tensors_do_not_leak_into_training() -> None:
    ring = ring_of()
    with torch.inference_mode():
        ring.layers()
    made = ring.layers()
    assert not made[0].is_inference()
    made[0].sum().backward()


def test_state_dict_holds_the_numbers_and_the_specification_alone() -> None:
    ring = ring_of()
    ring.layers()
    state = ring.state_dict()
    assert {name: value.numel() for name, value in state.items() if isinstance(value, torch.Tensor)} == {"weight": 60}
    assert state["_extra_state"] == ring.plan.spec()
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    twin = ring_of()
    torch.nn.init.zeros_(twin.weight)
    twin.load_state_dict(torch.load(buffer, weights_only=True))
    assert all(torch.equal(a, b) for a, b in zip(twin.layers(), ring.layers(), strict=True))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda ring: pickle.loads(pickle.dumps(ring))])
def test_copies_are_equal_and_independent(duplicate) -> None:
    ring = ring_of()
    ring.layers()
    twin = duplicate(ring)
    assert all(torch.equal(a, b) for a, b in zip(twin.layers(), ring.layers(), strict=True))
    with torch.no_grad():
        twin.weight.zero_()
    assert float(twin.layers()[0].detach().abs().sum()) == 0
    assert float(ring.layers()[0].detach().abs().sum()) > 0


def test_pickles_hold_no_tables() -> None:
    ring = Ring(make_plan([500_000], 100), [1.0])
    ring.layers()
    assert len(pickle.dumps(ring)) < 10_000


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"seed": 7}, "seed: 0 saved, 7 here"),
        ({"kind": "hash"}, "kind: 'even' saved, 'hash' here"),
        ({"ring": "other"}, "ring: 'global' saved, 'other' here"),
        ({"chunk": 2}, "chunk: 1 saved, 2 here"),
    ],
)
def test_a_state_of_another_plan_is_refused_and_nothing_is_copied(other: dict, named: str) -> None:
    state = ring_of().state_dict()
    ring = ring_of(**other)
    torch.nn.init.zeros_(ring.weight)
    with pytest.raises(UserError, match=named):
        ring.load_state_dict(state)
    assert float(ring.weight.detach().abs().sum()) == 0


def test_another_network_or_version_is_said_to_be_that() -> None:
    plan = ring_of().plan
    with pytest.raises(UserError, match=r"sizes.*layers differ in size"):
        check_spec(make_plan([90, 62], 60).spec(), plan)
    with pytest.raises(UserError, match="version: 1 saved, 2 here"):
        check_spec({**plan.spec(), "version": 1}, plan)


def test_projection_is_the_least_squares_fit() -> None:
    ring = ring_of().double()
    target = torch.randn(151, dtype=torch.float64)
    ring.project(list(target.split([90, 61])))
    matrix = ring.plan.matrix(ring.scales).toarray()
    expected = np.linalg.lstsq(matrix, target.numpy(), rcond=None)[0]
    np.testing.assert_allclose(ring.weight.detach().numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(ring.gram_diagonal().numpy(), np.diag(matrix.T @ matrix), atol=1e-12)
    # What a ring has made, it fits exactly.
    again = [layer.detach().clone() for layer in ring.layers()]
    torch.nn.init.zeros_(ring.weight)
    ring.project(again)
    np.testing.assert_allclose(ring.weight.detach().numpy(), expected, atol=1e-12)


# Identity 3: a step on the ring is projected gradient descent on the weights, at r times the rate.
def test_one_step_is_projected_gradient_descent() -> None:
    uses, size, rate = 5, 12, 0.1
    plan = make_plan([20, 40], size, seed=3)
    ring = Ring(plan, [1.0, 1.0]).double()
    g = torch.from_numpy(plan.matrix().toarray())
    projector = g @ g.T / uses
    curvature = torch.randn(60, 60, dtype=torch.float64)

    def loss(theta: torch.Tensor) -> torch.Tensor:
        return (curvature @ theta).square().sum() / 2 + theta.sin().sum()

    theta = torch.cat(ring.layers()).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(theta), theta)
    optimizer = torch.optim.SGD(ring.parameters(), lr=rate)
    loss(torch.cat(ring.layers())).backward()
    optimizer.step()
    expected = theta.detach() - rate * uses * projector @ gradient
    torch.testing.assert_close(torch.cat(ring.layers()).detach(), expected, rtol=1e-12, atol=1e-12)


def test_gauge_freedom() -> None:
    """Flipping an entry with the signs of all its uses leaves theta as it was."""
    ring = ring_of().double()
    before = torch.cat(ring.layers()).detach()
    entry = 17
    uses = torch.from_numpy(ring.plan.all_indices() == entry)
    with torch.no_grad():
        ring.weight[entry] *= -1
    flipped = torch.cat(ring.layers()).detach()
    torch.testing.assert_close(torch.where(uses, -flipped, flipped), before, rtol=0, atol=0)


def test_another_key_keeps_the_numbers_and_changes_the_weights() -> None:
    ring = ring_of()
    before, numbers = torch.cat(ring.layers()).detach(), ring.weight.detach().clone()
    ring.rekey(1)
    after = torch.cat(ring.layers()).detach()
    assert torch.equal(ring.weight.detach(), numbers)
    assert abs(float(torch.nn.functional.cosine_similarity(before, after, dim=0))) < 0.4
    ring.rekey(0)
    assert torch.equal(torch.cat(ring.layers()).detach(), before)


def test_generating_from_other_numbers_keeps_nothing() -> None:
    ring = ring_of()
    kept = ring.layers()
    other = ring.generate(torch.zeros(60))
    assert float(other[0].abs().sum()) == 0
    assert ring.layers() is kept
    for mine, theirs in zip(generate(ring.weight, ring.tables()), kept, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("scales", [[1.0], [1.0, 0.0], [1.0, math.nan], [1.0, -2.0]])
def test_scales_are_checked(scales: list[float]) -> None:
    with pytest.raises(UserError, match=r"scales.*2 positive numbers"):
        Ring(make_plan([90, 61], 60), scales)


def test_projection_through_rotations_is_refused() -> None:
    with pytest.raises(UserError, match="haar"):
        Ring(make_plan([9, 6], 5, "haar"), [1.0, 1.0]).gram_diagonal()
