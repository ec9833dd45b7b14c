"""Are label maps stored [row, column], or transposed? Two tests that anybody can make on their own files.

The 2021 code pools every crop from the region mirrored at the image's diagonal, which is right only if its maps are
stored [column, row]. Under the right reading, the class of an object stands out inside the object's box, and a crop's
target fits what a classifier says of that crop. Both tests compare the two readings on the same images, so that an
image's difficulty cancels out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.build import OURS, library_of
from relabel.annotation.teacher import load_teacher
from relabel.checks.object_boxes import ObjectBox
from relabel.checks.sample import BATCH, MapSample
from relabel.crop_box import WHOLE_IMAGE, CropBox
from relabel.data.decode import ImageFile
from relabel.label_pooling import pool_scores
from relabel.targets import relabel_target
from utils.errors import UserError
from utils.estimates import Estimate
from utils.progress import JobProgress

ROW_COLUMN, TRANSPOSED, UNDECIDED = "row, column", "transposed", "undecided"
SURE = 3.0  # standard errors: by chance 1 in 400 times
MIN_IMAGES = 20  # below, the standard error itself is uncertain
SYMMETRIC_IOU = 0.9  # of a box with its mirror image: from here on both readings pool nearly the same cells
SAME_TARGETS = 0.05  # total variation between the targets of the two mirrored regions
SMALLEST_PROBABILITY = 1e-4  # of a classifier's class; one surprising crop must not decide
OUR_SIZE = 48  # pixels; networks of ours name no size, and learn from crops of this one
CROPS_AT_ONCE = 64
TOP_RIGHT, BOTTOM_LEFT = CropBox(0.5, 0.0, 1.0, 0.5), CropBox(0.0, 0.5, 0.5, 1.0)


@dataclass(frozen=True, slots=True)
class Classifier:
    """Somebody who says what a crop shows.

    Fields:
        probabilities: uint8 [B, 3, size, size] (RGB) -> float [B, K], on the CPU.
        size: side of a crop, pixels.
    """

    probabilities: Callable[[Tensor], Tensor]
    size: int


def classifier_named(arch: str, weights: str, class_names: Sequence[str]) -> Classifier:
    """A classifier of torchvision, timm or a training of ours, on the GPU if there is one.

    It sees crops at the size it was trained for, and may know more classes than the data; those count for nothing.

    Args:
        arch, weights: as in `load_teacher`.
        class_names: the K classes of the data.

    Raises:
        UserError: as `load_teacher`.
    """
    size = (OUR_SIZE, OUR_SIZE) if library_of(arch) == OURS else None
    teacher = load_teacher(arch, weights, class_names, input_size=size, per_cell=False)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = teacher.network.to(device)
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) * 255 for values in (teacher.mean, teacher.std))
    position = {name: index for index, name in enumerate(teacher.class_names or class_names)}
    known = torch.tensor([position[name] for name in class_names], device=device)

    @torch.inference_mode()
    def probabilities(crops: Tensor) -> Tensor:
        parts = [network((part.to(device).float() - mean) / std) for part in crops.split(CROPS_AT_ONCE)]
        return torch.cat(parts)[:, known].softmax(dim=1).cpu()

    return Classifier(probabilities, teacher.input_size[0])


@dataclass(frozen=True, slots=True)
class AxisCheck:
    """What one test says.

    Fields:
        evidence: "object boxes" or "a classifier".
        measure: what is compared, in words; its unit.
        examined: images that the test could look at.
        row_column, transposed: mean of the measure under each reading, over the informative images.
        difference: the first minus the second, over the n informative images; None of fewer than two.
        favouring: informative images that speak for [row, column], percent.
    """

    evidence: str
    measure: str
    examined: int
    row_column: float
    transposed: float
    difference: Estimate | None
    favouring: Estimate | None

    @property
    def verdict(self) -> str:
        """One of ROW_COLUMN, TRANSPOSED, UNDECIDED."""
        found = self.difference
        if found is None or found.n < MIN_IMAGES or abs(found.value) <= SURE * found.standard_error:
            return UNDECIDED
        return ROW_COLUMN if found.value > 0 else TRANSPOSED

    @property
    def informative(self) -> int:
        """Images whose two readings differ."""
        return self.favouring.n if self.favouring else 0

    def problems(self, box_axes: str = "xy") -> list[str]:
        """That the maps lie otherwise than they will be read.

        Args:
            box_axes: how training will read them.
        """
        expected, other = (ROW_COLUMN, "yx") if box_axes == "xy" else (TRANSPOSED, "xy")
        if self.verdict in (expected, UNDECIDED):
            return []
        stored = "column, row" if self.verdict == TRANSPOSED else "row, column"
        return [
            f"The maps are stored [{stored}], says the test with {self.evidence}, but would be read the other way. "
            f"Make them again, or train with --data.relabel.box_axes {other}."
        ]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the unit is that of `measure`."""
        return {
            "evidence": self.evidence,
            "measure": self.measure,
            "verdict": self.verdict,
            "images_examined": self.examined,
            "images_informative": self.informative,
            "row_column": self.row_column,
            "transposed": self.transposed,
            "difference": self.difference and asdict(self.difference),
            "favouring_row_column_percent": self.favouring and asdict(self.favouring),
        }


