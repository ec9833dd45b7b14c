"""Counting right answers, and the meter of a training run."""

import pytest
import torch

from utils.metrics import TrainingMeter, count_top_k

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
