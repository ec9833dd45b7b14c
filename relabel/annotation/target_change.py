"""How much pooled targets change when the same label maps are stored in another way."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from relabel.crop_box import MIN_AREA, CropBox, random_crop_box
from relabel.label_map import LabelMap
from relabel.stores.store import LabelStore
from relabel.targets import relabel_target
from utils.random import SAMPLE, keyed_rng

SIDE = 1000  # of the square that crops are drawn in: boxes are fractions of it


@dataclass(frozen=True, slots=True)
class TargetChange:
    """Targets of `crops` random crops, pooled from one and the other store.

    Fields:
        crops: how many.
        largest: change of any probability.
        mean_moved: share of a target's probability that moves to other classes (half the sum of absolute changes),
            mean over crops.
    """

    crops: int
    largest: float
    mean_moved: float


def compare_targets(
    first: LabelStore, second: LabelStore, rows: np.ndarray, num_classes: int, crops_per_map: int = 4, seed: int = 0
) -> TargetChange:
    """Pool the same random crops from both.

    Args:
        first, second: row i of both is of the same image.
        rows: int64 [n], at least one; the maps to compare.
        num_classes: K.
        crops_per_map: random crops of each map.
        seed: of the crops.
    """
    largest, moved = 0.0, []
    for row in rows.tolist():
        draws = [keyed_rng(seed, SAMPLE, number, row) for number in range(crops_per_map)]
        boxes = CropBox.stack([random_crop_box(rng, SIDE, SIDE, MIN_AREA) for rng in draws])
        change = (_targets(first, row, boxes, num_classes) - _targets(second, row, boxes, num_classes)).abs()
        largest = max(largest, float(change.max()))
        moved.append(float(change.sum(dim=1).mean()) / 2)
    return TargetChange(len(rows) * crops_per_map, largest, float(np.mean(moved)))


def _targets(store: LabelStore, row: int, boxes: Tensor, num_classes: int) -> Tensor:
    """float32 [B, K]; the targets of several crops of one map."""
    scores, classes = LabelMap.stack([store.read(row)] * len(boxes))
    return relabel_target(scores, classes, boxes, num_classes)
