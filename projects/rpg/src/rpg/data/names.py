"""Names of the data sets, one line each, and whether one is at hand. Imports no torch: `--help` lists them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from shared import image_names
from shared.config import check_choice

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
    **image_names.DESCRIPTIONS,
    "imagefolder": "folders train/<class> and val/<class>, as ImageNet lies on disk",
    "stick": "synthetic stick figures with 14 joints, made on the fly",
    "mpii": "MPII human pose: annotations and images",
    "stereo": "one real stereo pair with disparity, embedded: crops of its left and right parts",
    "rooms": "synthetic ray-cast rooms with exact depth and normals, made on the fly",
    "triples": "folders of colour, depth and normal images, as S3DIS can be laid out",
}

POSE: tuple[DataName, ...] = ("stick", "mpii")
DENSE: tuple[DataName, ...] = ("stereo", "rooms", "triples")

# Where those that are not embedded may lie under the data root, best first.
PLACES: dict[DataName, tuple[str, ...]] = {
    **image_names.PLACES,
    "imagefolder": ("imagenet/train", "train"),
    "mpii": ("mpii/annotations.json",),
    "triples": ("triples/train", "s3dis/train"),
}

# Channels, side in pixels, outputs: what a host must know of the data without loading them.
SHAPES: dict[DataName, tuple[int, int, int]] = {
    **image_names.SHAPES,
    "imagefolder": (3, 224, 1000),
    "stick": (3, 64, 14),
    "mpii": (3, 256, 16),
    "stereo": (3, 64, 4),
    "rooms": (3, 64, 4),
    "triples": (3, 64, 4),
}


def image_shape(name: str) -> tuple[int, int, int]:
    """Channels, side in pixels and outputs of a data set, without loading it."""
    check_choice("--data", name, DATA)
    return SHAPES[name]  # pyright: ignore[reportArgumentType]


def fingerprint(name: DataName, root: Path) -> str:
    """What tells one copy of a data set from another; empty for embedded ones, which are always the same."""
    return image_names.fingerprint(name, root, PLACES)


def present(name: DataName, root: Path) -> bool:
    """Whether a data set is embedded or lies under the data root."""
    return image_names.present(name, root, PLACES)
