"""The races run, in seconds, and the peers written for them are the same maps; how fast they are is not asked here."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from low_rank.overparam import ExpandedConv2d
from shared.config import RunFailed

RACES = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("race", RACES, ids=lambda path: path.stem)
def test_a_race_runs_and_keeps_its_table(race: Path, tmp_path: Path) -> None:
    flags = ["--quick", "--json", str(tmp_path / "race.json")]
    done = subprocess.run([sys.executable, str(race), *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "race.json").read_text(encoding="utf-8"))
    assert table["rows"]
    assert all(len(row) == len(table["columns"]) for row in table["rows"])
    assert "thread" in done.stdout


@pytest.mark.parametrize("way", ["probed", "symbolic"])
def test_other_ways_to_multiply_out_find_our_kernels(way: str) -> None:
    race = runpy.run_path(str(RACES[0].with_name("collapse.py")))
    torch.manual_seed(0)
    layer = ExpandedConv2d(4, 4, (3, 1, 3), stride=2, padding=2, batch_norm=True, residual_intervals=(1, -1))
    for _ in range(3):
        layer(torch.randn(8, 4, 9, 9) + 1)  # statistics that are not those of the start
    model = nn.Sequential(layer).eval()
    expected = race["ours"](model)
    assert expected["0"][0].shape == (4, 4, 5, 5)
    assert race["difference"](expected, race[way](model)) < 1e-5
    with torch.no_grad():
        layer.weights[1][0, 0] += 0.1
    assert race["difference"](expected, race[way](model)) > 1e-3


def test_networks_that_differ_do_not_race() -> None:
    check = runpy.run_path(str(RACES[0].with_name("expanded.py")))["check"]
    one, other = nn.Linear(3, 2), nn.Linear(3, 2)
    x, y = torch.randn(5, 3), torch.tensor([0, 1, 0, 1, 1])
    assert check({"one": one, "again": one}, x, y) == 0
    with pytest.raises(RunFailed, match="one, other differ"):
        check({"one": one, "other": other}, x, y)
