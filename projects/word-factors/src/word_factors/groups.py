"""Groups of factors that are active in the same words: spectral clustering of co-activation.

C_ij = sum_w p_w alpha_iw alpha_jw, p ~ sqrt(frequency), normalised by its diagonal; each factor keeps its k strongest
edges; the c lowest eigenvectors of I - D^-1/2 W D^-1/2 place the factors, and k-means gathers them. The published
setting is K = 1000, k = 20, c = 175; how the authors normalised C is not known. Imports no torch.

Isolated factors, those that share no word with any other (never active ones among them), say nothing of where they
belong. They take no part in the clustering: each is a group of its own, after the c groups.

Dimensions: V words, K factors, c groups, R runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from shared.config import UserError, check_range

NEIGHBOURS = 20  # k, as published
PROPORTION = 0.175  # c / K, as published


@dataclass(frozen=True)
class Groups:
    """A partition of factors.

    Attributes:
        labels: [K] group of each factor: first the c groups of the clustering, larger ones first, then the isolated
            factors, each by itself.
        clustered: c, groups that the clustering made.
        isolated: factors without any edge, in rising order.
    """

    labels: NDArray[np.int64]
    clustered: int
    isolated: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of groups, the isolated factors' included."""
        return self.clustered + len(self.isolated)

    def members(self, group: int) -> NDArray[np.int64]:
        """Factors of a group, rising."""
        return np.flatnonzero(self.labels == group)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """[groups] number of factors in each."""
        return np.bincount(self.labels, minlength=len(self))


def coactivation(codes: sparse.csr_array, p: ArrayLike, normalised: bool = True) -> NDArray[np.float64]:
    """Co-activation of factors over the vocabulary.

    Args:
        codes: [V, K], alpha >= 0.
        p: [V] weight of each word; scaled to sum 1.
        normalised: C_ij / sqrt(C_ii C_jj) with a zero diagonal, in [0, 1]; otherwise C itself.

    Returns: [K, K], symmetric. A factor that is never active has zeros.

    Raises:
        UserError: not one weight a word, or weights that are negative or all zero.
    """
    weight = np.asarray(p, np.float64)
    exact: Any = codes.astype(np.float64)
    if weight.shape != (exact.shape[0],):
        raise UserError("p", f"{weight.size} weights", f"one for each of the {exact.shape[0]} words of the codes")
    if not (weight >= 0).all() or not weight.sum() > 0:
        raise UserError("p", "negative, all zero or not a number", "weights >= 0, one at least above 0")
    rooted = sparse.csr_array(sparse.diags_array(np.sqrt(weight / weight.sum())) @ exact)
    together = np.asarray((rooted.T @ rooted).todense(), np.float64)
    together = (together + together.T) / 2
    if not normalised:
        return together
    scale = np.sqrt(together.diagonal())
    scale = np.where(scale == 0, 1, scale)
    similarity = np.minimum(together / np.outer(scale, scale), 1)
    np.fill_diagonal(similarity, 0)
    return similarity


def knn_graph(similarity: NDArray[np.floating], k: int = NEIGHBOURS) -> sparse.csr_array:
    """Each node's k largest positive similarities (ties: the lower index), made symmetric by the larger of both ways.

    A node with any positive similarity thus keeps its best edge, whoever else it is not among the best of; a node
    with none stays isolated.

    Args:
        similarity: [K, K]; the diagonal is ignored.

    Returns: [K, K] symmetric weights > 0, zero diagonal.

    Raises:
        UserError: k < 1.
    """
    check_range("neighbours", k, 1)
    nodes = len(similarity)
    weights = np.array(similarity, np.float64)
    np.fill_diagonal(weights, -np.inf)
    nearest = np.argsort(-weights, axis=1, kind="stable")[:, : min(k, nodes - 1)]  # [K, k]
    kept = np.zeros((nodes, nodes))
    np.put_along_axis(kept, nearest, np.maximum(np.take_along_axis(weights, nearest, axis=1), 0), axis=1)
    return sparse.csr_array(np.maximum(kept, kept.T))


