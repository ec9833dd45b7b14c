"""Figure of a training batch: the images as the network gets them, each with its target."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from relabel.data.class_names import class_labels
from relabel.figures import panels
from relabel.figures.colours import class_colours

COLUMNS, TILE_INCHES = 4, 2.05
LINES = 7  # height of the bars below an image, in lines of text
HEADING, TEXT_GAP = 0.38, 0.1  # inches


@panels.styled
def draw_batch(out: Path, images: np.ndarray, targets: np.ndarray, class_names: Sequence[str], heading: str) -> None:
    """Draw images with the largest classes of their targets as bars.

    Args:
        out: the PNG to write; its folder must exist.
        images: uint8 [n, H, W, 3].
        targets: float [n, K]; each sums to 1.
        class_names: the K class folders.
        heading: of the figure.
    """
    labels = class_labels(class_names)
    figure, top, tiles = panels.tiles(list(images), COLUMNS, TILE_INCHES, LINES, HEADING)
    panels.write_line(top, 0.25, heading)
    for image, target, ((panel,), area) in zip(images, targets, tiles, strict=True):
        panels.draw_image(panel, image)
        area.set_ylim(top=-TEXT_GAP)
        panels.draw_bars(area, target, labels, class_colours(target[:, None, None], target[None]))
    panels.save(figure, out)
