"""A recorded step is the step: same numbers, in the right memory, and refused where a graph could not hold it."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shared.capture import FAILURES, WARM, Captured, CudaGraphs, Graphs, Reads, memory
from shared.elsewhere import ELSEWHERE, PretendedGraphs, elsewhere


def learner(
    device: torch.device | str = "cpu", optimizer: str = "rmsprop"
) -> tuple[nn.Module, Callable[[Tensor, Tensor], dict[str, Tensor | float]]]:
    """A network with batch statistics, and its step."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7, bias=False), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 1)).to(device)
    capturable = torch.device(device).type == "cuda"
    rule = {
        "sgd": lambda: torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9),
        "rmsprop": lambda: torch.optim.RMSprop(net.parameters(), lr=0.01, foreach=True, capturable=capturable),
        "adam": lambda: torch.optim.Adam(net.parameters(), lr=0.01, foreach=True, capturable=capturable),
    }[optimizer]()

    def update(x: Tensor, y: Tensor) -> dict[str, Tensor | float]:
        loss = (net(x)[:, 0] - y).square().mean()
        loss.backward()
        rule.step()
        rule.zero_grad()
        return {"loss": loss.detach(), "constant": 3.0}

    return net, update


def batches(count: int, device: torch.device | str = "cpu") -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randn(8, 5, generator=generator) for _ in range(count)]
    return [(x.to(device), x.sum(dim=1).sin().to(device)) for x in drawn]


def compare(graphs: Graphs, device: torch.device | str, optimizer: str, exact: bool) -> None:
    plain, step = learner(device, optimizer)
    other, captured_step = learner(device, optimizer)
    captured = Captured(captured_step, graphs)
    kept = []
    for x, y in batches(12, device):
        expected, found = step(x, y), captured("key", x, y)
        kept.append((expected["loss"], found["loss"]))
        assert found["constant"] == 3.0
    assert captured.recorded == 1
    tolerance = {"rtol": 0.0, "atol": 0.0} if exact else {}
    for expected, found in kept:  # at the end: a later replay has not overwritten an earlier result
        torch.testing.assert_close(found, expected, **tolerance)
    assert len({float(found) for _, found in kept}) == len(kept)
    for mine, theirs in zip(other.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, **tolerance)


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop"])
def test_a_recorded_step_is_the_step(optimizer: str) -> None:
    compare(PretendedGraphs(), "cpu", optimizer, exact=True)


def test_a_recorded_step_is_the_step_elsewhere() -> None:
    with elsewhere():
        compare(PretendedGraphs(), ELSEWHERE, "sgd", exact=True)


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop", "adam"])
def test_a_recorded_step_is_the_step_on_a_gpu(optimizer: str) -> None:
    compare(CudaGraphs(torch.device("cuda")), "cuda", optimizer, exact=False)


def test_python_runs_for_the_first_calls_and_the_recording_alone() -> None:
    runs = []

    def function(x: Tensor) -> dict[str, Tensor | float]:
        runs.append(1)
        return {"y": x + len(runs)}

    captured = Captured(function, PretendedGraphs())
    found = [captured(0, torch.tensor([float(i)]))["y"] for i in range(WARM + 5)]
    # One call more than WARM is carried out; then the function runs once more, to be recorded.
    assert len(runs) == WARM + 2
    # What Python computed stays as it was when recorded.
    expected = [i + i + 1.0 if i <= WARM else i + WARM + 2.0 for i in range(WARM + 5)]
    assert [float(y) for y in found] == expected
    captured(1, torch.zeros(1))
    captured(0, torch.zeros(2))
    assert len(runs) == WARM + 4  # another key, another shape
    captured(0, torch.zeros(1))
    assert len(runs) == WARM + 4  # the first is still there
    captured.forget()
    captured(0, torch.zeros(1))
    assert len(runs) == WARM + 5


