"""Predictions as a CSV file."""

import csv
import os
from pathlib import Path

import numpy as np

from relabel.evaluation.predictions import write_predictions
from relabel.training.validation import NO_CLASS, Predictions


def test_the_file_says_what_the_arrays_say(tmp_path: Path) -> None:
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
    write_predictions(tmp_path / "p.csv", predictions)
    assert (tmp_path / "p.csv").read_bytes().splitlines()[
        0
    ] == b"image,label,top1,top1_probability,label_probability,top5"
