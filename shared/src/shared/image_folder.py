"""Images too many for memory: ImageNet's layout, `train/<class>/*` and `val/<class>/*`, decoded as they are asked for.

    part = image_folder(root / "imagenet", "train")
    Batches(Crops(part, 224), batch_size, seed, workers=8)      # random resized crops, for training
    x = Files(part.paths, 224)                                  # stands for uint8 [N, 3, 224, 224], for measuring
    x[torch.arange(10)]; for images in x.split(500): ...

Dimensions: N images, channels first.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from shared.config import UserError, check_range
from shared.image_files import open_image

SUFFIXES = (".jpeg", ".jpg", ".png")
SHORT = 256  # pixels of the short side of images in a cache
TRIES = 10  # at a crop that lies within the image
QUALITY = 95  # of a cache's JPEG files


@dataclass(frozen=True)
class Part:
    """One part of a folder of images.

    Attributes:
        paths: of N images, by class and name. labels: int64 [N]. classes: names of the folders, in order.
    """

    paths: tuple[Path, ...]
    labels: Tensor
    classes: tuple[str, ...]


def image_folder(root: Path, part: str, classes: Sequence[str] | None = None) -> Part:
    """What lies in `root/part`.

    Args:
        root: the folder with `train` and `val`. part: one of them. classes: of the other part, which must be the same.

    Raises:
        UserError: no such folder, no classes, a class without images or other classes than those of the other part.
    """
    folder = root / part
    if not folder.is_dir():
        raise UserError("data folder", folder, f"{part}/<class>/*.JPEG", "Nothing is downloaded: put the files there.")
    names = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir()))
    if not names:
        raise UserError("data folder", folder, "a folder of images for each class")
    if classes is not None and tuple(classes) != names:
        odd = sorted(set(names) ^ set(classes))
        raise UserError(f"classes of {folder}", ", ".join(odd[:5]) or "another order", "those of the other part")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        own = sorted(path for path in (folder / name).iterdir() if path.suffix.lower() in SUFFIXES)
        if not own:
            raise UserError("data folder", folder / name, f"images ({', '.join(SUFFIXES)})")
        paths += own
        labels += [label] * len(own)
    return Part(tuple(paths), torch.tensor(labels), names)


def read(path: Path, cache: Path | None = None) -> Image.Image:
    """An image in colour; from the cache, where it has a short side of 256 pixels, if there is one.

    Args:
        path: of the image. cache: folder of smaller copies, which are made as images are asked for.

    Raises:
        UserError: missing or damaged, with its path.
    """
    if cache is None:
        return open_image(path).convert("RGB")
    kept = cache / f"{hashlib.blake2b(str(path).encode(), digest_size=16).hexdigest()}.jpg"
    if kept.exists():
        return open_image(kept).convert("RGB")
    image = open_image(path).convert("RGB")
    width, height = image.size
    share = SHORT / min(width, height)
    if share < 1:
        image = image.resize((round(width * share), round(height * share)), Image.Resampling.BICUBIC)
    cache.mkdir(parents=True, exist_ok=True)
    temporary = kept.with_suffix(f".{os.getpid()}")
    image.save(temporary, "JPEG", quality=QUALITY, subsampling=0)
    os.replace(temporary, kept)
    return image


def centre(image: Image.Image, side: int, resize: float = 256 / 224) -> Image.Image:
    """The middle of an image whose short side is first scaled to `resize` times the crop's."""
    width, height = image.size
    short = round(resize * side)
    wide, high = (int(short * length / min(width, height)) for length in (width, height))
    image = image.resize((wide, high), Image.Resampling.BILINEAR)
    left, top = round((wide - side) / 2), round((high - side) / 2)
    return image.crop((left, top, left + side, top + side))


def random_box(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float] = (3 / 4, 4 / 3)
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a crop whose share of the area is uniform in `scale`, and the logarithm of whose
    ratio of sides is uniform between those of `ratio`; drawn from torch's global stream. What ten tries do not find is
    the middle, as large as it can be."""
    for _ in range(TRIES):
        area, slant, x, y = torch.rand(4, dtype=torch.float64).tolist()
        size = width * height * (scale[0] + (scale[1] - scale[0]) * area)
        shape = math.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * slant)
        w, h = round(math.sqrt(size * shape)), round(math.sqrt(size / shape))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
            return left, top, left + w, top + h
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def as_tensor(image: Image.Image) -> Tensor:
    """uint8 [3, H, W]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


class Crops(torch.utils.data.Dataset[tuple[Tensor, ...]]):
    """Random resized crops: item i is (uint8 [3, size, size], ..., label), a crop for each size.

    Args:
        part: the images. size: pixels of a crop, or of several, each drawn for itself. scale: of each, the share of the
            area it takes. cache: as of `read`. interpolation: Pillow's name, bilinear or bicubic.
    """

    def __init__(
        self,
        part: Part,
        size: int | Sequence[int],
        scale: tuple[float, float] | Sequence[tuple[float, float]] = (0.08, 1.0),
        cache: Path | None = None,
        interpolation: str = "bilinear",
    ) -> None:
        self.part, self.cache = part, cache
        self.sizes = (size,) if isinstance(size, int) else tuple(size)
        one = isinstance(scale[0], float)
        self.scales: list[tuple[float, float]] = [scale] * len(self.sizes) if one else list(scale)  # pyright: ignore
        if len(self.scales) != len(self.sizes):
            raise UserError("scale", len(self.scales), f"one for each of the {len(self.sizes)} crops")
        for each in self.sizes:
            check_range("crop", each, 1)
        self.resampling = Image.Resampling[interpolation.upper()]

    def __len__(self) -> int:
        return len(self.part.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        image = read(self.part.paths[index], self.cache)
        crops = []
        for size, scale in zip(self.sizes, self.scales, strict=True):
            box = random_box(*image.size, scale)
            crops.append(as_tensor(image.crop(box).resize((size, size), self.resampling)))
        return (*crops, self.part.labels[index])


class Files:
    """Images on disk in the place of uint8 [N, 3, side, side]: the middle of each, decoded when it is asked for.

    Args:
        paths: of the images. side: pixels. cache: as of `read`. device: where images go.
    """

    def __init__(
        self, paths: Sequence[Path], side: int, cache: Path | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self.paths, self.side, self.cache, self.device = tuple(paths), side, cache, torch.device(device)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.paths), 3, self.side, self.side))

    def __len__(self) -> int:
        return len(self.paths)

    def to(self, device: torch.device | str) -> Files:
        """The same, decoded to another device."""
        return Files(self.paths, self.side, self.cache, device)

    def __getitem__(self, chosen: Tensor | slice) -> Tensor:
        """Some of them: indices, or a slice."""
        paths = self.paths[chosen] if isinstance(chosen, slice) else [self.paths[i] for i in chosen.tolist()]
        images = [as_tensor(centre(read(path, self.cache), self.side)) for path in paths]
        return torch.stack(images).to(self.device)

    def split(self, size: int) -> Iterator[Tensor]:
        """Batches of `size`, in order."""
        for begin in range(0, len(self), size):
            yield self[begin : begin + size]
