"""Pictures: scenes with their label map, random crops and pooled targets; the curves of runs.

Everything here takes arrays and plain values and writes one PNG.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from PIL import Image

from relabel.crop_box import CropBox
from relabel.label_map import LabelMap

# Matplotlib's ten colours, but navy for grey: grey is what a map shows where the annotator sees nothing.
PALETTE = tuple("#17344f" if index == 7 else f"C{index}" for index in range(10))
OTHER_COLOUR = "0.55"  # classes beyond the palette
INK, MUTED, TRACK = "0.15", "0.45", "0.92"
ROW_INCHES = 1.7  # height of a picture on the sheet
SURE = 0.5  # probability from which a cell may carry its class's name
BARS_WIDTH = 1.05  # of the bars beside a crop, in units of the crop's
BARS = 4  # classes shown of each target
CROP_SIDE = 224  # pixels; a crop is shown squashed to a square, as the network sees it


@dataclass(frozen=True, slots=True)
class SceneExample:
    """One row of the sheet.

    Attributes:
        image: uint8 [H, W, 3], RGB.
        label: the class the data set gives the image, 0..K-1.
        label_map: what the annotator says.
        crops: n boxes, at least one; every example of a sheet has as many.
        targets: float [n, K]; the target of each crop.
    """

    image: np.ndarray
    label: int
    label_map: LabelMap
    crops: Sequence[CropBox]
    targets: np.ndarray


def draw_scenes(
    out: Path,
    examples: Sequence[SceneExample],
    class_names: Sequence[str],
    fill: float = 0.0,
    temperature: float = 1.0,
) -> None:
    """Write a sheet: a row per example with the image and its crops' boxes, the label map, each crop and its target.

    A cell of the map has the colour of its likeliest class, the stronger the likelier. Colours mean the same class all
    over the sheet.

    Args:
        out: the PNG to write; its folder must exist.
        examples: at least one.
        class_names: the name of each of the K classes.
        fill: logit of the classes that a cell does not store.
        temperature: the map's logits are divided by it before the softmax.
    """
    colours = class_colours(examples, len(class_names))
    num_crops = len(examples[0].crops)
    height, width = examples[0].image.shape[:2]
    columns = [width / height] * 2 + [1.0, BARS_WIDTH] * num_crops  # widths in units of a row's height
    figure = Figure(
        figsize=(ROW_INCHES * 1.08 * sum(columns), ROW_INCHES * 1.22 * len(examples) + 0.4),
        layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.05, wspace=0.01, hspace=0.02),
        dpi=150,
    )
    grid = figure.subplots(len(examples), len(columns), squeeze=False, width_ratios=columns)
    for axes, example in zip(grid, examples, strict=True):
        _draw_image(axes[0], example, class_names)
        _draw_map(axes[1], example, class_names, colours, fill, temperature)
        for number, (box, target) in enumerate(zip(example.crops, example.targets, strict=True)):
            _draw_crop(axes[2 + 2 * number], example.image, box)
            _draw_target(axes[3 + 2 * number], target, class_names, colours)
    headings = ["image and random crops", "label map"]
    for number in range(1, num_crops + 1):
        headings += [f"crop {number}", "target"]
    for axes, heading in zip(grid[0], headings, strict=True):
        axes.set_title(heading, fontsize=11, color=INK, pad=7)
    figure.savefig(out, facecolor="white")


def draw_curves(out: Path, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Write the top-1 accuracy by epoch of several runs.

    Args:
        out: the PNG to write; its folder must exist.
        runs: name of the run -> its records, the lines of metrics.jsonl. Those of the event `validation` are drawn;
            where an epoch has two, the second one's: of the averaged weights.
    """
    figure = Figure(figsize=(7.2, 4.4), layout="constrained", dpi=150)
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
    axes.grid(axis="y", color=TRACK, linewidth=1)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=10, colors=MUTED, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    figure.savefig(out, facecolor="white")


def class_colours(examples: Sequence[SceneExample], num_classes: int) -> dict[int, str]:
    """The colour of each class: by id if the palette suffices, else the classes with most weight in the targets."""
    if num_classes <= len(PALETTE):
        return dict(enumerate(PALETTE[:num_classes]))
    weight = sum(example.targets.sum(0) for example in examples)
    heaviest = np.argsort(-np.asarray(weight), kind="stable")[: len(PALETTE)]
    return {int(index): colour for index, colour in zip(sorted(heaviest), PALETTE, strict=True)}


