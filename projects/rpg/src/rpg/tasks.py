"""What a step is: images to classes, images to joints, images to depth and normals; under a ring or any baseline."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from rpg.analysis import mean_absolute_cosine
from rpg.baselines import RandomSubspace, pruning_rounds
from rpg.config import TrainConfig
from rpg.data.names import DENSE, POSE, fingerprint
from rpg.hosts.hourglass import Hourglass, decode, heatmaps, intermediate_loss, pckh
from rpg.hosts.msblock import MSBlockNet
from rpg.hosts.multitask import depth_l1, normals_cosine, normals_degrees
from rpg.hosts.names import HostName
from rpg.networks import Network, Shape, build_network, groups
from rpg.recipes import DEFAULTS, make_optimizer, make_schedule
from rpg.wrap import RPGModel
from shared.augment import augmentation, normalise
from shared.config import UserError
from shared.data import Batches, data_root
from shared.device import Timer
from shared.images import ImageData, load
from shared.loop import Loop, Task

PRUNE_AT = (0.5, 0.65, 0.8)  # of the run: pruning at once at the first, or in three rounds; the rest is fine-tuning


class StepClock:
    """Time of training steps alone: from the beginning of one to that of the next, so with its batch and its metrics,
    and on a GPU with the work it left in the queue; without evaluation and saving, and without the first step, which
    works out tables and warms up."""

    def __init__(self) -> None:
        self.seconds, self.steps, self._begun, self._since = 0.0, 0, 0, None

    def begin(self) -> None:
        """A step begins, and the one before it ends."""
        self.pause()
        self._begun += 1
        self._since = time.perf_counter()

    def pause(self) -> None:
        """Something begins that is no step."""
        if self._since is not None and self._begun > 1:
            self.seconds += time.perf_counter() - self._since
            self.steps += 1
        self._since: float | None = None


class NetworkTask(Task):
    """Trains one network; subclasses say what the data are and what a loss is."""

    score: ClassVar[tuple[str, Literal["max", "min"]] | None] = ("accuracy", "max")

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.root = data_root(config.data_root)
        self.losses: list[Tensor] = []  # of every step, on the device
        self.clock = StepClock()

    # subclasses -----------------------------------------------------------------------------------------------------

    def shape(self) -> Shape:
        """Shape of the data."""
        raise NotImplementedError

    def make_network(self) -> Network:
        """The network to train."""
        return build_network(self.config, self.shape())

    def loss(self, batch: Any) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        """Mean loss of a batch, and metrics."""
        raise NotImplementedError

    def measure(self, train: bool = False) -> dict[str, float]:
        """Metrics on the test set, or on the training set (without augmentation)."""
        raise NotImplementedError

    # the loop's ------------------------------------------------------------------------------------------------------

    def start(self, loop: Loop) -> None:
        self.loop, self.device = loop, loop.device
        self.network = self.make_network()
        self.module = self.network.module.to(self.device)
        if pays(self.device, self.shape().size):
            self.module = self.module.to(memory_format=torch.channels_last)  # pyright: ignore
        defaults = DEFAULTS[self.config.recipe]
        self.lr = self.config.lr if self.config.lr is not None else defaults.lr
        decay = self.config.weight_decay if self.config.weight_decay is not None else defaults.weight_decay
        self.ring_lr = self.config.ring_lr
        if self.ring_lr is None:
            self.ring_lr = defaults.ring_lr if defaults.ring_lr is not None and self.config.lr is None else self.lr
        rate_is_tuned = self.config.ring_lr is not None or (defaults.ring_lr is not None and self.config.lr is None)
        if self.network.advice and loop.primary and not (self.config.quiet or rate_is_tuned):
            print(f"note: {self.network.advice}", file=sys.stderr)
        made = groups(self.module, self.lr, decay, self.ring_lr, self.config.lr_scale)
        self.optimizer = make_optimizer(self.config.recipe, made)
        self.schedule: Any = None
        self.trained, self.prepared = loop.prepare(self.module, self.optimizer)

    @property
    def model(self) -> RPGModel | None:
        """The ring's model, where the method is a ring."""
        return self.module if isinstance(self.module, RPGModel) else None

    def step(self, batch: Any) -> dict[str, Any]:
        loop = self.loop
        self.clock.begin()
        if self.schedule is None:  # the run's length is known by now
            self._make_schedule()
        self._prune()
        watched = (loop.step + 1) % self.config.log_every == 0
        rings = self.model.ring_parameters() if self.model is not None and watched else []
        before = [ring.detach().clone() for ring in rings]
        whole = self.model is not None and self.config.accumulate > 1 and loop.world == 1
        self.module.train()
        lr = self.optimizer.param_groups[-1]["lr"]
        metrics = loop.update(
            batch,
            self.loss,
            self.prepared,
            model=self.trained,
            scheduler=self.schedule,
            around=self.model.accumulating() if whole and self.model is not None else None,
            observe=self._ring_gradient if rings else None,
        )
        metrics["lr"] = lr
        if isinstance(loss := metrics["loss"], Tensor):
            self.losses.append(loss)
        if rings:
            metrics |= self._ring_metrics(before)
        return metrics | self.solver_metrics() if watched else metrics

    def solver_metrics(self) -> dict[str, float]:
        """Iterations and last relative residual of an implicit model's latest solves; empty for explicit ones."""
        report = next((m.report for m in self.module.modules() if isinstance(m, MSBlockNet)), None)
        if report is None:
            return {}
        found: dict[str, float] = {}
        for name, solve in (("forward", report.forward), ("backward", report.backward)):
            if solve is not None:
                found[f"deq_{name}_iterations"] = float(solve.iterations)
                found[f"deq_{name}_residual"] = solve.residuals[-1]
        return found

    def _ring_gradient(self) -> dict[str, Tensor]:
        assert self.model is not None
        gradients = [ring.grad for ring in self.model.ring_parameters() if ring.grad is not None]
        return {"ring_gradient_norm": torch.cat(gradients).norm()} if gradients else {}

    def _make_schedule(self) -> None:
        self.schedule = make_schedule(self.config.recipe, self.optimizer, self.loop.total)

    @torch.no_grad()
    def _ring_metrics(self, before: list[Tensor]) -> dict[str, Tensor]:
        """Norm of the rings, and the step relative to the weights, ||dtheta|| / ||theta||, from the ring alone:
        G^T G is diagonal."""
        assert self.model is not None
        now = self.model.ring_parameters()
        moved = weight = norm = torch.zeros((), device=self.device)
        for ring, old, new in zip(self.model.rings.values(), before, now, strict=True):
            if ring.plan.kind == "haar":  # pyright: ignore
                gram = 1.0
            else:
                gram = self._gram(ring)
            moved = moved + (gram * (new - old) ** 2).sum()
            weight = weight + (gram * new**2).sum()
            norm = norm + (new**2).sum()
        return {"ring_norm": norm.sqrt(), "effective_step": (moved / weight).sqrt()}

    def _gram(self, ring: Any) -> Tensor:
        if not hasattr(self, "_grams"):
            self._grams: dict[int, Tensor] = {}
        if id(ring) not in self._grams:
            self._grams[id(ring)] = ring.gram_diagonal()
        return self._grams[id(ring)]

    def _prune(self) -> None:
        if self.network.pruning is None:
            return
        pruning, keep = self.network.pruning
        rounds = self.config.prune_rounds
        targets = pruning_rounds(pruning.total, keep, rounds)
        for progress, target in zip(PRUNE_AT[:rounds], targets, strict=True):
            if self.loop.step >= progress * self.loop.total and pruning.nonzeros > target:
                pruning.prune_to(target)

    def evaluate(self) -> dict[str, Any]:
        self.clock.pause()  # the loop has fetched all metrics, so that a GPU has done all steps
        self.module.eval()
        metrics: dict[str, Any] = self.measure()
        metrics |= self.solver_metrics()
        metrics["dof"] = self.network.parameters
        if self.clock.steps:
            images = self.clock.steps * self.config.batch_size * self.loop.world
            metrics["images_per_second"] = images / self.clock.seconds
        if self.model is not None:
            model = self.model
            with torch.no_grad():
                metrics["mean_abs_cosine"] = mean_absolute_cosine(model.weights())
            metrics["generation_ms"] = self.generation_milliseconds()
        self.module.train()
        return metrics

    def generation_milliseconds(self, repeats: int = 5) -> float:
        """One generation and its backward pass: the median of a few, as the step that it is compared with is a mean."""
        assert self.model is not None
        times = []
        for _ in range(repeats):
            timer = Timer(self.device)
            with timer:
                for ring in self.model.rings.values():
                    weight = ring.weight.detach().requires_grad_()  # pyright: ignore
                    made = ring.generate(weight)  # pyright: ignore
                    torch.autograd.grad(made, weight, [torch.ones_like(layer) for layer in made])
            times.append(timer.milliseconds())
        return statistics.median(times)

    def state(self) -> dict[str, Any]:
        self.clock.pause()  # a checkpoint is being written or read
        if self.schedule is None and self.loop.total:
            self._make_schedule()
        return {"model": self.module, "optimizer": self.optimizer, "schedule": _Schedule(self), "data": _Data(self)}


