"""Published labels of ImageNet's validation images: ReaL, and the multi-labels of Shankar et al. with ImageNet-M.

They know an image by its number, as in ILSVRC2012_val_00000293.JPEG; the parquet copy of ImageNet appends _WNID to
that. ImageNet's class ids are the positions of the sorted wnids.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from relabel.data.class_names import class_names_of_imagenet
from relabel.data.images import ImageList
from relabel.evaluation.predictions import Predictions
from relabel.evaluation.results import VAL, Result, percent
from utils.errors import UserError
from utils.files import read_json
from utils.metrics import accuracy_of_classes, in_true_set

IMAGENET_CLASSES = 1000
VALIDATION_IMAGES = 50_000
MULTI_LABEL_IMAGES = 20_000
IMAGENET_M_IMAGES = 68
NUMBERED = re.compile(r"ILSVRC2012_val_(\d{8})(_n\d{8})?\.\w+")
EXPECTED_REAL = "expected real.json of ReaL: a list of lists of class ids 0..999, the i-th of the i-th validation image"
EXPECTED_MULTI_LABELS = (
    "expected human_accuracy_v3.0.0.json of Shankar et al.: an object whose `initial_annots` give lists of wnids as "
    "`correct`, `wrong` and `unclear` for each file, with `problematic_images` and `imagenet_m`"
)


def imagenet_positions(class_names: Sequence[str], path: Path, key: str) -> np.ndarray:
    """int64 [1000]; where each of ImageNet's classes stands among a checkpoint's.

    Args:
        class_names: the checkpoint's, in any order.
        path: the checkpoint, for the message.
        key: the setting that needs to know, for the message.

    Raises:
        UserError: they are not ImageNet's 1000 classes.
    """
    wanted, position = class_names_of_imagenet(), {name: i for i, name in enumerate(class_names)}
    if position.keys() != set(wanted):
        common = len(position.keys() & set(wanted))
        raise UserError(
            f"{path} tells {len(class_names):,} classes apart, {common:,} of which are ImageNet's; {key} needs a "
            f"checkpoint of all ImageNet's {IMAGENET_CLASSES} classes (wnids) and no others.\n"
            f"  Leave --{key} out, or give another --util.test_weight_file."
        )
    return np.array([position[name] for name in wanted])


class ValidationImages:
    """Which of the images in val/ is which of ImageNet's 50,000.

    Attributes:
        row_of: number, from 1 -> row of the image list.
        notes: for the person: images of other names.
    """

    def __init__(self, images: ImageList) -> None:
        """Read the numbers in the names. UserError: two images have one number."""
        self.row_of: dict[int, int] = {}
        strange = []
        for row in range(len(images)):
            match = NUMBERED.fullmatch(images.name(row).rpartition("/")[2])
            if not match:
                strange.append(images.name(row))
            elif self.row_of.setdefault(int(match[1]), row) != row:
                first = images.path(self.row_of[int(match[1])])
                raise UserError(
                    f"{first} and {images.path(row)} have one number; expected each once. Remove one of them."
                )
        self.notes = []
        if strange:
            self.notes.append(
                f"val: {len(strange):,} images are not named as ILSVRC2012_val_00000001.JPEG, the first: {strange[0]}; "
                "published labels know nothing of them"
            )


@dataclass(frozen=True, slots=True, eq=False)
class RealLabels:
    """ReaL (Beyer et al., 2020).

    Fields:
        truth: bool [N, K]; an image without labels has none.
    """

    truth: np.ndarray

    def results(self, predictions: Predictions) -> list[Result]:
        """Share of the labelled images whose top-1 is one of their labels."""
        labelled = self.truth.any(axis=1)
        right = in_true_set(predictions.top1, self.truth)[labelled]
        protocol = "ReaL: one of its labels; none: skipped"
        return [Result(VAL, "real_percent", percent(right), len(right), protocol)]


def read_real(
    path: Path, images: ImageList, numbered: ValidationImages, positions: np.ndarray
) -> tuple[RealLabels, list[str]]:
    """Read real.json for the images that are there; and notes for the person.

    Args:
        path: of the file.
        images: of val/; K class names.
        numbered: their numbers.
        positions: int64 [1000]; class id -> position among the K.

    Raises:
        UserError: the file is not ReaL's, or labels none of the images.
    """
    lists = read_json(path, EXPECTED_REAL)
    if not isinstance(lists, list) or not all(_are_class_ids(ids) for ids in lists):
        raise UserError(f"{path}: found something else; {EXPECTED_REAL}.")
    truth = np.zeros((len(images), len(images.class_names)), dtype=bool)
    for number, row in numbered.row_of.items():
        if 0 < number <= len(lists):
            truth[row, positions[lists[number - 1]]] = True
    if not truth.any():
        raise UserError(f"{path} has a label for none of the {len(images):,} images of {images.root}. {_CHECK_NAMES}")
    notes = []
    if len(lists) != VALIDATION_IMAGES:
        notes.append(f"eval.real: found {len(lists):,} lists; expected {VALIDATION_IMAGES:,}")
    return RealLabels(truth), notes


@dataclass(frozen=True, slots=True, eq=False)
class MultiLabels:
    """Multi-labels of Shankar et al. (2020) as of Vasudevan et al. (2022), who added ImageNet-M.

    Fields:
        correct, unclear: bool [N, K].
        scored: bool [N]; annotated and not problematic. Its authors leave problematic images out in both protocols.
        imagenet_m: bool [N]; its images, problematic or not.
    """

    correct: np.ndarray
    unclear: np.ndarray
    scored: np.ndarray
    imagenet_m: np.ndarray

    def results(self, predictions: Predictions) -> list[Result]:
        """Both protocols, and ImageNet-M's count."""
        lenient = in_true_set(predictions.top1, self.correct | self.unclear)
        strict = in_true_set(predictions.top1, self.correct)
        found, n, n_of_m = [], int(self.scored.sum()), int(self.imagenet_m.sum())
        if n:
            classes = accuracy_of_classes(lenient[self.scored], predictions.labels[self.scored])
            mean = float(np.mean(list(classes.values())))
            per_class = f"Shankar: correct or unclear, problematic dropped, mean of {len(classes):,} classes"
            per_image = "Shankar: correct only, problematic dropped"
            found.append(Result(VAL, "multilabel_per_class_percent", mean, n, per_class))
            found.append(Result(VAL, "multilabel_per_image_percent", percent(strict[self.scored]), n, per_image))
        if n_of_m:
            right = int(lenient[self.imagenet_m].sum())
            found.append(Result(VAL, "imagenet_m_right", right, n_of_m, "ImageNet-M: correct or unclear"))
        return found