def factor_groups(
    codes: sparse.csr_array,
    p: ArrayLike,
    k: int = NEIGHBOURS,
    c: int | None = None,
    seed: int = 0,
    restarts: int = 10,
) -> Groups:
    """Spectral groups of the factors of one dictionary.

    Args:
        codes: [V, K]. p: [V], see `coactivation`.
        k: edges kept a factor.
        c: groups; default 0.175 K, the published proportion. Where fewer factors than that have an edge, each of them
            is a group.
        seed, restarts: of k-means.

    Raises:
        UserError: c < 1 or c > K.
    """
    similarity = coactivation(codes, p)
    return spectral_groups(knn_graph(similarity, k), _wanted(c, len(similarity)), seed, restarts)


def spectral_groups(graph: sparse.csr_array, c: int, seed: int = 0, restarts: int = 10) -> Groups:
    """Normalised spectral clustering of a symmetric graph [K, K] with weights >= 0 (Ng, Jordan and Weiss, 2001).

    Raises:
        UserError: c < 1 or c > K.
    """
    from scipy.linalg import eigh
    from sklearn.cluster import KMeans

    degree = np.asarray(graph.sum(axis=1), np.float64).ravel()
    check_range("groups", c, 1, len(degree))
    joined = np.flatnonzero(degree > 0)
    c = min(c, len(joined))
    if not c:
        return _partition(np.empty(0, np.int64), joined, len(degree))
    inner: Any = graph[joined][:, joined]
    root = 1 / np.sqrt(degree[joined])
    laplacian = np.eye(len(joined)) - root[:, None] * inner.toarray() * root
    _, vectors = eigh(laplacian, subset_by_index=[0, c - 1])
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    places = vectors / np.where(norms == 0, 1, norms)
    # Its type stub knows n_init as text only.
    found = KMeans(c, n_init=restarts, random_state=seed).fit_predict(places)  # pyright: ignore[reportArgumentType]
    return _partition(np.asarray(found, np.int64), joined, len(degree))


def hierarchical_groups(codes: sparse.csr_array, p: ArrayLike, c: int | None = None) -> Groups:
    """Groups by average linkage on 1 - normalised co-activation, cut into c. Arguments and errors as
    `factor_groups`."""
    from scipy.cluster.hierarchy import cut_tree, linkage
    from scipy.spatial.distance import squareform

    similarity = coactivation(codes, p)
    wanted = _wanted(c, len(similarity))
    joined = np.flatnonzero((similarity > 0).any(axis=1))
    wanted = min(wanted, len(joined))
    if len(joined) < 2:  # an edge has two ends: fewer than two joined factors are none
        return _partition(np.empty(0, np.int64), joined, len(similarity))
    distance = np.clip(1 - similarity[np.ix_(joined, joined)], 0, None)
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), method="average")
    return _partition(cut_tree(tree, n_clusters=wanted).ravel().astype(np.int64), joined, len(similarity))


def _wanted(c: int | None, factors: int) -> int:
    """c, checked; by default the published proportion of the factors."""
    check_range("groups", c, 1, factors)
    return max(1, round(PROPORTION * factors)) if c is None else c


def _partition(found: NDArray[np.int64], joined: NDArray[np.int64], factors: int) -> Groups:
    """Groups from the clusters `found` of the factors `joined`: larger first (ties: the one with the lowest factor),
    then one for each factor that is not joined."""
    clusters, first, sizes = np.unique(found, return_index=True, return_counts=True)
    order = np.lexsort((first, -sizes))
    renumbered = np.empty(int(clusters.max(initial=-1)) + 1, np.int64)
    renumbered[clusters[order]] = np.arange(len(clusters))
    isolated = np.setdiff1d(np.arange(factors), joined)
    labels = np.empty(factors, np.int64)
    labels[joined] = renumbered[found]
    labels[isolated] = len(clusters) + np.arange(len(isolated))
    return Groups(labels, len(clusters), isolated)


# -- several runs ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CrossRunGroups:
    """Factors of several runs, gathered by direction.

    Attributes:
        labels: for each run [K_r], the group of each of its factors.
        groups: the partition of all factors, runs one after the other.
        runs: [groups] number of runs with a factor in each group.
        cohesion: [groups] mean cosine between factors of different runs in the group; NaN with one run only.
    """

    labels: tuple[NDArray[np.int64], ...]
    groups: Groups
    runs: NDArray[np.int64]
    cohesion: NDArray[np.float64]

    @property
    def robust(self) -> NDArray[np.int64]:
        """Groups with a factor of every run."""
        return np.flatnonzero(self.runs == len(self.labels))


