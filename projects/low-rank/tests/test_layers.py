"""Expanded layers: factors in turn against their product, everywhere and in every state."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from low_rank.overparam.layers import Expanded, ExpandedConv2d, ExpandedLinear
from shared.config import UserError

KERNELS: list[tuple[Any, int]] = [
    *itertools.product([1, 2, 3, 5], [1, 2, 3, 8]),
    ([3, 1], 2), ([1, 3, 1], 3), ([3, 3], 2), ([(3, 1), (1, 5)], 2), ([2, 2], 2),
]  # fmt: skip
RESIDUALS: list[Any] = [(), 1, -1, [1, 2]]
EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def unsettled(layer: Any) -> Any:
    """Batch norms as after training: statistics, scales, shifts and epsilons of their own."""
    for number, norm in enumerate(layer.norms):
        norm.eps = 0.1 * (number + 1)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return layer


def check_equivalence(layer: Any, x: torch.Tensor) -> None:
    layer = unsettled(layer).eval()
    with torch.no_grad():
        expected = layer.expanded(x)
        torch.testing.assert_close(layer(x), expected, **EXACT)
        plain = layer.collapsed()
        assert type(plain) in (nn.Linear, nn.Conv2d)
        scale = max(1.0, float(expected.abs().max()))
        assert float((plain(x) - expected).abs().max()) <= 1e-10 * scale


def refused(intervals: Any, depth: int, inputs: int, width: float, kernels: Any) -> bool:
    """What the specification forbids, said in another way than the code does."""
    if intervals == ():
        return False
    given = [intervals] if isinstance(intervals, int) else intervals
    whole_only = all(m in (-1, depth) for m in given)
    if max(given) > depth or kernels == 2 or (kernels == [2, 2] and not whole_only):
        return True
    return inputs != 4 or (width != 1 and depth > 1 and not whole_only)


@pytest.mark.parametrize(("kernels", "depth"), KERNELS)
def test_expanded_convolutions_are_collapsed_ones(kernels: Any, depth: int) -> None:
    torch.manual_seed(0)
    images = {inputs: normal(2, inputs, 9, 10) for inputs in (3, 4)}
    cases = itertools.product((3, 4), (1, 2), (0, 1, 2), (0.5, 1, 4), (True, False), (True, False), RESIDUALS)
    ran = 0
    for inputs, stride, padding, width, bias, batch_norm, residual in cases:
        options: dict[str, Any] = {
            "bias": bias, "batch_norm": batch_norm, "residual_intervals": residual, "dtype": torch.float64,
        }  # fmt: skip
        if refused(residual, depth, inputs, width, kernels):
            with pytest.raises(UserError, match="residual_intervals"):
                ExpandedConv2d(inputs, 4, kernels, depth, width, stride, padding, **options)
            continue
        if residual != () and bias == batch_norm:
            continue  # both are seen without skips
        check_equivalence(ExpandedConv2d(inputs, 4, kernels, depth, width, stride, padding, **options), images[inputs])
        ran += 1
    assert ran >= 144


@pytest.mark.parametrize("depth", [1, 2, 3, 8])
def test_expanded_linear_layers_are_collapsed_ones(depth: int) -> None:
    torch.manual_seed(0)
    cases = itertools.product((3, 4), (0.5, 1, 4), (True, False), (True, False), RESIDUALS)
    for inputs, width, bias, batch_norm, residual in cases:
        options: dict[str, Any] = {"residual_intervals": residual, "dtype": torch.float64}
        if refused(residual, depth, inputs, width, 1):
            with pytest.raises(UserError, match="residual_intervals"):
                ExpandedLinear(inputs, 4, depth, width, bias, batch_norm, **options)
            continue
        layer = ExpandedLinear(inputs, 4, depth, width, bias, batch_norm, **options)
        check_equivalence(layer, normal(5, 3, inputs))
        unsettled(layer).train()(normal(5, 3, inputs))


@pytest.mark.parametrize("dilation", [1, 2, (1, 3)])
@pytest.mark.parametrize("groups", [2, 4])
def test_groups_and_dilation(groups: int, dilation: Any) -> None:
    torch.manual_seed(0)
    for kernels, width, batch_norm, residual in itertools.product(
        ([3, 1, 1], [1, 3, 1], [3, 3], [2, 1]), (1, 2), (True, False), ((), 1)
    ):
        if residual and (width != 1 or 2 in kernels):
            continue
        layer = ExpandedConv2d(
            4, 4, kernels, None, width, 2, 3, dilation, groups, True, batch_norm, residual, dtype=torch.float64
        )
        check_equivalence(layer, normal(2, 4, 15, 15))
        plain = layer.collapsed()
        assert (plain.groups, plain.dilation) == (groups, layer.dilation)


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
def test_padding_modes_and_names(padding_mode: Any) -> None:
    for kernels, padding, residual in itertools.product(([3, 1], [1, 3, 3]), ("same", "valid", (2, 1)), ((), -1)):
        layer = ExpandedConv2d(
            4, 4, kernels, padding=padding, residual_intervals=residual, padding_mode=padding_mode, dtype=torch.float64
        )
        x = normal(2, 4, 9, 9)
        check_equivalence(layer, x)
        assert padding != "same" or layer(x).shape == x.shape
        weight, bias = layer.composed()
        other = nn.Conv2d(4, 4, layer.kernel_size, padding=padding, padding_mode=padding_mode).double()
        other.load_state_dict({"weight": weight, "bias": bias})
        torch.testing.assert_close(layer(x), other(x))


@pytest.mark.parametrize("depth", [2, 3])
def test_a_chain_is_that_of_plain_layers(depth: int) -> None:
    """Not our own forward pass but a chain of torch's layers: padding in the first, stride in the last."""
    layer = ExpandedConv2d(3, 4, 3, depth, 2, 2, 1, dtype=torch.float64)
    chain = nn.Sequential()
    for number, (weight, bias) in enumerate(zip(layer.weights, layer.biases, strict=True)):
        o, i, k, _ = weight.shape
        conv = nn.Conv2d(i, o, k, stride=2 if number == depth - 1 else 1, padding=1 if number == 0 else 0).double()
        conv.load_state_dict({"weight": weight, "bias": bias})
        chain.append(conv)
    x = normal(2, 3, 8, 8)
    torch.testing.assert_close(layer(x), chain(x))
    torch.testing.assert_close(layer.collapsed()(x), chain(x))


