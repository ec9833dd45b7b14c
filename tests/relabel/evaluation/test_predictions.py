"""Predictions as a CSV file."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from relabel.evaluation.predictions import COLUMNS, read_predictions, write_predictions
from relabel.training.validation import NO_CLASS, Predictions
from utils.errors import UserError

HEADER = ",".join(COLUMNS)


def test_predictions_are_written_and_read_back(tmp_path: Path) -> None:
    predictions = Predictions(
        names=np.array([b"a cat, black/1.jpg", b"dog/\xff.jpg", b"dog/3.jpg"]),
        labels=np.array([0, 1, 1]),
        class_names=["a cat, black", "dog", 'a "fox"'],
        top5=np.array([[2, 0, 1], [1, 0, 2], [NO_CLASS] * 3]),
        top1_probability=np.array([0.5, 2 / 3, 0], dtype=np.float32),
        label_probability=np.array([0.25, 2 / 3, 0], dtype=np.float32),
        probabilities=None,
    )
    write_predictions(tmp_path / "p.csv", predictions, np.array([0, 1, NO_CLASS]))
    with (tmp_path / "p.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["image", "label", "top1", "top1_probability", "label_probability", "top5", "in_set"],
        ["a cat, black/1.jpg", "a cat, black", 'a "fox"', "0.5", "0.25", 'a "fox"/a cat, black/dog', "0"],
        [os.fsdecode(b"dog/\xff.jpg"), "dog", "dog", "0.666667", "0.666667", 'dog/a cat, black/a "fox"', "1"],
        ["dog/3.jpg", "dog", "", "0", "0", "", ""],
    ]
    found = read_predictions(tmp_path / "p.csv")
    assert found.images == tuple(row[0] for row in rows[1:]) and found.labels == ("a cat, black", "dog", "dog")
    assert found.top1 == ('a "fox"', "dog", "") and found.in_set == ("0", "1", "")
    assert found.label_probability.tolist() == [0.25, 0.666667, 0]
    write_predictions(tmp_path / "p.csv", predictions)
    assert read_predictions(tmp_path / "p.csv").in_set is None


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "begins with ''; expected image,label,top1"),
        ("image,label\n", "begins with 'image,label'; expected image,label,top1,"),
        ('\x89PNG "a" b\n', "begins with '.*PNG"),
        (f'{HEADER}\n"a"b', "cannot be read as CSV"),
        (f"{HEADER}\n", "contains no images"),
        (f"{HEADER}\na/1,a,a,0.9,0.9\n", "line 2: found 5 values, expected 6"),
        (f"{HEADER}\na/1,a,a,0.9,high,a\n", "'high'"),
        (f"{HEADER}\na/1,a,a,0.9,0.9,a\na/2,a,a,1.5,0.9,a\n", r"found the probability 1.5; .* 0..1"),
        (f"{HEADER}\na/1,a,a,0.9,nan,a\n", "found the probability nan"),
        (f"{HEADER},in_set\na/1,a,a,0.9,0.9,a,2\n", "found in_set = '2'; expected 0, 1 or nothing"),
    ],
)
def test_malformed_files_are_refused(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(UserError, match=f"(?s)p.csv: .*{match}.*--eval.predictions True"):
        read_predictions(tmp_path / "p.csv")
