"""Names of the networks, activations and penalties, and what they mean. Imports no torch: `--help` lists them."""

from __future__ import annotations

from typing import Literal, get_args

Model = Literal[
    "mlp",
    "cnn",
    "cnn-small",
    "alexnet-cifar",
    "alexnet",
    "resnet10",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet20",
    "resnet56",
]
MODELS: tuple[Model, ...] = get_args(Model)

MODEL_DESCRIPTIONS: dict[Model, str] = {
    "mlp": "hidden layers of equal width, with or without skips",
    "cnn": "six 3x3 convolutions in three pooled stages, one hidden linear layer",
    "cnn-small": "three 3x3 convolutions and one hidden linear layer, for images of 16 pixels",
    "alexnet-cifar": "AlexNet with 3x3 kernels, for images of 32 pixels",
    "alexnet": "torchvision's AlexNet, for images of 63 pixels or more",
    "resnet10": "torchvision's blocks, one in each of four stages",
    "resnet18": "torchvision's ResNet-18",
    "resnet34": "torchvision's ResNet-34",
    "resnet50": "torchvision's ResNet-50",
    "resnet20": "the residual network for CIFAR, 0.27 million parameters",
    "resnet56": "the residual network for CIFAR, 0.85 million parameters",
}

FROM_TORCHVISION: tuple[Model, ...] = ("alexnet", "resnet10", "resnet18", "resnet34", "resnet50")

Activation = Literal["linear", "relu", "leaky_relu", "tanh", "sigmoid", "gelu", "sin"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)

Residual = Literal["none", "1", "2"]
RESIDUALS: tuple[Residual, ...] = get_args(Residual)

Regulariser = Literal["squared-l2", "l1", "nuclear", "effective-rank", "stable-rank", "schatten"]

REGULARISERS: dict[Regulariser, str] = {
    "squared-l2": "sum of the squared weights (weight decay)",
    "l1": "sum of the absolute weights",
    "nuclear": "sum of the singular values",
    "effective-rank": "entropy of the normalised singular values, in nats",
    "stable-rank": "squared Frobenius norm over the squared largest singular value",
    "schatten": "sum of the singular values to the power 2/d: what weight decay on d factors comes to",
}