def test_padding_in_every_factor_would_differ_at_the_border_only() -> None:
    """The pitfall that tests of the interior would not see."""
    layer = ExpandedConv2d(2, 2, [3, 3], padding=2, dtype=torch.float64)
    x = normal(1, 2, 12, 12)
    (w1, w2), (b1, b2) = layer.weights, layer.biases
    each = F.conv2d(F.conv2d(x, w1, b1, padding=1), w2, b2, padding=1)
    difference = (layer(x) - each).detach().abs()
    assert float(difference[..., 2:-2, 2:-2].max()) < 1e-10
    assert float(difference.max()) > 1e-2


@pytest.mark.parametrize("residual", [(), 1, [1, -1]])
@pytest.mark.parametrize("make", [
    lambda mode, r: ExpandedLinear(4, 4, 3, residual_intervals=r, mode=mode),
    lambda mode, r: ExpandedConv2d(4, 4, [3, 1, 3], stride=2, padding=1, residual_intervals=r, mode=mode),
    lambda mode, r: ExpandedConv2d(4, 4, [1, 3], dilation=2, groups=2, padding=2, residual_intervals=r, mode=mode),
])  # fmt: skip
def test_both_modes_have_the_same_gradients(make: Any, residual: Any) -> None:
    one, other = make("weights", residual).double(), make("activations", residual).double()
    other.load_state_dict(one.state_dict())
    assert (one.mode, other.mode) == ("weights", "activations")
    x = normal(3, 4) if isinstance(one, ExpandedLinear) else normal(2, 4, 9, 9)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [layer(each) for layer, each in zip((one, other), inputs, strict=True)]
    torch.testing.assert_close(outputs[0], outputs[1], **EXACT)
    weights = normal(*outputs[0].shape)
    for output in outputs:
        (output * weights).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, **EXACT)
    for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
        assert a.grad is not None, name
        torch.testing.assert_close(a.grad, b.grad, **EXACT)


