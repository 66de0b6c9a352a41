"""Model predictive control under a risk: optimise a plan on the particles, execute its first action.

Several problems are planned at once: seeds, variants, targets, each with an ensemble, a state, a risk and a plan of its
own. With `shared_noise` all see the same random numbers, so that variants differ by their caution alone.

Dimensions: G problems, N candidates, P particles, H steps, a action.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from carl.cem import CEM, shifted
from carl.ensemble import Ensemble
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
        task: of all of them.
        risks: one a problem.
        horizon: H.
        particles: P.
        candidates, elites, iterations, alpha: of `CEM`.
        shared_noise: the same random numbers for all problems.

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
        shared_noise: bool = False,
    ) -> None:
        check_range("--horizon", horizon, 1)
        if len(risks) != len(ensembles):
            raise ValueError(f"{len(risks)} risks for {len(ensembles)} problems")
        self.task, self.risks, self.horizon, self.particles = task, tuple(risks), horizon, particles
        self.shared_noise = shared_noise
        self.device = ensembles[0].weights[0].device
        low = torch.full((task.action_dim,), task.low, device=self.device)
        high = torch.full((task.action_dim,), task.high, device=self.device)
        self.optimiser = CEM(low, high, candidates, elites, iterations, alpha, shared_noise=shared_noise)
        self.beta = torch.tensor([risk.beta for risk in risks], device=self.device)
        self.refresh(ensembles)
        self.begin()

    def refresh(self, ensembles: Sequence[Ensemble]) -> None:
        """Plan with these ensembles from now on."""
        self.ensembles = tuple(ensembles)
        self.simulator = Simulator(ensembles, self.task, self.particles)

    def begin(self, problems: Tensor | None = None) -> None:
        """Forget the plans: an episode begins. problems: (G,) booleans, default all."""
        mean, self.variance = self.optimiser.first(len(self.risks), self.horizon)
        if problems is None or not hasattr(self, "plan"):
            self.plan = mean
        else:
            self.plan = torch.where(problems.view(-1, 1, 1), mean, self.plan)

    def state_dict(self) -> dict[str, Tensor]:
        return {"plan": self.plan}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.plan = state["plan"].to(self.device)

    def evaluate(
        self, state: Tensor, actions: Tensor, context: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """(G, N) costs of candidate plans (G, N, H, a) in float64, and (G,) particles that failed."""
        G, N, H, _ = actions.shape
        sim = self.simulator
        shape = (H, 1 if self.shared_noise else G, sim.nets, N, self.particles // sim.nets, sim.d)
        noise = torch.randn(shape, generator=generator, device=state.device)
        found = sim.roll(state, actions, context, self.beta, noise=noise)
        costs = torch.stack([
            candidate_cost(found.cost[g], found.votes[g], risk.keep, risk.penalty)
            for g, risk in enumerate(self.risks)
        ])  # fmt: skip
        return costs, (~found.cost.isfinite()).sum(dim=(1, 2))

    @torch.no_grad()
    def act(
        self, state: Tensor, context: Tensor, generator: torch.Generator | None = None, traced: bool = False
    ) -> tuple[Tensor, PlanTrace | None]:
        """The next action of every problem.

        A problem of whose candidates none has a finite cost keeps its plan, which is the middle of the box at first.

        Args:
            state: (G, s). context: (G,) of the task's reward.
            traced: also say what was expected of the plan; costs one more simulation.

        Returns: (G, a) and the trace.
        """
        failed = torch.zeros(len(self.risks), dtype=torch.long, device=state.device)

        def cost(actions: Tensor) -> Tensor:
            costs, bad = self.evaluate(state, actions, context, generator)
            failed.add_(bad)
            return torch.where(costs < FAILED, costs, torch.inf) if bool(bad.all()) else costs

        solution = self.optimiser.minimise(cost, self.plan, self.variance, generator)
        trace = None
        if traced:
            sim = self.simulator
            seen = sim.roll(state, solution.unsqueeze(1), context, self.beta, generator, traced=True)
            costs = [
                candidate_cost(seen.cost[g], seen.votes[g], risk.keep, risk.penalty)[0]
                for g, risk in enumerate(self.risks)
            ]
            trace = PlanTrace(torch.stack(costs), seen.by_step[:, 0], seen.spread[:, 0], failed)
        self.plan = shifted(solution)
        return solution[:, 0], trace
