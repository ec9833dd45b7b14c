"""Compare two checkpoints on the same images, from the CSV files that eval.predictions writes.

The difference is paired, image by image, so images that are hard for both checkpoints add no noise.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from relabel.data.class_names import class_labels
from relabel.evaluation.predictions import SavedPredictions
from relabel.evaluation.results import ece_and_nll, number_table
from utils.errors import UserError
from utils.progress import print_lines

RESAMPLES, SEED = 10_000, 0
MOST_CHANGED = 5  # classes on the screen that gained, and that lost
INTERVAL = (2.5, 97.5)  # percentiles of the resampled differences: 95 %
FIRST, SECOND = "first", "second"
LONGEST_NAME = 18  # of a run, in a table of 80 columns
OTHER_SEEDS = "The interval covers the choice of images, not the seed: train with others too."


def names_of(first: SavedPredictions, second: SavedPredictions) -> tuple[str, str]:
    """Return the names of the two run folders, or "first" and "second" if they are in one or have the same name."""
    names = [saved.path.absolute().parent.name for saved in (first, second)]
    one, other = (name if len(name) <= LONGEST_NAME else f"{name[:6]}…{name[7 - LONGEST_NAME :]}" for name in names)
    return (one, other) if one != other else (FIRST, SECOND)


@dataclass(frozen=True, slots=True)
class Difference:
    """Paired difference of two checkpoints in one metric.

    Fields:
        metric: top1_percent or top1_in_set_percent.
        n: number of images compared.
        first_percent, second_percent: accuracy of each.
        only_first, only_second: number of images that only this one classifies correctly.
        difference_points: second - first, percentage points.
        low95, high95: 95 % bootstrap interval of the difference, over images.
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


def compare(first: SavedPredictions, second: SavedPredictions) -> list[Difference]:
    """Return the paired difference in top-1, and that by own labels on images that have them in both files.

    Raises:
        UserError: the files differ in their images or labels, with the first difference; or all predictions are equal.
    """
    _check_same_images(first, second)
    if first.top1 == second.top1 and np.array_equal(first.label_probability, second.label_probability):
        raise UserError(
            f"{first.path} and {second.path} contain the same predictions: they are the same file, or of the same "
            "weights. Give the predictions of two checkpoints"
        )
    differences = [paired_difference("top1_percent", first.correct, second.correct)]
    if first.in_set is not None and second.in_set is not None:
        in_set = np.array([first.in_set, second.in_set])
        labelled = (in_set != "").all(axis=0)
        if labelled.any():
            differences.append(paired_difference("top1_in_set_percent", *(in_set[:, labelled] == "1")))
    return differences


