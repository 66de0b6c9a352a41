"""Baselines against closed forms; and the faults that made well-known versions do nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from superposition.baselines.agem import AGEM
from superposition.baselines.ewc import EWC, fisher_diagonal
from superposition.baselines.si import SI
from superposition.contexts import derived_seed


def data(n: int = 400, d: int = 4, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, d, generator=generator, dtype=torch.float64), torch.arange(n) % classes


def test_fisher_of_logistic_regression_is_its_closed_form() -> None:
    """E_y (p - e_y)_c^2 x_j^2 = p_c (1 - p_c) x_j^2; with given labels (p - e_y)_c^2 x_j^2 exactly."""
    x, y = data(20_000)
    net = nn.Linear(4, 3).double()
    p = net(x).softmax(1).detach()
    expected = torch.einsum("nc,nj->cj", p * (1 - p), x.square()) / len(x)
    weight, bias = fisher_diagonal(net, x, y, "fisher", chunk=1000)
    torch.testing.assert_close(weight, expected, rtol=0.06, atol=0)
    torch.testing.assert_close(bias, (p * (1 - p)).mean(0), rtol=0.06, atol=0)
    weight, bias = fisher_diagonal(net, x[:100], y[:100], "empirical", chunk=33)
    residual = (p - F.one_hot(y, 3))[:100].square()
    torch.testing.assert_close(weight, torch.einsum("nc,nj->cj", residual, x[:100].square()) / 100)


@pytest.mark.parametrize("consolidation", ["separate", "online"])
def test_the_penalty_is_nothing_at_the_old_weights_and_something_after_a_step(consolidation: str) -> None:
    x, y = data()
    net = nn.Linear(4, 3).double()
    ewc = EWC(net, 2.0, consolidation=consolidation)
    assert ewc.gradient() == {}
    ewc.end_task(x, y)
    assert float(ewc.penalty()) == 0
    assert all(float(g.abs().max()) == 0 for g in ewc.penalty_gradient())
    old = [p.detach().clone() for p in net.parameters()]
    trained(ewc, net, x.flip(1), y, 0.5, 1)  # a step on the next task
    direct = sum((f * (p - o).square()).sum() for f, p, o in zip(ewc.fisher, net.parameters(), old, strict=True))
    assert float(ewc.penalty()) == pytest.approx(float(torch.as_tensor(direct).detach()), rel=1e-9)
    assert float(ewc.penalty()) > 0
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    ewc.gradient()
    for p, f, o in zip(net.parameters(), ewc.fisher, old, strict=True):
        torch.testing.assert_close(p.grad, 2.0 * f * (p.detach() - o))


def at(weight: torch.Tensor) -> nn.Linear:
    """The network of the test below at a weight."""
    torch.manual_seed(5)
    net = nn.Linear(4, 3).double()
    with torch.no_grad():
        net.weight.copy_(weight)
    return net


def test_two_tasks_pull_to_two_places() -> None:
    x, y = data()
    torch.manual_seed(5)
    net = nn.Linear(4, 3).double()
    ewc = EWC(net, 1.0)
    stored = []
    for shift in (0.0, 0.5):
        with torch.no_grad():
            net.weight += shift
        ewc.end_task(x, y)
        labels_seed = ewc.tasks
        assert labels_seed == len(stored) + 1
        stored.append(net.weight.detach().clone())
    fisher = [fisher_diagonal(at(stored[i]), x, y, "fisher", derived_seed(0, "fisher", i))[0] for i in range(2)]
    with torch.no_grad():
        net.weight.copy_(torch.zeros(3, 4))
    pulled = -sum(f * w for f, w in zip(fisher, stored, strict=True))
    torch.testing.assert_close(ewc.penalty_gradient()[0], pulled)
    again = EWC(net, 1.0)
    again.load_state_dict(ewc.state_dict())
    torch.testing.assert_close(again.penalty(), ewc.penalty())


def trained(regulariser: object, net: nn.Module, x: torch.Tensor, y: torch.Tensor, lr: float, steps: int) -> float:
    """Gradient descent on the whole set with a baseline; the drop of the loss."""
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    first = float(F.cross_entropy(net(x), y).detach())
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        regulariser.gradient()  # type: ignore[attr-defined]
        optimizer.step()
        regulariser.after_step()  # type: ignore[attr-defined]
    return first - float(F.cross_entropy(net(x), y).detach())


def test_strength_zero_is_the_plain_network_bit_by_bit_and_others_are_not() -> None:
    x, y = data()
    torch.manual_seed(0)
    start = nn.Linear(4, 3).double()

    def run(make: object) -> torch.Tensor:
        net = nn.Linear(4, 3).double()
        net.load_state_dict(start.state_dict())
        regulariser = make(net)  # type: ignore[operator]
        trained(regulariser, net, x, y, 0.5, 5)
        regulariser.end_task(x, y)
        trained(regulariser, net, x.flip(1), y, 0.5, 5)
        return net.weight.detach()

    from superposition.baselines.regulariser import Regulariser

    plain = run(Regulariser)
    assert torch.equal(run(lambda net: EWC(net, 0.0)), plain)
    assert torch.equal(run(lambda net: SI(net, 0.0)), plain)
    assert not torch.equal(run(lambda net: EWC(net, 1.0)), plain)
    assert not torch.equal(run(lambda net: SI(net, 1.0)), plain)


def test_the_path_integral_is_the_drop_of_the_loss() -> None:
    x, y = data()
    net = nn.Linear(4, 3).double()
    si = SI(net, 1.0)
    drop = trained(si, net, x, y, 0.02, 300)
    total = sum(float(o.sum()) for o in si.omega)
    assert total == pytest.approx(drop, rel=0.05)
    assert total > 0.01


def test_importance_on_a_quadratic_loss_is_its_closed_form() -> None:
    """L = sum a (theta - b)^2 / 2: theta_t - b decays by 1 - lr a, omega = lr sum g^2."""

    class Point(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.theta = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))

    a, b, lr, steps, xi = torch.tensor([1.0, 0.5, 2.0]).double(), torch.tensor([0.0, 1.0, -1.0]).double(), 0.1, 20, 0.1
    net = Point()
    start = net.theta.detach().clone()
    si = SI(net, 1.0, xi)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        (a * (net.theta - b).square() / 2).sum().backward()
        si.gradient()
        optimizer.step()
        si.after_step()
    q = 1 - lr * a
    omega = lr * (a * (start - b)).square() * (1 - q ** (2 * steps)) / (1 - q**2)
    torch.testing.assert_close(si.omega[0], omega)
    si.end_task(torch.empty(0), torch.empty(0))
    moved = (start - b) * (q**steps - 1)
    torch.testing.assert_close(si.importance[0], omega / (moved.square() + xi))
    assert float(si.penalty()) == 0


def test_a_projected_gradient_does_not_oppose_the_memory() -> None:
    x, y = data()
    net = nn.Linear(4, 3).double()
    agem = AGEM(net, batch=400)
    assert agem.gradient() == {}
    agem.end_task(x, y)
    reference = torch.autograd.grad(F.cross_entropy(net(x), y), list(net.parameters()))
    parameters = list(net.parameters())
    for sign, projected in ((-1.0, 1.0), (1.0, 0.0)):
        own = [sign * r + 0.1 * torch.randn_like(r) for r in reference]
        for p, gradient in zip(parameters, own, strict=True):
            p.grad = gradient.clone()
        assert float(agem.gradient()["projected"]) == projected
        now = agem.gradients()
        assert sum(float((g * r).sum()) for g, r in zip(now, reference, strict=True)) >= -1e-12
        assert any(not torch.equal(g, o) for g, o in zip(now, own, strict=True)) is bool(projected)
