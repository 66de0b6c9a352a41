"""Rules for a:b :: c:?, on unit vectors, a batch of questions at a time.

A rule scores every word of the vocabulary for every question; the answer is the best word that is none of a, b, c
(no spelling of theirs). Nothing else is excluded: whatever is left out more changes scores by tens of points.

Dimensions: V words, d coordinates, n questions of a batch, m distinct words in them, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag
from tqdm import tqdm

Rows = NDArray[np.int64]
Rule = Callable[["Space", "Batch"], Tensor]
"""(space, n questions) -> scores [n, V], a new tensor."""

SHIFT = 1e-6  # keeps the quotient of 3CosMul finite; gensim's value
IN_CACHE = 1 << 19  # scores worked on at a time on the CPU: 2 MiB stay in its cache, several times faster


class Space:
    """The vocabulary as unit vectors on a device, and what a question must not be answered with.

    Args:
        vectors: [V, d], in the space of the dictionary where factors are used.
        forms: [V] for each row the row that stands for its form (`IndexedTask.forms`); default: each for itself.
        device: where the products are made.
        scores: cosines held at a time; bounds the memory of a batch (4 bytes each, a few copies).

    Attributes:
        norms: [V] of the vectors as given; 1 for a zero vector.
        unit: [V, d] float32 on the device; a zero vector stays zero.
        spellings: [V, widest] for each row all rows of its form, filled up with the last.
    """

    def __init__(
        self,
        vectors: NDArray[np.floating],
        forms: Rows | None = None,
        *,
        device: str | torch.device = "cpu",
        scores: int = 1 << 24,
    ) -> None:
        vectors = np.asarray(vectors, np.float32)
        norms = np.linalg.norm(vectors, axis=1)
        self.norms = np.where(norms == 0, 1, norms).astype(np.float32)
        self.unit = torch.from_numpy(vectors / self.norms[:, None]).to(device)
        self.forms = np.arange(len(vectors)) if forms is None else np.asarray(forms, np.int64)
        if len(self.forms) != len(vectors):
            raise ValueError(f"{len(vectors)} vectors and {len(self.forms)} forms: not the same vocabulary")
        self.spellings = torch.from_numpy(_spellings(self.forms)).to(device)
        self.batch = max(1, scores // max(1, len(vectors)))

    def __len__(self) -> int:
        return len(self.unit)

    @property
    def device(self) -> torch.device:
        return self.unit.device

    def tensor(self, values: NDArray[Any]) -> Tensor:
        """On the device; floats as float32."""
        kind = np.float32 if np.issubdtype(values.dtype, np.floating) else np.int64
        return torch.from_numpy(np.ascontiguousarray(values, kind)).to(self.device)

    def cosines(self, query: Tensor) -> Tensor:
        """[n, V] inner products of queries [n, d] with the unit vectors: cosines times the query's norm."""
        return query @ self.unit.T

    def line(self, offset: NDArray[np.floating]) -> Tensor:
        """[V] inner products of one direction [d] with the unit vectors: what it adds to every score."""
        return self.unit @ self.tensor(offset)

    def exclude(self, scores: Tensor, batch: Batch) -> Tensor:
        """Put the words of each question, in all spellings, out of reach, in place. scores [n, V]."""
        out = self.spellings[batch.abc].flatten(1)  # [n, 3 * widest]
        return scores.scatter_(1, out, float("-inf"))


@dataclass(frozen=True)
class Batch:
    """Questions, with the cosines of their words to all words.

    A section asks about few words in many combinations, and every rule is linear or elementwise in these cosines: one
    product for the distinct words replaces one for each question.

    Attributes:
        abc: [n, 3] rows of a, b, c.
        at: [n, 3] where they stand in `table`.
        table: [m, V] cosines of the distinct words of this and neighbouring batches.
    """

    abc: Tensor
    at: Tensor
    table: Tensor

    def cosines(self, which: int) -> Tensor:
        """[n, V] cosines to a (0), b (1) or c (2); a copy."""
        return self.table.index_select(0, self.at[:, which])

    def combined(self, a: float, b: float, c: float) -> Tensor:
        """[n, V] a weighted sum of the cosines to a, b and c, gathered and added in one pass."""
        weights = torch.tensor([a, b, c], dtype=self.table.dtype, device=self.table.device).expand(len(self.at), 3)
        return embedding_bag(self.at, self.table, per_sample_weights=weights.contiguous(), mode="sum")


def _spellings(forms: Rows) -> Rows:
    """[V, widest] the rows of each row's form."""
    order = np.argsort(forms, kind="stable")
    _, inverse, counts = np.unique(forms, return_inverse=True, return_counts=True)
    starts = np.cumsum(counts) - counts
    widest = int(counts.max(initial=1))
    steps = np.minimum(np.arange(widest)[None], counts[:, None] - 1)  # [forms, widest]
    return order[starts[:, None] + steps][inverse]


