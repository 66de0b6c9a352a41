"""Optimisers brought to one training error: each stops where it says, and steps as its rule does."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from low_rank.config import OPTIMISERS
from low_rank.optimizers import CLASS_RATES, RATES, classify_to_target, fit_to_target, minibatches, starts
from low_rank.random_networks import Architecture
from low_rank.rank import effective_rank, gram_effective_rank
from low_rank.regression import Problem, draw_factors, draw_problem, map_error, product, training_error
from low_rank.search import Classifiers, TwoClass, draw_classifiers, training_loss, two_class
from shared.config import UserError


def problem(draws: int = 4) -> Problem:
    return draw_problem(8, 2, 5, draws, torch.Generator().manual_seed(0), new=4)


@pytest.mark.parametrize("optimizer", list(OPTIMISERS))
def test_all_draws_reach_the_target_and_depth_lowers_their_rank(optimizer: str) -> None:
    made = problem(8)
    rates = RATES[optimizer][:2] if optimizer in RATES else None
    shallow, deep = (fit_to_target(made, d, optimizer, target=1e-3, steps=3000, rates=rates) for d in (1, 6))
    for found in (shallow, deep):
        assert found.reached == 1
        assert bool((found.steps >= 1).all())
        if optimizer == "lbfgs":
            assert bool(found.rate.isnan().all())
        else:
            assert set(found.rate.tolist()) <= set(RATES[optimizer])
    assert float(shallow.rho.mean()) > float(deep.rho.mean()) + 0.3


def test_a_draw_is_looked_at_where_it_arrives() -> None:
    made = problem()
    found = fit_to_target(made, 2, "gd", target=0.05, rates=[0.1])
    for b in range(4):
        ws = [w[b : b + 1].requires_grad_() for w in draw_factors(8, 2, 4, torch.Generator().manual_seed(0))]
        steps = 0
        while float((error := training_error(ws, made.X[b : b + 1], made.Y[b : b + 1])).detach()) > 0.05:
            steps += 1
            gradients = torch.autograd.grad(error.sum(), ws)
            with torch.no_grad():
                for w, g in zip(ws, gradients, strict=True):
                    w -= 0.1 * g
        assert found.steps[b] == steps
        with torch.no_grad():
            assert float(found.rho[b]) == pytest.approx(float(effective_rank(product(ws))), abs=1e-9)
            assert float(found.test[b]) == pytest.approx(float(map_error(product(ws), made.A[b : b + 1])), abs=1e-9)


def test_lbfgs_is_another_road_to_the_minimum() -> None:
    made = problem()
    one = fit_to_target(made, 1, "lbfgs", target=1e-8)
    other = fit_to_target(made, 1, "gd", target=1e-8, steps=20_000, rates=[0.5])
    # One factor under gradients keeps what the samples do not see, however it gets there.
    torch.testing.assert_close(one.rho, other.rho, rtol=0, atol=1e-3)
    torch.testing.assert_close(one.test, other.test, rtol=0, atol=1e-3)
    assert bool((one.steps < other.steps / 5).all())


def test_a_target_out_of_reach_is_said_to_be() -> None:
    found = fit_to_target(problem(), 3, "adam", target=1e-9, steps=20)
    assert found.reached == 0
    assert bool(found.rho.isnan().all())
    lost = fit_to_target(problem(), 3, "gd", rates=[1e4], steps=500)
    assert lost.reached == 0


def test_every_draw_has_the_rate_that_brings_it_soonest() -> None:
    made = problem()
    rates = (1e-5, 1e-3, 3e-3, 1e-2)
    alone = [fit_to_target(made, 2, "adam", rates=[rate], target=0.01, steps=400) for rate in rates]
    assert alone[0].reached == 0
    chosen = fit_to_target(made, 2, "adam", rates=rates, target=0.01, steps=400)
    for b in range(4):
        steps = [float(found.steps[b].nan_to_num(math.inf)) for found in alone]
        assert float(chosen.steps[b]) == min(steps) < math.inf
        best = alone[steps.index(min(steps))]
        assert (chosen.rate[b], chosen.rho[b], chosen.test[b]) == (best.rate[b], best.rho[b], best.test[b])


def test_what_was_there_before_training_is_reported() -> None:
    made = problem()
    ws = draw_factors(8, 3, 4, torch.Generator().manual_seed(5))
    for optimizer in ("gd", "sgd", "lbfgs"):
        found = fit_to_target(made, 3, optimizer, target=0.05, seed=5)
        torch.testing.assert_close(found.rho_start, effective_rank(product(ws)))
        assert float(found.error.max()) <= 0.05
        assert float(found.error.min()) > 0


def test_minibatches_are_a_stream_of_their_own() -> None:
    for seed in (0, 3, -7, 2**62):
        start, noise = torch.Generator().manual_seed(seed), minibatches(seed)
        assert not torch.equal(torch.randn(50, generator=start), torch.randn(50, generator=noise))
    assert torch.equal(torch.randperm(9, generator=minibatches(3)), torch.randperm(9, generator=minibatches(3)))
    assert not torch.equal(torch.randperm(99, generator=minibatches(3)), torch.randperm(99, generator=minibatches(4)))
    made = problem(1)
    found = fit_to_target(made, 2, "sgd", target=0.2, seed=3, rates=[0.1], batch=2)
    ws = [w.requires_grad_() for w in draw_factors(8, 2, 1, torch.Generator().manual_seed(3))]
    noise, steps = minibatches(3), 0
    while float(training_error(ws, made.X, made.Y).detach()) > 0.2:
        some = torch.randperm(5, generator=noise)[:2]
        gradients = torch.autograd.grad(training_error(ws, made.X[..., some], made.Y[..., some]).sum(), ws)
        with torch.no_grad():
            for w, g in zip(ws, gradients, strict=True):
                w -= 0.1 * g
        steps += 1
    assert found.steps.tolist() == [steps]
    with torch.no_grad():
        torch.testing.assert_close(found.rho, effective_rank(product(ws)))


def test_what_is_unknown_is_refused() -> None:
    with pytest.raises(UserError, match="adam"):
        fit_to_target(problem(), 1, "adan")
    with pytest.raises(UserError, match="--batch"):
        fit_to_target(problem(), 1, "sgd", batch=6)


# -- classification ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair() -> TwoClass:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.tensor(bunch.images).mul(255 / 16).round().to(torch.uint8)  # type: ignore[attr-defined]
    made = two_class(x[:, None], torch.tensor(bunch.target), (3, 8), train=16)  # type: ignore[attr-defined]
    return made.to(dtype=torch.float64)


def module_of(nets: Classifiers, k: int) -> nn.Sequential:
    """One of the networks as torch writes it."""
    matrices = [nets.weights.first[k], *nets.weights.hidden[k], nets.readout[k : k + 1]]
    layers: list[nn.Module] = []
    for matrix in matrices:
        layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, dtype=torch.float64)
        layer.weight = nn.Parameter(matrix.clone())
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("optimizer", list(OPTIMISERS))
def test_networks_reach_the_target_and_depth_lowers_their_rank(pair: TwoClass, optimizer: str) -> None:
    rates = CLASS_RATES.get(optimizer, ())[-1:]
    shallow, deep = (
        classify_to_target(pair, starts(pair, d, 16, 4, seed=d), optimizer, target=0.1, rates=rates) for d in (1, 6)
    )
    for found in (shallow, deep):
        assert found.reached == 1
        assert bool((found.steps >= 1).all())
        assert float(found.error.max()) <= 0.1
        assert float(found.test.min()) > 0.6
    assert float(shallow.rho.mean()) > float(deep.rho.mean()) + 0.5
    assert optimizer == "lbfgs" or set(deep.rate.tolist()) <= set(CLASS_RATES[optimizer])


@pytest.mark.parametrize("optimizer", ["gd", "momentum", "adam"])
@pytest.mark.parametrize("depth", [1, 3])
def test_a_network_is_looked_at_where_a_plain_loop_arrives(pair: TwoClass, optimizer: str, depth: int) -> None:
    nets = starts(pair, depth, 16, 3, seed=2)
    rate = CLASS_RATES[optimizer][-1]
    found = classify_to_target(pair, nets, optimizer, target=0.1, rates=[rate], seed=2, steps=500)
    assert found.reached == 1
    for k in range(3):
        model = module_of(nets, k)
        rule: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), lr=rate)
        if optimizer != "adam":
            rule = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9 * (optimizer == "momentum"))
        noise, steps = minibatches(2), 0

        def loss_of(x: Tensor, y: Tensor, model: nn.Module = model) -> Tensor:
            return F.binary_cross_entropy_with_logits(model(x)[:, 0], (y + 1) / 2)

        def there(model: nn.Module = model) -> bool:
            with torch.no_grad():
                right = model(pair.x_train)[:, 0] * pair.y_train > 0
                return bool(right.all()) and float(loss_of(pair.x_train, pair.y_train, model)) <= 0.1

        with torch.no_grad():
            before = model[:-1](pair.x_probe)
        while not there() and steps < 500:
            some = torch.randperm(16, generator=noise)[:8] if optimizer == "momentum" else torch.arange(16)
            rule.zero_grad()
            loss_of(pair.x_train[some], pair.y_train[some]).backward()
            rule.step()
            steps += 1
        assert found.steps[k] == steps > 0
        with torch.no_grad():
            right = (model(pair.x_test)[:, 0] * pair.y_test > 0).double().mean()
            assert float(found.test[k]) == pytest.approx(float(right))
            assert float(found.rho[k]) == pytest.approx(float(gram_effective_rank(model[:-1](pair.x_probe))), abs=1e-7)
            assert float(found.rho_start[k]) == pytest.approx(float(gram_effective_rank(before)), abs=1e-9)
            assert float(found.error[k]) == pytest.approx(float(loss_of(pair.x_train, pair.y_train)), abs=1e-9)


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop", "lbfgs"])
def test_a_networks_path_does_not_depend_on_the_others(pair: TwoClass, optimizer: str) -> None:
    nets = starts(pair, 2, 16, 3, seed=1)
    rates = CLASS_RATES.get(optimizer, ())[1:]
    together = classify_to_target(pair, nets, optimizer, target=0.1, seed=1, rates=rates, steps=300)
    for k in range(3):
        alone = classify_to_target(pair, nets[k : k + 1], optimizer, target=0.1, seed=1, rates=rates, steps=300)
        for name, value in vars(alone).items():
            torch.testing.assert_close(value[0], getattr(together, name)[k], equal_nan=True, rtol=1e-7, atol=1e-9)


def test_a_low_loss_does_not_hide_an_error(pair: TwoClass) -> None:
    nets = starts(pair, 1, 16, 4, seed=0)
    easy = classify_to_target(pair, nets, "gd", target=10.0, rates=[0.03])
    assert bool(((nets.outputs(pair.x_train) * pair.y_train) <= 0).any(dim=1).all()), "every start makes an error"
    assert float(training_loss(nets.outputs(pair.x_train), pair.y_train, "logistic").max()) < 10
    assert easy.reached == 1
    assert float(easy.steps.min()) > 0


def test_starts_are_the_same_for_all_and_stay_as_they_are(pair: TwoClass) -> None:
    nets = starts(pair, 3, 8, 2, seed=4)
    again = draw_classifiers(
        Architecture(64, 8, 3), 2, torch.Generator().manual_seed(4), dtype=torch.float64
    )  # the stream of random networks
    assert torch.equal(nets.weights.hidden, again.weights.hidden)
    ranks = [classify_to_target(pair, nets, name, steps=20).rho_start for name in ("gd", "adam", "lbfgs")]
    assert torch.equal(nets.readout, again.readout)
    assert torch.equal(nets.weights.first, again.weights.first)
    for found in ranks:
        torch.testing.assert_close(found, nets.ranks(pair.x_probe))


def test_a_network_that_diverges_is_lost_alone(pair: TwoClass) -> None:
    nets = starts(pair, 4, 8, 2, seed=0)
    large = Classifiers(nets.net, nets.weights, nets.readout * torch.tensor([[1.0], [1e200]], dtype=torch.float64))
    found = classify_to_target(pair, large, "gd", target=0.1, rates=[0.03], steps=400)
    assert found.steps.isfinite().tolist() == [True, False]
    assert found.rho.isfinite().tolist() == [True, False]
    alone = classify_to_target(pair, nets[:1], "gd", target=0.1, rates=[0.03], steps=400)
    torch.testing.assert_close(found.rho[0], alone.rho[0])
    never = classify_to_target(pair, nets, "adam", target=1e-9, steps=3)
    assert (never.reached, bool(never.rho.isnan().all()), bool(never.error.isnan().all())) == (0, True, True)
    assert bool(never.rho_start.isfinite().all())


def test_networks_that_cannot_be_are_refused(pair: TwoClass) -> None:
    nets = starts(pair, 1, 4, 1, seed=0)
    with pytest.raises(UserError, match="lbfgs"):
        classify_to_target(pair, nets, "lbgfs")
    with pytest.raises(UserError, match="--batch"):
        classify_to_target(pair, nets, "sgd", batch=17)
    with pytest.raises(UserError, match="--loss"):
        classify_to_target(pair, nets, "sgd", target=0)
    other = draw_classifiers(Architecture(64, 4, 1, "tanh"), 1, torch.Generator())
    with pytest.raises(UserError, match="relu without skips"):
        classify_to_target(pair, other, "gd")
