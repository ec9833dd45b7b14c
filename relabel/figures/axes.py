"""The figure that explains box axes: the crop, the region to pool, and the region that exchanged axes pool instead.

The 2021 code hands a crop's sides to RoIAlign as (top, left, bottom, right); RoIAlign reads (left, top, right, bottom).
With label maps stored row by row it so pools the region mirrored at the image's diagonal.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from relabel.crop_box import MIN_AREA, CropBox, random_crop_box
from relabel.figures.label_maps import MARGIN, WARNING, WIDER_GAP, pooled_target, squashed_crop
from relabel.figures.panels import (
    DPI,
    INK,
    MUTED,
    add_panel,
    cell_probabilities,
    class_colours,
    draw_bars,
    draw_image,
    draw_map,
    name_regions,
    outline,
    save,
    wrapped,
    write,
)
from relabel.label_map import LabelMap

CROPS = 20_000  # of the statistic
PANEL_INCHES = 3.5  # the longer side of the image in a panel
MIN_COLUMN = 3.05  # inches; the longest heading
TITLES, BARS_INCHES, LINE = 0.62, 1.75, 0.21  # inches; above the panels, of a target, of the caption
CAPTION_TEXT = 11  # points
RIGHT = "#1565c0"  # colour of the region to pool
HEADINGS = (
    ("random crop", "what the network sees"),
    ("to pool: the same region", "sides read as (left, top, right, bottom)"),
    ("pooled in 2021: mirrored", "sides handed over as (top, left, bottom, right)"),
)


def mean_mirrored_iou(width: int, height: int, crops: int = CROPS, seed: int = 0) -> tuple[float, float]:
    """How well random crops overlap with the region that exchanged axes pool.

    Args:
        width, height: of the image, pixels.
        crops: how many to draw.
        seed: of the draw.

    Returns:
        Mean IoU of a crop and its mirror image; share of the crops whose IoU is below 0.5. Both in [0, 1].
    """
    rng = np.random.default_rng(seed)
    boxes = [random_crop_box(rng, width, height, MIN_AREA) for _ in range(crops)]
    ious = np.array([box.iou(box.mirrored()) for box in boxes])
    return float(ious.mean()), float((ious < 0.5).mean())


def draw_axes_figure(
    out: Path,
    image: np.ndarray,
    box: CropBox,
    label_map: LabelMap | None = None,
    class_labels: Sequence[str] = (),
    *,
    size: tuple[int, int] | None = None,
    fill: float = 0.0,
    temperature: float = 1.0,
) -> None:
    """Write three panels: a crop, the region to pool, the region pooled with axes exchanged; and how often they differ.

    Args:
        out: the PNG to write; its folder must exist.
        image: uint8 [H, W, 3], RGB.
        box: the crop.
        label_map: if given, lies over the second and third panel, and the targets pooled from it stand below them.
        class_labels: what to call each of the K classes; needed with a label map.
        size: (width, height) of the image's file, where the image was made smaller.
        fill: logit of the classes that a cell does not store.
        temperature: the logits are divided by it before the softmax.
    """
    height, width = image.shape[:2]
    across, down = (PANEL_INCHES * side / max(width, height) for side in (width, height))
    column = max(across, MIN_COLUMN)
    page = 3 * column + 2 * WIDER_GAP
    lefts = [MARGIN + number * (column + WIDER_GAP) for number in range(3)]
    caption = wrapped(_caption(size or (width, height), box), page, CAPTION_TEXT, lines=4)
    bars_top = TITLES + down + WIDER_GAP
    end = bars_top + (BARS_INCHES + WIDER_GAP if label_map else 0.0)
    figure = Figure(figsize=(page + 2 * MARGIN, end + LINE * len(caption) + MARGIN), dpi=DPI)
    panels = [add_panel(figure, left, TITLES, across, down) for left in lefts]
    for panel in panels:
        draw_image(panel, image)
    if label_map is not None:
        probabilities = cell_probabilities(label_map, len(class_labels), fill, temperature)
        targets = [pooled_target(label_map, box, len(class_labels), fill, temperature, axes) for axes in ("xy", "yx")]
        colours = class_colours(np.stack([*targets, probabilities.mean((1, 2))]).mean(0, keepdims=True))
        for left, panel, target in zip(lefts[1:], panels[1:], targets, strict=True):
            draw_map(panel, image, probabilities, colours)
            draw_bars(add_panel(figure, left, bars_top, column, BARS_INCHES), target, class_labels, colours)
        side = min(across, BARS_INCHES)
        draw_image(add_panel(figure, lefts[0], bars_top, side, side), squashed_crop(image, box))
    for panel, region, colour in zip(panels, (box, box, box.mirrored()), (INK, RIGHT, WARNING), strict=True):
        _mark(panel, region, colour)
    _show_mirror(panels[2], box)
    if label_map is not None:
        for panel in panels[1:]:
            name_regions(panel, probabilities, class_labels, colours)
    for left, (title, detail) in zip(lefts, HEADINGS, strict=True):
        write(figure, left, TITLES - 0.3, title, 12, weight="bold")
        write(figure, left, TITLES - 0.1, detail, color=MUTED)
    for number, line in enumerate(caption):
        write(figure, MARGIN, end + LINE * (number + 0.9), line, CAPTION_TEXT)
    save(figure, out)


def _caption(size: tuple[int, int], box: CropBox) -> str:
    width, height = size
    mean, below_half = mean_mirrored_iou(width, height)
    return (
        f"IoU of the two regions: {box.iou(box.mirrored()):.2f} here; mean {mean:.3f} over {CROPS:,} random crops of a "
        f"{width}x{height} image, below 0.5 for {100 * below_half:.0f} % of them."
    )


def _mark(axes: Axes, region: CropBox, colour: str) -> None:
    """Whiten what is outside a region, and draw its edges."""
    outside = (
        (0.0, 0.0, 1.0, region.top),
        (0.0, region.bottom, 1.0, 1.0),
        (0.0, region.top, region.left, region.bottom),
        (region.right, region.top, 1.0, region.bottom),
    )
    for left, top, right, bottom in outside:
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, facecolor="white", alpha=0.6, linewidth=0))
    outline(axes, region, "white", 5.0)
    outline(axes, region, colour, 3.0)


def _show_mirror(axes: Axes, box: CropBox) -> None:
    """The diagonal, and the crop whose mirror image the panel marks."""
    axes.plot((0, 1), (0, 1), color=INK, linewidth=1.0, linestyle=(0, (2, 3)), zorder=2)
    outline(axes, box, INK, 1.5, style="--")
