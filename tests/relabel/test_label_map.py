"""LabelMap: to and from dense, and what validation refuses."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from relabel.label_map import LabelMap, class_translation
from tests.strategies import SEEDS


def small_map() -> LabelMap:
    """Two classes a cell in 2 rows of 3 cells; 4 classes in all."""
    scores = np.array([[[9, 8, 7], [6, 5, 4]], [[3, 2, 1], [0.5, -1, -2]]], dtype=np.float32)
    classes = np.array([[[0, 0, 1], [1, 2, 3]], [[1, 2, 2], [3, 3, 0]]], dtype=np.int16)
    return LabelMap(scores, classes)


@given(st.integers(1, 10), st.integers(1, 7), st.integers(1, 9), st.integers(0, 20), st.booleans(), st.integers(0, 99))
def test_sparse_dense_top_k_is_the_identity(k: int, h: int, w: int, absent: int, half: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    dtype = np.float16 if half else np.float32
    # Distinct positive scores per cell, so that the order is unique and the fill is never among the best.
    steps = rng.permuted(np.broadcast_to(np.arange(1, k + 1)[:, None, None], (k, h, w)), axis=0)
    scores = np.flip(np.sort(steps + rng.integers(0, 50, (1, h, w)) / 4, axis=0), axis=0).astype(dtype)
    ids = np.broadcast_to(np.arange(k + absent)[:, None, None], (k + absent, h, w))
    original = LabelMap(scores, rng.permuted(ids, axis=0)[:k])
    dense = original.to_dense(k + absent).astype(dtype)
    again = LabelMap.from_dense(dense, k)
    assert again.scores.dtype == dtype
    np.testing.assert_array_equal(again.scores, original.scores)
    np.testing.assert_array_equal(again.classes, original.classes)
    again.validate(k + absent)


@given(st.integers(1, 12) | st.sampled_from([1000, 40_000]), st.data(), st.integers(1, 4), st.integers(1, 3), SEEDS)
def test_top_k_is_that_of_sorting_also_among_equals(K: int, data: st.DataObject, h: int, w: int, seed: int) -> None:
    """Any of equal logits may be kept, with its own class."""
    k = data.draw(st.integers(1, min(K, 12)))
    rng = np.random.default_rng(seed)
    dense = rng.choice(np.array([-np.inf, -65_504, -1.5, 0, 2, 1e4, 65_504], np.float32), (K, h, w))
    dense[rng.integers(K, size=3)] += 1e5  # so that the best of many equals are not always the first
    found = LabelMap.from_dense(dense, k)
    for row in range(h):
        for column in range(w):
            kept, ids = found.scores[:, row, column].tolist(), found.classes[:, row, column].tolist()
            assert kept == sorted(dense[:, row, column].tolist(), reverse=True)[:k]
            assert len(set(ids)) == k and kept == dense[ids, row, column].tolist()


@given(st.integers(1, 9), st.data(), st.integers(1, 4), st.integers(1, 3), st.floats(-1000, 1000, width=32), SEEDS)
def test_dense_again_cell_by_cell(K: int, data: st.DataObject, h: int, w: int, fill: float, seed: int) -> None:
    """K stands for any class that the data lacks."""
    k = data.draw(st.integers(1, K + 1))
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 10, (k, h, w)).astype(np.float32)
    classes = rng.permuted(np.tile(np.arange(K + 1)[:, None, None], (1, h, w)), axis=0)[:k]
    expected = np.full((K, h, w), fill, dtype=np.float32)
    for (i, row, column), label in np.ndenumerate(classes):
        if label < K:
            expected[label, row, column] = scores[i, row, column]
    np.testing.assert_array_equal(LabelMap(scores, classes).to_dense(K, fill), expected)


@given(st.permutations(range(8)), st.integers(1, 8), st.integers(1, 8), SEEDS)
def test_translated_ids_mean_the_same_classes(order: list[int], count: int, k: int, seed: int) -> None:
    """A map of eight classes read for data that has some of them, in another order."""
    original = LabelMap.from_dense(np.random.default_rng(seed).normal(size=(8, 2, 3)).astype(np.float32), k)
    own, wanted = [f"class {i}" for i in range(8)], [f"class {i}" for i in order[:count]]
    new_ids = class_translation(own, wanted)
    assert (new_ids is None) == (wanted == own)
    classes = original.classes if new_ids is None else new_ids[original.classes]
    found = LabelMap(original.scores, classes).to_dense(count, fill=-9)
    np.testing.assert_array_equal(found, original.to_dense(8, fill=-9)[order[:count]])


@given(st.integers(0, 1), st.integers(0, 1), st.integers(0, 2))
@pytest.mark.parametrize(
    ("value", "found"),
    [
        (np.nan, "the score nan .* finite scores"),
        (-np.inf, "the score -inf .* finite scores"),
        (-1, r"the class id -1 .* ids in 0\.\.3 \(4 classes\)"),
        (4, "the class id 4 .*"),
        ("twice", "a second score of class . .* each class at most once in a cell"),
    ],
)
def test_one_bad_number_is_found_wherever_it_stands(
    value: float | str, found: str, layer: int, row: int, column: int
) -> None:
    bad = small_map()
    bad.validate(4)
    if value == "twice":
        bad.classes[layer, row, column] = bad.classes[1 - layer, row, column]
    else:
        (bad.classes if isinstance(value, int) else bad.scores)[layer, row, column] = value
    where = f"in the cell at row {row}, column {column}; expected"
    with pytest.raises(ValueError, match=found.replace(".*", where, 1)):
        bad.validate(4)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.float32, torch.float16])
def test_from_dense_takes_tensors_and_keeps_only_half(kind: torch.dtype) -> None:
    dense = torch.tensor([1.0, 5.0, 3.0, 4.0], dtype=kind).view(4, 1, 1).expand(4, 2, 3).requires_grad_()
    found = LabelMap.from_dense(dense, 3)
    assert found.shape == (3, 2, 3)
    assert found.scores[:, 1, 2].tolist() == [5, 4, 3] and found.classes[:, 1, 2].tolist() == [1, 3, 2]
    assert found.scores.dtype == (np.float16 if kind == torch.float16 else np.float32)


def test_stacked_maps_are_tensors_of_the_arrays_types() -> None:
    first = small_map()
    second = LabelMap(first.scores + 1, first.classes[::-1])
    second.scores.setflags(write=False)  # as a store returns them; torch must not warn
    scores, classes = LabelMap.stack([first, second])
    assert scores.dtype == torch.float32 and classes.dtype == torch.int16 and scores.shape == (2, 2, 2, 3)
    np.testing.assert_array_equal(scores[1], second.scores)
    np.testing.assert_array_equal(classes[1], second.classes)
