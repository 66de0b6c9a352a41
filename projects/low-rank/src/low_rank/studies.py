"""What `volume`, `regress` and `optimizers` compute, as numbers that tables, figures and claims are made of."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from low_rank.classification import TEST, spaced
from low_rank.config import OptimizersConfig, RegressConfig, VolumeConfig
from low_rank.optimizers import Matched, classify_to_target, fit_to_target, starts
from low_rank.random_networks import Architecture, dominance, draw_weights, end_to_end, gram_ranks, product_ranks
from low_rank.rank import effective_rank, gram_effective_rank
from low_rank.regression import draw_problem, minimum_norm, regress
from low_rank.search import (
    MOST,
    Evolved,
    TwoClass,
    cma_search,
    draw_classifiers,
    random_search,
    two_class,
)
from low_rank.spectra import deficit
from shared.augment import normalise
from shared.config import UserError
from shared.data import data_root
from shared.device import choose_device
from shared.images import load

SAMPLED, DRAWN = 1500, 8  # singular values a depth that are drawn beside the limit law, and up to which depth
KEPT = 200  # points of a distribution function that are kept
LOOKS = 40  # at singular values, over a regression
SEARCH_WIDTH = 32  # of networks that random search draws
CMA_WIDTH, CMA_TARGET, CMA_EVALUATIONS = 12, 0.1, 60_000


def inputs(data: str, images: int, root: Path | None, seed: int = 0) -> Tensor:
    """[N, D] test images in double precision, of mean 0 and deviation 1 over the training images."""
    found = load(data, data_root(root), seed=seed, test=TEST.get(data))  # pyright: ignore[reportArgumentType]
    both = torch.cat([found.x_test, found.x_train])
    if images > len(both):
        raise UserError("--images", images, f"at most the {len(both):,} of {data}")
    taken = found.x_test if images <= len(found.x_test) else both
    taken = taken[spaced(len(taken), images)]  # some sets are in the order of their classes
    return normalise(taken, found).flatten(1).double()


def volume(config: VolumeConfig) -> dict[str, Any]:
    """Effective ranks of random networks at every depth.

    Returns: `rows`, one a depth, with mean, deviation and quantiles of the rank; `steps`, from each depth to the next,
    the largest violation of CDF_next(r) >= CDF(r) and the largest excess; `input_rank` of the images.
    """
    device = choose_device(config.device)
    found: dict[int, Tensor] = {}
    x = None
    if config.nets == "features":
        x = _looked_at_with(config).to(device)
    for depth in tqdm(config.depths, unit="depth", disable=True if config.quiet else None, desc=config.nets):
        generator = torch.Generator(device).manual_seed(_seed(config.seed, depth))
        if x is None:
            ranks = product_ranks(config.n, depth, config.draws, config.init or "normal", generator)
        else:
            ranks = gram_ranks(
                x, depth, config.n, config.draws, activation=config.activation, init=config.init or "kaiming",
                residual=config.skips, normalisation=config.normalisation, every=config.every, generator=generator,
                center=config.center,
            )  # fmt: skip
        found[depth] = ranks.cpu().double()
    rows = []
    for depth, ranks in found.items():
        row = {
            "depth": depth,
            "mean": float(ranks.mean()),
            "deviation": float(ranks.std(correction=1) if len(ranks) > 1 else 0),
        }
        row["quantiles"] = torch.quantile(ranks, torch.linspace(0, 1, KEPT, dtype=torch.float64)).tolist()
        if x is None:
            row |= {"deficit": math.log(config.n) - row["mean"], "limit": deficit(depth)}
        rows.append(row)
    steps = []
    for shallow, deep in zip(config.depths, config.depths[1:], strict=False):
        verdict = dominance(found[shallow], found[deep], config.level)
        steps.append({"from": shallow, "to": deep, **_plain(verdict)})
    values: dict[str, Any] = {"rows": rows, "steps": steps, "total_drop": rows[0]["mean"] - rows[-1]["mean"]}
    values["n"] = config.n
    if x is None and (config.init or "normal") == "normal":
        values["sampled"] = {str(depth): sampled_values(config, depth) for depth in config.depths if depth <= DRAWN}
    if x is not None:
        values["input_rank"] = float(gram_effective_rank(x, center=config.center))
    return values


def sampled_values(config: VolumeConfig, depth: int) -> list[float]:
    """Singular values of a few products of Gaussian matrices, for the figure beside the limit law."""
    count = -(-SAMPLED // config.n)
    generator = torch.Generator().manual_seed(_seed(config.seed, depth, 1))
    ws = [draw_weights("normal", count, config.n, config.n, generator) for _ in range(depth)]
    return [round(value, 4) for value in torch.linalg.svdvals(end_to_end(ws)).flatten().tolist()]


def _looked_at_with(config: VolumeConfig) -> Tensor:
    if config.inputs == "images":
        return inputs(config.data, config.images, config.data_root)
    generator = torch.Generator().manual_seed(_seed(config.seed, 0))
    return torch.randn(config.images, config.n, generator=generator, dtype=torch.float64)


def _plain(verdict: Any) -> dict[str, Any]:
    return {name: getattr(verdict, name) for name in ("violation", "excess", "band", "holds", "strict")}


def _seed(seed: int, *parts: int) -> int:
    """A stream of its own for every depth, so that adding one changes no other."""
    return int(torch.tensor([seed, *parts]).mul(torch.tensor([1_000_003, 7919, 104_729][: 1 + len(parts)])).sum())


def regression(config: RegressConfig) -> dict[str, Any]:
    """Deep linear regression at every depth, and the fit of least norm: means over draws and standard errors.

    Returns: `rows`, one a depth, with `rho_start`, the rank before training, beside `rho`; `minimum_norm`, the same
    without it; `trajectories`, of each depth all singular values over the steps, of the first draw and their means over
    draws; the true ones of the first draw and their means; `true_rank`.
    """
    device = choose_device(config.device)
    problem = draw_problem(
        config.n,
        config.rank,
        config.samples,
        config.draws,
        torch.Generator().manual_seed(config.seed),
        noise=config.noise,
    )
    dtype = torch.float64 if config.double else torch.float32
    if config.double and device.type == "mps":
        raise UserError("--double", "mps", "another --device, which has double precision")
    rows, paths = [], {}
    for depth in tqdm(config.depths, unit="depth", disable=True if config.quiet else None, desc="regress"):
        fit = regress(
            problem, depth, torch.Generator().manual_seed(_seed(config.seed, depth)), steps=config.steps, lr=config.lr,
            gain=config.gain, looks=LOOKS, dtype=dtype, device=device, quiet=config.quiet,
        )  # fmt: skip
        rows.append({"depth": depth, **_summary(fit)})
        paths[str(depth)] = {
            "steps": fit.steps.tolist(),
            "singular_values": _digits(fit.singular_values[:, 0]),
            "mean": _digits(fit.singular_values.mean(dim=1)),
        }
    truth = torch.linalg.svdvals(problem.A)
    return {
        "rows": rows,
        "minimum_norm": _summary(minimum_norm(problem)),
        "true_rank": float(effective_rank(problem.A).mean()),
        "trajectories": paths,
        "true_singular_values": truth[0].tolist(),
        "true_mean": truth.mean(dim=0).tolist(),
    }


def _digits(values: Tensor) -> list[list[float]]:
    """Rows of numbers, to the six digits that a figure needs."""
    return [[float(f"{value:.6g}") for value in row] for row in values.tolist()]


def _summary(fit: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("train", "test", "test_sampled", "rho", "rho_start"):
        value: Tensor = getattr(fit, name)
        if bool(value.isnan().all()):
            continue  # the fit of least norm starts nowhere
        found[name] = float(value.mean())
        found[name + "_se"] = float(value.std(correction=1)) / math.sqrt(len(value)) if len(value) > 1 else 0.0
        found[name + "_all"] = value.tolist()
    fitted = fit.fitted_at
    found["fitted"] = float(fitted.isfinite().double().mean())
    found["fitted_at"] = float(fitted.nanmedian()) if bool(fitted.isfinite().any()) else None
    return found


def optimisers(config: OptimizersConfig) -> dict[str, Any]:
    """Every optimiser at every depth, compared where its draws first reach the target."""
    problem = draw_problem(
        config.n, config.rank, config.samples, config.draws, torch.Generator().manual_seed(config.seed), new=2
    )
    rows = []
    pairs = [(name, depth) for name in config.optimizers for depth in config.depths]
    for name, depth in tqdm(pairs, unit="line", disable=True if config.quiet else None, desc="optimizers"):
        found = fit_to_target(
            problem, depth, name, target=config.target, steps=config.steps, seed=_seed(config.seed, depth)
        )
        rows.append({"optimizer": name, "depth": depth, **_there(found)})
    return {"rows": rows}


def _there(found: Matched) -> dict[str, Any]:
    """Means over the draws that arrived; of what they were before training too, so that the two stand side by side."""
    there = found.steps.isfinite()
    return {
        "reached": found.reached, "rate": _mean(found.rate[there & found.rate.isfinite()]),
        "rho": _mean(found.rho[there]), "rho_start": _mean(found.rho_start[there]), "test": _mean(found.test[there]),
        "error": _mean(found.error[there]), "steps": _mean(found.steps[there]),
    }  # fmt: skip


def pair_of(config: OptimizersConfig, train: int = 8) -> TwoClass:
    """Images of two classes to be told apart, and others to look at the networks with."""
    data = load(config.data, data_root(config.data_root), seed=config.seed)
    x, y = torch.cat([data.x_train, data.x_test]), torch.cat([data.y_train, data.y_test])
    return two_class(x, y, config.classes, train=train, seed=config.seed)


def classified(config: OptimizersConfig) -> dict[str, Any]:
    """Every optimiser on networks of every depth that are to tell two classes of images apart, from the same starts;
    compared where a network first makes no training error at a logistic loss of `--loss`. CMA-ES too, on the first
    `--cma` of the starts, where they have few enough weights.

    Returns: `rows`, one an optimiser and depth: `rho` and `rho_start` of the Gram matrix of the last hidden layer on
    the probe images, `test` accuracy, `error`, the loss there.
    """
    pair = pair_of(config, config.images).to(dtype=torch.float64)
    count = max(config.draws, config.cma)
    begin = {depth: starts(pair, depth, config.width, count, _seed(config.seed, depth)) for depth in config.depths}
    rows = []
    pairs = [(name, depth) for name in config.optimizers for depth in config.depths]
    for name, depth in tqdm(pairs, unit="line", disable=True if config.quiet else None, desc="classification"):
        nets, seed = begin[depth][: config.draws], _seed(config.seed, depth)
        found = classify_to_target(pair, nets, name, target=config.loss, steps=config.steps, seed=seed)
        rows.append({"optimizer": name, "depth": depth, **_there(found)})
    depths = evolvable(config, pair, config.width) if config.cma else []
    runs = [(depth, run) for depth in depths for run in range(config.cma)]
    evolved: dict[int, list[Evolved]] = {}
    begun: dict[int, list[float]] = {}
    for depth, run in tqdm(runs, unit="run", disable=True if config.quiet or not runs else None, desc="cma"):
        nets = begin[depth][run : run + 1]
        generator = torch.Generator().manual_seed(_seed(config.seed, depth, run))
        evolved.setdefault(depth, []).append(
            cma_search(pair, depth, generator, target=config.loss, max_evaluations=CMA_EVALUATIONS, start=nets)
        )
        begun.setdefault(depth, []).append(float(nets.ranks(pair.x_probe)))
    for depth, own in evolved.items():
        there = [(run, start) for run, start in zip(own, begun[depth], strict=True) if run.reached]
        rows.append(
            {
                "optimizer": "cma", "depth": depth, "reached": len(there) / len(own), "rate": None,
                "rho": _fmean(run.rank for run, _ in there), "rho_start": _fmean(start for _, start in there),
                "test": _fmean(run.accuracy for run, _ in there), "error": _fmean(run.loss for run, _ in there),
                "steps": _fmean(len(run.history) for run, _ in there),
                "evaluations": _fmean(run.evaluations for run, _ in there),
            }
        )  # fmt: skip
    return {"rows": rows}


def search_rows(config: OptimizersConfig) -> dict[str, Any]:
    """Random search at every depth: networks without a training error, their rank beside that of all networks.

    Returns: `rows`, one a depth.
    """
    pair = pair_of(config)
    rows = []
    for depth in config.depths:
        generator = torch.Generator().manual_seed(_seed(config.seed, depth))
        found = random_search(
            pair, depth, generator, target=config.search, max_draws=config.max_draws, quiet=config.quiet
        )
        everything = draw_classifiers(
            Architecture(pair.x_train.shape[1], SEARCH_WIDTH, depth), max(config.search, 2), generator
        ).ranks(pair.x_probe)
        rows.append(
            {
                "depth": depth, "kept": found.kept, "draws": found.draws, "share": found.share, "low": found.low,
                "high": found.high, "hollow": found.hollow, "rho": _mean(found.ranks), "rho_se": _error(found.ranks),
                "rho_all": _mean(everything), "accuracy": _mean(found.accuracy),
            }
        )  # fmt: skip
    return {"rows": rows}


def evolvable(config: OptimizersConfig, pair: TwoClass, width: int) -> list[int]:
    """The depths whose networks of this width have few enough weights for CMA-ES.

    Raises:
        UserError: there is none.
    """
    inputs = pair.x_train.shape[1]
    few = [d for d in config.depths if Architecture(inputs, width, d).parameters + width <= MOST]
    if not few:
        valid = f"one whose network of width {width} has at most {MOST:,} weights, with --cma"
        hint = "" if width == CMA_WIDTH else f"Take a smaller --width: {CMA_WIDTH}."
        raise UserError("--depths", list(config.depths), valid, hint)
    return few


def cma_rows(config: OptimizersConfig) -> dict[str, Any]:
    """CMA-ES at every depth on the same images, to a loss of `CMA_TARGET`; depths of too many weights are left out.

    Returns: `rows`, one a depth.
    """
    pair = pair_of(config)
    rows = []
    pairs = [(depth, run) for depth in evolvable(config, pair, CMA_WIDTH) for run in range(config.cma)]
    found: dict[int, list[Evolved]] = {}
    for depth, run in tqdm(pairs, unit="run", disable=True if config.quiet else None, desc="cma"):
        generator = torch.Generator().manual_seed(_seed(config.seed, depth, run))
        found.setdefault(depth, []).append(
            cma_search(pair, depth, generator, width=CMA_WIDTH, target=CMA_TARGET, max_evaluations=CMA_EVALUATIONS)
        )
    for depth, runs in found.items():
        there = [run for run in runs if run.reached]
        rows.append(
            {
                "depth": depth, "kept": len(there), "draws": len(runs), "share": len(there) / len(runs),
                "rho": statistics.fmean(run.rank for run in there) if there else None,
                "accuracy": statistics.fmean(run.accuracy for run in there) if there else None,
            }
        )  # fmt: skip
    return {"rows": rows}


def searches(config: OptimizersConfig) -> dict[str, Any] | None:
    """Random search as `optimizers --search` asks for it."""
    return search_rows(config) if config.search else None


def evolved(config: OptimizersConfig) -> dict[str, Any] | None:
    """CMA-ES as `optimizers --cma` asks for it; with a classification it is an optimiser of that."""
    return cma_rows(config) if config.cma and config.problem == "regression" else None


def _error(values: Tensor) -> float | None:
    return float(values.std(correction=1)) / math.sqrt(len(values)) if len(values) > 1 else None


def _fmean(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.fmean(found) if found else None


def _mean(values: Tensor) -> float | None:
    return statistics.fmean(values.tolist()) if len(values) else None
