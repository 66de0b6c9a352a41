"""Layers over a ring, for those who write a network by hand; `rpg.RPGModel` does it to a finished one.

    plan = make_plan([layer.weight.numel() for layer in layers], ring_size=1000)
    ring = Ring(plan, scales)
    convolution = RPGConv2d(ring, 0, 16, 32, 3, padding=1)     # a layer of its own, or
    draw(network.conv2, ring, 1)                               # one that is there already, by torch's parametrization

The ring is a submodule of every layer that draws from it: parameters, devices and copies stay right wherever it is
looked for, and it counts once among a network's parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from rpg.ring import Ring
from shared.config import UserError, check_range


class Drawn(nn.Module):
    """Parametrization: whatever the weight was, it is layer `layer` of `ring` now.

    Args:
        ring: where numbers come from. layer: which of its plan's layers. shape: of the weight.

    Raises:
        UserError: no such layer, or one of another size; both sizes are named.
    """

    def __init__(self, ring: Ring, layer: int, shape: Sequence[int]) -> None:
        super().__init__()
        check_range("layer", layer, 0, len(ring.plan.sizes) - 1)
        if ring.plan.sizes[layer] != math.prod(shape):
            fits = f"{ring.plan.sizes[layer]} numbers, the size of the plan's layer {layer}"
            raise UserError("weight", f"{tuple(shape)}, {math.prod(shape)} numbers", fits)
        self.ring, self.layer, self.shape = ring, layer, tuple(shape)

    def forward(self, _: Tensor | None = None) -> Tensor:
        """theta_l in the weight's shape."""
        return self.ring.layer(self.layer).view(self.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What is left to store of the weight: nothing."""
        return weight.new_empty(0)

    def extra_repr(self) -> str:
        return f"layer={self.layer}, shape={self.shape}"


def draw(module: nn.Module, ring: Ring, layer: int, name: str = "weight") -> nn.Module:
    """Let a parameter of a module be drawn from a ring from now on, by `torch.nn.utils.parametrize`.

    Args:
        module: changed in place, and returned.
        ring, layer: where the numbers come from.
        name: of the parameter.

    Raises:
        UserError: no such parameter or layer, or sizes that differ.
    """
    parameters = dict(module.named_parameters(recurse=False))
    if name not in parameters:
        raise UserError("name", name, list(parameters) or "a parameter of the module")
    parametrize.register_parametrization(module, name, Drawn(ring, layer, parameters[name].shape))
    # Empty, and part of no computation: an optimiser or `DistributedDataParallel` must not wait for its gradient.
    getattr(module.parametrizations, name).original.requires_grad_(False)  # pyright: ignore
    return module


class RPGLinear(nn.Linear):
    """`nn.Linear` whose weight `[out, in]` is a layer of a ring; the bias is its own.

    Args:
        ring, layer: where the weight comes from. Other arguments as for `nn.Linear`.

    Raises:
        UserError: no such layer, or one of another size.
    """

    def __init__(self, ring: Ring, layer: int, in_features: int, out_features: int, **options: Any) -> None:
        super().__init__(in_features, out_features, **options)
        self.drawn = _instead_of_weight(self, ring, layer)

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.drawn(), self.bias)


class RPGConv2d(nn.Conv2d):
    """`nn.Conv2d` whose weight `[out, in / groups, k, k]` is a layer of a ring; the bias is its own.

    Args:
        ring, layer: where the weight comes from. Other arguments as for `nn.Conv2d`.

    Raises:
        UserError: no such layer, or one of another size.
    """

    def __init__(
        self, ring: Ring, layer: int, in_channels: int, out_channels: int, kernel_size: int, **options: Any
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, **options)
        self.drawn = _instead_of_weight(self, ring, layer)

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.drawn(), self.bias)


def _instead_of_weight(module: nn.Module, ring: Ring, layer: int) -> Drawn:
    drawn = Drawn(ring, layer, module.weight.shape)  # pyright: ignore[reportArgumentType, reportCallIssue]
    del module.weight
    module.register_parameter("weight", None)
    return drawn
