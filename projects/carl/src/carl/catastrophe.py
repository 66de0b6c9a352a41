"""The catastrophe head: its losses, and how far its probabilities can be trusted.

The head is one more output of every net: the logit that the *next* state is catastrophic, given state and action.

Dimensions: E nets, B rows of a minibatch, n judged states.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from shared.config import check_choice

LossName = Literal["scaled", "pos_weight", "plain"]
LOSSES: tuple[LossName, ...] = ("scaled", "pos_weight", "plain")


def catastrophe_loss(logit: Tensor, label: Tensor, kind: LossName = "scaled") -> Tensor:
    """Loss of the head on a minibatch, mean over nets and rows; rho = negatives / positives among all of them.

    `scaled`: rho times the binary cross-entropy, 0 where there is no positive; it is what the authors' code computes.
    `pos_weight`: rho weights the positives alone, which was surely meant, and makes the head vote falsely more often.
    `plain`: the cross-entropy.

    Args:
        logit, label: (E, B) or any one shape; labels are 0 or 1.
    """
    check_choice("catastrophe_loss", kind, LOSSES)
    label = label.to(logit.dtype)
    if kind == "plain":
        return binary_cross_entropy_with_logits(logit, label)
    positives = label.sum()
    rho = (label.numel() - positives) / positives.clamp(min=1)
    if kind == "pos_weight":
        return binary_cross_entropy_with_logits(logit, label, pos_weight=torch.where(positives > 0, rho, 1.0))
    return binary_cross_entropy_with_logits(logit, label) * torch.where(positives > 0, rho, 0.0)


@dataclass(frozen=True)
class Calibration:
    """How the head's votes and probabilities compare with what happened.

    Attributes:
        auroc: chance that a catastrophic state gets a higher probability than a safe one, ties counting half; NaN
            where only one kind was met.
        brier: mean squared difference of probability and outcome.
        false_votes: share of safe states at which the mean vote of the nets is above one half.
        vote_rate: mean vote of the nets on safe states: one net of five that is always wrong is a fifth here, and what
            it adds to every plan's cost, but no false vote of the majority.
        missed: share of catastrophic states at which it is not; NaN where there was none.
        states, catastrophes: how many were judged.
    """

    auroc: float
    brier: float
    false_votes: float
    vote_rate: float
    missed: float
    states: int
    catastrophes: int


def calibrate(probability: NDArray[np.floating], happened: NDArray[np.bool_], beta: float = 0.5) -> Calibration:
    """Judge the head on states whose outcome is known.

    Args:
        probability: (E, n) of every net. happened: (n,).
        beta: a net votes above it.
    """
    from scipy.stats import rankdata

    mean = probability.mean(axis=0)
    votes = (probability > beta).mean(axis=0)
    voted = votes > 0.5
    positives, negatives = int(happened.sum()), int((~happened).sum())
    auroc = float("nan")
    if positives and negatives:
        ranks = rankdata(mean)
        auroc = float((ranks[happened].sum() - positives * (positives + 1) / 2) / (positives * negatives))
    return Calibration(
        auroc,
        float(((mean - happened) ** 2).mean()) if len(happened) else float("nan"),
        float(voted[~happened].mean()) if negatives else float("nan"),
        float(votes[~happened].mean()) if negatives else float("nan"),
        float((~voted[happened]).mean()) if positives else float("nan"),
        len(happened),
        positives,
    )
