"""The pretended accelerator refuses what a real one would, and computes the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_tasks import Regression

from shared.config import RunConfig
from shared.device import available_devices
from shared.elsewhere import ELSEWHERE, elsewhere
from shared.loop import Loop


def test_tensors_of_two_devices_do_not_meet() -> None:
    with elsewhere():
        there, here = torch.ones(3, device=ELSEWHERE), torch.ones(3)
        assert there.device == ELSEWHERE
        for act in (
            lambda: there + here, lambda: here * there, lambda: here.add_(there), lambda: torch.cat([there, here]),
            lambda: torch.where(there > 0, here, there), lambda: there @ here,
        ):  # fmt: skip
            with pytest.raises(RuntimeError, match="two devices"):
                act()
        with pytest.raises((RuntimeError, TypeError)):
            there.numpy()
        with pytest.raises((RuntimeError, TypeError)):
            np.asarray(there)
        with pytest.raises(RuntimeError, match="generator"):
            torch.randn(3, generator=torch.Generator(), device=ELSEWHERE)
        assert (there + torch.tensor(2.0)).tolist() == [3.0, 3.0, 3.0]  # a number without dimensions goes anywhere
        assert there[torch.tensor([0, 2])].shape == (2,)  # and so do indices
        assert torch.equal(there.cpu() + here, torch.full((3,), 2.0))
        assert here.to(ELSEWHERE).device == ELSEWHERE


def test_a_tensor_without_numbers_is_refused() -> None:
    without = torch.ones(3, device=ELSEWHERE)  # torch's own
    with elsewhere(), pytest.raises(RuntimeError, match="has no numbers"):
        torch.ones(3, device=ELSEWHERE) + without


@pytest.mark.parametrize(
    "index",
    [
        [2, 0, 2], ([2, 0], 1), (slice(None), [1, 0]), ([0, 1], [1, 0]), [True, False, True, False], [-1],
        np.array([3, 1]), (..., [0]), (None, [1, 2]), (torch.tensor([1, 3]), [0, 1]),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("inference", [False, True])
def test_lists_index_as_on_the_cpu(index: Any, inference: bool) -> None:
    """torch makes tensors of them where no mode sees it."""
    x = torch.arange(12.0).reshape(4, 3)
    with elsewhere(), torch.inference_mode(inference):
        there = x.to(ELSEWHERE)
        assert there[index].tolist() == x[index].tolist()
        for value in (7.0, -x[index]):
            here, there = x.clone(), x.to(ELSEWHERE)
            here[index] = value
            there[index] = value if isinstance(value, float) else value.to(ELSEWHERE)
            assert there.tolist() == here.tolist()


def test_numbers_are_those_of_the_cpu() -> None:
    def made(device: torch.device) -> list[float]:
        generator = torch.Generator(device).manual_seed(3)
        x = torch.randn(64, 4, generator=generator, device=device)
        net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        with torch.no_grad():
            for p in net.parameters():
                p.copy_(torch.arange(p.numel()).reshape(p.shape) / 10)
        net.to(device)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.05, fused=True)
        losses = []
        for _ in range(5):
            optimizer.zero_grad()
            loss = (net(x)[:, 0] - x.new_tensor([1.0, 0.0, 2.0, 0.0]) @ x.T).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        with torch.inference_mode():
            inner = (x[:3].T * x[:3, 0]).sum(dim=0)
            inner += 1
            inner[0] = 2.0
        losses += inner.tolist()
        x[0] = 5.0
        x.mul_(2)
        x[:, 1].zero_()
        return [*losses, *x.sum(dim=0).tolist(), float(x.argmax()), float(len(x[x > 0]))]

    expected = made(torch.device("cpu"))
    with elsewhere() as device:
        assert made(device) == pytest.approx(expected, rel=1e-6)


def test_a_whole_run_is_the_cpus_and_nothing_stays_behind(tmp_path: Path) -> None:
    flags = {"quiet": True, "steps": 20, "eval_every": 10}
    before = torch.Generator
    one = Loop(Regression(), RunConfig(device="cpu", **flags), "toy", folder=False).run()
    with elsewhere():
        other = Loop(Regression(), RunConfig(device="meta", **flags), "toy", folder=False).run()
    assert other["metrics"]["loss"] < 2 * one["metrics"]["loss"]
    assert torch.Generator is before
    assert "meta" not in available_devices()
