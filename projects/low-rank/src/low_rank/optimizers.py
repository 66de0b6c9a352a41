"""Is it the optimiser that prefers low rank, or the depth? One problem, one training error, many optimisers.

Every draw of `low_rank.regression` is trained until its relative training error first falls to a target, and its
product is looked at there: optimisers are compared at what they have achieved, not at a number of steps. (Section 4 of
the paper: the bias survives a change of optimiser; the list is ours.)

Dimensions: B draws, n x n matrices, N samples.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import OptimizeResult, minimize
from torch import Tensor
from tqdm import tqdm

from low_rank.config import OPTIMISERS
from low_rank.rank import effective_rank
from low_rank.regression import Problem, draw_factors, map_error, product, training_error
from shared.config import check_choice, check_range

RATES: dict[str, tuple[float, ...]] = {
    "gd": (0.03, 0.1, 0.3),
    "sgd": (0.01, 0.03, 0.1),
    "momentum": (0.003, 0.01, 0.03),
    "adam": (1e-3, 3e-3, 1e-2),
    "rmsprop": (3e-4, 1e-3, 3e-3),
}
"""Learning rates that are tried on every draw; each keeps the one that brings it to the target soonest."""

_LOOK = 20  # steps between looks at whether all draws have arrived


@dataclass(frozen=True)
class Matched:
    """Draws at the target.

    Attributes:
        rho, test: [B] effective rank and relative error of the map where the target was reached; nan where it was not.
        steps: [B] steps it took, nan likewise. rate: [B] learning rate, nan for L-BFGS, which searches along its lines.
    """

    rho: Tensor
    test: Tensor
    steps: Tensor
    rate: Tensor

    @property
    def reached(self) -> float:
        """Share of draws that reached the target."""
        return float(self.steps.isfinite().double().mean())


def fit_to_target(
    problem: Problem,
    depth: int,
    optimizer: str,
    *,
    target: float = 1e-3,
    steps: int = 3000,
    seed: int = 0,
    rates: Sequence[float] | None = None,
    batch: int | None = None,
    quiet: bool = True,
) -> Matched:
    """Bring products of `depth` factors to a relative training error of `target`.

    Args:
        problem: the regressions. optimizer: of `OPTIMISERS`. steps: at most. seed: of the start, the same for every
            optimiser, and of minibatches.
        rates: learning rates to try instead of `RATES`. batch: samples a step of `sgd` and `momentum`; default: half.

    Returns:
        every draw under the learning rate that brought it to the target soonest.

    Raises:
        UserError: an unknown optimiser, numbers out of range.
    """
    check_choice("--optimizers", optimizer, tuple(OPTIMISERS))
    check_range("--target", target, 0, open_low=True)
    check_range("--steps", steps, 1)
    if optimizer == "lbfgs":
        return _lbfgs(problem, depth, target, steps, seed)
    tried = [
        _first_order(problem, depth, optimizer, rate, target, steps, seed, batch)
        for rate in tqdm(rates or RATES[optimizer], desc=f"{optimizer}, depth {depth}", unit="rate", leave=False,
                         disable=True if quiet else None)
    ]  # fmt: skip
    steps_of = torch.stack([found.steps.nan_to_num(math.inf) for found in tried])  # [rates, B]
    best = steps_of.argmin(dim=0)
    every = torch.arange(problem.draws)
    return Matched(
        *(
            torch.stack([getattr(found, name) for found in tried])[best, every]
            for name in ("rho", "test", "steps", "rate")
        )
    )


def _rule(optimizer: str, rate: float) -> Callable[[list[Tensor]], torch.optim.Optimizer]:
    makers: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "gd": torch.optim.SGD,
        "sgd": torch.optim.SGD,
        "momentum": functools.partial(torch.optim.SGD, momentum=0.9),
        "adam": functools.partial(torch.optim.Adam, foreach=True),
        "rmsprop": functools.partial(torch.optim.RMSprop, foreach=True),
    }
    return functools.partial(makers[optimizer], lr=rate)


def _start(problem: Problem, depth: int, seed: int) -> list[Tensor]:
    ws = draw_factors(problem.n, depth, problem.draws, torch.Generator().manual_seed(seed))
    return [w.requires_grad_() for w in ws]


def _first_order(
    problem: Problem, depth: int, optimizer: str, rate: float, target: float, steps: int, seed: int, batch: int | None
) -> Matched:
    """All draws side by side; each keeps the product it has when it arrives, and goes on without being looked at."""
    ws = _start(problem, depth, seed)
    rule = _rule(optimizer, rate)(ws)
    noise = torch.Generator().manual_seed(seed)
    samples = problem.X.shape[-1]
    few = batch or max(1, samples // 2)
    check_range("--batch", few, 1, samples)
    arrived = torch.full((problem.draws,), math.nan, dtype=torch.float64)
    P = torch.zeros_like(problem.A)
    for step in range(steps + 1):
        whole = training_error(ws, problem.X, problem.Y)
        with torch.no_grad():
            new = (whole <= target) & arrived.isnan()
            if bool(new.any()):
                P[new] = product(ws)[new]
                arrived[new] = float(step)
        if step == steps or (step % _LOOK == 0 and not bool((arrived.isnan() & whole.detach().isfinite()).any())):
            break  # all are there, or lost for good
        loss = whole
        if optimizer in ("sgd", "momentum"):
            chosen = torch.randperm(samples, generator=noise)[:few]
            loss = training_error(ws, problem.X[..., chosen], problem.Y[..., chosen])
        rule.zero_grad()
        loss.sum().backward()
        rule.step()
    return _matched(problem, P, arrived, rate)


def _lbfgs(problem: Problem, depth: int, target: float, steps: int, seed: int) -> Matched:
    """Each draw alone, for a line search belongs to one problem; by SciPy: torch's search gives up on deep products."""
    starts = _start(problem, depth, seed)
    arrived = torch.full((problem.draws,), math.nan, dtype=torch.float64)
    P = torch.zeros_like(problem.A)
    shape = (depth, 1, problem.n, problem.n)
    for b in range(problem.draws):
        X, Y = problem.X[b : b + 1], problem.Y[b : b + 1]

        def error(flat: NDArray[np.float64], X: Tensor = X, Y: Tensor = Y) -> tuple[float, NDArray[np.float64]]:
            ws = torch.from_numpy(flat).reshape(shape).clone().requires_grad_()
            loss = training_error(list(ws), X, Y).sum()
            (gradient,) = torch.autograd.grad(loss, ws)
            return float(loss.detach()), gradient.numpy().ravel()

        first = torch.stack([w[b : b + 1].detach() for w in starts]).numpy().ravel()
        here, step = first, 0
        if error(first)[0] > target:

            def arrive(intermediate_result: OptimizeResult) -> None:
                nonlocal here, step
                here, step = intermediate_result.x.copy(), step + 1
                if intermediate_result.fun <= target:
                    raise StopIteration

            options = {"maxiter": steps, "maxfun": 20 * steps, "ftol": 0.0, "gtol": 0.0}
            minimize(error, first, jac=True, method="L-BFGS-B", callback=arrive, options=options)
        if error(here)[0] <= target:
            P[b], arrived[b] = product(list(torch.from_numpy(here).reshape(shape)))[0], float(step)
    return _matched(problem, P, arrived, math.nan)


def _matched(problem: Problem, P: Tensor, arrived: Tensor, rate: float) -> Matched:
    there = arrived.isfinite()
    rho, test = torch.full_like(arrived, math.nan), torch.full_like(arrived, math.nan)
    if bool(there.any()):
        rho[there], test[there] = effective_rank(P[there]), map_error(P, problem.A)[there]
    return Matched(rho, test, arrived, torch.full_like(arrived, rate))
