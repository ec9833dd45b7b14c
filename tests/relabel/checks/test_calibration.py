"""Leak, agreement and scale of label maps, by hand and against the table of published figures."""

import numpy as np
import pytest
import torch

from relabel.checks.calibration import Calibration, calibrate, cell_leak, label_rank
from relabel.checks.sample import MapSample, read_sample
from relabel.label_map import LabelMap
from tests.memory_store import MemoryStore, left_right_map, uniform_map

LEAKS = [(4, 0.95), (6, 0.71), (8, 0.25), (10, 0.043), (12, 0.006)]


def sample_of(*maps: LabelMap) -> MapSample:
    return read_sample(MemoryStore(maps), np.arange(len(maps)), size=len(maps))


def of(estimate: object) -> float:
    return float(getattr(estimate, "value"))  # noqa: B009


@pytest.mark.parametrize(("logit", "leaked"), LEAKS)
@pytest.mark.parametrize("k", [1, 5])
def test_the_leak_of_one_class_alone_among_a_thousand(logit: float, leaked: float, k: int) -> None:
    """The table takes one class with that logit and 999 others at 0: leak = 999 / (999 + e^logit).

    With the other four of a top 5 far below 0, 995 others remain, which rounds to the same.
    """
    found = calibrate(sample_of(uniform_map(logit, 7, k), uniform_map(logit, 30, k)), None, 1000)
    assert of(found.cell_leak) / 100 == pytest.approx((1000 - k) / (1000 - k + np.exp(logit)), rel=1e-5)
    assert of(found.cell_leak) / 100 == pytest.approx(leaked, rel=0.02)
    assert of(found.target_leak) == pytest.approx(of(found.cell_leak), rel=1e-4)  # the map is the same everywhere


def test_the_leak_equals_that_of_a_dense_softmax() -> None:
    rng = np.random.default_rng(0)
    dense = rng.normal(0, 3, (12, 3, 5)).astype(np.float32)
    kept = LabelMap.from_dense(dense, 4)
    probability = torch.from_numpy(kept.to_dense(12, fill=-1.5) / 0.7).softmax(dim=0).numpy()
    stored = np.take_along_axis(probability, kept.classes.astype(np.int64), axis=0).sum(axis=0)
    scores, classes = torch.from_numpy(kept.scores)[None], torch.from_numpy(kept.classes)[None]
    np.testing.assert_allclose(cell_leak(scores, classes, 12, -1.5, 0.7)[0], 1 - stored, atol=1e-6)


def test_a_class_that_the_data_lacks_is_not_stored() -> None:
    """Id K = 3 of a teacher that knows more classes: its score counts for nothing, as in pooling."""
    classes = np.array([0, 3], dtype=np.int16).reshape(2, 1, 1)
    with_it = LabelMap(np.array([2.0, 50.0], dtype=np.float32).reshape(2, 1, 1), classes)
    without = LabelMap(with_it.scores[:1], classes[:1])
    expected = 2 / (2 + np.exp(2))
    for label_map in (with_it, without):
        found = calibrate(sample_of(label_map, label_map), None, 3)
        assert of(found.cell_leak) / 100 == pytest.approx(expected)
        assert of(found.target_leak) / 100 == pytest.approx(expected)
    only_it = LabelMap(with_it.scores[1:], classes[1:])
    assert of(calibrate(sample_of(only_it), None, 3).cell_leak) == 100


def test_no_class_is_absent_where_all_are_stored() -> None:
    full = LabelMap.from_dense(np.random.default_rng(0).normal(size=(4, 2, 3)).astype(np.float32), 4)
    found = calibrate(sample_of(full), None, 4)
    assert of(found.cell_leak) == of(found.target_leak) == 0


