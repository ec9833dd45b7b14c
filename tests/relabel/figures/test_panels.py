"""Parts of figures, checked in the pixels: the right colour in the right place, and text that fits."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy.special import softmax

from relabel.crop_box import CropBox
from relabel.figures import map_panel, panels
from relabel.figures.colours import OTHER_COLOUR, PALETTE
from relabel.figures.panels import BADGE, BARS, DPI

NAMES = [f"class_{index}" for index in range(7)]
COLOURS = dict(enumerate(PALETTE))
GREY = np.full((40, 60, 3), 128, dtype=np.uint8)
LONG = "soft-coated wheaten terrier"


def panel(width: float = 3, height: float = 2, is_text: bool = False) -> Axes:
    """A panel 1 inch from the upper left corner of a page."""
    figure = Figure(figsize=(width + 2, height + 2), dpi=DPI)
    sides = {"left": 1 / (width + 2), "right": 1 - 1 / (width + 2)}
    place = figure.add_gridspec(1, 1, **sides, bottom=1 / (height + 2), top=1 - 1 / (height + 2))[0]
    return panels.text_area(figure, place) if is_text else panels.image_panel(figure, place)


def pixels(axes: Axes) -> np.ndarray:
    """uint8 [200, 300, 3]; a panel of 3 x 2 inches at 100 pixels an inch."""
    axes.figure.set_dpi(100)
    canvas = FigureCanvasAgg(axes.figure)  # type: ignore[arg-type]
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[100:300, 100:400, :3]


def corner_map(logit: float = 12.0) -> np.ndarray:
    """Probabilities of 4x6 cells: class 1 in the upper right quarter, class 0 elsewhere."""
    dense = np.zeros((7, 4, 6), dtype=np.float32)
    dense[0] = logit
    dense[0, :2, 3:], dense[1, :2, 3:] = 0, logit
    return softmax(dense, axis=0)


def test_a_class_is_coloured_where_it_is_and_paler_where_it_is_unsure() -> None:
    sure, unsure = panel(), panel()
    map_panel.draw_map(sure, GREY, corner_map(), COLOURS)
    map_panel.draw_map(unsure, GREY, corner_map(0.5), COLOURS)
    shown = pixels(sure).astype(float)
    nearest = np.abs(shown[:, :, None] / 255 - [to_rgb(PALETTE[0]), to_rgb(PALETTE[1])]).sum(-1).argmin(-1)
    assert (nearest[5:95, 155:295] == 1).all()
    assert (nearest[5:195, 5:145] == 0).all() and (nearest[105:195, 155:295] == 0).all()
    assert np.ptp(shown[150, 50]) > 70 and np.ptp(pixels(unsure)[150, 50].astype(float)) < 30


def test_a_map_does_not_wash_the_image_out() -> None:
    """What is black and white stays so where the map is unsure, and keeps half of its contrast where it is sure."""
    image = GREY.copy()
    image[:, ::2], image[:, 1::2] = 0, 255
    for logit, least in ((0.0, 180), (12.0, 95)):
        axes = panel()
        map_panel.draw_map(axes, image, corner_map(logit), COLOURS)
        assert np.ptp(pixels(axes)[150, 20:130].astype(float), axis=0).min() > least


def test_names_stand_on_their_cells_where_the_map_is_sure() -> None:
    axes, unsure = panel(), panel()
    map_panel.name_regions(axes, corner_map(), NAMES, COLOURS)
    map_panel.name_regions(unsure, corner_map(0.5), NAMES, COLOURS)
    places = {text.get_text(): text.get_position() for text in axes.texts}
    assert places.keys() == {"class_0", "class_1"} and not unsure.texts
    (x, y), (u, v) = places["class_1"], places["class_0"]
    assert x > 0.5 and y < 0.5 and (u < 0.5 or v > 0.5)


def test_names_on_a_map_keep_inside_and_apart() -> None:
    axes = panel(1, 2)
    noisy = softmax(8 * np.random.default_rng(0).standard_normal((7, 3, 4)), axis=0)
    map_panel.name_regions(axes, noisy, [f"{LONG} {index}" for index in range(7)], COLOURS)
    renderer = FigureCanvasAgg(axes.figure).get_renderer()  # type: ignore[arg-type]
    boxes = [text.get_window_extent(renderer) for text in axes.texts]
    assert len(boxes) > 1
    for number, box in enumerate(boxes):
        assert box.x0 >= DPI and box.x1 <= 2 * DPI and box.y0 >= DPI and box.y1 <= 3 * DPI
        assert not any(box.overlaps(other) for other in boxes[:number])


def test_boxes_are_drawn_where_the_crops_are() -> None:
    axes = panel()
    panels.draw_image(axes, GREY)
    panels.draw_boxes(axes, [CropBox(0.2, 0.1, 0.8, 0.5)])
    shown = pixels(axes)
    white = np.argwhere(shown.min(axis=2) > 200)
    assert np.abs(white.min(0) - (20, 60)).max() <= 3 and np.abs(white.max(0) - (100, 240)).max() <= 3
    assert (shown[60:90, 100:230] == 128).all()  # nothing but an outline


def test_the_numbers_of_boxes_do_not_hide_each_other() -> None:
    axes = panel()
    panels.draw_image(axes, GREY)
    panels.draw_boxes(axes, [CropBox(0.2, 0.1, 0.8, 0.9), CropBox(0.21, 0.11, 0.9, 0.8), CropBox(0.2, 0.1, 0.7, 0.7)])
    assert [text.get_text() for text in axes.texts] == ["1", "2", "3"]
    places = np.array([text.get_position() for text in axes.texts]) * (3, 2)
    for number, place in enumerate(places):
        assert all(np.abs(place - other).max() >= BADGE - 1e-6 for other in places[:number])


def test_a_crop_shows_its_part_of_the_image() -> None:
    image = GREY.copy()
    image[:20, :30] = 255, 0, 0
    for box, colour in ((CropBox(0, 0, 0.5, 0.5), (255, 0, 0)), (CropBox(0, 0.5, 1, 1), (128, 128, 128))):
        axes = panel(2, 2)
        panels.draw_crop(axes, image, box)
        assert (pixels(axes)[5:195, 5:195] == colour).all()


def test_bars_are_the_largest_probabilities_in_the_classes_colours() -> None:
    area = panel(is_text=True)
    target = np.array([0.05, 0.1, 0.6, 0, 0, 0.25, 0])
    panels.draw_bars(area, target, NAMES, {**COLOURS, 1: OTHER_COLOUR}, label=5)
    bars = [patch for patch in area.patches if isinstance(patch, Rectangle)][1::2]  # each follows its grey track
    assert [bar.get_width() / 3 for bar in bars] == pytest.approx([0.6, 0.25, 0.1, 0.05]) and len(bars) == BARS
    expected = [to_rgb(colour) for colour in (PALETTE[2], PALETTE[5], OTHER_COLOUR, PALETTE[0])]
    assert [tuple(bar.get_facecolor()[:3]) for bar in bars] == expected
    assert [text.get_text() for text in area.texts][:4] == ["class_2", "60 %", "class_5", "25 %"]
    assert [text.get_text() for text in area.texts if text.get_fontweight() == "bold"] == ["class_5"]


def test_what_leaks_to_the_other_classes_is_shown() -> None:
    target = np.full(1000, 0.5 / 998)
    target[[7, 12]] = 0.3, 0.2
    assert panels.largest(target, 4) == [(7, 0.3), (12, 0.2), (None, pytest.approx(0.5))]
    assert panels.largest(np.array([0.997, 0.003]), 4) == [(0, 0.997)]
    assert panels.largest(np.full(1000, 0.001), 4) == [(0, 0.001), (None, pytest.approx(0.999))]
    assert [panels.percent(share) for share in (1.0, 0.126, 0.004, 0.0)] == ["100 %", "13 %", "<1 %", "0 %"]


@pytest.mark.parametrize("weight", ["normal", "bold"])
def test_long_names_are_cut_to_what_fits(weight: str) -> None:
    for inches in (0.4, 0.9, 1.5):
        short = panels.fitted(LONG, inches, 9, weight)
        assert short.endswith("…") and LONG.startswith(short[:-1]) and len(short) > 3
        text = Figure(dpi=DPI).text(0, 0, short, fontsize=9, weight=weight)
        renderer = FigureCanvasAgg(text.figure).get_renderer()  # type: ignore[arg-type]
        assert text.get_window_extent(renderer).width / DPI <= inches + 0.01
    assert panels.fitted(LONG, 3, 9, weight) == LONG
    assert panels.fitted("crane", 0.001) == "…"


def test_of_a_long_file_name_both_ends_are_kept_and_what_cannot_be_printed_is_replaced() -> None:
    name = "n02098105/ILSVRC2012_val_00000293.JPEG"
    short = panels.fitted_name(name, 1.2)
    start, end = short.split("…")
    assert start and name.startswith(start) and name.endswith(end) and len(end) > len(start) and len(short) > 10
    assert panels.fitted_name(name, 9) == name
    assert panels.fitted_name("a\n\udcff.jpg", 9) == "a\ufffd\ufffd.jpg"
