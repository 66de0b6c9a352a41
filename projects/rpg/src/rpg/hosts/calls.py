"""What the calls of a repeated part share: nothing, their kernels, or everything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from torch import nn

from rpg.hosts.host import NORMS
from shared.config import check_choice

Share = Literal["none", "kernels", "all"]


def share_calls(calls: Sequence[nn.Module], share: str) -> nn.ModuleList:
    """Make equal modules, called one after the other, share their parts.

    Args:
        calls: modules of one structure.
        share: `none`: each call has its own kernels and norms (for a ring to make the kernels);
            `kernels`: every call uses the first one's convolutions and linear maps, but its own norms, with their
            own statistics; `all`: the first module is called again and again, norms included.

    Returns:
        The calls. Shared parts are the same modules, so their parameters are named, and counted, once.

    Raises:
        UserError: unknown `share`.
    """
    check_choice("share", share, get_args(Share))
    if share == "all":
        return nn.ModuleList([calls[0]] * len(calls))
    if share == "kernels":
        for call in calls[1:]:
            for path, part in list(calls[0].named_modules()):
                if _owns_parameters(part) and not isinstance(part, NORMS):
                    call.set_submodule(path, part)
    return nn.ModuleList(calls)


def _owns_parameters(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None