def check_with_boxes(
    sample: MapSample, class_names: Sequence[str], boxes: Mapping[int, Sequence[ObjectBox]]
) -> AxisCheck:
    """The logit of an object's class inside its box minus that in the whole image, under each reading.

    An image counts once, with the mean over its objects. A box that its mirror image at the diagonal nearly covers
    (IoU of 0.9 and more) says nothing and is left out.

    Args:
        sample: of the maps.
        class_names: the K classes of the data; objects of others are left out.
        boxes: row -> the objects of an image.
    """
    class_of = {name: index for index, name in enumerate(class_names)}
    known = [
        (place, class_of[found.class_name], found.box)
        for place, row in enumerate(sample.rows.tolist())
        for found in boxes.get(row, ())
        if found.class_name in class_of
    ]
    told = [(place, label, box) for place, label, box in known if box.iou(box.mirrored()) < SYMMETRIC_IOU]
    places = np.array([place for place, *_ in told], dtype=np.int64)
    lifts = np.concatenate([np.empty((0, 2)), *_lifts(sample, told, len(class_names))])
    images, image_of = np.unique(places, return_inverse=True)
    sums = np.stack([np.bincount(image_of, lift, len(images)) for lift in lifts.T], axis=1)
    per_image = sums / np.bincount(image_of, minlength=len(images))[:, None]
    examined = len({place for place, *_ in known})
    return _compare("object boxes", "logit, object's box minus image", examined, per_image)


def check_with_classifier(
    sample: MapSample,
    image_path: Callable[[int], Path],
    num_classes: int,
    classifier: Classifier,
    fill: float = 0.0,
    temperature: float = 1.0,
) -> AxisCheck:
    """What a classifier says of the top right and the bottom left quarter, against the targets of either reading.

    The two quarters are each other's mirror image at the diagonal, so each reading gives one the target that the other
    reading gives the other. The measure is the mean over both of sum target * log probability.

    Args:
        sample: of the maps. Images whose file cannot be read are passed over.
        image_path: gives the file of a row.
        num_classes: K.
        classifier: of the same K classes.
        fill, temperature: as in `relabel_target`; the fill is lowered to the lowest score of a map.
    """
    examined, kept = 0, [np.empty((0, 2))]
    with JobProgress("classify crops", len(sample), "images") as progress:
        for part in sample.batches():
            places, crops = _quarters(sample, part, image_path, classifier.size)
            if places:
                maps = sample.only(np.array(places, dtype=np.int64))
                fits, differ = _fits(maps, classifier.probabilities(crops), num_classes, fill, temperature)
                kept.append(fits[differ > SAME_TARGETS].numpy())
            examined += len(places)
            progress.advance(part.stop - part.start)
    return _compare("a classifier", "log-likelihood of targets, nats", examined, np.concatenate(kept))


