"""Own true labels of the images in val/, any number for each image: how many predictions are among them.

    TSV: a line per image and class, as `python -m relabel export-labels --form multi-hot` writes it:
        image       class
        ant/1.jpg   ant
    JSON: {"ant/1.jpg": ["ant", "bee"]}, or {"ant/1.jpg": {"labels": [0, 1]}} as val.json of the scenes

A class is a name, or in JSON a position among the checkpoint's classes, from 0.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from relabel.data.images import ImageList
from relabel.evaluation.predictions import NO_CLASS, Predictions
from relabel.evaluation.results import VAL, Result, percent
from utils.errors import UserError
from utils.files import read_json
from utils.metrics import accuracy_of_classes, in_true_set, mean_average_precision

HEADER = "image\tclass"
EXPECTED = (
    f"expected a TSV file with the header {HEADER!r} and a line per image and class, or a .json file such as "
    '{"CLASS/FILE": ["class", ...]}, as `python -m relabel export-labels --form multi-hot` writes both'
)


@dataclass(frozen=True, slots=True, eq=False)
class TrueLabels:
    """The classes of each image.

    Fields:
        truth: bool [N, K]; nothing is asked about an image without any.
    """

    truth: np.ndarray

    def results(self, predictions: Predictions) -> list[Result]:
        """Top-1 in the set, mAP and per-class accuracy; the predictions need all probabilities."""
        assert predictions.probabilities is not None
        labelled = self.truth.any(axis=1)
        truth, labels = self.truth[labelled], predictions.labels[labelled]
        right = in_true_set(predictions.top1[labelled], truth)
        classes = {predictions.class_names[label]: share for label, share in accuracy_of_classes(right, labels).items()}
        precision = mean_average_precision(predictions.probabilities[labelled], truth)
        mean, n, present = float(np.mean(list(classes.values()))), len(right), int(truth.any(axis=0).sum())
        of_folders = f"own labels: in set, mean of {len(classes):,} folders"
        return [
            Result(VAL, "top1_in_set_percent", percent(right), n, "own labels: one of its classes"),
            Result(VAL, "map_percent", precision, n, f"own labels: average precision, mean of {present:,} classes"),
            Result(VAL, "class_accuracy_percent", mean, n, of_folders, classes),
        ]

    def in_set(self, predictions: Predictions) -> np.ndarray:
        """int64 [N]; 1 where top-1 is one of the image's classes, 0 where not, NO_CLASS where it has none."""
        right = in_true_set(predictions.top1, self.truth)
        return np.where(self.truth.any(axis=1), right, NO_CLASS)


def read_true_labels(path: Path, images: ImageList) -> tuple[TrueLabels, list[str]]:
    """Read own labels; and notes for the person.

    Args:
        path: of the file; one that ends in .json is JSON, any other TSV.
        images: of val/; with the checkpoint's K class names.

    Raises:
        UserError: the file is of another form, names an unknown class, or labels none of the images.
    """
    rows = {images.name(row): row for row in range(len(images))}
    position = {name: index for index, name in enumerate(images.class_names)}
    truth = np.zeros((len(images), len(position)), dtype=bool)
    strange: dict[str, None] = {}  # in the order of the file
    unknown: dict[str, None] = {}
    for name, label in _json_pairs(path) if path.suffix == ".json" else _tsv_pairs(path):
        index = position.get(label, NO_CLASS) if isinstance(label, str) else label
        if not 0 <= index < len(position):
            unknown[str(label)] = None
        elif name in rows:
            truth[rows[name], index] = True
        else:
            strange[name] = None
    if unknown:
        raise UserError(
            f"{path}: found {len(unknown):,} classes that the checkpoint does not know, the first: "
            f"{next(iter(unknown))!r}; expected names such as {images.class_names[0]!r}, or in JSON positions in "
            f"0..{len(position) - 1}. Correct the file."
        )
    if not truth.any():
        found = f"names such as {next(iter(strange))!r}" if strange else "no label"
        raise UserError(
            f"{path} has labels for none of the {len(images):,} images of {images.root}: found {found}; expected names "
            f"such as {images.name(0)!r}. Correct the file, or --data.data_path."
        )
    notes = []
    if strange:
        first = next(iter(strange))
        notes.append(f"eval.labels: {len(strange):,} names are no image in val/, the first: {first}; they are left out")
    if without := int((~truth.any(axis=1)).sum()):
        first = images.name(int((~truth.any(axis=1)).argmax()))
        notes.append(f"eval.labels: {without:,} images have no label, the first: {first}; they are left out")
    return TrueLabels(truth), notes


def _json_pairs(path: Path) -> Iterator[tuple[str, str | int]]:
    content = read_json(path, EXPECTED)
    if not isinstance(content, dict):
        raise UserError(f"{path}: found {str(content)[:60]}; {EXPECTED}.")
    for name, entry in content.items():
        labels = entry.get("labels") if isinstance(entry, dict) else entry
        if not isinstance(labels, list) or not all(type(label) in (str, int) for label in labels):
            raise UserError(f"{path}: found {str(entry)[:60]} for {name!r}; {EXPECTED}.")
        yield from ((name, label) for label in labels)


def _tsv_pairs(path: Path) -> Iterator[tuple[str, str]]:
    try:
        lines = path.read_bytes().decode("utf-8-sig", "surrogateescape").replace("\r\n", "\n").split("\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {EXPECTED}.") from error
    if lines[0] != HEADER:
        raise UserError(f"{path}: found the first line {lines[0][:60]!r}; {EXPECTED}.")
    for number, line in enumerate(lines[1:], start=2):
        name, *labels = line.split("\t")
        if line and len(labels) != 1:
            raise UserError(f"{path}, line {number}: found {line[:60]!r}; expected CLASS/FILE, a tab and a class.")
        if line:
            yield name, labels[0]
