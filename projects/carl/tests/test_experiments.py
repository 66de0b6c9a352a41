"""What is computed from cells: on outcomes made by hand, whose quantities are known."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from carl.config import MODEL_FREE
from carl.experiments import CarlStudy, cells_of, fewer_false_votes, finite, ratio_rows, safer_than
from carl.measures import experiment, model_free
from carl.model_free import ModelFree
from carl.settings import SETTINGS
from shared.claims import Cell, Missing, Outcomes, ReproduceConfig, read_claims


def log(variant: str, returns: list[float], catastrophes: list[int], target: float = 1.0) -> dict[str, Any]:
    return {
        "variant": variant, "target": target, "returns": returns, "catastrophes": catastrophes,
        "test_returns": [1.0], "test_catastrophes": [0],
    }  # fmt: skip


def tried(variant: str, until: list[int | None]) -> dict[str, Any]:
    return {"variant": variant, "target": 1.0, "returns": [1.0] * len(until), "first_catastrophe": until}


def cartpole(seed: int, **changes: Any) -> dict[str, Any]:
    head = {"as trained": 0.02, "scaled": 0.005 + seed / 1000, "pos_weight": 0.03, "plain": 0.01}
    return {
        "seed": seed, "steps": 200, "refused": [], "source_returns": [100.0, 190.0, 195.0, 200.0],
        "adaptation": [log("carl-state", [120.0, 180.0 + seed], [1, 0]), log("mb-finetune", [60.0, 150.0], [1, 1])],
        "zero_shot": [tried("mb-frozen", [40, None]), tried("carl-state", [80, None]), tried("carl-reward", [20, 150])],
        "head": {loss: {"false_votes": value} for loss, value in head.items()},
        **changes,
    }  # fmt: skip


def outcomes(**changes: Any) -> Outcomes:
    found = [(Cell("cartpole", {}, seed), {"values": {"seeds": [cartpole(seed, **changes)]}}) for seed in range(2)]
    ways = [{"target": t, "returns": [20.0, 40.0], "catastrophes": [1, 1], "test_catastrophes": 0} for t in (1.0, 2.0)]
    free = {"source_return": 50.0, "source_updates": 9.0, "source_steps": 100.0, "adaptation": ways}
    found += [(Cell(f"{method} cartpole", {}, seed), {"values": free}) for method in MODEL_FREE for seed in range(2)]
    return Outcomes(found)


def test_quantities_of_known_outcomes() -> None:
    of = CarlStudy().quantities()
    made = outcomes()
    assert of["source-return"](made) == [195.0, 195.0]
    assert of["safer-than-rarl"](made) == [1.0]
    assert of["better-than-rarl"](made) == [pytest.approx(140.5)]
    assert of["false-votes-worst"](made) == [0.02]
    assert of["false-votes-afresh"](made) == [pytest.approx(0.006)]
    assert of["false-votes-fewer"](made) == [1.0]
    assert of["catastrophes-mb-finetune-1"](made) == [2.0, 2.0]
    assert of["smoke-finite"](made) == [1.0, 1.0]


SIZES: dict[str, Any] = {"env": "cartpole", "seeds": 1, "zero_shot": 1, "variants": ["mb-finetune", "carl-state"]}


def without_clocks(found: Any) -> Any:
    """The same without milliseconds."""
    if isinstance(found, dict):
        return {k: without_clocks(v) for k, v in found.items() if not k.endswith("plan_ms")}
    return [without_clocks(v) for v in found] if isinstance(found, list) else found


@pytest.mark.parametrize("phase", ["pretraining.source_iteration", "adaptation.adapt_iteration"])
def test_a_killed_cell_goes_on_to_what_it_would_have_been(
    phase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = replace(SETTINGS["smoke"]["cartpole"], source_iterations=3, adapt_iterations=3)
    monkeypatch.setitem(SETTINGS["smoke"], "cartpole", setting)
    whole = experiment("smoke", "cpu", 0, **SIZES)
    module, _, name = phase.partition(".")
    home = importlib.import_module(f"carl.{module}")
    original, calls = getattr(home, name), []

    def mortal(*given: Any) -> Any:
        calls.append(given[-1])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*given)

    monkeypatch.setattr(home, name, mortal)
    with pytest.raises(KeyboardInterrupt):
        experiment("smoke", "cpu", 0, **SIZES, scratch=tmp_path)
    again = experiment("smoke", "cpu", 0, **SIZES, scratch=tmp_path)
    assert len(calls) == 4  # two, the third that was killed, and once more the third alone
    assert without_clocks(again) == without_clocks(whole)


def test_a_killed_policy_goes_on_and_meets_every_target_after_one_source_phase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"method": "ppo-dr", "env": "cartpole", "targets": [1.0, 1.5]}
    whole = model_free("smoke", "cpu", 0, **given)
    assert [log["target"] for log in whole["adaptation"]] == [1.0, 1.5]
    alone = model_free("smoke", "cpu", 0, **{**given, "targets": [1.5]})
    assert alone["adaptation"] == whole["adaptation"][1:]
    step, calls = ModelFree.step, []

    def mortal(self: ModelFree, batch: Any) -> Any:
        calls.append(self.loop.step)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(ModelFree, "step", mortal)
    with pytest.raises(KeyboardInterrupt):
        model_free("smoke", "cpu", 0, **given, scratch=tmp_path)
    assert model_free("smoke", "cpu", 0, **given, scratch=tmp_path) == whole
    assert calls[3] > 0  # not from the beginning


def test_a_tie_is_no_win_and_what_was_not_asked_is_missing() -> None:
    even = outcomes(adaptation=[log("carl-state", [1.0, 2.0], [1, 1])])
    claim = next(each for each in read_claims(claims()).claims if each.id == "safer-than-rarl")
    assert safer_than(even, "rarl") == [0.0]
    assert not claim.holds(0.0, "cpu-long")
    assert claim.holds(0.1, "cpu-long")
    with pytest.raises(Missing):
        fewer_false_votes(outcomes(head={loss: {"false_votes": 0.0} for loss in ("scaled", "pos_weight")}))


def test_a_variant_that_did_not_run_or_a_test_that_is_no_number_is_no_whole_smoke_run() -> None:
    assert finite(outcomes(refused=["carl-state"])) == [0.0, 0.0]
    assert finite(outcomes(zero_shot=[tried("mb-frozen", [1]) | {"returns": [float("nan")]}])) == [0.0, 0.0]


def test_paired_ratios_have_intervals_and_every_seed() -> None:
    _, rows = ratio_rows(outcomes(), "cartpole")
    found = {(row[0], row[2]): row for row in rows}
    assert found["carl-state", "-"][3:5] == [4, f"{280 / 240:.3f}"]
    assert found["carl-state", 100][4] == f"{180 / 140:.3f}"
    assert found["carl-reward", "-"][4] == f"{170 / 240:.3f}"
    low, high = (float(end) for end in found["carl-reward", "-"][5].split(" to "))
    assert low < 170 / 240 < high
    assert found["carl-state", "-"][6] == "1.17, 1.17"


def claims() -> Path:
    return Path(__file__).parents[1] / "claims.toml"


def test_every_claim_names_a_quantity_and_every_preset_has_cells() -> None:
    quantities = CarlStudy().quantities()
    for claim in read_claims(claims()).claims:
        assert claim.quantity in quantities, claim.id
    for preset in CarlStudy.presets:
        assert CarlStudy().cells(ReproduceConfig(preset=preset))
    names = {name for name, _, _ in cells_of("cpu-long")}
    assert names == {"cartpole", *(f"{method} cartpole" for method in MODEL_FREE)}
