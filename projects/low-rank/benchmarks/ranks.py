"""Race: effective ranks of many small matrices, the batch in one call against a part of it to each thread.

    python projects/low-rank/benchmarks/ranks.py [--threads N] [--matrices 1024] [--repeats 5] [--quick]

Singular values in double precision, of products of four Gaussian matrices. `one call` leaves the batch, and the
threads, to LAPACK; `parts` is what random networks are measured by. On a machine with a CUDA device the batch also
starts there: `one call` leaves it to CUDA's solver, `parts` takes small matrices to the CPU. All find the same ranks,
which is checked before the race. Nothing is required: which way is taken follows from these numbers.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from low_rank.random_networks import end_to_end, in_threads
from low_rank.rank import effective_rank
from shared.config import RunFailed
from shared.races import conditions, race, ratio, record

SIDES = (16, 32, 64, 128)
DEPTH = 4
AGREE = 1e-9  # nats


def in_parts(matrices: Tensor) -> Tensor:
    """Effective ranks of [S, n, n], as the experiments take them: [S]."""
    return in_threads(effective_rank, matrices)


def under(threads: int, measure: Callable[[Tensor], Tensor], matrices: Tensor) -> Callable[[], Tensor]:
    """A contestant with a number of threads of its own."""

    def run() -> Tensor:
        torch.set_num_threads(threads)
        return measure(matrices)

    return run


def main() -> int:
    """Run the race and print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of all but the first contestant")
    parser.add_argument("--matrices", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="few and small matrices; the ratios mean little")
    parser.add_argument("--json", type=Path, help="write the table here")
    options = parser.parse_args()
    threads, repeats = options.threads, 1 if options.quick else options.repeats
    count = 16 if options.quick else options.matrices
    generator = torch.Generator().manual_seed(0)
    torch.set_num_threads(threads)
    print(conditions() + f"; {count:,} matrices")
    first = "one call, 1 thread"
    rows = []
    for n in SIDES[:2] if options.quick else SIDES:
        draws = torch.randn(DEPTH, count, n, n, generator=generator, dtype=torch.float64) / n**0.5
        matrices = end_to_end(list(draws))
        contestants = {first: under(1, effective_rank, matrices)}
        if threads > 1:
            contestants[f"one call, {threads} threads"] = under(threads, effective_rank, matrices)
            contestants[f"parts, {threads} threads"] = under(threads, in_parts, matrices)
        if torch.cuda.is_available():
            there = matrices.cuda()
            contestants["one call, CUDA"] = under(threads, effective_rank, there)
            contestants[f"parts, CUDA, {threads} threads"] = under(threads, in_parts, there)
        found = {name: run().cpu() for name, run in contestants.items()}
        worst = max(float((ranks - found[first]).abs().max()) for ranks in found.values())
        if not worst <= AGREE:
            raise RunFailed(f"n = {n}: the ranks differ by {worst:.1e} nats")
        times = race(contestants, repeats, "cuda" if torch.cuda.is_available() else "cpu")
        for name, spent in times.items():
            each = 1000 * statistics.median(spent) / count
            rows.append((n, name, f"{each:.1f} us", f"{ratio(times, first, name):.2f}"))
    columns = ("n", "how", "a matrix", f"times as fast as {first}")
    for row in (columns, *rows):
        print("  ".join(f"{cell!s:<26}" for cell in row))
    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    record(options.json, f"Effective ranks of {count:,} n x n matrices, double precision", columns, rows, device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
