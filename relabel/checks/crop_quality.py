"""Measure random crops, as training draws them, and their targets: the problem that ReLabel solves, in numbers."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from relabel.checks.calibration import SHOWN
from relabel.checks.object_boxes import ObjectBox
from relabel.checks.sample import MapSample
from relabel.crop_box import MIN_AREA, CropBox, random_crop_box
from relabel.data.decode import ImageFile
from relabel.targets import relabel_target
from utils.errors import UserError
from utils.estimates import Estimate
from utils.progress import JobProgress
from utils.random import SAMPLE, keyed_rng

# Random crops of ImageNet with IoU > 0.5 with the labelled object's box, as published (Yun et al., 2021, section 1).
PUBLISHED_COVERED_PERCENT = 23.5
MIN_IOU = 0.5


@dataclass(frozen=True, slots=True)
class CropQuality:
    """Measurements of random crops. None: nothing to measure them on.

    Fields:
        images, crops_per_image: that were measured.
        min_area_fraction: smallest area of a crop, fraction of the image.
        crops_of_another_class_percent: whose target is highest for another class than the folder's.
        classes_per_crop: number of classes above 10 % in a target.
        crops_with_iou_above_half_percent: with a box of the folder's class, the best of several.
        crops_with_iou_above_half_published_percent: the same on ImageNet.
    """

    images: int
    crops_per_image: int
    min_area_fraction: float
    crops_of_another_class_percent: Estimate | None
    classes_per_crop: Estimate | None
    crops_with_iou_above_half_percent: Estimate | None
    crops_with_iou_above_half_published_percent: float = PUBLISHED_COVERED_PERCENT


def crop_quality(
    sample: MapSample,
    image_path: Callable[[int], Path],
    labels: np.ndarray,
    class_names: Sequence[str],
    boxes: Mapping[int, Sequence[ObjectBox]],
    fill: float = 0.0,
    temperature: float = 1.0,
    box_axes: str = "xy",
    crops_per_image: int = 1,
) -> CropQuality:
    """Draw crops of the sample's images, the boxes that training draws in the epochs 0, 1, ..., and pool their targets.

    Args:
        sample: of the maps. Images whose file cannot be read are left out.
        image_path: gives the file of a row.
        labels: integer [N]; the class folder of every image.
        class_names: K names.
        boxes: row -> the objects of an image, where they are known.
        fill, temperature, box_axes: as in `relabel_target`.
        crops_per_image: number of epochs.
    """
    drawn = draw_crops(sample, image_path, crops_per_image)
    other, classes, covered = [], [], []
    for part in sample.batches():
        readable = [index for index in range(part.start, part.stop) if index in drawn]
        if not readable:
            continue
        maps = sample.only(np.repeat(readable, crops_per_image))
        crops = CropBox.stack([box for index in readable for box in drawn[index]])
        target = relabel_target(
            maps.scores, maps.classes, crops, len(class_names), fill=fill, temperature=temperature, box_axes=box_axes
        )
        own = torch.from_numpy(labels[maps.rows].astype(np.int64))
        other += (target.argmax(dim=1) != own).float().view(-1, crops_per_image).mean(dim=1).tolist()
        classes += (target > SHOWN).sum(dim=1).float().view(-1, crops_per_image).mean(dim=1).tolist()
    for index, crops_here in drawn.items():
        row = int(sample.rows[index])
        objects = [found.box for found in boxes.get(row, ()) if found.class_name == class_names[labels[row]]]
        if objects:
            covered.append(np.mean([max(crop.iou(box) for box in objects) > MIN_IOU for crop in crops_here]))
    return CropQuality(
        images=len(drawn),
        crops_per_image=crops_per_image,
        min_area_fraction=MIN_AREA,
        crops_of_another_class_percent=Estimate.percent(np.array(other)),
        classes_per_crop=Estimate.mean(np.array(classes)),
        crops_with_iou_above_half_percent=Estimate.percent(np.array(covered)),
    )


def draw_crops(
    sample: MapSample, image_path: Callable[[int], Path], count: int, seed: int = 0
) -> dict[int, list[CropBox]]:
    """Return index in the sample -> its crops, without the images whose file cannot be read."""
    drawn = {}
    with JobProgress("draw crops", len(sample), "images") as progress:
        for index, row in enumerate(sample.rows.tolist()):
            progress.advance(1)
            with suppress(UserError):  # reported by the check of all images
                file = ImageFile(image_path(row))
                rngs = (keyed_rng(seed, SAMPLE, epoch, row) for epoch in range(count))
                drawn[index] = [random_crop_box(rng, file.width, file.height, MIN_AREA) for rng in rngs]
    return drawn