def test_agreement_by_hand() -> None:
    """Four images of class 0: three maps say 0, one says 5."""
    maps = [uniform_map(9.0, 0), uniform_map(8.0, 0), uniform_map(9.0, 0), uniform_map(9.0, 5)]
    found = calibrate(sample_of(*maps), np.zeros(4, dtype=np.int64), 100)
    assert found.top1_agreement and found.top1_agreement.value == 75 and found.top1_agreement.n == 4
    assert of(found.top5_agreement) == 75  # 0 ties with 98 other absent classes: by luck among five is not agreement
    assert calibrate(sample_of(*maps), None, 100).top1_agreement is None
    assert calibrate(sample_of(uniform_map(9.0, 0)), np.zeros(1, dtype=np.int64), 5).top5_agreement is None


def test_ranks_count_ties_against_the_label() -> None:
    target = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.4, 0.4], [0.1, 0.4, 0.5]])
    assert label_rank(target, torch.tensor([0, 1, 0])).tolist() == [0, 1, 2]


def test_labels_are_found_by_row() -> None:
    store = MemoryStore([uniform_map(9.0, label) for label in (0, 1, 2, 3)])
    sample = read_sample(store, np.array([1, 3]), size=2)
    assert of(calibrate(sample, np.array([9, 1, 9, 3]), 100).top1_agreement) == 100


def test_several_classes_by_hand() -> None:
    found = calibrate(sample_of(left_right_map(20.0), uniform_map(20.0, 0)), None, 1000)
    assert of(found.several_classes) == 50  # half and half in the first, one class in the second


def test_percentiles_are_of_the_largest_logit_in_each_cell() -> None:
    scores = np.stack([np.arange(100, dtype=np.float32).reshape(10, 10), np.full((10, 10), -5, np.float32)])
    found = calibrate(sample_of(LabelMap(scores, np.stack([np.zeros((10, 10), int), np.ones((10, 10), int)]))), None, 9)
    assert found.top_logit[50] == pytest.approx(49.5) and found.top_logit[1] == pytest.approx(0.99)


def test_half_precision_maps_are_measured_as_single() -> None:
    single = uniform_map(9.0, 3, k=2, others=1.0)
    half = LabelMap(single.scores.astype(np.float16), single.classes)
    found, expected = (calibrate(sample_of(m, m), np.array([3, 3]), 50) for m in (half, single))
    assert of(found.cell_leak) == pytest.approx(of(expected.cell_leak))
    assert of(found.cross_entropy_nats) == pytest.approx(of(expected.cross_entropy_nats))


def agreeing(share: float, n: int = 400) -> Calibration:
    maps = [uniform_map(12.0, 0 if i < share * n else 5) for i in range(n)]
    return calibrate(sample_of(*maps), np.zeros(n, dtype=np.int64), 20)


@pytest.mark.parametrize(
    ("share", "teacher", "is_wrong"),
    [(0.85, 88.0, False), (0.75, 88.0, False), (0.65, 88.0, True), (0.01, 88.0, True), (0.2, 30.0, False),
     (0.05, 30.0, True), (0.01, None, False)],
)  # fmt: skip
def test_a_teacher_that_was_better_than_its_maps(share: float, teacher: float | None, is_wrong: bool) -> None:
    """More than 15 points below the teacher, or below half of it; a chance difference is none."""
    problems = agreeing(share).problems(teacher)
    assert bool(problems) == is_wrong
    if is_wrong:
        assert "mean, std and size" in problems[0] and f"{100 * share:.1f} %" in problems[0]


def test_few_maps_do_not_accuse_a_teacher() -> None:
    assert agreeing(0.6, n=10).problems(88.0) == []


def test_probabilities_in_place_of_logits_are_told() -> None:
    problems = calibrate(sample_of(uniform_map(0.9, 3, k=2, others=0.1)), None, 10).problems()
    assert "No cell's scores add up to more than 1, as those of probabilities" in problems[0]


def test_targets_that_teach_nothing_are_a_problem_and_soft_ones_are_none() -> None:
    (problem,) = calibrate(sample_of(uniform_map(4.0, 3)), None, 1000).problems()
    assert "95 % of a target falls to classes that its map does not hold" in problem and "Try fill" in problem
    assert calibrate(sample_of(uniform_map(8.0, 3)), None, 1000).problems() == []
