"""A sample of maps in memory."""

import numpy as np
import torch

from relabel.checks.sample import read_sample
from tests.memory_store import MemoryStore, left_right_map


def test_a_sample_holds_the_maps_of_its_rows() -> None:
    store = MemoryStore([left_right_map(float(row)) for row in range(30)])
    sample = read_sample(store, np.arange(10, 30), size=7, seed=1)
    assert len(sample) == 7 and sample.scores.shape == sample.classes.shape == (7, 1, 4, 6)
    assert (np.diff(sample.rows) > 0).all() and sample.rows.min() >= 10
    assert sample.scores[:, 0, 0, 0].tolist() == sample.rows.tolist()
    again, other = (read_sample(store, np.arange(10, 30), 7, seed).rows for seed in (1, 2))
    assert np.array_equal(sample.rows, again) and not np.array_equal(sample.rows, other)


def test_a_small_store_is_read_whole_and_maps_that_cannot_be_read_are_never_asked_for() -> None:
    store = MemoryStore([None, left_right_map(), "damaged", left_right_map()])
    sample = read_sample(store, np.array([1, 3]), size=100)
    assert sample.rows.tolist() == [1, 3]
    assert sample.only(np.array([1])).rows.tolist() == [3]


def test_transposing_exchanges_rows_and_columns() -> None:
    sample = read_sample(MemoryStore([left_right_map()]), np.array([0]), size=1)
    swapped = sample.transposed()
    assert swapped.classes.shape == (1, 1, 6, 4)
    assert swapped.classes[0, 0, :, 0].tolist() == [0, 0, 0, 1, 1, 1]  # class 0 is on top now
    assert torch.equal(swapped.transposed().classes, sample.classes)
