"""Leak, agreement and scale of label maps, by hand and against published values; the fill and temperature to try."""

import numpy as np
import pytest
import torch

from relabel.checks.calibration import Pooled, calibrate, cell_leak, label_rank
from relabel.checks.sample import MapSample, read_sample
from relabel.label_map import LabelMap
from relabel.targets import relabel_target
from tests.memory_store import MemoryStore, left_right_map, uniform_map

K = 10


def sample_of(*maps: LabelMap) -> MapSample:
    return read_sample(MemoryStore(maps), np.arange(len(maps)), size=len(maps))


def transposed(sample: MapSample) -> MapSample:
    return MapSample(sample.rows, sample.scores.transpose(2, 3), sample.classes.transpose(2, 3))


def of(estimate: object) -> float:
    return float(getattr(estimate, "value"))  # noqa: B009


@pytest.mark.parametrize(("logit", "leaked"), [(4, 0.95), (8, 0.25), (12, 0.006)])
@pytest.mark.parametrize("k", [1, 5])
def test_the_leak_of_one_class_alone_among_a_thousand(logit: float, leaked: float, k: int) -> None:
    """One class with that logit and 999 others at 0: leak = 999 / (999 + e^logit); with k of 5 nearly the same."""
    found = calibrate(sample_of(uniform_map(logit, 7, k), uniform_map(logit, 30, k)), None, 1000)
    assert of(found.leak_in_cells_percent) / 100 == pytest.approx(leaked, rel=0.02)
    assert of(found.leak_in_whole_image_target_percent) == pytest.approx(of(found.leak_in_cells_percent), rel=1e-4)


def test_leak_and_target_equal_those_of_a_dense_softmax() -> None:
    rng = np.random.default_rng(0)
    kept = LabelMap.from_dense(rng.normal(0, 3, (12, 3, 5)).astype(np.float32), 4)
    probability = torch.from_numpy(kept.to_dense(12, fill=-1.5) / 0.7).softmax(dim=0).numpy()
    stored = np.take_along_axis(probability, kept.classes.astype(np.int64), axis=0).sum(axis=0)
    sample = sample_of(kept)
    np.testing.assert_allclose(cell_leak(sample.scores, sample.classes, 12, -1.5, 0.7)[0], 1 - stored, atol=1e-6)
    for fill, temperature in ((0.0, 1.0), (-3.0, 0.5), (2.0, 4.0)):
        expected = relabel_target(sample.scores, sample.classes, None, 12, fill=fill, temperature=temperature)
        found = Pooled.of(sample, None, 12).log_target(fill, temperature).exp()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_class_that_the_data_lacks_is_not_stored() -> None:
    """Id K = 3 of a teacher that knows more classes: its score counts for nothing, as in pooling."""
    classes = np.array([0, 3], dtype=np.int16).reshape(2, 1, 1)
    with_it = LabelMap(np.array([2.0, 50.0], dtype=np.float32).reshape(2, 1, 1), classes)
    without = LabelMap(with_it.scores[:1], classes[:1])
    expected = 2 / (2 + np.exp(2))
    for label_map in (with_it, without):
        found = calibrate(sample_of(label_map, label_map), None, 3)
        assert of(found.leak_in_cells_percent) / 100 == pytest.approx(expected)
        assert of(found.leak_in_whole_image_target_percent) / 100 == pytest.approx(expected)
    only_it = LabelMap(with_it.scores[1:], classes[1:])
    assert of(calibrate(sample_of(only_it), None, 3).leak_in_cells_percent) == 100


def test_agreement_by_hand() -> None:
    """Four images of class 0: three maps say 0, one says 5."""
    maps = [uniform_map(9.0, 0), uniform_map(8.0, 0), uniform_map(9.0, 0), uniform_map(9.0, 5)]
    found = calibrate(sample_of(*maps), np.zeros(4, dtype=np.int64), 100)
    assert found.top1_agreement_percent and found.top1_agreement_percent.value == 75
    assert of(found.top5_agreement_percent) == 75  # 0 ties with 98 other absent classes: luck is not agreement
    assert calibrate(sample_of(*maps), None, 100).top1_agreement_percent is None
    assert calibrate(sample_of(uniform_map(9.0, 0)), np.zeros(1, dtype=np.int64), 5).top5_agreement_percent is None
    target = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.4, 0.4], [0.1, 0.4, 0.5]])
    assert label_rank(target, torch.tensor([0, 1, 0])).tolist() == [0, 1, 2]


def test_several_classes_and_percentiles_by_hand() -> None:
    found = calibrate(sample_of(left_right_map(20.0), uniform_map(20.0, 0)), None, 1000)
    assert of(found.images_of_several_classes_percent) == 50  # half and half in the first, one class in the second
    scores = np.stack([np.arange(100, dtype=np.float32).reshape(10, 10), np.full((10, 10), -5, np.float32)])
    classes = np.stack([np.zeros((10, 10), int), np.ones((10, 10), int)])
    top_logits = calibrate(sample_of(LabelMap(scores, classes)), None, 9).top_logit_percentiles
    assert top_logits["50"] == pytest.approx(49.5) and top_logits["1"] == pytest.approx(0.99)


