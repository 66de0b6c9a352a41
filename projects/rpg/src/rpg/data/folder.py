"""ImageNet-like folders: decoded by workers, with the usual crops."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rpg.data.names import PLACES
from shared.config import UserError
from shared.data import require

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class FolderData:
    """Map-style data sets of (float image `[3, size, size]`, label)."""

    train: Any
    test: Any
    classes: tuple[str, ...]
    label: str


def imagefolder(root: Path, size: int = 224) -> FolderData:
    """train/<class>/* and val/<class>/* under the data root (or under imagenet/ there).

    Training: random resized crop and flip; testing: shorter side to size * 256 / 224, centre crop.

    Raises:
        UserError: no such folders, or classes that differ between them.
    """
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
    on_train = T.Compose([T.RandomResizedCrop(size), T.RandomHorizontalFlip(), *tail])
    on_test = T.Compose([T.Resize(round(size * 256 / 224)), T.CenterCrop(size), *tail])
    try:
        return FolderData(
            ImageFolder(str(train), on_train), ImageFolder(str(test), on_test), tuple(classes[train]), "image folders"
        )
    except FileNotFoundError as error:
        raise UserError("image folders", train.parent, "at least one image in every class", str(error)) from None
