"""Chance, likelier orders of classes, and natural order."""

import numpy as np
import pytest
from timm.utils.misc import natural_key

from utils.chance import better_permutation, natural_order, no_better_than_chance


@pytest.mark.parametrize(
    ("correct", "count", "num_classes", "expected"),
    [(4, 12, 3, True), (5, 12, 3, False), (0, 3, 1000, True), (14, 100, 10, True), (20, 100, 10, False)],
)
def test_no_better_than_chance(correct: int, count: int, num_classes: int, expected: bool) -> None:
    assert no_better_than_chance(correct, count, num_classes) == expected


LABELS = np.repeat(np.arange(3), 4)


def test_a_permutation_of_the_classes_is_found() -> None:
    order = np.array([1, 2, 0])
    found = better_permutation(LABELS, np.argsort(order)[LABELS], 3)
    assert found is not None and found.tolist() == order.tolist()
    # Of five classes, the images are of three: the other two stay where they are.
    seldom = better_permutation(LABELS, np.argsort(order)[LABELS], 5)
    assert seldom is not None and seldom.tolist() == [1, 2, 0, 3, 4]


def test_the_likely_order_is_preferred_to_a_better_one_that_fits_by_chance() -> None:
    labels, likely = np.repeat(np.arange(4), 10), np.array([1, 0, 3, 2])
    predicted = likely[labels]
    predicted[20:] = [2] * 6 + [3] * 4 + [3] * 6 + [2] * 4  # classes 2 and 3: the present order is right more often
    found = better_permutation(labels, predicted, 4, likely)
    assert found is not None and found.tolist() == likely.tolist()
    best = better_permutation(labels, predicted, 4)
    assert best is not None and best.tolist() == [1, 0, 2, 3]


def test_no_permutation_is_seen_where_there_is_none() -> None:
    rng = np.random.default_rng(0)
    guesses = [better_permutation(rng.permutation(LABELS), rng.integers(0, 3, 12), 3) for _ in range(300)]
    assert sum(found is not None for found in guesses) <= 1
    assert better_permutation(LABELS, LABELS, 3) is None
    assert better_permutation(LABELS, np.full(12, -1), 3) is None
    # One answer for every image, and most images of another class: no order of the classes explains that.
    assert better_permutation(np.repeat([0, 1, 2], [80, 10, 10]), np.full(100, 1), 3) is None


def test_natural_order_is_timms() -> None:
    names = sorted(["1", "2", "10", "Zebra", "ant", "bee2", "Bee10", "n02", "n1", "_", "é", "class 3", "class 20"])
    assert natural_order(names) == sorted(names, key=natural_key) != names
