"""A sheet of images with their most likely classes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from relabel.data.class_names import class_labels
from relabel.data.decode import ImageFile
from relabel.evaluation.predict import Prediction
from relabel.figures import panels
from relabel.figures.colours import INK, MUTED, TRACK, class_colours
from relabel.figures.label_maps import shown_pixels
from relabel.figures.panels import BARS, LINE, SMALL

MOST_IMAGES = 40
COLUMNS, TILE_INCHES, HEADING = 5, 2.1, 0.55
LARGE_INCHES = 3.2  # width of the tiles of a single row
BAR_LINES, BAR_INCHES = 1.75, 0.09  # height of a name with its bar, in lines; of the bar


@panels.styled
def draw_predictions(out: Path, predictions: Sequence[Prediction], class_names: Sequence[str], title: str) -> None:
    """Draw the first images, each with its file's name and bars of its most likely classes.

    Args:
        out: the PNG to write; its folder must exist.
        predictions: at least one.
        class_names: K texts.
        title: of the figure.

    Raises:
        UserError: an image can no longer be read.
    """
    shown, labels = predictions[:MOST_IMAGES], class_labels(class_names)
    pixels = [shown_pixels(ImageFile(made.image)) for made in shown]
    bars, width = min(BARS, len(shown[0].classes)), TILE_INCHES if len(shown) > COLUMNS else LARGE_INCHES
    figure, heading, tiles = panels.tiles(pixels, COLUMNS, width, round(1 + BAR_LINES * bars), HEADING)
    panels.write_line(heading, 0.22, title, size=11)
    count = f"the first {len(shown)} of {len(predictions):,} images" if len(shown) < len(predictions) else ""
    panels.write_line(heading, 0.22 + LINE, count, color=MUTED)
    for made, image, ((panel,), area) in zip(shown, pixels, tiles, strict=True):
        panels.draw_image(panel, image)
        across = area.get_xlim()[1]
        panels.write_line(area, LINE, panels.fitted_name(str(made.image), across), size=SMALL, color=MUTED)
        dense = np.zeros((1, len(labels)))
        dense[0, made.classes] = made.probabilities
        colours = class_colours(dense.reshape(-1, 1, 1), dense)
        for bar, (index, share) in enumerate(zip(made.classes[:bars].tolist(), made.probabilities, strict=False)):
            baseline = LINE * (2.1 + BAR_LINES * bar)
            panels.write_line(area, baseline, labels[index], panels.percent(float(share)), color=INK)
            for length, colour in ((1.0, TRACK), (float(share), colours.get(index, MUTED))):
                area.barh(baseline + 0.05, length * across, BAR_INCHES, align="edge", color=colour)
    panels.save(figure, out)