def test_what_is_made_when_first_needed_is_made_before_the_recording() -> None:
    table: dict[str, Tensor] = {}
    recording = []

    class Watched(PretendedGraphs):
        def record(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
            recording.append(1)
            try:
                return super().record(function)
            finally:
                recording.pop()

    def function(x: Tensor) -> dict[str, Tensor | float]:
        if "row" not in table:
            assert not recording
            table["row"] = torch.ones(3)
        return {"y": x * table["row"]}

    captured = Captured(function, Watched())
    for _ in range(WARM + 2):
        table.clear()  # as an evaluation between steps may do
        captured(0, torch.ones(3))
    assert captured.recorded == 1


def test_keys_that_change_with_every_call_are_never_recorded_and_few_recordings_are_kept() -> None:
    captured = Captured(lambda x: {"y": 2 * x}, PretendedGraphs(), keep=2)
    for i in range(20):
        captured(i % 2, torch.ones(1))
    assert captured.recorded == 0
    for key in (0, 1, 2):
        for _ in range(WARM + 1):
            captured(key, torch.ones(1))
    assert captured.recorded == 3
    captured(1, torch.ones(1))
    for _ in range(WARM + 1):
        captured(0, torch.ones(1))
    assert captured.recorded == 4  # the oldest was dropped


def test_a_function_that_asks_for_a_number_goes_on_unrecorded() -> None:
    net, step = learner()
    plain, expected = learner()

    def asking(x: Tensor, y: Tensor) -> dict[str, Tensor | float]:
        found = step(x, y)
        return {"loss": float(found["loss"])}

    def drop() -> None:
        for p in net.parameters():
            p.grad = None

    captured = Captured(asking, PretendedGraphs(), abandoned=drop)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for x, y in batches(8):
            captured(0, x, y), expected(x, y)
    messages = [str(w.message) for w in caught]
    assert len(messages) == FAILURES
    assert all("not recorded" in message and "a number is asked for" in message for message in messages)
    assert captured.recorded == 0
    for mine, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.gpu
def test_a_recording_that_fails_on_a_gpu_leaves_all_as_it_was() -> None:
    graphs = CudaGraphs(torch.device("cuda"))
    before = torch.cuda.current_stream()
    captured = Captured(lambda x: {"y": x * float(x.sum())}, graphs)
    x = torch.ones(3, device="cuda")
    for _ in range(WARM):
        captured(0, x)
    with pytest.warns(UserWarning, match="not recorded"):
        found = captured(0, x)["y"]
    assert torch.cuda.current_stream() == before
    torch.cuda.empty_cache()
    assert torch.equal(torch.as_tensor(found).cpu(), torch.full((3,), 3.0))
    fine = Captured(lambda x: {"y": 2 * x}, graphs)
    for _ in range(WARM + 3):
        assert torch.equal(torch.as_tensor(fine(0, x)["y"]).cpu(), torch.full((3,), 2.0))
    assert fine.recorded == 1


def test_a_tensor_of_the_cpu_is_refused() -> None:
    with elsewhere():
        captured = Captured(lambda x: {"y": x + torch.ones(2).to(ELSEWHERE)}, PretendedGraphs())
        x = torch.ones(2, device=ELSEWHERE)
        for _ in range(WARM):
            captured(0, x)
        with pytest.warns(UserWarning, match="from one device to the other"):
            found = captured(0, x)["y"]
        assert isinstance(found, Tensor)
        assert found.tolist() == [2.0, 2.0]


class Unheld:
    """Records nothing, and so holds nothing."""

    def aside(self, function: Callable[[], Any]) -> Any:
        return function()

    def record(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        return function(), lambda: None


def test_what_a_recording_reads_is_not_freed_before_it() -> None:
    context = {"row": torch.ones(3)}
    weight = torch.ones(4, 3, requires_grad=True)

    def function(x: Tensor) -> dict[str, Tensor | float]:
        loss = ((x * context["row"]) @ weight.T).relu().sum()
        loss.backward()
        weight.grad = None
        return {"loss": loss.detach()}

    captured = Captured(function, Unheld())
    for _ in range(WARM + 1):
        captured("first", torch.ones(2, 3))
    assert captured.recorded == 1
    row = weakref.ref(context["row"])
    del context["row"]
    gc.collect()
    assert row() is not None
    captured.forget()
    gc.collect()
    assert row() is None


def test_reads_are_the_tensors_from_outside() -> None:
    outside, other = torch.ones(2), torch.ones(2)
    with Reads() as reads:
        inside = torch.zeros(2) + outside
        inside[0].mul_(other[1])
        torch._foreach_add_([inside, inside], 1.0)
    assert {memory(value) for value in reads.older.values()} == {memory(outside), memory(other)}
