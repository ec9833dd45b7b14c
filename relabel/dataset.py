"""A folder of classes as a data set: image and index -> Sample, every random choice from (seed, epoch, index) alone."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from relabel.augment import Augmentation, draw_augmentation
from relabel.crop_box import CropBox, random_crop_box
from relabel.decode import ImageFile
from relabel.label_map import LabelMap
from relabel.label_store import LabelStore
from utils.errors import UserError
from utils.folders import is_file

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff")
NAMES_AT_ONCE = 65_536
EXPECTED_LAYOUT = f"expected ROOT/CLASS/IMAGE with images ending in {' '.join(EXTENSIONS)}"

Key = tuple[int, int]  # epoch, index of the image

# What a stream of random numbers is for; two purposes never share a stream.
SAMPLE, ORDER, STEP, EXTRA_ORDER = range(4)


def keyed_rng(seed: int, purpose: int, first: int, second: int = 0) -> np.random.Generator:
    """The generator that belongs to these numbers and to nothing else: no state to keep, no order to respect.

    Philox is a cipher: seed and purpose are its key, (first, second) the upper half of its counter, so streams of
    different arguments never overlap.

    Args:
        seed: 0..2^64 - 1.
        purpose: SAMPLE (of an epoch and an image), ORDER (of an epoch), STEP (of a step and a rank), EXTRA_ORDER (of a
            pass over the extra images).
        first, second: 0..2^64 - 1.
    """
    key = np.array((seed, purpose), dtype=np.uint64)
    counter = np.array((0, 0, first, second), dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


@dataclass(frozen=True, slots=True, eq=False)
class ImageList:
    """The images of a data set, in arrays: a million tuples would be copied into each worker one by one.

    Fields:
        root: folder of the class folders.
        class_names: K texts; the class folders, sorted as text.
        names: bytes [N]; "CLASS/FILE", sorted by class, then by file. A quarter of the room that texts take.
        labels: int32 [N]; position of the image's class in class_names.

    A flat folder (`list_flat_images`) has no classes: names are "FILE", class_names is empty, labels are -1.
    """

    root: Path
    class_names: list[str]
    names: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        """N."""
        return len(self.names)

    def name(self, index: int) -> str:
        """CLASS/FILE of an image."""
        return os.fsdecode(self.names[index])

    def path(self, index: int) -> Path:
        """The file of an image."""
        return self.root / self.name(index)

    def keys(self) -> np.ndarray:
        """bytes [N]; "CLASS/STEM", the keys of the label maps. The stem is everything before the last dot.

        Raises:
            UserError: two images have one key, and so would share a label map.
        """
        keys = np.concatenate([_without_extension(part) for part in _parts(self.names)])
        if (keys[1:] > keys[:-1]).all():
            return keys
        order = np.argsort(keys, kind="stable")
        twice = np.flatnonzero(keys[order[1:]] == keys[order[:-1]])
        if len(twice):
            first, second = order[twice[0]], order[twice[0] + 1]
            raise UserError(
                f"{self.path(first)} and {self.path(second)} differ in the extension only; expected one "
                "image per class folder and stem, because a label map is named after them. Rename one of them."
            )
        return keys

    def with_classes_of(self, class_names: Sequence[str], whose: str) -> "ImageList":
        """The same images with labels that point into another list of class names, which may name more classes.

        Args:
            class_names: K texts, as of the training folders or a checkpoint.
            whose: where class_names come from, for the message.

        Raises:
            UserError: a class folder that class_names lack.
        """
        unknown = sorted({*self.class_names} - {*class_names})
        if unknown:
            raise UserError(
                f"{self.root}: found {len(unknown)} of {len(self.class_names)} class folders that {whose} do not have, "
                f"the first: {unknown[0]}; expected those {len(class_names)} classes or some of them. "
                "Check --data.data_path."
            )
        position = {name: i for i, name in enumerate(class_names)}
        rows = np.array([position[name] for name in self.class_names], dtype=np.int32)
        return replace(self, class_names=list(class_names), labels=rows[self.labels])


def list_images(root: str | Path) -> ImageList:
    """List ROOT/CLASS/IMAGE. Hidden files and folders, and files of other extensions, are passed over.

    Raises:
        UserError: no such folder, no class folder, a class folder without an image.
    """
    root = Path(root)
    with _listing(root):
        class_names = sorted(entry.name for entry in _visible(root) if entry.is_dir())
    if not class_names:
        raise UserError(f"{root}: found no class folder; {EXPECTED_LAYOUT}. Point --data.data_path to such data.")
    files = [_image_names(root / name) for name in class_names]
    empty = [name for name, found in zip(class_names, files, strict=True) if not found]
    if empty:
        raise UserError(
            f"{root / empty[0]}: found no image in this class folder (so in {len(empty)} of {len(class_names)}); "
            f"{EXPECTED_LAYOUT}. Remove the empty folders or put their images back."
        )
    names = [f"{name}/{file}" for name, found in zip(class_names, files, strict=True) for file in found]
    labels = np.repeat(np.arange(len(class_names)), [len(found) for found in files])
    return ImageList(root, class_names, _as_bytes(names), labels.astype(np.int32))


def list_flat_images(root: str | Path) -> ImageList:
    """List ROOT/IMAGE: images without class folders, as others than training can use them.

    Raises:
        UserError: no such folder, or no image in it.
    """
    root = Path(root)
    names = _image_names(root)
    if not names:
        raise UserError(
            f"{root}: found neither class folders nor images; {EXPECTED_LAYOUT}, or ROOT/IMAGE. Name another folder."
        )
    return ImageList(root, [], _as_bytes(names), np.full(len(names), -1, dtype=np.int32))


def list_any_images(root: str | Path) -> ImageList:
    """List ROOT/CLASS/IMAGE, or ROOT/IMAGE where there is no folder in ROOT. UserError as in either, or for both."""
    root = Path(root)
    with _listing(root):
        folders = [entry.name for entry in _visible(root) if entry.is_dir()]
    loose = _image_names(root)
    if folders and loose:
        raise UserError(
            f"{root}: found {len(loose):,} images ({loose[0]}) beside {len(folders):,} folders ({folders[0]}); "
            "expected images in class folders, or images alone. Move one or the other away."
        )
    return list_images(root) if folders else list_flat_images(root)


def _as_bytes(names: Sequence[str]) -> np.ndarray:
    """Texts as bytes [N], as the file system has them."""
    return np.array([os.fsencode(name) for name in names], dtype=np.bytes_)


def _parts(names: np.ndarray) -> Iterator[np.ndarray]:
    """An array in pieces that are small as Python objects."""
    return (names[start : start + NAMES_AT_ONCE] for start in range(0, len(names), NAMES_AT_ONCE))


def _without_extension(names: np.ndarray) -> np.ndarray:
    """bytes [n]; each name up to its last dot."""
    return np.array([name.rpartition(b".")[0] for name in names.tolist()], dtype=np.bytes_)


def _image_names(folder: Path) -> list[str]:
    """Sorted names of the images in a class folder."""
    with _listing(folder):
        return sorted(e.name for e in _visible(folder) if e.name.lower().endswith(EXTENSIONS) and is_file(e))


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    """Entries whose name does not begin with a dot."""
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


@contextmanager
def _listing(folder: Path) -> Iterator[None]:
    """Turn a folder that cannot be listed into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be listed ({error.strerror}); {EXPECTED_LAYOUT}. "
            "Point --data.data_path to the folder that holds train/ and val/."
        ) from error


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One image as training or testing sees it.

    Fields:
        image: uint8 [3, S, S]; RGB, not yet augmented; a view of [S, S, 3].
        label: its class folder, 0..K-1; -1 of an extra image (relabel/extra_images.py).
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


