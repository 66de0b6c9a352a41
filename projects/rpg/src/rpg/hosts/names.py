"""Names of the host networks, one line each. Imports no torch, so that `--help` can list them."""

from __future__ import annotations

from typing import Literal, get_args

HostName = Literal[
    "mlp",
    "patch-resnet",
    "resnet18",
    "resnet34",
    "resnet50",
    "vit-mini",
    "vit-tiny",
    "msblock",
    "hourglass",
    "multitask",
]

HOSTS: tuple[HostName, ...] = get_args(HostName)

HOST_DESCRIPTIONS: dict[HostName, str] = {
    "mlp": "fully connected, two hidden layers of 128; every weight matrix is generated, biases are its own",
    "patch-resnet": "4x4 patch stem, then eight 3x3 convolutions of 32 channels in four residual pairs",
    "resnet18": "ResNet-18 in its CIFAR form (images up to 64 pixels) or its ImageNet form",
    "resnet34": "ResNet-34, likewise",
    "resnet50": "ResNet-50, likewise",
    "vit-mini": "a vision transformer for 28 and 32 pixels: 4 layers, width 64",
    "vit-tiny": "ViT-Ti: 12 layers, width 192, 3 heads",
    "msblock": "a multi-scale block called several times, or solved for its fixed point (DEQ)",
    "hourglass": "stacked hourglasses: joint heatmaps after every stage",
    "multitask": "a U-Net-like encoder with two decoders: depth and surface normals",
}

Scope = Literal["global", "stage", "block", "layer", "subnetwork"]

SCOPES: tuple[Scope, ...] = get_args(Scope)