@pytest.mark.parametrize(
    ("share", "n", "teacher", "is_wrong"),
    [(0.75, 400, 88.0, False), (0.65, 400, 88.0, True), (0.2, 400, 30.0, False), (0.6, 10, 88.0, False)],
)
def test_a_teacher_better_than_its_maps(share: float, n: int, teacher: float, is_wrong: bool) -> None:
    """More than 15 points below the teacher, or below half of it; what chance can do is not wrong."""
    maps = [uniform_map(12.0, 0 if i < share * n else 5) for i in range(n)]
    problems = calibrate(sample_of(*maps), np.zeros(n, dtype=np.int64), 20).problems([], teacher)
    assert bool(problems) == is_wrong
    assert not is_wrong or ("mean, std and size" in problems[0] and f"{100 * share:.1f} %" in problems[0])


def test_scores_that_make_no_targets_are_a_problem_and_soft_targets_are_none() -> None:
    (problem,) = calibrate(sample_of(uniform_map(0.9, 3, k=2, others=0.1)), None, 10).problems([])
    assert "as probabilities do" in problem
    (problem,) = calibrate(sample_of(uniform_map(4.0, 3)), None, 1000).problems([])
    assert "95 % of a target falls to classes that its map does not store" in problem and "Try fill" in problem
    assert calibrate(sample_of(uniform_map(8.0, 3)), None, 1000).problems([]) == []


@pytest.mark.parametrize("logit", [-2.0, 6.0])
def test_the_fill_comes_down_until_five_percent_leak(logit: float) -> None:
    """999 e^f / (999 e^f + e^logit) = 0.05 at f = logit - ln(999 * 19) = logit - 9.85."""
    sample = sample_of(uniform_map(logit, 7), uniform_map(logit, 8))
    found = calibrate(sample, None, 1000)
    fill = found.suggested_fill_logit
    assert fill == pytest.approx(logit - np.log(999 * 19), abs=0.12) and found.suggested_temperature is None
    assert 4 < of(calibrate(sample, None, 1000, fill=fill or 0.0).leak_in_whole_image_target_percent) <= 5
    assert f"Try fill {fill:g}" in found.reason


def test_a_fine_fill_is_left_alone_and_an_incurable_leak_is_named() -> None:
    found = calibrate(sample_of(uniform_map(12.0, 7)), None, 1000)
    assert found.suggested_fill_logit is None and found.reason.startswith("Fill 0 is fine: 0.6 % of")
    # Each of 100 classes in one cell of 100: pooled, a class that is there is hardly above the others.
    scattered = LabelMap(np.full((1, 10, 10), 3.0, dtype=np.float32), np.arange(100).reshape(1, 10, 10))
    found = calibrate(sample_of(scattered, scattered), None, 1000)
    assert found.suggested_fill_logit is None and "no fill helps" in found.reason


def planted(scale: float, n: int = 1500) -> tuple[MapSample, np.ndarray]:
    """Maps of all classes with logits `scale` times as large as those that the labels were drawn from."""
    rng = np.random.default_rng(4)
    logits = rng.normal(0, 2, (n, K))
    labels = (logits + rng.gumbel(size=(n, K))).argmax(axis=1)  # drawn from the softmax
    maps = [LabelMap.from_dense(np.tile((scale * z).astype(np.float32)[:, None, None], (1, 2, 3)), K) for z in logits]
    return sample_of(*maps), labels


@pytest.mark.parametrize(
    ("scale", "present", "low", "high"), [(8.0, 1.0, 5.0, 12.0), (0.15, 1.0, 0.09, 0.22), (1.0, 8.0, 0.7, 1.5)]
)
def test_a_planted_temperature_is_found(scale: float, present: float, low: float, high: float) -> None:
    found = calibrate(*planted(scale), K, temperature=present)
    assert found.suggested_temperature is not None and low <= found.suggested_temperature <= high
    assert ("too sharp" if scale > present else "too soft") in found.reason


def test_a_temperature_near_the_best_is_left_alone_and_unrelated_labels_suggest_none() -> None:
    for scale in (0.4, 2.5):
        found = calibrate(*planted(scale), K)
        assert found.suggested_temperature is None and "No temperature far from 1" in found.reason
    sample, labels = planted(1.0)
    assert calibrate(sample, labels[::-1].copy(), K).suggested_temperature is None


def test_a_fill_above_the_scores_of_few_classes_is_noticed() -> None:
    """No class is absent from the whole map, so nothing leaks; but in each cell absent ones stand above the rest."""
    dense = np.full((4, 3, 5), -6.0, np.float32)
    dense[0, :, :3], dense[1, :, 3:], dense[2], dense[3, 0] = -2, -3, -5, -4
    sample = sample_of(*[LabelMap.from_dense(dense, 2)] * 30)
    found = calibrate(sample, None, 4)
    assert found.suggested_fill_logit is not None and found.suggested_fill_logit <= -5
    assert "100 % of the cells have no score above fill 0" in found.reason
    assert calibrate(sample, None, 4, fill=found.suggested_fill_logit).suggested_fill_logit is None


def test_a_sample_holds_the_maps_of_its_rows() -> None:
    store = MemoryStore([*[left_right_map(float(row)) for row in range(30)], None, "damaged"])
    sample = read_sample(store, np.arange(10, 30), size=7, seed=1)
    assert len(sample) == 7 and sample.scores.shape == sample.classes.shape == (7, 1, 4, 6)
    assert (np.diff(sample.rows) > 0).all() and sample.rows.min() >= 10
    assert sample.scores[:, 0, 0, 0].tolist() == sample.rows.tolist()
    again, other = (read_sample(store, np.arange(10, 30), 7, seed).rows for seed in (1, 2))
    assert np.array_equal(sample.rows, again) and not np.array_equal(sample.rows, other)
    assert read_sample(store, np.array([1, 3]), size=100).rows.tolist() == [1, 3]
