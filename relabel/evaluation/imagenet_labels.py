"""Published labels of ImageNet's validation images: ReaL, and the multi-labels of Shankar et al. with ImageNet-M.

Both identify an image by the number in its name: ILSVRC2012_val_00000293.JPEG, or ILSVRC2012_val_00000293_WNID.JPEG in
the parquet copy of ImageNet. ImageNet's class ids are positions in the sorted list of its wnids.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from relabel.data.class_names import class_names_of_imagenet
from relabel.data.images import ImageList
from relabel.evaluation.results import VAL, Result, percent
from relabel.training.validation import Predictions
from utils.errors import UserError
from utils.files import read_json
from utils.metrics import accuracy_of_classes, in_true_set

IMAGENET_CLASSES = 1000
VALIDATION_IMAGES = 50_000
MULTI_LABEL_IMAGES = 20_000
IMAGENET_M_IMAGES = 68
NUMBERED = re.compile(r"ILSVRC2012_val_(\d{8})(_n\d{8})?\.\w+")
EXPECTED_REAL = "expected ReaL's real.json: a list with a list of class ids, 0..999, for each validation image in order"
EXPECTED_MULTI_LABELS = (
    "expected human_accuracy_v3.0.0.json of Shankar et al.: an object with `initial_annots`, which maps each file name "
    "to lists of wnids (`correct`, `wrong`, `unclear`), `problematic_images` and `imagenet_m`"
)
CHECK_NAMES = "Check --data.data_path: its images must have ImageNet's names, such as ILSVRC2012_val_00000001.JPEG."


def imagenet_positions(class_names: Sequence[str], checkpoint: str, key: str) -> np.ndarray:
    """Return the position of each ImageNet class among a checkpoint's classes, int64 [1000].

    Args:
        class_names: the checkpoint's, in any order.
        checkpoint: its path, for the message.
        key: the setting that needs the positions, for the message.

    Raises:
        UserError: they are not ImageNet's 1000 classes.
    """
    wanted, position = class_names_of_imagenet(), {name: i for i, name in enumerate(class_names)}
    if position.keys() != set(wanted):
        common = len(position.keys() & set(wanted))
        raise UserError(
            f"{checkpoint} has {len(class_names):,} classes, of which {common:,} are ImageNet's; {key} needs "
            f"a checkpoint with exactly ImageNet's {IMAGENET_CLASSES} classes, named by their wnids.\n"
            f"  Leave out --{key}, or an --eval.classes that gives them other names; or give another "
            "--util.test_weight_file."
        )
    return np.array([position[name] for name in wanted])


def image_numbers(images: ImageList) -> tuple[np.ndarray, list[str]]:
    """Return the numbers in the image names of val/, int64 [N], -1 for other names; and a note on those."""
    numbers = np.array([_number(images.name(row).rpartition("/")[2]) for row in range(len(images))])
    other = np.flatnonzero(numbers < 0).tolist()
    if not other:
        return numbers, []
    return numbers, [
        f"val: images without published labels, because their names are not like ILSVRC2012_val_00000001.JPEG: "
        f"{len(other):,}, the first: {images.name(other[0])}"
    ]


def real_results(truth: np.ndarray, predictions: Predictions) -> list[Result]:
    """Return ReaL accuracy (Beyer et al. 2020): the share of labelled images with a label as top-1 class.

    Args:
        truth: bool [N, K]; some images have no label.
        predictions: for the N images.
    """
    labelled = truth.any(axis=1)
    correct = in_true_set(predictions.top1, truth)[labelled]
    return [Result(VAL, "real_percent", percent(correct), len(correct), "ReaL: any label; unlabelled skipped")]


def read_real(
    path: Path, images: ImageList, numbers: np.ndarray, positions: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """Read real.json for the images in val/.

    Args:
        path: of the file.
        images: of val/; K class names.
        numbers: int64 [N]; see `image_numbers`.
        positions: int64 [1000]; class id -> position among the K class names.

    Returns:
        bool [N, K], the labels of each image; and notes on what is missing.

    Raises:
        UserError: the file is not ReaL's, or labels none of the images.
    """
    lists = read_json(path, EXPECTED_REAL)
    wrong = [entry for entry in (lists if isinstance(lists, list) else [lists]) if not _are_class_ids(entry)]
    if wrong:
        raise UserError(f"{path}: found {str(wrong[0])[:60]}; {EXPECTED_REAL}.")
    truth = np.zeros((len(images), len(images.class_names)), dtype=bool)
    for row, number in enumerate(numbers.tolist()):
        if 0 < number <= len(lists):
            truth[row, positions[lists[number - 1]]] = True
    if not truth.any():
        raise UserError(f"{path} has no label for any of the {len(images):,} images of {images.root}. {CHECK_NAMES}")
    complete = len(lists) == VALIDATION_IMAGES
    notes = [] if complete else [f"eval.real: found {len(lists):,} lists, expected {VALIDATION_IMAGES:,}"]
    return truth, notes


@dataclass(frozen=True, slots=True, eq=False)
class MultiLabels:
    """Multi-labels of Shankar et al. (2020), as revised by Vasudevan et al. (2022), who added ImageNet-M.

    Fields:
        correct, unclear: bool [N, K].
        scored: bool [N]; annotated and not problematic. The authors leave problematic images out in both protocols.
        imagenet_m: bool [N]; the images of ImageNet-M, problematic or not.
    """

    correct: np.ndarray
    unclear: np.ndarray
    scored: np.ndarray
    imagenet_m: np.ndarray

    def results(self, predictions: Predictions) -> list[Result]:
        """Return accuracy by both protocols, and the number of ImageNet-M's images classified correctly."""
        lenient = in_true_set(predictions.top1, self.correct | self.unclear)
        strict = in_true_set(predictions.top1, self.correct)
        results, n, n_of_m = [], int(self.scored.sum()), int(self.imagenet_m.sum())
        if n:
            classes = accuracy_of_classes(lenient[self.scored], predictions.labels[self.scored])
            mean = float(np.mean(list(classes.values())))
            per_class = f"Shankar: correct or unclear, problematic dropped, mean of {len(classes):,} classes"
            per_image = "Shankar: correct only, problematic dropped"
            results.append(Result(VAL, "multilabel_per_class_percent", mean, n, per_class))
            results.append(Result(VAL, "multilabel_per_image_percent", percent(strict[self.scored]), n, per_image))
        if n_of_m:
            correct = int(lenient[self.imagenet_m].sum())
            results.append(Result(VAL, "imagenet_m_right", correct, n_of_m, "ImageNet-M: correct or unclear"))
        return results


