"""The list of a data set's images: names, class folders and label-map keys, and the list of those to train on."""

import os
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.files import is_file, replacing

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff")
NAMES_AT_ONCE = 65_536
EXPECTED_LAYOUT = f"expected ROOT/CLASS/IMAGE with images ending in {' '.join(EXTENSIONS)}"
COMMENT, HERE = "#", "./"
LONGEST_NAME = 4096  # bytes, of any path


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
                f"the first: {unknown[0]}; expected those {len(class_names)} classes or some of them."
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
        raise UserError(f"{root}: found no class folder; {EXPECTED_LAYOUT}.")
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
        raise UserError(f"{folder}: cannot be listed ({error.strerror}); {EXPECTED_LAYOUT}.") from error


def keep_listed(images: ImageList, path: str | Path) -> ImageList:
    """The images that a file names, in the order of `images`; the classes stay all the same.

    Args:
        images: of the training folder.
        path: of the file; lines that are empty or begin with # are passed over.

    Raises:
        UserError: the file cannot be read, is empty, or names an image that is not there, or one twice.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().removeprefix(BOM_UTF8).splitlines()
    except OSError as error:
        raise UserError(
            f"the list of images to train on, {path}, cannot be read ({error.strerror}); expected a text file with one "
            "CLASS/FILE a line. Correct --data.keep_list, or leave it out to train on all images."
        ) from error
    found = [line for line in lines if line.strip() and not line.startswith(COMMENT.encode())]
    if any(len(line) > LONGEST_NAME for line in found):
        raise UserError(f"{path}: found a line of over {LONGEST_NAME:,} bytes; expected one CLASS/FILE a line.")
    names = np.array([line.removeprefix(HERE.encode()) for line in found], np.bytes_)
    kept = np.isin(images.names, names)
    if len(names) == 0 or kept.sum() != len(names):
        raise UserError(f"{path}: {_what_is_wrong(names, images)} Correct the file, or --data.keep_list.")
    return replace(images, names=images.names[kept], labels=images.labels[kept])


def write_keep_list(path: Path, names: Iterable[str], remark: str) -> None:
    """Write such a file, whole or not at all.

    Args:
        path: of the file.
        names: CLASS/FILE of each image.
        remark: its first lines; say where the list comes from.

    Raises:
        UserError: it cannot be written.
    """
    names = list(names)
    broken = [name for name in names if "\n" in name or "\r" in name]
    if broken:
        raise UserError(f"found the name {broken[0]!r}, which a file of one name a line cannot hold. Rename the image.")
    # A name that begins as a remark does is written as a path from here, which means the same.
    lines = [f"{COMMENT} {line}" for line in remark.splitlines()]
    lines += [HERE + name if name.startswith((COMMENT, HERE)) else name for name in names]
    with replacing(path) as temporary:
        temporary.write_bytes(b"".join(os.fsencode(line) + b"\n" for line in lines))


def _what_is_wrong(names: np.ndarray, images: ImageList) -> str:
    if len(names) == 0:
        return f"found no name in it; expected some of the {len(images):,} images in {images.root}, one a line."
    strange = names[~np.isin(names, images.names)]
    if len(strange):
        return (
            f"found {len(strange):,} of {len(names):,} names that are no image in {images.root}, the first: "
            f"{os.fsdecode(strange[0])!r}; expected names such as {images.name(0)!r}."
        )
    unique, counts = np.unique(names, return_counts=True)
    return f"found {os.fsdecode(unique[counts > 1][0])!r} twice; expected each image once."