@pytest.mark.parametrize("mode", ["weights", "activations"])
def test_gradients_are_finite_differences(mode: Any) -> None:
    layer = ExpandedConv2d(2, 2, [2, 1, 2], padding=1, stride=2, mode=mode, dtype=torch.float64)
    names = [name for name, _ in layer.named_parameters()]
    tensors = [parameter.detach().clone().requires_grad_() for parameter in layer.parameters()]
    x = normal(1, 2, 4, 4).requires_grad_()

    def run(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *tensors))


def test_gradients_through_folded_batch_norms_are_finite_differences() -> None:
    layer = unsettled(ExpandedLinear(3, 2, 2, batch_norm=True, dtype=torch.float64)).eval()
    names = [name for name, _ in layer.named_parameters()]
    tensors = [parameter.detach().clone().requires_grad_() for parameter in layer.parameters()]
    x = normal(4, 3)

    def run(*values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, tensors)


# -- what is kept in evaluation mode ----------------------------------------------------------------------------------


def composes(layer: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows whenever the layer composes its factors."""
    calls: list[int] = []
    original = layer.composed

    def counted() -> Any:
        calls.append(1)
        return original()

    monkeypatch.setattr(layer, "composed", counted)
    return calls


def test_the_product_is_kept_until_a_factor_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = ExpandedConv2d(3, 3, 3, batch_norm=True, dtype=torch.float64)
    x = normal(2, 3, 6, 6)
    calls = composes(layer, monkeypatch)
    optimisers = [torch.optim.SGD(layer.parameters(), 1e-6), torch.optim.Adam(layer.parameters(), 0.1, fused=True)]
    other = {name: value + 0.5 for name, value in layer.state_dict().items()}

    def seen(change: Any) -> None:
        with torch.no_grad():
            layer.eval()(x)
            before = len(calls)
            first = layer(x)
            assert len(calls) == before, "nothing changed, and yet it was composed again"
        change()
        with torch.no_grad():
            after = layer(x)
            torch.testing.assert_close(after, layer.expanded(x), **EXACT)
            assert not torch.equal(first, after)

    def pass_of_training() -> None:
        layer.train()(x)
        layer.eval()

    def statistics() -> None:
        with torch.no_grad():
            layer.norms[1].train()(normal(2, 3, 4, 4) + 3)
        layer.norms[1].eval()

    def step(optimiser: torch.optim.Optimizer) -> None:
        optimiser.zero_grad()
        layer(x).square().sum().backward()
        optimiser.step()

    def replaced() -> None:
        layer.weights[0] = nn.Parameter(normal(3, 3, 3, 3))

    def swapped_data() -> None:
        layer.weights[1].data = normal(3, 3, 1, 1)

    def epsilon() -> None:
        layer.norms[0].eps = 3.0  # pyright: ignore

    def step_between_evaluations() -> None:
        optimisers[1].zero_grad()
        layer(x).square().sum().backward()
        with torch.no_grad():
            layer(x)
        optimisers[1].step()

    for optimiser in optimisers:
        seen(lambda o=optimiser: step(o))
    seen(step_between_evaluations)
    seen(lambda: nn.init.normal_(layer.biases[0]))
    seen(lambda: layer.load_state_dict(other))
    seen(lambda: layer.load_state_dict({k: v.clone() - 0.25 for k, v in other.items()}, assign=True))
    seen(pass_of_training)
    seen(statistics)
    seen(replaced)
    seen(swapped_data)
    seen(epsilon)

    def behind_the_counter() -> None:
        layer.weights[1].data.mul_(2)
        layer.eval()

    seen(behind_the_counter)


def test_evaluation_with_gradients_reaches_every_factor() -> None:
    layer = ExpandedLinear(3, 3, 3).eval()
    with torch.no_grad():
        layer(torch.randn(2, 3))
    for _ in range(2):
        layer.zero_grad()
        layer(torch.randn(2, 3)).sum().backward()
        assert all(p.grad is not None and bool(p.grad.any()) for p in layer.parameters())


def test_what_inference_mode_kept_serves_outside_it() -> None:
    layer = ExpandedLinear(3, 3).eval().requires_grad_(False)
    x = torch.randn(2, 3)
    with torch.inference_mode():
        expected = layer(x).clone()
    x.requires_grad_()
    y = layer(x)
    torch.testing.assert_close(y.detach(), expected)
    y.sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(2, 3))


def test_kept_products_neither_leak_into_copies_nor_transforms() -> None:
    layer = ExpandedLinear(3, 2, dtype=torch.float64).eval()
    x = normal(4, 3)
    with torch.no_grad():
        y = layer(x)
        for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            torch.testing.assert_close(twin(x), y)
            twin.weights[0].mul_(2)
            torch.testing.assert_close(twin(x), twin.expanded(x))
        torch.testing.assert_close(layer(x), y)
        stacked = {name: torch.stack([value, 2 * value]) for name, value in layer.state_dict().items()}

        def call(state: dict[str, torch.Tensor]) -> torch.Tensor:
            return torch.func.functional_call(layer, state, (x,))

        both = torch.func.vmap(call)(stacked)
        torch.testing.assert_close(both[0], y)
        doubled = copy.deepcopy(layer)
        doubled.load_state_dict({name: value[1] for name, value in stacked.items()})
        torch.testing.assert_close(both[1], doubled.expanded(x))
        assert layer.float()(x.float()).dtype == torch.float32
    assert set(layer.state_dict()) == {"weights.0", "weights.1", "biases.0", "biases.1"}


def test_train_and_eval_return_the_layer() -> None:
    for layer in (ExpandedLinear(2, 2), ExpandedConv2d(2, 2, 3)):
        assert layer.eval() is layer
        assert not layer.training
        assert layer.train() is layer
        assert layer.training


def test_evaluation_may_run_the_factors() -> None:
    x = torch.randn(2, 3)
    layer = ExpandedLinear(3, 3, mode="activations", collapse_on_eval=False).eval()
    assert torch.equal(layer(x), layer.expanded(x))


@pytest.mark.parametrize("mode", ["weights", "activations"])
def test_expanded_layers_can_be_exported(mode: Any) -> None:
    layer = ExpandedConv2d(2, 3, 3, padding=1, mode=mode).eval()
    x = torch.randn(1, 2, 5, 5)
    program = torch.export.export(layer, (x,))
    torch.testing.assert_close(program.module()(x), layer(x))


def test_autocast_does_not_round_the_product() -> None:
    layer = ExpandedLinear(16, 16, 4)
    exact = layer.composed()[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer.composed()[0], exact)
        assert layer(torch.randn(2, 16)).dtype == torch.bfloat16


# -- initial weights --------------------------------------------------------------------------------------------------


def test_initial_weights_are_kaimings() -> None:
    torch.manual_seed(0)

    def close(weight: torch.Tensor, std: float) -> None:
        count = weight.numel()
        assert abs(float(weight.detach().std()) / std - 1) < 5 / (2 * count) ** 0.5
        assert abs(float(weight.detach().mean())) < 5 * std / count**0.5

    linear = ExpandedLinear(200, 100, 3, width=2)
    for weight, fan, gain in zip(linear.weights, (200, 200, 200), (1, 1, 2**0.5), strict=True):
        close(weight, gain / fan**0.5)
    conv = ExpandedConv2d(20, 40, [3, 1, 3])
    for weight, fan, gain in zip(conv.weights, (360, 40, 360), (1, 1, 2**0.5), strict=True):
        close(weight, gain / fan**0.5)
    close(ExpandedLinear(200, 100, 2, gain=1).weights[1], 0.1)
    depthwise = ExpandedConv2d(4000, 4000, 3, 2, groups=4000)
    close(depthwise.weights[0], 1 / 3)
    close(depthwise.weights[1], 2**0.5)
    for layer, fans in ((linear, (200, 200, 200)), (conv, (180, 40, 360))):
        for bias, fan in zip(layer.biases, fans, strict=True):
            assert 0.7 * fan**-0.5 < float(bias.detach().abs().max()) <= fan**-0.5


def test_new_batch_norms_are_plain() -> None:
    layer = ExpandedConv2d(3, 4, 3, 3, batch_norm=True)
    assert len(layer.norms) == 3, "after the last factor too"
    for norm in layer.norms:
        assert bool((norm.weight == 1).all())  # pyright: ignore
        assert not bool(norm.bias.any())  # pyright: ignore


def test_a_seed_gives_the_same_factors() -> None:
    def made() -> Expanded:
        torch.manual_seed(3)
        return ExpandedConv2d(2, 4, 3)

    for a, b in zip(made().parameters(), made().parameters(), strict=True):
        assert torch.equal(a, b)


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "match"), [
    (lambda: ExpandedLinear(3, 4, 0), "depth: got '0'"),
    (lambda: ExpandedConv2d(3, 4, 3, 0), "depth: got '0'"),
    (lambda: ExpandedLinear(3, 4, 2, 0.2), "width: got '0.2'.*at least one hidden"),
    (lambda: ExpandedConv2d(4, 4, 3, 2, 0.5, groups=4), "width.*in every group"),
    (lambda: ExpandedLinear(3, 4, 2, -1), "width"),
    (lambda: ExpandedConv2d(3, 4, [3, 1], 3), "kernel_sizes.*each of 3 factors"),
    (lambda: ExpandedConv2d(3, 4, []), "kernel_sizes"),
    (lambda: ExpandedConv2d(3, 4, [3, 0]), "kernel_sizes: got '0'"),
    (lambda: ExpandedConv2d(3, 4, 2, padding="same"), "even kernel of 2 x 2"),
    (lambda: ExpandedConv2d(3, 4, 3, padding="same", stride=2), "stride 1"),
    (lambda: ExpandedConv2d(3, 4, 3, padding="sane"), "did you mean 'same'"),
    (lambda: ExpandedConv2d(3, 4, 3, padding_mode="zeroes"), "did you mean 'zeros'"),  # pyright: ignore
    (lambda: ExpandedConv2d(3, 4, 3, padding=-1), "padding"),
    (lambda: ExpandedConv2d(3, 4, 3, groups=2), "in_channels: got '3'; valid: a multiple of the 2 groups"),
    (lambda: ExpandedLinear(3, 4, residual_intervals=-1), "input of 3 channels to the output of 4 channels"),
    (lambda: ExpandedLinear(4, 4, 2, 2, residual_intervals=1), "input of 4 channels to the node 1 of 8 channels"),
    (lambda: ExpandedConv2d(4, 4, 2, residual_intervals=-1), "kernel of 2 x 2"),
    (lambda: ExpandedConv2d(4, 4, [2, 2], dilation=2, residual_intervals=1), "kernel of 2 x 2"),
    (lambda: ExpandedLinear(4, 4, 2, residual_intervals=3), "1 to the depth 2"),
    (lambda: ExpandedLinear(4, 4, batch_norm=True, mode="weights"), "no one kernel"),
    (lambda: ExpandedLinear(4, 4, mode="weight"), "did you mean 'weights'"),  # pyright: ignore
    (lambda: ExpandedLinear(4, 4, batch_norm=True)(torch.randn(1, 4)), "more than one value per channel"),
    (lambda: ExpandedConv2d(4, 4, 3, batch_norm=True)(torch.randn(1, 4, 3, 3)), "more than one value per channel"),
])  # fmt: skip
def test_errors_say_what_was_wrong(make: Any, match: str) -> None:
    with pytest.raises(UserError, match=f"(?s){match}"):
        make()


def test_a_single_sample_is_fine_in_evaluation() -> None:
    assert ExpandedLinear(4, 4, batch_norm=True).eval()(torch.randn(1, 4)).shape == (1, 4)


def test_two_even_kernels_have_a_middle() -> None:
    check_equivalence(
        ExpandedConv2d(4, 4, [2, 2], padding=1, residual_intervals=-1, dtype=torch.float64), normal(1, 4, 5, 5)
    )


def test_a_product_that_underflows_is_named() -> None:
    layer = ExpandedLinear(4, 4, 8, bias=False)
    for weight in layer.weights:
        nn.init.constant_(weight, 1e-7)
    with pytest.raises(UserError, match="float64"):
        layer.collapsed()
    assert bool(layer.double().collapsed().weight.any())
    nn.init.zeros_(layer.weights[0])
    assert not bool(layer.collapsed().weight.any()), "a factor of zeros is no accident"
