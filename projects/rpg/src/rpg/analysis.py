"""What the paper says about rings, as statistics: scaling fits, similarity of layers, the linear-constraint view.

The closed forms for cosines between layers (destructive sharing) and for the generator as a linear constraint are
derived, not quoted: see the docstrings. They are checked by Monte Carlo in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.config import UserError


@dataclass(frozen=True)
class Fit:
    """A straight line y = slope * x + intercept.

    Attributes:
        slope, intercept: least squares. r2: explained variance.
        ci: 95 % bootstrap interval of the slope (pairs resampled).
    """

    slope: float
    intercept: float
    r2: float
    ci: tuple[float, float]


def fit_loglinear(dof: ArrayLike, accuracy: ArrayLike, draws: int = 2000, seed: int = 0) -> Fit:
    """accuracy = slope * log10(DoF) + intercept: the paper's log-linear law below half the model size.

    Args:
        dof: ring sizes, positive, `[n]`.
        accuracy: in the same order, `[n]`.
        draws, seed: of the bootstrap.

    Raises:
        UserError: fewer than three points, or fewer than two distinct sizes, or a size that is not positive.
    """
    x, y = np.asarray(dof, float), np.asarray(accuracy, float)
    if len(x) != len(y) or len(x) < 3 or len(np.unique(x)) < 2 or (x <= 0).any():
        raise UserError("dof", list(x), "three and more points of two and more positive sizes")
    return _line(np.log10(x), y, draws, seed)


def fit_loglog(dof: ArrayLike, error: ArrayLike, draws: int = 2000, seed: int = 0) -> Fit:
    """log10(error) = slope * log10(DoF) + intercept: the power law; `error` is 1 - accuracy, positive."""
    y = np.asarray(error, float)
    if (y <= 0).any():
        raise UserError("error", list(y), "positive errors: a power law never reaches zero")
    x = np.asarray(dof, float)
    if len(x) != len(y) or len(x) < 3 or len(np.unique(x)) < 2 or (x <= 0).any():
        raise UserError("dof", list(x), "three and more points of two and more positive sizes")
    return _line(np.log10(x), np.log10(y), draws, seed)


def _line(x: NDArray[Any], y: NDArray[Any], draws: int, seed: int) -> Fit:
    slope, intercept = np.polyfit(x, y, 1)
    residual = ((y - slope * x - intercept) ** 2).sum()
    spread = ((y - y.mean()) ** 2).sum()
    stream = np.random.default_rng(seed)
    slopes = []
    for _ in range(draws):
        chosen = stream.integers(0, len(x), len(x))
        if np.ptp(x[chosen]) > 0:
            slopes.append(np.polyfit(x[chosen], y[chosen], 1)[0])
    low, high = np.quantile(slopes, [0.025, 0.975])
    r2 = 1.0 if spread == 0 else float(1 - residual / spread)
    return Fit(float(slope), float(intercept), r2, (float(low), float(high)))


# -- similarity of layers ---------------------------------------------------------------------------------------------


def cosine_matrix(weights: Mapping[str, Any]) -> tuple[list[str], NDArray[np.float64]]:
    """Cosines between all layers of the most common shape.

    Returns:
        (names `[k]`, cosines `[k, k]`).
    """
    import torch

    by_shape: dict[tuple[int, ...], list[str]] = {}
    for name, weight in weights.items():
        by_shape.setdefault(tuple(weight.shape), []).append(name)
    names = max(by_shape.values(), key=len)
    flat = torch.stack([weights[name].detach().double().flatten() for name in names])
    flat = flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-300)
    return names, (flat @ flat.T).cpu().numpy()


def mean_absolute_cosine(weights: Mapping[str, Any]) -> Any:
    """Mean |cos| between layers of equal shape, over all such pairs, as a tensor; 0 where there is no pair."""
    import torch

    by_shape: dict[tuple[int, ...], list[Any]] = {}
    for weight in weights.values():
        by_shape.setdefault(tuple(weight.shape), []).append(weight.detach().flatten())
    total, pairs = 0.0, 0
    for group in by_shape.values():
        if len(group) < 2:
            continue
        flat = torch.nn.functional.normalize(torch.stack(group).float(), dim=1)
        cosines = (flat @ flat.T).abs()
        total = total + (cosines.sum() - cosines.diagonal().sum()) / 2
        pairs += len(group) * (len(group) - 1) // 2
    return total / pairs if pairs else torch.zeros(())


def cosine_moments(kind: str, ring: ArrayLike) -> tuple[float, float]:
    """Mean and variance of the cosine between two layers, each an independent draw of the whole ring (n = M).

    For uniform permutations with independent signs the mean is 0 and the variance 1/n whatever W is; so it is for Haar
    rotations. Signs alone give variance sum(W^4) / ||W||^4, which heavy tails make larger. Permutation alone leaves a
    mean of (sum W)^2 / (n ||W||^2). Plain reuse gives 1.

    Args:
        kind: `even`, `haar`, `sign_only`, `perm_only` or `reuse`.
        ring: W, `[n]`.
    """
    w = np.asarray(ring, float)
    n, square = len(w), float((w**2).sum())
    if kind in ("even", "haar"):
        return 0.0, 1 / n
    if kind == "sign_only":
        return 0.0, float((w**4).sum()) / square**2
    if kind == "perm_only":
        mean = float(w.sum()) ** 2 / (n * square)
        centred = w - w.mean()
        # sum_i w_pi(i) w_sigma(i) over a random matching: variance (sum of squared deviations)^2 / (n - 1).
        return mean, float((centred**2).sum()) ** 2 / (n - 1) / square**2
    if kind == "reuse":
        return 1.0, 0.0
    raise UserError("kind", kind, ("even", "haar", "sign_only", "perm_only", "reuse"))


def slice_product_variance(ring: ArrayLike, uses: int, size: int) -> float:
    """Variance of the inner product of two disjoint slices of `size` weights of one global even plan, N = uses * M.

    The slices are drawn without replacement from one list in which each entry stands `uses` times, so it is
    size * ((r S2)^2 - r S4) / (N (N - 1)) with S_p = sum W^p.
    """
    w = np.asarray(ring, float)
    total = uses * len(w)
    s2, s4 = float((w**2).sum()), float((w**4).sum())
    return size * ((uses * s2) ** 2 - uses * s4) / (total * (total - 1))


def unused_fraction(uses: float) -> float:
    """Fraction of a hashed ring that no weight ever uses: exp(-N/M) for large rings."""
    return math.exp(-uses)


# -- the linear-constraint view -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Conditioning:
    """Spectra of a quadratic before and after the constraint theta = G W (with G^T G = r I).

    Attributes:
        full: eigenvalues of H, ascending, `[N]`. constrained: of G^T H G / r, `[M]`.
    """

    full: NDArray[np.float64]
    constrained: NDArray[np.float64]

    @property
    def condition(self) -> tuple[float, float]:
        """Condition numbers, full and constrained: the second is never larger (Poincare separation)."""
        return float(self.full[-1] / self.full[0]), float(self.constrained[-1] / self.constrained[0])


def constrained_spectrum(hessian: NDArray[Any], generator: NDArray[Any]) -> Conditioning:
    """Eigenvalues of H and of G^T H G / r. The latter interlace the former (Poincare): the i-th of M lies between the
    i-th and the (i + N - M)-th of N, so that gradient descent on the ring converges at least as fast as on the weights
    (for quadratics).

    Args:
        hessian: H, `[N, N]`, symmetric positive definite.
        generator: G, `[N, M]`, with orthogonal columns of equal norm sqrt(r).
    """
    uses = float((generator**2).sum() / generator.shape[1])
    return Conditioning(np.linalg.eigvalsh(hessian), np.linalg.eigvalsh(generator.T @ hessian @ generator / uses))


def least_squares_ring(x: NDArray[Any], y: NDArray[Any], generator: NDArray[Any]) -> NDArray[Any]:
    """W* = (G^T X^T X G)^-1 G^T X^T y: the best ring for a linear model.

    Args:
        x: `[samples, N]`. y: `[samples]`. generator: G, `[N, M]`.
    """
    features = x @ generator
    return np.linalg.solve(features.T @ features, features.T @ y)


def descend(hessian: NDArray[Any], start: NDArray[Any], generator: NDArray[Any] | None, steps: int) -> list[float]:
    """Loss 0.5 theta^T H theta along gradient descent at the best constant rate 2 / (smallest + largest eigenvalue),
    on theta itself or on W with theta = G W.

    Args:
        hessian: H. start: theta or W. generator: G, or None for the plain network. steps: how many.
    """
    effective = hessian if generator is None else generator.T @ hessian @ generator
    spectrum = np.linalg.eigvalsh(effective)
    rate = 2 / (spectrum[0] + spectrum[-1])
    point, losses = start.copy(), []
    for _ in range(steps + 1):
        losses.append(float(0.5 * point @ effective @ point))
        point = point - rate * effective @ point
    return losses


def summary(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error."""
    array = np.asarray(values, float)
    error = float(array.std(ddof=1) / math.sqrt(len(array))) if len(array) > 1 else 0.0
    return float(array.mean()), error
