"""Which classes an evaluation gets right, and which it confuses: for the screen, as CSV, and for figures."""

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.text import Text

from relabel.data.class_names import class_labels
from relabel.evaluation.results import number_table
from relabel.training.validation import NO_CLASS, Predictions
from utils.files import replacing

MOST_DRAWN = 50  # classes of a confusion matrix that can be read
WORST = 10  # classes or pairs on the screen
OTHERS = "others"
NO_CLASS_NAME = "no class"  # predicted where the logits are not finite
CLASS_COLUMNS = ("class", "name", "images", "top1_percent", "wrong_class", "wrong_name", "wrong_images")
PAIR_COLUMNS = ("class", "name", "predicted_class", "predicted_name", "images", "percent_of_class")


@dataclass(frozen=True, slots=True)
class Confusion:
    """How often images of one class were predicted as another one.

    Fields:
        label, predicted: positions in the class names; predicted may be NO_CLASS.
        images: their number.
    """

    label: int
    predicted: int
    images: int


@dataclass(frozen=True, slots=True)
class ClassResult:
    """The result of one class.

    Fields:
        label: its position in the class names.
        images: number of its images.
        correct: number of those classified correctly.
        worst: its most frequent wrong prediction; None: all are correct.
    """

    label: int
    images: int
    correct: int
    worst: Confusion | None

    @property
    def top1_percent(self) -> float:
        """Percentage of its images that are classified correctly."""
        return 100 * self.correct / self.images


@dataclass(frozen=True, slots=True, eq=False)
class ClassResults:
    """The results of every class that has images.

    Fields:
        class_names: K texts, as folders are named.
        classes: those with images, in the order of class_names.
        confusions: all wrong predictions, the most frequent first.
    """

    class_names: Sequence[str]
    classes: Sequence[ClassResult]
    confusions: Sequence[Confusion]

    @classmethod
    def of(cls, predictions: Predictions) -> "ClassResults":
        """Count predictions."""
        pairs = Counter(zip(predictions.labels.tolist(), predictions.top1.tolist(), strict=True))
        wrong = [Confusion(label, top1, n) for (label, top1), n in sorted(pairs.items()) if label != top1]
        wrong.sort(key=lambda confusion: -confusion.images)
        worst = {confusion.label: confusion for confusion in reversed(wrong)}
        totals = Counter(predictions.labels.tolist())
        classes = [ClassResult(c, totals[c], pairs[c, c], worst.get(c)) for c in sorted(totals)]
        return cls(predictions.class_names, classes, wrong)

    def worst_first(self) -> list[ClassResult]:
        """Return the classes, those with the lowest accuracy first."""
        return sorted(self.classes, key=lambda found: found.top1_percent)

    def names(self) -> dict[int, str]:
        """Return the readable name of each class."""
        return dict(enumerate(class_labels(self.class_names))) | {NO_CLASS: NO_CLASS_NAME}

    def matrix(self) -> tuple[np.ndarray, list[str]]:
        """Return the confusion matrix of the classes with images, and the readable names of its columns.

        Returns:
            int64 [n, n], or [n, n + 1] if any image was predicted as a class that has none: those are in the last
            column, OTHERS. Rows are labels; row i and column i are the same class.
        """
        row_of = {found.label: row for row, found in enumerate(self.classes)}
        n, names = len(row_of), self.names()
        counts = np.zeros((n, n + 1), np.int64)
        for found in self.classes:
            counts[row_of[found.label], row_of[found.label]] = found.correct
        for pair in self.confusions:
            counts[row_of[pair.label], row_of.get(pair.predicted, n)] += pair.images
        columns = [names[found.label] for found in self.classes]
        return (counts, [*columns, OTHERS]) if counts[:, n].any() else (counts[:, :n], columns)


@dataclass(frozen=True, slots=True)
class Figures:
    """Functions that draw, from a room above this one.

    Fields:
        confusion: draws `ClassResults.matrix` into a PNG file.
        reliability: draws into a PNG file how often predictions [N] of a confidence [N] are correct.
    """

    confusion: Callable[[Path, np.ndarray, Sequence[str], str], None]
    reliability: Callable[[Path, np.ndarray, np.ndarray, str], None]


