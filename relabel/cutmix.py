"""CutMix (Yun et al., ICCV 2019): a rectangle of each image, and that share of its target, come from another image."""

import math

import numpy as np
import torch
from torch import Tensor

Span = tuple[int, int]


def cut_box(keep: float, centre_row: int, centre_col: int, height: int, width: int) -> tuple[Span, Span, float]:
    """The rectangle to replace, of the image's aspect ratio, around a centre, clipped at the borders.

    Args:
        keep: share of the pixels to keep before clipping, in [0, 1].
        centre_row, centre_col: inside the image, pixels.
        height, width: of the image, pixels.

    Returns:
        (top, bottom), (left, right) in pixels, ends excluded, and the share of pixels that the clipped rectangle keeps.
    """
    side = math.sqrt(1 - keep)
    top, bottom = _span(centre_row, int(height * side), height)
    left, right = _span(centre_col, int(width * side), width)
    kept = 1 - (bottom - top) * (right - left) / (height * width)
    return (top, bottom), (left, right), kept


def mix_targets(targets: Tensor, others: Tensor, keep: float) -> Tensor:
    """keep * targets + (1 - keep) * others, all [B, K]: the target of an image of which `keep` is its own pixels."""
    return keep * targets + (1 - keep) * others


def cutmix(images: Tensor, targets: Tensor, rng: np.random.Generator, beta: float) -> tuple[Tensor, Tensor]:
    """Mix each image of a batch with a partner of the same batch, with one rectangle for all; the arguments stay as is.

    Args:
        images: float [B, C, H, W].
        targets: float [B, K]; already smoothed, if at all.
        rng: the step's generator; drawn from in the order share, row, column, partners.
        beta: the share of pixels to keep is drawn from Beta(beta, beta), beta > 0.

    Returns:
        Mixed images [B, C, H, W] and targets [B, K]; the targets' weights are the shares of pixels.
    """
    count, _, height, width = images.shape
    keep, row, col = rng.beta(beta, beta), int(rng.integers(height)), int(rng.integers(width))
    partner = torch.from_numpy(rng.permutation(count)).to(images.device, non_blocking=True)
    (top, bottom), (left, right), kept = cut_box(keep, row, col, height, width)
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[:, :, top:bottom, left:right][partner]
    return mixed, mix_targets(targets, targets[partner], kept)


def _span(centre: int, length: int, size: int) -> Span:
    """`length` pixels around a centre, cut to 0..size. An odd length loses its last pixel, as in the 2021 code."""
    return max(centre - length // 2, 0), min(centre + length // 2, size)
