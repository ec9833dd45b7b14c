"""One report about a set of label maps: are they whole, do they make good targets, which way round are they stored."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from relabel.annotation.label_set import LabelSet
from relabel.checks.axes import AxisCheck, Classifier, check_with_boxes, check_with_classifier
from relabel.checks.calibration import Calibration, calibrate
from relabel.checks.crop_quality import CropQuality, crop_quality
from relabel.checks.integrity import Integrity, check_integrity
from relabel.checks.object_boxes import ObjectBoxes, SampleBoxes, look_up
from relabel.checks.sample import MapSample, read_sample
from relabel.stores.packed import damaged_files

CLASSIFIED = 2000  # images whose crops a classifier looks at; 200 would do on the digit scenes
WEAK_AGREEMENT_PERCENT = 60  # the teacher has usually learned from these very images


@dataclass(frozen=True, slots=True)
class Settings:
    """What training would be given, and how much to measure.

    Fields:
        fill, temperature, box_axes: as in `relabel_target`.
        min_area: smallest area of a random crop, fraction of the image.
        maps: how many to measure; every map is read in any case.
        crops_per_image: random crops of each of them.
        seed: of the sample and of the crops.
    """

    fill: float = 0.0
    temperature: float = 1.0
    box_axes: str = "xy"
    min_area: float = 0.08
    maps: int = 10_000
    crops_per_image: int = 1
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """Everything that was found. What was not asked for, or could not be measured, is None or empty.

    Fields:
        labels: where the maps are.
        integrity, calibration, crops, axes: see their files.
        boxes: the object boxes that were found for the sample.
        teacher_top1_percent: known accuracy of the maps' teacher.
        problems: what is wrong, each with what to do; the maps are fit for training if there is none.
        notes: what is worth knowing.
    """

    labels: str
    integrity: Integrity
    calibration: Calibration | None
    crops: CropQuality | None
    boxes: SampleBoxes | None
    axes: list[AxisCheck]
    teacher_top1_percent: float | None
    problems: list[str]
    notes: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the unit in each name."""
        found = self.boxes and {
            "images_asked": self.boxes.asked,
            "images_with_boxes": len(self.boxes.of_row),
            "refused": self.boxes.refused,
        }
        return {
            "labels": self.labels,
            "problems": self.problems,
            "notes": self.notes,
            "integrity": self.integrity.as_dict(),
            "calibration": self.calibration and self.calibration.as_dict(),
            "teacher_top1_percent": self.teacher_top1_percent,
            "crops": self.crops and self.crops.as_dict(),
            "object_boxes": found,
            "axes": [check.as_dict() for check in self.axes],
        }


def make_report(
    labels: LabelSet,
    settings: Settings,
    *,
    boxes: ObjectBoxes | None = None,
    classifier: Classifier | None = None,
    teacher_top1_percent: float | None = None,
) -> Report:
    """Read every map and the header of every image, then measure a sample.

    Args:
        labels: the maps.
        settings: see there.
        boxes: where the objects are.
        classifier: for the second test of the axes; needs images.
        teacher_top1_percent: known accuracy of the maps' teacher.
    """
    skipped = labels.manifest.skipped if labels.manifest else {}
    integrity = check_integrity(labels.store, labels.keys, labels.store_keys, labels.image_path, skipped)
    for name in damaged_files(labels.path, labels.manifest) if labels.manifest else []:
        integrity.changed_files.add(name)
    if len(integrity.usable) == 0:
        problems = [*integrity.problems(), "There is no label map that can be read."]
        notes = _notes(integrity, None, None, skipped)
        return Report(str(labels.path), integrity, None, None, None, [], teacher_top1_percent, problems, notes)
    sample = read_sample(labels.store, integrity.usable, settings.maps, settings.seed)
    found = None if boxes is None else look_up(boxes, labels.keys, sample.rows)
    calibration = calibrate(
        sample, labels.labels, len(labels.class_names), fill=settings.fill, temperature=settings.temperature
    )
    crops = _measure_crops(labels, sample, settings, found)
    axes = _check_axes(labels, sample, settings, found, classifier)
    problems = [
        *integrity.problems(),
        *calibration.problems(teacher_top1_percent),
        *(problem for check in axes for problem in check.problems(settings.box_axes)),
        *_box_problems(found),
    ]
    notes = _notes(integrity, found, calibration, skipped)
    return Report(str(labels.path), integrity, calibration, crops, found, axes, teacher_top1_percent, problems, notes)


