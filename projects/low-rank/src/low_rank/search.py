"""Training without gradients: networks that are found and not descended to.

    data = two_class(images, labels, classes=(0, 1))
    found = random_search(data, depth=4, generator=generator)       # guess until 150 networks make no error
    found.share, found.low, found.high                              # how rare they are, with its interval
    found.ranks.mean()                                              # what they compute on other images

Random search draws networks from the distribution that training would start from, and keeps those without a single
training error: a sample of the posterior in which no optimiser has a part. If kept networks are of low rank at great
depth, the depth is the cause (section 4 of the paper; the protocol's numbers are ours). CMA-ES has steps, but no
gradients.

Dimension letters: K networks, N images, D pixels, w width, d depth.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F
from tqdm import tqdm

from low_rank.random_networks import Architecture, Weights, draw, feature_ranks, forward
from shared.config import UserError, check_choice, check_range

NORM = 7.0  # length of an image
FEW = 30  # kept networks below which a point is hollow, and no verdict rests on it
MOST = 2000  # parameters that CMA-ES is let loose on: its covariance matrix has their square
LOSSES = ("logistic", "squared")
Loss = Literal["logistic", "squared"]


# -- data -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TwoClass:
    """A small problem of two classes.

    Attributes:
        x_train, x_probe, x_test: [N, D] images, rows of length `NORM`, single precision.
        y_train, y_probe, y_test: [N] their classes, -1 and 1 in the precision of the images.
    """

    x_train: Tensor
    y_train: Tensor
    x_probe: Tensor
    y_probe: Tensor
    x_test: Tensor
    y_test: Tensor

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> TwoClass:
        """The same elsewhere, or in another precision."""
        return TwoClass(*(value.to(device=device, dtype=dtype) for value in vars(self).values()))


def two_class(
    x: Tensor,
    y: Tensor,
    classes: tuple[int, int] = (0, 1),
    train: int = 8,
    probe: int = 64,
    test: int = 200,
    pool: int = 7,
    seed: int = 0,
) -> TwoClass:
    """Different images of two classes for training, for the Gram matrix and for testing, the same number of each class.

    Every pixel is standardised over all images of the two classes (without their labels); then every image is scaled to
    a length of 7.

    Args:
        x: uint8 [N, C, H, W]. y: [N] labels.
        classes: which become -1 and 1. train, probe, test: numbers of images, even.
        pool: images of at least twice this side are averaged down to it; smaller ones stay as they are.
        seed: of the choice.

    Raises:
        UserError: shapes that do not fit; odd numbers; one class twice, or too few images of it; a blank image.
    """
    if x.dim() != 4 or y.shape != x.shape[:1]:
        raise UserError("images and labels: shapes", [list(x.shape), list(y.shape)], "[N, C, H, W] and [N]")
    if len(set(classes)) != 2:
        raise UserError("classes", list(classes), "two different labels")
    check_range("pool", pool, 1)
    sizes = {"train": train, "probe": probe, "test": test}
    for name, size in sizes.items():
        check_range(name, size, 2)
        if size % 2:
            raise UserError(name, size, "an even number, half of it of each class")
    generator = Generator().manual_seed(seed)
    y = y.cpu()
    of_class = [torch.nonzero(y == label).flatten() for label in classes]
    needed = sum(sizes.values()) // 2
    for label, members in zip(classes, of_class, strict=True):
        if len(members) < needed:
            raise UserError(f"images of class {label}", len(members), f"{needed} or more, all of them different")
    images = x.cpu().double() / 255
    if min(images.shape[2:]) >= 2 * pool:
        images = F.adaptive_avg_pool2d(images, pool)
    images = images.flatten(1)
    both = images[torch.cat(of_class)]
    deviation, mean = torch.std_mean(both, dim=0, correction=0)
    images = (images - mean) / torch.where(deviation > 0, deviation, 1.0)
    length = torch.linalg.vector_norm(images, dim=1, keepdim=True)
    shuffled = [members[torch.randperm(len(members), generator=generator)][:needed] for members in of_class]
    if bool((length[torch.cat(shuffled)] == 0).any()):
        raise UserError("images", "one that is zero after standardising", "images that are not blank")
    images = (NORM * images / length).float()
    parts, start = [], 0
    for size in sizes.values():
        chosen = torch.cat([members[start : start + size // 2] for members in shuffled])
        labels = torch.tensor([-1.0, 1.0]).repeat_interleave(size // 2)
        order = torch.randperm(size, generator=generator)
        parts += [images[chosen[order]], labels[order]]
        start += size // 2
    return TwoClass(*parts)


# -- classifiers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Classifiers:
    """K networks with a linear read-out each; the sign of the output is the class.

    Attributes:
        net: their architecture. weights: of the hidden layers. readout: [K, w].
    """

    net: Architecture
    weights: Weights
    readout: Tensor

    def __len__(self) -> int:
        return len(self.readout)

    def __getitem__(self, chosen: Tensor | slice) -> Classifiers:
        """Some of them: a mask [K], indices or a slice."""
        return Classifiers(self.net, self.weights[chosen], self.readout[chosen])

    @staticmethod
    def cat(parts: Sequence[Classifiers]) -> Classifiers:
        """Classifiers of one architecture, one after the other."""
        weights = Weights.cat([part.weights for part in parts])
        return Classifiers(parts[0].net, weights, torch.cat([part.readout for part in parts]))

    def features(self, x: Tensor) -> Tensor:
        """The last hidden layer: [N, D] to [K, N, w]."""
        return forward(self.net, self.weights, x)

    def outputs(self, x: Tensor) -> Tensor:
        """[N, D] to [K, N]."""
        return (self.features(x) @ self.readout.unsqueeze(-1)).squeeze(-1)

    def accuracy(self, x: Tensor, y: Tensor) -> Tensor:
        """Share of images [N, D] on the right side, classes [N] of -1 and 1: [K]. An output of 0 is on neither."""
        return (self.outputs(x).sign() == y).double().mean(dim=1)

    def ranks(self, x: Tensor) -> Tensor:
        """Effective ranks, in nats, of the Gram matrices of the last hidden layer on [N, D]: [K]."""
        return feature_ranks(self.features(x))


def draw_classifiers(
    net: Architecture,
    draws: int,
    generator: Generator,
    init: str = "kaiming",
    *,
    dtype: torch.dtype = torch.float32,
) -> Classifiers:
    """Random networks (`random_networks.draw`), then their read-outs with entries N(0, 1/w).

    Raises:
        UserError: as `random_networks.draw`.
    """
    weights = draw(net, draws, init, generator, dtype=dtype)
    readout = torch.randn(draws, net.width, generator=generator, dtype=dtype, device=generator.device)
    return Classifiers(net, weights, readout / math.sqrt(net.width))


# -- random search ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Searched:
    """Networks that random search kept.

    Attributes:
        kept: networks without training error. draws: networks drawn.
        low, high: Wilson's interval of the share.
        ranks: [kept] effective ranks, in nats, of their Gram matrices on the probe images.
        accuracy: [kept] on the test images. classifiers: themselves; None where nothing was kept.
    """

    kept: int
    draws: int
    low: float
    high: float
    ranks: Tensor
    accuracy: Tensor
    classifiers: Classifiers | None

    @property
    def share(self) -> float:
        """Of draws that were kept."""
        return self.kept / self.draws

    @property
    def hollow(self) -> bool:
        """Too few for a verdict."""
        return self.kept < FEW


def wilson(kept: int, draws: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (1927) of a probability, after `kept` successes in `draws` trials.

    Raises:
        UserError: no draws; kept outside [0, draws]; confidence outside (0, 1).
    """
    check_range("draws", draws, 1)
    check_range("kept", kept, 0, draws)
    check_range("confidence", confidence, 0, 1, open_low=True, open_high=True)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = kept / draws
    middle = share + z * z / (2 * draws)
    half = z * math.sqrt(share * (1 - share) / draws + (z / (2 * draws)) ** 2)
    scale = 1 + z * z / draws
    # The ends are exact where nothing, or everything, was kept; the formula rounds.
    return (
        0.0 if kept == 0 else max(0.0, (middle - half) / scale),
        1.0 if kept == draws else min(1.0, (middle + half) / scale),
    )


