"""Networks under one context at a time."""

from __future__ import annotations

import torch

from superposition.nets import Superposed, fully_connected


def test_two_wrappers_of_one_host_do_not_take_each_others_context_for_theirs() -> None:
    one = fully_connected((8, 6, 3), "binary")
    other = Superposed(one.host)
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    one.set_context(3)
    other.set_context(0)
    torch.testing.assert_close(other(x), other.retrieve(0)(x))
    torch.testing.assert_close(one(x, 3), one.retrieve(3)(x))
    one.set_context(3)
    torch.testing.assert_close(one(x), one.retrieve(3)(x))
