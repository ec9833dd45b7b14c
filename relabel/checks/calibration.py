"""Check that the logits of label maps make good targets: their scale and their agreement with the folders' labels.

A class that a cell does not store counts with logit `fill`, and there are many such classes: among 1,000 classes at
fill 0, a single class with logit 4 gets 5 % of the probability, with logit 10 96 %. If that is too little, a lower fill
is suggested, which does not change the stored classes; if the labels call for it, another temperature.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from relabel.checks.sample import MapSample
from relabel.crop_box import WHOLE_IMAGE, CropBox
from relabel.label_pooling import pool_scores
from relabel.targets import relabel_target
from relabel.training.agreement import Agreement, cells_below, top_class
from utils.estimates import Estimate

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
SHOWN = 0.1  # above this probability, a class counts as part of the target
TOLERATED_LEAK = 0.05
REACH = 15.0  # times the temperature: how far a fill may be lowered; one class then outweighs 100,000 absent ones
FITTED_NUMBERS = 2_000_000  # logits that a fit uses: 2,000 images of 1,000 classes
TEMPERATURES = 2.0 ** np.arange(-4, 4.5, 0.5)  # tried, as multiples of the current one
# Smaller errors of the temperature do not harm students. On the digit scenes the cross-entropy is lowest at 0.4, and
# temperatures 0.1, 0.4, 1, 2, 3 gave 77.8, 78.7, 79.4, 78.6, 71.4 % top-1 (means of seeds 0-2, each to within 1).
WORTHWHILE_FACTOR = 4.0
WORTHWHILE_NATS = 0.1
BELOW_FILL = 0.05  # share of cells that may have their highest score below the fill
MOST = 0.5  # of the cells; then the fill is wrong, whatever else is


@dataclass(frozen=True, slots=True)
class Calibration:
    """Measurements of a sample of maps, and what to try; None for what needs labels if there are none.

    Fields:
        maps, classes_per_cell, classes: n, k, K.
        fill_logit, temperature: of the targets.
        agreement: what is compared with chance, and whether the scores can be logits.
        top_logit_percentiles: percentile -> largest logit of a cell.
        leak_in_cells_percent: probability of the classes that a cell does not store.
        leak_in_whole_image_target_percent: in the target of the whole image, of the classes that no cell stores.
        top1_agreement_percent, top5_agreement_percent: of that target with the folder's label; ties count as wrong.
        images_of_several_classes_percent: images with more than one class above 10 % in that target.
        cross_entropy_nats: of that target, for the folder's label.
        images_storing_no_class: number of images of whose K classes no cell stores any: their target is uniform.
        suggested_fill_logit, suggested_temperature: to try; None: the current one is fine.
        reason: for the suggestions.
    """

    maps: int
    classes_per_cell: int
    classes: int
    fill_logit: float
    temperature: float
    agreement: Agreement
    top_logit_percentiles: dict[str, float]
    leak_in_cells_percent: Estimate | None
    leak_in_whole_image_target_percent: Estimate | None
    top1_agreement_percent: Estimate | None
    top5_agreement_percent: Estimate | None
    images_of_several_classes_percent: Estimate | None
    cross_entropy_nats: Estimate | None
    images_storing_no_class: int
    suggested_fill_logit: float | None
    suggested_temperature: float | None
    reason: str

    def problems(self, class_names: Sequence[str], teacher_percent: float | None = None) -> list[str]:
        """Return what is wrong, each with what to do.

        Args:
            class_names: of the K classes.
            teacher_percent: known top-1 accuracy of the teacher; an agreement below half of it, or more than 15 points
                below it, is a problem unless it can be chance.
        """
        found, agreement = self.agreement.problems(class_names, self._advice()), self.top1_agreement_percent
        if teacher_percent and agreement and agreement.high95 < max(teacher_percent / 2, teacher_percent - 15):
            found.append(
                f"The maps agree with {agreement.value:.1f} % of the folders' labels; expected about "
                f"{teacher_percent:g} %, the top-1 accuracy of their teacher. Make them again, with the mean, std and "
                "size that it was trained with and its classes in the order of the class folders."
            )
        return found

    def warnings(self, class_names: Sequence[str], summed: Mapping[str, int]) -> list[str]:
        """Return what may make the targets worse; arguments as in `Elsewhere.warning`."""
        elsewhere = self.agreement.elsewhere
        warning = elsewhere.warning(class_names, summed) if elsewhere else ""
        return [warning] if warning else []

    def _advice(self) -> str:
        """Return the reason for the suggestions, and the flags that make them."""
        wanted = {"fill": self.suggested_fill_logit, "temperature": self.suggested_temperature}
        flags = {name: value for name, value in wanted.items() if value is not None}
        if not flags:
            return self.reason
        here, there = (
            " ".join(f"--{prefix}{name} {value:g}" for name, value in flags.items()) for prefix in ("", "data.relabel.")
        )
        return f"{self.reason} Check again with {here}, and train with {there}."


@dataclass(frozen=True, slots=True, eq=False)
class Pooled:
    """Whole images, pooled once so that any fill can be tried: logit = scores + (1 - stored) * fill.

    Fields:
        scores: float [n, K]; pooled with fill 0.
        stored: float [n, K]; share of the cells that store the class.
        labels: int64 [n]; None: unknown.
    """

    scores: Tensor
    stored: Tensor
    labels: Tensor | None

    @classmethod
    def of(cls, sample: MapSample, labels: Tensor | None, num_classes: int) -> "Pooled":
        """Pool every map of a sample over its whole image; labels: int64 [n] or None."""
        boxes = CropBox.stack([WHOLE_IMAGE]).expand(len(sample), 4)
        scores = pool_scores(sample.scores, sample.classes, boxes, num_classes)
        stored = pool_scores(torch.ones_like(sample.scores), sample.classes, boxes, num_classes)
        return cls(scores, stored, labels)

    def log_target(self, fill: float, temperature: float) -> Tensor:
        """Return the log of the targets of the whole images, float [n, K]."""
        return ((self.scores + (1 - self.stored) * fill) / temperature).log_softmax(dim=1)

    def leak(self, fill: float, temperature: float) -> Tensor:
        """Return the probability of the classes that no cell stores, float [n]."""
        return self.log_target(fill, temperature).exp().masked_fill(self.stored > 0, 0).sum(dim=1)

    def loss(self, fill: float, temperature: float) -> Tensor:
        """Return the cross-entropy of the labels, float [n], nats."""
        assert self.labels is not None
        return -self.log_target(fill, temperature).gather(1, self.labels[:, None])[:, 0]

    def tolerable_fill(self, fill: float, temperature: float) -> float | None:
        """Return the highest fill, at most the given one, with a tolerable mean leak; None if none is in reach."""

        def excess(tried: float) -> float:
            return float(self.leak(tried, temperature).mean()) - TOLERATED_LEAK

        lowest, step = fill - REACH * temperature, 0.01 * temperature
        if excess(fill) <= 0:
            return fill
        return None if excess(lowest) > 0 else float(brentq(excess, lowest, fill, xtol=step)) - step


def calibrate(
    sample: MapSample, labels: np.ndarray | None, num_classes: int, fill: float = 0.0, temperature: float = 1.0
) -> Calibration:
    """Measure a sample of maps, and suggest a fill and a temperature.

    Args:
        sample: of the maps.
        labels: integer [N]; the class folder of every image, not only of the sample; None: unknown.
        num_classes: K.
        fill, temperature: as in `relabel_target`.
    """
    own = None if labels is None else torch.from_numpy(labels[sample.rows].astype(np.int64))
    measured = []
    for part in sample.batches():
        maps, labels_here = sample.only(part), None if own is None else own[part]
        pooled = Pooled.of(maps, labels_here, num_classes)
        cells = cell_leak(maps.scores.float(), maps.classes, num_classes, fill, temperature).mean((1, 2))
        target = relabel_target(maps.scores, maps.classes, None, num_classes, fill=fill, temperature=temperature)
        values = [cells, pooled.leak(fill, temperature), (target > SHOWN).sum(dim=1) > 1]
        if labels_here is not None:
            is_top = top_class(target) == labels_here
            values += [is_top, label_rank(target, labels_here), pooled.loss(fill, temperature)]
        measured.append(values)
    in_cells, leak, several, *rest = (torch.cat(parts).numpy() for parts in zip(*measured, strict=True))
    right, rank, loss = rest or (None, None, None)
    step = -(-len(sample) * num_classes // FITTED_NUMBERS)
    fitted = Pooled.of(sample.only(slice(None, None, step)), None if own is None else own[::step], num_classes)
    new_fill, new_temperature, reason = suggest(fitted, sample, fill, temperature)
    top_logits = np.percentile(sample.scores.amax(dim=1).float().numpy(), PERCENTILES)
    return Calibration(
        maps=len(sample),
        classes_per_cell=sample.scores.shape[1],
        classes=num_classes,
        fill_logit=fill,
        temperature=temperature,
        agreement=Agreement.of(
            sample.scores, sample.classes, None if own is None else own.numpy(), num_classes, fill, temperature
        ),
        top_logit_percentiles={str(at): float(value) for at, value in zip(PERCENTILES, top_logits, strict=True)},
        leak_in_cells_percent=Estimate.percent(in_cells),
        leak_in_whole_image_target_percent=Estimate.percent(leak),
        top1_agreement_percent=None if right is None else Estimate.percent(right),
        top5_agreement_percent=None if rank is None or num_classes <= 5 else Estimate.percent(rank < 5),
        images_of_several_classes_percent=Estimate.percent(several),
        cross_entropy_nats=None if loss is None else Estimate.mean(loss),
        images_storing_no_class=int((sample.classes >= num_classes).flatten(1).all(dim=1).sum()),
        suggested_fill_logit=new_fill,
        suggested_temperature=new_temperature,
        reason=reason,
    )


def cell_leak(scores: Tensor, classes: Tensor, num_classes: int, fill: float, temperature: float) -> Tensor:
    """Return the probability in each cell of the classes that it does not store, float [B, h, w]."""
    is_known = classes < num_classes
    absent = num_classes - is_known.sum(dim=1)
    stored = (scores / temperature).masked_fill(~is_known, -torch.inf).logsumexp(dim=1)
    # n classes at logit `fill` have as much probability as one at fill + log n; for n = 0, none.
    return (absent.float().log() + fill / temperature - stored).sigmoid()


def label_rank(target: Tensor, labels: Tensor) -> Tensor:
    """Return the number of other classes with at least the label's probability, int64 [B]."""
    return (target >= target.gather(1, labels[:, None])).sum(dim=1) - 1


