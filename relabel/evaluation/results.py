"""Metrics of an evaluation: each value with its set, unit and protocol, as JSON records and as tables."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from relabel.training.validation import Predictions
from utils.metrics import expected_calibration_error

VAL, CORRUPTIONS = "val", "imagenet_c"
SEVERITIES = ("1", "2", "3", "4", "5")
CORRUPTION_COLUMNS = {"mean": "error_percent", "CE %": "ce_percent", "ECE %": "ece_percent", "NLL": "nll_nats"}


@dataclass(frozen=True, slots=True)
class Result:
    """One measured value.

    Fields:
        set: name of the image set, such as val or imagenet_v2/matched-frequency.
        metric: ends in its unit: top1_percent, nll_nats.
        value: in that unit.
        n: number of images measured.
        protocol: how it was measured, in a few words.
        parts: the values per class or severity of which this is the mean; empty for a mean over images.
    """

    set: str
    metric: str
    value: float
    n: int
    protocol: str
    parts: Mapping[str, float] = field(default_factory=dict)

    def as_record(self) -> dict[str, Any]:
        """Return plain values for JSON, without empty parts."""
        return {name: value for name, value in asdict(self).items() if name != "parts" or value}


def accuracy_results(name: str, predictions: Predictions, protocol: str) -> list[Result]:
    """Return top-1 accuracy on the image set of this name; of more than five classes also top-5."""
    n, hits = len(predictions), {"top1_percent": predictions.correct}
    if len(predictions.class_names) > 5:
        hits["top5_percent"] = (predictions.top5 == predictions.labels[:, None]).any(axis=1)
    return [Result(name, metric, percent(hit), n, protocol) for metric, hit in hits.items()]


def calibration_results(name: str, predictions: Predictions) -> list[Result]:
    """Return ECE and NLL on the image set of this name; the NLL clips probabilities at float32's smallest (87 nats)."""
    n = len(predictions)
    ece, nll = ece_and_nll(predictions.top1_probability, predictions.correct, predictions.label_probability)
    return [
        Result(name, "ece_percent", ece, n, "top-1, 15 equal bins"),
        Result(name, "nll_nats", nll, n, "of the label"),
    ]


def ece_and_nll(
    top1_probability: np.ndarray, correct: np.ndarray, label_probability: np.ndarray
) -> tuple[float, float]:
    """Return the ECE in percent and the NLL in nats; all arrays are [N]."""
    clipped = np.maximum(label_probability.astype(np.float64), np.finfo(np.float32).tiny)
    return expected_calibration_error(top1_probability, correct), abs(float(np.log(clipped).mean()))


def percent(correct: np.ndarray) -> float:
    """Return the percentage of True in a bool [n]."""
    return 100.0 * float(correct.mean())


def print_results(results: Mapping[str, Sequence[Result]], title: str, console: Console | None = None) -> None:
    """Print tables 80 characters wide: one of all image sets, and one of ImageNet-C's corruptions.

    Args:
        results: name of the weights -> their results; all have the same metrics in the same order.
        title: printed above, on one line.
        console: None prints to stdout.
    """
    console = console or Console()
    table = number_table("set, metric", [*(results if len(results) > 1 else ["value"]), "n"])
    table.add_column("protocol", style="dim")
    rows = [row for row in zip(*results.values(), strict=True) if not _is_corruption(row[0])]
    for name, group in groupby(rows, key=lambda row: row[0].set):
        table.add_row(Text(name, style="bold"))
        for row in group:
            first, values = row[0], map(_formatted, row)
            table.add_row(f"  {first.metric}", *values, f"{first.n:,}", Text(first.protocol))
    console.print(Text(f"\n{title}", style="bold"), soft_wrap=True)
    if rows:
        console.print(table)
    for weights, own_results in results.items():
        if corruptions := list(filter(_is_corruption, own_results)):
            counts = sorted({result.n for result in corruptions})
            n = f"n = {counts[0]:,}" + (f" to {counts[-1]:,}" if len(counts) > 1 else "")
            of_weights = f" ({weights})" if len(results) > 1 else ""
            console.print(f"\nImageNet-C{of_weights}: error % by severity, mean; {n} per corruption", highlight=False)
            console.print(_corruption_table(corruptions))


def number_table(first_heading: str, number_headings: Iterable[str]) -> Table:
    """Make an empty table with a text column and columns of numbers."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    table.add_column(first_heading, no_wrap=True)
    for heading in number_headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _formatted(result: Result) -> str:
    """Format the value with 2 decimals for percentages, 3 for nats, none for counts."""
    decimals = {"percent": 2, "nats": 3}.get(result.metric.rpartition("_")[2], 0)
    return f"{result.value:,.{decimals}f}"


def _is_corruption(result: Result) -> bool:
    return result.set.startswith(f"{CORRUPTIONS}/")


def _corruption_table(results: Sequence[Result]) -> Table:
    """Make the table with a row for each corruption: its error at each severity, their mean, CE, ECE and NLL."""
    table = number_table("corruption", [*SEVERITIES, *CORRUPTION_COLUMNS])
    for name, group in groupby(results, key=lambda result: result.set):
        by_metric = {result.metric: result for result in group}
        errors = by_metric["error_percent"].parts
        cells = [f"{errors[severity]:.1f}" if severity in errors else "-" for severity in SEVERITIES]
        for metric in CORRUPTION_COLUMNS.values():
            decimals = 2 if metric == "nll_nats" else 1
            cells.append(f"{by_metric[metric].value:.{decimals}f}" if metric in by_metric else "-")
        table.add_row(name.partition("/")[2], *cells)
    return table
