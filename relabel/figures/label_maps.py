"""Pictures: images with their label map, random crops and pooled targets; a contact sheet of many; the curves of runs.

Everything here takes arrays and plain values and writes one PNG.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from relabel.crop_box import WHOLE_IMAGE, CropBox
from relabel.figures.panels import (
    DPI,
    INK,
    MUTED,
    OTHER_COLOUR,
    PALETTE,
    SMALL,
    TEXT,
    add_panel,
    badge_in_corner,
    cell_probabilities,
    class_colours,
    draw_badge,
    draw_bars,
    draw_boxes,
    draw_image,
    draw_map,
    fitted,
    name_regions,
    percent,
    plain_axes,
    save,
    text_width,
    write,
)
from relabel.label_map import LabelMap
from relabel.targets import relabel_target

MARGIN, GAP = 0.12, 0.1  # inches; around a sheet, between panels that belong together
WIDER_GAP = 0.22  # between a row's groups, and between tiles
ROW_INCHES = 1.65  # height of a row whose image is 4:3
BARS_WIDTH = 1.1  # of the bars beside a crop, in units of the crop's
CROP_SIDE = 224  # pixels; a crop is shown squashed to a square, as the network sees it
ASPECTS = (0.4, 2.6)  # width / height of a panel; images beyond are shown smaller in it
HEADING, CAPTION = 0.34, 0.36  # inches; above the first row, under each
TILE_INCHES, LINE_INCHES = 2.05, 0.175  # of the contact sheet: width of a tile, height of a line under it
TILE_NAMES = 3  # classes under a tile
TILE_SHARE = 0.05  # from which a second or third class is worth a line
WARNING = "#c62828"


@dataclass(frozen=True, slots=True)
class Example:
    """An image and what is known about it.

    Attributes:
        image: uint8 [H, W, 3], RGB.
        label: the class the data set gives the image, 0..K-1; None where it gives none.
        label_map: what the annotator says.
        crops: n boxes; every example of a sheet has as many, a contact sheet needs none.
        targets: float [n, K]; the target of each crop.
    """

    image: np.ndarray
    label: int | None
    label_map: LabelMap
    crops: Sequence[CropBox] = ()
    targets: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))

    @property
    def aspect(self) -> float:
        """Width / height of the image."""
        return float(self.image.shape[1] / self.image.shape[0])

    def label_text(self, class_labels: Sequence[str]) -> str:
        """What to call the folder's class."""
        return "none" if self.label is None else class_labels[self.label]


def draw_examples(
    out: Path,
    examples: Sequence[Example],
    class_labels: Sequence[str],
    fill: float = 0.0,
    temperature: float = 1.0,
) -> None:
    """Write a sheet: a row per example with the image and its crops' boxes, the label map, each crop and its target.

    A cell of the map has the colour of its likeliest class, the stronger the likelier. All rows are of one width, so
    a row with an upright image is a little higher than one with a wide image.

    Args:
        out: the PNG to write; its folder must exist.
        examples: at least one.
        class_labels: what to call each of the K classes.
        fill: logit of the classes that a cell does not store.
        temperature: the map's logits are divided by it before the softmax.
    """
    maps = [cell_probabilities(example.label_map, len(class_labels), fill, temperature) for example in examples]
    colours = class_colours(np.stack([_shares(*both) for both in zip(examples, maps, strict=True)]))
    num_crops = len(examples[0].crops)
    gaps = GAP + num_crops * (WIDER_GAP + GAP)
    width = ROW_INCHES * _units(4 / 3, num_crops) + gaps
    heights = [(width - gaps) / _units(_panel_aspect(example), num_crops) for example in examples]
    figure = Figure(figsize=(width + 2 * MARGIN, HEADING + sum(heights) + CAPTION * len(examples) + MARGIN), dpi=DPI)
    top = HEADING
    for example, probabilities, height in zip(examples, maps, heights, strict=True):
        _draw_row(figure, top, height, example, probabilities, class_labels, colours, headings=top == HEADING)
        top += height + CAPTION
    save(figure, out)


