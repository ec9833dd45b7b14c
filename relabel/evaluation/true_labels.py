"""Own labels of the images in val/, any number per image, and multi-label metrics.

    TSV: one line per image and class, as `python -m relabel export-labels --form multi-hot` writes it:
        image       class
        ant/1.jpg   ant
    JSON: {"ant/1.jpg": ["ant", "bee"]}, or {"ant/1.jpg": {"labels": [0, 1]}} like val.json of the scenes

A class is given by its name, or in JSON also by its position among the checkpoint's classes, from 0.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from relabel.data.images import ImageList
from relabel.evaluation.results import VAL, Result, percent
from relabel.training.validation import NO_CLASS, Predictions
from utils.errors import UserError
from utils.files import read_json
from utils.metrics import accuracy_of_classes, in_true_set, mean_average_precision

HEADER = "image\tclass"
EXPECTED = (
    f"expected a TSV file with the header {HEADER!r} and a line per image and class, as `python -m relabel "
    'export-labels --form multi-hot` writes it, or a .json file such as {"CLASS/FILE": ["class", ...]}'
)


@dataclass(frozen=True, slots=True, eq=False)
class TrueLabels:
    """The classes shown in each image.

    Fields:
        truth: bool [N, K]; images without a class are left out of every metric.
    """

    truth: np.ndarray

    def results(self, predictions: Predictions) -> list[Result]:
        """Return top-1 in the set, mAP and per-class accuracy; needs all probabilities."""
        assert predictions.probabilities is not None
        labelled = self.truth.any(axis=1)
        truth, labels = self.truth[labelled], predictions.labels[labelled]
        correct = in_true_set(predictions.top1[labelled], truth)
        folders = {predictions.class_names[c]: share for c, share in accuracy_of_classes(correct, labels).items()}
        precision = mean_average_precision(predictions.probabilities[labelled], truth)
        mean, n, present = float(np.mean(list(folders.values()))), len(correct), int(truth.any(axis=0).sum())
        of_folders = f"own labels: in set, mean of {len(folders):,} folders"
        return [
            Result(VAL, "top1_in_set_percent", percent(correct), n, "own labels: any of its classes"),
            Result(VAL, "map_percent", precision, n, f"own labels: AP, mean of {present:,} classes"),
            Result(VAL, "class_accuracy_percent", mean, n, of_folders, folders),
        ]

    def in_set(self, predictions: Predictions) -> np.ndarray:
        """Return int64 [N]: 1 if the top-1 class is one of the image's, 0 if not, NO_CLASS if the image has none."""
        return np.where(self.truth.any(axis=1), in_true_set(predictions.top1, self.truth), NO_CLASS)


def read_true_labels(path: Path, images: ImageList) -> tuple[TrueLabels, list[str]]:
    """Read own labels.

    Args:
        path: a .json file, or any other name for TSV.
        images: of val/, with the checkpoint's K class names.

    Returns:
        the labels, and notes on what is left out.

    Raises:
        UserError: the file is not of that form, contains an unknown class, or labels none of the images.
    """
    rows = {images.name(row): row for row in range(len(images))}
    position = {name: index for index, name in enumerate(images.class_names)}
    truth = np.zeros((len(images), len(position)), dtype=bool)
    unknown_images: list[str] = []
    for name, label in _json_pairs(path) if path.suffix == ".json" else _tsv_pairs(path):
        index = position.get(label, NO_CLASS) if isinstance(label, str) else label
        if not 0 <= index < len(position):
            raise UserError(
                f"{path}: found the class {label!r} of {name!r}, which the checkpoint does not have; expected names "
                f"such as {images.class_names[0]!r}, or in JSON positions in 0..{len(position) - 1}. Correct the file."
            )
        if name in rows:
            truth[rows[name], index] = True
        else:
            unknown_images.append(name)
    if not truth.any():
        raise UserError(
            f"{path} has no label for any of the {len(images):,} images of {images.root}: found {unknown_images[:1]}; "
            f"expected names such as {images.name(0)!r}. Correct the file, or --data.data_path."
        )
    notes = []
    if unknown_images:
        names = dict.fromkeys(unknown_images)
        notes.append(f"eval.labels: names not in val/, left out: {len(names):,}, the first: {unknown_images[0]}")
    unlabelled = np.flatnonzero(~truth.any(axis=1)).tolist()
    if unlabelled:
        first = images.name(unlabelled[0])
        notes.append(f"eval.labels: images without a label, left out: {len(unlabelled):,}, the first: {first}")
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
        lines = path.read_text("utf-8-sig", "surrogateescape").split("\n")
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