class _Data:
    """What the run learns from: a run that goes on must go on with it; others may look at other copies."""

    def __init__(self, task: NetworkTask) -> None:
        self.task = task

    def state_dict(self) -> dict[str, str]:
        return {"print": fingerprint(self.task.config.data, self.task.root)}

    def load_state_dict(self, state: dict[str, str]) -> None:
        folder, here = self.task.loop.folder, self.state_dict()["print"]
        if folder is not None and folder.resumed and here != state["print"]:
            raise UserError(
                "--resume", f"data {here}", f"the run's, {state['print']}", "The data root holds another copy."
            )


class _Schedule:
    """The schedule's place in a checkpoint: it is made when the run's length is known, after the task has started."""

    def __init__(self, task: NetworkTask) -> None:
        self.task = task

    def state_dict(self) -> dict[str, Any]:
        if self.task.schedule is None:
            return {}
        keep = ("last_epoch", "_step_count", "_last_lr")
        return {key: value for key, value in self.task.schedule.state_dict().items() if key in keep}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.task.schedule is not None and state:
            self.task.schedule.load_state_dict({**self.task.schedule.state_dict(), **state})


class Images(NetworkTask):
    """Images to classes, by cross-entropy."""

    def __init__(self, config: TrainConfig, data: ImageData | None = None) -> None:
        super().__init__(config)
        self.data = data or load(
            config.data, self.root, max_train=config.max_train, max_test=config.max_test, seed=config.seed
        )

    def shape(self) -> Shape:
        return Shape(self.data.x_train.shape[1], self.data.x_train.shape[-1], len(self.data.classes))

    def batches(self) -> Batches:
        tensors = (self.data.x_train.to(self.device), self.data.y_train.to(self.device))
        return Batches(
            tensors,
            self.config.batch_size,
            self.config.seed,
            rank=self.loop.rank,
            world=self.loop.world,
            transform=augmentation(self.config.augment, self.data),
        )

    def loss(self, batch: Any) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        x, y = batch
        logits = self.trained(_channels_last(x))
        accuracy = (logits.argmax(1) == y).float().mean()
        return nn.functional.cross_entropy(logits, y), {"batch_accuracy": accuracy}

    def measure(self, train: bool = False) -> dict[str, float]:
        data = self.data
        images, labels = (data.x_train, data.y_train) if train else (data.x_test, data.y_test)
        return self.score_images(images, labels)

    @torch.no_grad()
    def score_images(
        self, images: Tensor, labels: Tensor, call: Callable[[Tensor], Tensor] | None = None
    ) -> dict[str, float]:
        """Top-1, top-5 and mean loss of uint8 images `[N, C, H, W]`."""
        self.module.eval()
        right = top5 = loss = torch.zeros((), dtype=torch.float64)
        for x, y in zip(images.split(1000), labels.split(1000), strict=True):
            x, y = normalise(x.to(self.device), self.data), y.to(self.device)
            with self.loop.autocast():
                logits = (call or self.module)(_channels_last(x)).float()
            best = logits.topk(min(5, logits.shape[1]), dim=1).indices
            right = right + (best[:, 0] == y).sum().cpu()
            top5 = top5 + (best == y[:, None]).any(1).sum().cpu()
            loss = loss + nn.functional.cross_entropy(logits, y, reduction="sum").cpu()
        count = len(labels)
        return {"accuracy": float(right) / count, "top5": float(top5) / count, "loss": float(loss) / count}


