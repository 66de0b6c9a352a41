"""Everything that was met: rows of state, action, next state and whether that was a catastrophe.

Dimensions: n rows, s state, a action.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Buffer:
    """Rows in order; grows by episodes, forgets nothing.

    Args:
        state_dim: s. action_dim: a. device: where rows are kept.
    """

    def __init__(self, state_dim: int, action_dim: int, device: torch.device | str = "cpu") -> None:
        self.states = torch.empty(0, state_dim, device=device)
        self.actions = torch.empty(0, action_dim, device=device)
        self.following = torch.empty(0, state_dim, device=device)
        self.catastrophes = torch.empty(0, device=device)

    def __len__(self) -> int:
        return len(self.states)

    def add(self, states: Tensor, actions: Tensor, catastrophes: Tensor) -> None:
        """An episode: states (n + 1, s), actions (n, a), catastrophes (n,) of the states that followed.

        Raises:
            ValueError: a value that is not finite; such an episode must be cut before it.
        """
        if not bool(states.isfinite().all() and actions.isfinite().all()):
            raise ValueError("an episode with values that are not finite")
        device = self.states.device
        self.states = torch.cat([self.states, states[:-1].to(device, torch.float32)])
        self.following = torch.cat([self.following, states[1:].to(device, torch.float32)])
        self.actions = torch.cat([self.actions, actions.to(device, torch.float32)])
        self.catastrophes = torch.cat([self.catastrophes, catastrophes.to(device, torch.float32)])

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("states", "actions", "following", "catastrophes")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("states", "actions", "following", "catastrophes"):
            setattr(self, name, state[name].to(self.states.device))
