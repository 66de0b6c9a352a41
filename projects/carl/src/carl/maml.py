"""Model-agnostic meta-learning of a policy (Finn et al. 2017): weights from which one policy-gradient step in a domain
goes far. The outer step is PPO through the inner one, second order and all: the baseline `ppo-maml`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from carl.noise import mixed
from carl.policies import GaussianPolicy, Paths, advantages, called, flat, log_density, rollout
from carl.ppo import DISCOUNT, TRACE, clipped_loss
from carl.task import PlanningTask

INNER_RATE, OUTER_RATE, OUTER_EPOCHS = 0.1, 1e-3, 5
RIDGE = 1e-5

Parameters = Mapping[str, Tensor]


def linear_baseline(paths: Paths, task: PlanningTask) -> Tensor:
    """(B, T + 1) values by ridge regression of discounted returns on the features, their squares and powers of time: a
    critic for a few episodes of one domain (Duan et al. 2016)."""
    B, T = paths.rewards.shape
    x = task.features(paths.states)
    time = torch.linspace(0, 1, T + 1).expand(B, T + 1)[..., None]
    design = torch.cat([x, x.square(), time, time**2, time**3, torch.ones_like(time)], dim=-1).double()
    returns = torch.zeros(B, T + 1, dtype=torch.float64)
    for t in range(T - 1, -1, -1):
        returns[:, t] = torch.where(paths.alive[:, t], paths.rewards[:, t] + DISCOUNT * returns[:, t + 1], 0.0)
    rows, targets = design[:, :-1][paths.learned], returns[:, :-1][paths.learned]
    gram = rows.T @ rows + RIDGE * torch.eye(rows.shape[1], dtype=torch.float64) * len(rows)
    weights = torch.linalg.solve(gram, rows.T @ targets)
    return (design @ weights).float()


def scored(paths: Paths, task: PlanningTask) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features, actions, log-probabilities and standardised advantages of the steps to learn from, (n, ...)."""
    gained, _ = advantages(paths, linear_baseline(paths, task), DISCOUNT, TRACE)
    x, actions, old, gained = flat(paths, task.features(paths.states[:, :-1]), paths.actions, paths.log_prob, gained)
    return x, actions, old, (gained - gained.mean()) / (gained.std(correction=0) + 1e-8)


class MAML:
    """Meta-learned weights of a policy.

    Args:
        task: whose features it sees. seed: of the first weights.
    """

    def __init__(self, task: PlanningTask, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mixed(seed, "policy") % 2**63)
            self.policy = GaussianPolicy(task.feature_dim, task.action_dim, task.high)
        self.task = task
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=OUTER_RATE)

    def parameters(self) -> dict[str, Tensor]:
        """The weights by name."""
        return dict(self.policy.named_parameters())

    def adapted(self, parameters: Parameters, paths: Paths) -> dict[str, Tensor]:
        """One vanilla policy-gradient step from episodes that these parameters played; differentiable in them."""
        x, actions, _, gained = scored(paths, self.task)

        def loss(given: dict[str, Tensor]) -> Tensor:
            mean, std = called(self.policy, given)(x)
            return -(log_density(actions, mean, std) * gained).mean()

        gradient = torch.func.grad(loss)(dict(parameters))
        return {name: value - INNER_RATE * gradient[name] for name, value in parameters.items()}

    def outer_loss(self, parameters: Parameters, before: Sequence[Paths], after: Sequence[Paths]) -> Tensor:
        """The clipped surrogate on the adapted policies' episodes, as a function of the weights before adaptation.

        Args:
            before: of every domain, played by the weights. after: played by the adapted ones.
        """
        losses = []
        for first, second in zip(before, after, strict=True):
            moved = self.adapted(parameters, first)
            x, actions, old, gained = scored(second, self.task)
            mean, std = called(self.policy, moved)(x)
            losses.append(clipped_loss(log_density(actions, mean, std), old, gained))
        return torch.stack(losses).mean()

    def iteration(
        self, env: str, domains: Sequence[float], episodes: int, seed: int, steps: int, stop: int | None = None
    ) -> tuple[dict[str, float], list[Paths], list[Paths]]:
        """One meta-iteration: play, adapt, play again, and move the weights. Returns numbers, the first episodes, and
        those after adapting.
        stop: steps after a catastrophe, `rollout`'s `after`."""
        start = {name: value.detach() for name, value in self.parameters().items()}
        before, after = [], []
        for place, domain in enumerate(domains):
            many = [domain] * episodes
            first = rollout(
                called(self.policy, start), env, self.task, many, "source", mixed(seed, "in", place), steps, after=stop
            )
            moved = {name: value.detach() for name, value in self.adapted(start, first).items()}
            adapted, own = called(self.policy, moved), mixed(seed, "out", place)
            second = rollout(adapted, env, self.task, many, "source", own, steps, after=stop)
            before.append(first)
            after.append(second)
        losses = []
        for _ in range(OUTER_EPOCHS):
            loss = self.outer_loss(self.parameters(), before, after)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
        gain = [(sum(b.returns()) - sum(a.returns())) / episodes for a, b in zip(before, after, strict=True)]
        return {"outer_loss": sum(losses) / len(losses), "gain_of_adapting": sum(gain) / len(gain)}, before, after

    @torch.no_grad()
    def settle(self, parameters: Parameters) -> None:
        """Take these weights as one's own: a step of adaptation in the target."""
        for name, value in self.policy.named_parameters():
            value.copy_(parameters[name])

    def state_dict(self) -> dict[str, Any]:
        return {"policy": self.policy.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
