"""The study on invented outcomes: what quantities, verdicts, tables and figures make of known numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from low_rank import experiments
from low_rank.classification import make_model
from low_rank.config import OPTIMISERS, TrainConfig
from low_rank.experiments import (
    DEPTHS,
    KINDS,
    REGRESSED,
    SEARCHED,
    SEEDS,
    LowRankStudy,
    chosen_variant,
    cifar_cells,
    compare_cells,
    compare_gain,
    compared,
    digits_cells,
    expanded_drops,
    feature_cells,
    gpu_cells,
    gpu_compare_cells,
    kernel_cells,
    least_step,
    optimizer_cells,
    optimizer_drop,
    paper_cells,
    regression_cells,
    search_cells,
    smoke_cells,
    smoke_share,
    volume_cells,
)
from low_rank.overparam import ExpandedConv2d, ExpandedLinear
from shared.claims import LADDER, Cell, Missing, Outcomes, ReproduceConfig, judge, read_claims
from shared.cli import member_home
from shared.config import UserError, from_json
from shared.figures import png_only

CLAIMS = read_claims(member_home("low_rank") / "claims.toml").claims
JUDGED = [(claim, preset) for claim in CLAIMS for preset in claim.threshold]


# -- invented outcomes -------------------------------------------------------------------------------------------------


def volume_values(means: Sequence[float], lower: Sequence[bool], off: float | None = None) -> dict[str, Any]:
    """Of networks of 1, 2, 4, ... layers; `lower`: whether each step lowers the distribution beyond its bands."""
    depths = [2**k for k in range(len(means))]
    rows: list[dict[str, Any]] = [
        {"depth": d, "mean": mean, "deviation": 0.1, "quantiles": [mean - 0.1, mean, mean + 0.1]}
        for d, mean in zip(depths, means, strict=True)
    ]
    if off is not None:
        for k, row in enumerate(rows):  # the largest difference is the first, above the limit; the others below it
            row |= {"deficit": 3.5 - row["mean"], "limit": 3.5 - row["mean"] + (-off if k == 0 else off / 2)}
    steps = [{"from": a, "to": b, "holds": True, "strict": low, "violation": 0.0, "excess": 0.5, "band": 0.1}
             for (a, b), low in zip(itertools.pairwise(depths), lower, strict=True)]  # fmt: skip
    return {"rows": rows, "steps": steps, "total_drop": means[0] - means[-1], "input_rank": 2.6}


def regress_values(depth: int, train: float, test: float, rho: float) -> dict[str, Any]:
    row = {
        "train": train,
        "test": test,
        "test_all": [test, test],
        "test_se": 0.01,
        "rho": rho,
        "rho_se": 0.01,
        "fitted": 1.0,
        "fitted_at": 9.0,
    }
    return {
        "rows": [{"depth": depth, **row}], "minimum_norm": {**row, "train": 0.0, "test": 0.9}, "true_rank": 0.6,
        "trajectories": {str(depth): {"steps": [0, 5], "singular_values": [[1.0, 0.5], [2.0, 0.1]]}},
        "true_singular_values": [1.5, 0.5],
    }  # fmt: skip


def optimizer_values(name: str, first: float, last: float, reached: float = 1.0, rise: float = -0.01) -> dict[str, Any]:
    """`rise`: what a layer adds to the rank before training, above that after it."""
    rows = [{"optimizer": name, "depth": d, "reached": share, "rate": 0.1, "rho": rho, "rho_start": rho + rise * d,
             "test": 0.5, "steps": 7.0}
            for d, rho, share in ((1, first, 1.0), (8, last, reached))]  # fmt: skip
    return {"rows": rows}


def search_values(depth: int, rho: float | None, kept: int = 150) -> dict[str, Any]:
    row = {"depth": depth, "kept": kept, "draws": 10_000, "share": kept / 10_000, "low": 0.0, "high": 0.1,
           "hollow": kept < 30, "rho": rho, "rho_se": 0.01, "rho_all": 1.0, "accuracy": 0.7}  # fmt: skip
    return {"rows": [row]}


def network_values(
    accuracy: float, train: float, *ranks: float, test: float = 0.0, first: float = 0.1
) -> dict[str, Any]:
    """`first`: what the ranks were above their last value before training."""
    named = {f"linear{k}": rank for k, rank in enumerate(ranks, 1)}
    before = {name: rank + first for name, rank in named.items()}
    return {
        "ranks_at_first": {**before, "classifier": 1.0},
        "accuracy": accuracy, "train": train, "gap": train - accuracy, "test": test, "gram_rank": 1.5,
        "hidden_ranks": named, "ranks": {**named, "classifier": 1.0},
        "history": [{"step": 0.0, "train_loss": 2.0}, {"step": 9.0, "train_loss": 1.0}],
        "spectra": {name: [1.0, 0.5, 0.1] for name in named},
    }  # fmt: skip


def kernel_values(depth: int, rho: float) -> dict[str, Any]:
    history = [{"step": 0.0, "gram_rank": 2.5}, {"step": 9.0, "gram_rank": rho}]
    return {
        "accuracy": 0.9, "train": 1.0, "gram_rank": rho, "history": history, "layer_ranks": [2.0] * depth,
        "cophenetic": 0.7, "within": 0.8, "between": 0.4, "gram": [[1.0, 0.1], [0.1, 1.0]],
    }  # fmt: skip


def recorded(values: dict[str, list[dict[str, Any]]]) -> Outcomes:
    return Outcomes(
        (Cell(name, {}, seed), {"values": run, "seconds": 1.0})
        for name, runs in values.items()
        for seed, run in enumerate(runs)
    )


def values(good: bool) -> dict[str, list[dict[str, Any]]]:
    """Cells of all presets, by name: every claim holds of the good ones, and none of the others."""

    def either(one: Any, other: Any) -> Any:
        return one if good else other

    found: dict[str, Any] = {
        "volume products": volume_values([3.2, 3.0, 2.8, 2.4, 1.9], [True, True, True, either(True, False)],
                                         off=either(0.04, 0.1)),
        "volume relu": volume_values(either([2.0, 1.5, 1.1, 0.7, 0.4], [2.0, 2.1, 1.9, 1.7, 1.6]),
                                     [either(True, False), True, True, True]),
        "volume fashion": volume_values([2.3, 1.8, 1.3, 0.9, either(0.8, 1.0)], [True] * 4),
        "volume skips block-scaled": volume_values([1.9, 1.9, 1.8, 1.8, either(1.7, 1.5)], [False] * 4),
        "volume tanh": volume_values([2.0, 2.1, 2.0, 1.9, 1.8], [False] * 4),
    }  # fmt: skip
    for d, rho in zip(SEARCHED, either([1.9, 1.5, 1.1, 0.9], [1.9, 1.95, 1.6, 1.2]), strict=True):
        found[f"search d={d}"] = search_values(d, rho)
    tests = dict(zip(REGRESSED, [1.0, 0.2, 0.8, 0.9, either(0.6, 0.8), 0.9, 0.1, either(1.0, 0.8)], strict=True))
    for place, d in enumerate(REGRESSED):
        train = either(5e-5, 5e-4) if d == 12 else 1e-5
        rho = 2.5 - 0.1 * place + (0.0 if good or d != 8 else 0.15)
        found[f"regress r=2 d={d}"] = regress_values(d, train, tests[d], rho)
    found["regress r=32 d=2"] = regress_values(2, 1e-6, 0.5, 3.1)
    found["regress r=32 d=16"] = regress_values(16, either(1e-3, 5e-5), 0.5, 2.7)
    for name in OPTIMISERS:
        drop = either(0.6, 0.4) if name == "rmsprop" else 0.9
        for kind in ("optimizer", "classify"):
            found[f"{kind} {name}"] = optimizer_values(name, 2.0, 2.0 - drop, rise=either(-0.01, 0.2))
    seeds: dict[str, list[dict[str, Any]]] = {}
    for data in ("digits", "mnist5k"):
        seeds[f"{data} plain"] = [network_values(0.9, 1.0, 4.0 + s, 3.0) for s in range(3)]
        less = either((0.2, 0.6), (-0.1, 0.3))
        seeds[f"{data} d=3"] = [
            network_values(0.9, 1.0, 4.0 + s - less[0], 3.0 - less[1], first=either(0.4, 0.0)) for s in range(3)
        ]
    for rate, held in ((0.01, 0.5), (0.03, 0.6), (0.1, 0.4)):  # the best on held-out images, not on the test set
        for network, test, train in (("plain", 0.60, 0.80), ("d=2", either(0.61, 0.58), either(0.75, 0.80))):
            there = test + (0.0 if rate == 0.03 else 0.2)
            runs = [network_values(held, train, 3.0, test=there + 0.01 * s) for s in range(3)]
            seeds[f"cifar {network}, lr {rate:g}"] = runs
    seeds["cifar plain, lr 0.1"][1] = {"diverged": 1.0}
    for d, rho in zip(DEPTHS, [1.9, 1.8, 1.7, 1.6, either(1.2, 2.0)], strict=True):
        seeds[f"kernels d={d}"] = [kernel_values(d, rho + 0.1 * s) for s in range(3)]
    for name, held, test in (
        ("plain, lr 0.05", 0.75, 0.74),
        ("nuclear, 1e-06", 0.80, 0.78),
        ("nuclear, 0.01", 0.70, 0.95),  # better on the test set, not on held-out samples
        ("nuclear, 1e-05", 0.5, 0.5),
        ("products of 2, lr 0.01", 0.5, either(0.8, 0.1)),
        ("products of 2, lr 0.05", 0.79, 0.99),
        ("decay on products of 2, 0.001", 0.82, either(0.80, 0.77)),
    ):
        seeds[f"compare {name}"] = [network_values(held, 0.9, 3.0, test=test + 0.01 * s) for s in range(3)]
    seeds["compare l1, 0.001"] = [network_values(0.99, 0.9, 3.0, test=0.99), {"diverged": 1.0}]
    seeds["compare l1, 0.0001"] = [network_values(0.6, 0.9, 3.0, test=0.6)] * 3
    seeds["compare stable-rank, 0.01"] = [{"diverged": 1.0}] * 3
    seeds["gpu plain, lr 0.01"] = [network_values(0.80, 0.95, 3.0, test=0.79)]
    seeds["gpu plain, lr 0.1"] = [network_values(0.79, 0.2, 3.0, test=0.1)]
    seeds["gpu d=2, lr 0.01"] = [network_values(0.81, 0.5, 3.0, test=0.99)]  # better on the test set, not held out
    seeds["gpu d=4, lr 0.03"] = [network_values(0.82, either(0.93, 0.97), 3.0, test=either(0.80, 0.785))]
    smoke = smoke_values(1.0 if good else math.nan)
    return {name: [run] for name, run in found.items()} | seeds | {n: r for n, r in smoke.items() if n not in found}


def smoke_values(number: float) -> dict[str, list[dict[str, Any]]]:
    cells: dict[str, list[dict[str, Any]]] = {}
    for name, fields in smoke_cells().items():
        row = {"depth": 1, "mean": 1.0, "rho": number, "fitted_at": None}
        cells[name] = [{"rows": [row]} if "study" in fields else network_values(0.5, 0.5, 1.0)]
    return cells


# -- quantities --------------------------------------------------------------------------------------------------------


def test_quantities_on_known_numbers() -> None:
    found, outcomes = LowRankStudy().quantities(), recorded(values(True))
    exact = {
        "volume-linear-steps": [1.0], "volume-limit": [0.04], "volume-relu-step": [0.3], "volume-relu-drop": [1.6],
        "volume-relu-steps": [1.0], "volume-fashion-drop": [1.5], "volume-residual-drop": [0.2],
        "search-step": [0.2], "search-drop": [1.0],
        "regress-ratio": [0.6],  # depth 2 and 12 do better and do not count
        "regress-train": [5e-5], "regress-rank-step": [0.1], "regress-full-ratio": [1000.0], "optimizers-drop": [0.6],
        "regress-too-deep": [0.1, 0.1], "optimizers-start-drop": [0.97], "classify-drop": [0.6],
        "classify-start-drop": [0.97],
        "expanded-least-drop": [0.2] * 3, "expanded-mean-drop": [0.4] * 3, "expanded-mnist-least": [0.2] * 3,
        "expanded-mnist-mean": [0.4] * 3, "expanded-learned": [0.3] * 3, "expanded-mnist-learned": [0.3] * 3,
        "kernels-drop": [0.7] * 3, "compare-gain": [0.02] * 3,
        "cifar-gain": [0.01] * 3, "cifar-gap-gain": [0.06] * 3,
        "gpu-gain": [0.01], "gpu-train-gain": [0.02],
    }  # fmt: skip
    assert set(exact) | {"smoke-share"} == set(found)
    for name, numbers in exact.items():
        assert found[name](outcomes) == pytest.approx(numbers), name
    worse = recorded(values(False))
    assert found["volume-linear-steps"](worse) == [0.75]
    assert found["volume-relu-step"](worse) == pytest.approx([-0.1])
    assert found["regress-rank-step"](worse) == pytest.approx([-0.05])
    assert found["search-step"](worse) == pytest.approx([-0.05])


def test_share_of_smoke_cells() -> None:
    assert smoke_share(recorded(smoke_values(1.0))) == [1.0]
    broken = smoke_values(1.0)
    broken["search d=1"][0]["rows"][0]["rho"] = math.inf
    broken["train plain"][0]["history"][-1]["train_loss"] = 2.5  # has not learned
    assert smoke_share(recorded(broken)) == pytest.approx([1 - 2 / len(smoke_cells())])
    del broken["train cnn"]
    with pytest.raises(Missing):
        smoke_share(recorded(broken))


def test_points_without_enough_draws_carry_no_verdict() -> None:
    few = values(True)
    few["search d=4"] = [search_values(4, 1.1, kept=29)]
    with pytest.raises(Missing, match="thirty"):
        LowRankStudy().quantities()["search-step"](recorded(few))
    few["search d=4"] = [search_values(4, 1.1, kept=30)]
    assert LowRankStudy().quantities()["search-step"](recorded(few)) == pytest.approx([0.2])
    few["optimizer gd"] = [optimizer_values("gd", 2.0, 0.5, reached=0.4)]
    assert optimizer_drop(recorded(few), "optimizer gd") == -math.inf
    assert LowRankStudy().quantities()["optimizers-drop"](recorded(few)) == [-math.inf]


def test_variants_and_strengths_are_chosen_on_held_out_images() -> None:
    outcomes = recorded(values(True))
    assert chosen_variant(outcomes) == "gpu d=4, lr 0.03"
    with pytest.raises(Missing):
        chosen_variant(recorded({"gpu plain": [network_values(0.8, 0.9, 1.0)]}))
    rows = {row["way"]: row for row in compared(outcomes)}
    assert {way: row.get("setting") for way, row in rows.items()} == {
        "plain": "lr 0.05", "nuclear": "1e-06", "products of 2": "lr 0.05", "decay on products of 2": "0.001",
        "l1": "0.0001", "stable-rank": None,
    }  # fmt: skip
    assert {way: row["diverged"] for way, row in rows.items() if row["diverged"]} == {"l1": 1, "stable-rank": 1}
    assert rows["nuclear"]["tests"] == pytest.approx([0.78, 0.79, 0.80])
    assert rows["nuclear"]["test_se"] == pytest.approx(0.01 / math.sqrt(3))
    assert "test" not in rows["stable-rank"]
    with pytest.raises(Missing):
        compare_gain(recorded({"compare plain": [network_values(0.8, 0.9, 1.0)]}))
    assert least_step(outcomes, "volume tanh") == pytest.approx([-0.1])
    assert expanded_drops(outcomes, "digits")[1] == pytest.approx([0.2, 0.6])


# -- claims ------------------------------------------------------------------------------------------------------------


def test_every_claim_names_a_quantity_and_every_quantity_is_claimed() -> None:
    assert {claim.quantity for claim in CLAIMS} == set(LowRankStudy().quantities())


@pytest.mark.parametrize(("claim", "preset"), JUDGED, ids=[f"{claim.id}-{preset}" for claim, preset in JUDGED])
def test_every_claim_can_hold_and_can_fail(claim: Any, preset: str) -> None:
    made = smoke_values if claim.id == "smoke" else None
    for good, verdict in ((True, "pass"), (False, "fail")):
        outcomes = recorded(made(1.0 if good else math.nan) if made else values(good))
        row = judge(claim, LowRankStudy(), outcomes, preset)
        assert row["verdict"] == verdict, row["measured"]
        assert row["seconds"] > 0


def test_claims_without_their_cells_are_not_judged() -> None:
    for claim, preset in JUDGED:
        row = judge(claim, LowRankStudy(), recorded({}), preset)
        assert row["verdict"] == "not-run"
        assert not row["absent"]


def test_absent_data_are_reported(tmp_path: Path) -> None:
    study = LowRankStudy()
    for preset in ("smoke", "cpu"):
        assert study.absent(ReproduceConfig(preset=preset, data_root=tmp_path)) == {}
    asked = {
        "cpu-long": {"volume-fashion-drop", "cifar-accuracy", "cifar-gap"},
        "gpu": {"gpu-accuracy", "gpu-train", "compare"},
    }
    for preset, wanting in asked.items():
        absent = study.absent(ReproduceConfig(preset=preset, data_root=tmp_path))  # pyright: ignore[reportArgumentType]
        assert all("not under the data root" in reason for reason in absent.values())
        rows = [judge(c, study, recorded({}), preset, absent) for c in CLAIMS if preset in c.threshold]
        assert {row["id"] for row in rows if row["absent"]} == wanting


# -- cells -------------------------------------------------------------------------------------------------------------

CELLS = {
    **{f"smoke: {name}": fields for name, fields in smoke_cells().items()},
    **volume_cells(32, 1000, DEPTHS), **feature_cells(60), **feature_cells(50, "fashion", 256), **search_cells(150),
    **regression_cells(64, 2000), **optimizer_cells(8, 3000), **digits_cells(), **cifar_cells(), **gpu_cells(),
    **gpu_compare_cells(), **paper_cells(), **kernel_cells(), **compare_cells(),
}  # fmt: skip


def test_networks_of_cells_can_be_built() -> None:
    built = {name: fields for name, fields in CELLS.items() if fields.get("study") not in KINDS}
    assert len(built) > 60
    for name, fields in built.items():
        config = from_json(TrainConfig, {field: value for field, value in fields.items() if field != "study"})
        with torch.device("meta"):
            model = make_model(config)
        products = [m for m in model.modules() if isinstance(m, (ExpandedLinear, ExpandedConv2d))]
        assert bool(products) is (config.expand != "none"), name


@pytest.mark.parametrize("preset", LADDER)
def test_cells_of_a_preset(preset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, config = LowRankStudy(), ReproduceConfig(preset=preset, data_root=tmp_path)
    if preset == "paper":
        with pytest.raises(UserError, match="data-root"):
            study.cells(config)
    else:
        assert not [cell for cell in study.cells(config) if cell.settings.get("data") in ("cifar10", "fashion")]
    monkeypatch.setattr(experiments, "present", lambda data, root: True)
    monkeypatch.setattr(experiments, "fingerprint", lambda data, root: "")
    cells = study.cells(config)  # every one is a config, or this raises
    assert len({cell.key() for cell in cells}) == len(cells)
    for name in {cell.name for cell in cells}:
        own = [cell for cell in cells if cell.name == name]
        count = 1 if own[0].settings.get("study") in KINDS else SEEDS[preset]  # draws are within a cell
        assert sorted(cell.seed for cell in own) == list(range(count))
    assert {cell.name for cell in study.cells(replace(config, seeds=2))} == {cell.name for cell in cells}
    assert max(cell.seed for cell in study.cells(replace(config, seeds=2))) <= 1
    # No claim of the preset asks for a cell that the preset does not plan.
    known = smoke_values(1.0) if preset == "smoke" else values(True)
    made = recorded({cell.name: known[cell.name] for cell in cells if cell.name in known})
    for claim in CLAIMS:
        if preset in claim.threshold:
            assert judge(claim, study, made, preset)["verdict"] == "pass", claim.id


def test_a_field_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match="depht"):
        experiments.check({"study": "volume", "depht": [1]})
    with pytest.raises(UserError, match="--model"):
        experiments.check({"model": "cnm"})


# -- tables and figures ------------------------------------------------------------------------------------------------


def test_tables_are_made_of_outcomes() -> None:
    study = LowRankStudy()
    tables = study.tables(recorded({n: v for n, v in values(True).items() if not n.startswith("train ")}))
    assert len(tables) == 8
    for columns, rows in tables.values():
        assert rows
        assert all(len(row) == len(columns) for row in rows)
    networks, regression, optimisers, classifiers, search, kernels, penalties, trained = tables.values()
    assert networks[0] == ("networks", "1", "2", "4", "8", "16")
    assert ("relu", 2.0, 1.5, 1.1, 0.7, 0.4) in networks[1]
    names = [row[0] for row in regression[1]]
    assert names[: len(REGRESSED)] == [f"r=2 d={d}" for d in REGRESSED]  # by number: 12 after 8
    assert names[-4:] == ["r=2 least norm", "r=2 truth", "r=32 least norm", "r=32 truth"]
    assert [row[:2] for row in optimisers[1]] == [(name, d) for name in sorted(OPTIMISERS) for d in (1, 8)]
    assert [row[:2] for row in classifiers[1]] == [row[:2] for row in optimisers[1]]
    assert [row[0] for row in search[1]] == list(SEARCHED)
    assert [row[0] for row in kernels[1]] == [f"d={d}" for d in DEPTHS]
    assert kernels[1][0][1:5] == pytest.approx((0.9, 1.0, 2.5, 2.0))
    assert [row[:2] for row in penalties[1]][:3] == [("plain", 1), ("nuclear", 3), ("products of 2", 2)]
    assert [row[2] for row in penalties[1]][:3] == ["lr 0.05", "1e-06, at an end", "lr 0.05, at an end"]
    assert not [row for row in trained[1] if row[0].startswith(("compare", "kernels"))]
    [cifar] = [row for row in trained[1] if row[0] == "cifar d=2, lr 0.03"]
    assert cifar[1:] == pytest.approx((0.6, 0.62, 0.75, 3.1, 3.0, 1.5))
    assert not [row for row in trained[1] if row[0] == "cifar plain, lr 0.1"]  # one of its runs diverged
    assert study.tables(recorded({})) == {}


def test_figures_are_drawn_from_outcomes(tmp_path: Path) -> None:
    study = LowRankStudy()
    with png_only():
        made = study.figures(recorded({n: v for n, v in values(True).items() if not n.startswith("train ")}), tmp_path)
    assert {path.stem for path in made} == {
        "products", "relu", "fashion", "exceptions", "regression", "trajectories", "optimizers", "classification",
        "search", "kernels", "ordered", "accuracy", "compare", "digits-spectra", "mnist5k-spectra",
        "cifar-spectra", "gpu-spectra",
    }  # fmt: skip
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in made)
    assert study.figures(recorded({}), tmp_path) == []
