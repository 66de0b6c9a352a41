"""The baselines: sizes are exact, starts are faithful, what is held stays held."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from rpg import baselines
from rpg.baselines import MagnitudePruning, RandomSubspace, low_rank, narrow_host, narrow_width, tie_layers
from rpg.hosts import make_host
from rpg.hosts.host import generated_count, generated_names, parameter_count
from shared.config import UserError

# --- narrow


@pytest.mark.parametrize(
    ("name", "budget", "options"),
    [
        ("mlp", 3_266, {"in_channels": 1, "image_size": 28}),
        ("patch-resnet", 9_000, {}),
        ("resnet18", 300_000, {}),
        ("vit-mini", 20_000, {}),
        ("msblock", 50_000, {"calls": 2}),
        ("hourglass", 20_000, {}),
        ("multitask", 50_000, {}),
    ],
)
def test_narrow_search_is_maximal(name: str, budget: int, options: dict):
    host, width = narrow_host(name, budget, **options)
    assert parameter_count(host) <= budget
    assert width % host.width_step == 0
    with torch.device("meta"):
        assert parameter_count(make_host(name, width=width + host.width_step, **options)) > budget


def test_narrow_by_generated_weights_finds_the_eleven_channel_net():
    host, width = narrow_host("patch-resnet", 9_216, count=generated_count)
    assert (width, generated_count(host)) == (11, 8_712)


def test_narrow_at_the_exact_budget_is_the_host_itself():
    full = make_host("mlp")
    assert narrow_host("mlp", parameter_count(full))[1] == 128
    assert narrow_host("mlp", parameter_count(full) - 1)[1] == 127


def test_narrow_draws_nothing_in_the_search():
    before = torch.get_rng_state()
    narrow_width(lambda width: make_host("mlp", width=width), 10_000)
    assert torch.equal(torch.get_rng_state(), before)


def test_narrow_budget_below_the_narrowest_names_its_size():
    with pytest.raises(UserError, match="at least 807"):
        narrow_host("mlp", 500, in_channels=1, image_size=28)
    with pytest.raises(UserError, match="budget sets it"):
        narrow_host("mlp", 500, width=3)


# --- low rank


@pytest.mark.parametrize("name", ["mlp", "patch-resnet", "resnet18"])
def test_low_rank_at_full_rank_reproduces_the_dense_output(name: str):
    torch.manual_seed(0)
    host = make_host(name, width=4).double()
    full, ranks = low_rank(host, fraction=1.0)
    assert len(ranks) == len(generated_names(host))
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(full(x), host(x))


def test_low_rank_fits_its_budget_and_is_maximal_on_the_grid():
    host = make_host("patch-resnet")
    budget = 20_000
    small, ranks = low_rank(host, budget)
    assert parameter_count(small) <= budget
    # Every layer has 32 outputs, so the next rank is one more in all eight layers.
    assert set(ranks.values()) == {rank := next(iter(ranks.values()))}
    assert parameter_count(low_rank(host, fraction=(rank + 1) / 32)[0]) > budget
    assert parameter_count(host) == parameter_count(make_host("patch-resnet"))  # the host is left alone


def test_low_rank_start_is_the_closest_kernel_at_the_norm_of_the_dense_one():
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=True)
    reduced = low_rank(nn.Sequential(conv), fraction=0.5)[0][0]  # pyright: ignore
    product = reduced[1].weight.flatten(1) @ reduced[0].weight.flatten(1)
    s = torch.linalg.svdvals(conv.weight.flatten(1))
    torch.testing.assert_close(product.norm(), s.norm())
    error = (product * (s[:3].norm() / s.norm()) - conv.weight.flatten(1)).norm()
    torch.testing.assert_close(error, s[3:].norm())
    assert reduced(torch.randn(1, 4, 8, 8)).shape == (1, 6, 4, 4)


def test_low_rank_keeps_shared_modules_shared():
    host = make_host("msblock", width=4, expansion=1, calls=2, share="kernels")
    small, _ = low_rank(host, fraction=0.5)
    calls = small.calls
    assert calls[0].branches[0].conv1 is calls[1].branches[0].conv1  # pyright: ignore
    assert calls[0].branches[0].norm1 is not calls[1].branches[0].norm1  # pyright: ignore
    small(torch.randn(2, 3, 32, 32)).sum().backward()


def test_low_rank_refusals():
    with pytest.raises(UserError, match="one of the two"):
        low_rank(make_host("mlp"))
    with pytest.raises(UserError, match="rank 1"):
        low_rank(make_host("mlp"), 10)
    with pytest.raises(UserError, match="tied"):
        low_rank(tie_layers(make_host("patch-resnet", width=4))[0], fraction=0.5)
    with pytest.raises(UserError, match="ungrouped"):
        low_rank(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), fraction=0.5)


# --- tied


def test_tied_layers_are_one_convolution_called_again_and_again():
    torch.manual_seed(0)
    host = make_host("patch-resnet", width=4)
    tied, groups = tie_layers(host)
    assert groups == [generated_names(host)]
    assert parameter_count(host) - parameter_count(tied) == 7 * 9 * 16
    one = copy.deepcopy(host)
    for pair in one.pairs:  # pyright: ignore
        pair.conv1 = pair.conv2 = one.pairs[0].conv1  # pyright: ignore
    x = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(tied(x), one(x), rtol=0, atol=0)
    for network in (tied, one):
        network(x).square().sum().backward()
    torch.testing.assert_close(tied.pairs[0].conv1.weight.grad, one.pairs[0].conv1.weight.grad)  # pyright: ignore
    copied = copy.deepcopy(tied).double()
    assert parameter_count(copied) == parameter_count(tied)


# --- pruning


def fine_tune(host: nn.Module, steps: int = 3) -> None:
    optimizer = torch.optim.SGD(host.parameters(), 0.1, momentum=0.9, weight_decay=1e-2)
    x, y = torch.randn(8, 3, 32, 32), torch.randint(0, 10, (8,))
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(host(x), y).backward()
        optimizer.step()


def nonzero_weights(host: nn.Module, layers: list[str]) -> int:
    return sum(int(host.get_submodule(layer).weight.count_nonzero()) for layer in layers)  # pyright: ignore


def test_pruning_keeps_the_exact_count_through_fine_tuning():
    torch.manual_seed(0)
    host = make_host("patch-resnet", width=8)
    layers = [name.removesuffix(".weight") for name in generated_names(host)]
    pruning = MagnitudePruning(host)
    total = 8 * 9 * 64
    assert pruning.total == pruning.nonzeros == total
    for keep in baselines.pruning_rounds(total, 321, rounds=3):
        pruning.prune_to(keep)
        zeros = {name: ~mask for name, mask in pruning.masks().items()}
        fine_tune(host)
        assert pruning.nonzeros == keep == nonzero_weights(host, layers)
        for name, pruned in zeros.items():
            assert not host.get_submodule(name.removesuffix(".weight")).weight[pruned].any()  # pyright: ignore
    stored = copy.deepcopy(host).state_dict()
    permanent = pruning.make_permanent()
    assert generated_names(permanent) == [layer + ".weight" for layer in layers]
    assert nonzero_weights(permanent, layers) == 321
    again = make_host("patch-resnet", width=8)
    other = MagnitudePruning(again)
    again.load_state_dict(stored)
    assert other.nonzeros == 321


def test_pruned_weights_never_come_back():
    torch.manual_seed(0)
    pruning = MagnitudePruning(make_host("patch-resnet", width=4))
    pruning.prune_to(300)
    first = pruning.masks()["pairs.0.conv1.weight"].clone()
    fine_tune(pruning.host)
    pruning.prune_to(200)
    assert not (pruning.masks()["pairs.0.conv1.weight"] & ~first).any()
    with pytest.raises(UserError, match="keep"):
        pruning.prune_to(201)


def test_one_shot_masks_equal_torch_global_unstructured():
    torch.manual_seed(0)
    host = make_host("patch-resnet", width=8)
    reference = copy.deepcopy(host)
    pruning = MagnitudePruning(host)
    layers = [name.removesuffix(".weight") for name in pruning.names]
    for keep in (1000, 500):  # torch's own, iterated too
        pruning.prune_to(keep)
        targets = [(reference.get_submodule(layer), "weight") for layer in layers]
        left = nonzero_weights(reference, layers)
        prune.global_unstructured(targets, prune.L1Unstructured, amount=left - keep)
        for name, mask in pruning.masks().items():
            expected = reference.get_submodule(name.removesuffix(".weight")).weight_mask
            assert torch.equal(mask, expected.bool())  # pyright: ignore


def test_optimizer_made_before_pruning_still_trains_the_host():
    torch.manual_seed(0)
    host = make_host("mlp", width=4)
    optimizer = torch.optim.SGD(host.parameters(), 1.0)
    pruning = MagnitudePruning(host)
    before = host.layers[0].weight.detach().clone()  # pyright: ignore
    host(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    assert not torch.equal(host.layers[0].weight, before)  # pyright: ignore
    assert pruning.nonzeros == pruning.total


def test_pruning_rounds():
    assert baselines.pruning_rounds(1000, 1, 3) == (100, 10, 1)
    assert baselines.pruning_rounds(1000, 500, 1) == (500,)
    with pytest.raises(UserError, match="keep"):
        baselines.pruning_rounds(10, 11)


def test_pruning_refuses_tied_and_pruned_weights():
    with pytest.raises(UserError, match="tied"):
        MagnitudePruning(tie_layers(make_host("patch-resnet", width=4))[0])
    host = make_host("mlp", width=4)
    MagnitudePruning(host)
    with pytest.raises(UserError, match="parametrizations"):
        MagnitudePruning(host)


# --- random subspace


@pytest.mark.parametrize("projection", ["fastfood", "dense"])
def test_subspace_starts_at_the_host_and_is_linear_in_its_coordinates(projection: str):
    torch.manual_seed(0)
    host = make_host("mlp", in_channels=1, image_size=8, width=8)
    x = torch.randn(4, 1, 8, 8)
    before = host(x)
    model = RandomSubspace(host, 50, seed=3, projection=projection)
    torch.testing.assert_close(model(x), before)
    assert parameter_count(model) == 50 + 8 + 8 + 10
    # E column by column: the gradient must be E^T g, and the columns about unit length.
    e = torch.autograd.functional.jacobian(lambda w: _displaced(model, w), torch.randn(50))  # [N, M]
    assert e.shape == (656, 50)
    assert e.norm(dim=0).mean().item() == pytest.approx(1, abs=0.1)
    w, g = torch.randn(50), torch.randn(656)
    torch.testing.assert_close(_displaced(model, w), e @ w, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        model.coordinates.copy_(w)
    model.displacement().backward(g)
    torch.testing.assert_close(model.coordinates.grad, e.T @ g, rtol=1e-4, atol=1e-5)


def _displaced(model: RandomSubspace, w: torch.Tensor) -> torch.Tensor:
    """E w for other coordinates, by the model's own code."""
    return torch.func.functional_call(_Displacement(model), {"model.coordinates": w}, ())


