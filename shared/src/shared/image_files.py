"""File formats: idx, .npz, CIFAR's archives, folders of images, the Fashion-MNIST sprite. All to uint8 arrays.

Nothing here runs code from a file: archives are pickles, and are read by an unpickler that knows arrays and plain
values only.
"""

from __future__ import annotations

import gzip
import io
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from shared.config import UserError, check_choice

if TYPE_CHECKING:
    from PIL import Image

Halves: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]
# x_train, y_train, x_test, y_test, classes, label
Arrays: TypeAlias = tuple[
    NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64], tuple[str, ...], str
]
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")


def read_idx(path: Path) -> NDArray[np.uint8]:
    """An idx file of unsigned bytes, plain or gzipped: `[N]` labels or `[N, H, W]` images.

    Raises:
        UserError: missing, truncated, or no idx file.
    """
    zipped = path.with_name(path.name + ".gz")
    try:
        content = path.read_bytes() if path.exists() else gzip.decompress(zipped.read_bytes())
    except FileNotFoundError:
        raise UserError("data file", path, "a file that exists (plain or .gz)") from None
    except (OSError, EOFError, gzip.BadGzipFile) as error:
        raise UserError("data file", zipped, "an undamaged gzip file", str(error)) from None
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise UserError("data file", path, "an idx file of unsigned bytes")
    header = 4 + 4 * content[3]
    shape = tuple(int.from_bytes(content[at : at + 4], "big") for at in range(4, header, 4))
    expected = header + int(np.prod(shape))
    if len(content) != expected:
        raise UserError("data file", path, f"{expected:,} bytes for shape {shape}", f"It has {len(content):,}.")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def idx_folder(folder: Path) -> Halves:
    """The four files of MNIST and its likes."""
    halves: list[Any] = []
    for part in ("train", "t10k"):
        images, labels = (folder / f"{part}-{kind}" for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))
        x, y = read_idx(images), read_idx(labels)
        if x.ndim != 3 or y.ndim != 1 or len(x) != len(y):
            raise UserError("data file", images, f"as many images as labels, {len(y)}", f"Its shape is {x.shape}.")
        halves += [x[:, None], y.astype(np.int64)]
    return halves[0], halves[1], halves[2], halves[3]


