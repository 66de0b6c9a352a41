"""Retrieval noise: what the other models add to one that is read out, in closed form and by Monte Carlo.

Stored is W = sum_s W_s C_s^-1, read is W C_k x = W_k x + eps with eps_i = sum over s != k of w_s,i^T C_s^-1 C_k x. The
contexts are random, the mean of eps is 0; the variances below are exact for given weights and input.

Dimension letters: K models, m outputs, d inputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from shared.config import UserError
from superposition.contexts import Binary, Phasors, Power, Rotation, derived_seed
from superposition.kinds import Kind

NOISY: tuple[Kind, ...] = ("binary", "complex", "power", "rotation")  # kinds with a closed form


def noise_variance(kind: Kind, weights: Sequence[Tensor], x: Tensor, k: int, part: str = "modulus") -> Tensor:
    """Variance of the noise on every output of model k.

    Args:
        kind: binary, complex, power or rotation.
        weights: K weights [m, d], real. x: input [d] or inputs [N, d], real.
        k: whose output. part: of phasors, E|eps|^2 (`modulus`) or the variance of the real part (`real`).

    Returns:
        [m] or [N, m].

    Raises:
        UserError: a kind without a closed form here. IndexError: no model k.
    """
    if kind not in NOISY:
        raise UserError("--kind", kind, NOISY, "Their noise has a closed form.")
    _check_model(k, len(weights))
    others = [w for s, w in enumerate(weights) if s != k]
    squares = x.square()
    if kind == "rotation":
        d = x.shape[-1]
        norms = sum((w.square().sum(1) for w in others), torch.zeros(len(weights[0])).to(x))  # [m]
        return squares.sum(-1, keepdim=x.dim() > 1) * norms / d
    total = squares @ sum((w.square() for w in others), torch.zeros_like(weights[0])).T
    if kind == "binary" or part == "modulus":
        return total
    half = total / 2
    if kind == "power":  # terms k - t and k + t are complex conjugates of each other
        for t in range(1, min(k, len(weights) - 1 - k) + 1):
            half = half + squares @ (weights[k - t] * weights[k + t]).T
    return half


def _check_model(k: int, models: int) -> None:
    if not 0 <= k < models:
        raise IndexError(f"model {k} asked for; there are models 0 to {models - 1}")


def isotropic_variance(weights: Sequence[Tensor], x: Tensor, k: int) -> Tensor:
    """The form (K - 1) |w|^2 |x|^2 / d, right for weights and inputs without preferred directions; [m] or [N, m]."""
    return noise_variance("rotation", weights, x, k)


def monte_carlo(
    kind: Kind, weights: Sequence[Tensor], x: Tensor, k: int, draws: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Noise on every output of model k under `draws` independent sets of contexts, by the families that layers use.

    Args:
        kind, weights, x [d], k: as for `noise_variance`.
        draws: sets of contexts. seed: of the first.

    Returns:
        (real part, imaginary part) of the noise, [draws, m] each; the latter is 0 for real kinds.

    Raises:
        UserError: a kind without a closed form here. IndexError: no model k.
    """
    if kind not in NOISY:
        raise UserError("--kind", kind, NOISY, "Their noise has a closed form.")
    _check_model(k, len(weights))
    d, m = x.shape[-1], weights[0].shape[0]
    others = [s for s in range(len(weights)) if s != k]
    if kind == "rotation":
        rows = []
        for draw in range(draws):
            family = Rotation(d, derived_seed(seed, draw))
            seen = family.bind(x, k)
            rows.append(sum((weights[s] @ family.unbind(seen, s) for s in others), torch.zeros(m).to(x)))
        real = torch.stack(rows)
        return real, torch.zeros_like(real)
    # Entries of these contexts are independent, so one wide context is many narrow ones.
    wide = {"binary": Binary, "complex": Phasors, "power": Power}[kind](d * draws, seed)
    rows = [wide.rows(s, x) for s in range(len(weights))]
    real = torch.zeros(draws, m).to(x)
    imaginary = torch.zeros_like(real)
    for s in others:
        if kind == "binary":
            real += (rows[s] * rows[k]).view(draws, d) * x @ weights[s].T
            continue
        (p, q), (u, v) = rows[k], rows[s]  # exp(i phi_k), exp(i phi_s)
        real += (p * u + q * v).view(draws, d) * x @ weights[s].T
        imaginary += (q * u - p * v).view(draws, d) * x @ weights[s].T
    return real, imaginary


def mix_correlations(lags: int) -> list[float]:
    """Mean cosine between locally mixed contexts at lag 0, 1, ...: a^2 for each phase of the three that they do not
    share, a = sin(pi/3) / (pi/3); from lag 3 on a^6, so that contexts never become orthogonal."""
    a = math.sin(math.pi / 3) / (math.pi / 3)
    return [a ** (2 * min(lag, 3)) for lag in range(lags)]


def effective_dimension(x: Tensor) -> Tensor:
    """(sum x^2)^2 / sum x^4 of the last dimension: over how many inputs a signal is spread."""
    return x.square().sum(-1).square() / x.pow(4).sum(-1)


def relative_noise(models: int, d: float) -> float:
    """sqrt((K - 1) / d): noise over the largest possible signal |w| |x|."""
    return math.sqrt((models - 1) / d)


def capacity(d: float, relative: float) -> int:
    """Models that can be stored before the relative noise exceeds `relative`: 1 + d relative^2, rounded down."""
    return int(1 + d * relative**2)