def batches(space: Space, abc: Rows, *, quiet: bool = True) -> Iterator[tuple[slice, Batch]]:
    """Batches (their place, questions) of questions [Q, 3], under a progress bar unless quiet."""
    inner = space.batch if space.device.type != "cpu" else max(1, IN_CACHE // len(space))
    starts = range(0, len(abc), space.batch)
    for start in tqdm(starts, desc="analogy", disable=True if quiet else None, leave=False):
        outer = abc[start : start + space.batch]
        distinct, places = np.unique(outer, return_inverse=True)
        table = space.cosines(space.unit[space.tensor(distinct)])  # [m, V]
        rows, at = space.tensor(outer), space.tensor(places.reshape(outer.shape))
        for low in range(0, len(outer), inner):
            part = slice(low, low + inner)
            yield slice(start + low, start + min(low + inner, len(outer))), Batch(rows[part], at[part], table)


def best(scores: Tensor) -> Rows:
    """[n] the highest of scores [n, V]."""
    if scores.device.type == "cpu":
        return scores.numpy().argmax(1)  # several times faster than torch's
    return scores.argmax(1).cpu().numpy()


def answer(space: Space, rule: Rule, abc: Rows, *, quiet: bool = True) -> Rows:
    """The answer of a rule to each question.

    Args:
        abc: [Q, 3] rows of a, b, c.

    Returns:
        [Q] rows; never one of the question's own words.
    """
    found = np.empty(len(abc), np.int64)
    for part, batch in batches(space, abc, quiet=quiet):
        found[part] = best(space.exclude(rule(space, batch), batch))
    return found


# -- rules that see the question only ----------------------------------------------------------------------------------


def three_cos_add(space: Space, batch: Batch) -> Tensor:
    """cos(v, b - a + c), up to the query's norm (Mikolov et al. 2013)."""
    return batch.combined(-1.0, 1.0, 1.0)


def three_cos_mul(space: Space, batch: Batch) -> Tensor:
    """cos(v, b) cos(v, c) / cos(v, a), cosines shifted to [0, 1] (Levy and Goldberg 2014, equation 4)."""
    a, b, c = (batch.cosines(which).add_(1).div_(2) for which in range(3))
    return b.mul_(c).div_(a.add_(SHIFT))


def pair_direction(space: Space, batch: Batch) -> Tensor:
    """cos(v - c, b - a) (Levy and Goldberg 2014, equation 2)."""
    a, b, c = space.unit[batch.abc].unbind(1)  # [n, d] each
    length = (b - a).norm(dim=1, keepdim=True).clamp_min(1e-12)
    along = batch.cosines(1).sub_(batch.cosines(0)).sub_(((b - a) * c).sum(1, keepdim=True)).div_(length)
    squares = (space.unit**2).sum(1)[None] + (c**2).sum(1, keepdim=True) - 2 * batch.cosines(2)  # |v - c|^2
    return along / squares.clamp_min(1e-12).sqrt()


def only_b(space: Space, batch: Batch) -> Tensor:
    """cos(v, b): a control that takes no notice of the relation."""
    return batch.cosines(1)


def only_c(space: Space, batch: Batch) -> Tensor:
    """cos(v, c): a control that takes no notice of a and b."""
    return batch.cosines(2)


FREE_RULES: Mapping[str, Rule] = {
    "3CosAdd": three_cos_add,
    "3CosMul": three_cos_mul,
    "PairDirection": pair_direction,
    "only-b": only_b,
    "only-c": only_c,
}
"""Rules that are fitted to nothing, by the names of tables."""


# -- rules fitted to the pairs of a section ----------------------------------------------------------------------------


def mean_offset(space: Space, pairs: Rows) -> NDArray[np.float32]:
    """[d] mean of b - a over pairs [P, 2], unit vectors."""
    left, right = space.unit[space.tensor(pairs)].unbind(1)
    return (right - left).mean(0).cpu().numpy()


def three_cos_avg(space: Space, pairs: Rows) -> Rule:
    """cos(v, c + mean offset of the training pairs) (Drozd et al. 2016). a and b are not used."""
    line = space.line(mean_offset(space, pairs))
    return lambda space, batch: batch.cosines(2).add_(line)


def lr_cos(space: Space, pairs: Rows, seed: int = 0, others: int = 100, strength: float = 1.0) -> Rule:
    """P(v is of the target class) cos(v, c), P from logistic regression (Drozd et al. 2016).

    The positives are the right words of the training pairs; the negatives their left words and words drawn from the
    vocabulary without regard to any pair. The classes are weighted to equal mass. A word on both sides of the pairs
    counts as a positive.

    Args:
        pairs: [P, 2] training pairs.
        seed: of the draw.
        others: words drawn; fewer where the vocabulary is small.
        strength: inverse of the regularisation.
    """
    from sklearn.linear_model import LogisticRegression

    positives = np.unique(pairs[:, 1])
    drawn = np.random.default_rng(seed).choice(len(space), min(others, len(space)), replace=False)
    negatives = np.setdiff1d(np.concatenate([pairs[:, 0], drawn]), positives)
    rows = np.concatenate([positives, negatives])
    labels = np.repeat([1, 0], [len(positives), len(negatives)])
    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=1000)
    model.fit(space.unit[space.tensor(rows)].cpu().numpy(), labels)
    slope, intercept = np.ravel(model.coef_), float(np.ravel(model.intercept_)[0])
    target = torch.sigmoid(space.line(slope) + intercept)  # [V]
    return lambda space, batch: batch.cosines(2).mul_(target)
