"""Whole networks: conversion, conversion that changes nothing, and the way back."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from low_rank.classification import layer_weights
from low_rank.models import classifier_name
from low_rank.overparam import Expanded, ExpandedConv2d, ExpandedLinear, balanced_factors, collapse, overparameterize
from low_rank.overparam.compose import collapse_graph
from shared.config import UserError


def images(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 4, 12, 12, dtype=torch.float64)


def small() -> nn.Sequential:
    """Strided, depthwise, dilated, grouped, even, oblong and otherwise padded convolutions, and a classifier."""
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8),
        nn.Conv2d(8, 12, 1, groups=2), nn.ReLU(),
        nn.Conv2d(12, 6, 3, padding=2, dilation=2), nn.ReLU(),
        nn.Conv2d(6, 6, (1, 3), padding="same"), nn.Conv2d(6, 6, 2, padding_mode="circular", padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 10), nn.ReLU(), nn.Linear(10, 3, bias=False),
    ).double()  # fmt: skip


def classes_of_ours(model: nn.Module) -> Iterator[str]:
    return (type(m).__module__ for m in model.modules() if type(m).__module__.startswith("low_rank"))


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("width", [1, 2])
def test_preserve_keeps_the_function(depth: int, width: float) -> None:
    torch.manual_seed(0)
    model, x = small().eval(), images()
    wide, report = overparameterize(model, depth, width, init="preserve")
    assert len(report.rows) == 8
    assert sum(isinstance(m, (ExpandedConv2d, ExpandedLinear)) for m in wide.modules()) == 8
    torch.testing.assert_close(wide(x), model(x), rtol=1e-10, atol=1e-10)
    plain = collapse(wide)
    for (name, value), original in zip(plain.state_dict().items(), model.state_dict().values(), strict=True):
        torch.testing.assert_close(value, original, rtol=1e-10, atol=1e-10, msg=name)
    assert not wide.training
    assert [type(m) for m in plain.modules()] == [type(m) for m in model.modules()]


@pytest.mark.parametrize("kernels", [[3, 1, 1], [1, 3, 1], [1, 1, 3], [3, 3], [1, 5]])
def test_preserve_with_any_place_of_the_kernel(kernels: list[int]) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=2, dilation=2)).double()
    if kernels == [1, 5]:
        with pytest.raises(UserError, match="kernels"):
            overparameterize(model, 2, kernels=kernels, init="preserve")
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # 3 x 3 twice cannot be any 5 x 5
        wide, report = overparameterize(model, len(kernels), kernels=kernels, init="preserve")
    torch.testing.assert_close(wide(images()).shape, model(images()).shape)
    x = images()
    torch.testing.assert_close(wide(x), model(x), rtol=1e-10, atol=1e-10)
    assert [row.kernel_changed for row in report.rows] == [kernels == [3, 3]] * 2
    plain = collapse(wide)
    torch.testing.assert_close(plain(x), model(x), rtol=1e-10, atol=1e-10)


def test_preserved_factors_are_balanced() -> None:
    """W_(l+1)^T W_(l+1) = W_l W_l^T, and singular values are d-th roots."""
    torch.manual_seed(0)
    weight = torch.randn(6, 4, 3, 3, dtype=torch.float64)
    factors = balanced_factors(weight, [(3, 3), (1, 1), (1, 1)], 9)
    torch.testing.assert_close(collapse_graph([(w, None) for w in factors])[0], weight)
    flat = [w.flatten(1) for w in factors]
    for lower, upper in pairwise(flat):
        torch.testing.assert_close(upper.T @ upper, lower @ lower.T)
    roots = torch.linalg.svdvals(weight.flatten(1)) ** (1 / 3)
    for w in flat:
        torch.testing.assert_close(torch.linalg.svdvals(w)[:6], roots)
    assert all(bool(w.any(1).all()) and bool(w.any(0).all()) for w in flat), "no hidden channel is dead"


@pytest.mark.parametrize(("depth", "width", "exclude"), [
    (2, 1, ()), pytest.param(3, 2, (), marks=pytest.mark.slow), (8, 1, "layer4.*"),  # whose weights take the longest
])  # fmt: skip
def test_preserve_on_a_torchvision_resnet(depth: int, width: float, exclude: Any) -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None, num_classes=10).eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.running_var, 0.5, 2)  # pyright: ignore
    wide, report = overparameterize(model, depth, width, exclude=exclude, init="preserve")
    plain = collapse(wide)
    assert not list(classes_of_ours(plain))
    assert not report.capacity_reduced
    assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in model.parameters())
    for (name, value), original in zip(plain.state_dict().items(), model.state_dict().values(), strict=True):
        if value.is_floating_point():
            assert float((value - original).abs().max()) <= 1e-6, name
    with torch.no_grad():
        x = torch.randn(2, 3, 48, 48)
        expected = model(x)
        for each in (wide, plain):
            assert float((each(x) - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
        fresh = torchvision.models.resnet18(weights=None, num_classes=10).eval()
        fresh.load_state_dict(plain.state_dict())
        assert torch.equal(fresh(x), plain(x))


def test_a_trained_product_collapses_into_the_original_architecture() -> None:
    torch.manual_seed(0)
    model = small()
    before = copy.deepcopy(model.state_dict())
    wide, report = overparameterize(model, 3, batch_norm=False)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), "the model itself is left alone"
    optimiser = torch.optim.SGD(wide.parameters(), 0.01)
    for _ in range(2):
        wide(images()).square().sum().backward()
        optimiser.step()
    wide.eval()
    plain = collapse(wide)
    x = images()
    torch.testing.assert_close(plain(x), wide(x), rtol=1e-10, atol=1e-10)
    model.load_state_dict(plain.state_dict())
    torch.testing.assert_close(model.eval()(x), plain(x))
    assert not plain.training
    exported = torch.export.export(plain, (x,))
    torch.testing.assert_close(exported.module()(x), plain(x))
    assert report.parameters_before == sum(p.numel() for m in model if not isinstance(m, nn.BatchNorm2d)
                                           for p in m.parameters())  # fmt: skip
    assert report.parameters_after == sum(p.numel() for p in wide.parameters()) - 16


def test_batch_norms_that_make_a_bias_are_told() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 3)).double()
    wide, report = overparameterize(model, 2, batch_norm=True)
    assert [row.bias_added for row in report.rows] == [True, False]
    wide(images(8))
    with pytest.warns(UserWarning, match=r"0\.bias"):
        plain = collapse(wide.eval())
    x = images()
    torch.testing.assert_close(plain(x), wide(x), rtol=1e-10, atol=1e-10)
    with pytest.raises(RuntimeError, match=r"0\.bias"):
        model.load_state_dict(plain.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        biased = nn.Sequential(nn.Linear(3, 3))
        collapse(overparameterize(biased, 2, batch_norm=True)[0])


def test_a_layer_under_two_names_stays_one() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(4, 4)
            self.same = self.one
            self.outside = [self.one]  # modules do not see what lists hold

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.outside[0](self.same(self.one(x)))

    model: Any = Twice()
    wide, report = overparameterize(model, init="preserve")
    made: Any = wide
    assert isinstance(made.one, ExpandedLinear)
    assert made.one is made.same
    assert made.one is made.outside[0]
    assert len(report.rows) == 1
    x = torch.randn(2, 4)
    torch.testing.assert_close(wide(x), model(x))
    for one, other in (("one", "same"), ("same", "one")):
        with pytest.raises(UserError, match="layers to replace"):
            overparameterize(model, exclude=[one])
        named = overparameterize(model, include=other)[1].rows
        assert [row.module for row in named] == [other]
        with pytest.raises(UserError, match="layers to replace"):
            overparameterize(model, include=other, exclude=one)
    plain: Any = collapse(wide)
    assert type(plain.one) is nn.Linear
    assert plain.one is plain.same
    assert plain.one is plain.outside[0]


def test_a_single_layer_is_a_network() -> None:
    layer, _ = overparameterize(nn.Linear(3, 4), 2, init="preserve")
    assert isinstance(layer, ExpandedLinear)
    assert type(collapse(layer)) is nn.Linear


def test_the_output_layer_has_gain_one() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 300))
    for authors, gain in ((False, 1.0), (True, 2**0.5)):
        wide, _ = overparameterize(model, 2, authors_init=authors)
        hidden, output = (m for m in wide.modules() if isinstance(m, ExpandedLinear))
        assert abs(float(hidden.weights[1].detach().std()) * 300**0.5 - 2**0.5) < 0.03
        assert abs(float(output.weights[1].detach().std()) * 300**0.5 - gain) < 0.03
        assert abs(float(output.weights[0].detach().std()) * 300**0.5 - 1) < 0.03


def test_the_gain_is_that_of_the_activation_that_follows() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(40, 200, 3), nn.Tanh(), nn.Flatten(), nn.Linear(300, 300), nn.Linear(300, 300))
    for authors, output in ((False, 1.0), (True, 0.3)):
        wide: Any = overparameterize(model, 2, gain=0.3, authors_init=authors)[0]
        for layer, fan, gain in ((wide[0], 200, 0.3), (wide[3], 300, 0.3), (wide[4], 300, output)):
            assert float(layer.weights[1].detach().std()) * fan**0.5 == pytest.approx(gain, rel=0.03)
            assert layer.gain == gain
        assert float(wide[0].weights[0].detach().std()) * (9 * 200) ** 0.5 == pytest.approx(1, rel=0.03)


def test_one_name_is_one_pattern() -> None:
    model: Any = nn.ModuleDict({"first": nn.Linear(3, 3), "f": nn.Conv2d(3, 3, 1), "inner": nn.ModuleDict({
        "first": nn.Linear(3, 3)})})  # fmt: skip

    def replaced(**options: Any) -> list[str]:
        return [row.module for row in overparameterize(model, **options)[1].rows]

    assert replaced(include="first") == ["first"]
    assert replaced(exclude="first") == ["f", "inner.first"]
    assert replaced(include="*first", exclude="inner.*") == ["first"], "a star is any text, dots too"
    assert replaced(kinds="conv") == ["f"]
    for field in ("include", "exclude", "kinds"):
        for wrong in (3, None, [3]):
            with pytest.raises(UserError, match=f"{field}.*one name, or a list of names"):
                replaced(**{field: wrong})


@pytest.mark.parametrize("padding", ["valid", "same", 1, (2, 0)])
@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect"])
def test_kernels_that_grow_keep_the_size_and_the_function(padding: Any, mode: Any) -> None:
    torch.manual_seed(0)
    for dilation, stride in ((1, 1), (2, 1), *([(1, 2)] if padding != "same" else [])):
        model = nn.Sequential(nn.Conv2d(4, 4, 3, stride, padding, dilation, padding_mode=mode)).double()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # 3 x 3 twice cannot be any 5 x 5
            reset, _ = overparameterize(model, 2, kernels=[3, 3])
            kept, report = overparameterize(model, 2, kernels=[3, 3], init="preserve")
        x = images()
        expected = model(x)
        assert report.rows[0].kernel_changed
        assert reset(x).shape == expected.shape
        for net in (kept, collapse(kept)):
            torch.testing.assert_close(net(x), expected, rtol=1e-10, atol=1e-10)


def test_kernels_without_a_middle_are_not_embedded() -> None:
    """2 x 2 has no middle in 4 x 4: what is kept would be moved by a pixel."""
    model = nn.Sequential(nn.Conv2d(4, 4, 2, padding=1)).double()
    with pytest.raises(UserError, match=r"layer '0': init.*odd kernels, one of which holds 2 x 2"):
        overparameterize(model, 3, kernels=[2, 2, 2], width=4, init="preserve")
    odd = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1)).double()
    with pytest.raises(UserError, match="odd kernels"):
        overparameterize(odd, 3, kernels=[3, 2, 2], width=9, init="preserve")


def test_what_is_frozen_stays_so_both_ways() -> None:
    model: Any = small()
    model[0].weight.requires_grad_(False)
    model[4].bias.requires_grad_(False)
    model[6].requires_grad_(False)
    plain = collapse(overparameterize(model, 3)[0])
    asked = {name: parameter.requires_grad for name, parameter in plain.named_parameters()}
    assert asked == {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert (asked["0.weight"], asked["0.bias"], asked["4.weight"], asked["4.bias"]) == (False, True, True, False)


HOOKS: dict[str, Any] = {
    "forward": lambda layer: layer.register_forward_hook(lambda *_: None),
    "forward pre": lambda layer: layer.register_forward_pre_hook(lambda *_: None),
    "backward": lambda layer: layer.register_full_backward_hook(lambda *_: None),
    "backward pre": lambda layer: layer.register_full_backward_pre_hook(lambda *_: None),
    "state": lambda layer: layer.register_state_dict_post_hook(lambda *_: None),
    "state pre": lambda layer: layer.register_state_dict_pre_hook(lambda *_: None),
    "load": lambda layer: layer.register_load_state_dict_post_hook(lambda *_: None),
    "load pre": lambda layer: layer.register_load_state_dict_pre_hook(lambda *_: None),
    "parameter": lambda layer: next(layer.parameters()).register_hook(lambda _: None),
    "accumulation": lambda layer: next(layer.parameters()).register_post_accumulate_grad_hook(lambda _: None),
}


@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_are_refused_both_ways(kind: str) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    wide, _ = overparameterize(model, 2, batch_norm=True)
    for layer in (model[0], wide[0]):  # pyright: ignore
        handle = HOOKS[kind](layer)
        with pytest.raises(UserError, match=r"layer '0'.*hooks, which would be lost"):
            (overparameterize if layer is model[0] else collapse)(model if layer is model[0] else wide)
        handle.remove()
    overparameterize(model, 2)
    collapse(wide)
    inner: Any = wide
    handle = inner[0].norms[1].register_forward_hook(lambda *_: None)
    with pytest.raises(UserError, match="hooks"):
        collapse(wide)
    handle.remove()
    collapse(wide)


class LowRank(Expanded):
    """What somebody else may write beside ours: U V, of rank one, and a scale."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.in_features = 3
        self.down, self.up = nn.Linear(3, 1, bias=False), nn.Linear(1, 2)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def composed(self) -> Any:
        return self.scale * self.up.weight @ self.down.weight, self.up.bias

    def collapsed(self) -> nn.Linear:
        plain = nn.Linear(3, 2)
        weight, bias = self.composed()
        plain.load_state_dict({"weight": weight, "bias": bias})
        return plain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * nn.functional.linear(self.down(x), self.up.weight) + self.up.bias


