"""A sheet of the images on which two checkpoints differ most."""

from pathlib import Path

import numpy as np

from relabel.data.decode import ImageFile
from relabel.data.images import ImageList
from relabel.evaluation.compare import Difference, names_of, only_right, readable_names, verdict
from relabel.evaluation.predictions import SavedPredictions
from relabel.figures import panels
from relabel.figures.colours import INK, MUTED, WARNING
from relabel.figures.label_maps import shown_pixels
from relabel.figures.panels import LINE, SMALL
from utils.errors import UserError, with_advice

COLUMNS, TILE_INCHES, HEADING = 4, 2.3, 0.95
NAME_INCHES = 0.8  # longest name of a run below an image


@panels.styled
def draw_comparison_sheet(
    out: Path, first: SavedPredictions, second: SavedPredictions, images: ImageList, count: int, top1: Difference
) -> None:
    """Draw images with both predictions: those that only one has right, then by how the label's probability differs.

    Args:
        out: the PNG to write; its folder must exist.
        first, second: of the same images, see relabel.evaluation.compare.compare.
        images: among which they are.
        count: number of images, at most.
        top1: the outcome on all images, which the few that differ most say nothing about.

    Raises:
        UserError: an image is not among these or cannot be read.
    """
    difference = np.abs(second.label_probability - first.label_probability)
    is_moved = np.array([moved != "" for moved in only_right(first, second)])
    rows = np.lexsort((-difference, ~is_moved))[:count].tolist()
    pixels = _read(images, [first.images[row] for row in rows])
    names, runs = readable_names(first, second), names_of(first, second)
    short = [panels.fitted_name(run, NAME_INCHES, panels.TEXT) for run in runs]
    indent = max(map(panels.text_width, short)) + panels.GAP
    figure, heading, tiles = panels.tiles(pixels, COLUMNS, TILE_INCHES, 5, HEADING)
    panels.write_line(heading, 0.2, f"{runs[0]}: {first.path}")
    panels.write_line(heading, 0.2 + LINE, f"{runs[1]}: {second.path}")
    legend = "first those that only one has right; label in bold; predictions with their probability, red if wrong"
    change = f"top-1 {top1.first_percent:.2f} % → {top1.second_percent:.2f} % of {top1.n:,} images"
    outcome = f"{change}: {verdict(top1, runs)}"
    panels.write_line(heading, 0.2 + 2 * LINE, outcome)
    panels.write_line(heading, 0.2 + 3 * LINE, legend, color=MUTED)
    for row, image, ((panel,), area) in zip(rows, pixels, tiles, strict=True):
        panels.draw_image(panel, image)
        label = first.labels[row]
        panels.write_line(area, LINE, names[label], weight="bold")
        for line, (which, made) in enumerate(zip(short, (first, second), strict=True), 2):
            predicted = made.top1[row]
            text, colour = (names[predicted], INK) if predicted == label else (f"≠ {names[predicted]}", WARNING)
            share = panels.percent(float(made.top1_probability[row]))
            panels.write_line(area, line * LINE, which, color=MUTED)
            panels.write_line(area, line * LINE, text, share, indent, color=colour)
        shares = " → ".join(panels.percent(float(made.label_probability[row])) for made in (first, second))
        panels.write_line(area, 4 * LINE, f"of the label: {shares}", color=MUTED)
        file = panels.fitted_name(first.images[row], TILE_INCHES)
        panels.write_line(area, 5 * LINE, file, size=SMALL, color=MUTED)
    panels.save(figure, out)


def _read(images: ImageList, names: list[str]) -> list[np.ndarray]:
    """Return images by their names, uint8 [H, W, 3] each.

    Shards may spell the extension in another way; where the classes have no names, the file's name has to do.
    """
    start = 2 if images.numbered or not images.class_names else 0
    every = ["".join(images.name(row).rpartition("/")[start:]) for row in range(len(images))]
    exact, stems = ({name: row for row, name in enumerate(all_)} for all_ in (every, map(_stem, every)))
    with with_advice("Give the images that were evaluated, such as DATA/val."):
        pixels = []
        for name in names:
            wanted = "".join(name.rpartition("/")[start:])
            row = exact.get(wanted, stems.get(_stem(wanted)))
            if row is None:
                raise UserError(f"{images.root}: found no image {name}; expected names such as {images.name(0)}.")
            pixels.append(shown_pixels(ImageFile(images.path(row))))
        return pixels


def _stem(name: str) -> str:
    return name.rpartition(".")[0]
