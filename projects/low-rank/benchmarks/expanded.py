"""Race: a training step of a convolutional network whose layers are products of four factors.

    python projects/low-rank/benchmarks/expanded.py [--depth 4] [--width 1] [--threads 1] [--device cpu] [--quick]

Products run as composed weights (our default) or as factors in turn, beside what anyone would write, each layer a plain
`nn.Sequential` of `nn.Conv2d` or `nn.Linear`, and beside the network that is not expanded. Forward, backward and a step
of SGD with momentum, on random images of CIFAR's size. All three forms have the same factors: their loss and their
gradients are compared before the race, in double precision. Required: composed weights twice as fast as the chain of
plain layers, and at most 1.25 times the step of the plain network. Told too: how much faster than the chain
the plain network is, which is what composing for nothing would come to.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from low_rank.models import build_model
from low_rank.overparam import Expanded, ExpandedConv2d, overparameterize
from shared.config import RunFailed
from shared.device import choose_device
from shared.races import conditions, race, ratio, record

FASTER, SLOWER = 2.0, 1.25  # than the chain; than the plain network
AGREE = 1e-9  # relative difference of gradients, in double precision
SEEN = 16  # images on which they are compared


def chain(product: Expanded) -> nn.Sequential:
    """The factors of a product, without groups, as plain layers: all padding in the first, all stride in the last."""
    layers = nn.Sequential()
    for number, weight in enumerate(product.weights):
        bias = product.biases[number] if len(product.biases) else None
        if isinstance(product, ExpandedConv2d):
            padding = product.padding if number == 0 else (0, 0)
            stride = product.stride if number == product.depth - 1 else (1, 1)
            outputs, inputs, *kernel = weight.shape
            layer: Any = nn.Conv2d(inputs, outputs, tuple(kernel), stride, padding, bias=bias is not None)
        else:
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        with torch.no_grad():
            layer.weight.copy_(weight)
            if bias is not None:
                layer.bias.copy_(bias)
        layers.append(layer)
    return layers


def chained(model: nn.Module) -> nn.Module:
    """A copy of a network with chains of plain layers in the places of its products."""
    made = copy.deepcopy(model)
    for name, module in list(made.named_modules()):
        if isinstance(module, Expanded):
            parent, _, child = name.rpartition(".")
            setattr(made.get_submodule(parent), child, chain(module))
    return made


def gradients(net: nn.Module, x: Tensor, y: Tensor) -> tuple[float, Tensor]:
    """The loss, and the gradients of all weights that are matrices or kernels, in order, as one vector."""
    loss = F.cross_entropy(net(x), y)
    loss.backward()
    found = torch.cat([cast(Tensor, p.grad).flatten() for p in net.parameters() if p.dim() >= 2])
    net.zero_grad()
    return float(loss.detach()), found


def check(nets: Mapping[str, nn.Module], x: Tensor, y: Tensor) -> float:
    """The largest relative difference, in loss and gradients, of networks that must be the same: of copies of them, on
    the CPU and in double precision.

    Raises:
        RunFailed: they are not.
    """
    x, y = x[:SEEN].cpu().double(), y[:SEEN].cpu()
    (loss, expected), *others = [gradients(copy.deepcopy(net).cpu().double(), x, y) for net in nets.values()]
    worst = max(
        max(abs(other - loss) / abs(loss), float((found - expected).norm() / expected.norm()))
        for other, found in others
    )  # fmt: skip
    if not worst <= AGREE:
        raise RunFailed(f"{', '.join(nets)} differ by {worst:.1e} in loss or gradients")
    return worst


def step_of(net: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    """A training step of a network on images x [B, 3, side, side] of classes y [B]."""
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> int:
    """Run the race, print it, and return 1 if a requirement is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--width", type=float, default=1.0, help="hidden over output channels; the authors use 1")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a small network and batch; the ratios mean little")
    parser.add_argument("--json", type=Path, help="write the table here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = choose_device(options.device)
    size, batch, channels, repeats = (16, 16, 0.25, 2) if options.quick else (32, 128, 1.0, options.repeats)
    plain = build_model("cnn", (3, size, 10), width=round(256 * channels), channels=channels)
    weights, _ = overparameterize(plain, options.depth, options.width, mode="weights")
    activations, _ = overparameterize(plain, options.depth, options.width, mode="activations")
    activations.load_state_dict(weights.state_dict())
    products = {"composed weights": weights, "factors in turn": activations, "chain of plain layers": chained(weights)}
    nets = {name: net.to(device) for name, net in {**products, "not expanded": plain}.items()}
    x = torch.randn(batch, 3, size, size, device=device)
    y = torch.randint(10, (batch,), device=device)
    worst = check({name: nets[name] for name in products}, x, y)
    times = race({name: step_of(net, x, y) for name, net in nets.items()}, repeats, device)
    print(conditions(device))
    print(f"the three forms of the product agree to {worst:.0e} in loss and gradients")
    rows, missed = [], False
    for name, spent in times.items():
        values = sum(parameter.numel() for parameter in nets[name].parameters())
        told, wish, met = "-", "-", True
        if name == "not expanded":
            factor = ratio(times, "composed weights", name)
            told, wish, met = f"{factor:.2f} times its time", f"<= {SLOWER:g}", factor <= SLOWER
        elif name != "composed weights":
            factor = ratio(times, name, "composed weights")
            told = f"{factor:.2f} times as fast"
            if name == "chain of plain layers":
                wish, met = f">= {FASTER:g}", factor >= FASTER
        verdict = "-" if wish == "-" else "pass" if met else "missed"
        missed |= not met
        rows.append((name, f"{values:,}", f"{statistics.median(spent):.1f} ms", told, wish, verdict))
    bound = ratio(times, "chain of plain layers", "not expanded")
    rows.append(("composing for nothing", "-", "-", f"{bound:.2f} times as fast as the chain", "-", "-"))
    columns = ("what", "parameters", "a step", "composed weights are", "required", "verdict")
    for row in (columns, *rows):
        print("  ".join(f"{cell!s:<22}" for cell in row))
    threads = f"{options.threads} thread{'s' if options.threads != 1 else ''}"
    what = f"products of {options.depth} of width {options.width:g}"
    title = f"A training step of the cnn, {what}, batch {batch} of {size} x {size}, {threads}"
    record(options.json, title, columns, rows, device)
    return 1 if missed and not options.quick else 0


if __name__ == "__main__":
    sys.exit(main())
