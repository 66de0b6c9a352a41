"""What can be set: one frozen dataclass a verb, and the presets. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import ClassVar, Literal, get_args

from shared.config import RunConfig, UserError, check_choice, check_range
from shared.image_names import IMAGE_SETS, SHAPES, ImageSet
from superposition.kinds import CYCLIC, KINDS, LEARNABLE, PHASES, WITHOUT_BIAS, Kind

Method = Literal["psp", "standard", "multi-head", "separate", "joint", "ewc", "si", "agem"]
METHODS: tuple[Method, ...] = get_args(Method)
METHOD_DESCRIPTIONS: dict[Method, str] = {
    "psp": "parameter superposition: one network, a context for every task (--kind)",
    "standard": "one network, nothing done about forgetting",
    "multi-head": "one network with an output layer for every task",
    "separate": "a network of its own for every task: the upper bound, K times the memory",
    "joint": "one network, all tasks from the beginning, a random one every step: the offline bound",
    "ewc": "elastic weight consolidation",
    "si": "synaptic intelligence",
    "agem": "averaged gradient episodic memory",
}
StreamName = Literal["permuting", "rotating", "permuting-labels", "split", "icifar", "three-sets"]
STREAMS: tuple[StreamName, ...] = get_args(StreamName)
STREAM_DESCRIPTIONS: dict[StreamName, str] = {
    "permuting": "the pixels in a new order for every task",
    "rotating": "images that turn a full circle every --period steps; a task is a part of the circle",
    "permuting-labels": "the same images, the labels renamed for every task",
    "split": "groups of --classes-per-task classes, one after another, labels from 0",
    "icifar": "CIFAR-10, then groups of ten classes of CIFAR-100",
    "three-sets": "MNIST-5k, Fashion-MNIST, 8x8 digits drawn larger: three tasks of ten classes",
}
NetName = Literal["fc", "resnet18", "small-resnet"]
NETS: tuple[NetName, ...] = get_args(NetName)
ScheduleName = Literal["task", "period", "continuous", "random", "constant"]
SCHEDULES: tuple[ScheduleName, ...] = get_args(ScheduleName)
OptimizerName = Literal["rmsprop", "adam", "sgd"]
Inputs = Literal["auto", "mnist", "own", "symmetric", "raw"]
Norm = Literal["static", "per-task"]
Numbers = Literal["auto", "real", "complex"]
TURNING: tuple[StreamName, ...] = ("rotating",)


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """One training run over a stream of tasks."""

    stream: StreamName = "permuting"
    """What comes one after another."""
    data: ImageSet = "mnist5k"
    """Data set; mnist5k and digits are embedded, the others lie under --data-root."""
    method: Method = "psp"
    """Superposition, or a baseline."""
    kind: Kind = "binary"
    """Family of contexts (--method psp)."""
    tasks: int = 10
    """Tasks; where they turn, circles."""
    period: int = 200
    """Steps a task; where they turn, steps a circle."""
    contexts: int | None = None
    """How many contexts there are. Default: one a task, ten a circle."""
    schedule: ScheduleName = "task"
    """Context of a step: the task's number; the next every --context-every steps; a real number --context-rate times
    the step (kind power); a random one; always the first."""
    context_every: int | None = None
    """Steps a context is held (--schedule period). Default: --period divided by the contexts."""
    context_rate: float = 0.01
    """Contexts a step (--schedule continuous)."""
    context_seed: int | None = None
    """Seed of the contexts. Default: --seed."""
    learn_context: bool = False
    """Train the contexts too, each only while it is in use; of a residual network those of the output layer."""
    numbers: Numbers = "auto"
    """real or complex network; auto is what the contexts need."""
    part: Literal["full", "real"] = "full"
    """real: drop the imaginary part after every layer (an ablation of complex networks)."""
    net: NetName = "fc"
    """Perceptron, ResNet-18 for CIFAR, or one of 16, 32, 64 channels and a block a stage."""
    width: int = 256
    """Units of every hidden layer (fc)."""
    depth: int = 3
    """Hidden layers (fc)."""
    widths: tuple[int, ...] = ()
    """Units of the hidden layers one by one, instead of --width and --depth: 300 100."""
    bias: bool = True
    """Biases, shared by all contexts."""
    quirks: Literal["none", "authors"] = "none"
    """authors: layers of kinds binary, mask, ternary and normal have no bias, as in the authors' code."""
    bn: Norm = "static"
    """Normalisation of residual networks: statistics of the batch at hand, or running ones for every context."""
    optimizer: OptimizerName = "rmsprop"
    """rmsprop (alpha 0.99), adam, or sgd; one for all tasks, never reset."""
    lr: float = 1e-4
    """Learning rate, the same throughout."""
    momentum: float = 0.0
    """Of rmsprop and sgd."""
    weight_decay: float = 0.0
    """Weight decay."""
    batch_size: int = 128
    """Samples a step."""
    inputs: Inputs = "auto"
    """Pixels: mnist (mean 0.1307, deviation 0.3081), own mean and deviation, symmetric (-1 to 1), raw (0 to 1); auto is
    mnist for MNIST, symmetric for CIFAR, else own."""
    classes_per_task: int = 5
    """Classes of a task (--stream split)."""
    first: int = 0
    """Number of the first permutation (--stream permuting)."""
    strength: float = 1.0
    """lambda of ewc, c of si."""
    fisher: Literal["fisher", "empirical"] = "fisher"
    """Labels of the Fisher information: drawn from the network, or those of the data (ewc)."""
    fisher_samples: int = 1000
    """Samples that the Fisher information is taken over (ewc)."""
    consolidation: Literal["separate", "online"] = "separate"
    """A penalty for every task, or a running one (ewc)."""
    gamma: float = 1.0
    """Decay of the running penalty (ewc --consolidation online)."""
    xi: float = 0.1
    """Damping of importances (si)."""
    memory: int = 256
    """Stored samples a task (agem)."""
    capture: bool = True
    """On CUDA: replay a step as one graph for as long as its context stays. Not with ewc, si, agem, fp16, --compile."""
    matrix: bool = False
    """Measure all tasks after each, for forgetting and transfer."""
    max_train: int | None = None
    """Use this many training samples, balanced over classes."""
    max_test: int | None = None
    """Use this many test samples."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for flag, value, valid in (
            ("--stream", self.stream, STREAMS),
            ("--data", self.data, IMAGE_SETS),
            ("--method", self.method, METHODS),
            ("--kind", self.kind, KINDS),
            ("--schedule", self.schedule, SCHEDULES),
            ("--numbers", self.numbers, get_args(Numbers)),
            ("--part", self.part, ("full", "real")),
            ("--net", self.net, NETS),
            ("--quirks", self.quirks, ("none", "authors")),
            ("--bn", self.bn, get_args(Norm)),
            ("--optimizer", self.optimizer, get_args(OptimizerName)),
            ("--inputs", self.inputs, get_args(Inputs)),
            ("--fisher", self.fisher, ("fisher", "empirical")),
            ("--consolidation", self.consolidation, ("separate", "online")),
        ):
            check_choice(flag, value, valid)
        for flag, value in (
            ("--tasks", self.tasks), ("--period", self.period), ("--contexts", self.contexts),
            ("--context-every", self.context_every), ("--width", self.width), ("--depth", self.depth),
            ("--batch-size", self.batch_size), ("--classes-per-task", self.classes_per_task),
            ("--fisher-samples", self.fisher_samples), ("--memory", self.memory), ("--max-train", self.max_train),
            ("--max-test", self.max_test),
        ):  # fmt: skip
            check_range(flag, value, 1)
        for width in self.widths:
            check_range("--widths", width, 1)
        check_range("--lr", self.lr, 0, open_low=True)
        if self.optimizer == "adam" and self.momentum:
            raise UserError("--momentum", self.momentum, "with --optimizer rmsprop or sgd")
        for flag, value in (
            ("--momentum", self.momentum), ("--weight-decay", self.weight_decay), ("--strength", self.strength),
            ("--gamma", self.gamma), ("--first", self.first),
        ):  # fmt: skip
            check_range(flag, value, 0)
        check_range("--xi", self.xi, 0, open_low=True)
        check_range("--context-seed", self.context_seed, 0, 2**63 - 1)
        if self.epochs is not None:
            raise UserError("--epochs", self.epochs, "--tasks and --period, or --steps: a stream has no epochs")
        if self.devices > 1 or self.accumulate > 1:
            raise UserError(
                "--devices and --accumulate", [self.devices, self.accumulate], "1: streams are of small runs"
            )
        self._check_contexts()
        self._check_net()
        self._check_stream()

    def _check_contexts(self) -> None:
        kind = self.active_kind
        usual = TrainConfig.__dataclass_fields__
        if self.method != "psp":
            for name in ("learn_context", "kind", "context_seed"):
                if getattr(self, name) != usual[name].default:
                    raise UserError("--" + name.replace("_", "-"), getattr(self, name), "with --method psp alone")
        counted = self.method in ("psp", "multi-head", "separate")
        if self.schedule == "task" and counted and self.stream != "rotating" and self.context_count < self.tasks:
            raise UserError("--contexts", self.contexts, f"at least the {self.tasks} tasks (--schedule task)")
        if not counted and self.stream != "rotating" and self.contexts is not None:
            raise UserError("--contexts", self.contexts, "with --method psp, multi-head or separate")
        for name, schedule in (("context_every", "period"), ("context_rate", "continuous")):
            if self.schedule != schedule and getattr(self, name) != usual[name].default:
                flag = "--" + name.replace("_", "-")
                raise UserError(flag, getattr(self, name), f"with --schedule {schedule}")
        if self.numbers == "complex" and self.method in ("multi-head", "separate"):
            raise UserError("--numbers", self.numbers, f"real: networks of --method {self.method} are")
        if self.learn_context and kind not in LEARNABLE:
            raise UserError("--learn-context", kind, LEARNABLE)
        if self.schedule == "continuous" and kind != "power":
            what = f"contexts of kind {kind}" if self.method == "psp" else f"contexts of --method {self.method}"
            raise UserError("--schedule", self.schedule, f"another: {what} are counted", "See --kind power.")
        if kind in CYCLIC and self.context_count < 4:
            hint = f"--kind {kind} takes neighbours modulo their number; of three all are the same."
            raise UserError("--contexts", self.context_count, "a number >= 4", hint)
        if self.numbers == "real" and kind in PHASES:
            raise UserError("--numbers", self.numbers, f"complex: contexts of kind {kind} are phasors")
        if self.numbers == "complex" and kind not in (*PHASES, "none"):
            raise UserError("--numbers", self.numbers, f"real: contexts of kind {kind} are real numbers")
        if self.part == "real" and not self.is_complex:
            raise UserError("--part", self.part, "full in a network of real numbers")
        for name, methods in (
            ("strength", ("ewc", "si")), ("fisher", ("ewc",)), ("fisher_samples", ("ewc",)),
            ("consolidation", ("ewc",)), ("gamma", ("ewc",)), ("xi", ("si",)), ("memory", ("agem",)),
        ):  # fmt: skip
            if self.method not in methods and getattr(self, name) != usual[name].default:
                flag = "--" + name.replace("_", "-")
                raise UserError(flag, getattr(self, name), f"with --method {' or '.join(methods)}")
        if self.method == "ewc" and self.stream == "rotating" and self.consolidation == "separate":
            hint = "Where images turn, tasks come again, and each time a penalty would be added."
            raise UserError("--consolidation", self.consolidation, "online with --stream rotating", hint)
        if self.gamma != 1.0 and self.consolidation != "online":
            raise UserError("--gamma", self.gamma, "with --consolidation online")

    def _check_net(self) -> None:
        if self.net == "fc":
            if self.bn != "static":
                raise UserError("--bn", self.bn, "with a residual network: the perceptron has no normalisation")
            return
        if self.is_complex:
            valid = [kind for kind in KINDS if kind not in PHASES]
            raise UserError("--kind", self.active_kind, valid, "Residual networks here are of real numbers.")
        for name in ("width", "depth", "widths"):
            if getattr(self, name) != TrainConfig.__dataclass_fields__[name].default:
                raise UserError("--" + name, getattr(self, name), "with --net fc")
        if self.method == "agem" and self.bn == "per-task":
            hint = "Its memory mixes tasks, whose statistics are apart."
            raise UserError("--bn", self.bn, "static with --method agem", hint)
        if self.method == "ewc" and self.bn == "static":
            hint = "The Fisher information is taken sample by sample, and statistics of a batch have none."
            raise UserError("--method", self.method, [m for m in METHODS if m != "ewc"], hint)

    def _check_stream(self) -> None:
        if self.stream == "rotating":
            bins = self.context_count
            if self.period % bins:
                raise UserError("--contexts", bins, f"a divisor of --period, {self.period}")
        if self.stream == "split" and SHAPES[self.data][2] % self.classes_per_task:
            classes = SHAPES[self.data][2]
            valid = [n for n in range(1, classes + 1) if classes % n == 0]
            raise UserError("--classes-per-task", self.classes_per_task, valid)
        if self.tasks > self.possible_tasks:
            raise UserError("--tasks", self.tasks, f"at most {self.possible_tasks} for --stream {self.stream}")
        usual = TrainConfig.__dataclass_fields__
        if self.stream in ("icifar", "three-sets") and self.data != usual["data"].default:
            raise UserError("--data", self.data, f"another --stream: {self.stream} has data of its own")
        if self.stream != "split" and self.classes_per_task != usual["classes_per_task"].default:
            raise UserError("--classes-per-task", self.classes_per_task, "with --stream split")
        if self.stream == "rotating" and self.matrix:
            raise UserError("--matrix", self.matrix, "with another --stream: where images turn, tasks come again")
        whole = self.tasks * self.period
        if self.planned_steps > whole and self.stream != "rotating" and self.method != "joint":
            hint = "A stream ends with its last task: raise --tasks or --period."
            raise UserError("--steps", self.steps, f"at most {whole}, --tasks x --period", hint)
        if self.schedule == "continuous" and self.contexts is not None:
            furthest = self.context_rate * (self.planned_steps - 1)
            if furthest > self.contexts - 1:
                hint = f"The last step's would be {furthest:g}."
                raise UserError(
                    "--context-rate", self.context_rate, f"contexts 0 to {self.contexts - 1} (--contexts)", hint
                )
        if self.first and self.stream != "permuting":
            raise UserError("--first", self.first, "with --stream permuting")

    @property
    def possible_tasks(self) -> int:
        """Tasks that the data have."""
        if self.stream == "split":
            return SHAPES[self.data][2] // self.classes_per_task
        return {"icifar": 11, "three-sets": 3}.get(self.stream, 10**9)

    @property
    def active_kind(self) -> Kind:
        """The contexts in use: none without superposition."""
        return self.kind if self.method == "psp" else "none"

    @property
    def is_complex(self) -> bool:
        """Whether the network computes with complex numbers."""
        return self.active_kind in PHASES or self.numbers == "complex"

    @property
    def has_bias(self) -> bool:
        """Whether layers have biases."""
        return self.bias and not (self.quirks == "authors" and self.active_kind in WITHOUT_BIAS)

    @property
    def context_count(self) -> int:
        """K."""
        if self.contexts is not None:
            return self.contexts
        return 10 if self.stream in TURNING else self.tasks

    @property
    def limit(self) -> int | None:
        """K where contexts must be counted; None where they are drawn as they are asked for."""
        counted = self.active_kind in CYCLIC or self.learn_context or self.contexts is not None
        return self.context_count if counted or self.active_kind != "power" else None

    @property
    def planned_steps(self) -> int:
        """Steps of all tasks, unless --steps says otherwise."""
        return self.steps if self.steps is not None else self.tasks * self.period

    @property
    def hidden(self) -> tuple[int, ...]:
        """Units of the hidden layers."""
        return self.widths or (self.width,) * self.depth


_CPU = TrainConfig(eval_every=100)
TRAIN_PRESETS: dict[str, TrainConfig] = {
    "cpu": _CPU,
    "smoke": replace(_CPU, preset="smoke", data="digits", tasks=3, period=60, lr=1e-3, eval_every=30),
    "gpu": replace(_CPU, preset="gpu", tasks=50, period=1000, width=2048, eval_every=500),
    "paper": replace(_CPU, preset="paper", data="mnist", tasks=50, period=1000),
}


@dataclass(frozen=True)
class RunChoice:
    """A trained run and where to work on it."""

    run: Path
    """Run folder, written by `train`."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    data_root: Path | None = None
    """Folder that holds data sets. Default: the run's, else $PAPERS_DATA, else the user cache."""
    quiet: bool = False
    """No table."""


