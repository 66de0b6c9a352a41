"""What can be set: one frozen dataclass a verb, and the presets. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from low_rank.names import ACTIVATIONS, MODELS, REGULARISERS
from shared.config import RunConfig, UserError, check_choice, check_range
from shared.image_names import IMAGE_SETS, SHAPES, ImageSet

Expand = Literal["none", "linear", "conv", "all"]
Mode = Literal["auto", "weights", "activations"]
Schedule = Literal["constant", "cosine", "steps"]
Augment = Literal["none", "flip", "crop-flip"]
Rule = Literal["sgd", "adam"]
OPTIMISERS: dict[str, str] = {
    "gd": "gradient descent on all samples",
    "sgd": "the same on a random half of them a step",
    "momentum": "sgd with momentum 0.9",
    "adam": "Adam on all samples",
    "rmsprop": "RMSprop on all samples",
    "lbfgs": "L-BFGS with a line search (SciPy's)",
}
INITIALISATIONS: dict[str, str] = {
    "normal": "entries N(0, 1/n)",
    "uniform": "entries uniform, of the same variance",
    "xavier": "Xavier (Glorot) normal",
    "kaiming": "Kaiming (He) normal",
    "orthogonal": "uniform over orthogonal matrices: the exception, whose products keep their rank",
    "truncated": "normal, cut off at two standard deviations",
}
SKIPS: dict[str, str] = {
    "none": "h <- act(h W)",
    "post": "h <- h + act(h W)",
    "block": "h <- h + act(h W) V",
    "block-scaled": "the same, the branch over sqrt(depth)",
    "branch": "h <- act(h W) V, the block without its skip",
    "linear": "h <- h + h V",
}


def check_depths(depths: tuple[int, ...]) -> None:
    """Refuse an empty list of depths, and depths that are not increasing from 1 on."""
    if not depths or any(d < 1 for d in depths) or list(depths) != sorted(set(depths)):
        raise UserError("--depths", list(depths), "increasing numbers from 1 on: 1 2 4 8")


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """One classifier, its linear layers replaced by products of linear layers."""

    data: ImageSet = "digits"
    """Data set; mnist5k and digits are embedded, the others lie under --data-root."""
    model: str = "mlp"
    """Architecture."""
    width: int = 256
    """Units of every hidden layer of mlp, of the hidden linear layer of cnn and cnn-small."""
    hidden: int = 2
    """Hidden layers (mlp)."""
    activation: str = "relu"
    """After every hidden layer (not of the residual networks, which have ReLU, and of alexnet)."""
    channels: float = 1.0
    """Factor on the channels of cnn, cnn-small and alexnet-cifar."""
    skip: int = 0
    """A skip connection around this many hidden layers (mlp): 0 for none, 1 or 2."""
    expand: Expand = "all"
    """Which layers become products of linear layers."""
    depth: int = 3
    """Factors of a product."""
    expand_width: float = 1.0
    """Units between factors over the outputs of the layer; below 1 they are a bottleneck, which limits capacity."""
    kernels: tuple[int, ...] = ()
    """Kernel sizes of a convolution's factors: 1 3 1. Default: the layer's own, then 1. More than one above 1 changes
    what the layer can compute."""
    factor_norm: bool = False
    """Batch normalisation after every factor; folded into the weights for evaluation."""
    factor_skips: tuple[int, ...] = ()
    """Skip connections around so many factors; -1 around all of them."""
    mode: Mode = "auto"
    """Multiply the factors and apply the product (weights), or apply them one by one (activations); auto is weights
    wherever no normalisation lies between them. The function is the same."""
    start: Literal["reset", "preserve"] = "reset"
    """Draw the factors anew, or factor the weights that the architecture is drawn with."""
    authors_init: bool = False
    """As the authors' code: the last factor of the classifier too has the gain of a layer before an activation."""
    regulariser: str = "none"
    """Penalty on the (multiplied) weights of all layers."""
    strength: float = 0.0
    """Weight of the penalty."""
    optimizer: Rule = "sgd"
    """sgd with momentum, or adam, whose weight decay is decoupled (AdamW)."""
    lr: float = 0.05
    """Learning rate at the start."""
    momentum: float = 0.9
    """Of sgd."""
    weight_decay: float = 0.0
    """Weight decay on the factors: of a product of d it is a Schatten-2/d penalty (sgd), not decay of the product."""
    schedule: Schedule = "cosine"
    """How the learning rate falls: not; along a cosine to 0; to a tenth at half and at three quarters."""
    warmup: int = 0
    """Steps over which the learning rate rises from 0."""
    clip: float | None = 1.0
    """Largest norm of the gradient, which products need at the rates that suit plain networks; None for no clipping."""
    batch_size: int = 128
    """Samples a step and process."""
    augment: Augment = "none"
    """Random flips; shifts by up to 4 pixels and flips."""
    side: int | None = None
    """Scale images to so many pixels a side, by area. Default: as they are."""
    label_noise: float = 0.0
    """Share of training labels replaced by random ones."""
    validation: int = 0
    """Training samples held out; they are measured instead of the test set until the end of the run."""
    max_train: int | None = None
    """Use this many training samples, balanced over classes."""
    max_test: int | None = None
    """Use this many test samples."""
    probes: int = 256
    """Test images that the Gram matrix of features is taken over."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for flag, value, valid in (
            ("--data", self.data, IMAGE_SETS),
            ("--model", self.model, MODELS),
            ("--activation", self.activation, ACTIVATIONS),
            ("--skip", self.skip, (0, 1, 2)),
            ("--expand", self.expand, get_args(Expand)),
            ("--mode", self.mode, get_args(Mode)),
            ("--start", self.start, ("reset", "preserve")),
            ("--regulariser", self.regulariser, ("none", *REGULARISERS)),
            ("--optimizer", self.optimizer, get_args(Rule)),
            ("--schedule", self.schedule, get_args(Schedule)),
            ("--augment", self.augment, get_args(Augment)),
        ):
            check_choice(flag, value, valid)
        check_range("--width", self.width, 1)
        check_range("--hidden", self.hidden, 1)
        check_range("--channels", self.channels, 0, open_low=True, open_high=True)
        check_range("--depth", self.depth, 1)
        check_range("--expand-width", self.expand_width, 0, open_low=True, open_high=True)
        check_range("--strength", self.strength, 0, open_high=True)
        check_range("--lr", self.lr, 0, open_low=True, open_high=True)
        check_range("--momentum", self.momentum, 0, 1)
        check_range("--weight-decay", self.weight_decay, 0, open_high=True)
        check_range("--warmup", self.warmup, 0)
        check_range("--clip", self.clip, 0, open_low=True)
        check_range("--batch-size", self.batch_size, 1)
        check_range("--side", self.side, 1)
        check_range("--label-noise", self.label_noise, 0, 1)
        check_range("--validation", self.validation, 0)
        check_range("--max-train", self.max_train, 1)
        check_range("--max-test", self.max_test, 1)
        check_range("--probes", self.probes, 2)
        if self.kernels and len(self.kernels) != self.depth:
            raise UserError("--kernels", list(self.kernels), f"{self.depth} sizes, one for each of --depth factors")
        for skip in self.factor_skips:
            if skip != -1 and not 1 <= skip <= self.depth:
                raise UserError("--factor-skips", skip, f"-1, or 1 to the {self.depth} factors of --depth")
        if self.mode == "weights" and self.factor_norm:
            hint = "Normalisation between factors looks at activations: they must be there."
            raise UserError("--mode", self.mode, "auto or activations with --factor-norm", hint)
        if self.skip and self.model != "mlp":
            raise UserError("--skip", self.skip, f"0: {self.model} has the skips it has")
        if self.factor_norm and self.batch_size == 1:
            raise UserError("--batch-size", 1, "2 or more with --factor-norm: one sample has no statistics")
        if self.strength and self.regulariser == "none":
            raise UserError("--strength", self.strength, f"with --regulariser {', '.join(REGULARISERS)}")
        if self.expand == "none" and (self.factor_norm or self.factor_skips or self.kernels):
            raise UserError("--expand", self.expand, "another with --factor-norm, --factor-skips or --kernels")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, pixels a side, classes."""
        channels, side, classes = SHAPES[self.data]
        return channels, self.side or side, classes


