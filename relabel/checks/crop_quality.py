"""Measure random crops, as training draws them, and their targets: the problem that ReLabel solves, in numbers."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch

from relabel.checks.calibration import SHOWN
from relabel.checks.object_boxes import ObjectBox
from relabel.checks.sample import MapSample
from relabel.crop_box import MIN_AREA, CropBox, random_crop_box
from relabel.data.decode import ImageFile
from relabel.data.images import ImagePath
from relabel.targets import relabel_target
from relabel.training.agreement import top_class
from utils.errors import UserError
from utils.estimates import Estimate
from utils.progress import JobProgress
from utils.random import SAMPLE, keyed_rng

# Random crops of ImageNet with IoU > 0.5 with the labelled object's box, as published (Yun et al., 2021, section 1).
PUBLISHED_COVERED_PERCENT = 23.5
MIN_IOU = 0.5


@dataclass(frozen=True, slots=True)
class CropQuality:
    """Measurements of random crops; None if there is nothing to measure them on.

    Fields:
        images: number of images measured.
        crops_of_another_class_percent: crops in which the target's top class is not the folder's.
        classes_per_crop: number of classes above 10 % in a target.
        crops_with_iou_above_half_percent: crops with IoU > 0.5 with an object of the folder's class.
        crops_with_iou_above_half_published_percent: the same on ImageNet, as published.
        crops_storing_no_class: number of crops of whose K classes no cell stores any: their target is uniform.
        min_area_fraction: smallest area of a crop, as a fraction of the image.
    """

    images: int
    crops_of_another_class_percent: Estimate | None
    classes_per_crop: Estimate | None
    crops_with_iou_above_half_percent: Estimate | None
    crops_storing_no_class: int
    crops_with_iou_above_half_published_percent: float = PUBLISHED_COVERED_PERCENT
    min_area_fraction: float = MIN_AREA


def crop_quality(
    sample: MapSample,
    image_path: Callable[[int], ImagePath],
    labels: np.ndarray,
    class_names: Sequence[str],
    boxes: Mapping[int, Sequence[ObjectBox]],
    fill: float = 0.0,
    temperature: float = 1.0,
    box_axes: str = "xy",
) -> CropQuality:
    """Draw a crop of each image of the sample, as training does in its first epoch, and pool its target.

    Args:
        sample: of the maps. Unreadable images are left out.
        image_path: returns the image file of a row.
        labels: integer [N]; the class folder of every image.
        class_names: K names.
        boxes: row -> the objects of an image, where they are known.
        fill, temperature, box_axes: as in `relabel_target`.
    """
    drawn = draw_crops(sample, image_path)
    crops, readable = list(drawn.values()), sample.only(np.array(list(drawn), dtype=np.int64))
    other, classes, covered, unknown = [], [], [], 0
    for part in readable.batches():
        maps = readable.only(part)
        target = relabel_target(
            maps.scores, maps.classes, CropBox.stack(crops[part]), len(class_names),
            fill=fill, temperature=temperature, box_axes=box_axes,
        )  # fmt: skip
        other += (top_class(target) != torch.from_numpy(labels[maps.rows])).tolist()
        classes += (target > SHOWN).sum(dim=1).tolist()
        is_uniform = target.amax(dim=1) == target.amin(dim=1)
        unknown += int((is_uniform & (maps.classes >= len(class_names)).flatten(1).any(dim=1)).sum())
    for row, crop in zip(readable.rows.tolist(), crops, strict=True):
        objects = [found.box for found in boxes.get(row, ()) if found.class_name == class_names[labels[row]]]
        if objects:
            covered.append(max(crop.iou(box) for box in objects) > MIN_IOU)
    return CropQuality(
        images=len(crops),
        crops_of_another_class_percent=Estimate.percent(np.array(other)),
        classes_per_crop=Estimate.mean(np.array(classes)),
        crops_with_iou_above_half_percent=Estimate.percent(np.array(covered)),
        crops_storing_no_class=unknown,
    )


def draw_crops(sample: MapSample, image_path: Callable[[int], ImagePath]) -> dict[int, CropBox]:
    """Return index in the sample -> the crop of the first epoch with seed 0, without unreadable images."""
    drawn = {}
    with JobProgress("draw crops", len(sample), "images") as progress:
        for index, row in enumerate(sample.rows.tolist()):
            progress.advance(1)
            with suppress(UserError):  # reported by the check of all images
                file = ImageFile(image_path(row))
                drawn[index] = random_crop_box(keyed_rng(0, SAMPLE, 0, row), file.width, file.height, MIN_AREA)
    return drawn
