"""The figure that explains box axes: the crop, the region to pool, and the region pooled instead if axes are swapped.

The 2021 code passes a crop's sides to RoIAlign as (top, left, bottom, right), but it reads (left, top, right, bottom).
With label maps stored row by row, it therefore pools the region reflected across the image's diagonal.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from relabel.crop_box import MIN_AREA, CropBox, random_crop_box
from relabel.figures import map_panel, panels
from relabel.figures.colours import CORRECT, INK, MUTED, WARNING, class_colours
from relabel.figures.panels import LINE, MARGIN, WIDER_GAP

CROPS = 20_000  # for the mean IoU
PANEL_INCHES = 3.5  # the longer side of the image in a panel
MIN_COLUMN = 3.05  # inches; fits the longest heading
TITLES, BARS_INCHES, CAPTION = 0.62, 1.75, 0.7  # inches; height above the panels, of a target, at the bottom
PANELS = (
    ("random crop", "what the network sees", INK),
    ("to pool: the same region", "sides read as (left, top, right, bottom)", CORRECT),
    ("pooled in 2021: mirrored", "sides passed as (top, left, bottom, right)", WARNING),
)


def mean_transposed_iou(width: int, height: int, crops: int = CROPS, seed: int = 0) -> tuple[float, float]:
    """Measure how much random crops overlap with the region that swapped axes pool.

    Args:
        width, height: of the image, pixels.
        crops: number of crops to draw.
        seed: of the draw.

    Returns:
        Mean IoU of a crop and its transpose; share of the crops with an IoU below 0.5. Both in [0, 1].
    """
    rng = np.random.default_rng(seed)
    boxes = [random_crop_box(rng, width, height, MIN_AREA) for _ in range(crops)]
    ious = np.array([box.iou(box.transposed()) for box in boxes])
    return float(ious.mean()), float((ious < 0.5).mean())


@panels.styled
def draw_axes_figure(
    out: Path, image: np.ndarray, cells: np.ndarray, box: CropBox, targets: np.ndarray, names: Sequence[str], file: str,
    note: str = "",
) -> None:  # fmt: skip
    """Draw a crop, the region to pool and the region pooled with swapped axes, with their targets.

    Args:
        out: the PNG to write; its folder must exist.
        image: uint8 [H, W, 3], RGB.
        cells: float [K, h, w]; the class probabilities of each cell of its label map.
        box: the crop.
        targets: float [2, K]; of the crop and of its transpose.
        names: display names of the K classes.
        file: name of the image.
        note: below the caption.
    """
    across, down = (PANEL_INCHES * side / max(image.shape[:2]) for side in image.shape[1::-1])
    column = max(across, MIN_COLUMN)
    heights = [down, WIDER_GAP, BARS_INCHES]
    total = TITLES + sum(heights) + CAPTION
    figure, sides = panels.page(3 * column + 2 * WIDER_GAP + 2 * MARGIN, total)
    grid = figure.add_gridspec(
        3, 3, **sides, top=1 - TITLES / total, bottom=CAPTION / total, height_ratios=heights,
        wspace=WIDER_GAP / column, hspace=0,
    )  # fmt: skip
    colours = class_colours(cells, targets)
    for number, (title, detail, colour) in enumerate(PANELS):
        panel, below = panels.image_panel(figure, grid[0, number]), grid[2, number]
        panel.set_title(title, loc="left", size=12, weight="bold", pad=21)
        panel.annotate(detail, (0, 1), xytext=(0, 7), xycoords="axes fraction", textcoords="offset points", color=MUTED)
        panel.set_anchor("W")
        if number == 0:
            panels.draw_image(panel, image)
            crop = panels.image_panel(figure, below)
            crop.set_anchor("W")
            panels.draw_crop(crop, image, box)
        else:
            map_panel.draw_map(panel, image, cells, colours)
            map_panel.name_regions(panel, cells, names, colours)
            panels.draw_bars(panels.text_area(figure, below), targets[number - 1], names, colours)
        _mark(panel, image, box.transposed() if number == 2 else box, colour)
    panel.plot((0, 1), (0, 1), color=INK, linewidth=1.0, linestyle=(0, (2, 3)), zorder=2)  # the diagonal
    panels.outline(panel, box, INK, 1.5, style="--")
    height, width = image.shape[:2]
    mean, below_half = mean_transposed_iou(width, height)
    caption = (
        f"IoU of the two regions: {box.iou(box.transposed()):.2f}. Mean over {CROPS:,} random crops of a "
        f"{width}x{height} image: {mean:.3f}, below 0.5 for {100 * below_half:.0f} % of them."
    )
    figure.text(sides["left"], (MARGIN + LINE) / total, caption, size=10.5)
    figure.text(sides["left"], MARGIN / total, note, size=10.5)
    file = panels.fitted_name(file, 3 * column + 2 * WIDER_GAP - panels.text_width(note, 10.5) - WIDER_GAP)
    figure.text(sides["right"], MARGIN / total, file, size=panels.SMALL, color=MUTED, ha="right")
    panels.save(figure, out)


def _mark(axes: Axes, image: np.ndarray, region: CropBox, colour: str) -> None:
    """Fade what is outside a region, and draw its edges."""
    height, width = image.shape[:2]
    left, top, right, bottom = region.pixels(width, height)
    veil = np.full((height, width), 0.6)
    veil[top:bottom, left:right] = 0
    panels.draw_over(axes, np.ones((height, width, 3)), veil)
    panels.outline(axes, region, "white", 5.0)
    panels.outline(axes, region, colour, 3.0)
