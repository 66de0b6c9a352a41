"""The places of a training step at which a baseline may act."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

LossOf = Callable[[Tensor, Tensor], Tensor]  # (x, y) -> mean loss of the network as it is


class Regulariser:
    """Does nothing; subclasses do.

    Args:
        network: what is trained. Its parameters that ask for gradients are the ones protected.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.parameters: list[nn.Parameter] = [p for p in network.parameters() if p.requires_grad]

    def before_step(self) -> None:
        """Before the gradient of a step is taken."""

    def gradient(self) -> dict[str, Tensor]:
        """Between backward and update: change the gradients. Returns metrics."""
        return {}

    def after_step(self) -> None:
        """After the update."""

    def end_task(self, x: Tensor, y: Tensor) -> None:
        """A task is over; x and y are samples of it."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass

    def gradients(self) -> list[Tensor]:
        """Gradients of the parameters, zeros where there is none."""
        return [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]

    def add(self, terms: Sequence[Tensor]) -> None:
        """Add to the gradients."""
        for parameter, term in zip(self.parameters, terms, strict=True):
            parameter.grad = term if parameter.grad is None else parameter.grad.add_(term)


def copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Detached copies."""
    return [tensor.detach().clone() for tensor in tensors]


def zeros(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Zeros of the same shapes."""
    return [torch.zeros_like(tensor) for tensor in tensors]