_CPU = TrainConfig(epochs=15)
_CNN = TrainConfig(
    data="cifar10",
    model="cnn",
    expand="all",
    depth=2,
    factor_norm=False,
    augment="crop-flip",
    weight_decay=5e-4,
    lr=0.03,
)
TRAIN_PRESETS: dict[str, TrainConfig] = {
    "cpu": _CPU,
    "smoke": replace(_CPU, preset="smoke", epochs=None, steps=20, width=32, batch_size=64, probes=64),
    "gpu": replace(_CNN, preset="gpu", epochs=60),
    "paper": replace(_CNN, preset="paper", epochs=200, lr=0.1),
}


@dataclass(frozen=True)
class RunChoice:
    """Flags that say which run."""

    run: Path
    """Run folder, written by `train`."""
    which: Literal["newest", "best"] = "newest"
    """Its newest checkpoint, or that of the highest accuracy: on held-out samples, or without --validation on the test
    set, which it then says nothing new of."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    data_root: Path | None = None
    """Folder that holds data sets. Default: the run's, else $PAPERS_DATA, else the user cache."""
    quiet: bool = False
    """No table."""
    force: bool = False
    """Replace an existing file."""

    def __post_init__(self) -> None:
        check_choice("--which", self.which, ("newest", "best"))


