"""Results by class: counted by hand, on the screen, in CSV files, and which figure or list a number of classes gets."""

import csv
from pathlib import Path

import numpy as np
import pytest

from relabel.evaluation.class_results import ClassResults, Figures, print_worst_classes, write_class_results
from relabel.training.validation import NO_CLASS, Predictions

TENCH, GOLDFISH, SHARK, LION = "n01440764", "n01443537", "n01484850", "n02129165"


def predictions(labels: list[int], top1: list[int], names: list[str]) -> Predictions:
    n, sure = len(labels), np.full(len(labels), 0.9, np.float32)
    return Predictions(np.full(n, b"x"), np.array(labels), names, np.array(top1)[:, None], sure, sure, None)


def by_hand() -> Predictions:
    """Class 0: 2 of 3 right; class 1: 1 of 4 right, 2 taken for class 0; class 3: 1 of 1; class 2 has no images."""
    return predictions([0, 0, 0, 1, 1, 1, 1, 3], [0, 0, 2, 1, 0, 0, NO_CLASS, 3], [TENCH, GOLDFISH, SHARK, LION])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(found: Predictions, folder: Path, drawn: list[object]) -> dict[str, Path]:
    figures = Figures(lambda *given: drawn.append(given), lambda *given: drawn.append(given))
    return write_class_results(
        ClassResults.of(found), found, lambda what, ending: folder / f"{what}{ending}", figures, "weights"
    )


def test_classes_and_confusions_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn: list[tuple[object, ...]] = []
    files = write(by_hand(), tmp_path, drawn)  # type: ignore[arg-type]
    assert [list(row.values()) for row in rows(files["accuracy of each class"])] == [
        [GOLDFISH, "goldfish", "4", "25.00", TENCH, "tench", "2"],
        [TENCH, "tench", "3", "66.67", SHARK, "great white shark", "1"],
        [LION, "lion", "1", "100.00", "", "", "0"],
    ]
    (path, counts, names, title), _ = drawn
    assert (path, names, title) == (tmp_path / "confusion.png", ["tench", "goldfish", "lion", "others"], "weights")
    assert np.array_equal(counts, [[2, 0, 0, 1], [2, 1, 0, 1], [0, 0, 1, 0]])  # type: ignore[arg-type]
    pairs = rows(files["confused pairs"])  # because the matrix does not name the others
    assert [(p["class"], p["predicted_name"], p["images"], p["percent_of_class"]) for p in pairs] == [
        (GOLDFISH, "tench", "2", "50.00"),
        (TENCH, "great white shark", "1", "33.33"),
        (GOLDFISH, "no class", "1", "25.00"),
    ]
    print_worst_classes(ClassResults.of(by_hand()), "")
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert printed[4:7] == [
        ["goldfish", "4", "25.0", "tench", "(2)"],
        ["tench", "3", "66.7", "great", "white", "shark", "(1)"],
        ["lion", "1", "100.0"],
    ]


def test_of_many_classes_the_worst_ten_and_the_pairs_confused_most_fit_80_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"a class with a very long name that goes on and on, number {i:03d}" for i in range(60)]
    labels = [i for i in range(60) for _ in range(3)]
    found = predictions(labels, [(label + (label < 20)) % 60 for label in labels], names)
    drawn: list[object] = []
    assert "confusion matrix" not in write(found, tmp_path, drawn) and len(drawn) == 1
    assert len(rows(tmp_path / "confused.csv")) == 20
    print_worst_classes(ClassResults.of(found), "")
    lines = capsys.readouterr().out.splitlines()
    assert "top-1 of the worst 10 of 60 classes" in lines and "most confused pairs" in lines
    assert max(map(len, lines)) <= 80 and len(lines) == 28
    print_worst_classes(ClassResults.of(predictions([0, 0], [0, 1], ["a", "b"])), "")
    assert capsys.readouterr().out == ""  # the only class
