"""Superposition after training: exact where contexts are orthogonal enough, noisy as derived where not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shared.config import UserError
from superposition.kinds import Kind
from superposition.nets import plain_fully_connected
from superposition.offline import layer_inputs, noise_by_layer, superpose


def networks(count: int, widths: tuple[int, ...] = (40, 30, 5)) -> list[nn.Module]:
    torch.manual_seed(0)
    return [plain_fully_connected(widths).double() for _ in range(count)]


@pytest.mark.parametrize("kind", ["binary", "rotation", "permutation", "householder"])
def test_the_sum_is_that_of_the_bound_weights(kind: Kind) -> None:
    models = networks(3)
    net = superpose(models, kind, seed=1)
    name, layer = next(iter(net.layers()))
    for k in range(3):
        noise = torch.zeros_like(layer.weight)
        for s, model in enumerate(models):
            weight = model.get_submodule(name).weight.detach()
            noise += layer.contexts.bind_weight(layer.contexts.unbind_weight(weight, s), k)
        torch.testing.assert_close(layer.bound(k), noise)


def test_noise_of_one_layer_is_the_other_weight_through_the_product_of_the_contexts() -> None:
    first, second = (nn.Linear(16, 3, bias=False).double() for _ in range(2))
    net = superpose([nn.Sequential(first), nn.Sequential(second)], "hadamard", seed=0)
    _, layer = next(iter(net.layers()))
    product = layer.contexts.sample(0) * layer.contexts.sample(1)
    x = torch.ones(1, 16, dtype=torch.float64)
    noise = net(x, 0) - first(x)
    torch.testing.assert_close(noise, (second.weight @ product.double())[None].detach())
    assert float(product.sum()) == 0


def test_biases_are_averaged() -> None:
    models = networks(2)
    for number, model in enumerate(models):
        model.get_submodule("1").bias.data.fill_(float(number))
    net = superpose(models, "binary")
    assert torch.equal(net.host.get_submodule("1").bias, torch.full((30,), 0.5, dtype=torch.float64))


def test_grouped_convolutions_are_superposed() -> None:
    models = [nn.Sequential(nn.Conv2d(4, 6, 3, groups=2)).double() for _ in range(2)]
    net = superpose(models, "binary", seed=3)
    _, layer = next(iter(net.layers()))
    kernels = [model[0].weight.detach() for model in models]
    rows = [layer.contexts.sample(s).double().view(2, 1, 2, 3, 3) for s in range(2)]
    expected = sum((k.view(2, 3, 2, 3, 3) * row).view(6, 2, 3, 3) for k, row in zip(kernels, rows, strict=True))
    torch.testing.assert_close(layer.weight.detach(), expected)


def test_noise_of_every_layer_is_the_exact_sum() -> None:
    models = networks(4, (40, 60, 60, 5))
    x = torch.randn(20, 40, dtype=torch.float64)
    assert [tuple(v.shape) for v in layer_inputs(models[0], x).values()] == [(20, 40), (20, 60), (20, 60)]
    for layer in noise_by_layer(models, "binary", 1, x, draws=400).values():
        assert layer["ratio"] == pytest.approx(1, abs=0.12)


def test_what_cannot_be_summed_is_refused() -> None:
    with pytest.raises(UserError, match="two or more"):
        superpose(networks(1), "binary")
    with pytest.raises(UserError, match="--kind"):
        superpose(networks(2), "mask")
    with pytest.raises(UserError, match="--kind"):
        superpose(networks(2), "complex")
    with pytest.raises(UserError, match="model 1"):
        superpose([networks(1)[0], networks(1, (40, 20, 5))[0]], "binary")
