"""torchvision in DataLoader's worker processes: random resized crop (bilinear, antialiased), flip; no label maps.

Batches are uint8. Once with Pillow as the decoder, which is its default, and once with torchvision's own, which decodes
the whole image by libjpeg-turbo into a tensor.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import pil_loader
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms import v2

from benchmarks.peers import RATIOS, SIZE, Job, Reader
from relabel.crop_box import MIN_AREA


def readers(job: Job) -> dict[str, Reader]:
    """Return readers with either decoder."""
    return {
        "torchvision + Pillow, crop + flip": partial(_read, job, pil_loader),
        "torchvision.io, crop + flip": partial(_read, job, _decode),
    }


def _decode(path: str) -> torch.Tensor:
    """Decode to uint8 [3, H, W]."""
    return decode_jpeg(read_file(path), mode=ImageReadMode.RGB)


def _read(job: Job, decode: Callable[[str], Any]) -> Iterator[int]:
    """Read one epoch."""
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(SIZE, (MIN_AREA, 1.0), RATIOS, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor() if decode is pil_loader else v2.Identity(),
        ]
    )
    dataset = ImageFolder(job.photos.root, transform, loader=decode)
    for images, _ in DataLoader(dataset, job.batch, shuffle=True, num_workers=job.workers):
        assert images.dtype == torch.uint8 and images.shape[1:] == (3, SIZE, SIZE)
        yield len(images)
