"""Predicted classes, accuracy, calibration and average precision, against values worked out by hand."""

import numpy as np
import pytest
import torch

from utils.metrics import (
    TrainingMeter,
    accuracy_of_classes,
    expected_calibration_error,
    in_true_set,
    mean_average_precision,
    top_classes,
)

# Three images with several true labels each.
TRUTH = np.array([[True, False, True], [False, True, False], [True, True, False]])
LOGITS = np.array([[0.1, 0.2, 0.7], [0.6, 0.3, 0.1], [0.5, 0.4, 0.1]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_top_classes_begin_with_argmax_and_of_equal_logits_with_the_lower_class(dtype: torch.dtype) -> None:
    logits = torch.randint(-2, 3, (500, 40), generator=torch.Generator().manual_seed(0)).to(dtype)  # many are equal
    found = top_classes(logits, 5)
    assert torch.equal(found[:, 0], logits.argmax(1))
    slow = [sorted(range(40), key=lambda c: (-row[c], c))[:5] for row in logits.tolist()]
    assert found.tolist() == slow


def test_calibration_error_by_hand() -> None:
    # Two bins of 0.5: the lower holds 0.2 and 0.4, both right; the upper 0.6, 0.8 and 1.0, of which one is right.
    confidence, right = np.array([0.2, 0.6, 0.8, 0.4, 1.0]), np.array([True, True, False, True, False])
    expected = 100 * (2 * abs(1 - 0.3) + 3 * abs(1 / 3 - 0.8)) / 5
    assert expected_calibration_error(confidence, right, bins=2) == pytest.approx(expected)


def test_calibration_error_against_a_slow_way() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.random(1000).astype(np.float32)
    right = rng.random(1000) < confidence**2
    slow = 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        slow += abs(right[inside].mean() - confidence[inside].mean(dtype=np.float64)) * inside.mean()
    assert expected_calibration_error(confidence, right) == pytest.approx(100 * slow)


def test_the_meter_weighs_batches_by_their_images_and_starts_again() -> None:
    meter = TrainingMeter(torch.device("cpu"))
    targets = torch.eye(3)
    meter.count(torch.eye(3), targets, torch.tensor(1.0))  # 3 images, all right
    meter.count(-torch.eye(3)[:1], targets[:1], torch.tensor(5.0))  # 1 image, wrong
    with meter.waiting():
        pass
    report = meter.report()
    assert report["loss"] == pytest.approx(2.0) and report["target_agreement_percent"] == pytest.approx(75.0)
    assert report["target_entropy_nats"] == 0
    assert report["images_per_s"] > 0 and 0 <= report["data_wait_percent"] <= 100
    meter.count(torch.eye(3), targets, torch.tensor(7.0))
    assert meter.report()["loss"] == pytest.approx(7.0)


def test_top_1_may_be_any_true_class_but_minus_1_is_none() -> None:
    assert in_true_set(LOGITS.argmax(axis=1), TRUTH).tolist() == [True, False, True]
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
