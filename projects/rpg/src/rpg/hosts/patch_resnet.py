"""The small convolutional host of the CPU experiments: a patch stem and residual pairs of equal convolutions."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from rpg.hosts.host import Host, kaiming_init
from rpg.hosts.resnet import BasicBlock
from shared.config import UserError, check_range


class PatchResNet(Host):
    """A 4x4/4 convolution to `width` channels, then `depth` residual pairs of 3x3 convolutions, each with its own BN.

    With width 32 and four pairs, 8 * 9 * 32^2 = 73,728 weights are generated, all in layers of one shape: the
    plainest case of many layers drawn from one layer's worth of numbers.

    Args:
        depth: residual pairs.
        width: channels throughout; 11 gives 8,712 weights, the narrow net beside a ring of 9,216.
        patch: side of a patch in pixels; `image_size` is a multiple of it.
        zero_init: zero the last BN scale of each pair.
    """

    generated_patterns: ClassVar[tuple[str, ...]] = ("pairs.*.conv?.weight",)

    def __init__(
        self,
        *,
        in_channels: int = 3,
        num_classes: int = 10,
        image_size: int = 32,
        depth: int = 4,
        width: int = 32,
        patch: int = 4,
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        check_range("depth", depth, 1)
        check_range("width", width, 1)
        check_range("patch", patch, 1)
        if image_size % patch:
            raise UserError("image_size", image_size, f"a multiple of the patch, {patch} pixels")
        self.stem = nn.Conv2d(in_channels, width, patch, patch, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.pairs = nn.Sequential(*[BasicBlock(width, width) for _ in range(depth)])
        self.head = nn.Linear(width, num_classes)
        kaiming_init(self)
        if zero_init:
            for pair in self.pairs:
                nn.init.zeros_(pair.bn2.weight)  # pyright: ignore

    def stages(self) -> tuple[str, ...]:
        return ("pairs",)

    def blocks(self) -> tuple[str, ...]:
        return tuple(f"pairs.{b}" for b in range(len(self.pairs)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, K]` of images `[B, C, H, W]`."""
        x = self.norm(self.stem(x)).relu()  # [B, width, H/patch, W/patch]
        return self.head(self.pairs(x).mean((2, 3)))
