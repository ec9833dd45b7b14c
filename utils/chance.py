"""Whether a classifier's answers are better than chance, and whether another order of its classes explains them."""

import math
import re
from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.special import rel_entr
from scipy.stats import binom

LIKELY_BY_CHANCE = 0.01
# A permutation is reported only if it explains far more of the answers, as a wrong class order does.
MUCH_BETTER_PERCENT, MUCH_BETTER_RATIO = 20.0, 1.5


def chance_probability(correct: int, count: int, num_classes: int) -> float:
    """Return the probability that guessing among K equally likely classes gets at least this many of `count` right."""
    return float(binom.sf(correct - 1, count, 1 / num_classes))


def better_permutation(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray | None:
    """Find an order of the classes with which the answers are right far more often than with the present one.

    It must explain 20 points and half as much again, more than the best of all K! orders would by chance (p < 0.01).

    Args:
        labels: integer [N]; true class of each image.
        predicted: integer [N]; a negative number is no class.
        num_classes: K.

    Returns:
        integer [K]; the class that each predicted class really is; None if the present order is as good.
    """
    is_class = predicted >= 0
    confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(confusion, (predicted[is_class], labels[is_class]), 1)
    _, order = linear_sum_assignment(confusion, maximize=True)
    right, before, count = int(confusion[range(num_classes), order].sum()), int(confusion.trace()), len(labels)
    # Chernoff's bound for one order, times K! orders, as logarithms: the probability itself underflows.
    by_chance = math.lgamma(num_classes + 1) - count * float(sum(rel_entr(*_shares(right / count, 1 / num_classes))))
    much_better = 100 * (right - before) >= MUCH_BETTER_PERCENT * count and right >= MUCH_BETTER_RATIO * before
    return order if much_better and by_chance < math.log(LIKELY_BY_CHANCE) else None


def _shares(one: float, other: float) -> tuple[list[float], list[float]]:
    return [one, 1 - one], [other, 1 - other]


def natural_order(names: Sequence[str]) -> list[str]:
    """Sort names with their numbers as numbers: 1, 2, 10."""

    def parts(name: str) -> list[tuple[bool, int, str]]:
        found = [part for part in re.split(r"(\d+)", name) if part]
        return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in found]

    return sorted(names, key=parts)
