"""Model predictive path integral control with smoothed noise (as in PDDM): the optimiser of the in-hand task.

Candidates are noise around the last plan, smoothed along time from the action just executed; the new plan is their
mean, weighted by the exponential of their returns.

Dimensions: G problems, N candidates, H steps, A action dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from carl.cem import Cost, check_box
from carl.noise import Source, normals
from shared.config import check_range


@dataclass(frozen=True)
class MPPI:
    """Settings of the optimiser.

    Attributes:
        low, high: (A,) box of the actions.
        candidates: N. kappa: weight of a return in the exponent.
        sigma: deviation of the noise. tail_sigma: that of the last `tail` share of the candidates.
        smoothing: share of an action that is new, the rest is the action before it.

    Raises:
        UserError: values outside their ranges.
    """

    low: Tensor
    high: Tensor
    candidates: int = 700
    kappa: float = 20.0
    sigma: float = 0.9
    tail_sigma: float = 0.27
    tail: float = 0.1
    smoothing: float = 0.7

    def __post_init__(self) -> None:
        check_range("--candidates", self.candidates, 1)
        check_range("--kappa", self.kappa, 0, open_low=True)
        check_range("sigma", self.sigma, 0, open_low=True)
        check_range("smoothing", self.smoothing, 0, 1, open_low=True)
        check_box(self.low, self.high)

    def minimise(self, cost: Cost, mean: Tensor, last: Tensor, source: Source = None) -> Tensor:
        """The weighted mean of the candidates, (G, H, A).

        Args:
            cost: of candidates; what is not finite gets no weight. mean: (G, H, A) the plan so far.
            last: (G, A) the action just executed. source: of the random numbers.
        """
        problems, horizon, actions = mean.shape
        deviation = torch.full((self.candidates, 1, 1), self.sigma, device=mean.device)
        deviation[self.candidates - int(self.tail * self.candidates) :] = self.tail_sigma
        noise = normals(problems, (self.candidates, horizon, actions), source, mean.device)
        noisy = mean.unsqueeze(1) + deviation * noise
        before = last.unsqueeze(1).expand(-1, self.candidates, -1)
        steps = []
        for t in range(horizon):
            before = self.smoothing * noisy[:, :, t] + (1 - self.smoothing) * before
            steps.append(before)
        tried = torch.stack(steps, dim=2).clamp(self.low, self.high)  # (G, N, H, A)
        score = -cost(tried)
        finite = score.isfinite()
        weight = torch.softmax(torch.where(finite, self.kappa * score, -torch.inf), dim=1)
        weight = weight.to(tried.dtype)
        new = torch.einsum("gn,gnha->gha", weight.nan_to_num(), tried)
        return torch.where(finite.any(dim=1)[:, None, None], new, mean)
