"""Compression: exact counts, exact bounds, files that are as small as they say and read back as what was written."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rpg.compress import (
    from_int8,
    load_pruned_host,
    prune_host,
    prune_ring,
    quantized,
    remaining_dof,
    save_pruned,
    save_quantized,
    sparse,
    stored_bytes,
    to_int8,
    unpacked,
)
from rpg.hosts import make_host
from rpg.wrap import RPGModel, read_model
from shared.config import UserError


def model_of(scope: str = "global", width: int = 16) -> RPGModel:
    torch.manual_seed(0)
    return RPGModel(make_host("patch-resnet", width=width), dof_ratio=0.25, scope=scope).eval()


def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("scope", ["global", "block"])
@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.999])
def test_pruned_ring_loses_exactly_the_smallest(scope: str, fraction: float) -> None:
    model = model_of(scope)
    before = torch.cat([weight.detach().clone() for weight in model.ring_parameters()])
    masks = prune_ring(model, fraction)
    after = torch.cat([weight.detach() for weight in model.ring_parameters()])
    gone = int(fraction * len(before))
    assert int((after == 0).sum()) == gone
    assert sum(int((~mask).sum()) for mask in masks.values()) == gone
    kept = torch.cat(list(masks.values()))
    assert torch.equal(after[kept], before[kept])
    if gone:
        assert before[~kept].abs().max() <= before[kept].abs().min()
    assert remaining_dof(model) == model.dof() - gone
    # Equal to torch's own global pruning.
    assert np.array_equal(kept.numpy(), _global_l1(before, gone))


def _global_l1(values: torch.Tensor, gone: int) -> np.ndarray:
    from torch.nn.utils import prune

    module = nn.Linear(len(values), 1, bias=False)
    module.weight.data.copy_(values[None])
    prune.global_unstructured([(module, "weight")], prune.L1Unstructured, amount=gone)
    return module.weight_mask[0].bool().numpy()  # pyright: ignore


def test_equal_magnitudes_are_pruned_to_the_exact_count() -> None:
    model = model_of()
    nn.init.constant_(model.ring(), 0.5)
    prune_ring(model, 0.3)
    assert int((model.ring() == 0).sum()) == int(0.3 * model.ring_total)


def test_pruned_host_is_the_masked_network() -> None:
    model = model_of()
    pruned = prune_host(model, 0.4)
    dropped = model.generated - pruned.nonzeros()
    # Uses of one entry go together: as many as asked for, less a few.
    assert 0.4 * model.generated - 8 <= dropped <= 0.4 * model.generated
    masks = pruned.masks()
    largest_gone = max(float((w.abs() * ~masks[n]).max()) for n, w in model.weights().items())
    smallest_kept = min(float(w[masks[n]].abs().min()) for n, w in model.weights().items())
    assert largest_gone < smallest_kept
    host = make_host("patch-resnet", width=16).eval()
    dense = model.export_dense()
    host.load_state_dict({n: v * masks[n] if n in masks else v for n, v in dense.items()})
    assert torch.equal(host(images()), pruned(images()))
    assert torch.equal(prune_host(model, 0.0)(images()), model(images()))


def test_pruned_host_file_round_trip(tmp_path: Path) -> None:
    pruned = prune_host(model_of(), 0.4)
    path = tmp_path / "model.pt"
    assert pruned.save(path) == path.stat().st_size
    again = load_pruned_host(model_of(), path)
    assert torch.equal(again(images()), pruned(images()))
    with pytest.raises(UserError, match="pruned host"):
        model_of().load(path)
    model_of().save(path)
    with pytest.raises(UserError, match=r"(?s)pruned host.*RPGModel\.load"):
        load_pruned_host(model_of(), path)


@pytest.mark.parametrize("group", [None, 256, 7, 10**9])
def test_int8_error_is_half_a_step_and_zero_and_the_ends_are_exact(group: int | None) -> None:
    values = torch.randn(1000) * torch.logspace(-3, 3, 1000)
    values[5] = 0
    integers, scales = to_int8(values, group)
    assert integers.dtype == torch.int8
    assert len(scales) == -(-1000 // min(group or 1000, 1000))
    back = from_int8(integers, scales, group)
    steps = scales.repeat_interleave(min(group or 1000, 1000))[:1000]
    assert ((back - values).abs() <= steps * 0.5 * (1 + 1e-5)).all()
    assert back[5] == 0
    for part in values.split(min(group or 1000, 1000)):
        assert int(to_int8(part)[0].abs().max()) == 127
    # What is quantised once stays as it is.
    again = to_int8(back, group)
    assert torch.equal(again[0], integers)


def test_int8_of_zeros_is_zeros() -> None:
    assert torch.equal(from_int8(*to_int8(torch.zeros(10), 3), 3), torch.zeros(10))


def test_int8_agrees_with_torch() -> None:
    values = torch.randn(500)
    integers, scales = to_int8(values)
    theirs = torch.quantize_per_tensor(values, float(scales[0]), 0, torch.qint8)
    assert int((theirs.int_repr().int() - integers.int()).abs().max()) == 0


def test_quantised_model_is_a_copy_and_its_file_reads_back(tmp_path: Path) -> None:
    model = model_of()
    before = model.ring().detach().clone()
    for group in (None, 256):
        reduced = quantized(model, group)
        assert torch.equal(model.ring(), before)
        path = tmp_path / f"{group}.pt"
        size = save_quantized(model, path, group)
        again = model_of()
        again.load(path)
        assert torch.equal(again.ring(), reduced.ring())
        expected = stored_bytes(model, "int8", group)
        assert expected["ring"] == model.ring_total + 4 * (1 if group is None else -(-model.ring_total // 256))
        assert expected["total"] <= size <= expected["total"] + 65_536
        assert read_model(path)["rings"]["global"]["values"].dtype == torch.int8


def test_sparse_file_reads_back_and_is_as_small_as_it_says(tmp_path: Path) -> None:
    model = model_of("block", width=64)
    prune_ring(model, 0.9)
    size = save_pruned(model, tmp_path / "model.pt")
    expected = stored_bytes(model, "sparse")
    assert expected["total"] <= size <= expected["total"] + 65_536
    assert expected["ring"] < 0.2 * stored_bytes(model)["ring"]
    again = model_of("block", width=64)
    again.load(tmp_path / "model.pt")
    for mine, theirs in zip(again.ring_parameters(), model.ring_parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_sparse_keeps_values_and_places() -> None:
    for size in (1, 7, 8, 9, 1001):
        weight = torch.randn(size) * (torch.rand(size) < 0.3)
        assert torch.equal(unpacked(sparse(weight)), weight)


def test_masks_hold_the_zeros_through_further_training() -> None:
    model = model_of().train()
    masks = prune_ring(model, 0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        model(images()).square().sum().backward()
        optimizer.step()
        with torch.no_grad():
            for key, ring in model.rings.items():
                ring.weight.mul_(masks[key])  # pyright: ignore
    assert int((model.ring() == 0).sum()) == int(0.5 * model.ring_total)
    model(images())
    # The forward pass sees the zeros too, not weights made before them.
    assert float(next(iter(model.weights().values())).detach().eq(0).float().mean()) > 0.3


def _mutated(content: bytes, dice: random.Random) -> bytes:
    """A file after one accident: bits flipped, a piece lost, doubled, zeroed, or the end cut off."""
    piece = bytearray(content)
    begin = dice.randrange(len(piece))
    end = min(len(piece), begin + dice.choice([1, 4, 64, 1024]))
    how = dice.randrange(5)
    if how == 0:
        for _ in range(dice.choice([1, 8, 64])):
            piece[dice.randrange(len(piece))] ^= 1 << dice.randrange(8)
    elif how == 1:
        del piece[begin:end]
    elif how == 2:
        piece[begin:begin] = piece[begin:end]
    elif how == 3:
        piece[begin:end] = bytes(end - begin)
    else:
        del piece[begin:]
    return bytes(piece)


@pytest.mark.parametrize("form", ["plain", "int8", "sparse", "host"])
def test_a_damaged_model_file_is_refused_or_reads_back_as_it_was(form: str, tmp_path: Path) -> None:
    model, path = model_of(width=4), tmp_path / "model.pt"
    pruned = prune_host(model, 0.4)
    if form == "sparse":
        prune_ring(model, 0.5)
    save = {"plain": model.save, "int8": partial(save_quantized, model), "sparse": partial(save_pruned, model)}
    (save | {"host": pruned.save})[form](path)

    def numbers(model: RPGModel) -> dict[str, torch.Tensor]:
        state = model.state_dict().items()
        return {name: value.clone() for name, value in state if isinstance(value, torch.Tensor)}

    content, dice = path.read_bytes(), random.Random(11)
    reader = partial(load_pruned_host, path=path) if form == "host" else partial(RPGModel.load, path=path)
    whole = model_of(width=4)
    reader(whole)
    refused = 0
    for _ in range(50):  # of each of four forms: 200
        path.write_bytes(_mutated(content, dice))
        other = model_of(width=4)
        before, said = numbers(other), ""
        try:
            reader(other)
        except UserError as error:
            refused, said = refused + 1, str(error)
        # Either a refusal that changed nothing, or the accident hit what holds no number.
        expected = before if said else numbers(whole)
        assert all(torch.equal(value, expected[name]) for name, value in numbers(other).items())
        assert "weights_only" not in said
    assert refused > 25


def test_files_of_the_format_before_still_load_and_others_are_refused(tmp_path: Path) -> None:
    model, path = model_of(), tmp_path / "model.pt"
    torch.save({**model.stored(), "format": "rpg-model-1"}, path)  # as it was written, without a checksum
    again = model_of()
    torch.nn.init.zeros_(again.ring())
    again.load(path)
    assert torch.equal(again.ring(), model.ring())
    torch.save(model.stored(), path)
    with pytest.raises(UserError, match="checksum"):
        read_model(path)
    for bad in ({"rings": 3}, {"plans": {"global": 3}}, {"own": None}, {"rings": {}}):
        torch.save({**model.stored(), "format": "rpg-model-1", **bad}, path)
        with pytest.raises(UserError, match="rings, plans and own"):
            read_model(path)
    for bad in ({"own": {"float32": {"names": [("a", [3])], "values": torch.ones(2)}}}, {"own": {"float32": {}}}):
        torch.save({**model.stored(), "format": "rpg-model-1", **bad}, path)
        with pytest.raises(UserError, match="own parameters"):
            again.load(path)
    torch.save({**model.stored(), "format": "rpg-model-1", "rings": {"global": torch.ones(1)}}, path)
    with pytest.raises(UserError, match=r"shape \[1\]"):  # one number must not be spread over the ring
        again.load(path)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: prune_ring(model_of(), 1.0), r"fraction.*1"),
        (lambda: prune_ring(model_of(), -0.1), r"fraction.*-0\.1"),
        (lambda: prune_host(model_of(), 1.5), r"fraction.*1\.5"),
        (lambda: to_int8(torch.ones(3), 0), r"group.*0"),
        (lambda: to_int8(torch.tensor([1.0, float("nan")])), r"ring.*finite"),
        (lambda: stored_bytes(model_of(), "int4"), r"form.*int4.*plain.*int8.*sparse"),
        (lambda: unpacked({"form": "int4"}), r"int4.*plain.*int8.*sparse"),
        (lambda: unpacked({"form": "int8"}), r"damaged"),
        (lambda: unpacked({}), r"damaged"),
    ],
)
def test_refusals(call, message: str) -> None:
    with pytest.raises(UserError, match=f"(?s){message}"):
        call()
