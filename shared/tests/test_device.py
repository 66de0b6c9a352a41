"""Devices, seeds, timers, prefetch, compilation."""

from __future__ import annotations

import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from shared.config import UserError
from shared.device import (
    Timer,
    available_devices,
    choose_device,
    choose_precision,
    compiled,
    describe,
    kept_rng,
    peak_memory,
    prefetch,
    rng_state,
    set_rng_state,
    set_seed,
    synchronised,
    to_device,
)


def draws() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002


def test_state_of_all_streams_is_put_back() -> None:
    set_seed(3)
    state = rng_state()
    first = draws()
    assert draws() != first
    set_rng_state(state)
    assert draws() == first
    with kept_rng():
        draws()
    following = draws()
    set_rng_state(state)
    draws()
    assert draws() == following


def test_state_can_be_saved_and_loaded_without_running_code(tmp_path: Any) -> None:
    set_seed(3)
    torch.save(rng_state(), tmp_path / "state.pt")
    first = draws()
    set_rng_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert draws() == first


def test_ranks_draw_different_numbers_and_seeds_repeat() -> None:
    def after(seed: int, rank: int) -> list[float]:
        set_seed(seed, rank)
        return draws()

    assert after(1, 0) == after(1, 0)
    assert len({tuple(after(1, rank)) for rank in range(4)}) == 4


def test_missing_device_is_refused_with_those_that_are_there() -> None:
    with pytest.raises(UserError, match=r"'cuda:99'.*cpu"):
        choose_device("cuda:99")
    with pytest.raises(UserError, match="'gpu'"):
        choose_device("gpu")
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type in {name.split(":")[0] for name in available_devices()}


def test_half_precision_on_the_cpu_is_refused_and_bf16_is_not() -> None:
    cpu = torch.device("cpu")
    with pytest.raises(UserError, match="fp16"):
        choose_precision("fp16", cpu)
    assert [choose_precision(name, cpu) for name in ("auto", "fp32", "bf16")] == ["no", "no", "bf16"]


def test_prefetch_yields_every_batch_with_the_position_it_was_drawn_at() -> None:
    class Counting:
        drawn = 0

        def __iter__(self) -> Any:
            for index in range(5):
                self.drawn += 1
                yield {"x": torch.full((2,), float(index)), "n": index}

        def state_dict(self) -> int:
            return self.drawn

    seen = list(prefetch(Counting(), torch.device("cpu")))
    assert [batch["n"] for batch, _ in seen] == [0, 1, 2, 3, 4]
    assert [position for _, position in seen] == [1, 2, 3, 4, 5]


@pytest.mark.gpu
def test_prefetch_on_a_gpu_counts_batches_used_not_those_on_their_way() -> None:
    class Counting:
        drawn = 0

        def __iter__(self) -> Any:
            for index in range(5):
                self.drawn += 1
                yield torch.full((1 << 20,), float(index))

        def state_dict(self) -> int:
            return self.drawn

    device = torch.device("cuda")
    for index, (batch, position) in enumerate(prefetch(Counting(), device)):
        assert batch.device.type == "cuda"
        assert (batch == index).all()
        assert position == index + 1


def test_nested_batches_move_whole() -> None:
    moved = to_device({"a": [torch.ones(1), (torch.zeros(1), "text")]}, torch.device("cpu"))
    assert moved["a"][1][1] == "text"


def test_timer_measures_what_it_wraps() -> None:
    import time

    timer = Timer(torch.device("cpu"))
    with timer:
        time.sleep(0.02)
    assert 15 < timer.milliseconds() < 2000


def test_reports_name_the_hardware_and_no_host() -> None:
    import platform

    report = describe(torch.device("cpu"))
    assert report["cpu"]
    assert platform.node() not in str(report)
    assert peak_memory(torch.device("cpu"))["resident_mib"] > 10


def test_compilation_that_fails_leaves_the_module_running() -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler here")

    module = nn.Linear(2, 2)
    names = list(module.state_dict())
    fast = compiled(module, backend=broken)
    x = torch.ones(1, 2)
    torch.testing.assert_close(fast(x), nn.functional.linear(x, module.weight, module.bias))
    assert list(fast.state_dict()) == names
    torch._dynamo.reset()


def test_batch_normalisation_is_synchronised_over_cuda_devices_alone() -> None:
    def network() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()), nn.BatchNorm2d(4))

    model = network()
    own = {name: id(value) for name, value in model.named_parameters()}
    made = synchronised(model, torch.device("cuda"), 2)
    assert made is model
    assert [type(part) for part in (model[1][0], model[2])] == [nn.SyncBatchNorm] * 2  # pyright: ignore
    assert {name: id(value) for name, value in model.named_parameters()} == own  # an optimiser keeps its parameters
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        synchronised(model, torch.device("cpu"), 2)  # nothing left to warn about
        assert type(synchronised(network(), torch.device("cuda"), 1)[2]) is nn.BatchNorm2d
    with pytest.warns(UserWarning, match=r"2 batch normalisations \(1\.0, \.\.\.\).*2 processes"):
        assert type(synchronised(network(), torch.device("cpu"), 2)[2]) is nn.BatchNorm2d
