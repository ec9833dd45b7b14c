"""The learning rate against the 2021 code's figures, and at its corners."""

import json
from pathlib import Path

import pytest

from utils.schedule import learning_rate

GOLDEN = Path(__file__).parent / "golden" / "schedule_2021.json"


@pytest.mark.parametrize("decay_type", ["cos", "linear", "default"])
def test_equals_the_2021_code_at_every_step(decay_type: str) -> None:
    case = json.loads(GOLDEN.read_text())[decay_type]
    expected = case.pop("lr")
    rates = [learning_rate(step, decay_type=decay_type, **case) for step in range(len(expected))]
    assert len(rates) == case["epochs"] * case["steps_per_epoch"]
    assert rates == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_golden_file_is_the_shared_one() -> None:
    shared = Path(__file__).resolve().parents[2] / "shared" / "golden" / GOLDEN.name
    if not shared.exists():
        pytest.skip("the shared golden files are not beside this checkout")
    assert json.loads(GOLDEN.read_text()) == json.loads(shared.read_text())


def test_warmup_rises_in_equal_steps_from_its_own_start() -> None:
    rates = [learning_rate(step, 2, 9, 2, 0.5, 0.1, "cos") for step in range(5)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


@pytest.mark.parametrize("decay_type", ["cos", "linear", "default"])
def test_without_warmup_the_first_step_has_the_peak(decay_type: str) -> None:
    assert learning_rate(0, 3, 2, 0, 0.4, 0.0, decay_type) == 0.4


def test_decay_without_warmup_by_hand() -> None:
    linear = [learning_rate(step, 2, 2, 0, 0.4, 0.0, "linear") for step in range(4)]
    assert linear == pytest.approx([0.4, 0.3, 0.2, 0.1])
    half_way = learning_rate(2, 2, 2, 0, 0.4, 0.0, "cos")
    assert half_way == pytest.approx(0.2)


@pytest.mark.parametrize("decay_type", ["cos", "linear"])
def test_last_step_is_small_but_above_zero(decay_type: str) -> None:
    """The rate reaches 0 one step after the last, so no step is wasted."""
    last = learning_rate(10 * 100 - 1, 100, 10, 1, 0.1, 0.0, decay_type)
    assert 0 < last < 0.1 / 100
    assert learning_rate(10 * 100, 100, 10, 1, 0.1, 0.0, decay_type) == pytest.approx(0, abs=1e-17)


def test_default_drops_at_its_three_epochs_only() -> None:
    rates = [learning_rate(epoch * 7, 7, 200, 0, 1.0, 0.0, "default") for epoch in (29, 30, 59, 60, 89, 90, 199)]
    assert rates == pytest.approx([1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_run_that_is_all_warmup() -> None:
    assert [learning_rate(step, 2, 1, 1, 0.4, 0.0, "cos") for step in range(3)] == pytest.approx([0, 0.2, 0.4])


def test_unknown_decay_is_refused() -> None:
    with pytest.raises(ValueError, match="cos, linear or default, not 'cosine'"):
        learning_rate(5, 2, 2, 0, 0.4, 0.0, "cosine")
