"""Networks for the classification experiments, and where their hidden layers are.

    model = build_model("mlp", (1, 8, 10), hidden=4)
    features = collect_features(model, x)     # {"act1": [N, D], ...}, in order
    model.get_parameter(hidden_weights(model)[0])

Sequences where that is possible, so that a collapsed network holds classes of torch alone. Hidden layers, the
classifier and weights are found in any module that registers its parts in the order in which it runs them.

Dimension letters: N samples, C channels, D features, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from low_rank.names import ACTIVATIONS, FROM_TORCHVISION, MODELS, RESIDUALS
from shared.config import UserError, check_choice, check_range

LEAK = 0.2  # slope of leaky_relu below zero
LEAST_SIDE = {"cnn": 8, "cnn-small": 4, "alexnet-cifar": 15, "alexnet": 63}  # of images, below which nothing is left
STAGES = {"resnet10": (1, 1, 1, 1), "resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
CIFAR_BLOCKS = {"resnet20": 3, "resnet56": 9}  # in each of three stages


class Sine(nn.Module):
    """sin x."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sin()


ACTS = (nn.Identity, nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.Softplus, Sine)


def activation_module(name: str) -> nn.Module:
    """The activation of that name; linear is the identity, leaky_relu has slope 0.2.

    Raises:
        UserError: no such activation.
    """
    check_choice("--activation", name, ACTIVATIONS)
    made = {
        "linear": nn.Identity,
        "relu": nn.ReLU,
        "leaky_relu": lambda: nn.LeakyReLU(LEAK),
        "tanh": nn.Tanh,
        "sigmoid": nn.Sigmoid,
        "gelu": nn.GELU,
        "sin": Sine,
    }
    return made[name]()


def gain(name: str) -> float:
    """The factor g of a Kaiming start g / sqrt(fan) for layers that feed this activation.

    Raises:
        UserError: no such activation.
    """
    check_choice("--activation", name, ACTIVATIONS)
    if name in ("relu", "gelu"):
        return math.sqrt(2)
    return math.sqrt(2 / (1 + LEAK**2)) if name == "leaky_relu" else 1.0


class ResidualMLP(nn.Sequential):
    """The perceptron of the same children with skips between pre-activations.

    With a_l = act(z_l), z_1 = W_1 x + b_1 and z_l = W_l a_{l-1} + b_l; where m divides l - 1 it is multiplied by s and
    z_{l-m} added. So every branch ends in a linear layer and has mean zero at the start, as those that keep the rank
    (a skip around a ReLU adds what is never negative, and lowers it).

    Args:
        layers: children as `build_model` names them. hidden: d. every: m. branch: s.
    """

    def __init__(self, layers: dict[str, nn.Module], hidden: int, every: int, branch: float) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.hidden, self.every, self.branch = hidden, every, branch

    def forward(self, input: Tensor) -> Tensor:
        """[N, ...] to [N, K]."""
        layers = dict(self.named_children())
        z = held = layers["linear1"](layers["flatten"](input))
        for l in range(1, self.hidden):
            z = layers[f"linear{l + 1}"](layers[f"act{l}"](z))
            if l % self.every == 0:
                z = held = held + self.branch * z
        return layers["classifier"](layers[f"act{self.hidden}"](z))


