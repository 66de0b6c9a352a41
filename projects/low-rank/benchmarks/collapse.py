"""Race: multiplying out a ResNet-50 whose layers are products of four factors.

    python projects/low-rank/benchmarks/collapse.py [--depth 4] [--threads 1] [--repeats 3] [--quick]

Ours goes once over the nodes of a layer and takes products in the order of the fewest multiplications. Beside it,
written here:

    probed      an impulse for each input channel is sent through the factors, the answer to zeros taken off, and the
                rest read as the kernel: works for anything that is affine, and is what is usually done;
    symbolic    sympy expands each layer into the sum of its paths, and each path is multiplied out by itself;
    multiplied  nothing but the multiplications of matrices that plain products need, in the same order: the time that
                no way to multiply out factors can be under, and which a requirement may be out of reach by.

None of them is anyone's published code. Twice: plain products, and products with batch norms after each factor and a
skip around each where shapes allow, whose paths double at every factor. The routes' weights are compared before the
race. Required, of plain products: less than two seconds, and 20 times as fast as the symbolic route.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import sympy
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from low_rank.overparam import Expanded, collapse, overparameterize
from shared.config import RunFailed, UserError
from shared.races import conditions, race, ratio, record

SECONDS, FASTER = 2.0, 20.0
AGREE = 1e-3  # relative difference of weights, in single precision
Plain = dict[str, tuple[Tensor, Tensor | None]]
"""Weight [o, i, k, k] and bias [o] of every layer by path."""
Chain = list[tuple[Tensor, Tensor | None, nn.BatchNorm2d | nn.BatchNorm1d | None]]
"""Of a layer: kernels [h, i, k, k], biases [h], batch norms."""


def products(model: nn.Module) -> dict[str, Expanded]:
    """The products in a network by path."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Expanded)}


def factors(product: Expanded) -> Chain:
    """The factors, first to last; linear ones as kernels of 1 x 1. Of products without groups."""
    return [
        (
            weight if weight.dim() == 4 else weight[..., None, None],
            product.biases[number] if len(product.biases) else None,
            cast("nn.BatchNorm2d | None", product.norms[number]) if len(product.norms) else None,
        )
        for number, weight in enumerate(product.weights)
    ]


def ours(model: nn.Module) -> Plain:
    """What `low_rank.overparam.collapse` gives."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of biases that batch norms bring: meant here
        plain = collapse(model)
    found = {}
    for name in products(model):
        layer = cast("nn.Conv2d | nn.Linear", plain.get_submodule(name))
        weight = layer.weight if layer.weight.dim() == 4 else layer.weight[..., None, None]
        found[name] = weight.detach(), None if layer.bias is None else layer.bias.detach()
    return found


# -- probed ------------------------------------------------------------------------------------------------------------


def run(chain: Chain, skips: Mapping[int, Sequence[int]], x: Tensor) -> Tensor:
    """Factors in turn, without padding or stride: [B, i, H, W] to [B, o, H', W']."""
    nodes = [x]
    for v, (weight, bias, norm) in enumerate(chain, start=1):
        y = F.conv2d(nodes[-1], weight, bias)
        if norm is not None:
            y = F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        for r in skips.get(v, ()):
            margins = [(have - want) // 2 for have, want in zip(nodes[r].shape[2:], y.shape[2:], strict=True)]
            y = y + nodes[r][:, :, margins[0] : margins[0] + y.shape[2], margins[1] : margins[1] + y.shape[3]]
        nodes.append(y)
    return nodes[-1]


@torch.no_grad()
def probed(model: nn.Module) -> Plain:
    """Kernels as answers to impulses."""
    found: Plain = {}
    for name, product in products(model).items():
        chain = factors(product)
        inputs = chain[0][0].shape[1]
        height, width = (1 + sum(weight.shape[axis] - 1 for weight, _, _ in chain) for axis in (2, 3))
        impulses = torch.zeros(inputs, inputs, 2 * height - 1, 2 * width - 1)
        impulses[range(inputs), range(inputs), height - 1, width - 1] = 1
        rest = run(chain, product.skips, torch.zeros(1, inputs, height, width))
        kernel = (run(chain, product.skips, impulses) - rest).transpose(0, 1).flip(2, 3)
        biased = len(product.biases) > 0 or len(product.norms) > 0
        found[name] = kernel.contiguous(), rest.flatten() if biased else None
    return found


# -- symbolic ----------------------------------------------------------------------------------------------------------


def paths(depth: int, biased: bool, skips: Mapping[int, Sequence[int]]) -> list[list[str]]:
    """The terms of a layer's output, expanded: names of what is multiplied, leftmost first; x is the input."""
    nodes: list[sympy.Expr] = [sympy.Symbol("x", commutative=False)]
    for v in range(1, depth + 1):
        node = sympy.Symbol(f"W{v}", commutative=False) * nodes[-1]
        if biased:
            node += sympy.Symbol(f"b{v}", commutative=False)
        nodes.append(node + sum(nodes[r] for r in skips.get(v, ())))
    total = sympy.expand(nodes[-1])
    found = []
    for term in sympy.Add.make_args(total):
        count, symbols = term.as_coeff_Mul()
        found += [[str(symbol) for symbol in _powers(symbols)]] * int(count)
    return found


