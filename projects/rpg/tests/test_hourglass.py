"""Stacked hourglasses, heatmaps and PCKh."""

from __future__ import annotations

import math

import pytest
import torch

from rpg.hosts import make_host
from rpg.hosts.host import generated_count
from rpg.hosts.hourglass import decode, heatmaps, intermediate_loss, pckh
from shared.config import UserError


@pytest.mark.parametrize(("stacks", "image_size", "cells"), [(1, 32, 16), (2, 64, 32), (4, 96, 24)])
def test_output_shapes(stacks: int, image_size: int, cells: int):
    host = make_host("hourglass", num_classes=3, image_size=image_size, stacks=stacks, width=8)
    assert host(torch.randn(2, 3, image_size, image_size)).shape == (2, stacks, 3, cells, cells)


def test_stages_have_equal_shapes():
    host = make_host("hourglass", stacks=4, width=8)
    shapes = [[p.shape for p in host.get_submodule(stage).parameters()] for stage in host.subnetworks()]
    assert all(shape == shapes[0] for shape in shapes)
    assert generated_count(host) == generated_count(host, "entry") + 4 * generated_count(host, "stacks.0")


def test_image_size_that_cannot_be_halved():
    with pytest.raises(UserError, match="multiple of stride"):
        make_host("hourglass", image_size=60, depth=3)


def test_heatmap_peaks_at_the_joint_with_height_one():
    keypoints = torch.tensor([[[3.0, 5.0], [0.0, 7.0]]])
    maps = heatmaps(keypoints, 8, sigma=1.0)
    assert maps.shape == (1, 2, 8, 8)
    assert maps[0, 0, 5, 3] == 1  # rows are y
    assert maps[0, 1, 7, 0] == 1
    assert maps[0, 0, 5, 4].item() == pytest.approx(math.exp(-0.5))
    assert maps.max() == 1


def test_joint_that_is_not_annotated_has_an_empty_map():
    maps = heatmaps(torch.tensor([[[float("nan"), 2.0], [2.0, float("nan")]]]), 6)
    assert maps.eq(0).all()


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_decoding_a_heatmap_is_within_a_quarter_cell(stride: int):
    size = 16
    keypoints = 2 * stride + torch.rand(5, 7, 2, generator=torch.Generator().manual_seed(0)) * 11 * stride
    decoded = decode(heatmaps(keypoints, size, stride=stride), stride)
    assert (decoded - keypoints).abs().max() <= 0.25 * stride + 1e-4


def test_decoding_at_a_corner_stays_there():
    assert decode(heatmaps(torch.tensor([[[0.0, 0.0], [7.0, 7.0]]]), 8)).tolist() == [[[0, 0], [7, 7]]]


def test_intermediate_loss_sees_every_stage():
    target = torch.zeros(1, 2, 4, 4)
    maps = torch.stack([torch.ones(1, 2, 4, 4), torch.zeros(1, 2, 4, 4)], dim=1)
    assert intermediate_loss(maps, target).item() == pytest.approx(0.5)


def test_pckh_on_known_cases():
    target = torch.tensor([[[0.0, 0.0], [10.0, 0.0], [5.0, 5.0], [float("nan"), 0.0]]])
    predicted = torch.tensor([[[3.0, 4.0], [10.0, 5.1], [5.0, 5.0], [0.0, 0.0]]])
    head = torch.tensor([10.0])
    assert pckh(predicted, target, head).item() == pytest.approx(2 / 3)  # errors 5 (just in), 5.1 (out), 0
    assert pckh(predicted, target, head, 0.6).item() == 1
    assert pckh(predicted, target, head / 100).item() == pytest.approx(1 / 3)
    assert pckh(predicted[:, 3:], target[:, 3:], head).isnan()
    assert pckh(predicted * float("nan"), target, head).item() == 0