@dataclass(frozen=True)
class EvaluateConfig(RunChoice):
    """Flags of `evaluate`."""

    select: bool = False
    """Also find the context of a batch without being told: the one of least output entropy."""
    select_batch: int = 128
    """Images that a context is found for together."""
    out: Path | None = None
    """Write the metrics and the matrix to this JSON file."""
    force: bool = False
    """Replace an existing file."""

    def __post_init__(self) -> None:
        check_range("--select-batch", self.select_batch, 1)


@dataclass(frozen=True)
class RetrieveConfig(RunChoice):
    """Flags of `retrieve`."""

    context: float = 0
    """k; a fraction for kind power."""
    out: Path | None = None
    """Where the plain model goes. Default: <run>/plain-<k>.pt."""
    force: bool = False
    """Replace an existing file."""


@dataclass(frozen=True)
class SuperposeConfig:
    """Flags of `superpose`."""

    models: tuple[Path, ...]
    """Plain models of one shape, written by `retrieve`: model s is bound to context s."""
    kind: Kind = "rotation"
    """Family of contexts; it must be invertible."""
    seed: int = 0
    """Seed of the contexts."""
    out: Path = Path("superposed.pt")
    """Where the sum goes."""
    data_root: Path | None = None
    """Folder that holds data sets, to measure on. Default: $PAPERS_DATA, else the user cache."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    quiet: bool = False
    """No table."""
    force: bool = False
    """Replace an existing file."""

    def __post_init__(self) -> None:
        check_choice("--kind", self.kind, KINDS)
        check_range("--seed", self.seed, 0, 2**63 - 1)


@dataclass(frozen=True)
class NoiseConfig:
    """Flags of `noise`."""

    models: tuple[int, ...] = (2, 4, 8, 16)
    """K, models stored."""
    dims: tuple[int, ...] = (64, 256)
    """d, inputs."""
    draws: int = 300
    """Sets of contexts."""
    seed: int = 0
    """Of models, input and contexts."""
    out: Path | None = None
    """Folder for noise.json and the figure. Default: runs/superposition/noise, replaced by every call."""
    force: bool = False
    """Replace an existing noise.json."""
    offline: int | None = None
    """Also train so many perceptrons, one a permutation of the pixels, and superpose them after training."""
    offline_width: int = 512
    """Their hidden units."""
    offline_steps: int = 400
    """Steps each is trained."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    quiet: bool = False
    """No table, no progress bar."""

    def __post_init__(self) -> None:
        for flag, values in (("--models", self.models), ("--dims", self.dims)):
            if not values:
                raise UserError(flag, "none", "one number or more")
        for value in self.models:
            check_range("--models", value, 2)
        for value in self.dims:
            check_range("--dims", value, 2)
        check_range("--draws", self.draws, 2)
        check_range("--offline", self.offline, 2)
        check_range("--offline-width", self.offline_width, 1)
        check_range("--offline-steps", self.offline_steps, 1)
        check_range("--seed", self.seed, 0, 2**63 - 1)


