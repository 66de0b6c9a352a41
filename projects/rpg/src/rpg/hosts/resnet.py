"""ResNet-18/34/50 (He et al. 2016) in the ImageNet form and in the CIFAR form.

Parameters carry torchvision's names, so its state dicts load into the ImageNet form as they are.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from rpg.hosts.host import Host, kaiming_init
from shared.config import check_choice, check_range

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}  # depth -> blocks in each stage


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def conv1x1(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, stride, bias=False)


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """1x1 convolution + BN where the shape changes, else None: the identity."""
    if inputs == outputs and stride == 1:
        return None
    return nn.Sequential(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, each with its own BN, around a shortcut."""

    expansion: ClassVar[int] = 1

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn1(self.conv1(x)).relu()
        out = self.bn2(self.conv2(out))
        return (out + (x if self.downsample is None else self.downsample(x))).relu()


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 to four times the width, around a shortcut."""

    expansion: ClassVar[int] = 4

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = conv1x1(inputs, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, outputs)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn1(self.conv1(x)).relu()
        out = self.bn2(self.conv2(out)).relu()
        out = self.bn3(self.conv3(out))
        return (out + (x if self.downsample is None else self.downsample(x))).relu()


class ResNet(Host):
    """ResNet; generated are all convolutions but the stem, shortcuts included.

    Args:
        depth: 18, 34 or 50.
        form: `cifar` (3x3 stem, no pooling) or `imagenet` (7x7/2 stem and 3x3/2 max-pooling); by default the
            first for images up to 64 pixels.
        width: channels of the first stage, doubled at each of the other three. The paper's hosts have 64.
        zero_init: zero the last BN scale of each block, so that every block starts as the identity.
    """

    generated_patterns: ClassVar[tuple[str, ...]] = ("layer[1-4].*.conv?.weight", "layer[1-4].*.downsample.0.weight")

    def __init__(
        self,
        *,
        depth: int = 18,
        in_channels: int = 3,
        num_classes: int = 10,
        image_size: int = 32,
        form: str | None = None,
        width: int = 64,
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        check_choice("depth", depth, BLOCKS)
        check_range("width", width, 1)
        form = form if form is not None else ("cifar" if image_size <= 64 else "imagenet")
        check_choice("form", form, ("cifar", "imagenet"))
        block = BasicBlock if depth < 50 else Bottleneck

        if form == "cifar":
            self.conv1 = conv3x3(in_channels, width)
            self.maxpool = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(in_channels, width, 7, 2, padding=3, bias=False)
            self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.bn1 = nn.BatchNorm2d(width)

        channels = width
        self._blocks: list[str] = []
        for s, count in enumerate(BLOCKS[depth]):
            stage = nn.Sequential()
            for b in range(count):
                stage.append(block(channels, width * 2**s, stride=2 if s > 0 and b == 0 else 1))
                channels = width * 2**s * block.expansion
                self._blocks.append(f"layer{s + 1}.{b}")
            self.add_module(f"layer{s + 1}", stage)
        self.fc = nn.Linear(channels, num_classes)

        kaiming_init(self)
        if zero_init:
            for part in self.modules():
                if isinstance(part, (BasicBlock, Bottleneck)):
                    nn.init.zeros_((part.bn2 if isinstance(part, BasicBlock) else part.bn3).weight)

    def stages(self) -> tuple[str, ...]:
        return ("layer1", "layer2", "layer3", "layer4")

    def blocks(self) -> tuple[str, ...]:
        return tuple(self._blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, K]` of images `[B, C, H, W]`."""
        x = self.maxpool(self.bn1(self.conv1(x)).relu())  # [B, width, H, W], or a quarter of the size
        for stage in self.stages():
            x = self.get_submodule(stage)(x)
        return self.fc(x.mean((2, 3)))
