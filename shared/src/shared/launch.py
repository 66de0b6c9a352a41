"""`train`: one command for the whole workspace, which runs the member that was asked for.

uv gives the workspace one environment. Were every member to install a script called `train`, the last one installed
would win, and two started at once would run each other's paper. So the script belongs to `shared` alone, members
register an entry point in the group `papers.train`, and this module finds the member, in this order:

1. `--package`, else `--project` or `--directory`, of the nearest `uv run` among the parent processes;
2. the member that the current directory lies in;
3. the only member installed.

Otherwise it stops with the list of members and the command for each. Imports no torch.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from shared.config import UserError

GROUP = "papers.train"


def normalised(name: str) -> str:
    """A project's name as package indexes compare it: `Low_Rank` and `low-rank` are one."""
    return re.sub(r"[-_.]+", "-", name).lower()


def members() -> dict[str, EntryPoint]:
    """The members installed in this environment, by normalised name."""
    return {normalised(entry.name): entry for entry in sorted(entry_points(group=GROUP), key=lambda e: e.name)}


@dataclass(frozen=True)
class UvRun:
    """A `uv run` above this process.

    Attributes:
        options: its command line without uv itself and without the command that it runs.
        directory: its working directory, which already is `--directory` if that was given.
    """

    options: tuple[str, ...]
    directory: Path | None

    def value(self, flag: str) -> str | None:
        """The value of `--flag value` or `--flag=value`; the last one counts, as for uv."""
        found = None
        for position, option in enumerate(self.options):
            if option == flag and position + 1 < len(self.options):
                found = self.options[position + 1]
            elif option.startswith(flag + "="):
                found = option[len(flag) + 1 :]
        return found


def uv_run(commandline: Sequence[str], arguments: Sequence[str], directory: Path | None = None) -> UvRun | None:
    """Read the command line of a parent process; None unless it is `uv ... run ...`.

    Args:
        commandline: of the parent.
        arguments: of this process, behind `train`: where the parent's command line ends with them, all before is uv's.
        directory: the parent's working directory.
    """
    # `uv` may itself be a script run by an interpreter: look a little way in.
    start = next((i for i, word in enumerate(commandline[:3]) if Path(word).name.lower() in ("uv", "uv.exe")), None)
    if start is None or "run" not in commandline[start + 1 :]:
        return None
    run = list(commandline).index("run", start + 1)
    before, after = list(commandline[start + 1 : run]), list(commandline[run + 1 :])
    if "tool" in before:  # `uv tool run`: runs a tool, not a project
        return None
    length = len(after) - len(arguments)
    if length > 0 and after[length:] == list(arguments) and Path(after[length - 1]).stem == "train":
        return UvRun((*before, *after[: length - 1]), directory)
    # Something else stands between uv and this process (a shell, a launcher): uv's options end at `--`, or at the
    # first word that neither is a flag nor can be the value of one.
    for position, word in enumerate(after):
        follows_flag = position > 0 and after[position - 1].startswith("-") and "=" not in after[position - 1]
        if word == "--" or not (word.startswith("-") or follows_flag):
            after = after[:position]
            break
    return UvRun((*before, *after), directory)


def nearest_uv_run(arguments: Sequence[str]) -> UvRun | None:
    """The nearest `uv run` among the parents of this process."""
    import psutil

    process: psutil.Process | None = psutil.Process()
    while True:
        try:
            process = process.parent()
            if process is None:
                return None
            found = uv_run(process.cmdline(), arguments)
            if found is None:
                continue
            try:
                return UvRun(found.options, Path(process.cwd()))
            except psutil.Error:
                return found
        except psutil.Error:  # another user's process, or one that has ended: nothing to be learned above it
            return None


def project_at(directory: Path) -> tuple[str | None, bool]:
    """The project that a directory lies in: (its name, whether it registers a `papers.train` entry point).

    The nearest `pyproject.toml` counts, at the directory or above; the name is None if there is none, or if it has
    no name, as the root of the workspace.
    """
    for folder in (directory, *directory.parents):
        try:
            content = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
        except OSError:
            continue
        except ValueError:  # not TOML, or not text
            return None, False
        project = content.get("project", {})
        return project.get("name"), GROUP in project.get("entry-points", {})
    return None, False


def refusal(field: str, value: str, known: Iterable[str], arguments: Sequence[str]) -> UserError:
    """The error for a member that cannot be found, with the command for each that can."""
    commands = [f"  {shlex.join(['uv', 'run', '--package', name, 'train', *arguments])}" for name in known]
    hint = "Say which paper to train:\n" + "\n".join(commands) if commands else "No member is installed here."
    return UserError(field, value, list(known) or "an installed member", hint)


def choose(
    known: Mapping[str, object],
    arguments: Sequence[str],
    above: UvRun | None,
    directory: Path,
    environment: Mapping[str, str],
) -> str:
    """The normalised name of the member that was asked for.

    Args:
        known: the members installed, by normalised name.
        arguments: behind `train`, for the commands in the error.
        above: the nearest `uv run`.
        directory: the current directory.
        environment: the environment variables; uv takes `UV_PROJECT` for `--project`.

    Raises:
        UserError: the member named is not installed or is no paper, or several are installed and none was named.
    """
    # What was named outright must exist.
    if above is not None and (package := above.value("--package")) is not None:
        if normalised(package) in known:
            return normalised(package)
        raise refusal("--package", package, known, arguments)
    places: list[tuple[str, Path]] = []
    if above is not None:
        home = above.directory or directory
        project = above.value("--project") or environment.get("UV_PROJECT")
        if project is not None:
            places.append(("--project", (home / project).resolve()))
        if above.value("--directory") is not None:
            places.append(("--directory", home))
    places.append(("current directory", directory))
    for field, place in places:
        name, is_member = project_at(place)
        if name is not None and normalised(name) in known:
            return normalised(name)
        if is_member:  # a paper, but not one of this environment: never run another in its stead
            raise refusal(field, f"{place} (member {name}, not installed in this environment)", known, arguments)
    if len(known) == 1:
        return next(iter(known))
    raise refusal("member", "none named", known, arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `train` of the member that was asked for; returns its exit code, or 2 if none could be found."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    known = members()
    try:
        member = choose(known, arguments, nearest_uv_run(arguments), Path.cwd(), os.environ)
    except UserError as error:
        print(f"train: error: {error}", file=sys.stderr)
        return 2
    return known[member].load()(["train", *arguments]) or 0


if __name__ == "__main__":
    sys.exit(main())
