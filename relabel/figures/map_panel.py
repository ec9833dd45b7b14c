"""A label map over its image: the cells in the colours of their classes, and the classes' names."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb, to_rgba_array
from PIL import Image

from relabel.figures.colours import OTHER_COLOUR
from relabel.figures.panels import SMALL, UNIFORM, draw_image, draw_over, fitted, panel_inches, printable, text_width

SURE = 0.3  # smallest probability for which a cell counts when regions are named
OPACITY = 0.6  # of a cell with probability 1
SATURATION = 0.25  # of an image below a label map
NAMES = 5  # most classes named on one map
NAMED = 0.01  # smallest share of the image for which a class is named: one cell of 15 x 15 is noise


def draw_map(axes: Axes, image: np.ndarray, cells: np.ndarray, colours: Mapping[int, str]) -> None:
    """Draw the image, and over each cell the colour of its most likely class; its opacity grows with the probability.

    A cell that stores none of the classes has no colour.

    The image keeps its contrast, but little of its colour, which is left to the classes.

    Args:
        axes: the panel.
        image: uint8 [H, W, 3].
        cells: float [K, h, w]; the probabilities of each cell.
        colours: class -> colour.
    """
    grey = np.asarray(Image.fromarray(image).convert("L"), dtype=np.float32)[:, :, None]
    draw_image(axes, ((1 - SATURATION) * grey + SATURATION * image).astype(np.uint8))
    overlay = to_rgba_array([colours.get(index, OTHER_COLOUR) for index in range(len(cells))])[cells.argmax(0), :3]
    draw_over(axes, overlay, OPACITY * cells.max(0) * (np.ptp(cells, axis=0) > UNIFORM))


def name_regions(axes: Axes, cells: np.ndarray, class_labels: Sequence[str], colours: Mapping[int, str]) -> None:
    """Write class names on a map, each in the middle of its cells; only where probabilities and space allow.

    Args:
        axes: the panel.
        cells: float [K, h, w]; the probabilities of each cell.
        class_labels: display names of the K classes.
        colours: class -> colour.
    """
    size = np.array(panel_inches(axes))
    best, strength = cells.argmax(0), cells.max(0)
    sure = strength > SURE
    shares = np.bincount(best[sure], strength[sure], len(cells)) / best.size
    taken: list[tuple[np.ndarray, np.ndarray]] = []
    for index in np.argsort(-shares, kind="stable")[:NAMES].tolist():
        if shares[index] < NAMED:
            break
        text = _two_lines(class_labels[index], size[0] - 0.16)
        lines = text.split("\n")
        width = max(text_width(line, SMALL) for line in lines) + 0.1
        half = np.array([width, len(lines) * 1.2 * SMALL / 72 + 0.06]) / size / 2
        point = _free_point(sure & (best == index), half, taken)
        if point is None:
            continue
        taken.append((point, half))
        dark = tuple(0.62 * part for part in to_rgb(colours.get(index, OTHER_COLOUR)))  # dark enough for white letters
        frame = {"facecolor": dark, "linewidth": 0, "boxstyle": "round,pad=0.22,rounding_size=0.25"}
        axes.text(
            point[0], point[1], text, fontsize=SMALL, color="white", linespacing=1.05, zorder=4, bbox=frame,
            ha="center", va="center_baseline" if len(lines) == 1 else "center",
        )  # fmt: skip


def _two_lines(text: str, inches: float) -> str:
    """Break a name into at most two lines; what does not fit is replaced by an ellipsis."""
    text = printable(text)
    if text_width(text, SMALL) <= inches:
        return text
    lines = textwrap.wrap(text, max(1, int(inches / 0.075)), max_lines=2, placeholder="…", break_long_words=False)
    return "\n".join(fitted(line, inches, SMALL) for line in lines)


def _free_point(
    cells: np.ndarray, half: np.ndarray, taken: Sequence[tuple[np.ndarray, np.ndarray]]
) -> np.ndarray | None:
    """Return the (x, y) nearest to the middle of cells, bool [h, w], where a box of these half sides overlaps none."""
    middles = (np.argwhere(cells)[:, ::-1] + 0.5) / cells.shape[::-1]
    nearest = middles[np.argsort(((middles - middles.mean(0)) ** 2).sum(1), kind="stable")]
    if half.max() >= 0.48:
        return None
    inside = np.clip(nearest, half + 0.02, 0.98 - half)
    return next((point for point in inside if all((abs(point - p) >= half + h).any() for p, h in taken)), None)
