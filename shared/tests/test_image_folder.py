"""Folders of many images: what is listed, what crops are drawn, and that decoding on demand gives the same pixels."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shared.config import UserError
from shared.data import Batches
from shared.image_folder import Crops, Files, as_tensor, centre, image_folder, random_box, read


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for part, count in (("train", 4), ("val", 2)):
        for name in ("n02", "n01"):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                low = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
                Image.fromarray(low).resize((80, 60)).save(folder / f"{number}.JPEG", quality=95)
    return tmp_path


def test_classes_are_folders_in_order(root: Path) -> None:
    part = image_folder(root, "train")
    assert part.classes == ("n01", "n02")
    assert part.labels.tolist() == [0] * 4 + [1] * 4
    assert [path.parent.name for path in part.paths] == ["n01"] * 4 + ["n02"] * 4
    assert image_folder(root, "val", part.classes).classes == part.classes


def test_bad_folders_are_refused_with_the_path(root: Path) -> None:
    with pytest.raises(UserError, match="test/<class>"):
        image_folder(root, "test")
    (root / "val" / "n03").mkdir()
    with pytest.raises(UserError, match="n03"):
        image_folder(root, "val")
    Image.new("RGB", (8, 8)).save(root / "val" / "n03" / "a.png")
    with pytest.raises(UserError, match="n03"):
        image_folder(root, "val", ("n01", "n02"))
    (root / "train" / "n01" / "0.JPEG").write_bytes(b"\xff\xd8 torn")
    with pytest.raises(UserError, match=r"0\.JPEG"):
        Crops(image_folder(root, "train"), 32)[0]


def test_middle_is_torchvisions(root: Path) -> None:
    transforms = pytest.importorskip("torchvision.transforms.functional")
    image = read(image_folder(root, "val").paths[0])
    theirs = transforms.center_crop(transforms.resize(image, 32), 28)
    assert torch.equal(as_tensor(centre(image, 28, 32 / 28)), as_tensor(theirs))


def test_files_stand_for_a_tensor(root: Path) -> None:
    part = image_folder(root, "train")
    files = Files(part.paths, 28)
    whole = torch.stack([as_tensor(centre(read(path), 28)) for path in part.paths])
    assert files.shape == whole.shape
    assert torch.equal(files[torch.tensor([3, 0])], whole[[3, 0]])
    assert torch.equal(torch.cat(list(files.split(3))), whole)


def test_boxes_are_uniform_in_area_and_log_ratio() -> None:
    torch.manual_seed(0)
    boxes = np.array([random_box(1000, 1000, (0.08, 0.6)) for _ in range(4000)], float)
    wide, high = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() >= 0
    assert boxes.max() <= 1000
    for values, low, top in (
        (wide * high / 1e6, 0.08, 0.6), (np.log(wide / high), math.log(3 / 4), math.log(4 / 3)),
    ):  # fmt: skip
        shares = np.sort((values - low) / (top - low))
        assert np.abs(shares - (np.arange(4000) + 0.5) / 4000).max() < 1.63 / math.sqrt(4000)  # Kolmogorov, 1 %
    centres = (boxes[:, 0] / (1000 - wide)).mean()
    assert centres == pytest.approx(0.5, abs=0.02)


def test_what_does_not_fit_is_the_middle() -> None:
    assert random_box(400, 100, (1.0, 1.0)) == (133, 0, 266, 100)


def test_crops_follow_the_batch_and_not_the_workers(root: Path) -> None:
    part = image_folder(root, "train")
    crops = Crops(part, (32, 16), [(0.2, 1.0), (0.05, 0.14)])
    first, second = (next(iter(Batches(crops, 4, seed=3, workers=workers))) for workers in (0, 2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
    big, small, labels = first
    assert big.shape == (4, 3, 32, 32)
    assert small.shape == (4, 3, 16, 16)
    assert big.dtype == torch.uint8
    assert set(labels.tolist()) <= {0, 1}
    assert not torch.equal(first[0], next(iter(Batches(crops, 4, seed=4)))[0])


def test_a_crop_of_everything_is_the_image_scaled(root: Path) -> None:
    part = image_folder(root, "train")
    square = root / "square.png"
    read(part.paths[0]).resize((60, 60)).save(square)
    crop = Crops(type(part)((square,), torch.tensor([1]), ("a", "b")), 60, (1.0, 1.0))
    torch.manual_seed(1)
    found = [crop[0][0] for _ in range(20)]
    assert any(torch.equal(each, as_tensor(read(square))) for each in found)  # ratio near 1


def test_cache_holds_smaller_copies(root: Path, tmp_path: Path) -> None:
    large = root / "train" / "n01" / "large.JPEG"
    Image.fromarray(np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (400, 3, 3))).resize((768, 600)).save(large)
    cache = tmp_path / "cache"
    made, kept = read(large, cache), read(large, cache)
    assert min(kept.size) == 256
    assert made.size == kept.size
    difference = np.abs(np.asarray(made, float) - np.asarray(kept, float))
    assert difference.mean() < 2  # JPEG
    large.unlink()
    assert read(large, cache).size == kept.size
