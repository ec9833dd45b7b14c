"""Cut regions out of images of different sizes on a GPU and resize them into one batch: a Triton kernel.

The filters are Pillow's, antialiased: they widen with the reduction. Both directions are summed at once, while Pillow
rounds between them, so values differ by 1 of 255, and seldom by more where a filter with negative weights is clipped.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from relabel.data.gpu_decode import Region

BLOCK = 256  # output pixels at a time
FILTERS = {"bilinear": (0, 1), "bicubic": (1, 2), "lanczos": (2, 3)}  # name -> kind in the kernel, radius


def resize_regions(
    images: Sequence[Tensor], regions: Sequence[Region], height: int, width: int, interpolation: str
) -> Tensor:
    """Resize a region of each image, and cut out height x width of the result.

    Args:
        images: B tensors uint8 [3, H, W], contiguous, each of its own size, on one device.
        regions: one of each image.
        height, width: of the result.
        interpolation: bilinear, bicubic or lanczos.

    Returns:
        uint8 [B, 3, height, width]; channels last in memory.
    """
    device = images[0].device
    numbers = [[image.data_ptr(), *image.shape[1:], *region] for image, region in zip(images, regions, strict=True)]
    assert all(image.is_contiguous() and image.dtype == torch.uint8 for image in images)
    table = torch.tensor(numbers, dtype=torch.int64)
    table = table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table
    result = torch.empty((len(images), height, width, 3), dtype=torch.uint8, device=device)
    kind, radius = FILTERS[interpolation]
    grid = (len(images), triton.cdiv(height * width, BLOCK))
    _resize[grid](table, result, height, width, COLUMNS=table.shape[1], BLOCK=BLOCK, KIND=kind, RADIUS=radius)
    return result.permute(0, 3, 1, 2)


@triton.jit
def _resize(
    table, result, height, width, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, KIND: tl.constexpr, RADIUS: tl.constexpr
):
    """Compute BLOCK pixels of one image."""
    image = tl.program_id(0).to(tl.int64)
    row_of = table + image * COLUMNS
    pixels = tl.load(row_of).to(tl.pointer_type(tl.uint8))
    rows, columns = tl.load(row_of + 1), tl.load(row_of + 2)
    left, top = tl.load(row_of + 3), tl.load(row_of + 4)
    across, down = tl.load(row_of + 5) - left, tl.load(row_of + 6) - top
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < height * width
    y = place // width + tl.load(row_of + 9)
    x = place % width + tl.load(row_of + 10)
    first_y, count_y, centre_y, scale_y, taps_y = _taps(y, down, tl.load(row_of + 7), RADIUS)
    first_x, count_x, centre_x, scale_x, taps_x = _taps(x, across, tl.load(row_of + 8), RADIUS)
    red = tl.zeros((BLOCK,), tl.float32)
    green = tl.zeros((BLOCK,), tl.float32)
    blue = tl.zeros((BLOCK,), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for i in range(taps_y):
        weight_y = tl.where(i < count_y, _filter((first_y + i - centre_y + 0.5) / scale_y, KIND), 0.0)
        line = pixels + (top + first_y + i) * columns + left
        for j in range(taps_x):
            weight = weight_y * tl.where(j < count_x, _filter((first_x + j - centre_x + 0.5) / scale_x, KIND), 0.0)
            used = inside & (i < count_y) & (j < count_x)
            at = line + first_x + j
            red += weight * tl.load(at, used, 0).to(tl.float32)
            green += weight * tl.load(at + rows * columns, used, 0).to(tl.float32)
            blue += weight * tl.load(at + 2 * rows * columns, used, 0).to(tl.float32)
            total += weight
    target = result + (image * height * width + place) * 3
    tl.store(target, _rounded(red / total), inside)
    tl.store(target + 1, _rounded(green / total), inside)
    tl.store(target + 2, _rounded(blue / total), inside)


@triton.jit
def _taps(at, size, resized, RADIUS: tl.constexpr):
    """Return the first source pixel, their number, the centre, the width of the filter, and the most pixels of any."""
    ratio = size.to(tl.float32) / resized.to(tl.float32)
    scale = tl.maximum(ratio, 1.0)
    support = scale * RADIUS
    centre = (at.to(tl.float32) + 0.5) * ratio
    first = tl.maximum((centre - support + 0.5).to(tl.int32), 0)
    count = tl.minimum((centre + support + 0.5).to(tl.int32), size.to(tl.int32)) - first
    return first, count, centre, scale, (2 * support).to(tl.int32) + 2


@triton.jit
def _filter(x, KIND: tl.constexpr):
    """Return the weight of a source pixel at a distance in units of the filter's width."""
    x = tl.abs(x)
    if KIND == 0:
        weight = tl.maximum(1.0 - x, 0.0)
    elif KIND == 1:
        near = (1.5 * x - 2.5) * x * x + 1.0
        far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
        weight = tl.where(x < 1.0, near, tl.where(x < 2.0, far, 0.0))
    else:
        turn = 3.141592653589793 * tl.maximum(x, 1e-6)
        weight = tl.where(x < 3.0, 3.0 * tl.sin(turn) * tl.sin(turn / 3.0) / (turn * turn), 0.0)
    return weight


@triton.jit
def _rounded(value):
    return tl.minimum(tl.maximum(tl.floor(value + 0.5), 0.0), 255.0).to(tl.uint8)