def random_search(
    data: TwoClass,
    depth: int,
    generator: Generator | None = None,
    *,
    width: int = 32,
    target: int = 150,
    max_draws: int = 500_000,
    batch: int = 500,
    init: str = "kaiming",
    activation: str = "relu",
    residual: str = "none",
    confidence: float = 0.95,
    quiet: bool = True,
) -> Searched:
    """Guess and check: draw networks until `target` of them have the right sign on every training image.

    A batch is judged whole, so that a few more than `target` may be kept, or a few more than `max_draws` drawn.

    Args:
        generator: on the device of the data; default: a new one with seed 0.
        width, depth, activation, residual: of the networks, as in `random_networks.Architecture`.
        init: as in `random_networks.draw_weights`. batch: networks at once; it belongs to the stream of draws.
        confidence: of the interval.

    Raises:
        UserError: unknown names; numbers below 1; a generator on another device.
    """
    net = Architecture(data.x_train.shape[1], width, depth, activation, residual)
    for name, value in (("target", target), ("max_draws", max_draws), ("batch", batch)):
        check_range(name, value, 1)
    generator = _generator(generator, data)
    kept: list[Classifiers] = []
    found = draws = 0
    with tqdm(total=target, unit="net", disable=True if quiet else None, desc=f"depth {depth}") as bar:
        while found < target and draws < max_draws:
            nets = draw_classifiers(net, batch, generator, init, dtype=data.x_train.dtype)
            right = (nets.outputs(data.x_train).sign() == data.y_train).all(dim=1)
            draws += batch
            if bool(right.any()):
                kept.append(nets[right])
                found += len(kept[-1])
                bar.update(len(kept[-1]))
    low, high = wilson(found, draws, confidence)
    if not kept:
        none = torch.zeros(0, dtype=torch.float64, device=data.x_train.device)
        return Searched(0, draws, low, high, none, none.clone(), None)
    nets = Classifiers.cat(kept)
    return Searched(
        found, draws, low, high, nets.ranks(data.x_probe), nets.accuracy(data.x_test, data.y_test), nets
    )  # fmt: skip


