"""What can be set: one frozen dataclass a verb, and the presets. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from rpg.data.names import DATA, DataName
from rpg.hosts.names import HOSTS, SCOPES, HostName, Scope
from shared.config import RunConfig, UserError, check_choice, check_range

PlanName = Literal["even", "ring", "hash", "reuse", "seq", "perm_only", "sign_only", "haar"]
PLANS: tuple[PlanName, ...] = get_args(PlanName)
Method = Literal["rpg", "vanilla", "narrow", "low-rank", "subspace", "pruned"]
METHODS: tuple[Method, ...] = get_args(Method)
Recipe = Literal["onecycle", "adam", "paper", "repo", "imagenet"]
RECIPES: tuple[Recipe, ...] = get_args(Recipe)
Augment = Literal["none", "flip", "crop-flip"]
AUGMENTS: tuple[Augment, ...] = get_args(Augment)
RingInit = Literal["fan_out", "fan_in", "xavier", "trunc_normal", "unit", "authors"]
RING_INITS: tuple[RingInit, ...] = get_args(RingInit)
LrScale = Literal["none", "sqrt_r", "r"]
LR_SCALES: tuple[LrScale, ...] = get_args(LrScale)


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """One training run."""

    data: DataName = "mnist5k"
    """Data set; mnist5k and digits are embedded, the others lie under --data-root."""
    host: HostName = "patch-resnet"
    """Network that is generated."""
    method: Method = "rpg"
    """How the host's weights are parameterised: rpg, or a baseline of the same number of free parameters."""
    compression: float | None = None
    """Generated weights per ring number, N/M. Default 8. One of --compression, --dof-ratio, --ring-size."""
    dof_ratio: float | None = None
    """M/N, in (0, 1]."""
    ring_size: int | None = None
    """M, numbers in the ring (all rings together)."""
    plan: PlanName = "even"
    """How layers are drawn from the ring."""
    offset: Literal["random", "continue"] = "random"
    """Plan `ring`: where a layer begins."""
    chunk: int = 1
    """Permute blocks of this many entries."""
    scope: Scope = "global"
    """One ring for all, or one a stage, block, layer or kind of sub-network."""
    key: int | None = None
    """Seed of the plan, the model's key. Default: --seed."""
    ring_init: RingInit = "fan_out"
    """Standard deviation that each layer starts with."""
    include: tuple[str, ...] = ()
    """Name patterns of generated parameters. Default: the host's own."""
    exclude: tuple[str, ...] = ()
    """Name patterns that stay the host's own."""
    host_options: tuple[str, ...] = ()
    """Options of the host as name=value, e.g. width=64 depth=4."""
    recipe: Recipe = "onecycle"
    """onecycle: SGD-Nesterov to --lr and down; adam: cosine to 0; paper, repo: the paper's and the authors' code's
    schedules; imagenet: the paper's for ImageNet."""
    lr: float | None = None
    """Learning rate of own parameters (and of the ring unless --ring-lr). Default: the recipe's."""
    ring_lr: float | None = None
    """Learning rate of the ring."""
    lr_scale: LrScale = "none"
    """Divide the ring's rate by the number of uses r = N/M, or its root."""
    weight_decay: float | None = None
    """Weight decay of the ring and of weights; never of biases and normalisation. Default: the recipe's."""
    batch_size: int = 128
    """Samples a step and device."""
    augment: Augment = "none"
    """Random flips; pad-4 crops and flips."""
    max_train: int | None = None
    """Use this many training samples, balanced over classes."""
    max_test: int | None = None
    """Use this many test samples."""
    loader_workers: int = 0
    """Processes that decode images (folders only)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for flag, value, valid in (
            ("--data", self.data, DATA),
            ("--host", self.host, HOSTS),
            ("--method", self.method, METHODS),
            ("--plan", self.plan, PLANS),
            ("--scope", self.scope, SCOPES),
            ("--ring-init", self.ring_init, RING_INITS),
            ("--recipe", self.recipe, RECIPES),
            ("--lr-scale", self.lr_scale, LR_SCALES),
            ("--augment", self.augment, AUGMENTS),
        ):
            check_choice(flag, value, valid)
        given = [name for name in ("compression", "dof_ratio", "ring_size") if getattr(self, name) is not None]
        if len(given) > 1:
            flags = " and ".join("--" + name.replace("_", "-") for name in given)
            raise UserError(flags, [getattr(self, name) for name in given], "one of them: each sets the ring's size")
        check_range("--compression", self.compression, 1)
        check_range("--dof-ratio", self.dof_ratio, 0, 1, open_low=True)
        check_range("--ring-size", self.ring_size, 1)
        check_range("--chunk", self.chunk, 1)
        check_range("--lr", self.lr, 0, open_low=True)
        check_range("--ring-lr", self.ring_lr, 0, open_low=True)
        check_range("--weight-decay", self.weight_decay, 0)
        check_range("--batch-size", self.batch_size, 1)
        check_range("--max-train", self.max_train, 1)
        check_range("--max-test", self.max_test, 1)
        check_range("--key", self.key, 0, 2**63 - 1)
        check_range("--loader-workers", self.loader_workers, 0)
        self.options()

    def ring_numbers(self, generated: int) -> int:
        """M for a host of N = `generated` weights; exactly N for compression 1."""
        if self.ring_size is not None:
            return self.ring_size
        ratio = self.dof_ratio if self.dof_ratio is not None else 1 / (self.compression or 8.0)
        return max(1, round(generated * ratio))

    def options(self) -> dict[str, int | float | bool | str]:
        """`--host-options` as a mapping, numbers and booleans read as such.

        Raises:
            UserError: an entry that is not name=value.
        """
        parsed: dict[str, int | float | bool | str] = {}
        for entry in self.host_options:
            name, equals, value = entry.partition("=")
            if not (name and equals and value):
                raise UserError("--host-options", entry, "name=value, such as width=64")
            parsed[name.replace("-", "_")] = _literal(value)
        return parsed


def _literal(text: str) -> int | float | bool | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


_CPU = TrainConfig(steps=600, device="auto", data="mnist5k", host="patch-resnet", compression=8.0, lr=0.1)
TRAIN_PRESETS: dict[str, TrainConfig] = {
    "cpu": _CPU,
    "smoke": replace(_CPU, preset="smoke", data="digits", host="mlp", recipe="adam", lr=3e-3, ring_lr=3e-2, steps=120),
    "gpu": TrainConfig(
        preset="gpu", data="cifar10", host="resnet18", compression=5.0, recipe="onecycle", lr=0.1, epochs=30,
        batch_size=256, augment="crop-flip",
    ),
    "paper": TrainConfig(
        preset="paper", data="cifar10", host="resnet18", compression=2.0, recipe="paper", epochs=200, batch_size=128,
        augment="crop-flip",
    ),
}  # fmt: skip
