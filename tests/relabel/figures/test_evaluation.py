"""Figures of an evaluation: what they say, and room for every text."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from relabel.figures.evaluation import draw_confusion, draw_reliability
from tests.relabel.figures.test_label_maps import check_texts_have_room, texts


@pytest.mark.parametrize("classes", [2, 20])
def test_a_confusion_matrix_counts_and_names_every_class(classes: int, tmp_path: Path, drawn: list[Figure]) -> None:
    counts = np.eye(classes, classes + 1, dtype=np.int64) * 12_345
    counts[0, 1], counts[1, classes] = 67, 89
    names = [*(f"class {i} of a name that is much too long" for i in range(classes)), "others"]
    draw_confusion(tmp_path / "out.png", counts, names, f"runs/{'a/long/path/' * 9}best.pth\nresnet50")
    (figure,) = drawn
    check_texts_have_room(figure)
    shown = texts(figure)
    assert shown.count("12345") == classes and "67" in shown and "89" in shown
    (axes,) = figure.axes
    sides = [[text.get_text() for text in side] for side in (axes.get_yticklabels(), axes.get_xticklabels())]
    assert len(sides[0]) == classes and sides[1] == [*sides[0], "others"] and sides[0][1].startswith("class 1 of")
    share = 100 * classes * 12_345 / counts.sum()
    assert f"{counts.sum():,} images, {share:.2f} % correct" in shown and "resnet50" in shown
    assert any(text.startswith("runs/a/") and text.endswith("/best.pth") for text in shown)


def test_the_reliability_diagram_has_the_ece_and_marks_bins_of_few_images(tmp_path: Path, drawn: list[Figure]) -> None:
    confidence = np.array([0.95] * 40 + [0.55] * 2, np.float32)
    correct = np.array([True] * 30 + [False] * 10 + [True, False])
    draw_reliability(tmp_path / "out.png", confidence, correct, "checkpoint-best.pth")
    (figure,) = drawn
    check_texts_have_room(figure)
    error = 100 * (40 * 0.2 + 2 * 0.05) / 42
    assert f"ECE {error:.2f} % (15 bins), 42 images" in figure.get_suptitle()
    upper, lower = figure.axes
    bars = [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in upper.patches]  # type: ignore[attr-defined]
    assert np.allclose(bars, [(14.5 / 15, 0.75), (8.5 / 15, 0.5)])
    assert {"correct", "correct, under 20 images"} <= {*upper.get_legend_handles_labels()[1]}
    assert sum(bar.get_height() for bar in lower.patches) == 42  # type: ignore[attr-defined]
    assert "Too few" not in figure.get_suptitle()
    draw_reliability(tmp_path / "out.png", confidence[30:], correct[30:], "checkpoint-best.pth")
    check_texts_have_room(drawn[1])
    assert "no bin has 20" in drawn[1].get_suptitle()
