"""What an evaluation says of its classes, of answers no better than chance, and of a likelier order of the classes."""

import shlex
from pathlib import Path

import numpy as np

from models.classifier import Weights
from relabel.data.class_names import ClassOrder
from relabel.data.images import ImageList
from relabel.evaluation.results import percent
from relabel.training.network import CLASSES_FLAG
from relabel.training.validation import Predictions
from utils.chance import better_permutation, natural_order, no_better_than_chance
from utils.files import replacing
from utils.progress import counted

LISTED_CLASSES, LISTED_ABSENT = 20, 5


def unknown_classes(weights: Weights, images: ImageList | None) -> str:
    """Return the error for weights whose classes nothing names."""
    found = "no val/" if images is None else f"{len(images.class_names):,} class folders in {images.root}"
    return (
        f"{weights.unnamed}; expected ImageNet's 1000, as "
        f"many class folders in val/, or a list of them; found {found}.\n  Give {CLASSES_FLAG} "
        "FILE, with a line NAME or NAME<TAB>FOLDER for each of its classes, in order; or set --data.data_path to the "
        "data it was trained for."
    )


def absent_classes(title: str, images: ImageList) -> list[str]:
    """Return a note on the classes without images; even one class is enough, whose accuracy may be wanted."""
    counts = np.bincount(images.labels, minlength=len(images.class_names))
    absent = [name for name, count in zip(images.class_names, counts, strict=True) if count == 0]
    listed = ", ".join(absent[:LISTED_ABSENT]) + ", ..." * (len(absent) > LISTED_ABSENT)
    found = f"{title}: no images of {len(absent):,} of the network's {len(counts):,} classes: {listed}"
    return [found] if absent else []


def chance_notes(title: str, predictions: Predictions, order: ClassOrder, path: Path) -> list[str]:
    """Return notes on accuracy at or below chance, and on a likelier order of the classes.

    Args:
        title: of the image set, which each note begins with.
        predictions: of its images.
        order: what the network's logits are taken for.
        path: where the class list with the likelier order is written.
    """
    names, labels, top1 = predictions.class_names, predictions.labels, predictions.top1
    natural = np.array([names.index(name) for name in natural_order(names)])
    likely = better_permutation(labels, top1, len(names), natural)
    notes = []
    if no_better_than_chance(int(predictions.correct.sum()), len(labels), len(names)):
        found = f"{percent(predictions.correct):.2f} % of {counted(len(labels), 'image')}"
        advice = "" if likely is not None else "; check the weights, and the classes and the input printed above"
        guessing = f"{100 / len(names):.3g} %, guessing among {len(names):,} classes"
        notes.append(f"{title}: top-1 is {found}, no better than chance ({guessing}){advice}")
    if likely is not None:
        with replacing(path) as temporary:
            temporary.write_text(order.class_list(likely.tolist()), encoding="utf-8", errors="surrogateescape")
        right = percent((top1 >= 0) & (likely[top1] == labels))
        which = " (the natural order, as timm sorts them)" if np.array_equal(likely, natural) else ""
        notes.append(
            f"{title}: top-1 would be {right:.2f} % instead of {percent(predictions.correct):.2f} % if "
            f"{_described([names[i] for i in likely.tolist()], names)}{which}. If that is how these weights were "
            f"trained, give {CLASSES_FLAG} {shlex.quote(str(path))}"
        )
    return notes


def _described(likely: list[str], names: list[str]) -> str:
    if len(names) <= LISTED_CLASSES:
        return f"the order of the classes were {', '.join(likely)}"
    return f"{sum(map(str.__ne__, likely, names)):,} of the {len(names):,} classes were others"
