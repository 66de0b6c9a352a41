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
from shared.config import UserError, from_json

PRESETS = ("smoke", "cpu", "cpu-long", "gpu", "paper")
CLAIMS = read_claims(member_home("rpg") / "claims.toml").claims


def invented(cell: Cell) -> dict[str, Any]:
    """What `measure` could have returned: every name has its own accuracy, every seed its own."""
    settings = from_json(TrainConfig, {**cell.settings})
    ring = 0 if settings.method == "vanilla" else settings.ring_numbers(10_000)
    accuracy = 0.2 + 0.6 * (len(cell.name) % 17) / 17 + 0.01 * cell.seed
    names = (
        "wrong_key",
        "first_wrong_key",
        "luckiest_key",
        "int8",
        "int8_grouped",
        "pruned",
        "pruned_at_once",
        "train",
        "corrupted",
        "noise",
        "blur",
        "contrast",
        "brightness",
    )
    shares = [f"pruned_{share:g}" for share in train.PRUNED_SHARES]
    values = {"accuracy": accuracy} | {f"{name}_accuracy": accuracy / 2 for name in (*names, *shares)}
    sizes = {"generated": 10_000, "ring": ring, "parameters": 1000 + ring, "mflops": 1.0}
    rates = {"lr": settings.lr or 0.1, "ring_lr": settings.ring_lr or settings.lr or 0.1, "data": settings.data}
    other = {
        "pckh": 0.5,
        "depth_error": 1 / accuracy,
        "normals_degrees": 20.0,
        "generation_share": 0.01,
        "inference_ms": 1.0,
    }
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
    if preset == "cpu-long":  # all of it is about one set
        with pytest.raises(UserError, match=r"(?s)--data-root.*CIFAR-10"):
            RpgStudy().cells(config)
        return
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
    assert len(rates_of(cells, "conv cifar10", "lr")) == 6
    assert all(found == {experiments.CONV_RATE} for found in rates_of(cells, "conv cifar10", "lr").values())
    # Rings meet the same learning rates under both plans.
    tried = rates_of(cells, "mnist5k mlp even", "ring_lr") | rates_of(cells, "mnist5k mlp reuse", "ring_lr")
    assert len(tried) == 9
    assert all(found == set(experiments.RING_RATES) for found in tried.values())


def rates_of(cells: list[Cell], prefix: str, field: str) -> dict[str, set[float]]:
    found: dict[str, set[float]] = {}
    for cell in cells:
        if cell.name.startswith(prefix):
            found.setdefault(cell.name.rpartition(" lr=")[0], set()).add(cell.settings[field])
    return found


def test_the_longer_preset_tunes_every_method_alike_and_goes_on_from_the_shorter(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cells, _ = study("cpu-long", monkeypatch, tmp_path)
    rates = rates_of(cells, "conv cifar10", "lr")
    assert len(rates) == 7
    assert all(found == set(experiments.CONV_RATES) for found in rates.values())
    shorter, _ = study("cpu", monkeypatch, tmp_path)
    shared = {cell.key() for cell in cells} & {cell.key() for cell in shorter}
    assert len(shared) == 6 * 3  # the same file: what one has run, the other has


def test_leads_costs_and_slopes_are_what_they_say() -> None:
    values = {"plain": (0.9, 0.6, 0.5), "ring": (0.7, 0.55, 0.48)}
    outcomes = Outcomes(
        (Cell(name, {}, 0), {"values": dict(zip(keys, row, strict=True)), "seconds": 1})
        for keys in [("train_accuracy", "accuracy", "corrupted_accuracy")]
        for name, row in values.items()
    )
    assert experiments.gap_narrows(outcomes, "plain", "ring") == pytest.approx([0.3 - 0.15])
    assert experiments.corruption_costs_less(outcomes, "plain", "ring") == pytest.approx([0.1 - 0.07])
    line: list[tuple[Cell, dict[str, Any]]] = []
    for stem, slope in (("a 1/", 0.1), ("b 1/", 0.2)):
        for ratio in experiments.PAPER_RATIOS:
            row = {"accuracy": 0.3 + slope * math.log10(1000 / ratio), "ring": 1000 / ratio}
            line.append((Cell(f"{stem}{ratio}", {}, 0), {"values": row, "seconds": 1}))
    assert experiments.slope_ratio(Outcomes(line), ("a 1/", "b 1/")) == pytest.approx([0.5])


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


def test_claims_about_natural_images_are_not_judged_on_digits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(rpg.data.names, "present", lambda data, root: data == "mnist5k")
    config = ReproduceConfig(preset="cpu", data_root=tmp_path)
    outcomes = Outcomes((cell, {"values": invented(cell), "seconds": 1.0}) for cell in RpgStudy().cells(config))
    absent = RpgStudy().absent(config)
    rows = {claim.id: judge(claim, RpgStudy(), outcomes, "cpu", absent) for claim in CLAIMS if "cpu" in claim.threshold}
    for name in (
        "conv-eighth",
        "conv-eighth-over-narrow",
        "wrong-key",
        "pruned-ring",
        "quantised-ring",
        "mnist-3k-accuracy",
    ):
        assert (rows[name]["verdict"], rows[name]["absent"]) == ("not-run", True), name
    assert rows["conv-mnist5k-eighth"]["verdict"] in ("pass", "fail")
    assert rows["mlp-3k-accuracy"]["verdict"] in ("pass", "fail")
    assert draw_study(outcomes, tmp_path)


def test_gated_claims_of_the_residual_network_are_judged_at_the_specified_rate() -> None:
    tuned, stated = [0.6], [0.5]
    outcomes = table(**{
        "conv cifar10 vanilla lr=0.1": [0.55], "conv cifar10 vanilla lr=0.2": [0.61],
        "conv cifar10 even 1/8 lr=0.1": stated, "conv cifar10 even 1/8 lr=0.2": tuned,
    })  # fmt: skip
    quantities = RpgStudy().quantities()
    assert quantities["conv-vanilla-minus-eighth"](outcomes) == pytest.approx([0.05])
    assert quantities["conv-vanilla-minus-eighth-tuned"](outcomes) == pytest.approx([0.01])
    conv = {claim.id: claim for claim in CLAIMS if claim.quantity.startswith("conv-")}
    assert all(
        not claim.gated and "better of two rates" in claim.statement for i, claim in conv.items() if "tuned" in i
    )
    assert {i for i, claim in conv.items() if claim.gated} == {
        "conv-eighth", "conv-eighth-over-narrow", "conv-32nd-holds-against-narrow", "conv-mnist5k-eighth",
    }  # fmt: skip


def test_one_seed_far_from_chance_under_another_key_is_not_averaged_away() -> None:
    seeds = ({"first_wrong_key_accuracy": value} for value in (0.1, 0.06, 0.12))
    name = experiments.EIGHTH
    outcomes = Outcomes((Cell(name, {}, seed), {"values": v, "seconds": 1}) for seed, v in enumerate(seeds))
    assert RpgStudy().quantities()["wrong-key"](outcomes) == pytest.approx([0.04])


def test_a_data_set_is_read_once_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    study, settings = RpgStudy(), TrainConfig(data="digits", max_train=100)
    experiments._loaded.cache_clear()
    first = study._data(settings)
    assert study._data(settings) is first
    assert len(first.y_train) == 100
    assert study._data(TrainConfig(data="digits", max_train=100, seed=1)) is not first  # another hundred
    assert study._data(TrainConfig(data="rooms", host="multitask")) is None
