"""What the loop costs: the same small model trained by a bare PyTorch loop and by `shared.loop`, in one process.

    python shared/benchmarks/loop.py [--quick]

The two take turns, many short ones and the first of a turn alternating, so that a noisy machine disturbs both alike;
the ratio is the median over turns of one over the other. The model is a three-layer perceptron of about two million
weights at batch 256: small, but not so small that Python is all there is. A second race, on one linear layer of ten
outputs at batch 8, shows what the loop costs in itself, in microseconds a step.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shared.config import RunConfig
from shared.data import Batches
from shared.loop import Loop, Task
from shared.races import conditions


def network(width: int) -> nn.Module:
    """The raced model; without hidden units (width 0) one linear layer."""
    if not width:
        return nn.Linear(784, 10)
    return nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


class Fit(Task):
    def __init__(self, x: torch.Tensor, y: torch.Tensor, batch: int, width: int) -> None:
        self.x, self.y, self.batch, self.width = x, y, batch, width

    def start(self, loop: Loop) -> None:
        self.loop = loop
        self.model = network(self.width)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        self.trained, self.prepared = loop.prepare(self.model, self.optimizer)

    def batches(self) -> Batches:
        return Batches((self.x, self.y), self.batch, seed=0)

    def step(self, batch: Any) -> dict[str, Any]:
        def loss(piece: Any) -> torch.Tensor:
            return nn.functional.cross_entropy(self.trained(piece[0]), piece[1])

        return self.loop.update(batch, loss, self.prepared)

    def state(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer}


def bare(x: torch.Tensor, y: torch.Tensor, batch: int, width: int, steps: int) -> float:
    """Seconds of the loop that everyone writes first: shuffle, slice, forward, backward, update, keep the loss."""
    torch.manual_seed(0)
    model = network(width)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    losses = []
    began, done = time.perf_counter(), 0
    while done < steps:
        for rows in torch.randperm(len(x)).split(batch):
            if len(rows) < batch or done == steps:
                break
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            done += 1
    return time.perf_counter() - began


def ours(x: torch.Tensor, y: torch.Tensor, batch: int, width: int, steps: int, folder: Path) -> float:
    """Seconds of the common loop over the same steps, logging every step; opening files is not counted."""
    config = RunConfig(out=folder, steps=steps, device="cpu", quiet=True, eval_every=steps, checkpoint_every=10 * steps)
    return float(Loop(Fit(x, y, batch, width), config, "bench").run()["seconds"])


def turns(batch: int, width: int, steps: int, rounds: int) -> dict[str, list[float]]:
    """Milliseconds a step of both loops in every turn; a first turn warms caches and imports."""
    x, y = torch.randn(20 * batch, 784), torch.randint(0, 10, (20 * batch,))
    times: dict[str, list[float]] = {"bare": [], "shared.loop": []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds + 1):
            out = Path(folder) / str(turn)
            if turn % 2:
                first = bare(x, y, batch, width, steps)
                second = ours(x, y, batch, width, steps, out)
            else:
                second = ours(x, y, batch, width, steps, out)
                first = bare(x, y, batch, width, steps)
            if turn:
                times["bare"].append(1000 * first / steps)
                times["shared.loop"].append(1000 * second / steps)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps; the ratio means nothing")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    steps, rounds = (20, 2) if options.quick else (40, 30)
    print(f"on {conditions()}; {rounds} turns of {steps} steps")
    times = turns(256, 1024, steps, rounds)
    ratios = sorted(b / a for a, b in zip(*times.values(), strict=True))
    for name, values in times.items():
        print(f"  {name:<12} {statistics.median(values):7.3f} ms a step (best {min(values):.3f})")
    low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    print(f"  ratio shared.loop / bare: {statistics.median(ratios):.3f}, half of the turns in {low:.3f} to {high:.3f}"
          " (wanted: < 1.03)")  # fmt: skip
    steps = 20 if options.quick else 400
    times = turns(8, 0, steps, rounds)
    cost = statistics.median(1000 * (b - a) for a, b in zip(*times.values(), strict=True))
    print(f"  one linear layer at batch 8: {cost:.0f} microseconds a step more than bare"
          f" ({1000 * statistics.median(times['bare']):.0f})")  # fmt: skip


if __name__ == "__main__":
    main()
