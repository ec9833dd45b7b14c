"""What pictures are made of: an image with boxes, a label map over an image, a target's bars; colours; text that fits.

A panel is a piece of the figure at a place given in inches, so that text can be measured before it is written. Inside
a panel that shows an image, coordinates are fractions of the image, as a CropBox has them, row 0 at the top.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from PIL import Image

from relabel.crop_box import CropBox
from relabel.label_map import LabelMap
from utils.files import replacing

# Matplotlib's ten colours, but navy for grey: grey is what a map shows where the annotator sees nothing.
PALETTE = tuple(f"tab:{name}" for name in ("blue", "orange", "green", "red", "purple", "brown", "pink"))
PALETTE += ("#17344f", "tab:olive", "tab:cyan")
# For the classes after the ten heaviest; a colour may return in another image, under another name.
SHARED = ("#00897b", "#d81b60", "#f9a825", "#5c6bc0", "#8d2f3a", "#66bb6a", "#ab47bc", "#29b6f6", "#a1724a", "#827717")
OTHER_COLOUR = "0.55"  # classes without a colour of their own
INK, MUTED, TRACK = "0.15", "0.45", "0.92"
SURE = 0.3  # probability from which a cell may carry its class's name
OPACITY = 0.7  # of a cell that is certain
NAMES = 5  # classes named on one map, at most
NAMED = 0.01  # share of the image from which a class is named: one cell of 15 x 15 is noise
BARS = 4  # lines of a target
VISIBLE = 0.005  # share from which a class counts in an image; less rounds to 0 %
TEXT, SMALL = 9.5, 8.5  # points
POINTS = 72  # of an inch
DPI = 150  # of every picture
RULER = RendererAgg(1, 1, DPI)  # letters stand on whole pixels, so only the one that draws them can measure them
BADGE = 0.17  # inches; side of the square that holds a crop's number


def add_panel(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Empty axes with a thin frame; all in inches, `top` from the figure's upper edge."""
    across, down = figure.get_size_inches()
    axes = figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))
    axes.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(1, 0))
    for spine in axes.spines.values():
        spine.set(edgecolor=MUTED, linewidth=0.8)
    return axes


def save(figure: Figure, out: Path) -> None:
    """Write a figure as PNG, whole or not at all. UserError where it cannot be written."""
    with replacing(out) as temporary:
        figure.savefig(temporary, format="png", facecolor="white")


def plain_axes(axes: Axes, grid: Literal["x", "y"]) -> None:
    """Nothing but a line below, pale lines across and small numbers.

    Args:
        axes: of a plot.
        grid: "x" or "y": whose values have lines.
    """
    axes.grid(axis=grid, color=TRACK, linewidth=1)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=10, colors=MUTED, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)


def write(figure: Figure, left: float, baseline: float, text: str, points: float = TEXT, **style: object) -> None:
    """Write a line of text at a place in inches from the figure's upper left corner."""
    across, down = figure.get_size_inches()
    style = {"color": INK, "va": "baseline", "ha": "left", **style}
    # A "$" in a folder's name is a dollar sign, not a formula's.
    figure.text(left / across, 1 - baseline / down, text, fontsize=points, parse_math=False, **style)  # type: ignore[arg-type]


def text_width(text: str, points: float = TEXT, weight: str = "normal") -> float:
    """Inches that a line of text takes."""
    width, _, _ = RULER.get_text_width_height_descent(text, FontProperties(size=points, weight=weight), ismath=False)
    return float(width) / DPI


def fitted(text: str, inches: float, points: float = TEXT, weight: str = "normal") -> str:
    """The text, or as much of its beginning as fits, and an ellipsis."""
    if text_width(text, points, weight) <= inches:
        return text
    shorter = (text[:length].rstrip() + "…" for length in range(len(text) - 1, 0, -1))
    return next((short for short in shorter if text_width(short, points, weight) <= inches), "…")


def wrapped(text: str, inches: float, points: float = TEXT, lines: int = 2) -> list[str]:
    """The text in as few lines as it takes, broken at spaces; what the last one cannot hold ends in an ellipsis."""
    words, done = text.split(" "), list[str]()
    while len(done) < lines - 1 and text_width(" ".join(words), points) > inches:
        fits = [n for n in range(1, len(words)) if text_width(" ".join(words[:n]), points) <= inches]
        if not fits:
            break
        done.append(" ".join(words[: fits[-1]]))
        words = words[fits[-1] :]
    return [*done, fitted(" ".join(words), inches, points)]


def class_colours(shares: np.ndarray) -> dict[int, str]:
    """The colour of each class that counts; it is the class's colour all over the sheet.

    Up to ten classes have their colour by id, so that it is the same on every sheet. Of more, the ten heaviest have one
    to themselves; the others share some more, never two that are seen in one image.

    Args:
        shares: float [n, K]; how much of each of the n images belongs to each class.
    """
    if shares.shape[1] <= len(PALETTE):
        return dict(enumerate(PALETTE[: shares.shape[1]]))
    heaviest = [int(index) for index in np.argsort(-shares.sum(0), kind="stable")]
    colours = dict(zip(heaviest, PALETTE, strict=False))
    seen = shares >= VISIBLE
    for index in heaviest[len(PALETTE) :]:
        if not seen[:, index].any():
            continue
        neighbours = np.flatnonzero(seen[seen[:, index]].any(0))
        taken = {colours.get(int(neighbour)) for neighbour in neighbours}
        free = [colour for colour in SHARED if colour not in taken]
        if free:
            colours[index] = free[len(colours) % len(free)]
    return colours


