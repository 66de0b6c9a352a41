"""Multi-layer perceptron: pixels - h - ... - h - classes."""

from __future__ import annotations

import itertools
import math
from typing import ClassVar

from torch import Tensor, nn

from rpg.hosts.host import Host
from shared.config import check_range


class MLP(Host):
    """Fully connected ReLU network without normalisation.

    All weight matrices are generated, the last one too (784-128-128-10 has 118,016 of them); biases are
    the host's own. With a classifier of its own the smallest rings would be a small part of the parameters.

    Args:
        depth: hidden layers.
        width: units in each.
    """

    generated_patterns: ClassVar[tuple[str, ...]] = ("layers.*.weight",)

    def __init__(
        self, *, in_channels: int = 1, num_classes: int = 10, image_size: int = 28, depth: int = 2, width: int = 128
    ) -> None:
        super().__init__()
        check_range("depth", depth, 0)
        check_range("width", width, 1)
        sizes = [in_channels * image_size**2, *[width] * depth, num_classes]
        self.layers = nn.ModuleList(nn.Linear(fan_in, out) for fan_in, out in itertools.pairwise(sizes))
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            nn.init.normal_(layer.weight, std=math.sqrt(2 / layer.in_features))
            nn.init.zeros_(layer.bias)

    def initialisation(self, name: str) -> str:
        # Nothing normalises what a layer makes, so its scale counts where it is read: fan_in. No ReLU follows the head.
        return "linear" if name == f"layers.{len(self.layers) - 1}.weight" else "fan_in"

    def stages(self) -> tuple[str, ...]:
        return tuple(f"layers.{l}" for l in range(len(self.layers)))

    def blocks(self) -> tuple[str, ...]:
        return self.stages()

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, K]` of images `[B, C, H, W]` or of flat inputs `[B, C*H*W]`."""
        x = x.flatten(1)
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)
