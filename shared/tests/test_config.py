"""Configs and refusals."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.config import RunConfig, UserError, check_choice, check_range, differences, from_json, to_json


def test_refusal_names_field_value_valid_values_and_the_nearest() -> None:
    with pytest.raises(UserError) as caught:
        check_choice("--plan", "evn", ["even", "hash"])
    assert str(caught.value) == "--plan: got 'evn'; valid: even, hash (did you mean 'even'?)"


def test_refusal_survives_pickling_between_processes() -> None:
    error = UserError("--plan", "evn", ["even"], "hint")
    assert str(pickle.loads(pickle.dumps(error))) == str(UserError("--plan", "evn", "even", "hint"))


@given(st.floats(allow_nan=True))
def test_range_admits_exactly_its_interval(value: float) -> None:
    if 0 < value <= 1:
        check_range("x", value, 0, 1, open_low=True)
    else:
        with pytest.raises(UserError, match=r"\(0, 1\]"):
            check_range("x", value, 0, 1, open_low=True)


@pytest.mark.parametrize(
    ("low", "high", "text"), [(1, float("inf"), "a number >= 1"), (float("-inf"), 2.5, "a number <= 2.5")]
)
def test_range_without_an_end_shows_no_infinity(low: float, high: float, text: str) -> None:
    with pytest.raises(UserError, match=f"valid: {text}$"):
        check_range("x", float("nan"), low, high)


def test_refusal_is_a_value_error_that_is_not_taken_for_a_bad_file() -> None:
    assert issubclass(UserError, ValueError)
    with pytest.raises(UserError) as caught:
        from_json(Fancy, {"nested": {"widhts": [1]}})
    assert "did you mean 'widths'" in str(caught.value)
    with pytest.raises(UserError) as caught:
        from_json(RunConfig, {"steps": 0})
    assert caught.value.field == "--steps"  # not wrapped in a refusal of the whole file


@dataclass(frozen=True)
class Nested:
    widths: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class Fancy(RunConfig):
    nested: Nested = field(default_factory=Nested)
    maybe: Path | None = None
    pair: tuple[str, ...] = ()


def test_config_survives_json() -> None:
    config = Fancy(out=Path("a/b"), maybe=Path("c"), nested=Nested((3,)), pair=("x", "y"), epochs=1.5)
    assert from_json(Fancy, to_json(config)) == config


def test_unknown_field_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"config\.json: field: got 'stepz'.*did you mean 'steps'"):
        from_json(RunConfig, {"stepz": 3})


def test_circumstances_are_no_difference() -> None:
    one = RunConfig(steps=3, out=Path("a"), quiet=True, data_root=Path("/x"))
    other = dataclasses.replace(one, out=Path("b"), quiet=False, data_root=None, steps=4)
    assert differences(one, other) == {"steps": (3, 4)}


@pytest.mark.parametrize(
    ("change", "name"),
    [({"steps": 0}, "--steps"), ({"epochs": 0.0}, "--epochs"), ({"devices": 0}, "--devices"), ({"seed": -1}, "--seed")],
)
def test_impossible_values_are_refused_on_construction(change: dict[str, Any], name: str) -> None:
    with pytest.raises(UserError, match=name):
        RunConfig(**change)


def test_configs_claims_and_command_line_import_no_torch() -> None:
    code = (
        "import sys, shared.config, shared.cli, shared.claims, shared.run, shared.data; print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
