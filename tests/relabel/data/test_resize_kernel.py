"""The resizing of a GPU against Pillow's; without a GPU its kernel is interpreted."""

import numpy as np
import pytest
import torch
from PIL import Image

from relabel.data.decode import RESAMPLING
from relabel.data.resize_kernel import Region, resize_regions

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_regions_of_images_of_different_sizes_are_resized_as_by_pillow(
    interpolation: str,
) -> None:
    """Reduced, enlarged, a region at each corner, one row of pixels, a window of the resized region."""
    sizes = [(37, 61), (50, 24), (90, 33), (12, 9)]
    regions = [
        Region(3, 5, 60, 37, 11, 13),
        Region(0, 0, 24, 50, 11, 13),
        Region(10, 40, 33, 41, 11, 13),
        Region(0, 0, 9, 12, 30, 20, row=9, column=4),
    ]
    rng = np.random.default_rng(0)
    coarse = [Image.fromarray(rng.integers(40, 216, (5, 4, 3), dtype=np.uint8)) for _ in sizes]
    images = [
        np.array(image.resize((w, h), Image.Resampling.BICUBIC)) for image, (h, w) in zip(coarse, sizes, strict=True)
    ]
    tensors = [torch.from_numpy(image).permute(2, 0, 1).contiguous().to(DEVICE) for image in images]
    found = resize_regions(tensors, regions, 11, 13, interpolation)
    assert found.shape == (4, 3, 11, 13) and found.is_contiguous(memory_format=torch.channels_last)
    for image, r, pixels in zip(images, regions, found.cpu(), strict=True):
        cut = Image.fromarray(image).crop((r.left, r.top, r.right, r.bottom))
        resized = np.asarray(cut.resize((r.width, r.height), RESAMPLING[interpolation]), int)
        expected = resized[r.row : r.row + 11, r.column : r.column + 13]
        difference = np.abs(pixels.permute(1, 2, 0).numpy().astype(int) - expected)
        assert difference.max() <= 1
