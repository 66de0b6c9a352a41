"""Vision transformer (Dosovitskiy et al. 2021; the tiny size of Touvron et al. 2021), pre-norm, with a class token.

B batch, T tokens (patches and the class token), D width, A heads.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from rpg.hosts.host import Host
from shared.config import UserError, check_range


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, A, T, D/A]
        return self.proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Feedforward(nn.Module):
    """Two linear maps around a GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class TransformerBlock(nn.Module):
    """Attention, then the feed-forward part, each after a layer norm and around a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Feedforward(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(Host):
    """Generated are the four weight matrices of each block; patch and position embeddings and the head are own.

    Args:
        depth: blocks.
        width: D, a multiple of the heads.
        heads: A.
        patch: side of a patch in pixels; by default 16 for images of 128 pixels and more, else 4.
    """

    generated_patterns: ClassVar[tuple[str, ...]] = (
        "layers.*.attn.qkv.weight",
        "layers.*.attn.proj.weight",
        "layers.*.mlp.fc?.weight",
    )

    def __init__(
        self,
        *,
        in_channels: int = 3,
        num_classes: int = 10,
        image_size: int = 32,
        depth: int = 4,
        width: int = 64,
        heads: int = 4,
        patch: int | None = None,
    ) -> None:
        super().__init__()
        patch = patch if patch is not None else (16 if image_size >= 128 else 4)
        check_range("depth", depth, 1)
        check_range("heads", heads, 1)
        check_range("patch", patch, 1)
        check_range("width", width, 1)
        if width % heads:
            raise UserError("width", width, f"a multiple of the {heads} heads")
        if image_size % patch:
            raise UserError("image_size", image_size, f"a multiple of the patch, {patch} pixels")
        self.width_step = heads
        self.patch_embed = nn.Conv2d(in_channels, width, patch, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (image_size // patch) ** 2, width))
        self.layers = nn.Sequential(*[TransformerBlock(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, num_classes)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.trunc_normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def initialisation(self, name: str) -> str:
        return "trunc_normal"

    def stages(self) -> tuple[str, ...]:
        return ("layers",)

    def blocks(self) -> tuple[str, ...]:
        return tuple(f"layers.{b}" for b in range(len(self.layers)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, K]` of images `[B, C, H, W]`."""
        x = self.patch_embed(x).flatten(2).transpose(1, 2)  # [B, T-1, D]
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed  # [B, T, D]
        return self.head(self.norm(self.layers(x)[:, 0]))
