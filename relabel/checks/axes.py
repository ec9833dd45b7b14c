"""Check whether label maps are stored [row, column] or transposed, by two tests that need only the user's own files.

The 2021 code pools every crop from the region transposed (x and y swapped), which is correct only if its maps are
stored [column, row]. If a map is read correctly, the class of an object stands out inside the object's box, and a
crop's target agrees with a classifier's prediction for that crop. Both tests compare the two readings on the same
images, so that an image's difficulty cancels out.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from relabel.annotation.teacher import load_teacher
from relabel.checks.object_boxes import ObjectBox
from relabel.checks.sample import BATCH, MapSample
from relabel.crop_box import WHOLE_IMAGE, CropBox
from relabel.data.decode import ImageFile
from relabel.data.images import ImagePath
from relabel.label_pooling import pool_scores
from relabel.targets import relabel_target
from utils.errors import UserError
from utils.estimates import Estimate
from utils.progress import JobProgress, print_lines

ROW_COLUMN, TRANSPOSED, UNDECIDED = "row, column", "transposed", "undecided"
SURE = 3.0  # standard errors; exceeded by chance once in 400 times
MIN_IMAGES = 20  # with fewer, the standard error itself is uncertain
SYMMETRIC_IOU = 0.9  # of a box with its transpose; above it, both readings pool nearly the same cells
SAME_TARGETS = 0.05  # total variation between the targets of a region and its transpose
SMALLEST_PROBABILITY = 1e-4  # lower bound of a classifier's probabilities, so that one surprising crop does not decide
CROPS_AT_ONCE = 64
TOP_RIGHT, BOTTOM_LEFT = CropBox(0.5, 0.0, 1.0, 0.5), CropBox(0.0, 0.5, 0.5, 1.0)


@dataclass(frozen=True, slots=True)
class Classifier:
    """A classifier of crops.

    Fields:
        probabilities: uint8 [B, 3, size, size] (RGB) -> float [B, K], on the CPU.
        size: side of a crop, pixels.
    """

    probabilities: Callable[[Tensor], Tensor]
    size: int


def classifier_named(
    arch: str | None, weights: str, class_names: Sequence[str], class_list: str | None = None
) -> Classifier:
    """Load a classifier of torchvision, timm or our own training, onto the GPU if there is one.

    It is given crops of the size it was trained with, and may know more classes than the data has; those are ignored.

    Args:
        arch, weights, class_list: as in `load_teacher`.
        class_names: the K classes of the data.

    Raises:
        UserError: as `load_teacher`.
    """
    advice = "Correct --classifier or --classifier_weights."
    teacher = load_teacher(
        arch,
        weights,
        class_names,
        class_list=class_list,
        per_cell=False,
        advice=advice,
        input_flags="another checkpoint",
    )
    name, facts = teacher.description["arch"], f"{teacher.data_config.source}; classes: {teacher.class_source}"
    print_lines(f"classifier {name} ({weights}{teacher.note}): {facts}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network, config = teacher.network.to(device), teacher.data_config
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) * 255 for values in (config.mean, config.std))
    index_of = {name: index for index, name in enumerate(teacher.class_names or class_names)}
    columns = torch.tensor([index_of[name] for name in class_names], device=device)

    @torch.inference_mode()
    def probabilities(crops: Tensor) -> Tensor:
        parts = [network((part.to(device).float() - mean) / std) for part in crops.split(CROPS_AT_ONCE)]
        return torch.cat(parts)[:, columns].softmax(dim=1).cpu()

    return Classifier(probabilities, config.side)


@dataclass(frozen=True, slots=True)
class AxisCheck:
    """The result of one test.

    Fields:
        evidence: "object boxes" or "a classifier".
        measure: what is compared, with its unit.
        images_examined: number of images that have what the test needs.
        images_informative: number of these for which the two readings differ.
        row_column, transposed: mean of the measure under each reading, over the informative images.
        difference: row_column minus transposed, over the informative images; None for fewer than two.
        favouring_row_column_percent: percentage of informative images in favour of [row, column].
        verdict: ROW_COLUMN, TRANSPOSED or UNDECIDED.
    """

    evidence: str
    measure: str
    images_examined: int
    images_informative: int
    row_column: float
    transposed: float
    difference: Estimate | None
    favouring_row_column_percent: Estimate | None
    verdict: str

    @classmethod
    def of(cls, evidence: str, measure: str, examined: int, readings: np.ndarray) -> "AxisCheck":
        """Summarise float [n, 2], the measure of each informative image under both readings."""
        difference = readings[:, 0] - readings[:, 1]
        row_column, transposed = readings.mean(axis=0).tolist() if len(readings) else (0.0, 0.0)
        favouring = Estimate.percent((np.sign(np.round(difference, 5)) + 1) / 2)  # a tie counts half for each
        found, verdict = Estimate.mean(difference), UNDECIDED
        if found and found.n >= MIN_IMAGES and abs(found.value) > SURE * found.standard_error:
            verdict = ROW_COLUMN if found.value > 0 else TRANSPOSED
        return cls(evidence, measure, examined, len(readings), row_column, transposed, found, favouring, verdict)

    def problems(self, box_axes: str = "xy") -> list[str]:
        """Return a problem if training with these box_axes would read the maps transposed."""
        wanted = {ROW_COLUMN: "xy", TRANSPOSED: "yx"}.get(self.verdict, box_axes)
        if wanted == box_axes:
            return []
        return [
            f"The maps' axes are {self.verdict} by the test with {self.evidence}, but box_axes {box_axes} swaps them. "
            f"Make the maps again, or train with --data.relabel.box_axes {wanted}."
        ]


def check_with_boxes(
    sample: MapSample, class_names: Sequence[str], boxes: Mapping[int, Sequence[ObjectBox]]
) -> AxisCheck:
    """Compare the logit of an object's class inside its box with that in the whole image, under each reading.

    An image counts once, with the mean over its objects. A box that nearly coincides with its transpose (IoU of 0.9 or
    more) is not informative and is left out.

    Args:
        sample: of the maps.
        class_names: the K classes of the data; objects of other classes are left out.
        boxes: row -> the objects of an image.
    """
    class_of = {name: label for label, name in enumerate(class_names)}
    objects = [
        (index, class_of[found.class_name], found.box)
        for index, row in enumerate(sample.rows.tolist())
        for found in boxes.get(row, ())
        if found.class_name in class_of
    ]
    informative = [item for item in objects if item[2].iou(item[2].transposed()) < SYMMETRIC_IOU]
    lifts = np.concatenate([np.empty((0, 2)), *_lifts(sample, informative, len(class_names))])
    image_of = np.array([index for index, *_ in informative])
    per_image = [lifts[image_of == index].mean(axis=0) for index in np.unique(image_of)]
    examined = len({index for index, *_ in objects})
    return AxisCheck.of("object boxes", "logit, object's box minus image", examined, np.reshape(per_image, (-1, 2)))


def check_with_classifier(
    sample: MapSample,
    image_path: Callable[[int], ImagePath],
    num_classes: int,
    classifier: Classifier,
    fill: float = 0.0,
    temperature: float = 1.0,
) -> AxisCheck:
    """Compare a classifier's predictions for the top right and bottom left quarters with their targets in each reading.

    Each quarter is the transpose of the other, so the two readings give them the same two targets, swapped. The measure
    is the mean over both quarters of the sum of target * log probability.

    Args:
        sample: of the maps. Unreadable images are left out.
        image_path: returns the image file of a row.
        num_classes: K.
        classifier: of the same K classes.
        fill, temperature: as in `relabel_target`; the fill is lowered to the map's lowest score.
    """
    examined, kept = 0, [np.empty((0, 2))]
    with JobProgress("classify crops", len(sample), "images") as progress:
        for part in sample.batches():
            crops = _quarters(sample, part, image_path, classifier.size)
            if crops:
                predicted = classifier.probabilities(torch.cat(list(crops.values())))
                kept.append(_fits(sample.only(np.array(list(crops))), predicted, num_classes, fill, temperature))
            examined += len(crops)
            progress.advance(part.stop - part.start)
    return AxisCheck.of("a classifier", "log-likelihood of targets, nats", examined, np.concatenate(kept))


def _lifts(sample: MapSample, objects: list[tuple[int, int, CropBox]], num_classes: int) -> Iterator[np.ndarray]:
    """Yield float [.., 2], box minus whole image as [row, column] and transposed, of objects (index, class, box)."""
    for start in range(0, len(objects), BATCH):
        indices, labels, boxes = zip(*objects[start : start + BATCH], strict=True)
        maps = sample.only(np.array(indices, dtype=np.int64))
        excess, column = _above_floor(maps.scores, 0.0), torch.tensor(labels)[:, None]
        inside, swapped, whole = (
            pool_scores(excess, maps.classes, CropBox.stack(regions), num_classes).gather(1, column)[:, 0]
            for regions in (boxes, [box.transposed() for box in boxes], [WHOLE_IMAGE] * len(boxes))
        )
        yield torch.stack([inside - whole, swapped - whole], dim=1).double().numpy()


def _above_floor(scores: Tensor, fill: float) -> Tensor:
    """Subtract from scores [B, k, h, w] the logit of an absent class: `fill`, or the map's lowest if that is lower.

    If fill were above the stored logits, a class would stand out where the map does not store it.
    """
    return scores.float() - scores.float().amin(dim=(1, 2, 3), keepdim=True).clamp(max=fill)


def _quarters(sample: MapSample, part: slice, image_path: Callable[[int], ImagePath], size: int) -> dict[int, Tensor]:
    """Return index of each readable image -> its top right and bottom left quarters, uint8 [2, 3, S, S]."""
    crops = {}
    for index in range(part.start, part.stop):
        with suppress(UserError):  # reported by the check of all images
            file = ImageFile(image_path(int(sample.rows[index])))
            both = [torch.from_numpy(file.resized_crop(box, size, size)) for box in (TOP_RIGHT, BOTTOM_LEFT)]
            crops[index] = torch.stack(both)
    return crops


def _fits(maps: MapSample, predicted: Tensor, num_classes: int, fill: float, temperature: float) -> np.ndarray:
    """Return how well each reading fits predictions [2 * n, K]: float [.., 2], without images with equal targets."""
    n = len(maps)
    in_upper, in_lower = predicted.double().clamp(min=SMALLEST_PROBABILITY).log().view(n, 2, num_classes).unbind(1)
    excess = _above_floor(maps.scores, fill)
    upper, lower = (
        relabel_target(excess, maps.classes, CropBox.stack([box] * n), num_classes, temperature=temperature).double()
        for box in (TOP_RIGHT, BOTTOM_LEFT)
    )
    as_stored = (upper * in_upper + lower * in_lower).sum(dim=1) / 2
    swapped = (lower * in_upper + upper * in_lower).sum(dim=1) / 2
    differ = (upper - lower).abs().sum(dim=1) / 2 > SAME_TARGETS
    return torch.stack([as_stored, swapped], dim=1)[differ].numpy()
