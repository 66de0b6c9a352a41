"""The isolation check: closures over made-up metadata, and a foreign distribution in a real environment is caught."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shared import isolation
from shared.config import UserError

METADATA = {
    "paper": ["numbers>=1", "shared", "Plot_Lib[pretty]; python_version >= '3'"],
    "shared": ["numbers", "windows-only; sys_platform == 'nowhere'"],
    "numbers": [],
    "plot-lib": ["colours; extra == 'pretty'", "fonts; extra == 'ugly'", "numbers"],
    "colours": ["paper"],  # a circle ends
}


def test_closure_heeds_markers_and_extras() -> None:
    assert isolation.closure(["paper"], METADATA) == {"paper", "shared", "numbers", "plot-lib", "colours"}
    assert isolation.closure(["plot.lib"], METADATA) == {"plot-lib", "numbers"}
    assert isolation.closure(["plot-lib", "plot-lib[ugly]"], METADATA) == {"plot-lib", "numbers", "fonts"}


def test_foreign_names_what_nothing_asks_for() -> None:
    assert isolation.foreign(["paper"], METADATA) == []
    assert isolation.foreign(["paper"], {**METADATA, "gensim": [], "fonts": []}) == ["fonts", "gensim"]
    assert isolation.foreign(["shared"], METADATA) == ["colours", "paper", "plot-lib"]


def test_groups_include_groups() -> None:
    groups = {"test": ["pytest>=9", {"include-group": "peers"}], "peers": ["rival"]}
    assert isolation.group("test", groups) == ["pytest>=9", "rival"]
    with pytest.raises(UserError, match="did you mean 'test'"):
        isolation.group("tset", groups)


def distribution(folder: Path, name: str, *requires: str) -> None:
    """Lay down the metadata of an installed distribution."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0", *(f"Requires-Dist: {r}" for r in requires)]
    (info / "METADATA").write_text("\n".join(lines) + "\n")


def check(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the check where the distributions under `site` are the only ones; modules come from this environment."""
    program = (
        "import importlib.metadata as m, sys; from shared import isolation;"
        f"isolation.distributions = lambda: m.distributions(path=[{str(site)!r}]);"
        "sys.exit(isolation.main(sys.argv[1:]))"
    )
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=os.environ)


def test_the_check_as_nox_runs_it(tmp_path: Path) -> None:
    project, site = tmp_path / "projects" / "paper", tmp_path / "site"
    project.mkdir(parents=True)
    (project / "pyproject.toml").write_text('[project]\nname = "paper"\n[dependency-groups]\ntest = ["py-test>=9"]\n')
    distribution(site, "paper", "numbers")
    distribution(site, "numbers")
    distribution(site, "py_test")
    clean = check(site, str(project), "test")
    assert clean.returncode == 0, clean.stderr
    assert "3 distributions" in clean.stdout

    without_group = check(site, str(project))
    assert without_group.returncode == 1
    assert "py-test" in without_group.stderr

    distribution(site, "gensim", "numbers")  # another member's library
    caught = check(site, str(project), "test")
    assert caught.returncode == 1
    assert caught.stderr.strip().endswith("gensim")

    assert check(tmp_path / "empty", str(project)).returncode == 1
    assert check(site, str(tmp_path)).returncode == 2
    assert check(site, str(project), "tests").returncode == 2
    assert check(site).returncode == 2
