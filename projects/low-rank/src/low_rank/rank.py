"""Measures of rank: how evenly the singular values of a matrix share its size.

With singular values s_1 >= s_2 >= ... and p_i = s_i / sum(s), the paper's effective rank is rho = -sum p_i ln p_i, the
entropy, in nats, between 0 and ln min(m, n). Roy and Vetterli (2007) call its exponential the effective rank; here that
is an option.

Dimensions: matrices [..., m, n]; features [..., N, D] of N samples. All is computed in double precision.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from shared.config import UserError, check_range

PCA_SHARE = 0.99  # of the energy, that `pca_rank` asks for
THRESHOLD = 1e-2  # of the largest singular value, above which `threshold_rank` counts


def singular_values(matrix: Tensor) -> Tensor:
    """Singular values in double precision, largest first: [..., m, n] to [..., min(m, n)].

    Raises:
        UserError: fewer than two dimensions, no entries, or entries that are not finite.
    """
    if matrix.dim() < 2 or not matrix.numel():
        raise UserError("matrix", f"shape {list(matrix.shape)}", "[..., m, n] with m, n >= 1")
    if not bool(matrix.detach().isfinite().all()):
        raise UserError("matrix", "entries that are not finite", "finite numbers")
    return torch.linalg.svdvals(matrix.double())


def entropy(values: Tensor) -> Tensor:
    """-sum p ln p with p = values / sum(values), over the last dimension; 0 ln 0 = 0, and 0 where all values are 0.

    Args:
        values: [..., m], non-negative.
    """
    total = values.sum(dim=-1, keepdim=True)
    if bool((total.detach() == 0).any()):
        warnings.warn("a matrix of zeros: its effective rank is taken to be 0.", stacklevel=3)
    p = values / torch.where(total == 0, 1.0, total)
    # Where p is 0 the logarithm, and its gradient, are those of 1: the product is 0, as its limit.
    return -(p * torch.where(p > 0, p, 1.0).log()).sum(dim=-1)


def effective_rank(matrix: Tensor, exponentiate: bool = False) -> Tensor:
    """rho, the entropy in nats of the normalised singular values: [..., m, n] to [...]. Differentiable.

    The same for a multiple of the matrix, its transpose, and its image under orthogonal maps; a matrix of zeros has 0,
    with a warning.

    Args:
        matrix: [..., m, n]. exponentiate: exp(rho) instead, a number of dimensions (Roy and Vetterli, 2007).

    Raises:
        UserError: as `singular_values`.
    """
    rho = entropy(singular_values(matrix))
    return rho.exp() if exponentiate else rho


def gram_effective_rank(
    features: Tensor, *, center: bool = False, normalize: bool = False, exponentiate: bool = False
) -> Tensor:
    """rho of the Gram matrix K = F F^T of features: [..., N, D] to [...].

    K's eigenvalues are the squares of F's singular values, so this is not rho(F). They come from F itself: forming K
    would halve the digits.

    Args:
        features: [..., N, D]. center: subtract the mean feature first. normalize: rows of length 1, whose Gram matrix
            holds cosines (rows of zeros stay). exponentiate: as in `effective_rank`.

    Raises:
        UserError: as `singular_values`.
    """
    features = features.double()
    if center:
        features = features - features.mean(dim=-2, keepdim=True)
    if normalize:
        length = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
        features = features / torch.where(length == 0, 1.0, length)
    rho = entropy(singular_values(features).square())
    return rho.exp() if exponentiate else rho


def threshold_rank(matrix: Tensor, tau: float | None = THRESHOLD) -> Tensor:
    """Number of singular values above tau times the largest: [..., m, n] to integers [...].

    Args:
        matrix: [..., m, n]. tau: None for the numerical rank, max(m, n) times the unit roundoff of the matrix's type.
    """
    if tau is None:
        tau = max(matrix.shape[-2:]) * torch.finfo(matrix.dtype).eps
    check_range("tau", tau, 0)
    s = singular_values(matrix)
    return (s > tau * s[..., :1]).sum(dim=-1)


def stable_rank(matrix: Tensor) -> Tensor:
    """|A|_F^2 / s_1^2: [..., m, n] to [...]. Differentiable; 0 for zeros."""
    s = singular_values(matrix).square()
    return _over_largest(s.sum(dim=-1), s[..., 0])


def nuclear_ratio(matrix: Tensor) -> Tensor:
    """sum(s) / s_1: [..., m, n] to [...]. Differentiable; 0 for zeros."""
    s = singular_values(matrix)
    return _over_largest(s.sum(dim=-1), s[..., 0])


def participation_ratio(matrix: Tensor) -> Tensor:
    """(sum s^2)^2 / sum s^4: [..., m, n] to [...]; 0 for zeros."""
    s = singular_values(matrix)
    s = s / torch.where(s[..., :1] == 0, 1.0, s[..., :1])  # fourth powers of small numbers vanish
    squares = s.square()
    return _over_largest(squares.sum(dim=-1).square(), squares.square().sum(dim=-1))


def pca_rank(matrix: Tensor, share: float = PCA_SHARE) -> Tensor:
    """The least k whose k largest singular values hold `share` of the energy sum s^2: [..., m, n] to integers [...]."""
    check_range("share", share, 0, 1, open_low=True)
    s = singular_values(matrix)
    s = s / torch.where(s[..., :1] == 0, 1.0, s[..., :1])
    held = s.square().cumsum(dim=-1)
    short = held < share * held[..., -1:] * (1 - 1e-12)  # the share itself counts as held, whatever its rounding
    return (short.sum(dim=-1) + 1) * (held[..., -1] > 0)


def _over_largest(value: Tensor, largest: Tensor) -> Tensor:
    return torch.where(largest == 0, 0.0, value / torch.where(largest == 0, 1.0, largest))


MEASURES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "effective rank (nats)": effective_rank,
    "exp of it": lambda matrix: effective_rank(matrix, exponentiate=True),
    f"above {THRESHOLD:g} of the largest": threshold_rank,
    "numerical rank": lambda matrix: threshold_rank(matrix, None),
    "stable rank": stable_rank,
    "nuclear ratio": nuclear_ratio,
    "participation ratio": participation_ratio,
    f"components for {PCA_SHARE:.0%}": pca_rank,
}
"""Every measure by the name that tables give it."""


def most(m: int, n: int) -> float:
    """The largest effective rank of an m x n matrix, ln min(m, n)."""
    return math.log(min(m, n))


def flattened(weight: Tensor) -> Tensor:
    """A layer's weight as a matrix: [out, in] as it is, kernels [out, in, kh, kw] as [out, in kh kw]."""
    return weight.flatten(1)
