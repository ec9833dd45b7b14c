"""Samples of a list of images: every random choice depends only on (seed, epoch, image index)."""

import math
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from relabel.augment import Augmentation, draw_augmentation
from relabel.crop_box import WHOLE_IMAGE, CropBox, random_crop_box
from relabel.data.decode import MOST_MEGAPIXELS, ImageFile
from relabel.data.images import ImageList, ImagePath
from relabel.data.tar_files import TarMember
from relabel.label_map import LabelMap
from relabel.stores.store import LabelStore
from utils.random import SAMPLE, keyed_rng

Key = tuple[int, int]  # epoch, image index


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One image as used in training or evaluation.

    Fields:
        image: uint8 [3, S, S]; RGB, not yet augmented; a view of [S, S, 3].
        label: index of its class folder, 0..K-1; -1 for an extra image (relabel/data/extra_images.py).
        box: the region of the stored image that `image` shows, before any flip.
        label_map: of the whole stored image; None without label maps.
        augmentation: what is still to be applied; None in evaluation.
        index: image index in the data set.
    """

    image: np.ndarray
    label: int
    box: CropBox
    label_map: LabelMap | None
    augmentation: Augmentation | None
    index: int


@dataclass(frozen=True, slots=True, eq=False)
class Crop:
    """Result of a transform: image uint8 [3, S, S], its box in the stored image, augmentation still to be applied."""

    image: np.ndarray
    box: CropBox
    augmentation: Augmentation | None = None


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
    """

    size: int
    min_area: float
    flip_prob: float
    color_jitter: float
    lighting: float
    seed: int
    interpolation: str = "bilinear"

    def __call__(self, file: ImageFile, epoch: int, index: int) -> Crop:
        """Draw the box, then the augmentation."""
        rng = keyed_rng(self.seed, SAMPLE, epoch, index)
        box = random_crop_box(rng, file.width, file.height, self.min_area)
        augmentation = draw_augmentation(rng, self.flip_prob, self.color_jitter, self.lighting)
        # The first epoch decodes whole files: all damage is found early, not in the epoch whose crop first reaches it.
        image = file.resized_crop(box, self.size, self.size, self.interpolation, whole=epoch == 0)
        return Crop(image, box, augmentation)


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
        """Return the central crop; epoch and index are ignored."""
        if self.squash and self.crop_ratio:
            side = math.ceil(self.size / self.crop_ratio)
            start = round((side - self.size) / 2)  # as in torchvision and timm
            end = start + self.size
            whole = file.resized_crop(WHOLE_IMAGE, side, side, self.interpolation).transpose(1, 2, 0)
            image = whole[start:end, start:end].copy().transpose(2, 0, 1)
            return Crop(image, CropBox.from_pixels(start, start, end, end, side, side))
        image = file.centre_crop(self.size, self.crop_ratio, self.interpolation)
        return Crop(image, file.centre_box(self.size, self.crop_ratio))


@dataclass(frozen=True, slots=True, eq=False)
class ImageDataset:
    """Images, their transform and their label maps: `dataset[(epoch, index)]` is a Sample.

    Cheap to pickle; files are opened when a sample is read.

    Fields:
        images: the list of images.
        transform: RandomResizedCrop or CenterCrop.
        label_store: row i is the map of image i (opened with `images.keys()`); None without label maps.
        decoder: one of relabel.data.decode.DECODERS.
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
        return Sample(crop.image, int(self.images.labels[row]), crop.box, label_map, crop.augmentation, index)


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
