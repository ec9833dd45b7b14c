"""Counting right answers, and the meter of a training run."""

import numpy as np
import pytest
import torch

from utils.metrics import TrainingMeter, count_top_k, expected_calibration_error

LOGITS = torch.tensor([[9.0, 1.0, 5.0], [1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])


def test_top_k_by_eye() -> None:
    labels = torch.tensor([0, 1, 2])  # first, second and third choice
    assert count_top_k(LOGITS, labels, (1, 2, 3)).tolist() == [1, 2, 3]


def test_a_k_above_the_number_of_classes_counts_all() -> None:
    assert count_top_k(LOGITS, torch.tensor([0, 1, 2]), (1, 5)).tolist() == [1, 3]


def test_logits_that_are_not_numbers_are_wrong() -> None:
    logits = LOGITS.clone()
    logits[0, 1] = float("nan")
    assert count_top_k(logits, torch.tensor([0, 2, 0]), (1, 3)).tolist() == [2, 2]


def test_counts_over_shards_add_up() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(101, 7), torch.randint(7, (101,))
    shards = sum(count_top_k(logits[r::3], labels[r::3]) for r in range(3))
    assert torch.equal(count_top_k(logits, labels), torch.as_tensor(shards))


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
    assert report["loss"] == pytest.approx(2.0) and report["top1_percent"] == pytest.approx(75.0)
    assert report["images_per_s"] > 0 and 0 <= report["data_wait_percent"] <= 100
    meter.count(torch.eye(3), targets, torch.tensor(7.0))
    assert meter.report()["loss"] == pytest.approx(7.0)