def cell_probabilities(label_map: LabelMap, num_classes: int, fill: float, temperature: float) -> np.ndarray:
    """float [K, h, w]; the softmax of each cell, as a target is made from it."""
    logits = label_map.to_dense(num_classes, fill) / temperature
    exponentials = np.exp(logits - logits.max(0))
    return exponentials / exponentials.sum(0)


def draw_image(axes: Axes, image: np.ndarray) -> None:
    """The image, uint8 [H, W, 3], over the whole panel."""
    axes.imshow(image, extent=(0, 1, 1, 0), aspect="auto")


def draw_boxes(axes: Axes, boxes: Sequence[CropBox]) -> None:
    """The outline of each box, and its number from 1 in a corner that is still free."""
    across, down = _inches(axes)
    taken: list[CropBox] = []
    for number, box in enumerate(boxes, 1):
        outline(axes, box, "black", 3.2)
        outline(axes, box, "white", 1.6)  # white on black shows on any image
        corner = _free_corner(box, BADGE / across, BADGE / down, taken)
        taken.append(corner)
        draw_badge(axes, corner, str(number))


def outline(axes: Axes, box: CropBox, colour: str, points: float, style: str = "-") -> None:
    """A box's edges; at the image's edge they stand over it with half of their width."""
    axes.add_patch(
        Rectangle(
            (box.left, box.top), box.right - box.left, box.bottom - box.top,
            fill=False, edgecolor=colour, linewidth=points, linestyle=style, clip_on=False, zorder=3,
        )
    )  # fmt: skip


def draw_badge(axes: Axes, place: CropBox, text: str) -> None:
    """A number on a white square."""
    across, down = place.right - place.left, place.bottom - place.top
    axes.add_patch(
        Rectangle(
            (place.left, place.top), across, down,
            facecolor="white", edgecolor="black", linewidth=0.8, clip_on=False, zorder=4,
        )
    )  # fmt: skip
    axes.text(
        place.left + across / 2, place.top + down / 2, text,
        ha="center", va="center_baseline", fontsize=TEXT, color="black", zorder=5,
    )  # fmt: skip


def badge_in_corner(axes: Axes) -> CropBox:
    """The place of a badge in the upper left corner of a panel."""
    across, down = _inches(axes)
    return CropBox(0, 0, min(1, BADGE / across), min(1, BADGE / down))


def draw_map(axes: Axes, image: np.ndarray, probabilities: np.ndarray, colours: Mapping[int, str]) -> None:
    """The image, pale, and over each cell the colour of its likeliest class, the stronger the likelier.

    Args:
        axes: the panel.
        image: uint8 [H, W, 3].
        probabilities: float [K, h, w]; of each cell.
        colours: class -> colour.
    """
    best, strength = probabilities.argmax(0), probabilities.max(0)
    overlay = np.zeros((*best.shape, 4))
    for row, column in np.ndindex(*best.shape):
        colour = to_rgb(colours.get(int(best[row, column]), OTHER_COLOUR))
        overlay[row, column] = (*colour, OPACITY * strength[row, column])
    draw_image(axes, _pale(image))
    axes.imshow(overlay, extent=(0, 1, 1, 0), aspect="auto", interpolation="nearest")


def name_regions(
    axes: Axes, probabilities: np.ndarray, class_labels: Sequence[str], colours: Mapping[int, str]
) -> None:
    """Write names on a map, each in the middle of its class's cells; only where the map is sure and there is room."""
    across, down = _inches(axes)
    taken: list[CropBox] = []
    for index, cells in _sure_regions(probabilities)[:NAMES]:
        lines = wrapped(class_labels[index], 0.9 * across, SMALL, lines=2 if down > 0.6 else 1)
        width = max(text_width(line, SMALL) + 0.1 for line in lines) / across
        height = (1.2 * len(lines) * SMALL / POINTS + 0.06) / down
        places = (_centred(x, y, width, height) for x, y in _from_the_middle(cells))
        place = next((place for place in places if all(place.iou(other) == 0 for other in taken)), None)
        if place and height < 1:
            taken.append(place)
            axes.text(
                (place.left + place.right) / 2, (place.top + place.bottom) / 2, "\n".join(lines),
                fontsize=SMALL, ha="center", va="center_baseline" if len(lines) == 1 else "center", color="white",
                parse_math=False, linespacing=1.05, zorder=4,
                bbox={"facecolor": _dark(colours.get(index, OTHER_COLOUR)), "linewidth": 0,
                      "boxstyle": "round,pad=0.22,rounding_size=0.25"},
            )  # fmt: skip


