"""Figures of training runs: top-1 by epoch, and the rows of a comparison with seeds, their mean and its interval."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from relabel.figures.panels import DPI, INK, OTHER_COLOUR, PALETTE, plain_axes, save
from utils.estimates import Estimate

ROW_INCHES, MARGIN_INCHES, WIDTH_INCHES = 0.42, 0.95, 7.2
UNCROSSED = {"facecolor": "white", "linewidth": 0, "pad": 0.5}  # box of a text that hides the lines behind it


def draw_curves(out: Path, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Draw the top-1 accuracy by epoch of several runs.

    Args:
        out: the PNG to write; its folder must exist.
        runs: name of the run -> its records, the lines of metrics.jsonl. Those of the event `validation` are drawn;
            if an epoch has two, the second, that of the averaged weights.
    """
    figure = Figure(figsize=(WIDTH_INCHES, 4.4), layout="constrained", dpi=DPI)
    axes = figure.subplots()
    ends = []
    for (name, records), colour in zip(runs.items(), PALETTE, strict=False):
        points = {r["epoch"]: r["top1_percent"] for r in records if r["event"] == "validation"}
        if points:
            epochs, accuracies = list(points), list(points.values())
            axes.plot(epochs, accuracies, color=colour, linewidth=2.4, marker="o", markersize=4.5)
            ends.append((accuracies[-1], epochs[-1], name, colour))
    _name_ends(axes, ends)
    axes.set_xlabel("epoch", fontsize=11, color=INK)
    axes.set_title("validation top-1 (%)", fontsize=12, color=INK, loc="left")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    plain_axes(axes, "y")
    save(figure, out)


def _name_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write each run's name and last value at the end of its curve, pushed apart where curves end together."""
    low, high = axes.get_ylim()
    at = -np.inf
    for accuracy, epoch, name, colour in sorted(ends):
        at = max(accuracy, at + 0.115 * (high - low))
        axes.annotate(
            f"{name}\n{accuracy:.1f} %", (epoch, at), xytext=(9, 0), textcoords="offset points",
            fontsize=11, color=colour, va="center", annotation_clip=False,
        )  # fmt: skip


def draw_results(out: Path, rows: Mapping[str, Sequence[float]]) -> None:
    """Draw top-1 accuracies as dots, one line per row, with the first row's mean as a dashed line through all.

    Row i has the colour of curve i in `draw_curves`.

    Args:
        out: the PNG to write; its folder must exist.
        rows: title -> top-1 in percent for each seed.
    """
    figure = Figure(figsize=(WIDTH_INCHES, MARGIN_INCHES + ROW_INCHES * len(rows)), layout="constrained", dpi=DPI)
    axes = figure.subplots()
    first = float(np.mean(next(iter(rows.values()))))
    axes.axvline(first, color=OTHER_COLOUR, linewidth=1.2, linestyle="--", zorder=1)
    for line, (values, colour) in enumerate(zip(rows.values(), PALETTE, strict=False)):
        mean, found = float(np.mean(values)), Estimate.mean(np.array(values))
        if found:
            ends = np.clip([found.low95, found.high95], 0, 100)  # with two seeds it can extend beyond 0..100
            axes.plot(ends, [line, line], color=colour, linewidth=5, alpha=0.3, zorder=2)
        axes.plot(values, [line] * len(values), "o", color=colour, markersize=5, alpha=0.75, zorder=3)
        axes.plot([mean, mean], [line - 0.3, line + 0.3], color=colour, linewidth=2.4, zorder=4)
        axes.text(mean, line - 0.34, f"{mean:.1f}", ha="center", va="bottom", fontsize=9, color=INK, bbox=UNCROSSED)
    axes.set_yticks(range(len(rows)), list(rows), fontsize=10, color=INK)
    axes.set_ylim(len(rows) - 0.4, -0.75)
    shown = ": seeds, mean and its 95 % interval" if found else ""
    axes.set_title(f"validation top-1 (%){shown}", fontsize=11, color=INK, loc="left")
    plain_axes(axes, "x")
    save(figure, out)
