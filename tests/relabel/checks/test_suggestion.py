"""Fill and temperature to try: found where they were planted, and nothing where nothing is wrong."""

import numpy as np
import pytest
import torch

from relabel.checks.calibration import calibrate
from relabel.checks.sample import MapSample
from relabel.checks.suggestion import _pool, suggest
from relabel.label_map import LabelMap
from relabel.targets import relabel_target
from tests.memory_store import uniform_map
from tests.relabel.checks.test_calibration import of, sample_of

K = 10


def planted(scale: float, n: int = 1500) -> tuple[MapSample, torch.Tensor]:
    """Maps of all classes with logits `scale` times as large as those that the labels were drawn from."""
    rng = np.random.default_rng(4)
    logits = rng.normal(0, 2, (n, K))
    labels = (logits + rng.gumbel(size=(n, K))).argmax(axis=1)  # drawn from the softmax
    maps = [LabelMap.from_dense(np.tile((scale * z).astype(np.float32)[:, None, None], (1, 2, 3)), K) for z in logits]
    return sample_of(*maps), torch.from_numpy(labels)


@pytest.mark.parametrize("logit", [-2.0, 4.0, 6.0, 8.0])
def test_the_fill_comes_down_until_five_percent_leak(logit: float) -> None:
    """999 e^f / (999 e^f + e^logit) = 0.05 at f = logit - ln(999 * 19) = logit - 9.85."""
    sample = sample_of(uniform_map(logit, 7), uniform_map(logit, 8))
    found = suggest(sample, None, 1000)
    assert found.fill == pytest.approx(logit - np.log(999 * 19), abs=0.11) and found.temperature is None
    assert 4 < of(calibrate(sample, None, 1000, fill=found.fill or 0.0).target_leak) <= 5
    assert f"Try fill {found.fill:g}" in found.reason


def test_a_fine_fill_is_left_alone() -> None:
    found = suggest(sample_of(uniform_map(12.0, 7)), None, 1000)
    assert found.fill is None and found.temperature is None and found.reason.startswith("Fill 0 is fine: 0.6 % of")


@pytest.mark.parametrize(("scale", "low", "high"), [(8.0, 5.0, 12.0), (0.15, 0.09, 0.22)])
def test_a_planted_temperature_is_found(scale: float, low: float, high: float) -> None:
    found = suggest(*planted(scale), K)
    assert found.temperature is not None and low <= found.temperature <= high
    assert ("too sharp" if scale > 1 else "too soft") in found.reason


def test_it_is_found_from_another_present_temperature_too() -> None:
    found = suggest(*planted(1.0), K, temperature=8.0)
    assert found.temperature is not None and 0.7 <= found.temperature <= 1.5


@pytest.mark.parametrize("scale", [0.4, 1.0, 2.5])
def test_a_temperature_near_the_best_is_left_alone(scale: float) -> None:
    found = suggest(*planted(scale), K)
    assert found.temperature is None and "No temperature far from 1" in found.reason


def test_labels_that_have_nothing_to_do_with_the_maps_suggest_no_temperature() -> None:
    sample, labels = planted(1.0)
    assert suggest(sample, labels.flip(0), K).temperature is None


def test_a_leak_that_no_fill_cures_is_said_to_be_so() -> None:
    """Each of 100 classes in one cell of 100: pooled, a class that is there is hardly above the others."""
    classes = np.arange(100).reshape(1, 10, 10)
    scattered = LabelMap(np.full((1, 10, 10), 3.0, dtype=np.float32), classes)
    found = suggest(sample_of(scattered, scattered), None, 1000)
    assert found.fill is None and "no fill cures it" in found.reason


@pytest.mark.parametrize(("fill", "temperature"), [(0.0, 1.0), (-3.0, 0.5), (2.0, 4.0)])
def test_pooling_once_serves_every_fill(fill: float, temperature: float) -> None:
    rng = np.random.default_rng(1)
    sample = sample_of(*(LabelMap.from_dense(rng.normal(2, 4, (K, 3, 5)).astype(np.float32), 2) for _ in range(9)))
    expected = relabel_target(sample.scores, sample.classes, None, K, fill=fill, temperature=temperature)
    found = _pool(sample, None, K).log_target(fill, temperature).exp()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_fill_above_the_scores_of_few_classes_is_noticed() -> None:
    """No class is absent from the whole map, so nothing leaks; but in each cell absent ones stand above the rest."""
    dense = np.full((4, 3, 5), -6.0, np.float32)
    dense[0, :, :3], dense[1, :, 3:], dense[2], dense[3, 0] = -2, -3, -5, -4
    sample = sample_of(*[LabelMap.from_dense(dense, 2)] * 30)
    found = suggest(sample, None, 4)
    assert found.fill is not None and found.fill <= -5
    assert "100 % of the cells have no score above fill 0" in found.reason
    assert suggest(sample, None, 4, fill=found.fill).fill is None
