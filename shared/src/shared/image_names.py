"""Names of the image sets that several papers use, where they may lie, and whether one is at hand. Imports no torch:
`--help` lists them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

ImageSet = Literal["mnist5k", "digits", "mnist", "fashion", "cifar10", "cifar100"]
IMAGE_SETS: tuple[ImageSet, ...] = get_args(ImageSet)
EMBEDDED: tuple[ImageSet, ...] = ("mnist5k", "digits")

DESCRIPTIONS: dict[ImageSet, str] = {
    "mnist5k": "5,000 real MNIST digits, embedded (4,000 for training, 1,000 for testing)",
    "digits": "1,797 real 8x8 digits, embedded",
    "mnist": "MNIST, complete",
    "fashion": "Fashion-MNIST: complete, or the 900 images of its sprite",
    "cifar10": "CIFAR-10: archive, .npz, or folders of images",
    "cifar100": "CIFAR-100: archive",
}

# Where the others may lie under the data root, best first.
PLACES: dict[ImageSet, tuple[str, ...]] = {
    "mnist": ("MNIST/raw/train-images-idx3-ubyte", "MNIST/raw/train-images-idx3-ubyte.gz"),
    "fashion": (
        "FashionMNIST/raw/train-images-idx3-ubyte",
        "FashionMNIST/raw/train-images-idx3-ubyte.gz",
        "fashion-mnist-sprite.png",
    ),
    "cifar10": (
        "cifar-10-batches-py",
        "cifar10/cifar10_subset.npz",
        "cifar10.npz",
        "cifar10/train",
        "CIFAR-10-images/train",
    ),
    "cifar100": ("cifar-100-python",),
}

# Folders of images bear these names; in this order they are the labels 0 to 9, as in the archive.
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

# Channels, side in pixels, classes: what a network must know of the data without loading them.
SHAPES: dict[ImageSet, tuple[int, int, int]] = {
    "mnist5k": (1, 28, 10),
    "digits": (1, 8, 10),
    "mnist": (1, 28, 10),
    "fashion": (1, 28, 10),
    "cifar10": (3, 32, 10),
    "cifar100": (3, 32, 100),
}


def fingerprint(name: str, root: Path, places: Mapping[str, Sequence[str]] | None = None) -> str:
    """What tells one copy of a data set from another, cheaply: the place and the sizes of its files. Empty for sets
    without places, which are embedded and always the same.

    Args:
        name: the data set. root: the data root. places: where each set may lie; default: those of this module.
    """
    places = places if places is not None else PLACES  # pyright: ignore[reportAssignmentType]
    assert places is not None
    if name not in places:
        return ""
    place = next((place for place in places[name] if (root / place).exists()), None)
    if place is None:
        return "absent"
    found = root / place
    files = [found] if found.is_file() else sorted(path for path in found.iterdir() if not path.name.startswith("."))
    sizes = [f"{path.name}:{path.stat().st_size if path.is_file() else len(list(path.iterdir()))}" for path in files]
    return f"{place} {' '.join(sizes)}"


def present(name: str, root: Path, places: Mapping[str, Sequence[str]] | None = None) -> bool:
    """Whether a data set is embedded (has no place) or lies under the data root."""
    places = places if places is not None else PLACES  # pyright: ignore[reportAssignmentType]
    assert places is not None
    return name not in places or any((root / place).exists() for place in places[name])