Suggestion = tuple[float | None, float | None, str]  # fill and temperature (None: no change), reason


def suggest(pooled: Pooled, sample: MapSample, fill: float = 0.0, temperature: float = 1.0) -> Suggestion:
    """Suggest a fill at which 5 % leaks, and the temperature with the lowest cross-entropy of the labels.

    Args:
        pooled: whole images of the sample.
        sample: of the maps.
        fill, temperature: the current ones.
    """
    share, below = _fill_below_scores(pooled, sample, fill, temperature)
    if share > MOST:  # the labels say nothing about the temperature at such a fill
        return below
    new_temperature, about_temperature = _suggest_temperature(pooled, fill, temperature)
    kept = new_temperature or temperature
    lower = pooled.tolerable_fill(fill, kept)
    leaked = f"{100 * float(pooled.leak(fill, kept).mean()):.1f} % of the whole image's target falls to classes that "
    leaked += "its map does not store"
    at = f"With fill {fill:g}" + (f" and temperature {kept:g}" if new_temperature else "")
    new_fill = None
    if lower is not None and lower < fill:
        new_fill = _rounded_down(lower)
        about_fill = f"{at}, {leaked}. Try fill {new_fill:g}, which lowers it to {100 * TOLERATED_LEAK:g} %."
    elif share > BELOW_FILL:
        return below
    elif lower is None:
        about_fill = f"{at}, {leaked}; no fill helps, because the maps store each class in only a few cells."
    else:
        about_fill = f"Fill {fill:g} is fine: {leaked}."
    reasons = (about_temperature, about_fill) if new_temperature else (about_fill, about_temperature)
    return new_fill, new_temperature, " ".join(reasons).strip()


