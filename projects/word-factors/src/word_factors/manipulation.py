"""Word factors within analogies: what differs between a and b, and vectors moved along the factors that matter.

The recipe of the paper is not public; this one is a reconstruction. The difference of two codes, Δα = α_b - α_a, says
which factors a pair differs in. Factors that differ alike in all pairs of a section are its key factors, and moving the
3CosAdd query along them is `boost`.

Scale: questions are asked on unit vectors. Where the dictionary was learned on vectors of other norms, the code of x is
divided by the norm of x: by the scaling identity of the lasso that is the code of the unit vector at λ / norm.

Dimensions: V words, d coordinates, K factors, c groups, P pairs, n questions of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from shared.config import UserError
from word_factors.groups import group_activation

if TYPE_CHECKING:
    from scipy.sparse import csr_array
    from torch import Tensor

    from word_factors.analogy import Batch, Rows, Rule, Space

FLOOR = 0.02  # added to the spread of Δα: a factor of tiny but even differences is no key factor
THRESHOLD = 2.0  # a key factor has |t| above it
MOST_FACTORS, MOST_GROUPS = 5, 2


class Factors:
    """A dictionary with the codes of a vocabulary, and groups of factors where there are any.

    Args:
        phi: [d, K] unit columns.
        codes: [V, K] alpha >= 0.
        labels: [K] group of each factor, 0 .. c-1.
        norms: [V] of the vectors coded; the codes are divided by them (see the head of the module). Default: unit
            vectors.

    Attributes:
        group_codes: [V, c] sums of alpha over each group.

    Raises:
        UserError: codes, dictionary, groups or vocabulary of different sizes.
    """

    def __init__(
        self,
        phi: NDArray[np.floating],
        codes: csr_array,
        labels: NDArray[np.integer] | None = None,
        norms: NDArray[np.floating] | None = None,
    ) -> None:
        from scipy.sparse import csr_array, diags_array

        self.phi = np.asarray(phi, np.float32)
        self.codes = csr_array(codes, dtype=np.float32)
        self.words, coded = cast(tuple[int, int], self.codes.shape)  # scipy's own type allows None
        if coded != self.phi.shape[1]:
            raise UserError("codes", f"{coded} factors", f"the {self.phi.shape[1]} of the dictionary")
        if norms is not None:
            if len(norms) != self.words:
                raise UserError("codes", f"{self.words} words", f"the {len(norms)} of the embedding")
            self.codes = csr_array(diags_array(1 / np.asarray(norms, np.float32)) @ self.codes)
        self.labels = None if labels is None else np.asarray(labels, np.int64)
        self.group_codes: csr_array | None = None
        if self.labels is not None:
            if len(self.labels) != coded:
                raise UserError("groups", f"{len(self.labels)} labels", f"one for each of {coded} factors")
            self.group_codes = group_activation(self.codes, self.labels)

    def __len__(self) -> int:
        """K."""
        return int(self.phi.shape[1])

    def check(self, space: Space) -> None:
        """Raise `UserError` unless the codes are of this vocabulary and the dictionary of its dimension."""
        words, dim = space.unit.shape
        if self.words != words or self.phi.shape[0] != dim:
            ours = f"{self.words:,} words, {self.phi.shape[0]} coordinates"
            raise UserError("dictionary", ours, f"one of this embedding: {words:,} words, {dim} coordinates")


# -- reading an analogy ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contrast:
    """What differs between two words, largest first: (factor or group, Δα); entries of 0 are left out."""

    factors: tuple[tuple[int, float], ...]
    groups: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Explanation:
    """An analogy in factors.

    Attributes:
        ab, cd: α_b - α_a and α_d - α_c.
        shared: factors in which both differ the same way, with the smaller difference: what the pairs have in common.
    """

    ab: Contrast
    cd: Contrast
    shared: tuple[tuple[int, float], ...]


def explain(
    codes: csr_array, a: int, b: int, c: int, d: int, labels: NDArray[np.integer] | None = None, most: int = 8
) -> Explanation:
    """Δα of both pairs of an analogy (rows of codes [V, K]), the `most` largest entries of each."""

    def largest(values: NDArray[Any]) -> tuple[tuple[int, float], ...]:
        order = np.argsort(-np.abs(values), kind="stable")[:most]
        return tuple((int(j), float(values[j])) for j in order if values[j] != 0)

    deltas = differences(codes, np.array([[a, b], [c, d]]))  # [2, K]
    grouped = None if labels is None else differences(group_activation(codes, labels), np.array([[a, b], [c, d]]))
    ab, cd = (Contrast(largest(deltas[i]), () if grouped is None else largest(grouped[i])) for i in range(2))
    smaller = np.where(deltas[0] * deltas[1] > 0, np.sign(deltas[0]) * np.abs(deltas).min(0), 0)
    return Explanation(ab, cd, largest(smaller))


def differences(codes: csr_array, pairs: Rows) -> NDArray[np.float64]:
    """[P, K] α_b - α_a of pairs [P, 2]."""
    return (codes[pairs[:, 1]] - codes[pairs[:, 0]]).toarray().astype(np.float64)


@dataclass(frozen=True)
class Profile:
    """Δα over the pairs of a section.

    Attributes:
        mean: [K] mean Δα.
        t: [K] √P mean / (standard deviation + 0.02): a t-statistic with a floor, so that it is not one for testing.
    """

    mean: NDArray[np.float64]
    t: NDArray[np.float64]


def section_profile(codes: csr_array, pairs: Rows) -> Profile:
    """Mean and t of Δα over pairs [P, 2], for codes of factors [V, K] or of groups [V, c]."""
    deltas = differences(codes, pairs)
    mean = deltas.mean(0)
    return Profile(mean, np.sqrt(len(pairs)) * mean / (deltas.std(0) + FLOOR))


# -- key factors -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KeyFactors:
    """The factors that a section moves along.

    Attributes:
        targets: factors that b has more of than a: at most five, t > 2, largest first.
        sources: factors that a has more of: likewise, t < -2.
        groups: groups that b has more of: at most two, t > 2.
        mean: [K] mean Δα over the training pairs.
    """

    targets: tuple[int, ...]
    sources: tuple[int, ...]
    groups: tuple[int, ...]
    mean: NDArray[np.float64]

    def both(self) -> NDArray[np.int64]:
        """Targets and sources."""
        return np.array(self.targets + self.sources, np.int64)


def key_factors(factors: Factors, pairs: Rows) -> KeyFactors:
    """Choose the key factors of a section on its training pairs [P, 2]."""
    profile = section_profile(factors.codes, pairs)
    groups: tuple[int, ...] = ()
    if factors.group_codes is not None:
        groups = _above(section_profile(factors.group_codes, pairs).t, MOST_GROUPS)
    return KeyFactors(_above(profile.t, MOST_FACTORS), _above(-profile.t, MOST_FACTORS), groups, profile.mean)


def _above(t: NDArray[np.float64], most: int) -> tuple[int, ...]:
    order = np.argsort(-t, kind="stable")[:most]
    return tuple(int(j) for j in order if t[j] > THRESHOLD)


def named_factors(factors: Factors, targets: Sequence[int], groups: Sequence[int] = ()) -> KeyFactors:
    """Key factors that a user names. Nothing is fitted: a factor's mean is its strength in the words that have it.

    Raises:
        UserError: a factor or a group that is not there.
    """
    count = 0 if factors.labels is None else int(factors.labels.max()) + 1
    for what, given, size in (("factor", targets, len(factors)), ("group", groups, count)):
        for j in given:
            if not 0 <= j < size:
                raise UserError(what, j, f"0 .. {size - 1}" if size else "none: the factors were not grouped")
    uses = np.maximum(np.bincount(factors.codes.indices[factors.codes.data > 0], minlength=len(factors)), 1)
    strength = np.asarray(factors.codes.sum(axis=0, dtype=np.float64)).ravel() / uses
    return KeyFactors(tuple(targets), (), tuple(groups), strength)


def direction(
    factors: Factors, chosen: NDArray[np.integer] | Sequence[int], mean: NDArray[np.float64]
) -> NDArray[np.float64]:
    """[d] Σ_j μ_j φ_j over the chosen factors; 0 where there is none."""
    rows = np.asarray(chosen, np.int64)
    return factors.phi[:, rows].astype(np.float64) @ mean[rows]


def group_direction(factors: Factors, key: KeyFactors) -> NDArray[np.float64]:
    """[d] Σ_j μ_j φ_j over all factors of the key groups."""
    members = np.flatnonzero(np.isin(factors.labels, key.groups)) if factors.labels is not None else ()
    return direction(factors, members, key.mean)


def random_direction(factors: Factors, key: KeyFactors, seed: int | Sequence[int]) -> NDArray[np.float64]:
    """[d] the direction of the targets with other factors in their places, of the same norm: the control of `boost`.

    Factors are drawn from an order that depends on what they are, not on where they stand, so that the control does not
    change when a dictionary's columns are permuted.
    """
    targets = np.array(key.targets, np.int64)
    norm = np.linalg.norm(direction(factors, targets, key.mean))
    others = np.lexsort(factors.phi[:2])
    others = others[~np.isin(others, targets)]
    if norm == 0 or len(others) < len(targets):
        return np.zeros(len(factors.phi))
    drawn = np.random.default_rng(seed).choice(others, len(targets), replace=False)
    found = factors.phi[:, drawn].astype(np.float64) @ key.mean[targets]
    return found * (norm / np.linalg.norm(found))


# -- rules -------------------------------------------------------------------------------------------------------------


def boost(space: Space, offset: NDArray[np.floating], gamma: float) -> Rule:
    """q = (b - a + c) + γ offset, for a direction [d] in the space of the vectors. With γ = 0 it is 3CosAdd."""
    from word_factors.analogy import three_cos_add

    line = gamma * space.line(offset)  # [V]
    return lambda space, batch: three_cos_add(space, batch).add_(line)


def mask(space: Space, factors: Factors, key: KeyFactors) -> Rule:
    """q = c + Φ (m ⊙ (α_b - α_a)), m = the key factors: only they are carried over."""
    return _edit(space, factors, key, 0)


def set_factors(space: Space, factors: Factors, key: KeyFactors) -> Rule:
    """q = c - Φ_G α_G(c) + Φ_G α_G(b), G = the key factors: c takes b's values in them."""
    return _edit(space, factors, key, 2)


