"""What the loop costs: the same small model trained by a bare PyTorch loop and by `shared.loop`, in one process.

    python shared/benchmarks/loop.py [--quick]

The two take turns, so that a noisy machine disturbs both alike; the ratio is of the medians over rounds. The model is
a three-layer perceptron of about two million weights at batch 256: small, but not so small that Python is all there is.
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
from shared.device import describe
from shared.loop import Loop, Task


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10))


class Fit(Task):
    def __init__(self, x: torch.Tensor, y: torch.Tensor, batch: int) -> None:
        self.x, self.y, self.batch = x, y, batch

    def start(self, loop: Loop) -> None:
        self.loop = loop
        self.model = network()
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


def bare(x: torch.Tensor, y: torch.Tensor, batch: int, steps: int) -> float:
    """Seconds of the loop that everyone writes first: shuffle, slice, forward, backward, update, keep the loss."""
    torch.manual_seed(0)
    model = network()
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


def ours(x: torch.Tensor, y: torch.Tensor, batch: int, steps: int, folder: Path) -> float:
    """Seconds of the common loop over the same steps, logging every step; opening files is not counted."""
    config = RunConfig(out=folder, steps=steps, device="cpu", quiet=True, eval_every=steps, checkpoint_every=10 * steps)
    return float(Loop(Fit(x, y, batch), config, "bench").run()["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps; the ratio means nothing")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    steps, rounds = (20, 2) if options.quick else (100, 5)
    x, y = torch.randn(5120, 784), torch.randint(0, 10, (5120,))
    times: dict[str, list[float]] = {"bare": [], "shared.loop": []}
    with tempfile.TemporaryDirectory() as folder:
        for index in range(rounds + 1):
            pair = bare(x, y, 256, steps), ours(x, y, 256, steps, Path(folder) / str(index))
            if index:  # the first round warms caches and imports
                for name, seconds in zip(times, pair, strict=True):
                    times[name].append(1000 * seconds / steps)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratio = statistics.median(b / a for a, b in zip(*times.values(), strict=True))
    print(f"on {describe(torch.device('cpu'))}, torch {torch.__version__}, {steps} steps, {rounds} rounds in turn")
    for name, value in medians.items():
        print(f"  {name:<12} {value:7.3f} ms a step (best {min(times[name]):.3f})")
    print(f"  ratio shared.loop / bare: {ratio:.3f} (wanted: < 1.03)")


if __name__ == "__main__":
    main()