def _compare(evidence: str, measure: str, examined: int, readings: np.ndarray) -> AxisCheck:
    """The result for float [n, 2]: the measure of each informative image under both readings."""
    difference = readings[:, 0] - readings[:, 1]
    row_column, transposed = readings.mean(axis=0).tolist() if len(readings) else (0.0, 0.0)
    favouring = (np.sign(np.round(difference, 5)) + 1) / 2  # a tie speaks for neither
    return AxisCheck(
        evidence, measure, examined, row_column, transposed, Estimate.mean(difference), Estimate.percent(favouring)
    )


def _lifts(sample: MapSample, told: list[tuple[int, int, CropBox]], num_classes: int) -> list[np.ndarray]:
    """For each (place, class, box), float [.., 2]: box minus whole image, as [row, column] and as [column, row]."""
    lifts = []
    for start in range(0, len(told), BATCH):
        places, labels, boxes = zip(*told[start : start + BATCH], strict=True)
        maps = sample.only(np.array(places, dtype=np.int64))
        excess, column = _above_floor(maps.scores, 0.0), torch.tensor(labels)[:, None]
        inside, swapped, whole = (
            pool_scores(excess, maps.classes, CropBox.stack(regions), num_classes).gather(1, column)[:, 0]
            for regions in (boxes, [box.mirrored() for box in boxes], [WHOLE_IMAGE] * len(boxes))
        )
        lifts.append(torch.stack([inside - whole, swapped - whole], dim=1).double().numpy())
    return lifts


def _above_floor(scores: Tensor, fill: float) -> Tensor:
    """The scores [B, k, h, w] minus what an absent class counts as: `fill`, or the lowest of the map if that is lower.

    With a fill above the stored logits, a class would stand out where the map does not store it.
    """
    floor = scores.float().amin(dim=(1, 2, 3), keepdim=True).clamp(max=fill)
    return scores.float() - floor


def _quarters(sample: MapSample, part: slice, image_path: Callable[[int], Path], size: int) -> tuple[list[int], Tensor]:
    """Places of the images that can be read, and uint8 [2 * n, 3, S, S]: all top rights, then all bottom lefts."""
    places, upper, lower = [], [], []
    for place in range(part.start, part.stop):
        try:
            file = ImageFile(image_path(int(sample.rows[place])))
            crops = [file.resized_crop(box, size, size) for box in (TOP_RIGHT, BOTTOM_LEFT)]
        except UserError:  # the check of all images tells it
            continue
        places.append(place)
        upper.append(torch.from_numpy(crops[0]))
        lower.append(torch.from_numpy(crops[1]))
    return places, torch.stack(upper + lower) if places else torch.empty(0)


def _fits(
    maps: MapSample, probabilities: Tensor, num_classes: int, fill: float, temperature: float
) -> tuple[Tensor, Tensor]:
    """How well each reading fits, float [n, 2], and how much the two quarters' targets differ, float [n]."""
    n = len(maps)
    assert probabilities.shape == (2 * n, num_classes), probabilities.shape
    said = probabilities.double().clamp(min=SMALLEST_PROBABILITY).log()
    excess = _above_floor(maps.scores, fill)
    upper, lower = (
        relabel_target(excess, maps.classes, CropBox.stack([box] * n), num_classes, temperature=temperature).double()
        for box in (TOP_RIGHT, BOTTOM_LEFT)
    )
    as_stored = (upper * said[:n] + lower * said[n:]).sum(dim=1) / 2
    swapped = (lower * said[:n] + upper * said[n:]).sum(dim=1) / 2
    return torch.stack([as_stored, swapped], dim=1), (upper - lower).abs().sum(dim=1) / 2
