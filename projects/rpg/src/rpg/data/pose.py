"""Human pose: joints in images. A synthetic set made on the fly, and MPII by path.

The stick figures are synthetic and are called so in every table; they check that stages sharing a ring learn to find
joints, not that the paper's MPII figures hold.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rpg.data.names import PLACES, POSE
from shared.config import UserError, check_choice
from shared.data import require
from shared.image_files import open_image

# Joints in an order like MPII's, without thorax and pelvis: head top and neck give the head's length.
JOINTS = (
    "right ankle", "right knee", "right hip", "left hip", "left knee", "left ankle", "right wrist", "right elbow",
    "right shoulder", "left shoulder", "left elbow", "left wrist", "neck", "head top",
)  # fmt: skip
LIMBS = (
    (0, 1),
    (1, 2),
    (2, 12),
    (3, 12),
    (3, 4),
    (4, 5),
    (6, 7),
    (7, 8),
    (8, 12),
    (9, 12),
    (9, 10),
    (10, 11),
    (12, 13),
)


@dataclass(frozen=True)
class PoseData:
    """Images and joints.

    Attributes:
        x_*: uint8 `[N, 3, S, S]`. keypoints_*: float `[N, J, 2]`, (x, y) in pixels.
        visible_*: float `[N, J]`, 1 where a joint is annotated. head_*: head length in pixels, `[N]`.
        joints: names. label: what it is, for tables.
    """

    x_train: Tensor
    keypoints_train: Tensor
    visible_train: Tensor
    head_train: Tensor
    x_test: Tensor
    keypoints_test: Tensor
    visible_test: Tensor
    head_test: Tensor
    joints: tuple[str, ...]
    label: str


def load_pose(name: str, root: Path, *, max_train: int | None = None, max_test: int | None = None) -> PoseData:
    """`stick` or `mpii`.

    Raises:
        UserError: unknown name, missing or damaged files.
    """
    check_choice("--data", name, POSE)
    if name == "mpii":
        return mpii(root, max_train=max_train, max_test=max_test)
    train = stick_figures(max_train or 2000, seed=0)
    test = stick_figures(max_test or 500, seed=1)
    return PoseData(*train, *test, JOINTS, "stick figures (synthetic)")


def stick_figures(count: int, seed: int, size: int = 64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw figures of random build and posture, partly hidden, before crops of photographs.

    Returns:
        (images uint8 `[count, 3, size, size]`, keypoints `[count, 14, 2]` in pixels, visible `[count, 14]`, all ones: a
        hidden joint is still annotated; head lengths `[count]`).
    """
    stream = np.random.default_rng([seed, size])
    points = _postures(count, stream) * size  # [count, 14, 2]
    images = _backgrounds(count, size, stream)
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32)
    for figure in range(count):
        thickness = size * stream.uniform(0.012, 0.03)
        colours = stream.uniform(0, 255, (len(LIMBS), 3))
        for limb, (a, b) in enumerate(LIMBS):
            inside = _distance(columns, rows, points[figure, a], points[figure, b]) < thickness
            images[figure, :, inside] = colours[limb]
        for _ in range(stream.integers(0, 3)):  # occluders
            side = stream.uniform(0.06, 0.16, 2) * size
            x, y = stream.uniform(0, size, 2)
            hidden = (np.abs(columns - x) < side[0] / 2) & (np.abs(rows - y) < side[1] / 2)
            images[figure, :, hidden] = stream.uniform(0, 255, 3)
    head = np.linalg.norm(points[:, 13] - points[:, 12], axis=1)
    keypoints = torch.from_numpy(points.astype(np.float32))
    return (
        torch.from_numpy(images.astype(np.uint8)),
        keypoints,
        torch.ones(count, len(JOINTS)),
        torch.from_numpy(head.astype(np.float32)),
    )


def _postures(count: int, stream: np.random.Generator) -> NDArray[np.float64]:
    """Joints in units of the image's side, all inside it: `[count, 14, 2]`."""
    points = np.empty((count, 14, 2))
    scale = stream.uniform(0.75, 1.1, (count, 1))

    def step(start: NDArray[Any], angle: NDArray[Any], length: float) -> NDArray[Any]:
        """From a joint into a direction; 0 is down, positive to the right of the image."""
        reach = length * scale[:, 0] * stream.uniform(0.85, 1.15, count)
        return start + np.stack([reach * np.sin(angle), reach * np.cos(angle)], 1)

    lean = stream.normal(0, 0.15, count)
    neck = np.stack([stream.uniform(0.35, 0.65, count), stream.uniform(0.22, 0.32, count)], 1)
    pelvis = step(neck, lean, 0.25)
    points[:, 12] = neck
    points[:, 13] = step(neck, np.pi + lean + stream.normal(0, 0.2, count), 0.11)
    for side, (shoulder, elbow, wrist, hip, knee, ankle) in ((-1, (8, 7, 6, 2, 1, 0)), (1, (9, 10, 11, 3, 4, 5))):
        points[:, shoulder] = step(neck, side * np.pi / 2 + lean + stream.normal(0, 0.1, count), 0.08)
        upper = side * np.abs(stream.normal(0.6, 0.6, count))
        points[:, elbow] = step(points[:, shoulder], upper, 0.13)
        points[:, wrist] = step(points[:, elbow], upper + side * stream.normal(0.3, 0.6, count), 0.12)
        points[:, hip] = step(pelvis, side * np.pi / 2 + lean, 0.05)
        thigh = side * np.abs(stream.normal(0.2, 0.25, count))
        points[:, knee] = step(points[:, hip], thigh, 0.17)
        points[:, ankle] = step(points[:, knee], thigh - side * np.abs(stream.normal(0, 0.2, count)), 0.16)
    # A figure that reaches outside is shrunk and moved inside, as a crop around a person would be.
    low, high = points.min(1, keepdims=True), points.max(1, keepdims=True)
    shrink = np.minimum(1.0, 0.92 / (high - low).max(2, keepdims=True))
    middle = (low + high) / 2
    points = (points - middle) * shrink
    half = (high - low) / 2 * shrink
    return points + np.clip(middle, 0.03 + half, 0.97 - half)


