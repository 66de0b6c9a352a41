"""Depth and surface normals: a real stereo pair, synthetic rooms with exact geometry, and folders of triples.

None of the embedded ones is S3DIS, and their labels say so.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rpg.data.names import DENSE, PLACES
from shared.config import UserError, check_choice
from shared.data import require
from shared.image_files import open_image

Triple = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]  # images, depth, normals, valid


@dataclass(frozen=True)
class DenseData:
    """Images with depth and normals.

    Attributes:
        x_*: uint8 `[N, 3, S, S]`. depth_*: float `[N, 1, S, S]`, about 0 to 1 (units: see the data set).
        normals_*: unit vectors `[N, 3, S, S]`: x right, y down, z towards the camera. valid_*: bool `[N, 1, S, S]`.
        label: what it is, for tables.
    """

    x_train: Tensor
    depth_train: Tensor
    normals_train: Tensor
    valid_train: Tensor
    x_test: Tensor
    depth_test: Tensor
    normals_test: Tensor
    valid_test: Tensor
    label: str


def load_dense(name: str, root: Path, *, max_train: int | None = None, max_test: int | None = None) -> DenseData:
    """`stereo`, `rooms` or `triples`.

    Raises:
        UserError: unknown name, missing or damaged files.
    """
    check_choice("--data", name, DENSE)
    if name == "rooms":
        parts = rooms(max_train or 600, seed=0), rooms(max_test or 150, seed=1)
        return _data(*parts, "box rooms (synthetic)")
    if name == "stereo":
        return _data(*stereo(max_train or 800, max_test or 200), "stereo pair 'motorcycle' (one scene)")
    found = require(root, PLACES["triples"], what="depth and normals", how="See rpg.data.dense.triples for the layout.")
    return _data(triples(found, max_train), triples(found.parent / "test", max_test), "triples")


def _data(train: Triple, test: Triple, label: str) -> DenseData:
    tensors = [torch.from_numpy(np.ascontiguousarray(part)) for half in (train, test) for part in half]
    return DenseData(*tensors, label)  # pyright: ignore[reportCallIssue]


def normals_of(depth: NDArray[Any], spacing: float = 1.0) -> NDArray[np.float32]:
    """Unit normals of a surface z = depth(x, y), `[..., H, W]` to `[..., 3, H, W]`, towards the viewer.

    Args:
        spacing: distance between neighbouring pixels, in units of depth.
    """
    rows, columns = np.gradient(depth, spacing, axis=(-2, -1))
    # Depth grows away from the viewer; where it grows to the right, the surface faces right-to-left.
    stacked = np.stack([columns, rows, np.ones_like(rows)], axis=-3)
    stacked[..., :2, :, :] *= -1
    return (stacked / np.linalg.norm(stacked, axis=-3, keepdims=True)).astype(np.float32)


def stereo(train: int, test: int, size: int = 64) -> tuple[Triple, Triple]:
    """Crops of a stereo pair that lies in scikit-image's wheel (Middlebury 2014, motorcycle).

    Depth is the disparity divided by its maximum, normals come from its gradient, pixels without disparity are
    invalid. Training crops lie in the left 70 % of the image, test crops in the right 30 %.

    Returns:
        two times (images, depth, normals, valid).
    """
    from skimage import data

    left, _, disparity = data.stereo_motorcycle()
    known = np.isfinite(disparity) & (disparity > 0)
    top = float(disparity[known].max())
    filled = np.where(known, disparity, 0.0) / top
    normals = normals_of(filled, spacing=1 / size)
    border = round(0.7 * left.shape[1])
    # A normal needs its neighbours: pixels beside unknown ones are left out too.
    solid = known.copy()
    for axis in (0, 1):
        for shift in (1, -1):
            solid &= np.roll(known, shift, axis)

    def crops(count: int, begin: int, end: int, seed: int) -> Triple:
        stream = np.random.default_rng(seed)
        parts: list[list[NDArray[Any]]] = [[], [], [], []]
        while len(parts[0]) < count:
            y = int(stream.integers(0, left.shape[0] - size + 1))
            x = int(stream.integers(begin, end - size + 1))
            window = (slice(y, y + size), slice(x, x + size))
            if solid[window].mean() < 0.3:
                continue
            image = left[window].transpose(2, 0, 1)
            for part, value in zip(
                parts, (image, filled[window][None], normals[:, *window], solid[window][None]), strict=True
            ):
                part.append(value)
        images, depth, normal, valid = (np.stack(part) for part in parts)
        return images, depth.astype(np.float32), normal, valid

    return crops(train, 0, border, 0), crops(test, border, left.shape[1], 1)


def rooms(count: int, seed: int, size: int = 64) -> Triple:
    """Views into random boxes, ray by ray, with exact depth and normals.

    The camera stands inside a box and looks along +z with a field of view of 70 degrees, turned by a random yaw.
    Depth is the distance along the viewing axis divided by 10 m. Walls have a colour each, a checker texture and
    light that falls off with distance.

    Returns:
        (images uint8, depth, normals, valid), all of `[count, ., size, size]`.
    """
    stream = np.random.default_rng([seed, size])
    half = np.tan(np.deg2rad(35.0))
    u, v = np.meshgrid(np.linspace(-half, half, size), np.linspace(-half, half, size))
    rays = np.stack([u, v, np.ones_like(u)], -1)  # [S, S, 3], camera coordinates: x right, y down, z forward
    parts: list[list[NDArray[Any]]] = [[], [], [], []]
    for _ in range(count):
        low = -np.array([stream.uniform(1, 4), stream.uniform(0.8, 1.8), stream.uniform(0.5, 2)])
        high = np.array([stream.uniform(1, 4), stream.uniform(1.0, 1.8), stream.uniform(2, 7)])
        yaw = stream.uniform(-0.6, 0.6)
        turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
        distance, wall, point = cast(rays @ turn.T, low, high)
        colours = stream.uniform(0.3, 1.0, (6, 3))
        checks = (np.floor(point * stream.uniform(0.8, 2.5)).sum(-1) % 2)[..., None]
        light = 1.2 / (1 + 0.12 * distance[..., None])
        image = colours[wall] * (0.75 + 0.25 * checks) * light + stream.normal(0, 0.02, (size, size, 3))
        inward = np.zeros((6, 3))
        for face in range(6):
            inward[face, face // 2] = 1.0 if face % 2 == 0 else -1.0
        normal = inward[wall] @ turn  # into camera coordinates
        normal = normal * np.array([1.0, 1.0, -1.0])  # z towards the camera
        parts[0].append((image.clip(0, 1) * 255).astype(np.uint8).transpose(2, 0, 1))
        parts[1].append((distance / 10)[None].astype(np.float32))
        parts[2].append(normal.transpose(2, 0, 1).astype(np.float32))
        parts[3].append(np.ones((1, size, size), bool))
    images, depth, normals, valid = (np.stack(part) for part in parts)
    return images, depth, normals, valid


def cast(rays: NDArray[Any], low: NDArray[Any], high: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """From the origin inside a box along rays whose component on the viewing axis is 1 before turning.

    Returns:
        (distance in units of the ray `[...]`, face 0..5 (low x, high x, low y, ...), point `[..., 3]`).
    """
    with np.errstate(divide="ignore"):
        reach = np.where(rays > 0, high / rays, np.where(rays < 0, low / rays, np.inf))  # [..., 3]
    axis = reach.argmin(-1)
    distance = np.take_along_axis(reach, axis[..., None], -1)[..., 0]
    towards = np.take_along_axis(rays, axis[..., None], -1)[..., 0]
    return distance, 2 * axis + (towards > 0), rays * distance[..., None]


def triples(folder: Path, limit: int | None = None, size: int = 64) -> Triple:
    """rgb/<name>.png, depth/<name>.png (16 bit, 0 is unknown) and normals/<name>.png (components as (n + 1) / 2 * 255).

    Raises:
        UserError: a missing folder or partner file, a depth image that is not 16 bit; with the path.
    """
    from PIL import Image

    names = sorted(path.name for path in (folder / "rgb").glob("*.png"))[:limit] if folder.is_dir() else []
    if not names:
        raise UserError("triples", folder, "folders rgb/, depth/ and normals/ of equally named PNG files")
    parts: list[list[NDArray[Any]]] = [[], [], [], []]
    for name in names:
        for kind in ("depth", "normals"):
            if not (folder / kind / name).exists():
                raise UserError("triples", folder / kind / name, "a file that exists: rgb/ has one of that name")
        colours, depths, directions = (open_image(folder / kind / name) for kind in ("rgb", "depth", "normals"))
        rgb = np.asarray(colours.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
        if not depths.mode.startswith("I"):
            raise UserError("depth image", folder / "depth" / name, "16-bit grey", f"Its mode is {depths.mode}.")
        depth = np.asarray(depths.resize((size, size), Image.Resampling.NEAREST)).astype(np.float32)
        normal = np.asarray(directions.convert("RGB").resize((size, size), Image.Resampling.NEAREST)).astype(np.float32)
        normal = normal / 127.5 - 1
        length = np.linalg.norm(normal, axis=-1, keepdims=True)
        parts[0].append(rgb.transpose(2, 0, 1))
        parts[1].append((depth / 65535)[None])
        parts[2].append((normal / np.maximum(length, 1e-6)).transpose(2, 0, 1))
        parts[3].append((depth > 0)[None])
    images, depth, normals, valid = (np.stack(part) for part in parts)
    return images, depth, normals.astype(np.float32), valid
