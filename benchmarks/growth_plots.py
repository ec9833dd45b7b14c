"""Draw how cost grows, from the JSON results of the benchmarks.

    python -m benchmarks.growth_plots [--results FOLDER] [--out PNG]

Lines join medians, bands are the quartiles around them.
"""

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import EngFormatter

from relabel.figures.colours import INK, MUTED, PALETTE, TRACK
from relabel.figures.panels import DPI, save

ROOT = Path(__file__).resolve().parents[1]
OURS, OPENING, DENSE = PALETTE[0], PALETTE[2], PALETTE[1]
PANEL_INCHES = (3.65, 2.8)  # two of them are 1095 pixels wide
PAD_INCHES = 0.09  # around a panel
SECONDS = {"us": 1e-6, "us/image": 1e-6, "ms": 1e-3}  # in the units of figures that are times
NUMBER = r"([\d,]+)"


@dataclass(frozen=True, slots=True)
class Curve:
    """Figures that differ in one number of their names.

    Fields:
        figures: pattern of the names; its group is that number.
        name: written at its end.
        colour: of line and band.
    """

    figures: str
    name: str
    colour: str


@dataclass(frozen=True, slots=True)
class Panel:
    """A plot of what one program measured.

    Fields:
        program: of benchmarks/.
        title: what grows.
        across: what it grows with.
        of_time: what grows is a time.
        logarithmic: both axes; otherwise linear, from 0.
        curves: one or more.
    """

    program: str
    title: str
    across: str
    of_time: bool
    logarithmic: bool
    curves: tuple[Curve, ...]


PANELS = (
    Panel(
        program="input_path",
        title="images read per second",
        across="workers",
        of_time=False,
        logarithmic=False,
        curves=(Curve(f"ours, {NUMBER} workers", "", OURS),),
    ),
    Panel(
        program="label_store",
        title="packed store of label maps",
        across="records in the store",
        of_time=True,
        logarithmic=True,
        curves=(
            Curve(f"packed store, {NUMBER} records: open, every key found", "open the store", OPENING),
            Curve(f"packed store, {NUMBER} records: one read", "read one map", OURS),
        ),
    ),
    Panel(
        program="label_pooling",
        title="LabelPooling of an image, k = 5",
        across="classes, K",
        of_time=True,
        logarithmic=True,
        curves=(
            Curve(rf"dense tensor \+ roi_align, K = {NUMBER}, k = 5", "dense tensor + roi_align", DENSE),
            Curve(f"pool_scores, K = {NUMBER}, k = 5", "pool_scores", OURS),
        ),
    ),
    Panel(
        program="label_pooling",
        title="LabelPooling of an image, K = 1000",
        across="classes kept per cell, k",
        of_time=True,
        logarithmic=False,
        curves=(Curve(f"pool_scores, K = 1,000, k = {NUMBER}", "", OURS),),
    ),
)


def main() -> None:
    """Draw the panels for which there are results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of JSON files")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "growth.png", help="the PNG to write")
    options = parser.parse_args()
    draw_growth(options.results, options.out)


def draw_growth(results: Path, out: Path) -> None:
    """Write the panels for which there are results, two in a row; print a line for each that is left out.

    Args:
        results: folder of PROGRAM.json.
        out: the PNG to write; its folder must exist. Not written without any panel.
    """
    drawn = []
    for panel in PANELS:
        file = results / f"{panel.program}.json"
        figures = json.loads(file.read_text())["figures"] if file.exists() else []
        curves = [points(figures, curve.figures) for curve in panel.curves]
        if all(map(len, curves)):
            drawn.append((panel, curves))
        else:
            print(f"left out: {panel.title}: no such figures in {file}; run python -m benchmarks.{panel.program}")
    if not drawn:
        return
    columns, rows = min(2, len(drawn)), (len(drawn) + 1) // 2
    size = (columns * PANEL_INCHES[0], rows * PANEL_INCHES[1])
    picture = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=PAD_INCHES, h_pad=PAD_INCHES), dpi=DPI)
    for place, (panel, curves) in enumerate(drawn, 1):
        draw_panel(picture.add_subplot(rows, columns, place), panel, curves)
    save(picture, out)
    print(f"written: {out}")


def points(figures: Sequence[dict[str, Any]], pattern: str) -> np.ndarray:
    """Return a curve, float [n, 4]: number in the name, lower quartile, median, upper quartile; times in s."""
    found = []
    for figure in figures:
        if match := re.fullmatch(pattern, figure["what"]):
            low, high = figure["quartiles"]
            values = SECONDS.get(figure["unit"], 1.0) * np.array([low, figure["median"], high])
            found.append((float(match[1].replace(",", "")), *values))
    return np.array(sorted(found))


def draw_panel(axes: Axes, panel: Panel, curves: Sequence[np.ndarray]) -> None:
    """Draw the points of each curve of a panel."""
    for curve, (at, low, median, high) in zip(panel.curves, (found.T for found in curves), strict=True):
        axes.fill_between(at, low, high, color=curve.colour, alpha=0.2, linewidth=0)
        axes.plot(at, median, color=curve.colour, linewidth=2, marker="o", markersize=4.5)
        axes.annotate(
            curve.name, (at[-1], median[-1]), xytext=(-7, 4), textcoords="offset points",
            fontsize=9.5, color=curve.colour, ha="right", va="bottom",
        )  # fmt: skip
    if panel.logarithmic:
        axes.loglog()
        axes.minorticks_off()
        axes.margins(y=0.12)
    else:
        axes.set_ylim(bottom=0)
    if panel.of_time:
        axes.yaxis.set_major_formatter(EngFormatter("s"))
    ticks = sorted({at for found in curves for at in found[:, 0]})
    axes.set_xticks(ticks, [short(tick) for tick in ticks])
    axes.set_title(panel.title, fontsize=11, color=INK, loc="left")
    axes.set_xlabel(panel.across, fontsize=10, color=INK)
    axes.grid(axis="y", color=TRACK, linewidth=1)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, colors=MUTED, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)


def short(number: float) -> str:
    """Format 1000 as 1k and 1281167 as 1.28M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:g}"


if __name__ == "__main__":
    main()