def pays(device: torch.device, size: int) -> bool:
    """Whether channels come last in memory: a quarter less time a step on the CPU, more on tensor cores. Not for large
    images on the CPU, where torch crashes on convolutions of few channels so laid out."""
    return device.type != "cpu" or size <= 64


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if pays(x.device, x.shape[-1]) else x


class Folders(Images):
    """Images from folders, decoded by workers: ImageNet."""

    def __init__(self, config: TrainConfig) -> None:
        from rpg.data.folder import imagefolder

        NetworkTask.__init__(self, config)
        self.folder = imagefolder(
            self.root, augment=config.augment, max_train=config.max_train, max_test=config.max_test, seed=config.seed
        )

    def shape(self) -> Shape:
        return Shape(3, 224, len(self.folder.classes))

    def batches(self) -> Batches:
        return Batches(
            self.folder.train, self.config.batch_size, self.config.seed, rank=self.loop.rank, world=self.loop.world,
            workers=self.config.loader_workers,
        )  # fmt: skip

    @torch.no_grad()
    def measure(self, train: bool = False) -> dict[str, float]:
        source = self.folder.plain if train else self.folder.test
        right = top5 = 0
        loader = torch.utils.data.DataLoader(
            source, self.config.batch_size, num_workers=self.config.loader_workers, generator=torch.Generator()
        )
        self.module.eval()
        for x, y in loader:
            x, y = x.to(self.device), y.to(self.device)
            with self.loop.autocast():
                best = self.module(_channels_last(x)).topk(min(5, len(self.folder.classes)), dim=1).indices
            right += int((best[:, 0] == y).sum())
            top5 += int((best == y[:, None]).any(1).sum())
        return {"accuracy": right / len(source), "top5": top5 / len(source)}


