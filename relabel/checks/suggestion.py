"""Which fill and temperature to try, and why: few enough absent classes in the target, and the folders' labels likely.

Both are tried on the targets of whole images. The fill cures the leak to absent classes: a temperature low enough for
that would sharpen the classes that are there as well.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from relabel.checks.sample import MapSample
from relabel.crop_box import WHOLE_IMAGE, CropBox
from relabel.label_pooling import pool_scores

TOLERATED_LEAK = 0.05
REACH = 15.0  # temperatures that a fill may be lowered by: one class alone then outweighs 100,000 absent ones
FITTED_NUMBERS = 2_000_000  # logits that a fit looks at: 2,000 images of 1,000 classes
TEMPERATURES = 2.0 ** np.arange(-4, 4.5, 0.5)  # tried, times the present one
# Students do not mind a temperature that is off by less. On the digit scenes the cross-entropy is lowest at 0.4, and
# temperatures 0.1, 0.4, 1, 2, 3 gave 77.8, 78.7, 79.4, 78.6, 71.4 % top-1 (means of seeds 0-2, each to within 1).
WORTHWHILE_FACTOR = 4.0
WORTHWHILE_NATS = 0.1
BELOW_FILL = 0.05  # share of cells whose highest score may be below the fill


@dataclass(frozen=True, slots=True)
class Suggestion:
    """Settings to try, and why; None where the present value is fine."""

    fill: float | None
    temperature: float | None
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class _Pooled:
    """Whole images pooled once, so that any fill can be tried: logit = scores + (1 - stored) * fill.

    Fields:
        scores: float [n, K]; pooled with fill 0.
        stored: float [n, K]; share of the cells that store the class.
        labels: int64 [n]; None: unknown.
    """

    scores: Tensor
    stored: Tensor
    labels: Tensor | None

    def log_target(self, fill: float, temperature: float) -> Tensor:
        """float [n, K]; log of the targets of the whole images."""
        return ((self.scores + (1 - self.stored) * fill) / temperature).log_softmax(dim=1)

    def leak(self, fill: float, temperature: float) -> float:
        """Mean probability of the classes that no cell stores."""
        target = self.log_target(fill, temperature).exp()
        return float(target.masked_fill(self.stored > 0, 0).sum(dim=1).mean())

    def loss(self, fill: float, temperature: float) -> Tensor:
        """float [n]; cross-entropy of the labels, nats."""
        assert self.labels is not None
        return -self.log_target(fill, temperature).gather(1, self.labels[:, None])[:, 0]

    def tolerable_fill(self, fill: float, temperature: float) -> float | None:
        """The highest fill, not above the given one, whose leak is tolerated; None if there is none within reach."""
        if self.leak(fill, temperature) <= TOLERATED_LEAK:
            return fill
        low, high = fill - REACH * temperature, fill
        if self.leak(low, temperature) > TOLERATED_LEAK:
            return None
        for _ in range(10):
            middle = (low + high) / 2
            low, high = (middle, high) if self.leak(middle, temperature) <= TOLERATED_LEAK else (low, middle)
        return low


def suggest(
    sample: MapSample, labels: Tensor | None, num_classes: int, fill: float = 0.0, temperature: float = 1.0
) -> Suggestion:
    """The leak of the whole image's target down to 5 %, and the temperature of the best cross-entropy.

    Args:
        sample: of the maps.
        labels: int64 [n], of the sample's images; None: the temperature is left alone.
        num_classes: K.
        fill, temperature: as they are now.
    """
    pooled = _pool(sample, labels, num_classes)
    change = None if labels is None else _better_temperature(pooled, fill, temperature)
    kept = change.temperature if change else temperature
    lower = pooled.tolerable_fill(fill, kept)
    # Rounded down to a tenth, so that what is suggested keeps what it promises.
    new_fill = None if lower is None or lower == fill else float(np.floor(lower * 10) / 10)
    if new_fill is None and (below := _fill_below_scores(sample, num_classes, fill)):
        return below
    reasons = [_why_fill(pooled.leak(fill, kept), fill, new_fill), _why_temperature(change, temperature, labels)]
    return Suggestion(new_fill, change.temperature if change else None, " ".join(filter(None, reasons)))


def _fill_below_scores(sample: MapSample, num_classes: int, fill: float) -> Suggestion | None:
    """A fill below nearly all scores, where the given one lies above whole cells: absent classes would win there."""
    scores = sample.scores.float()
    above = float((scores.amax(dim=1) < fill).float().mean())
    if scores.shape[1] == num_classes or above <= BELOW_FILL:
        return None
    lower = float(np.floor(np.quantile(scores.amin(dim=1).numpy(), 0.01)))
    reason = (
        f"{100 * above:.0f} % of the cells have no score above fill {fill:g}: classes that they do not hold count for "
        f"more than those they do. Try fill {lower:g}, which lies below nearly all scores."
    )
    return Suggestion(lower, None, reason)


def _pool(sample: MapSample, labels: Tensor | None, num_classes: int) -> _Pooled:
    """As many of the sample's whole images as a fit needs, evenly spread over the classes."""
    step = -(-len(sample) * num_classes // FITTED_NUMBERS)
    chosen = sample.only(np.arange(0, len(sample), step))
    whole = CropBox.stack([WHOLE_IMAGE])
    scores, stored = [], []
    for part in chosen.batches():
        maps, classes = chosen.scores[part].float(), chosen.classes[part]
        boxes = whole.expand(len(maps), 4)
        scores.append(pool_scores(maps, classes, boxes, num_classes))
        stored.append(pool_scores(torch.ones_like(maps), classes, boxes, num_classes))
    return _Pooled(torch.cat(scores), torch.cat(stored), None if labels is None else labels[::step])


@dataclass(frozen=True, slots=True)
class _Change:
    """A temperature that fits the labels better, by how many nats of cross-entropy, and if it is the lowest tried."""

    temperature: float
    gain: float
    is_lowest: bool


def _better_temperature(pooled: _Pooled, fill: float, temperature: float) -> _Change | None:
    """The best of the temperatures, each with the fill that suits it; None if the present one is about as good."""
    tried = [float(temperature * factor) for factor in TEMPERATURES]
    fills = [pooled.tolerable_fill(fill, other) for other in tried]
    losses = [pooled.loss(fill if lower is None else lower, other) for lower, other in zip(fills, tried, strict=True)]
    best = int(np.argmin([float(loss.mean()) for loss in losses]))
    gains = losses[tried.index(temperature)] - losses[best]
    gain, error = float(gains.mean()), float(gains.std(correction=0)) / len(gains) ** 0.5
    factor = max(TEMPERATURES[best], 1 / TEMPERATURES[best])
    if best == len(tried) - 1 or factor < WORTHWHILE_FACTOR or gain < max(WORTHWHILE_NATS, 2 * error):
        return None  # the highest is best where labels and maps do not belong together, and is no cure
    # The optimum is flat, and more digits would promise too much.
    rounded = float(f"{tried[best]:.1g}" if tried[best] < 1 else f"{tried[best]:.2g}")
    return _Change(rounded, gain, best == 0)


def _why_fill(leak: float, fill: float, new_fill: float | None) -> str:
    leaked = f"{100 * leak:.1f} % of the whole image's target falls to classes that its map does not hold"
    if new_fill is not None:
        promise = f"which brings it down to {100 * TOLERATED_LEAK:g} %"
        return f"With fill {fill:g}, {leaked}. Try fill {new_fill:g}, {promise}."
    if leak > TOLERATED_LEAK:
        return f"With fill {fill:g}, {leaked}; no fill cures it, because the maps hold each class in a few cells only."
    return f"Fill {fill:g} is fine: {leaked}."


def _why_temperature(change: _Change | None, temperature: float, labels: Tensor | None) -> str:
    if labels is None:
        return ""
    if change is None:
        return f"No temperature far from {temperature:g} would make the folders' labels clearly likelier."
    fault = "sharp" if change.temperature > temperature else "soft"
    value = f"{change.temperature:g}{' or lower' if change.is_lowest else ''}"
    return (
        f"Measured by the folders' labels the targets are far too {fault}: try temperature {value}, which lowers their "
        f"cross-entropy by {change.gain:.2f} nats. (A teacher that has learned from these very images is surer of them "
        "than of others.)"
    )
