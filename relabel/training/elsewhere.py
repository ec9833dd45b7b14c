"""Find a class that leads in images of other folders: where the teacher recognises nothing, crops are taught it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

MIN_IMAGES = 20  # of other folders; in fewer, one photo that really shows the class would decide
LARGE_PERCENT = 15.0
TIMES_OTHERS = 4.0


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """The class that leads in the largest share of the cells of other folders' images.

    Fields:
        label: the class, 0..K-1.
        images: number of images of other folders.
        percent: share of their cells in which it has the largest score.
        others_percent: the same of the other classes, each in other folders than its own, mean.
    """

    label: int
    images: int
    percent: float
    others_percent: float

    @classmethod
    def of(
        cls, scores: Tensor, classes: Tensor, labels: np.ndarray, num_classes: int, fill: float = 0.0
    ) -> "Elsewhere":
        """Measure a sample.

        Args:
            scores, classes: float and integer [n, k, h, w]; the label maps.
            labels: integer [n]; the folder of each image.
            num_classes: K, at least two.
            fill: as in `relabel_target`; a cell whose scores are all below it has no leading class.
        """
        is_known = classes < num_classes
        best, plane = scores.float().masked_fill(~is_known, -torch.inf).max(dim=1)
        leads = (best > fill) | (is_known.sum(dim=1) == num_classes)
        top = classes.long().gather(1, plane[:, None])[:, 0].masked_fill(~leads, num_classes).flatten(1).numpy()
        in_own = np.bincount(labels, (top == labels[:, None]).sum(axis=1), num_classes)
        images = len(labels) - np.bincount(labels, minlength=num_classes)
        cells = np.bincount(top.ravel(), minlength=num_classes + 1)[:num_classes] - in_own
        shares = 100 * cells / np.maximum(1, images * top.shape[1])
        label = int(shares.argmax())
        return cls(label, int(images[label]), float(shares[label]), float(np.delete(shares, label).mean()))

    def warning(self, class_names: Sequence[str], summed: Mapping[str, int]) -> str:
        """Describe a share far beyond that of the other classes, and what to do; "" if there is none.

        Args:
            class_names: of the K classes.
            summed: class -> number of the teacher's classes whose probabilities add up to it, if more than one.
        """
        if self.images < MIN_IMAGES or self.percent < max(LARGE_PERCENT, TIMES_OTHERS * self.others_percent):
            return ""
        name = class_names[self.label]
        found = (
            f"{name} is the top class in {self.percent:.0f} % of the cells of images of other folders; the other "
            f"classes are in {self.others_percent:.1f} % on average. "
        )
        if name not in summed:
            return (
                f"{found}If these images do not show it, their backgrounds are taught as {name}: look at them with "
                "`python -m relabel show --figure page`, and make the maps again with another teacher."
            )
        return (
            f"{found}It adds up {summed[name]:,} classes of the teacher, so it leads where the teacher recognises "
            f"nothing, and such crops are taught as {name}. Make the maps again with `annotate --merge mean`, which "
            "averages them."
        )