def read_multi_labels(
    path: Path, images: ImageList, numbered: ValidationImages, positions: np.ndarray
) -> tuple[MultiLabels, list[str]]:
    """Read human_accuracy_v3.0.0.json for the images that are there; arguments and errors as `read_real`."""
    content = read_json(path, EXPECTED_MULTI_LABELS)
    if not (
        isinstance(content, dict)
        and isinstance(annotations := content.get("initial_annots"), dict)
        and isinstance(problematic := content.get("problematic_images"), dict | list)  # an object in the published file
        and isinstance(major := content.get("imagenet_m", []), dict | list)  # absent before version 3
    ):
        raise UserError(f"{path}: found something else; {EXPECTED_MULTI_LABELS}.")
    correct, unclear = np.zeros((2, len(images), len(images.class_names)), dtype=bool)
    annotated = np.zeros(len(images), dtype=bool)
    position = dict(zip(class_names_of_imagenet(), positions.tolist(), strict=True))
    of_validation = 0
    for name, annotation in annotations.items():
        number = _number(name)
        of_validation += number is not None  # the others are of ImageNetV2
        if (row := numbered.row_of.get(number or 0)) is not None:
            annotated[row] = True
            correct[row, _positions(annotation, "correct", position, path, name)] = True
            unclear[row, _positions(annotation, "unclear", position, path, name)] = True
    if not annotated.any():
        raise UserError(f"{path} knows none of the {len(images):,} images of {images.root}. {_CHECK_NAMES}")
    labels = MultiLabels(
        correct,
        unclear,
        annotated & ~_listed(problematic, numbered, len(images)),
        annotated & _listed(major, numbered, len(images)),
    )
    return labels, _multi_label_notes(labels, of_validation, int(annotated.sum()))


def _multi_label_notes(labels: MultiLabels, of_validation: int, annotated: int) -> list[str]:
    notes, n_of_m = [], int(labels.imagenet_m.sum())
    if of_validation != MULTI_LABEL_IMAGES:
        notes.append(f"eval.multilabel: found {of_validation:,} annotated images; expected {MULTI_LABEL_IMAGES:,}")
    if annotated != of_validation:
        notes.append(f"eval.multilabel: {annotated:,} of its {of_validation:,} images are in val/")
    if not labels.scored.any():
        notes.append("eval.multilabel: all of them are problematic, so there is no score")
    if n_of_m != IMAGENET_M_IMAGES:
        notes.append(f"eval.multilabel: found {n_of_m} of the {IMAGENET_M_IMAGES} images of ImageNet-M")
    return notes


_CHECK_NAMES = "Check --data.data_path: its images must have ImageNet's names, as ILSVRC2012_val_00000001.JPEG."


def _are_class_ids(ids: object) -> bool:
    return isinstance(ids, list) and all(type(index) is int and 0 <= index < IMAGENET_CLASSES for index in ids)


def _number(name: str) -> int | None:
    """The number in a file's name; None: it is not of the validation images."""
    match = NUMBERED.fullmatch(name)
    return int(match[1]) if match else None


def _listed(names: Iterable[object], numbered: ValidationImages, images: int) -> np.ndarray:
    """bool [N]; the images whose files are named."""
    table = np.zeros(images, dtype=bool)
    numbers = [_number(str(name)) for name in names]
    table[[numbered.row_of[number] for number in numbers if number in numbered.row_of]] = True
    return table


def _positions(annotation: object, kind: str, position: dict[str, int], path: Path, name: str) -> list[int]:
    """The classes that an image's annotation lists as of a kind; a kind without classes may be absent."""
    wnids = annotation.get(kind, []) if isinstance(annotation, dict) else None
    if not isinstance(wnids, list) or not all(isinstance(wnid, str) and wnid in position for wnid in wnids):
        found = f"found {str(wnids)[:60]} as `{kind}` of {name}"
        raise UserError(f"{path}: {found}; expected a list of ImageNet's wnids. Fetch the file again.")
    return [position[wnid] for wnid in wnids]
