"""How a planner values what its particles go through: the mean, the worst of them, and predicted catastrophes.

Costs are negated returns: lower is better, the worst particle is the one of highest cost. Everything here is a pure
function of tensors (Section 4 of the paper; `CARL (Reward)` and `CARL (State)`).

Dimensions: G problems, N candidate sequences, P particles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from shared.config import UserError, check_choice, check_range

FAILED = 1e6
"""What a particle whose cost is not a number costs."""

RiskName = Literal["none", "reward", "state", "reward+state"]
RISKS: tuple[RiskName, ...] = ("none", "reward", "state", "reward+state")


@dataclass(frozen=True)
class Risk:
    """One kind of caution.

    Attributes:
        name: `none` plans on the mean (PETS), `reward` on the worst particles, `state` against predicted catastrophes,
            `reward+state` on both (an extension, not in the paper).
        gamma: percent of the particles, the best ones, that `reward` leaves out.
        beta: a net whose probability of catastrophe exceeds it votes for one.
        weight: lambda, the cost of a predicted catastrophic step.

    Raises:
        UserError: a value outside its range.
    """

    name: RiskName = "none"
    gamma: float = 50.0
    beta: float = 0.5
    weight: float = 1e4

    def __post_init__(self) -> None:
        check_choice("--risk", self.name, RISKS)
        if not 0 <= self.gamma < 100:
            raise UserError("--gamma", self.gamma, "0 <= gamma < 100, percent of particles left out")
        check_range("--beta", self.beta, 0, 1)
        check_range("--penalty", self.weight, 0, math.inf, open_high=True)

    @property
    def keep(self) -> float:
        """Percent of particles, the worst ones, that count: 100 - gamma, or all."""
        return 100.0 - self.gamma if self.name in ("reward", "reward+state") else 100.0

    @property
    def penalty(self) -> float:
        """Cost of a predicted catastrophic step, 0 where none is looked for."""
        return self.weight if self.name in ("state", "reward+state") else 0.0


def kept_count(particles: int, keep: float) -> int:
    """How many particles a percentage keeps, at least one; above 100 the best (200 - keep) %.

    Raises:
        UserError: a percentage outside (0, 200].
    """
    if not 0 < keep <= 200:
        raise UserError("keep percentage", keep, "0 < keep <= 200")
    return max(int((keep if keep <= 100 else 200 - keep) / 100 * particles), 1)


def worst_mean(costs: Tensor, keep: float) -> Tensor:
    """Mean of the worst `keep` percent of the particles' costs: the conditional value at risk.

    The k-th largest cost is the bar; all that reach it count, ties too. Percentages above 100 are optimism: the mean of
    the best (200 - keep) percent. A cost that is not a finite number counts as `FAILED`.

    Args:
        costs: (..., P), each summed over the horizon.
        keep: percentage in (0, 200]; 100 is the plain mean.

    Returns: (...).
    """
    costs = costs.nan_to_num(nan=FAILED, posinf=FAILED, neginf=FAILED)
    count = kept_count(costs.shape[-1], keep)
    if keep == 100:
        return costs.mean(dim=-1)
    ends = costs.topk(count, dim=-1, largest=keep < 100).values
    bar = ends[..., -1:]
    kept = costs >= bar if keep < 100 else costs <= bar
    return (costs * kept).sum(dim=-1) / kept.sum(dim=-1)


def catastrophe_votes(logit: Tensor, beta: float | Tensor) -> Tensor:
    """Where a net's probability of catastrophe exceeds beta: booleans of the logit's shape. beta = 1 never votes."""
    return torch.sigmoid(logit) > beta


def catastrophe_penalty(logit: Tensor, beta: float, weight: float) -> Tensor:
    """weight where a net votes for a catastrophe, else 0, float64."""
    return weight * catastrophe_votes(logit, beta).double()


def candidate_cost(costs: Tensor, votes: Tensor, keep: float, penalty: float) -> Tensor:
    """What a candidate costs: task costs by `worst_mean`, and votes by their mean over particles.

    Task costs and votes are kept apart until here and joined in float64: a float32 sum of a few votes at 10,000 each
    would round away the differences of the task.

    Args:
        costs: (..., P) float32, summed over the horizon. votes: (..., P) integers, summed over the horizon.

    Returns: (...) float64.
    """
    return worst_mean(costs, keep).double() + penalty * (votes.sum(dim=-1).double() / votes.shape[-1])
