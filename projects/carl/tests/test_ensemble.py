"""The batched nets against nets one by one, their loss against differences, their bounds against the specification."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from carl.ensemble import Ensemble, bounded, minibatches
from shared.config import UserError

E, B, I, D = 3, 7, 5, 2
DECAYS = (1e-4, 2.5e-4, 5e-4)


def ensemble(seed: int = 0) -> Ensemble:
    return Ensemble(E, I, D, (8, 6), DECAYS, torch.Generator().manual_seed(seed))


def test_log_variances_are_drawn_into_their_bounds() -> None:
    raw = torch.tensor([-12.0, -10.0, 0.0, 0.5, 3.0], dtype=torch.float64)
    found = bounded(raw, torch.tensor(-10.0), torch.tensor(0.5))
    expected = torch.tensor([-9.87307, -9.30687, -0.47400, -0.19309, 0.42114], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_batched_nets_are_separate_nets() -> None:
    model, x = ensemble(), torch.randn(E, B, I)
    model.normalise(3 + 2 * torch.randn(50, I))
    mean, logvar, logit = model(x)
    for net in range(E):
        layers: list[nn.Module] = []
        for weight, bias in zip(model.weights, model.biases, strict=True):
            linear = nn.Linear(weight.shape[1], weight.shape[2])
            linear.weight.data, linear.bias.data = weight[net].T.detach(), bias[net, 0].detach()
            layers += [linear, nn.SiLU()]
        out = nn.Sequential(*layers[:-1])((x[net] - model.mean_in[0]) / model.std_in[0])
        torch.testing.assert_close(mean[net], out[:, :D])
        torch.testing.assert_close(logvar[net], bounded(out[:, D : 2 * D], model.min_logvar[0], model.max_logvar[0]))
        torch.testing.assert_close(logit[net], out[:, 2 * D :])
    torch.testing.assert_close(model(x[0]).mean[0], mean[0])


def test_loss_is_its_parts_and_its_gradient_that_of_differences() -> None:
    model = ensemble().double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(E, B, I, generator=generator, dtype=torch.float64)
    y = torch.randn(E, B, D, generator=generator, dtype=torch.float64)
    flags = (torch.rand(E, B, generator=generator) < 0.3).double()
    losses = model.losses(x, y, flags)
    mean, logvar, logit = model(x)
    by_hand = sum((((mean[e] - y[e]) ** 2) / logvar[e].exp() + logvar[e]).mean() for e in range(E))
    by_hand = by_hand + 0.01 * (model.max_logvar.sum() - model.min_logvar.sum())
    torch.testing.assert_close(losses.likelihood, by_hand)
    decay = sum(0.5 * rate * (w**2).sum() for rate, w in zip(DECAYS, model.weights, strict=True))
    torch.testing.assert_close(losses.decay, decay)
    rho = (flags == 0).sum() / flags.sum()
    torch.testing.assert_close(losses.head, rho * binary_cross_entropy_with_logits(logit.squeeze(-1), flags))
    losses.total.backward()
    step = 1e-6
    for parameter in model.parameters():
        flat, grad = parameter.data.view(-1), parameter.grad
        assert grad is not None
        for place in (0, flat.numel() // 2, flat.numel() - 1):
            kept = float(flat[place])
            sides = []
            for sign in (1, -1):
                flat[place] = kept + sign * step
                sides.append(model.losses(x, y, flags).total.item())
            flat[place] = kept
            difference = (sides[0] - sides[1]) / (2 * step)
            assert float(grad.view(-1)[place]) == pytest.approx(difference, rel=1e-5, abs=1e-8)


def test_first_weights_are_truncated_normals_of_the_fan_in() -> None:
    model = Ensemble(20, 100, 4, (200,), (0.0, 0.0), torch.Generator().manual_seed(0))
    scale = 1 / (2 * math.sqrt(100))
    weight = model.weights[0]
    assert weight.abs().max().item() <= 2 * scale
    assert weight.std().item() == pytest.approx(0.88 * scale, rel=0.01)  # a normal cut at two deviations
    assert not any(bias.any() for bias in model.biases)


def test_inputs_that_do_not_spread_are_not_blown_up() -> None:
    model = ensemble()
    inputs = torch.randn(40, I)
    inputs[:, 2] = 7
    model.normalise(inputs)
    assert float(model.std_in[0, 0, 2]) == 1
    torch.testing.assert_close(model.std_in[0, 0, 0], inputs[:, 0].std(correction=0))


def test_every_net_walks_rows_of_its_own_once_an_epoch() -> None:
    steps = minibatches(10, E, 3, 4, torch.Generator().manual_seed(0))
    assert [s.shape[1] for s in steps] == [4, 4, 2] * 3
    epochs = [torch.cat(steps[3 * e : 3 * e + 3], dim=1) for e in range(3)]
    assert not torch.equal(epochs[0], epochs[1])
    for epoch in epochs:  # the same bootstrap rows in another order
        torch.testing.assert_close(epoch.sort(dim=1).values, epochs[0].sort(dim=1).values)
    assert not torch.equal(epochs[0].sort(dim=1).values[0], epochs[0].sort(dim=1).values[1])


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="--nets"):
        Ensemble(0, I, D, (8,), (0.0, 0.0))
    with pytest.raises(UserError, match="decays"):
        Ensemble(2, I, D, (8,), (0.0,))
