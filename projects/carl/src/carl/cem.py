"""The cross-entropy method, over several problems at once: the paper's optimiser of action sequences (as in PETS).

Candidates are drawn from a normal distribution truncated at two deviations, the best become the new distribution's mean
and variance, smoothed; what is executed is the final mean, not the best sample.

Dimensions: G problems, N candidates, K elites, H steps, A action dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from carl.noise import Source, uniforms
from shared.config import UserError, check_range

Cost = Callable[[Tensor], Tensor]
"""(G, N, H, A) actions -> (G, N) costs."""


def truncated_normal(
    problems: int, shape: tuple[int, ...], source: Source, device: torch.device | str = "cpu", bound: float = 2.0
) -> Tensor:
    """Standard normal variates (G, *shape) within [-bound, bound], by the inverse of their distribution function;
    (1, *shape) where the problems share a stream."""
    edge = math.erf(bound / math.sqrt(2))
    uniform = uniforms(problems, shape, source, device)
    return (torch.erfinv((2 * uniform - 1) * edge) * math.sqrt(2)).clamp_(-bound, bound)


def check_box(low: Tensor, high: Tensor) -> None:
    """Raise `UserError` unless low < high in every dimension."""
    if not bool((low < high).all()):
        raise UserError("action box", f"{low.tolist()} to {high.tolist()}", "low < high")


@dataclass(frozen=True)
class CEM:
    """Settings of the optimiser.

    Attributes:
        low, high: (A,) box of the actions.
        candidates: N. elites: K. iterations: at most. alpha: share of the old distribution that stays.
        epsilon: a problem is done once its largest variance is below.

    Raises:
        UserError: K outside 1 to N, no iterations, a reversed box.
    """

    low: Tensor
    high: Tensor
    candidates: int = 400
    elites: int = 40
    iterations: int = 5
    alpha: float = 0.1
    epsilon: float = 1e-3

    def __post_init__(self) -> None:
        check_range("--candidates", self.candidates, 1)
        if not 1 <= self.elites <= self.candidates:
            raise UserError("--elites", self.elites, f"1 to the {self.candidates} candidates")
        check_range("--iterations", self.iterations, 1)
        check_range("--alpha", self.alpha, 0, 1)
        check_box(self.low, self.high)

    def first(self, problems: int, horizon: int) -> tuple[Tensor, Tensor]:
        """Mean in the middle of the box and variance (width / 4)^2, (G, H, A) each."""
        shape = (problems, horizon, len(self.low))
        middle, width = (self.low + self.high) / 2, self.high - self.low
        return middle.expand(shape).clone(), ((width / 4) ** 2).expand(shape).clone()

    def minimise(self, cost: Cost, mean: Tensor, var: Tensor, source: Source = None) -> Tensor:
        """The mean of the final distribution.

        A problem in which no candidate has a finite cost keeps its mean.

        Args:
            cost: of candidates; what is not finite ranks last.
            mean, var: (G, H, A) of the first distribution.
            source: of the random numbers.

        Returns: (G, H, A).
        """
        problems, horizon, actions = mean.shape
        for _ in range(self.iterations):
            going = var.flatten(1).amax(dim=1) > self.epsilon  # (G,)
            if mean.device.type == "cpu" and not bool(going.any()):  # on a GPU asking would cost more than going on
                break
            room = torch.minimum(((mean - self.low) / 2) ** 2, ((self.high - mean) / 2) ** 2)
            spread = torch.minimum(room, var).sqrt()
            z = truncated_normal(problems, (self.candidates, horizon, actions), source, mean.device)
            tried = mean.unsqueeze(1) + spread.unsqueeze(1) * z  # (G, N, H, A)
            costs = cost(tried)
            costs = torch.where(costs.isfinite(), costs, torch.inf)
            best = costs.topk(self.elites, dim=1, largest=False, sorted=False).indices  # (G, K)
            elite = tried.gather(1, best[:, :, None, None].expand(-1, -1, horizon, actions))
            new_var, new_mean = torch.var_mean(elite, dim=1, correction=0)
            going = (going & costs.isfinite().any(dim=1))[:, None, None]
            mean = torch.where(going, self.alpha * mean + (1 - self.alpha) * new_mean, mean)
            var = torch.where(going, self.alpha * var + (1 - self.alpha) * new_var, var)
        return mean


def shifted(solution: Tensor, fill: Tensor | float = 0.0) -> Tensor:
    """The plan for the next step: the rest of the last one, and `fill` at its end. (G, H, A)."""
    end = torch.zeros_like(solution[:, :1]) + fill
    return torch.cat([solution[:, 1:], end], dim=1)