def test_layers_of_other_kinds_collapse_and_have_weights() -> None:
    for model, name in ((nn.Sequential(nn.ReLU(), LowRank()), "1"), (LowRank(), "")):
        plain = collapse(copy.deepcopy(model))
        x = torch.randn(4, 3)
        torch.testing.assert_close(plain(x), model(x))
        assert not list(classes_of_ours(plain))
        assert type(plain.get_submodule(name)) is nn.Linear
        weights = layer_weights(model)
        assert list(weights) == [name], "its parts are none of the network's layers"
        assert int(torch.linalg.matrix_rank(weights[name])) == 1
        assert classifier_name(model) == name


def test_kinds_patterns_and_frozen_layers() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "c": nn.Conv2d(3, 3, 1)}).eval()
    model["a"].weight.requires_grad_(False)
    names = [row.module for row in overparameterize(model, include=["a", "c"])[1].rows]
    assert names == ["a", "c"]
    assert [row.module for row in overparameterize(model, kinds=["linear"], exclude=["b"])[1].rows] == ["a"]
    wide: Any = overparameterize(model)[0]
    assert not any(p.requires_grad for p in wide["a"].weights)
    assert all(p.requires_grad for p in wide["a"].biases)
    assert not wide["a"].training
    assert not collapse(wide)["a"].training  # pyright: ignore


