"""Predictions as a CSV file.

    image,label,top1,top1_probability,label_probability,top5[,in_set]
    n01440764/ILSVRC2012_val_00000293.JPEG,n01440764,n01440764,0.98,0.98,n01440764/n01443537/...

`top5` holds at most five classes, likeliest first, separated by slashes, which no folder's name can contain. `in_set`
exists with own true labels: 1 if top1 is one of the image's, 0 if not, empty if the image has none.
"""

import csv
from pathlib import Path

import numpy as np

from relabel.training.validation import NO_CLASS, Predictions
from utils.files import replacing

COLUMNS = ("image", "label", "top1", "top1_probability", "label_probability", "top5")
BETWEEN_CLASSES = "/"


def write_predictions(path: Path, predictions: Predictions, in_set: np.ndarray | None = None) -> None:
    """Write the CSV file, whole or not at all.

    Args:
        path: of the file.
        predictions: of the images.
        in_set: int [N]; 1, 0, or NO_CLASS for an image without true labels; None: no such column.

    Raises:
        UserError: it cannot be written.
    """
    class_of = dict(enumerate(predictions.class_names)) | {NO_CLASS: ""}
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS if in_set is None else (*COLUMNS, "in_set"))
        for row in range(len(predictions)):
            top5 = [class_of[index] for index in predictions.top5[row].tolist()]
            words = [
                predictions.names[row].decode("utf-8", "surrogateescape"),
                class_of[int(predictions.labels[row])],
                top5[0],
                f"{predictions.top1_probability[row]:.6g}",
                f"{predictions.label_probability[row]:.6g}",
                BETWEEN_CLASSES.join(filter(None, top5)),
            ]
            if in_set is not None:
                words.append("" if in_set[row] == NO_CLASS else str(in_set[row]))
            writer.writerow(words)
