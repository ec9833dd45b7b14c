"""What scenes are put together from: the embedded handwritten digits, or any folder of labelled small pictures."""

import hashlib
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from relabel.data.decode import ImageFile
from relabel.data.images import ImageList, list_images
from utils.errors import UserError

SPLITS = ("train", "val")
TRAIN_DIGITS = 1300  # of 1,797 digit images; the other 497 make the validation scenes


class SmallPictures(Protocol):
    """Labelled pictures, some for training scenes and others for validation scenes.

    Attributes:
        class_names: K texts; the names of the scenes' class folders, sorted.
        source: what the pictures are, as plain text; of files by their names and sizes.
        scale: sides of scenes and pictures, in multiples of those of the digit scenes.
    """

    class_names: list[str]
    source: str
    scale: int

    def labels(self, split: str) -> np.ndarray:
        """int64 [n]; the class of each picture of a split."""
        ...

    def put(self, patch: np.ndarray, split: str, index: int, rng: np.random.Generator) -> None:
        """Draw a picture over all of float64 [side, side, 3] in 0..1, in place."""
        ...


class Digits:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, as ink of a random light colour."""

    def __init__(self) -> None:
        """Read when the first is drawn."""
        self.class_names = [f"digit_{digit}" for digit in range(10)]
        self.source = "the handwritten digits of scikit-learn"
        self.scale = 1

    def labels(self, split: str) -> np.ndarray:
        """See SmallPictures."""
        return digit_images(split)[1]

    def put(self, patch: np.ndarray, split: str, index: int, rng: np.random.Generator) -> None:
        """Blend the digit into what is there, in a colour uniform in [0.5, 1]."""
        side = len(patch)
        ink = Image.fromarray(digit_images(split)[0][index]).resize((side, side), Image.Resampling.BILINEAR)
        opacity = np.asarray(ink)[:, :, None] / 255
        patch += opacity * (rng.uniform(0.5, 1, 3) - patch)


class PictureFolder:
    """The pictures in ROOT/train/CLASS/IMAGE and ROOT/val/CLASS/IMAGE, their central square, opaque."""

    def __init__(self, root: Path) -> None:
        """List them.

        Args:
            root: of the folders.

        Raises:
            UserError: a folder is missing or empty, or the two have different classes.
        """
        self._images = {split: list_images(root / split) for split in SPLITS}
        self.class_names = self._images["train"].class_names
        if self._images["val"].class_names != self.class_names:
            different = sorted({*self.class_names} ^ {*self._images["val"].class_names})
            raise UserError(
                f"{root}: train/ and val/ have different class folders, the first: {different[0]}; expected the same "
                "in both. Add what is missing, or remove it."
            )
        self.source = f"pictures, sha256 of their names and sizes {_fingerprint(list(self._images.values()))}"
        self.scale = 2

    def labels(self, split: str) -> np.ndarray:
        """See SmallPictures."""
        return self._images[split].labels.astype(np.int64)

    def put(self, patch: np.ndarray, split: str, index: int, rng: np.random.Generator) -> None:
        """See SmallPictures; nothing is drawn from rng. UserError: the picture cannot be read."""
        square = ImageFile(self._images[split].path(index)).centre_crop(len(patch), 1.0)
        patch[:] = square.transpose(1, 2, 0) / 255


def _fingerprint(lists: list[ImageList]) -> str:
    """Hash of the name and the size in bytes of every image."""
    found = hashlib.sha256()
    for images in lists:
        for row in range(len(images)):
            found.update(images.names[row] + b" %d\n" % images.path(row).stat().st_size)
    return found.hexdigest()


@cache
def digit_images(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The digit images (uint8 [n, 8, 8], 255 = ink) and labels (int64 [n]) that a split may use."""
    from sklearn.datasets import load_digits  # costs a second; only those who draw digit scenes pay it

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    mine = order[:TRAIN_DIGITS] if split == "train" else order[TRAIN_DIGITS:]
    return (data.images[mine] * (255 / 16)).round().astype(np.uint8), data.target[mine].astype(np.int64)
