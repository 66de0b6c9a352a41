"""What can be set: one frozen dataclass a verb, and the presets. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal, get_args

from rpg.data.names import DATA, DataName
from rpg.hosts.names import HOSTS, SCOPES, HostName, Scope
from shared.config import RunConfig, UserError, check_choice, check_range

PlanName = Literal["even", "ring", "hash", "reuse", "seq", "perm_only", "sign_only", "haar"]
PLANS: tuple[PlanName, ...] = get_args(PlanName)
Method = Literal["rpg", "vanilla", "narrow", "low-rank", "tied", "subspace", "pruned"]
METHODS: tuple[Method, ...] = get_args(Method)
UNSIZED: tuple[Method, ...] = ("vanilla", "tied")  # no budget sets their size
PruneRounds = Literal[1, 3]
Recipe = Literal["onecycle", "adam", "paper", "repo", "imagenet"]
RECIPES: tuple[Recipe, ...] = get_args(Recipe)
Augment = Literal["none", "flip", "crop-flip"]
AUGMENTS: tuple[Augment, ...] = get_args(Augment)
RingInit = Literal["host", "fan_out", "fan_in", "xavier", "linear", "trunc_normal", "constant", "unit", "authors"]
RING_INITS: tuple[RingInit, ...] = get_args(RingInit)
LrScale = Literal["none", "sqrt_r", "r"]
LR_SCALES: tuple[LrScale, ...] = get_args(LrScale)


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """One training run."""

    exclusive: ClassVar[tuple[tuple[str, ...], ...]] = (
        *RunConfig.exclusive,
        ("compression", "dof_ratio", "ring_size"),
    )
    unset_by: ClassVar[dict[str, tuple[str, ...]]] = {"recipe": ("lr", "ring_lr", "weight_decay")}

    data: DataName = "mnist5k"
    """Data set; mnist5k and digits are embedded, the others lie under --data-root."""
    host: HostName = "patch-resnet"
    """Network that is generated."""
    method: Method = "rpg"
    """How the host's weights are parameterised: rpg, or a baseline of the same number of free parameters (vanilla and
    tied have a size of their own)."""
    compression: float | None = None
    """Generated weights per ring number, N/M. Default 8. One of this, --dof-ratio, --ring-size."""
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
    rings: tuple[str, ...] = ()
    """Instead of --scope: pattern=ring for every generated parameter, e.g. '*.conv1.weight=a' '*.conv2.weight=b'."""
    key: int | None = None
    """Seed of the plan, the model's key. Default: --seed."""
    ring_init: RingInit = "host"
    """Standard deviation that each layer starts with. host: what suits the host (fan_out for convolutions, 0.02 for
    transformers, fan_in and a head of gain 1 for the perceptron)."""
    include: tuple[str, ...] = ()
    """Name patterns of generated parameters. Default: the host's own."""
    exclude: tuple[str, ...] = ()
    """Name patterns that stay the host's own."""
    host_options: tuple[str, ...] = ()
    """Options of the host as name=value, e.g. width=64 depth=4."""
    recipe: Recipe = "paper"
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
    """Random flips; pad-4 crops and flips (image folders: crops of random size)."""
    prune_rounds: PruneRounds = 3
    """Method `pruned`: at once at half of the run, or in three rounds from there; the rest is fine-tuning."""
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
            ("--prune-rounds", self.prune_rounds, get_args(PruneRounds)),
        ):
            check_choice(flag, value, valid)
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
        self.ring_scope()
        if self.method != "rpg":  # what only a ring has; its rates and sizes may stand in a preset for all methods
            for name in ("plan", "offset", "chunk", "scope", "rings", "lr_scale", "key"):
                value, usual = getattr(self, name), TrainConfig.__dataclass_fields__[name].default
                if value != usual:
                    flag = "--" + name.replace("_", "-")
                    raise UserError(flag, value, f"with --method rpg: {self.method} has no ring")
        for name in ("ring_size", "dof_ratio"):
            if self.method in UNSIZED and getattr(self, name) is not None:
                flag = "--" + name.replace("_", "-")
                raise UserError(flag, getattr(self, name), f"with another method: {self.method} has a size of its own")

    def ring_scope(self) -> str | list[tuple[str, str]]:
        """`--rings` as pairs of pattern and ring, or else `--scope`.

        Raises:
            UserError: an entry that is not pattern=ring; both given.
        """
        if not self.rings:
            return self.scope
        if self.scope != "global":
            raise UserError("--rings and --scope", [*self.rings, self.scope], "one of them")
        pairs = [entry.rpartition("=") for entry in self.rings]
        for entry, (pattern, _, ring) in zip(self.rings, pairs, strict=True):
            if not (pattern and ring):
                raise UserError("--rings", entry, "pattern=ring, such as '*.conv1.weight=first'")
        return [(pattern, ring) for pattern, _, ring in pairs]

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


