"""What a planner knows of a task: how states become a network's inputs, predictions become states, and what they cost.

Never the domain: what drives the dynamics is hidden. `context` is a parameter of the *reward* alone (cartpole's task is
to hold the tip where a pole of length L has it), and reaches no network.

Dimensions: leading ones are any; s state, f features, d predicted, a action.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from carl.baoding import reward_of
from carl.cartpole import closeness
from carl.duckietown import ARRIVED, goal_distance
from carl.half_cheetah import CONTROL_COST
from shared.config import check_choice


class PlanningTask:
    """One task. Subclasses set the sizes and give features and costs; the change of the state is what is predicted.

    Attributes:
        state_dim: s. feature_dim: f. target_dim: d. action_dim: a. low, high: box of each action.
    """

    state_dim: ClassVar[int]
    feature_dim: ClassVar[int]
    target_dim: ClassVar[int]
    action_dim: ClassVar[int]
    low: ClassVar[float] = -1.0
    high: ClassVar[float] = 1.0

    @property
    def input_dim(self) -> int:
        """Inputs of the network: features and action."""
        return self.feature_dim + self.action_dim

    def features(self, state: Tensor) -> Tensor:
        """(..., s) -> (..., f): what the network sees of a state."""
        return state

    def targets(self, state: Tensor, following: Tensor) -> Tensor:
        """(..., d): what the network is to predict, from a state and the next."""
        return following - state

    def advance(self, state: Tensor, target: Tensor) -> Tensor:
        """(..., s): the next state, from a state and a prediction; the inverse of `targets`."""
        return state + target

    def augmented(self, states: Tensor, actions: Tensor, following: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows and what follows from them by a symmetry of the task; labels repeat in the same order."""
        return states, actions, following

    def state_cost(self, state: Tensor, context: Tensor, seen: Tensor) -> Tensor:
        """(...): cost of arriving in a state. context: broadcasts against the leading dimensions. seen: its features,
        which the next step wants too."""
        raise NotImplementedError

    def action_cost(self, action: Tensor) -> Tensor:
        """(...): cost of an action (..., a)."""
        return torch.zeros_like(action[..., 0])


class CartpoleTask(PlanningTask):
    """State (x, theta, velocities); context is the pole's length."""

    state_dim, feature_dim, target_dim, action_dim = 4, 5, 4, 1
    low, high = -3.0, 3.0

    def features(self, state: Tensor) -> Tensor:
        x, theta, dx, dtheta = state.unbind(-1)
        return torch.stack([theta.sin(), theta.cos(), x, dx, dtheta], dim=-1)

    def state_cost(self, state: Tensor, context: Tensor, seen: Tensor) -> Tensor:
        sine, cosine, x, _, _ = seen.unbind(-1)
        return -closeness(x, sine, cosine, context, exp=torch.exp)

    def action_cost(self, action: Tensor) -> Tensor:
        return 0.01 * action.square().sum(dim=-1)


class DuckietownTask(PlanningTask):
    """State (x, z, speed, heading); distance to the goal tile, or the reward of being there."""

    state_dim, feature_dim, target_dim, action_dim = 4, 4, 4, 2

    def state_cost(self, state: Tensor, context: Tensor, seen: Tensor) -> Tensor:
        distance = goal_distance(state[..., 0], state[..., 1], largest=torch.maximum)
        return torch.where(distance == 0, -ARRIVED, distance)


class HalfCheetahTask(PlanningTask):
    """State (20): the last entry, the forward velocity, is predicted as it is and is no input."""

    state_dim, feature_dim, target_dim, action_dim = 20, 19, 20, 6

    def features(self, state: Tensor) -> Tensor:
        return state[..., :19]

    def targets(self, state: Tensor, following: Tensor) -> Tensor:
        return torch.cat([following[..., :19] - state[..., :19], following[..., 19:]], dim=-1)

    def advance(self, state: Tensor, target: Tensor) -> Tensor:
        return torch.cat([state[..., :19] + target[..., :19], target[..., 19:]], dim=-1)

    def state_cost(self, state: Tensor, context: Tensor, seen: Tensor) -> Tensor:
        return -state[..., 19]

    def action_cost(self, action: Tensor) -> Tensor:
        return CONTROL_COST * action.square().sum(dim=-1)


class BaodingTask(PlanningTask):
    """State (40): joints, two balls, two targets; see `carl.baoding`. The balls are alike: every row counts twice."""

    state_dim, feature_dim, target_dim, action_dim = 40, 40, 40, 24
    swap: ClassVar[tuple[int, ...]] = (*range(24), *range(30, 36), *range(24, 30), 38, 39, 36, 37)

    def augmented(self, states: Tensor, actions: Tensor, following: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        swap = list(self.swap)
        return (
            torch.cat([states, states[..., swap]]),
            torch.cat([actions, actions]),
            torch.cat([following, following[..., swap]]),
        )

    def state_cost(self, state: Tensor, context: Tensor, seen: Tensor) -> Tensor:
        reward, _ = reward_of(state, norm=lambda x: torch.linalg.vector_norm(x, dim=-1), where=torch.where)
        return -reward


TASKS: dict[str, type[PlanningTask]] = {
    "cartpole": CartpoleTask, "duckietown": DuckietownTask, "half-cheetah": HalfCheetahTask,
    "baoding": BaodingTask,
}  # fmt: skip


def task_of(name: str) -> PlanningTask:
    """The task of an environment's name.

    Raises:
        UserError: no such environment.
    """
    check_choice("--env", name, TASKS)
    return TASKS[name]()
