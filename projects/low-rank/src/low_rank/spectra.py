"""Products of square Gaussian matrices in the limit of large ones: the Fuss-Catalan law, in closed form.

Let W = W_d ... W_1 with independent entries N(0, 1/n). As n grows, the squared singular values of W follow the
Fuss-Catalan law of order d, and the effective rank of W lacks c_d = `deficit(d)` of its largest value, ln n. c_d
increases with d: the deeper the product, the lower the effective rank of a typical one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import digamma, gammaln

from shared.config import check_range


def moment(d: int, k: float) -> float:
    """E s^(2k) of a singular value s of a product of d factors: Gamma((d+1)k + 1) / (Gamma(k+1) Gamma(dk + 2)).

    For whole k these are the Fuss-Catalan numbers; it holds for real k > -1 / (d + 1) too.
    """
    check_range("depth", d, 1)
    check_range("k", k, -1 / (d + 1), open_low=True)
    return float(np.exp(gammaln((d + 1) * k + 1) - gammaln(k + 1) - gammaln(d * k + 2)))


def deficit(d: int) -> float:
    """c_d, the limit of ln n - E rho(W): what d factors take off the largest effective rank.

    With m(k) = E s^(2k), the entropy of p_i = s_i / sum s tends to ln n + ln m(1/2) - E[s ln s] / m(1/2), and E[s ln s]
    is half the derivative of m at 1/2.
    """
    half = digamma((d + 3) / 2) * (d + 1) - digamma(1.5) - d * digamma(d / 2 + 2)
    return float(0.5 * half - np.log(moment(d, 0.5)))


def squared_density(d: int, points: int = 2000) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The density of x = s^2 along a curve: (x [points], density [points]), x decreasing from (d+1)^(d+1) / d^d to 0.

    At angle phi in (0, pi / (d+1)): x = sin^(d+1)((d+1) phi) / (sin phi sin^d(d phi)), and the density there is
    sin^2 phi sin^(d-1)(d phi) / (pi sin^d((d+1) phi)).
    """
    check_range("depth", d, 1)
    phi = np.linspace(0, np.pi / (d + 1), points + 2)[1:-1]
    # Logarithms: powers of small sines underflow at great depths.
    one, many, more = (np.log(np.sin(k * phi)) for k in (1, d, d + 1))
    x = (d + 1) * more - one - d * many
    density = 2 * one + (d - 1) * many - d * more - np.log(np.pi)
    return np.exp(x), np.exp(density)


def singular_density(d: int, points: int = 2000) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The density of s itself: (s [points], density [points]), s decreasing."""
    x, density = squared_density(d, points)
    s = np.sqrt(x)
    return s, 2 * s * density


def end(d: int) -> float:
    """The largest singular value of the limit law: sqrt((d+1)^(d+1) / d^d)."""
    check_range("depth", d, 1)
    return float(np.exp(((d + 1) * np.log(d + 1) - d * np.log(d)) / 2))


def cdf(d: int, s: ArrayLike, points: int = 4000) -> NDArray[np.float64]:
    """Share of singular values of the limit law that are at most s."""
    x, mass = _masses(d, points)
    below = np.cumsum(mass[::-1])
    # A strip's mass lies around its middle; half of it is below.
    at = np.square(np.asarray(s, dtype=np.float64))
    return np.interp(at, np.concatenate([[0.0], x[::-1], [end(d) ** 2]]),
                     np.concatenate([[0.0], below - mass[::-1] / 2, [1.0]]))  # fmt: skip


def _masses(d: int, points: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The law cut into strips of equal angle: x in the middle of each, decreasing, and its probability.

    In the angle the density has no pole: f dx = f x (d ln x / d phi) d phi.
    """
    width = np.pi / (d + 1) / points
    phi = (np.arange(points) + 0.5) * width
    one, many, more = (np.log(np.sin(k * phi)) for k in (1, d, d + 1))
    slope = (d + 1) ** 2 / np.tan((d + 1) * phi) - 1 / np.tan(phi) - d**2 / np.tan(d * phi)  # of ln x
    times_x = one + more - np.log(np.pi) - many  # ln of f x
    return np.exp((d + 1) * more - one - d * many), np.exp(times_x) * -slope * width
