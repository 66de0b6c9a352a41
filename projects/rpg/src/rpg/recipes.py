"""How networks are trained: optimiser and schedule by name, the same for a ring and for its baselines.

`paper` and `imagenet` are the paper's settings for CIFAR and ImageNet, `repo` is what the authors' code does;
`onecycle` and `adam` are short schedules for small machines. Milestones are kept as fractions of the run, so that a
shorter run is the same schedule in less time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR


@dataclass(frozen=True)
class Defaults:
    """What a recipe uses unless told otherwise."""

    lr: float
    weight_decay: float
    ring_lr: float | None = None  # None: the same as lr


DEFAULTS: dict[str, Defaults] = {
    "onecycle": Defaults(0.1, 5e-4),
    "adam": Defaults(3e-3, 0.0, 6e-2),
    "paper": Defaults(0.1, 5e-4),
    "imagenet": Defaults(0.3, 3e-5),
    "repo": Defaults(0.1, 1e-4),
}


def make_optimizer(recipe: str, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
    """The recipe's optimiser over parameter groups that carry their own `lr` and `weight_decay`."""
    if recipe == "adam":
        return torch.optim.Adam(list(groups), lr=1e-3)
    return torch.optim.SGD(list(groups), lr=0.1, momentum=0.9, nesterov=recipe == "onecycle")


def make_schedule(recipe: str, optimizer: torch.optim.Optimizer, total: int) -> LRScheduler:
    """The recipe's schedule over `total` steps, applied to each group's own rate."""
    if recipe == "onecycle":
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        # One step more than the run: torch raises on stepping past the end. Momentum stays what the recipe says.
        return OneCycleLR(optimizer, max_lr=rates, total_steps=max(2, total + 1), pct_start=0.3, cycle_momentum=False)
    return LambdaLR(optimizer, lambda step: schedule_factor(recipe, step / total))


def schedule_factor(recipe: str, progress: float) -> float:
    """Factor of the learning rate after a fraction `progress` of the run.

    adam: half a cosine. paper: x0.1 at 60, 120 and 160 of 200 epochs. imagenet: x0.1 every 75 of 225.
    repo: 0.1^(epoch/45) over 90 epochs.
    """
    if recipe == "adam":
        return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    if recipe == "paper":
        return 0.1 ** sum(progress >= milestone for milestone in (0.3, 0.6, 0.8))
    if recipe == "imagenet":
        return 0.1 ** min(int(progress * 3), 2)
    return 0.1 ** (2 * progress)
