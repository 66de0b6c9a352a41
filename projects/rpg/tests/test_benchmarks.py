"""Each race runs by itself, says what it ran on, and leaves a table that the README can show."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from shared.claims import races_section
from shared.cli import member_home

FOLDER = member_home("rpg") / "benchmarks"


def run(name: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(FOLDER / f"{name}.py"), *flags], capture_output=True, text=True)


def test_model_files_stay_within_their_bound(tmp_path: Path) -> None:
    path = tmp_path / "size.json"
    result = run("file_size", "--quick", "--json", str(path))
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "thread" in result.stdout
    table = json.loads(path.read_text())
    assert all(float(row[table["columns"].index("bytes / bound")]) <= 1 for row in table["rows"])
    kept = tmp_path / "bench.json"
    kept.write_text(json.dumps({"file_size": table}))
    assert table["title"] in "".join(races_section(kept))


@pytest.mark.slow
def test_generation_is_timed_beside_the_step_it_is_part_of(tmp_path: Path) -> None:
    path = tmp_path / "share.json"
    result = run("step_share", "--quick", "--device", "cpu", "--json", str(path))
    assert result.returncode == 0, result.stderr
    assert "on a GPU at batch 128, is not judged here" in result.stdout
    (row,) = json.loads(path.read_text())["rows"]
    assert 0 < float(row[3].removesuffix(" %")) < 100


@pytest.mark.slow
def test_the_generator_is_raced_on_both_plans(tmp_path: Path) -> None:
    path = tmp_path / "generator.json"
    result = run("generator", "--quick", "--device", "cpu", "--json", str(path))
    assert result.returncode == 0, result.stderr
    assert "ResNet-34's plan" in result.stdout
    names = [row[0] for row in json.loads(path.read_text())["rows"]]
    assert any("which knows no chunks" in name for name in names)
    assert any("on the same plan" in name for name in names)