def npz(path: Path, label: str) -> Arrays:
    """x_train `[N, H, W, 3]` uint8, y_train, x_test, y_test and, if it is there, classes.

    Raises:
        UserError: a missing array, another type or shape, a damaged file.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise UserError("data file", path, "an undamaged .npz of plain arrays", str(error)) from None
    for name in ("x_train", "y_train", "x_test", "y_test"):
        if name not in arrays:
            raise UserError(f"{path}: array", name, list(arrays), "It must hold x_train, y_train, x_test and y_test.")
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] != 3 or len(x) != len(y):
            expected = f"uint8 [{len(y)}, H, W, 3]"
            raise UserError(f"{path}: x_{part}", f"{x.dtype} {list(x.shape)}", expected)
    if "classes" in arrays:
        classes = tuple(str(name) for name in arrays["classes"])
    else:
        classes = tuple(str(index) for index in range(int(arrays["y_train"].max()) + 1))
    train, test = (arrays[f"x_{part}"].transpose(0, 3, 1, 2) for part in ("train", "test"))
    y_train, y_test = (arrays[f"y_{part}"].astype(np.int64) for part in ("train", "test"))
    if len(train) < 50_000:
        label += f" subset {len(train):,}/{len(test):,}"
    return train, y_train, test, y_test, classes, label


class _ArraysOnly(pickle.Unpickler):
    """Knows how to build arrays, and nothing else."""

    ALLOWED = frozenset({
        ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"),
    })  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it wants to call {module}.{name}")
        return super().find_class(module, name)


def read_pickle(path: Path) -> dict[str, Any]:
    """A pickled dictionary of arrays, lists and strings; keys as text.

    Raises:
        UserError: missing, damaged, or it asks for anything but arrays.
    """
    try:
        content = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        return {key.decode() if isinstance(key, bytes) else str(key): value for key, value in content.items()}
    except FileNotFoundError:
        raise UserError("data file", path, "a file that exists") from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise UserError("data file", path, "an undamaged pickle of arrays", str(error)[:200]) from None


def cifar_archive(folder: Path, label: str) -> Arrays:
    """`cifar-10-batches-py` or `cifar-100-python`, unpacked.

    Raises:
        UserError: a file is missing, damaged, or not of 32x32 colour images.
    """
    if folder.name == "cifar-100-python":
        parts, meta, names, key = (["train"], ["test"]), "meta", "fine_label_names", "fine_labels"
    else:
        batches = sorted(path.name for path in folder.glob("data_batch_*"))
        parts, meta, names, key = (batches, ["test_batch"]), "batches.meta", "label_names", "labels"
        if not batches:
            raise UserError("data folder", folder, "data_batch_1 to data_batch_5, test_batch and batches.meta")
    halves: list[Any] = []
    for files in parts:
        images, labels = [], []
        for name in files:
            batch = read_pickle(folder / name)
            x = batch.get("data")
            if not isinstance(x, np.ndarray) or x.dtype != np.uint8 or x.ndim != 2 or x.shape[1] != 3072:
                raise UserError("data file", folder / name, "uint8 images of 3 x 32 x 32 under 'data'")
            if key not in batch:
                raise UserError("data file", folder / name, f"labels under {key!r}")
            images.append(x.reshape(-1, 3, 32, 32))
            labels.append(np.asarray(batch[key], np.int64))
        halves += [np.concatenate(images), np.concatenate(labels)]
    classes = tuple(n.decode() if isinstance(n, bytes) else str(n) for n in read_pickle(folder / meta)[names])
    # Both archives hold 50,000 and 10,000 images; fewer are good for a trial, and tables say so.
    if (len(halves[1]), len(halves[3])) != (50_000, 10_000):
        label += f" subset {len(halves[1]):,}/{len(halves[3]):,}"
    return halves[0], halves[1], halves[2], halves[3], classes, label


def tree(folder: Path, label: str, size: int, classes: Sequence[str], complete: int) -> Arrays:
    """train/<class>/* and test/<class>/*: colour images of one size; the label says where they are lossy or a subset.

    Args:
        folder: holds train/ and test/. label: the data set's name. size: height and width in pixels.
        classes: names of the class folders, in the order of the labels.
        complete: training images of the complete set.

    Raises:
        UserError: a class that is missing, empty, or none of the set's; a grey image, another size; with the path.
    """
    for part in ("train", "test"):
        found = {p.name for p in (folder / part).glob("*") if p.is_dir() and not p.name.startswith(".")}
        if missing := [name for name in classes if name not in found]:
            hint = f"There is no folder {', '.join(missing)}."
            raise UserError("image folders", folder / part, f"a folder for each class: {', '.join(classes)}", hint)
        for name in sorted(found):
            check_choice(f"image folders: {folder / part}: class", name, classes)
    halves: list[Any] = []
    lossy = False
    for part in ("train", "test"):
        images, labels = [], []
        for number, name in enumerate(classes):
            paths = sorted(p for p in (folder / part / name).iterdir() if p.suffix.lower() in SUFFIXES)
            if not paths:
                raise UserError("image folder", folder / part / name, "at least one image (png, jpg, bmp)")
            for path in paths:
                pixels = np.asarray(open_image(path))
                if pixels.shape != (size, size, 3):
                    raise UserError(
                        "image", path, f"a colour image, {size} x {size} x 3", f"Its shape is {pixels.shape}."
                    )
                lossy |= path.suffix.lower() in (".jpg", ".jpeg")
                images.append(pixels)
                labels.append(number)
        halves += [np.stack(images).transpose(0, 3, 1, 2), np.array(labels, np.int64)]
    label += " (JPEG)" if lossy else ""
    if len(halves[1]) < complete:
        label += f" subset {len(halves[1]):,}/{len(halves[3]):,}"
    return halves[0], halves[1], halves[2], halves[3], tuple(classes), label


def open_image(path: Path) -> Image.Image:
    """An image, decoded.

    Raises:
        UserError: it cannot be read, or is damaged.
    """
    from PIL import Image as pillow

    try:
        with pillow.open(path) as image:
            image.load()
            return image
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for damaged files
        raise UserError("image", path, "a readable image", str(error)) from None


def sprite(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The Fashion-MNIST sprite: a 30 x 30 grid of 28 x 28 images, three rows a class in the order of labels.

    Returns:
        (images `[900, 1, 28, 28]`, labels `[900]`).

    Raises:
        UserError: an image of another size.
    """
    pixels = np.asarray(open_image(path).convert("L"))
    if pixels.shape != (840, 840):
        raise UserError("image", path, "a sprite of 840 x 840 pixels", f"Its shape is {pixels.shape}.")
    tiles = pixels.reshape(30, 28, 30, 28).transpose(0, 2, 1, 3).reshape(900, 1, 28, 28)
    return np.ascontiguousarray(tiles), np.repeat(np.arange(10), 90)