class Pose(NetworkTask):
    """Images to joints: stacked hourglasses under intermediate supervision, PCKh@0.5."""

    score = ("pckh", "max")

    def __init__(self, config: TrainConfig) -> None:
        from rpg.data.pose import load_pose

        super().__init__(config)
        self.data = load_pose(config.data, self.root, max_train=config.max_train, max_test=config.max_test)

    def shape(self) -> Shape:
        return Shape(3, self.data.x_train.shape[-1], self.data.keypoints_train.shape[1])

    def batches(self) -> Batches:
        parts = (self.data.x_train, self.data.keypoints_train, self.data.visible_train)
        tensors = tuple(part.to(self.device) for part in parts)
        return Batches(tensors, self.config.batch_size, self.config.seed, rank=self.loop.rank, world=self.loop.world)

    @property
    def stride(self) -> int:
        host = self.model.host if self.model is not None else self.module
        host = host.host if isinstance(host, RandomSubspace) else host
        return host.stride if isinstance(host, Hourglass) else 1  # pyright: ignore

    def loss(self, batch: Any) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        x, keypoints, visible = batch
        maps = self.trained(_channels_last(x.float() / 255))  # [B, S, J, h, w]
        target = heatmaps(keypoints, maps.shape[-1], 1.0, self.stride)
        return intermediate_loss(maps * visible[:, None, :, None, None], target * visible[:, :, None, None]), {}

    @torch.no_grad()
    def measure(self, train: bool = False) -> dict[str, float]:
        d = self.data
        x, keypoints = (d.x_train, d.keypoints_train) if train else (d.x_test, d.keypoints_test)
        heads = d.head_train if train else d.head_test
        visible = d.visible_train if train else d.visible_test
        keypoints = keypoints.masked_fill(visible.unsqueeze(-1) == 0, math.nan)  # not annotated: not counted
        self.module.eval()
        found = [decode(self.module(p.to(self.device).float() / 255)[:, -1], self.stride).cpu() for p in x.split(200)]
        return {"pckh": float(pckh(torch.cat(found), keypoints, heads).mean())}


