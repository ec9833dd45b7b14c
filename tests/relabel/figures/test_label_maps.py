"""Figures of label maps: which images they show, that they are right, and that every text has its room."""

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

from relabel.annotation.label_set import LabelSet, open_label_set
from relabel.crop_box import WHOLE_IMAGE, CropBox
from relabel.data.folders import list_images
from relabel.figures.colours import WARNING
from relabel.figures.label_maps import (
    Example,
    draw_figure,
    draw_rows,
    draw_sheet,
    make_example,
)
from relabel.figures.selection import clearest_crop, mixed_rows, named_rows, random_rows
from relabel.label_map import LabelMap
from relabel.stores.manifest import Manifest
from relabel.stores.pt_folder import write_label_map
from tests.memory_store import left_right_map, uniform_map
from utils.errors import UserError

NAMES = [f"class_{index}" for index in range(7)]
LONG_NAMES = [
    "soft-coated wheaten terrier, a name longer than any tile of a sheet",
    "American Staffordshire terrier",
    *(f"{'long' * 9} {n}" for n in range(998)),
]
CROPS = (CropBox(0, 0, 0.5, 0.5), CropBox(0, 0.5, 1, 1))
SIZES = ((40, 60), (60, 40), (20, 90), (90, 25))  # rows and columns
ANT = np.stack([np.full((3, 5), 9.0), np.zeros((3, 5))]).astype(np.float32)  # cells of class 0
OPTIONS = {"count": 2, "crops": 2, "seed": 0, "fill": 0.0, "temperature": 1.0}


def example(
    size: tuple[int, int] = (40, 60),
    label: int = 0,
    num_classes: int = 7,
    logit: float = 12.0,
    crops: Sequence[CropBox] = CROPS,
    name: str = "class_0/image.jpg",
    **settings: float,
) -> Example:
    """A grey image; 4 x 6 cells of class 0 on the left, class 1 on the right; crops of a quarter and the lower half."""
    image = np.full((*size, 3), 128, dtype=np.uint8)
    return make_example(image, label, left_right_map(logit), crops, num_classes, **settings, name=name)


def mixed(num_classes: int, count: int) -> list[Example]:
    """Examples of all shapes and degrees of certainty."""
    logits = (12.0, 3.0, 0.1)
    return [
        example(SIZES[n % 4], n % 2, num_classes, logits[n % 3], (WHOLE_IMAGE, *CROPS), "9" * 40 * n + ".jpg")
        for n in range(count)
    ]


def written(figure: Figure) -> list[Text]:
    found = [*figure.texts, *(text for axes in figure.axes for text in (*axes.texts, axes.title))]
    return [text for text in found if text.get_text()]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in written(figure)]


