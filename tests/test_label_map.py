"""LabelMap: to and from dense, and what validation refuses."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from relabel.label_map import LabelMap, class_dtype
from utils.errors import UserError


def small_map() -> LabelMap:
    """Two classes a cell in 2 rows of 3 cells; 4 classes in all."""
    scores = np.array([[[9, 8, 7], [6, 5, 4]], [[3, 2, 1], [0.5, -1, -2]]], dtype=np.float32)
    classes = np.array([[[0, 0, 1], [1, 2, 3]], [[1, 2, 2], [3, 3, 0]]], dtype=np.int16)
    return LabelMap(scores, classes)


def test_dense_by_eye() -> None:
    dense = small_map().to_dense(4, fill=-7)
    assert dense.dtype == np.float32 and dense.shape == (4, 2, 3)
    assert dense[:, 0, 0].tolist() == [9, 3, -7, -7]
    assert dense[:, 0, 2].tolist() == [-7, 7, 1, -7]
    assert dense[:, 1, 2].tolist() == [-2, -7, -7, 4]


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
    again.validate(k + absent, "again")


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.float32, torch.float16])
def test_from_dense_takes_tensors_and_keeps_only_half(kind: torch.dtype) -> None:
    dense = torch.tensor([1.0, 5.0, 3.0, 4.0], dtype=kind).view(4, 1, 1).expand(4, 2, 3).requires_grad_()
    found = LabelMap.from_dense(dense, 3)
    assert found.shape == (3, 2, 3)
    assert found.scores[:, 1, 2].tolist() == [5, 4, 3] and found.classes[:, 1, 2].tolist() == [1, 3, 2]
    assert found.scores.dtype == (np.float16 if kind == torch.float16 else np.float32)


def test_class_ids_take_the_smallest_type_that_holds_them() -> None:
    assert class_dtype(1000) == class_dtype(32767) == np.int16
    assert class_dtype(32768) == np.int32


def test_a_good_map_passes() -> None:
    small_map().validate(4, "here")


@pytest.mark.parametrize(
    ("array", "value", "message"),
    [
        ("scores", np.nan, r"a/b\.pt: found the score nan in the cell at row 1, column 2; expected finite scores"),
        ("scores", -np.inf, r"a/b\.pt: found the score -inf in the cell at row 1, column 2"),
        (
            "classes",
            4,
            r"a/b\.pt: found the class id 4 in the cell at row 1, column 2; expected ids in 0\.\.3 .*4 classes",
        ),
        ("classes", -1, r"the class id -1 in the cell at row 1, column 2"),
        ("classes", 0, r"twice the class 0 in the cell at row 1, column 2; expected each class at most once"),
    ],
)
def test_a_bad_cell_is_named(array: str, value: float, message: str) -> None:
    bad = small_map()
    getattr(bad, array)[0, 1, 2] = value
    with pytest.raises(UserError, match=message):
        bad.validate(4, "a/b.pt")


def test_a_class_twice_is_found_however_far_apart() -> None:
    classes = np.arange(6).reshape(6, 1, 1).repeat(2, axis=1)
    classes[5, 1] = classes[0, 1]
    with pytest.raises(UserError, match="twice the class 0 in the cell at row 1, column 0"):
        LabelMap(np.zeros((6, 2, 1), np.float32), classes).validate(6, "here")


@pytest.mark.parametrize(
    ("scores", "classes"),
    [
        (np.zeros((2, 3, 4), np.float32), np.zeros((2, 4, 3), np.int64)),
        (np.zeros((3, 4), np.float32), np.zeros((3, 4), np.int64)),
        (np.zeros((2, 3, 4), np.float64), np.zeros((2, 3, 4), np.int64)),
        (np.zeros((2, 3, 4), np.float32), np.zeros((2, 3, 4), np.float32)),
    ],
)
def test_arrays_that_cannot_belong_together_are_a_bug(scores: np.ndarray, classes: np.ndarray) -> None:
    with pytest.raises(AssertionError):
        LabelMap(scores, classes)
