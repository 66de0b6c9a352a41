"""A classifier whose linear layers are products of linear layers, and the ranks of what it learns.

The architecture and its capacity are those of the plain network (where the products are wide enough); only the way to
its weights is longer. After training the products are multiplied out, and a plain network is left. (Section 5 of the
paper.)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from low_rank.config import TrainConfig
from low_rank.kernels import feature_rank
from low_rank.models import build_model, classifier_name, collect_features, feature_layers, gain
from low_rank.overparam import Expanded, collapse, overparameterize
from low_rank.rank import effective_rank, flattened
from low_rank.regularizers import penalty
from shared.augment import augmentation, normalise
from shared.config import RunFailed, UserError
from shared.data import Batches, data_root
from shared.images import ImageData, balanced, load
from shared.loop import Loop, Task

BATCH = 1000  # images a forward pass of an evaluation
TEST = {"digits": 500}  # of the 1,797 digits; other sets come parted
SEEN = 2000  # training images that an evaluation looks at


class History:
    """What was measured while training, a row a time; part of a checkpoint.

    Attributes:
        rows: metrics with `step`. ranks: of each row, effective rank of the weight of every layer. spectra: of each
            row, the singular values of each, relative to the largest.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.ranks: list[dict[str, float]] = []
        self.spectra: list[dict[str, list[float]]] = []

    def cut(self, step: int) -> None:
        """Forget what was measured at or after a step: it is about to be measured again."""
        kept = [i for i, row in enumerate(self.rows) if row["step"] < step]
        for name in ("rows", "ranks", "spectra"):
            setattr(self, name, [getattr(self, name)[i] for i in kept])

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rows, self.ranks, self.spectra = (list(state[name]) for name in ("rows", "ranks", "spectra"))