def check_texts_have_room(figure: Figure) -> None:
    """No text leaves the page, and no two touch."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # moves the titles to their places
    width, height = figure.get_size_inches() * figure.dpi
    boxes = [(text.get_text(), text.get_window_extent(canvas.get_renderer())) for text in written(figure)]
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


@pytest.mark.parametrize(("num_classes", "names"), [(7, NAMES), (1000, LONG_NAMES)])
def test_figures_of_mixed_shapes_have_room_for_every_text(
    tmp_path: Path, drawn: list[Figure], num_classes: int, names: list[str]
) -> None:
    draw_rows(tmp_path / "rows.png", mixed(num_classes, 4), names, "a note")
    draw_sheet(tmp_path / "sheet.png", mixed(num_classes, 8), names)
    for figure in drawn:
        check_texts_have_room(figure)
    assert any(text.endswith("…") for text in texts(drawn[-1])) == (names is LONG_NAMES)
    with Image.open(tmp_path / "rows.png") as image:
        assert 1000 < image.width < 4000 and 900 < image.height < 4000
    columns = {round(axes.get_position(original=True).x0, 4) for axes in drawn[0].axes}
    assert len(columns) == 2 + 2 * 3  # image, map, and two for each crop: whatever the shape of an image


def test_a_row_names_label_map_and_targets(tmp_path: Path, drawn: list[Figure]) -> None:
    draw_rows(tmp_path / "rows.png", [example(label=1)], ["ant", "bee", *NAMES[2:]])
    shown = texts(drawn[0])
    assert "4x6 cells, surest 100 %" in shown and "class_0/image.jpg" in shown and shown.count("bee") >= 2
    assert shown[shown.index("100 %") - 1] == "ant"  # the first crop is in the left half
    assert shown.count("50 %") == 2  # the second one shows as much of both
    draw_rows(tmp_path / "rows.png", [example(temperature=4.0)], NAMES)
    assert "4x6 cells, surest 77 %" in texts(drawn[1])  # logits 12 / 4 and 6 absent classes: e^3 / (e^3 + 6)


def test_a_sheet_marks_where_target_and_label_disagree(tmp_path: Path, drawn: list[Figure]) -> None:
    dense = np.zeros((7, 3, 5), dtype=np.float32)
    dense[2], dense[5] = 9, 7.5
    grey, label_map = np.full((40, 60, 3), 128, np.uint8), LabelMap.from_dense(dense, k=2)
    examples = [make_example(grey, label, label_map, [WHOLE_IMAGE], 7, name=f"{label}.jpg") for label in (2, 5)]
    draw_sheet(tmp_path / "agree.png", examples[:1], NAMES)
    draw_sheet(tmp_path / "both.png", examples, NAMES)
    assert not len(pixels_of(tmp_path / "agree.png", WARNING))
    red = pixels_of(tmp_path / "both.png", WARNING)
    with Image.open(tmp_path / "both.png") as sheet:
        assert len(red) > 1000 and red[:, 1].max() < sheet.width / 2 + 10  # about the first tile only
    shown = texts(drawn[1])
    assert (
        "2.jpg" in shown
        and "5.jpg" in shown
        and "≠ class_5" in shown
        and "class_2" in shown
        and any(text.endswith("(≠): 1 of 2") for text in shown)
    )
    assert shown.index("5.jpg") < shown.index("2.jpg")  # the disagreement comes first
    target = examples[0].targets[0]
    assert shown.count(f"{100 * target[2]:.0f} %") == shown.count(f"{100 * target[5]:.0f} %") == 2


def test_targets_without_any_of_the_classes_are_explained_and_count_as_disagreements(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    grey = np.full((40, 60, 3), 128, np.uint8)
    of_others = LabelMap(np.full((1, 3, 5), 9, np.float32), np.full((1, 3, 5), 7, np.int16))  # id 7 = K: another class
    own = LabelMap(np.full((1, 3, 5), 1, np.float32), np.full((1, 3, 5), 2, np.int16))
    named = [("own.jpg", own), ("others.jpg", of_others)]
    examples = [make_example(grey, 2, label_map, [WHOLE_IMAGE], 7, name=name) for name, label_map in named]
    draw_sheet(tmp_path / "sheet.png", examples, NAMES)
    draw_rows(tmp_path / "rows.png", examples, NAMES)
    shown = texts(drawn[0])
    assert shown.count("none of your classes is stored here") == 1
    assert shown.index("others.jpg") < shown.index("own.jpg")  # though its disagreement is 0 too
    assert texts(drawn[1]).count("none of your classes") == 1 and "each of 7: 14 %" in texts(drawn[1])
    check_texts_have_room(drawn[1])


@pytest.fixture
def labels(tmp_path: Path) -> LabelSet:
    """Three images of two classes, one without a map; one is large."""
    for name, size in (("ant/a.b.jpg", (60, 40)), ("ant/c.jpg", (40, 60)), ("bee/d.png", (2000, 1000))):
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (200, 90, 30)).save(tmp_path / "train" / name)
    for key in ("ant/a.b", "bee/d"):
        write_label_map(tmp_path / "labels", key, left_right_map())
    return open_label_set(tmp_path / "labels", tmp_path / "train")


def draw(tmp_path: Path, words: Sequence[str], figure: str, maps: str = "labels", images: str = "train") -> Path:
    out = tmp_path / "figure.png"
    draw_figure(words, tmp_path / maps, tmp_path / images, out, figure, **OPTIONS)  # type: ignore[arg-type]
    return out


def test_images_are_found_by_path_name_and_key(
    labels: LabelSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = list_images(tmp_path / "train")
    monkeypatch.chdir(tmp_path)
    words = [str(tmp_path / "train" / "bee" / "d.png"), "train/ant/c.jpg", "ant/a.b.jpg", "ant/a.b"]
    assert named_rows(images, words) == [2, 1, 0, 0]
    with pytest.raises(UserError, match=r"found no image 'ant/a\.jpg' in .*did you mean ant/a\.b\.jpg\?"):
        named_rows(images, ["ant/a.jpg"])
    for word in ("/etc/hostname", "x" * 5000):
        with pytest.raises(UserError, match=f"found no image '{word}'"):
            named_rows(images, [word])


def test_images_are_drawn_evenly_over_classes_and_disagreements_come_first(tmp_path: Path) -> None:
    """Of 10 ants and 2 bees all maps say ant."""
    for name, number in (("ant", 10), ("bee", 2)):
        for index in range(number):
            (tmp_path / "train" / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (60, 40)).save(tmp_path / "train" / name / f"{index}.png")
            write_label_map(tmp_path / "labels", f"{name}/{index}", LabelMap.from_dense(ANT, k=2))
    labels = open_label_set(tmp_path / "labels", tmp_path / "train")
    for seed in range(3):
        drawn = random_rows(labels, 12, seed)
        assert sorted(row >= 10 for row in drawn[:4]) == [False, False, True, True] and len({*drawn}) == 12
        assert drawn == random_rows(labels, 12, seed)
    rows, disputed = mixed_rows(labels, drawn, 5, 0.0, 1.0)
    assert disputed == 2 and {*rows[:2]} == {10, 11} and rows[2:] == [row for row in drawn if row < 10][:3]
    assert sorted(mixed_rows(labels, drawn, 20, 0.0, 1.0)[0]) == [*range(12)]
    assert len({*mixed_rows(labels, drawn, 2, 0.0, 1.0)[0]} & {10, 11}) == 1  # half of them


@pytest.mark.parametrize("figure", ["rows", "sheet", "axes"])
def test_every_figure_is_drawn_of_images_that_have_a_map(labels: LabelSet, tmp_path: Path, figure: str) -> None:
    assert sorted(random_rows(labels, 9, seed=3)) == [0, 2]
    for words in ([], ["bee/d"]):
        with Image.open(draw(tmp_path, words, figure)) as image:
            assert image.format == "PNG" and min(image.size) > 200
    (tmp_path / "figure.png").unlink()
    with pytest.raises(UserError, match=r"found no label map at .*ant/c\.pt"):
        draw(tmp_path, ["ant/c"], figure)
    assert not (tmp_path / "figure.png").exists()


def test_axes_show_a_crop_for_which_the_order_of_the_sides_matters(
    labels: LabelSet, tmp_path: Path, drawn: list[Figure]
) -> None:
    write_label_map(tmp_path / "labels", "ant/a.b", uniform_map(8.0, 0))  # every crop has the same target
    row, (box, transposed), difference = clearest_crop(labels, [0, 2], 5, 0, 0.0, 1.0)
    assert row == 2 and transposed == box.transposed() and difference > 0.2
    draw(tmp_path, [], "axes")
    draw(tmp_path, ["ant/a.b"], "axes")
    assert "bee/d.png" in texts(drawn[0])
    assert any(text.startswith("In none of 20 random crops of this image") for text in texts(drawn[1]))


def test_flat_images_are_drawn_without_a_label(tmp_path: Path, labels: LabelSet) -> None:
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (60, 40)).save(tmp_path / "flat" / "photo.jpg")
    write_label_map(tmp_path / "maps", "photo", labels.store.read(0))
    manifest = Manifest(form="pt", maps=1, k=1, h=4, w=6, class_names=["ant", "bee"], made_by={})
    manifest.write(tmp_path / "maps" / "manifest.json")
    assert draw(tmp_path, [], "rows", "maps", "flat").stat().st_size > 5000
