"""Figures of training runs: one run in full; several by epoch; the rows of a comparison with seeds.

A colour is a run: the first, second, ... of the palette. What a curve shows of its run is in its style.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from relabel.figures.colours import INK, OTHER_COLOUR, PALETTE
from relabel.figures.panels import DPI, fitted_name, plain_axes, save
from utils.estimates import Estimate

ROW_INCHES, MARGIN_INCHES, WIDTH_INCHES = 0.42, 0.95, 7.2
LINE_INCHES, LEGEND_LINE = 0.2, 15  # inches between the last values of two curves; points of a line of a legend
NAME_INCHES = 3.6  # longest name in a legend
MOST_TICKS = 10  # on the axis of epochs
MARKED = 40  # most points of a curve that are marked
VALIDATION = ("validation top-1 (%)", "top1_percent", " %"), ("validation loss", "loss", "")  # title, record, unit
FLOOR, NOT_AVERAGED = "loss floor: mean entropy of the targets", "before averaging"
STYLES = {FLOOR: (OTHER_COLOUR, "--"), NOT_AVERAGED: (PALETTE[0], ":")}  # the others: their run's colour, solid
Curve = dict[float, float]  # epoch -> value
UNCROSSED = {"facecolor": "white", "linewidth": 0, "pad": 0.5}  # box of a text that hides the lines behind it


def draw_curves(out: Path, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Draw top-1 accuracy and loss of the validations of several runs by epoch.

    Args:
        out: the PNG to write; its folder must exist.
        runs: name of the run -> its records, the lines of metrics.jsonl. Those of the event `validation` are drawn;
            if an epoch has two, the second, that of the averaged weights.
    """
    figure = _page(3.9)
    panels = figure.subplots(1, 2)
    for axes, (title, value, unit) in zip(panels, VALIDATION, strict=True):
        _draw_lines(axes, title, {name: _validation(records, value) for name, records in runs.items()}, unit)
    save(figure, out)