def _generator(generator: Generator | None, data: TwoClass) -> Generator:
    if generator is None:
        return Generator(data.x_train.device).manual_seed(0)
    if generator.device.type != data.x_train.device.type:
        raise UserError("generator: device", generator.device, f"{data.x_train.device}, that of the images")
    return generator


# -- CMA-ES -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evolved:
    """What CMA-ES arrived at.

    Attributes:
        classifiers: one network. loss: its training loss. errors: training images on the wrong side.
        reached: no errors, and a loss at the target where there is one.
        evaluations: networks looked at. history: a row a generation: evaluations so far, and loss and errors of that
            generation's best network.
        rank: effective rank, in nats, of its Gram matrix on the probe images. accuracy: on the test images.
    """

    classifiers: Classifiers
    loss: float
    errors: int
    reached: bool
    evaluations: int
    history: list[tuple[int, float, int]]
    rank: float
    accuracy: float


def training_loss(outputs: Tensor, y: Tensor, loss: Loss) -> Tensor:
    """Mean over images of ln(1 + exp(-y f)) or (f - y)^2: outputs [K, N] and classes [N] of -1 and 1 to [K].

    Raises:
        UserError: unknown loss.
    """
    check_choice("loss", loss, LOSSES)
    each = F.softplus(-y * outputs) if loss == "logistic" else (outputs - y).square()
    return each.mean(dim=1)


