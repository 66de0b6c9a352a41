"""Complex activations as one real tensor of two parts: two products of matrices are then one (section 2.4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Complex:
    """z = a + ib.

    Attributes:
        parts: [2, B, ...], a and b.
    """

    parts: Tensor

    @property
    def real(self) -> Tensor:
        return self.parts[0]

    @property
    def imag(self) -> Tensor:
        return self.parts[1]

    def relu(self) -> Complex:
        """Of both parts separately."""
        return Complex(self.parts.relu())

    def native(self) -> Tensor:
        """As torch's own complex tensor [B, ...]."""
        return torch.complex(self.parts[0], self.parts[1])

    def flatten(self) -> Complex:
        """[B, ...] to [B, d]."""
        return Complex(self.parts.flatten(2))

    @staticmethod
    def of(x: Tensor) -> Complex:
        """From a complex tensor, or from a real one with an imaginary part of 0."""
        if x.is_complex():
            return Complex(torch.stack([x.real, x.imag]))
        return Complex(torch.stack([x, torch.zeros_like(x)]))