def draw_run(out: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Draw a run by epoch: training loss with its floor, learning rate, validation top-1 and loss.

    Args:
        out: the PNG to write; its folder must exist.
        records: the lines of metrics.jsonl. Of weights and averaged weights both are drawn.
    """
    figure = _page(6.8)
    (loss, top1), (rate, validation_loss) = figure.subplots(2, 2)
    losses, floor = {"loss": _training(records, "loss")}, _training(records, "target_entropy_nats")
    _draw_lines(loss, "training loss", losses | ({FLOOR: floor} if any(floor.values()) else {}))
    _draw_lines(rate, "learning rate", {"": _training(records, "learning_rate")})
    ema = {"averaged weights (EMA)": "ema", NOT_AVERAGED: "model"}
    if not _validation(records, "loss", "ema"):
        ema = {"": "model"}
    chosen = _validation(records, "top1_percent")
    best = max(chosen, key=lambda epoch: chosen[epoch])
    about = f": best {chosen[best]:.1f} in epoch {best}{' (EMA)' * (len(ema) > 1)}", ""
    for axes, (title, value, unit), more in zip((top1, validation_loss), VALIDATION, about, strict=True):
        lines = {name: _validation(records, value, weights) for name, weights in ema.items()}
        _draw_lines(axes, title + more, lines, unit)
    save(figure, out)


def _page(height: float) -> Figure:
    figure = Figure(figsize=(1.6 * WIDTH_INCHES, height), dpi=DPI)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    return figure


def _validation(records: Sequence[Mapping[str, Any]], value: str, weights: str | None = None) -> Curve:
    """Return epoch -> value of a validation; if it has two and no weights are named, that of the averaged ones."""
    return {
        r["epoch"]: r[value]
        for r in records
        if r["event"] == "validation" and weights in (None, r["weights"]) and not isinstance(r[value], str)
    }


def _training(records: Sequence[Mapping[str, Any]], value: str) -> Curve:
    """Return epoch -> value of the training reports; there must have been a validation."""
    steps_per_epoch = next(r["step"] // r["epoch"] for r in records if r["event"] == "validation")
    found = {r["step"] / steps_per_epoch: r.get(value, 0.0) for r in records if r["event"] == "train"}
    return {epoch: number for epoch, number in found.items() if not isinstance(number, str)}  # "nan"


def _draw_lines(axes: Axes, title: str, lines: Mapping[str, Curve], unit: str = "") -> None:
    """Draw named curves, each with its last value at its end; few points get markers. Several have a legend."""
    ends = []
    for (name, points), own in zip(lines.items(), PALETTE, strict=False):
        colour, style = STYLES.get(name, (own, "-"))
        if points:
            epochs, values = list(points), list(points.values())
            marker = "o" if len(points) <= MARKED else ""
            axes.plot(epochs, values, style, color=colour, linewidth=2.4, marker=marker, markersize=4.5)
            axes.lines[-1].set_label(fitted_name(name, NAME_INCHES, 10))
            ends.append((values[-1], epochs[-1], colour))
    _write_ends(axes, ends, unit)
    axes.set_xlabel("epoch", fontsize=11, color=INK)
    axes.set_title(title, fontsize=12, color=INK, loc="left", pad=8 + LEGEND_LINE * len(ends) * (len(ends) > 1))
    if len(ends) > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), frameon=False, fontsize=10, borderaxespad=0)
    axes.xaxis.set_major_locator(FixedLocator(_epoch_ticks(max((epoch for _, epoch, _ in ends), default=1.0))))
    plain_axes(axes, "y")


def _epoch_ticks(last: float) -> list[int]:
    """Return at most ten round numbers of epochs, with the last and without 0, which is none."""
    end = max(1, round(last))
    steps = [lead * 10**zeros for zeros in range(8) for lead in (1, 2, 5) if lead * 10**zeros * MOST_TICKS >= end]
    step = next((step for step in steps[:2] if end % step == 0), steps[0])
    return [*(tick for tick in range(step, end, step) if end - tick > step / 2), end]


def _write_ends(axes: Axes, ends: Sequence[tuple[float, float, str]], unit: str) -> None:
    """Write each curve's last value at its end, pushed apart where curves end together."""
    low, high = axes.get_ylim()
    at, apart = -np.inf, LINE_INCHES * DPI / axes.bbox.height
    for value, epoch, colour in sorted(ends):
        at = max(value, at + apart * (high - low))
        axes.annotate(
            f"{value:.1f}{unit}" if unit else f"{value:#.3g}", (epoch, at), xytext=(9, 0), textcoords="offset points",
            fontsize=11, color=colour, va="center", annotation_clip=False, bbox=UNCROSSED,
        )  # fmt: skip


def draw_results(out: Path, rows: Mapping[str, Sequence[float]]) -> None:
    """Draw top-1 accuracies as dots, one line per row, with the first row's mean as a dashed line through all.

    Row i has the colour of curve i in `draw_curves`; but it is grey if the seeds do not show that it differs from the
    first row: the 95 % interval of the difference, seed by seed, contains 0, or there is only one seed.

    Args:
        out: the PNG to write; its folder must exist.
        rows: title -> top-1 in percent for each seed, the same seeds for every row.
    """
    figure = Figure(figsize=(WIDTH_INCHES, MARGIN_INCHES + ROW_INCHES * len(rows)), layout="constrained", dpi=DPI)
    axes = figure.subplots()
    first = float(np.mean(next(iter(rows.values()))))
    axes.axvline(first, color=OTHER_COLOUR, linewidth=1.2, linestyle="--", zorder=1)
    for line, (values, colour) in enumerate(zip(rows.values(), PALETTE, strict=False)):
        mean, found = float(np.mean(values)), Estimate.mean(np.array(values))
        colour = colour if line == 0 or _differ(values, next(iter(rows.values()))) else OTHER_COLOUR
        if found:
            ends = np.clip([found.low95, found.high95], 0, 100)  # with two seeds it can extend beyond 0..100
            axes.plot(ends, [line, line], color=colour, linewidth=5, alpha=0.3, zorder=2)
        axes.plot(values, [line] * len(values), "o", color=colour, markersize=5, alpha=0.75, zorder=3)
        axes.plot([mean, mean], [line - 0.3, line + 0.3], color=colour, linewidth=2.4, zorder=4)
        axes.text(mean, line - 0.34, f"{mean:.1f}", ha="center", va="bottom", fontsize=9, color=INK, bbox=UNCROSSED)
    axes.set_yticks(range(len(rows)), list(rows), fontsize=10, color=INK)
    axes.set_ylim(len(rows) - 0.4, -0.75)
    shown = ": seeds, mean and its 95 % interval" if found else ": one seed decides nothing"
    grey = f"grey: not shown to differ from {next(iter(rows))}"
    axes.set_title(f"validation top-1 (%){shown}\n{grey}", fontsize=11, color=INK, loc="left")
    plain_axes(axes, "x")
    save(figure, out)


def _differ(values: Sequence[float], first: Sequence[float]) -> bool:
    """Return whether the 95 % interval of the mean difference, seed by seed, excludes 0."""
    found = Estimate.mean(np.array(values) - np.array(first))
    return found is not None and not found.low95 <= 0 <= found.high95
