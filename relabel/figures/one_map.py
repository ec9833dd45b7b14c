"""One label map beside its image, as a figure that a notebook shows."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from relabel.crop_box import WHOLE_IMAGE
from relabel.data.class_names import class_labels
from relabel.data.decode import ImageFile
from relabel.figures import map_panel, panels
from relabel.figures.label_maps import BARS_WIDTH, make_example, shown_pixels
from relabel.label_map import LabelMap

HEIGHT = 2.6  # inches, of the image
HEADING = 0.3  # inches
ASPECTS = (0.4, 2.6)  # width / height of a panel; images with other ratios leave margins in it


class NotebookFigure(Figure):
    """A figure that a notebook shows as the result of a cell, also without pyplot."""

    def _repr_png_(self) -> bytes:
        """Return the figure as PNG, at the file's resolution."""
        file = io.BytesIO()
        self.savefig(file, format="png", facecolor="white")
        return file.getvalue()


@panels.styled
def plot_label_map(
    label_map: LabelMap, image: str | Path, classes: Sequence[str], fill: float = 0.0, temperature: float = 1.0
) -> NotebookFigure:
    """Draw an image, its label map over the pale image, and the target of the whole image.

    Args:
        label_map: of the image.
        image: path of the image.
        classes: names of the K classes of its ids; the heading says how many they are.
        fill, temperature: as in `relabel_target`.

    Returns:
        A matplotlib figure: the result of a notebook's cell, or `figure.savefig(FILE)`.

    Raises:
        UserError: the image cannot be read.
    """
    names = class_labels(classes)
    pixels = shown_pixels(ImageFile(Path(image)))
    example = make_example(pixels, None, label_map, [WHOLE_IMAGE], len(classes), fill, temperature)
    aspect = float(np.clip(pixels.shape[1] / pixels.shape[0], *ASPECTS))
    widths = [aspect * HEIGHT, panels.GAP, aspect * HEIGHT, panels.WIDER_GAP, BARS_WIDTH * HEIGHT]
    size = sum(widths) + 2 * panels.MARGIN, HEADING + HEIGHT + panels.MARGIN
    figure = NotebookFigure(figsize=size, dpi=panels.DPI)
    sides = {"left": panels.MARGIN / size[0], "right": 1 - panels.MARGIN / size[0]}
    down = {"top": 1 - HEADING / size[1], "bottom": panels.MARGIN / size[1]}
    grid = figure.add_gridspec(1, 5, **sides, **down, width_ratios=widths, wspace=0)
    panels.draw_image(panels.image_panel(figure, grid[0, 0]), pixels)
    cells = panels.image_panel(figure, grid[0, 2])
    map_panel.draw_map(cells, pixels, example.cells, example.colours())
    map_panel.name_regions(cells, example.cells, names, example.colours())
    panels.draw_bars(panels.text_area(figure, grid[0, 4]), example.targets[0], names, example.colours())
    for axes, heading in zip(figure.axes, ("image", "label map", f"target over {len(classes):,} classes"), strict=True):
        axes.set_title(heading)
    return figure
