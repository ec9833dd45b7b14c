"""FFCV in threads: whole images decoded, then cropped and resized; uint8 [S, S, 3], no flip, no label maps.

Its own writer would decode and re-encode each image. For equal work, the field here stores the bytes of the original
JPEG files in FFCV's file; FFCV reads them back unchanged. It decodes with libjpeg-turbo's fast, less exact transform
and resizes by OpenCV's area method. It does not open a file per image; writing its one file beforehand and compiling
the loader are not measured.
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.rgb_image import IMAGE_MODES, RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import ToTensor
from ffcv.writer import DatasetWriter
from PIL import Image

from benchmarks.peers import RATIOS, SHORTER, SIZE, Job, Reader
from relabel.crop_box import MIN_AREA
from relabel.data.images import ImageList


def readers(job: Job) -> dict[str, Reader]:
    """Return readers of the original and of the shrunk JPEG files."""
    forms = {"original JPEGs": job.photos, f"shrunk to {SHORTER} px": job.shrunk}
    return {f"FFCV, {name}": _reader(job, photos, name) for name, photos in forms.items() if photos}


def _reader(job: Job, photos: ImageList, name: str) -> Reader:
    """Write FFCV's file and return a reader; all measurements share one loader, because making it compiles code."""
    file = str(job.scratch / f"{name}.beton")
    fields = {"image": OriginalJpeg(), "label": IntField()}
    DatasetWriter(file, fields, num_workers=job.workers).from_indexed_dataset(JpegBytes(photos))
    loader = Loader(
        file,
        batch_size=job.batch,
        num_workers=job.workers,
        os_cache=True,
        order=OrderOption.RANDOM,
        pipelines={"image": [RandomResizedCropRGBImageDecoder((SIZE, SIZE), (MIN_AREA, 1.0), RATIOS), ToTensor()]},
        custom_fields={"image": RGBImageField},
    )
    return partial(_read, loader)


def _read(loader: Loader) -> Iterator[int]:
    """Read one epoch; wait for its thread, so that it does not run beside the next contender."""
    epoch = iter(loader)
    try:
        for images, _ in epoch:
            assert images.dtype == torch.uint8 and images.shape[1:] == (SIZE, SIZE, 3)
            yield len(images)
    finally:
        epoch.close()
        epoch.join()


@dataclass(frozen=True)
class JpegBytes:
    """The input of FFCV's writer: the bytes of each file, and its class."""

    photos: ImageList

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.photos)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        """Return the bytes and the class of an image."""
        return self.photos.path(index).read_bytes(), int(self.photos.labels[index])


class OriginalJpeg(RGBImageField):
    """FFCV's image field, which reads size, mode and bytes; this one writes the bytes of a JPEG file unchanged."""

    def encode(self, destination: Any, image: bytes, malloc: Callable[[int], Any]) -> None:
        """Write the bytes into FFCV's file."""
        destination["mode"] = IMAGE_MODES["jpg"]
        destination["width"], destination["height"] = Image.open(io.BytesIO(image)).size
        destination["data_ptr"], room = malloc(len(image))
        room[:] = np.frombuffer(image, np.uint8)
