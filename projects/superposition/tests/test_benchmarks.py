"""The races run, in seconds; what they measure is not asked here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RACES = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("race", RACES, ids=lambda path: path.stem)
def test_a_race_runs_and_keeps_its_table(race: Path, tmp_path: Path) -> None:
    flags = ["--quick", "--json", str(tmp_path / "race.json")]
    done = subprocess.run([sys.executable, str(race), *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "race.json").exists()