def _backgrounds(count: int, size: int, stream: np.random.Generator) -> NDArray[np.float32]:
    """Darkened crops of photographs that lie in scikit-image's wheel: float `[count, 3, size, size]`."""
    from skimage import data

    photographs = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
    images = np.empty((count, 3, size, size), np.float32)
    for index in range(count):
        photograph = photographs[stream.integers(len(photographs))]
        top, left = (stream.integers(0, extent - size + 1) for extent in photograph.shape[:2])
        patch = photograph[top : top + size, left : left + size, :3]
        images[index] = patch.transpose(2, 0, 1) * stream.uniform(0.3, 0.8)
    return images


def _distance(x: NDArray[Any], y: NDArray[Any], a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Distance of every pixel from the segment a-b."""
    along = b - a
    share = ((x - a[0]) * along[0] + (y - a[1]) * along[1]) / max(float(along @ along), 1e-9)
    share = share.clip(0, 1)
    return np.hypot(x - a[0] - share * along[0], y - a[1] - share * along[1])


def mpii(root: Path, size: int = 256, *, max_train: int | None = None, max_test: int | None = None) -> PoseData:
    """MPII: `mpii/annotations.json` and `mpii/images/` under the data root.

    The annotations are a list of people, as common conversions of the original Matlab file have them: `image` (file
    name), `center` [x, y], `scale` (person height / 200 pixels), `joints` (16 pairs), `joints_vis` (16), optional
    `headbox` [x1, y1, x2, y2], and `split` (`train` or `valid`; or `isValidation`). Each person is cut out as a
    square of scale * 250 pixels and resized to `size`.

    Raises:
        UserError: missing files, an annotation without a field it needs; with its number.
    """
    path = require(root, PLACES["mpii"], what="MPII", how="Put annotations.json and images/ into the folder mpii.")
    try:
        people = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError("annotations", path, "valid JSON", str(error)) from None
    people = people["root"] if isinstance(people, dict) and "root" in people else people
    if not isinstance(people, list) or not all(isinstance(person, dict) for person in people):
        raise UserError("annotations", path, "a list of people, each a mapping")
    split: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for number, person in enumerate(people):
        for field in ("joints", "center", "scale"):
            if field not in person:
                raise UserError(f"annotation {number}", f"no {field}", "joints, center, scale and an image's name")
        _check_person(number, person)
        split[bool(person.get("isValidation", person.get("split") == "valid"))].append(person)
    halves: list[Tensor] = []
    for valid, limit in ((False, max_train), (True, max_test)):
        halves += _people(split[valid][:limit], path.parent / "images", size)
    return PoseData(*halves, tuple(str(i) for i in range(halves[1].shape[1])), "MPII")  # pyright: ignore


def _check_person(number: int, person: dict[str, Any]) -> None:
    """Refuse numbers that are none, and lists of another shape."""
    shapes = {"joints": (-1, 2), "center": (2,), "scale": (), "headbox": (4,), "joints_vis": (-1,)}
    for field, shape in shapes.items():
        if person.get(field) is None and field in ("headbox", "joints_vis"):
            continue
        try:
            value = np.asarray(person[field], np.float64)
        except (TypeError, ValueError):
            value = np.full((0, 0, 0), np.nan)
        fits = value.ndim == len(shape) and all(w in (-1, n) for w, n in zip(shape, value.shape, strict=True))
        if not fits or not np.isfinite(value).all():
            words = " x ".join("n" if width == -1 else str(width) for width in shape) or "one"
            raise UserError(f"annotation {number}: {field}", str(person[field])[:60], f"{words} finite numbers")


def _people(people: Sequence[dict[str, Any]], folder: Path, size: int) -> list[Tensor]:
    from PIL import Image

    if not people:
        raise UserError("annotations", "a part without people", "people marked train and people marked valid")
    images, keypoints, visible, heads = [], [], [], []
    for person in people:
        name = person.get("image") or person.get("img_paths")
        path = folder / str(name)
        if not path.exists():
            raise UserError("image", path, "a file that exists: the annotations name it")
        side = float(person["scale"]) * 250
        left, top = (float(centre) - side / 2 for centre in person["center"])
        cut = (
            open_image(path)
            .convert("RGB")
            .transform(
                (size, size), Image.Transform.EXTENT, (left, top, left + side, top + side), Image.Resampling.BILINEAR
            )
        )
        images.append(np.asarray(cut).transpose(2, 0, 1))
        joints = np.asarray(person["joints"], np.float32)[:, :2]
        keypoints.append((joints - np.array([left, top], np.float32)) * (size / side))
        marks = np.asarray(person.get("joints_vis", person.get("joint_self", np.ones(len(joints)))), np.float32)
        visible.append((marks.reshape(len(joints), -1)[:, -1] > 0).astype(np.float32))
        box = person.get("headbox")
        # PCKh takes 0.6 of the head box's diagonal; without a box, a tenth of the person's height.
        diagonal = 0.6 * float(np.hypot(box[2] - box[0], box[3] - box[1])) if box else 20.0 * float(person["scale"])
        heads.append(diagonal * size / side)
    stacked = [np.stack(images), np.stack(keypoints), np.stack(visible), np.asarray(heads, np.float32)]
    return [torch.from_numpy(np.ascontiguousarray(part)) for part in stacked]