@dataclass(frozen=True)
class InspectConfig(TrainConfig):
    """Flags of `inspect`: those of `train`."""

    table: bool = False
    """Numbers for every further model, by kind, for this network."""


@dataclass(frozen=True)
class PlotConfig:
    """Flags of `plot`."""

    runs: tuple[Path, ...]
    """Run folders, drawn together."""
    out: Path | None = None
    """Where to, without suffix. Default: runs/superposition/plot, replaced by every call."""
    force: bool = False
    """Replace an existing file."""


@dataclass(frozen=True)
class SweepConfig(TrainConfig):
    """Flags of `sweep`: those of `train` for what all runs share, and lists for what varies."""

    resume: Path | None = field(default=None, init=False)
    """Not for a sweep: the same command (the same --out) goes on with what is not finished."""
    method: Method = field(default="psp", init=False)
    """Not for a sweep: --methods."""
    kind: Kind = field(default="binary", init=False)
    """Not for a sweep: --kinds."""
    devices: int = field(default=1, init=False)
    """Not for a sweep: --jobs runs several of its runs at a time."""
    experiment: str | None = None
    """Instead of the lists an experiment of the paper by name: perm-units, perm-kinds, rot-mnist, rot-fast,
    rot-fmnist, icifar, icifar100, supsup."""
    lite: bool = False
    """That experiment with fewer steps on small data: embedded, but for icifar, which is CIFAR-10."""
    kinds: tuple[Kind, ...] = ()
    """Families of contexts (method psp)."""
    methods: tuple[Method, ...] = ()
    """Baselines beside them."""
    hidden_widths: tuple[int, ...] = ()
    """Hidden units. Default: --width."""
    task_counts: tuple[int, ...] = ()
    """Numbers of tasks. Default: --tasks."""
    strengths: tuple[float, ...] = ()
    """lambda or c of ewc and si. Default: --strength."""
    seeds: int = 3
    """Seeds, from --seed on."""
    jobs: int | None = None
    """Runs at a time. Default: one a core on the CPU, one on a GPU."""

    exclusive: ClassVar[tuple[tuple[str, ...], ...]] = RunConfig.exclusive

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("--seeds", self.seeds, 1)
        check_range("--jobs", self.jobs, 1)
        if self.lite and self.experiment is None:
            raise UserError("--lite", self.lite, "with --experiment")
        if self.strengths and not {"ewc", "si"} & set(self.methods):
            raise UserError("--strengths", list(self.strengths), "with --methods ewc or si")
        if "psp" in self.methods:
            raise UserError("--methods", "psp", "baselines; families of contexts are --kinds")
        if self.experiment is None:
            return
        free = {f.name for f in fields(RunConfig)} - {"steps"} | {"experiment", "lite", "seeds", "jobs"}
        for each in fields(self):
            if each.init and each.name not in free and getattr(self, each.name) != each.default:
                flag = "--" + each.name.replace("_", "-")
                raise UserError(flag, getattr(self, each.name), "without --experiment, which says what runs")
