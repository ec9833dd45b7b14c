"""Sparse LabelPooling against torchvision's RoIAlign on the dense tensor, and by eye."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import roi_align

from relabel.crop_box import random_crop_box
from relabel.label_pooling import axis_weights, pool_scores
from tests.strategies import FRACTIONS, map_batches

SHAPES = [(1, 4, 6), (2, 7, 5), (5, 15, 13), (10, 9, 14), (5, 18, 11), (3, 1, 8), (4, 6, 1), (7, 2, 3)]  # k, h, w
NUM_CLASSES = 40


def dense_pool(scores: Tensor, classes: Tensor, boxes: Tensor, num_classes: int, fill: float = 0.0) -> Tensor:
    """The slow reference: every class a plane, then the op the 2021 code used, with the boxes as they should be."""
    batch, _, h, w = scores.shape
    dense = torch.full((batch, num_classes, h, w), fill).scatter_(1, classes.long(), scores.float())
    cells = boxes.float() * torch.tensor([w, h, w, h]) - 0.5
    rois = torch.cat([torch.arange(batch)[:, None].float(), cells], dim=1)
    return roi_align(dense, rois, output_size=(1, 1), spatial_scale=1.0, sampling_ratio=-1, aligned=False).flatten(1)


def random_maps(batch: int, k: int, h: int, w: int, positive: bool, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    classes = torch.rand(batch, NUM_CLASSES, h, w, generator=generator).argsort(dim=1)[:, :k]
    scores = torch.rand(batch, k, h, w, generator=generator) * 12
    return (scores if positive else scores - 6), classes.contiguous()


def boxes_anywhere(rng: np.random.Generator, count: int) -> np.ndarray:
    sides = np.sort(rng.random((count, 2, 2)), axis=1)  # [B, low or high, x or y]
    return sides.reshape(count, 4)


def boxes_thin_across(rng: np.random.Generator, count: int) -> np.ndarray:
    boxes = boxes_anywhere(rng, count)
    boxes[:, 2] = np.minimum(boxes[:, 0] + rng.random(count) * 0.04, 1)
    return boxes


def boxes_thin_down(rng: np.random.Generator, count: int) -> np.ndarray:
    return boxes_thin_across(rng, count)[:, [1, 0, 3, 2]]


def boxes_thin_both_ways(rng: np.random.Generator, count: int) -> np.ndarray:
    low = rng.random((count, 2))
    return np.hstack([low, np.minimum(low + rng.random((count, 2)) * 0.02, 1)])


def boxes_at_the_borders(rng: np.random.Generator, count: int) -> np.ndarray:
    boxes = boxes_anywhere(rng, count)
    touches = rng.random((count, 4)) < 0.5
    boxes = np.where(touches, [0.0, 0.0, 1.0, 1.0], boxes)
    boxes[::7, :2] = 1 - rng.random((len(boxes[::7]), 2)) * 1e-3  # a sliver at the far corner, grown beyond the image
    boxes[::7, 2:] = 1
    return boxes


def boxes_of_the_whole_image(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.tile([0.0, 0.0, 1.0, 1.0], (count, 1))


def boxes_of_random_crops(rng: np.random.Generator, count: int) -> np.ndarray:
    """Fractions of whole pixels, which hit the ceil of the sample count exactly far more often than random numbers."""
    drawn = [random_crop_box(rng, 500, 375, 0.08) for _ in range(count)]
    return np.array([(box.left, box.top, box.right, box.bottom) for box in drawn])


BOXES = [
    boxes_anywhere,
    boxes_thin_across,
    boxes_thin_down,
    boxes_thin_both_ways,
    boxes_at_the_borders,
    boxes_of_the_whole_image,
    boxes_of_random_crops,
]


def largest_relative_difference(found: Tensor, expected: Tensor) -> float:
    """Against the image's largest pooled logit; single logits of both signs can cancel to nothing in either program."""
    assert found.dtype == torch.float32 and found.shape == expected.shape
    return ((found - expected).abs().amax(dim=1) / expected.abs().amax(dim=1)).max().item()


