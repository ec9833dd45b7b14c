"""Parts of figures: images with crop boxes, bars of targets, text that fits.

Coordinates in an image panel are fractions of the image, as in a CropBox, with y downwards; in a text area they are
inches from its upper left corner.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.gridspec import SubplotSpec
from matplotlib.patches import Rectangle
from PIL import Image

from relabel.crop_box import CropBox
from relabel.figures.colours import INK, MAT, MUTED, OTHER_COLOUR, TRACK, VISIBLE
from utils.files import replacing

BARS = 4  # bars of a target
TEXT, SMALL = 9.5, 8.5  # points
DPI = 150  # of every figure; one of many small images is written with less
RULER = RendererAgg(1, 1, DPI)  # glyphs are fitted to whole pixels: text is measured by the renderer that draws it
CROP_SIDE = 224  # pixels; a crop is shown squashed to a square, as the network sees it
BADGE = 0.17  # inches; side of the square with a crop's number
MARGIN, GAP, WIDER_GAP = 0.12, 0.1, 0.22  # inches; of a page, between panels of one crop or map, between groups
UNIFORM = 1e-6  # largest difference between equal shares
NONE_STORED = "none of your classes", "is stored here"  # instead of the largest classes of a uniform target
LINE = 0.19  # inches; height of a line of text

# Letters of scripts that the font lacks are drawn as boxes, without two lines on the screen for each of them.
warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)

styled = rc_context(
    {
        "font.size": TEXT,
        "text.color": INK,
        "text.parse_math": False,  # a "$" in a folder's name does not start a formula
        "axes.edgecolor": MUTED,
        "axes.linewidth": 0.8,
        "axes.titlesize": 11,
    }
)


def save(figure: Figure, out: Path, dpi: int = DPI) -> None:
    """Write a figure as PNG, atomically. UserError if it cannot be written."""
    with replacing(out) as temporary:
        figure.savefig(temporary, format="png", facecolor="white", dpi=dpi)


def plain_axes(axes: Axes, grid: Literal["x", "y"]) -> None:
    """Reduce the axes of a plot to a line at the bottom, pale grid lines along one axis and muted tick labels."""
    axes.grid(axis=grid, color=TRACK, linewidth=1)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=10, colors=MUTED, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)


def page(width: float, height: float) -> tuple[Figure, dict[str, float]]:
    """Return an empty figure of a size in inches, and the left and right sides of a grid inside its margins."""
    return Figure(figsize=(width, height), dpi=DPI), {"left": MARGIN / width, "right": 1 - MARGIN / width}


def image_panel(figure: Figure, cell: SubplotSpec) -> Axes:
    """Add axes without ticks."""
    return figure.add_subplot(cell, xticks=[], yticks=[])


def text_area(figure: Figure, cell: SubplotSpec) -> Axes:
    """Add axes without a frame, with coordinates in inches from the upper left corner."""
    axes = figure.add_subplot(cell)
    axes.axis("off")
    width, height = panel_inches(axes)
    axes.set(xlim=(0, width), ylim=(height, 0))
    return axes


def common_aspect(images: Sequence[np.ndarray]) -> float:
    """Return width / height of a panel for all of these images [H, W, 3]: their median, within limits."""
    return float(np.clip(np.median([image.shape[1] / image.shape[0] for image in images]), 0.8, 1.6))


def tiles(
    images: Sequence[np.ndarray], columns: int, width: float, lines: int, heading: float, panels: int = 1
) -> tuple[Figure, Axes, list[tuple[list[Axes], Axes]]]:
    """Make a page with one tile per image: panels, each in the middle of a grey mat, and lines of text below them.

    Args:
        images: uint8 [H, W, 3] each.
        columns: most tiles side by side.
        width: of a panel, inches.
        lines: of text below an image.
        heading: height of the heading, inches.
        panels: side by side in each tile.

    Returns:
        The figure, the text area of the heading, and (image panels, text area) of each tile.
    """
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    heights = [heading, *[width / common_aspect(images), lines * LINE + 0.25] * rows]
    across = panels * (width + GAP) - GAP
    figure, sides = page(columns * (across + WIDER_GAP) - WIDER_GAP + 2 * MARGIN, sum(heights))
    grid = figure.add_gridspec(
        len(heights), columns, **sides, bottom=0, top=1, height_ratios=heights, wspace=WIDER_GAP / across, hspace=0
    )
    made = []
    for index in range(len(images)):
        row, column = 1 + 2 * (index // columns), index % columns
        tile = grid[row, column].subgridspec(1, panels, wspace=GAP / width)
        made.append(
            (
                [matted_panel(figure, tile[0, number]) for number in range(panels)],
                text_area(figure, grid[row + 1, column]),
            )
        )
    return figure, text_area(figure, grid[0, :]), made


def matted_panel(figure: Figure, cell: SubplotSpec) -> Axes:
    """Add axes without ticks in the middle of a grey mat, which shows beside an image of another shape."""
    mat = figure.add_subplot(cell, xticks=[], yticks=[], facecolor=MAT)
    mat.spines[:].set_visible(False)
    return image_panel(figure, cell)


def write_line(
    area: Axes, baseline: float, text: str, value: str = "", indent: float = 0.0, size: float = TEXT, **style: Any
) -> None:
    """Write a line in a text area: the text, shortened to the available width, and a value at the right edge."""
    across = area.get_xlim()[1]
    room = across - indent - (text_width(value, size) + GAP if value else 0)
    area.text(indent, baseline, fitted(text, room, size, style.get("weight", "normal")), size=size, **style)
    if value:
        area.text(across, baseline, value, size=size, color=MUTED, ha="right")


def text_width(text: str, points: float = TEXT, weight: str = "normal") -> float:
    """Return the width of a line of text in inches."""
    width, _, _ = RULER.get_text_width_height_descent(text, FontProperties(size=points, weight=weight), ismath=False)
    return float(width) / DPI


def printable(text: str) -> str:
    """Return text with a replacement character for what cannot be drawn, such as bytes of a name that is not UTF-8."""
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in text)


def fitted(text: str, inches: float, points: float = TEXT, weight: str = "normal") -> str:
    """Return the text, printable, or as much of its beginning as fits, and an ellipsis."""
    text = printable(text)
    return _fitted(text, lambda length: text[:length].rstrip() + "…", inches, points, weight)


def fitted_name(name: str, inches: float, points: float = SMALL) -> str:
    """Return a file's name as one line of printable text; if it does not fit, with an ellipsis in its middle."""
    text = printable(name)
    return _fitted(text, lambda n: text[: n // 3] + "…" + text[-(n - n // 3) :], inches, points, "normal")


def _fitted(text: str, cut: Callable[[int], str], inches: float, points: float, weight: str) -> str:
    if text_width(text, points, weight) <= inches:
        return text
    shorter = map(cut, range(len(text) - 1, 0, -1))
    return next((short for short in shorter if text_width(short, points, weight) <= inches), "…")


def percent(share: float) -> str:
    """Format a share as whole percent."""
    return "<1 %" if 0 < share < VISIBLE else f"{100 * share:.0f} %"


def draw_image(axes: Axes, image: np.ndarray) -> None:
    """Draw an image, uint8 [H, W, 3], over the whole panel, which takes its shape."""
    axes.imshow(image, extent=(0, 1, 1, 0), aspect=image.shape[0] / image.shape[1])


def draw_over(axes: Axes, colours: np.ndarray, opacity: np.ndarray) -> None:
    """Cover an image with colours, float [rows, columns, 3], of an opacity in [0, 1], float [rows, columns]."""
    axes.imshow(colours, alpha=opacity, extent=(0, 1, 1, 0), aspect=axes.get_aspect(), interpolation="nearest")


def draw_crop(axes: Axes, image: np.ndarray, box: CropBox, number: int | None = None) -> None:
    """Draw the part of an image [H, W, 3] in a box, as the network sees it, with the number of the crop."""
    height, width = image.shape[:2]
    crop = Image.fromarray(image).crop(box.pixels(width, height))  # resize(box=...) would blend in its surroundings
    draw_image(axes, np.asarray(crop.resize((CROP_SIDE, CROP_SIDE), Image.Resampling.BILINEAR)))
    if number is not None:
        across, down = BADGE / np.array(panel_inches(axes))
        _draw_badge(axes, across / 2, down / 2, number)


def draw_boxes(axes: Axes, boxes: Sequence[CropBox]) -> None:
    """Draw the outline of each box, and its number, counted from 1, in a corner where it hides no other number."""
    dx, dy = BADGE / 2 / np.array(panel_inches(axes))
    taken: list[tuple[float, float]] = []
    for number, box in enumerate(boxes, 1):
        outline(axes, box, "black", 3.2)
        outline(axes, box, "white", 1.6)  # white on black shows on any image
        corners = [(x, y) for y in (box.top + dy, box.bottom - dy) for x in (box.left + dx, box.right - dx)]
        free = [(x, y) for x, y in corners if all(abs(x - u) >= 2 * dx or abs(y - v) >= 2 * dy for u, v in taken)]
        taken.append((free or corners)[0])
        _draw_badge(axes, *taken[-1], number)


def outline(axes: Axes, box: CropBox, colour: str, points: float, style: str = "-") -> None:
    """Draw a box's edges; at the image's border, half of their width is outside it."""
    size = box.right - box.left, box.bottom - box.top
    patch = Rectangle((box.left, box.top), *size, fill=False, edgecolor=colour, linewidth=points, linestyle=style)
    axes.add_patch(patch).set(clip_on=False, zorder=3)


def draw_bars(
    area: Axes, target: np.ndarray, class_labels: Sequence[str], colours: Mapping[int, str], label: int | None = None
) -> None:
    """Draw the largest classes of a target as bars, and the rest as one bar if there is any; the label is in bold.

    A uniform target has no largest class: one line says why it is.

    Args:
        area: a text area.
        target: float [K]; sums to 1.
        class_labels: display names of the classes.
        colours: class -> colour.
        label: the class to write in bold, if any.
    """
    across, down = area.get_xlim()[1], area.get_ylim()[0]
    if is_uniform(target):
        for line, text in enumerate((*NONE_STORED, f"each of {len(target):,}: {percent(1 / len(target))}"), 1):
            write_line(area, line * LINE, text, color=MUTED)
        return
    for line, (index, share) in enumerate(largest(target, BARS)):
        top, thickness = line * down / BARS + 0.17, min(0.11, down / BARS - 0.25)
        name = f"{len(target) - line:,} others" if index is None else class_labels[index]
        colour = OTHER_COLOUR if index is None else colours.get(index, OTHER_COLOUR)
        weight = "bold" if index is not None and index == label else "normal"
        write_line(area, top - 0.05, name, percent(share), weight=weight, color=MUTED if index is None else INK)
        area.barh(top, across, thickness, align="edge", color=TRACK)
        area.barh(top, share * across, thickness, align="edge", color=colour)


def is_uniform(target: np.ndarray) -> bool:
    """Whether a target [K] is: its map stores none of the K classes there (a teacher that knows more has others)."""
    return len(target) > 1 and bool(np.ptp(target) < UNIFORM)


def largest(target: np.ndarray, lines: int) -> list[tuple[int | None, float]]:
    """Return (class, share) of the largest visible shares; the last is (None, sum of all others) if that is visible.

    Args:
        target: float [K]; sums to 1.
        lines: most entries to return.
    """
    order = [int(index) for index in np.argsort(-target, kind="stable")[:lines]]
    shown = [index for index in order if target[index] >= VISIBLE] or order[:1]
    if 1 - target[shown].sum() < VISIBLE:
        return [(index, float(target[index])) for index in shown]
    shown = shown[: lines - 1]
    return [*((index, float(target[index])) for index in shown), (None, float(1 - target[shown].sum()))]


def panel_inches(axes: Axes) -> tuple[float, float]:
    """Return width and height of a panel in inches."""
    axes.apply_aspect()
    return axes.bbox.width / DPI, axes.bbox.height / DPI


def _draw_badge(axes: Axes, x: float, y: float, number: int) -> None:
    """Draw a number on a white square around a point."""
    side = 72 * BADGE
    axes.plot(x, y, "s", markersize=side, color="white", markeredgecolor="black", mew=0.8, clip_on=False, zorder=4)
    axes.text(x, y, str(number), ha="center", va="center_baseline", color="black", zorder=5)