@dataclass(frozen=True)
class EvaluateConfig(RunChoice):
    """Flags of `evaluate`."""

    out: Path | None = None
    """Write what was measured to this JSON file."""


@dataclass(frozen=True)
class CollapseConfig(RunChoice):
    """Flags of `collapse`."""

    out: Path | None = None
    """State dict of the plain model. Default: <run>/plain.pt."""
    onnx: Path | None = None
    """Write the plain model as ONNX too (needs the extra `onnx`)."""


@dataclass(frozen=True)
class RanksConfig:
    """Flags of `ranks`."""

    source: Path
    """Run folder; a checkpoint in one; a file with a state dict (`collapse` writes one); or the name of an architecture
    (--model of `train`), whose weights are then drawn."""
    which: Literal["newest", "best"] = "newest"
    """Of a run: its newest checkpoint, or that of the highest accuracy (without --validation: on the test set)."""
    data_root: Path | None = None
    """Folder that holds data sets. Default: the run's, else $PAPERS_DATA, else the user cache."""
    seed: int = 0
    """Of an architecture's random weights."""
    quiet: bool = False
    """No table."""

    def __post_init__(self) -> None:
        check_choice("--which", self.which, ("newest", "best"))
        check_range("--seed", self.seed, 0, 2**63 - 1)


