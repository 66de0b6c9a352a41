"""Race: making ResNet-18's weights from a ring and carrying their gradient back, beside a whole training step.

    python projects/rpg/benchmarks/step_share.py [--batch 128] [--threads 1] [--repeats 9] [--quick] [--json PATH]

Generation costs the same whatever the batch, so its share is a matter of the batch. Required on a GPU at batch 128, the
paper's: at most 5 %. On a CPU a step of 128 images takes most of a minute; there the share at a small batch is
printed, which is larger, and nothing is required.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import torch
from torch import nn

from rpg.hosts import make_host
from rpg.wrap import RPGModel
from shared.races import conditions, race, record

REQUIRED = 0.05
BATCH = 128


def main() -> int:
    """Run the race, print it, and return 1 if the requirement is missed on a GPU."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, help=f"default {BATCH} on a GPU, 16 on a CPU, 2 with --quick")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="two turns; the share means little")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    gpu = device.type == "cuda"
    batch = options.batch or (BATCH if gpu else 2 if options.quick else 16)
    host = make_host("resnet18", in_channels=3, num_classes=10, image_size=32)
    model = RPGModel(host, dof_ratio=1 / 5).to(device, memory_format=torch.channels_last)  # pyright: ignore
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, nesterov=True)
    images = torch.randn(batch, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,), device=device)
    (ring,) = model.rings.values()
    gradients = [torch.randn(size, device=device) for size in ring.plan.sizes]  # pyright: ignore

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=gpu):
            loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()  # the ring has changed: the next step generates anew
        optimizer.zero_grad()

    def generation() -> None:
        weight = ring.weight.detach().requires_grad_()  # pyright: ignore
        torch.autograd.grad(ring.generate(weight), weight, gradients)  # pyright: ignore

    times = race({"step": step, "generation": generation}, 2 if options.quick else options.repeats, device)
    share = statistics.median(g / s for g, s in zip(times["generation"], times["step"], strict=True))
    took = {name: statistics.median(turns) for name, turns in times.items()}
    asked = gpu and batch >= BATCH
    verdict = ("met" if share <= REQUIRED else "missed") if asked else "-"
    print(conditions(device))
    print(f"ResNet-18 for 32x32 images, N = {model.generated:,}, M = {model.ring_total:,}, batch {batch}:")
    print(f"a step {took['step']:.1f} ms, of it generation forward and backward {took['generation']:.1f} ms: ", end="")
    print(f"{100 * share:.1f} %")
    goal = f"at most {100 * REQUIRED:g} % on a GPU at batch {BATCH}"
    print(f"required {goal}: {verdict}" if asked else f"The requirement, {goal}, is not judged here.")
    columns = ("device, batch", "step", "generation", "share", "required", "verdict")
    figures = (f"{took['step']:.1f} ms", f"{took['generation']:.1f} ms", f"{100 * share:.1f} %")
    title = "Generation, forward and backward, as a share of a training step of ResNet-18 (32x32 images)"
    record(options.json, title, columns, [(f"{device.type}, {batch}", *figures, goal, verdict)], device)
    return int(verdict == "missed" and not options.quick)


if __name__ == "__main__":
    sys.exit(main())
