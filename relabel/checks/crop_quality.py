"""What random crops, as training draws them, show and are taught: the reason why ReLabel exists, in figures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from relabel.checks.calibration import classes_shown
from relabel.checks.object_boxes import ObjectBox
from relabel.checks.sample import MapSample
from relabel.crop_box import CropBox, random_crop_box
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
    """Targets of random crops. None: nothing to measure it on.

    Fields:
        images, crops_per_image: that were drawn from.
        min_area: smallest area of a crop, fraction of the image.
        other_class: crops whose target is highest for another class than the folder's, percent.
        classes: number of classes above 10 % in a target.
        covered: crops with IoU > 0.5 with a box of the folder's class (the best of several), percent.
    """

    images: int
    crops_per_image: int
    min_area: float
    other_class: Estimate | None
    classes: Estimate | None
    covered: Estimate | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, the unit in the name."""
        return {
            "images": self.images,
            "crops_per_image": self.crops_per_image,
            "min_area_fraction": self.min_area,
            "crops_of_another_class_percent": self.other_class and asdict(self.other_class),
            "classes_per_crop": self.classes and asdict(self.classes),
            "crops_with_iou_above_half_percent": self.covered and asdict(self.covered),
            "crops_with_iou_above_half_published_percent": PUBLISHED_COVERED_PERCENT,
        }


def crop_quality(
    sample: MapSample,
    image_path: Callable[[int], Path],
    labels: np.ndarray,
    class_names: Sequence[str],
    boxes: Mapping[int, Sequence[ObjectBox]],
    *,
    fill: float = 0.0,
    temperature: float = 1.0,
    box_axes: str = "xy",
    min_area: float = 0.08,
    crops_per_image: int = 1,
    seed: int = 0,
) -> CropQuality:
    """Draw crops of the sample's images, the boxes that training draws in the epochs 0, 1, ..., and pool their targets.

    Args:
        sample: of the maps. Images whose file cannot be read are passed over.
        image_path: gives the file of a row.
        labels: integer [N]; the class folder of every image.
        class_names: K texts.
        boxes: row -> the objects of an image, where they are known.
        fill, temperature, box_axes: as in `relabel_target`.
        min_area: smallest area of a crop, fraction of the image.
        crops_per_image: epochs to look at.
        seed: of the crops.
    """
    drawn = _draw_crops(sample, image_path, min_area, crops_per_image, seed)
    usable = sample.only(np.array([place for place, crops in enumerate(drawn) if crops], dtype=np.int64))
    crops = [crops for crops in drawn if crops]
    mine = labels[usable.rows].astype(np.int64)
    make_target = partial(
        relabel_target, num_classes=len(class_names), fill=fill, temperature=temperature, box_axes=box_axes
    )
    best, counts = _pool(usable, crops, crops_per_image, make_target)
    objects = (boxes.get(row, ()) for row in usable.rows.tolist())
    names = (class_names[label] for label in mine.tolist())
    covered = [_covered(*image) for image in zip(objects, names, crops, strict=True)]
    return CropQuality(
        images=len(usable),
        crops_per_image=crops_per_image,
        min_area=min_area,
        other_class=Estimate.percent((best != mine[:, None]).mean(axis=1)),
        classes=Estimate.mean(counts.mean(axis=1)),
        covered=Estimate.percent(np.array([share for share in covered if share is not None])),
    )


def _draw_crops(
    sample: MapSample, image_path: Callable[[int], Path], min_area: float, count: int, seed: int
) -> list[list[CropBox]]:
    """The crops of each image; none of a file that cannot be read."""
    drawn: list[list[CropBox]] = []
    with JobProgress("draw crops", len(sample), "images") as progress:
        for row in sample.rows.tolist():
            progress.advance(1)
            try:
                file = ImageFile(image_path(row))
            except UserError:  # the check of all images tells it
                drawn.append([])
                continue
            rngs = (keyed_rng(seed, SAMPLE, epoch, row) for epoch in range(count))
            drawn.append([random_crop_box(rng, file.width, file.height, min_area) for rng in rngs])
    return drawn


def _pool(
    sample: MapSample, crops: list[list[CropBox]], count: int, make_target: Callable[..., Tensor]
) -> tuple[np.ndarray, np.ndarray]:
    """The target of every crop: its best class and how many are above 10 %, both [n, crops per image]."""
    best, shown = [np.empty((0, count), dtype=np.int64)], [np.empty((0, count), dtype=np.int64)]
    for part in sample.batches():
        scores, classes = (maps[part].repeat_interleave(count, dim=0) for maps in (sample.scores, sample.classes))
        sides = CropBox.stack([box for image in crops[part] for box in image])
        target = make_target(scores, classes, sides)
        best.append(target.argmax(dim=1).view(-1, count).numpy())
        shown.append(classes_shown(target).view(-1, count).numpy())
    return np.concatenate(best), np.concatenate(shown)


def _covered(objects: Sequence[ObjectBox], class_name: str, crops: Sequence[CropBox]) -> float | None:
    """Share of the crops that cover an object of the class; None without such an object."""
    boxes = [found.box for found in objects if found.class_name == class_name]
    if not boxes:
        return None
    return float(np.mean([max(crop.iou(box) for box in boxes) > MIN_IOU for crop in crops]))
