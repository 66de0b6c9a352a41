"""Averaged gradient episodic memory: a step may not make the loss on stored samples worse, to first order.

Where g . g_ref < 0: g <- g - (g . g_ref / g_ref . g_ref) g_ref, g_ref from a random batch of the memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from superposition.baselines.regulariser import Regulariser
from superposition.contexts import derived_seed


class AGEM(Regulariser):
    """See the module.

    Args:
        network: what is trained. batch: samples of the memory that g_ref is taken from. seed: of their choice.
    """

    def __init__(self, network: nn.Module, batch: int = 256, seed: int = 0) -> None:
        super().__init__(network)
        self.batch, self.seed, self.steps = batch, seed, 0
        self.x: Tensor | None = None
        self.y: Tensor | None = None

    def gradient(self) -> dict[str, Tensor]:
        if self.x is None or self.y is None:
            return {}
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "memory", self.steps))
        self.steps += 1
        chosen = torch.randperm(len(self.x), generator=generator)[: self.batch].to(self.x.device)
        loss = F.cross_entropy(self.network(self.x[chosen]), self.y[chosen])
        reference = torch.autograd.grad(loss, self.parameters)
        return {"projected": self.project(list(reference))}

    def project(self, reference: list[Tensor]) -> Tensor:
        """Take out what opposes the reference; returns 1.0 where something was taken out."""
        own = self.gradients()
        dot = torch.stack([(g * r).sum() for g, r in zip(own, reference, strict=True)]).sum()
        square = torch.stack([r.square().sum() for r in reference]).sum()
        factor = torch.where(dot < 0, dot / square.clamp(min=1e-30), torch.zeros_like(dot))
        self.add([-factor * r for r in reference])
        return (dot < 0).float()

    def end_task(self, x: Tensor, y: Tensor) -> None:
        self.x = x if self.x is None else torch.cat([self.x, x])
        self.y = y if self.y is None else torch.cat([self.y, y])

    def state_dict(self) -> dict[str, Any]:
        return {"x": self.x, "y": self.y, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        device = self.parameters[0].device
        self.x, self.y = (state[n].to(device) if state[n] is not None else None for n in ("x", "y"))
        self.steps = state["steps"]
