"""Race: a training step on permuted digits, ours beside the authors' way of feeding data and Avalanche's Naive.

    python projects/superposition/benchmarks/step.py [--threads 1] [--repeats 9] [--peer-python PATH] [--quick]

The authors' formulation: torchvision's MNIST behind a DataLoader, which converts and normalises image by image, the
pixels permuted batch by batch on the CPU. Avalanche: its Naive strategy on its own PermutedMNIST, which converts,
normalises and permutes image by image. Both also fed from tensors that are converted already, which is not how either
is written but leaves the step alone: those rows carry no requirement. All train the same perceptron,
784-256-256-256-10, by RMSprop on batches of 128; ours under binary contexts too. Required: the authors' at least 3
times our time a step, Avalanche at least twice. Avalanche lives in an environment of its own, which uv makes unless
--peer-python names one.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from peers.process import Peer, peer_python, write_mnist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from shared.config import UserError
from shared.images import load
from shared.races import conditions, race, ratio, record
from superposition.nets import fully_connected
from superposition.streams import MNIST_MEAN, MNIST_STD, Permuting, Samples, normalised, pixel_permutation

STEPS = 31  # an epoch of 3,968 images
SIZE = STEPS * 128
WIDTHS = (784, 256, 256, 256, 10)
REQUIRED_AUTHORS, REQUIRED_AVALANCHE = 3.0, 2.0


class OneByOne(Dataset[tuple[Tensor, int]]):
    """Images converted and normalised as they are asked for."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return (self.images[index].float() / 255 - MNIST_MEAN) / MNIST_STD, self.labels[index]


def ours(samples: Samples, kind: Any) -> Any:
    """An epoch of ours, a new task each."""
    net = fully_connected(WIDTHS, kind, limit=None)
    optimizer = torch.optim.RMSprop(net.parameters(), lr=1e-4, foreach=True)  # as training has it
    stream = Permuting(samples, STEPS, 10_000, 128, 0)
    clock = itertools.count()

    def epoch() -> None:
        for _ in range(STEPS):
            t = next(clock)
            x, y = stream.batch(t)
            net.set_context(stream.task(t) % 50)
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()

    return epoch


def shipped(folder: Path) -> Dataset[Any]:
    """torchvision's MNIST over the files in a folder, converted and normalised as its users do.

    Raises:
        UserError: torchvision is missing.
    """
    try:
        from torchvision import datasets, transforms
    except ImportError as error:
        hint = f"Install the group: uv sync --package superposition --group bench. ({error})"
        valid = "torchvision, which the authors' feeding goes through"
        raise UserError("torchvision", "not installed", valid, hint) from error
    steps = [transforms.ToTensor(), transforms.Normalize((MNIST_MEAN,), (MNIST_STD,))]
    return datasets.MNIST(str(folder), transform=transforms.Compose(steps))


def authors(data: Dataset[Any]) -> Any:
    """An epoch of the authors' formulation of feeding."""
    net: nn.Module = fully_connected(WIDTHS, "binary")
    optimizer = torch.optim.RMSprop(net.parameters(), lr=1e-4)
    loader = DataLoader(data, batch_size=128, shuffle=True, drop_last=True)
    tasks = itertools.count()

    def epoch() -> None:
        j = next(tasks) % 50
        order = torch.from_numpy(pixel_permutation(j, 784))
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(net(x.flatten(1)[:, order], j), y).backward()
            optimizer.step()

    return epoch


def main() -> int:
    """Run the race, print it, and return 1 if a requirement is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--peer-python", type=Path, help="an interpreter that has avalanche-lib 0.6")
    parser.add_argument("--quick", action="store_true", help="two turns, no peer; the ratios mean little")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    data = load("mnist5k", Path())
    chosen = torch.randperm(len(data.x_train), generator=torch.Generator().manual_seed(0))[:SIZE]
    whole = normalised(data, "mnist", torch.device("cpu"))
    samples = Samples(whole.x[chosen], whole.y[chosen], whole.x_test, whole.y_test)
    contestants: dict[str, Any] = {
        "ours, binary": ours(samples, "binary"),
        "ours, no context": ours(samples, "none"),
        "ours, complex": ours(samples, "complex"),
        "authors, from tensors": authors(OneByOne(data.x_train[chosen], data.y_train[chosen])),
    }
    with tempfile.TemporaryDirectory() as scratch:
        mnist, peer = Path(scratch) / "mnist", None
        write_mnist(mnist, data.x_train[chosen], data.y_train[chosen])
        contestants["the authors' feeding"] = authors(shipped(mnist))
        if not options.quick:
            python = options.peer_python or peer_python(Path(scratch) / "peer")
            peer = Peer(python, samples, Path(scratch), options.threads, mnist)
            contestants["Avalanche, from tensors"] = lambda: peer.ask("epoch")
            contestants["Avalanche, Naive"] = lambda: peer.ask("shipped")
        times = race(contestants, 1 if options.quick else options.repeats)
        if peer is not None:
            peer.close()
    print(conditions() + (f"; Avalanche under torch {peer.torch}" if peer is not None else ""))
    required: dict[str, tuple[str, float | None]] = {
        "the authors' feeding": ("ours, binary", REQUIRED_AUTHORS),
        "authors, from tensors": ("ours, binary", None),
        "Avalanche, Naive": ("ours, no context", REQUIRED_AVALANCHE),
    }
    rows, missed = [], False
    for name, spent in times.items():
        against, wanted = required.get(name, ("ours, no context", None))
        factor = ratio(times, name, against)
        missed |= wanted is not None and factor < wanted
        verdict = "-" if wanted is None else "pass" if factor >= wanted else "missed"
        median = sorted(spent)[len(spent) // 2] / STEPS
        wish = "-" if wanted is None else f">= {wanted:g}"
        rows.append((name, f"{median:.2f} ms", f"{factor:.2f}", against, wish, verdict))
    columns = ("what", "a step", "ratio", "over", "required", "verdict")
    for row in (columns, *rows):
        print("  ".join(f"{cell!s:<22}" for cell in row))
    record(options.json, "A training step, batch 128, permuted digits", columns, rows, "cpu")
    return 1 if missed and not options.quick else 0


if __name__ == "__main__":
    sys.exit(main())
