"""ImageNet-like folders: decoded by workers, with the usual crops."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Subset

from rpg.data.names import PLACES
from shared.augment import KINDS
from shared.config import UserError, check_choice
from shared.data import require
from shared.image_files import open_image
from shared.images import balanced

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class FolderData:
    """Map-style data sets of (float image `[3, size, size]`, label)."""

    train: Any
    test: Any
    plain: Any  # the training images as they are tested
    classes: tuple[str, ...]
    label: str


def _picture(path: str) -> Any:
    """An image in colour, refused by its path where it cannot be read."""
    return open_image(Path(path)).convert("RGB")


def imagefolder(
    root: Path,
    size: int = 224,
    augment: str = "crop-flip",
    max_train: int | None = None,
    max_test: int | None = None,
    seed: int = 0,
) -> FolderData:
    """train/<class>/* and val/<class>/* under the data root (or under imagenet/ there).

    Training: `crop-flip` is a random resized crop and flip; without `crop`, and for testing: shorter side to
    size * 256 / 224, centre crop.

    Args:
        root: the data root. size: side of the crops in pixels.
        augment: `none`, `flip` or `crop-flip`.
        max_train, max_test: use so many images, the same number of each class (to one).
        seed: which ones.

    Raises:
        UserError: no such folders, classes that differ between them, more images than there are.
    """
    check_choice("--augment", augment, KINDS)
    how = "Lay images out as train/<class>/* and val/<class>/*."
    train = require(root, PLACES["imagefolder"], what="image folders", how=how)
    test = next((train.parent / name for name in ("val", "test") if (train.parent / name).is_dir()), None)
    if test is None:
        raise UserError("image folders", train.parent, "a folder val/ or test/ beside train/")
    classes = {part: sorted(p.name for p in part.iterdir() if p.is_dir()) for part in (train, test)}
    if classes[train] != classes[test]:
        odd = sorted(set(classes[train]) ^ set(classes[test]))
        raise UserError("image folders", train.parent, "the same classes in both parts", f"Different: {', '.join(odd)}")
    # Late: torchvision takes seconds to import, and only this data set needs it.
    from torchvision import transforms as T
    from torchvision.datasets import ImageFolder

    tail = [T.ToTensor(), T.Normalize(MEAN, STD)]
    centre = [T.Resize(round(size * 256 / 224)), T.CenterCrop(size)]
    cut = [T.RandomResizedCrop(size)] if augment == "crop-flip" else centre
    flipped = [] if augment == "none" else [T.RandomHorizontalFlip()]
    on_train, on_test = T.Compose([*cut, *flipped, *tail]), T.Compose([*centre, *tail])
    try:
        places = ((train, on_train), (test, on_test), (train, on_test))
        parts = [ImageFolder(str(place), transform, loader=_picture) for place, transform in places]
    except FileNotFoundError as error:
        raise UserError("image folders", train.parent, "at least one image in every class", str(error)) from None
    label = "image folders"
    if max_train is not None or max_test is not None:
        limits = ((max_train, "--max-train"), (max_test, "--max-test"), (max_train, "--max-train"))
        kept = [
            balanced(np.asarray(p.targets), count, seed, flag) for p, (count, flag) in zip(parts, limits, strict=True)
        ]
        parts = [Subset(part, indices.tolist()) for part, indices in zip(parts, kept, strict=True)]
        label += f", {len(parts[0]):,}/{len(parts[1]):,} of them"
    return FolderData(*parts, tuple(classes[train]), label)