@dataclass(frozen=True)
class VolumeConfig:
    """Flags of `volume`."""

    nets: Literal["products", "features"] = "products"
    """Products of square matrices, judged by the product; or networks, judged by the Gram matrix of their features."""
    depths: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Numbers of layers."""
    n: int = 32
    """Side of the matrices (products), width of the layers (features)."""
    draws: int = 1000
    """Random networks a depth."""
    init: str | None = None
    """Distribution of the weights. Default: normal for products, kaiming for networks."""
    activation: str = "relu"
    """Of networks (features)."""
    skips: str = "none"
    """Skip connections of networks (features)."""
    every: int = 1
    """Layers that a skip connection leads around."""
    normalisation: Literal["none", "batch", "layer"] = "none"
    """Before the activation, over the images or over the units (features)."""
    inputs: Literal["images", "gaussian"] = "images"
    """What networks are looked at with: --images of --data, or as many Gaussian vectors of --n numbers."""
    data: ImageSet = "digits"
    """Images that networks are looked at with."""
    images: int = 256
    """How many."""
    center: bool = False
    """Subtract the mean feature first: a constant would hide all else (sigmoid)."""
    level: float = 0.05
    """Level of the bands around distribution functions, by Dvoretzky, Kiefer, Wolfowitz."""
    seed: int = 0
    """Seed of the draws."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    data_root: Path | None = None
    """Folder that holds data sets. Default: $PAPERS_DATA, else the user cache."""
    out: Path | None = None
    """Folder of the table (volume.json) and the figure. Default: runs/low-rank/volume."""
    quiet: bool = False
    """No progress bar, no table."""
    force: bool = False
    """Replace what is in --out."""

    def __post_init__(self) -> None:
        check_range("--seed", self.seed, 0, 2**63 - 1)
        check_choice("--nets", self.nets, ("products", "features"))
        if self.init is not None:
            check_choice("--init", self.init, tuple(INITIALISATIONS))
        check_choice("--activation", self.activation, ACTIVATIONS)
        check_choice("--skips", self.skips, tuple(SKIPS))
        check_choice("--normalisation", self.normalisation, ("none", "batch", "layer"))
        check_choice("--inputs", self.inputs, ("images", "gaussian"))
        check_range("--every", self.every, 1)
        usual = VolumeConfig.__dataclass_fields__
        if self.nets == "products":
            for name in ("activation", "skips", "normalisation", "inputs", "data", "images", "center"):
                if getattr(self, name) != usual[name].default:
                    raise UserError(f"--{name}", getattr(self, name), "with --nets features alone")
        if self.every > 1 and self.skips == "none":
            raise UserError("--every", self.every, "1 without --skips")
        check_choice("--data", self.data, IMAGE_SETS)
        check_depths(self.depths)
        check_range("--n", self.n, 2)
        check_range("--draws", self.draws, 1)
        check_range("--images", self.images, 2)
        check_range("--level", self.level, 0, 1, open_low=True)


