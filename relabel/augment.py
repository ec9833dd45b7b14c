"""Flip, colour jitter, PCA lighting and normalisation: drawn per sample, applied to a whole batch on its device.

The arithmetic is Pillow's, on values 0..255: every operation of the jitter blends the image with a base (black, the
image's mean grey, the grey image), clips, and cuts off the fraction, as bytes do. So all values equal Pillow's; without
the cut, as few as 68 % of a photo's values stay within 2 of 255 after three operations.
"""

from dataclasses import dataclass
from functools import cache
from itertools import permutations

import numpy as np
import torch
from torch import Tensor

# The operations of the jitter, numbered in the order of the factors.
BRIGHTNESS, CONTRAST, SATURATION = range(3)
JITTER_ORDERS = tuple(permutations((BRIGHTNESS, CONTRAST, SATURATION)))

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

# Principal components of ImageNet's RGB values in [0, 1] (Krizhevsky et al. 2012, in the digits that everybody uses).
EIGENVALUES = (0.2175, 0.0188, 0.0045)
EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What was drawn for one sample; numbers only, so that it is applied later, per batch.

    Fields:
        flip: mirror left and right. A pooled target does not change: it averages over the whole crop.
        jitter_order: 0..5, an index of JITTER_ORDERS.
        jitter_factors: of brightness, contrast, saturation; 1 changes nothing.
        lighting: weights of the three principal components.
    """

    flip: bool
    jitter_order: int
    jitter_factors: tuple[float, float, float]
    lighting: tuple[float, float, float]


def draw_augmentation(rng: np.random.Generator, flip_prob: float, color_jitter: float, lighting: float) -> Augmentation:
    """Draw flip, order, factors, lighting, in this order; the same numbers are used up whatever is switched off.

    Args:
        rng: the sample's own generator.
        flip_prob: chance of a flip, in [0, 1].
        color_jitter: x; factors are uniform in [max(0, 1 - x), 1 + x].
        lighting: standard deviation of the lighting weights.
    """
    flip = rng.random() < flip_prob
    order = rng.integers(len(JITTER_ORDERS))
    brightness, contrast, saturation = rng.uniform(max(0.0, 1 - color_jitter), 1 + color_jitter, 3).tolist()
    first, second, third = rng.normal(0.0, lighting, 3).tolist()
    return Augmentation(bool(flip), int(order), (brightness, contrast, saturation), (first, second, third))


def augment(
    images: Tensor,
    flips: Tensor | None = None,
    jitter_orders: Tensor | None = None,
    jitter_factors: Tensor | None = None,
    lighting: Tensor | None = None,
) -> Tensor:
    """Flip, jitter, lighting, normalise; each sample with its own numbers. None switches an operation off.

    Args:
        images: uint8 [B, 3, H, W]; RGB. Left as it is.
        flips: bool [B].
        jitter_orders: int64 [B]; 0..5, indices of JITTER_ORDERS.
        jitter_factors: float32 [B, 3]; brightness, contrast, saturation. None exactly when the orders are None.
        lighting: float32 [B, 3]; weights of the principal components.

    Returns:
        float32 [B, 3, H, W]; normalised with ImageNet's mean and standard deviation, on the device of the images.
    """
    assert images.dtype == torch.uint8 and images.ndim == 4 and images.shape[1] == 3, (images.dtype, images.shape)
    assert (jitter_orders is None) == (jitter_factors is None)
    images = images.contiguous()  # planes: what follows works on whole channels
    if flips is not None:
        images = torch.where(_per_image(flips), images.flip(-1), images)
    pixels = images.float()
    if jitter_orders is not None and jitter_factors is not None:
        operations = _constants(images.device).orders[jitter_orders]
        factors = jitter_factors.gather(1, operations)
        for stage in range(operations.shape[1]):
            _blend(pixels, operations[:, stage], factors[:, stage])
    return _normalise(pixels, lighting)


def normalise(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> float32 [B, 3, H, W]; (x / 255 - mean) / std with ImageNet's mean and std."""
    return augment(images)


def _blend(pixels: Tensor, operations: Tensor, factors: Tensor) -> None:
    """One stage of the jitter, in place; each image with its own operation, so that one pass serves mixed orders.

    Args:
        pixels: float32 [B, 3, H, W]; whole numbers 0..255.
        operations: int64 [B]; BRIGHTNESS, CONTRAST or SATURATION.
        factors: float32 [B]; share of the image, the rest is the base.
    """
    red, green, blue = pixels.unbind(1)
    # Pillow's luma in 16-bit fixed point: multiples of 2^-16 below 2^8, which float32 holds exactly.
    grey = (red * (19595 / 65536)).add_(green, alpha=38470 / 65536).add_(blue, alpha=7471 / 65536)
    grey = grey.add_(0.5).floor_().unsqueeze(1)
    mean = (grey.mean((1, 2, 3), keepdim=True) + 0.5).floor_()
    kind = _per_image(operations)
    base = torch.where(kind == SATURATION, grey, torch.where(kind == CONTRAST, mean, torch.zeros_like(mean)))
    pixels.sub_(base).mul_(_per_image(factors)).add_(base).clamp_(0, 255).floor_()


def _normalise(pixels: Tensor, lighting: Tensor | None) -> Tensor:
    """Values 0..255 plus lighting, less mean, over std: one multiplication and one addition per value."""
    constants = _constants(pixels.device)
    shift = -constants.mean
    if lighting is not None:
        # Not a matrix product: TF32 would round it.
        shift = shift + (lighting[:, None, :] * constants.components).sum(2)
    return torch.addcmul(
        (shift / constants.std).view(-1, 3, 1, 1), pixels, (1 / (255 * constants.std)).view(1, 3, 1, 1)
    )


def _per_image(values: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1]."""
    return values.view(-1, 1, 1, 1)


@dataclass(frozen=True, slots=True)
class _Constants:
    """Tensors on one device: orders int64 [6, 3]; mean, std float32 [3]; components float32 [3 channels, 3 weights]."""

    orders: Tensor
    mean: Tensor
    std: Tensor
    components: Tensor


@cache
def _constants(device: torch.device) -> _Constants:
    """Made once per device: a copy from the host in every step would wait for the device."""
    with torch.inference_mode(False):
        return _Constants(
            orders=torch.tensor(JITTER_ORDERS, device=device),
            mean=torch.tensor(MEAN, device=device),
            std=torch.tensor(STD, device=device),
            components=torch.tensor(EIGENVECTORS, device=device) * torch.tensor(EIGENVALUES, device=device),
        )
