"""The head's losses, by the numbers of the specification; calibration against scikit-like definitions by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from carl.catastrophe import calibrate, catastrophe_loss
from shared.config import UserError

LOGIT, LABEL = torch.tensor([2.0, -1.0, 0.5, -3.0]), torch.tensor([1.0, 0.0, 0.0, 0.0])


@pytest.mark.parametrize(("kind", "value"), [("scaled", 1.097141), ("pos_weight", 0.429178), ("plain", 0.365714)])
def test_losses_have_their_values(kind, value) -> None:  # pyright: ignore
    assert float(catastrophe_loss(LOGIT, LABEL, kind)) == pytest.approx(value, abs=1e-6)


def test_without_a_positive_the_scaled_loss_is_zero_and_moves_nothing() -> None:
    logit = LOGIT.clone().requires_grad_()
    loss = catastrophe_loss(logit, torch.zeros(4))
    loss.backward()
    assert float(loss.detach()) == 0
    assert logit.grad is not None
    assert not logit.grad.any()


def test_unknown_loss_is_refused() -> None:
    with pytest.raises(UserError, match="scaled"):
        catastrophe_loss(LOGIT, LABEL, "scale")  # pyright: ignore[reportArgumentType]


def test_calibration_counts_pairs_votes_and_squares() -> None:
    probability = np.array([[0.9, 0.2, 0.6, 0.1], [0.7, 0.4, 0.8, 0.1]])
    happened = np.array([True, True, False, False])
    found = calibrate(probability, happened)
    mean = probability.mean(axis=0)
    pairs = [(p > q) + 0.5 * (p == q) for p in mean[happened] for q in mean[~happened]]
    assert found.auroc == pytest.approx(np.mean(pairs))
    assert found.brier == pytest.approx(np.mean((mean - happened) ** 2))
    assert found.false_votes == 0.5
    assert found.missed == 0.5
    assert np.isnan(calibrate(probability, np.zeros(4, bool)).auroc)
    assert np.isnan(calibrate(probability, np.zeros(4, bool)).missed)
