"""Sessions for `shared` and for every member found under projects/: `uvx nox --list` shows them.

    uvx nox                          every member's tests, lint, types
    uvx nox -s test-rpg -- -k ring   one member; what follows -- goes to pytest
    uvx nox -s reproduce-rpg -- --preset cpu

Each session has an environment of its own, which uv makes to hold one member's dependencies and nothing else. uv
links files from its cache, so an environment takes seconds and next to no disk; it is kept, and brought up to date
each time. A member is a folder: delete it, and its sessions are gone; add one, and they are there.
"""

from __future__ import annotations

import re
from pathlib import Path

import nox

nox.needs_version = ">=2026.4"
nox.options.default_venv_backend = "uv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = True

ROOT = Path(__file__).resolve().parent
PAPERS = sorted(path.parent.name for path in (ROOT / "projects").glob("*/pyproject.toml"))
FOLDERS = {"shared": "shared", **{paper: f"projects/{paper}" for paper in PAPERS}}

# None takes a variable away. Tests must not see the user's data; compiled bytecode makes the next import of torch
# several times faster.
ENVIRONMENT = {"PAPERS_DATA": None, "PYTHONDONTWRITEBYTECODE": None}


def groups(member: str) -> list[str]:
    """Names of a member's dependency groups. Read by hand, for nox may run on a Python without tomllib."""
    text = (ROOT / FOLDERS[member] / "pyproject.toml").read_text(encoding="utf-8")
    _, _, table = text.partition("[dependency-groups]\n")
    return re.findall(r"^([\w-]+) *=", table.partition("\n[")[0], re.MULTILINE)


def sync(session: nox.Session, *options: str) -> None:
    """Make the session's environment exactly what uv resolves for `options`."""
    # nox points UV_PROJECT_ENVIRONMENT and UV_PYTHON at the session's environment.
    session.run_install("uv", "sync", "--quiet", "--no-default-groups", *options, external=True)


def test(session: nox.Session, member: str) -> None:
    """Run a member's tests in an environment with that member's dependencies alone."""
    folder = FOLDERS[member]
    sync(session, "--package", member, "--group", "test")
    session.run("python", "-m", "shared.isolation", folder, "test", env=ENVIRONMENT)
    # Tests are small: a process a core with one thread each, not one process with all threads.
    variables = {**ENVIRONMENT, "OMP_NUM_THREADS": "1", "ISOLATED_MEMBER": member}
    spread = ("-n", "auto", "--dist", "worksteal")
    session.run("python", "-m", "pytest", f"{folder}/tests", *spread, "--durations=5", *session.posargs, env=variables)


def verb(session: nox.Session, member: str, name: str) -> None:
    """Run one verb of a member's command-line app, with the group of that name (the peers of a race) if it has one."""
    sync(session, "--package", member, *(["--group", name] if name in groups(member) else []))
    session.run(member, name, *session.posargs, env={"PYTHONDONTWRITEBYTECODE": None})


def register(member: str) -> None:
    """Register the sessions of one member."""

    @nox.session(name=f"test-{member}", tags=["test"])
    def test_member(session: nox.Session) -> None:
        test(session, member)

    test_member.__doc__ = f"Tests of {member}, alone in its environment."
    if member == "shared":

        @nox.session(name="bench-shared", default=False, tags=["bench"])
        def bench_shared(session: nox.Session) -> None:
            """What the loop costs over a bare PyTorch loop, in about a minute."""
            sync(session, "--package", "shared")
            session.run("python", f"{FOLDERS['shared']}/benchmarks/loop.py", *session.posargs, env=ENVIRONMENT)

        return

    @nox.session(name=f"bench-{member}", default=False, tags=["bench"])
    def bench_member(session: nox.Session) -> None:
        verb(session, member, "bench")

    @nox.session(name=f"reproduce-{member}", default=False, tags=["reproduce"])
    def reproduce_member(session: nox.Session) -> None:
        verb(session, member, "reproduce")

    bench_member.__doc__ = f"Races of {member} against its peers: {member} bench."
    reproduce_member.__doc__ = f"The claims of {member}'s paper: {member} reproduce."


for _member in FOLDERS:
    register(_member)


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff: rules and formatting."""
    sync(session, "--only-group", "dev")
    session.run("ruff", "check", *session.posargs, ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Pyright over shared and every member, in an environment where all their imports resolve."""
    sync(session, "--all-packages", "--all-groups")
    session.run("pyright", *session.posargs)


@nox.session(default=False, venv_backend="none")
def docs(session: nox.Session) -> None:
    """Write the tables in the READMEs from the results; with `-- --check`, only say whether they have drifted."""
    # Needs the standard library alone, and so no environment.
    command = ("uv", "run", "--no-project", "--python", ">=3.11", "python", "-m", "shared.claims", "docs")
    session.run(*command, *session.posargs, external=True, env={"PYTHONPATH": str(ROOT / "shared" / "src")})
