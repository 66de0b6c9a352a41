"""The generator against its definition: a sparse matrix, finite differences, autograd of indexing; on every path."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rpg.generate import TILE, Blocks, Flat, Rotations, Tables, Tiles, generate, tables_of
from rpg.plan import KINDS, Plan, make_plan

SIZES, SCALES = [90, 61, 200], [0.5, 1.0, 2.0]
DOUBLE = torch.float64


def plan_of(kind: str, chunk: int = 1, size: int = 96, sizes: list[int] | None = None) -> Plan:
    return make_plan(sizes or SIZES, size, kind, seed=11, chunk=chunk)


def paths(plan: Plan) -> dict[str, Tables]:
    """Every way of working out a plan, whatever this machine would choose."""
    scales = tuple(SCALES)
    found: dict[str, Tables] = {
        "flat": Flat.of(plan, scales, torch.device("cpu")),
        "near": Tiles.of(plan, scales, near=True),
        "far": Tiles.of(plan, scales, near=False),
    }
    if plan.chunk > 1 and all(size % plan.chunk == 0 for size in plan.sizes):
        found["blocks"] = Blocks.of(plan, scales)
    return found


def both(plan: Plan, tables: Tables, dtype: torch.dtype = DOUBLE) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(theta, G W, ring gradient, G^T g) with W and g at random."""
    draw = torch.Generator().manual_seed(3)
    ring = torch.randn(plan.ring_size, generator=draw, dtype=dtype, requires_grad=True)
    gradient = torch.randn(plan.total, generator=draw, dtype=dtype)
    made = torch.cat(generate(ring, tables))
    (back,) = torch.autograd.grad(made, ring, gradient)
    matrix = plan.matrix(SCALES)
    expected = torch.from_numpy(matrix @ ring.detach().double().numpy())
    return made.detach(), expected, back, torch.from_numpy(matrix.T @ gradient.double().numpy())


CASES = [(kind, 1, SIZES) for kind in KINDS if kind != "haar"]
CASES += [(kind, 16, SIZES) for kind in ("even", "ring", "hash", "perm_only")]
CASES += [("even", 8, [96, 64, 200]), ("even", 32, [96, 64, 224])]


# Identity 2: theta = G W, dL/dW = G^T g.
@pytest.mark.parametrize(("kind", "chunk", "sizes"), CASES)
def test_all_paths_are_the_matrix_and_its_transpose(kind: str, chunk: int, sizes: list[int]) -> None:
    plan = plan_of(kind, chunk, sizes=sizes)
    for name, tables in paths(plan).items():
        made, expected, back, transposed = both(plan, tables)
        torch.testing.assert_close(made, expected, rtol=0, atol=0, msg=name)
        torch.testing.assert_close(back, transposed, rtol=1e-13, atol=1e-13, msg=name)


