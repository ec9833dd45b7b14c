"""Figures of label maps: images with their maps, random crops and targets, in rows or as a sheet."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from scipy.special import softmax

from relabel.annotation.label_set import LabelSet, open_label_set
from relabel.crop_box import WHOLE_IMAGE, CropBox
from relabel.data.class_names import class_labels
from relabel.data.decode import ImageFile
from relabel.figures import map_panel, panels, selection
from relabel.figures.axes import draw_axes_figure
from relabel.figures.colours import INK, MUTED, OTHER_COLOUR, WARNING, class_colours
from relabel.figures.panels import GAP, LINE, MARGIN, NONE_STORED, SMALL, TEXT, WIDER_GAP
from relabel.figures.selection import how_drawn, is_disputed, mixed_rows, named_rows, random_rows, whole_target
from relabel.label_map import LabelMap
from relabel.targets import relabel_target

LONGEST_SIDE = 900  # pixels of an image in a figure
ROW_INCHES = 1.65  # height of a row
BARS_WIDTH = 1.1  # width of the bars beside a crop, in units of the crop's width
HEADING, CAPTION = 0.34, 0.36  # inches; above the first row, below each row
SEARCHED = 200  # images in which to look for targets that disagree with the label, or with those of swapped axes
EPOCHS = 20  # whose crops are looked at if an image is named for `axes`
MOVED = 0.05  # share of a target; less is no difference to be seen
TILE_INCHES, COLUMNS, SHEET_DPI = 1.25, 4, 120  # of the sheet: width of an image and of its map, tiles side by side
SHEET_HEADING = 0.5  # inches
TILE_NAMES = 2  # classes listed below a tile
TILE_SHARE = 0.05  # smallest share of a second class that is listed


@dataclass(frozen=True, slots=True)
class Example:
    """An image with its label map, and crops with their targets.

    Fields:
        image: uint8 [H, W, 3], RGB.
        label: the class of the image's folder, 0..K-1; None if there are no class folders.
        cells: float [K, h, w]; the class probabilities of each cell.
        crops: n boxes; in rows, the same number for every example.
        targets: float [n, K]; the target of each crop.
        whole: float [K]; the target of the whole image.
        name: CLASS/FILE of the image.
    """

    image: np.ndarray
    label: int | None
    cells: np.ndarray
    crops: Sequence[CropBox]
    targets: np.ndarray
    whole: np.ndarray
    name: str = ""

    @property
    def disagreement(self) -> float:
        """How much more probable than the label the largest class of the target is; 0 without a label."""
        return 0.0 if self.label is None else float(self.whole.max() - self.whole[self.label])

    @property
    def is_disputed(self) -> bool:
        """Whether the image has a label that is not the largest class of its target."""
        return self.label is not None and is_disputed(self.whole, self.label)

    def label_text(self, names: Sequence[str]) -> str:
        """Return the name of the folder's class."""
        return "none" if self.label is None else names[self.label]

    def colours(self) -> dict[int, str]:
        """Return the colour of each visible class."""
        return class_colours(self.cells, self.targets)


def make_example(
    image: np.ndarray, label: int | None, label_map: LabelMap, crops: Sequence[CropBox], num_classes: int,
    fill: float = 0.0, temperature: float = 1.0, name: str = "",
) -> Example:  # fmt: skip
    """Pool the targets of an image's crops.

    Args:
        image, label, crops: as in Example.
        label_map: of the image.
        num_classes: K.
        fill, temperature: as in `relabel_target`.
        name: of the image.
    """
    cells = softmax(label_map.to_dense(num_classes, fill) / temperature, axis=0)
    maps = LabelMap.stack([label_map] * len(crops))
    targets = relabel_target(*maps, CropBox.stack(crops), num_classes, fill=fill, temperature=temperature)
    whole = whole_target(label_map, num_classes, fill, temperature)
    return Example(image, label, cells, crops, targets.numpy(), whole, name)


