"""Figures of trainings."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from relabel.figures.colours import OTHER_COLOUR, PALETTE
from relabel.figures.curves import draw_curves, draw_results, draw_run
from tests.relabel.figures.test_label_maps import check_texts_have_room, pixels_of


def test_each_row_takes_its_room_and_one_seed_is_enough(tmp_path: Path, drawn: list[Figure]) -> None:
    draw_results(tmp_path / "two.png", {"original labels": [70.0], "ReLabel": [80.0]})
    axes = drawn[0].axes[0]
    assert "one seed decides nothing" in axes.get_title("left")
    assert not len(pixels_of(tmp_path / "two.png", PALETTE[1]))  # so the second row is grey
    patch = axes.texts[0].get_bbox_patch()
    assert patch is not None and patch.get_facecolor() == (1, 1, 1, 1)  # hides the dashed line
    draw_results(tmp_path / "nine.png", {f"row {i}": [70.0 + i, 71.0 + i, 72.5 + i] for i in range(9)})
    heights = [Image.open(tmp_path / name).height for name in ("two.png", "nine.png")]
    assert heights[1] > 2 * heights[0]
    assert np.asarray(Image.open(tmp_path / "nine.png").convert("L")).std() > 5


def test_a_row_has_its_colour_only_if_it_differs_from_the_first(tmp_path: Path) -> None:
    """Seed by seed: the second row is better each time, the third only on average."""
    draw_results(tmp_path / "rows.png", {"plain": [50, 60, 70], "better": [53, 64, 73], "same": [53, 59, 72]})
    plain, better, same, grey = (len(pixels_of(tmp_path / "rows.png", c)) for c in (*PALETTE[:3], OTHER_COLOUR))
    assert plain > 50 and better > 50 and not same and grey > 50


def records(accuracies: list[float]) -> list[dict[str, object]]:
    made: list[dict[str, object]] = [{"event": "train", "epoch": 1, "top1_percent": 100.0}]
    for epoch, accuracy in enumerate(accuracies, 1):
        scores = {"top1_percent": accuracy, "loss": 3 - accuracy / 50}
        made.append({"event": "validation", "epoch": epoch, "step": 4 * epoch, "weights": "model", **scores})
    return made


def test_runs_side_by_side_have_their_colours_and_only_validation_counts(tmp_path: Path, drawn: list[Figure]) -> None:
    runs = {"worse": records([20, 50, 70]), "better": records([30, 60, 70.1]), "just begun": []}
    draw_curves(tmp_path / "curves.png", runs)
    top1, loss = drawn[0].axes
    assert curves(top1) == [[[1, 2, 3], [20, 50, 70]], [[1, 2, 3], [30, 60, 70.1]]]
    assert curves(loss)[1] == [[1, 2, 3], [pytest.approx(3 - x / 50) for x in (30, 60, 70.1)]]
    for axes in drawn[0].axes:
        assert [line.get_color() for line in axes.lines] == list(PALETTE[:2])
        assert legend(axes) == ["worse", "better"]
    check_texts_have_room(drawn[0])  # although they end together


def run_records(floor: float) -> list[dict[str, object]]:
    """Two epochs of four updates, with weights of both kinds and a loss that was once not a number."""
    made: list[dict[str, object]] = []
    for step, loss in ((2, 2.5), (4, 2.0), (6, "nan"), (8, 1.5)):
        values = {"loss": loss, "target_entropy_nats": floor, "learning_rate": 0.1 / step}
        made.append({"event": "train", "epoch": (step + 3) // 4, "step": step, **values})
    for epoch, top1 in ((1, 60.0), (2, 50.0)):
        for weights, lead in (("model", 0.0), ("ema", 5.0)):
            scores = {"top1_percent": top1 + lead, "loss": 1.0 + lead / 10}
            made.append({"event": "validation", "epoch": epoch, "step": 4 * epoch, "weights": weights, **scores})
    return made


def curves(axes: Axes) -> list[list[list[float]]]:
    """The epochs and values of each curve."""
    return [[np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist()] for line in axes.lines]


def legend(axes: Axes) -> list[str]:
    found = axes.get_legend()
    return [text.get_text() for text in found.get_texts()] if found else []


def test_a_run_is_drawn_over_its_epochs(tmp_path: Path, drawn: list[Figure]) -> None:
    draw_run(tmp_path / "curves.png", run_records(floor=0.5))
    loss, top1, rate, validation_loss = drawn[0].axes
    assert curves(loss) == [[[0.5, 1, 2], [2.5, 2, 1.5]], [[0.5, 1, 1.5, 2], [0.5, 0.5, 0.5, 0.5]]]
    assert top1.get_title("left") == "validation top-1 (%): best 65.0 in epoch 1 (EMA)"
    assert legend(loss)[1].startswith("loss floor: ")
    assert curves(top1) == [[[1, 2], [65, 55]], [[1, 2], [60, 50]]]  # averaged weights first: they are what is used
    assert {line.get_color() for axes in (top1, rate, validation_loss) for line in axes.lines} == {PALETTE[0]}
    assert curves(validation_loss) == [[[1, 2], [1.5, 1.5]], [[1, 2], [1, 1]]]
    assert len(curves(rate)) == 1 and curves(rate)[0][0] == [0.5, 1, 1.5, 2]
    check_texts_have_room(drawn[0])


def test_one_hot_targets_have_no_floor(tmp_path: Path, drawn: list[Figure]) -> None:
    draw_run(tmp_path / "curves.png", run_records(floor=0.0))
    assert len(drawn[0].axes[0].lines) == 1 and not legend(drawn[0].axes[0])


@pytest.mark.parametrize(("epochs", "ticks"), [(1, [1]), (11, [2, 4, 6, 8, 11]), (30, [5, 10, 15, 20, 25, 30])])
def test_the_axis_has_whole_epochs_and_the_last(
    tmp_path: Path, drawn: list[Figure], epochs: int, ticks: list[int]
) -> None:
    draw_run(tmp_path / "curves.png", [{**run_records(0.5)[1], "epoch": 1}, *records([60.0] * epochs)[1:]])
    for axes in drawn[0].axes[1::2]:
        assert axes.get_xticks().tolist() == ticks
