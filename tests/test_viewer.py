"""Pictures, looked at as a person would: is the right colour in the right place."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from relabel.crop_box import CropBox
from relabel.label_map import LabelMap
from relabel.viewer import (
    BARS,
    OTHER_COLOUR,
    PALETTE,
    SceneExample,
    _draw_crop,
    _draw_image,
    _draw_map,
    _draw_target,
    class_colours,
    draw_curves,
    draw_scenes,
)

NAMES = [f"class_{index}" for index in range(7)]
COLOURS = dict(enumerate(PALETTE))
RED = np.array([255, 0, 0], dtype=np.uint8)


def left_right_map(logit: float = 12.0) -> LabelMap:
    """4x6 cells: class 0 on the left half, class 1 on the right."""
    dense = np.zeros((7, 4, 6), dtype=np.float32)
    dense[0, :, :3] = dense[1, :, 3:] = logit
    return LabelMap.from_dense(dense, k=2)


def example() -> SceneExample:
    """40 rows x 60 columns; the upper left quarter is red; one crop is that quarter, one the lower half."""
    image = np.full((40, 60, 3), 128, dtype=np.uint8)
    image[:20, :30] = RED
    targets = np.array([[0.9, 0.1, 0, 0, 0, 0, 0], [0.5, 0.5, 0, 0, 0, 0, 0]])
    return SceneExample(image, 0, left_right_map(), (CropBox(0, 0, 0.5, 0.5), CropBox(0, 0.5, 1, 1)), targets)


def pixels_of(path: Path, colour: str) -> np.ndarray:
    """Rows and columns, int [n, 2], of the pixels of exactly that colour."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    return np.argwhere(np.abs(pixels - np.round(255 * np.array(to_rgb(colour)))).max(axis=2) <= 1)


def rectangles(axes: Axes) -> list[Rectangle]:
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


def test_the_overlay_has_each_class_on_its_side_and_its_strength() -> None:
    for logit, at_least, at_most in ((12.0, 0.8, 0.85), (0.5, 0.1, 0.25)):
        shown = SceneExample(example().image, 0, left_right_map(logit), example().crops, example().targets)
        axes = Figure().subplots()
        _draw_map(axes, shown, NAMES, COLOURS, fill=0.0, temperature=1.0)
        overlay = np.asarray(axes.images[1].get_array())
        assert overlay.shape == (4, 6, 4)
        assert np.allclose(overlay[:, :3, :3], to_rgb(PALETTE[0])) and np.allclose(
            overlay[:, 3:, :3], to_rgb(PALETTE[1])
        )
        assert (overlay[..., 3] >= at_least).all() and (overlay[..., 3] <= at_most).all()


def test_names_stand_on_the_map_only_where_the_annotator_is_sure() -> None:
    for logit, names in ((12.0, {"class_0", "class_1"}), (0.5, set())):
        axes = Figure().subplots()
        shown = SceneExample(example().image, 0, left_right_map(logit), example().crops, example().targets)
        _draw_map(axes, shown, NAMES, COLOURS, fill=0.0, temperature=1.0)
        assert {text.get_text() for text in axes.texts} == names


def test_temperature_and_fill_change_the_strength_as_in_the_targets() -> None:
    strengths = []
    for fill, temperature in ((0.0, 1.0), (0.0, 8.0), (-20.0, 8.0)):
        axes = Figure().subplots()
        _draw_map(axes, example(), NAMES, COLOURS, fill, temperature)
        strengths.append(float(np.asarray(axes.images[1].get_array())[0, 0, 3]))
    # One stored class has logit 12, one 0, five are filled: softmax of (12, 0, 5 x fill) / temperature, x 0.85.
    expected = [1 / (1 + 6 * np.exp(-12)), 1 / (1 + 6 * np.exp(-1.5)), 1 / (1 + np.exp(-1.5) + 5 * np.exp(-4))]
    assert strengths == pytest.approx([0.85 * value for value in expected], abs=1e-5)