def draw_figure(
    words: Sequence[str],
    labels: Path,
    images: Path,
    out: Path,
    figure: str,
    *,
    table: Path | None = None,
    count: int,
    crops: int,
    seed: int,
    fill: float,
    temperature: float,
) -> None:
    """Draw label maps of a data set.

    Args:
        words: the images to show, see `named_rows`; if there are none, random ones, spread over the classes; in rows,
            the first half of them disagree with their label, if there are any among SEARCHED.
        labels, images, table: as in `open_label_set`.
        out: the PNG to write.
        figure: rows (a row per image), sheet (many images) or axes (of the first image, or of SEARCHED random ones, the
            crop for which the order of the sides matters most).
        count: number of random images.
        crops: random crops per image, in rows: those of its first epochs in a training run with this seed.
        seed: of the random images and crops.
        fill, temperature: as in `relabel_target`.

    Raises:
        UserError: an image does not exist, or it or its map cannot be read.
    """
    found = open_label_set(labels, images, table)
    assert found.images is not None
    names = class_labels(found.class_names)
    note = ""
    if figure == "axes":
        rows = named_rows(found.images, words)[:1] if words else random_rows(found, SEARCHED, seed)
        _draw_axes(out, found, rows, EPOCHS if words else 1, seed, fill, temperature)
        return
    if words:
        rows = named_rows(found.images, words)
    elif figure == "rows" and found.labels is not None:
        searched = random_rows(found, max(count, SEARCHED), seed)
        rows, disputed = mixed_rows(found, searched, count, fill, temperature)
        note = f"targets that disagree with the label (≠): {disputed} of {len(searched)} images searched"
        note += "; the largest disagreements are shown first" * (disputed > 0)
    else:
        rows, note = random_rows(found, count, seed), how_drawn(found, seed)
    shown = []
    for row in rows:
        file, label_map = ImageFile(found.images.path(row)), found.store.read(row)
        boxes = [WHOLE_IMAGE] if figure == "sheet" else selection.first_crops(file, row, crops, seed)
        label = None if found.labels is None else int(found.labels[row])
        image, name = shown_pixels(file), found.images.name(row)
        shown.append(make_example(image, label, label_map, boxes, len(names), fill, temperature, name))
    draw = draw_rows if figure == "rows" else draw_sheet
    draw(out, shown, names, note)


def _draw_axes(
    out: Path, found: LabelSet, rows: Sequence[int], crops: int, seed: int, fill: float, temperature: float
) -> None:
    """Draw the crop whose target differs most from that of its transpose, of these images' first crops."""
    assert found.images is not None
    num_classes = len(found.class_names)
    row, boxes, difference = selection.clearest_crop(found, rows, crops, seed, fill, temperature)
    image, label_map = shown_pixels(ImageFile(found.images.path(row))), found.store.read(row)
    shown = make_example(image, None, label_map, boxes, num_classes, fill, temperature, found.images.name(row))
    of = f"{crops * len(rows):,} random crops of {f'{len(rows):,} images' if len(rows) > 1 else 'this image'}"
    note = f"{100 * difference:.0f} % of the target moves to other classes: the most in {of}."
    if difference < MOVED:
        note = f"In none of {of} does {100 * MOVED:.0f} % of the target move to other classes."
    names = class_labels(found.class_names)
    draw_axes_figure(out, image, shown.cells, boxes[0], shown.targets, names, shown.name, note)


def shown_pixels(file: ImageFile) -> np.ndarray:
    """Return the image as uint8 [H, W, 3], reduced if it is large."""
    scale = min(1.0, LONGEST_SIDE / max(file.width, file.height))
    height, width = (max(1, round(side * scale)) for side in (file.height, file.width))
    return file.resized_crop(WHOLE_IMAGE, height, width).transpose(1, 2, 0)


@panels.styled
def draw_rows(out: Path, examples: Sequence[Example], names: Sequence[str], note: str = "") -> None:
    """Draw a row per example: the image with its crops' boxes, the label map, each crop and its target.

    A cell of the map has the colour of its most likely class, stronger for a higher probability. All panels of a column
    have the same size; an image of another shape stands on a grey mat. A label has a red "≠" if it is not the largest
    class of the target of the whole image.

    Args:
        out: the PNG to write; its folder must exist.
        examples: at least one.
        names: display names of the K classes.
        note: below the rows.
    """
    num_crops, across = len(examples[0].crops), ROW_INCHES * panels.common_aspect([e.image for e in examples])
    bars = [WIDER_GAP, ROW_INCHES, GAP, BARS_WIDTH * ROW_INCHES]
    widths, heights = [across, GAP, across, *bars * num_crops], [ROW_INCHES, CAPTION] * len(examples)
    bottom = LINE if note else 0.0
    down = HEADING + sum(heights) + bottom
    figure, sides = panels.page(sum(widths) + 2 * MARGIN, down)
    grid = figure.add_gridspec(
        len(heights), len(widths), **sides, top=1 - HEADING / down, bottom=bottom / down, width_ratios=widths,
        height_ratios=heights, wspace=0, hspace=0,
    )  # fmt: skip
    for number, example in enumerate(examples):
        _draw_row(figure, [grid[2 * number, column] for column in range(0, len(widths), 2)], example, names)
        _write_caption(panels.text_area(figure, grid[2 * number + 1, :]), 2 * across + GAP, example, names)
    headings = ["image", "label map", *(text for n in range(num_crops) for text in (f"crop {n + 1}", "target"))]
    for column, heading in enumerate(headings):
        x = sides["left"] + (sum(widths[: 2 * column]) + widths[2 * column] / 2) / figure.get_figwidth()
        figure.text(x, 1 - 0.23 / down, heading, size=11, ha="center")
    figure.text(sides["left"], 0.1 / down, note, color=MUTED)
    panels.save(figure, out)


