"""Race: making all weights of a network from a ring, and carrying their gradient back.

    python projects/rpg/benchmarks/generator.py [--host resnet18] [--threads 1] [--repeats 9] [--quick] [--json PATH]

Against the formulation of the authors' code (one `signs * ring[indices]` a layer, 64-bit indices, signs in floating
point, the gradient by index_put with accumulation), in this process, in turns, so that a noisy machine disturbs both
alike; medians and minima of all turns. A plain copy of the weights is the floor of any method. Required on the CPU,
against the authors' code, which knows no chunks: three times as fast at chunk 1, eight times at chunk 64. How their
formulation fares on our chunked plan, whose runs of neighbours help it too, is printed beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torchvision
from torch import Tensor

from rpg.generate import generate, tables_of
from rpg.plan import Plan, make_plan
from shared.device import describe
from shared.races import race, ratio

RING = 512 * 512 * 3 * 3  # M: the largest layer of ResNet-18
REQUIRED = {1: 3.0, 64: 8.0}


def layer_sizes(host: str) -> list[int]:
    """n_l of a torchvision network's convolutions beyond the stem."""
    network = getattr(torchvision.models, host)()
    convolutions = [p.numel() for p in network.parameters() if p.dim() == 4]
    return convolutions[1:]


def authors(plan: Plan, ring: Tensor, gradients: Sequence[Tensor]) -> Callable[[], Tensor]:
    """One forward and backward pass in the authors' formulation; returns the ring's gradient."""
    layers = range(len(plan.sizes))
    indices = [torch.from_numpy(plan.indices(layer)).long().to(ring.device) for layer in layers]
    signs = [torch.from_numpy(plan.signs(layer)).to(ring) for layer in layers]

    def both() -> Tensor:
        made = [sign * ring[index] for sign, index in zip(signs, indices, strict=True)]
        return torch.autograd.grad(made, ring, gradients)[0]

    return both


def ours(plan: Plan, ring: Tensor, gradients: Sequence[Tensor]) -> Callable[[], Tensor]:
    """One forward and backward pass of `rpg.generate`."""
    tables = tables_of(plan, [1.0] * len(plan.sizes), ring.device)

    def both() -> Tensor:
        return torch.autograd.grad(generate(ring, tables), ring, gradients)[0]

    return both


def main() -> int:
    """Run the race, print it, and return 1 if a requirement is missed on the CPU."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--host", default="resnet18", choices=("resnet18", "resnet34", "resnet50"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="two turns; the ratios mean little")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    repeats = 2 if options.quick else options.repeats
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    torch.manual_seed(0)
    sizes = layer_sizes(options.host)
    ring = torch.randn(RING, device=device, requires_grad=True)
    gradients = [torch.randn(size, device=device) for size in sizes]
    flat = torch.cat(gradients)
    hardware = describe(device)
    print(f"{options.host}: N = {sum(sizes):,} weights of {len(sizes)} layers from a ring of M = {RING:,}")
    print(f"torch {torch.__version__}, {hardware.get('gpu', hardware['cpu'])}, {options.threads} thread(s)")
    results: dict[str, dict[str, float]] = {}
    missed = False
    planning = []
    for _ in range(3):
        began = time.process_time()
        plan = make_plan(sizes, RING)
        plan.all_indices(), plan.all_signs()
        planning.append(time.process_time() - began)
    print(f"the plan is worked out in {min(planning):.2f} s (wanted for ResNet-34: less than 1)")
    unchunked = authors(make_plan(sizes, RING, "even", seed=0), ring, gradients)
    for chunk in REQUIRED:
        plan = make_plan(sizes, RING, "even", seed=0, chunk=chunk)
        same_plan = unchunked if chunk == 1 else authors(plan, ring, gradients)
        contestants = {"authors": unchunked, "ours": ours(plan, ring, gradients)}
        same = torch.allclose(same_plan(), contestants["ours"](), rtol=1e-4, atol=1e-4)
        if not same:
            print("the gradients differ: no race", file=sys.stderr)
            return 1
        if chunk > 1:
            contestants["same_plan"] = same_plan
        times = race({**contestants, "copy": flat.clone}, repeats, device)
        row = {f"{name}_ms": statistics.median(turns) for name, turns in times.items()}
        row |= {f"{name}_least_ms": min(turns) for name, turns in times.items()}
        row["ratio"] = ratio(times, "authors", "ours")
        aside = ""
        if chunk > 1:
            row["ratio_same_plan"] = ratio(times, "same_plan", "ours")
            aside = f"; on the same plan {row['ratio_same_plan']:.1f}"
        row["ratio_of_least"] = row["authors_least_ms"] / row["ours_least_ms"]
        results[f"chunk {chunk}"] = row
        enough = row["ratio"] >= REQUIRED[chunk]
        missed |= not enough
        print(
            f"chunk {chunk:2}: authors {row['authors_ms']:.1f} ms, ours {row['ours_ms']:.1f} ms: {row['ratio']:.1f} "
            f"times as fast (required {REQUIRED[chunk]:g}: {'met' if enough else 'missed'}; of the least times "
            f"{row['ratio_of_least']:.1f}{aside}); a copy {row['copy_ms']:.1f} ms"
        )
    if options.json is not None:
        settings = {"host": options.host, "generated": sum(sizes), "ring": RING, "repeats": repeats}
        record = {**settings, "torch": torch.__version__, "hardware": hardware, "results": results}
        options.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return int(missed and device.type == "cpu" and not options.quick)


if __name__ == "__main__":
    sys.exit(main())