@dataclass(frozen=True)
class RegressConfig:
    """Flags of `regress`."""

    depths: tuple[int, ...] = (1, 2, 3, 4, 6, 8)
    """Numbers of factors."""
    n: int = 32
    """Dimensions."""
    rank: int = 2
    """Of the true map."""
    samples: int = 20
    """Samples; fewer than --n leave the map undetermined."""
    draws: int = 16
    """Random problems."""
    noise: float = 0.0
    """Standard deviation added to the targets."""
    steps: int = 1500
    """Steps of Adam."""
    lr: float = 3e-3
    """Learning rate, along a cosine to 0."""
    gain: float = 1.0
    """Standard deviation of the factors at the start over 1/sqrt(n)."""
    double: bool = False
    """Train in double precision: many factors, or small ones, multiply to nothing in single precision."""
    seed: int = 0
    """Seed of problems and starts."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    out: Path | None = None
    """Folder of the table (regress.json) and the figures. Default: runs/low-rank/regress."""
    quiet: bool = False
    """No progress bar, no table."""
    force: bool = False
    """Replace what is in --out."""

    def __post_init__(self) -> None:
        check_range("--seed", self.seed, 0, 2**63 - 1)
        check_depths(self.depths)
        check_range("--n", self.n, 2)
        check_range("--rank", self.rank, 1, self.n)
        check_range("--samples", self.samples, 1)
        check_range("--draws", self.draws, 1)
        check_range("--noise", self.noise, 0)
        check_range("--steps", self.steps, 1)
        check_range("--lr", self.lr, 0, open_low=True)
        check_range("--gain", self.gain, 0, open_low=True)
        for flag, value in (("--noise", self.noise), ("--lr", self.lr), ("--gain", self.gain)):
            if math.isinf(value):
                raise UserError(flag, value, "a finite number")


@dataclass(frozen=True)
class OptimizersConfig:
    """Flags of `optimizers`."""

    optimizers: tuple[str, ...] = tuple(OPTIMISERS)
    """Which."""
    depths: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of factors."""
    n: int = 16
    """Dimensions."""
    rank: int = 2
    """Of the true map."""
    samples: int = 10
    """Samples."""
    draws: int = 8
    """Random problems, or networks."""
    target: float = 1e-3
    """Relative training error at which regressions are compared."""
    steps: int = 3000
    """Steps at most."""
    problem: Literal["regression", "classification", "both"] = "regression"
    """Products of matrices on the regression of `regress`; ReLU networks on two classes of images; or both."""
    images: int = 32
    """Training images of the classification, half of each class."""
    width: int = 32
    """Units of every hidden layer of its networks, of which there are --draws; 12 and fewer suit CMA-ES."""
    loss: float = 0.01
    """Mean logistic loss at which they are compared, with no training image on the wrong side."""
    classes: tuple[int, int] = (0, 1)
    """The two classes, of the classification and of random search."""
    search: int = 0
    """Also random search: so many networks without training error a depth. Its problem is a smaller one: eight images,
    of two classes, networks of width 32."""
    max_draws: int = 500_000
    """Networks that random search draws a depth, at most."""
    cma: int = 0
    """Also CMA-ES, by so many runs a depth: a further optimiser of the classification, from the
    same starts, to the same loss; without a classification, on the eight images of random search, at width 12, to a
    loss of 0.1. Depths of more than 2,000 weights are left out."""
    data: ImageSet = "digits"
    """Images of the classification, random search and CMA-ES."""
    data_root: Path | None = None
    """Folder that holds data sets. Default: $PAPERS_DATA, else the user cache."""
    seed: int = 0
    """Seed of problems and starts."""
    out: Path | None = None
    """Folder of the table (optimizers.json) and the figure. Default: runs/low-rank/optimizers."""
    quiet: bool = False
    """No progress bar, no table."""
    force: bool = False
    """Replace what is in --out."""

    def __post_init__(self) -> None:
        check_range("--seed", self.seed, 0, 2**63 - 1)
        if not self.optimizers:
            raise UserError("--optimizers", "none", tuple(OPTIMISERS))
        for name in self.optimizers:
            check_choice("--optimizers", name, tuple(OPTIMISERS))
        check_depths(self.depths)
        check_choice("--data", self.data, IMAGE_SETS)
        check_range("--n", self.n, 2)
        check_range("--rank", self.rank, 1, self.n)
        check_range("--samples", self.samples, 2)
        check_range("--draws", self.draws, 1)
        check_range("--target", self.target, 0, open_low=True)
        check_choice("--problem", self.problem, ("regression", "classification", "both"))
        check_range("--images", self.images, 2)
        if self.images % 2:
            raise UserError("--images", self.images, "an even number, half of it of each class")
        check_range("--width", self.width, 1)
        check_range("--loss", self.loss, 0, open_low=True)
        for flag, value in (("--target", self.target), ("--loss", self.loss)):
            if math.isinf(value):
                raise UserError(flag, value, "a finite number")
        for label in self.classes:
            check_range("--classes", label, 0)
        if self.classes[0] == self.classes[1]:
            raise UserError("--classes", list(self.classes), "two different labels")
        check_range("--steps", self.steps, 1)
        check_range("--search", self.search, 0)
        check_range("--cma", self.cma, 0)
        check_range("--max-draws", self.max_draws, 1)


