"""From a config to a stream and a network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from shared.data import data_root
from shared.image_names import SHAPES, ImageSet
from shared.images import load
from superposition.config import Inputs, TrainConfig
from superposition.nets import (
    MultiHead,
    ResNet,
    Separate,
    contextualize,
    fully_connected,
    plain_fully_connected,
)
from superposition.norm import PerTaskBatchNorm2d, StaticBatchNorm2d
from superposition.streams import (
    Incremental,
    Permuting,
    PermutingLabels,
    Rotating,
    Samples,
    Schedule,
    Stream,
    make_schedule,
    normalised,
    split_classes,
)

SETS: tuple[ImageSet, ...] = ("mnist5k", "fashion", "digits")  # of the stream three-sets
SMALL_RESNET = {"widths": (16, 32, 64), "blocks": 1}


def input_scale(config: TrainConfig, data: ImageSet) -> Inputs:
    """How pixels become numbers."""
    if config.inputs != "auto":
        return config.inputs
    return "mnist" if data.startswith("mnist") else "symmetric" if data.startswith("cifar") else "own"


def make_stream(config: TrainConfig, device: torch.device) -> Stream:
    """The tasks of a run, their data resident on the device.

    Raises:
        UserError: missing or damaged data, impossible streams.
    """
    root = data_root(config.data_root)
    seed, batch = config.seed, config.batch_size

    def samples(name: ImageSet) -> Samples:
        data = load(name, root, max_train=config.max_train, max_test=config.max_test)
        return normalised(data, input_scale(config, name), device)

    if config.stream == "icifar":
        parts = [samples("cifar10"), *(split_classes(samples("cifar100"), 100, 10) if config.tasks > 1 else ())]
        return Incremental(parts[: config.tasks], config.period, batch, seed)
    if config.stream == "three-sets":
        return Incremental([_at28(samples(name)) for name in SETS[: config.tasks]], config.period, batch, seed)
    own = samples(config.data)
    if config.stream == "permuting":
        return Permuting(own, config.period, config.tasks, batch, seed, config.first)
    if config.stream == "permuting-labels":
        return PermutingLabels(own, config.period, config.tasks, batch, seed, SHAPES[config.data][2])
    if config.stream == "rotating":
        background = float(own.x.min())  # of an empty pixel
        return Rotating(own, config.period, config.tasks, batch, seed, config.context_count, background)
    parts = split_classes(own, SHAPES[config.data][2], config.classes_per_task)
    return Incremental(parts[: config.tasks], config.period, batch, seed)


def _at28(samples: Samples) -> Samples:
    """Images at 28 x 28."""
    x, x_test = (
        F.interpolate(part, size=(28, 28), mode="bilinear", align_corners=False) if part.shape[-1] != 28 else part
        for part in (samples.x, samples.x_test)
    )
    return Samples(x, samples.y, x_test, samples.y_test)


def schedule_of(config: TrainConfig, stream: Stream) -> Schedule:
    """Step -> context."""
    if config.method == "joint":  # one network and no contexts
        return make_schedule("constant", stream)
    count = config.context_count
    every = config.context_every or max(1, config.period // count)
    return make_schedule(config.schedule, stream, every=every, length=count, rate=config.context_rate, seed=config.seed)


def image_shape(config: TrainConfig) -> tuple[int, int, int]:
    """Channels, side and outputs."""
    if config.stream == "icifar":
        return 3, 32, 10
    if config.stream == "three-sets":
        return 1, 28, 10
    channels, side, classes = SHAPES[config.data]
    return channels, side, config.classes_per_task if config.stream == "split" else classes


def make_network(config: TrainConfig) -> Any:
    """The network of a run: `Superposed`, `MultiHead` or `Separate`, all with `set_context` and `retrieve`."""
    count = config.context_count
    if config.method == "separate":
        return Separate(partial(plain_network, config), count)
    if config.method == "multi-head":
        return MultiHead(plain_network(config), count)
    seed = config.context_seed if config.context_seed is not None else config.seed
    kind = config.active_kind
    if config.net == "fc":
        channels, side, outputs = image_shape(config)
        return fully_connected(
            (channels * side * side, *config.hidden, outputs), kind, seed=seed, limit=config.limit,
            learn=config.learn_context, bias=config.has_bias, numbers="complex" if config.is_complex else "real",
            part=config.part,
        )  # fmt: skip
    return contextualize(
        plain_network(config), kind, config.limit, exclude=("stem",), seed=seed,
        learn=("output",) if config.learn_context else (), bias=config.has_bias,
    )  # fmt: skip


def plain_network(config: TrainConfig) -> nn.Module:
    """The network without contexts."""
    channels, side, outputs = image_shape(config)
    if config.net == "fc":
        return plain_fully_connected((channels * side * side, *config.hidden, outputs), config.has_bias)
    norm: Callable[[int], nn.Module] = StaticBatchNorm2d
    if config.bn == "per-task":
        norm = partial(PerTaskBatchNorm2d, contexts=config.context_count)
    options: dict[str, Any] = {} if config.net == "resnet18" else SMALL_RESNET
    return ResNet(channels, outputs, norm=norm, **options)


def model_spec(config: TrainConfig) -> dict[str, Any]:
    """What a model file must say so that its tensors mean something."""
    channels, side, outputs = image_shape(config)
    return {
        "net": config.net, "image": [channels, side, outputs], "hidden": list(config.hidden), "bias": config.has_bias,
        "numbers": "complex" if config.is_complex else "real", "part": config.part, "kind": config.active_kind,
        "method": config.method, "learned": config.learn_context, "limit": config.limit, "bn": config.bn,
        "context_seed": config.context_seed if config.context_seed is not None else config.seed,
        "stream": config.stream, "data": config.data, "inputs": config.inputs,
    }  # fmt: skip


def root_of(config: TrainConfig) -> Path:
    """The data root of a run."""
    return data_root(config.data_root)
