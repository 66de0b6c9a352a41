"""Is it the optimiser that prefers low rank, or the depth? One problem, one training error, many optimisers.

Every draw is trained until its training error first falls to a target, and is looked at there: optimisers are compared
at what they have achieved, not at a number of steps. The problems are the regressions of `low_rank.regression`, judged
by the product of the factors, and two classes of images, judged by the Gram matrix of the last hidden layer of ReLU
networks (`low_rank.search`). (Section 4 of the paper: the bias survives a change of optimiser; the list is ours.)

Dimensions: B draws side by side, n x n matrices or networks of width w, N samples.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import OptimizeResult, minimize
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from low_rank.config import OPTIMISERS
from low_rank.random_networks import Architecture, Weights
from low_rank.rank import effective_rank
from low_rank.regression import Problem, draw_factors, map_error, product, training_error
from low_rank.search import Classifiers, TwoClass, draw_classifiers, training_loss
from shared.config import UserError, check_choice, check_range

RATES: dict[str, tuple[float, ...]] = {
    "gd": (0.03, 0.1, 0.3),
    "sgd": (0.01, 0.03, 0.1),
    "momentum": (0.003, 0.01, 0.03),
    "adam": (1e-3, 3e-3, 1e-2),
    "rmsprop": (3e-4, 1e-3, 3e-3),
}
"""Learning rates that are tried on every draw; each keeps the one that brings it to the target soonest."""
CLASS_RATES: dict[str, tuple[float, ...]] = {
    "gd": (0.01, 0.03, 0.1),
    "sgd": (0.01, 0.03, 0.1),
    "momentum": (0.001, 0.003, 0.01),
    "adam": (3e-4, 1e-3, 3e-3),
    "rmsprop": (1e-4, 3e-4, 1e-3),
}
"""The same of classifications: so small that a draw takes many steps, and does not jump far below the target."""

_LOOK = 20  # steps between looks at whether all draws have arrived


@dataclass(frozen=True)
class Matched:
    """Draws at the target.

    Attributes:
        rho, test: [B] effective rank where the target was reached, and relative error of the map or accuracy on new
            images there; nan where it was not reached.
        steps: [B] steps it took, nan likewise. rate: [B] learning rate, nan for L-BFGS, which searches along its lines.
        rho_start: [B] effective rank before training, of every draw.
        error: [B] training error or loss where the target was reached, nan likewise: the last step may lead below it.
    """

    rho: Tensor
    test: Tensor
    steps: Tensor
    rate: Tensor
    rho_start: Tensor
    error: Tensor

    @property
    def reached(self) -> float:
        """Share of draws that reached the target."""
        return float(self.steps.isfinite().double().mean())


class _Task(Protocol):
    """B problems of one kind, their parameters tensors [B, ...] that no two draws share."""

    @property
    def samples(self) -> int: ...

    def start(self) -> list[Tensor]: ...

    def loss(self, ws: Sequence[Tensor], some: Tensor | None = None) -> Tensor:
        """[B], on all samples or on some."""
        ...

    def there(self, ws: Sequence[Tensor], loss: Tensor) -> Tensor:
        """[B] whether a draw is at the target, at the loss [B] that it has on all samples."""
        ...

    def look(self, ws: Sequence[Tensor], draws: Tensor) -> tuple[Tensor, Tensor]:
        """Effective rank and error or accuracy on what is new, of those of a mask [B]."""
        ...

    def one(self, draw: int) -> _Task: ...


@dataclass(frozen=True)
class _Regression:
    problem: Problem
    depth: int
    target: float
    seed: int

    @property
    def samples(self) -> int:
        return self.problem.X.shape[-1]

    def start(self) -> list[Tensor]:
        return draw_factors(self.problem.n, self.depth, self.problem.draws, torch.Generator().manual_seed(self.seed))

    def loss(self, ws: Sequence[Tensor], some: Tensor | None = None) -> Tensor:
        X, Y = self.problem.X, self.problem.Y
        return training_error(ws, X, Y) if some is None else training_error(ws, X[..., some], Y[..., some])

    def there(self, ws: Sequence[Tensor], loss: Tensor) -> Tensor:
        return loss <= self.target

    def look(self, ws: Sequence[Tensor], draws: Tensor) -> tuple[Tensor, Tensor]:
        P = product([w[draws] for w in ws])
        return effective_rank(P), map_error(P, self.problem.A[draws])

    def one(self, draw: int) -> _Regression:
        own = Problem(*(value[draw : draw + 1] for value in vars(self.problem).values()))
        return _Regression(own, self.depth, self.target, self.seed)


@dataclass(frozen=True)
class _Classification:
    data: TwoClass
    nets: Classifiers
    target: float

    @property
    def samples(self) -> int:
        return len(self.data.x_train)

    def start(self) -> list[Tensor]:
        hidden = self.nets.weights.hidden
        return [w.clone() for w in (self.nets.weights.first, *hidden.unbind(1), self.nets.readout)]

    def outputs(self, ws: Sequence[Tensor], some: Tensor | None = None) -> Tensor:
        """[B, N]. As `Classifiers.outputs`, but a draw that has diverged is no error: it alone is lost."""
        x = self.data.x_train if some is None else self.data.x_train[some]
        *matrices, readout = ws
        h = x.expand(len(readout), *x.shape)
        for w in matrices:
            h = F.relu(h @ w.mT)
        return (h @ readout.unsqueeze(-1)).squeeze(-1)

    def loss(self, ws: Sequence[Tensor], some: Tensor | None = None) -> Tensor:
        y = self.data.y_train if some is None else self.data.y_train[some]
        return training_loss(self.outputs(ws, some), y, "logistic")

    def there(self, ws: Sequence[Tensor], loss: Tensor) -> Tensor:
        low = loss <= self.target
        if not bool(low.any()):
            return low
        # A mean loss that is low may hide an image on the wrong side.
        return low & (self.outputs(ws).sign() == self.data.y_train).all(dim=1)

    def look(self, ws: Sequence[Tensor], draws: Tensor) -> tuple[Tensor, Tensor]:
        first, *hidden, readout = (w[draws] for w in ws)
        stacked = torch.stack(hidden, dim=1) if hidden else self.nets.weights.hidden[draws]
        nets = Classifiers(self.nets.net, Weights(first, stacked), readout)
        return nets.ranks(self.data.x_probe), nets.accuracy(self.data.x_test, self.data.y_test)

    def one(self, draw: int) -> _Classification:
        return _Classification(self.data, self.nets[draw : draw + 1], self.target)


def fit_to_target(
    problem: Problem,
    depth: int,
    optimizer: str,
    *,
    target: float = 1e-3,
    steps: int = 3000,
    seed: int = 0,
    rates: Sequence[float] | None = None,
    batch: int | None = None,
    quiet: bool = True,
) -> Matched:
    """Bring products of `depth` factors to a relative training error of `target`.

    Args:
        problem: the regressions. optimizer: of `OPTIMISERS`. steps: at most. seed: of the start, the same for every
            optimiser, and of minibatches, which are a stream of their own.
        rates: learning rates to try instead of `RATES`. batch: samples a step of `sgd` and `momentum`; default: half.

    Returns:
        every draw under the learning rate that brought it to the target soonest; `test` is its relative error.

    Raises:
        UserError: an unknown optimiser, numbers out of range.
    """
    check_choice("--optimizers", optimizer, tuple(OPTIMISERS))
    check_range("--target", target, 0, open_low=True)
    task = _Regression(problem, depth, target, seed)
    return _soonest(task, optimizer, rates or RATES.get(optimizer, ()), steps, seed, batch, f"depth {depth}", quiet)


def starts(data: TwoClass, depth: int, width: int, draws: int, seed: int) -> Classifiers:
    """The networks that every optimiser of a classification begins with: bias-free, ReLU, in double precision.

    Args:
        data: what they are to tell apart. depth: hidden layers. width: units of each. draws: networks.

    Raises:
        UserError: numbers below 1.
    """
    net = Architecture(data.x_train.shape[1], width, depth)
    return draw_classifiers(net, draws, torch.Generator().manual_seed(seed), dtype=torch.float64)


def classify_to_target(
    data: TwoClass,
    nets: Classifiers,
    optimizer: str,
    *,
    target: float = 0.1,
    steps: int = 3000,
    seed: int = 0,
    rates: Sequence[float] | None = None,
    batch: int | None = None,
    quiet: bool = True,
) -> Matched:
    """Train networks side by side until each makes no training error at a mean logistic loss of `target` or less.

    Args:
        data: two classes. nets: the starts, as `starts` draws them: plain ReLU networks; they stay as they are.
        optimizer: of `OPTIMISERS`. steps: at most. seed: of minibatches.
        rates: learning rates to try instead of `CLASS_RATES`. batch: images a step of `sgd` and `momentum`; default:
            half.

    Returns:
        every network under the learning rate that brought it to the target soonest: `rho` is the effective rank of the
        Gram matrix of its last hidden layer on the probe images, `test` its accuracy on the test images.

    Raises:
        UserError: an unknown optimiser, numbers out of range, networks of another architecture.
    """
    check_choice("--optimizers", optimizer, tuple(OPTIMISERS))
    check_range("--loss", target, 0, open_low=True)
    net = nets.net
    if (net.activation, net.residual, net.normalisation) != ("relu", "none", "none"):
        raise UserError("networks", [net.activation, net.residual, net.normalisation], "relu without skips and norms")
    task = _Classification(data.to(nets.readout.device, nets.readout.dtype), nets, target)
    where = f"depth {net.depth}"
    return _soonest(task, optimizer, rates or CLASS_RATES.get(optimizer, ()), steps, seed, batch, where, quiet)


def _soonest(
    task: _Task, optimizer: str, rates: Sequence[float], steps: int, seed: int, batch: int | None, where: str,
    quiet: bool,
) -> Matched:  # fmt: skip
    check_range("--steps", steps, 1)
    if optimizer == "lbfgs":
        return _lbfgs(task, steps)
    few = batch or max(1, task.samples // 2)
    check_range("--batch", few, 1, task.samples)
    tried = [
        _first_order(task, optimizer, rate, steps, seed, few)
        for rate in tqdm(rates, desc=f"{optimizer}, {where}", unit="rate", leave=False, disable=True if quiet else None)
    ]
    steps_of = torch.stack([found.steps.nan_to_num(math.inf) for found in tried])  # [rates, B]
    best = steps_of.argmin(dim=0)
    every = torch.arange(len(best))
    return Matched(*(torch.stack([getattr(found, name) for found in tried])[best, every] for name in vars(tried[0])))


_RULES: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "gd": torch.optim.SGD,
    "sgd": torch.optim.SGD,
    "momentum": functools.partial(torch.optim.SGD, momentum=0.9),
    "adam": functools.partial(torch.optim.Adam, foreach=True),
    "rmsprop": functools.partial(torch.optim.RMSprop, foreach=True),
}


def minibatches(seed: int) -> torch.Generator:
    """The stream of minibatches: not that of the start, which the seed itself begins."""
    state = np.random.SeedSequence([seed % 2**64, 1]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) % 2**63)


def _first_order(task: _Task, optimizer: str, rate: float, steps: int, seed: int, few: int) -> Matched:
    """All draws side by side; each is kept as it is when it arrives, and goes on without being looked at."""
    ws = [w.requires_grad_() for w in task.start()]
    kept = [w.detach().clone() for w in ws]
    rule = _RULES[optimizer](ws, lr=rate)
    noise = minibatches(seed)
    arrived = torch.full((len(ws[0]),), math.nan, dtype=torch.float64)
    for step in range(steps + 1):
        whole = task.loss(ws)
        with torch.no_grad():
            new = task.there(ws, whole) & arrived.isnan()
            if bool(new.any()):
                for old, w in zip(kept, ws, strict=True):
                    old[new] = w[new]
                arrived[new] = float(step)
        if step == steps or (step % _LOOK == 0 and not bool((arrived.isnan() & whole.detach().isfinite()).any())):
            break  # all are there, or lost for good
        loss = whole
        if optimizer in ("sgd", "momentum"):
            loss = task.loss(ws, torch.randperm(task.samples, generator=noise)[:few])
        rule.zero_grad()
        loss.sum().backward()
        rule.step()
    return _matched(task, kept, arrived, rate)


def _lbfgs(task: _Task, steps: int) -> Matched:
    """Each draw alone, for a line search belongs to one problem; by SciPy: torch's search gives up on deep products."""
    kept = task.start()
    arrived = torch.full((len(kept[0]),), math.nan, dtype=torch.float64)
    shapes = [(1, *w.shape[1:]) for w in kept]
    sizes = [math.prod(shape) for shape in shapes]

    def shaped(flat: NDArray[np.float64]) -> list[Tensor]:
        parts = torch.from_numpy(flat.copy()).split(sizes)
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    for b in range(len(arrived)):
        own = task.one(b)

        def error(flat: NDArray[np.float64], own: _Task = own) -> tuple[float, NDArray[np.float64]]:
            ws = [w.requires_grad_() for w in shaped(flat)]
            loss = own.loss(ws).sum()
            gradients = torch.autograd.grad(loss, ws)
            return float(loss.detach()), torch.cat([g.flatten() for g in gradients]).numpy()

        def there(flat: NDArray[np.float64], own: _Task = own) -> bool:
            with torch.no_grad():
                ws = shaped(flat)
                return bool(own.there(ws, own.loss(ws)))

        first = torch.cat([w[b].flatten() for w in kept]).numpy()
        here, step = first, 0
        if not there(first):

            def arrive(intermediate_result: OptimizeResult) -> None:
                nonlocal here, step
                here, step = intermediate_result.x.copy(), step + 1
                if there(here):
                    raise StopIteration

            options = {"maxiter": steps, "maxfun": 20 * steps, "ftol": 0.0, "gtol": 0.0}
            minimize(error, first, jac=True, method="L-BFGS-B", callback=arrive, options=options)
        if there(here):
            for w, part in zip(kept, shaped(here), strict=True):
                w[b] = part[0]
            arrived[b] = float(step)
    return _matched(task, kept, arrived, math.nan)


@torch.no_grad()
def _matched(task: _Task, ws: Sequence[Tensor], arrived: Tensor, rate: float) -> Matched:
    there = arrived.isfinite()
    rho, test = torch.full_like(arrived, math.nan), torch.full_like(arrived, math.nan)
    if bool(there.any()):
        rho[there], test[there] = (value.double() for value in task.look(ws, there))
    start, _ = task.look(task.start(), torch.ones_like(there))
    error = torch.where(there, task.loss(ws).double(), math.nan)
    return Matched(rho, test, arrived, torch.full_like(arrived, rate), start.double(), error)
