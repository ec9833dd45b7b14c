"""CutMix (Yun et al., ICCV 2019): replace a rectangle of each image, and as much of its target, with another's."""

import math

import numpy as np
import torch
from torch import Tensor

Span = tuple[int, int]


def cut_box(keep: float, centre_row: int, centre_col: int, height: int, width: int) -> tuple[Span, Span, float]:
    """Return the rectangle to replace: with the image's aspect ratio, around a centre, clipped at the borders.

    Args:
        keep: share of the pixels to keep, before clipping; in [0, 1].
        centre_row, centre_col: a pixel of the image.
        height, width: of the image, pixels.

    Returns:
        (top, bottom) and (left, right) in pixels, bottom and right excluded; and the share of pixels that is kept.
    """
    side = math.sqrt(1 - keep)
    top, bottom = _span(centre_row, int(height * side), height)
    left, right = _span(centre_col, int(width * side), width)
    kept = 1 - (bottom - top) * (right - left) / (height * width)
    return (top, bottom), (left, right), kept


def mix_targets(targets: Tensor, others: Tensor, keep: float) -> Tensor:
    """Return keep * targets + (1 - keep) * others, all [B, K]."""
    return keep * targets + (1 - keep) * others


def cutmix(images: Tensor, targets: Tensor, rng: np.random.Generator, beta: float) -> tuple[Tensor, Tensor]:
    """Mix each image of a batch with another image of it, using one rectangle for all. Arguments are not modified.

    Args:
        images: float [B, C, H, W].
        targets: float [B, K]; label smoothing already applied.
        rng: generator of this step; draws the share to keep, then row, column and partners.
        beta: > 0; the share of pixels to keep is drawn from Beta(beta, beta).

    Returns:
        Mixed images [B, C, H, W] and targets [B, K], weighted by the images' shares of pixels.
    """
    count, _, height, width = images.shape
    keep, row, col = rng.beta(beta, beta), int(rng.integers(height)), int(rng.integers(width))
    partner = torch.from_numpy(rng.permutation(count)).to(images.device, non_blocking=True)
    (top, bottom), (left, right), kept = cut_box(keep, row, col, height, width)
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[:, :, top:bottom, left:right][partner]
    return mixed, mix_targets(targets, targets[partner], kept)


def _span(centre: int, length: int, size: int) -> Span:
    """Return a range around a centre, clipped to 0..size; an odd length loses a pixel, as in the 2021 code."""
    return max(centre - length // 2, 0), min(centre + length // 2, size)