def read_multi_labels(
    path: Path, images: ImageList, numbers: np.ndarray, positions: np.ndarray
) -> tuple[MultiLabels, list[str]]:
    """Read human_accuracy_v3.0.0.json for the images in val/; arguments, notes and errors as for `read_real`."""
    content = read_json(path, EXPECTED_MULTI_LABELS)
    correct, unclear = np.zeros((2, len(images), len(images.class_names)), dtype=bool)
    position = dict(zip(class_names_of_imagenet(), positions.tolist(), strict=True))
    try:
        # The file also annotates images of ImageNetV2, which have no such numbers.
        numbered = {_number(name): annotation for name, annotation in content["initial_annots"].items()}
        numbered.pop(-1, None)
        annotated = np.isin(numbers, list(numbered))
        for row in np.flatnonzero(annotated).tolist():
            annotation = numbered[int(numbers[row])]
            correct[row, [position[wnid] for wnid in annotation.get("correct", [])]] = True
            unclear[row, [position[wnid] for wnid in annotation.get("unclear", [])]] = True
        problematic = np.isin(numbers, list(map(_number, content["problematic_images"])))
        imagenet_m = np.isin(numbers, list(map(_number, content.get("imagenet_m", []))))  # absent before version 3
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: found {type(error).__name__}: {error}; {EXPECTED_MULTI_LABELS}.") from error
    if not annotated.any():
        raise UserError(f"{path} annotates none of the {len(images):,} images of {images.root}. {CHECK_NAMES}")
    labels = MultiLabels(correct, unclear, annotated & ~problematic, annotated & imagenet_m)
    notes = []
    if len(numbered) != MULTI_LABEL_IMAGES or len(images) != VALIDATION_IMAGES:
        notes.append(
            f"eval.multilabel: found {annotated.sum():,} of its {len(numbered):,} images in val/; "
            f"the published file has {MULTI_LABEL_IMAGES:,}"
        )
    n_of_m = int(labels.imagenet_m.sum())
    if n_of_m != IMAGENET_M_IMAGES:
        notes.append(f"eval.multilabel: found {n_of_m} of the {IMAGENET_M_IMAGES} images of ImageNet-M")
    return labels, notes


def _are_class_ids(ids: object) -> bool:
    return isinstance(ids, list) and all(type(index) is int and 0 <= index < IMAGENET_CLASSES for index in ids)


def _number(name: str) -> int:
    """Return the number in the file name of a validation image; -1 for other names."""
    match = NUMBERED.fullmatch(name)
    return int(match[1]) if match else -1
