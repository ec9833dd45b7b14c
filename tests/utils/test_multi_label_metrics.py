"""Measures for images with several true labels, against values worked out by hand."""

import numpy as np
import pytest

from utils.metrics import (
    accuracy_of_classes,
    in_true_set,
    mean_average_precision,
)

TRUTH = np.array([[True, False, True], [False, True, False], [True, True, False]])
LOGITS = np.array([[0.1, 0.2, 0.7], [0.6, 0.3, 0.1], [0.5, 0.4, 0.1]])


def test_top_1_may_be_any_true_class() -> None:
    assert in_true_set(LOGITS.argmax(axis=1), TRUTH).tolist() == [True, False, True]


def test_an_answer_that_is_no_class_is_in_no_set() -> None:
    assert in_true_set(np.array([2, -1, 1]), TRUTH).tolist() == [True, False, True]
    assert not in_true_set(np.array([-1, -1, -1]), TRUTH).any()  # the last class is one of the first image's


def test_accuracy_of_the_classes_that_occur() -> None:
    right, labels = np.array([True, False, True, True]), np.array([7, 7, 2, 7])
    assert accuracy_of_classes(right, labels) == {2: 100, 7: pytest.approx(200 / 3)}


def test_mean_average_precision_by_hand() -> None:
    # Class 0 ranks its images 1 (wrong), 2 (right: 1/2), 0 (right: 2/3); classes 1 and 2 rank the right ones first.
    expected = 100 * np.mean([(1 / 2 + 2 / 3) / 2, 1.0, 1.0])
    assert mean_average_precision(LOGITS, TRUTH) == pytest.approx(expected)


def test_classes_that_do_not_occur_are_left_out() -> None:
    truth, logits = np.pad(TRUTH, ((0, 0), (0, 1))), np.pad(LOGITS, ((0, 0), (0, 1)))
    assert mean_average_precision(logits, truth) == mean_average_precision(LOGITS, TRUTH)
