"""Depth and surface normals from one image: a U-Net-like encoder with two decoders (paper section 4.4).

Each level has a block that is called repeatedly. The paper's four rows are four ways to share it:

    vanilla    one call
    reuse      the same block again, norms and their statistics included
    reuse-bn   the same kernels again, own batch norm for each call
    rpg        kernels and batch norm of its own for each call; a ring makes the kernels

With a ring of `generated_count(vanilla)` numbers all four have the same degrees of freedom in their kernels.
"""

from __future__ import annotations

import itertools
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, interpolate, normalize

from rpg.hosts.calls import Share, share_calls
from rpg.hosts.host import Host, kaiming_init
from rpg.hosts.resnet import BasicBlock, conv3x3
from shared.config import UserError, check_choice, check_range

Variant = Literal["vanilla", "reuse", "reuse-bn", "rpg"]
_SHARE: dict[str, Share] = {"vanilla": "none", "reuse": "all", "reuse-bn": "kernels", "rpg": "none"}
TASKS = {"depth": 1, "normals": 3}  # task -> channels


class Level(nn.Module):
    """A convolution into this resolution, then the repeated block."""

    def __init__(self, inputs: int, width: int, stride: int, calls: int, share: Share) -> None:
        super().__init__()
        self.conv = conv3x3(inputs, width, stride)
        self.norm = nn.BatchNorm2d(width)
        self.calls = share_calls([BasicBlock(width, width) for _ in range(calls)], share)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu()
        for call in self.calls:
            x = call(x)
        return x


class Decoder(nn.Module):
    """From the coarsest features up, taking the encoder's features of each resolution in; a map at full size."""

    def __init__(self, widths: list[int], outputs: int, calls: int, share: Share) -> None:
        super().__init__()
        steps = list(itertools.pairwise(reversed(widths)))  # coarse to fine
        self.levels = nn.ModuleList(Level(coarse + fine, fine, 1, calls, share) for coarse, fine in steps)
        self.head = nn.Conv2d(widths[0], outputs, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = features[-1]
        for level, skip in zip(self.levels, features[-2::-1], strict=True):
            x = level(torch.cat([interpolate(x, scale_factor=2, mode="nearest"), skip], dim=1))
        return self.head(x)


class MultiTaskNet(Host):
    """Shared encoder, a decoder for depth and one for normals.

    Generated are the convolutions of the encoder and of the decoders; the stem, the 1x1 heads and the norms are own.

    Args:
        num_classes: ignored: the outputs are a depth map and a normal map.
        width: channels at the full resolution, doubled at each coarser one.
        levels: resolutions.
        variant: `vanilla`, `reuse`, `reuse-bn` or `rpg`.
        calls: calls of each block; `vanilla` has one whatever this says.
    """

    generated_patterns: ClassVar[tuple[str, ...]] = (
        "encoder.*.conv.weight",
        "encoder.*.calls.*.conv?.weight",
        "decoders.*.levels.*.conv.weight",
        "decoders.*.levels.*.calls.*.conv?.weight",
    )

    def __init__(
        self,
        *,
        in_channels: int = 3,
        num_classes: int = 0,
        image_size: int = 64,
        width: int = 16,
        levels: int = 3,
        variant: str = "rpg",
        calls: int = 2,
    ) -> None:
        super().__init__()
        del num_classes
        check_range("width", width, 1)
        check_range("levels", levels, 2)
        check_range("calls", calls, 1)
        check_choice("variant", variant, get_args(Variant))
        if image_size % 2 ** (levels - 1):
            raise UserError("image_size", image_size, f"a multiple of 2^(levels - 1) = {2 ** (levels - 1)}")
        calls = 1 if variant == "vanilla" else calls
        share = _SHARE[variant]
        widths = [width * 2**l for l in range(levels)]
        self.stem = conv3x3(in_channels, width)
        self.norm = nn.BatchNorm2d(width)
        inputs = [width, *widths[:-1]]
        self.encoder = nn.ModuleList(
            Level(inputs[l], widths[l], 1 if l == 0 else 2, calls, share) for l in range(levels)
        )
        self.decoders = nn.ModuleDict({task: Decoder(widths, outputs, calls, share) for task, outputs in TASKS.items()})
        kaiming_init(self)
        # Where no feature is active the head's bias is all there is: start facing the viewer, not without direction.
        with torch.no_grad():
            self.decoders["normals"].head.bias[2] = 1  # pyright: ignore

    def stages(self) -> tuple[str, ...]:
        return tuple(name for name, part in self.named_modules() if isinstance(part, Level))

    def blocks(self) -> tuple[str, ...]:
        calls = [name for name, part in self.named_modules() if isinstance(part, BasicBlock)]
        return (*calls, *self.stages())  # a level's own convolution is a block of one layer

    def subnetworks(self) -> tuple[str, ...]:
        return tuple(f"decoders.{task}" for task in TASKS)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """`{"depth": [B, 1, H, W], "normals": [B, 3, H, W] of unit length}` of images `[B, C, H, W]`."""
        x = self.norm(self.stem(x)).relu()
        features = []  # fine to coarse, [B, width * 2^l, H / 2^l, W / 2^l]
        for level in self.encoder:
            x = level(x)
            features.append(x)
        return {
            "depth": self.decoders["depth"](features),
            "normals": normalize(self.decoders["normals"](features), dim=1),
        }


def depth_l1(predicted: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean absolute depth error over the valid pixels; all `[B, 1, H, W]`, `valid` boolean. Zero if none is valid."""
    return ((predicted - target).abs() * valid).sum() / valid.sum().clamp_min(1)


def normals_cosine(predicted: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean of 1 - cos(angle) over the valid pixels; normals `[B, 3, H, W]`, `valid` `[B, 1, H, W]`."""
    cosine = cosine_similarity(predicted, target, dim=1)[:, None]  # [B, 1, H, W]
    return ((1 - cosine) * valid).sum() / valid.sum().clamp_min(1)


def normals_degrees(predicted: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean angle in degrees over the valid pixels; shapes as in `normals_cosine`. For reports, not for training."""
    cosine = cosine_similarity(predicted, target, dim=1)[:, None].clamp(-1, 1)
    return (torch.rad2deg(torch.acos(cosine)) * valid).sum() / valid.sum().clamp_min(1)
