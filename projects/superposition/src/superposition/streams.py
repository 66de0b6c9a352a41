"""Streams of tasks: what is learned at step t, a function of the seed and t alone (section 2.7).

    stream = make_stream(config, device)
    x, y = stream.batch(t)          # B normalised images and labels
    stream.task(t)                  # which task that is
    stream.test(j)                  # the test set of task j
    schedule(t)                     # under which context it is learned: a separate matter

A resumed run needs no position: batch t is batch t, however one got there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from shared.config import UserError, check_range
from shared.images import ImageData
from superposition.contexts import Index, derived_seed

MNIST_MEAN, MNIST_STD = 0.1307, 0.3081  # of full brightness


@dataclass(frozen=True)
class Samples:
    """One task's images and labels.

    Attributes:
        x, y: for training, float [N, C, H, W] and int64 [N]. x_test, y_test: for testing.
    """

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


def normalised(data: ImageData, how: str, device: torch.device) -> Samples:
    """A data set as floats on a device.

    Args:
        data: uint8 images.
        how: `mnist` (mean .1307, deviation .3081), `own` (those of each channel), `symmetric` (to [-1, 1]) or `raw`
            (to [0, 1]).
    """

    def convert(images: Tensor) -> Tensor:
        x = images.to(device).float() / 255
        if how == "raw":
            return x
        if how == "symmetric":
            return 2 * x - 1
        if how == "mnist":
            return (x - MNIST_MEAN) / MNIST_STD
        mean, std = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (data.mean, data.std))
        return (x - mean) / std

    return Samples(convert(data.x_train), data.y_train.to(device), convert(data.x_test), data.y_test.to(device))


class Stream:
    """Tasks one after another, `period` steps each.

    Args:
        samples: what batches are drawn from. period: steps a task. tasks: how many. batch_size: B. seed: of the order.

    Raises:
        UserError: no steps, no tasks, a batch larger than the data.
    """

    def __init__(self, samples: Samples, period: int, tasks: int, batch_size: int, seed: int) -> None:
        check_range("--period", period, 1)
        check_range("--tasks", tasks, 1)
        if batch_size > len(samples.x):
            raise UserError("--batch-size", batch_size, f"at most the {len(samples.x)} training samples")
        self.samples, self.period, self.tasks, self.batch_size, self.seed = samples, period, tasks, batch_size, seed
        self._orders: dict[int, tuple[int, Tensor]] = {}  # of each stream the latest epoch and its order

    @property
    def steps(self) -> int:
        """Steps of all tasks."""
        return self.period * self.tasks

    def task(self, t: int) -> int:
        """The task of step t."""
        return min(t // self.period, self.tasks - 1)

    def chosen(self, t: int, size: int | None = None, stream: int = 0) -> Tensor:
        """Indices of step t's samples: epochs of shuffled data, the last, smaller batch of each left out."""
        size = len(self.samples.x) if size is None else size
        batches = size // self.batch_size
        epoch, place = divmod(t, batches)
        if self._orders.get(stream, (-1,))[0] != epoch:
            generator = torch.Generator().manual_seed(derived_seed(self.seed, "order", stream, epoch))
            order = torch.randperm(size, generator=generator).to(self.samples.x.device)
            self._orders[stream] = (epoch, order)
        return self._orders[stream][1][place * self.batch_size : (place + 1) * self.batch_size]

    def batch(self, t: int) -> tuple[Tensor, Tensor]:
        """(x [B, C, H, W], y [B]) of step t."""
        return self.of_task(self.task(t), self.chosen(t))

    def of_task(self, j: int, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Samples by index, as task j shows them."""
        raise NotImplementedError

    def once(self, j: int, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """The same, where the next batch is of another task: nothing is prepared for more of task j."""
        return self.of_task(j, chosen)

    def test(self, j: int) -> tuple[Tensor, Tensor]:
        """Test set of task j."""
        raise NotImplementedError

    def sample(self, j: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """`count` training samples of task j (all, where there are fewer)."""
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "sample", j, seed))
        size = self.size(j)
        chosen = torch.randperm(size, generator=generator)[:count]
        return self.of_task(j, chosen.to(self.samples.x.device))

    def size(self, j: int) -> int:
        """Training samples of task j."""
        return len(self.samples.x)


def pixel_permutation(j: int, pixels: int) -> np.ndarray:
    """Order of the pixels in task j: the identity for j = 0, else that of RandomState(4321 + 1000 j)."""
    if j == 0:
        return np.arange(pixels)
    return np.random.RandomState(4321 + 1000 * j).permutation(pixels)


class Permuting(Stream):
    """A new order of the pixels for every task; the whole set is permuted once a task."""

    def __init__(self, samples: Samples, period: int, tasks: int, batch_size: int, seed: int, first: int = 0) -> None:
        super().__init__(samples, period, tasks, batch_size, seed)
        self.first = first
        self._kept: tuple[int, Tensor] | None = None

    def _permuted(self, x: Tensor, j: int) -> Tensor:
        order = torch.from_numpy(pixel_permutation(self.first + j, x[0].numel())).to(x.device)
        return x.flatten(1)[:, order].view_as(x)

    def of_task(self, j: int, chosen: Tensor) -> tuple[Tensor, Tensor]:
        if self._kept is None or self._kept[0] != j:
            self._kept = (j, self._permuted(self.samples.x, j))
        return self._kept[1].index_select(0, chosen), self.samples.y.index_select(0, chosen)

    def once(self, j: int, chosen: Tensor) -> tuple[Tensor, Tensor]:
        return self._permuted(self.samples.x.index_select(0, chosen), j), self.samples.y.index_select(0, chosen)

    def test(self, j: int) -> tuple[Tensor, Tensor]:
        return self._permuted(self.samples.x_test, j), self.samples.y_test


class PermutingLabels(Stream):
    """The same images, the labels renamed for every task: interference in the outputs alone."""

    def __init__(self, samples: Samples, period: int, tasks: int, batch_size: int, seed: int, classes: int) -> None:
        super().__init__(samples, period, tasks, batch_size, seed)
        self.classes = classes

    def renamed(self, y: Tensor, j: int) -> Tensor:
        """Labels as task j has them."""
        if j == 0:
            return y
        generator = torch.Generator().manual_seed(derived_seed("labels", j))
        return torch.randperm(self.classes, generator=generator).to(y.device)[y]

    def of_task(self, j: int, chosen: Tensor) -> tuple[Tensor, Tensor]:
        return self.samples.x.index_select(0, chosen), self.renamed(self.samples.y.index_select(0, chosen), j)

    def test(self, j: int) -> tuple[Tensor, Tensor]:
        return self.samples.x_test, self.renamed(self.samples.y_test, j)


def rotate(x: Tensor, degrees: float, background: float) -> Tensor:
    """Turn images about their centres, bilinear; what comes in from outside is the background. Exact at multiples of
    90 degrees; the sense is that of `scipy.ndimage.rotate(axes=(1, 0))`: counter-clockwise as an image is shown.

    Args:
        x: [B, C, H, H]. degrees: the angle. background: value outside.
    """
    quarter = round(degrees / 90)
    if degrees == 90 * quarter:
        return torch.rot90(x, quarter % 4, (2, 3))
    angle = np.deg2rad(degrees)
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    matrix = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0]], dtype=x.dtype, device=x.device)
    grid = F.affine_grid(matrix.expand(len(x), 2, 3), list(x.shape), align_corners=True)
    return F.grid_sample(x - background, grid, padding_mode="zeros", align_corners=True) + background


class Rotating(Stream):
    """Images turn a full circle every `turn` steps; a task is one of `bins` parts of the circle.

    Args:
        turn: steps a circle. turns: circles. bins: contexts a circle, hence tasks that are told apart.
        background: value of an empty pixel after normalisation.

    Raises:
        UserError: bins that do not divide a turn.
    """

    def __init__(
        self, samples: Samples, turn: int, turns: int, batch_size: int, seed: int, bins: int, background: float
    ) -> None:
        check_range("--period", turn, 1)
        if bins < 1 or turn % bins:
            raise UserError("--contexts", bins, f"a divisor of --period, {turn}")
        super().__init__(samples, turn // bins, bins, batch_size, seed)
        self.turn, self.turns, self.background = turn, turns, background

    @property
    def steps(self) -> int:
        return self.turn * self.turns

    def task(self, t: int) -> int:
        return (t % self.turn) // self.period

    def angle(self, t: int) -> float:
        """Degrees at step t."""
        return 360 * (t % self.turn) / self.turn

    def batch(self, t: int) -> tuple[Tensor, Tensor]:
        chosen = self.chosen(t)
        x = rotate(self.samples.x.index_select(0, chosen), self.angle(t), self.background)
        return x, self.samples.y.index_select(0, chosen)

    def centre(self, j: int) -> float:
        """Degrees in the middle of part j."""
        return 360 * (j + 0.5) / self.tasks

    def of_task(self, j: int, chosen: Tensor) -> tuple[Tensor, Tensor]:
        x = rotate(self.samples.x.index_select(0, chosen), self.centre(j), self.background)
        return x, self.samples.y.index_select(0, chosen)

    def test(self, j: int) -> tuple[Tensor, Tensor]:
        return rotate(self.samples.x_test, self.centre(j), self.background), self.samples.y_test

    def upright(self) -> tuple[Tensor, Tensor]:
        """Test set at 0 degrees."""
        return self.samples.x_test, self.samples.y_test


class Incremental(Stream):
    """Data sets, or groups of classes, one after another; labels count from 0 in each.

    Args:
        parts: one for each task.
    """

    def __init__(self, parts: Sequence[Samples], period: int, batch_size: int, seed: int) -> None:
        smallest = min(parts, key=lambda part: len(part.x))
        super().__init__(smallest, period, len(parts), batch_size, seed)
        self.samples, self.parts = parts[0], parts

    def batch(self, t: int) -> tuple[Tensor, Tensor]:
        j = self.task(t)
        return self.of_task(j, self.chosen(t - j * self.period, self.size(j), j))

    def of_task(self, j: int, chosen: Tensor) -> tuple[Tensor, Tensor]:
        return self.parts[j].x.index_select(0, chosen), self.parts[j].y.index_select(0, chosen)

    def test(self, j: int) -> tuple[Tensor, Tensor]:
        return self.parts[j].x_test, self.parts[j].y_test

    def size(self, j: int) -> int:
        return len(self.parts[j].x)


def split_classes(samples: Samples, classes: int, per_task: int) -> list[Samples]:
    """Groups of `per_task` classes in their order, relabelled from 0.

    Raises:
        UserError: a number that does not divide the classes.
    """
    if per_task < 1 or classes % per_task:
        divisors = [n for n in range(1, classes + 1) if classes % n == 0]
        raise UserError("--classes-per-task", per_task, divisors, f"There are {classes} classes.")
    parts = []
    for first in range(0, classes, per_task):
        train = (samples.y >= first) & (samples.y < first + per_task)
        test = (samples.y_test >= first) & (samples.y_test < first + per_task)
        parts.append(
            Samples(samples.x[train], samples.y[train] - first, samples.x_test[test], samples.y_test[test] - first)
        )
    return parts


Schedule = Callable[[int], Index]


def make_schedule(
    name: str, stream: Stream, *, every: int = 1, length: int = 1, rate: float = 1.0, seed: int = 0
) -> Schedule:
    """Step -> context.

    Args:
        name: `task` (the oracle's number of the task), `period` (the next of `length` contexts every `every` steps,
            from the first again after the last), `continuous` (the real number rate * t; kind `power`), `random` (one
            of `length`, drawn anew every step), `constant` (0).
        stream: whose tasks they are.
    """
    if name == "task":
        return stream.task
    if name == "period":
        return lambda t: (t // every) % length
    if name == "continuous":
        return lambda t: rate * t
    if name == "random":
        return lambda t: int(np.random.default_rng(derived_seed(seed, "schedule", t)).integers(length))
    return lambda t: 0
