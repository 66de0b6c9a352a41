"""Check: our baselines beside Avalanche's on the same permutations, network and optimiser.

    python projects/superposition/benchmarks/baselines.py [--tasks 10] [--epochs 6] [--peer-python PATH] [--quick]

Strengths mean the same: Avalanche's EWC has no factor 1/2 and its SI has one, which is allowed for, and its
importances are taken sample by sample, as ours are. The orders of the samples and the initial weights differ, so
accuracies agree to the spread of seeds and no further. Nothing is required.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch
from peers.process import Peer, peer_python

from shared.images import load
from shared.races import conditions, record
from superposition.config import TrainConfig
from superposition.streams import Samples, normalised
from superposition.train import measure

CONTESTS: tuple[tuple[str, float], ...] = (
    ("standard", 0.0), ("ewc", 1.0), ("ewc", 10.0), ("ewc", 100.0), ("si", 1.0), ("si", 10.0), ("si", 100.0),
    ("agem", 0.0),
)  # fmt: skip


def main() -> int:
    """Run both, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--peer-python", type=Path, help="an interpreter that has avalanche-lib 0.6")
    parser.add_argument("--quick", action="store_true", help="two tasks of an epoch, ours alone")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tasks, epochs = (2, 1) if options.quick else (options.tasks, options.epochs)
    data = load("mnist5k", Path())
    whole = normalised(data, "mnist", torch.device("cpu"))
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        peer = None
        if not options.quick:
            python = options.peer_python or peer_python(Path(scratch) / "peer")
            peer = Peer(python, Samples(whole.x, whole.y, whole.x_test, whole.y_test), Path(scratch), 1)
        for method, strength in CONTESTS:
            mine, theirs = [], []
            for seed in range(options.seeds):
                fields = {"strength": strength} if method in ("ewc", "si") else {}
                if method == "ewc":
                    fields |= {"fisher": "empirical", "fisher_samples": 200 if options.quick else 4000}
                config = TrainConfig(
                    method=method, tasks=tasks, period=31 * epochs, device="cpu", seed=seed, quiet=True,  # pyright: ignore
                    eval_every=31 * epochs, **fields,  # pyright: ignore
                )  # fmt: skip
                mine.append(measure(config)["tasks"])
                asked = {
                    "method": method, "strength": strength, "tasks": tasks, "epochs": epochs, "seed": seed, "xi": 0.1,
                    "memory": 256, "widths": [784, 256, 256, 256, 10],
                }  # fmt: skip
                if peer is not None:
                    theirs.append(peer.ask(json.dumps(asked))["tasks"])
            name = method if strength == 0 else f"{method} {strength:g}"
            cells = [sum(sum(run) / len(run) for run in runs) / len(runs) if runs else None for runs in (mine, theirs)]
            firsts = [sum(run[0] for run in runs) / len(runs) if runs else None for runs in (mine, theirs)]
            rows.append((name, *("-" if v is None else f"{v:.3f}" for v in (*cells, *firsts))))
            print(rows[-1], flush=True)
        if peer is not None:
            peer.close()
    columns = ("method", "ours: average", "Avalanche: average", "ours: first task", "Avalanche: first task")
    print(conditions())
    for row in (columns, *rows):
        print("  ".join(f"{cell!s:<22}" for cell in row))
    title = f"Baselines beside Avalanche's, {tasks} permutations of {epochs} epochs"
    record(options.json, title, columns, rows, "cpu")
    return 0


if __name__ == "__main__":
    sys.exit(main())