def test_kernels_meet_the_convolutions_they_suit() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 7, padding=3), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)).double()
    with pytest.warns(UserWarning, match="capacity"):
        wide, report = overparameterize(model, 2, kernels=[3, 3])
    assert [[f[2] for f in row.factors] for row in report.rows] == [[7, 1], [3, 3], [1, 1]]
    assert [row.kernel_changed for row in report.rows] == [False, True, False]
    assert wide(images()).shape == model(images()).shape
    assert "kernel changed" in str(report)
    exact, report = overparameterize(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1)), 2, kernels=[2, 2], width=4)
    assert not report.rows[0].kernel_changed
    assert isinstance(exact, nn.Sequential)
    with pytest.raises(UserError, match="kernels"):
        overparameterize(model, 2, kernels=[5, 1])
    with pytest.raises(UserError, match="even number of taps"):
        overparameterize(model, 2, kernels=[3, 2])
    with pytest.raises(UserError, match="each of 3 factors"):
        overparameterize(model, 3, kernels=[3, 1])


def test_reduced_capacity_is_told() -> None:
    """h >= min(in k k, out), and here a product cannot have the rank that the layer had."""
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="capacity reduced.*: 0"):
        wide, report = overparameterize(nn.Sequential(nn.Conv2d(4, 8, 3)), 2, 0.5)
    assert report.capacity_reduced
    assert "capacity reduced" in str(report)
    plain: Any = collapse(wide)
    assert int(torch.linalg.matrix_rank(plain[0].weight.flatten(1))) == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not overparameterize(nn.Conv2d(1, 18, 3), 2, 0.5)[1].capacity_reduced, "9 inputs pass 9 channels"
        assert not overparameterize(nn.Conv2d(4, 8, 3), 3)[1].capacity_reduced
    with pytest.warns(UserWarning, match="capacity"):
        report = overparameterize(nn.Conv2d(8, 4, 3), 3, kernels=[1, 3, 1])[1]
    assert report.capacity_reduced, "8 inputs do not pass 4 channels of a 1 x 1 kernel"