def _draw_image(axes: Axes, example: SceneExample, class_names: Sequence[str]) -> None:
    height, width = example.image.shape[:2]
    axes.imshow(example.image, extent=(0, width, height, 0))
    for number, box in enumerate(example.crops, 1):
        edges = box.left * width, box.top * height, box.right * width, box.bottom * height
        for colour, line in (("black", 3.2), ("white", 1.6)):  # white on black shows on any image
            axes.add_patch(
                Rectangle(
                    edges[:2], edges[2] - edges[0], edges[3] - edges[1], fill=False, edgecolor=colour, linewidth=line
                )
            )
        axes.text(
            *edges[:2], f" {number} ", va="top", ha="left", fontsize=8, color="black",
            bbox={"facecolor": "white", "edgecolor": "black", "linewidth": 0.8, "pad": 1.2},
        )  # fmt: skip
    _frame(axes)
    axes.set_xlabel(f"label: {class_names[example.label]}", fontsize=10, color=INK)


def _draw_map(
    axes: Axes,
    example: SceneExample,
    class_names: Sequence[str],
    colours: Mapping[int, str],
    fill: float,
    temperature: float,
) -> None:
    height, width = example.image.shape[:2]
    probabilities = _softmax(example.label_map.to_dense(len(class_names), fill) / temperature)
    best, strength = probabilities.argmax(0), probabilities.max(0)
    overlay = np.zeros((*best.shape, 4))
    for row, column in np.ndindex(*best.shape):
        colour = to_rgb(colours.get(int(best[row, column]), OTHER_COLOUR))
        overlay[row, column] = (*colour, 0.85 * strength[row, column])
    grey = np.asarray(Image.fromarray(example.image).convert("L"))
    axes.imshow(grey, cmap="gray", vmin=-80, vmax=320, extent=(0, width, height, 0))
    axes.imshow(overlay, extent=(0, width, height, 0), interpolation="nearest")
    for index, row, column in _places_for_names(best, strength):
        axes.text(
            (column + 0.5) * width / best.shape[1], (row + 0.5) * height / best.shape[0], class_names[index],
            fontsize=8.5, ha="center", va="center", color="white",
            path_effects=[withStroke(linewidth=2.2, foreground="black")],
        )  # fmt: skip
    _frame(axes)


def _places_for_names(best: np.ndarray, strength: np.ndarray) -> list[tuple[int, int, int]]:
    """(class, row, column) of the surest cell of each class, surest first, if no surer name stands too near.

    Args:
        best: int64 [h, w]; the likeliest class of each cell.
        strength: float [h, w]; its probability.
    """
    h, w = best.shape
    places: list[tuple[int, int, int]] = []
    for cell in np.argsort(-strength, axis=None, kind="stable"):
        row, column = divmod(int(cell), w)
        index = int(best[row, column])
        near = any(abs(row - y) < h / 9 and abs(column - x) < w / 3.2 for _, y, x in places)
        if strength[row, column] > SURE and not near and all(index != named for named, _, _ in places):
            places.append((index, row, column))
    return places


def _draw_crop(axes: Axes, image: np.ndarray, box: CropBox) -> None:
    height, width = image.shape[:2]
    crop = Image.fromarray(image).crop(box.pixels(width, height))  # resize(box=...) would let its surroundings in
    resized = crop.resize((CROP_SIDE, CROP_SIDE), Image.Resampling.BILINEAR)
    axes.imshow(np.asarray(resized))
    _frame(axes)


def _draw_target(axes: Axes, target: np.ndarray, class_names: Sequence[str], colours: Mapping[int, str]) -> None:
    """Bars of the largest classes; names stand above the bars, so that long ones need no margin."""
    order = np.argsort(-target, kind="stable")[:BARS]
    for place, index in enumerate(order):
        axes.barh(place, 1, height=0.32, color=TRACK)
        axes.barh(place, target[index], height=0.32, color=colours.get(int(index), OTHER_COLOUR))
        axes.text(0, place - 0.24, class_names[index], fontsize=8.5, color=INK, ha="left", va="bottom")
        axes.text(1, place - 0.24, f"{100 * target[index]:.0f} %", fontsize=8.5, color=MUTED, ha="right", va="bottom")
    axes.set_xlim(0, 1)
    axes.set_ylim(BARS - 0.8, -0.65)
    axes.set_box_aspect(1 / BARS_WIDTH)
    axes.set_anchor("N")
    axes.axis("off")


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


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(0))
    return exponentials / exponentials.sum(0)


def _frame(axes: Axes) -> None:
    axes.set_anchor("N")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_edgecolor(MUTED)
