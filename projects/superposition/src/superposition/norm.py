"""Batch normalisation when tasks share weights (section 2.6): none of its statistics may be shared by averaging.

`StaticBatchNorm2d` has no affine part and no running statistics: it uses the batch's, at test time too, as the authors'
networks do; a test batch must then hold one task. `PerTaskBatchNorm2d` keeps statistics for every context, so that a
single image can be classified.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.config import UserError
from superposition.contexts import Index


class StaticBatchNorm2d(nn.Module):
    """Statistics of the batch at hand, always; no affine part.

    Args:
        channels: C. eps: as `nn.BatchNorm2d`.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.channels, self.eps = channels, eps

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same.

        Raises:
            UserError: a single image, whose own statistics would take its content away.
        """
        if len(x) == 1 and not self.training:
            raise UserError("batch at test time", 1, "several images of one task", "--bn per-task keeps statistics.")
        return F.batch_norm(x, None, None, training=True, eps=self.eps)

    def extra_repr(self) -> str:
        return str(self.channels)


class PerTaskBatchNorm2d(nn.Module):
    """Running statistics for every context, no affine part; those of one context move only while it is trained.

    Args:
        channels: C. contexts: K. momentum, eps: as `nn.BatchNorm2d`.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int, contexts: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.k: Index = 0
        self.channels, self.contexts, self.momentum, self.eps = channels, contexts, momentum, eps
        self.register_buffer("mean", torch.zeros(contexts, channels))
        self.register_buffer("variance", torch.ones(contexts, channels))

    def forward(self, x: Tensor, k: Index | None = None) -> Tensor:
        """[B, C, H, W] to the same.

        Raises:
            IndexError: no such context.
        """
        k = self.k if k is None else k
        if isinstance(k, Tensor):
            self._check(int(k.min()))
            self._check(int(k.max()))
            if self.training:
                raise UserError("context of --bn per-task", "one for every sample", "one for the batch in training")
            shape = (len(x), self.channels, 1, 1)
            mean, variance = self.mean[k].view(shape), self.variance[k].view(shape)
            return (x - mean) * torch.rsqrt(variance + self.eps)
        k = int(k)
        self._check(k)
        return F.batch_norm(
            x, self.mean[k], self.variance[k], training=self.training, momentum=self.momentum, eps=self.eps
        )

    def _check(self, k: int) -> None:
        if not 0 <= k < self.contexts:
            raise IndexError(f"batch normalisation: context {k} asked for; there are contexts 0 to {self.contexts - 1}")

    def retrieved(self, k: int) -> nn.BatchNorm2d:
        """A plain layer with the statistics of one context.

        Raises:
            IndexError: no such context.
        """
        self._check(k)
        plain = nn.BatchNorm2d(self.channels, self.eps, self.momentum, affine=False).to(self.mean)
        assert plain.running_mean is not None
        assert plain.running_var is not None
        plain.running_mean.copy_(self.mean[k])
        plain.running_var.copy_(self.variance[k])
        return plain.train(self.training)

    def extra_repr(self) -> str:
        return f"{self.channels}, contexts={self.contexts}"