@dataclass(frozen=True)
class StudyConfig(TrainConfig):
    """Flags of `kernels` and `compare` beside those of `train`: a network of each setting and seed is trained."""

    seeds: int = 3
    """Seeds of each setting."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("--seeds", self.seeds, 1)
        if self.resume is not None:
            raise UserError(
                "--resume", self.resume, "no run: finished networks are kept in --out and not trained again"
            )


@dataclass(frozen=True)
class KernelsConfig(StudyConfig):
    """Flags of `kernels`."""

    probes: int = 512
    """Test images that Gram matrices are taken over, or all where the test set has fewer."""
    depths: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of hidden layers (mlp; another model has its depth by its name)."""
    skips: tuple[int, ...] = ()
    """Networks with skips around so many hidden layers, side by side (mlp): 0 1 2. Default: that of --skip."""
    lrs: tuple[float, ...] = ()
    """Learning rates; all combinations with the lists below are trained, for the figure of accuracy against rank.
    Default: that of --lr."""
    decays: tuple[float, ...] = ()
    """Weight decays. Default: that of --weight-decay."""
    batches: tuple[int, ...] = ()
    """Batch sizes. Default: that of --batch-size."""
    noises: tuple[float, ...] = ()
    """Shares of random labels. Default: that of --label-noise."""
    linkage: int = 64
    """Test images in the ordered Gram matrices."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_depths(self.depths)
        check_range("--linkage", self.linkage, 4, self.probes)
        for skip in self.skips:
            check_choice("--skips", skip, (0, 1, 2))
        for lr in self.lrs:
            check_range("--lrs", lr, 0, open_low=True)
        for decay in self.decays:
            check_range("--decays", decay, 0)
        for size in self.batches:
            check_range("--batches", size, 2 if self.factor_norm else 1)
        for noise in self.noises:
            check_range("--noises", noise, 0, 1)
        for name in ("skips", "lrs", "decays", "batches", "noises"):
            listed = getattr(self, name)
            if len(set(listed)) < len(listed):
                raise UserError(f"--{name}", list(listed), "every value once")
            if any(math.isinf(value) for value in listed):
                raise UserError(f"--{name}", list(listed), "finite numbers")
        if self.model != "mlp":
            if self.depths != KernelsConfig.depths and self.preset != "smoke":  # which has depths of its own
                raise UserError("--depths", list(self.depths), f"left alone: {self.model} has its depth by its name")
            if any(self.skips):
                raise UserError("--skips", list(self.skips), f"left alone: {self.model} has the skips it has")


@dataclass(frozen=True)
class CompareConfig(StudyConfig):
    """Flags of `compare`."""

    regularisers: tuple[str, ...] = ("squared-l2", "l1", "nuclear", "effective-rank", "stable-rank", "schatten")
    """Penalties on the plain network."""
    strengths: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
    """Weights of the penalties, and of the decay on factors; one is chosen on held-out samples."""
    expansions: tuple[int, ...] = (2, 3)
    """Factors of the over-parameterised networks, without decay and with the decays above."""
    lrs: tuple[float, ...] = ()
    """Learning rates that every strength is tried at; ways without a strength are tried at more of them, so that all
    have as many settings. Default: that of --lr."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.regularisers:
            check_choice("--regularisers", name, tuple(REGULARISERS))
        if not self.strengths:
            raise UserError("--strengths", "none", "one or more")
        for flag, values in (("--strengths", self.strengths), ("--lrs", self.lrs)):
            for value in values:
                check_range(flag, value, 0, open_low=True)
            if len(set(values)) < len(values) or any(math.isinf(value) for value in values):
                raise UserError(flag, list(values), "finite numbers, every one once")
        for depth in self.expansions:
            check_range("--expansions", depth, 2)
        if not self.validation:
            raise UserError(
                "--validation", self.validation, "training samples to hold out: settings are chosen on them"
            )
        if self.regulariser != "none" or self.strength or self.weight_decay:
            hint = "They are what is compared: see --regularisers and --strengths."
            raise UserError("--regulariser, --strength, --weight-decay", "given", "left alone", hint)


_STUDY = dict(vars(_CPU))
KERNELS_PRESETS: dict[str, KernelsConfig] = {
    "cpu": KernelsConfig(**{**_STUDY, "data": "mnist5k", "expand": "none", "lr": 0.02, "warmup": 50, "probes": 512}),
    "smoke": KernelsConfig(**{**vars(TRAIN_PRESETS["smoke"]), "expand": "none"}, seeds=1, depths=(1, 2), linkage=32),
}
COMPARE_PRESETS: dict[str, CompareConfig] = {
    "cpu": CompareConfig(**{**_STUDY, "validation": 300, "max_train": 600, "label_noise": 0.2}),
    "smoke": CompareConfig(
        **{**vars(TRAIN_PRESETS["smoke"]), "validation": 200}, seeds=1, regularisers=("nuclear",), strengths=(1e-4,),
        expansions=(2,),
    ),
}  # fmt: skip
