"""How well factors are found again: in another run, in another embedding, and by chance.

A factor that another seed does not find again says more about the seed than about the words: its name is to be read
beside its reliability. Within one vector space dictionaries are compared, C = Phi^T Psi; across spaces, activations
over shared words. Imports no torch.

Dimensions: d coordinates, K and L factors of two dictionaries, V words, R runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from shared.config import UserError, check_range
from word_factors.embedding import Embedding


@dataclass(frozen=True)
class Match:
    """Factors of one dictionary matched with those of another.

    Attributes:
        best: [K] cosine of each factor of the first with its nearest of the second; several may share one.
        nearest: [K] which one that is.
        rows, columns: [min(K, L)] the one-to-one assignment of largest total cosine, by rising row.
        assigned: [min(K, L)] cosines of the assigned pairs.
    """

    best: NDArray[np.float64]
    nearest: NDArray[np.int64]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    assigned: NDArray[np.float64]

    @property
    def mean(self) -> float:
        """Mean best cosine."""
        return float(self.best.mean())

    @property
    def assigned_mean(self) -> float:
        """Mean cosine of the one-to-one assignment; at most `mean` where K <= L."""
        return float(self.assigned.mean())

    def share(self, threshold: float) -> float:
        """Share of factors whose best cosine is above `threshold`."""
        return float((self.best > threshold).mean())

    def quantiles(self, levels: Sequence[float] = (0.1, 0.25, 0.5, 0.75, 0.9)) -> dict[float, float]:
        """Quantiles of the best cosines."""
        return dict(zip(levels, np.quantile(self.best, levels).tolist(), strict=True))

    def to_json(self) -> dict[str, Any]:
        """What is reported: means, quantiles, shares above 0.6, 0.8 and 0.9."""
        return {
            "mean": self.mean,
            "assigned": self.assigned_mean,
            "quantiles": {f"{level:g}": value for level, value in self.quantiles().items()},
            "shares": {f"{threshold:g}": self.share(threshold) for threshold in (0.6, 0.8, 0.9)},
        }


def match_factors(phi: ArrayLike, psi: ArrayLike) -> Match:
    """Match the columns of two dictionaries of one vector space by cosine.

    Args:
        phi: [d, K]. psi: [d, L]. Columns are normalised; a zero column matches nothing (cosine 0).

    Raises:
        UserError: dictionaries of different dimension (compare activations instead: `match_profiles`).
    """
    one, other = np.asarray(phi, np.float64), np.asarray(psi, np.float64)
    if one.shape[0] != other.shape[0]:
        hint = "Dictionaries of different spaces are compared by their activations on shared words."
        raise UserError("dictionary", f"{other.shape[0]} dimensions", f"{one.shape[0]}, as the first has", hint)
    return _match(_unit_columns(one).T @ _unit_columns(other))


def match_profiles(codes: sparse.csr_array, others: sparse.csr_array) -> Match:
    """Match factors by what words they are active in: cosine between columns of the codes of the same words.

    Args:
        codes: [V, K]. others: [V, L] in the same order of words; see `shared_rows`. A factor active in none of them
            matches nothing (cosine 0).

    Raises:
        UserError: codes of different numbers of words.
    """
    one, other = _unit_profiles(codes), _unit_profiles(others)
    if one.shape[0] != other.shape[0]:
        raise UserError("codes", f"{other.shape[0]} words", f"the same {one.shape[0]} words in the same order")
    return _match((one.T @ other).toarray())


def shared_rows(
    one: Embedding, other: Embedding, fold_case: bool = True
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the words that two embeddings have in common, in the first one's order.

    With `fold_case` spellings that differ in case are one word, and its most frequent spelling on either side stands
    for it.

    Returns: rows of the first [n], rows of the other [n].

    Raises:
        UserError: no word in common.
    """
    first = one.form_rows if fold_case else one.index
    second = other.form_rows if fold_case else other.index
    pairs = sorted((row, second[word]) for word, row in first.items() if word in second)
    if not pairs:
        raise UserError("embedding", other.name, f"one that shares words with {one.name}")
    rows = np.array(pairs, np.int64)
    return rows[:, 0], rows[:, 1]


# -- controls ----------------------------------------------------------------------------------------------------------


