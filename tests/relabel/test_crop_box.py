"""CropBox and the random crop's draw, against torchvision's RandomResizedCrop."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torchvision.transforms import RandomResizedCrop

from relabel.crop_box import RATIO_RANGE, WHOLE_IMAGE, CropBox, random_crop_box
from tests.strategies import FRACTIONS, SEEDS

SIZES = [(500, 375), (333, 500), (1200, 90), (90, 1200), (7, 5), (1, 3), (1, 1)]
Pixels = tuple[int, int, int, int]


class TorchDraws(np.random.Generator):
    """A generator whose numbers come from torch, drawn as torchvision draws them: two programs, the same luck."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def uniform(self, low: float, high: float) -> float:  # type: ignore[override]
        return torch.empty(1).uniform_(low, high).item()

    def integers(self, end: int) -> int:  # type: ignore[override]
        return int(torch.randint(0, end, size=(1,)).item())


TORCH_DRAWS = TorchDraws()


def ours(width: int, height: int, min_area: float) -> Pixels:
    return random_crop_box(TORCH_DRAWS, width, height, min_area).pixels(width, height)


def torchvisions(width: int, height: int, min_area: float) -> Pixels:
    image = torch.empty(3, height, width)
    top, left, down, across = RandomResizedCrop.get_params(image, [min_area, 1.0], [3 / 4, 4 / 3])
    return left, top, left + across, top + down


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("min_area", [0.08, 0.5, 1.0])
def test_same_draws_give_torchvisions_box(width: int, height: int, min_area: float) -> None:
    for seed in range(80):
        torch.manual_seed(seed)
        expected = torchvisions(width, height, min_area)
        torch.manual_seed(seed)
        assert ours(width, height, min_area) == expected, seed


LENGTHS = st.integers(1, 5000) | st.sampled_from([65_535, 10**6])  # a JPEG's longest side; a panorama's
BOXES = st.lists(FRACTIONS, min_size=4, max_size=4).map(lambda sides: [*sorted(sides[:2]), *sorted(sides[2:])])


@given(SEEDS, LENGTHS, LENGTHS, st.floats(1e-3, 1))
def test_a_random_box_is_a_rectangle_of_whole_pixels(seed: int, width: int, height: int, min_area: float) -> None:
    left, top, right, bottom = random_crop_box(np.random.default_rng(seed), width, height, min_area).pixels(
        width, height
    )
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    across, down = right - left, bottom - top
    # A side is rounded to whole pixels, so the ratio is one of a side half a pixel longer or shorter.
    if min(width, height) > 1:
        assert (across - 1) / (down + 1) <= RATIO_RANGE[1] and (down - 1) / (across + 1) <= 1 / RATIO_RANGE[0]


@given(BOXES, BOXES)
def test_iou_is_symmetric_and_a_share(one: list[float], other: list[float]) -> None:
    (l1, r1, t1, b1), (l2, r2, t2, b2) = one, other
    assume(min(r1 - l1, b1 - t1, r2 - l2, b2 - t2) > 1e-9)  # no image has as many pixels
    first, second = CropBox(l1, t1, r1, b1), CropBox(l2, t2, r2, b2)
    assert 0 <= first.iou(second) <= 1 and first.iou(second) == pytest.approx(second.iou(first))
    assert first.iou(first) == 1 and first.transposed().transposed() == first
    assert first.transposed().iou(second.transposed()) == pytest.approx(first.iou(second))


@given(st.data(), LENGTHS, LENGTHS)
def test_pixels_undoes_from_pixels(data: st.DataObject, width: int, height: int) -> None:
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
    box = CropBox.from_pixels(left, top, right, bottom, width, height)
    assert box.pixels(width, height) == (left, top, right, bottom)


def test_fractions_by_eye() -> None:
    box = CropBox.from_pixels(100, 30, 300, 60, width=400, height=120)
    assert box == CropBox(0.25, 0.25, 0.75, 0.5)
    assert box.area == 0.125 and box.transposed() == CropBox(0.25, 0.25, 0.5, 0.75)
    stacked = CropBox.stack([box, WHOLE_IMAGE])
    assert stacked.dtype == torch.float32 and stacked.tolist() == [[0.25, 0.25, 0.75, 0.5], [0, 0, 1, 1]]
    left_half, top_half = CropBox(0, 0, 0.5, 1), CropBox(0, 0, 1, 0.5)
    assert left_half.iou(top_half) == pytest.approx(1 / 3)  # a quarter shared, three covered
    assert left_half.iou(CropBox(0.5, 0, 1, 1)) == 0
    assert WHOLE_IMAGE.pixels(400, 120) == (0, 0, 400, 120)
