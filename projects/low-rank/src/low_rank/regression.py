"""Deep linear regression from too few samples: of the maps that fit, which one does a product of d matrices find?

Y = A X with A [n, n] of rank r and |A|_F = sqrt(n), X [n, N] Gaussian, N < n. The model is P = W_d ... W_1 with entries
N(0, 1/n) at first; the loss |P X - Y|_F^2 / |Y|_F^2. For white inputs the expected error on new ones is
|P - A|_F^2 / |A|_F^2. (Section 4 of the paper, the under-determined regression of the project page.)

Dimensions: B independent draws side by side, matrices n x n, N samples, d factors. Draws do not meet: the loss is a sum
over them, and the optimisers act number by number.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from low_rank.rank import effective_rank
from shared.config import RunFailed, UserError, check_range

FITTED = 1e-4  # a draw has fitted its samples when its relative training error is below this


@dataclass(frozen=True)
class Problem:
    """B regressions.

    Attributes:
        A: [B, n, n] true maps. X: [B, n, N] inputs. Y: [B, n, N] targets. X_new, Y_new: samples to test on, or None.
    """

    A: Tensor
    X: Tensor
    Y: Tensor
    X_new: Tensor
    Y_new: Tensor

    @property
    def n(self) -> int:
        """Dimensions."""
        return self.A.shape[-1]

    @property
    def draws(self) -> int:
        """Regressions side by side."""
        return len(self.A)


@dataclass(frozen=True)
class Fit:
    """What B regressions have come to.

    Attributes:
        P: [B, n, n] in double precision. train, test, test_sampled, rho: [B] relative training error, relative error of
            the map, the same on new samples, effective rank. fitted_at: [B] first step with a training error below
            `FITTED`, nan where there is none.
        steps: [T] at which the trajectory was looked at. singular_values: [T, B, n] then.
        rho_start: [B] effective rank before training; nan where there was none.
    """

    P: Tensor
    train: Tensor
    test: Tensor
    test_sampled: Tensor
    rho: Tensor
    fitted_at: Tensor
    steps: Tensor
    singular_values: Tensor
    rho_start: Tensor


def draw_problem(
    n: int, rank: int, samples: int, draws: int, generator: torch.Generator, *, noise: float = 0.0, new: int = 1000
) -> Problem:
    """B random regressions.

    Args:
        n: dimensions. rank: of the true maps, 1 to n. samples: N. noise: standard deviation added to the targets, whose
            entries have about 1. new: samples to test on.

    Raises:
        UserError: a rank or a number that does not fit. Warns where N >= n: the samples then determine the map.
    """
    check_range("--n", n, 1)
    check_range("--rank", rank, 1, n)
    check_range("--samples", samples, 1)
    check_range("--draws", draws, 1)
    check_range("--noise", noise, 0, open_high=True)
    if samples >= n:
        warnings.warn(
            f"{samples} samples of {n} dimensions determine the map: every depth finds the same.", stacklevel=2
        )

    def gaussian(*shape: int) -> Tensor:
        return torch.randn(draws, *shape, generator=generator, dtype=torch.float64)

    A = gaussian(n, rank) @ gaussian(rank, n)
    A = A * (math.sqrt(n) / torch.linalg.matrix_norm(A, keepdim=True))
    X, X_new = gaussian(n, samples), gaussian(n, new)
    return Problem(A, X, A @ X + noise * gaussian(n, samples), X_new, A @ X_new)


def draw_factors(n: int, depth: int, draws: int, generator: torch.Generator, gain: float = 1.0) -> list[Tensor]:
    """d factors [B, n, n] with entries N(0, gain^2 / n), the first applied first.

    Raises:
        UserError: a depth below 1.
    """
    check_range("--depth", depth, 1)
    check_range("--gain", gain, 0, open_low=True, open_high=True)
    scale = gain / math.sqrt(n)
    return [scale * torch.randn(draws, n, n, generator=generator, dtype=torch.float64) for _ in range(depth)]


def product(ws: Sequence[Tensor]) -> Tensor:
    """W_d ... W_1 of factors [..., n, n], the first applied first."""
    P = ws[0]
    for w in ws[1:]:
        P = w @ P
    return P


def training_error(ws: Sequence[Tensor], X: Tensor, Y: Tensor) -> Tensor:
    """[B] |P X - Y|^2 / |Y|^2. The samples go through the factors one after another where that is less work than
    multiplying the factors: N < n."""
    out = X
    for w in ws:
        out = w @ out
    return (out - Y).square().sum(dim=(-2, -1)) / Y.square().sum(dim=(-2, -1))


def map_error(P: Tensor, A: Tensor) -> Tensor:
    """[B] |P - A|_F^2 / |A|_F^2, the expected relative error on white inputs."""
    return (P - A).square().sum(dim=(-2, -1)) / A.square().sum(dim=(-2, -1))


def minimum_norm(problem: Problem) -> Fit:
    """The fit of least Frobenius norm, Y X^+: what a single matrix started at zero would find."""
    P = problem.Y @ torch.linalg.pinv(problem.X)
    none = torch.zeros(0)
    start = torch.full((problem.draws,), math.nan, dtype=torch.float64)
    return _summed_up(P, problem, torch.zeros(problem.draws), none, none, start)


def regress(
    problem: Problem,
    depth: int,
    generator: torch.Generator,
    *,
    steps: int = 1500,
    lr: float = 3e-3,
    gain: float = 1.0,
    looks: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    quiet: bool = True,
    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer] | None = None,
) -> Fit:
    """Fit the products of `depth` factors to all draws at once, by Adam with a cosine from `lr` to 0.

    Args:
        problem: the regressions. depth: d. generator: of the factors. steps, lr: of the training. gain: of the start.
        looks: how often, evenly over the run, singular values of the product are kept; the start and the end count.
        dtype: of the training. quiet: no progress bar.
        optimizer: another one, made of the factors; its learning rate follows the same cosine.

    Raises:
        UserError: numbers out of range; a product that vanishes in this precision. RunFailed: a loss that is not
            finite, with depth and step.
    """
    check_range("--steps", steps, 1)
    check_range("--lr", lr, 0, open_low=True, open_high=True)
    ws = draw_factors(problem.n, depth, problem.draws, generator, gain)
    _check_size(ws, dtype, gain)
    start = effective_rank(product(ws))
    ws = [w.to(device, dtype).requires_grad_() for w in ws]
    X, Y = problem.X.to(device, dtype), problem.Y.to(device, dtype)
    rule = torch.optim.Adam(ws, lr=lr, foreach=True) if optimizer is None else optimizer(ws)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(rule, steps)
    at = sorted({round(step) for step in torch.linspace(0, steps, looks).tolist()}) if looks else []
    seen: list[Tensor] = []
    fitted_at = torch.full((problem.draws,), math.nan, dtype=torch.float64)
    errors: list[Tensor] = []

    def look(step: int) -> None:
        with torch.no_grad():
            P = product([w.double() for w in ws])
            if not bool(P.isfinite().all()):
                raise RunFailed(f"the product at depth {depth} is not finite at step {step}: lower --lr or --gain.")
            seen.append(torch.linalg.svdvals(P).cpu())

    def settle(done: int) -> None:
        """Look through the errors of the last steps at once: on a GPU one transfer and not one a step."""
        block = torch.stack(errors).cpu().double()  # [steps, B], before each step
        errors.clear()
        first = done - len(block)
        if not bool(block.isfinite().all()):
            step = first + int((~block.isfinite().all(dim=1)).nonzero()[0])
            raise RunFailed(f"the training error at depth {depth} is not finite at step {step}: lower --lr or --gain.")
        below = block < FITTED
        new = below.any(dim=0) & fitted_at.isnan()
        fitted_at[new] = (below.int().argmax(dim=0) + first)[new].double()

    for step in tqdm(range(steps), desc=f"depth {depth}", unit="step", leave=False, disable=True if quiet else None):
        if step in at:
            look(step)
        error = training_error(ws, X, Y)
        errors.append(error.detach())
        rule.zero_grad()
        error.sum().backward()
        rule.step()
        schedule.step()
        if len(errors) == 100:
            settle(step + 1)
    with torch.no_grad():
        errors.append(training_error(ws, X, Y))
        settle(steps + 1)
        if at:
            look(steps)
        P = product([w.detach().double() for w in ws]).cpu()
    kept = torch.stack(seen) if seen else torch.zeros(0)
    return _summed_up(P, problem, fitted_at, torch.tensor(at), kept, start)


def _check_size(ws: Sequence[Tensor], dtype: torch.dtype, gain: float) -> None:
    """Refuse factors whose product is smaller than any normal number of a precision: nothing would train."""
    largest = product([w.to(dtype) for w in ws]).abs().amax(dim=(-2, -1))
    lost = int((largest < torch.finfo(dtype).tiny).sum())
    if lost:
        name = str(dtype).removeprefix("torch.")
        valid = f"a depth at which no product vanishes in {name} ({lost} of {len(largest)} did)"
        more = "" if dtype == torch.float64 else ", or train in double precision with --double"
        raise UserError("--depths", len(ws), valid, f"Raise --gain, which is {gain:g}{more}.")


def _summed_up(
    P: Tensor, problem: Problem, fitted_at: Tensor, steps: Tensor, singular_values: Tensor, rho_start: Tensor
) -> Fit:
    return Fit(
        P=P,
        train=training_error([P], problem.X, problem.Y),
        test=map_error(P, problem.A),
        test_sampled=training_error([P], problem.X_new, problem.Y_new),
        rho=effective_rank(P),
        fitted_at=fitted_at,
        steps=steps,
        singular_values=singular_values,
        rho_start=rho_start,
    )


def balance(ws: Sequence[Tensor]) -> list[Tensor]:
    """W_{l+1}^T W_{l+1} - W_l W_l^T for each pair of neighbours, [..., n, n]: gradient flow keeps them as they are.

    Raises:
        UserError: a single factor, which has no neighbour.
    """
    if len(ws) < 2:
        raise UserError("factors", len(ws), "two or more")
    return [b.mT @ b - a @ a.mT for a, b in itertools.pairwise(ws)]