def random_control(d: int, k_a: int, k_b: int, seed: int = 0, draws: int = 3) -> NDArray[np.float64]:
    """Best cosines between dictionaries of independent random unit vectors: the level that chance reaches.

    Args:
        d: dimension. k_a, k_b: factors of either dictionary. draws: pairs of dictionaries.

    Returns: [draws * k_a] best cosines.
    """
    for field, value in (("d", d), ("k_a", k_a), ("k_b", k_b), ("draws", draws)):
        check_range(field, value, 1)
    stream = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        one, other = (_unit_columns(stream.standard_normal((d, k))) for k in (k_a, k_b))
        found.append((one.T @ other).max(axis=1))
    return np.concatenate(found)


def shuffled_control(
    codes: sparse.csr_array, others: sparse.csr_array, seed: int = 0, draws: int = 3
) -> NDArray[np.float64]:
    """Best cosines of activation profiles when the words of one side are shuffled: the sparsity of each factor stays,
    what it is about goes.

    Returns: [draws * K] best cosines.
    """
    check_range("draws", draws, 1)
    stream = np.random.default_rng(seed)
    one, other = _unit_profiles(codes), _unit_profiles(others)
    found = []
    for _ in range(draws):
        shuffled = other[stream.permutation(int(one.shape[0]))]
        found.append((one.T @ shuffled).toarray().max(axis=1))
    return np.concatenate(found)


# -- several runs ------------------------------------------------------------------------------------------------------


def reliability(phis: Sequence[ArrayLike]) -> NDArray[np.float64]:
    """Mean best cosine of each factor of the first run over the other runs. [K].

    Raises:
        UserError: fewer than two runs, or runs of different dimension.
    """
    return np.mean(list(_best_in_others(phis)), axis=0)


def found_in(phis: Sequence[ArrayLike], threshold: float = 0.8) -> NDArray[np.int64]:
    """In how many of the R runs each factor of the first is found: best cosine above `threshold`. Its own run counts,
    so that the numbers lie in 1 .. R. [K]."""
    return times_found(list(_best_in_others(phis)), threshold)


def times_found(best: Sequence[NDArray[np.float64]], threshold: float = 0.8) -> NDArray[np.int64]:
    """In how many runs each factor is found, its own among them. [K].

    Args:
        best: [K] best cosines in each other run, of dictionaries (`match_factors`) or, where embeddings differ, of
            activations over shared words (`match_profiles`).
        threshold: cosine from which on a factor counts as found.
    """
    check_range("threshold", threshold, -1, 1)
    return np.asarray(1 + np.sum([each > threshold for each in best], axis=0), np.int64)


def stable_factors(phis: Sequence[ArrayLike], r: int, threshold: float = 0.8) -> NDArray[np.int64]:
    """Factors of the first run that are found in at least r of the R runs, their own among them (see `found_in`).

    Raises:
        UserError: r outside 1 .. R, fewer than two runs.
    """
    check_range("r", r, 1, len(phis))
    return np.asarray(np.flatnonzero(found_in(phis, threshold) >= r), np.int64)


def _best_in_others(phis: Sequence[ArrayLike]) -> Iterator[NDArray[np.float64]]:
    if len(phis) < 2:
        raise UserError("runs", len(phis), "two or more: one run says nothing of what recurs")
    for other in phis[1:]:
        yield match_factors(phis[0], other).best


# -- cosines -----------------------------------------------------------------------------------------------------------


def _match(cosines: NDArray[np.float64]) -> Match:
    """Match from all cosines [K, L]."""
    from scipy.optimize import linear_sum_assignment

    if not cosines.size:
        raise UserError("factors", "none", "at least one factor on either side")
    rows, columns = linear_sum_assignment(cosines, maximize=True)
    nearest: NDArray[np.int64] = np.asarray(cosines.argmax(axis=1), np.int64)
    best = cosines[np.arange(len(cosines)), nearest]
    return Match(best, nearest, np.asarray(rows, np.int64), np.asarray(columns, np.int64), cosines[rows, columns])


def _unit_columns(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Columns of norm 1; a zero column stays zero."""
    norms = np.linalg.norm(columns, axis=0)
    return columns / np.where(norms == 0, 1, norms)


def _unit_profiles(codes: sparse.csr_array) -> Any:
    """[V, K] sparse float64, columns of norm 1; a zero column stays zero."""
    exact: Any = codes.astype(np.float64)
    norms = np.sqrt(np.asarray(exact.multiply(exact).sum(axis=0)).ravel())
    return sparse.csr_array(exact @ sparse.diags_array(1 / np.where(norms == 0, 1, norms)))
