"""Everything that makes a training target [B, K]: from folder labels, from label maps, and label smoothing."""

import torch
from torch import Tensor

from relabel.label_pooling import pool_scores

SUPERVISIONS = ("localized_multi", "localized_single", "global_multi", "global_single")
BOX_AXES = ("xy", "yx")


def original_target(labels: Tensor, num_classes: int) -> Tensor:
    """One-hot targets, float32 [B, K], of the integer labels [B] in 0..K-1."""
    target = torch.zeros(len(labels), num_classes, device=labels.device)
    return target.scatter_(1, labels[:, None].long(), 1.0)


def relabel_target(
    scores: Tensor,
    classes: Tensor,
    boxes: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    fill: float = 0.0,
    temperature: float = 1.0,
    supervision: str = "localized_multi",
    ground_truth_weight: float = 0.0,
    box_axes: str = "xy",
) -> Tensor:
    """ReLabel's target: softmax of the label map pooled over the crop (Yun et al., CVPR 2021, section 3).

    A horizontal flip of the crop does not move the target, because it averages the whole crop.

    Args:
        scores, classes: float and integer [B, k, h, w]; the label maps.
        boxes: float [B, 4]; left, top, right, bottom of each crop as fractions of the image.
        labels: integer [B]; the folder's labels, used only when ground_truth_weight is not 0; -1 of an image that
            has none.
        num_classes: K.
        fill: logit of the classes that a cell does not store.
        temperature: divides the pooled logits; above 1 softens.
        supervision: localized_multi (the paper); localized_single = one-hot of its argmax; global_multi and
            global_single pool the whole image instead of the crop.
        ground_truth_weight: w in (1 - w) * target + w * onehot(label), in [0, 1]; 0 for images without label.
        box_axes: xy = as meant; yx = sides handed over as (top, left, bottom, right), as the 2021 code did, so that
            the region mirrored at the diagonal is pooled.

    Returns:
        float32 [B, K]; each row sums to 1.

    Raises:
        ValueError: the shapes disagree.
    """
    assert supervision in SUPERVISIONS and box_axes in BOX_AXES, (supervision, box_axes)
    region, form = supervision.split("_")
    pooled_boxes = _pooled_boxes(boxes, whole_image=region == "global", swap_axes=box_axes == "yx")
    logits = pool_scores(scores, classes, pooled_boxes, num_classes, fill)
    if form == "single":
        target = original_target(logits.argmax(dim=1), num_classes)
    else:
        target = (logits / temperature).softmax(dim=1)
    if ground_truth_weight:
        weights = ground_truth_weight * (labels >= 0)[:, None]
        target = target.lerp(original_target(labels.clamp(min=0), num_classes), weights)
    return target


def whole_image_target(scores: Tensor, classes: Tensor, num_classes: int, fill: float, temperature: float) -> Tensor:
    """float32 [B, K]; ReLabel's target of a crop that is the whole image. Arguments as of `relabel_target`."""
    boxes, labels = torch.zeros(len(scores), 4), torch.zeros(len(scores), dtype=torch.int64)  # neither counts here
    return relabel_target(
        scores, classes, boxes, labels, num_classes, fill=fill, temperature=temperature, supervision="global_multi"
    )


def smooth(target: Tensor, smoothing: float) -> Tensor:
    """Label smoothing of any target [.., K]: t * (1 - s) + s / K; comes before CutMix."""
    return target * (1 - smoothing) + smoothing / target.shape[-1]


def _pooled_boxes(boxes: Tensor, whole_image: bool, swap_axes: bool) -> Tensor:
    """The boxes [B, 4] to pool: the crops, the same with x and y exchanged, or the whole image."""
    if whole_image:
        corners = torch.zeros_like(boxes)
        corners[:, 2:] = 1
        return corners
    return boxes.unflatten(1, (2, 2)).flip(2).flatten(1) if swap_axes else boxes
