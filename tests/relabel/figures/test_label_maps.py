"""Whole pictures: they say the right thing, every text has its room, and nothing runs out of the page."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from relabel.crop_box import WHOLE_IMAGE, CropBox
from relabel.figures.label_maps import (
    WARNING,
    Example,
    draw_contact_sheet,
    draw_curves,
    draw_examples,
    pooled_target,
    squashed_crop,
)
from relabel.figures.panels import PALETTE
from relabel.label_map import LabelMap

NAMES = [f"class_{index}" for index in range(7)]
LONG_NAMES = [
    "soft-coated wheaten terrier",
    "American Staffordshire terrier",
    *(f"{'long' * 9} {n}" for n in range(998)),
]
CROPS = (CropBox(0, 0, 0.5, 0.5), CropBox(0, 0.5, 1, 1))
SIZES = ((40, 60), (60, 40), (20, 90), (90, 25))  # rows and columns


def left_right_map(num_classes: int = 7, logit: float = 12.0) -> LabelMap:
    """4x6 cells: class 0 on the left half, class 1 on the right."""
    dense = np.zeros((num_classes, 4, 6), dtype=np.float32)
    dense[0, :, :3] = dense[1, :, 3:] = logit
    return LabelMap.from_dense(dense, k=2)


def example(size: tuple[int, int] = (40, 60), label: int = 0, num_classes: int = 7, logit: float = 12.0) -> Example:
    """A grey image, the upper left quarter red; one crop is that quarter, one the lower half."""
    image = np.full((*size, 3), 128, dtype=np.uint8)
    image[: size[0] // 2, : size[1] // 2] = (255, 0, 0)
    label_map = left_right_map(num_classes, logit)
    targets = np.stack([pooled_target(label_map, box, num_classes, 0.0, 1.0) for box in CROPS])
    return Example(image, label, label_map, CROPS, targets)


def written(figure: Figure) -> list[Text]:
    return [*figure.texts, *(text for axes in figure.axes for text in axes.texts)]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in written(figure)]


def check_texts_have_room(figure: Figure) -> None:
    """No text leaves the page, and no two touch."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    width, height = figure.get_size_inches() * figure.dpi
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in written(figure)]
    for text, box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, text
    for (text, box), (other, place) in combinations(boxes, 2):
        apart = box.x1 <= place.x0 or place.x1 <= box.x0 or box.y1 <= place.y0 or place.y1 <= box.y0
        assert apart, (text, other)


