"""Proximal policy optimisation (Schulman et al. 2017): the policy learner of the baselines.

PPO over the source domains, and PPO in the target, is the baseline `ppo-dr`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from carl.noise import mixed
from carl.policies import GaussianPolicy, Paths, advantages, flat, log_density, perceptron
from carl.task import PlanningTask

CLIP, EPOCHS, BATCH, LEARNING_RATE = 0.2, 10, 256, 3e-4
DISCOUNT, TRACE = 0.99, 0.97
VALUE_WEIGHT, LARGEST_GRADIENT = 0.5, 0.5


def clipped_loss(log_prob: Tensor, old: Tensor, advantage: Tensor, clip: float = CLIP) -> Tensor:
    """The clipped surrogate, to be minimised. All (n,)."""
    ratio = torch.exp(log_prob - old)
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).mean()


class PPO:
    """A policy, a critic and their optimiser.

    Args:
        task: whose features they see. actions: a; default: the task's. scale: half the action box.
        seed: of the first weights.
    """

    def __init__(self, task: PlanningTask, seed: int, actions: int | None = None, scale: float | None = None) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mixed(seed, "policy") % 2**63)
            self.policy = GaussianPolicy(task.feature_dim, actions or task.action_dim, scale or task.high)
            self.critic = perceptron(task.feature_dim, 1)
        self.task = task
        parameters = [*self.policy.parameters(), *self.critic.parameters()]
        self.optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)

    def values(self, states: Tensor) -> Tensor:
        """(...): the critic's value of states (..., s)."""
        features = (self.task.features(states) - self.policy.mean_in) / self.policy.std_in
        return self.critic(features).squeeze(-1)

    def update(self, paths: Paths, seed: int, adversary: bool = False) -> dict[str, float]:
        """Some epochs on one batch of episodes.

        Args:
            paths: played by this policy. seed: of the minibatches.
            adversary: learn from the pushes, and from the negative reward.
        """
        if not paths.steps:
            return {}
        sign = -1.0 if adversary else 1.0
        actions, old = (paths.push, paths.push_log_prob) if adversary else (paths.actions, paths.log_prob)
        assert actions is not None
        assert old is not None
        scored = paths if not adversary else Paths(**{**vars(paths), "rewards": sign * paths.rewards})
        with torch.no_grad():
            gained, targets = advantages(scored, self.values(paths.states), DISCOUNT, TRACE)
        features = self.task.features(paths.states[:, :-1])
        rows = flat(paths, features, actions, old, gained, targets)
        x, taken, before, gained, targets = rows
        gained = (gained - gained.mean()) / (gained.std(correction=0) + 1e-8)
        generator = torch.Generator().manual_seed(mixed(seed, "minibatch"))
        losses: list[Tensor] = []
        for _ in range(EPOCHS):
            for chosen in torch.randperm(len(x), generator=generator).split(BATCH):
                mean, std = self.policy(x[chosen])
                surrogate = clipped_loss(log_density(taken[chosen], mean, std), before[chosen], gained[chosen])
                value = self.critic((x[chosen] - self.policy.mean_in) / self.policy.std_in).squeeze(-1)
                value_loss = (value - targets[chosen]).square().mean()
                self.optimizer.zero_grad()
                (surrogate + VALUE_WEIGHT * value_loss).backward()
                nn.utils.clip_grad_norm_(
                    [p for group in self.optimizer.param_groups for p in group["params"]], LARGEST_GRADIENT
                )
                self.optimizer.step()
                losses.append(torch.stack([surrogate, value_loss]).detach())
        surrogate, value_loss = torch.stack(losses).mean(dim=0).tolist()
        return {"surrogate": surrogate, "value_loss": value_loss}

    def state_dict(self) -> dict[str, Any]:
        parts = {"policy": self.policy, "critic": self.critic, "optimizer": self.optimizer}
        return {name: part.state_dict() for name, part in parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in (("policy", self.policy), ("critic", self.critic), ("optimizer", self.optimizer)):
            part.load_state_dict(state[name])
