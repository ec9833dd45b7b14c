"""The small images that scenes are made of: scikit-learn's handwritten digits, or any folder of labelled images."""

import hashlib
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from relabel.data.decode import ImageFile
from relabel.data.folders import list_images
from utils.errors import UserError

SPLITS = ("train", "val")
TRAIN_DIGITS = 1300  # of 1,797 digit images; the other 497 are for validation scenes


class DigitImages:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, drawn as ink of a random light colour.

    Attributes:
        class_names: K texts, sorted; the names of the scenes' class folders.
        source: description of the images, recorded with the scenes.
        scale: sides of scenes and images, as a multiple of those of the digit scenes.
    """

    class_names = tuple(f"digit_{digit}" for digit in range(10))
    source = "the handwritten digits of scikit-learn"
    scale = 1

    def labels(self, split: str) -> np.ndarray:
        """Return the class of each image of a split, int64 [n]."""
        return digit_images(split)[1]

    def draw(self, patch: np.ndarray, split: str, index: int, rng: np.random.Generator) -> None:
        """Blend an image into float64 [side, side, 3] in 0..1, in place, in a colour drawn from [0.5, 1]."""
        side = len(patch)
        ink = Image.fromarray(digit_images(split)[0][index]).resize((side, side), Image.Resampling.BILINEAR)
        opacity = np.asarray(ink)[:, :, None] / 255
        patch += opacity * (rng.uniform(0.5, 1, 3) - patch)


class FolderImages:
    """The images in ROOT/train/CLASS/IMAGE and ROOT/val/CLASS/IMAGE: their central square, opaque.

    Attributes:
        class_names, source, scale: as in `DigitImages`; the source identifies files by their names and sizes.
    """

    scale = 2

    def __init__(self, root: Path) -> None:
        """List the images.

        Raises:
            UserError: a folder is missing or empty, or the two have different classes.
        """
        self._images = {split: list_images(root / split) for split in SPLITS}
        self.class_names, val_names = (self._images[split].class_names for split in SPLITS)
        if val_names != self.class_names:
            raise UserError(
                f"{root}: train/ and val/ have different class folders, the first: "
                f"{min({*self.class_names} ^ {*val_names})}; expected the same in both. Add or remove folders."
            )
        content = hashlib.sha256()
        for images in self._images.values():
            for index in range(len(images)):
                content.update(images.names[index] + b" %d\n" % len(images.path(index).read_bytes()))
        self.source = f"pictures, sha256 of their names and sizes {content.hexdigest()}"

    def labels(self, split: str) -> np.ndarray:
        """Return the class of each image of a split, int64 [n]."""
        return self._images[split].labels.astype(np.int64)

    def draw(self, patch: np.ndarray, split: str, index: int, rng: np.random.Generator) -> None:
        """Draw an image over float64 [side, side, 3], in place; rng is not used. UserError if it is unreadable."""
        square = ImageFile(self._images[split].path(index)).centre_crop(len(patch), 1.0)
        patch[:] = square.transpose(1, 2, 0) / 255


SmallImages = DigitImages | FolderImages


@cache
def digit_images(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the digit images (uint8 [n, 8, 8], 255 = ink) and labels (int64 [n]) of a split."""
    from sklearn.datasets import load_digits  # takes a second, which only the digit scenes should cost

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    chosen = order[:TRAIN_DIGITS] if split == "train" else order[TRAIN_DIGITS:]
    return (data.images[chosen] * (255 / 16)).round().astype(np.uint8), data.target[chosen].astype(np.int64)
