"""Image sets to evaluate on: ImageNetV2, ImageNet-A, -R and -C in their published layouts."""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from relabel.data.dataset import CenterCrop
from relabel.data.folders import folder_names, list_images
from relabel.data.images import ImageList
from relabel.evaluation.results import CORRUPTIONS, SEVERITIES, Result, accuracy_results, calibration_results, percent
from relabel.evaluation.true_labels import TrueLabels
from relabel.training.validation import Predictions
from utils.errors import UserError, with_advice

PUBLISHED_IMAGES = {"val": 50_000, "imagenet_v2": 10_000, "imagenet_a": 7_500, "imagenet_r": 30_000}
SUBSET_CLASSES = 200
C_IMAGES, C_SIZE = 50_000, 224  # images of a corruption and severity; their side, pixels
V2_LAYOUT = "A variant of ImageNetV2 contains the folders 0, 1, ... 999, which are class ids."
CLASS_ID = re.compile(r"0|[1-9][0-9]{0,2}")
# Mean errors of AlexNet over the five severities (Hendrycks and Dietterich, 2019), by folder; one line each for
# noise, blur, weather and digital corruptions.
ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428, "shot_noise": 0.894468, "impulse_noise": 0.922640,
    "defocus_blur": 0.819880, "glass_blur": 0.826268, "motion_blur": 0.785948, "zoom_blur": 0.798360,
    "snow": 0.866816, "frost": 0.826572, "fog": 0.819324, "brightness": 0.564592,
    "contrast": 0.853204, "elastic_transform": 0.646056, "pixelate": 0.717840, "jpeg_compression": 0.606500,
}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class ImageSet:
    """Images to evaluate on, and what to measure.

    Fields:
        name: as in results.
        images: their labels are positions in class_names, the classes that can be predicted.
        transform: how images are resized and cropped.
        metrics: functions from Predictions to Results.
        among: int64 [K']; positions of these classes among the network's logits; None: they are all classes.
        true_labels: own labels of these images, if any.
        notes: what is missing or left out, for the user.
    """

    name: str
    images: ImageList
    transform: CenterCrop
    metrics: Sequence[Callable[[Predictions], list[Result]]]
    among: np.ndarray | None = None
    true_labels: TrueLabels | None = None
    notes: list[str] = field(default_factory=list)


def accuracy_and_calibration(name: str, protocol: str) -> list[Callable[[Predictions], list[Result]]]:
    """Return the metrics of every set with one folder per class."""
    return [partial(accuracy_results, name, protocol=protocol), partial(calibration_results, name)]


def describe(transform: CenterCrop) -> str:
    """Return in a few words how images are resized and cropped."""
    if transform.crop_ratio is None:
        return f"whole image squashed to {transform.size} pixels"
    resized = (
        f"{'squashed' if transform.squash else 'shorter side'} to {math.ceil(transform.size / transform.crop_ratio)}"
    )
    return f"{resized}, centre crop {transform.size}"


def imagenet_v2_sets(
    root: Path, class_names: list[str], positions: np.ndarray, transform: CenterCrop
) -> list[ImageSet]:
    """List the ImageNetV2 variant in a folder, or every variant in its folders.

    Args:
        root: contains the folders "0".."999", or one folder per variant that does. These names are class ids, sorted as
            numbers.
        class_names: K texts; the network's.
        positions: int64 [1000]; class id -> position in class_names.
        transform: for the images.

    Raises:
        UserError: a folder has another name, or a set has no images.
    """
    folders = folder_names(root)
    is_variant = not folders or any(map(CLASS_ID.fullmatch, folders))
    sets = []
    for folder in [root] if is_variant else [root / name for name in folders]:
        with with_advice(V2_LAYOUT):
            images = list_images(folder)
            if other := [name for name in images.class_names if not CLASS_ID.fullmatch(name)]:
                raise UserError(f"{folder}: found the folder {other[0]}; expected only class ids.")
        ids = np.array([int(name) for name in images.class_names])
        images = replace(images, class_names=class_names, labels=positions[ids][images.labels])
        name = "imagenet_v2/" + folder.resolve().name.removeprefix("imagenetv2-").removesuffix("-format-val")
        metrics, notes = accuracy_and_calibration(name, "label: class folder"), count_note(name, len(images))
        sets.append(ImageSet(name, images, transform, metrics, notes=notes))
    return sets


def imagenet_subset(name: str, root: Path, class_names: list[str], checkpoint: str, transform: CenterCrop) -> ImageSet:
    """List ImageNet-A or -R; predictions are restricted to its classes.

    Args:
        name: imagenet_a or imagenet_r.
        root: contains WNID/IMAGE.
        class_names: K texts; the network's.
        checkpoint: its path, for the message.
        transform: for the images.

    Raises:
        UserError: the folder has classes that the network lacks.
    """
    images = list_images(root)
    images.with_classes_of(class_names, checkpoint)  # raises if a class is unknown
    count = len(images.class_names)
    among = np.array([class_names.index(wnid) for wnid in images.class_names])
    notes = count_note(name, len(images))
    if count != SUBSET_CLASSES:
        notes.append(f"{name}: found {count} classes instead of {SUBSET_CLASSES}; predictions are restricted to these")
    metrics = accuracy_and_calibration(name, f"among its {count} classes")
    return ImageSet(name, images, transform, metrics, among, notes=notes)


