"""Two checkpoints on the same images, from the CSV files of eval.predictions: which is better, and how sure that is.

Both saw the same images, so the difference is taken image by image: what is hard for both does not blur it.
"""

import csv
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from relabel.evaluation.predictions import COLUMNS
from utils.errors import UserError

RESAMPLES, SEED = 10_000, 0
INTERVAL = (2.5, 97.5)  # percentiles that hold 95 % of the resampled differences
IN_SET = "in_set"
ADVICE = "Give the CSV file that an evaluation with --eval.predictions True writes"


@dataclass(frozen=True, slots=True, eq=False)
class SavedPredictions:
    """What one checkpoint said of N images, as write_predictions wrote it.

    Fields:
        path: the file.
        images, labels, top1: N texts each; top1 is "" where the logits were no numbers.
        top1_probability, label_probability: float64 [N].
        in_set: N texts "1", "0" or "" (no true labels); None without that column.
    """

    path: Path
    images: tuple[str, ...]
    labels: tuple[str, ...]
    top1: tuple[str, ...]
    top1_probability: np.ndarray
    label_probability: np.ndarray
    in_set: tuple[str, ...] | None

    def __len__(self) -> int:
        """N."""
        return len(self.images)


@dataclass(frozen=True, slots=True)
class Difference:
    """How much better the second checkpoint is by one metric.

    Fields:
        metric: top1_percent or top1_in_set_percent.
        n: images that count.
        first_percent, second_percent: right answers.
        only_first, only_second: images that one of the two got right.
        difference_points: second - first, percentage points.
        low95, high95: its bootstrap interval over images.
    """

    metric: str
    n: int
    first_percent: float
    second_percent: float
    only_first: int
    only_second: int
    difference_points: float
    low95: float
    high95: float


