"""What may come of candidate plans: particles, each carried through the whole horizon by one net (TS-infinity).

A particle that kept changing its net would average away what nets disagree about, and with it all caution.

Dimensions: G problems, E nets, N candidates, R = P / E particles a net, H steps, a action, s state, h hidden units, d
predicted dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from carl.ensemble import Ensemble, bounded
from carl.noise import Source, normals
from carl.task import PlanningTask
from shared.config import UserError
from shared.device import compiled_function


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


class Layers(NamedTuple):
    """Several problems' nets.

    Attributes:
        weights: (G, E, in, out) each. biases: (G, E, 1, out) each.
        low, high: (G, 1, 1, d) bounds of the log-variances.
        activation: of the hidden layers, swish or relu.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    low: Tensor
    high: Tensor
    activation: str


class Simulator:
    """Several problems' ensembles, stacked and folded for planning; to be made again after a fit.

    The normalisation of the inputs is folded into the first layer.

    Args:
        ensembles: one a problem, of one architecture.
        task: of all of them.
        particles: P, a multiple of the nets.
        voters: whose heads vote in place of the ensembles' own, one a problem.
        compile: a step of the particles by `torch.compile`.

    Raises:
        UserError: P is no multiple of E; ensembles of different sizes.
    """

    def __init__(
        self,
        ensembles: Sequence[Ensemble],
        task: PlanningTask,
        particles: int,
        voters: Sequence[Ensemble] | None = None,
        compile: bool = False,
    ) -> None:
        first = ensembles[0]
        sizes = {tuple(weight.shape for weight in each.weights) for each in ensembles}
        if len(sizes) > 1:
            raise UserError("ensembles", "several sizes", "one architecture for all problems")
        if particles < 1 or particles % first.nets:
            raise UserError("--particles", particles, f"a positive multiple of the {first.nets} nets")
        self.task, self.particles, self.nets, self.problems = task, particles, first.nets, len(ensembles)
        self.d, self.probabilistic, self.compile = first.out_dim, first.probabilistic, compile
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
            high = torch.stack([each.max_logvar for each in ensembles])
            low = torch.stack([each.min_logvar for each in ensembles])
            self.layers = Layers((folded, *stacked[1:]), tuple(biases), low, high, first.activation)
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
        stride = compiled_stride(device.type) if self.compile else _stride
        nets, voters = self.layers, None if self.voters is None else self.voters.layers
        for step in range(H):
            draws = noise[:, step] if self.probabilistic and noise is not None else None
            here, seen, added, voted, mean = stride(
                task, nets, voters, here, seen, actions[:, :, step], draws, where, limit
            )
            votes += voted
            cost += added
            if traced:
                by_step[:, :, step] = voted.float().mean(dim=(1, 3))
                spread[:, :, step] = mean.mean(dim=3).std(dim=1, correction=0).mean(dim=-1)
        cost += task.action_cost(actions).sum(dim=2)[:, None, :, None]  # (G, 1, N, 1)
        return Outcome(self._by_candidate(cost), self._by_candidate(votes), by_step, spread)

    def _by_candidate(self, value: Tensor) -> Tensor:
        """(G, E, N, R) -> (G, N, E * R)."""
        G, E, N, R = value.shape
        return value.permute(0, 2, 1, 3).reshape(G, N, E * R)


def _stride(
    task: PlanningTask,
    nets: Layers,
    voters: Layers | None,
    here: Tensor,
    seen: Tensor,
    action: Tensor,
    draws: Tensor | None,
    where: Tensor,
    limit: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One step of all particles.

    Args:
        nets, voters: of the dynamics, and whose heads vote in their place.
        here: (G, E, N, R, s) states. seen: (..., f) their features. action: (G, N, a).
        draws: (G or 1, E, N or 1, R, d) standard normals; None: the mean is what happens.
        where: (G, 1, 1, 1) context. limit: (G, 1, 1, 1) logit above which a net votes.

    Returns: states, features and cost after it, votes (G, E, N, R), predicted means (..., d).
    """
    out = _forward(nets, seen, action)
    d = task.target_dim
    mean, logit = out[..., :d], out[..., -1:]
    if voters is not None:
        logit = _forward(voters, seen, action)[..., -1:]
    moved = mean
    if draws is not None:
        logvar = bounded(out[..., d:-1], nets.low.unsqueeze(3), nets.high.unsqueeze(3))
        moved = mean + torch.exp(0.5 * logvar) * draws
    here = task.advance(here, moved)
    seen = task.features(here)
    return here, seen, task.state_cost(here, where, seen), logit.squeeze(-1) > limit, mean


@lru_cache
def compiled_stride(device: str) -> Callable[..., tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """A step compiled: its elementwise work fused, and on a GPU replayed as one CUDA graph instead of being launched
    kernel by kernel. Sums over the horizon stay outside: a graph's outputs are overwritten when it is replayed."""
    return compiled_function(_stride, **({"mode": "reduce-overhead"} if device == "cuda" else {}))


def _forward(nets: Layers, seen: Tensor, action: Tensor) -> Tensor:
    """(G, E, N, R, outputs) of features (G, E, N, R, f) and actions (G, N, a)."""
    G, E, N, R, _ = seen.shape
    x = torch.cat([seen, action[:, None, :, None].expand(-1, E, -1, R, -1)], dim=-1)
    h = x.view(G * E, N * R, -1)
    last = len(nets.weights) - 1
    for layer, (weight, bias) in enumerate(zip(nets.weights, nets.biases, strict=True)):
        h = torch.baddbmm(bias.flatten(0, 1), h, weight.flatten(0, 1))
        if layer < last:
            h = h.relu_() if nets.activation == "relu" else nn.functional.silu(h, inplace=True)
    return h.view(G, E, N, R, -1)
