"""Penalties on the weights of a network: the explicit rivals of linear over-parameterisation.

    loss = cross_entropy + mu * penalty(weights, "nuclear")

Every layer's weight counts as a matrix [out, in kh kw] with singular values s_1 >= s_2 >= ... The Schatten penalty
ties the two worlds together: over all factorings W = W_d ... W_1 with wide enough factors,

    min sum_l |W_l|_F^2 = d sum_i s_i^(2/d),

so weight decay on d factors is, at its optimum, this quasi-norm of the product. d = 1 is weight decay on W itself,
d = 2 twice the nuclear norm; the larger d, the closer to the rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from low_rank.names import REGULARISERS
from low_rank.rank import effective_rank, flattened, singular_values, stable_rank
from shared.config import UserError, check_choice, check_range

SMOOTHING = 1e-3  # singular value below which `penalty` rounds the cusp of the Schatten quasi-norm


def schatten(weight: Tensor, p: float, smoothing: float = 0.0) -> Tensor:
    """sum_i s_i^p of a weight [out, ...] flattened to a matrix, in double precision.

    Singular values that are rounding errors (below 10 sqrt(max(m, n)) units of the weight's precision, relative to the
    largest) count as zeros, and zeros have gradient zero, the least of the subgradients; all gradients are thus finite.

    Args:
        p: above 0; a norm from 1 on, a quasi-norm below, whose slope grows without bound towards zeros.
        smoothing: e in sum (s^2 + e^2)^(p/2) - e^p, which has bounded slopes; off by at most e^p a singular value.

    Raises:
        UserError: p or smoothing out of range; a weight that is no matrix or not finite.
    """
    check_range("p", p, 0, open_low=True)
    check_range("smoothing", smoothing, 0)
    matrix = _matrix(weight)
    s = singular_values(matrix)
    rounding = torch.finfo(torch.promote_types(weight.dtype, torch.float32)).eps
    floor = s.detach()[:1] * (10 * math.sqrt(max(matrix.shape)) * rounding)
    lives = s.detach() > floor
    # Where s is null the power is that of 1, so that its slope is finite: the product with 0 is then 0.
    safe = torch.where(lives, s, 1.0)
    value = safe.pow(p) if smoothing == 0 else (safe.square() + smoothing**2).pow(p / 2) - smoothing**p
    return torch.where(lives, value, 0.0).sum(dim=-1)


def _matrix(weight: Tensor) -> Tensor:
    if weight.dim() < 2 or not weight.numel():
        raise UserError("weight", f"shape {list(weight.shape)}", "[out, in] or [out, in, kh, kw], not empty")
    return flattened(weight)


def penalty(weights: Iterable[Tensor], name: str, *, depth: int = 2, smoothing: float = SMOOTHING) -> Tensor:
    """The sum over layers of a penalty R(W), a scalar of the weights' type (single precision at least). Differentiable
    almost everywhere, with finite gradients everywhere, weights that lack rank included.

    Args:
        weights: one [out, ...] a layer. name: one of `names.REGULARISERS`.
        depth: d, for schatten: R(W) = sum s^(2/d). smoothing: for schatten of d > 2, as in `schatten`; 0 for the
            quasi-norm itself.

    Raises:
        UserError: no such penalty; a depth below 1; no weights; a weight that is no matrix, or whose singular values
            are asked for and that is not finite.
    """
    check_choice("--regulariser", name, REGULARISERS)
    check_range("--depth", depth, 1)
    terms = [_of_one(weight, name, depth, smoothing) for weight in weights]
    if not terms:
        raise UserError("weights to penalise", "none", "one or more")
    return torch.stack(terms).sum()


def _of_one(weight: Tensor, name: str, depth: int, smoothing: float) -> Tensor:
    matrix = _matrix(weight)
    if name == "squared-l2":
        value = matrix.square().sum()
    elif name == "l1":
        value = matrix.abs().sum()
    elif name == "nuclear":
        value = schatten(matrix, 1)
    elif name == "effective-rank":
        value = effective_rank(matrix)
    elif name == "stable-rank":
        value = stable_rank(matrix)
    else:
        value = schatten(matrix, 2 / depth, smoothing if depth > 2 else 0.0)
    return value.to(torch.promote_types(weight.dtype, torch.float32))