def test_boxes_are_drawn_where_the_crops_are() -> None:
    axes = Figure().subplots()
    _draw_image(axes, example(), NAMES)
    drawn = {box.get_bbox().bounds for box in rectangles(axes)}
    assert drawn == {(0, 0, 30, 20), (0, 20, 60, 20)}
    assert axes.get_xlabel() == "label: class_0"


def test_a_crop_shows_its_part_of_the_image() -> None:
    for box, is_red in zip(example().crops, (True, False), strict=True):
        axes = Figure().subplots()
        _draw_crop(axes, example().image, box)
        shown = np.asarray(axes.images[0].get_array())
        assert shown.shape[0] == shown.shape[1]
        assert (shown == (RED if is_red else 128)).all()


def test_bars_are_the_largest_probabilities_in_the_classes_colours() -> None:
    axes = Figure().subplots()
    target = np.array([0.05, 0.1, 0.6, 0, 0, 0.25, 0])
    _draw_target(axes, target, NAMES, {**COLOURS, 1: OTHER_COLOUR})
    bars = rectangles(axes)[1::2]  # each follows its grey track
    assert [bar.get_width() for bar in bars] == [0.6, 0.25, 0.1, 0.05] and len(bars) == BARS
    expected = [to_rgb(colour) for colour in (PALETTE[2], PALETTE[5], OTHER_COLOUR, PALETTE[0])]
    assert [tuple(bar.get_facecolor()[:3]) for bar in bars] == expected
    assert [text.get_text() for text in axes.texts][:4] == ["class_2", "60 %", "class_5", "25 %"]


def test_few_classes_keep_their_colours_and_of_many_the_heaviest_get_one() -> None:
    assert class_colours([example()], 7) == dict(enumerate(PALETTE[:7]))
    targets = np.zeros((1, 1000))
    heavy = [907, 3, 500, 12, 44, 45, 46, 700, 801, 999]
    targets[0, heavy] = np.linspace(0.05, 0.1, 10)
    many = SceneExample(example().image, 0, left_right_map(), example().crops[:1], targets)
    colours = class_colours([many], 1000)
    assert sorted(colours) == sorted(heavy) and len(set(colours.values())) == 10


@pytest.mark.parametrize("num_classes", [7, 1000])
def test_a_sheet_is_written_for_few_and_for_many_classes(tmp_path: Path, num_classes: int) -> None:
    targets = np.full((2, num_classes), 0.1 / (num_classes - 1))
    targets[:, 1] = 0.9
    examples = [SceneExample(example().image, 0, left_right_map(), example().crops, targets) for _ in range(3)]
    draw_scenes(tmp_path / "sheet.png", examples, [f"name_{index}" for index in range(num_classes)])
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > sheet.height > 600
    colour = class_colours(examples, num_classes)[1]
    assert len(pixels_of(tmp_path / "sheet.png", colour)) > 1000


def test_the_better_run_ends_higher_and_only_validation_counts(tmp_path: Path) -> None:
    def records(accuracies: list[float]) -> list[dict[str, object]]:
        made: list[dict[str, object]] = [{"event": "train", "epoch": 1, "top1_percent": 100.0}]
        for epoch, accuracy in enumerate(accuracies, 1):
            made.append({"event": "validation", "epoch": epoch, "weights": "model", "top1_percent": accuracy})
        return made

    draw_curves(tmp_path / "curves.png", {"worse": records([20, 50, 70]), "better": records([30, 60, 80])})
    worse, better = (pixels_of(tmp_path / "curves.png", PALETTE[number]) for number in (0, 1))
    assert len(worse) > 500 and len(better) > 500
    assert better[:, 0].min() < worse[:, 0].min() and better[:, 0].max() < worse[:, 0].max()


def test_a_run_without_an_epoch_is_left_out(tmp_path: Path) -> None:
    draw_curves(tmp_path / "curves.png", {"just begun": []})
    assert not len(pixels_of(tmp_path / "curves.png", PALETTE[0]))