def draw_contact_sheet(
    out: Path,
    examples: Sequence[Example],
    class_labels: Sequence[str],
    *,
    columns: int = 6,
    fill: float = 0.0,
    temperature: float = 1.0,
) -> None:
    """Write many images at once: each under its label map, the folder's label, and the target of the whole image.

    Where the target's largest class is not the label, the tile has a red frame and its label a red "≠".

    Args:
        out: the PNG to write; its folder must exist.
        examples: at least one; their crops and targets are not used.
        class_labels: what to call each of the K classes.
        columns: tiles in a row.
        fill: logit of the classes that a cell does not store.
        temperature: the logits are divided by it before the softmax.
    """
    targets = [pooled_target(e.label_map, WHOLE_IMAGE, len(class_labels), fill, temperature) for e in examples]
    maps = [cell_probabilities(example.label_map, len(class_labels), fill, temperature) for example in examples]
    shares = [np.maximum(target, map_.mean((1, 2))) for target, map_ in zip(targets, maps, strict=True)]
    colours = class_colours(np.stack(shares))
    shown = [_strongest(target) for target in targets]
    columns = min(columns, len(examples))
    mat = TILE_INCHES / float(np.clip(np.median([example.aspect for example in examples]), 0.8, 1.6))
    lines = [1 + max(map(len, shown[start : start + columns])) for start in range(0, len(examples), columns)]
    tops = HEADING + np.cumsum([0.0, *(mat + count * LINE_INCHES + 0.27 for count in lines)])
    width = columns * (TILE_INCHES + WIDER_GAP) - WIDER_GAP + 2 * MARGIN
    figure = Figure(figsize=(width, float(tops[-1])), dpi=DPI)
    wrong = sum(example.label not in (None, classes[0]) for classes, example in zip(shown, examples, strict=True))
    labelled = sum(example.label is not None for example in examples)
    summary = f"{wrong} of {labelled} targets disagree with the label (≠)" if labelled else f"{len(examples)} images"
    write(figure, MARGIN, 0.22, fitted(summary, width - 2 * MARGIN, 11), 11)
    for number, example in enumerate(examples):
        left, top = MARGIN + number % columns * (TILE_INCHES + WIDER_GAP), float(tops[number // columns])
        agrees = example.label in (None, shown[number][0])
        _draw_tile(figure, (left, top), mat, example, maps[number], colours, agrees)
        label = example.label_text(class_labels) if agrees else f"≠ {example.label_text(class_labels)}"
        write(
            figure, left, top + mat + 0.19, fitted(label, TILE_INCHES, TEXT, "bold"),
            weight="bold", color=INK if agrees else WARNING,
        )  # fmt: skip
        for line, index in enumerate(shown[number], 1):
            baseline = top + mat + 0.19 + line * LINE_INCHES
            _write_share(figure, left, baseline, class_labels[index], float(targets[number][index]), colours.get(index))
    save(figure, out)


def draw_curves(out: Path, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Write the top-1 accuracy by epoch of several runs.

    Args:
        out: the PNG to write; its folder must exist.
        runs: name of the run -> its records, the lines of metrics.jsonl. Those of the event `validation` are drawn;
            where an epoch has two, the second one's: of the averaged weights.
    """
    figure = Figure(figsize=(7.2, 4.4), layout="constrained", dpi=DPI)
    axes = figure.subplots()
    ends = []
    for number, (name, records) in enumerate(runs.items()):
        points = {r["epoch"]: r["top1_percent"] for r in records if r["event"] == "validation"}
        if points:
            epochs, accuracies = list(points), list(points.values())
            colour = PALETTE[number % len(PALETTE)]
            axes.plot(epochs, accuracies, color=colour, linewidth=2.4, marker="o", markersize=4.5)
            ends.append((accuracies[-1], epochs[-1], name, colour))
    _name_ends(axes, ends)
    axes.set_xlabel("epoch", fontsize=11, color=INK)
    axes.set_title("validation top-1 (%)", fontsize=12, color=INK, loc="left")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    plain_axes(axes, "y")
    save(figure, out)


def squashed_crop(image: np.ndarray, box: CropBox) -> np.ndarray:
    """uint8 [CROP_SIDE, CROP_SIDE, 3]; the part of the image in a box, as the network sees it."""
    height, width = image.shape[:2]
    crop = Image.fromarray(image).crop(box.pixels(width, height))  # resize(box=...) would let its surroundings in
    return np.asarray(crop.resize((CROP_SIDE, CROP_SIDE), Image.Resampling.BILINEAR))


def pooled_target(
    label_map: LabelMap, box: CropBox, num_classes: int, fill: float, temperature: float, box_axes: str = "xy"
) -> np.ndarray:
    """float [K]; ReLabel's target of one crop."""
    target = relabel_target(
        *LabelMap.stack([label_map]),
        CropBox.stack([box]),
        num_classes,
        fill=fill,
        temperature=temperature,
        box_axes=box_axes,
    )
    return target[0].numpy()


def _units(aspect: float, num_crops: int) -> float:
    """Width of a row's panels in units of its height."""
    return 2 * aspect + num_crops * (1 + BARS_WIDTH)


def _panel_aspect(example: Example) -> float:
    return float(np.clip(example.aspect, *ASPECTS))


def _shares(example: Example, probabilities: np.ndarray) -> np.ndarray:
    """float [K]; how much of each class a row shows, on its map or in one of its targets."""
    return np.concatenate([probabilities.mean((1, 2))[None], example.targets.reshape(-1, len(probabilities))]).max(0)


def _draw_row(
    figure: Figure,
    top: float,
    height: float,
    example: Example,
    probabilities: np.ndarray,
    class_labels: Sequence[str],
    colours: Mapping[int, str],
    headings: bool,
) -> None:
    """Draw an example from left to right; `top` and `height` in inches."""
    num_crops = len(example.crops)
    width = height * _panel_aspect(example)
    widths = np.array([width, width] + [height, BARS_WIDTH * height] * num_crops)
    lefts = MARGIN + np.cumsum([0, GAP] + [WIDER_GAP, GAP] * num_crops) + np.cumsum(widths) - widths
    if headings:
        crops = [heading for number in range(1, num_crops + 1) for heading in (f"crop {number}", "target")]
        for middle, heading in zip(lefts + widths / 2, ["image", "label map", *crops], strict=True):
            write(figure, middle, top - 0.1, heading, 11, ha="center")
    image_panel, map_panel = (fitted_panel(figure, left, width, top, height, example.aspect) for left in lefts[:2])
    draw_image(image_panel, example.image)
    draw_boxes(image_panel, example.crops)
    draw_map(map_panel, example.image, probabilities, colours)
    name_regions(map_panel, probabilities, class_labels, colours)
    for number, (box, target) in enumerate(zip(example.crops, example.targets, strict=True)):
        crop_left, bars_left = lefts[2 + 2 * number : 4 + 2 * number]
        panel = add_panel(figure, crop_left, top, height, height)
        draw_image(panel, squashed_crop(example.image, box))
        draw_badge(panel, badge_in_corner(panel), str(number + 1))
        bars = add_panel(figure, bars_left, top, BARS_WIDTH * height, height)
        draw_bars(bars, target, class_labels, colours, example.label)
    _caption_row(figure, top + height + 0.17, 2 * width + GAP, example.label_text(class_labels), probabilities)


def _caption_row(figure: Figure, baseline: float, inches: float, label: str, probabilities: np.ndarray) -> None:
    """Under image and map: the folder's label, and how fine and how sure the map is."""
    rows, columns = probabilities.shape[1:]
    facts = f"{rows}x{columns} cells, surest {percent(float(probabilities.max()))}"
    room = figure.get_size_inches()[0] - 2 * MARGIN - text_width(f"label: {facts}") - 0.2
    label = fitted(label, room, TEXT, "bold")
    write(figure, MARGIN, baseline, "label: ", color=MUTED)
    write(figure, MARGIN + text_width("label: "), baseline, label, weight="bold")
    end = text_width("label: ") + text_width(label, TEXT, "bold")
    # Under a narrow image both texts go on below the crops, where there is room.
    write(figure, MARGIN + max(end + 0.2, inches - text_width(facts)), baseline, facts, color=MUTED)


def fitted_panel(figure: Figure, left: float, width: float, top: float, height: float, aspect: float) -> Axes:
    """The largest panel of an aspect ratio in the middle of a place."""
    across, down = min(width, height * aspect), min(height, width / aspect)
    return add_panel(figure, left + (width - across) / 2, top + (height - down) / 2, across, down)


def _strongest(target: np.ndarray) -> list[int]:
    """The largest class of a target [K], and the next ones if they are worth a line."""
    order = [int(index) for index in np.argsort(-target, kind="stable")[:TILE_NAMES]]
    return [index for index in order if index == order[0] or target[index] >= TILE_SHARE]


def _draw_tile(
    figure: Figure,
    place: tuple[float, float],
    height: float,
    example: Example,
    probabilities: np.ndarray,
    colours: Mapping[int, str],
    agrees: bool,
) -> None:
    """An image under its map, on a mat that makes all tiles alike."""
    mat = add_panel(figure, *place, TILE_INCHES, height)
    mat.set_facecolor("0.955")
    mat.spines[:].set_visible(False)
    panel = fitted_panel(figure, place[0], TILE_INCHES, place[1], height, example.aspect)
    draw_map(panel, example.image, probabilities, colours)
    if not agrees:
        panel.spines[:].set(edgecolor=WARNING, linewidth=2.5)


def _write_share(figure: Figure, left: float, baseline: float, name: str, share: float, colour: str | None) -> None:
    """A line under a tile: the class's colour, its name, its share of the target."""
    swatch = add_panel(figure, left, baseline - 0.1, 0.1, 0.1)
    swatch.set_facecolor(colour or OTHER_COLOUR)
    swatch.spines[:].set_visible(False)
    value = percent(share)
    room = TILE_INCHES - 0.16 - text_width(value, SMALL) - 0.08
    write(figure, left + 0.16, baseline, fitted(name, room, SMALL), SMALL)
    write(figure, left + TILE_INCHES, baseline, value, SMALL, ha="right", color=MUTED)


def _name_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write each run's name and last value at the end of its curve, pushed apart where curves end together."""
    low, high = axes.get_ylim()
    at = -np.inf
    for accuracy, epoch, name, colour in sorted(ends):
        at = max(accuracy, at + 0.075 * (high - low))
        axes.annotate(
            f"{name}\n{accuracy:.1f} %", (epoch, at), xytext=(9, 0), textcoords="offset points",
            fontsize=11, color=colour, va="center", annotation_clip=False,
        )  # fmt: skip
