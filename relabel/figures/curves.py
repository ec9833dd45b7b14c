"""The rows of a comparison as a picture: each seed a dot, their mean, and the interval that holds the true mean."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from relabel.figures.panels import DPI, INK, OTHER_COLOUR, PALETTE, plain_axes, save
from utils.estimates import Estimate

ROW_INCHES, MARGIN_INCHES, WIDTH_INCHES = 0.42, 0.95, 7.2


def draw_results(out: Path, rows: Mapping[str, Sequence[float]]) -> None:
    """Write top-1 accuracies as dots, one line a row, the first row's mean as a line through all.

    Args:
        out: the PNG to write; its folder must exist.
        rows: title -> percent for each seed.
    """
    figure = Figure(figsize=(WIDTH_INCHES, MARGIN_INCHES + ROW_INCHES * len(rows)), layout="constrained", dpi=DPI)
    axes = figure.subplots()
    first = float(np.mean(next(iter(rows.values()))))
    axes.axvline(first, color=OTHER_COLOUR, linewidth=1.2, linestyle="--", zorder=1)
    for line, values in enumerate(rows.values()):
        mean, found = float(np.mean(values)), Estimate.mean(np.array(values))
        colour = PALETTE[0] if line == 0 else PALETTE[2] if mean > first else PALETTE[3]
        if found:
            ends = np.clip([found.low95, found.high95], 0, 100)  # two seeds can make it wider than percents are
            axes.plot(ends, [line, line], color=colour, linewidth=5, alpha=0.3, zorder=2)
        axes.plot(values, [line] * len(values), "o", color=colour, markersize=5, alpha=0.75, zorder=3)
        axes.plot([mean, mean], [line - 0.3, line + 0.3], color=colour, linewidth=2.4, zorder=4)
        axes.annotate(
            f"{mean:.1f}", (mean, line - 0.32), ha="center", va="bottom", fontsize=9, color=INK, annotation_clip=False
        )
    axes.set_yticks(range(len(rows)), list(rows), fontsize=10, color=INK)
    axes.set_ylim(len(rows) - 0.4, -0.75)
    axes.set_title("validation top-1 (%): seeds, mean and its 95 % interval", fontsize=11, color=INK, loc="left")
    plain_axes(axes, "x")
    save(figure, out)
