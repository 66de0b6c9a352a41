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

from low_rank.overparam import Expanded, ExpandedConv2d, ExpandedLinear
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


def check_equivalence(layer: Any, x: torch.Tensor, places: Any = ()) -> None:
    """Factors in turn, their product and the plain layer; for convolutions with other (stride, padding) too."""
    layer = unsettled(layer).eval()
    with torch.no_grad():
        plain = layer.collapsed()
        assert type(plain) in (nn.Linear, nn.Conv2d)
        for place in places or (None,):
            if place is not None:
                layer.stride, layer.padding = plain.stride, plain.padding = [(each, each) for each in place]
            expected = layer.expanded(x)
            scale = max(1.0, float(expected.abs().max()))
            for other in (layer(x), plain(x)):
                assert other.shape == expected.shape
                assert float((other - expected).abs().max()) <= 1e-10 * scale, (layer, place)


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
    images = {inputs: normal(1, inputs, 8, 9) for inputs in (3, 4)}
    places = [*itertools.product((1, 2), (0, 1, 2))]
    cases = itertools.product((3, 4), (0.5, 1, 4), (True, False), (True, False), RESIDUALS)
    ran = 0
    for inputs, width, bias, batch_norm, residual in cases:
        options: dict[str, Any] = {
            "bias": bias, "batch_norm": batch_norm, "residual_intervals": residual, "dtype": torch.float64,
        }  # fmt: skip
        if refused(residual, depth, inputs, width, kernels):
            with pytest.raises(UserError, match="residual_intervals"):
                ExpandedConv2d(inputs, 4, kernels, depth, width, **options)
            continue
        layer = ExpandedConv2d(inputs, 4, kernels, depth, width, 2, 1, **options)
        assert (layer.stride, layer.padding) == ((2, 2), (1, 1))
        check_equivalence(layer, images[inputs], places)
        ran += len(places)
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


WIDTHS = (0.5, 1, 4)
SHARED: dict[str, Any] = {  # depth, residual intervals and width to a layer of 4 inputs and outputs
    **{f"linear {d}": (d, 1, lambda mode, w, r, d=d: ExpandedLinear(4, 4, d, w, residual_intervals=r, mode=mode))
       for d in (1, 2, 3, 8)},
    **{f"conv {d}": (d, 3, lambda mode, w, r, d=d: ExpandedConv2d(
        4, 4, 3, d, w, 2, 1, residual_intervals=r, mode=mode)) for d in (1, 2, 3, 8)},
    "wide twice": (3, [3, 1, 3], lambda mode, w, r: ExpandedConv2d(
        4, 4, [3, 1, 3], None, w, 2, 1, residual_intervals=r, mode=mode)),
    "even": (2, 2, lambda mode, w, r: ExpandedConv2d(4, 4, [2, 1], None, w, 1, 1, residual_intervals=r, mode=mode)),
    "groups": (2, [1, 3], lambda mode, w, r: ExpandedConv2d(
        4, 4, [1, 3], None, w, 1, 2, 2, 1 if w == 0.5 else 2, residual_intervals=r, mode=mode)),
}  # fmt: skip


