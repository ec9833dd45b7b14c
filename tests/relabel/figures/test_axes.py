"""The figure of the exchanged axes, and the values in its caption."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from relabel.crop_box import CropBox
from relabel.figures.axes import draw_axes_figure, mean_transposed_iou
from relabel.figures.colours import CORRECT, WARNING
from relabel.figures.label_maps import make_example
from relabel.label_map import LabelMap
from tests.relabel.figures.test_label_maps import texts

LOWER_LEFT = CropBox(0.1, 0.6, 0.4, 0.9)


def test_on_photos_half_of_the_crops_overlap_by_less_than_half() -> None:
    """0.475 and 52 % are the known values for 500x375; one IoU has a standard deviation of about 0.27."""
    mean, below_half = mean_transposed_iou(500, 375, crops=6000)
    assert mean == pytest.approx(0.475, abs=4 * 0.27 / 6000**0.5)
    assert below_half == pytest.approx(0.52, abs=4 * 0.5 / 6000**0.5)


def where(pixels: np.ndarray, colour: str) -> np.ndarray:
    """(row, column) of the middle of what has a colour, as fractions of the figure."""
    found = np.argwhere(np.abs(pixels - 255 * np.array(to_rgb(colour))).max(axis=2) < 3)
    assert len(found) > 500
    return (found.min(0) + found.max(0)) / 2 / pixels.shape[:2]


def test_the_right_region_is_the_crop_and_the_mirrored_one_is_not(tmp_path: Path, drawn: list[Figure]) -> None:
    dense = np.zeros((3, 6, 8), dtype=np.float32)
    dense[0, 3:], dense[1, :3] = 12, 12  # class 0 below, class 1 above
    image, boxes = np.full((300, 400, 3), 128, dtype=np.uint8), [LOWER_LEFT, LOWER_LEFT.transposed()]
    shown = make_example(image, 0, LabelMap.from_dense(dense, 2), boxes, 3)
    names = ["ant", "bee", "cow"]
    draw_axes_figure(tmp_path / "axes.png", image, shown.cells, LOWER_LEFT, shown.targets, names, "cow/1.JPEG")
    with Image.open(tmp_path / "axes.png") as figure:
        assert figure.format == "PNG" and figure.width > 1200 and figure.height > 500
        pixels = np.asarray(figure.convert("RGB")).astype(float)
    right, mirrored = where(pixels, CORRECT), where(pixels, WARNING)
    assert 1 / 3 < right[1] < 2 / 3 < mirrored[1]  # in the second panel, in the third
    assert right[0] > mirrored[0] + 0.1  # low, high
    assert right[1] - 1 / 3 < mirrored[1] - 2 / 3 - 0.05  # on the left of its panel, more to the right
    bars = [axes for axes in drawn[0].axes if any(text.get_text().endswith("%") for text in axes.texts)]
    assert [axes.texts[0].get_text() for axes in bars] == ["ant", "bee"]  # below the second panel, below the third
    assert any("IoU" in text for text in texts(drawn[0])) and "cow/1.JPEG" in texts(drawn[0])
