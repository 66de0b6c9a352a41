"""Synaptic intelligence: importance is the loss that a weight's path has bought.

Along the path omega_i += -g_i dtheta_i, g the gradient of the task's own loss; at a task's end
Omega_i += max(omega_i, 0) / ((Delta theta_i)^2 + xi); loss + c sum Omega_i (theta_i - theta_i*)^2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from superposition.baselines.regulariser import Regulariser, copies, zeros


class SI(Regulariser):
    """See the module.

    Args:
        network: what is trained. strength: c. xi: damps the importance of weights that moved little.
    """

    def __init__(self, network: nn.Module, strength: float, xi: float = 0.1) -> None:
        super().__init__(network)
        self.strength, self.xi = strength, xi
        self.tasks = 0
        self.omega, self.importance = zeros(self.parameters), zeros(self.parameters)
        self.anchor = copies(self.parameters)  # theta*, and where the task began
        self._before: list[Tensor] = []
        self._own: list[Tensor] = []

    def gradient(self) -> dict[str, Tensor]:
        self._own = copies(self.gradients())
        self._before = copies(self.parameters)
        if self.tasks and self.strength != 0:
            self.add(self.penalty_gradient())
        return {}

    def penalty_gradient(self) -> list[Tensor]:
        """2 c Omega (theta - theta*), a tensor a parameter."""
        triples = zip(self.importance, self.parameters, self.anchor, strict=True)
        return [2 * self.strength * o * (p.detach() - a) for o, p, a in triples]

    def penalty(self) -> Tensor:
        """c sum Omega (theta - theta*)^2."""
        triples = zip(self.importance, self.parameters, self.anchor, strict=True)
        return self.strength * torch.stack([(o * (p.detach() - a).square()).sum() for o, p, a in triples]).sum()

    def after_step(self) -> None:
        for omega, own, parameter, before in zip(self.omega, self._own, self.parameters, self._before, strict=True):
            omega.sub_(own * (parameter.detach() - before))

    def end_task(self, x: Tensor, y: Tensor) -> None:
        for place, parameter in enumerate(self.parameters):
            moved = parameter.detach() - self.anchor[place]
            self.importance[place] += self.omega[place].clamp(min=0) / (moved.square() + self.xi)
        self.omega, self.anchor = zeros(self.parameters), copies(self.parameters)
        self.tasks += 1

    def state_dict(self) -> dict[str, Any]:
        return {"tasks": self.tasks, "omega": self.omega, "importance": self.importance, "anchor": self.anchor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.tasks = state["tasks"]
        self.omega, self.importance, self.anchor = (
            [t.to(p) for t, p in zip(state[name], self.parameters, strict=True)]
            for name in ("omega", "importance", "anchor")
        )
