"""What may come of candidate plans: particles, each carried through the whole horizon by one net (TS-infinity).

A particle that kept changing its net would average away what nets disagree about, and with it all caution.

Dimensions: G problems, E nets, N candidates, R = P / E particles a net, H steps, a action, s state, h hidden units, d
predicted dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from carl.ensemble import Ensemble, bounded
from carl.noise import Source, normals
from carl.task import PlanningTask
from shared.config import UserError


class Outcome(NamedTuple):
    """What particles went through.

    Attributes:
        cost: (G, N, P) float32, summed over the horizon, of states and actions; particle p belongs to net p // (P / E).
        votes: (G, N, P) int32, steps of the horizon at which the particle's own net predicted a catastrophe.
        by_step: (G, N, H) votes of the nets at each step, share of particles.
        spread: (G, N, H) disagreement of the nets: deviation of their mean predictions, over nets, mean of dimensions.
    """

    cost: Tensor
    votes: Tensor
    by_step: Tensor
    spread: Tensor


class Simulator:
    """Several problems' ensembles, stacked and folded for planning; to be made again after a fit.

    The normalisation of the inputs is folded into the first layer.

    Args:
        ensembles: one a problem, of one architecture.
        task: of all of them.
        particles: P, a multiple of the nets.
        voters: whose heads vote in place of the ensembles' own, one a problem.

    Raises:
        UserError: P is no multiple of E; ensembles of different sizes.
    """

    def __init__(
        self,
        ensembles: Sequence[Ensemble],
        task: PlanningTask,
        particles: int,
        voters: Sequence[Ensemble] | None = None,
    ) -> None:
        first = ensembles[0]
        sizes = {tuple(weight.shape for weight in each.weights) for each in ensembles}
        if len(sizes) > 1:
            raise UserError("ensembles", "several sizes", "one architecture for all problems")
        if particles < 1 or particles % first.nets:
            raise UserError("--particles", particles, f"a positive multiple of the {first.nets} nets")
        self.task, self.particles, self.nets, self.problems = task, particles, first.nets, len(ensembles)
        self.d, self.act, self.probabilistic = first.out_dim, first.activation, first.probabilistic
        with torch.no_grad():
            stacked = [torch.stack(layer) for layer in zip(*(each.weights for each in ensembles), strict=True)]
            biases = [torch.stack(layer) for layer in zip(*(each.biases for each in ensembles), strict=True)]
            mean = torch.stack([each.mean_in for each in ensembles])  # (G, 1, 1, i)
            std = torch.stack([each.std_in for each in ensembles])
            folded = stacked[0] / std.transpose(-1, -2)
            biases[0] = biases[0] - mean @ folded
            if not self.probabilistic:  # so is that of the targets into the last layer, but for the logit
                spread = torch.stack([nn.functional.pad(each.std_out, (0, 1), value=1.0) for each in ensembles])
                middle = torch.stack([nn.functional.pad(each.mean_out, (0, 1)) for each in ensembles])
                stacked[-1], biases[-1] = stacked[-1] * spread, biases[-1] * spread + middle
                folded = folded if len(stacked) > 1 else stacked[-1]
            self.weights = [folded, *stacked[1:]]  # (G, E, in, out)
            self.biases = biases  # (G, E, 1, out)
            self.high = torch.stack([each.max_logvar for each in ensembles])  # (G, 1, 1, d)
            self.low = torch.stack([each.min_logvar for each in ensembles])
        self.voters = None if voters is None else Simulator(voters, task, particles)

    @torch.no_grad()
    def roll(
        self,
        state: Tensor,
        actions: Tensor,
        context: Tensor,
        beta: Tensor,
        source: Source = None,
        noise: Tensor | None = None,
        traced: bool = False,
    ) -> Outcome:
        """Carry particles from a state through candidate plans.

        Args:
            state: (G, s). actions: (G, N, H, a). context: (G,) of the task's reward.
            beta: (G,) probability above which a net votes for a catastrophe.
            source: of the random numbers.
            noise: (G or 1, H, E, N or 1, R, d) standard normals; drawn by default, for every step and particle.
            traced: also fill `by_step` and `spread`, which planning does not need.
        """
        G, N, H, _ = actions.shape
        E, R, task = self.nets, self.particles // self.nets, self.task
        device = state.device
        if noise is None and self.probabilistic:
            noise = normals(G, (H, E, N, R, self.d), source, device)
        here = state[:, None, None, None].expand(G, E, N, R, -1)
        where = context.view(G, 1, 1, 1)
        limit = torch.logit(beta).view(G, 1, 1, 1)  # of the probability: 1 becomes infinity, which nothing exceeds
        cost = torch.zeros(G, E, N, R, device=device)
        votes = torch.zeros(G, E, N, R, dtype=torch.int32, device=device)
        by_step = torch.zeros(G, N, H, device=device)
        spread = torch.zeros(G, N, H, device=device)
        seen = task.features(here)
        for step in range(H):
            action = actions[:, :, step]
            out = self._forward(seen, action)
            mean, logit = out[..., : self.d], out[..., -1:]
            if self.voters is not None:
                logit = self.voters._forward(seen, action)[..., -1:]
            moved = mean
            if self.probabilistic and noise is not None:
                logvar = bounded(out[..., self.d : -1], self.low.unsqueeze(3), self.high.unsqueeze(3))
                moved = mean + torch.exp(0.5 * logvar) * noise[:, step]
            here = task.advance(here, moved)
            voted = logit.squeeze(-1) > limit
            votes += voted
            seen = task.features(here)
            cost += task.state_cost(here, where, seen)
            if traced:
                by_step[:, :, step] = voted.float().mean(dim=(1, 3))
                spread[:, :, step] = mean.mean(dim=3).std(dim=1, correction=0).mean(dim=-1)
        cost += task.action_cost(actions).sum(dim=2)[:, None, :, None]  # (G, 1, N, 1)
        return Outcome(self._by_candidate(cost), self._by_candidate(votes), by_step, spread)

    def _forward(self, seen: Tensor, action: Tensor) -> Tensor:
        """(G, E, N, R, 2 d + 1) of features (G, E, N, R, f) and actions (G, N, a)."""
        G, E, N, R, _ = seen.shape
        x = torch.cat([seen, action[:, None, :, None].expand(-1, E, -1, R, -1)], dim=-1)
        h = torch.baddbmm(self.biases[0].flatten(0, 1), x.view(G * E, N * R, -1), self.weights[0].flatten(0, 1))
        h = self._activated(h)
        return self._rest(h.view(G, E, N * R, -1)).view(G, E, N, R, -1)

    def _activated(self, h: Tensor) -> Tensor:
        return h.relu_() if self.act == "relu" else nn.functional.silu(h, inplace=True)

    def _rest(self, h: Tensor) -> Tensor:
        """All layers but the first: (G, E, rows, h) -> (G, E, rows, 2 d + 1)."""
        G, E, rows, _ = h.shape
        h = h.view(G * E, rows, -1)
        last = len(self.weights) - 1
        for layer in range(1, last + 1):
            weight, bias = self.weights[layer], self.biases[layer]
            h = torch.baddbmm(bias.view(G * E, 1, -1), h, weight.view(G * E, *weight.shape[2:]))
            if layer < last:
                h = self._activated(h)
        return h.view(G, E, rows, -1)

    def _by_candidate(self, value: Tensor) -> Tensor:
        """(G, E, N, R) -> (G, N, E * R)."""
        G, E, N, R = value.shape
        return value.permute(0, 2, 1, 3).reshape(G, N, E * R)
