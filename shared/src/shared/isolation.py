"""Is an environment what one member's dependencies make it, and nothing more? Imports no torch.

    python -m shared.isolation projects/rpg test

exits with 1 and names every installed distribution that neither the member at that folder nor its dependency groups
bring in, directly or through others. `nox` asks this before it runs a member's tests: a library of another member
in the environment would hide a missing dependency.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from shared.config import UserError, check_choice


def installed() -> dict[str, list[str]]:
    """Every distribution in this environment, by normalised name, with the requirements in its metadata."""
    return {canonicalize_name(found.name): list(found.requires or ()) for found in distributions()}


def closure(roots: Iterable[str], requires: Mapping[str, Sequence[str]]) -> set[str]:
    """Names reached from requirements, extras and environment markers heeded.

    Args:
        roots: requirements to start from, as in `pyproject.toml`.
        requires: requirements by normalised name; a name without an entry leads nowhere.
    """
    reached: set[tuple[str, str]] = set()  # (name, extra), with "" for no extra
    waiting = [(Requirement(root), "") for root in roots]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for wanted in ("", *requirement.extras):
            if (name, wanted) not in reached:
                reached.add((name, wanted))
                waiting += [(Requirement(line), wanted) for line in requires.get(name, ())]
    return {name for name, _ in reached}


def foreign(roots: Iterable[str], requires: Mapping[str, Sequence[str]]) -> list[str]:
    """Installed distributions that the roots do not account for, sorted."""
    return sorted(set(requires) - closure(roots, requires))


def group(name: str, groups: Mapping[str, Sequence[Any]]) -> list[str]:
    """The requirements of a dependency group, the groups that it includes among them.

    Raises:
        UserError: there is no such group.
    """
    check_choice("dependency group", name, groups)
    lines: list[str] = []
    for line in groups[name]:
        lines += [line] if isinstance(line, str) else group(line["include-group"], groups)
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m shared.isolation FOLDER [GROUP ...]`."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0].startswith("-"):
        print("usage: python -m shared.isolation FOLDER [GROUP ...]", file=sys.stderr)
        return 2
    try:
        content = tomllib.loads((Path(arguments[0]) / "pyproject.toml").read_text(encoding="utf-8"))
        member = content["project"]["name"]
        roots = [member]
        for name in arguments[1:]:
            roots += group(name, content.get("dependency-groups", {}))
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        print(f"error: {arguments[0]}: not the folder of a project", file=sys.stderr)
        return 2
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    there = installed()
    if canonicalize_name(member) not in there:
        print(f"{member} is not installed in {sys.prefix}", file=sys.stderr)
        return 1
    strangers = foreign(roots, there)
    if strangers:
        print(f"not in the dependencies of {member}, yet installed: {', '.join(strangers)}", file=sys.stderr)
        return 1
    print(f"{len(there)} distributions, all in the dependencies of {member}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
