"""LabelPooling: RoIAlign of a sparse label map over a crop, without building the dense map.

RoIAlign is linear in its input and separable:
    pooled[c] = sum over rows and columns of row_weights[row] * column_weights[column] * score[c, row, column].
A sparse map therefore needs h + w weights per image and one scatter-add of k*h*w products, where the dense tensor that
torchvision.ops.roi_align reads has K*h*w numbers.
"""

import torch
from torch import Tensor


def pool_scores(scores: Tensor, classes: Tensor, boxes: Tensor, num_classes: int, fill: float = 0.0) -> Tensor:
    """LabelPooling before the softmax: RoIAlign of each sparse label map over its own crop.

    Equals torchvision.ops.roi_align (1x1 output, adaptive sampling, aligned=False) of the dense maps at the boxes
    fraction * cells - 0.5. Computed in float32 on any device, without waiting for the device.

    Args:
        scores: float [B, k, h, w]; the k largest logits of each cell, row 0 at the top of the image.
        classes: integer [B, k, h, w]; the class of each score, in 0..num_classes-1 (checked when maps are read), or
            num_classes for a class that the data lacks, whose score is ignored.
        boxes: float [B, 4]; left, top, right, bottom as fractions of the image, in [0, 1].
        num_classes: K.
        fill: logit of the classes that a cell does not store (0 in the paper), in -1000..1000; larger values would
            cost the scores precision in float32.

    Returns:
        float32 [B, K]; mean logit of each class inside the crop. Not yet a distribution.

    Raises:
        ValueError: the shapes disagree, or (on the CPU) a class id is above K.
    """
    _check_shapes(scores, classes, boxes)
    left, top, right, bottom = boxes.unbind(dim=1)
    row_weights = axis_weights(top, bottom, scores.shape[2])
    column_weights = axis_weights(left, right, scores.shape[3])
    # The weights of a box sum to 1, so pooling (score - fill) and adding fill gives absent classes exactly `fill`.
    excess = scores.float() if fill == 0 else scores.float() - fill
    parts = excess * (row_weights[:, None, :, None] * column_weights[:, None, None, :])
    pooled = torch.zeros(len(scores), num_classes + 1, device=scores.device)
    try:
        pooled.scatter_add_(1, classes.flatten(1).long(), parts.flatten(1))
    except RuntimeError as error:
        if not classes.is_cpu or classes.max() <= num_classes:
            raise
        raise ValueError(
            f"found the class id {int(classes.max())} in a label map, and {num_classes} classes; expected ids below. "
            "If the maps are of a teacher that knows more classes, open them with those of the data: "
            "LabelMaps(path, classes=folder.classes)"
        ) from error
    pooled = pooled[:, :num_classes]
    return pooled if fill == 0 else pooled.add_(fill)


def axis_weights(low: Tensor, high: Tensor, cells: int) -> Tensor:
    """Return the weight of each cell in the mean over an interval of one axis, as RoIAlign samples it.

    An interval as long as x cells takes ceil(x) samples, at least one; each sample is interpolated linearly between its
    two nearest cells. An interval shorter than a cell is extended to one cell, to the right or downwards (torchvision's
    aligned=False).

    Args:
        low, high: float [B]; the interval in fractions of the axis, low <= high, no longer than the axis.
        cells: n.

    Returns:
        float32 [B, n]; each row sums to 1 for an interval inside [0, 1].
    """
    # In the order of torchvision's op and in float32: exact arithmetic would change the ceil for 0.16 % of the boxes.
    start = low.float() * cells - 0.5
    length = (high.float() * cells - 0.5 - start).clamp_(min=1.0)
    count = length.ceil()
    index = torch.arange(cells, device=low.device, dtype=torch.float32)  # of cells, and of samples: at most n
    position = start[:, None] + (index + 0.5) * length[:, None] / count[:, None]
    is_sampled = (index < count[:, None]) & (position >= -1) & (position <= cells)
    position = position.clamp_(0, cells - 1)[:, :, None]
    # Linear interpolation is a tent over each cell; the minimum of its two slopes avoids cancellation.
    weights = torch.minimum(position - (index - 1), 1 - (position - index)).clamp_(min=0).mul_(is_sampled[:, :, None])
    return weights.sum(dim=1).div_(count[:, None])


def _check_shapes(scores: Tensor, classes: Tensor, boxes: Tensor) -> None:
    """Check that the arguments describe the same B label maps."""
    if scores.ndim != 4 or classes.shape != scores.shape or boxes.shape != (scores.shape[0], 4):
        raise ValueError(
            "expected scores [B, k, h, w], classes of the same shape and boxes [B, 4]; "
            f"got {list(scores.shape)}, {list(classes.shape)} and {list(boxes.shape)}"
        )
