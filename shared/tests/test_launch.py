"""`train` runs the paper that was asked for, or none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import shared
from shared.config import UserError
from shared.launch import UvRun, choose, project_at, uv_run

KNOWN = {"low-rank": None, "rpg": None}


@pytest.mark.parametrize(
    ("commandline", "arguments", "package"),
    [
        ("uv run --package rpg train", "", "rpg"),
        ("/opt/bin/uv run --package=rpg train --seed 1", "--seed 1", "rpg"),
        ("uv.exe -q run --package rpg -- train", "", "rpg"),
        ("python /opt/bin/uv run --package rpg train", "", "rpg"),
        ("uv run --package low-rank --package rpg train", "", "rpg"),
        ("uv run --group train --package rpg train", "", "rpg"),
        ("uv run --package rpg .venv/bin/train --data x", "--data x", "rpg"),
        # A flag of train's own is none of uv's, and the other way round.
        ("uv run train --package rpg", "--package rpg", None),
        ("uv run -q train --package rpg", "--package rpg", None),
        ("uv run --package rpg train --package essl", "--package essl", "rpg"),
        # Something between uv and train: its flags are not uv's.
        ("uv run --package rpg bash -c train", "", "rpg"),
        ("uv run launcher train.sh --package rpg", "", None),
        ("uv run --package rpg -- launcher --package essl", "", "rpg"),
    ],
)
def test_options_of_uv_run(commandline: str, arguments: str, package: str | None) -> None:
    found = uv_run(commandline.split(), arguments.split())
    assert found is not None
    assert found.value("--package") == package


@pytest.mark.parametrize(
    "commandline",
    ["", "bash", "uv sync --package rpg", "uvx nox", "uv tool run --package rpg train", "runner run --package rpg"],
)
def test_other_parents_say_nothing(commandline: str) -> None:
    assert uv_run(commandline.split(), []) is None


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text("[tool.uv.workspace]\nmembers = ['projects/*']\n")
    for name in ("rpg", "Low_Rank", "absent"):
        folder = tmp_path / "projects" / name / "src"
        folder.mkdir(parents=True)
        entry = f"[project.entry-points.'papers.train']\n{name} = 'x:main'\n"
        (folder.parent / "pyproject.toml").write_text(f"[project]\nname = '{name}'\n{entry}")
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "pyproject.toml").write_text("[project]\nname = 'library'\n")
    return tmp_path


def test_project_at_takes_the_nearest(workspace: Path) -> None:
    assert project_at(workspace / "projects" / "rpg" / "src") == ("rpg", True)
    assert project_at(workspace / "library") == ("library", False)
    assert project_at(workspace) == (None, False)
    (workspace / "pyproject.toml").write_text("[[[")
    assert project_at(workspace) == (None, False)


def test_order_of_the_hints(workspace: Path) -> None:
    projects = workspace / "projects"

    def chosen(
        options: str | None, directory: Path, known: Any = KNOWN, above: Path = workspace, **variables: str
    ) -> str:
        run = None if options is None else UvRun(tuple(options.split()), above)
        return choose(known, [], run, directory, variables)

    assert chosen("--package rpg", projects / "Low_Rank") == "rpg"
    assert chosen("--package=LOW_rank --project projects/rpg", projects / "rpg") == "low-rank"
    assert chosen("--project projects/rpg", projects / "Low_Rank") == "rpg"
    assert chosen("--project=projects/Low_Rank", workspace) == "low-rank"
    assert chosen("", projects / "Low_Rank", UV_PROJECT="projects/rpg") == "rpg"
    # uv has gone to --directory itself: its own working directory says where that is.
    assert chosen("--directory projects/rpg", projects / "Low_Rank", above=projects / "rpg") == "rpg"
    assert chosen("--directory ..", projects / "Low_Rank") == "low-rank"
    assert chosen(None, projects / "rpg" / "src") == "rpg"
    assert chosen("", projects / "rpg") == "rpg"
    assert chosen("--project .", workspace, {"rpg": None}) == "rpg"
    assert chosen(None, workspace / "library", {"rpg": None}) == "rpg"


def test_refusals_list_the_commands(workspace: Path) -> None:
    with pytest.raises(UserError) as none_named:
        choose(KNOWN, ["--data", "my file"], None, workspace, {})
    assert "uv run --package rpg train --data 'my file'" in str(none_named.value)
    assert "uv run --package low-rank train --data 'my file'" in str(none_named.value)
    # A name that is no paper is never answered with the only paper at hand.
    with pytest.raises(UserError, match="did you mean 'rpg'"):
        choose({"rpg": None}, [], UvRun(("--package", "rgp"), workspace), workspace, {})
    with pytest.raises(UserError, match="--package: got 'shared'"):
        choose({"rpg": None}, [], UvRun(("--package", "shared"), workspace), workspace / "projects" / "rpg", {})
    for run, directory in (
        (None, workspace / "projects" / "absent"),
        (UvRun(("--project=projects/absent",), workspace), workspace),
    ):
        with pytest.raises(UserError, match="not installed in this environment"):
            choose({"rpg": None}, [], run, directory, {})
    with pytest.raises(UserError, match="No member is installed"):
        choose({}, [], None, workspace, {})


def test_main_answers_quickly_without_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from shared import launch; launch.members = dict;"
        "code = launch.main([]); assert not {'torch', 'numpy', 'tyro'} & set(sys.modules), 'heavy'; sys.exit(code)"
    )
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
        seconds.append(time.perf_counter() - began)
        assert done.returncode == 2
        assert done.stderr.startswith("train: error: member: got 'none named'")
    assert min(seconds) < 0.5, seconds


# -- a real workspace ---------------------------------------------------------------------------------------------


def uv() -> str | None:
    found = shutil.which("uv")
    if found is None and find_spec("uv") is not None:
        from uv import find_uv_bin  # pyright: ignore[reportMissingImports]

        found = find_uv_bin()
    return found


def environment() -> dict[str, str]:
    """Without what nox, or a `uv run` above this test, tells uv and train."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("UV") and name != "VIRTUAL_ENV"}
    if "UV_CACHE_DIR" in os.environ:
        kept["UV_CACHE_DIR"] = os.environ["UV_CACHE_DIR"]
    return {**kept, "UV_OFFLINE": "1", "UV_PYTHON": sys.executable}


