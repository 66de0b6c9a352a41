"""Multiply-accumulates against counts by hand."""

from __future__ import annotations

import torch
from torch import nn

from rpg.flops import macs
from rpg.hosts import make_host


def test_mlp_is_its_weights():
    assert macs(make_host("mlp", in_channels=1, image_size=28), (1, 28, 28)) == 118_016


def test_patch_resnet_by_hand():
    stem, convs, head = 64 * 32 * 3 * 16, 64 * 73_728, 32 * 10
    assert macs(make_host("patch-resnet"), (3, 32, 32)) == stem + convs + head


def test_resnet18_imagenet_is_the_known_figure():
    assert macs(make_host("resnet18", num_classes=1000, image_size=224), (3, 224, 224)) == 1_814_073_344


def test_attention_is_counted():
    host = make_host("vit-mini", depth=1, width=8, heads=2, image_size=8)  # 4 patches + class token = 5 tokens
    patch, qkv, attention, proj, mlp, head = 4 * 3 * 16 * 8, 5 * 3 * 64, 2 * 5 * 5 * 8, 5 * 64, 5 * 8 * 64, 80
    assert macs(host, (3, 8, 8)) == patch + qkv + attention + proj + mlp + head


def test_modes_and_statistics_are_left_alone():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout())
    model[1].eval()
    before = model[1].running_mean.clone()  # pyright: ignore
    macs(model, (1, 5, 5))
    assert [module.training for module in model] == [True, False, True]
    torch.testing.assert_close(model[1].running_mean, before)


def test_deq_is_counted_as_often_as_its_block_ran():
    host = make_host("msblock", width=4, expansion=1, mode="deq", forward_iterations=7, tolerance=0.0)
    once = make_host("msblock", width=4, expansion=1, calls=1)
    thrice = make_host("msblock", width=4, expansion=1, calls=3)
    one, three = macs(once, (3, 8, 8)), macs(thrice, (3, 8, 8))
    assert host.report is None
    mixing = macs(host, (3, 8, 8)) - one - 6 * (three - one) // 2
    assert 0 < mixing < one  # Anderson's own small products