def cross_run_groups(
    phis: Sequence[ArrayLike],
    c: int | None = None,
    k: int | None = None,
    threshold: float = 0.5,
    seed: int = 0,
    restarts: int = 10,
) -> CrossRunGroups:
    """Groups over the dictionaries of R runs of one vector space: the nearest-neighbour graph of cosines between all
    factors, clustered as `spectral_groups`. A group with factors of all runs is robust.

    Args:
        phis: [d, K_r] each.
        c: groups of the factors that have an edge. Default: the mean K, so that a group is about one factor as R runs
            have it. With far fewer, groups are wide and nearly all are found in every run, which says little.
        k: edges kept a factor. Default: R, a little more than the R - 1 that a factor found everywhere has.
        threshold: no edge at a smaller cosine. A factor that no other comes near is a group of its own, not robust.

    Raises:
        UserError: fewer than two runs, different dimensions, c or threshold out of range.
    """
    if len(phis) < 2:
        raise UserError("runs", len(phis), "two or more: one run says nothing of what recurs")
    columns = [np.asarray(phi, np.float64) for phi in phis]
    for number, phi in enumerate(columns):
        if phi.shape[0] != columns[0].shape[0]:
            raise UserError(
                f"dictionary {number}", f"{phi.shape[0]} dimensions", f"{columns[0].shape[0]}, as the first"
            )
    sizes = [phi.shape[1] for phi in columns]
    stacked = np.concatenate(columns, axis=1)  # [d, sum K_r]
    norms = np.linalg.norm(stacked, axis=0)
    unit = stacked / np.where(norms == 0, 1, norms)
    cosines = unit.T @ unit
    wanted = round(float(np.mean(sizes))) if c is None else c
    check_range("groups", wanted, 1, len(cosines))
    check_range("threshold", threshold, 0, 1)
    graph = knn_graph(np.where(cosines >= threshold, cosines, 0), len(sizes) if k is None else k)
    groups = spectral_groups(graph, wanted, seed, restarts)
    run = np.repeat(np.arange(len(sizes)), sizes)
    present = np.zeros((len(groups), len(sizes)), bool)
    present[groups.labels, run] = True
    cohesion = np.full(len(groups), np.nan)
    for group in range(len(groups)):
        members = groups.members(group)
        apart = run[members][:, None] != run[members]
        if apart.any():
            cohesion[group] = cosines[np.ix_(members, members)][apart].mean()
    labels = tuple(np.split(groups.labels, np.cumsum(sizes)[:-1]))
    return CrossRunGroups(labels, groups, present.sum(axis=1), cohesion)


# -- groups in words ---------------------------------------------------------------------------------------------------


def group_activation(
    codes: sparse.csr_array, labels: NDArray[np.integer], phi: NDArray[np.floating] | None = None
) -> sparse.csr_array:
    """What each word has of each group: sum of alpha_j over its factors, or with `phi` [d, K] the norm of
    sum alpha_j phi_j, which is smaller where the factors of a group point apart.

    Returns: [V, groups] float32.

    Raises:
        UserError: not one label a factor, or a dictionary of another number of factors.
    """
    labels = np.asarray(labels, np.int64)
    _, factors = cast(tuple[int, int], codes.shape)
    if labels.shape != (factors,) or (labels < 0).any():
        raise UserError("labels", f"{labels.size} labels", f"one from 0 on for each of {factors} factors")
    groups = int(labels.max()) + 1
    if phi is None:
        member = sparse.csr_array((np.ones(factors, np.float32), (np.arange(factors), labels)), shape=(factors, groups))
        return sparse.csr_array(codes @ member)
    if phi.shape[1] != factors:
        raise UserError("phi", f"{phi.shape[1]} factors", f"the {factors} of the codes")
    by_factor: Any = sparse.csc_array(codes)
    columns = []
    for group in range(groups):
        members = np.flatnonzero(labels == group)
        own = by_factor[:, members]
        directions = np.asarray(phi[:, members], np.float64)
        square = np.asarray(own.multiply(own @ (directions.T @ directions)).sum(axis=1)).ravel()
        columns.append(sparse.csc_array(np.sqrt(np.maximum(square, 0)).astype(np.float32)[:, None]))
    return sparse.csr_array(sparse.hstack(columns))
