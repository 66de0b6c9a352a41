"""What studies report is what direct calls give; strengths are chosen on held-out samples; nothing is done twice."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from low_rank import classification, studies, trained
from low_rank.chosen import chosen, more_rates
from low_rank.config import (
    COMPARE_PRESETS,
    KERNELS_PRESETS,
    CompareConfig,
    KernelsConfig,
    OptimizersConfig,
    RegressConfig,
    TrainConfig,
    VolumeConfig,
)
from low_rank.models import build_model
from low_rank.optimizers import classify_to_target, fit_to_target, starts
from low_rank.random_networks import dominance, gram_ranks, product_ranks
from low_rank.rank import effective_rank, gram_effective_rank
from low_rank.regression import draw_problem, regress
from low_rank.search import cma_search, random_search, wilson
from low_rank.spectra import deficit
from low_rank.train import measure
from shared.config import RunFailed, UserError
from shared.data import data_root
from shared.images import load

PRODUCTS = VolumeConfig(n=8, draws=40, depths=(1, 4), device="cpu", quiet=True, seed=3)
FEATURES = replace(PRODUCTS, nets="features", n=16, draws=8, images=32, depths=(1, 3))
REGRESS = RegressConfig(n=8, samples=5, draws=3, steps=40, depths=(1, 3), device="cpu", quiet=True, seed=2)
OPTIMISE = OptimizersConfig(
    optimizers=("adam", "lbfgs"), n=6, samples=4, draws=2, target=0.1, steps=200, depths=(1, 2), quiet=True
)
KERNELS = replace(KERNELS_PRESETS["smoke"], device="cpu", quiet=True, steps=4, width=16, max_test=64, seeds=2)
COMPARE = replace(
    COMPARE_PRESETS["smoke"], device="cpu", quiet=True, regularisers=("l1", "nuclear"), strengths=(1e-4, 1e-3, 1e-2),
    expansions=(2,), seeds=2,
)  # fmt: skip


def generator(config: VolumeConfig | RegressConfig | OptimizersConfig, *parts: int) -> torch.Generator:
    return torch.Generator().manual_seed(studies._seed(config.seed, *parts))


# -- random networks ---------------------------------------------------------------------------------------------------


def direct_ranks(config: VolumeConfig, depth: int) -> torch.Tensor:
    if config.nets == "products":
        return product_ranks(config.n, depth, config.draws, config.init or "normal", generator(config, depth))
    x = studies.inputs("digits", config.images, None)
    return gram_ranks(x, depth, config.n, config.draws, activation=config.activation, init="kaiming",
                      residual=config.skips, generator=generator(config, depth), center=config.center)  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [PRODUCTS, replace(PRODUCTS, init="orthogonal"), FEATURES, replace(FEATURES, activation="tanh", skips="block")],
    ids=["products", "orthogonal", "features", "blocks"],
)
def test_volume_is_what_direct_calls_give(config: VolumeConfig) -> None:
    values = studies.volume(config)
    drawn = {depth: direct_ranks(config, depth) for depth in config.depths}
    for row in values["rows"]:
        ranks = drawn[row["depth"]].numpy()
        assert row["mean"] == pytest.approx(ranks.mean(), abs=1e-12)
        assert row["deviation"] == pytest.approx(ranks.std(ddof=1), abs=1e-12)
        np.testing.assert_allclose(row["quantiles"], np.quantile(ranks, np.linspace(0, 1, studies.KEPT)), atol=1e-12)
        if config.nets == "products":
            assert row["deficit"] == pytest.approx(math.log(config.n) - ranks.mean(), abs=1e-12)
            assert row["limit"] == deficit(row["depth"])
    shallow, deep = config.depths
    verdict = dominance(drawn[shallow], drawn[deep], config.level)
    [step] = values["steps"]
    assert step == {"from": shallow, "to": deep, **vars(verdict)}
    assert values["total_drop"] == values["rows"][0]["mean"] - values["rows"][-1]["mean"]
    if config.nets == "features":
        assert values["input_rank"] == float(gram_effective_rank(studies.inputs("digits", config.images, None)))
    if config.init == "orthogonal":  # the exception: depth takes nothing off
        assert [row["mean"] for row in values["rows"]] == pytest.approx([math.log(config.n)] * 2, abs=1e-9)
        assert "sampled" not in values


def test_singular_values_beside_the_law_are_those_of_products() -> None:
    values = studies.volume(replace(PRODUCTS, n=32, depths=(1, 2, 16), draws=2))
    assert set(values["sampled"]) == {"1", "2"}
    for found in values["sampled"].values():
        squares = np.square(found)
        assert len(squares) >= studies.SAMPLED
        assert squares.mean() == pytest.approx(1, abs=0.1)  # the mean of the law, of any order


def test_images_are_standardised_and_new_ones_first() -> None:
    data = load("digits", data_root(None), test=classification.TEST.get("digits"))
    x = studies.inputs("digits", 1797, None)
    with pytest.raises(UserError, match="at most the 1,797 of digits"):
        studies.inputs("digits", 1798, None)
    assert len(x) == len(data.x_test) + len(data.x_train)
    assert x.dtype == torch.float64
    seen = x[len(data.x_test) :]
    assert float(seen.mean()) == pytest.approx(0, abs=1e-5)
    assert float(seen.std()) == pytest.approx(1, abs=1e-3)
    first = data.x_test[0].flatten().double()
    assert float(torch.corrcoef(torch.stack([x[0], first]))[0, 1]) > 0.9
    few = studies.inputs("digits", 7, None)
    places = torch.linspace(0, len(data.x_test) - 1, 7).round().long()
    assert torch.equal(few, x[places])


def test_gaussian_inputs_have_nothing_of_the_images() -> None:
    config = replace(FEATURES, inputs="gaussian", images=64)
    values = studies.volume(config)
    x = torch.randn(64, config.n, generator=generator(config, 0), dtype=torch.float64)
    assert values["input_rank"] == float(gram_effective_rank(x))
    assert values["input_rank"] > studies.volume(replace(FEATURES, images=64))["input_rank"]


def by_depth(rows: list[dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    return {(row.get("optimizer"), row["depth"]): row for row in rows}


@pytest.mark.parametrize(
    ("study", "config", "more"),
    [
        (studies.volume, PRODUCTS, (1, 2, 4)),
        (studies.volume, FEATURES, (1, 2, 3, 4)),
        (studies.regression, REGRESS, (1, 2, 3)),
        (studies.optimisers, OPTIMISE, (1, 2, 3)),
        (studies.search_rows, replace(OPTIMISE, search=3), (1, 2, 3)),
    ],
    ids=["products", "features", "regress", "optimizers", "search"],
)
def test_a_further_depth_changes_no_other(study: Callable[[Any], dict[str, Any]], config: Any, more: Any) -> None:
    few, many = by_depth(study(config)["rows"]), by_depth(study(replace(config, depths=more))["rows"])
    assert len(many) > len(few)
    assert {key: many[key] for key in few} == few
    other = by_depth(study(replace(config, seed=config.seed + 1))["rows"])
    assert all(other[key] != row for key, row in few.items())


# -- regression and optimisers -----------------------------------------------------------------------------------------


def test_regression_is_what_direct_calls_give() -> None:
    values = studies.regression(REGRESS)
    start = torch.Generator().manual_seed(REGRESS.seed)
    problem = draw_problem(REGRESS.n, REGRESS.rank, REGRESS.samples, REGRESS.draws, start)
    for row in values["rows"]:
        fit = regress(problem, row["depth"], generator(REGRESS, row["depth"]), steps=REGRESS.steps, looks=3)
        for name in ("train", "test", "test_sampled", "rho", "rho_start"):
            found = getattr(fit, name).numpy()
            assert row[name + "_all"] == found.tolist()
            assert row[name] == pytest.approx(found.mean())
            assert row[name + "_se"] == pytest.approx(found.std(ddof=1) / math.sqrt(len(found)))
        path = values["trajectories"][str(row["depth"])]
        assert (path["steps"][0], path["steps"][-1]) == (0, REGRESS.steps)
        last = np.linalg.svd(fit.P.numpy(), compute_uv=False)  # [draws, n]
        np.testing.assert_allclose(path["singular_values"][-1], last[0], rtol=1e-5)
        np.testing.assert_allclose(path["mean"][-1], last.mean(0), rtol=1e-5)
        assert len(path["mean"]) == len(path["singular_values"]) == len(path["steps"])
    shortest = np.linalg.lstsq(problem.X[0].T.numpy(), problem.Y[0].T.numpy(), rcond=None)[0].T
    error = np.square(shortest - problem.A[0].numpy()).sum() / np.square(problem.A[0].numpy()).sum()
    assert values["minimum_norm"]["test_all"][0] == pytest.approx(error)
    assert values["minimum_norm"]["fitted"] == 1.0
    assert values["true_rank"] == pytest.approx(float(effective_rank(problem.A).mean()))
    assert "rho_start" not in values["minimum_norm"]
    assert values["true_singular_values"][2:] == pytest.approx([0] * 6, abs=1e-12)  # of rank 2
    true = np.linalg.svd(problem.A.numpy(), compute_uv=False)
    np.testing.assert_allclose(values["true_mean"], true.mean(0), atol=1e-12)


def test_regression_in_double_precision() -> None:
    config = replace(REGRESS, double=True, depths=(2,))
    [row] = studies.regression(config)["rows"]
    start = torch.Generator().manual_seed(config.seed)
    problem = draw_problem(config.n, config.rank, config.samples, config.draws, start)
    fits = [
        regress(problem, 2, generator(config, 2), steps=config.steps, dtype=d) for d in (torch.float64, torch.float32)
    ]
    assert row["test_all"] == fits[0].test.tolist() != fits[1].test.tolist()


def test_a_draw_that_was_not_fitted_has_no_step() -> None:
    values = studies.regression(replace(REGRESS, steps=1, depths=(2,)))
    [row] = values["rows"]
    assert (row["fitted"], row["fitted_at"]) == (0.0, None)
    single = studies.regression(replace(REGRESS, steps=1, depths=(2,), draws=1))
    assert single["rows"][0]["test_se"] == 0.0


def test_optimisers_are_what_direct_calls_give() -> None:
    rows = studies.optimisers(OPTIMISE)["rows"]
    assert [(row["optimizer"], row["depth"]) for row in rows] == [
        ("adam", 1), ("adam", 2), ("lbfgs", 1), ("lbfgs", 2)
    ]  # fmt: skip
    start = torch.Generator().manual_seed(OPTIMISE.seed)
    problem = draw_problem(OPTIMISE.n, OPTIMISE.rank, OPTIMISE.samples, OPTIMISE.draws, start, new=2)
    for row in rows:
        seed = studies._seed(OPTIMISE.seed, row["depth"])
        found = fit_to_target(problem, row["depth"], row["optimizer"], target=0.1, steps=200, seed=seed)
        assert row["reached"] == found.reached == 1.0
        for name in ("rho", "rho_start", "test", "steps", "error"):
            assert row[name] == pytest.approx(float(getattr(found, name).mean()))
        if row["optimizer"] == "lbfgs":
            assert row["rate"] is None


def test_an_optimiser_that_does_not_arrive_has_no_numbers() -> None:
    rows = studies.optimisers(replace(OPTIMISE, optimizers=("gd",), steps=1, target=1e-9))["rows"]
    for row in rows:
        assert row["reached"] == 0.0
        assert {row[name] for name in ("rho", "rho_start", "test", "steps", "rate", "error")} == {None}


def test_classifications_are_what_direct_calls_give() -> None:
    config = replace(OPTIMISE, problem="classification", optimizers=("gd", "lbfgs"), images=16, width=12, loss=0.2,
                     steps=400, draws=3, cma=2, classes=(3, 5))  # fmt: skip
    rows = studies.classified(config)["rows"]
    assert [(row["optimizer"], row["depth"]) for row in rows] == [
        ("gd", 1), ("gd", 2), ("lbfgs", 1), ("lbfgs", 2), ("cma", 1), ("cma", 2)
    ]  # fmt: skip
    pair = studies.pair_of(config, 16).to(dtype=torch.float64)
    assert len(pair.x_train) == 16
    for row in rows:
        seed = studies._seed(config.seed, row["depth"])
        nets = starts(pair, row["depth"], 12, 3, seed)
        assert row["reached"] == 1
        assert row["error"] <= 0.2
        if row["optimizer"] == "cma":
            runs = [
                cma_search(
                    pair,
                    row["depth"],
                    generator(config, row["depth"], run),
                    target=0.2,
                    start=nets[run : run + 1],
                    max_evaluations=studies.CMA_EVALUATIONS,
                )
                for run in range(2)
            ]
            assert row["rho"] == pytest.approx(statistics.fmean(run.rank for run in runs))
            assert row["test"] == pytest.approx(statistics.fmean(run.accuracy for run in runs))
            assert row["evaluations"] == statistics.fmean(run.evaluations for run in runs)
            assert row["rho_start"] == pytest.approx(float(nets[:2].ranks(pair.x_probe).mean()))
            continue
        found = classify_to_target(pair, nets, row["optimizer"], target=0.2, steps=400, seed=seed)
        for name in ("rho", "rho_start", "test", "steps", "error"):
            assert row[name] == pytest.approx(float(getattr(found, name).mean()))
    assert studies.evolved(config) is None, "evolution is an optimiser of the classification, and not run twice"
    more = studies.classified(replace(config, optimizers=("gd",), cma=0, depths=(2, 3)))["rows"]
    assert more[0] == rows[1]


# -- search ------------------------------------------------------------------------------------------------------------


def test_random_search_is_what_a_direct_call_gives() -> None:
    config = replace(OPTIMISE, search=6, depths=(2,), max_draws=2000)
    assert (studies.searches(OPTIMISE), studies.evolved(OPTIMISE)) == (None, None)
    found = studies.searches(config)
    assert found is not None
    [row] = found["rows"]
    own = random_search(studies.pair_of(config), 2, generator(config, 2), target=6, max_draws=2000)
    assert row["kept"] == own.kept >= 6
    assert row["draws"] == own.draws
    assert row["share"] == own.kept / own.draws
    assert (row["low"], row["high"]) == wilson(own.kept, own.draws)
    assert row["hollow"] is (own.kept < 30)
    assert row["rho"] == pytest.approx(float(own.ranks.mean()))
    assert row["accuracy"] == pytest.approx(float(own.accuracy.mean()))
    assert own.classifiers is not None
    pair = studies.pair_of(config)
    assert bool((own.classifiers.accuracy(pair.x_train, pair.y_train) == 1).all())


def test_search_that_finds_nothing_says_so() -> None:
    [row] = studies.search_rows(replace(OPTIMISE, search=400, depths=(1,), max_draws=1))["rows"]
    assert row["draws"] == 500  # a batch is judged whole
    assert row["kept"] < 400
    assert row["hollow"] is (row["kept"] < 30)


def test_evolution_is_what_direct_calls_give() -> None:
    config = replace(OPTIMISE, cma=2, depths=(1,))
    found = studies.evolved(config)
    assert found is not None
    [row] = found["rows"]
    runs = [
        cma_search(studies.pair_of(config), 1, generator(config, 1, run), width=studies.CMA_WIDTH,
                   target=studies.CMA_TARGET, max_evaluations=studies.CMA_EVALUATIONS)
        for run in range(2)
    ]  # fmt: skip
    assert (row["kept"], row["draws"]) == (sum(run.reached for run in runs), 2)
    assert all(run.loss <= studies.CMA_TARGET for run in runs if run.reached)
    assert row["rho"] == pytest.approx(statistics.fmean(run.rank for run in runs if run.reached))
    assert runs[0].rank != runs[1].rank


# -- kernels -----------------------------------------------------------------------------------------------------------


def test_kernels_of_trained_networks(tmp_path: Path) -> None:
    values = kernel_values(replace(KERNELS, out=tmp_path / "k"))
    assert set(values["networks"]) == {"1", "2"}
    for row in values["rows"]:
        runs = values["networks"][str(row["depth"])]
        assert len(runs) == 2
        assert runs[0]["gram_rank"] != runs[1]["gram_rank"]  # two seeds
        for name in ("accuracy", "train", "gram_rank", "cophenetic", "within", "between"):
            assert row[name] == pytest.approx(statistics.fmean(run[name] for run in runs))
        assert row["first_rank"] == pytest.approx(statistics.fmean(run["history"][0]["gram_rank"] for run in runs))
        for run in runs:
            assert len(run["layer_ranks"]) == row["depth"]
            assert run["layer_ranks"][-1] == pytest.approx(run["gram_rank"], abs=1e-6)  # on the same images
            for at in run["history"]:
                assert len(at["layers"]) == row["depth"]
                assert at["layers"][-1] == pytest.approx(at["gram_rank"], abs=1e-6)
            assert run["layer_ranks_first"] == run["history"][0]["layers"] != run["layer_ranks"]
            cosines = np.array(run["gram"])
            assert cosines.shape == (KERNELS.linkage,) * 2
            np.testing.assert_array_equal(cosines, cosines.T)
            np.testing.assert_allclose(np.diag(cosines), 1, atol=1e-3)
            between = cosines[~np.eye(len(cosines), dtype=bool)].mean()
            assert run["between"] < between < run["within"]  # the mean of all pairs lies between those of the two kinds


def kernel_values(config: KernelsConfig) -> dict[str, Any]:
    assert trained.kernels(config) == 0
    assert config.out is not None
    return json.loads((config.out / "kernels.json").read_text())


def test_kernels_are_looked_at_every_epoch(tmp_path: Path) -> None:
    config = replace(KERNELS, out=tmp_path, seeds=1, depths=(1,), steps=None, epochs=3, max_train=100, batch_size=32)
    [[run]] = kernel_values(config)["networks"].values()
    assert [row["epoch"] for row in run["history"]] == [0, 1, 2, 3]
    assert [row["step"] for row in run["history"]] == [0, 3, 6, 9]  # of 32 images; the last four wait


def test_kernels_over_a_grid(tmp_path: Path) -> None:
    config = replace(KERNELS, out=tmp_path, seeds=1, depths=(1, 3), skips=(0, 1), lrs=(0.01, 0.02), noises=(0.0, 0.5))
    settings = trained.kernel_settings(config)
    assert len(settings) == 16
    assert len({(c.hidden, c.skip, c.lr, c.label_noise) for c in settings.values()}) == 16
    one = settings["3, skips of 1, rate 0.02, noise 0.5"]
    assert (one.hidden, one.skip, one.lr, one.label_noise) == (3, 1, 0.02, 0.5)
    assert (one.batch_size, one.weight_decay, one.probes) == (config.batch_size, config.weight_decay, config.probes)
    values = kernel_values(config)
    assert set(values["networks"]) == set(settings)
    rows = {row["network"]: row for row in values["rows"]}
    for name, own in settings.items():
        assert [rows[name][k] for k in ("depth", "skip", "lr", "label_noise")] == [
            own.hidden, own.skip, own.lr, own.label_noise
        ]  # fmt: skip
        [run] = values["networks"][name]
        assert (run["accuracy"], run["gram_rank"]) == (rows[name]["accuracy"], rows[name]["gram_rank"])
    assert values["main"] == [f"{d}, skips of {s}, rate 0.01, noise 0" for d in (1, 3) for s in (0, 1)]
    for fall in values["falls"]:
        ends = [rows[f"{d}, skips of {fall['skip']}, rate 0.01, noise 0"] for d in (1, 3)]
        for key in ("first_rank", "gram_rank"):
            assert fall[key] == ends[0][key] - ends[1][key]
    before, after = values["falls"]
    assert before["first_rank"] > after["first_rank"] + 0.1  # with skips the rank at first is flatter
    assert {path.stem for path in tmp_path.glob("*.png")} == {"kernels", "ordered", "accuracy", "depth"}


def test_kernels_of_a_convolutional_network(tmp_path: Path) -> None:
    config = replace(KERNELS, out=tmp_path, seeds=1, model="cnn-small", channels=0.25, lrs=(0.01, 0.1), max_train=100)
    values = kernel_values(config)
    assert list(values["networks"]) == ["cnn-small, rate 0.01", "cnn-small, rate 0.1"]
    assert {row["depth"] for row in values["rows"]} == {None}
    for [run] in values["networks"].values():
        assert len(run["layer_ranks"]) == 4  # three convolutions and a linear layer
    assert {path.stem for path in tmp_path.glob("*.png")} == {"kernels", "ordered", "accuracy"}


def test_constant_features_of_a_trained_network_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def dead(config: TrainConfig) -> torch.nn.Module:
        model = build_model("mlp", (1, 8, 10), width=8, hidden=2)
        with torch.no_grad():
            model.get_parameter("linear2.bias").fill_(-1e6)
        return model

    monkeypatch.setattr(classification, "make_model", dead)
    config = trained.network_config(replace(KERNELS, lr=1e-12), hidden=2)
    order = pytest.warns(UserWarning, match="order says nothing")
    with order, pytest.warns(UserWarning, match="'act2' has the same features"):
        values = trained.kernel_network(config, 16)
    assert values["layer_ranks"][1] == 0 < values["layer_ranks"][0]


def test_kernels_of_finished_networks_are_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(KERNELS, out=tmp_path, seeds=1, depths=(1,), steps=2)
    before = kernel_values(config)
    (tmp_path / "kernels.json").unlink()  # as if it had been cut off before the end

    def refuse(*arguments: Any, **named: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(trained, "Loop", refuse)
    assert kernel_values(config) == before


# -- products and penalties --------------------------------------------------------------------------------------------


def invented(config: TrainConfig, scratch: Path | None = None) -> dict[str, Any]:
    """What a network under these settings is said to have come to: held-out and test accuracy disagree."""
    way = config.regulariser if config.expand == "none" else "products"
    held = {
        ("l1", 1e-4): 0.6, ("l1", 1e-3): 0.8, ("l1", 1e-2): 0.7,  # the middle
        ("nuclear", 1e-4): 0.7, ("nuclear", 1e-3): 0.6, ("nuclear", 1e-2): 0.95,  # the last, where it diverges
        ("products", 0.0): 0.75, ("products", 1e-4): 0.9, ("products", 1e-3): 0.5, ("products", 1e-2): 0.4,
    }.get((way, config.strength or config.weight_decay), 0.5)  # fmt: skip
    if not (config.strength or config.weight_decay):
        held += config.lr / 100 if way == "none" else -config.lr / 100  # the largest rate, and the smallest
    if way == "nuclear" and config.strength == 1e-2 and config.seed == 1:
        raise RunFailed("diverged")
    return {
        "accuracy": held + 0.01 * config.seed, "test": 1 - held + 0.02 * config.seed, "train": 1.0,
        "hidden_ranks": {"linear1": 2.0, "linear2": 3.0 + config.seed},
    }  # fmt: skip


def test_settings_are_chosen_on_held_out_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[TrainConfig] = []

    def counted(config: TrainConfig, scratch: Path | None = None) -> dict[str, Any]:
        seen.append(config)
        return invented(config)

    monkeypatch.setattr(trained, "measure", counted)
    rows = {row["way"]: row for row in trained.comparison(COMPARE, tmp_path)["rows"]}
    assert {way: row["strength"] for way, row in rows.items()} == {
        "plain": None, "l1": 1e-3, "nuclear": 1e-4, "products of 2": None, "products of 2, decay": 1e-4
    }  # fmt: skip
    assert {way: row["lr"] for way, row in rows.items()} == {
        "plain": 0.2, "l1": 0.05, "nuclear": 0.05, "products of 2": 0.0125, "products of 2, decay": 0.05
    }  # fmt: skip
    assert rows["l1"]["validation"] == pytest.approx(0.805)
    assert rows["l1"]["test"] == pytest.approx(0.21)  # of the chosen strength, not the best there is
    assert rows["l1"]["tests"] == pytest.approx([0.2, 0.22])
    assert rows["l1"]["test_se"] == pytest.approx(0.01)
    assert rows["l1"]["rank"] == pytest.approx(2.75)
    assert {way: row["diverged"] for way, row in rows.items() if row["diverged"]} == {"nuclear": 1}
    assert {way: row["edges"] for way, row in rows.items()} == {
        "plain": ["lr"], "l1": [], "nuclear": ["strength"], "products of 2": ["lr"],
        "products of 2, decay": ["strength"],
    }  # fmt: skip
    assert {row["settings"] for row in rows.values()} == {3}
    assert len(seen) == 2 * 5 * 3
    assert len({(c.expand, c.regulariser, c.strength, c.weight_decay, c.lr, c.seed) for c in seen}) == len(seen)
    assert {c.seed for c in seen} == {0, 1}
    assert {(c.validation, c.steps) for c in seen} == {(COMPARE.validation, COMPARE.steps)}
    seen.clear()
    assert {row["way"]: row for row in trained.comparison(COMPARE, tmp_path)["rows"]} == rows
    assert [(c.regulariser, c.strength, c.seed) for c in seen] == [("nuclear", 1e-2, 1)]  # the one that never finished
    trained.comparison(replace(COMPARE, strengths=(1e-4, 1e-3)), tmp_path)
    assert len(seen) == 1  # fewer settings, all of them known
    trained.comparison(replace(COMPARE, lr=0.07), tmp_path)
    assert len(seen) == 1 + 30  # other learning rates are other networks
    trained.comparison(replace(COMPARE, force=True), tmp_path)
    assert len(seen) == 1 + 30 + 30


@pytest.mark.parametrize("rates", [(), (0.02, 0.1)])
def test_every_way_has_as_many_settings(rates: tuple[float, ...]) -> None:
    config = replace(COMPARE_PRESETS["cpu"], lrs=rates)
    strengths, count = config.strengths, len(config.strengths) * max(1, len(rates))
    for way, settings in trained.variants(config).items():
        assert len({(c.strength, c.weight_decay, c.lr) for c in settings}) == len(settings) == count
        found = {c.strength or c.weight_decay for c in settings}
        free = way in ("plain", "products of 2", "products of 3")
        assert found == ({0.0} if free else set(strengths))
        wanted = set(rates or (config.lr,))
        assert {c.lr for c in settings} >= wanted if free else {c.lr for c in settings} == wanted
        for own in settings:
            assert (own.expand == "all") is way.startswith("products")
            assert bool(own.strength) is (way in CompareConfig.regularisers)
            assert bool(own.weight_decay) is way.endswith("decay")


def test_further_learning_rates_fill_the_widest_gaps() -> None:
    assert more_rates([0.1], 1) == (0.1,)
    assert more_rates([0.1], 5) == pytest.approx((0.025, 0.05, 0.1, 0.2, 0.4))
    assert more_rates([0.1, 0.02], 2) == (0.02, 0.1)
    many = more_rates([0.02, 0.05, 0.1], 15)
    assert len(set(many)) == 15
    assert {0.02, 0.05, 0.1} <= set(many)
    assert list(many) == sorted(many)
    assert (many[0], many[-1]) == pytest.approx((0.005, 0.4))


def run_of(accuracy: float, test: float) -> dict[str, Any]:
    return {"accuracy": accuracy, "test": test, "train": 1.0, "hidden_ranks": {"a": 1.0, "b": test}}


def test_the_test_set_has_no_part_in_the_choice() -> None:
    tried = [
        ({"lr": 0.1, "kind": "x"}, [run_of(0.5, 0.9), run_of(0.6, 0.9)]),
        ({"lr": 0.2, "kind": "y"}, [run_of(0.7, 0.1), run_of(0.6, 0.3)]),
        ({"lr": 0.3, "kind": "z"}, [run_of(0.9, 0.9), None]),
        ({"lr": 0.4, "kind": "w"}, [run_of(0.9, 0.9), {"diverged": 1.0}]),
        ({"lr": 0.5, "kind": "v"}, [run_of(0.9, 0.9)]),  # a seed is missing
    ]
    row = chosen(tried)
    assert (row["settings"], row["diverged"], row["lr"], row["kind"]) == (5, 3, 0.2, "y")
    assert row["validation"] == pytest.approx(0.65)
    assert (row["test"], row["tests"], row["test_se"]) == (pytest.approx(0.2), [0.1, 0.3], pytest.approx(0.1))
    assert row["rank"] == pytest.approx(0.6)
    assert row["edges"] == []
    assert chosen(tried[:2])["edges"] == ["lr"]
    assert chosen(tried[2:3]) == {"settings": 1, "diverged": 1}
    assert chosen([]) == {"settings": 0, "diverged": 0}
    assert chosen([({}, [run_of(0.5, 0.9)])])["test_se"] == 0.0


def test_a_network_that_was_cut_off_while_written_is_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(COMPARE, regularisers=(), expansions=(), strengths=(1e-4,), seeds=1)
    monkeypatch.setattr(trained, "measure", invented)
    before = trained.comparison(config, tmp_path)
    [path] = (tmp_path / "networks").iterdir()
    path.write_text('{"values": {"accu')
    assert trained.comparison(config, tmp_path) == before
    assert json.loads(path.read_text())["values"]["accuracy"] == pytest.approx(0.5 + config.lr / 100)


def test_networks_that_diverge_are_counted() -> None:
    """For real: the rate is far too large, and the first look at the network comes before the loss is looked at."""
    config = replace(COMPARE, regularisers=(), expansions=(), seeds=1, lr=1e9, clip=None, steps=10)
    with pytest.raises(RunFailed):
        measure(trained.network_config(config, expand="none"))
