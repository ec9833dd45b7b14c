"""Read whole images for a teacher: squashed to its input size, in batches, on its device.

Worker processes read ahead. They decode the images too, unless a GPU does (relabel/data/gpu_decode.py).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from relabel.crop_box import WHOLE_IMAGE
from relabel.data.decode import ImageFile, resolve_decoder
from relabel.data.gpu_decode import EncodedImage, EncodedImages, Region, report_fallback
from relabel.data.images import ImageList
from relabel.data.loader import copy_ahead
from utils.errors import UserError
from utils.processes.workers import BatchMemory, read_batches

ReadImage = tuple[int, np.ndarray | EncodedImage, str]  # row, image, reason if it cannot be read


@dataclass(frozen=True, slots=True, eq=False)
class SquashedImages:
    """Row -> (row, image, reason): an image of uint8 [3, *size], or a file that a GPU is to decode.

    An image that cannot be read is black and has a reason; for all others it is "". Cheap to pickle.

    Fields:
        images: the list of images.
        size: rows and columns.
        interpolation: bilinear, bicubic or lanczos, antialiased.
        decoder: one of relabel.data.decode.DECODERS or GPU_DECODERS.
        max_megapixels: larger images cannot be read.
    """

    images: ImageList
    size: tuple[int, int]
    interpolation: str
    decoder: str
    max_megapixels: float

    def __getitem__(self, row: int) -> ReadImage:
        """Read an image."""
        try:
            file = ImageFile(self.images.path(row), self.decoder, self.max_megapixels)
            data = file.encoded(check=True)
            if data is None:
                return row, file.resized_crop(WHOLE_IMAGE, *self.size, self.interpolation), ""
            region = Region(0, 0, file.width, file.height, *self.size)
            pixels = file.width * file.height
            return row, EncodedImage(data, pixels, region, *self.size, self.interpolation, (0, row)), ""
        except UserError as error:  # one bad file must neither stop the job nor change the size of its batch
            return row, np.zeros((3, *self.size), np.uint8), str(error)

    def on_cpu(self) -> "SquashedImages":
        """Return the same images, none of them encoded."""
        return replace(self, decoder=resolve_decoder("auto"))


@dataclass(frozen=True, slots=True, eq=False)
class ImageBatch:
    """Whole images, squashed.

    Fields:
        rows: B rows of the list of images.
        images: uint8 [B, 3, rows, columns]; black if one cannot be read. Channels last in memory, as the decoders
            write them.
        reasons: why an image cannot be read, else "".
        encoded: those still to be decoded; until then, `images` holds the others.
    """

    rows: list[int]
    images: Tensor
    reasons: list[str]
    encoded: EncodedImages | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> "ImageBatch":
        """Return a batch with the function applied to the images."""
        return replace(self, images=function(self.images))

    def pin_memory(self) -> "ImageBatch":
        """Copy to page-locked memory; called by DataLoader."""
        batch = self.map(Tensor.pin_memory) if self.images.numel() else self
        return batch if batch.encoded is None else replace(batch, encoded=batch.encoded.pin_memory())


def read_squashed(
    dataset: SquashedImages, batches: list[list[int]], num_workers: int, device: torch.device
) -> Iterator[ImageBatch]:
    """Read whole images in batches, given by their rows, ahead in worker processes; yield them on the device.

    On a GPU, a batch is copied and decoded during the one before. Without one, the memory of a batch is written over
    once the next has been asked for.
    """
    on_cuda = device.type == "cuda"
    read = read_batches(dataset, partial(_collate, BatchMemory(), BatchMemory()), batches, num_workers, on_cuda)
    move = partial(_on_device, dataset, device)
    return copy_ahead(read, move, device) if on_cuda else map(move, read)


def _collate(memory: BatchMemory, for_files: BatchMemory, read: Sequence[ReadImage]) -> ImageBatch:
    rows, images, reasons = zip(*read, strict=True)
    encoded = {at: image for at, image in enumerate(images) if isinstance(image, EncodedImage)}
    decoded = [image.transpose(1, 2, 0) for image in images if isinstance(image, np.ndarray)]
    pixels = torch.empty((0, 0, 0, 3), dtype=torch.uint8)
    if decoded:
        pixels = memory.take(len(read), *decoded[0].shape)[: len(decoded)]
        np.stack(decoded, out=pixels.numpy())
    files = EncodedImages.stack(encoded, for_files.take) if encoded else None
    return ImageBatch(list(rows), pixels.permute(0, 3, 1, 2), list(reasons), files)


def _on_device(dataset: SquashedImages, device: torch.device, batch: ImageBatch) -> ImageBatch:
    """Copy a batch to the device, and decode there what is still encoded."""
    if batch.encoded is None:
        return batch.map(lambda images: images.to(device, non_blocking=True))
    reasons = list(batch.reasons)

    def again(key: tuple[int, int], gpu_reason: str) -> np.ndarray:
        row, image, reason = dataset.on_cpu()[key[1]]
        assert isinstance(image, np.ndarray)
        if reason:
            reasons[batch.rows.index(row)] = reason
        else:
            report_fallback(str(dataset.images.path(row)), gpu_reason)
        return image

    images, _ = batch.encoded.join(batch.images, device, again)
    return ImageBatch(batch.rows, images, reasons)
