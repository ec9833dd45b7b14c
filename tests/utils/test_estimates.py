"""Means and percentages with their uncertainty."""

import numpy as np
import pytest

from utils.estimates import Estimate


def test_a_mean_by_hand() -> None:
    found = Estimate.mean(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert found is not None and found.value == 3 and found.n == 5
    assert found.standard_error == pytest.approx((2.5 / 5) ** 0.5)
    assert (found.low95, found.high95) == pytest.approx((3 - 1.9633, 3 + 1.9633), abs=1e-4)  # t of 4 is 2.7764


def test_wilsons_interval_as_in_textbooks() -> None:
    half = Estimate.percent(np.arange(10) < 5)
    assert half is not None and half.value == 50
    assert (half.low95, half.high95) == pytest.approx((23.7, 76.3), abs=0.05)
    assert half.standard_error == pytest.approx(100 * (0.25 / 10) ** 0.5)


def test_all_of_twenty_is_not_certainty() -> None:
    found = Estimate.percent(np.ones(20, dtype=bool))
    assert found is not None and found.value == 100 and found.standard_error == 0
    assert found.low95 == pytest.approx(83.9, abs=0.05) and found.high95 == 100


def test_shares_in_between_are_as_sure_as_they_vary_little() -> None:
    found = Estimate.percent(np.array([0.30, 0.32, 0.31, 0.31]))
    assert found is not None and (found.low95, found.high95) == pytest.approx((30.2, 31.8), abs=0.05)
    wide = Estimate.percent(np.array([0.0, 0.5, 1.0]))
    assert wide is not None and wide.low95 == 0 and wide.high95 == 100
    alone = Estimate.percent(np.array([0.4]))
    assert alone is not None and alone.low95 < 10 and alone.high95 > 80


def test_too_few_give_no_estimate() -> None:
    assert Estimate.mean(np.array([1.0])) is None
    assert Estimate.percent(np.array([])) is None


def test_the_intervals_hold_what_they_promise() -> None:
    rng = np.random.default_rng(0)
    means = [Estimate.mean(rng.normal(3, 2, size=50)) for _ in range(1000)]
    shares = [Estimate.percent(rng.random(50) < 0.1) for _ in range(1000)]
    assert 0.92 < np.mean([e is not None and e.low95 <= 3 <= e.high95 for e in means]) < 0.98
    assert 0.92 < np.mean([e is not None and e.low95 <= 10 <= e.high95 for e in shares]) <= 1