def test_rotations_are_the_matrix_and_its_transpose() -> None:
    plan = plan_of("haar", size=40)
    made, expected, back, transposed = both(plan, Rotations(plan.sizes, tuple(
        scale * torch.from_numpy(plan.rotation(layer)) for layer, scale in enumerate(SCALES)
    )))  # fmt: skip
    torch.testing.assert_close(made, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(back, transposed, rtol=1e-12, atol=1e-12)


def test_layers_of_several_tiles() -> None:
    sizes = [TILE + 7, 5, 2 * TILE]
    plan = make_plan(sizes, 300_000, seed=1)
    for tables in paths(plan).values():
        made, expected, back, transposed = both(plan, tables, torch.float32)
        torch.testing.assert_close(made.double(), expected)
        torch.testing.assert_close(back.double(), transposed, rtol=1e-5, atol=1e-5)
    chunked = make_plan([2 * TILE, TILE, 640], 2**16, seed=1, chunk=64)
    made, expected, back, transposed = both(chunked, Blocks.of(chunked, tuple(SCALES)), torch.float32)
    torch.testing.assert_close(made.double(), expected)
    torch.testing.assert_close(back.double(), transposed, rtol=1e-5, atol=1e-5)


def test_the_path_is_chosen_by_device_size_and_chunk() -> None:
    near = tables_of(plan_of("even"), SCALES)
    assert isinstance(near, Tiles)
    assert near.near
    far = tables_of(make_plan([2**20], 2**19), [1.0])
    assert isinstance(far, Tiles)
    assert not far.near
    assert isinstance(tables_of(plan_of("even", 8, sizes=[96, 64, 200]), SCALES), Blocks)
    assert isinstance(tables_of(plan_of("even", 8), SCALES), Tiles)  # 90 is no number of whole blocks
    assert isinstance(tables_of(plan_of("haar", size=40), SCALES), Rotations)


@pytest.mark.parametrize("kind", list(KINDS))
def test_gradients_to_second_order_and_forward_mode_by_finite_differences(kind: str) -> None:
    plan = make_plan([7, 12], 6, kind, seed=2)
    tables = tables_of(plan, [0.5, 2.0])
    ring = torch.randn(6, dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: generate(w, tables), (ring,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda w: generate(w, tables), (ring,))


def test_ring_gradient_of_a_network_by_central_differences() -> None:
    plan = make_plan([12, 8], 5, seed=2)
    tables = tables_of(plan, [0.5, 2.0])
    x = torch.randn(9, 3, dtype=DOUBLE)

    def loss(w: Tensor) -> Tensor:
        first, second = generate(w, tables)
        return (torch.tanh(x @ first.view(4, 3).T) @ second.view(2, 4).T).square().mean()

    ring = torch.randn(5, dtype=DOUBLE, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(ring), ring)
    step = 1e-5
    with torch.no_grad():
        differences = torch.stack([
            (loss(ring + step * unit) - loss(ring - step * unit)) / (2 * step) for unit in torch.eye(5, dtype=DOUBLE)
        ])  # fmt: skip
    assert float((gradient - differences).norm() / gradient.norm()) < 1e-6


def test_opposite_signs_under_equal_gradients_cancel_exactly() -> None:
    # One entry, many uses: with as many minus as plus signs nothing is left, not even rounding.
    plan = next(
        plan for seed in range(1000) if (plan := make_plan([8], 1, seed=seed)).all_signs().sum() == 0
    )  # fmt: skip
    for tables in (Flat.of(plan, (0.3,), torch.device("cpu")), *(Tiles.of(plan, (0.3,), n) for n in (True, False))):
        ring = torch.tensor([0.7], requires_grad=True)
        (gradient,) = torch.autograd.grad(generate(ring, tables), ring, [torch.full((8,), 0.1)])
        assert gradient.item() == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_single(dtype: torch.dtype) -> None:
    # 4,096 uses of one entry by gradients of 1: half precision alone would stop at 2,048 or 256.
    plan = make_plan([4096], 1, "perm_only")
    for tables in (Flat.of(plan, (1.0,), torch.device("cpu")), *(Tiles.of(plan, (1.0,), n) for n in (True, False))):
        ring = torch.ones(1, requires_grad=True)
        (made,) = generate(ring, tables, dtype)
        assert made.dtype == dtype
        (gradient,) = torch.autograd.grad(made, ring, torch.ones(4096, dtype=dtype))
        assert gradient.dtype == torch.float32
        assert gradient.item() == 4096


@pytest.mark.parametrize("kind", ["even", "hash"])
def test_sum_in_fixed_order_is_the_sum(kind: str) -> None:
    plan = plan_of(kind, 1)
    tables = Flat.of(plan, tuple(SCALES), torch.device("cpu"))
    try:
        torch.use_deterministic_algorithms(True)
        made, expected, back, transposed = both(plan, tables)
    finally:
        torch.use_deterministic_algorithms(False)
    assert tables.uses, "the table of uses was not asked for"
    torch.testing.assert_close(made, expected, rtol=0, atol=0)
    torch.testing.assert_close(back, transposed, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("kind", ["even", "haar"])
def test_transforms(kind: str) -> None:
    plan = make_plan([7, 12], 6, kind, seed=2)
    tables = tables_of(plan, [0.5, 2.0])
    g = torch.from_numpy(plan.matrix([0.5, 2.0]).toarray())

    def theta(w: Tensor) -> Tensor:
        return torch.cat(generate(w, tables))

    rings = torch.randn(4, 6, dtype=DOUBLE)
    torch.testing.assert_close(torch.func.vmap(theta)(rings), rings @ g.T)
    torch.testing.assert_close(torch.func.vmap(theta, in_dims=1)(rings.T), rings @ g.T)
    torch.testing.assert_close(torch.func.jacrev(theta)(rings[0]), g)
    torch.testing.assert_close(torch.func.jacfwd(theta)(rings[0]), g)
    per_sample = torch.func.vmap(torch.func.grad(lambda w: theta(w).square().sum() / 2))(rings)
    torch.testing.assert_close(per_sample, rings @ g.T @ g)


@pytest.mark.parametrize("kind", ["even", "haar"])
def test_autograd_of_indexing_agrees_in_single_precision(kind: str) -> None:
    # The authors' formulation, with torch's own derivative.
    plan = make_plan([500, 700], 120, kind, seed=5)
    ring = torch.randn(120, requires_grad=True)
    gradients = [torch.randn(500), torch.randn(700)]
    if kind == "haar":
        made = [torch.from_numpy(plan.rotation(layer)).float() @ ring for layer in range(2)]
    else:
        made = [
            torch.from_numpy(plan.signs(layer)) * ring[torch.from_numpy(plan.indices(layer)).long()]
            for layer in range(2)
        ]
    ours = generate(ring, tables_of(plan, [1.0, 1.0]))
    for mine, theirs in zip(ours, made, strict=True):
        torch.testing.assert_close(mine, theirs)
    (back,) = torch.autograd.grad(ours, ring, gradients)
    (expected,) = torch.autograd.grad(made, ring, gradients)
    torch.testing.assert_close(back, expected, rtol=1e-4, atol=1e-4)


def cosines(kind: str, size: int, draws: int) -> tuple[np.ndarray, Tensor]:
    """Cosine between two layers of n = M entries, over many keys; W is exponential."""
    ring = torch.empty(size, dtype=DOUBLE).exponential_(generator=torch.Generator().manual_seed(0))
    found = []
    for seed in range(draws):
        # Rings of other names are independent plans: two layers with a permutation each, as the statement has it.
        one = torch.cat(generate(ring, tables_of(make_plan([size], size, kind, seed, ring="one"), [1.0])))
        two = torch.cat(generate(ring, tables_of(make_plan([size], size, kind, seed, ring="two"), [1.0])))
        found.append(float(one @ two / ring.square().sum()))
    return np.array(found), ring


# Identity 5, with the generator itself; closed forms and 10^5 draws are in test_analysis.
def test_destructive_sharing_decorrelates_layers() -> None:
    found, ring = cosines("even", 64, 3000)
    assert abs(found.mean()) < 4 / np.sqrt(3000 * 64)
    assert found.var() * 64 == pytest.approx(1, abs=4 * np.sqrt(2 / 3000))
    alone, _ = cosines("perm_only", 64, 500)
    assert alone.mean() == pytest.approx(float(ring.sum() ** 2 / (64 * ring.square().sum())), rel=0.02)


@pytest.mark.gpu
@pytest.mark.parametrize(("kind", "chunk", "sizes"), CASES)
def test_gpu_agrees_with_the_matrix(kind: str, chunk: int, sizes: list[int]) -> None:
    plan = plan_of(kind, chunk, sizes=sizes)
    tables = tables_of(plan, SCALES, "cuda")
    ring = torch.randn(plan.ring_size, dtype=DOUBLE, device="cuda", requires_grad=True)
    gradient = torch.randn(plan.total, dtype=DOUBLE, device="cuda")
    made = torch.cat(generate(ring, tables))
    (back,) = torch.autograd.grad(made, ring, gradient, retain_graph=True)
    matrix = plan.matrix(SCALES)
    np.testing.assert_allclose(made.detach().cpu().numpy(), matrix @ ring.detach().cpu().numpy(), rtol=1e-12)
    np.testing.assert_allclose(back.cpu().numpy(), matrix.T @ gradient.cpu().numpy(), rtol=1e-10, atol=1e-12)
    try:
        torch.use_deterministic_algorithms(True)
        runs: list[Any] = [torch.autograd.grad(made, ring, gradient, retain_graph=True)[0] for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(run, runs[0]) for run in runs)
    np.testing.assert_allclose(runs[0].cpu().numpy(), matrix.T @ gradient.cpu().numpy(), rtol=1e-10, atol=1e-12)