def cma_search(
    data: TwoClass,
    depth: int,
    generator: Generator | None = None,
    *,
    width: int = 16,
    loss: Loss = "logistic",
    target: float | None = None,
    max_evaluations: int = 100_000,
    step: float = 0.3,
    population: int | None = None,
    diagonal: bool = False,
    activation: str = "relu",
    residual: str = "none",
    start: Classifiers | None = None,
) -> Evolved:
    """CMA-ES (Hansen and Ostermeier, 2001; the package `cma`) on all weights of one network, from a random start.

    Weights are searched in units of their standard deviation at the start, so that one step size fits all layers.

    Args:
        generator: of the start and of all that follows; default: a new one with seed 0.
        width, depth, activation, residual: of the network.
        loss: what is minimised. target: go on until the loss is that small too. Default: stop at zero training error.
        max_evaluations: networks to look at, at most (a generation is finished).
        step: the first step size. population: networks a generation; default: that of the package.
        diagonal: adapt the variances alone, which takes less time for many parameters.
        start: begin at this one network; width, depth, activation and residual are then its own.

    Raises:
        UserError: the package is missing; more than 2,000 parameters; unknown names; numbers out of range.
    """
    net = Architecture(data.x_train.shape[1], width, depth, activation, residual) if start is None else start.net
    check_choice("loss", loss, LOSSES)
    check_range("target", target, 0)
    check_range("max_evaluations", max_evaluations, 1)
    check_range("step", step, 0, open_low=True)
    check_range("population", population, 2)
    count = net.parameters + net.width
    if count > MOST:
        valid = f"at most {MOST:,} (width={net.width}, depth={net.depth}, {net.inputs} pixels)"
        raise UserError("parameters of CMA-ES", f"{count:,}", valid, "Take a smaller --width or depth.")
    import cma

    generator = _generator(generator, data)
    start = draw_classifiers(net, 1, generator, dtype=data.x_train.dtype) if start is None else start
    scale = _scale(start)
    # A stream of the package's own: its default is NumPy's global one.
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    stream = np.random.default_rng(seed)
    options = {
        "randn": lambda *shape: stream.standard_normal(shape),
        "seed": math.nan,
        "CMA_diagonal": diagonal,
        "verbose": -10,
        "verb_log": 0,
        "verb_disp": 0,
    }
    if population is not None:
        options["popsize"] = population
    search = cma.CMAEvolutionStrategy((_flat(start)[0] / scale).double().cpu().numpy(), step, options)
    history: list[tuple[int, float, int]] = []
    best, best_loss, best_errors = start, math.inf, len(data.y_train)
    evaluations, reached = 0, False
    while not reached and evaluations < max_evaluations and not search.stop():
        points = search.ask()
        nets = _shaped(torch.as_tensor(np.stack(points)).to(scale) * scale, start)
        outputs = nets.outputs(data.x_train)
        losses = training_loss(outputs, data.y_train, loss)
        errors = (outputs.sign() != data.y_train).sum(dim=1)
        with _numpy_kept():
            search.tell(points, losses.double().tolist())
        evaluations += len(points)
        done = errors == 0 if target is None else (errors == 0) & (losses <= target)
        reached = bool(done.any())
        # Once the goal is reached, the best of those that reached it; before, the best there has been.
        place = int(torch.where(done, losses, math.inf).argmin() if reached else losses.argmin())
        history.append((evaluations, float(losses[place]), int(errors[place])))
        if reached or float(losses[place]) < best_loss:
            best = nets[place : place + 1]
            best_loss, best_errors = float(losses[place]), int(errors[place])
    return Evolved(
        best, best_loss, best_errors, reached, evaluations, history,
        float(best.ranks(data.x_probe)), float(best.accuracy(data.x_test, data.y_test)),
    )  # fmt: skip


@contextmanager
def _numpy_kept() -> Iterator[None]:
    """NumPy's global generator as it was: the package draws from it the places at which it checks its consistency."""
    state = np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def _parts(nets: Classifiers) -> list[Tensor]:
    weights = nets.weights
    branch = [] if weights.branch is None else [weights.branch]
    return [weights.first, weights.hidden, *branch, nets.readout]


def _flat(nets: Classifiers) -> Tensor:
    """All numbers of K networks: [K, parameters]."""
    return torch.cat([part.flatten(1) for part in _parts(nets)], dim=1)


def _scale(nets: Classifiers) -> Tensor:
    """Root mean square of the matrix, or read-out, that every number belongs to: [parameters]."""
    return torch.cat([part[0].square().mean().sqrt().expand(part[0].numel()) for part in _parts(nets)])


def _shaped(numbers: Tensor, like: Classifiers) -> Classifiers:
    """Networks from their numbers, the inverse of `_flat`: [K, parameters]."""
    shapes = [part.shape[1:] for part in _parts(like)]
    split = numbers.split([math.prod(shape) for shape in shapes], dim=1)
    *matrices, readout = (part.view(len(numbers), *shape) for part, shape in zip(split, shapes, strict=True))
    return Classifiers(like.net, Weights(*matrices), readout)
