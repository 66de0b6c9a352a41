"""One training run: config -> data -> host -> parameterisation -> step -> metrics.

The task is the same for a ring and for every baseline: only `parameterise` differs, so that all of them see the same
batches, augmentation, optimiser and number of steps.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from rpg.config import TrainConfig
from rpg.data import ImageData
from rpg.hosts import make_host
from rpg.hosts.host import Host, generated_names, scope_of
from rpg.wrap import RPGModel


def build_host(config: TrainConfig, data: ImageData, **changes: Any) -> Host:
    """The host that a config asks for, shaped to the data. `changes` override the config's host options."""
    channels, size = data.x_train.shape[1], data.x_train.shape[-1]
    options = {**config.options(), **changes}
    return make_host(config.host, in_channels=channels, num_classes=len(data.classes), image_size=size, **options)


def wrap(config: TrainConfig, host: nn.Module) -> RPGModel:
    """A host whose weights come from a ring, as the config says."""
    include = config.include or tuple(generated_names(host))
    scope: Any = config.scope
    if config.scope != "global" and isinstance(host, Host):
        scope = [(name, scope_of(host, name, config.scope)) for name in generated_names(host)]
    sizes = dict(host.named_parameters())
    generated = sum(sizes[name].numel() for name in generated_names(host)) if not config.include else None
    size: dict[str, Any] = {"ring_size": config.ring_size} if config.ring_size is not None else {}
    if not size:
        size = (
            {"ring_size": config.ring_numbers(generated)} if generated else {"dof_ratio": 1 / (config.compression or 8)}
        )
    return RPGModel(
        host,
        **size,
        scope=scope,
        plan=config.plan,
        offset=config.offset,
        chunk=config.chunk,
        include=include,
        exclude=config.exclude,
        seed=config.seed if config.key is None else config.key,
        ring_init=config.ring_init,
    )
