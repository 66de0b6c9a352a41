"""Stacked hourglasses for pose (Newell et al. 2016), joint heatmaps, and the PCKh score (paper section 4.3).

B batch, S stacks, J joints, h x w heatmap cells; keypoints are (x, y) in image pixels, pixel centres at integers,
NaN where a joint is not annotated.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d

from rpg.hosts.host import Host, kaiming_init
from rpg.hosts.resnet import conv1x1, conv3x3
from shared.config import UserError, check_choice, check_range


class Residual(nn.Module):
    """Pre-activation bottleneck: norm and ReLU come before each of the 1x1, 3x3, 1x1 convolutions."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        inner = outputs // 2
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv1x1(inputs, inner)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv2 = conv3x3(inner, inner)
        self.bn3 = nn.BatchNorm2d(inner)
        self.conv3 = conv1x1(inner, outputs)
        self.conv4 = conv1x1(inputs, outputs) if inputs != outputs else None  # the shortcut

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(self.bn1(x).relu())
        out = self.conv2(self.bn2(out).relu())
        out = self.conv3(self.bn3(out).relu())
        return out + (x if self.conv4 is None else self.conv4(x))


class Pyramid(nn.Module):
    """One hourglass: down by two, `depth` times, and up again with a shortcut at every resolution."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.skip = Residual(width, width)
        self.down = Residual(width, width)
        self.inner = Pyramid(depth - 1, width) if depth > 1 else Residual(width, width)
        self.up = Residual(width, width)

    def forward(self, x: Tensor) -> Tensor:
        low = self.up(self.inner(self.down(max_pool2d(x, 2))))
        return self.skip(x) + interpolate(low, scale_factor=2, mode="nearest")


class Stack(nn.Module):
    """A stage of the network: hourglass, residual block, 1x1 convolution. All stages have the same shapes."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.pyramid = Pyramid(depth, width)
        self.residual = Residual(width, width)
        self.conv = conv1x1(width, width)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.residual(self.pyramid(x)))).relu()


