"""Figures: saved, small, the same for the same data."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from shared.config import UserError
from shared.figures import figure, png_only


def draw(path: Path) -> bytes:
    with figure(path) as (_, axes):
        axes.plot([1, 2, 3], [3, 1, 2], label="curve")
        axes.set(xlabel="x", ylabel="y")
        axes.legend()
    return path.with_suffix(".png").read_bytes()


def test_figure_is_written_twice_and_not_blank(tmp_path: Path) -> None:
    draw(tmp_path / "deep" / "one")
    image = Image.open(tmp_path / "deep" / "one.png").convert("L")
    low, high = image.getextrema()
    assert (low, high) != (255, 255)
    assert (tmp_path / "deep" / "one.svg").read_text().startswith("<?xml")


def test_same_data_same_file(tmp_path: Path) -> None:
    assert draw(tmp_path / "one") == draw(tmp_path / "two")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_full_disk_is_named_with_the_path(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"one.{suffix}").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"figure: got '.*one'.*\n.*no space left on the device"):
        draw(tmp_path / "one")


def test_within_png_only_no_svg_is_written(tmp_path: Path) -> None:
    with png_only():
        draw(tmp_path / "one")
    draw(tmp_path / "two")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "two.png", "two.svg"]
