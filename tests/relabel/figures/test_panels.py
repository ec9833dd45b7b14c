"""The parts of pictures, looked at as a person would: is the right colour in the right place, does the text fit."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from relabel.crop_box import CropBox
from relabel.figures.panels import (
    BADGE,
    BARS,
    DPI,
    OTHER_COLOUR,
    PALETTE,
    add_panel,
    cell_probabilities,
    class_colours,
    draw_bars,
    draw_boxes,
    draw_image,
    draw_map,
    fitted,
    largest,
    name_regions,
    percent,
    text_width,
    wrapped,
    write,
)
from relabel.label_map import LabelMap

NAMES = [f"class_{index}" for index in range(7)]
COLOURS = dict(enumerate(PALETTE))
GREY = np.full((40, 60, 3), 128, dtype=np.uint8)
LONG = "soft-coated wheaten terrier"


def panel() -> Axes:
    """3 inches wide, 2 high, in the middle of a page of 5 x 4."""
    return add_panel(Figure(figsize=(5, 4), dpi=DPI), 1, 1, 3, 2)


def page(axes: Axes) -> np.ndarray:
    """uint8 [400, 500, 3]; the page that a panel is on."""
    canvas = FigureCanvasAgg(axes.figure)  # type: ignore[arg-type]
    axes.figure.set_dpi(100)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def pixels(axes: Axes) -> np.ndarray:
    """uint8 [200, 300, 3]; the panel as it is printed, at 100 pixels an inch."""
    return page(axes)[100:300, 100:400]


def extent(text: Text) -> tuple[float, float, float, float]:
    """Left, bottom, right, top of a text in inches of the page."""
    canvas = FigureCanvasAgg(text.figure)  # type: ignore[arg-type]
    box = text.get_window_extent(canvas.get_renderer())
    return box.x0 / DPI, box.y0 / DPI, box.x1 / DPI, box.y1 / DPI


def corner_map(logit: float = 12.0) -> LabelMap:
    """4x6 cells: class 1 in the upper right quarter, class 0 elsewhere."""
    dense = np.zeros((7, 4, 6), dtype=np.float32)
    dense[0] = logit
    dense[0, :2, 3:], dense[1, :2, 3:] = 0, logit
    return LabelMap.from_dense(dense, k=2)


def probabilities(logit: float = 12.0, fill: float = 0.0, temperature: float = 1.0) -> np.ndarray:
    return cell_probabilities(corner_map(logit), 7, fill, temperature)


def rectangles(axes: Axes) -> list[Rectangle]:
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


def test_a_panel_lies_where_it_is_put() -> None:
    axes = panel()
    draw_image(axes, np.zeros_like(GREY))
    black = np.argwhere(page(axes).max(axis=2) < 5)
    assert np.abs(black.min(0) - (100, 100)).max() <= 2 and np.abs(black.max(0) - (300, 400)).max() <= 2


def test_a_class_is_coloured_where_it_is() -> None:
    axes = panel()
    draw_map(axes, GREY, probabilities(), COLOURS)
    shown = pixels(axes).astype(float)
    right_colour = np.abs(shown[:, :, None] / 255 - [to_rgb(PALETTE[0]), to_rgb(PALETTE[1])]).sum(-1).argmin(-1)
    assert (right_colour[5:95, 155:295] == 1).all()
    assert (right_colour[5:195, 5:145] == 0).all() and (right_colour[105:195, 155:295] == 0).all()


def test_an_unsure_map_is_paler_and_temperature_and_fill_count_as_in_the_targets() -> None:
    def strength(logit: float, fill: float, temperature: float) -> float:
        axes = panel()
        draw_map(axes, GREY, probabilities(logit, fill, temperature), COLOURS)
        shown = pixels(axes)[150, 50].astype(float)
        return float(shown.max() - shown.min())

    sure, unsure = strength(12, 0, 1), strength(0.5, 0, 1)
    assert sure > 80 and unsure < 30
    assert strength(12, 0, 8) < strength(12, -20, 8) < sure  # softened; less to share with the filled classes


def test_names_stand_on_their_cells_where_the_map_is_sure() -> None:
    axes = panel()
    name_regions(axes, probabilities(), NAMES, COLOURS)
    places = {text.get_text(): text.get_position() for text in axes.texts}
    assert places.keys() == {"class_0", "class_1"}
    x, y = places["class_1"]
    assert x > 0.5 and y < 0.5
    x, y = places["class_0"]
    assert x < 0.5 or y > 0.5
    unsure = panel()
    name_regions(unsure, probabilities(0.5), NAMES, COLOURS)
    assert not unsure.texts


def test_names_on_a_map_keep_inside_and_apart() -> None:
    rng = np.random.default_rng(0)
    axes = add_panel(Figure(figsize=(3, 4), dpi=DPI), 1, 1, 1, 2)
    noisy = cell_probabilities(LabelMap.from_dense(8 * rng.standard_normal((7, 3, 4)), k=3), 7, 0.0, 1.0)
    name_regions(axes, noisy, [f"{LONG} {index}" for index in range(7)], COLOURS)
    boxes = [extent(text) for text in axes.texts]
    assert len(boxes) > 1
    for number, (left, bottom, right, top) in enumerate(boxes):
        assert left >= 1 and right <= 2 and bottom >= 1 and top <= 3
        for other in boxes[:number]:
            assert right <= other[0] or other[2] <= left or top <= other[1] or other[3] <= bottom


def test_boxes_are_drawn_where_the_crops_are() -> None:
    axes = panel()
    draw_image(axes, GREY)
    draw_boxes(axes, [CropBox(0.2, 0.1, 0.8, 0.5)])
    shown = pixels(axes)
    white = np.argwhere(shown.min(axis=2) > 200)
    assert np.abs(white.min(0) - (20, 60)).max() <= 3 and np.abs(white.max(0) - (100, 240)).max() <= 3
    assert (shown[60:90, 100:230] == 128).all()  # nothing but an outline


def test_the_numbers_of_boxes_do_not_hide_each_other() -> None:
    axes = panel()
    draw_boxes(axes, [CropBox(0.2, 0.1, 0.8, 0.9), CropBox(0.21, 0.11, 0.9, 0.8), CropBox(0.2, 0.1, 0.7, 0.7)])
    assert [text.get_text() for text in axes.texts] == ["1", "2", "3"]
    places = np.array([text.get_position() for text in axes.texts]) * (3, 2)
    for number, place in enumerate(places):
        assert all(np.abs(place - other).max() >= BADGE - 1e-6 for other in places[:number])


def test_bars_are_the_largest_probabilities_in_the_classes_colours() -> None:
    axes = panel()
    draw_bars(axes, np.array([0.05, 0.1, 0.6, 0, 0, 0.25, 0]), NAMES, {**COLOURS, 1: OTHER_COLOUR}, label=5)
    bars = rectangles(axes)[1::2]  # each follows its grey track
    assert [bar.get_width() / 3 for bar in bars] == pytest.approx([0.6, 0.25, 0.1, 0.05]) and len(bars) == BARS
    expected = [to_rgb(colour) for colour in (PALETTE[2], PALETTE[5], OTHER_COLOUR, PALETTE[0])]
    assert [tuple(bar.get_facecolor()[:3]) for bar in bars] == expected
    assert [text.get_text() for text in axes.texts][:4] == ["class_2", "60 %", "class_5", "25 %"]
    assert [text.get_text() for text in axes.texts if text.get_fontweight() == "bold"] == ["class_5"]


def test_what_leaks_to_the_other_classes_is_shown() -> None:
    target = np.full(1000, 0.5 / 998)
    target[[7, 12]] = 0.3, 0.2
    assert largest(target, 4) == [(7, 0.3), (12, 0.2), (None, pytest.approx(0.5))]
    assert largest(np.array([0.997, 0.003]), 4) == [(0, 0.997)]
    assert largest(np.full(1000, 0.001), 4) == [(0, 0.001), (None, pytest.approx(0.999))]


def test_small_shares_are_not_called_nothing() -> None:
    assert [percent(share) for share in (1.0, 0.126, 0.004, 0.0)] == ["100 %", "13 %", "<1 %", "0 %"]


@pytest.mark.parametrize("weight", ["normal", "bold"])
def test_long_names_are_cut_to_what_fits(weight: str) -> None:
    figure = Figure(figsize=(5, 4), dpi=DPI)
    for inches in (0.4, 0.9, 1.5):
        short = fitted(LONG, inches, 9, weight)
        assert short.endswith("…") and LONG.startswith(short[:-1]) and len(short) > 3
        write(figure, 1, 1, short, 9, weight=weight)
        left, _, right, _ = extent(figure.texts[-1])
        assert right - left <= inches + 0.01
    assert fitted(LONG, 3, 9, weight) == LONG
    assert fitted("crane", 0.001) == "…"


def test_a_name_may_take_two_lines() -> None:
    assert wrapped(LONG, 3) == [LONG]
    assert wrapped(LONG, text_width("wheaten terrier") + 0.05) == ["soft-coated", "wheaten terrier"]
    assert wrapped(LONG, text_width("soft-coated")) == ["soft-coated", "wheaten…"]
    assert wrapped("x" * 50, 1)[0].endswith("…")


def test_few_classes_keep_their_colours() -> None:
    for heavy in (0, 6):
        shares = np.zeros((2, 7))
        shares[:, heavy] = 1
        assert class_colours(shares) == dict(enumerate(PALETTE[:7]))


def test_of_many_classes_the_heaviest_have_a_colour_to_themselves() -> None:
    shares = np.zeros((3, 1000))
    heavy = [907, 3, 500, 12, 44, 45, 46, 700, 801, 999]
    shares[0, heavy] = np.linspace(0.05, 0.1, 10)
    shares[1, [20, 21, 22]] = 0.03, 0.02, 0.01
    shares[2, [20, 30, 31]] = 0.01, 0.02, 0.001  # the last one is too small to be seen
    colours = class_colours(shares)
    assert colours.keys() == {*heavy, 20, 21, 22, 30}
    assert {colours[index] for index in heavy} == set(PALETTE)
    assert not {colours[index] for index in (20, 21, 22, 30)} & set(PALETTE)
    assert len({colours[index] for index in (20, 21, 22)}) == 3 and colours[20] != colours[30]
