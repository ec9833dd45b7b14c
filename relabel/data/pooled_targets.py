"""For other training loops: a random crop that returns its box, and any ImageFolder with pooled targets."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import DatasetFolder
from torchvision.transforms.functional import InterpolationMode, get_dimensions, resized_crop

from relabel.crop_box import MIN_AREA, CropBox, random_crop_box
from relabel.label_map import LabelMap
from relabel.stores.store import check_present, open_label_store
from relabel.targets import TargetMaker
from utils.errors import UserError


class RandomResizedCropWithBox:
    """torchvision's RandomResizedCrop, which also returns the box of the crop.

    Draws from torch's global generator, as torchvision does: `torch.manual_seed` repeats it, and loader workers differ.

    Args:
        size: S, side of the crop, pixels.
        min_area: smallest area of the crop, fraction of the image.
        interpolation: how the crop is resized; antialiased.
    """

    def __init__(
        self,
        size: int,
        min_area: float = MIN_AREA,
        interpolation: InterpolationMode = InterpolationMode.BILINEAR,
    ) -> None:
        self.size, self.min_area, self.interpolation = size, min_area, interpolation

    def __call__(self, image: Image.Image | Tensor) -> tuple[Any, CropBox]:
        """Crop a PIL image or a tensor [.., C, H, W].

        Returns:
            The crop, of the same type, S x S; its box as fractions of the image.
        """
        _, height, width = get_dimensions(image)
        rng = np.random.default_rng(int(torch.randint(2**63 - 1, ())))
        box = random_crop_box(rng, width, height, self.min_area)
        left, top, right, bottom = box.pixels(width, height)
        size = [self.size, self.size]
        return resized_crop(image, top, left, bottom - top, right - left, size, self.interpolation, True), box


class PooledTargets(Dataset[tuple[Any, Tensor]]):
    """The images of a torchvision ImageFolder, each as a random crop with the target pooled from its label map.

    `dataset[i]` is (transform(crop), target float32 [K]), in the class order of the folder. Cheap to pickle; a label
    map is read when its sample is.

    Attributes:
        classes: K texts, the folder's classes.
        transform: applied to each crop; may flip, recolour or erase it, but must not crop, rotate or shear it.
    """

    def __init__(
        self,
        folder: DatasetFolder,
        labels: str | Path,
        crop: RandomResizedCropWithBox,
        transform: Callable[[Any], Any] | None = None,
        **settings: Any,
    ) -> None:
        """Find the label map of every image.

        Args:
            folder: an ImageFolder without a transform of its own; its loader must ignore EXIF rotation, as the default
                loader does.
            labels: a packed store or a folder of CLASS/STEM.pt files.
            crop: draws the crop of each sample.
            transform: see Attributes.
            settings: of TargetMaker, such as fill, temperature and smoothing.

        Raises:
            UserError: images lack a label map or share one, or the maps lack a class of the folder.
        """
        if folder.transform is not None or folder.target_transform is not None:
            raise UserError(
                "the ImageFolder has a transform of its own, which would run before the crop; expected none. Give it "
                "as PooledTargets(..., transform=...), which runs after the crop."
            )
        self.classes, self.crop, self.transform = folder.classes, crop, transform
        self._folder = folder
        keys = np.array([self._key(row) for row in range(len(folder.samples))])
        if len(np.unique(keys)) < len(keys):
            names, counts = np.unique(keys, return_counts=True)
            raise UserError(
                f"several images have the key {os.fsdecode(names[counts.argmax()])!r}; expected one image for each "
                "CLASS/STEM, whatever its suffix. Rename or remove the others."
            )
        self._store = open_label_store(labels, keys, folder.classes)
        check_present(self._store, lambda row: Path(folder.samples[row][0]))
        self._make_targets = TargetMaker(len(folder.classes), **settings)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._folder.samples)

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        """Return a crop and its target. UserError, with the file, if the label map is damaged."""
        path, label = self._folder.samples[index]
        crop, box = self.crop(self._folder.loader(path))
        maps = LabelMap.stack([self._store.read(index)])
        target = self._make_targets(torch.tensor([label]), CropBox.stack([box]), *maps)[0]
        return crop if self.transform is None else self.transform(crop), target

    def _key(self, row: int) -> bytes:
        """Return "CLASS/STEM" of an image."""
        path, label = self._folder.samples[row]
        return os.fsencode(f"{self.classes[label]}/{Path(path).name.rpartition('.')[0]}")
