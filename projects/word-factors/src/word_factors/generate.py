"""New analogy questions out of one factor: pairs of words alike but for it.

u has nothing of the factor, v has much of it, and each is what the other becomes when the factor is added or taken
away. Pairs are looked for between the words without and the words with the factor, and kept where both find each other.

Dimensions: V words, d coordinates, K factors, L words without and H words with the factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shared.config import UserError, check_range
from word_factors.questions import AnalogyTask, IndexedTask, Pair, Section

if TYPE_CHECKING:
    from word_factors.analogy import Space
    from word_factors.embedding import Embedding
    from word_factors.manipulation import Factors


@dataclass(frozen=True)
class Generated:
    """Pairs that differ in one factor or group.

    Attributes:
        name: of the section.
        factors: the factors that differ.
        gamma: how far v lies along their direction.
        pairs: [P, 2] rows of u and v, most alike first.
        alike: [P] cosine of the codes of u and v without the factors.
    """

    name: str
    factors: tuple[int, ...]
    gamma: float
    pairs: NDArray[np.int64]
    alike: NDArray[np.float32]

    def section(self, words: tuple[str, ...]) -> Section:
        """All ordered combinations of the pairs, as words."""
        return Section.of_pairs(self.name, [Pair(words[u], (words[v],)) for u, v in self.pairs.tolist()])


@dataclass(frozen=True)
class GeneratedScore:
    """3CosAdd on a generated section, and on the same words with the right sides shuffled among the pairs."""

    section: str
    questions: int
    accuracy: float
    shuffled: float


def generate(
    space: Space,
    factors: Factors,
    chosen: Sequence[int],
    name: str,
    *,
    low: float = 0.01,
    high: float = 0.15,
    gamma: float | None = None,
    alike: float = 0.6,
    most: int = 30,
) -> Generated:
    """Pairs (u, v): v the nearest to x_u + γφ among the words with the factor, u the nearest to x_v - γφ among those
    without, and their codes alike but for the factor.

    For several factors (a group) α is their sum and φ the unit vector of Σ μ_j φ_j, μ_j the mean α_j of the words with
    them. Words that differ in case only are one word: their first row stands for them.

    Args:
        space: vectors, unit; the dictionary's space.
        factors: dictionary and codes.
        chosen: one factor, or the factors of a group.
        name: of the section.
        low, high: u has α < low, v has α > high.
        gamma: default: the mean α of the words with the factor.
        alike: least cosine of the codes without the factor.
        most: pairs kept.

    Returns:
        as many pairs as there are, maybe none.

    Raises:
        UserError: no such factor; thresholds out of range or crossed; a dictionary of another embedding.
    """
    factors.check(space)
    check_range("most", most, 2)
    check_range("low", low, 0, open_low=True)
    check_range("high", high, low)
    check_range("alike", alike, -1, 1)
    check_range("gamma", gamma, 0, open_low=True)
    for j in chosen:
        check_range("factor", j, 0, len(factors) - 1)
    if not len(chosen):
        raise UserError("factor", "none", f"at least one of 0 .. {len(factors) - 1}")
    columns = np.array(chosen, np.int64)
    own = factors.codes[:, columns].toarray()  # [V, chosen]
    alpha = own.sum(1)
    earliest = space.forms == np.arange(len(space))
    without, having = np.flatnonzero(earliest & (alpha < low)), np.flatnonzero(earliest & (alpha > high))
    if not len(without) or not len(having):
        return Generated(name, tuple(chosen), gamma or 0.0, np.empty((0, 2), np.int64), np.empty(0, np.float32))
    step = float(alpha[having].mean()) if gamma is None else gamma
    phi = factors.phi[:, columns] @ own[having].mean(0)  # [d]
    phi = phi / np.linalg.norm(phi)

    forward = _nearest(space, without, step * phi, having)  # [L] positions in `having`
    backward = _nearest(space, having, -step * phi, without)  # [H] positions in `without`
    mutual = np.flatnonzero(backward[forward] == np.arange(len(without)))
    pairs = np.column_stack([without[mutual], having[forward[mutual]]])
    cosine = _alike(factors, pairs, columns)
    order = np.lexsort((pairs[:, 1], -cosine))
    order = order[cosine[order] > alike][:most]
    return Generated(name, tuple(chosen), step, pairs[order], cosine[order])


def _nearest(
    space: Space, rows: NDArray[np.int64], move: NDArray[np.floating], among: NDArray[np.int64]
) -> NDArray[np.int64]:
    """For each of `rows`, moved, the position of the nearest (by cosine) of `among`."""
    from word_factors.analogy import best

    found = np.empty(len(rows), np.int64)
    candidates, offset = space.unit[space.tensor(among)], space.tensor(move)
    for start in range(0, len(rows), space.batch):
        part = slice(start, start + space.batch)
        found[part] = best((space.unit[space.tensor(rows[part])] + offset) @ candidates.T)
    return found


def _alike(factors: Factors, pairs: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float32]:
    """[P] cosine of the codes of each pair without some factors; 0 where nothing else is active."""
    keep = np.setdiff1d(np.arange(len(factors)), columns)
    left, right = (factors.codes[pairs[:, side]][:, keep].toarray() for side in range(2))
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return ((left * right).sum(1) / np.where(norms == 0, 1, norms)).astype(np.float32)


def generated_task(found: Sequence[Generated], embedding: Embedding) -> AnalogyTask:
    """The sections of at least two pairs, as a task that `to_file` writes.

    Raises:
        UserError: no section has two pairs.
    """
    sections = tuple(part.section(embedding.words) for part in found if len(part.pairs) > 1)
    if not sections:
        names = ", ".join(part.name for part in found)
        hint = "Lower `high` or `alike`, or raise `low`; or choose a factor that tells alike words apart."
        raise UserError("generated analogies", names, "a factor with at least two mutual pairs", hint)
    return AnalogyTask(sections)


def score(task: IndexedTask, space: Space, seed: int = 0, *, quiet: bool = True) -> tuple[GeneratedScore, ...]:
    """3CosAdd on each section, and the control: the right sides shuffled so that no pair keeps its own.

    The control shows what nearness to words with the factor gives by itself. A section needs two pairs.
    """
    from word_factors.analogy import answer, three_cos_add

    found = []
    for section in task.sections:
        # One cycle through the pairs in a random order: no pair keeps its right side.
        order = np.random.default_rng(seed).permutation(len(section.pairs))
        source = np.empty_like(order)
        source[order] = np.roll(order, 1)
        pairs = np.column_stack([section.pairs[:, 0], section.pairs[source, 1]])
        shuffled = replace(section, pairs=pairs, answers=tuple(section.answers[i] for i in source))
        right = [
            part.right(answer(space, three_cos_add, part.abc(), quiet=quiet), task.forms).mean()
            for part in (section, shuffled)
        ]
        found.append(GeneratedScore(section.name, len(section.questions), float(right[0]), float(right[1])))
    return tuple(found)
