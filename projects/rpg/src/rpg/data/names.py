"""Names of the data sets, one line each, and whether one is at hand. Imports no torch: `--help` lists them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

DataName = Literal[
    "mnist5k",
    "digits",
    "mnist",
    "fashion",
    "cifar10",
    "cifar100",
    "imagefolder",
    "stick",
    "mpii",
    "stereo",
    "rooms",
    "triples",
]
DATA: tuple[DataName, ...] = get_args(DataName)

DESCRIPTIONS: dict[DataName, str] = {
    "mnist5k": "5,000 real MNIST digits, embedded (4,000 for training, 1,000 for testing)",
    "digits": "1,797 real 8x8 digits, embedded",
    "mnist": "MNIST, complete",
    "fashion": "Fashion-MNIST: complete, or the 900 images of its sprite",
    "cifar10": "CIFAR-10: archive, .npz, or folders of images",
    "cifar100": "CIFAR-100: archive",
    "imagefolder": "folders train/<class> and val/<class>, as ImageNet lies on disk",
    "stick": "synthetic stick figures with 14 joints, made on the fly",
    "mpii": "MPII human pose: annotations and images",
    "stereo": "one real stereo pair with disparity, embedded: crops of its left and right parts",
    "rooms": "synthetic ray-cast rooms with exact depth and normals, made on the fly",
    "triples": "folders of colour, depth and normal images, as S3DIS can be laid out",
}

POSE: tuple[DataName, ...] = ("stick", "mpii")
DENSE: tuple[DataName, ...] = ("stereo", "rooms", "triples")
EMBEDDED: tuple[DataName, ...] = ("mnist5k", "digits", "stick", "stereo", "rooms")

# Where the others may lie under the data root, best first.
PLACES: dict[DataName, tuple[str, ...]] = {
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
    "imagefolder": ("imagenet/train", "train"),
    "mpii": ("mpii/annotations.json",),
    "triples": ("triples/train", "s3dis/train"),
}

# Folders of images bear these names; in this order they are the labels 0 to 9, as in the archive.
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

# Channels, side in pixels, outputs: what a host must know of the data without loading them.
SHAPES: dict[DataName, tuple[int, int, int]] = {
    "mnist5k": (1, 28, 10),
    "digits": (1, 8, 10),
    "mnist": (1, 28, 10),
    "fashion": (1, 28, 10),
    "cifar10": (3, 32, 10),
    "cifar100": (3, 32, 100),
    "imagefolder": (3, 224, 1000),
    "stick": (3, 64, 14),
    "mpii": (3, 256, 16),
    "stereo": (3, 64, 4),
    "rooms": (3, 64, 4),
    "triples": (3, 64, 4),
}


def fingerprint(name: DataName, root: Path) -> str:
    """What tells one copy of a data set from another, cheaply: the place and the sizes of its files. Empty for embedded
    ones, which are always the same."""
    if name in EMBEDDED:
        return ""
    place = next((place for place in PLACES[name] if (root / place).exists()), None)
    if place is None:
        return "absent"
    found = root / place
    files = [found] if found.is_file() else sorted(path for path in found.iterdir() if not path.name.startswith("."))
    sizes = [f"{path.name}:{path.stat().st_size if path.is_file() else len(list(path.iterdir()))}" for path in files]
    return f"{place} {' '.join(sizes)}"


def present(name: DataName, root: Path) -> bool:
    """Whether a data set is embedded or lies under the data root."""
    return name in EMBEDDED or any((root / place).exists() for place in PLACES[name])
