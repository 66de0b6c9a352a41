"""Model predictive control under a risk: optimise a plan on the particles, execute its first action.

Several problems are planned at once: seeds, variants, targets, each with an ensemble, a state, a risk and a plan of its
own. Problems that share a stream of random numbers (`noise`) differ by their caution alone.

Dimensions: G problems, N candidates, P particles, H steps, a action.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from carl.cem import CEM, shifted
from carl.ensemble import Ensemble
from carl.mppi import MPPI
from carl.noise import Source
from carl.particles import Simulator
from carl.risk import FAILED, Risk, candidate_cost
from carl.task import PlanningTask
from shared.config import check_range


class PlanTrace(NamedTuple):
    """Why a plan was taken: of each problem's final plan.

    Attributes:
        cost: (G,) under the problem's risk. votes: (G, H) share of particles whose net predicts a catastrophe.
        disagreement: (G, H) of the nets. failed: (G,) particles without a finite cost, over all plans tried.
    """

    cost: Tensor
    votes: Tensor
    disagreement: Tensor
    failed: Tensor


class Planner:
    """Plans for several problems.

    Args:
        ensembles: one a problem; `refresh` after a fit.
        voters: whose heads vote in place of the ensembles' own, one a problem.
        task: of all of them.
        risks: one a problem.
        horizon: H.
        particles: P.
        candidates, elites, iterations, alpha: of `CEM`.
        optimiser: `cem`, or `mppi` with as many candidates.
        compile: the simulation by `torch.compile`; see `Simulator`.

    Attributes:
        failed: (G,) particles without a finite cost in the last `act`. blind: (G,) whether it had no other.

    Raises:
        UserError: sizes that do not fit together.
    """

    def __init__(
        self,
        ensembles: Sequence[Ensemble],
        task: PlanningTask,
        risks: Sequence[Risk],
        *,
        horizon: int = 25,
        particles: int = 20,
        candidates: int = 400,
        elites: int = 40,
        iterations: int = 5,
        alpha: float = 0.1,
        voters: Sequence[Ensemble] | None = None,
        optimiser: Literal["cem", "mppi"] = "cem",
        compile: bool = False,
    ) -> None:
        check_range("--horizon", horizon, 1)
        if len(risks) != len(ensembles):
            raise ValueError(f"{len(risks)} risks for {len(ensembles)} problems")
        self.task, self.risks, self.horizon, self.particles = task, tuple(risks), horizon, particles
        self.compile = compile
        self.device = ensembles[0].weights[0].device
        low = torch.full((task.action_dim,), task.low, device=self.device)
        high = torch.full((task.action_dim,), task.high, device=self.device)
        self.optimiser = CEM(low, high, candidates, elites, iterations, alpha)
        self.mppi = MPPI(low, high, candidates) if optimiser == "mppi" else None
        self.beta = torch.tensor([risk.beta for risk in risks], device=self.device)
        self.failed = torch.zeros(len(risks), dtype=torch.long, device=self.device)
        self.blind = torch.zeros(len(risks), dtype=torch.bool, device=self.device)
        self.refresh(ensembles, voters)
        self.begin()

    def refresh(self, ensembles: Sequence[Ensemble], voters: Sequence[Ensemble] | None = None) -> None:
        """Plan with these ensembles from now on."""
        self.ensembles, self.voters = tuple(ensembles), None if voters is None else tuple(voters)
        self.simulator = Simulator(ensembles, self.task, self.particles, voters, self.compile)

    def keep(self, problems: Sequence[int]) -> None:
        """Go on with these problems, in this order; the episodes of the others have ended."""
        self.risks = tuple(self.risks[g] for g in problems)
        parts = (self.beta, self.plan, self.variance, self.last)
        self.beta, self.plan, self.variance, self.last = (part[list(problems)] for part in parts)
        voters = None if self.voters is None else [self.voters[g] for g in problems]
        self.refresh([self.ensembles[g] for g in problems], voters)

    def begin(self, problems: Tensor | None = None) -> None:
        """Forget the plans: an episode begins. problems: (G,) booleans, default all."""
        mean, self.variance = self.optimiser.first(len(self.risks), self.horizon)
        if problems is None or not hasattr(self, "plan"):
            self.plan = mean
            self.last = mean[:, 0]  # the action before the first
        else:
            self.plan = torch.where(problems.view(-1, 1, 1), mean, self.plan)
            self.last = torch.where(problems.view(-1, 1), mean[:, 0], self.last)

    def state_dict(self) -> dict[str, Tensor]:
        return {"plan": self.plan, "last": self.last}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.plan, self.last = (state[name].to(self.device) for name in ("plan", "last"))

    def evaluate(self, state: Tensor, actions: Tensor, context: Tensor, source: Source = None) -> tuple[Tensor, Tensor]:
        """(G, N) costs of candidate plans (G, N, H, a) in float64, and (G,) particles that failed.

        A plan of which a particle failed costs more than any number of votes: it ranks behind all that did not fail."""
        sim = self.simulator
        found = sim.roll(state, actions, context, self.beta, source)
        costs = torch.stack([
            candidate_cost(found.cost[g], found.votes[g], risk.keep, risk.penalty)
            for g, risk in enumerate(self.risks)
        ])  # fmt: skip
        failed = ~found.cost.isfinite()  # (G, N, P)
        beyond = torch.tensor([risk.penalty * self.horizon for risk in self.risks], device=costs.device)
        costs = costs + failed.any(dim=2) * (FAILED + beyond.double().unsqueeze(1))
        return costs, failed.sum(dim=(1, 2))

    @torch.inference_mode()
    def act(
        self, state: Tensor, context: Tensor, source: Source = None, traced: bool = False
    ) -> tuple[Tensor, PlanTrace | None]:
        """The next action of every problem.

        A problem of whose candidates none has a finite cost takes the middle of the box, and forgets its plan.

        Args:
            state: (G, s). context: (G,) of the task's reward.
            source: of the random numbers.
            traced: also say what was expected of the plan; costs one more simulation.

        Returns: (G, a) and the trace.
        """
        failed = torch.zeros(len(self.risks), dtype=torch.long, device=state.device)
        blind = torch.ones(len(self.risks), dtype=torch.bool, device=state.device)

        def cost(actions: Tensor) -> Tensor:
            costs, bad = self.evaluate(state, actions, context, source)
            failed.add_(bad)
            blind.logical_and_(bad >= costs.shape[1] * self.particles)  # no particle of any candidate has a cost
            return torch.where(blind.unsqueeze(1), torch.inf, costs)

        if self.mppi is None:
            solution = self.optimiser.minimise(cost, self.plan, self.variance, source)
        else:
            solution = self.mppi.minimise(cost, self.plan, self.last, source)
        solution = torch.where(blind.view(-1, 1, 1), self.optimiser.first(len(self.risks), self.horizon)[0], solution)
        trace = None
        if traced:
            sim = self.simulator
            seen = sim.roll(state, solution.unsqueeze(1), context, self.beta, source, traced=True)
            costs = [
                candidate_cost(seen.cost[g], seen.votes[g], risk.keep, risk.penalty)[0]
                for g, risk in enumerate(self.risks)
            ]
            trace = PlanTrace(torch.stack(costs), seen.by_step[:, 0], seen.spread[:, 0], failed)
        self.plan, self.last = shifted(solution), solution[:, 0]
        self.failed, self.blind = failed, blind
        return solution[:, 0], trace