@pytest.fixture(scope="module")
def toy_workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Members `a` and `b`, whose `train` prints its name, and `shared` cut down to launch and config."""
    binary = uv()
    if binary is None:
        pytest.skip("uv is not here")
    root = tmp_path_factory.mktemp("workspace")
    version = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    # uv builds with the backend inside itself, offline, when its own version will do.
    build = f"[build-system]\nrequires = ['uv_build=={version}']\nbuild-backend = 'uv_build'\n"
    (root / "pyproject.toml").write_text("[tool.uv.workspace]\nmembers = ['shared', 'projects/*']\n")
    package = root / "shared" / "src" / "shared"
    package.mkdir(parents=True)
    for name in ("__init__.py", "config.py", "launch.py"):
        shutil.copy(Path(shared.__file__).parent / name, package)
    head = "[project]\nversion = '1'\nrequires-python = '>=3.11'\n"
    scripts = "[project.scripts]\ntrain = 'shared.launch:main'\n"
    (root / "shared" / "pyproject.toml").write_text(f"{head}name = 'shared'\n{scripts}{build}")
    for name in ("a", "b"):
        source = root / "projects" / name / "src" / name
        source.mkdir(parents=True)
        (source / "__init__.py").touch()
        (source / "cli.py").write_text(f"def main(arguments=None):\n    print('{name}', *arguments)\n    return 7\n")
        entry = f"[project.entry-points.'papers.train']\n{name} = '{name}.cli:main'\n"
        local = "[tool.uv.sources]\nshared = { workspace = true }\n"
        (root / "projects" / name / "pyproject.toml").write_text(
            f"{head}name = '{name}'\ndependencies = ['shared']\n{entry}{local}{build}"
        )
    subprocess.run([binary, "venv", "--quiet"], cwd=root, env=environment(), check=True)
    # psutil is all that launch needs: lend this environment's, which uv does not know of and leaves alone.
    origin = find_spec("psutil")
    assert origin is not None
    assert origin.origin is not None
    lent = root / "lent"
    lent.mkdir()
    (lent / "psutil").symlink_to(Path(origin.origin).parent)
    site = next((root / ".venv").glob("lib/python*/site-packages"))
    (site / "lent.pth").write_text(f"{lent}\n")
    return root


def start(root: Path, *command: str, directory: str = ".") -> subprocess.CompletedProcess[str]:
    binary = uv()
    assert binary is not None
    words = [binary, *command]
    return subprocess.run(words, cwd=root / directory, env=environment(), capture_output=True, text=True, timeout=60)


@pytest.mark.slow
def test_two_members_side_by_side_80_of_80(toy_workspace: Path) -> None:
    def run(name: str) -> tuple[str, str]:
        done = start(toy_workspace, "run", "--package", name, "train", "--seed", "1")
        return name, done.stdout.strip() if done.returncode == 7 else f"{done.returncode}: {done.stderr}"

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(run, ["a", "b"] * 40))
    wrong = [outcome for outcome in outcomes if outcome[1] != f"{outcome[0]} train --seed 1"]
    assert not wrong, f"{len(wrong)} of {len(outcomes)} wrong: {wrong[:3]}"


def test_ways_to_name_a_member(toy_workspace: Path) -> None:
    # Both are installed from here on, so that none is chosen for want of another.
    assert start(toy_workspace, "sync", "--all-packages", "--inexact").returncode == 0
    for command, directory, expected in (
        (("run", "--package=b", "train"), ".", "b train"),
        (("run", "--project", "projects/a", "train"), ".", "a train"),
        (("run", "--directory", "projects/b", "train"), ".", "b train"),
        (("--directory=../a", "run", "train"), "projects/b", "a train"),
        (("run", "train", "--package", "a"), "projects/b", "b train --package a"),
        (("run", "--package", "a", "bash", "-c", "cd projects/b; train --x; exit $?"), ".", "a train --x"),
        (("run", "--package", "a", "bash", "-c", f"cd projects/b; {uv()} run train; exit $?"), ".", "b train"),
    ):
        done = start(toy_workspace, *command, directory=directory)
        assert (done.returncode, done.stdout.strip()) == (7, expected), (command, done.stderr)


def test_no_member_named_is_refused(toy_workspace: Path) -> None:
    assert start(toy_workspace, "sync", "--all-packages", "--inexact").returncode == 0
    for command, complaint in (
        (("run", "train", "--seed", "3"), "none named"),
        (("run", "--package", "shared", "train", "--seed", "3"), "--package: got 'shared'"),
    ):
        done = start(toy_workspace, *command)
        assert done.returncode == 2
        assert complaint in done.stderr
        assert "uv run --package a train --seed 3" in done.stderr
        assert "uv run --package b train --seed 3" in done.stderr
        assert "Traceback" not in done.stderr