def _rounded_down(fill: float) -> float:
    """Round to a tenth, so that no more leaks than promised."""
    return float(np.floor(fill * 10) / 10)


def _fill_below_scores(pooled: Pooled, sample: MapSample, fill: float, temperature: float) -> tuple[float, Suggestion]:
    """Return the share of cells that the fill exceeds, where absent classes win, and a fill below nearly all scores."""
    num_classes = pooled.scores.shape[1]
    below, counted = cells_below(sample.scores, sample.classes, num_classes, fill)
    share = float(below.sum() / counted.sum().clamp(min=1))
    if not share:
        return 0.0, (None, None, "")
    lowest = sample.scores.float().masked_fill(sample.classes >= num_classes, torch.inf).amin(dim=1)[counted]
    lower = float(np.floor(np.quantile(lowest.numpy(), 0.01)))
    tolerable = pooled.tolerable_fill(lower, temperature)
    lower = lower if tolerable is None else min(lower, _rounded_down(tolerable))
    reason = (
        f"{100 * share:.0f} % of the cells have no score above fill {fill:g}: classes that they do not store get "
        f"more probability than those that they do. Try fill {lower:g}, which is below nearly all scores."
    )
    return share, (lower, None, reason)


def _suggest_temperature(pooled: Pooled, fill: float, temperature: float) -> tuple[float | None, str]:
    """Return the best of the temperatures tried, each with its best fill, and the reason."""
    if pooled.labels is None:
        return None, ""
    tried = [float(temperature * factor) for factor in TEMPERATURES]
    fills = [pooled.tolerable_fill(fill, other) for other in tried]
    losses = [pooled.loss(fill if lower is None else lower, other) for lower, other in zip(fills, tried, strict=True)]
    best = int(np.argmin([float(loss.mean()) for loss in losses]))
    gain = Estimate.mean((losses[tried.index(temperature)] - losses[best]).numpy())
    factor = max(TEMPERATURES[best], 1 / TEMPERATURES[best])
    is_worthwhile = gain and factor >= WORTHWHILE_FACTOR and gain.value >= max(WORTHWHILE_NATS, 2 * gain.standard_error)
    # The highest is best if labels and maps do not belong together; it would not help then.
    if not gain or not is_worthwhile or best == len(tried) - 1:
        return None, f"No temperature far from {temperature:g} would make the folders' labels clearly more likely."
    # The optimum is flat; more digits would suggest too much precision.
    rounded = float(f"{tried[best]:.1g}" if tried[best] < 1 else f"{tried[best]:.2g}")
    return rounded, (
        f"Measured by the folders' labels, the targets are far too {'sharp' if rounded > temperature else 'soft'}: try "
        f"temperature {rounded:g}{' or lower' if best == 0 else ''}, which lowers their cross-entropy by "
        f"{gain.value:.2f} nats. (A teacher trained on these very images is more confident on them than on others.)"
    )
