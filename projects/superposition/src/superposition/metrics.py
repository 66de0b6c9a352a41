"""What is measured on a network that was trained on a stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from superposition.contexts import Index

AT_A_TIME = 1000


@torch.no_grad()
def accuracy(network: Any, x: Tensor, y: Tensor, k: Index) -> float:
    """Share of right answers under context k, without gradients, in evaluation mode."""
    was = network.training
    network.eval()
    right = torch.zeros((), dtype=torch.long, device=x.device)
    # Parts of one size: a last one of a few images has no statistics to be normalised by.
    parts = max(1, -(-len(x) // AT_A_TIME))
    for part, labels in zip(x.tensor_split(parts), y.tensor_split(parts), strict=True):
        right += (network(part, k).argmax(1) == labels).sum()
    network.train(was)
    return int(right) / len(y)


@torch.no_grad()
def select_context(network: Any, x: Tensor, ks: Sequence[float]) -> float:
    """The context whose outputs on a batch have the least entropy: a guess at which task the batch is of."""
    was = network.training
    network.eval()
    entropies = []
    for k in ks:
        logs = network(x, k).log_softmax(1)
        entropies.append(-(logs.exp() * logs).sum(1).mean())
    network.train(was)
    return ks[int(torch.stack(entropies).argmin())]


def forgetting(after: Sequence[Sequence[float]]) -> float:
    """F = mean_i (max_t R[t, i] - R[K, i]) over all K tasks: best accuracy on a task at the end of any from its own on,
    less that at the very end (section 2.7).

    Args:
        after: R[t][i], accuracy on task i after task t, for i <= t at least.
    """
    last = len(after) - 1
    if last < 1:
        return 0.0
    return sum(max(after[t][i] for t in range(i, last + 1)) - after[last][i] for i in range(last + 1)) / (last + 1)


def backward_transfer(after: Sequence[Sequence[float]]) -> float:
    """Mean over tasks but the last of (last accuracy, less that right after the task)."""
    last = len(after) - 1
    return sum(after[last][i] - after[i][i] for i in range(last)) / last if last else 0.0


def spread(values: Sequence[float], count: int) -> list[float]:
    """At most `count` of the values in their order, evenly spread."""
    if len(values) <= count:
        return list(values)
    return [values[round(i * (len(values) - 1) / (count - 1))] for i in range(count)]


def off_diagonal(matrix: Sequence[Sequence[float | None]]) -> float | None:
    """Mean accuracy under a key that is another task's; rows are keys, untrained ones (None) left out."""
    values = [v for i, row in enumerate(matrix) for j, v in enumerate(row) if i != j and v is not None]
    return sum(values) / len(values) if values else None
