"""What repeated calls share, and the hosts that are built on it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rpg.hosts import make_host
from rpg.hosts.calls import share_calls
from rpg.hosts.host import generated_count, parameter_count
from rpg.hosts.msblock import MSBlockNet
from rpg.hosts.multitask import depth_l1, normals_cosine, normals_degrees
from rpg.hosts.resnet import BasicBlock
from shared.config import UserError


def blocks(count: int) -> list[BasicBlock]:
    return [BasicBlock(2, 2) for _ in range(count)]


def test_own_norms_keep_their_own_statistics():
    torch.manual_seed(0)
    calls = share_calls(blocks(2), "kernels")
    assert calls[0].conv1 is calls[1].conv1
    assert calls[0].bn1 is not calls[1].bn1
    x = torch.randn(4, 2, 6, 6)
    for call in calls:
        x = call(x)
    assert all(call.bn1.num_batches_tracked == 1 for call in calls)
    assert not torch.allclose(calls[0].bn1.running_mean, calls[1].bn1.running_mean)


def test_sharing_all_mixes_the_statistics():
    calls = share_calls(blocks(3), "all")
    x = torch.randn(4, 2, 6, 6)
    for call in calls:
        x = call(x)
    assert calls[0].bn1.num_batches_tracked == 3


def test_counts_of_the_three_ways():
    kernels, norms = 2 * 9 * 4, 2 * 4
    assert parameter_count(share_calls(blocks(3), "none")) == 3 * (kernels + norms)
    assert parameter_count(share_calls(blocks(3), "kernels")) == kernels + 3 * norms
    assert parameter_count(share_calls(blocks(3), "all")) == kernels + norms
    with pytest.raises(UserError, match="kernels"):
        share_calls(blocks(2), "convs")


def test_shared_kernel_gradient_is_the_sum_over_calls():
    torch.manual_seed(0)
    tied = share_calls(blocks(2), "kernels").double()
    own = share_calls(blocks(2), "none").double()
    own.load_state_dict(tied.state_dict())
    x = torch.randn(4, 2, 6, 6, dtype=torch.float64)
    for calls in (tied, own):
        calls[1](calls[0](x)).square().sum().backward()
    torch.testing.assert_close(tied[0].conv1.weight.grad, own[0].conv1.weight.grad + own[1].conv1.weight.grad)


# --- the multi-scale block net


def test_msblock_counts():
    deq = make_host("msblock", mode="deq")
    assert parameter_count(deq) == 167_779
    assert generated_count(deq) == 165_159
    unrolled = make_host("msblock", calls=3)
    assert generated_count(unrolled) == 3 * 165_159
    assert generated_count(unrolled, "calls.0") == 165_159  # the ring with one block's freedom
    assert generated_count(make_host("msblock", calls=3, share="kernels")) == 165_159
    with torch.device("meta"):
        assert parameter_count(make_host("msblock", mode="deq", width=32)) == 2_102_378


def small_deq(**options: float) -> MSBlockNet:
    torch.manual_seed(0)
    host = make_host("msblock", width=4, expansion=2, image_size=8, mode="deq", **options)
    assert isinstance(host, MSBlockNet)
    return host.double()


def test_deq_host_settles_from_its_start_and_reports():
    host = small_deq()
    host(torch.randn(3, 3, 8, 8, dtype=torch.float64)).square().sum().backward()
    assert host.report is not None
    assert host.report.forward.converged
    assert host.report.backward is not None
    assert host.report.backward.converged
    assert all(parameter.grad is not None for parameter in host.parameters())


def test_deq_host_gradient_equals_the_unrolled_one():
    host = small_deq(forward_iterations=200, backward_iterations=200, tolerance=1e-12)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    host(x).square().sum().backward()
    implicit = [parameter.grad.clone() for parameter in host.parameters()]  # pyright: ignore
    assert host.report is not None
    assert host.report.forward.converged
    host.zero_grad()
    host.mode = "unrolled"
    host.calls = nn.ModuleList([host.calls[0]] * 150)
    host(x).square().sum().backward()
    for (name, parameter), ours in zip(host.named_parameters(), implicit, strict=True):
        assert parameter.grad is not None
        assert (ours - parameter.grad).norm() < 1e-5 * parameter.grad.norm(), name


def test_deq_host_without_gradient():
    host = small_deq().eval()
    with torch.no_grad():
        assert host(torch.randn(2, 3, 8, 8, dtype=torch.float64)).shape == (2, 10)
    assert host.report is not None
    assert host.report.backward is None


# --- the multi-task regressor


def test_multitask_variants_have_the_freedom_of_one_call():
    counts = {v: generated_count(make_host("multitask", variant=v)) for v in ("vanilla", "reuse", "reuse-bn", "rpg")}
    assert counts["vanilla"] == counts["reuse"] == counts["reuse-bn"] < counts["rpg"]
    own = {v: parameter_count(make_host("multitask", variant=v)) - counts[v] for v in counts}
    assert own["vanilla"] == own["reuse"] < own["reuse-bn"] == own["rpg"]


def test_multitask_outputs():
    out = make_host("multitask", width=4, image_size=16)(torch.randn(2, 3, 16, 16))
    assert out["depth"].shape == (2, 1, 16, 16)
    torch.testing.assert_close(out["normals"].norm(dim=1), torch.ones(2, 16, 16))


def test_multitask_losses_on_known_maps():
    valid = torch.tensor([[[[True, True, False]]]])
    predicted, target = torch.tensor([[[[1.0, 2.0, 9.0]]]]), torch.tensor([[[[2.0, 4.0, 0.0]]]])
    assert depth_l1(predicted, target, valid).item() == pytest.approx(1.5)
    x, y, z = torch.eye(3)
    normals = torch.stack([x, y, z], dim=1)[None, :, None]  # [1, 3, 1, 3]
    other = torch.stack([x, x, x], dim=1)[None, :, None]
    assert normals_cosine(normals, other, valid).item() == pytest.approx(0.5)
    assert normals_degrees(normals, other, valid).item() == pytest.approx(45)
    assert depth_l1(predicted, target, torch.zeros_like(valid)).item() == 0
