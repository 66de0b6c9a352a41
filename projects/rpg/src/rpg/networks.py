"""From a config to a network: the host, and how its weights are parameterised (a ring, or a baseline of equal size)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from rpg import baselines
from rpg.config import TrainConfig
from rpg.hosts import check_options, make_host
from rpg.hosts.host import Host, generated_count, generated_names, parameter_count
from rpg.wrap import RPGModel, plain_groups
from shared.config import UserError


@dataclass(frozen=True)
class Shape:
    """What a host must know of the data: channels, image side in pixels, outputs."""

    channels: int
    size: int
    outputs: int


@dataclass
class Network:
    """A network ready to train.

    Attributes:
        module: what is called.
        generated: weights that a ring makes, or would make.
        ring: free numbers of the generated part; 0 where every weight is its own parameter.
        parameters: trainable numbers in all.
        pruning: for method `pruned`: the masks, and how many weights stay.
        note: what the method chose by itself (a width, ranks), for the report.
        advice: what to consider about the ring's learning rate, if anything.
    """

    module: nn.Module
    generated: int
    ring: int
    parameters: int
    pruning: tuple[baselines.MagnitudePruning, int] | None = None
    note: str = ""
    advice: str = ""


def build_host(config: TrainConfig, shape: Shape, **changes: Any) -> Host:
    """The host that a config asks for; `changes` override its options."""
    options = {**config.options(), **changes}
    check_options(config.host, options)
    return make_host(
        config.host, in_channels=shape.channels, num_classes=shape.outputs, image_size=shape.size, **options
    )


def build_network(config: TrainConfig, shape: Shape) -> Network:
    """The host under the config's method. All methods start from the same draw of the host's weights.

    Raises:
        UserError: options, sizes or patterns that do not fit the host.
    """
    host = build_host(config, shape)
    generated = generated_count(host)
    if config.method == "vanilla":
        return Network(host, generated, 0, parameter_count(host))
    if config.method == "rpg":
        model = wrap(config, host)
        return Network(model, model.generated, model.ring_total, model.dof(), advice=model.advice)
    if config.method == "tied":
        tied, kinds = baselines.tie_layers(host)
        note = f"{len(kinds)} kernels for {sum(map(len, kinds))} layers"
        free = parameter_count(tied)
        return Network(tied, generated, generated - parameter_count(host) + free, free, note=note)
    ring = config.ring_numbers(generated)
    if ring > generated:
        raise UserError("--ring-size", ring, f"an integer in [1, N = {generated}]")
    budget = parameter_count(host) - generated + ring  # what a ring of this size would leave in all
    if config.method == "narrow":
        options = {name: value for name, value in config.options().items() if name != "width"}
        shared = {"in_channels": shape.channels, "num_classes": shape.outputs, "image_size": shape.size}
        narrow, width = baselines.narrow_host(config.host, budget, **shared, **options)
        return Network(narrow, generated_count(narrow), 0, parameter_count(narrow), note=f"width {width}")
    if config.method == "low-rank":
        factorised, ranks = baselines.low_rank(host, budget)
        note = f"ranks {min(ranks.values())} to {max(ranks.values())}"
        return Network(factorised, generated, 0, parameter_count(factorised), note=note)
    if config.method == "subspace":
        moved = baselines.RandomSubspace(host, ring, seed=plan_seed(config))
        return Network(moved, generated, ring, parameter_count(moved))
    pruning = baselines.MagnitudePruning(host)
    return Network(host, generated, 0, budget, (pruning, ring), note=f"{ring} of {generated} weights kept")


def plan_seed(config: TrainConfig) -> int:
    """The key: `--key`, or the run's seed."""
    return config.seed if config.key is None else config.key


def wrap(config: TrainConfig, host: nn.Module, key: int | None = None) -> RPGModel:
    """A host whose weights come from rings, as the config says; `key` overrides the config's."""
    names = config.include or tuple(generated_names(host))
    build = partial(
        RPGModel,
        host,
        ring_size=config.ring_size,
        dof_ratio=None if config.ring_size is not None else config.dof_ratio or 1 / (config.compression or 8.0),
        scope=config.ring_scope(),
        plan=config.plan,
        include=names,
        exclude=config.exclude,
        seed=plan_seed(config) if key is None else key,
        chunk=config.chunk,
        offset=config.offset,
        ring_init=config.ring_init,
    )
    with warnings.catch_warnings():
        # Said by the task, once and in the command line's own voice, and not where the rate has been chosen.
        warnings.filterwarnings("ignore", message=".*feed no normalisation.*")
        return build()


def groups(module: nn.Module, lr: float, weight_decay: float, ring_lr: float, lr_scale: str) -> list[dict[str, Any]]:
    """Optimiser groups of any network that `build_network` makes."""
    if isinstance(module, RPGModel):
        return module.parameter_groups(lr, weight_decay, ring_lr, lr_scale)
    if isinstance(module, baselines.RandomSubspace):
        coordinates: dict[str, Any] = {"params": [module.coordinates], "lr": ring_lr, "weight_decay": weight_decay}
        return [{**coordinates, "name": "coordinates"}, *plain_groups(module.host, lr, weight_decay)]
    return plain_groups(module, lr, weight_decay)