def write_class_results(
    found: ClassResults, predictions: Predictions, path_of: Callable[[str, str], Path], figures: Figures, title: str
) -> dict[str, Path]:
    """Write the accuracy of each class, a confusion matrix, the pairs that it does not show, and a reliability diagram.

    Args:
        found: of these predictions.
        predictions: of val/.
        path_of: what and extension -> path.
        figures: the functions that draw.
        title: of the figures.

    Returns:
        description -> path of each file.

    Raises:
        UserError: a file cannot be written.
    """
    files = {"accuracy of each class": path_of("classes", ".csv")}
    write_classes(files["accuracy of each class"], found)
    shows_all = False
    if 1 < len(found.classes) <= MOST_DRAWN:
        files["confusion matrix"] = path_of("confusion", ".png")
        counts, names = found.matrix()
        figures.confusion(files["confusion matrix"], counts, names, title)
        shows_all = OTHERS not in names[len(counts) :]
    if found.confusions and not shows_all:
        files["confused pairs"] = path_of("confused", ".csv")
        write_confusions(files["confused pairs"], found)
    files["reliability diagram"] = path_of("reliability", ".png")
    figures.reliability(files["reliability diagram"], predictions.top1_probability, predictions.correct, title)
    return files


def write_classes(path: Path, found: ClassResults) -> None:
    """Write the CSV file of all classes, the lowest accuracy first. UserError if it cannot be written."""
    names = found.names()

    def row(result: ClassResult) -> list[object]:
        wrong = result.worst
        taken_for = [_folder(found, wrong.predicted), names[wrong.predicted], wrong.images] if wrong else ["", "", 0]
        percent = f"{result.top1_percent:.2f}"
        return [found.class_names[result.label], names[result.label], result.images, percent, *taken_for]

    _write_csv(path, CLASS_COLUMNS, map(row, found.worst_first()))


def write_confusions(path: Path, found: ClassResults) -> None:
    """Write the CSV file of all confused pairs, the most frequent first. UserError if it cannot be written."""
    names, images_of = found.names(), {result.label: result.images for result in found.classes}
    rows = (
        [
            *(found.class_names[pair.label], names[pair.label]),
            *(_folder(found, pair.predicted), names[pair.predicted]),
            *(pair.images, f"{100 * pair.images / images_of[pair.label]:.2f}"),
        ]
        for pair in found.confusions
    )
    _write_csv(path, PAIR_COLUMNS, rows)


def _folder(found: ClassResults, index: int) -> str:
    return "" if index == NO_CLASS else found.class_names[index]


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        csv.writer(file, lineterminator="\n").writerows([columns, *rows])


def print_worst_classes(found: ClassResults, title: str) -> None:
    """Print the classes with the lowest accuracy, and of many classes the pairs confused most; 80 characters wide."""
    if len(found.classes) < 2:
        return
    console, names = Console(), found.names()
    shown = found.worst_first()[:WORST]
    few = f"the worst {WORST} of {len(found.classes):,} classes" if len(found.classes) > WORST else "each class"
    console.print(f"\ntop-1 of {few}{title}", highlight=False, markup=False)
    table = number_table("class", ["images", "top-1 %"])
    table.columns[0].overflow, table.columns[0].max_width = "ellipsis", 30
    table.add_column("most often taken for", no_wrap=True, overflow="ellipsis", max_width=34)
    for result in shown:
        wrong = f"{names[result.worst.predicted]} ({result.worst.images:,})" if result.worst else ""
        table.add_row(Text(names[result.label]), f"{result.images:,}", f"{result.top1_percent:.1f}", Text(wrong))
    console.print(table)
    if len(found.classes) > MOST_DRAWN and found.confusions:
        console.print("\nmost confused pairs", highlight=False)
        pairs = number_table("class", [])
        pairs.columns[0].overflow, pairs.columns[0].max_width = "ellipsis", 30
        pairs.add_column("predicted", no_wrap=True, overflow="ellipsis", max_width=34)
        pairs.add_column("images", justify="right", no_wrap=True)
        for pair in found.confusions[:WORST]:
            pairs.add_row(Text(names[pair.label]), Text(names[pair.predicted]), f"{pair.images:,}")
        console.print(pairs)
