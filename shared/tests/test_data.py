"""Batches that can be taken up anywhere, and data that is not there."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from shared.config import UserError
from shared.data import Batches, check_sha256, data_root, fetch, require, sha256


def noisy(batch: Any, generator: Generator) -> Any:
    return (batch[0], torch.rand(len(batch[0]), generator=generator))


class Dataset:
    """Samples that draw from every global stream, as transforms of images do."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = torch.rand(()) + np.random.rand() + random.random()  # noqa: NPY002
        return torch.tensor(index), noise


def take(batches: Batches, count: int) -> list[list[Tensor]]:
    return [list(batch) for batch in islice(iter(batches), count)]


def same(left: list[list[Tensor]], right: list[list[Tensor]]) -> bool:
    pairs = zip(left, right, strict=True)
    return all(torch.equal(a, b) for x, y in pairs for a, b in zip(x, y, strict=True))


def make(workers: int) -> Batches:
    if workers >= 0:
        return Batches(Dataset(), 3, seed=5, workers=workers)
    return Batches((torch.arange(20),), 3, seed=5, transform=noisy)


@pytest.mark.parametrize("workers", [-1, 0, 2], ids=["tensors", "dataset", "two workers"])
@pytest.mark.parametrize("cut", [0, 1, 5, 6, 7, 13])
def test_taken_up_at_any_position_the_rest_is_the_same(workers: int, cut: int) -> None:
    whole = take(make(max(workers, -1) if workers < 2 else 0), 20)
    first = make(workers)
    stream: Iterator[Any] = iter(first)
    begun = [list(next(stream)) for _ in range(cut)]
    state = first.state_dict()
    second = make(workers)
    second.load_state_dict(state)
    assert same(begun + take(second, 20 - cut), whole)


def test_global_streams_are_not_touched() -> None:
    for workers in (-1, 0, 2):
        torch.manual_seed(1), np.random.seed(1), random.seed(1)  # noqa: NPY002
        take(make(workers), 9)
        drawn = (torch.rand(()).item(), np.random.rand(), random.random())  # noqa: NPY002
        torch.manual_seed(1), np.random.seed(1), random.seed(1)  # noqa: NPY002
        assert drawn == (torch.rand(()).item(), np.random.rand(), random.random())  # noqa: NPY002


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 50), st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_processes_share_out_each_batch_and_an_epoch_visits_all_once(
    size: int, batch: int, world: int, drop_last: bool
) -> None:
    if drop_last and size < batch * world:
        return
    data = (torch.arange(size),)
    options: dict[str, Any] = {"seed": 3, "drop_last": drop_last}
    ranks = [Batches(data, batch, rank=rank, world=world, **options) for rank in range(world)]
    one = Batches(data, batch * world, **options)
    steps = len(one)
    assert len(ranks[0]) == steps
    whole = [b[0] for b in take(one, 2 * steps)]
    parts = [[b[0] for b in take(each, 2 * steps)] for each in ranks]
    for step in range(2 * steps):
        assert torch.equal(torch.cat([part[step] for part in parts]), whole[step])
    visited = torch.cat(whole[:steps])
    assert visited.unique().numel() == visited.numel() == (steps * batch * world if drop_last else size)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [Batches((torch.arange(50),), 5, seed).order(epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order.tolist()) for order in orders}) == 4
    assert all(sorted(order.tolist()) == list(range(50)) for order in orders)
    assert Batches((torch.arange(50),), 5, shuffle=False).order(3).tolist() == list(range(50))


def test_noise_differs_between_batches_epochs_and_ranks() -> None:
    draws = []
    for rank in (0, 1):
        batches = Batches((torch.arange(12),), 3, rank=rank, world=2, transform=noisy)
        draws += [tuple(batch[1].tolist()) for batch in take(batches, 4)]
    assert len(set(draws)) == 8


def test_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(UserError, match="--batch-size: got '8'; valid: at most the 7"):
        Batches((torch.arange(7),), 4, world=2)


def test_root_is_flag_then_variable_then_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAPERS_DATA", str(tmp_path))
    (tmp_path / "flag").mkdir()
    assert data_root(tmp_path / "flag") == tmp_path / "flag"
    assert data_root() == tmp_path
    monkeypatch.delenv("PAPERS_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.platform", "linux")
    assert data_root() == tmp_path / "cache" / "papers"
    with pytest.raises(UserError, match="--data-root"):
        data_root(tmp_path / "nowhere")
    monkeypatch.setenv("PAPERS_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="PAPERS_DATA"):
        data_root()


def test_missing_data_says_which_file_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)CIFAR-10.*cifar\.npz or .*cifar\nDownload it\."):
        require(tmp_path, ["cifar.npz", "cifar/"], what="CIFAR-10", how="Download it.")
    (tmp_path / "cifar").mkdir()
    assert require(tmp_path, ["cifar.npz", "cifar/"], what="CIFAR-10", how="") == tmp_path / "cifar"


def test_download_appears_only_whole(tmp_path: Path) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(b"content")
    target = tmp_path / "in" / "target.bin"
    with pytest.raises(UserError, match="SHA-256"):
        fetch(source.as_uri(), target, "0" * 64, progress=False)
    assert not target.exists()
    assert list(target.parent.iterdir()) == []
    assert fetch(source.as_uri(), target, sha256(source), progress=False).read_bytes() == b"content"
    source.unlink()
    fetch(source.as_uri(), target, sha256(target), progress=False)  # there already: nothing is fetched
    with pytest.raises(UserError, match="put it at"):
        fetch(source.as_uri(), tmp_path / "other.bin", "0" * 64, progress=False)
    target.write_bytes(b"damaged")
    with pytest.raises(UserError, match="damaged"):
        check_sha256(target, "0" * 64)
