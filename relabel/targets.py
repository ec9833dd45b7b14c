"""Training targets [B, K] from class labels or label maps, and label smoothing."""

from dataclasses import dataclass

import torch
from torch import Tensor

from relabel.label_pooling import pool_scores

SUPERVISIONS = ("localized_multi", "localized_single", "global_multi", "global_single")
BOX_AXES = ("xy", "yx")


def original_target(labels: Tensor, num_classes: int) -> Tensor:
    """Return one-hot targets, float32 [B, K], of integer labels [B] in 0..K-1."""
    target = torch.zeros(len(labels), num_classes, device=labels.device)
    return target.scatter_(1, labels[:, None].long(), 1.0)


def relabel_target(
    scores: Tensor,
    classes: Tensor,
    boxes: Tensor | None,
    num_classes: int,
    *,
    labels: Tensor | None = None,
    fill: float = 0.0,
    temperature: float = 1.0,
    supervision: str = "localized_multi",
    ground_truth_weight: float = 0.0,
    box_axes: str = "xy",
) -> Tensor:
    """ReLabel's target: softmax of the label map pooled over the crop (Yun et al., CVPR 2021, section 3).

    A horizontal flip of the crop does not change the target, because the target averages the whole crop.

    Args:
        scores, classes: float and integer [B, k, h, w]; the label maps.
        boxes: float [B, 4]; left, top, right, bottom of each crop as fractions of the image; None: the whole image.
        num_classes: K.
        labels: integer [B]; class folders, -1 for an image without one; needed only if ground_truth_weight is not 0.
        fill: logit of the classes that a cell does not store.
        temperature: divides the pooled logits; above 1 softens the target.
        supervision: localized_multi (the paper); localized_single is one-hot at its argmax; global_multi and
            global_single pool the whole image instead of the crop.
        ground_truth_weight: w in (1 - w) * target + w * onehot(label), in [0, 1]; w is 0 for images without a label.
        box_axes: xy is correct; yx passes the sides as (top, left, bottom, right), like the 2021 code, which pools the
            region reflected across the main diagonal.

    Returns:
        float32 [B, K]; each row sums to 1.

    Raises:
        ValueError: the shapes disagree, or ground_truth_weight is set and labels are missing.
    """
    assert supervision in SUPERVISIONS and box_axes in BOX_AXES, (supervision, box_axes)
    region, form = supervision.split("_")
    if boxes is None or region == "global":
        boxes = torch.zeros(len(scores), 4, device=scores.device)
        boxes[:, 2:] = 1
    elif box_axes == "yx":
        boxes = boxes.unflatten(1, (2, 2)).flip(2).flatten(1)
    logits = pool_scores(scores, classes, boxes, num_classes, fill)
    if form == "single":
        target = original_target(logits.argmax(dim=1), num_classes)
    else:
        target = (logits / temperature).softmax(dim=1)
    if ground_truth_weight:
        if labels is None:
            raise ValueError(f"ground_truth_weight is {ground_truth_weight:g}, but no labels were given")
        weights = ground_truth_weight * (labels >= 0)[:, None]
        target = target.lerp(original_target(labels.clamp(min=0), num_classes), weights)
    return target


def smooth(target: Tensor, smoothing: float) -> Tensor:
    """Apply label smoothing to any target [.., K]: t * (1 - s) + s / K. Comes before CutMix."""
    return target * (1 - smoothing) + smoothing / target.shape[-1]


@dataclass(frozen=True, slots=True)
class TargetMaker:
    """Training targets of a batch: from its label maps if it has them, otherwise from its labels; then smoothed.

    Fields:
        num_classes: K.
        smoothing: share of the target that label smoothing spreads over all classes, in [0, 1).
        fill, temperature, supervision, ground_truth_weight, box_axes: as in `relabel_target`.
    """

    num_classes: int
    smoothing: float = 0.0
    fill: float = 0.0
    temperature: float = 1.0
    supervision: str = "localized_multi"
    ground_truth_weight: float = 0.0
    box_axes: str = "xy"

    def __call__(
        self, labels: Tensor, boxes: Tensor | None = None, scores: Tensor | None = None, classes: Tensor | None = None
    ) -> Tensor:
        """Return targets, float32 [B, K]; arguments as in `relabel_target`. Without maps: smoothed one-hot labels."""
        if scores is None or classes is None:
            return smooth(original_target(labels, self.num_classes), self.smoothing)
        target = relabel_target(
            scores,
            classes,
            boxes,
            self.num_classes,
            labels=labels,
            fill=self.fill,
            temperature=self.temperature,
            supervision=self.supervision,
            ground_truth_weight=self.ground_truth_weight,
            box_axes=self.box_axes,
        )
        return smooth(target, self.smoothing)
