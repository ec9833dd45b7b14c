"""Samples of a list of images: every random choice depends only on (seed, epoch, image index)."""

import math
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from relabel.augment import Augmentation, draw_augmentation
from relabel.crop_box import CropBox, random_crop_box
from relabel.data.decode import MOST_MEGAPIXELS, ImageFile, resolve_decoder
from relabel.data.gpu_decode import EncodedImage, Region
from relabel.data.images import ImageList, ImagePath
from relabel.data.tar_files import TarMember
from relabel.label_map import LabelMap
from relabel.stores.store import LabelStore
from utils.random import SAMPLE, keyed_rng

Key = tuple[int, int]  # epoch, image index
NO_PIXELS = np.empty((3, 0, 0), np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One image as used in training or evaluation.

    Fields:
        image: uint8 [3, S, S]; RGB, not yet augmented; a view of [S, S, 3]. NO_PIXELS if it is still encoded.
        label: index of its class folder, 0..K-1; -1 for an extra image (relabel/data/extra_images.py).
        box: the region of the stored image that `image` shows, before any flip.
        label_map: of the whole stored image; None without label maps.
        augmentation: what is still to be applied; None in evaluation.
        index: image index in the data set.
        encoded: the file, if a GPU is to decode it.
    """

    image: np.ndarray
    label: int
    box: CropBox
    label_map: LabelMap | None
    augmentation: Augmentation | None
    index: int
    encoded: EncodedImage | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Crop:
    """Result of a transform: image uint8 [3, S, S] or encoded, its box, and the augmentation still to be applied."""

    image: np.ndarray
    box: CropBox
    augmentation: Augmentation | None = None
    encoded: EncodedImage | None = None


Transform = Callable[[ImageFile, int, int], Crop]  # image file, epoch, image index -> crop


@dataclass(frozen=True, slots=True)
class RandomResizedCrop:
    """The training transform: a random resized crop, and the random numbers of its augmentation.

    Fields:
        size: S, side of the crop, pixels.
        min_area: smallest area of the crop, fraction of the image.
        flip_prob, color_jitter, lighting: as in `draw_augmentation`.
        seed: together with epoch and image index, seeds every draw.
        interpolation: how the crop is resized: bilinear, bicubic or lanczos, antialiased.
        always_check: look for damage in whole files in every epoch, not only in the first.
    """

    size: int
    min_area: float
    flip_prob: float
    color_jitter: float
    lighting: float
    seed: int
    interpolation: str = "bilinear"
    always_check: bool = False

    def __call__(self, file: ImageFile, epoch: int, index: int) -> Crop:
        """Draw the box, then the augmentation."""
        rng = keyed_rng(self.seed, SAMPLE, epoch, index)
        box = random_crop_box(rng, file.width, file.height, self.min_area)
        augmentation = draw_augmentation(rng, self.flip_prob, self.color_jitter, self.lighting)
        region = Region(*box.pixels(file.width, file.height), self.size, self.size)
        # The first epoch decodes whole files: all damage is found early, not in the epoch whose crop first reaches it.
        check = epoch == 0 or self.always_check
        return _cut(file, region, self.size, self.interpolation, check, (epoch, index), box, augmentation)


@dataclass(frozen=True, slots=True)
class CenterCrop:
    """The evaluation transform: the central crop, the same in every epoch.

    Fields:
        size: S, side of the crop, pixels.
        crop_ratio: the shorter side is first resized to ceil(size / crop_ratio); None squashes the whole image.
        interpolation: how the image is resized: bilinear, bicubic or lanczos, antialiased.
        squash: whether both sides are first resized so.
    """

    size: int
    crop_ratio: float | None
    interpolation: str = "bilinear"
    squash: bool = False

    def __call__(self, file: ImageFile, epoch: int, index: int) -> Crop:
        """Return the central crop; it does not depend on epoch and index."""
        if self.squash and self.crop_ratio:
            side = math.ceil(self.size / self.crop_ratio)
            start = round((side - self.size) / 2)  # as in torchvision and timm
            end = start + self.size
            region = Region(0, 0, file.width, file.height, side, side, start, start)
            box = CropBox.from_pixels(start, start, end, end, side, side)
        else:
            region = file.centre_region(self.size, self.crop_ratio)
            box = file.centre_box(self.size, self.crop_ratio)
        return _cut(file, region, self.size, self.interpolation, True, (epoch, index), box)


def _cut(
    file: ImageFile,
    region: Region,
    size: int,
    interpolation: str,
    check: bool,
    key: Key,
    box: CropBox,
    augmentation: Augmentation | None = None,
) -> Crop:
    """Decode a crop, or leave that to a GPU; `check`: find damage anywhere in the file."""
    data = file.encoded(check)
    if data is None:
        return Crop(file.cut(region, size, size, interpolation, whole=check), box, augmentation)
    encoded = EncodedImage(data, file.width * file.height, region, size, size, interpolation, key)
    return Crop(NO_PIXELS, box, augmentation, encoded)


@dataclass(frozen=True, slots=True, eq=False)
class ImageDataset:
    """Images, their transform and their label maps: `dataset[(epoch, index)]` is a Sample.

    Cheap to pickle; files are opened when a sample is read.

    Fields:
        images: the list of images.
        transform: RandomResizedCrop or CenterCrop.
        label_store: row i is the map of image i (opened with `images.keys()`); None without label maps.
        decoder: one of relabel.data.decode.DECODERS or GPU_DECODERS.
        first: index of the first image, where several data sets share one index space.
        max_megapixels: larger images are refused.
    """

    images: ImageList
    transform: Transform
    label_store: LabelStore | None = None
    decoder: str = "pillow"
    first: int = 0
    max_megapixels: float = MOST_MEGAPIXELS

    def __len__(self) -> int:
        """Return N, the number of images."""
        return len(self.images)

    def path(self, key: Key) -> ImagePath:
        """Return where the image of a key lies."""
        return self.images.path(key[1] - self.first)

    def __getitem__(self, key: Key) -> Sample:
        """Read the sample of (epoch, index). UserError, with the file, if image or label map is missing or damaged."""
        epoch, index = key
        row = index - self.first
        file = ImageFile(self.path(key), self.decoder, self.max_megapixels)
        crop = self.transform(file, epoch, index)
        label_map = None if self.label_store is None else self.label_store.read(row)
        label = int(self.images.labels[row])
        return Sample(crop.image, label, crop.box, label_map, crop.augmentation, index, crop.encoded)

    def on_cpu(self) -> "ImageDataset":
        """Return the same samples, none of them encoded."""
        return replace(self, decoder=resolve_decoder("auto"))


class Samples(Sequence[Any]):
    """The samples of some keys, each read when it is asked for. The kernel starts to read all their files at once."""

    def __init__(self, dataset: Any, keys: Sequence[Key]) -> None:
        """Take a data set that also has `path(key)`."""
        self._dataset, self._keys = dataset, keys
        for key in keys if hasattr(os, "posix_fadvise") else ():  # macOS has none
            with suppress(OSError):  # reported when the sample is read
                _read_ahead(dataset.path(key))

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self._keys)

    def __getitem__(self, position: Any) -> Any:
        """Read the sample of the key at a position."""
        return self._dataset[self._keys[position]]


def _read_ahead(path: ImagePath) -> None:
    if isinstance(path, TarMember):
        path.read_ahead()
        return
    file = os.open(str(path), os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe would block
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(file)
