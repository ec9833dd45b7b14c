"""The figure of the exchanged axes, and the number in its caption."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from relabel.crop_box import CropBox
from relabel.figures.axes import RIGHT, draw_axes_figure, mean_mirrored_iou
from relabel.figures.label_maps import WARNING
from relabel.label_map import LabelMap

LOWER_LEFT = CropBox(0.1, 0.6, 0.4, 0.9)
SIDES = st.integers(0, 99)


@given(SIDES, SIDES, SIDES, SIDES)
def test_mirroring_twice_is_the_identity(left: int, top: int, across: int, down: int) -> None:
    box = CropBox(left / 100, top / 100, min(1, (left + across + 1) / 100), min(1, (top + down + 1) / 100))
    assert box.mirrored().mirrored() == box and box.mirrored().area == pytest.approx(box.area)


def test_the_lower_left_is_mirrored_to_the_upper_right() -> None:
    assert LOWER_LEFT.mirrored() == CropBox(0.6, 0.1, 0.9, 0.4)
    on_the_diagonal = CropBox(0.2, 0.2, 0.7, 0.7)
    assert on_the_diagonal.mirrored() == on_the_diagonal


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500)])
def test_on_photos_half_of_the_crops_overlap_by_less_than_half(width: int, height: int) -> None:
    """0.475 and 52 % are the known figures for 500x375; one IoU has a standard deviation of about 0.27."""
    for seed in range(2):
        mean, below_half = mean_mirrored_iou(width, height, crops=6000, seed=seed)
        assert mean == pytest.approx(0.475, abs=4 * 0.27 / 6000**0.5)
        assert below_half == pytest.approx(0.52, abs=4 * 0.5 / 6000**0.5)


def test_the_far_from_square_suffer_most() -> None:
    means = [mean_mirrored_iou(width, 100, crops=1000)[0] for width in (110, 200, 500)]
    assert means[0] > means[1] > means[2]


def where(pixels: np.ndarray, colour: str) -> np.ndarray:
    """(row, column) of the middle of what has a colour, as fractions of the picture."""
    found = np.argwhere(np.abs(pixels - 255 * np.array(to_rgb(colour))).max(axis=2) < 3)
    assert len(found) > 500
    return (found.min(0) + found.max(0)) / 2 / pixels.shape[:2]


@pytest.mark.parametrize("size", [(300, 400), (400, 300)])
def test_the_right_region_is_the_crop_and_the_mirrored_one_is_not(tmp_path: Path, size: tuple[int, int]) -> None:
    draw_axes_figure(tmp_path / "axes.png", np.full((*size, 3), 128, dtype=np.uint8), LOWER_LEFT)
    with Image.open(tmp_path / "axes.png") as picture:
        assert picture.format == "PNG" and picture.width > 1200 and picture.height > 500
        pixels = np.asarray(picture.convert("RGB")).astype(float)
    right, mirrored = where(pixels, RIGHT), where(pixels, WARNING)
    assert 1 / 3 < right[1] < 2 / 3 < mirrored[1]  # in the second panel, in the third
    assert right[0] > mirrored[0] + 0.2  # low, high
    assert right[1] - 1 / 3 < mirrored[1] - 2 / 3 - 0.05  # on the left of its panel, more to the right


def test_with_a_label_map_each_region_has_its_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = np.zeros((3, 6, 8), dtype=np.float32)
    dense[0, 3:], dense[1, :3] = 12, 12  # class 0 below, class 1 above
    figures: list[Figure] = []
    monkeypatch.setattr("relabel.figures.axes.save", lambda figure, out: figures.append(figure))
    image = np.full((300, 400, 3), 128, dtype=np.uint8)
    draw_axes_figure(tmp_path / "axes.png", image, LOWER_LEFT, LabelMap.from_dense(dense, 2), ["ant", "bee", "cow"])
    bars = [axes for axes in figures[0].axes if any(text.get_text().endswith("%") for text in axes.texts)]
    assert [axes.texts[0].get_text() for axes in sorted(bars, key=lambda axes: axes.get_position().x0)] == [
        "ant",
        "bee",
    ]
    assert any("IoU" in text.get_text() for text in figures[0].texts)