class Classification(Task):
    """Trains one classifier."""

    score: ClassVar[tuple[str, Literal["max", "min"]] | None] = ("accuracy", "max")

    def __init__(self, config: TrainConfig) -> None:
        self.config = config

    # -- the loop's questions ------------------------------------------------------------------------------------------

    def start(self, loop: Loop) -> None:
        config = self.config
        self.loop, self.device = loop, loop.device
        self._take(self._load())
        self.model = make_model(config).to(self.device)
        check_products(self.model)
        make = {"sgd": self._sgd, "adam": self._adam}[config.optimizer]
        self.optimizer = make(self.model.parameters())
        self.schedule: torch.optim.lr_scheduler.LambdaLR | None = None
        self.trained, self.prepared = loop.prepare(self.model, self.optimizer)
        self.history = History()

    def _load(self) -> ImageData:
        config = self.config
        return load(
            config.data,
            data_root(config.data_root),
            max_train=config.max_train,
            max_test=config.max_test,
            seed=config.seed,
            test=TEST.get(config.data),
        )

    def _take(self, data: ImageData) -> None:
        """Images on the device: a validation part held out of those to train on, labels made noisy."""
        config = self.config
        x, y = data.x_train, data.y_train
        classes = len(data.classes)
        if config.validation >= len(x):
            raise UserError("--validation", config.validation, f"less than the {len(x):,} training samples")
        held = balanced(y.numpy(), config.validation, config.seed, "--validation") if config.validation else []
        mask = torch.zeros(len(x), dtype=torch.bool)
        mask[torch.as_tensor(np.asarray(held, dtype=np.int64))] = True
        x_new, y_new = (x[mask], y[mask]) if config.validation else (data.x_test, data.y_test)
        x, y = x[~mask], y[~mask].clone()
        stream = np.random.default_rng((config.seed, 1))
        noisy = stream.permutation(len(y))[: round(config.label_noise * len(y))]
        y[torch.from_numpy(noisy)] = torch.from_numpy(stream.integers(0, classes, len(noisy)))
        self.data = data
        self.x_train, self.y_train = self._scaled(x).to(self.device), y.to(self.device)
        self.x_new, self.y_new = self._scaled(x_new).to(self.device), y_new.to(self.device)
        self.x_test, self.y_test = self._scaled(data.x_test).to(self.device), data.y_test.to(self.device)

    def _scaled(self, x: Tensor) -> Tensor:
        """Images of `--side` pixels: means over areas."""
        side = self.config.side
        if side is None or side == x.shape[-1]:
            return x
        return F.interpolate(x.float(), size=(side, side), mode="area").round().to(torch.uint8)

    def _sgd(self, parameters: Any) -> torch.optim.Optimizer:
        c = self.config
        return torch.optim.SGD(parameters, lr=c.lr, momentum=c.momentum, weight_decay=c.weight_decay, foreach=True)

    def _adam(self, parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=self.config.lr, weight_decay=self.config.weight_decay, foreach=True)

    def batches(self) -> Batches:
        config = self.config
        return Batches(
            (self.x_train, self.y_train), min(config.batch_size, len(self.x_train)), config.seed, rank=self.loop.rank,
            world=self.loop.world, transform=augmentation(config.augment, self.data),
        )  # fmt: skip

    def state(self) -> Mapping[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "history": self.history}

    # -- one step ------------------------------------------------------------------------------------------------------

    def step(self, batch: Any) -> dict[str, Any]:
        if self.loop.step == 0 and not self.history.rows:
            self._note(self.evaluate_now())
        self.trained.train()
        factor = self.rate(self.loop.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * factor
        metrics = self.loop.update(batch, self._loss, self.prepared, model=self.trained, clip=self.config.clip)
        metrics["lr"] = self.config.lr * factor
        return metrics

    def rate(self, step: int) -> float:
        """Factor of the learning rate at a step."""
        config = self.config
        rise = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
        progress = step / max(1, self.loop.total)
        if config.schedule == "cosine":
            return rise * (1 + math.cos(math.pi * progress)) / 2
        if config.schedule == "steps":
            return rise * 0.1 ** ((progress >= 0.5) + (progress >= 0.75))
        return rise

    def _loss(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        x, y = batch
        logits = self.trained(x)
        loss = F.cross_entropy(logits, y)
        metrics = {"train_accuracy": (logits.detach().argmax(1) == y).float().mean()}
        if self.config.strength:
            size = penalty(self.weights().values(), self.config.regulariser, depth=max(2, self.config.depth))
            metrics |= {"cross_entropy": loss.detach(), "penalty": size.detach()}
            loss = loss + self.config.strength * size.to(loss.dtype)
        return loss, metrics

    def weights(self) -> dict[str, Tensor]:
        """The weight of every linear and convolutional layer, products multiplied out, as matrices [out, in]."""
        return layer_weights(self.model)

    # -- measuring -----------------------------------------------------------------------------------------------------

    def evaluate(self) -> dict[str, float]:
        return self._note(self.evaluate_now())

    def _note(self, metrics: dict[str, float]) -> dict[str, float]:
        step = self.loop.step
        self.history.cut(step)
        with torch.no_grad():
            self.model.eval()
            matrices = self.weights()
            spectra = {name: torch.linalg.svdvals(weight.double()).cpu() for name, weight in matrices.items()}
        ranks = {name: float(effective_rank(weight.detach())) for name, weight in matrices.items()}
        self.history.rows.append({"step": float(step), **metrics})
        self.history.ranks.append(ranks)
        self.history.spectra.append({name: (s / s[0].clamp(min=1e-300)).tolist() for name, s in spectra.items()})
        hidden = [value for name, value in ranks.items() if name != classifier_name(self.model)]
        return {**metrics, "weight_rank": sum(hidden) / max(1, len(hidden))}

    def evaluate_now(self) -> dict[str, float]:
        """Accuracy and loss on new images (held-out ones of `--validation`, else the test set) and on training images,
        and the effective rank of the Gram matrix of the last hidden layer on test images; at the end the test set too.
        """
        metrics = self.measure(self.x_new, self.y_new)
        some = spaced(len(self.x_train), SEEN)
        seen = self.measure(self.x_train[some], self.y_train[some])
        metrics |= {"train": seen["accuracy"], "train_loss": seen["loss"]}
        for name in ("loss", "train_loss"):  # an update can ruin weights whose own loss was still a number
            if not math.isfinite(metrics[name]):
                raise RunFailed(f"after step {self.loop.step} the {name} is {metrics[name]}: lower --lr, or --clip.")
        metrics["gap"] = metrics["train"] - metrics["accuracy"]
        metrics["gram_rank"] = self.gram_rank()
        if self.config.validation and self.loop.total and self.loop.step >= self.loop.total:
            test = self.measure(self.x_test, self.y_test)
            metrics |= {"test": test["accuracy"], "test_loss": test["loss"]}
        return metrics

    @torch.no_grad()
    def measure(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """Accuracy and mean cross entropy on images uint8 [N, C, H, W]."""
        self.model.eval()
        right, loss = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        for images, labels in zip(x.split(BATCH), y.split(BATCH), strict=True):
            logits = self.model(normalise(images, self.data)).float()
            right += (logits.argmax(1) == labels).sum()
            loss += F.cross_entropy(logits, labels, reduction="sum")
        return {"accuracy": float(right) / len(x), "loss": float(loss) / len(x)}

    def probes(self) -> tuple[Tensor, Tensor]:
        """`--probes` test images and their labels, evenly spaced over the set, which may be in the order of classes."""
        some = spaced(len(self.x_test), self.config.probes)
        return self.x_test[some], self.y_test[some]

    def features(self) -> dict[str, Tensor]:
        """Outputs of all hidden layers for the probes, [N, D] each."""
        return collect_features(self.model, normalise(self.probes()[0], self.data))

    def gram_rank(self) -> float:
        """Effective rank of the Gram matrix of the last hidden layer."""
        x = normalise(self.probes()[0], self.data)
        last = list(feature_layers(self.model))[-1]
        return feature_rank(collect_features(self.model, x, [last])[last])

    @torch.no_grad()
    def collapsed_error(self) -> float:
        """Largest difference between the logits of the network, its factors applied one by one, and of what `collapse`
        makes of it, relative to the largest logit, in double precision."""
        x = normalise(self.probes()[0], self.data).double()
        double = copy.deepcopy(self.model).double().eval()
        there = collapse(double)(x)
        for module in double.modules():
            if isinstance(module, Expanded):
                module.forward = getattr(module, "expanded", module.forward)
        here = double(x)
        return float((here - there).abs().max() / here.abs().max())


def spaced(size: int, count: int) -> Tensor:
    """At most `count` indices, evenly spaced from 0 to size - 1."""
    return torch.linspace(0, size - 1, min(count, size)).round().long()


def make_model(config: TrainConfig) -> nn.Module:
    """The network that a config asks for, drawn from torch's own stream of random numbers."""
    model = build_model(
        config.model, config.shape, width=config.width, hidden=config.hidden, activation=config.activation,
        residual=str(config.skip) if config.skip else "none", channels=config.channels,
    )  # fmt: skip
    if config.expand == "none":
        return model
    made, _ = overparameterize(
        model, config.depth, config.expand_width, kernels=config.kernels or None,
        kinds={"linear": ("linear",), "conv": ("conv",), "all": ("linear", "conv")}[config.expand],
        batch_norm=config.factor_norm, residual=config.factor_skips, on_mismatch="skip", init=config.start,
        mode=config.mode, gain=gain(config.activation),
        authors_init=config.authors_init,
    )  # fmt: skip
    return made


def check_products(model: nn.Module) -> None:
    """Refuse products that vanish in the precision of their factors: nothing could be learned.

    Raises:
        UserError: names the layer.
    """
    with torch.no_grad():
        for name, weight in layer_weights(model).items():
            if not bool(weight.any()):
                hint = "A product of so many factors is too small for single precision."
                raise UserError("--depth", f"layer {name} is zero", "fewer or wider factors", hint)


def layer_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weight of every linear layer and convolution by path, as a matrix [out, in k k], products multiplied out."""
    found: dict[str, Tensor] = {}
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name.startswith(inside):
            continue
        if isinstance(module, Expanded):
            found[name] = flattened(module.composed()[0])
            inside = (*inside, f"{name}." if name else "")
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            found[name] = flattened(module.weight)
    return found
