"""Corrupted test images: a stand-in for data from elsewhere (the paper uses ObjectNet), at five severities."""

from __future__ import annotations

import torch
from torch import Tensor

from shared.config import check_choice, check_range

CORRUPTIONS = ("noise", "blur", "contrast", "brightness")


def corrupt(images: Tensor, kind: str, severity: int, seed: int = 0) -> Tensor:
    """Corrupt uint8 images `[N, C, H, W]`.

    Args:
        kind: `noise` (Gaussian), `blur` (Gaussian), `contrast` (towards each image's mean), `brightness`.
        severity: 1 to 5.
        seed: of the noise.
    """
    check_choice("corruption", kind, CORRUPTIONS)
    check_range("severity", severity, 1, 5)
    x = images.float() / 255
    if kind == "noise":
        generator = torch.Generator(images.device).manual_seed(seed)
        x = x + 0.05 * severity * torch.randn(x.shape, generator=generator, device=x.device)
    elif kind == "blur":
        x = gaussian_blur(x, 0.4 * severity)
    elif kind == "contrast":
        mean = x.mean((1, 2, 3), keepdim=True)
        x = mean + (x - mean) * (1 - 0.16 * severity)
    else:
        x = x + 0.1 * severity
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)


def gaussian_blur(x: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian blur of `[N, C, H, W]`, edges replicated; sigma in pixels."""
    radius = max(1, round(3 * sigma))
    offsets = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    channels = x.shape[1]
    padded = torch.nn.functional.pad(x, (radius,) * 4, mode="replicate")
    rows = kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    columns = kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    blurred = torch.nn.functional.conv2d(padded, rows, groups=channels)
    return torch.nn.functional.conv2d(blurred, columns, groups=channels)
