"""The box of a crop, with its sides in one fixed order, and the algorithm that draws random crops."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

RATIO_RANGE = (3 / 4, 4 / 3)
TRIES = 10
MIN_AREA = 0.08  # smallest area of a random crop, fraction of the image, in the paper


@dataclass(frozen=True, slots=True)
class CropBox:
    """A rectangle in fractions of an image's width and height, which are also fractions of its label map.

    Fields:
        left, top, right, bottom: in [0, 1], left < right and top < bottom, measured from the image's top left corner.
            The image is the one stored in the file (EXIF rotation ignored), before any flip.
    """

    left: float
    top: float
    right: float
    bottom: float

    def __post_init__(self) -> None:
        """Check the range and order of the sides."""
        assert 0 <= self.left < self.right <= 1 and 0 <= self.top < self.bottom <= 1, self

    @classmethod
    def from_pixels(cls, left: int, top: int, right: int, bottom: int, width: int, height: int) -> "CropBox":
        """Return the box of columns left..right-1 and rows top..bottom-1 of an image of width x height pixels."""
        return cls(left / width, top / height, right / width, bottom / height)

    def pixels(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return left, top, right, bottom in pixels of an image of that size: the exact inverse of `from_pixels`."""
        left, top = round(self.left * width), round(self.top * height)
        return left, top, round(self.right * width), round(self.bottom * height)

    @staticmethod
    def stack(boxes: Sequence["CropBox"]) -> Tensor:
        """Return the boxes as float32 [B, 4]; left, top, right, bottom."""
        sides = [(box.left, box.top, box.right, box.bottom) for box in boxes]
        return torch.tensor(sides, dtype=torch.float32).view(-1, 4)

    @property
    def area(self) -> float:
        """Area of the box as a fraction of the image, in (0, 1]."""
        return (self.right - self.left) * (self.bottom - self.top)

    def iou(self, other: "CropBox") -> float:
        """Return the intersection over union with another box of the same image, in [0, 1]."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        intersection = max(width, 0.0) * max(height, 0.0)
        return intersection / (self.area + other.area - intersection)

    def transposed(self) -> "CropBox":
        """Return the box with x and y swapped: reflected across the image's main diagonal."""
        return CropBox(self.top, self.left, self.bottom, self.right)


WHOLE_IMAGE = CropBox(0.0, 0.0, 1.0, 1.0)


def random_crop_box(rng: np.random.Generator, width: int, height: int, min_area: float) -> CropBox:
    """Draw the box of a random resized crop, by the algorithm of torchvision's RandomResizedCrop.

    Up to ten times, an area is drawn uniformly from [min_area, 1] of the image and an aspect ratio log-uniformly from
    [3/4, 4/3]; the first box that fits is placed uniformly. If none fits (the image is far from square), the box is the
    largest central one with an allowed ratio.

    Args:
        rng: generator of this sample; draws area and ratio (once per try), then top, then left.
        width, height: of the image, pixels.
        min_area: smallest area, fraction of the image (0.08 in the paper).
    """
    low, high = math.log(RATIO_RANGE[0]), math.log(RATIO_RANGE[1])
    for _ in range(TRIES):
        area = width * height * rng.uniform(min_area, 1.0)
        ratio = math.exp(rng.uniform(low, high))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.integers(height - crop_height + 1))
            left = int(rng.integers(width - crop_width + 1))
            return CropBox.from_pixels(left, top, left + crop_width, top + crop_height, width, height)
    crop_width, crop_height = min(width, round(height * RATIO_RANGE[1])), min(height, round(width / RATIO_RANGE[0]))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return CropBox.from_pixels(left, top, left + crop_width, top + crop_height, width, height)
