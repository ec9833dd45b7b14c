"""A folder of classes as a data set: image and index -> Sample, every random choice from (seed, epoch, index) alone."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from relabel.augment import Augmentation, draw_augmentation
from relabel.crop_box import CropBox, random_crop_box
from relabel.data.decode import ImageFile
from relabel.data.images import ImageList
from relabel.label_map import LabelMap
from relabel.stores.store import LabelStore
from utils.random import SAMPLE, keyed_rng

Key = tuple[int, int]  # epoch, index of the image


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One image as training or testing sees it.

    Fields:
        image: uint8 [3, S, S]; RGB, not yet augmented; a view of [S, S, 3].
        label: its class folder, 0..K-1; -1 of an extra image (relabel/data/extra_images.py).
        box: where the image lies in the file, before any flip.
        label_map: of the whole file; None without label maps.
        augmentation: what is still to be applied; None in a test.
        index: position in the data set.
    """

    image: np.ndarray
    label: int
    box: CropBox
    label_map: LabelMap | None
    augmentation: Augmentation | None
    index: int


@dataclass(frozen=True, slots=True, eq=False)
class Crop:
    """What a view takes from a file: image uint8 [3, S, S], the box it lies in, the augmentation still to apply."""

    image: np.ndarray
    box: CropBox
    augmentation: Augmentation | None


class Transform(Protocol):
    """How an image is looked at, in training or in a test."""

    def __call__(self, file: ImageFile, epoch: int, index: int) -> Crop:
        """The crop of the index-th image in that epoch."""
        ...


@dataclass(frozen=True, slots=True)
class RandomResizedCrop:
    """Training: a random resized crop, and what to augment it with.

    Fields:
        size: S, side of the crop, pixels.
        min_area: smallest area of the crop, fraction of the image.
        flip_prob, color_jitter, lighting: as in `draw_augmentation`.
        seed: of every draw, together with epoch and index.
    """

    size: int
    min_area: float
    flip_prob: float
    color_jitter: float
    lighting: float
    seed: int

    def __call__(self, file: ImageFile, epoch: int, index: int) -> Crop:
        """Draw the box, then the augmentation, from (seed, epoch, index) alone."""
        rng = keyed_rng(self.seed, SAMPLE, epoch, index)
        box = random_crop_box(rng, file.width, file.height, self.min_area)
        augmentation = draw_augmentation(rng, self.flip_prob, self.color_jitter, self.lighting)
        # In the first epoch, damage anywhere in the file shows; not in whichever later one a crop comes to reach it.
        return Crop(file.resized_crop(box, self.size, self.size, whole=epoch == 0), box, augmentation)


@dataclass(frozen=True, slots=True)
class CenterCrop:
    """Testing: the central crop, the same in every epoch.

    Fields:
        size: S, side of the crop, pixels.
        crop_ratio: shorter side to ceil(size / crop_ratio) first; None squashes the whole image.
    """

    size: int
    crop_ratio: float | None

    def __call__(self, file: ImageFile, epoch: int, index: int) -> Crop:
        """The central crop; epoch and index do not matter."""
        image = file.centre_crop(self.size, self.crop_ratio)
        return Crop(image, file.centre_box(self.size, self.crop_ratio), None)


class ImageDataset:
    """Images, how to look at them, and their label maps: `dataset[(epoch, index)]` is a Sample.

    Cheap to pickle; files are opened when a sample is asked for.
    """

    def __init__(
        self, images: ImageList, view: Transform, label_store: LabelStore | None = None, decoder: str = "pillow"
    ) -> None:
        """Keep the parts together.

        Args:
            images: what there is.
            view: RandomResizedCrop or CenterCrop.
            label_store: row i is the map of the i-th image (opened with `images.keys()`); None: no label maps.
            decoder: one of relabel.data.decode.DECODERS.
        """
        self.images = images
        self.view = view
        self.label_store = label_store
        self.decoder = decoder

    def __len__(self) -> int:
        """N."""
        return len(self.images)

    def __getitem__(self, key: Key) -> Sample:
        """The sample of (epoch, index). UserError naming the file: image or label map missing or damaged."""
        epoch, index = key
        crop = self.view(ImageFile(self.images.path(index), self.decoder), epoch, index)
        label_map = None if self.label_store is None else self.label_store.read(index)
        return Sample(crop.image, int(self.images.labels[index]), crop.box, label_map, crop.augmentation, index)
