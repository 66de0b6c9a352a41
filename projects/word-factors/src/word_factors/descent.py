"""Exact codes on the CPU: coordinate descent on the few factors that a word needs, compiled by numba.

min over alpha >= 0 of 1/2 alpha' G alpha - alpha'(c - lam), with G = Phi' Phi and c = Phi' x. A word has a dozen active
factors among hundreds: factors that push to become active join its working set, the small problem is solved there by
sweeps and, where sweeps are slow because factors resemble one another, by linear systems on the active ones; then all K
factors are looked at again. Words are independent, so threads share them.

Dimensions: B words, K factors, s factors of a working set.
"""

from __future__ import annotations

import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
from numpy.typing import NDArray

SWEEPS = 60  # of coordinate descent, before linear systems are tried
SYSTEMS = 200  # linear systems a visit to a working set, at most


def solve_words(
    push: NDArray[np.floating],
    gram: NDArray[np.floating],
    lam: float,
    tol: float,
    rounds: int,
    threads: int,
    start: NDArray[np.floating] | None = None,
) -> tuple[NDArray[np.floating], NDArray[np.floating], int]:
    """Codes of many words.

    Args:
        push: [B, K] Phi' x of every word. gram: [K, K] Phi' Phi, of the same type.
        lam: weight of the activations, positive. tol: largest violation of optimality, over lam.
        rounds: visits to the working set, at most. threads: that share the words.
        start: [B, K] codes to begin with; default: zero.

    Returns: alpha [B, K]; the violation of optimality [B] that is left, on all K factors; the most rounds that a word
        took.
    """
    if not len(push):
        return np.zeros_like(push), np.zeros(0, push.dtype), 0
    alpha = np.zeros_like(push) if start is None else start.astype(push.dtype)
    gaps = np.zeros(len(push), push.dtype)
    cuts = np.linspace(0, len(push), min(threads, len(push)) + 1).astype(int)
    parts = list(itertools.pairwise(cuts.tolist()))

    def share(part: tuple[int, int]) -> int:
        low, high = part
        return int(_solve_rows(push[low:high], gram, lam, tol * lam, rounds, alpha[low:high], gaps[low:high]))

    if len(parts) == 1:
        return alpha, gaps, share(parts[0])
    with ThreadPoolExecutor(len(parts)) as pool:
        return alpha, gaps, max(pool.map(share, parts))


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def move_rows(rows, rest, shared, floor, tiny):  # pyright: ignore
    """Move the columns of a dictionary once, in turn, each to the best place given the others, at norm 1 (Mairal et al.
    2010, algorithm 2). In place.

    Args:
        rows: [b, d] columns, an array each. rest: [b, d] what the statistics leave for them. shared: [b, b] statistics
            of their activations. floor: columns whose factor was used no more than this stay. tiny: the least norm.
    """
    count, d = rows.shape
    change = np.empty(d, rows.dtype)
    for j in range(count):
        own = shared[j, j]
        if own <= floor:
            continue
        square = 0.0
        for i in range(d):
            change[i] = rest[j, i] / own + rows[j, i]
            square += change[i] * change[i]
        norm = rows.dtype.type(max(math.sqrt(square), tiny))
        for i in range(d):
            moved = change[i] / norm
            change[i] = moved - rows[j, i]
            rows[j, i] = moved
        for k in range(j + 1, count):
            weight = shared[k, j]
            if weight != 0:
                for i in range(d):
                    rest[k, i] -= weight * change[i]


@numba.njit(cache=True, nogil=True)
def _solve_rows(push, gram, lam, goal, rounds, alpha, gaps):  # pyright: ignore
    """Improve alpha [B, K] and fill gaps [B]; returns the most rounds of any row. goal: largest violation."""
    K = push.shape[1]
    slack = np.empty(K, push.dtype)  # phi_j . r - lam
    chosen = np.empty(K, np.int64)  # the working set, its first s entries
    inside = np.zeros(K, np.bool_)
    most = 0
    for row in range(push.shape[0]):
        size, used = 0, 0
        inside[:] = False
        for j in range(K):
            slack[j] = push[row, j] - lam
            if alpha[row, j] > 0:
                chosen[size] = j
                inside[j] = True
                size += 1
        values = np.empty(size, np.float64)
        for i in range(size):
            value = alpha[row, chosen[i]]
            values[i] = value
            alpha[row, chosen[i]] = 0
            line = gram[chosen[i]]
            for j in range(K):
                slack[j] -= value * line[j]
        while True:
            worst = 0.0
            for j in range(K):
                if not inside[j] and slack[j] > worst:
                    worst = slack[j]
            stuck = 0.0  # violation within the working set, by the slack of all factors
            for i in range(size):
                excess = slack[chosen[i]]
                stuck = max(stuck, abs(excess) if values[i] > 0 else excess)
            if max(worst, stuck) <= goal or used == rounds:
                gaps[row] = max(worst, stuck)
                break
            used += 1
            # Those that push hardest join; factors whose activation went back to zero leave, to keep the set small.
            kept = 0
            for i in range(size):
                j = chosen[i]
                if values[i] > 0 or slack[j] > 0:
                    chosen[kept], values[kept] = j, values[i]
                    kept += 1
                else:
                    inside[j] = False
            size = kept
            bar = max(goal, 0.3 * worst) if used < 2 else goal
            for j in range(K):
                if not inside[j] and slack[j] > bar:
                    chosen[size] = j
                    inside[j] = True
                    size += 1
            grown = np.zeros(size, np.float64)
            grown[:kept] = values[:kept]
            values = grown
            coupling = np.empty((size, size), np.float64)
            excess_ = np.empty(size, np.float64)
            for i in range(size):
                excess_[i] = slack[chosen[i]]
                for k in range(size):
                    coupling[i, k] = gram[chosen[i], chosen[k]]
            _descend(values, excess_, coupling, 0.3 * goal)
            # Afresh from the activations: no rounding piles up.
            for j in range(K):
                slack[j] = push[row, j] - lam
            for i in range(size):
                value = push.dtype.type(values[i])
                values[i] = value
                if value > 0:
                    line = gram[chosen[i]]
                    for j in range(K):
                        slack[j] -= value * line[j]
        for i in range(size):
            alpha[row, chosen[i]] = values[i]
        most = max(most, used)
    return most