def pixels_of(path: Path, colour: str) -> np.ndarray:
    """Rows and columns, int [n, 2], of the pixels of exactly that colour."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB")).astype(int)
    return np.argwhere(np.abs(pixels - np.round(255 * np.array(to_rgb(colour)))).max(axis=2) <= 1)


def mixed(num_classes: int, count: int) -> Sequence[Example]:
    """Images of all shapes, with sure and unsure maps."""
    return [example(SIZES[n % 4], n % 2, num_classes, logit=(12.0, 3.0, 0.1)[n % 3]) for n in range(count)]


@pytest.mark.parametrize(("num_classes", "names"), [(7, NAMES), (1000, LONG_NAMES)])
def test_a_sheet_of_mixed_shapes_has_room_for_every_text(
    tmp_path: Path, drawn: list[Figure], num_classes: int, names: list[str]
) -> None:
    draw_examples(tmp_path / "sheet.png", mixed(num_classes, 4), names)
    check_texts_have_room(drawn[0])
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert 1000 < sheet.width < 4000 and 900 < sheet.height < 4000


def test_rows_are_of_one_width_whatever_the_shape_of_the_image(tmp_path: Path, drawn: list[Figure]) -> None:
    draw_examples(tmp_path / "sheet.png", [example(size) for size in SIZES], NAMES)
    panels = [axes.get_position() for axes in drawn[0].axes]
    rows = [panels[start : start + 6] for start in range(0, len(panels), 6)]
    ends = [max(place.x1 for place in row) for row in rows]
    assert len(rows) == len(SIZES) and max(ends) - min(ends) < 1e-6
    heights = [row[2].height for row in rows]  # of the crops
    assert heights[2] < heights[0] < heights[1] < 2 * heights[2] + heights[0]


def test_a_row_says_label_map_and_targets(tmp_path: Path, drawn: list[Figure]) -> None:
    draw_examples(tmp_path / "sheet.png", [example(label=1)], ["ant", "bee", *NAMES[2:]])
    said = texts(drawn[0])
    assert "4x6 cells, surest 100 %" in said and said.count("bee") >= 2
    assert said[said.index("100 %") - 1] == "ant"  # the first crop is in the left half
    assert said.count("50 %") == 2  # the second one shows as much of both


def test_fill_and_temperature_reach_the_map(tmp_path: Path, drawn: list[Figure]) -> None:
    for fill, temperature in ((0.0, 4.0), (-50.0, 4.0)):
        draw_examples(tmp_path / "sheet.png", [example()], NAMES, fill, temperature)
    # One class at logit 12, one stored and five filled ones: e^3 / (e^3 + 6), and e^3 / (e^3 + 1).
    assert "4x6 cells, surest 77 %" in texts(drawn[0]) and "4x6 cells, surest 95 %" in texts(drawn[1])


def test_a_class_has_one_colour_all_over_the_sheet(tmp_path: Path) -> None:
    examples = [example(num_classes=1000), example((60, 40), num_classes=1000)]
    draw_examples(tmp_path / "sheet.png", examples, LONG_NAMES)
    found = [len(pixels_of(tmp_path / "sheet.png", colour)) for colour in PALETTE]
    assert sorted(found)[-2] > 1000 and sorted(found)[-3] == 0  # the bars of two classes


def test_a_crop_shows_its_part_of_the_image() -> None:
    shown = squashed_crop(example().image, CROPS[0])
    assert shown.shape[0] == shown.shape[1] and (shown == (255, 0, 0)).all()
    assert (squashed_crop(example().image, CROPS[1]) == 128).all()


def test_a_pooled_target_is_of_the_region_that_the_axes_mean() -> None:
    left, upper = CropBox(0, 0, 0.5, 1), CropBox(0, 0, 1, 0.5)
    for box, axes in ((left, "xy"), (upper, "yx")):
        assert pooled_target(left_right_map(), box, 7, 0.0, 1.0, axes).argmax() == 0
    even = pooled_target(left_right_map(), upper, 7, 0.0, 1.0)
    assert even[0] == pytest.approx(even[1]) and even.sum() == pytest.approx(1)


def test_a_contact_sheet_marks_where_target_and_label_disagree(tmp_path: Path, drawn: list[Figure]) -> None:
    dense = np.zeros((7, 3, 5), dtype=np.float32)
    dense[2], dense[5] = 9, 7.5
    image = example().image
    examples = [Example(image, label, LabelMap.from_dense(dense, k=2)) for label in (2, 5)]
    draw_contact_sheet(tmp_path / "agree.png", examples[:1], NAMES)
    draw_contact_sheet(tmp_path / "both.png", examples, NAMES)
    assert not len(pixels_of(tmp_path / "agree.png", WARNING))
    red = pixels_of(tmp_path / "both.png", WARNING)
    with Image.open(tmp_path / "both.png") as sheet:
        assert len(red) > 1000 and red[:, 1].min() > sheet.width / 2 - 10  # about the second tile only
    said = texts(drawn[1])
    assert "≠ class_5" in said and "class_2" in said and said[0].startswith("1 of 2")
    target = pooled_target(examples[0].label_map, WHOLE_IMAGE, 7, 0.0, 1.0)
    assert said.count(f"{100 * target[2]:.0f} %") == said.count(f"{100 * target[5]:.0f} %") == 2


@pytest.mark.parametrize("count", [1, 8])
def test_a_contact_sheet_has_room_for_every_text(tmp_path: Path, drawn: list[Figure], count: int) -> None:
    draw_contact_sheet(tmp_path / "sheet.png", mixed(1000, count), LONG_NAMES, columns=3)
    check_texts_have_room(drawn[0])
    assert any(text.endswith("…") for text in texts(drawn[0]))
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG" and min(sheet.size) > 250


def test_a_tile_shows_its_map_over_the_image(tmp_path: Path) -> None:
    draw_contact_sheet(tmp_path / "sheet.png", [example()], NAMES)
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(float)
    shown = pixels[60:240]  # the tile's upper part
    blue = np.argwhere(shown[..., 2] - shown[..., 0] > 60)[:, 1]
    orange = np.argwhere(shown[..., 0] - shown[..., 2] > 60)[:, 1]
    assert len(blue) > 3000 and len(orange) > 3000 and blue.max() <= orange.min()


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