class Shortcut(nn.Module):
    """Every `stride`-th pixel, and channels of zeros up to `outputs`: a shortcut without parameters (He et al., A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.added, self.stride = outputs - inputs, stride

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))


class CifarBlock(nn.Module):
    """Two 3 x 3 convolutions with batch norm and a shortcut around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        changes = stride > 1 or inputs != outputs
        self.downsample = Shortcut(inputs, outputs, stride) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class CifarResNet(nn.Module):
    """The residual network of 6n + 2 layers for CIFAR (He et al., 2016, section 4.2): 16, 32, 64 channels.

    Args:
        channels: of the images. classes: K. blocks: n, in each of the three stages.
    """

    def __init__(self, channels: int, classes: int, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = self._stage(16, 16, blocks)
        self.layer2 = self._stage(16, 32, blocks)
        self.layer3 = self._stage(32, 64, blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(64, classes)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
        first = CifarBlock(inputs, outputs, 1 if inputs == outputs else 2)
        return nn.Sequential(first, *(CifarBlock(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, side, side] to [N, K]."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.flatten(self.avgpool(x)))


def build_model(
    name: str,
    shape: tuple[int, int, int],
    *,
    width: int = 256,
    hidden: int = 1,
    activation: str = "relu",
    residual: str = "none",
    channels: float = 1.0,
    branch: float | None = None,
) -> nn.Module:
    """An untrained classifier of images [N, C, side, side] into K classes, started from torch's global generator.

    Kaiming normal weights (linear layers by fan in, convolutions by fan out, the classifier with gain 1) and torch's
    biases; those of torchvision keep its own start.

    Args:
        name: one of `names.MODELS`. shape: C, side, K.
        width: units of the hidden linear layers of mlp and cnn. hidden: how many mlp has.
        activation: one of `names.ACTIVATIONS`; residual networks and torchvision's have relu.
        residual: mlp only: skips around every 1 or 2 hidden layers after the first.
        channels: factor on the number of channels (and of AlexNet's linear units) of cnn, cnn-small and alexnet-cifar.
        branch: factor of the branches beside those skips. Default: 1 / sqrt(hidden), which keeps the rank and, at the
            start, the size of what flows through any depth; 1 for plain sums.

    Raises:
        UserError: unknown names; numbers out of range; images too small; an option that this network does not have;
            torchvision missing.
    """
    check_choice("--model", name, MODELS)
    check_choice("--activation", activation, ACTIVATIONS)
    check_choice("--residual", residual, RESIDUALS)
    inputs, side, classes = shape
    check_range("channels of the images", inputs, 1)
    check_range("side of the images", side, LEAST_SIDE.get(name, 1))
    check_range("classes", classes, 1)
    check_range("--width", width, 1)
    check_range("--hidden", hidden, 1)
    check_range("--channels", channels, 0, open_low=True)
    if residual != "none" and name != "mlp":
        raise UserError("--residual", residual, f"none: {name} has the skips it has; only mlp can be given some")
    free = ("cnn", "cnn-small", "alexnet-cifar")
    if activation != "relu" and name not in ("mlp", *free):
        raise UserError("--activation", activation, f"relu, the activation of {name}")
    if channels != 1 and name not in free:
        raise UserError("--channels", channels, f"1 for {name}; others for {', '.join(free)}")
    if name in FROM_TORCHVISION:
        return _from_torchvision(name, shape)
    if name in CIFAR_BLOCKS:
        model: nn.Module = CifarResNet(inputs, classes, CIFAR_BLOCKS[name])
    elif name == "mlp":
        layers = _mlp(inputs * side * side, width, hidden, classes, activation)
        scale = 1 / math.sqrt(hidden) if branch is None else branch
        model = _sequence(layers) if residual == "none" else ResidualMLP(layers, hidden, int(residual), scale)
    else:
        model = _sequence(_convolutional(name, shape, width, activation, channels))
    _start(model, gain(activation))
    return model


def _sequence(layers: dict[str, nn.Module]) -> nn.Sequential:
    made = nn.Sequential()
    for name, layer in layers.items():
        made.add_module(name, layer)
    return made


def _mlp(inputs: int, width: int, hidden: int, classes: int, activation: str) -> dict[str, nn.Module]:
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    for l in range(1, hidden + 1):
        layers[f"linear{l}"] = nn.Linear(inputs if l == 1 else width, width)
        layers[f"act{l}"] = activation_module(activation)
    return layers | {"classifier": nn.Linear(width, classes)}


def _convolutional(
    name: str, shape: tuple[int, int, int], width: int, activation: str, factor: float
) -> dict[str, nn.Module]:
    """Layers of cnn, cnn-small and alexnet-cifar; "M" halves the side by the largest of 2 x 2 pixels."""
    plans: dict[str, tuple[int | str, ...]] = {
        "cnn": (64, 64, "M", 128, 128, "M", 256, 256, "M"),
        "cnn-small": (32, "M", 64, "M", 64),
        "alexnet-cifar": (64, "M", 192, "M", 384, 256, 256, "M"),
    }

    def scaled(number: int) -> int:
        return max(1, round(number * factor))

    inputs, side, classes = shape
    normed = name != "alexnet-cifar"
    layers: dict[str, nn.Module] = {}
    convs = pools = 0
    for step in plans[name]:
        if isinstance(step, str):
            pools += 1
            layers[f"pool{pools}"] = nn.MaxPool2d(2)
            side //= 2
            continue
        convs += 1
        stride = 2 if name == "alexnet-cifar" and convs == 1 else 1
        outputs = scaled(step)
        layers[f"conv{convs}"] = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=not normed)
        if normed:
            layers[f"bn{convs}"] = nn.BatchNorm2d(outputs)
        layers[f"act{convs}"] = activation_module(activation)
        inputs, side = outputs, (side + stride - 1) // stride
    if name == "cnn":
        layers["average"] = nn.AdaptiveAvgPool2d(1)
        side = 1
    layers["flatten"] = nn.Flatten()
    inputs *= side**2
    units = {"cnn": (width,), "cnn-small": (scaled(128),), "alexnet-cifar": (scaled(4096), scaled(4096))}[name]
    for number, outputs in enumerate(units, 1):
        if name == "alexnet-cifar":
            layers[f"dropout{number}"] = nn.Dropout()
        layers[f"fc{number}"] = nn.Linear(inputs, outputs)
        layers[f"act{convs + number}"] = activation_module(activation)
        inputs = outputs
    return layers | {"classifier": nn.Linear(inputs, classes)}


def _start(model: nn.Module, factor: float) -> None:
    """Kaiming normal weights."""
    last = classifier_name(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            fan = module.out_channels * math.prod(module.kernel_size)
            nn.init.normal_(module.weight, 0, factor / math.sqrt(fan))
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, (1.0 if name == last else factor) / math.sqrt(module.in_features))


def _from_torchvision(name: str, shape: tuple[int, int, int]) -> nn.Module:
    try:
        # Late: it takes seconds to import, and is no dependency of the rest.
        from torchvision.models.alexnet import AlexNet
        from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
    except ImportError as error:
        own = [model for model in MODELS if model not in FROM_TORCHVISION]
        raise UserError("--model", name, own, f"{name} is torchvision's: install torchvision for it.") from error
    channels, _, classes = shape
    if name == "alexnet":
        model: nn.Module = AlexNet(num_classes=classes)
        if channels != 3:
            model.features[0] = nn.Conv2d(channels, 64, 11, 4, 2)  # pyright: ignore[reportIndexIssue]
        return model
    model = ResNet(Bottleneck if name == "resnet50" else BasicBlock, list(STAGES[name]), num_classes=classes)
    if channels != 3:
        model.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    return model


# -- where things are --------------------------------------------------------------------------------------------------


def _is_linear(module: nn.Module) -> bool:
    """Whether it maps features linearly: torch's own layer, or a product of several that can be collapsed into one."""
    return isinstance(module, nn.Linear) or (hasattr(module, "collapsed") and hasattr(module, "in_features"))


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.Conv2d)) or hasattr(module, "collapsed")


def _walk(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Modules in order with their paths, without the insides of layers and residual blocks."""
    yield path, module
    if _is_layer(module) or hasattr(module, "downsample"):
        return
    for name, child in module.named_children():
        yield from _walk(child, f"{path}.{name}" if path else name)


def feature_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Modules whose outputs count as hidden layers, by path, first to last: activations, whole residual blocks, and an
    average over pixels where that is what the classifier sees.

    Raises:
        UserError: none found.
    """
    found: dict[str, nn.Module] = {}
    pool: tuple[str, nn.Module] | None = None
    for path, module in _walk(model):
        if isinstance(module, ACTS) or hasattr(module, "downsample"):
            found[path], pool = module, None
        elif isinstance(module, (nn.AdaptiveAvgPool2d, nn.AvgPool2d)):
            pool = (path, module)
    if pool is not None:
        found[pool[0]] = pool[1]
    if not found:
        hint = "Give the paths of the layers yourself."
        raise UserError("model", type(model).__name__, "a network with activations that are modules", hint)
    return found


def classifier_name(model: nn.Module) -> str:
    """Path of the last linear layer.

    Raises:
        UserError: there is none.
    """
    linear = [path for path, module in _walk(model) if _is_linear(module)]
    if not linear:
        raise UserError("model", type(model).__name__, "a network with a linear layer")
    return linear[-1]


def hidden_weights(model: nn.Module) -> list[str]:
    """Paths of the weights of all linear layers and convolutions but the classifier, for `model.get_parameter`.

    Of a plain network: collapse products first.

    Raises:
        UserError: no linear layer.
    """
    last = classifier_name(model)
    layers = [path for path, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d)) and path != last]
    return [f"{path}.weight" if path else "weight" for path in layers]


