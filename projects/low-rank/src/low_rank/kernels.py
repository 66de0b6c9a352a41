"""Gram matrices of what networks compute: their rank layer by layer, and the hierarchy of samples they show.

    ranks = layer_ranks(model, x)                    # {"act1": rho, ...}
    shown = ordered_gram(features, labels)           # samples re-ordered so that clusters are blocks
    shown.cophenetic, shown.contrast                 # how hierarchical, and how well classes stand apart

Samples are clustered by average linkage of their cosine distances, and the leaves of the tree ordered so that
neighbours are as similar as the tree allows (Bar-Joseph et al., 2001).

Dimension letters: N samples, D features.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform
from torch import Tensor, nn

from low_rank.models import collect_features
from low_rank.rank import gram_effective_rank
from shared.config import UserError

CONSTANT = 1e-6  # features that vary by less than this share of their size are taken to be constant


@dataclass(frozen=True)
class Contrast:
    """Mean cosines of pairs of different samples.

    Attributes:
        within: of pairs of one class. between: of pairs of two.
    """

    within: float
    between: float

    @property
    def difference(self) -> float:
        """within - between: 0 where the kernel does not see the classes."""
        return self.within - self.between


@dataclass(frozen=True)
class Hierarchy:
    """An average-linkage tree.

    Attributes:
        order: [N] samples in the order of the leaves. linkage: [N - 1, 4] as SciPy has it. cophenetic: correlation of
            the cosine distances with the heights at which pairs meet in the tree; nan where all distances are equal.
    """

    order: Tensor
    linkage: NDArray[np.float64]
    cophenetic: float


@dataclass(frozen=True)
class OrderedGram:
    """A Gram matrix in the order of its tree.

    Attributes:
        order: [N] samples as they stand. gram: [N, N], rows and columns in that order. labels: [N] in that order, or
            None. cophenetic: as in `Hierarchy`. contrast: of the classes, or None without labels.
    """

    order: Tensor
    gram: Tensor
    labels: Tensor | None
    cophenetic: float
    contrast: Contrast | None


def _checked(features: Tensor) -> Tensor:
    if features.dim() != 2 or not features.numel():
        raise UserError("features", f"shape {list(features.shape)}", "[N, D] with N, D >= 1")
    if not bool(features.isfinite().all()):
        raise UserError("features", "entries that are not finite", "finite numbers")
    return features.detach().double()


def is_constant(features: Tensor) -> bool:
    """Whether all samples have the same features [N, D], to a millionth of their size."""
    features = features.detach().double()
    spread = (features - features.mean(dim=0)).abs().amax()
    return bool(spread <= CONSTANT * features.abs().amax())


def compact(features: Tensor) -> Tensor:
    """Features of the same Gram matrix with at most N columns: [N, D] to [N, min(N, D)], in double precision.

    Rotated, not multiplied out: with F^T = Q R it is R^T, and no digit is lost. Rows keep their lengths, and the Gram
    matrix is the same after subtracting the mean too.

    Raises:
        UserError: as `gram`.
    """
    features = _checked(features)
    if features.shape[1] <= features.shape[0]:
        return features
    return torch.linalg.qr(features.T, mode="r").R.T


def gram(features: Tensor, center: bool = False, normalize: bool = False) -> Tensor:
    """K = F F^T in double precision: [N, D] to [N, N].

    Args:
        center: subtract the mean feature first. normalize: rows of length 1 after that, so that K holds cosines; rows
            of zeros stay.

    Raises:
        UserError: features that are no [N, D] or not finite. Warns of constant features.
    """
    features = _checked(features)
    if is_constant(features):
        warnings.warn("all samples have the same features: their Gram matrix says nothing.", stacklevel=2)
    return _gram(features, center, normalize)


def _gram(features: Tensor, center: bool, normalize: bool) -> Tensor:
    if center:
        features = features - features.mean(dim=0)
    if normalize:
        length = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
        features = features / torch.where(length == 0, 1.0, length)
    return features @ features.T


def cosines(gram: Tensor) -> Tensor:
    """K_ij / sqrt(K_ii K_jj) in [-1, 1], and 0 for samples of length 0: [N, N] to [N, N]."""
    length = gram.diagonal().clamp_min(0).sqrt()
    scale = torch.where(length == 0, 0.0, 1 / torch.where(length == 0, 1.0, length))
    return (gram * scale[:, None] * scale[None, :]).clamp(-1, 1)


def cluster(gram: Tensor) -> Hierarchy:
    """The average-linkage tree of cosine distances 1 - cos, its leaves optimally ordered.

    The mirror image of an order is as good: the end that is more like all samples comes first, so that the order
    follows the samples and not their numbers. Takes about N^3: half a second for 512 samples.

    Args:
        gram: [N, N].

    Raises:
        UserError: fewer than two samples, or no square matrix.
    """
    if gram.dim() != 2 or gram.shape[0] != gram.shape[1] or len(gram) < 2:
        raise UserError("gram", f"shape {list(gram.shape)}", "[N, N] with N >= 2")
    similar = cosines(gram.detach().double().cpu()).numpy()
    distances = 1 - (similar + similar.T) / 2
    np.fill_diagonal(distances, 0)
    condensed = squareform(distances, checks=False)
    linkage = hierarchy.linkage(condensed, "average", optimal_ordering=True)
    heights = hierarchy.cophenet(linkage)
    spreads = np.std(condensed), np.std(heights)
    correlation = math.nan if min(spreads) <= 1e-12 else float(np.corrcoef(condensed, heights)[0, 1])
    order = hierarchy.leaves_list(linkage)
    if similar[order[-1]].mean() > similar[order[0]].mean():
        order = order[::-1]
    return Hierarchy(torch.from_numpy(order.astype(np.int64)), linkage, correlation)


def class_contrast(gram: Tensor, labels: Tensor) -> Contrast:
    """Mean cosine of pairs within a class and between classes.

    Args:
        gram: [N, N], of any lengths: cosines are taken here. labels: [N].

    Raises:
        UserError: shapes that differ; no two samples of one class, or all of one.
    """
    if labels.shape != gram.shape[:1]:
        raise UserError("labels", f"shape {list(labels.shape)}", f"[{len(gram)}], one for every sample")
    same = labels[:, None] == labels[None, :]
    other = ~same
    same = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    if not bool(same.any()) or not bool(other.any()):
        raise UserError("labels", f"{len(labels.unique())} classes", "two or more, one of them with two samples")
    similar = cosines(gram.double())
    return Contrast(float(similar[same.to(gram.device)].mean()), float(similar[other.to(gram.device)].mean()))


def ordered_gram(
    features: Tensor, labels: Tensor | None = None, *, center: bool = False, normalize: bool = True
) -> OrderedGram:
    """The Gram matrix of features with samples in the order of their tree.

    Args:
        features: [N, D]. labels: [N] classes; they do not touch the order. center, normalize: of the matrix, as in
            `gram`; the tree and the contrast go by its cosines.

    Raises:
        UserError: as `gram`, `cluster` and `class_contrast`. Warns of constant features.
    """
    features = _checked(features)
    if is_constant(features):
        warnings.warn("all samples have the same features: their order says nothing.", stacklevel=2)
    matrix = _gram(features, center, normalize)
    tree = cluster(matrix)
    contrast = None if labels is None else class_contrast(matrix, labels)
    at = tree.order.to(matrix.device)
    shown = matrix[at][:, at]
    named = None if labels is None else labels[tree.order.to(labels.device)]
    return OrderedGram(tree.order, shown, named, tree.cophenetic, contrast)


def feature_rank(features: Tensor, *, center: bool = False, normalize: bool = False) -> float:
    """rho of the Gram matrix of features [N, D], in nats; exactly 0 for constant ones.

    As `rank.gram_effective_rank`, but about D / N times less work where D > N, and safe where centring leaves nothing
    but rounding errors.

    Raises:
        UserError: as `gram`.
    """
    features = compact(features)
    return 0.0 if is_constant(features) else float(gram_effective_rank(features, center=center, normalize=normalize))


def layer_ranks(
    model: nn.Module,
    x: Tensor,
    layers: Iterable[str] | None = None,
    *,
    center: bool = False,
    normalize: bool = False,
    batch: int | None = None,
) -> dict[str, float]:
    """rho of the Gram matrix of every hidden layer on inputs [N, ...], in nats, first layer first.

    Args:
        layers, batch: as in `models.collect_features`. center, normalize: as in `gram`.

    Raises:
        UserError: as `models.collect_features`. Warns of layers with constant features, whose rank is 0.
    """
    found = collect_features(model, x, layers, batch=batch)
    for path, features in found.items():
        if is_constant(features):
            warnings.warn(f"layer {path!r} has the same features for all samples: its rank is 0.", stacklevel=2)
    return {path: feature_rank(features, center=center, normalize=normalize) for path, features in found.items()}
