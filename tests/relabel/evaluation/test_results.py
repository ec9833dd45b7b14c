"""Metrics of an evaluation by hand, and their tables in 80 columns."""

import io
import math
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from relabel.evaluation.results import Result, accuracy_results, calibration_results, print_results
from relabel.training.validation import Predictions

# Labels 0 0 1 2; top-1 right, wrong, right, wrong (but among the top-2).
PREDICTIONS = Predictions(
    names=np.array([b"a/1", b"a/2", b"b/1", b"c/1"]),
    labels=np.array([0, 0, 1, 2]),
    class_names=["a", "b", "c"],
    top5=np.array([[0, 1], [1, 2], [1, 0], [0, 2]]),
    top1_probability=np.array([0.9, 0.58, 0.62, 0.65], dtype=np.float32),
    label_probability=np.array([0.9, 0.0, 0.62, 0.25], dtype=np.float32),
    probabilities=None,
)


def printed(results: dict[str, list[Result]], width: int = 80) -> str:
    console = Console(record=True, width=width, file=io.StringIO())
    print_results(results, "w.pth: whole image", console)
    return console.export_text()


def test_accuracy_and_calibration_by_hand() -> None:
    found = {result.metric: result.value for result in accuracy_results("val", PREDICTIONS, "p")}
    found |= {result.metric: result.value for result in calibration_results("val", PREDICTIONS)}
    assert found["top1_percent"] == 50 and "top5_percent" not in found  # of five classes or fewer, all would be right
    many = replace(PREDICTIONS, class_names=[*PREDICTIONS.class_names, "d", "e", "f", "g"])
    assert accuracy_results("val", many, "p")[1].value == 75
    # Of the bins of 1/15, 0.62 (right) and 0.65 (wrong) share the one from 0.6 to 0.667; 0.9 and 0.58 are alone.
    assert found["ece_percent"] == pytest.approx(100 * (0.1 + 0.58 + 2 * abs(0.5 - 0.635)) / 4, abs=1e-4)
    smallest = np.finfo(np.float32).tiny  # an answer that is wrong for sure must not make the mean infinite
    expected = -(math.log(0.9) + math.log(smallest) + math.log(0.62) + math.log(0.25)) / 4
    assert found["nll_nats"] == pytest.approx(expected, rel=1e-6)


def test_the_table_shows_each_set_once_and_every_value() -> None:
    results = [
        *accuracy_results("val", PREDICTIONS, "label: class folder"),
        Result("val", "nll_nats", 1.23456, 4, "of the label"),
        Result("val", "imagenet_m_right", 40, 68, "ImageNet-M"),
        *accuracy_results("imagenet_v2/matched-frequency", PREDICTIONS, "label: class folder"),
    ]
    lines = [" ".join(line.split()) for line in printed({"model": results}).splitlines()]
    assert "set, metric value n protocol" in lines
    assert [line for line in lines if line.startswith(("val", "imagenet_v2"))] == [
        "val",
        "imagenet_v2/matched-frequency",
    ]
    assert "top1_percent 50.00 4 label: class folder" in lines
    assert "nll_nats 1.235 4 of the label" in lines
    assert "imagenet_m_right 40 68 ImageNet-M" in lines


def test_corruptions_have_a_row_each_and_fit_80_columns() -> None:
    results = []
    for name in ("fog", "elastic_transform"):
        parts = {"1": 10.0, "2": 100.0, "4": 5.5, "5": 7.0}
        results.append(Result(f"imagenet_c/{name}", "error_percent", 31.25, 250_000, "p", parts))
        results.append(Result(f"imagenet_c/{name}", "ece_percent", 12.0, 250_000, "p"))
        results.append(Result(f"imagenet_c/{name}", "nll_nats", 2.345, 250_000, "p"))
    results.append(Result("imagenet_c", "mce_percent", 76.7, 3_750_000, "p"))
    text = printed({"model": results})
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "fog 10.0 100.0 - 5.5 7.0 31.2 - 12.0 2.35" in lines or "fog 10.0 100.0 - 5.5 7.0 31.2 - 12.0 2.34" in lines
    assert "mce_percent 76.70 3,750,000 p" in lines and "error_percent" not in text
    assert "n = 250,000 per corruption" in text and "…" not in text
    assert max(map(len, text.splitlines())) <= 80