_CPU = TrainConfig(
    steps=500, device="auto", data="mnist5k", host="patch-resnet", compression=8.0, recipe="onecycle", lr=0.1
)
TRAIN_PRESETS: dict[str, TrainConfig] = {
    "cpu": _CPU,
    "smoke": replace(
        _CPU, preset="smoke", data="digits", host="mlp", recipe="adam", lr=3e-3, ring_lr=6e-2, ring_init="unit",
        steps=120,
    ),
    "gpu": TrainConfig(
        preset="gpu", data="cifar10", host="resnet18", compression=5.0, recipe="onecycle", lr=0.1, epochs=30,
        batch_size=256, augment="crop-flip",
    ),
    "paper": TrainConfig(
        preset="paper", data="cifar10", host="resnet18", compression=2.0, recipe="paper", epochs=200, batch_size=128,
        augment="crop-flip",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class RunChoice:
    """A trained run and where to work on it."""

    run: Path
    """Run folder, written by `train`."""
    which: Literal["best", "newest"] = "newest"
    """Checkpoint: newest, the run's last weights, those of `train`'s table and model.pt; best, the one with the highest
    test accuracy, which flatters, for it was chosen by it."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    data_root: Path | None = None
    """Folder that holds data sets. Default: the run's, else $PAPERS_DATA, else the user cache."""
    quiet: bool = False
    """No table."""


@dataclass(frozen=True)
class EvaluateConfig(RunChoice):
    """Flags of `evaluate`."""

    corruptions: bool = False
    """Also on corrupted test images, as a stand-in for out-of-distribution data."""
    out: Path | None = None
    """Write the metrics to this JSON file."""
    force: bool = False
    """Replace an existing file."""


@dataclass(frozen=True)
class PruneConfig(RunChoice):
    """Flags of `prune`."""

    fraction: float = 0.3
    """Share that goes, smallest magnitudes first."""
    target: Literal["ring", "host"] = "ring"
    """ring: numbers of the ring (fewer free parameters); host: generated weights (fewer multiply-adds)."""
    finetune_epochs: float | None = None
    """ring: epochs of further training with pruned numbers held at zero; 0 for none. Default: 1."""
    out: Path | None = None
    """Where the pruned model file goes. Default: <run>/pruned.pt."""
    force: bool = False
    """Replace an existing file."""

    def __post_init__(self) -> None:
        check_range("--fraction", self.fraction, 0, 1, open_high=True)
        check_range("--finetune-epochs", self.finetune_epochs, 0)
        if self.target == "host" and self.finetune_epochs is not None:
            raise UserError(
                "--finetune-epochs", self.finetune_epochs, "with --target ring: masks of weights are not held"
            )


@dataclass(frozen=True)
class QuantizeConfig(RunChoice):
    """Flags of `quantize`."""

    group: int | None = None
    """Ring numbers that share a scale, e.g. 256. Default: one scale a ring."""
    out: Path | None = None
    """Where the quantised model file goes. Default: <run>/int8.pt."""
    force: bool = False
    """Replace an existing file."""

    def __post_init__(self) -> None:
        check_range("--group", self.group, 1)


@dataclass(frozen=True)
class ExportConfig(RunChoice):
    """Flags of `export`."""

    out: Path | None = None
    """Where the file goes. Default: <run>/dense.pt or <run>/compact.pt."""
    form: Literal["dense", "compact"] = "dense"
    """dense: the host's state dict, for use without this package; compact: rings, own parameters and the plan's
    specification."""
    hide_key: bool = False
    """compact: store a salted digest of the key instead of the key; whoever loads it must know it."""
    force: bool = False
    """Replace an existing file."""


@dataclass(frozen=True)
class KeyConfig:
    """Flags of `key`."""

    run: Path | None = None
    """Run folder: shows the accuracy under its own key and under others."""
    model_file: Path | None = None
    """Model file written with --hide-key: says whether --key is its key."""
    key: int | None = None
    """Key to try."""
    tries: int = 3
    """Random other keys to try on a run."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    data_root: Path | None = None
    """Folder that holds data sets."""

    def __post_init__(self) -> None:
        check_range("--tries", self.tries, 0)
        check_range("--key", self.key, 0, 2**63 - 1)
        if self.run is not None and self.model_file is not None:
            raise UserError("--run and --model-file", [str(self.run), str(self.model_file)], "one of them")


@dataclass(frozen=True)
class InspectConfig(TrainConfig):
    """Flags of `inspect`: those of `train`, and the shape of the images instead of the images."""

    image: tuple[int, int, int] | None = None
    """Channels, side in pixels, classes. Default: those of --data."""
    layers: bool = False
    """List every generated layer with its constant a_l."""


RATIOS = (1.0, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 64, 1 / 256, 1 / 1024)
SWEPT = (
    "compression",
    "dof_ratio",
    "ring_size",
    "resume",
    "devices",
    "plan",
    "method",
    "scope",
)  # of `train`'s fields, those a sweep sets itself


@dataclass(frozen=True)
class SweepConfig(TrainConfig):
    """Flags of `sweep`: those of `train` for what all runs share, and lists for what varies."""

    exclusive: ClassVar[tuple[tuple[str, ...], ...]] = (*TrainConfig.exclusive, ("ratios", "ring_sizes"))

    resume: Path | None = field(default=None, init=False)
    """Not for a sweep: the same command (the same --out) goes on with what is not finished."""
    devices: int = field(default=1, init=False)
    """Not for a sweep: --jobs runs several of its runs at a time."""
    plan: PlanName = field(default="even", init=False)
    """Not for a sweep: --plans."""
    method: Method = field(default="rpg", init=False)
    """Not for a sweep: --methods."""
    scope: Scope = field(default="global", init=False)
    """Not for a sweep: --scopes."""
    ratios: tuple[float, ...] | None = None
    """M / N. Default: 1, 1/2, 1/4, 1/8, 1/16, 1/64, 1/256, 1/1024."""
    ring_sizes: tuple[int, ...] | None = None
    """Instead of --ratios: M, the same for every host, to compare hosts at equal degrees of freedom."""
    plans: tuple[PlanName, ...] = ("even",)
    """Plans."""
    hosts: tuple[HostName, ...] = ()
    """Hosts. Default: --host."""
    methods: tuple[Method, ...] = ("rpg",)
    """Methods; those without a ring run with every ring size as the budget, vanilla and tied once."""
    scopes: tuple[Scope, ...] = ("global",)
    """Scopes."""
    chunks: tuple[int, ...] = ()
    """Sizes of permuted blocks. Default: --chunk."""
    lr_scales: tuple[LrScale, ...] = ()
    """Scalings of the ring's learning rate. Default: --lr-scale."""
    host_variants: tuple[str, ...] = ()
    """Sets of host options, each as name=value,name=value; e.g. variant=reuse variant=reuse-bn for shared kernels
    without and with normalisation of their own."""
    seeds: int = 3
    """Seeds, from --seed on."""
    jobs: int | None = None
    """Runs at a time. Default: one a core on the CPU, one on a GPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("--seeds", self.seeds, 1)
        check_range("--jobs", self.jobs, 1)
        for flag in ("compression", "dof_ratio", "ring_size"):
            if (value := getattr(self, flag)) is not None:
                raise UserError("--" + flag.replace("_", "-"), value, "a list: --ratios of M / N, or --ring-sizes")
        for ratio in self.ratios or ():
            check_range("--ratios", ratio, 0, 1, open_low=True)
        for size in self.ring_sizes or ():
            check_range("--ring-sizes", size, 1)
        for chunk in self.chunks:
            check_range("--chunks", chunk, 1)
        for variant in self.host_variants:
            self.variant_options(variant)
        for flag, values, valid in (
            ("--plans", self.plans, PLANS),
            ("--hosts", self.hosts, HOSTS),
            ("--methods", self.methods, METHODS),
            ("--scopes", self.scopes, SCOPES),
            ("--lr-scales", self.lr_scales, LR_SCALES),
        ):
            for value in values:
                check_choice(flag, value, valid)

    def sizes(self) -> list[tuple[str, dict[str, float | int]]]:
        """What is swept of the ring's size: (as names show it, fields of `TrainConfig`)."""
        if self.ring_sizes is not None:
            return [(f"M={size}", {"ring_size": size}) for size in self.ring_sizes]
        ratios = RATIOS if self.ratios is None else self.ratios
        return [(f"M/N={ratio:.4g}", {"dof_ratio": ratio}) for ratio in ratios]

    def variant_options(self, variant: str) -> tuple[str, ...]:
        """`--host-options` with those of a variant on top.

        Raises:
            UserError: an entry that is not name=value.
        """
        own = tuple(variant.split(",")) if variant else ()
        for entry in own:
            if not all(entry.partition("=")):
                raise UserError("--host-variants", entry, "name=value, such as variant=reuse-bn")
        named = {entry.partition("=")[0] for entry in own}
        return (*(entry for entry in self.host_options if entry.partition("=")[0] not in named), *own)


@dataclass(frozen=True)
class FitConfig:
    """Flags of `fit`."""

    results: Path
    """sweep.json of a sweep, or a results file of `reproduce`."""
    metric: str = "accuracy"
    """Which measured value."""
    contains: str = ""
    """Only runs whose name contains this text."""
    below: float = 0.5
    """Only rings of at most this share of the generated weights: the law is claimed below half."""
    out: Path | None = None
    """Draw the fit here (PNG and SVG)."""
    force: bool = False
    """Replace an existing figure."""


@dataclass(frozen=True)
class PlotConfig:
    """Flags of `plot`."""

    source: Path
    """Run folder, or the folder of a reproduction or sweep that holds `cells/`."""
    out: Path | None = None
    """Where figures go. Default: <source>/figures, where earlier ones are replaced."""
    force: bool = False
    """Replace the figures in --out."""


INSPECT_PRESETS = {name: InspectConfig(**vars(preset)) for name, preset in TRAIN_PRESETS.items()}
SWEEP_PRESETS = {
    name: SweepConfig(**{flag: value for flag, value in vars(preset).items() if flag not in SWEPT})
    for name, preset in TRAIN_PRESETS.items()
}