def _measure_crops(
    labels: LabelSet, sample: MapSample, settings: Settings, found: SampleBoxes | None
) -> CropQuality | None:
    if labels.image_path is None or labels.labels is None:
        return None
    return crop_quality(
        sample,
        labels.image_path,
        labels.labels,
        labels.class_names,
        found.of_row if found else {},
        fill=settings.fill,
        temperature=settings.temperature,
        box_axes=settings.box_axes,
        min_area=settings.min_area,
        crops_per_image=settings.crops_per_image,
        seed=settings.seed,
    )


def _check_axes(
    labels: LabelSet,
    sample: MapSample,
    settings: Settings,
    found: SampleBoxes | None,
    classifier: Classifier | None,
) -> list[AxisCheck]:
    checks = []
    if found is not None:
        checks.append(check_with_boxes(sample, labels.class_names, found.of_row))
    if classifier is not None and labels.image_path is not None:
        some = sample.only(np.arange(0, len(sample), -(-len(sample) // CLASSIFIED)))
        num_classes = len(labels.class_names)
        checks.append(
            check_with_classifier(some, labels.image_path, num_classes, classifier, settings.fill, settings.temperature)
        )
    return checks


def _box_problems(found: SampleBoxes | None) -> list[str]:
    if found is None or found.of_row:
        return []
    first = f" The first refusal: {found.refused[0]}" if found.refused else ""
    return [
        f"None of the {found.asked:,} images of the sample has object boxes; expected files with the names of the "
        f"images. Give the boxes of these images.{first}"
    ]


def _notes(
    integrity: Integrity, found: SampleBoxes | None, calibration: Calibration | None, skipped: Mapping[str, str]
) -> list[str]:
    """What is worth knowing though nothing is wrong."""
    notes = []
    agreement = calibration.top1_agreement if calibration else None
    if agreement and agreement.high95 < WEAK_AGREEMENT_PERCENT:
        notes.append(
            f"The maps name the folder's class first for {agreement.value:.0f} % of the images. A weak teacher can "
            "cost more than localized labels give (the paper's lost 1.4 points): compare with original labels."
        )
    if skipped:
        key, reason = next(iter(skipped.items()))
        notes.append(f"Images left out when the maps were made: {len(skipped):,}. The first is {key}: {reason}")
    if integrity.other_classes.count:
        notes.append(f"Label maps of classes that have no images here: {integrity.other_classes.count:,}.")
    if integrity.several_dots.count:
        notes.append(
            f"Names with several dots: {integrity.several_dots.count:,}, such as {integrity.several_dots.first[0]}. "
            "A map has all but the extension in its name; the 2021 code looked for another one."
        )
    if integrity.parquet_spelling.count:
        notes.append(
            f"Names that repeat the class: {integrity.parquet_spelling.count:,}, such as "
            f"{integrity.parquet_spelling.first[0]}, as in the parquet copy of ImageNet. Released label maps have the "
            "original names."
        )
    if integrity.rotated and integrity.rotated.count:
        notes.append(
            f"Images that viewers are asked to turn (EXIF): {integrity.rotated.count:,}. Training and `annotate` take "
            "them as they are stored; maps made by a program that turns them would not fit."
        )
    if found and found.of_row and found.refused:
        notes.append(f"Files of object boxes that were passed over: {len(found.refused):,}. First {found.refused[0]}")
    return notes
