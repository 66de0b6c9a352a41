"""low-rank is tested with its own dependencies: the libraries of other papers are not there to lean on."""

from __future__ import annotations

import importlib.util
import os

import pytest


@pytest.mark.skipif(
    os.environ.get("ISOLATED_MEMBER") != "low-rank",
    reason="only nox makes an environment for low-rank alone; the workspace's own may hold every member",
)
@pytest.mark.parametrize("library", ["gymnasium", "mujoco", "gensim", "avalanche"])
def test_libraries_of_other_members_cannot_be_imported(library: str) -> None:
    assert importlib.util.find_spec(library) is None
