"""The study on invented outcomes: what quantities, tables and figures make of known numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shared.claims import LADDER, Cell, Outcomes, ReproduceConfig, read_claims
from shared.cli import member_home
from shared.config import UserError, from_json
from superposition.config import TrainConfig
from superposition.experiments import (
    EWC_STRENGTHS,
    EXPERIMENTS,
    SI_STRENGTHS,
    SuperpositionStudy,
    baseline_cells,
    experiment_cells,
    fast_cells,
    gpu_cells,
    mnist_cells,
    permuting_cells,
    residual_cells,
    robustness_cells,
    rotating_cells,
)


def values(average: float, task1: float = 0.5) -> dict[str, Any]:
    return {
        "average": average, "task1": task1, "task1_loss": 0.9 - task1, "worst": average, "wrong_context": 0.1,
        "selection": 1.0, "current": 0.9, "history": [[10, 0.2, 0.3], [60, 0.8, 0.8], [100, task1, 0.9]],
        "matrix": [[0.9, 0.1], [None, None]],
    }  # fmt: skip


def outcomes() -> Outcomes:
    cells = (
        permuting_cells()
        | rotating_cells()
        | baseline_cells()
        | fast_cells()
        | robustness_cells()
        | residual_cells()
        | mnist_cells()
        | gpu_cells()
    )
    finished = []
    for number, name in enumerate(cells):
        level = 0.6 if "standard" in name else 0.8 if "si 30" in name else 0.7 if "si" in name else 0.9
        level += 0.01 * ("H=256" in name) + 0.02 * ("H=512" in name) - 0.2 * ("H=64" in name)
        for seed in range(3):
            finished.append((Cell(name, {"n": number}, seed), {"values": values(level, 0.6), "seconds": 1.0}))
    layer = {
        "measured": 1.1,
        "exact": 1.0,
        "isotropic": 2.0,
        "ratio": 1.1,
        "signal": 4.0,
        "inputs": 784,
        "effective": 260.0,
    }
    offline = {"alone": [0.9], "layers": {"1": layer}, "kept": {"binary 2": 0.5}}
    finished.append((Cell("offline", {}, 0), {"values": offline, "seconds": 1.0}))
    rows = [{"kind": "binary", "models": 2, "inputs": 64, "measured": 0.13, "predicted": 0.125}]
    finished.append((Cell("noise", {}, 0), {"values": {"rows": rows}, "seconds": 1.0}))
    return Outcomes(finished)


def test_quantities_on_known_numbers() -> None:
    found, study = SuperpositionStudy().quantities(), outcomes()
    assert found["binary-gain"](study) == pytest.approx([0.3] * 3)
    assert found["thirty-gain"](study) == pytest.approx([0.3] * 3)
    assert found["width-steps"](study) == pytest.approx([0.01])
    assert found["width-gain"](study) == pytest.approx([0.22] * 3)
    assert found["turning-worst"](study) == pytest.approx([0.6] * 3)
    assert found["si-gain"](study) == pytest.approx([0.2] * 3)
    assert found["over-baselines"](study) == pytest.approx([0.0] * 3)  # EWC stands at 0.9 here
    assert found["offline-ratio"](study) == pytest.approx([0.1])
    assert found["noise-ratio"](study) == pytest.approx([0.04])
    assert found["icifar-drop"](study) == pytest.approx([0.0] * 3)
    assert found["si-monotone"](study) == pytest.approx([0.0])
    # On three tasks "si 30" stands out, 0.8, and of both methods EWC at 0.9.
    assert found["si-gain-searched"](study) == pytest.approx([0.2] * 3)
    assert found["over-baselines-searched"](study) == pytest.approx([0.0] * 3)
    assert found["fast-gain"](study) == pytest.approx([0.3] * 3)
    assert found["other-permutations"](study) == pytest.approx([0.3] * 3)


def test_every_claim_names_a_quantity_and_every_quantity_is_claimed() -> None:
    claims = read_claims(member_home("superposition") / "claims.toml").claims
    assert {claim.quantity for claim in claims} == set(SuperpositionStudy().quantities())


def test_tables_and_figures_are_drawn_from_outcomes(tmp_path: Path) -> None:
    study = SuperpositionStudy()
    tables = study.tables(outcomes())
    assert len(tables) == 3
    for columns, rows in tables.values():
        assert rows
        assert all(len(row) == len(columns) for row in rows)
    made = study.figures(outcomes(), tmp_path)
    assert {path.stem for path in made} == {
        "kinds", "widths", "rotating", "fast", "icifar", "units", "keys", "noise", "storage", "baselines",
    }  # fmt: skip
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in made)
    published = [(Cell(name, {}, 0), {"values": values(0.7), "seconds": 1.0})
                 for experiment in EXPERIMENTS for name in experiment_cells(experiment)]  # fmt: skip
    made = study.figures(Outcomes(published), tmp_path)
    assert {path.stem for path in made} == {*EXPERIMENTS, "perm-kinds-256", "perm-kinds-2000"} - {"perm-kinds"}
    assert study.tables(Outcomes([])) == {}
    assert study.figures(Outcomes([]), tmp_path) == []


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_are_configs(name: str) -> None:
    for fields in experiment_cells(name).values():
        from_json(TrainConfig, fields)
    if name in ("icifar100", "rot-fmnist"):
        with pytest.raises(UserError, match="--lite"):
            experiment_cells(name, lite=True)
        return
    for fields in experiment_cells(name, lite=True).values():
        assert from_json(TrainConfig, fields).planned_steps <= 10_000


@pytest.mark.parametrize("preset", LADDER)
def test_presets_plan_what_their_data_allow(preset: Any, tmp_path: Path) -> None:
    study, config = SuperpositionStudy(), ReproduceConfig(preset=preset, data_root=tmp_path)
    if preset == "paper":
        with pytest.raises(UserError, match="MNIST"):
            study.cells(config)
    else:
        names = {cell.name for cell in study.cells(config)}
        assert not [n for n in names if n.startswith(("mnist ", "fashion ", "icifar-lite"))]
        assert names
    lacking = study.absent(config)
    assert bool(lacking) is (preset in ("cpu-long", "gpu", "paper"))


def test_grids_are_those_of_the_specification() -> None:
    cells = baseline_cells() | robustness_cells()
    assert {f"permute10 ewc {s:g}" for s in EWC_STRENGTHS} | {f"permute10 si {s:g}" for s in SI_STRENGTHS} <= set(cells)
    assert {"robust standard, Adam", "robust binary, no bias (authors)", "robust binary, depth 10"} <= set(cells)