@pytest.mark.parametrize("draw", BOXES)
@pytest.mark.parametrize(("k", "h", "w"), SHAPES)
def test_equals_roi_align_on_the_dense_tensor(
    draw: Callable[[np.random.Generator, int], np.ndarray], k: int, h: int, w: int
) -> None:
    boxes = torch.from_numpy(draw(np.random.default_rng(h * w), 150)).float()
    scores, classes = random_maps(150, k, h, w, positive=True)
    expected = dense_pool(scores, classes, boxes, NUM_CLASSES)
    torch.testing.assert_close(pool_scores(scores, classes, boxes, NUM_CLASSES), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("fill", [0.0, -4.0, 2.5])
@pytest.mark.parametrize(("k", "h", "w"), SHAPES)
def test_equals_roi_align_with_scores_of_both_signs_and_any_fill(k: int, h: int, w: int, fill: float) -> None:
    boxes = torch.from_numpy(np.concatenate([draw(np.random.default_rng(k), 40) for draw in BOXES])).float()
    scores, classes = random_maps(len(boxes), k, h, w, positive=False)
    expected = dense_pool(scores, classes, boxes, NUM_CLASSES, fill)
    found = pool_scores(scores, classes, boxes, NUM_CLASSES, fill)
    assert largest_relative_difference(found, expected) <= 1e-6


@pytest.mark.parametrize("draw", BOXES)
def test_batch_of_one(draw: Callable[[np.random.Generator, int], np.ndarray]) -> None:
    boxes = torch.from_numpy(draw(np.random.default_rng(4), 1)).float()
    scores, classes = random_maps(1, 5, 6, 9, positive=True)
    found = pool_scores(scores, classes, boxes, NUM_CLASSES)
    torch.testing.assert_close(found, dense_pool(scores, classes, boxes, NUM_CLASSES), rtol=1e-6, atol=0)


def test_half_precision_scores_are_computed_in_float32() -> None:
    boxes = torch.from_numpy(boxes_anywhere(np.random.default_rng(0), 100)).float()
    scores, classes = random_maps(100, 5, 18, 11, positive=True)
    half = scores.half()
    assert torch.equal(
        pool_scores(half, classes, boxes, NUM_CLASSES), pool_scores(half.float(), classes, boxes, NUM_CLASSES)
    )


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int32])
def test_any_integer_type_of_class_ids(kind: torch.dtype) -> None:
    boxes = torch.from_numpy(boxes_anywhere(np.random.default_rng(0), 20)).float()
    scores, classes = random_maps(20, 5, 6, 9, positive=True)
    found = pool_scores(scores, classes.to(kind), boxes, NUM_CLASSES)
    assert torch.equal(found, pool_scores(scores, classes, boxes, NUM_CLASSES))


def left_and_right() -> tuple[Tensor, Tensor]:
    """A 4x6 map: class 0 on the left three columns, class 1 on the right three, both with logit 8."""
    classes = torch.zeros(1, 1, 4, 6, dtype=torch.int64)
    classes[..., 3:] = 1
    return torch.full((1, 1, 4, 6), 8.0), classes


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 0, 0.5, 1), [8, 0, 0]),  # the left half is class 0
        ((0.5, 0, 1, 1), [0, 8, 0]),
        ((0, 0, 1, 0.5), [4, 4, 0]),  # the top half is both: swapped axes fail here
        ((0, 0.5, 1, 1), [4, 4, 0]),
        ((0, 0, 1, 1), [4, 4, 0]),
        ((1 / 3, 0, 5 / 6, 0.25), [8 / 3, 16 / 3, 0]),  # columns 2, 3 and 4 of row 0
        ((0.5, 0, 0.5, 1), [0, 8, 0]),  # no width: grown to the one cell on its right, column 3
        ((0.5, 0, 0.51, 1), [0, 8, 0]),
        ((1, 0, 1, 1), [0, 8, 0]),  # grown beyond the image: clamped to the last column
    ],
)
def test_left_and_right_by_eye(box: tuple[float, ...], expected: list[float]) -> None:
    pooled = pool_scores(*left_and_right(), torch.tensor([box]), num_classes=3)
    torch.testing.assert_close(pooled, torch.tensor([expected], dtype=torch.float32), rtol=0, atol=1e-5)


def test_absent_classes_get_exactly_the_fill() -> None:
    pooled = pool_scores(*left_and_right(), torch.tensor([[0.1, 0.2, 0.7, 0.9]]), num_classes=5, fill=-2.5)
    assert pooled[0, 2:].tolist() == [-2.5] * 3
    assert pooled[0, :2].sum().item() == pytest.approx(8 - 2.5, abs=1e-5)


def test_whole_image_pools_to_the_mean_of_the_map() -> None:
    scores, classes = random_maps(5, NUM_CLASSES, 7, 4, positive=False)  # every class in every cell
    dense = torch.zeros(5, NUM_CLASSES, 7, 4).scatter_(1, classes, scores)
    pooled = pool_scores(scores, classes, torch.tensor([[0.0, 0, 1, 1]]).expand(5, 4), NUM_CLASSES)
    torch.testing.assert_close(pooled, dense.mean(dim=(2, 3)), rtol=0, atol=1e-5)


def test_shifting_scores_and_fill_shifts_the_pooled_logits() -> None:
    boxes = torch.from_numpy(boxes_at_the_borders(np.random.default_rng(3), 50)).float()
    scores, classes = random_maps(50, 3, 5, 8, positive=False)
    shifted = pool_scores(scores + 2, classes, boxes, NUM_CLASSES, fill=2)
    torch.testing.assert_close(shifted, pool_scores(scores, classes, boxes, NUM_CLASSES) + 2, rtol=0, atol=1e-5)


@given(FRACTIONS, FRACTIONS, st.integers(1, 40))
def test_weights_of_an_interval_sum_to_one(a: float, b: float, cells: int) -> None:
    weights = axis_weights(torch.tensor([min(a, b)]), torch.tensor([max(a, b)]), cells)
    assert weights.shape == (1, cells) and weights.min() >= 0
    assert weights.sum().item() == pytest.approx(1, abs=1e-5)


