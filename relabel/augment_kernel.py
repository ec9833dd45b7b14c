"""The augmentation of relabel/augment.py as one Triton kernel: uint8 crops in, normalised pixels out.

It makes one pass over each image for the mean grey that contrast needs, and one that applies everything. Floating-point
fusion is off: a contracted multiply-add would round differently, and after the truncation 1 % of the values would move.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024  # pixels at a time
BRIGHTNESS, CONTRAST, SATURATION = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


def augment_fused(
    images: Tensor,
    drawn: Sequence[Tensor | None],
    tables: Sequence[Tensor],
    dtype: torch.dtype,
) -> Tensor:
    """Augment a batch as `augment` does.

    Args:
        images: uint8 [B, 3, H, W]; the pixels of a row, and the rows, follow each other in memory.
        drawn: flips, jitter orders, jitter factors and lighting, as in `augment`.
        tables: int64 [6, 3], the operation of each stage in each order; float32 [3, 3], what a weight of the lighting
            adds to a channel, [channel, weight]; float32 [2, 3], mean and std of the normalisation.
        dtype: of the result.

    Returns:
        [B, 3, H, W], channels last in memory.
    """
    batch, _, height, width = images.shape
    assert images.stride(2) == width * images.stride(3), images.stride()
    result = torch.empty(images.shape, dtype=dtype, device=images.device, memory_format=torch.channels_last)
    _augment[(batch,)](
        images,
        result,
        *drawn,
        *tables,
        *images.stride()[:2],
        images.stride(3),
        height * width,
        width,
        BLOCK=BLOCK,
        num_warps=8,
        enable_fp_fusion=False,
    )
    return result


@triton.jit
def _augment(
    images,
    result,
    flips,
    orders,
    factors,
    lighting,
    operations,
    components,
    scale,
    image_stride,
    channel_stride,
    pixel_stride,
    pixels,
    width,
    BLOCK: tl.constexpr,
):
    """Augment one image; absent options are None."""
    image = tl.program_id(0).to(tl.int64)
    source = images + image * image_stride
    mean = 0.0
    if orders is not None:
        order = operations + tl.load(orders + image) * 3
        first, second, third = tl.load(order), tl.load(order + 1), tl.load(order + 2)
        a = tl.load(factors + image * 3 + first)
        b = tl.load(factors + image * 3 + second)
        c = tl.load(factors + image * 3 + third)
        # Integers: exact in any order of summation.
        total = tl.zeros((BLOCK,), tl.int32)
        for start in range(0, pixels, BLOCK):
            place = start + tl.arange(0, BLOCK)
            inside = place < pixels
            red, green, blue = _load(source + place * pixel_stride, channel_stride, inside)
            if first != CONTRAST:
                red, green, blue = _stage(red, green, blue, first, a, 0.0)
                if second != CONTRAST:
                    red, green, blue = _stage(red, green, blue, second, b, 0.0)
            total += tl.where(inside, _grey(red, green, blue), 0.0).to(tl.int32)
        grey_sum = tl.sum(total.to(tl.int64))
        mean = ((2 * grey_sum + pixels) // (2 * pixels)).to(tl.float32)  # rounded
    for start in range(0, pixels, BLOCK):
        place = start + tl.arange(0, BLOCK)
        inside = place < pixels
        at = place
        if flips is not None:
            row_start = place // width * width
            at = tl.where(tl.load(flips + image) != 0, 2 * row_start + width - 1 - place, place)
        red, green, blue = _load(source + at * pixel_stride, channel_stride, inside)
        if orders is not None:
            red, green, blue = _stage(red, green, blue, first, a, mean)
            red, green, blue = _stage(red, green, blue, second, b, mean)
            red, green, blue = _stage(red, green, blue, third, c, mean)
        target = result + image * pixels * 3 + place * 3
        _store(target, red, _shift(0, image, lighting, components, scale), tl.load(scale + 3), inside)
        _store(target + 1, green, _shift(1, image, lighting, components, scale), tl.load(scale + 4), inside)
        _store(target + 2, blue, _shift(2, image, lighting, components, scale), tl.load(scale + 5), inside)


@triton.jit
def _load(source, channel_stride, inside):
    red = tl.load(source, inside, 0).to(tl.float32)
    green = tl.load(source + channel_stride, inside, 0).to(tl.float32)
    blue = tl.load(source + 2 * channel_stride, inside, 0).to(tl.float32)
    return red, green, blue


@triton.jit
def _grey(red, green, blue):
    """Pillow's luma in 16-bit fixed point, which float32 holds exactly."""
    return tl.floor(red * (19595 / 65536) + green * (38470 / 65536) + blue * (7471 / 65536) + 0.5)


@triton.jit
def _stage(red, green, blue, operation, factor, mean):
    """Blend with black, the mean grey or the grey image; clip and truncate."""
    base = tl.where(operation == SATURATION, _grey(red, green, blue), tl.where(operation == CONTRAST, mean, 0.0))
    return _blended(red, base, factor), _blended(green, base, factor), _blended(blue, base, factor)


@triton.jit
def _blended(value, base, factor):
    return tl.floor(tl.minimum(tl.maximum((value - base) * factor + base, 0.0), 255.0))


@triton.jit
def _shift(channel: tl.constexpr, image, lighting, components, scale):
    """Return what is added to a channel before it is divided by its std."""
    shift = -tl.load(scale + channel)
    if lighting is not None:
        for weight in tl.static_range(3):
            shift += tl.load(lighting + image * 3 + weight) * tl.load(components + channel * 3 + weight)
    return shift


@triton.jit
def _store(target, value, shift, std, inside):
    pixel = shift / std + value * (1 / (255 * std))
    tl.store(target, pixel.to(target.dtype.element_ty), inside)