def draw_bars(
    axes: Axes, target: np.ndarray, class_labels: Sequence[str], colours: Mapping[int, str], label: int | None = None
) -> None:
    """The largest classes of a target, and the rest in one bar if there is any; the folder's label is in bold.

    Args:
        axes: the panel; loses its frame.
        target: float [K]; sums to 1.
        class_labels: what to call each class.
        colours: class -> colour.
        label: the class to write in bold, if any.
    """
    across, down = _inches(axes)
    pitch = min(down / BARS, 0.5)
    axes.set(xlim=(0, across), ylim=(down, 0))
    axes.axis("off")
    for line, (index, share) in enumerate(largest(target, BARS)):
        weight = "bold" if index is not None and index == label else "normal"
        name = f"{len(target) - line} others" if index is None else class_labels[index]
        colour = OTHER_COLOUR if index is None else colours.get(index, OTHER_COLOUR)
        value = percent(share)
        room = across - text_width(value, TEXT) - 0.08
        baseline = line * pitch + 0.12
        axes.text(0, baseline, fitted(name, room, TEXT, weight), fontsize=TEXT, weight=weight,
                  color=MUTED if index is None else INK, parse_math=False)  # fmt: skip
        axes.text(across, baseline, value, fontsize=TEXT, color=MUTED, ha="right")
        top, thickness = baseline + 0.05, min(0.11, pitch - 0.25)
        axes.add_patch(Rectangle((0, top), across, thickness, facecolor=TRACK))
        axes.add_patch(Rectangle((0, top), share * across, thickness, facecolor=colour))


def largest(target: np.ndarray, lines: int) -> list[tuple[int | None, float]]:
    """(class, share) of the largest visible shares; the last line is (None, what all others have) if that is visible.

    Args:
        target: float [K]; sums to 1.
        lines: at most.
    """
    order = [int(index) for index in np.argsort(-target, kind="stable")[:lines]]
    shown = [index for index in order if target[index] >= VISIBLE] or order[:1]
    if 1 - target[shown].sum() < VISIBLE:
        return [(index, float(target[index])) for index in shown]
    shown = shown[: lines - 1]
    return [*((index, float(target[index])) for index in shown), (None, float(1 - target[shown].sum()))]


def percent(share: float) -> str:
    """A share as whole percent."""
    return "<1 %" if 0 < share < VISIBLE else f"{100 * share:.0f} %"


def _inches(axes: Axes) -> tuple[float, float]:
    assert axes.figure is not None
    width, height = axes.figure.get_size_inches() * axes.get_position().size  # type: ignore[union-attr]
    return float(width), float(height)


def _dark(colour: str) -> tuple[float, ...]:
    """The colour, dark enough for white letters."""
    return tuple(0.62 * part for part in to_rgb(colour))


def _pale(image: np.ndarray) -> np.ndarray:
    """The image with most of its colour and some of its contrast taken out: the overlay's colours shall be read."""
    grey = np.asarray(Image.fromarray(image).convert("L"), dtype=np.float32)[:, :, None]
    return (0.68 * (0.85 * grey + 0.15 * image) + 68).astype(np.uint8)


def _sure_regions(probabilities: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """(class, its cells as bool [h, w]), the largest first, of the classes that a map [K, h, w] shows clearly."""
    strength = probabilities.max(0)
    best = np.where(strength > SURE, probabilities.argmax(0), -1)
    regions = [(int(index), best == index) for index in np.unique(best[best >= 0])]
    shares = {index: float(strength[cells].sum()) / best.size for index, cells in regions}
    return sorted((region for region in regions if shares[region[0]] >= NAMED), key=lambda region: -shares[region[0]])


def _from_the_middle(cells: np.ndarray) -> list[tuple[float, float]]:
    """(x, y) of the middles of the cells that are set in bool [h, w], those nearest to their common centre first."""
    found = (np.argwhere(cells) + 0.5) / cells.shape
    distance = ((found - found.mean(0)) ** 2).sum(1)
    return [(float(x), float(y)) for y, x in found[np.argsort(distance, kind="stable")]]


def _centred(x: float, y: float, width: float, height: float) -> CropBox:
    """The box of that size around a point, moved where it would leave the image."""
    left = min(max(x - width / 2, 0.02), max(0.98 - width, 0))
    top = min(max(y - height / 2, 0.02), max(0.98 - height, 0))
    return CropBox(left, top, min(1.0, left + width), min(1.0, top + height))


def _free_corner(box: CropBox, width: float, height: float, taken: Sequence[CropBox]) -> CropBox:
    """The first corner inside a box where a badge of that size hides no other; the upper left one if there is none."""
    width, height = min(width, 1.0), min(height, 1.0)
    lefts, tops = (box.left, max(0, box.right - width)), (box.top, max(0, box.bottom - height))
    corners = [
        CropBox(min(left, 1 - width), min(top, 1 - height), min(left, 1 - width) + width, min(top, 1 - height) + height)
        for top in tops
        for left in lefts
    ]
    return next((corner for corner in corners if all(corner.iou(other) == 0 for other in taken)), corners[0])
