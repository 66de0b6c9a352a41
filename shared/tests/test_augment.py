"""Augmentation of whole batches is that of each image, and a function of its generator alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from shared.augment import PAD, augmentation, crop, flip
from shared.images import load


def images(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def test_batched_crop_is_the_crop_of_each_image() -> None:
    x = images(16, 3, 12, 12)
    batched = crop(x, torch.Generator().manual_seed(3))
    shifts = torch.randint(0, 2 * PAD + 1, (2, 16), generator=torch.Generator().manual_seed(3))
    padded = torch.nn.functional.pad(x, (PAD,) * 4)
    for image, (down, right) in enumerate(shifts.T.tolist()):
        assert torch.equal(batched[image], padded[image, :, down : down + 12, right : right + 12])


def test_batched_flip_mirrors_about_half() -> None:
    x = images(400, 1, 4, 4)
    flipped = flip(x, torch.Generator().manual_seed(0))
    mirrored = (flipped == x.flip(3)).all(3).all(2).all(1)
    kept = (flipped == x).all(3).all(2).all(1)
    assert bool((mirrored | kept).all())
    assert 150 < int(mirrored.sum()) < 250


@pytest.mark.parametrize("kind", ["none", "flip", "crop-flip"])
def test_augmentation_is_a_function_of_its_generator_alone(kind: str) -> None:
    data = load("digits", Path("nowhere"))
    apply = augmentation(kind, data)
    batch = (data.x_train[:32], data.y_train[:32])
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, two = (apply(batch, torch.Generator().manual_seed(5))[0] for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(torch.get_rng_state(), before)
    other = apply(batch, torch.Generator().manual_seed(6))[0]
    assert torch.equal(one, other) is (kind == "none")
