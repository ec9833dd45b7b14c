"""Image sets to evaluate on: ImageNetV2, ImageNet-A, -R and -C as they are published, each told from its folders."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from relabel.data.dataset import CenterCrop
from relabel.data.images import ImageList, list_images
from relabel.evaluation.predictions import Predictions
from relabel.evaluation.results import CORRUPTIONS, SEVERITIES, Result, accuracy_results, calibration_results
from utils.errors import UserError, with_advice

V2_IMAGES, A_IMAGES, R_IMAGES, SUBSET_CLASSES = 10_000, 7_500, 30_000, 200
C_IMAGES, C_SIZE = 50_000, 224  # images of a corruption and severity; their side
CLASS_NUMBER = re.compile(r"0|[1-9][0-9]{0,2}")
# Mean errors of AlexNet over the five severities (Hendrycks and Dietterich, 2019), by the names of the folders.
ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}


@dataclass(frozen=True, slots=True, eq=False)
class ImageSet:
    """Images to evaluate on, and what to measure.

    Fields:
        name: as results call it.
        images: labels point into class_names: the classes that can be predicted.
        view: how an image is looked at.
        measures: each gives Results of the Predictions.
        among: int64 [K']; the positions of class_names among the network's logits; None: they are all of them.
    """

    name: str
    images: ImageList
    view: CenterCrop
    measures: Sequence[Callable[[Predictions], list[Result]]]
    among: np.ndarray | None = None


SetsAndNotes = tuple[list[ImageSet], list[str]]


def accuracy_and_calibration(name: str, protocol: str) -> list[Callable[[Predictions], list[Result]]]:
    """What is measured on every set whose folders are classes."""
    return [partial(accuracy_results, name, protocol=protocol), partial(calibration_results, name)]


def describe(view: CenterCrop) -> str:
    """How an image is looked at, in a few words."""
    if view.crop_ratio is None:
        return f"whole image squashed to {view.size} pixels"
    return f"shorter side to {math.ceil(view.size / view.crop_ratio)}, centre crop {view.size}"


def imagenet_v2_sets(root: Path, class_names: list[str], positions: np.ndarray, view: CenterCrop) -> SetsAndNotes:
    """ImageNetV2: the variant in a folder, or every variant in its folders. Folders are class ids: numbers, not texts.

    Args:
        root: holds "0".."999", or folders that do.
        class_names: K texts; the network's.
        positions: int64 [1000]; class id -> position in class_names.
        view: how to look at the images.

    Raises:
        UserError: other folders, or an image set without images.
    """
    sets, notes = [], []
    for folder in _variants(root, "eval.imagenet_v2"):
        images = _list(folder, "eval.imagenet_v2")
        ids = np.array([int(name) for name in images.class_names])
        images = replace(images, class_names=class_names, labels=positions[ids][images.labels])
        short = folder.resolve().name.removeprefix("imagenetv2-").removesuffix("-format-val")
        name = f"imagenet_v2/{short}"
        sets.append(ImageSet(name, images, view, accuracy_and_calibration(name, "the folder's number")))
        notes += count_note(name, len(images), V2_IMAGES)
    return sets, notes


def _variants(root: Path, key: str) -> list[Path]:
    """The folders whose folders are class ids."""
    folders = _folders(root, key)
    variants = [root] if any(map(CLASS_NUMBER.fullmatch, folders)) else [root / name for name in folders]
    for variant in variants or [root]:
        inside = _folders(variant, key)
        wrong = [name for name in inside if not CLASS_NUMBER.fullmatch(name)]
        if wrong or not inside:
            found = f"the folder {wrong[0]}" if wrong else "no folder"
            raise UserError(
                f"{variant}: found {found}; expected a variant of ImageNetV2, whose folders are the class ids "
                f"0, 1, ... 999. Correct --{key}."
            )
    return variants


def subset_set(
    name: str, root: Path, class_names: list[str], whose: str, expected: int, view: CenterCrop
) -> SetsAndNotes:
    """ImageNet-A or -R: some of the network's classes, among which alone it may choose.

    Args:
        name: imagenet_a or imagenet_r.
        root: holds WNID/IMAGE.
        class_names: K texts; the network's.
        whose: the checkpoint, for the message.
        expected: images of the published set.
        view: how to look at the images.

    Raises:
        UserError: the folder holds classes that the network does not know, or more than 200.
    """
    images = _list(root, f"eval.{name}")
    with with_advice(f"Correct --eval.{name}."):
        images.with_classes_of(class_names, whose)
    count = len(images.class_names)
    if count > SUBSET_CLASSES:
        raise UserError(f"{root}: found {count} class folders; expected its {SUBSET_CLASSES}. Correct --eval.{name}.")
    among = np.array([class_names.index(wnid) for wnid in images.class_names])
    notes = count_note(name, len(images), expected)
    if count != SUBSET_CLASSES:
        notes.append(f"{name}: found {count} of its {SUBSET_CLASSES} classes; the network chooses among these alone")
    measures = accuracy_and_calibration(name, f"folder's class, among {count}")
    return [ImageSet(name, images, view, measures, among)], notes


def imagenet_c_sets(root: Path, class_names: list[str], whose: str, size: int) -> SetsAndNotes:
    """ImageNet-C: a set for each corruption, of all its severities; images are SEVERITY/WNID/FILE.

    Args:
        root: holds CORRUPTION/SEVERITY/WNID/IMAGE.
        class_names: K texts; the network's.
        whose: the checkpoint, for the message.
        size: side of the crop, pixels.

    Raises:
        UserError: none of the 15 corruptions is there, or a folder of classes that the network does not know.
    """
    key = "eval.imagenet_c"
    counts: dict[str, int] = {}
    folders = _folders(root, key)
    found = [name for name in ALEXNET_ERRORS if name in folders]
    if not found:
        raise UserError(
            f"{root}: found {', '.join(folders[:5]) or 'no folder'}; expected the corruptions of ImageNet-C, "
            f"{', '.join(ALEXNET_ERRORS)}, side by side. Correct --{key}."
        )
    sets = [_corruption_set(root / name, key, class_names, whose, unresized_view(size), counts) for name in found]
    return sets, _corruption_notes(folders, counts)


def _corruption_set(
    folder: Path, key: str, class_names: list[str], whose: str, view: CenterCrop, counts: dict[str, int]
) -> ImageSet:
    """The images of all severities; `counts` gets the number of each."""
    inside = _folders(folder, key)
    severities = [name for name in SEVERITIES if name in inside]
    if not severities:
        raise UserError(f"{folder}: found none of the folders 1 to 5, the severities. Correct --{key}.")
    parts = []
    for severity in severities:
        part = _list(folder / severity, key)
        with with_advice(f"Correct --{key}."):
            part = part.with_classes_of(class_names, whose)
        parts.append(replace(part, names=np.char.add(f"{severity}/".encode(), part.names)))
        counts[f"{folder.name}/{severity}"] = len(part)
    names, labels = (np.concatenate([getattr(part, field) for part in parts]) for field in ("names", "labels"))
    severity_of = np.repeat(severities, [len(part) for part in parts])
    name = f"{CORRUPTIONS}/{folder.name}"
    measures = [partial(corruption_results, name, severity_of), partial(calibration_results, name)]
    return ImageSet(name, ImageList(folder, class_names, names, labels), view, measures)


def _corruption_notes(folders: Sequence[str], counts: dict[str, int]) -> list[str]:
    notes = []
    absent = [f"{c}/{s}" for c in ALEXNET_ERRORS for s in SEVERITIES if f"{c}/{s}" not in counts]
    other = [f"{name} with {count:,}" for name, count in counts.items() if count != C_IMAGES]
    if absent:
        notes.append(f"imagenet_c: no mCE, because {len(absent)} of 75 folders are absent, the first: {absent[0]}")
    if other:
        notes.append(
            f"imagenet_c: {len(other)} of {len(counts)} folders hold another number of images than {C_IMAGES:,}, "
            f"the first: {other[0]}"
        )
    if extra := [name for name in folders if name not in ALEXNET_ERRORS]:
        notes.append(f"imagenet_c: passed over what is none of the 15 corruptions: {', '.join(extra)}")
    return notes


def unresized_view(size: int) -> CenterCrop:
    """The centre of ImageNet-C's images, which have 224 pixels; larger crops need them enlarged."""
    if size > C_SIZE:
        return CenterCrop(size, 1.0)
    # The next number above size / 224, for ceil(size / ratio) must not be 225 by a rounding error.
    return CenterCrop(size, math.nextafter(size / C_SIZE, 1))


def corruption_results(name: str, severity_of: np.ndarray, predictions: Predictions) -> list[Result]:
    """Mean error over severities, and CE: the same divided by AlexNet's, where all five severities are there.

    Args:
        name: of the set; its last part is the corruption.
        severity_of: text [N].
        predictions: of N images.
    """
    wrong, n = ~predictions.right, len(predictions)
    errors = {str(s): 100.0 * float(wrong[severity_of == s].mean()) for s in np.unique(severity_of)}
    mean = float(np.mean(list(errors.values())))
    results = [Result(name, "error_percent", mean, n, "mean over severities", errors)]
    if len(errors) == len(SEVERITIES):
        ce = mean / ALEXNET_ERRORS[name.rpartition("/")[2]]
        results.append(Result(name, "ce_percent", ce, n, "mean over severities, relative to AlexNet"))
    return results


def mean_corruption_error(results: Sequence[Result]) -> list[Result]:
    """mCE, the mean of the 15 corruptions' CE; nothing where one is absent."""
    found = [result for result in results if result.metric == "ce_percent"]
    if len(found) < len(ALEXNET_ERRORS):
        return []
    mean, n = float(np.mean([result.value for result in found])), sum(result.n for result in found)
    return [Result(CORRUPTIONS, "mce_percent", mean, n, "15 corruptions, relative to AlexNet")]


def count_note(name: str, found: int, expected: int) -> list[str]:
    """A note where a set holds another number of images than the published one."""
    return [] if found == expected else [f"{name}: found {found:,} images; the published set has {expected:,}"]


def _folders(root: Path, key: str) -> list[str]:
    """Sorted names of the folders in a folder, hidden ones left out."""
    try:
        return sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise UserError(f"{root}: cannot be listed ({error.strerror}). Correct --{key}.") from error


def _list(root: Path, key: str) -> ImageList:
    with with_advice(f"Correct --{key}."):
        return list_images(root)
