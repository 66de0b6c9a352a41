"""The study behind the claims, on invented outcomes: names fit together, choices are fair, figures are drawn."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import rpg.data.names
from rpg import experiments, train
from rpg.config import TrainConfig
from rpg.experiments import RpgStudy, best, chosen, gap, learning_rates, log_correlation, stems
from rpg.plots import draw_study
from shared.claims import Cell, Outcomes, ReproduceConfig, judge, read_claims
from shared.cli import member_home
from shared.config import from_json

PRESETS = ("smoke", "cpu", "gpu", "paper")
CLAIMS = read_claims(member_home("rpg") / "claims.toml").claims


def invented(cell: Cell) -> dict[str, Any]:
    """What `measure` could have returned: every name has its own accuracy, every seed its own."""
    settings = from_json(TrainConfig, {**cell.settings})
    ring = 0 if settings.method == "vanilla" else settings.ring_numbers(10_000)
    accuracy = 0.2 + 0.6 * (len(cell.name) % 17) / 17 + 0.01 * cell.seed
    names = ("wrong_key", "luckiest_key", "int8", "int8_grouped", "pruned", "pruned_at_once", "train")
    shares = [f"pruned_{share:g}" for share in train.PRUNED_SHARES]
    values = {"accuracy": accuracy} | {f"{name}_accuracy": accuracy / 2 for name in (*names, *shares)}
    sizes = {"generated": 10_000, "ring": ring, "parameters": 1000 + ring, "mflops": 1.0}
    rates = {"lr": settings.lr or 0.1, "ring_lr": settings.ring_lr or settings.lr or 0.1, "data": settings.data}
    other = {"pckh": 0.5, "depth_error": 1 / accuracy, "generation_share": 0.01, "inference_ms": 1.0}
    return {**values, **sizes, **rates, **other, "curve": [[1, 2.0], [2, 1.0]]}


def study(preset: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[list[Cell], Outcomes]:
    monkeypatch.setattr(rpg.data.names, "present", lambda data, root: True)
    cells = RpgStudy().cells(ReproduceConfig(preset=preset, data_root=tmp_path))
    return cells, Outcomes((cell, {"values": invented(cell), "seconds": 1.0}) for cell in cells)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_claim_of_a_preset_is_judged_by_its_cells(
    preset: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, outcomes = study(preset, monkeypatch, tmp_path)
    asked = [claim for claim in CLAIMS if preset in claim.threshold]
    assert asked
    for claim in asked:
        row = judge(claim, RpgStudy(), outcomes, preset)
        assert row["verdict"] in ("pass", "fail"), claim.id
        assert row["seconds"] > 0


@pytest.mark.parametrize("preset", PRESETS)
def test_without_data_a_claim_is_judged_or_says_what_is_wanting(
    preset: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(rpg.data.names, "present", lambda data, root: False)
    config = ReproduceConfig(preset=preset, data_root=tmp_path)
    cells, absent = RpgStudy().cells(config), RpgStudy().absent(config)
    outcomes = Outcomes((cell, {"values": invented(cell), "seconds": 1.0}) for cell in cells)
    for claim in CLAIMS:
        if preset in claim.threshold:
            row = judge(claim, RpgStudy(), outcomes, preset, absent)
            assert row["verdict"] != "not-run" or "is not under the data root" in row["reason"], claim.id
    monkeypatch.setattr(rpg.data.names, "present", lambda data, root: True)
    assert RpgStudy().absent(config) == {}


@pytest.mark.parametrize("preset", PRESETS)
def test_cells_are_valid_runs_with_names_of_their_own(
    preset: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cells, _ = study(preset, monkeypatch, tmp_path)
    assert len({(cell.name, cell.seed) for cell in cells}) == len(cells)
    for cell in cells:
        from_json(TrainConfig, {**cell.settings})  # refuses what `train` would refuse


def test_the_cpu_preset_is_the_specified_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cells, _ = study("cpu", monkeypatch, tmp_path)
    assert {cell.seed for cell in cells} == {0, 1, 2}
    for cell in cells:
        assert cell.settings["batch_size"] == 128
        if cell.name.startswith("conv"):
            assert (cell.settings["max_train"], cell.settings["max_test"], cell.settings["steps"]) == (4000, 1000, 500)
        else:
            assert cell.settings["steps"] == 400
    # Every method of the residual network meets the same learning rates, rings and baselines alike.
    rates = {name.rpartition(" lr=")[0]: set() for name in (c.name for c in cells) if name.startswith("conv")}
    for cell in cells:
        if cell.name.startswith("conv"):
            rates[cell.name.rpartition(" lr=")[0]].add(cell.settings["lr"])
    assert len(rates) == 7
    assert all(found == set(experiments.CONV_RATES) for found in rates.values())


def table(**values: list[float]) -> Outcomes:
    pairs = ((name, seed, value) for name, seeds in values.items() for seed, value in enumerate(seeds))
    return Outcomes((Cell(n, {}, s), {"values": {"accuracy": v, "other": 10 * v}, "seconds": 1}) for n, s, v in pairs)


def test_each_method_is_taken_at_its_best_mean_over_the_seeds() -> None:
    outcomes = table(**{"a lr=0.1": [0.9, 0.1], "a lr=0.2": [0.6, 0.6], "b lr=0.1": [0.5, 0.3], "ab lr=0.1": [1, 1]})
    assert stems(outcomes, "a") == ["a"]  # `ab` is another method
    assert chosen(outcomes, "a") == "a lr=0.2"
    assert best(outcomes, "a", "other") == [6.0, 6.0]
    assert gap(outcomes, "a", "b") == pytest.approx([0.1, 0.3])
    assert learning_rates(outcomes)["a"] == pytest.approx({0.1: 0.5, 0.2: 0.6})
    with pytest.raises(KeyError):
        chosen(outcomes, "c")


def test_log_correlation_is_one_on_a_line_and_falls_off_it() -> None:
    def line(bend: float) -> Outcomes:
        sizes = (100, 300, 1000, 3000)
        return table(**{f"m M={m} lr=1": [0.1 * math.log10(m) ** (1 + bend)] for m in sizes})

    assert log_correlation(line(0), "m M=")[0] == pytest.approx(1)
    assert log_correlation(line(-4), "m M=")[0] < 0


@pytest.mark.parametrize("preset", PRESETS)
def test_figures_and_tables_are_made_from_what_is_there(
    preset: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, outcomes = study(preset, monkeypatch, tmp_path)
    made = draw_study(outcomes, tmp_path)
    assert made
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in made)
    tables = RpgStudy().tables(outcomes)
    assert tables
    for columns, rows in tables.values():
        assert rows
        assert all(len(row) == len(columns) for row in rows)