def paired_difference(metric: str, first: np.ndarray, second: np.ndarray) -> Difference:
    """Compare which images two checkpoints classify correctly, bool [n] each.

    The interval is the percentile bootstrap over images (Efron 1979). Each image contributes -1, 0 or 1, so resampling
    n images amounts to drawing three counts from a multinomial distribution, which is exact and fast.
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


def only_right(first: SavedPredictions, second: SavedPredictions) -> list[str]:
    """Return for each image "first" or "second" if only that one classifies it correctly, else ""."""
    pairs = zip(first.correct.tolist(), second.correct.tolist(), strict=True)
    return ["" if one == other else FIRST if one else SECOND for one, other in pairs]


def readable_names(first: SavedPredictions, second: SavedPredictions) -> dict[str, str]:
    """Return class -> readable name, for the labels and answers; "" is the answer "no class"."""
    labels = sorted({*first.labels, *first.top1, *second.top1})
    return dict(zip(labels, class_labels(labels), strict=True)) | {"": "no class"}


@dataclass(frozen=True, slots=True)
class ClassChange:
    """How many images of a class each of two checkpoints classifies correctly.

    Fields:
        class_name: as its folder is named.
        name: readable.
        images: number of its images.
        only_first, only_second: number of images that only this checkpoint classifies correctly.
    """

    class_name: str
    name: str
    images: int
    only_first: int
    only_second: int

    @property
    def gain(self) -> int:
        """Number of images that the second classifies correctly, minus those of the first."""
        return self.only_second - self.only_first


def class_changes(first: SavedPredictions, second: SavedPredictions) -> list[ClassChange]:
    """Return the change of each class, those that gain most first; the predictions are of the same images."""
    names = sorted({*first.labels})
    images, only = Counter(first.labels), (Counter[str](), Counter[str]())
    for label, one, other in zip(first.labels, first.top1, second.top1, strict=True):
        if (one == label) != (other == label):
            only[other == label][label] += 1
    changes = [
        ClassChange(label, name, images[label], only[0][label], only[1][label])
        for label, name in zip(names, class_labels(names), strict=True)
    ]
    return sorted(changes, key=lambda change: -change.gain)


def _check_same_images(first: SavedPredictions, second: SavedPredictions) -> None:
    rows = (zip(saved.images, saved.labels, strict=True) for saved in (first, second))
    for line, (one, other) in enumerate(zip_longest(*rows, fillvalue=("nothing",)), start=2):
        if one != other:
            raise UserError(
                f"{first.path} has {len(first.images):,} images and {second.path} {len(second.images):,}; names or "
                f"labels differ: line {line} is {', '.join(one)} in the first and {', '.join(other)} in the second. "
                "Evaluate both checkpoints on the same image set, with --eval.predictions True"
            )


def print_differences(first: SavedPredictions, second: SavedPredictions, differences: Sequence[Difference]) -> None:
    """Print a table with a column for each metric, a verdict on each, and the calibration of both."""
    console, names = Console(), names_of(first, second)
    one, other = names
    width = max(map(len, names)) + 1
    files = "\n".join(f"{name + ':':<{width}} {saved.path}" for name, saved in zip(names, (first, second), strict=True))
    console.print(f"\n{files}", highlight=False, markup=False, soft_wrap=True)
    table = number_table("", [d.metric for d in differences])
    rows = {
        "images": [f"{d.n:,}" for d in differences],
        one: [f"{d.first_percent:.2f} %" for d in differences],
        other: [f"{d.second_percent:.2f} %" for d in differences],
        f"only {one} is right": [f"{d.only_first:,}" for d in differences],
        f"only {other} is right": [f"{d.only_second:,}" for d in differences],
        f"{other} - {one}, points": [f"{d.difference_points:+.2f}" for d in differences],
        "95 % interval": [f"{d.low95:+.2f} to {d.high95:+.2f}" for d in differences],
    }
    for name, cells in rows.items():
        table.add_row(Text(name), *cells)
    console.print(table)
    for d in differences:
        print_lines(f"{d.metric}: {verdict(d, names)}")
    print_lines(OTHER_SEEDS)
    found = zip(names, map(calibration, (first, second)), strict=True)
    print_lines("\n".join(f"{name + ':':<{width}} ECE {ece:.1f} %, NLL {nll:.3f} nats" for name, (ece, nll) in found))


def calibration(saved: SavedPredictions) -> tuple[float, float]:
    """Return ECE in percent and NLL in nats, which depend on all probabilities, not only on which class is first."""
    return ece_and_nll(saved.top1_probability, saved.correct, saved.label_probability)


def print_changes(changes: Sequence[ClassChange], names: tuple[str, str]) -> None:
    """Print the classes that gained and lost most, 80 characters wide; nothing if there is one class or no change."""
    gained, lost = ([c for c in changes if sign * c.gain > 0] for sign in (1, -1))
    if len(changes) < 2 or not gained + lost:
        return
    console = Console()
    heading = f"\nof {len(changes):,} classes, {len(gained):,} gained and {len(lost):,} lost, counted in images"
    console.print(heading, highlight=False)
    table = number_table("class", ["images", *(f"only {name}" for name in names), "gain"])
    table.columns[0].overflow, table.columns[0].max_width = "ellipsis", 28
    for change in [*gained[:MOST_CHANGED], *lost[-MOST_CHANGED:]]:
        counts = (f"{n:,}" for n in (change.images, change.only_first, change.only_second))
        table.add_row(Text(change.name), *counts, f"{change.gain:+,}")
    console.print(table)
    console.print("A class has few images: a gain or loss of some of them may be chance.", highlight=False)


def print_moved(first: SavedPredictions, second: SavedPredictions) -> None:
    """Print the first images that only one classifies correctly, with the answer of the other."""
    only, names, labels = only_right(first, second), names_of(first, second), readable_names(first, second)
    for which, (name, other), wrong in ((FIRST, names, second), (SECOND, names[::-1], first)):
        moved = [row for row, right in enumerate(only) if right == which]
        for row in moved[:MOST_CHANGED]:
            print_lines(f"only {name} is right: {first.images[row]} ({other}: {labels[wrong.top1[row]]})")
        if len(moved) > MOST_CHANGED:
            print_lines(f"only {name} is right: {len(moved) - MOST_CHANGED:,} more; --json FILE lists all")


def verdict(difference: Difference, names: tuple[str, str]) -> str:
    """Return the conclusion from an interval, in words."""
    if difference.low95 > 0 or difference.high95 < 0:
        return f"{names[difference.low95 > 0]} is better on images like these"
    if not difference.only_first + difference.only_second:
        return "both are right on the same images, which gives no interval for other images"
    return "the difference is within the uncertainty of these images"


def as_record(
    first: SavedPredictions,
    second: SavedPredictions,
    differences: Sequence[Difference],
    changes: Sequence[ClassChange],
) -> dict[str, Any]:
    """Return plain values for JSON; `images` are those that only one classifies correctly, with both answers."""
    rows = zip(first.images, only_right(first, second), first.labels, first.top1, second.top1, strict=True)
    return {
        "first": str(first.path),
        "second": str(second.path),
        "interval": f"bootstrap over images, {RESAMPLES:,} resamples, seed {SEED}",
        "differences": [asdict(difference) for difference in differences],
        "classes": [{**asdict(change), "gain": change.gain} for change in changes],
        "calibration": {
            which: dict(zip(("ece_percent", "nll_nats"), calibration(saved), strict=True))
            for which, saved in ((FIRST, first), (SECOND, second))
        },
        "images": {
            name: {"right": right, "label": label, FIRST: one, SECOND: other}
            for name, right, label, one, other in rows
            if right
        },
    }
