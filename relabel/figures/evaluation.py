"""Figures of an evaluation: the confusion matrix and the reliability diagram."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from relabel.figures import panels
from relabel.figures.colours import CORRECT, INK, MUTED, OTHER_COLOUR, TRACK, WARNING
from relabel.figures.panels import DPI, LINE, plain_axes, save
from utils.metrics import CALIBRATION_BINS, bin_of, expected_calibration_error
from utils.progress import counted

CELL_INCHES, LONGEST_NAME = 0.3, 2.0  # inches: side of a cell, room for a class name
SMALLEST_MATRIX, NARROWEST = 3.0, 4.6  # inches; of the cells, of the page
RIGHT, WRONG = (LinearSegmentedColormap.from_list("", ["white", colour]) for colour in (CORRECT, WARNING))
DARK = 0.55  # from this share of a row on, its number is white
FEW_IMAGES = 20  # with fewer in a bin, its accuracy is uncertain by more than 10 points


@panels.styled
def draw_confusion(out: Path, counts: np.ndarray, names: Sequence[str], title: str) -> None:
    """Draw a confusion matrix: rows are labels, columns predictions; blue is correct, red is wrong.

    The colour of a cell is its share of the row's images, its number the images.

    Args:
        out: the PNG to write; its folder must exist.
        counts: int64 [n, n], or [n, n + 1] if there is a column of other predictions.
        names: of the columns; those of the rows are the first n.
        title: of the figure, one or more lines.
    """
    rows, columns = counts.shape
    cell = max(CELL_INCHES, SMALLEST_MATRIX / rows)
    shown = [panels.fitted(name, LONGEST_NAME) for name in names]
    room = max(map(panels.text_width, shown)) + 0.4
    heading = [panels.fitted_name(line, max(room + columns * cell, NARROWEST) - 0.2, 10) for line in title.split("\n")]
    heading.append(f"{counted(int(counts.sum()), 'image')}, {100 * np.trace(counts) / counts.sum():.2f} % correct")
    width = max(room + columns * cell + 0.2, NARROWEST)
    height = 0.3 + LINE * len(heading) + room + rows * cell
    figure = Figure(figsize=(width, height), dpi=DPI)
    axes = figure.add_axes((room / width, 0.2 / height, columns * cell / width, rows * cell / height))
    shares = counts / counts.sum(axis=1, keepdims=True)
    is_right = np.eye(rows, columns, dtype=bool)
    axes.imshow(np.where(is_right[:, :, None], RIGHT(shares), WRONG(shares)), aspect="auto", interpolation="nearest")
    _write_counts(axes, counts, shares)
    _name_sides(axes, shown, rows)
    for line, text in enumerate(heading, 1):
        figure.text(0.15 / width, 1 - (line * LINE + 0.05) / height, text, size=10)
    save(figure, out)


def _write_counts(axes: Axes, counts: np.ndarray, shares: np.ndarray) -> None:
    """Write the number of images into each cell that has any."""
    for row, column in np.argwhere(counts).tolist():
        count = int(counts[row, column])
        size = 8 if count < 1000 else 6.5 if count < 10_000 else 5.5
        ink = "white" if shares[row, column] > DARK else INK
        axes.text(column, row, str(count), ha="center", va="center_baseline", color=ink, fontsize=size)


def _name_sides(axes: Axes, names: Sequence[str], rows: int) -> None:
    """Write the classes' names to the left and above, and draw the lines between the cells."""
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(rows), names[:rows])
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.set_xticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=TRACK, linewidth=0.8)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)
    axes.set_ylabel("label", color=MUTED)
    axes.set_xlabel("prediction", color=MUTED)
    axes.xaxis.set_label_position("top")


@panels.styled
def draw_reliability(out: Path, confidence: np.ndarray, correct: np.ndarray, title: str) -> None:
    """Draw how often predictions of each confidence are correct, with the number of images below.

    Args:
        out: the PNG to write; its folder must exist.
        confidence: float [N]; probability of the top-1 class.
        correct: bool [N]; whether the top-1 class is the label.
        title: of the figure, one or more lines.
    """
    bins = bin_of(confidence)
    images = np.bincount(bins, minlength=CALIBRATION_BINS)
    accuracy, mean = (
        np.bincount(bins, weights=values, minlength=CALIBRATION_BINS) / np.maximum(images, 1)
        for values in (correct, confidence)
    )
    middles = (np.arange(CALIBRATION_BINS) + 0.5) / CALIBRATION_BINS
    width = 0.88 / CALIBRATION_BINS
    figure = Figure(figsize=(5.2, 6.2), layout="constrained", dpi=DPI)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    few = images < FEW_IMAGES
    kinds = {
        "correct": (~few, CORRECT),
        f"correct, under {FEW_IMAGES} images": (few & (images > 0), OTHER_COLOUR),
    }
    for label, (own, colour) in kinds.items():
        if own.any():
            upper.bar(middles[own], accuracy[own], width, color=colour, alpha=0.75, label=label)
    seen = images > 0
    ends = middles[seen] - width / 2, middles[seen] + width / 2
    upper.hlines(mean[seen], *ends, color=INK, linewidth=2.5, label="mean confidence")
    upper.plot([0, 1], [0, 1], color=MUTED, linewidth=1.2, linestyle="--", label="perfectly calibrated")
    error = expected_calibration_error(confidence, correct)
    lines = [panels.fitted_name(line, 4.9, 10) for line in title.split("\n")]
    lines.append(f"ECE {error:.2f} % ({CALIBRATION_BINS} bins), {counted(len(correct), 'image')}")
    if few.all():
        lines.append(f"Too few images to judge calibration: no bin has {FEW_IMAGES} of them.")
    figure.suptitle("\n".join(lines), x=0.02, ha="left", size=10)
    upper.set(xlim=(0, 1), ylim=(0, 1.01), ylabel="share of images that are correct")
    upper.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, borderaxespad=0.2)
    lower.bar(middles, images, width, color=MUTED)
    lower.set(ylabel="images", xlabel="confidence: probability of the predicted class")
    lower.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    for axes in (upper, lower):
        plain_axes(axes, "y")
    save(figure, out)
