"""Figures of label maps: images with their maps, random crops and targets, in rows or as a sheet."""

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from scipy.special import softmax

from relabel.annotation.label_set import LabelSet, open_label_set
from relabel.crop_box import MIN_AREA, WHOLE_IMAGE, CropBox, random_crop_box
from relabel.data.class_names import class_labels
from relabel.data.decode import ImageFile
from relabel.data.images import ImageList
from relabel.figures import panels
from relabel.figures.axes import draw_axes_figure
from relabel.figures.colours import INK, MUTED, OTHER_COLOUR, WARNING, class_colours
from relabel.figures.panels import GAP, LINE, MARGIN, SMALL, TEXT, WIDER_GAP
from relabel.label_map import LabelMap
from relabel.targets import relabel_target
from utils.errors import UserError
from utils.random import SAMPLE, keyed_rng

LONGEST_SIDE = 900  # pixels of an image in a figure
ROW_INCHES = 1.65  # height of a row with a 4:3 image
BARS_WIDTH = 1.1  # width of the bars beside a crop, in units of the crop's width
ASPECTS = (0.4, 2.6)  # width / height of a panel; images with other ratios leave margins in it
HEADING, CAPTION = 0.34, 0.36  # inches; above the first row, below each row
TILE_INCHES, COLUMNS = 1.65, 4  # of the sheet: width of an image and of its map, tiles side by side
TILE_NAMES = 3  # classes listed below a tile
TILE_SHARE = 0.05  # smallest share of a second or third class that is listed


@dataclass(frozen=True, slots=True)
class Example:
    """An image with its label map, and crops with their targets.

    Fields:
        image: uint8 [H, W, 3], RGB.
        label: the class of the image's folder, 0..K-1; None if there are no class folders.
        cells: float [K, h, w]; the class probabilities of each cell.
        crops: n boxes; in rows, the same number for every example.
        targets: float [n, K]; the target of each crop.
        name: CLASS/FILE of the image.
    """

    image: np.ndarray
    label: int | None
    cells: np.ndarray
    crops: Sequence[CropBox]
    targets: np.ndarray
    name: str = ""

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
    return Example(image, label, cells, crops, targets.numpy(), name)


def draw_figure(
    words: Sequence[str],
    labels: Path,
    images: Path,
    out: Path,
    figure: str,
    *,
    count: int,
    crops: int,
    seed: int,
    fill: float,
    temperature: float,
) -> None:
    """Draw label maps of a data set.

    Args:
        words: the images to show, see `named_rows`; if there are none, random ones.
        labels, images: as in `open_label_set`.
        out: the PNG to write.
        figure: rows (a row per image), sheet (many images) or axes (the first image).
        count: number of random images.
        crops: random crops per image, in rows: those of its first epochs in a training run with this seed.
        seed: of the random images and crops.
        fill, temperature: as in `relabel_target`.

    Raises:
        UserError: an image does not exist, or it or its map cannot be read.
    """
    found = open_label_set(labels, images)
    assert found.images is not None
    names = class_labels(found.class_names)
    rows = named_rows(found.images, words) if words else random_rows(found, count, seed)
    shown = []
    for row in rows[:1] if figure == "axes" else rows:
        file, label_map = ImageFile(found.images.path(row)), found.store.read(row)
        boxes = _boxes(figure, file, row, crops, seed)
        label = None if found.labels is None else int(found.labels[row])
        image, name = shown_pixels(file), found.images.name(row)
        shown.append(make_example(image, label, label_map, boxes, len(names), fill, temperature, name))
    if figure == "axes":
        draw_axes_figure(out, shown[0].image, shown[0].cells, boxes[0], shown[0].targets, names, shown[0].name)
    else:
        draw = draw_rows if figure == "rows" else draw_sheet
        draw(out, shown, names)


def _boxes(figure: str, file: ImageFile, row: int, crops: int, seed: int) -> list[CropBox]:
    """Return the boxes to pool for a figure."""
    if figure == "sheet":
        return [WHOLE_IMAGE]
    rngs = [keyed_rng(seed, SAMPLE, epoch, row) for epoch in range(crops)]
    drawn = [random_crop_box(rng, file.width, file.height, MIN_AREA) for rng in rngs]
    return drawn if figure == "rows" else [drawn[0], drawn[0].transposed()]


