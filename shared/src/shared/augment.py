"""Augmentation of whole batches: every random choice comes from the generator that is handed in."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor

from shared.config import check_choice

if TYPE_CHECKING:
    from shared.images import ImageData

KINDS = ("none", "flip", "crop-flip")
PAD = 4  # pixels on each side, as everyone does on CIFAR


def normalise(x: Tensor, data: ImageData) -> Tensor:
    """uint8 `[B, C, H, W]` to float, zero mean and unit variance a channel over the training set."""
    mean = torch.tensor(data.mean, device=x.device).view(1, -1, 1, 1)
    std = torch.tensor(data.std, device=x.device).view(1, -1, 1, 1)
    return (x.float() / 255 - mean) / std


def flip(x: Tensor, generator: Generator) -> Tensor:
    """Mirror each image left to right with probability a half."""
    mirrored = torch.rand(len(x), generator=generator, device=x.device) < 0.5
    return torch.where(mirrored.view(-1, 1, 1, 1), x.flip(3), x)


def crop(x: Tensor, generator: Generator, pad: int = PAD) -> Tensor:
    """Shift each image by up to `pad` pixels both ways; what comes in from outside is 0 (black, before normalising)."""
    batch, channels, height, width = x.shape
    padded = torch.nn.functional.pad(x, (pad, pad, pad, pad))
    shifts = torch.randint(0, 2 * pad + 1, (2, batch), generator=generator, device=x.device)
    rows = shifts[0, :, None] + torch.arange(height, device=x.device)  # [B, H]
    columns = shifts[1, :, None] + torch.arange(width, device=x.device)  # [B, W]
    index = rows[:, :, None] * (width + 2 * pad) + columns[:, None, :]  # [B, H, W] into the padded plane
    flat = padded.reshape(batch, channels, -1)
    return flat.gather(2, index.reshape(batch, 1, -1).expand(-1, channels, -1)).view(x.shape)


def augmentation(kind: str, data: ImageData) -> Callable[[Any, Generator], Any]:
    """A transform for `shared.data.Batches`: (uint8 images, labels) to (normalised float images, labels).

    Args:
        kind: `none`, `flip` or `crop-flip`.
        data: whose mean and standard deviation are taken.
    """
    check_choice("--augment", kind, KINDS)

    def apply(batch: Any, generator: Generator) -> Any:
        x, y = batch
        if kind == "crop-flip":
            x = crop(x, generator)
        if kind != "none":
            x = flip(x, generator)
        return normalise(x, data), y

    return apply
