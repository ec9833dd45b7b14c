"""timm's loader: Pillow in worker processes, random resized crop (bilinear, antialiased) and flip, no label maps.

By default timm's workers return uint8 batches, and a prefetcher normalises them on the GPU, comparable to ours. Without
a GPU the prefetcher is usually switched off, and the workers return normalised floats.
"""

from collections.abc import Iterator
from functools import partial

import torch
from timm.data import create_dataset, create_loader

from benchmarks.peers import RATIOS, SIZE, Job, Reader
from relabel.crop_box import MIN_AREA

NAME = "timm, crop + flip"


def readers(job: Job) -> dict[str, Reader]:
    """Return readers of both kinds."""
    return {
        f"{NAME}, uint8": partial(_read, job, prefetcher=True),
        f"{NAME} + normalise, float": partial(_read, job, prefetcher=False),
    }


def _read(job: Job, prefetcher: bool) -> Iterator[int]:
    """Read batches as they leave the workers: of the prefetcher, only the loader inside it is read."""
    loader = create_loader(
        create_dataset("", root=str(job.photos.root), is_training=True),
        (3, SIZE, SIZE),
        job.batch,
        is_training=True,
        scale=(MIN_AREA, 1.0),
        ratio=RATIOS,
        color_jitter=0.0,
        interpolation="bilinear",
        num_workers=job.workers,
        use_prefetcher=prefetcher,
        persistent_workers=False,
        device=torch.device("cpu"),
    )
    for images, _ in loader.loader if prefetcher else loader:
        assert images.dtype == (torch.uint8 if prefetcher else torch.float32) and images.shape[1:] == (3, SIZE, SIZE)
        yield len(images)