@pytest.mark.parametrize("case", SHARED)
@pytest.mark.parametrize("residual", [(), 1, -1, [1, -1]])
def test_both_modes_have_the_same_gradients(case: str, residual: Any) -> None:
    torch.manual_seed(0)
    depth, kernels, make = SHARED[case]
    for width in WIDTHS:
        if refused(residual, depth, 4, width, kernels):
            continue
        one, other = make("weights", width, residual).double(), make("activations", width, residual).double()
        other.load_state_dict(one.state_dict())
        assert (one.mode, other.mode) == ("weights", "activations")
        x = normal(3, 4) if isinstance(one, ExpandedLinear) else normal(2, 4, 9, 9)
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        outputs = [layer(each) for layer, each in zip((one, other), inputs, strict=True)]
        scale = max(1.0, float(outputs[0].detach().abs().max()))
        torch.testing.assert_close(outputs[0] / scale, outputs[1] / scale, **EXACT)
        weights = normal(*outputs[0].shape) / scale
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

    def behind_the_counter(name: str, change: Any) -> None:
        getattr(layer.get_parameter(name).data, change[0])(*change[1:])

    seen(lambda: behind_the_counter("weights.1", ("mul_", 2)))
    seen(lambda: behind_the_counter("weights.0", ("neg_",)))
    seen(lambda: behind_the_counter("weights.0", ("copy_", layer.weights[0].detach().flip(0).clone())))
    seen(lambda: behind_the_counter("weights.0", ("index_fill_", 0, torch.tensor(1), 0.25)))
    seen(lambda: behind_the_counter("biases.1", ("add_", 0.5)))
    seen(lambda: behind_the_counter("norms.0.weight", ("mul_", 2)))

    def statistics_by_function() -> None:
        norm: Any = layer.norms[0]
        F.batch_norm(normal(2, 3, 4, 4) + 3, norm.running_mean, norm.running_var, training=True)

    seen(statistics_by_function)


def fused(layer: nn.Module) -> torch.optim.Optimizer:
    """Its kernels write parameters without counting."""
    return torch.optim.Adam(layer.parameters(), 0.1, fused=True)


def trained_then_looked_at(layer: Any, x: torch.Tensor, step: Any) -> None:
    layer.train()
    layer(x).square().sum().backward()
    layer.eval()
    look(layer, x)
    step()


def looked_at_between(layer: Any, x: torch.Tensor, step: Any) -> None:
    layer.eval()
    look(layer, x)
    layer.expanded(x).square().sum().backward()
    step()


def composed_by_hand(layer: Any, x: torch.Tensor, step: Any) -> None:
    layer.eval()
    look(layer, x)
    layer.composed()[0].square().sum().backward()
    step()


def gradients_given(layer: Any, x: torch.Tensor, step: Any) -> None:
    layer.eval()
    look(layer, x)
    for parameter in layer.parameters():
        parameter.grad = torch.randn_like(parameter)
    step()