def test_residual_layers() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6)).double()
    with pytest.raises(UserError, match=r"(?s)layer '0'.*input of 4 channels.*output of 6 channels.*on_mismatch"):
        overparameterize(model, 2, residual=-1)
    wide, report = overparameterize(model, 2, residual=-1, on_mismatch="skip")
    assert [row.residual for row in report.rows] == [False, True]
    x = torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(collapse(wide)(x), wide(x))
    with pytest.raises(UserError, match="fit at least one"):
        overparameterize(nn.Linear(3, 4), residual=1, on_mismatch="skip")
    with pytest.raises(UserError, match="1 to the depth 2"):
        overparameterize(model, 2, residual=5, on_mismatch="skip")


def test_a_transformers_feed_forward_layers() -> None:
    """Its fast path reads weights off the layers."""
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    wide, _ = overparameterize(block, 2, include=["linear*"], init="preserve")
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        torch.testing.assert_close(wide(x), block(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=r"(?s)self_attn\.out_proj.*NonDynamicallyQuantizableLinear.*exclude="):
        overparameterize(block)
    stack = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
    with pytest.raises(UserError) as refusal:
        overparameterize(stack, 2)
    names = ["layers.0.self_attn.out_proj", "layers.1.self_attn.out_proj"]
    assert f"exclude={names}" in refusal.value.hint
    assert len(overparameterize(stack, 2, exclude=names)[1].rows) == 4


def test_layers_that_cannot_be_replaced_are_named() -> None:
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    with pytest.raises(UserError, match=r"'0'.*'1' has too"):
        overparameterize(tied)
    parametrised = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)))
    with pytest.raises(UserError, match=r"layer '0'.*ParametrizedLinear"):
        overparameterize(parametrised)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        computed = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 3)))  # pyright: ignore
    with pytest.raises(UserError, match="computed"):
        overparameterize(computed)
    hooked = nn.Sequential(nn.Linear(3, 3))
    hooked[0].register_forward_hook(lambda *_: None)
    with pytest.raises(UserError, match="hooks"):
        overparameterize(hooked)


