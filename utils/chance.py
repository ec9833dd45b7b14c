"""Whether a classifier's answers are better than chance, and whether another order of its classes explains them."""

import math
import re
from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.special import rel_entr
from scipy.stats import binom

LIKELY_BY_CHANCE, ENOUGH_IMAGES = 0.01, 100
# A permutation is reported only if it explains far more of the answers, as a wrong class order does.
MUCH_BETTER_PERCENT, MUCH_BETTER_RATIO = 20.0, 1.5


def chance_probability(correct: int, count: int, num_classes: int) -> float:
    """Return the probability that guessing among K equally likely classes gets at least this many of `count` right."""
    return float(binom.sf(correct - 1, count, 1 / num_classes))


def no_better_than_chance(correct: int, count: int, num_classes: int) -> bool:
    """Return whether this many right answers are no evidence of more than guessing.

    A share at or below 1/K is none; with 100 images or more, neither is one that guessing reaches with p > 0.01.
    """
    is_likely = chance_probability(correct, count, num_classes) > LIKELY_BY_CHANCE
    return correct * num_classes <= count or (count >= ENOUGH_IMAGES and is_likely)


def better_permutation(
    labels: np.ndarray, predicted: np.ndarray, num_classes: int, likely: np.ndarray | None = None
) -> np.ndarray | None:
    """Find an order of the classes with which the answers are right far more often than with the present one.

    It must explain 20 points and half as much again, more than the best of all orders would if the answers had nothing
    to do with the images (p < 0.01). Classes that the answers say nothing about stay where they are.

    Args:
        labels: integer [N]; true class of each image.
        predicted: integer [N]; a negative number is no class.
        num_classes: K.
        likely: integer [K]; an order to prefer to any other if it meets these conditions.

    Returns:
        integer [K]; the class that each predicted class really is; None if the present order is as good.
    """
    is_class = predicted >= 0
    answers = labels[is_class], predicted[is_class], len(labels)
    if likely is not None and _is_much_better(likely, *answers, log_orders=0.0, by_fit=0):
        return likely
    pairs, counts = np.unique(predicted[is_class] * np.int64(num_classes) + labels[is_class], return_counts=True)
    given, true = np.divmod(pairs, num_classes)
    # Any order that moves a class can make one answer right, whatever the answers are: it does not count.
    explained, most = np.where(given == true, counts, counts - 1), np.zeros(num_classes, dtype=np.int64)
    np.maximum.at(most, given, explained)
    if not _gains_enough(int(most.sum()), int(counts[given == true].sum()), len(labels)):
        return None  # before a table of K x K numbers is made
    confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
    confusion[given, true] = counts
    # Of orders that explain as many answers, the one that changes the fewest classes.
    _, best = linear_sum_assignment(confusion * (num_classes + 1) + np.eye(num_classes, dtype=np.int64), maximize=True)
    moved = np.flatnonzero(best != np.arange(num_classes))
    by_fit = int((confusion[moved, best[moved]] > 0).sum())
    fewer, more = sorted(len(np.unique(classes)) for classes in (given, true))
    log_orders = math.lgamma(more + 1) - math.lgamma(more - fewer + 1)  # of the classes that occur
    return best if _is_much_better(best, *answers, log_orders, by_fit) else None


def _gains_enough(right: int, before: int, count: int) -> bool:
    return 100 * (right - before) >= MUCH_BETTER_PERCENT * count and right >= MUCH_BETTER_RATIO * before


def _is_much_better(
    order: np.ndarray, labels: np.ndarray, predicted: np.ndarray, count: int, log_orders: float, by_fit: int
) -> bool:
    """Return whether an order explains much more than the present one, and more than the best of so many would.

    Args:
        order: integer [K].
        labels, predicted: of the images whose answer is a class.
        count: number of all images.
        log_orders: logarithm of the number of orders that this one is the best of.
        by_fit: number of answers that are right only because the order was fitted to them.
    """
    right = int((order[predicted] == labels).sum())
    if not _gains_enough(right - by_fit, int((predicted == labels).sum()), count):
        return False
    of_class, truly = (np.bincount(classes, minlength=len(order)) for classes in (predicted, labels))
    by_chance = float(of_class @ truly[order]) / count**2
    # Chernoff's bound for one order, times their number, as logarithms: the probability itself underflows.
    divergence = float(sum(rel_entr(*_shares(right / count, by_chance)))) if right > by_chance * count else 0.0
    return log_orders - count * divergence < math.log(LIKELY_BY_CHANCE)


def _shares(one: float, other: float) -> tuple[list[float], list[float]]:
    return [one, 1 - one], [other, 1 - other]


def natural_order(names: Sequence[str]) -> list[str]:
    """Sort names as timm does: their numbers as numbers, 1, 2, 10, and without regard to case."""

    def parts(name: str) -> list[int | str]:  # text and numbers in turn, beginning with text
        return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name.lower())]

    return sorted(names, key=parts)
