"""Check that label maps agree with the folders' labels more often than chance: for `check`, and before a run begins.

Everything is measured on the targets of whole images, so the order of a crop's sides does not matter.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from relabel.crop_box import WHOLE_IMAGE, CropBox
from relabel.label_map import LabelMap
from relabel.label_pooling import pool_scores
from relabel.stores.store import LabelStore
from relabel.targets import relabel_target
from relabel.training.elsewhere import Elsewhere
from utils.chance import better_permutation, no_better_than_chance

SAMPLES = (200, 10_000)  # maps read before a run begins: a few, and as many as `check` measures if these look wrong
POOLED_NUMBERS = 250_000  # at once: 250 images of 1,000 classes
MOST_PERCENT = 50.0
# Cells of trained networks have largest logits of about 5 to 30, some of 100; those of diverged ones have thousands.
LARGEST_LOGIT = 300.0
NAMED_CLASSES = 20  # the likely order of more classes is not printed


@dataclass(frozen=True, slots=True)
class Agreement:
    """What a sample of label maps teaches about whole images.

    Fields:
        images, classes: n, K.
        fill_logit, temperature: of the targets.
        correct: number of images whose most likely class is the folder's, ties excluded; None: they have no labels.
        likely_classes: for each class of the maps, the folder that it really is; None: the present order fits.
        leak_percent: probability of the classes that no cell of the image's map stores.
        cells_below_fill_percent: cells whose scores are all below the fill, among those that store some of the K
            classes but not all.
        top_logit: median over cells of the largest score, without its sign.
        scores_are_probabilities: all scores are >= 0, and those of a cell add up to at most 1.
        flat_cells_percent: cells that give all their classes one and the same score.
        elsewhere: the class that leads most often in images of other folders; None: they have no labels.
    """

    images: int
    classes: int
    fill_logit: float
    temperature: float
    correct: int | None
    likely_classes: list[int] | None
    leak_percent: float
    cells_below_fill_percent: float
    top_logit: float
    scores_are_probabilities: bool
    flat_cells_percent: float
    elsewhere: Elsewhere | None

    @classmethod
    def of(
        cls,
        scores: Tensor,
        classes: Tensor,
        labels: np.ndarray | None,
        num_classes: int,
        fill: float = 0.0,
        temperature: float = 1.0,
    ) -> "Agreement":
        """Measure a sample.

        Args:
            scores, classes: float and integer [n, k, h, w]; the label maps.
            labels: integer [n]; the folder of each image; None: unknown.
            num_classes: K.
            fill, temperature: as in `relabel_target`.
        """
        predicted, leak = (
            torch.cat(parts).numpy()
            for parts in zip(*_targets(scores, classes, num_classes, fill, temperature), strict=True)
        )
        right = order = elsewhere = None
        if labels is not None and num_classes > 1:
            right = int((predicted == labels).sum())
            order = better_permutation(labels, predicted, num_classes)
            elsewhere = Elsewhere.of(scores, classes, labels, num_classes, fill)
        below, counted = cells_below(scores, classes, num_classes, fill)
        return cls(
            images=len(scores),
            classes=num_classes,
            fill_logit=fill,
            temperature=temperature,
            correct=right,
            likely_classes=None if order is None else order.tolist(),
            leak_percent=100 * float(leak.mean()),
            cells_below_fill_percent=100 * float(below.sum() / counted.sum().clamp(min=1)),
            top_logit=float(scores.amax(dim=1).abs().float().median()),
            scores_are_probabilities=bool(scores.min() >= 0 and scores.float().sum(dim=1).max() <= 1.01),
            flat_cells_percent=100 * float(is_flat(scores).float().mean()),
            elsewhere=elsewhere,
        )

    def __str__(self) -> str:
        if self.correct is None:
            return "the images have no labels to compare the label maps with"
        share = (
            f"{100 * self.correct / self.images:.1f} % of {self.images:,} images (chance: {100 / self.classes:.3g} %)"
        )
        return f"the label map's most likely class is the folder's for {share}"

    @property
    def most_cells_are_below_fill(self) -> bool:
        """Whether absent classes win in most cells, as at fill 0 for log-probabilities."""
        return self.cells_below_fill_percent > MOST_PERCENT

    def problems(self, class_names: Sequence[str], about_fill: str = "") -> list[str]:
        """Return what is wrong, each with what to do.

        Args:
            class_names: of the K classes.
            about_fill: which fill to try, if known.
        """
        found = []
        if self.flat_cells_percent > MOST_PERCENT:
            return [
                f"{self.flat_cells_percent:.0f} % of the cells give all their classes the same score, so the maps do "
                "not say what an image shows; expected scores that differ. The teacher is untrained or its output "
                "is constant. Make the maps again with a trained teacher."
            ]
        if self.scores_are_probabilities:
            found.append(
                "The scores of a cell are positive and add up to at most 1, as probabilities do; expected logits, from "
                "before the softmax, of a trained classifier. Make the maps again with these."
            )
        elif self.top_logit / max(1.0, self.temperature) > LARGEST_LOGIT:
            found.append(
                f"The largest score of a cell is {self.top_logit:,.0f} (median); expected about 5 to 30, the logits of "
                "a trained classifier. The teacher's training has diverged, or these are no logits: make the maps "
                "again with another checkpoint."
            )
        elif self.most_cells_are_below_fill:
            found.append(
                f"{self.cells_below_fill_percent:.0f} % of the cells have no score above fill {self.fill_logit:g}, as "
                "with log-probabilities: the classes that they do not store get more probability than those that they "
                f"do, and {self}. Expected a fill below the scores. {about_fill}".rstrip()
            )
        elif self.leak_percent > MOST_PERCENT:
            found.append(
                f"{self.leak_percent:.0f} % of a target falls to classes that its map does not store, so targets teach "
                f"next to nothing; expected less than half. {about_fill}".rstrip()
            )
        disagrees = "" if self.most_cells_are_below_fill else self._disagreement(class_names)
        return [*found, disagrees] if disagrees else found

    def _disagreement(self, class_names: Sequence[str]) -> str:
        """Describe what is wrong with the agreement, and what to do; "" if it is better than chance."""
        if self.likely_classes:
            order = [class_names[index] for index in self.likely_classes]
            named = f": the classes taken for {', '.join(class_names)} are {', '.join(order)}"
            return (
                f"{str(self).capitalize()}; expected far more, as with another order of the classes. The maps' "
                f"classes are in the wrong order{named if self.classes <= NAMED_CLASSES else ''}. Make the maps again "
                "with `annotate --classes FILE`, a text file of the teacher's classes in their order, one per line (or "
                "name the classes of .pt files so: `pack --classes FILE`)."
            )
        if self.correct is None or not no_better_than_chance(self.correct, self.images, self.classes):
            return ""
        return (
            f"{str(self).capitalize()}; expected clearly more. The teacher is untrained or has other classes, or its "
            "input was wrong. Make the maps again with a trained teacher, its own mean, std and size, and its classes "
            "in their order (`annotate --classes FILE`)."
        )


def _targets(
    scores: Tensor, classes: Tensor, num_classes: int, fill: float, temperature: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield, batch by batch, the most likely class of whole images, int64 [B] (-1: a tie), and the leak, float [B]."""
    batch = max(1, POOLED_NUMBERS // num_classes)
    for values, ids in zip(scores.split(batch), classes.split(batch), strict=True):
        boxes = CropBox.stack([WHOLE_IMAGE]).expand(len(values), 4)
        target = relabel_target(values, ids, None, num_classes, fill=fill, temperature=temperature)
        stored = pool_scores(torch.ones_like(values), ids, boxes, num_classes) > 0
        yield top_class(target), target.masked_fill(stored, 0).sum(dim=1)


def top_class(target: Tensor) -> Tensor:
    """Return the most likely class of targets [B, K], int64 [B]; -1 if several classes share the first place.

    Whether a map agrees with its image's label is decided here, so that all commands count the same images.
    """
    largest, predicted = target.max(dim=1)
    is_tie = (target == largest[:, None]).sum(dim=1) > 1
    return predicted.masked_fill(is_tie, -1)


def is_flat(scores: Tensor) -> Tensor:
    """Find the cells of [n, k, h, w] that give all of their classes, two or more, the same score; bool [n, h, w]."""
    return (scores.amax(dim=1) == scores.amin(dim=1)) & (scores.shape[1] > 1)


def cells_below(scores: Tensor, classes: Tensor, num_classes: int, fill: float) -> tuple[Tensor, Tensor]:
    """Find the cells whose scores are all below the fill, and those that store some of the K classes but not all.

    Only the latter can be below: in others, no class is absent, or none has a score.

    Returns:
        bool [n, h, w], twice.
    """
    is_known = classes < num_classes
    known = is_known.sum(dim=1)
    counted = (known > 0) & (known < num_classes)
    best = scores.float().masked_fill(~is_known, -torch.inf).amax(dim=1)
    return counted & (best < fill), counted


def sampled_agreement(
    store: LabelStore, labels: np.ndarray, class_names: Sequence[str], fill: float, temperature: float
) -> tuple[Agreement, list[str]]:
    """Measure 200 maps, evenly spaced over the images; if there are problems, 10,000, as many as `check` measures.

    Args:
        store: of the maps.
        labels: integer [N]; the class of each row.
        class_names: of the K classes.
        fill, temperature: as in `relabel_target`.

    Returns:
        the agreement and its problems.

    Raises:
        UserError: as LabelStore.read.
    """
    for count in SAMPLES:
        rows = np.unique(np.linspace(0, len(labels) - 1, min(count, len(labels))).round().astype(np.int64))
        maps = LabelMap.stack([store.read(row) for row in rows.tolist()])
        agreement = Agreement.of(*maps, labels[rows], len(class_names), fill, temperature)
        problems = agreement.problems(class_names)
        if not problems or len(rows) == len(labels):
            break
    return agreement, problems
