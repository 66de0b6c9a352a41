"""Image sets: every layout on disk, subsets, refusals with paths."""

from __future__ import annotations

import gzip
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from shared import image_files as files
from shared.config import UserError
from shared.image_names import CIFAR10, DESCRIPTIONS, IMAGE_SETS, PLACES, SHAPES, present
from shared.images import balanced, load

NOWHERE = Path("/nowhere")
STREAM = np.random.default_rng(0)


def pixels(*shape: int) -> np.ndarray:
    return STREAM.integers(0, 256, shape, dtype=np.uint8)


# -- embedded ----------------------------------------------------------------------------------------------------


def test_embedded_digits_are_split_by_class() -> None:
    data = load("mnist5k", NOWHERE)
    assert data.x_train.shape == (4000, 1, 28, 28)
    assert data.x_test.shape == (1000, 1, 28, 28)
    assert data.y_train.bincount().tolist() == [400] * 10
    assert data.y_test.bincount().tolist() == [100] * 10
    train = {image.numpy().tobytes() for image in data.x_train}
    assert not train & {image.numpy().tobytes() for image in data.x_test}
    small = load("digits", NOWHERE)
    assert small.x_train.shape[1:] == (1, 8, 8)
    assert len(small.x_train) + len(small.x_test) == 1797


def test_every_name_has_a_line_a_shape_and_a_place() -> None:
    assert set(DESCRIPTIONS) == set(SHAPES) == set(IMAGE_SETS)
    for name in IMAGE_SETS:
        assert present(name, NOWHERE) is (name not in PLACES)


@pytest.mark.parametrize("name", ["mnist5k", "digits"])
def test_shape_is_known_without_loading(name: Any) -> None:
    data = load(name, NOWHERE)
    assert SHAPES[name] == (data.x_train.shape[1], data.x_train.shape[-1], len(data.classes))


def test_subset_is_even_over_classes_and_follows_the_seed() -> None:
    data = load("mnist5k", NOWHERE, max_train=205, max_test=50, seed=1)
    counts = data.y_train.bincount()
    assert int(counts.sum()) == 205
    assert int(counts.max() - counts.min()) == 1
    assert data.y_test.bincount().tolist() == [5] * 10
    labels = np.repeat(np.arange(4), 50)
    assert not np.array_equal(balanced(labels, 20, 0, "-"), balanced(labels, 20, 1, "-"))
    assert np.array_equal(balanced(labels, 20, 0, "-"), balanced(labels, 20, 0, "-"))
    with pytest.raises(UserError, match="at most the 4000"):
        load("mnist5k", NOWHERE, max_train=4001)


# -- layouts on disk -----------------------------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return b"\x00\x00\x08" + bytes([array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def write_mnist(root: Path, zipped: bool = False) -> dict[str, np.ndarray]:
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    arrays = {
        "train-images-idx3-ubyte": pixels(20, 28, 28),
        "train-labels-idx1-ubyte": np.arange(20) % 10,
        "t10k-images-idx3-ubyte": pixels(10, 28, 28),
        "t10k-labels-idx1-ubyte": np.arange(10),
    }
    for name, array in arrays.items():
        content = idx(array)
        (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(content) if zipped else content)
    return arrays


@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_is_read_as_torchvision_reads_it(tmp_path: Path, zipped: bool) -> None:
    arrays = write_mnist(tmp_path, zipped)
    data = load("mnist", tmp_path)
    assert torch.equal(data.x_train[:, 0], torch.from_numpy(arrays["train-images-idx3-ubyte"]))
    assert data.y_test.tolist() == list(range(10))
    if not zipped:
        from torchvision.datasets import MNIST

        theirs = MNIST(str(tmp_path), train=True)
        assert torch.equal(data.x_train[:, 0], theirs.data)
        assert torch.equal(data.y_train, theirs.targets)


