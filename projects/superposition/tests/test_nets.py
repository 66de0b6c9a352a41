"""Networks under one context at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from shared.config import UserError
from superposition.layers import PSPLinear
from superposition.nets import Superposed, contextualize, fully_connected


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


class Recurrent(nn.Module):
    """Uses one layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.again = nn.Linear(8, 8)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.again(self.first(x).relu()).relu())


def test_a_layer_used_twice_stays_one() -> None:
    net = contextualize(Recurrent(), "binary", seed=0).double()
    assert isinstance(net.host.again, PSPLinear)
    assert net.host.again is net.host.first
    x = torch.randn(5, 8, dtype=torch.float64)
    for k in (0, 3):
        torch.testing.assert_close(net.retrieve(k)(x), net(x, k))
    assert sum(p.numel() for p in net.parameters()) == 8 * 8 + 8 + 8 * 3 + 3


def test_what_was_frozen_stays_so() -> None:
    host = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    host[0].weight.requires_grad_(False)
    net = contextualize(host, "binary")
    asks = {name: p.requires_grad for name, p in net.named_parameters()}
    assert asks == {"host.0.weight": False, "host.0.bias": True, "host.1.weight": True, "host.1.bias": True}


def test_layers_whose_binding_would_do_nothing_are_refused() -> None:
    attention = nn.Sequential(nn.Linear(8, 8), nn.MultiheadAttention(8, 2))
    with pytest.raises(UserError, match="out_proj"):
        contextualize(attention, "binary")
    contextualize(attention, "binary", exclude=("*out_proj",))
    with pytest.raises(UserError, match="Parametrized"):
        contextualize(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))), "binary")
    tied = nn.Sequential(nn.Embedding(8, 8), nn.Linear(8, 8))
    tied[1].weight = tied[0].weight
    with pytest.raises(UserError, match="'0'"):
        contextualize(tied, "binary")