def look(layer: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return layer(x)


@pytest.mark.parametrize("emptied", [True, False], ids=["gradients emptied", "gradients left"])
@pytest.mark.parametrize("way", [trained_then_looked_at, looked_at_between, composed_by_hand, gradients_given])
def test_a_step_that_nobody_counts_is_seen(way: Any, emptied: bool) -> None:
    torch.manual_seed(0)
    for layer, x in ((ExpandedLinear(3, 4, 3), torch.randn(5, 3)), (ExpandedConv2d(3, 4, 3), torch.randn(2, 3, 5, 5))):
        optimizer = fused(layer)

        def step(optimizer: torch.optim.Optimizer = optimizer) -> None:
            optimizer.step()
            if emptied:
                optimizer.zero_grad()

        before = look(layer, x)
        way(layer, x, step)
        with torch.no_grad():
            torch.testing.assert_close(layer(x), layer.expanded(x), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(look(layer, x), before)


def test_steps_of_losses_that_keep_sums_and_norms_are_seen() -> None:
    """A cross entropy keeps the sum over classes of the last weights, a normalisation their norm."""
    layer = ExpandedLinear(4, 3, 2, bias=False).eval()
    x = torch.randn(6, 4)
    for loss in (
        lambda: F.cross_entropy(layer(x), torch.tensor([0, 1, 2, 0, 1, 2])),
        lambda: F.normalize(layer.composed()[0].flatten(), dim=0)[0],
    ):
        optimizer = torch.optim.SGD(layer.parameters(), 1e-4, fused=True)
        for _ in range(3):
            before = look(layer, x)
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
            with torch.no_grad():
                torch.testing.assert_close(layer(x), layer.expanded(x), rtol=1e-6, atol=1e-6)
            assert not torch.equal(look(layer, x), before)


@pytest.mark.parametrize("axis", [0, 1])
def test_entries_that_change_places_are_seen(axis: int) -> None:
    """Whole numbers, whose sums are exact: only that they stand elsewhere tells."""
    layer = ExpandedLinear(4, 4, 2, bias=False).eval()
    with torch.no_grad():
        for weight in layer.weights:
            weight.copy_(torch.randint(-9, 10, weight.shape))
            weight[0, 0], weight[-1, 0], weight[0, -1] = 10.0, 11.0, 12.0
    x = torch.eye(4)
    for weight in layer.weights:
        before = look(layer, x)
        weight.data.copy_(weight.detach().flip(axis).clone())
        assert torch.equal(look(layer, x), layer.expanded(x))
        assert not torch.equal(look(layer, x), before)


def test_writing_what_the_layer_shows_changes_nothing() -> None:
    layer = ExpandedLinear(3, 3, batch_norm=True).eval()
    x = torch.randn(2, 3)
    expected = look(layer, x)
    with torch.no_grad():
        assert layer.bias is not None
        layer.weight.zero_()
        layer.bias.zero_()
    assert torch.equal(look(layer, x), expected)
    alone = ExpandedLinear(3, 3, 1)
    with torch.no_grad():
        alone.weight.zero_()
        alone.collapsed().weight.zero_()
    assert bool(alone.weights[0].any())


def test_factors_can_be_swapped() -> None:
    layer = ExpandedLinear(3, 3).eval()
    x = torch.randn(2, 3)
    look(layer, x)
    torch.utils.swap_tensors(layer.weights[0], nn.Parameter(torch.randn(3, 3)))
    with torch.no_grad():
        torch.testing.assert_close(layer(x), layer.expanded(x))


def test_looking_uses_no_random_numbers() -> None:
    layer = ExpandedLinear(3, 3).eval()
    state = torch.get_rng_state()
    look(layer, torch.ones(2, 3))
    assert torch.equal(torch.get_rng_state(), state)


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
    assert any(node.op == "placeholder" and "weights" in node.name for node in program.graph.nodes)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_what_is_compiled_or_traced_reads_the_factors_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = ExpandedLinear(3, 3).eval()
    x = torch.randn(2, 3)
    look(layer, x)
    with torch.no_grad():
        traced: Any = torch.jit.trace(layer, (x,))
        layer.weights[0].mul_(2)
        torch.testing.assert_close(traced(x), layer.expanded(x))
        look(layer, x)
        calls = composes(layer, monkeypatch)
        layer(x)
        assert not calls
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        layer(x)
        layer(x)
    assert len(calls) == 2


def test_autocast_does_not_round_the_product() -> None:
    layer = ExpandedLinear(16, 16, 4)
    exact = layer.composed()[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer.composed()[0], exact)
        assert layer(torch.randn(2, 16)).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_factors_of_half_precision_are_multiplied_in_single(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = ExpandedLinear(32, 32, 6, dtype=dtype)
    exact = ExpandedLinear(32, 32, 6)
    exact.load_state_dict(layer.state_dict())
    for one, other in zip(layer.composed(), exact.composed(), strict=True):
        assert one is not None
        assert other is not None
        assert one.dtype == dtype
        assert torch.equal(one, other.to(dtype)), "rounded once, and not at each factor"
    x = torch.randn(2, 32).to(dtype)
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(x), F.linear(x, *(each.to(dtype) for each in exact.composed())))  # pyright: ignore


def test_a_collapsed_layer_asks_for_gradients_where_its_factors_do() -> None:
    def asks(layer: Any) -> list[bool]:
        return [parameter.requires_grad for parameter in layer.collapsed().parameters()]

    layer = ExpandedConv2d(2, 3, 3, 3)
    assert asks(layer) == [True, True]
    layer.weights.requires_grad_(False)
    assert asks(layer) == [False, True]
    layer.biases.requires_grad_(False)
    assert asks(layer) == [False, False]
    layer.weights[1].requires_grad_()
    assert asks(layer) == [True, False]
    normed = ExpandedLinear(2, 3, batch_norm=True, bias=False).requires_grad_(False)
    assert asks(normed) == [False, False]
    normed.norms[0].bias.requires_grad_()  # pyright: ignore
    assert asks(normed) == [False, True]


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


def anything(*values: Any) -> tuple[Any, ...]:
    """What no type would let through."""
    return values


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
    *((lambda d=d: ExpandedLinear(3, 4, d), "depth.*a whole number >= 1") for d in anything(2.5, 2.0, "2", None, True)),
    *((lambda d=d: ExpandedConv2d(3, 4, 3, d), "depth.*a whole number >= 1") for d in anything(2.5, "2", True)),
    *((lambda w=w: ExpandedLinear(3, 4, 2, w), "width") for w in anything(float("inf"), float("nan"), "2", None, True)),
    (lambda: ExpandedLinear(3.0, 4), "in_features.*whole"),  # pyright: ignore
    (lambda: ExpandedLinear(3, 4.0), "out_features.*whole"),  # pyright: ignore
    (lambda: ExpandedConv2d("3", 4, 3), "in_channels.*whole"),  # pyright: ignore
    (lambda: ExpandedConv2d(3, None, 3), "out_channels.*whole"),  # pyright: ignore
    *((lambda k=k: ExpandedConv2d(3, 4, k), "kernel_sizes")
      for k in anything(3.0, None, "33", True, [3.0, 1], [(3,), 1])),
    (lambda: ExpandedConv2d(3, 4, 3, stride=1.5), "stride.*whole"),  # pyright: ignore
    (lambda: ExpandedConv2d(3, 4, 3, stride=None), "stride"),  # pyright: ignore
    *((lambda p=p: ExpandedConv2d(3, 4, 3, padding=p), "padding.*whole") for p in anything(1.0, None, (1, 2, 3))),
    (lambda: ExpandedConv2d(3, 4, 3, dilation=2.0), "dilation.*whole"),  # pyright: ignore
    (lambda: ExpandedConv2d(4, 4, 3, groups=2.0), "groups.*whole"),  # pyright: ignore
    *((lambda g=g: ExpandedLinear(3, 4, gain=g), "gain")
      for g in anything(-1, float("inf"), float("nan"), None, "relu")),
    *((lambda r=r: ExpandedLinear(4, 4, residual_intervals=r), "residual_intervals.*1 to the depth 2")
      for r in anything(None, "1", [1.5], 1.0, [True])),
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


def test_half_precision_that_cannot_hold_the_product_says_so() -> None:
    """Once, at the first product; zeros would train no further, and infinity to nothing."""
    x = torch.ones(2, 8, dtype=torch.float16)
    for value, words in ((1e-2, "0 everywhere, in float16"), (1e2, "not finite, in float16")):
        for mode in ("weights", "activations"):
            layer = ExpandedLinear(8, 8, 8, bias=False, mode=mode, dtype=torch.float16)
            for weight in layer.weights:
                nn.init.constant_(weight, value)
            with pytest.raises(UserError, match=f"(?s)product of 8 factors.*{words}.*float64"):
                layer.eval()(x)
            with pytest.raises(UserError, match=words):
                layer.collapsed()
            if mode == "weights":
                with pytest.raises(UserError, match=words):
                    layer.train()(x)
    assert bool(layer.double().collapsed().weight.isfinite().all())
    broken = ExpandedLinear(2, 2)
    nn.init.constant_(broken.weights[0], float("nan"))
    assert bool(broken.collapsed().weight.isnan().any()), "what was broken before stays so"


def test_the_product_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = ExpandedLinear(3, 3)
    looks: list[int] = []
    original = layer._check_product
    monkeypatch.setattr(layer, "_check_product", lambda *given: looks.append(1) or original(*given))
    for _ in range(3):
        layer(torch.randn(2, 3)).sum().backward()
    look(layer.eval(), torch.randn(2, 3))
    assert len(looks) == 1
    layer.half().float()(torch.randn(2, 3))
    assert len(looks) == 2