def test_damaged_idx_is_refused_with_its_path(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte.*bytes for shape \(20, 28, 28\)"):
        load("mnist", tmp_path)
    path.write_bytes(b"junk, not idx")
    with pytest.raises(UserError, match="idx file"):
        load("mnist", tmp_path)
    (tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    path.write_bytes(idx(pixels(20, 28, 28)))
    with pytest.raises(UserError, match="t10k-labels"):
        load("mnist", tmp_path)


def write_cifar(root: Path) -> np.ndarray:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    images = pixels(20, 3, 32, 32)
    for number in range(1, 3):
        half = images[10 * (number - 1) : 10 * number].reshape(10, -1)
        batch = {b"data": half, b"labels": list(range(10)), b"filenames": [b"x"] * 10}
        (folder / f"data_batch_{number}").write_bytes(pickle.dumps(batch, protocol=2))
    test = {b"data": pixels(10, 3072), b"labels": list(range(10))}
    (folder / "test_batch").write_bytes(pickle.dumps(test, protocol=2))
    meta = {b"label_names": [f"class {i}".encode() for i in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
    return images


def test_cifar_archive_is_read_in_order(tmp_path: Path) -> None:
    images = write_cifar(tmp_path)
    data = load("cifar10", tmp_path)
    assert torch.equal(data.x_train, torch.from_numpy(images))
    assert data.classes[3] == "class 3"
    assert data.label == "CIFAR-10 subset 20/10"


class Hostile:
    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self) -> Any:
        return (Path.touch, (Path(self.target),))


def test_hostile_archive_runs_no_code(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    marker = tmp_path / "owned"
    evil = pickle.dumps({b"data": Hostile(marker), b"labels": []}, protocol=2)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(evil)
    with pytest.raises(UserError, match=r"test_batch.*\n.*wants to call"):
        load("cifar10", tmp_path)
    assert not marker.exists()
    pickle.loads(evil)
    assert marker.exists(), "the control: plain pickle does run it"


def test_damaged_archives_are_refused_with_their_path(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(UserError, match="data_batch_2"):
        load("cifar10", tmp_path)
    path.write_bytes(pickle.dumps({b"data": pixels(10, 100), b"labels": []}, protocol=2))
    with pytest.raises(UserError, match="3 x 32 x 32"):
        load("cifar10", tmp_path)


def test_npz_names_what_is_missing_or_misshapen(tmp_path: Path) -> None:
    arrays = {"x_train": pixels(20, 32, 32, 3), "y_train": np.arange(20) % 10}
    arrays |= {"x_test": pixels(10, 32, 32, 3), "y_test": np.arange(10)}
    path = tmp_path / "cifar10.npz"
    np.savez(path, **arrays)
    data = load("cifar10", tmp_path)
    assert data.x_train.shape == (20, 3, 32, 32)
    assert data.x_train[3, 2, 5, 7] == arrays["x_train"][3, 5, 7, 2]
    assert data.label == "CIFAR-10 subset 20/10"
    np.savez(path, **{**arrays, "x_test": pixels(10, 32, 32)})
    with pytest.raises(UserError, match=r"x_test.*\[10, H, W, 3\]"):
        load("cifar10", tmp_path)
    np.savez(path, x_train=arrays["x_train"])
    with pytest.raises(UserError, match="y_train"):
        load("cifar10", tmp_path)
    path.write_bytes(b"PK junk")
    with pytest.raises(UserError, match="undamaged"):
        load("cifar10", tmp_path)


def write_tree(root: Path, suffix: str = "png", folder: str = "cifar10", classes: Sequence[str] = CIFAR10) -> Path:
    for part in ("train", "test"):
        for name in classes:
            (root / folder / part / name).mkdir(parents=True)
            for image in range(2):
                Image.fromarray(pixels(32, 32, 3)).save(root / folder / part / name / f"{image}.{suffix}")
    return root / folder


@pytest.mark.parametrize(("suffix", "label"), [("png", "CIFAR-10"), ("jpg", "CIFAR-10 (JPEG)")])
@pytest.mark.parametrize("folder", ["cifar10", "CIFAR-10-images"])
def test_folders_of_images_say_whether_they_are_lossy(tmp_path: Path, suffix: str, label: str, folder: str) -> None:
    tree = write_tree(tmp_path, suffix, folder)
    assert present("cifar10", tmp_path)
    data = load("cifar10", tmp_path)
    assert (data.label, data.classes, len(data.x_train)) == (f"{label} subset 20/20", CIFAR10, 20)
    first = np.asarray(Image.open(tree / "train" / "airplane" / f"0.{suffix}"))
    assert torch.equal(data.x_train[0], torch.from_numpy(first.copy()).permute(2, 0, 1))
    assert data.y_train.tolist() == [number for number in range(10) for _ in range(2)]


def test_bad_folders_are_refused_with_the_path(tmp_path: Path) -> None:
    tree = write_tree(tmp_path)
    path = tree / "train" / "bird" / "0.png"
    Image.fromarray(pixels(32, 32)).save(path)
    with pytest.raises(UserError, match=r"bird/0\.png.*32 x 32 x 3"):
        load("cifar10", tmp_path)
    Image.fromarray(pixels(16, 32, 3)).save(path)
    with pytest.raises(UserError, match=r"(?s)bird/0\.png.*\(16, 32, 3\)"):
        load("cifar10", tmp_path)
    path.write_bytes(b"no image")
    with pytest.raises(UserError, match="readable"):
        load("cifar10", tmp_path)
    (tree / "test" / "brid").mkdir()
    with pytest.raises(UserError, match=r"cifar10/test: class.*brid.*did you mean 'bird'"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize("parts", [("train",), ("test",), ("train", "test")])
def test_a_class_that_is_missing_is_named_even_where_both_parts_lack_it(tmp_path: Path, parts: Sequence[str]) -> None:
    tree = write_tree(tmp_path)
    for part in parts:
        shutil.rmtree(tree / part / "frog")
    with pytest.raises(UserError, match=rf"(?s)cifar10/{parts[0]}.*no folder frog"):
        load("cifar10", tmp_path)


def test_labels_that_are_not_the_data_sets_are_refused(tmp_path: Path) -> None:
    x = {"x_train": pixels(20, 32, 32, 3), "x_test": pixels(10, 32, 32, 3)}
    right = {"y_train": np.arange(20) % 10, "y_test": np.arange(10)}
    for wrong, message in (
        ({"y_train": np.arange(20) % 9, "classes": np.array(CIFAR10)}, r"training labels.*no sample of 9 \(truck\)"),
        ({"y_test": np.arange(10) % 8, "classes": np.array(CIFAR10)}, r"testing labels.*8 \(ship\), 9 \(truck\)"),
        ({"y_train": np.arange(20) % 10 - 1, "classes": np.array(CIFAR10)}, r"training labels: got '-1'"),
        ({"y_train": np.arange(20) % 12}, r"classes: got '12'; valid: 10 names"),
    ):
        np.savez(tmp_path / "cifar10.npz", **{**x, **right, **wrong})
        with pytest.raises(UserError, match=message):
            load("cifar10", tmp_path)


def test_missing_data_say_what_to_put_where(tmp_path: Path) -> None:
    for name in ("mnist", "fashion", "cifar10", "cifar100"):
        with pytest.raises(UserError, match=f"(?s){tmp_path}.*--data-root"):
            load(name, tmp_path)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="did you mean 'mnist"):
        load("minst", tmp_path)  # pyright: ignore[reportArgumentType]


def test_sprite_is_cut_into_its_tiles(tmp_path: Path) -> None:
    whole = pixels(840, 840)
    Image.fromarray(whole).save(tmp_path / "fashion-mnist-sprite.png")
    x, y = files.sprite(tmp_path / "fashion-mnist-sprite.png")
    assert np.array_equal(x[31, 0], whole[28:56, 28:56])
    assert np.bincount(y).tolist() == [90] * 10
    assert y[89] == 0
    assert y[90] == 1
    assert load("fashion", tmp_path).label.startswith("Fashion-MNIST sprite")


def test_embedded_images_can_be_parted_anew(tmp_path: Path) -> None:
    usual, anew = load("digits", tmp_path), load("digits", tmp_path, test=500)
    assert (len(anew.y_train), len(anew.y_test)) == (1297, 500)
    assert torch.bincount(anew.y_test).tolist() == [50] * 10
    whole = sorted(x.flatten().tolist() for x in torch.cat([usual.x_train, usual.x_test]))
    assert sorted(x.flatten().tolist() for x in torch.cat([anew.x_train, anew.x_test])) == whole
    assert torch.equal(load("digits", tmp_path, test=500, seed=7).x_test, anew.x_test)  # one split for every seed
    with pytest.raises(UserError, match="parted anew"):
        load("mnist", tmp_path, test=500)