@pytest.mark.parametrize(("options", "match"), [
    ({"depth": 0}, "depth"),
    ({"width": 0.1}, "layer '0': width"),
    ({"init": "preserved"}, "did you mean 'preserve'"),
    ({"init": "preserve", "batch_norm": True}, "preserve with batch_norm"),
    ({"init": "preserve", "residual": -1}, "preserve with residual"),
    ({"init": "preserve", "width": 0.5}, "layer '0': width.*4 hidden channels"),
    ({"kinds": ["convolution"]}, "kinds"),
    ({"kinds": ["conv"]}, "layers to replace"),
    ({"include": ["7"]}, "layer pattern"),
    ({"batch_norm": True, "mode": "weights"}, "layer '0': mode"),
    ({"on_mismatch": "ignore"}, "on_mismatch"),
    *(({"depth": d}, "depth.*whole number") for d in (2.5, "2", None, True)),
    *(({"width": w}, "width") for w in (float("inf"), float("nan"), "1", None)),
    *(({"gain": g}, "gain") for g in (-1, float("inf"), "relu", None)),
    *(({"depth": 3, "kernels": k}, "kernels") for k in (3, [(3, 3), 1, 1], [3.0, 1, 1], "311")),
    *(({"residual": r}, "residual") for r in (None, "1", [1.5], 1.0)),
])  # fmt: skip
def test_wrong_options_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        overparameterize(nn.Sequential(nn.Linear(4, 4)), **options)


def test_preserving_needs_numbers() -> None:
    for value in (float("nan"), float("inf")):
        for name in ("1.weight", "1.bias"):
            model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
            with torch.no_grad():
                model.get_parameter(name).flatten()[2] = value
            with pytest.raises(UserError, match=r"layer '1': init.*not finite"):
                overparameterize(model, 2, init="preserve")


def test_a_product_that_leaves_its_precision_is_named() -> None:
    wide, _ = overparameterize(nn.Sequential(nn.Linear(4, 4)), 8)
    for parameter in wide.parameters():
        nn.init.constant_(parameter, 1e-7)
    with pytest.raises(UserError, match=r"layer '0'.*product of 8 factors.*0 everywhere"):
        collapse(wide)
    for parameter in wide.parameters():
        nn.init.constant_(parameter, 1e7)
    with pytest.raises(UserError, match=r"layer '0'.*product of 8 factors.*not finite"):
        collapse(wide)