def named_rows(images: ImageList, words: Sequence[str]) -> list[int]:
    """Return the rows of images given by path, CLASS/FILE or CLASS/STEM.

    Raises:
        UserError: an image does not exist.
    """
    rows = {name: row for row, name in enumerate(map(os.fsdecode, images.names.tolist()))}
    rows |= {name.rpartition(".")[0]: row for name, row in rows.items()}
    found = []
    for word in words:
        path = Path(word).parent.resolve() / Path(word).name  # without following a link in the last part
        name = word if word in rows else os.path.relpath(path, images.root.resolve())
        if name not in rows:
            near = difflib.get_close_matches(word, rows, n=1)
            raise UserError(
                f"found no image {word!r} in {images.root}; expected the path of one, or its CLASS/FILE or CLASS/STEM"
                f"{f'; did you mean {near[0]}?' if near else '.'}"
            )
        found.append(rows[name])
    return found


def random_rows(labels: LabelSet, count: int, seed: int) -> list[int]:
    """Draw rows of random images that have a label map, in ascending order.

    Raises:
        UserError: no image has one.
    """
    present = np.setdiff1d(np.arange(len(labels)), labels.store.missing())
    if not len(present):
        raise UserError(
            f"{labels.path} has a label map for none of the {len(labels):,} images; expected maps with their "
            f"names. Compare: the maps have {os.fsdecode(labels.store_keys[0])!r}, the images {labels.key(0)!r}"
        )
    return np.sort(keyed_rng(seed, SAMPLE, 0).permutation(present)[:count]).tolist()


def shown_pixels(file: ImageFile) -> np.ndarray:
    """Return the image as uint8 [H, W, 3], reduced if it is large."""
    scale = min(1.0, LONGEST_SIDE / max(file.width, file.height))
    height, width = (max(1, round(side * scale)) for side in (file.height, file.width))
    return file.resized_crop(WHOLE_IMAGE, height, width).transpose(1, 2, 0)


@panels.styled
def draw_rows(out: Path, examples: Sequence[Example], names: Sequence[str]) -> None:
    """Draw a row per example: the image with its crops' boxes, the label map, each crop and its target.

    A cell of the map has the colour of its most likely class, stronger for a higher probability. All rows have the same
    width, so a row with a portrait image is a little higher than one with a landscape image.

    Args:
        out: the PNG to write; its folder must exist.
        examples: at least one.
        names: display names of the K classes.
    """
    num_crops = len(examples[0].crops)
    gaps = GAP + num_crops * (WIDER_GAP + GAP)
    width = ROW_INCHES * _units(4 / 3, num_crops) + gaps
    aspects = [float(np.clip(e.image.shape[1] / e.image.shape[0], *ASPECTS)) for e in examples]
    heights = [(width - gaps) / _units(aspect, num_crops) for aspect in aspects]
    down = HEADING + sum(heights) + CAPTION * len(examples)
    figure, sides = panels.page(width + 2 * MARGIN, down)
    top = HEADING
    for example, height, aspect in zip(examples, heights, aspects, strict=True):
        widths = [aspect * height, GAP, aspect * height, *[WIDER_GAP, height, GAP, BARS_WIDTH * height] * num_crops]
        grid = figure.add_gridspec(
            2, len(widths), **sides, top=1 - top / down, bottom=1 - (top + height + CAPTION) / down,
            width_ratios=widths, height_ratios=[height, CAPTION], wspace=0, hspace=0,
        )  # fmt: skip
        _draw_row(figure, grid, example, names)
        _write_caption(panels.text_area(figure, grid[1, :]), sum(widths[:3]), example, names)
        top += height + CAPTION
    headings = ["image", "label map", *(text for n in range(num_crops) for text in (f"crop {n + 1}", "target"))]
    for axes, heading in zip(figure.axes, headings, strict=False):
        axes.set_title(heading)
    panels.save(figure, out)


def _units(aspect: float, num_crops: int) -> float:
    """Return the width of a row's panels in units of its height."""
    return 2 * aspect + num_crops * (1 + BARS_WIDTH)


