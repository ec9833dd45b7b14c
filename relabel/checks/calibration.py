"""Are the annotator's logits on a scale that makes good targets, and do these agree with the folders' labels.

A class that a cell does not store counts as logit `fill`, and there are many such classes: one class alone with logit
4 keeps 5 % of the probability among 1,000 classes at fill 0, and 96 % with logit 10.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relabel.checks.sample import MapSample
from relabel.checks.suggestion import Suggestion, suggest
from relabel.targets import relabel_target
from utils.estimates import Estimate

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
SHOWN = 0.1  # probability from which a class counts as being in the target
MEANINGLESS_LEAK = 0.75


@dataclass(frozen=True, slots=True)
class Calibration:
    """What the logits of a sample of maps are like. Of images without classes, what needs labels is None.

    Fields:
        maps, classes_per_cell, num_classes: n, k, K.
        fill, temperature: that targets were made with.
        top_logit: percentile -> largest logit of a cell.
        looks_like_probabilities: all scores are positive, and those of a cell add up to no more than 1.
        cell_leak: probability that falls to the classes a cell does not store, percent.
        target_leak: the same in the target of the whole image: to classes that no cell stores.
        top1_agreement, top5_agreement: of that target with the folder's label, percent. Ties count against it.
        several_classes: images with more than one class above 10 % in that target, percent.
        cross_entropy_nats: of that target, for the folder's label.
        suggestion: fill and temperature to try.
    """

    maps: int
    classes_per_cell: int
    num_classes: int
    fill: float
    temperature: float
    top_logit: dict[int, float]
    looks_like_probabilities: bool
    cell_leak: Estimate | None
    target_leak: Estimate | None
    top1_agreement: Estimate | None
    top5_agreement: Estimate | None
    several_classes: Estimate | None
    cross_entropy_nats: Estimate | None
    suggestion: Suggestion

    def problems(self, teacher_top1_percent: float | None = None) -> list[str]:
        """What is wrong, each with what to do.

        Args:
            teacher_top1_percent: the teacher's known accuracy.
        """
        return [text for text in (self._scale_problem(), self._agreement_problem(teacher_top1_percent)) if text]

    def _scale_problem(self) -> str | None:
        if self.looks_like_probabilities:
            return (
                "No cell's scores add up to more than 1, as those of probabilities; expected logits, from before the "
                "softmax. Make the maps again with the classifier's logits."
            )
        if self.target_leak and self.target_leak.value > 100 * MEANINGLESS_LEAK:
            return (
                f"{self.target_leak.value:.0f} % of a target falls to classes that its map does not hold, so targets "
                f"teach next to nothing. {self.suggestion.reason}"
            )
        return None

    def _agreement_problem(self, teacher_percent: float | None) -> str | None:
        """An agreement below half the teacher's accuracy, or more than 15 points below it, beyond chance."""
        found = self.top1_agreement
        if teacher_percent is None or found is None or found.high95 >= max(teacher_percent / 2, teacher_percent - 15):
            return None
        return (
            f"The maps agree with {found.value:.1f} % of the folders' labels; expected about the {teacher_percent:g} % "
            "that their teacher has as top-1 accuracy. Were they made with the mean, std and size it was trained with, "
            "and do its classes come in the order of the class folders? Make them again."
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, the unit in the name."""
        return {
            "maps": self.maps,
            "classes_per_cell": self.classes_per_cell,
            "classes": self.num_classes,
            "fill_logit": self.fill,
            "temperature": self.temperature,
            "top_logit_percentiles": {str(at): value for at, value in self.top_logit.items()},
            "leak_in_cells_percent": _plain(self.cell_leak),
            "leak_in_whole_image_target_percent": _plain(self.target_leak),
            "top1_agreement_percent": _plain(self.top1_agreement),
            "top5_agreement_percent": _plain(self.top5_agreement),
            "images_of_several_classes_percent": _plain(self.several_classes),
            "cross_entropy_nats": _plain(self.cross_entropy_nats),
            "suggested_fill_logit": self.suggestion.fill,
            "suggested_temperature": self.suggestion.temperature,
            "reason": self.suggestion.reason,
        }


def _plain(estimate: Estimate | None) -> dict[str, float] | None:
    return None if estimate is None else asdict(estimate)


def calibrate(
    sample: MapSample, labels: np.ndarray | None, num_classes: int, fill: float = 0.0, temperature: float = 1.0
) -> Calibration:
    """Measure a sample of maps.

    Args:
        sample: of the maps.
        labels: integer [N], the class folder of every image (not only the sample's); None: unknown.
        num_classes: K.
        fill, temperature: as in `relabel_target`.
    """
    mine = None if labels is None else torch.from_numpy(labels[sample.rows].astype(np.int64))
    cells, targets = [], []
    for part in sample.batches():
        scores, classes = sample.scores[part].float(), sample.classes[part]
        cells.append(cell_leak(scores, classes, num_classes, fill, temperature).mean((1, 2)))
        target = relabel_target(scores, classes, None, num_classes, fill=fill, temperature=temperature)
        targets.append(_measure_targets(target, classes, None if mine is None else mine[part]))
    leak, several, rank, loss = (torch.cat(parts).numpy() for parts in zip(*targets, strict=True))
    known = mine is not None
    return Calibration(
        maps=len(sample),
        classes_per_cell=sample.scores.shape[1],
        num_classes=num_classes,
        fill=fill,
        temperature=temperature,
        top_logit=_top_logits(sample.scores),
        looks_like_probabilities=bool(sample.scores.min() >= 0 and sample.scores.float().sum(1).max() <= 1.01),
        cell_leak=Estimate.percent(torch.cat(cells).numpy()),
        target_leak=Estimate.percent(leak),
        top1_agreement=Estimate.percent(rank < 1) if known else None,
        top5_agreement=Estimate.percent(rank < 5) if known and num_classes > 5 else None,
        several_classes=Estimate.percent(several),
        cross_entropy_nats=Estimate.mean(loss) if known else None,
        suggestion=suggest(sample, mine, num_classes, fill, temperature),
    )


def cell_leak(scores: Tensor, classes: Tensor, num_classes: int, fill: float, temperature: float) -> Tensor:
    """float [B, h, w]; share of each cell's softmax that falls to the classes the cell does not store."""
    held = classes < num_classes
    absent = num_classes - held.sum(dim=1)
    stored = (scores / temperature).masked_fill(~held, -torch.inf).logsumexp(dim=1)
    # n classes at logit `fill` weigh as much as one at fill + log n; none weigh nothing.
    return (absent.float().log() + fill / temperature - stored).sigmoid()


def classes_shown(target: Tensor) -> Tensor:
    """int64 [B]; classes above 10 % in each target [B, K]."""
    return (target > SHOWN).sum(dim=1)


def held_anywhere(classes: Tensor, num_classes: int) -> Tensor:
    """bool [B, K]; the classes that some cell of each map [B, k, h, w] stores."""
    held = torch.zeros(len(classes), num_classes + 1, dtype=torch.bool)
    return held.scatter_(1, classes.flatten(1).long(), True)[:, :num_classes]


def label_rank(target: Tensor, labels: Tensor) -> Tensor:
    """int64 [B]; how many other classes have at least the label's probability."""
    return (target >= target.gather(1, labels[:, None])).sum(dim=1) - 1


def _measure_targets(target: Tensor, classes: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Leak, several classes or not, rank and cross-entropy of the label, each [B]; zeros where labels are unknown."""
    leak = target.masked_fill(held_anywhere(classes, target.shape[1]), 0).sum(dim=1)
    several = classes_shown(target) > 1
    if labels is None:
        return leak, several, torch.zeros(len(target)), torch.zeros(len(target))
    loss = -target.gather(1, labels[:, None])[:, 0].clamp(min=1e-30).log()
    return leak, several, label_rank(target, labels), loss


def _top_logits(scores: Tensor) -> dict[int, float]:
    """Percentiles over all cells of the sample of the largest logit of a cell."""
    top = scores.amax(dim=1).float().numpy()
    return {at: float(value) for at, value in zip(PERCENTILES, np.percentile(top, PERCENTILES), strict=True)}
