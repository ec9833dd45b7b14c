"""A picture of the images on which two checkpoints differ most."""

from pathlib import Path, PurePosixPath

import numpy as np
from matplotlib.figure import Figure

from relabel.data.class_names import class_labels
from relabel.data.decode import ImageFile
from relabel.evaluation.compare import SavedPredictions
from relabel.figures.gallery import shown_pixels
from relabel.figures.label_maps import GAP, MARGIN, WARNING, WIDER_GAP, fitted_panel
from relabel.figures.panels import (
    DPI,
    INK,
    MUTED,
    TEXT,
    add_panel,
    draw_image,
    fitted,
    percent,
    save,
    text_width,
    write,
)
from utils.errors import UserError

COLUMNS = 4
TILE, HEADING, LINE = 2.3, 0.72, 0.19  # inches: width of a tile, above the tiles, height of a line of text
LINES = 4  # under an image


def draw_comparison_sheet(
    out: Path, first: SavedPredictions, second: SavedPredictions, images: Path, count: int
) -> None:
    """Write the sheet: those whose label's probability differs most, each with what both say; wrong ones are red.

    Args:
        out: the PNG to write; its folder must exist.
        first, second: of the same images, see relabel.evaluation.compare.compare.
        images: the folder below which they lie.
        count: how many at most.

    Raises:
        UserError: an image lies elsewhere or cannot be read.
    """
    difference = second.label_probability - first.label_probability
    rows = [int(row) for row in np.argsort(-np.abs(difference), kind="stable")[:count]]
    shown = [_read(images, first.images[row]) for row in rows]
    names = sorted({*first.labels, *first.top1, *second.top1})
    called = dict(zip(names, class_labels(names), strict=True)) | {"": "no class"}
    columns = min(COLUMNS, len(rows))
    height = TILE / float(np.clip(np.median([pixels.shape[1] / pixels.shape[0] for pixels in shown]), 0.8, 1.6))
    pitch = height + LINES * LINE + 0.25
    width = columns * (TILE + WIDER_GAP) - WIDER_GAP + 2 * MARGIN
    figure = Figure(figsize=(width, HEADING + -(-len(rows) // columns) * pitch), dpi=DPI)
    _write_heading(figure, width, first.path, second.path)
    for number, (row, pixels) in enumerate(zip(rows, shown, strict=True)):
        left, top = MARGIN + number % columns * (TILE + WIDER_GAP), HEADING + number // columns * pitch
        mat = add_panel(figure, left, top, TILE, height)
        mat.set_facecolor("0.955")
        mat.spines[:].set_visible(False)
        draw_image(fitted_panel(figure, left, TILE, top, height, pixels.shape[1] / pixels.shape[0]), pixels)
        label, baseline = called[first.labels[row]], top + height + LINE
        write(figure, left, baseline, fitted(label, TILE, TEXT, "bold"), weight="bold")
        for line, (said, which) in enumerate(((first, "1st"), (second, "2nd")), 1):
            right = said.top1[row] == said.labels[row]
            answer = ("" if right else "≠ ") + called[said.top1[row]]
            _write_answer(figure, left, baseline + line * LINE, which, answer, float(said.top1_probability[row]), right)
        shares = " → ".join(percent(float(said.label_probability[row])) for said in (first, second))
        write(figure, left, baseline + 3 * LINE, fitted(f"of the label: {shares}", TILE), color=MUTED)
    save(figure, out)


def _write_heading(figure: Figure, width: float, first: Path, second: Path) -> None:
    """Which files are compared, and how to read a tile."""
    room = width - 2 * MARGIN
    write(figure, MARGIN, 0.2, fitted(f"1st: {first}", room))
    write(figure, MARGIN, 0.2 + LINE, fitted(f"2nd: {second}", room))
    advice = "label in bold, what each says with its probability (red: not the label), and the label's probability"
    write(figure, MARGIN, 0.2 + 2 * LINE, fitted(advice, room), color=MUTED)


def _write_answer(
    figure: Figure, left: float, baseline: float, which: str, answer: str, probability: float, right: bool
) -> None:
    """A line under an image: whose answer, the answer, its probability."""
    value, indent = percent(probability), text_width("2nd") + GAP
    room = TILE - indent - text_width(value) - GAP
    write(figure, left, baseline, which, color=MUTED)
    write(figure, left + indent, baseline, fitted(answer, room), color=INK if right else WARNING)
    write(figure, left + TILE, baseline, value, ha="right", color=MUTED)


def _read(folder: Path, name: str) -> np.ndarray:
    """uint8 [H, W, 3] of an image below a folder."""
    inside = PurePosixPath(name)
    if inside.is_absolute() or ".." in inside.parts:
        raise UserError(f"found the image name {name!r}, which leads out of {folder}; expected CLASS/FILE")
    try:
        is_there = (folder / inside).is_file()
    except OSError:  # a name longer than names can be
        is_there = False
    if not is_there:
        raise UserError(f"{folder} has no image {name!r}; give the folder that was evaluated, such as DATA/val")
    return shown_pixels(ImageFile(folder / inside))