class View(Protocol):
    """How an image is looked at, in training or in a test."""

    def look(self, file: ImageFile, epoch: int, index: int) -> Crop:
        """The crop of the index-th image in that epoch."""
        ...


@dataclass(frozen=True, slots=True)
class RandomView:
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

    def look(self, file: ImageFile, epoch: int, index: int) -> Crop:
        """Draw the box, then the augmentation, from (seed, epoch, index) alone."""
        rng = keyed_rng(self.seed, SAMPLE, epoch, index)
        box = random_crop_box(rng, file.width, file.height, self.min_area)
        augmentation = draw_augmentation(rng, self.flip_prob, self.color_jitter, self.lighting)
        # In the first epoch, damage anywhere in the file shows; not in whichever later one a crop comes to reach it.
        return Crop(file.resized_crop(box, self.size, self.size, whole=epoch == 0), box, augmentation)


@dataclass(frozen=True, slots=True)
class CentreView:
    """Testing: the central crop, the same in every epoch.

    Fields:
        size: S, side of the crop, pixels.
        crop_ratio: shorter side to ceil(size / crop_ratio) first; None squashes the whole image.
    """

    size: int
    crop_ratio: float | None

    def look(self, file: ImageFile, epoch: int, index: int) -> Crop:
        """The central crop; epoch and index do not matter."""
        image = file.centre_crop(self.size, self.crop_ratio)
        return Crop(image, file.centre_box(self.size, self.crop_ratio), None)


class ImageDataset:
    """Images, how to look at them, and their label maps: `dataset[(epoch, index)]` is a Sample.

    Cheap to pickle; files are opened when a sample is asked for.
    """

    def __init__(
        self, images: ImageList, view: View, label_store: LabelStore | None = None, decoder: str = "pillow"
    ) -> None:
        """Keep the parts together.

        Args:
            images: what there is.
            view: RandomView or CentreView.
            label_store: row i is the map of the i-th image (opened with `images.keys()`); None: no label maps.
            decoder: one of relabel.decode.DECODERS.
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
        crop = self.view.look(ImageFile(self.images.path(index), self.decoder), epoch, index)
        label_map = None if self.label_store is None else self.label_store.read(index)
        return Sample(crop.image, int(self.images.labels[index]), crop.box, label_map, crop.augmentation, index)
