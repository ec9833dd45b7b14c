"""What an evaluation found: one Result a figure, as lines of JSON and as a table."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from relabel.evaluation.predictions import Predictions
from utils.metrics import expected_calibration_error

LEAST_PROBABILITY = float(np.finfo(np.float32).tiny)
VAL, CORRUPTIONS = "val", "imagenet_c"
SEVERITIES = ("1", "2", "3", "4", "5")
# Heading -> metric, decimals.
CORRUPTION_COLUMNS = {
    "mean": ("error_percent", 1),
    "CE %": ("ce_percent", 1),
    "ECE %": ("ece_percent", 1),
    "NLL": ("nll_nats", 2),
}


@dataclass(frozen=True, slots=True)
class Result:
    """One figure.

    Fields:
        set: of images: val, imagenet_v2/matched-frequency.
        metric: with its unit: top1_percent, nll_nats.
        value: in that unit.
        n: images it is about.
        protocol: how it was measured, in a few words.
        parts: what it is the mean of, by class or severity; empty for a mean over images.
    """

    set: str
    metric: str
    value: float
    n: int
    protocol: str
    parts: Mapping[str, float] = field(default_factory=dict)

    def as_record(self) -> dict[str, Any]:
        """Plain values for JSON."""
        record = asdict(self)
        return record if self.parts else {key: value for key, value in record.items() if key != "parts"}


def accuracy_results(name: str, predictions: Predictions, protocol: str) -> list[Result]:
    """Top-1 and top-5 of a set: shares of images whose label is the likeliest class, or one of the five likeliest."""
    n, top5 = len(predictions), (predictions.top5 == predictions.labels[:, None]).any(axis=1)
    return [
        Result(name, "top1_percent", percent(predictions.right), n, protocol),
        Result(name, "top5_percent", percent(top5), n, protocol),
    ]


def calibration_results(name: str, predictions: Predictions) -> list[Result]:
    """ECE and NLL of a set; a probability of the label below the smallest of float32 counts as that (87 nats)."""
    n = len(predictions)
    ece = expected_calibration_error(predictions.top1_probability, predictions.right)
    logs = np.log(np.maximum(predictions.label_probability.astype(np.float64), LEAST_PROBABILITY))
    return [
        Result(name, "ece_percent", ece, n, "top-1, 15 equal bins"),
        Result(name, "nll_nats", abs(float(logs.mean())), n, "of the folder's class"),
    ]


def percent(right: np.ndarray) -> float:
    """Of bool [n]."""
    return 100.0 * float(right.mean())


def print_results(results: Mapping[str, Sequence[Result]], title: str, console: Console | None = None) -> None:
    """Show them to a person, in 80 columns: a table of everything, and ImageNet-C's corruptions in one of their own.

    Args:
        results: of each of the checkpoint's weights, all of the same figures in the same order.
        title: of the table.
        console: where to; None: stdout.
    """
    console = console or Console()
    table = _table(title)
    table.add_column("set, metric", no_wrap=True)
    for heading in results if len(results) > 1 else ("value",):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    table.add_column("protocol", style="dim")
    rows = [row for row in zip(*results.values(), strict=True) if not _of_one_corruption(row[0])]
    for name, group in groupby(rows, key=lambda row: row[0].set):
        table.add_row(Text(name, style="bold"))
        for row in group:
            values = [figure(result) for result in row]
            table.add_row(f"  {row[0].metric}", *values, f"{row[0].n:,}", Text(row[0].protocol))
    if rows:
        console.print(table)
    for weights, mine in results.items():
        if any(map(_of_one_corruption, mine)):
            console.print(_corruption_table(mine, f" ({weights})" if len(results) > 1 else ""))


def _table(title: str) -> Table:
    return Table(
        title=Text(f"\n{title}", style="bold", overflow="fold"),
        title_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )


def figure(result: Result) -> str:
    """A value for people: percentages to a hundredth, nats to a thousandth, counts whole."""
    digits = {"percent": 2, "nats": 3}.get(result.metric.rpartition("_")[2], 0)
    return f"{result.value:,.{digits}f}"


def _of_one_corruption(result: Result) -> bool:
    return result.set.startswith(f"{CORRUPTIONS}/")


def _corruption_table(results: Iterable[Result], whose: str) -> Table:
    """A row for each corruption: its error at each severity, their mean, CE, ECE and NLL."""
    sets = [list(group) for _, group in groupby(filter(_of_one_corruption, results), key=lambda result: result.set)]
    counts = sorted({mine[0].n for mine in sets})
    n = f"n = {counts[0]:,}" + (f" to {counts[-1]:,}" if len(counts) > 1 else "")
    table = _table(f"ImageNet-C{whose}: error % by severity, mean; {n} per corruption")
    table.add_column("corruption", no_wrap=True)
    for heading in (*SEVERITIES, *CORRUPTION_COLUMNS):
        table.add_column(heading, justify="right", no_wrap=True)
    for mine in sets:
        found = {result.metric: result for result in mine}
        error = found["error_percent"].parts
        severities = [f"{error[severity]:.1f}" if severity in error else "-" for severity in SEVERITIES]
        means = [
            f"{found[metric].value:.{digits}f}" if metric in found else "-"
            for metric, digits in CORRUPTION_COLUMNS.values()
        ]
        table.add_row(mine[0].set.partition("/")[2], *severities, *means)
    return table
