"""Figure of a training batch: the images as the network gets them, each with its label, file and target."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from relabel.data.class_names import class_labels
from relabel.figures import panels
from relabel.figures.colours import MUTED, class_colours
from relabel.figures.panels import LINE, SMALL

COLUMNS, TILE_INCHES = 4, 2.05
LINES = 9  # height of what is below an image, in lines of text: label, file, bars
HEADING, ABOVE_BARS = 0.38, 2 * LINE + 0.1  # inches


@panels.styled
def draw_batch(
    out: Path,
    images: np.ndarray,
    targets: np.ndarray,
    labels: Sequence[int],
    names: Sequence[str],
    class_names: Sequence[str],
    heading: str,
) -> None:
    """Draw images with their label, their file and the largest classes of their targets as bars.

    Args:
        out: the PNG to write; its folder must exist.
        images: uint8 [n, H, W, 3].
        targets: float [n, K]; each sums to 1.
        labels: n classes; -1 for an image without a label.
        names: n texts, CLASS/FILE.
        class_names: the K class folders.
        heading: of the figure.
    """
    shown = class_labels(class_names)
    figure, top, tiles = panels.tiles(list(images), COLUMNS, TILE_INCHES, LINES, HEADING)
    panels.write_line(top, 0.25, heading)
    for image, target, label, name, ((panel,), area) in zip(images, targets, labels, names, tiles, strict=True):
        panels.draw_image(panel, image)
        area.set_ylim(area.get_ylim()[0] - ABOVE_BARS, -ABOVE_BARS)
        text = f"label: {shown[label]}" if label >= 0 else "no label"
        panels.write_line(area, -ABOVE_BARS + LINE, text, size=SMALL, color=MUTED)
        file = panels.fitted_name(name, TILE_INCHES)
        panels.write_line(area, -ABOVE_BARS + 2 * LINE, file, size=SMALL, color=MUTED)
        panels.draw_bars(area, target, shown, class_colours(target[:, None, None], target[None]), label)
    panels.save(figure, out)
