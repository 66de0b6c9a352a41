"""Turns and ratios."""

from __future__ import annotations

import time

import pytest

from shared.races import race, ratio


def test_every_contestant_has_its_turns_and_one_more_to_warm_up() -> None:
    calls: list[str] = []
    times = race({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] * 4
    assert {name: len(turns) for name, turns in times.items()} == {"a": 3, "b": 3}


def test_milliseconds_and_the_median_of_the_turns_ratios() -> None:
    times = race({"sleep": lambda: time.sleep(0.01)}, 2)
    assert min(times["sleep"]) >= 10
    assert ratio({"a": [2.0, 9.0, 3.0], "b": [1.0, 1.0, 3.0]}, "a", "b") == pytest.approx(2.0)
