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

from relabel.crop_box import CropBox, random_crop_box
from relabel.label_map import LabelMap
from relabel.label_pooling import pool_scores
from tests.strategies import map_batches

SHAPES = [(1, 4, 6), (5, 15, 13), (5, 18, 11), (3, 1, 8), (4, 6, 1)]  # k, h, w
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


def boxes_anywhere(rng: np.random.Generator, count: int) -> Tensor:
    sides = np.sort(rng.random((count, 2, 2)), axis=1)  # [B, low or high, x or y]
    return torch.from_numpy(sides.reshape(count, 4)).float()


def thin_boxes(rng: np.random.Generator, count: int) -> Tensor:
    """Thinner than a cell: across, down, or both ways."""
    boxes = boxes_anywhere(rng, count)
    thin = boxes[:, :2] + torch.from_numpy(rng.random((count, 2)) * 0.04).float()
    boxes[::3, 2] = thin[::3, 0].clamp(max=1)
    boxes[1::3, 3] = thin[1::3, 1].clamp(max=1)
    boxes[2::3, 2:] = thin[2::3].clamp(max=1)
    return boxes


def boxes_at_the_borders(rng: np.random.Generator, count: int) -> Tensor:
    touches = torch.from_numpy(rng.random((count, 4)) < 0.5)
    boxes = boxes_anywhere(rng, count).where(~touches, torch.tensor([0.0, 0, 1, 1]))
    boxes[0] = torch.tensor([0.0, 0, 1, 1])
    boxes[::7, :2] = 1 - torch.from_numpy(rng.random((len(boxes[::7]), 2)) * 1e-3).float()  # grown beyond the image
    boxes[::7, 2:] = 1
    return boxes


def boxes_of_random_crops(rng: np.random.Generator, count: int) -> Tensor:
    """Fractions of whole pixels, which hit the ceil of the sample count exactly far more often than random numbers."""
    return CropBox.stack([random_crop_box(rng, 500, 375, 0.08) for _ in range(count)])


BOXES = [boxes_anywhere, thin_boxes, boxes_at_the_borders, boxes_of_random_crops]


def all_boxes(count: int, seed: int) -> Tensor:
    return torch.cat([draw(np.random.default_rng(seed), count) for draw in BOXES])


@pytest.mark.parametrize("draw", BOXES)
@pytest.mark.parametrize(("k", "h", "w"), SHAPES)
def test_equals_roi_align_on_the_dense_tensor(
    draw: Callable[[np.random.Generator, int], Tensor], k: int, h: int, w: int
) -> None:
    boxes = draw(np.random.default_rng(h * w), 150)
    scores, classes = random_maps(150, k, h, w, positive=True)
    expected = dense_pool(scores, classes, boxes, NUM_CLASSES)
    torch.testing.assert_close(pool_scores(scores, classes, boxes, NUM_CLASSES), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("fill", [0.0, -4.0, 2.5])
@pytest.mark.parametrize(("k", "h", "w"), SHAPES)
def test_equals_roi_align_with_scores_of_both_signs_and_any_fill(k: int, h: int, w: int, fill: float) -> None:
    """Relative to the largest logit of the image: single logits of both signs can cancel to nothing in either."""
    boxes = all_boxes(40, seed=k)
    scores, classes = random_maps(len(boxes), k, h, w, positive=False)
    expected = dense_pool(scores, classes, boxes, NUM_CLASSES, fill)
    found = pool_scores(scores, classes, boxes, NUM_CLASSES, fill)
    assert found.dtype == torch.float32
    assert ((found - expected).abs().amax(dim=1) <= 1e-6 * expected.abs().amax(dim=1)).all()


def test_any_type_of_scores_and_class_ids() -> None:
    boxes = boxes_anywhere(np.random.default_rng(0), 20)
    scores, classes = random_maps(20, 5, 6, 9, positive=True)
    half = scores.half()
    expected = pool_scores(half.float(), classes, boxes, NUM_CLASSES)
    for kind in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(pool_scores(half, classes.to(kind), boxes, NUM_CLASSES), expected)


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
        ((0, 0, 1, 1), [4, 4, 0]),
        ((1 / 3, 0, 5 / 6, 0.25), [8 / 3, 16 / 3, 0]),  # columns 2, 3 and 4 of row 0
        ((0.5, 0, 0.5, 1), [0, 8, 0]),  # no width: grown to the one cell on its right, column 3
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


@given(map_batches(), st.floats(-1000, 1000))
def test_what_holds_for_any_map_and_box(drawn: tuple[Tensor, Tensor, Tensor, int], fill: float) -> None:
    """Equal to RoIAlign; a mean, so within the range of what is averaged; the same in another order or mirrored.

    The order is that of the stored classes; map and box are mirrored at the diagonal.
    """
    scores, classes, boxes, num_classes = drawn
    room = 2e-6 * scores.abs().max().item()
    expected = pool_scores(scores, classes, boxes, num_classes)
    torch.testing.assert_close(expected, dense_pool(*drawn), rtol=0, atol=room)
    mirrored = pool_scores(scores.transpose(2, 3), classes.transpose(2, 3), boxes[:, [1, 0, 3, 2]], num_classes)
    torch.testing.assert_close(mirrored, expected, rtol=0, atol=room)
    found = pool_scores(scores, classes, boxes, num_classes, fill)
    low, high = min(scores.min().item(), fill), max(scores.max().item(), fill)
    room = 2e-6 * max(high, -low)
    assert low - room <= found.min() and found.max() <= high + room
    again = pool_scores(scores.flip(1), classes.flip(1), boxes, num_classes, fill)
    torch.testing.assert_close(again, found, rtol=0, atol=2 * room)


def test_classes_that_the_data_lacks_are_ignored() -> None:
    """Their id is K. What is left is pooled as if the map had never held them."""
    scores, classes = random_maps(3, 4, 5, 7, positive=True)
    boxes = boxes_anywhere(np.random.default_rng(1), 3)
    foreign = torch.rand(classes.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    for fill in (0.0, -2.0):
        found = pool_scores(scores, classes.masked_fill(foreign, 5000), boxes, 5000, fill)
        expected = pool_scores(scores.masked_fill(foreign, fill), classes, boxes, 5000, fill)
        torch.testing.assert_close(found, expected)


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_ids_of_more_classes_than_the_data_has_are_refused() -> None:
    maps = LabelMap.stack([LabelMap(np.ones((1, 2, 2), np.float32), np.full((1, 2, 2), 7, np.int16))])
    with pytest.raises(ValueError, match=r"found the class id 7 .* 5 classes; .*LabelMaps\(path, classes="):
        pool_scores(*maps, CropBox.stack([CropBox(0, 0, 1, 1)]), 5)


def test_no_tensor_grows_with_classes_times_cells() -> None:
    scores, classes = random_maps(4, 5, 15, 13, positive=True)
    with LargestTensor() as largest:
        pool_scores(scores, classes, boxes_anywhere(np.random.default_rng(0), 4), num_classes=5000, fill=-1.0)
    assert largest.elements == 4 * 5001  # the result itself; the dense tensor would hold 195 times as much


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_same_and_without_waiting() -> None:
    boxes = all_boxes(40, seed=1)
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