@given(map_batches())
def test_equals_roi_align_whatever_the_map_and_the_box(drawn: tuple[Tensor, Tensor, Tensor, int]) -> None:
    scores, classes, boxes, num_classes = drawn
    found = pool_scores(scores, classes, boxes, num_classes)
    largest = scores.abs().max().item()
    torch.testing.assert_close(found, dense_pool(*drawn), rtol=0, atol=2e-6 * largest)


@given(map_batches(), st.floats(-1000, 1000))
def test_a_pooled_logit_is_a_mean(drawn: tuple[Tensor, Tensor, Tensor, int], fill: float) -> None:
    """So it lies between the smallest and the largest of what is averaged, in any order of the stored classes."""
    scores, classes, boxes, num_classes = drawn
    found = pool_scores(scores, classes, boxes, num_classes, fill)
    low, high = min(scores.min().item(), fill), max(scores.max().item(), fill)
    room = 2e-6 * max(high, -low)
    assert low - room <= found.min() and found.max() <= high + room
    again = pool_scores(scores.flip(1), classes.flip(1), boxes, num_classes, fill)
    torch.testing.assert_close(again, found, rtol=0, atol=2 * room)


@given(map_batches())
def test_mirroring_map_and_box_at_the_diagonal_changes_nothing(drawn: tuple[Tensor, Tensor, Tensor, int]) -> None:
    scores, classes, boxes, num_classes = drawn
    mirrored = scores.transpose(2, 3), classes.transpose(2, 3), boxes[:, [1, 0, 3, 2]]
    found, expected = pool_scores(*mirrored, num_classes), pool_scores(*drawn)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6 * scores.abs().max().item())


def test_samples_outside_the_map_count_zero_as_in_the_op() -> None:
    low = torch.linspace(-0.9, 0.9, 61)
    weights = axis_weights(low, low + 0.7, 9)
    row = torch.eye(9).view(1, 9, 1, 9).expand(61, 9, 1, 9)  # class c at column c, one row
    boxes = torch.stack([low, torch.zeros(61), low + 0.7, torch.ones(61)], dim=1)
    classes = torch.arange(9).view(1, 9, 1, 1).expand(61, 9, 1, 9)
    torch.testing.assert_close(weights, dense_pool(row, classes, boxes, 9), rtol=0, atol=1e-6)
    assert weights.sum(dim=1).min() < 0.5


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any operation gave back."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_classes_that_the_data_lacks_count_for_nothing() -> None:
    """Their id is K. What is left is pooled as if the map had never held them."""
    scores, classes = random_maps(3, 4, 5, 7, positive=True)
    boxes = torch.from_numpy(boxes_anywhere(np.random.default_rng(1), 3)).float()
    foreign = torch.rand(classes.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    for fill in (0.0, -2.0):
        found = pool_scores(scores, classes.masked_fill(foreign, 5000), boxes, 5000, fill)
        expected = pool_scores(scores.masked_fill(foreign, fill), classes, boxes, 5000, fill)
        torch.testing.assert_close(found, expected)


def test_no_tensor_grows_with_classes_times_cells() -> None:
    scores, classes = random_maps(4, 5, 15, 13, positive=True)
    boxes = torch.from_numpy(boxes_anywhere(np.random.default_rng(0), 4)).float()
    with LargestTensor() as largest:
        pool_scores(scores, classes, boxes, num_classes=5000, fill=-1.0)
    assert largest.elements == 4 * 5001  # the result itself; the dense tensor would hold 195 times as much


def test_needs_no_value_on_the_host() -> None:
    """Tensors without data: any step that had to wait for a device's numbers would fail here."""
    pooled = pool_scores(
        torch.empty(4, 5, 7, 6, device="meta", dtype=torch.float16),
        torch.empty(4, 5, 7, 6, device="meta", dtype=torch.int16),
        torch.empty(4, 4, device="meta"),
        num_classes=9,
        fill=-1.0,
    )
    assert pooled.shape == (4, 9) and pooled.dtype == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_same_and_without_waiting() -> None:
    boxes = torch.from_numpy(np.concatenate([draw(np.random.default_rng(1), 40) for draw in BOXES])).float()
    scores, classes = random_maps(len(boxes), 5, 15, 13, positive=True)
    on_gpu = scores.cuda(), classes.short().cuda(), boxes.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = pool_scores(*on_gpu, NUM_CLASSES)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(found.cpu(), dense_pool(scores, classes, boxes, NUM_CLASSES), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("scores", "classes", "boxes"),
    [
        ((2, 5, 4, 6), (2, 5, 6, 4), (2, 4)),
        ((2, 5, 4, 6), (2, 5, 4, 6), (3, 4)),
        ((2, 5, 4, 6), (2, 5, 4, 6), (2, 5)),
        ((5, 4, 6), (5, 4, 6), (5, 4)),
    ],
)
def test_shapes_that_disagree(scores: tuple[int, ...], classes: tuple[int, ...], boxes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected scores \[B, k, h, w\].*got \["):
        pool_scores(torch.zeros(scores), torch.zeros(classes, dtype=torch.int64), torch.zeros(boxes), 9)