def _draw_row(figure: Figure, cells: Sequence[SubplotSpec], example: Example, names: Sequence[str]) -> None:
    """Draw an example into the cells of a row: image, label map, and two for each crop."""
    colours = example.colours()
    image, label_map = (panels.matted_panel(figure, cell) for cell in cells[:2])
    panels.draw_image(image, example.image)
    panels.draw_boxes(image, example.crops)
    map_panel.draw_map(label_map, example.image, example.cells, colours)
    map_panel.name_regions(label_map, example.cells, names, colours)
    for number, (box, target) in enumerate(zip(example.crops, example.targets, strict=True)):
        crop, bars = cells[2 + 2 * number : 4 + 2 * number]
        panels.draw_crop(panels.image_panel(figure, crop), example.image, box, number + 1)
        panels.draw_bars(panels.text_area(figure, bars), target, names, colours, example.label)


def _write_caption(area: Axes, inches: float, example: Example, names: Sequence[str]) -> None:
    """Write label, size of the map and its largest probability, `inches` wide, and the file at the right edge."""
    rows, columns = example.cells.shape[1:]
    facts = f"{rows}x{columns} cells, surest {panels.percent(float(example.cells.max()))}"
    across, start = area.get_xlim()[1], panels.text_width("label: ")
    file = panels.fitted_name(example.name, across / 2)
    room = across - start - panels.text_width(facts) - panels.text_width(file, SMALL) - 0.4
    label = panels.fitted("≠ " * example.is_disputed + example.label_text(names), room, TEXT, "bold")
    # Below narrow images, these texts extend below the crops, where there is space.
    end = max(start + panels.text_width(label, TEXT, "bold") + 0.2, inches - panels.text_width(facts))
    area.text(0, 0.17, "label: ", color=MUTED)
    area.text(start, 0.17, label, weight="bold", color=WARNING if example.is_disputed else INK)
    area.text(end, 0.17, facts, color=MUTED)
    area.text(across, 0.17, file, size=SMALL, color=MUTED, ha="right")


@panels.styled
def draw_sheet(out: Path, examples: Sequence[Example], names: Sequence[str], note: str = "") -> None:
    """Draw many images, each beside its label map, with the largest classes of the target of the whole image.

    Those come first whose label is not the target's largest class: the map has a red frame, the label a red "≠".

    Args:
        out: the PNG to write; its folder must exist.
        examples: at least one.
        names: display names of the K classes.
        note: below the number of disagreements.
    """
    examples = sorted(examples, key=lambda example: (not example.is_disputed, -example.disagreement))
    disputed = sum(example.is_disputed for example in examples)
    shown = [[] if panels.is_uniform(example.whole) else _strongest(example.whole) for example in examples]
    lines = 1 + max(example.is_disputed + max(1, len(best)) for example, best in zip(examples, shown, strict=True))
    images = [example.image for example in examples]
    figure, heading, tiles = panels.tiles(images, COLUMNS, TILE_INCHES, lines, SHEET_HEADING, panels=2)
    disagree = f"targets that disagree with the label (≠): {disputed} of {len(examples)}"
    panels.write_line(heading, 0.2, f"{len(examples)} images" if examples[0].label is None else disagree, size=11)
    panels.write_line(heading, 0.2 + LINE, note, color=MUTED)
    for ((image, label_map), area), example, best in zip(tiles, examples, shown, strict=True):
        colours = example.colours()
        panels.draw_image(image, example.image)
        map_panel.draw_map(label_map, example.image, example.cells, colours)
        line = LINE
        if example.is_disputed:
            label_map.spines[:].set(edgecolor=WARNING, linewidth=2.5)
            panels.write_line(area, line, f"≠ {example.label_text(names)}", weight="bold", color=WARNING)
            line += LINE
        if not best:
            panels.write_line(area, line, " ".join(NONE_STORED), color=MUTED)
            line += LINE
        for index in best:
            weight = "bold" if index == example.label else "normal"
            panels.write_line(
                area, line, names[index], panels.percent(float(example.whole[index])), 0.16, weight=weight
            )
            area.plot(0.05, line - 0.05, "s", markersize=7.2, color=colours.get(index, OTHER_COLOUR), mew=0)
            line += LINE
        area.text(0, line, panels.fitted_name(example.name, 0.96 * area.get_xlim()[1], TEXT), color=MUTED)
    panels.save(figure, out, SHEET_DPI)


def _strongest(target: np.ndarray) -> list[int]:
    """Return the largest class of a target [K], and the next ones if they are large enough."""
    order = [int(index) for index in np.argsort(-target, kind="stable")[:TILE_NAMES]]
    return [index for index in order if index == order[0] or target[index] >= TILE_SHARE]