def imagenet_c_sets(root: Path, class_names: list[str], checkpoint: str, transform: CenterCrop) -> list[ImageSet]:
    """List ImageNet-C: a set for each corruption, with all its severities; image names are SEVERITY/WNID/FILE.

    Args:
        root: contains CORRUPTION/SEVERITY/WNID/IMAGE.
        class_names: K texts; the network's.
        checkpoint: its path, for the message.
        transform: evaluation transform, whose size and interpolation are used.

    Raises:
        UserError: none of the 15 corruptions is there, or a folder has classes that the network lacks.
    """
    folders = folder_names(root)
    corruptions = [name for name in ALEXNET_ERRORS if name in folders]
    if not corruptions:
        raise UserError(
            f"{root}: found {', '.join(folders[:5]) or 'no folder'}; expected folders of ImageNet-C's corruptions: "
            f"{', '.join(ALEXNET_ERRORS)}."
        )
    sets = [_corruption_set(root / name, class_names, checkpoint, unresized(transform)) for name in corruptions]
    counts = {
        f"{corruption}/{severity.decode()}": count
        for corruption, image_set in zip(corruptions, sets, strict=True)
        for severity, count in Counter(image_set.images.names.astype("S1").tolist()).items()
    }
    absent = {f"{name}/{severity}" for name in ALEXNET_ERRORS for severity in SEVERITIES} - counts.keys()
    uncommon = [f"{name} with {count:,}" for name, count in counts.items() if count != C_IMAGES]
    other = [name for name in folders if name not in ALEXNET_ERRORS]
    notes = sets[0].notes
    if absent:
        notes.append(f"{CORRUPTIONS}: no mCE; absent folders: {len(absent)} of 75, the first: {min(absent)}")
    if uncommon:
        found = f"{len(uncommon)} of {len(counts)}, the first: {uncommon[0]}"
        notes.append(f"{CORRUPTIONS}: folders without the published {C_IMAGES:,} images: {found}")
    if other:
        notes.append(f"{CORRUPTIONS}: skipped folders not among the 15 corruptions: {', '.join(other)}")
    return sets


def _corruption_set(folder: Path, class_names: list[str], checkpoint: str, transform: CenterCrop) -> ImageSet:
    """Join the images of all severities of a corruption."""
    severities = [name for name in SEVERITIES if name in folder_names(folder)]
    if not severities:
        raise UserError(f"{folder}: found none of the folders 1 to 5, the severities.")
    parts = [list_images(folder / severity).with_classes_of(class_names, checkpoint) for severity in severities]
    names = [np.char.add(f"{severity}/".encode(), part.names) for severity, part in zip(severities, parts, strict=True)]
    labels = np.concatenate([part.labels for part in parts])
    images = ImageList.of_folder(folder, class_names, np.concatenate(names), labels)
    name = f"{CORRUPTIONS}/{folder.name}"
    metrics = [partial(corruption_results, name), partial(calibration_results, name)]
    return ImageSet(name, images, transform, metrics)


def unresized(transform: CenterCrop) -> CenterCrop:
    """Crop the centre of ImageNet-C's images of 224 pixels without resizing; a larger crop enlarges them."""
    if transform.size > C_SIZE:
        return replace(transform, crop_ratio=1.0)
    # The next float above size / 224, so that a rounding error cannot make ceil(size / ratio) 225.
    return replace(transform, crop_ratio=math.nextafter(transform.size / C_SIZE, 1))


def corruption_results(name: str, predictions: Predictions) -> list[Result]:
    """Return the mean error over severities, and, if all five are there, CE: that mean relative to AlexNet's.

    Args:
        name: of the set; its last part is the corruption.
        predictions: for the images SEVERITY/WNID/FILE.
    """
    wrong, n, severity_of = ~predictions.correct, len(predictions), predictions.names.astype("S1")
    errors = {s.decode(): percent(wrong[severity_of == s]) for s in np.unique(severity_of).tolist()}
    mean = float(np.mean(list(errors.values())))
    results = [Result(name, "error_percent", mean, n, "mean over severities", errors)]
    if len(errors) == len(SEVERITIES):
        ce = mean / ALEXNET_ERRORS[name.rpartition("/")[2]]
        results.append(Result(name, "ce_percent", ce, n, "mean over severities, relative to AlexNet"))
    return results


def mean_corruption_error(results: Sequence[Result]) -> list[Result]:
    """Return mCE, the mean of the CE of all 15 corruptions; nothing if one is absent."""
    found = [result for result in results if result.metric == "ce_percent"]
    if len(found) < len(ALEXNET_ERRORS):
        return []
    mean, n = float(np.mean([result.value for result in found])), sum(result.n for result in found)
    return [Result(CORRUPTIONS, "mce_percent", mean, n, "15 corruptions, relative to AlexNet")]


def count_note(name: str, found: int) -> list[str]:
    """Return a note if a set does not have the published number of images."""
    expected = PUBLISHED_IMAGES[name.partition("/")[0]]
    return [] if found == expected else [f"{name}: found {found:,} images; the published set has {expected:,}"]
