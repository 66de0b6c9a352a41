"""Networks: shapes, sizes that are known elsewhere, skips written out by hand, and where hidden layers are."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from low_rank.models import (
    LEAST_SIDE,
    CifarResNet,
    ResidualMLP,
    Sine,
    activation_module,
    build_model,
    classifier_name,
    collect_features,
    feature_layers,
    gain,
    hidden_weights,
)
from low_rank.names import ACTIVATIONS, FROM_TORCHVISION, MODEL_DESCRIPTIONS, MODELS, REGULARISERS, Model
from low_rank.overparam import ExpandedConv2d, ExpandedLinear
from shared.config import UserError

DIGITS, MNIST, CIFAR, CIFAR100 = (1, 8, 10), (1, 28, 10), (3, 32, 10), (3, 32, 100)
SMALL = {"cnn": 0.25, "cnn-small": 0.5, "alexnet-cifar": 0.1}


def images(shape: tuple[int, int, int], count: int = 4, seed: int = 0) -> Tensor:
    channels, side, _ = shape
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


def built(name: str, shape: tuple[int, int, int], **options: Any) -> nn.Module:
    """A small version, the same every time."""
    torch.manual_seed(0)
    return build_model(name, shape, **({"channels": SMALL[name]} if name in SMALL else {}), **options)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_the_classifier_of_the_last_hidden_layer(name: Model) -> None:
    shapes = [DIGITS, MNIST, CIFAR, CIFAR100]
    if name == "alexnet":
        shapes = [(1, 64, 10)]
    elif name in ("alexnet-cifar", *FROM_TORCHVISION):
        shapes = [MNIST, CIFAR100]
    for shape in shapes:
        model = built(name, shape)
        x = images(shape)
        model.train()
        features = collect_features(model, x)
        assert all(module.training for module in model.modules())
        assert list(features) == list(feature_layers(model))
        last = list(features.values())[-1]
        classifier = model.get_submodule(classifier_name(model))
        assert isinstance(classifier, nn.Linear)
        with torch.no_grad():
            logits = model.eval()(x)
            torch.testing.assert_close(last @ classifier.weight.T + classifier.bias, logits)
        assert logits.shape == (4, shape[2])
        assert all(found.shape[0] == 4 and found.dim() == 2 for found in features.values())


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "alexnet"])
def test_torchvisions_networks_have_its_parameters(name: Model) -> None:
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        ours, theirs = build_model(name, (3, 224, 10)), getattr(models, name)(num_classes=10)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


def test_resnet10_is_resnet18_without_the_second_blocks() -> None:
    with torch.device("meta"):
        ten, eighteen = build_model("resnet10", CIFAR), build_model("resnet18", CIFAR)
    second = sum(count(eighteen.get_submodule(f"layer{stage}.1")) for stage in range(1, 5))
    assert count(ten) == count(eighteen) - second


def test_residual_networks_for_cifar_have_the_published_sizes() -> None:
    for name, blocks, published in (("resnet20", 3, 0.27), ("resnet56", 9, 0.85)):
        model = build_model(name, CIFAR)
        # Convolutions and the scale and shift of their norms, by hand: the shortcuts have no parameters.
        widths = (16, 32, 64)
        expected = 27 * 16 + 2 * 16 + 65 * 10
        for inputs, outputs in pairwise((16, *widths)):
            expected += 9 * inputs * outputs + (2 * blocks - 1) * 9 * outputs**2 + 2 * blocks * 2 * outputs
        assert count(model) == expected
        assert count(model) / 1e6 == pytest.approx(published, abs=0.005)
        assert len([m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]) == int(name[6:])


def test_a_cifar_block_is_written_out() -> None:
    torch.manual_seed(0)
    model = CifarResNet(3, 10, 1).eval()
    x = torch.randn(2, 16, 8, 8)
    block: Any = model.layer2[0]
    with torch.no_grad():
        y = F.conv2d(x, block.conv1.weight, stride=2, padding=1) / math.sqrt(1 + 1e-5)  # fresh norms: only epsilon
        y = F.conv2d(y.relu(), block.conv2.weight, padding=1) / math.sqrt(1 + 1e-5)
        y[:, 8:24] += x[:, :, ::2, ::2]
        torch.testing.assert_close(block(x), y.relu())


def test_the_cnn_is_the_one_that_is_described() -> None:
    model = build_model("cnn", CIFAR)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convs] == list(pairwise((3, 64, 64, 128, 128, 256, 256)))
    assert {c.kernel_size for c in convs} == {(3, 3)}
    kinds = [type(m).__name__ for m in model.children()]
    stage = ["Conv2d", "BatchNorm2d", "ReLU"] * 2 + ["MaxPool2d"]
    assert kinds == stage * 3 + ["AdaptiveAvgPool2d", "Flatten", "Linear", "ReLU", "Linear"]
    half = build_model("cnn", CIFAR, channels=0.5, width=32)
    assert [m.out_channels for m in half.modules() if isinstance(m, nn.Conv2d)] == [32, 32, 64, 64, 128, 128]
    assert collect_features(half, images(CIFAR))["act7"].shape == (4, 32)


@pytest.mark.parametrize("every", ["1", "2"])
@pytest.mark.parametrize("branch", [None, 1.0, 0.3])
def test_the_perceptron_with_skips_is_a_loop(every: str, branch: float | None) -> None:
    hidden = 6
    model = built("mlp", DIGITS, width=16, hidden=hidden, activation="tanh", residual=every, branch=branch)
    x = images(DIGITS)
    w = {name: parameter.detach() for name, parameter in model.named_parameters()}
    scale = 1 / math.sqrt(hidden) if branch is None else branch
    z, states = x.flatten(1) @ w["linear1.weight"].T + w["linear1.bias"], []
    states.append(z)
    for l in range(2, hidden + 1):
        z = states[-1].tanh() @ w[f"linear{l}.weight"].T + w[f"linear{l}.bias"]
        if every == "1":
            z = scale * z + states[-1]
        elif l in (3, 5):
            z = scale * z + states[-2]
        states.append(z)
    features = collect_features(model, x)
    for l, z in enumerate(states, 1):
        torch.testing.assert_close(features[f"act{l}"], z.tanh())
    torch.testing.assert_close(model(x).detach(), states[-1].tanh() @ w["classifier.weight"].T + w["classifier.bias"])


def test_skips_change_no_parameter_and_vanish_with_the_branches() -> None:
    plain, skipping = (built("mlp", DIGITS, hidden=3, width=16, residual=r) for r in ("none", "1"))
    assert isinstance(skipping, ResidualMLP)
    assert not isinstance(plain, ResidualMLP)
    skipping.load_state_dict(plain.state_dict())
    x = images(DIGITS)
    assert not torch.allclose(plain(x), skipping(x))
    found = collect_features(built("mlp", DIGITS, hidden=3, width=16, residual="1", branch=0.0), x)
    torch.testing.assert_close(found["act3"], found["act1"])
    one = [built("mlp", DIGITS, hidden=1, width=16, residual=r)(x) for r in ("none", "1", "2")]
    assert torch.equal(one[0], one[1])
    assert torch.equal(one[0], one[2])


def test_activations_and_their_gains() -> None:
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    expected = {
        "linear": x,
        "relu": x.clamp_min(0),
        "leaky_relu": torch.where(x < 0, 0.2 * x, x),
        "tanh": x.tanh(),
        "sigmoid": 1 / (1 + (-x).exp()),
        "gelu": x / 2 * (1 + torch.erf(x / math.sqrt(2))),
        "sin": x.sin(),
    }
    assert tuple(expected) == ACTIVATIONS
    for name, value in expected.items():
        torch.testing.assert_close(activation_module(name)(x), value)
    # With these gains a layer that feeds one of the piecewise linear kinds keeps the second moment of what it is fed.
    z = torch.randn(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for name in ("linear", "relu", "leaky_relu"):
        moment = float(activation_module(name)(z).square().mean())
        assert gain(name) ** 2 * moment == pytest.approx(1, rel=0.02)
        assert gain(name) == pytest.approx(nn.init.calculate_gain(name, 0.2 if name == "leaky_relu" else None))
    assert gain("gelu") == gain("relu")
    assert gain("tanh") == gain("sigmoid") == gain("sin") == 1


def test_weights_begin_with_kaimings_size() -> None:
    model = built("mlp", MNIST, width=200, hidden=2)
    w = {name: parameter.detach() for name, parameter in model.named_parameters()}
    assert float(w["linear1.weight"].std()) == pytest.approx(math.sqrt(2 / 784), rel=0.02)
    assert float(w["linear2.weight"].std()) == pytest.approx(math.sqrt(2 / 200), rel=0.02)
    assert float(w["classifier.weight"].std()) == pytest.approx(math.sqrt(1 / 200), rel=0.05)
    conv = build_model("cnn", CIFAR).get_parameter("conv6.weight").detach()
    assert float(conv.std()) == pytest.approx(math.sqrt(2 / (9 * 256)), rel=0.02)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_hidden_layers_of_every_activation_are_found(activation: str) -> None:
    model = built("mlp", DIGITS, width=8, hidden=3, activation=activation)
    assert list(feature_layers(model)) == ["act1", "act2", "act3"]
    assert hidden_weights(model) == ["linear1.weight", "linear2.weight", "linear3.weight"]
    assert isinstance(model.get_submodule("act1"), Sine) == (activation == "sin")


def test_hidden_layers_and_weights_of_residual_networks() -> None:
    model = build_model("resnet20", CIFAR)
    layers = list(feature_layers(model))
    assert layers == ["relu", *(f"layer{s}.{b}" for s in (1, 2, 3) for b in (0, 1, 2)), "avgpool"]
    assert classifier_name(model) == "fc"
    paths = hidden_weights(model)
    assert paths[0] == "conv1.weight"
    assert len(paths) == 19
    assert all(isinstance(model.get_parameter(path), nn.Parameter) for path in paths)
    assert collect_features(model, images(CIFAR))["layer3.2"].shape == (4, 64 * 8 * 8)


def test_products_of_layers_count_as_layers() -> None:
    model = nn.Sequential(ExpandedConv2d(1, 4, 3, depth=2), nn.ReLU(), nn.Flatten(), ExpandedLinear(4 * 36, 3, depth=2))
    assert classifier_name(model) == "3"
    assert list(feature_layers(model)) == ["1"]
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    assert classifier_name(plain) == "3"
    assert hidden_weights(plain) == ["0.weight"]


def test_collecting_leaves_the_network_as_it_was() -> None:
    model = built("cnn-small", DIGITS)
    model.train()
    model.get_submodule("bn1").eval()
    x = images(DIGITS, 6)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    whole = collect_features(model, x)
    assert {name for name, module in model.named_modules() if not module.training} == {"bn1"}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(found.requires_grad for found in whole.values())
    for name, found in collect_features(model, x, batch=4).items():
        torch.testing.assert_close(found, whole[name])
    chosen = collect_features(model, x, ["classifier", "conv1"])
    assert list(chosen) == ["classifier", "conv1"]
    torch.testing.assert_close(chosen["classifier"], model.eval()(x).detach())


def test_what_is_changed_in_place_later_is_caught_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    found = collect_features(model, x, ["0", "1"])
    torch.testing.assert_close(found["0"], model[0](x).detach())
    assert float(found["0"].min()) < 0 == float(found["1"].min())


def test_bad_features_name_their_layer() -> None:
    model = built("mlp", DIGITS, width=8, hidden=3)
    with torch.no_grad():
        model.get_parameter("linear2.weight")[0, 0] = math.nan
    with pytest.raises(UserError, match="act2"):
        collect_features(model, images(DIGITS))
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(UserError, match="did you mean 'linear2'"):
        collect_features(model, images(DIGITS), ["linaer2"])
    with pytest.raises(UserError, match="shape"):
        collect_features(model, images(DIGITS)[:0])

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.idle, self.last = nn.ReLU(), nn.ReLU(), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.act(self.act(x)))

    for layer, times in (("act", "more than once"), ("idle", "never")):
        with pytest.raises(UserError, match=times):
            collect_features(Twice(), torch.ones(1, 5), [layer])
    with pytest.raises(UserError, match="activations"):
        feature_layers(nn.Linear(3, 2))
    with pytest.raises(UserError, match="linear layer"):
        classifier_name(nn.ReLU())


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("resnet21", CIFAR, {}, "did you mean 'resnet2?0?"),
        ("mpl", DIGITS, {}, "did you mean 'mlp'"),
        ("mlp", DIGITS, {"activation": "rleu"}, "did you mean 'relu'"),
        ("mlp", DIGITS, {"residual": "3"}, "--residual"),
        ("mlp", DIGITS, {"width": 0}, "--width"),
        ("mlp", DIGITS, {"hidden": 0}, "--hidden"),
        ("mlp", DIGITS, {"channels": 2.0}, "--channels"),
        ("cnn", CIFAR, {"channels": 0.0}, "--channels"),
        ("cnn", CIFAR, {"residual": "1"}, "--residual"),
        ("resnet20", CIFAR, {"activation": "tanh"}, "--activation"),
        ("resnet18", CIFAR, {"activation": "tanh"}, "--activation"),
        ("cnn", (3, 7, 10), {}, "side"),
        ("alexnet", CIFAR, {}, "side"),
        ("alexnet-cifar", DIGITS, {}, "side"),
        ("mlp", (0, 8, 10), {}, "channels"),
        ("mlp", (1, 8, 0), {}, "classes"),
    ],
)
def test_what_cannot_be_built_is_refused(
    name: str, shape: tuple[int, int, int], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build_model(name, shape, **options)


@pytest.mark.parametrize("name", ["cnn", "cnn-small", "alexnet-cifar", "alexnet"])
def test_the_least_side_is_the_least_that_runs(name: str) -> None:
    side = LEAST_SIDE[name]
    model = built(name, (3, side, 10)).eval()
    assert model(images((3, side, 10), 1)).shape == (1, 10)
    features: Any = model.features if name == "alexnet" else model  # pyright: ignore
    with pytest.raises(RuntimeError):
        features(images((3, side - 1, 10), 1))


def test_without_torchvision_its_networks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(UserError, match="install torchvision"):
        build_model("resnet18", CIFAR)
    build_model("resnet20", CIFAR)


def test_names_come_without_torch() -> None:
    code = "import sys, low_rank.names; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert set(MODEL_DESCRIPTIONS) == set(MODELS)
    assert len(REGULARISERS) == 6