class Hourglass(Host):
    """Entry, then stacked stages, each of which predicts heatmaps and hands its features and predictions on.

    A stage's input is x + y + R(heatmaps): the stage before's input, its features and its remapped predictions.
    (The original has a 1x1 convolution on y there; without it all stages are equal and can draw from one ring.)
    Generated are the convolutions of the entry's residual blocks and of the stages; the 7x7 stem, the
    heatmap heads, the remaps and the norms are own.

    Args:
        num_classes: J, joints.
        stacks: S, stages; the paper has 1, 2 and 4.
        depth: halvings of each hourglass: 2 on a CPU, 4 in the original.
        width: channels, even: 32 on a CPU, 256 in the original.
        stride: image pixels per heatmap cell, 2 or 4; by default 2 for images up to 64 pixels, else 4.
    """

    generated_patterns: ClassVar[tuple[str, ...]] = (
        "entry.*.conv?.weight",
        "stacks.*.conv?.weight",
        "stacks.*.conv.weight",
    )
    width_step = 2

    def __init__(
        self,
        *,
        in_channels: int = 3,
        num_classes: int = 14,
        image_size: int = 64,
        stacks: int = 2,
        depth: int = 2,
        width: int = 32,
        stride: int | None = None,
    ) -> None:
        super().__init__()
        stride = stride if stride is not None else (2 if image_size <= 64 else 4)
        check_choice("stride", stride, (2, 4))
        check_range("stacks", stacks, 1)
        check_range("depth", depth, 1)
        check_range("width", width, 2)
        if width % 2:
            raise UserError("width", width, "an even number")
        if image_size % (stride * 2**depth):
            raise UserError("image_size", image_size, f"a multiple of stride * 2^depth = {stride * 2**depth}")
        self.stride = stride
        half = width // 2
        self.stem = nn.Conv2d(in_channels, half, 7, 2, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(half)
        self.entry = nn.Sequential(Residual(half, width), Residual(width, width))
        self.stacks = nn.ModuleList(Stack(depth, width) for _ in range(stacks))
        self.heads = nn.ModuleList(nn.Conv2d(width, num_classes, 1) for _ in range(stacks))
        self.remaps = nn.ModuleList(conv1x1(num_classes, width) for _ in range(stacks - 1))
        kaiming_init(self)

    def stages(self) -> tuple[str, ...]:
        return ("entry", *self.subnetworks())

    def blocks(self) -> tuple[str, ...]:
        residuals = [name for name, part in self.named_modules() if isinstance(part, Residual)]
        return (*residuals, *self.subnetworks())

    def subnetworks(self) -> tuple[str, ...]:
        return tuple(f"stacks.{s}" for s in range(len(self.stacks)))

    def forward(self, x: Tensor) -> Tensor:
        """Heatmaps of every stage, `[B, S, J, H/stride, W/stride]`, of images `[B, C, H, W]`."""
        x = self.norm(self.stem(x)).relu()  # [B, width/2, H/2, W/2]
        x = self.entry(max_pool2d(x, 2) if self.stride == 4 else x)  # [B, width, h, w]
        maps = []
        for s, (stack, head) in enumerate(zip(self.stacks, self.heads, strict=True)):
            y = stack(x)
            maps.append(head(y))
            if s < len(self.remaps):
                x = x + y + self.remaps[s](maps[-1])
        return torch.stack(maps, dim=1)


def heatmaps(keypoints: Tensor, size: int, sigma: float = 1.0, stride: int = 1) -> Tensor:
    """Gaussian bumps of height 1 at the joints.

    Args:
        keypoints: `[B, J, 2]`, (x, y) in image pixels; NaN gives an empty map.
        size: cells along each side of a map.
        sigma: standard deviation in cells.
        stride: image pixels per cell.

    Returns:
        `[B, J, size, size]`, rows are y.
    """
    cells = (keypoints + 0.5) / stride - 0.5  # the centre of a cell lies between pixel centres when it holds several
    axis = torch.arange(size, dtype=keypoints.dtype, device=keypoints.device)
    bumps = torch.exp(-((axis - cells[..., None]) ** 2) / (2 * sigma**2))  # [B, J, 2, size]
    return torch.nan_to_num(bumps[..., 1, :, None] * bumps[..., 0, None, :], nan=0.0)


def intermediate_loss(maps: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of the heatmaps of every stage `[B, S, J, h, w]` against one target `[B, J, h, w]`."""
    return ((maps - target[:, None]) ** 2).mean()


def decode(maps: Tensor, stride: int = 1) -> Tensor:
    """Joints from heatmaps: the largest cell, moved a quarter cell towards its larger neighbour (Newell et al.).

    Args:
        maps: `[B, J, h, w]`, of the last stage.
        stride: image pixels per cell.

    Returns:
        `[B, J, 2]`, (x, y) in image pixels.
    """
    h, w = maps.shape[-2:]
    best = maps.flatten(-2).argmax(-1)  # [B, J]
    y, x = best // w, best % w
    rows = maps.gather(-2, y[..., None, None].expand(*y.shape, 1, w))[..., 0, :]  # the peak's row [B, J, w]
    columns = maps.gather(-1, x[..., None, None].expand(*x.shape, h, 1))[..., 0]  # the peak's column [B, J, h]
    cells = torch.stack([_refined(x, rows), _refined(y, columns)], dim=-1)
    return (cells + 0.5) * stride - 0.5


def _refined(peak: Tensor, profile: Tensor) -> Tensor:
    """Peak index [B, J] along a profile [B, J, n], moved a quarter towards its larger neighbour; not at an edge."""
    n = profile.shape[-1]
    left = profile.gather(-1, (peak - 1).clamp_min(0)[..., None])[..., 0]
    right = profile.gather(-1, (peak + 1).clamp_max(n - 1)[..., None])[..., 0]
    inside = (peak > 0) & (peak < n - 1)
    return peak + 0.25 * torch.sign(right - left) * inside


def pckh(predicted: Tensor, target: Tensor, head_length: Tensor, threshold: float = 0.5) -> Tensor:
    """Share of annotated joints whose error is at most `threshold` head lengths (PCKh; Andriluka et al. 2014).

    Args:
        predicted, target: `[B, J, 2]`, in the same units; a NaN target is not annotated, a NaN prediction is wrong.
        head_length: `[B]`, in the units of the keypoints.

    Returns:
        A scalar in [0, 1]; NaN when nothing is annotated.
    """
    annotated = target.isfinite().all(-1)  # [B, J]
    error = (predicted - target).norm(dim=-1)
    return (error <= threshold * head_length[:, None])[annotated].float().mean()