def _edit(space: Space, factors: Factors, key: KeyFactors, less: int) -> Rule:
    """q = c + Φ_G (α_G(b) - α_G(word)), the word being a (0) or c (2)."""
    chosen = key.both()
    lines = space.cosines(space.tensor(factors.phi[:, chosen].T))  # [G, V]: a factor adds its line times its change

    def scores(space: Space, batch: Batch) -> Tensor:
        rows = batch.abc.cpu().numpy()
        delta = (factors.codes[rows[:, 1]] - factors.codes[rows[:, less]])[:, chosen].toarray()  # [n, G]
        return batch.cosines(2).addmm_(space.tensor(delta), lines)

    return scores


def code_cosine(factors: Factors) -> Rule:
    """3CosAdd on unit codes instead of vectors: cos(α_v, α_b - α_a + α_c). Words without a factor score 0."""
    from scipy.sparse import csr_array, diags_array

    norms = np.sqrt(np.asarray((factors.codes * factors.codes).sum(axis=1)).ravel())
    unit = csr_array(diags_array(1 / np.where(norms == 0, 1, norms).astype(np.float32)) @ factors.codes)

    def scores(space: Space, batch: Batch) -> Tensor:
        rows = batch.abc.cpu().numpy()
        query = (unit[rows[:, 1]] - unit[rows[:, 0]] + unit[rows[:, 2]]).toarray()  # [n, K]
        return space.tensor((unit @ query.T).T)

    return scores
