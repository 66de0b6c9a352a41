"""The probabilistic ensemble: what the next state may be, and whether it is a catastrophe, by several nets at once.

Every net gives a Gaussian over the change of the state, with learnt variance, and one logit. All nets are one batch of
matrices. What differs between nets is what the data left open (epistemic uncertainty); what each net's variance says is
noise (aleatoric).

Dimensions: E nets, B rows, i inputs, d predicted dimensions, h hidden units.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from carl.catastrophe import LossName, catastrophe_loss
from shared.config import UserError, check_range

MAX_LOGVAR, MIN_LOGVAR = 0.5, -10.0  # where the learnt bounds of the log-variance start
BOUND_WEIGHT = 0.01  # of the bounds' distance in the loss
CONSTANT = 1e-12  # inputs that spread less are taken as they are


class Prediction(NamedTuple):
    """mean, logvar (E, B, d); logit (E, B, 1)."""

    mean: Tensor
    logvar: Tensor
    logit: Tensor


class Losses(NamedTuple):
    """Parts of the loss: `likelihood` (with the bounds), `decay`, `head`; their sum is what is minimised."""

    likelihood: Tensor
    decay: Tensor
    head: Tensor

    @property
    def total(self) -> Tensor:
        return self.likelihood + self.decay + self.head


def bounded(raw: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Log-variances drawn softly into [low, high]."""
    upper = high - softplus(high - raw)
    return low + softplus(upper - low)


class Ensemble(nn.Module):
    """E perceptrons side by side with swish activations.

    Args:
        nets: E. in_dim: i. out_dim: d.
        hidden: widths of the hidden layers.
        decays: weight decay of every layer, one more than `hidden`.
        generator: of the initial weights.
        activation: of the hidden layers.
        probabilistic: predict a variance too. Else a mean alone, learned by squared error on normalised targets.

    Raises:
        UserError: sizes that are not positive, as many decays as layers not given.
    """

    mean_in: Tensor
    std_in: Tensor
    mean_out: Tensor
    std_out: Tensor

    def __init__(
        self,
        nets: int,
        in_dim: int,
        out_dim: int,
        hidden: Sequence[int],
        decays: Sequence[float],
        generator: torch.Generator | None = None,
        activation: Literal["swish", "relu"] = "swish",
        probabilistic: bool = True,
    ) -> None:
        super().__init__()
        check_range("--nets", nets, 1)
        for width in hidden:
            check_range("--hidden", width, 1)
        if len(decays) != len(hidden) + 1:
            raise UserError("decays", list(decays), f"one for each of {len(hidden) + 1} layers")
        self.nets, self.in_dim, self.out_dim, self.decays = nets, in_dim, out_dim, tuple(decays)
        self.activation, self.probabilistic = activation, probabilistic
        widths = [in_dim, *hidden, (2 * out_dim if probabilistic else out_dim) + 1]
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for fan_in, fan_out in itertools.pairwise(widths):
            scale = 1 / (2 * math.sqrt(fan_in))
            weight = torch.empty(nets, fan_in, fan_out)
            nn.init.trunc_normal_(weight, std=scale, a=-2 * scale, b=2 * scale, generator=generator)
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(torch.zeros(nets, 1, fan_out)))
        self.max_logvar = nn.Parameter(torch.full((1, 1, out_dim), MAX_LOGVAR))
        self.min_logvar = nn.Parameter(torch.full((1, 1, out_dim), MIN_LOGVAR))
        self.register_buffer("mean_in", torch.zeros(1, 1, in_dim))
        self.register_buffer("std_in", torch.ones(1, 1, in_dim))
        self.register_buffer("mean_out", torch.zeros(1, 1, out_dim))
        self.register_buffer("std_out", torch.ones(1, 1, out_dim))

    @torch.no_grad()
    def normalise(self, inputs: Tensor) -> None:
        """Take mean and spread of the inputs [n, i] as those of the data; a Gaussian's targets are not normalised."""
        std, mean = torch.std_mean(inputs, dim=0, correction=0)
        self.mean_in.copy_(mean)
        self.std_in.copy_(torch.where(std < CONSTANT, 1.0, std))

    @torch.no_grad()
    def normalise_targets(self, targets: Tensor) -> None:
        """The same for the targets [n, d] of nets that predict a mean alone."""
        std, mean = torch.std_mean(targets, dim=0, correction=0)
        self.mean_out.copy_(mean)
        self.std_out.copy_(torch.where(std < CONSTANT, 1.0, std))

    def act(self, h: Tensor) -> Tensor:
        """The hidden layers' activation; may write over its argument."""
        if self.activation == "relu":
            return h.relu()
        return torch.nn.functional.silu(h)

    def forward(self, x: Tensor) -> Prediction:
        """x: (E, B, i), or (B, i) for the same rows to all nets."""
        if x.dim() == 2:
            x = x.unsqueeze(0).expand(self.nets, -1, -1)
        h = (x - self.mean_in) / self.std_in
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(bias, h, weight)  # (E, B, h)
            if layer < len(self.weights) - 1:
                h = self.act(h)
        if not self.probabilistic:
            mean, logit = h.split([self.out_dim, 1], dim=-1)
            mean = mean * self.std_out + self.mean_out
            return Prediction(mean, torch.full_like(mean, -torch.inf), logit)
        mean, raw, logit = h.split([self.out_dim, self.out_dim, 1], dim=-1)
        return Prediction(mean, bounded(raw, self.min_logvar, self.max_logvar), logit)

    def losses(self, x: Tensor, y: Tensor, catastrophe: Tensor | None, head: LossName = "scaled") -> Losses:
        """The loss of a minibatch: every net on rows of its own.

        Args:
            x: (E, B, i). y: (E, B, d). catastrophe: (E, B) flags of the next state; None leaves the head alone.
            head: how the head's loss is weighted.
        """
        mean, logvar, logit = self(x)
        if not self.probabilistic:
            error = (((mean - y) / self.std_out).square()).mean(dim=(1, 2)).sum()
            return Losses(error, self._decay(), self._head_loss(logit, catastrophe, head))
        gaussian = ((mean - y).square() * torch.exp(-logvar) + logvar).mean(dim=(1, 2)).sum()
        bounds = BOUND_WEIGHT * (self.max_logvar.sum() - self.min_logvar.sum())
        return Losses(gaussian + bounds, self._decay(), self._head_loss(logit, catastrophe, head))

    def _decay(self) -> Tensor:
        return torch.stack(
            [weight.square().sum() * (rate / 2) for rate, weight in zip(self.decays, self.weights, strict=True)]
        ).sum()

    def _head_loss(self, logit: Tensor, catastrophe: Tensor | None, head: LossName) -> Tensor:
        if catastrophe is None:
            return logit.new_zeros(())
        return catastrophe_loss(logit.squeeze(-1), catastrophe, head)


def minibatches(rows: int, nets: int, epochs: int, batch: int, generator: torch.Generator) -> list[Tensor]:
    """Bootstrap rows of every net, walked in minibatches: (E, <= batch) indices a step.

    Each net draws its own `rows` rows with replacement, once a fit; every epoch walks them in a new order, to the last,
    smaller batch.
    """
    drawn = torch.randint(rows, (nets, rows), generator=generator)
    found = []
    for _ in range(epochs):
        order = torch.rand(nets, rows, generator=generator).argsort(dim=1)
        found += list(drawn.gather(1, order).split(batch, dim=1))
    return found