@numba.njit(cache=True, nogil=True)
def _descend(values, excess, coupling, goal):  # pyright: ignore
    """Solve a working set in place: values [s] activations, excess [s] phi . r - lam there, coupling [s, s]."""
    size = len(values)
    for _ in range(SWEEPS):
        worst = 0.0
        for i in range(size):
            violation = abs(excess[i]) if values[i] > 0 else excess[i]
            worst = max(worst, violation)
            new = max(values[i] + excess[i] / coupling[i, i], 0.0)
            change = new - values[i]
            if change != 0.0:
                values[i] = new
                for k in range(size):
                    excess[k] -= change * coupling[i, k]
        if worst <= goal:
            return
    # Lawson and Hanson: the exact activations of the active factors, as far as none turns negative.
    active = values > 0
    for _ in range(SYSTEMS):
        members = np.flatnonzero(active)
        count = len(members)
        factor = np.empty((count, count), np.float64)
        step = np.empty(count, np.float64)
        singular, p = -1, 0
        for p in range(count):
            step[p] = excess[members[p]]
            for q in range(p + 1):
                total = coupling[members[p], members[q]]
                for r in range(q):
                    total -= factor[p, r] * factor[q, r]
                if p == q:
                    if total <= 1e-12:
                        singular = members[p]
                        break
                    factor[p, p] = math.sqrt(total)
                else:
                    factor[p, q] = total / factor[q, q]
            if singular >= 0:
                break
        if singular >= 0:
            # Factor `singular` is a combination, by `mix`, of the p active ones before it. Trading it for them leaves
            # the residual as it is and changes the sum of activations: trade until one of them reaches zero.
            mix = np.empty(p, np.float64)
            for q in range(p - 1, -1, -1):
                mix[q] = factor[p, q]
                for r in range(q + 1, p):
                    mix[q] -= factor[r, q] * mix[r]
                mix[q] /= factor[q, q]
            rate = excess[singular]
            for q in range(p):
                rate -= mix[q] * excess[members[q]]
            if abs(rate) <= 0.1 * goal:  # nothing to gain: it stays as it is, and the others do the rest
                active[singular] = False
                continue
            sign = 1.0 if rate > 0 else -1.0
            length, first = (math.inf, -1) if sign > 0 else (values[singular], singular)
            for q in range(p):
                fall = sign * mix[q]
                if fall > 0 and values[members[q]] / fall < length:
                    length, first = values[members[q]] / fall, members[q]
            if first < 0:
                active[singular] = False
                continue
            values[singular] = max(values[singular] + sign * length, 0.0)
            for q in range(p):
                values[members[q]] = max(values[members[q]] - sign * length * mix[q], 0.0)
            values[first] = 0.0
            active[first] = False
            continue
        for p in range(count):
            for q in range(p):
                step[p] -= factor[p, q] * step[q]
            step[p] /= factor[p, p]
        for p in range(count - 1, -1, -1):
            for q in range(p + 1, count):
                step[p] -= factor[q, p] * step[q]
            step[p] /= factor[p, p]
        length, first = 1.0, -1
        for p in range(count):
            value = values[members[p]]
            if value + step[p] < 0 and -value / step[p] < length:
                length, first = -value / step[p], p
        for p in range(count):
            i = members[p]
            change = length * step[p] if p != first else -values[i]
            values[i] = max(values[i] + change, 0.0)
            for k in range(size):
                excess[k] -= change * coupling[i, k]
        if first >= 0:
            active[members[first]] = False
            continue
        hardest, push = -1, goal
        for i in range(size):
            if not active[i] and excess[i] > push:
                hardest, push = i, excess[i]
        if hardest < 0:
            return
        active[hardest] = True