def _powers(term: sympy.Expr) -> list[sympy.Expr]:
    """Symbols of a product in order, each as often as its power says."""
    return [
        base for part in sympy.Mul.make_args(term) for base, power in [part.as_base_exp()] for _ in range(int(power))
    ]  # fmt: skip


@torch.no_grad()
def symbolic(model: nn.Module) -> Plain:
    """Kernels as sums over paths, batch norms folded into the factors first."""
    found: Plain = {}
    for name, product in products(model).items():
        chain = [_folded(*factor) for factor in factors(product)]
        biased = chain[0][1] is not None
        size = [1 + sum(weight.shape[axis] - 1 for weight, _ in chain) for axis in (2, 3)]
        inputs = chain[0][0].shape[1]
        kernel, constant = torch.zeros(chain[-1][0].shape[0], inputs, *size), torch.zeros(chain[-1][0].shape[0])
        for *maps, start in paths(len(chain), biased, product.skips):
            weights = [chain[int(symbol[1:]) - 1][0] for symbol in reversed(maps)]
            if start == "x":
                part = torch.eye(inputs)[..., None, None] if not weights else weights[0]
                for weight in weights[1:]:
                    margins = [extent - 1 for extent in weight.shape[2:]]
                    part = F.conv2d(part.transpose(0, 1), weight.flip(2, 3), padding=margins).transpose(0, 1)
                high, wide = ((want - have) // 2 for want, have in zip(size, part.shape[2:], strict=True))
                kernel += F.pad(part, (wide, wide, high, high))
            else:
                value = cast(Tensor, chain[int(start[1:]) - 1][1])
                for weight in weights:
                    value = weight.sum(dim=(2, 3)) @ value
                constant += value
        found[name] = kernel, constant if biased else None
    return found


def _folded(
    weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm2d | nn.BatchNorm1d | None
) -> tuple[Tensor, Tensor | None]:
    """A factor with the batch norm after it."""
    if norm is None:
        return weight, bias
    scale = norm.weight / (cast(Tensor, norm.running_var) + norm.eps).sqrt()
    before = cast(Tensor, norm.running_mean) - (0 if bias is None else bias)
    return weight * scale[:, None, None, None], norm.bias - before * scale


# -- the least that there is to do -------------------------------------------------------------------------------------


def multiplications(model: nn.Module) -> tuple[Callable[[], None], int]:
    """What multiplies the matrices of plain products, each from its cheaper end (with hidden features as many as the
    outputs no other order has less to do), and how many multiplications it is. Of products whose kernels are the first
    factor's."""
    chains: list[list[Tensor]] = []
    total = 0
    for product in products(model).values():
        matrices = [weight.detach().flatten(1) for weight in product.weights]
        outputs, inputs = matrices[-1].shape[0], matrices[0].shape[1]
        forward = sum(matrix.numel() * inputs for matrix in matrices[1:])
        backward = sum(matrix.numel() * outputs for matrix in matrices[:-1])
        total += min(forward, backward)
        chains.append(matrices if forward <= backward else [matrix.T for matrix in reversed(matrices)])

    @torch.no_grad()
    def multiply() -> None:
        for first, *others in chains:
            for matrix in others:
                first = matrix @ first

    return multiply, total


# -- the race ----------------------------------------------------------------------------------------------------------


def network(quick: bool) -> nn.Module:
    """torchvision's ResNet-50 as new, or its first block.

    Raises:
        UserError: torchvision is missing.
    """
    try:
        from torchvision.models.resnet import Bottleneck, ResNet
    except ImportError as error:
        hint = f"Install the group: uv sync --package low-rank --group bench. ({error})"
        raise UserError("torchvision", "not installed", "torchvision, whose ResNet-50 is raced", hint) from error
    return Bottleneck(64, 16) if quick else ResNet(Bottleneck, [3, 4, 6, 3])


def expanded(plain: nn.Module, depth: int, rich: bool) -> nn.Module:
    """Products of `depth` in evaluation mode; rich ones have batch norms, of random statistics, and skips."""
    skips = 1 if rich else ()
    model, _ = overparameterize(plain, depth, batch_norm=rich, residual=skips, on_mismatch="skip")
    for product in products(model).values():
        for norm in product.norms:
            cast(Tensor, norm.running_mean).normal_(std=0.1)
            cast(Tensor, norm.running_var).uniform_(0.5, 2)
    return model.eval()


def difference(one: Plain, other: Plain) -> float:
    """The largest relative difference of a weight or bias."""

    def relative(a: Tensor, b: Tensor) -> float:
        return float((a - b).norm() / a.norm())

    worst = 0.0
    for name, (weight, bias) in one.items():
        weight_too, bias_too = other[name]
        worst = max(worst, relative(weight, weight_too))
        if (bias is None) != (bias_too is None):
            return float("inf")
        if bias is not None and bias_too is not None:
            worst = max(worst, relative(bias, bias_too))
    return worst


def main() -> int:
    """Run the race, print it, and return 1 if a requirement is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one block of it; the ratios mean little")
    parser.add_argument("--json", type=Path, help="write the table here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    plain = network(options.quick)
    ways: dict[str, Callable[[nn.Module], Plain]] = {"ours": ours, "probed": probed, "symbolic": symbolic}
    print(conditions() + f", sympy {sympy.__version__}")
    rows, missed = [], False
    for kind, rich in (("plain products", False), ("batch norms and skips", True)):
        model = expanded(plain, options.depth, rich)
        expected = ours(model)
        worst = {name: difference(expected, way(model)) for name, way in ways.items()}
        if not max(worst.values()) <= AGREE:
            raise RunFailed(f"{kind}: the weights differ by {max(worst.values()):.1e}")
        runs: dict[str, Callable[[], object]] = {name: partial(way, model) for name, way in ways.items()}
        if not rich:
            runs["multiplied"], count = multiplications(model)
            print(f"plain products: {count / 1e9:.1f} thousand million multiplications")
        times = race(runs, 1 if options.quick else options.repeats)
        for name, spent in times.items():
            seconds, factor = statistics.median(spent) / 1000, ratio(times, name, "ours")
            wish, met = "-", True
            if not rich and name == "ours":
                wish, met = f"< {SECONDS:g} s", seconds < SECONDS
            elif not rich and name == "symbolic":
                wish, met = f">= {FASTER:g}", factor >= FASTER
            verdict = "-" if wish == "-" else "pass" if met else "missed"
            missed |= not met
            how = "-" if name == "ours" else f"{factor:.1f}"
            apart = f"{worst[name]:.0e}" if name in worst else "-"
            rows.append((kind, name, f"{seconds:.3f} s", how, apart, wish, verdict))
    columns = ("what", "by", "time", "ratio to ours", "relative difference", "required", "verdict")
    for row in (columns, *rows):
        print("  ".join(f"{cell!s:<22}" for cell in row))
    threads = f"{options.threads} thread{'s' if options.threads != 1 else ''}"
    what = "a block of ResNet-50" if options.quick else "ResNet-50"
    record(options.json, f"Multiplying out {what}, products of {options.depth}, {threads}", columns, rows, "cpu")
    return 1 if missed and not options.quick else 0


if __name__ == "__main__":
    sys.exit(main())
