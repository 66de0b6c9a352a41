"""How often a word is drawn, and how much it counts in the dictionary step.

Uses of words follow Zipf's law. Learning from the vocabulary uniformly is learning from rare, noisy words; in
proportion to use, from "the" and its like. Words are drawn with probability q_w ~ f_w^a and their residuals weighted by
c_w ~ f_w^b: what counts in expectation is f^(a + b), and the published code ends at the square root.

Dimensions: V words, B a batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.config import check_choice

Weighting = Literal["sqrt", "frequency", "uniform", "sqrt-uniform", "corpus"]
WEIGHTINGS: tuple[Weighting, ...] = get_args(Weighting)

EXPONENTS: dict[Weighting, tuple[float, float]] = {
    "sqrt": (1.0, -0.5),  # words as the corpus has them, residuals divided by the root of the count
    "frequency": (1.0, 0.0),
    "uniform": (0.0, 0.0),
    "sqrt-uniform": (0.0, 0.5),  # the objective of `sqrt` with less noise from sampling
    "corpus": (1.0, -0.5),  # the running text itself in place of draws
}


class Weights(NamedTuple):
    """Attributes: q [V] probability of drawing each word; c [V] weight of its residual, with sum(q c) = 1."""

    q: NDArray[np.float64]
    c: NDArray[np.float64]


def weights(counts: NDArray[np.float64], weighting: Weighting) -> Weights:
    """q and c for words used `counts` [V] times. c is scaled to mean 1 under q, so that one step size means the same
    under every weighting.

    Raises:
        UserError: an unknown weighting.
    """
    check_choice("--weighting", weighting, WEIGHTINGS)
    draw, weigh = EXPONENTS[weighting]
    frequency = counts / counts.sum()
    q = frequency**draw
    q = q / q.sum()
    c = frequency**weigh
    return Weights(q, c / float(q @ c))


def root_frequency(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """p_w ~ sqrt(f_w), summing to 1: the measure under which words are averaged everywhere else. [V]."""
    root = np.sqrt(counts)
    return root / root.sum()


class WordSampler:
    """Batches of word rows without end; batch t is a function of (seed, t) alone, which is what makes runs resume
    exactly.

    Draws are with replacement where q is not uniform; a uniform q gives a new permutation every epoch; `corpus` walks
    the text. `len` is the number of batches in which V words (or all tokens) are seen once.

    Args:
        q: [V] probabilities.
        batch_size: B, words a step and process.
        seed: decides everything.
        tokens: running text as word rows, for the weighting `corpus`.
        rank, world: this process among all; a step's words are those of one process with `world` times the batch size.
    """

    def __init__(
        self,
        q: NDArray[np.float64],
        batch_size: int,
        seed: int,
        *,
        tokens: NDArray[np.int32] | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.size, self.batch_size, self.seed = len(q), batch_size, seed
        self.tokens, self.rank, self.world = tokens, rank, world
        self.cumulative = np.cumsum(q) / float(np.sum(q))
        self.uniform = bool(np.allclose(q, q[0]))
        self.position = 0
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        whole = self.batch_size * self.world
        return math.ceil((self.size if self.tokens is None else len(self.tokens)) / whole)

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            rows = self.batch(self.position)
            self.position += 1
            yield torch.from_numpy(rows)

    def batch(self, number: int) -> NDArray[np.int64]:
        """[B] rows of batch `number` for this process."""
        whole = self.batch_size * self.world
        mine = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        places = np.arange(number * whole, (number + 1) * whole)[mine]
        if self.tokens is not None:
            return self.tokens[places % len(self.tokens)].astype(np.int64)
        if self.uniform:  # an epoch ends inside a batch, which goes on with the next
            epochs = places // self.size
            return np.concatenate(
                [self.order(int(epoch))[places[epochs == epoch] % self.size] for epoch in np.unique(epochs)]
            )
        draws = np.random.default_rng((self.seed, number)).random(whole)[mine]
        return np.searchsorted(self.cumulative, draws, side="right").clip(max=self.size - 1)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """[V] the permutation of one epoch."""
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, np.random.default_rng((self.seed, 1 << 40, epoch)).permutation(self.size)
        return self._order[1]