def collect_features(
    model: nn.Module, x: Tensor, layers: Iterable[str] | None = None, *, batch: int | None = None
) -> dict[str, Tensor]:
    """Outputs of hidden layers on inputs, in evaluation mode and without gradients; every module's mode is put back.

    Args:
        x: [N, ...], on the model's device. layers: paths of modules; default: `feature_layers`.
        batch: samples at a time; default: all.

    Returns:
        {path: [N, D]}, flattened, in the order of `layers`.

    Raises:
        UserError: no such layer; one that runs never or more than once; features that are not finite, with the layer.
    """
    check_range("batch", batch, 1)
    if not len(x):
        raise UserError("inputs", f"shape {list(x.shape)}", "one sample or more")
    modules = dict(model.named_modules())
    chosen = list(feature_layers(model) if layers is None else layers)
    for path in chosen:
        check_choice("layer", path, [name for name in modules if name])
    parts: dict[str, list[Tensor]] = {path: [] for path in chosen}

    def catch(path: str, output: object) -> None:
        if not isinstance(output, Tensor):
            raise UserError(f"layer {path!r}", type(output).__name__, "a layer that gives one tensor")
        if not bool(output.isfinite().all()):
            raise UserError(f"layer {path!r}", "features that are not finite", "finite numbers")
        parts[path].append(output.detach().flatten(1).clone())  # a later layer may work in place

    def hook_of(path: str) -> Callable[[nn.Module, object, object], None]:
        return lambda _module, _inputs, output: catch(path, output)

    modes = [(module, module.training) for module in model.modules()]
    hooks = [modules[path].register_forward_hook(hook_of(path)) for path in chosen]
    chunks = x.split(batch) if batch is not None else (x,)
    try:
        model.eval()
        with torch.no_grad():
            for done, chunk in enumerate(cast("tuple[Tensor, ...]", chunks), 1):
                model(chunk)
                for path in chosen:
                    if len(parts[path]) != done:
                        times = "never" if len(parts[path]) < done else "more than once"
                        raise UserError(f"layer {path!r}", f"runs {times}", "a layer that runs once for an input")
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
    return {path: torch.cat(parts[path]) for path in chosen}
