"""Robust adversarial reinforcement learning (Pinto et al. 2017): an agent learns against an adversary that pushes it
and is paid for its failure. They learn in turns, some updates each: the baselines `rarl` and `rarl-finetune`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from carl.episodes import make_env
from carl.noise import mixed
from carl.policies import Paths, rollout
from carl.ppo import PPO
from carl.task import PlanningTask

TURN = 10  # updates of one side before it is the other's turn


class RARL:
    """An agent and its adversary.

    Args:
        env: whose disturbances the adversary chooses. task: of both. seed: of the first weights.
    """

    def __init__(self, env: str, task: PlanningTask, seed: int) -> None:
        self.env, self.task = env, task
        self.agent = PPO(task, seed)
        self.adversary = PPO(task, mixed(seed, "adversary"), actions=make_env(env).disturbance_dim, scale=1.0)

    @property
    def policy(self) -> Any:
        """The agent's."""
        return self.agent.policy

    def play(self, domains: Sequence[float], seed: int, steps: int, after: int | None = None) -> Paths:
        """Source episodes of both."""
        pushed = self.adversary.policy
        return rollout(self.agent.policy, self.env, self.task, domains, "source", seed, steps, push=pushed, after=after)

    def iteration(
        self, domains: Sequence[float], seed: int, steps: int, number: int, after: int | None = None
    ) -> tuple[dict[str, float], Paths]:
        """One update of the agent, or of the adversary when it is its turn. steps, after: see `rollout`."""
        paths = self.play(domains, seed, steps, after)
        if number // TURN % 2 == 0:
            return self.agent.update(paths, seed), paths
        losses = self.adversary.update(paths, seed, adversary=True)
        return {f"adversary_{name}": value for name, value in losses.items()}, paths

    def state_dict(self) -> dict[str, Any]:
        return {"agent": self.agent.state_dict(), "adversary": self.adversary.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.agent.load_state_dict(state["agent"])
        self.adversary.load_state_dict(state["adversary"])