class Dense(NetworkTask):
    """Images to depth and surface normals: one encoder, two decoders."""

    score = ("depth_error", "min")

    def __init__(self, config: TrainConfig) -> None:
        from rpg.data.dense import load_dense

        super().__init__(config)
        self.data = load_dense(config.data, self.root, max_train=config.max_train, max_test=config.max_test)

    def shape(self) -> Shape:
        return Shape(3, self.data.x_train.shape[-1], 4)

    def batches(self) -> Batches:
        d = self.data
        tensors = tuple(t.to(self.device) for t in (d.x_train, d.depth_train, d.normals_train, d.valid_train))
        return Batches(tensors, self.config.batch_size, self.config.seed, rank=self.loop.rank, world=self.loop.world)

    def loss(self, batch: Any) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        x, depth, normals, valid = batch
        out = self.trained(_channels_last(x.float() / 255))
        parts = depth_l1(out["depth"], depth, valid), normals_cosine(out["normals"], normals, valid)
        return parts[0] + parts[1], {"depth_loss": parts[0], "normals_loss": parts[1]}

    @torch.no_grad()
    def measure(self, train: bool = False) -> dict[str, float]:
        d = self.data
        parts = (d.x_train, d.depth_train, d.normals_train, d.valid_train) if train else \
            (d.x_test, d.depth_test, d.normals_test, d.valid_test)  # fmt: skip
        self.module.eval()
        depth, angle, count = 0.0, 0.0, 0
        for pieces in zip(*(part.split(64) for part in parts), strict=True):
            x, truth, normals, valid = (piece.to(self.device) for piece in pieces)
            out = self.module(_channels_last(x.float() / 255))
            depth += len(x) * float(depth_l1(out["depth"], truth, valid))
            angle += len(x) * float(normals_degrees(out["normals"], normals, valid))
            count += len(x)
        return {"depth_error": depth / count, "normals_degrees": angle / count}


def make_task(config: TrainConfig, data: ImageData | None = None) -> NetworkTask:
    """The task that host and data call for.

    Args:
        config: the run.
        data: for images to classes: the data set, where it is loaded already.

    Raises:
        UserError: a host that the data do not fit.
    """
    kinds: dict[str, tuple[HostName, ...]] = {"pose": ("hourglass",), "dense": ("multitask",)}
    kind = "pose" if config.data in POSE else "dense" if config.data in DENSE else "images"
    from rpg.hosts.names import HOSTS

    special = tuple(host for hosts in kinds.values() for host in hosts)
    valid = kinds.get(kind) or tuple(host for host in HOSTS if host not in special)
    if config.host not in valid:
        raise UserError("--host", config.host, valid, f"Data {config.data} are for these hosts.")
    if config.data == "imagefolder":
        return Folders(config)
    if kind == "images":
        return Images(config, data)
    return {"pose": Pose, "dense": Dense}[kind](config)
