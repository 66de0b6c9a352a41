"""Data: every layout on disk, batched augmentation against one image at a time, exact geometry, refusals with paths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rpg.data.corruptions import CORRUPTIONS, corrupt, gaussian_blur
from rpg.data.dense import cast, load_dense, normals_of, rooms
from rpg.data.folder import imagefolder
from rpg.data.names import DATA, DENSE, DESCRIPTIONS, PLACES, POSE, SHAPES, image_shape, present
from rpg.data.pose import JOINTS, load_pose, stick_figures
from shared.augment import normalise
from shared.config import UserError
from shared.images import load

NOWHERE = Path("/nowhere")
STREAM = np.random.default_rng(0)


def pixels(*shape: int) -> np.ndarray:
    return STREAM.integers(0, 256, shape, dtype=np.uint8)


def test_every_name_has_a_line_a_shape_and_a_place() -> None:
    assert set(DESCRIPTIONS) == set(SHAPES) == set(DATA)
    for name in DATA:
        assert present(name, NOWHERE) is (name not in PLACES)
    assert image_shape("mnist5k") == (1, 28, 10)
    assert image_shape("rooms") == SHAPES["rooms"]


@pytest.mark.parametrize("name", ["mnist5k", "digits"])
def test_normalised_training_images_have_mean_0_and_deviation_1(name: Any) -> None:
    data = load(name, NOWHERE)
    x = normalise(data.x_train, data)
    assert float(x.mean()) == pytest.approx(0, abs=1e-4)
    assert float(x.std()) == pytest.approx(1, abs=1e-3)


def test_image_folders_go_through_the_usual_crops(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            Image.fromarray(pixels(40, 50, 3)).save(tmp_path / part / name / "0.png")
    data = imagefolder(tmp_path, size=32)
    assert data.train[0][0].shape == data.test[1][0].shape == (3, 32, 32)
    assert data.test[1][1] == 1
    again = [torch.equal(a, b) for (a, _), (b, _) in zip(data.plain, data.plain, strict=True)]
    assert again == [True, True]  # the training set as it is measured: no chance in it
    still, moving = imagefolder(tmp_path, size=32, augment="none"), imagefolder(tmp_path, size=32, augment="flip")
    torch.testing.assert_close(still.train[0][0], data.plain[0][0])
    seen = [moving.train[0][0] for _ in range(30)]
    plain = data.plain[0][0]
    assert all(torch.equal(x, plain) or torch.equal(x, plain.flip(-1)) for x in seen)
    assert any(not torch.equal(x, plain) for x in seen)
    few = imagefolder(tmp_path, size=32, max_train=1)
    assert (len(few.train), len(few.plain), len(few.test), few.label) == (1, 1, 2, "image folders, 1/2 of them")
    with pytest.raises(UserError, match="--max-test"):
        imagefolder(tmp_path, max_test=3)
    (tmp_path / "val" / "c").mkdir()
    with pytest.raises(UserError, match=r"(?s)same classes.*c"):
        imagefolder(tmp_path)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corruption_grows_with_severity_and_follows_the_seed(kind: str) -> None:
    x = load("mnist5k", NOWHERE).x_test[:50]
    change = [float((corrupt(x, kind, severity).float() - x.float()).abs().mean()) for severity in (1, 3, 5)]
    assert change == sorted(change)
    assert change[0] > 0
    assert torch.equal(corrupt(x, kind, 3, seed=1), corrupt(x, kind, 3, seed=1))


def test_blur_is_the_convolution_that_scipy_computes() -> None:
    from scipy import ndimage

    x = torch.rand(2, 3, 16, 16)
    theirs = ndimage.gaussian_filter(x.numpy(), (0, 0, 1.2, 1.2), mode="nearest", radius=(0, 0, 4, 4))
    assert gaussian_blur(x, 1.2).numpy() == pytest.approx(theirs, abs=1e-5)


# -- pose ------------------------------------------------------------------------------------------------------------


def test_stick_figures_lie_inside_with_a_head_and_follow_the_seed() -> None:
    images, joints, visible, head = stick_figures(40, seed=3)
    assert images.shape == (40, 3, 64, 64)
    assert images.dtype == torch.uint8
    assert joints.shape == (40, len(JOINTS), 2)
    assert float(joints.min()) >= 0
    assert float(joints.max()) < 64
    torch.testing.assert_close(head, (joints[:, 13] - joints[:, 12]).norm(dim=1))
    assert float(head.min()) > 2
    assert torch.equal(visible, torch.ones(40, 14))
    assert torch.equal(stick_figures(40, seed=3)[0], images)
    assert not torch.equal(stick_figures(40, seed=4)[0], images)


def test_synthetic_data_are_called_synthetic() -> None:
    assert "synthetic" in load_pose("stick", NOWHERE, max_train=4, max_test=4).label
    assert "synthetic" in load_dense("rooms", NOWHERE, max_train=2, max_test=2).label
    assert set(POSE) & set(DENSE) == set()


def write_mpii(root: Path) -> list[dict[str, Any]]:
    (root / "mpii" / "images").mkdir(parents=True)
    people = []
    for number, split in enumerate(("train", "train", "valid")):
        picture = np.zeros((300, 400, 3), np.uint8)
        picture[120:124, 200:204] = 255
        Image.fromarray(picture).save(root / "mpii" / "images" / f"{number}.png")
        person = {"image": f"{number}.png", "center": [200, 150], "scale": 0.8, "split": split}
        person |= {"joints": [[202, 122]] * 16, "joints_vis": [1] * 15 + [0], "headbox": [190, 110, 220, 150]}
        people.append(person)
    (root / "mpii" / "annotations.json").write_text(json.dumps(people))
    return people


def test_mpii_people_are_cut_out_with_their_joints(tmp_path: Path) -> None:
    write_mpii(tmp_path)
    data = load_pose("mpii", tmp_path)
    assert len(data.x_train) == 2
    assert len(data.x_test) == 1
    x, y = data.keypoints_train[0, 0].tolist()
    # The square is 200 pixels wide from (100, 50), resized to 256.
    assert (x, y) == pytest.approx((102 * 1.28, 72 * 1.28))
    assert data.x_train[0, 0, round(y), round(x)] > 100
    assert data.visible_train[0].tolist() == [1.0] * 15 + [0.0]
    assert float(data.head_train[0]) == pytest.approx(0.6 * 50 * 1.28)


def test_mpii_refuses_by_path_or_number(tmp_path: Path) -> None:
    people = write_mpii(tmp_path)
    del people[1]["scale"]
    path = tmp_path / "mpii" / "annotations.json"
    path.write_text(json.dumps(people))
    with pytest.raises(UserError, match=r"annotation 1.*no scale"):
        load_pose("mpii", tmp_path)
    write = json.dumps([{**people[0], "image": "gone.png"}, {**people[2]}])
    path.write_text(write)
    with pytest.raises(UserError, match=r"gone\.png"):
        load_pose("mpii", tmp_path)
    path.write_text("{")
    with pytest.raises(UserError, match="JSON"):
        load_pose("mpii", tmp_path)


def test_joints_that_are_not_annotated_do_not_count(tmp_path: Path) -> None:
    """A network that is right on every annotated joint and far off on the others is right."""
    from types import SimpleNamespace

    from rpg.hosts.hourglass import heatmaps
    from rpg.tasks import Pose

    write_mpii(tmp_path)
    data = load_pose("mpii", tmp_path)
    seen = data.keypoints_test.clone()
    seen[data.visible_test == 0] = 1.0  # a corner

    class Right(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return heatmaps(seen, 64, 1.0, 4)[:, None]

    pose = SimpleNamespace(data=data, module=Right(), device="cpu", stride=4)
    assert Pose.measure(pose)["pckh"] == 1.0  # pyright: ignore[reportArgumentType]


def test_a_damaged_picture_is_refused_by_its_path(tmp_path: Path) -> None:
    write_mpii(tmp_path)
    (tmp_path / "mpii" / "images" / "0.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"0\.png"):
        load_pose("mpii", tmp_path)


# -- depth and normals -----------------------------------------------------------------------------------------------


def test_normals_of_a_plane_are_its_normal() -> None:
    rows, columns = np.mgrid[0:8, 0:8].astype(float)
    normal = normals_of(0.5 * columns - 0.25 * rows + 3)
    expected = np.array([-0.5, 0.25, 1.0]) / np.linalg.norm([0.5, 0.25, 1.0])
    assert normal == pytest.approx(np.broadcast_to(expected[:, None, None], (3, 8, 8)), abs=1e-6)


def test_rays_meet_the_walls_of_a_box_where_geometry_says() -> None:
    low, high = np.array([-1.0, -2.0, -3.0]), np.array([4.0, 5.0, 6.0])
    rays = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 1.0], [-1.0, 0.0, 0.1], [0.0, 1.0, 1.0]])
    distance, face, point = cast(rays, low, high)
    assert distance.tolist() == [6.0, 4.0, 1.0, 5.0]
    assert face.tolist() == [5, 1, 0, 3]
    assert point.tolist() == [[0, 0, 6], [4, 0, 4], [-1, 0, 0.1], [0, 5, 5]]


def test_rooms_have_normals_that_their_depth_implies() -> None:
    images, depth, normals, valid = rooms(6, seed=2)
    assert images.dtype == np.uint8
    assert valid.all()
    assert np.linalg.norm(normals, axis=1) == pytest.approx(np.ones((6, 64, 64)), abs=1e-5)
    half = np.tan(np.deg2rad(35.0))
    u, v = np.meshgrid(np.linspace(-half, half, 64), np.linspace(-half, half, 64))
    for room in range(6):
        points = depth[room, 0, ..., None] * 10 * np.stack([u, v, np.ones_like(u)], -1)
        across = np.cross(points[:, 1:][:-1] - points[:, :-1][:-1], points[1:, :-1] - points[:-1, :-1])
        across /= np.linalg.norm(across, axis=-1, keepdims=True)
        facing = across * np.array([1.0, 1.0, -1.0])
        facing *= np.sign((facing * normals[room].transpose(1, 2, 0)[:-1, :-1]).sum(-1, keepdims=True))
        error = np.abs(facing - normals[room].transpose(1, 2, 0)[:-1, :-1]).max(-1)
        assert np.mean(error < 1e-3) > 0.9  # all but pixels where two walls meet


def test_stereo_crops_are_real_split_by_place_and_masked() -> None:
    data = load_dense("stereo", NOWHERE, max_train=12, max_test=6)
    assert data.x_train.shape == (12, 3, 64, 64)
    assert data.depth_train.shape == data.valid_train.shape == (12, 1, 64, 64)
    assert 0.3 <= float(data.valid_train.float().mean()) < 1.0
    assert float(data.depth_train[data.valid_train].min()) > 0
    assert float(data.depth_train.max()) <= 1.0


def write_triples(root: Path) -> Path:
    for part in ("train", "test"):
        for kind in ("rgb", "depth", "normals"):
            (root / "triples" / part / kind).mkdir(parents=True)
        for number in range(2):
            name = f"{number}.png"
            Image.fromarray(pixels(64, 64, 3)).save(root / "triples" / part / "rgb" / name)
            deep = np.full((64, 64), 32768, np.uint16)
            deep[:8] = 0
            Image.fromarray(deep).save(root / "triples" / part / "depth" / name)
            facing = np.broadcast_to(np.array([128, 128, 255], np.uint8), (64, 64, 3))
            Image.fromarray(facing).save(root / "triples" / part / "normals" / name)
    return root / "triples"


def test_triples_mask_unknown_depth_and_refuse_by_path(tmp_path: Path) -> None:
    folder = write_triples(tmp_path)
    data = load_dense("triples", tmp_path)
    assert float(data.valid_train.float().mean()) == pytest.approx(56 / 64)
    assert float(data.depth_train.max()) == pytest.approx(0.5, abs=1e-4)
    assert float(data.normals_test[:, 2].min()) > 0.99
    (folder / "train" / "normals" / "1.png").unlink()
    with pytest.raises(UserError, match=r"normals/1\.png"):
        load_dense("triples", tmp_path)
    Image.fromarray(pixels(64, 64, 3)).save(folder / "train" / "normals" / "1.png")
    Image.fromarray(pixels(64, 64)).save(folder / "train" / "depth" / "1.png")
    with pytest.raises(UserError, match="16-bit"):
        load_dense("triples", tmp_path)
