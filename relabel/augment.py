"""Flip, colour jitter, PCA lighting and normalisation: drawn per sample, applied to a whole batch on its device.

The arithmetic is Pillow's, on values 0..255: each operation of the jitter blends the image with a base (black, the
image's mean grey, or the grey image), clips, and truncates to whole numbers, so that all values equal Pillow's. Without
the truncation, as few as 68 % of an image's values would stay within 2 of 255 after three operations.
"""

from dataclasses import dataclass
from functools import cache
from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Operations of the jitter, in the order of the factors.
BRIGHTNESS, CONTRAST, SATURATION = range(3)
JITTER_ORDERS = tuple(permutations((BRIGHTNESS, CONTRAST, SATURATION)))

# Principal components of ImageNet's RGB values in [0, 1]: Krizhevsky et al. 2012, with the digits in common use.
EIGENVALUES = (0.2175, 0.0188, 0.0045)
EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
# [3 channels, 3 weights]
COMPONENTS = tuple(tuple(x * y for x, y in zip(row, EIGENVALUES, strict=True)) for row in EIGENVECTORS)


@dataclass(frozen=True, slots=True)
class Augmentation:
    """The random numbers of one sample, to be applied later to a whole batch.

    Fields:
        flip: swap left and right. The pooled target stays the same, because it averages the whole crop.
        jitter_order: 0..5, an index into JITTER_ORDERS.
        jitter_factors: of brightness, contrast and saturation; 1 changes nothing.
        lighting: weights of the three principal components.
    """

    flip: bool
    jitter_order: int
    jitter_factors: tuple[float, float, float]
    lighting: tuple[float, float, float]


def draw_augmentation(rng: np.random.Generator, flip_prob: float, color_jitter: float, lighting: float) -> Augmentation:
    """Draw flip, jitter order, jitter factors and lighting, in this sequence.

    Switching one off does not change the others: the same number of random numbers is always drawn.

    Args:
        rng: generator of this sample.
        flip_prob: probability of a flip, in [0, 1].
        color_jitter: x; factors are uniform in [max(0, 1 - x), 1 + x].
        lighting: standard deviation of the lighting weights.
    """
    flip = rng.random() < flip_prob
    order = rng.integers(len(JITTER_ORDERS))
    brightness, contrast, saturation = rng.uniform(max(0.0, 1 - color_jitter), 1 + color_jitter, 3).tolist()
    first, second, third = rng.normal(0.0, lighting, 3).tolist()
    return Augmentation(bool(flip), int(order), (brightness, contrast, saturation), (first, second, third))


Rgb = tuple[float, float, float]


def augment(
    images: Tensor,
    flips: Tensor | None = None,
    jitter_orders: Tensor | None = None,
    jitter_factors: Tensor | None = None,
    lighting: Tensor | None = None,
    *,
    mean: Rgb,
    std: Rgb,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Flip, jitter, add lighting and normalise, each sample with its own numbers. None switches an operation off.

    Args:
        images: uint8 [B, 3, H, W]; RGB. Not modified.
        flips: bool [B].
        jitter_orders: int64 [B]; 0..5, indices into JITTER_ORDERS.
        jitter_factors: float32 [B, 3]; brightness, contrast, saturation. None if and only if the orders are None.
        lighting: float32 [B, 3]; weights of the principal components.
        mean, std: of the normalisation, per channel, for pixels in [0, 1].
        dtype: of the result.

    Returns:
        [B, 3, H, W]; normalised, on the device of the images. On a GPU one kernel does all of it, and the result is
        channels last in memory.
    """
    assert images.dtype == torch.uint8 and images.ndim == 4 and images.shape[1] == 3, (images.dtype, images.shape)
    assert (jitter_orders is None) == (jitter_factors is None)
    if images.is_cuda:
        from relabel.augment_kernel import augment_fused

        tables = (_constant(values, images.device) for values in (JITTER_ORDERS, COMPONENTS, (mean, std)))
        return augment_fused(images, (flips, jitter_orders, jitter_factors, lighting), tuple(tables), dtype)
    images = images.contiguous()  # channels first in memory: the operations below work on whole channels
    if flips is not None:
        images = torch.where(_per_image(flips), images.flip(-1), images)
    pixels = images.float()
    if jitter_orders is not None and jitter_factors is not None:
        operations = _constant(JITTER_ORDERS, images.device)[jitter_orders]
        factors = jitter_factors.gather(1, operations)
        for stage in range(operations.shape[1]):
            _blend(pixels, operations[:, stage], factors[:, stage])
    return _normalise(pixels, mean, std, lighting).to(dtype)


def normalise(images: Tensor, *, mean: Rgb, std: Rgb, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normalise uint8 [B, 3, H, W]: (x / 255 - mean) / std."""
    return augment(images, mean=mean, std=std, dtype=dtype)


def _blend(pixels: Tensor, operations: Tensor, factors: Tensor) -> None:
    """Apply one stage of the jitter in place, each image with its own operation.

    Args:
        pixels: float32 [B, 3, H, W]; whole numbers 0..255.
        operations: int64 [B]; BRIGHTNESS, CONTRAST or SATURATION.
        factors: float32 [B]; weight of the image; the base gets 1 - factor.
    """
    red, green, blue = pixels.unbind(1)
    # Pillow's luma in 16-bit fixed point: multiples of 2^-16 below 2^8, which float32 holds exactly.
    grey = (red * (19595 / 65536)).add_(green, alpha=38470 / 65536).add_(blue, alpha=7471 / 65536)
    grey = grey.add_(0.5).floor_().unsqueeze(1)
    mean = (grey.mean((1, 2, 3), keepdim=True) + 0.5).floor_()
    kind = _per_image(operations)
    base = torch.where(kind == SATURATION, grey, torch.where(kind == CONTRAST, mean, torch.zeros_like(mean)))
    pixels.sub_(base).mul_(_per_image(factors)).add_(base).clamp_(0, 255).floor_()


def _normalise(pixels: Tensor, mean: Rgb, std: Rgb, lighting: Tensor | None) -> Tensor:
    """Add lighting to values 0..255, subtract the mean, divide by std: one multiply-add per value."""
    device = pixels.device
    scale = _constant(std, device)
    shift = -_constant(mean, device)
    if lighting is not None:
        # No matrix product: TF32 would round it.
        shift = shift + (lighting[:, None, :] * _constant(COMPONENTS, device)).sum(2)
    return torch.addcmul((shift / scale).view(-1, 3, 1, 1), pixels, (1 / (255 * scale)).view(1, 3, 1, 1))


def _per_image(values: Tensor) -> Tensor:
    """View [B] as [B, 1, 1, 1]."""
    return values.view(-1, 1, 1, 1)


@cache
def _constant(values: tuple[Any, ...], device: torch.device) -> Tensor:
    """Cache a constant on the device: copying it from the host at every step would wait for the device."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device)