def _draw_row(figure: Figure, grid: GridSpec, example: Example, names: Sequence[str]) -> None:
    """Draw an example from left to right, in every second column of a grid."""
    colours = example.colours()
    image, label_map = panels.image_panel(figure, grid[0, 0]), panels.image_panel(figure, grid[0, 2])
    panels.draw_image(image, example.image)
    panels.draw_boxes(image, example.crops)
    panels.draw_map(label_map, example.image, example.cells, colours)
    panels.name_regions(label_map, example.cells, names, colours)
    for number, (box, target) in enumerate(zip(example.crops, example.targets, strict=True)):
        panels.draw_crop(panels.image_panel(figure, grid[0, 4 + 4 * number]), example.image, box, number + 1)
        panels.draw_bars(panels.text_area(figure, grid[0, 6 + 4 * number]), target, names, colours, example.label)


def _write_caption(area: Axes, inches: float, example: Example, names: Sequence[str]) -> None:
    """Write label, size of the map and its largest probability, `inches` wide, and the file at the right edge."""
    rows, columns = example.cells.shape[1:]
    facts = f"{rows}x{columns} cells, surest {panels.percent(float(example.cells.max()))}"
    across, start = area.get_xlim()[1], panels.text_width("label: ")
    file = panels.fitted_name(example.name, across / 2)
    room = across - start - panels.text_width(facts) - panels.text_width(file, SMALL) - 0.4
    label = panels.fitted(example.label_text(names), room, TEXT, "bold")
    # Below narrow images, these texts extend below the crops, where there is space.
    end = max(start + panels.text_width(label, TEXT, "bold") + 0.2, inches - panels.text_width(facts))
    area.text(0, 0.17, "label: ", color=MUTED)
    area.text(start, 0.17, label, weight="bold")
    area.text(end, 0.17, facts, color=MUTED)
    area.text(across, 0.17, file, size=SMALL, color=MUTED, ha="right")


@panels.styled
def draw_sheet(out: Path, examples: Sequence[Example], names: Sequence[str]) -> None:
    """Draw many images, each beside its label map, with the folder's label and the largest classes of its first target.

    If the target's largest class is not the label, the map has a red frame and the label a red "≠".

    Args:
        out: the PNG to write; its folder must exist.
        examples: at least one; the first crop of each is the whole image.
        names: display names of the K classes.
    """
    shown = [_strongest(example.targets[0]) for example in examples]
    wrong = [example.label not in (None, best[0]) for example, best in zip(examples, shown, strict=True)]
    figure, heading, tiles = panels.tiles(
        [example.image for example in examples], COLUMNS, TILE_INCHES, 2 + max(map(len, shown)), HEADING, panels=2
    )
    is_labelled = examples[0].label is not None
    disagree = f"targets that disagree with the label (≠): {sum(wrong)} of {len(examples)}"
    panels.write_line(heading, 0.22, disagree if is_labelled else f"{len(examples)} images", size=11)
    for ((image, label_map), area), example, best, is_wrong in zip(tiles, examples, shown, wrong, strict=True):
        colours = example.colours()
        panels.draw_image(image, example.image)
        panels.draw_map(label_map, example.image, example.cells, colours)
        if is_wrong:
            label_map.spines[:].set(edgecolor=WARNING, linewidth=2.5)
        label = "≠ " * is_wrong + example.label_text(names)
        panels.write_line(area, LINE, label, weight="bold", color=WARNING if is_wrong else INK)
        for line, index in enumerate(best, 2):
            share = panels.percent(float(example.targets[0][index]))
            panels.write_line(area, line * LINE, names[index], share, 0.16, SMALL)
            area.plot(0.05, line * LINE - 0.05, "s", markersize=7.2, color=colours.get(index, OTHER_COLOUR), mew=0)
        file = panels.fitted_name(example.name, area.get_xlim()[1])
        area.text(0, (2 + len(best)) * LINE, file, size=SMALL, color=MUTED)
    panels.save(figure, out)


def _strongest(target: np.ndarray) -> list[int]:
    """Return the largest class of a target [K], and the next ones if they are large enough."""
    order = [int(index) for index in np.argsort(-target, kind="stable")[:TILE_NAMES]]
    return [index for index in order if index == order[0] or target[index] >= TILE_SHARE]
