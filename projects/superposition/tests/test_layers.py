"""Contextual layers and networks against explicit matrices, torch's complex numbers, and plain networks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from shared.config import UserError
from superposition.complex import Complex
from superposition.contexts import make_contexts
from superposition.kinds import DIAGONALS, KINDS, MATRICES, PHASES, Kind
from superposition.layers import ComplexPSPConv2d, ComplexPSPLinear, PSPConv2d, PSPLinear, kernel_inputs
from superposition.nets import (
    MultiHead,
    ResNet,
    Separate,
    contextualize,
    count_parameters,
    fully_connected,
    plain_fully_connected,
)
from superposition.norm import PerTaskBatchNorm2d, StaticBatchNorm2d

K = 4


def images(batch: int = 6, channels: int = 4) -> torch.Tensor:
    return torch.randn(batch, channels, 9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def randomised(net: Any) -> Any:
    """Biases away from 0, float64."""
    net = net.double()
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return net


@pytest.mark.parametrize("kind", KINDS)
def test_a_retrieved_perceptron_is_the_contextual_one(kind: Kind) -> None:
    torch.manual_seed(0)
    net = randomised(fully_connected([16, 8, 8, 3], kind, limit=K))
    x = torch.randn(5, 16, dtype=torch.float64)
    for k in range(K):
        plain = net.retrieve(k)
        torch.testing.assert_close(plain(x), net(x, k))
    ks = torch.tensor([0, 3, 1, 1, 2])
    together = net(x, ks)
    for row, k in enumerate(ks.tolist()):
        torch.testing.assert_close(together[row], net(x[row : row + 1], k)[0])
    assert net.k == 0, "an explicit context does not stay"


@pytest.mark.parametrize("kind", ["binary", "rotation"])
def test_a_retrieved_perceptron_is_made_of_plain_layers(kind: Kind) -> None:
    plain = fully_connected([16, 8, 3], kind).retrieve(2)
    assert [type(m) for m in plain.modules()] == [nn.Sequential, nn.Flatten, nn.Linear, nn.ReLU, nn.Linear]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("kind", ["binary", "normal", "rotation", "permutation"])
def test_a_convolution_binds_its_kernel(kind: Kind, groups: int) -> None:
    host = nn.Conv2d(4, 8, 3, 2, 1, groups=groups).double()
    family = make_contexts(kind, kernel_inputs(host), 0, "conv", limit=K)
    if groups > 1 and kind in MATRICES:
        with pytest.raises(UserError, match="grouped layer"):
            PSPConv2d(host, family)
        return
    layer, x = PSPConv2d(host, family), images()
    for k in range(K):
        torch.testing.assert_close(layer.retrieved(k)(x), layer(x, k))
    ks = torch.tensor([0, 3, 1, 1, 2, 0])
    together = layer(x, ks)
    for row, k in enumerate(ks.tolist()):
        torch.testing.assert_close(together[row : row + 1], layer(x[row : row + 1], k))


def test_a_kernel_context_constant_over_space_binds_the_channels() -> None:
    host = nn.Conv2d(4, 8, 3, groups=2).double()
    layer, x = PSPConv2d(host, make_contexts("binary", 36, 0, "c", limit=2, learn=True)).double(), images()
    signs = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
    layer.contexts.learned[1].data = signs.repeat_interleave(9)
    torch.testing.assert_close(layer(x, 1), host(x * signs.view(1, 4, 1, 1)))


@pytest.mark.parametrize("kind", ["none", *PHASES])
def test_a_complex_layer_is_its_real_block_matrix_and_torchs_complex_numbers(kind: Kind) -> None:
    layer = randomised(ComplexPSPLinear(6, 5, make_contexts(kind, 6, 0, "l", limit=K)))
    a, b = torch.randn(2, 3, 6, dtype=torch.float64)
    native = torch.complex(a, b)
    bound = layer.contexts.bind(native, 2)
    weight = torch.complex(layer.weight[0], layer.weight[1])
    out = layer(Complex(torch.stack([a, b])), 2)
    torch.testing.assert_close(out.native(), bound @ weight.T + layer.bias)
    u, v = layer.weight
    block = torch.cat([torch.cat([u, -v], 1), torch.cat([v, u], 1)])  # [2m, 2d]
    stacked = torch.cat([bound.real, bound.imag], 1) @ block.T
    torch.testing.assert_close(torch.cat([out.real - layer.bias, out.imag], 1), stacked)
    torch.testing.assert_close(layer(a, 2).native(), layer.contexts.bind(a + 0j, 2) @ weight.T + layer.bias)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_complex_convolution_is_that_of_torchs_complex_numbers(groups: int) -> None:
    host = nn.Conv2d(4, 8, 3, 1, 1, groups=groups)
    layer = randomised(ComplexPSPConv2d(host, make_contexts("complex", 36, 0, "c")))
    x = Complex(torch.stack([images(), images().flip(0)]))
    kernel = layer.bound(3)
    expected = nn.functional.conv2d(
        x.native(), torch.complex(kernel[0], kernel[1]), (layer.bias + 0j), padding=1, groups=groups
    )
    torch.testing.assert_close(layer(x, 3).native(), expected)
    torch.testing.assert_close(layer.retrieved(3)(x).native(), expected)
    phasor = layer.contexts.sample(3).view(groups, 1, 4 // groups, 3, 3)
    weight = torch.complex(layer.weight[0], layer.weight[1]).view(groups, 8 // groups, 4 // groups, 3, 3)
    torch.testing.assert_close(torch.complex(kernel[0], kernel[1]), (weight * phasor).view(8, 4 // groups, 3, 3))
    mixed = torch.tensor([3, 0, 3, 1, 2, 0])
    one_by_one = [layer(Complex(x.parts[:, i : i + 1]), int(k)).native() for i, k in enumerate(mixed)]
    torch.testing.assert_close(layer(x, mixed).native(), torch.cat(one_by_one))


@pytest.mark.parametrize("kind", ["binary", "rotation", "normal"])
def test_the_gradient_of_a_weight_is_bound(kind: Kind) -> None:
    """dL/dW = delta (C_k x)^T."""
    layer = PSPLinear(6, 5, make_contexts(kind, 6, 0, "l")).double()
    x, delta = torch.randn(7, 6, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    (layer(x, 2) * delta).sum().backward()
    torch.testing.assert_close(layer.weight.grad, delta.T @ layer.contexts.bind(x, 2))


@pytest.mark.parametrize("make", [PSPConv2d, ComplexPSPConv2d])
def test_gradients_of_convolutions_are_finite_differences(make: Any) -> None:
    host = nn.Conv2d(2, 2, 2).double()
    kind: Kind = "binary" if make is PSPConv2d else "complex"
    layer = make(host, make_contexts(kind, 8, 0, "c")).double()
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)

    def run(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        out = torch.func.functional_call(layer, {"weight": weight}, (x, 1))
        return out.parts if isinstance(out, Complex) else out

    assert torch.autograd.gradcheck(run, (x, layer.weight.detach().requires_grad_()))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adam])
def test_one_fixed_binary_context_trains_like_the_plain_network(optimizer: Any) -> None:
    """Signs are equivariant: trajectories are those of a plain network that starts at W diag(c)."""
    torch.manual_seed(0)
    net = randomised(fully_connected([12, 8, 8, 3], "binary"))
    plain = net.retrieve(0)
    ours, theirs = optimizer(net.parameters(), lr=0.01), optimizer(plain.parameters(), lr=0.01)
    for step in range(30):
        x = torch.randn(16, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        y = torch.arange(16) % 3
        for model, opt, options in ((net, ours, (0,)), (plain, theirs, ())):
            opt.zero_grad()
            nn.functional.cross_entropy(model(x, *options), y).backward()
            opt.step()
    for mine, other in zip(net.retrieve(0).parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["binary", "complex", "rotation"])
@pytest.mark.parametrize("mixed", [False, True])
def test_training_one_learned_context_leaves_the_others_as_they_are(kind: Kind, mixed: bool) -> None:
    net = fully_connected([8, 8, 3], kind, limit=K, learn=True)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1, weight_decay=0.1)
    before = copy.deepcopy([[p.detach() for p in f.learned] for f in net.families()])
    k: Any = torch.tensor([1, 2, 1, 1, 2]) if mixed else 1
    for _ in range(4):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(torch.randn(5, 8), k), torch.arange(5) % 3).backward()
        optimizer.step()
    moved = {1, 2} if mixed else {1}
    for family, old in zip(net.families(), before, strict=True):
        for number, (now, then) in enumerate(zip(family.learned, old, strict=True)):
            assert torch.equal(now, then) is (number not in moved)


def test_a_resnet_is_bound_and_retrieved_whole() -> None:
    torch.manual_seed(0)
    host = ResNet(3, 5, (8, 16), 1)
    net = contextualize(host, "binary", K, exclude=("stem",), learn=("output",)).double().eval()
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    assert [name for name, _ in net.layers()] == [
        "blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1", "blocks.1.conv2", "blocks.1.shortcut", "output",
    ]  # fmt: skip
    torch.testing.assert_close(net.retrieve(2)(x), net(x, 2))
    assert not torch.allclose(net(x, 1), net(x, 2))
    learned = sum(p.numel() for f in net.families() for p in f.parameters())
    assert learned == K * 16
    assert count_parameters(net) == count_parameters(host) + learned


def test_the_shared_weights_do_not_grow_with_the_contexts() -> None:
    sizes = set()
    for limit in (1, 10, 1000):
        net = fully_connected([16, 8, 3], "binary", limit=limit)
        net(torch.randn(2, 16), limit - 1)
        sizes.add(sum(tensor.numel() for tensor in net.state_dict().values()))
    assert sizes == {16 * 8 + 8 + 8 * 3 + 3}
    separate = Separate(lambda: plain_fully_connected([16, 8, 3]), 10)
    assert count_parameters(separate) == 10 * sizes.pop()


def test_heads_and_separate_networks_keep_their_parts_apart() -> None:
    x = torch.randn(5, 16)
    net = MultiHead(plain_fully_connected([16, 8, 3]), K)
    assert not torch.allclose(net(x, 0), net(x, 1))
    torch.testing.assert_close(net.retrieve(1)(x), net(x, 1))
    assert count_parameters(net) == 16 * 8 + 8 + K * (8 * 3 + 3)
    with pytest.raises(IndexError, match="0 to 3"):
        net(x, K)
    with pytest.raises(UserError, match="one for the batch"):
        net(x, torch.tensor([0, 1, 0, 1, 0]))


def test_complex_into_real_names_both() -> None:
    layer = PSPLinear(6, 5, make_contexts("binary", 6, 0, "second"))
    with pytest.raises(TypeError, match=r"PSPLinear.*'second'.*Complex"):
        layer(Complex.of(torch.randn(2, 6)), 0)  # pyright: ignore[reportArgumentType]


def test_phasors_in_real_layers_and_signs_in_complex_ones_are_refused() -> None:
    with pytest.raises(UserError, match="complex layer"):
        PSPLinear(6, 5, make_contexts("complex", 6))
    with pytest.raises(UserError, match="complex, power"):
        ComplexPSPLinear(6, 5, make_contexts("binary", 6))
    with pytest.raises(UserError, match="real numbers"):
        contextualize(nn.Linear(3, 2), "complex")
    with pytest.raises(UserError, match="layer pattern"):
        contextualize(nn.Sequential(nn.Linear(3, 2)), "binary", include=("conv*",))
    with pytest.raises(UserError, match="--numbers"):
        fully_connected([4, 2], "power", numbers="real")


@pytest.mark.parametrize("kind", DIAGONALS)
def test_any_module_can_be_wrapped(kind: Kind) -> None:
    module = nn.Sequential(nn.Conv2d(1, 4, 4), nn.Flatten(), nn.Linear(16, 3))
    net = contextualize(module, kind, 4).eval()
    x = torch.randn(2, 1, 5, 5)
    torch.testing.assert_close(net.retrieve(3)(x), net(x, 3), rtol=1e-4, atol=1e-5)
    single = contextualize(nn.Linear(16, 3), kind, 4)
    torch.testing.assert_close(single.retrieve(1)(torch.ones(1, 16)), single(torch.ones(1, 16), 1))


def test_static_normalisation_is_batch_normalisation_without_memory() -> None:
    x = torch.randn(8, 3, 4, 4)
    layer, plain = StaticBatchNorm2d(3), nn.BatchNorm2d(3, affine=False)
    torch.testing.assert_close(layer(x), plain(x))
    torch.testing.assert_close(layer.eval()(x), layer.train()(x))
    assert not layer.state_dict()
    with pytest.raises(UserError, match="per-task"):
        layer.eval()(x[:1])


def test_statistics_of_other_contexts_do_not_move() -> None:
    layer = PerTaskBatchNorm2d(3, K)
    plain = nn.BatchNorm2d(3, affine=False)
    x = torch.randn(8, 3, 4, 4) * 2 + 1
    torch.testing.assert_close(layer(x, 2), plain(x))
    assert torch.equal(layer.mean[1], torch.zeros(3))
    layer.eval()
    plain.eval()
    torch.testing.assert_close(layer(x[:1], 2), plain(x[:1]))
    torch.testing.assert_close(layer.retrieved(2)(x), plain(x))
    torch.testing.assert_close(layer(x[:2], torch.tensor([2, 0]))[:1], plain(x[:1]))
    with pytest.raises(IndexError, match="0 to 3"):
        layer(x, K)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["binary", "complex", "rotation", "permutation"])
def test_contexts_follow_the_input_to_the_device(kind: Kind) -> None:
    torch.manual_seed(0)
    net = fully_connected([16, 8, 3], kind, limit=K)
    x = torch.randn(5, 16)
    here = net(x, 2).detach()
    torch.testing.assert_close(net.cuda()(x.cuda(), 2).cpu(), here, rtol=1e-4, atol=1e-4)