def read_predictions(path: Path) -> SavedPredictions:
    """Read such a CSV file; every value is checked.

    Raises:
        UserError: it is no such file; names the line and the value.
    """
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            lines = list(csv.reader(file, strict=True))
    except (OSError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as CSV ({error}). {ADVICE}") from None
    header = tuple(lines[0]) if lines else ()
    if header not in (COLUMNS, (*COLUMNS, IN_SET)):
        raise UserError(
            f"{path}: found a first line of {','.join(header)[:200]!r}; expected {','.join(COLUMNS)}, and {IN_SET} "
            f"where there were true labels. {ADVICE}"
        )
    rows = [_checked(path, number, row, header) for number, row in enumerate(lines[1:], start=2)]
    if not rows:
        raise UserError(f"{path} has no image. {ADVICE}")
    columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    ((image, times),) = Counter(columns["image"]).most_common(1)
    if times > 1:
        raise UserError(f"{path} has the image {image!r} {times} times; expected each once. {ADVICE}")
    return SavedPredictions(
        path,
        images=columns["image"],
        labels=columns["label"],
        top1=columns["top1"],
        top1_probability=np.array(columns["top1_probability"], np.float64),
        label_probability=np.array(columns["label_probability"], np.float64),
        in_set=columns.get(IN_SET),
    )


def _checked(path: Path, line: int, row: Sequence[str], header: Sequence[str]) -> Sequence[str]:
    """A line of the file. UserError where a value is not what its column holds."""
    if len(row) != len(header):
        raise UserError(f"{path}, line {line}: found {len(row)} values, expected {len(header)}. {ADVICE}")
    for name, text in zip(header, row, strict=True):
        if name.endswith("_probability") and not _is_share(text):
            raise UserError(f"{path}, line {line}: found {name} = {text!r}, expected a number in 0..1. {ADVICE}")
        if name == IN_SET and text not in ("0", "1", ""):
            raise UserError(f"{path}, line {line}: found {name} = {text!r}, expected 0, 1 or nothing. {ADVICE}")
    return row


def _is_share(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False


def compare(first: SavedPredictions, second: SavedPredictions) -> list[Difference]:
    """The differences by top-1, and by own true labels where both have them.

    Raises:
        UserError: the two are not about the same images and labels; names the first difference.
    """
    _check_same(first, second, "images")
    _check_same(first, second, "labels")
    right = [np.array(found.top1) == np.array(found.labels) for found in (first, second)]
    differences = [paired_difference("top1_percent", *right)]
    if first.in_set is not None and second.in_set is not None:
        in_set = [np.array(found.in_set) for found in (first, second)]
        known = in_set[0] != ""
        if (known != (in_set[1] != "")).any():
            raise UserError(
                f"{first.path} and {second.path} have true labels of different images. Evaluate both with the same "
                "--eval.labels"
            )
        if known.any():
            differences.append(paired_difference("top1_in_set_percent", *(found[known] == "1" for found in in_set)))
    return differences


def paired_difference(metric: str, first: np.ndarray, second: np.ndarray) -> Difference:
    """Of two checkpoints' right answers on the same images, bool [n] each.

    The interval is the percentile bootstrap over images (Efron 1979). An image is -1, 0 or 1 for the second checkpoint,
    so n images drawn with replacement are three counts, drawn at once from a multinomial distribution: exact.
    """
    n = len(first)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    shares = np.array([only_first, only_second, n - only_first - only_second]) / n
    counts = np.random.default_rng(SEED).multinomial(n, shares, size=RESAMPLES)
    low, high = np.percentile(100 * (counts[:, 1] - counts[:, 0]) / n, INTERVAL)
    return Difference(
        metric,
        n,
        first_percent=100 * float(first.mean()),
        second_percent=100 * float(second.mean()),
        only_first=only_first,
        only_second=only_second,
        difference_points=100 * (only_second - only_first) / n,
        low95=float(low),
        high95=float(high),
    )


def _check_same(first: SavedPredictions, second: SavedPredictions, what: str) -> None:
    columns = (getattr(first, what), getattr(second, what))
    for number, (one, other) in enumerate(zip_longest(*columns), start=2):
        if one != other:
            image = f" of {first.images[number - 2]!r}" if what == "labels" else ""
            raise UserError(
                f"{first.path} has {len(first):,} images and {second.path} {len(second):,}, and they are not the same: "
                f"in line {number}, the {what[:-1]}{image} is {_said(one)} there and {_said(other)} here. Evaluate "
                "both checkpoints on one image set, with --eval.predictions True"
            )


def _said(name: str | None) -> str:
    return "missing" if name is None else repr(name)


def print_differences(first: Path, second: Path, differences: Sequence[Difference]) -> None:
    """The table on the screen, a column a metric, and in words what it says."""
    console = Console()
    console.print(f"\nfirst:  {first}\nsecond: {second}", highlight=False, markup=False, soft_wrap=True)
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("")
    for found in differences:
        table.add_column(found.metric, justify="right", no_wrap=True)
    rows: dict[str, Callable[[Difference], str]] = {
        "images": lambda found: f"{found.n:,}",
        "first": lambda found: f"{found.first_percent:.2f} %",
        "second": lambda found: f"{found.second_percent:.2f} %",
        "only the first is right": lambda found: f"{found.only_first:,}",
        "only the second is right": lambda found: f"{found.only_second:,}",
        "second - first, points": lambda found: f"{found.difference_points:+.2f}",
        "95 % interval": lambda found: f"{found.low95:+.2f} to {found.high95:+.2f}",
    }
    for heading, figure in rows.items():
        table.add_row(heading, *map(figure, differences))
    console.print(table)
    for found in differences:
        console.print(f"{found.metric}: {verdict(found)}", highlight=False)


def verdict(found: Difference) -> str:
    """What an interval says, in words."""
    if found.low95 > 0 or found.high95 < 0:
        return f"the {'second' if found.low95 > 0 else 'first'} is better on images like these"
    if not found.only_first + found.only_second:
        return "both are right on the same images, so the interval is a point and says nothing about others"
    return "these images do not say which is better"


def as_record(first: Path, second: Path, differences: Sequence[Difference]) -> dict[str, Any]:
    """Plain values for JSON."""
    return {
        "first": str(first),
        "second": str(second),
        "interval": f"bootstrap over images, {RESAMPLES:,} resamples, seed {SEED}",
        "differences": [asdict(found) for found in differences],
    }