class _Displacement(nn.Module):
    def __init__(self, model: RandomSubspace) -> None:
        super().__init__()
        self.model = model

    def forward(self) -> torch.Tensor:
        return self.model.displacement()


@pytest.mark.parametrize("projection", ["fastfood", "dense"])
def test_subspace_is_a_function_of_its_seed_and_never_stored(projection: str):
    def displacement(seed: int) -> torch.Tensor:
        model = RandomSubspace(make_host("mlp", width=4), 20, seed=seed, projection=projection)
        assert set(model.state_dict()) == {"coordinates", *(f"host.{k}" for k in model.host.state_dict())}
        with torch.no_grad():
            model.coordinates.fill_(1)
        return model.displacement().detach()

    torch.testing.assert_close(displacement(1), displacement(1), rtol=0, atol=0)
    assert not torch.allclose(displacement(1), displacement(2))


def test_subspace_trains_and_leaves_theta0_alone():
    torch.manual_seed(0)
    host = make_host("patch-resnet", width=4)
    theta0 = copy.deepcopy(host.state_dict())
    model = RandomSubspace(host, 100)
    fine_tune(model)
    assert model.coordinates.abs().sum() > 0
    for name in generated_names(host):
        torch.testing.assert_close(host.state_dict()[name], theta0[name], rtol=0, atol=0)
    assert not torch.equal(host.norm.weight, theta0["norm.weight"])  # pyright: ignore
    with pytest.raises(UserError, match="dimension"):
        RandomSubspace(make_host("mlp"), 10**9)


def test_hadamard_transform_equals_the_matrix():
    h = torch.ones(1, 1)
    for _ in range(4):
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)], 0)
    x = torch.randn(3, 16)
    torch.testing.assert_close(baselines.hadamard(x), x @ h.T)


def test_every_baseline_has_a_line():
    assert {"narrow", "low-rank", "tied", "pruned", "subspace", "hash", "deq"} <= set(baselines.BASELINES)
    assert all(baselines.BASELINES.values())
