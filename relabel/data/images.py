"""The list of a data set's images: names, class folders and label-map keys; and lists of the images to train on."""

import os
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.files import is_file, replacing

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff")
EXPECTED_LAYOUT = f"expected ROOT/CLASS/IMAGE with images ending in {' '.join(EXTENSIONS)}"
COMMENT, HERE = "#", "./"


@dataclass(frozen=True, slots=True, eq=False)
class ImageList:
    """The images of a data set, as arrays: a million strings would be copied into each worker one by one.

    Fields:
        root: folder of the class folders.
        class_names: K texts; the class folders, sorted as text.
        names: bytes [N]; "CLASS/FILE", sorted by class, then by file.
        labels: int32 [N]; the class of each image, an index into class_names.

    In a flat folder, without class folders, names are "FILE", class_names is empty and labels are -1.
    """

    root: Path
    class_names: list[str]
    names: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        """Return N, the number of images."""
        return len(self.names)

    def name(self, index: int) -> str:
        """Return CLASS/FILE of an image."""
        return os.fsdecode(self.names[index])

    def path(self, index: int) -> Path:
        """Return the path of an image file."""
        return self.root / self.name(index)

    def keys(self) -> np.ndarray:
        """Return the keys of the label maps, bytes [N]: "CLASS/STEM"; the stem is the name up to the last dot.

        Raises:
            UserError: two images have the same key, so they would share a label map.
        """
        stems = (name.rpartition(b".")[0] for name in self.names)
        keys = np.fromiter(stems, self.names.dtype, len(self))
        keys = keys.astype(f"S{max(1, np.char.str_len(keys).max(initial=1))}")
        order = np.argsort(keys, kind="stable")  # takes a third of the time of np.unique
        twice = np.flatnonzero(keys[order[1:]] == keys[order[:-1]])
        if len(twice):
            first, second = order[twice[0]], order[twice[0] + 1]
            raise UserError(
                f"{self.path(first)} and {self.path(second)} differ only in the extension; expected one "
                "image per class folder and stem, because a label map is named after them. Rename one of them."
            )
        return keys

    def with_classes_of(self, class_names: Sequence[str], owner: str) -> "ImageList":
        """Return the same images with labels that refer to another list of class names, which may be longer.

        Args:
            class_names: K texts, as of the training folders or a checkpoint.
            owner: what has these classes, for the message.

        Raises:
            UserError: class_names lack a class folder.
        """
        unknown = sorted({*self.class_names} - {*class_names})
        if unknown:
            found = f"{len(unknown)} of {len(self.class_names)} class folders that {owner} do not have"
            if len(unknown) == len(self.class_names):
                found = f"none of the {len(class_names)} classes that {owner} have ({class_names[0]}, ...), but others"
            raise UserError(
                f"{self.root}: found {found}, the first: {unknown[0]}; expected those {len(class_names)} classes or "
                "some of them."
            )
        position = {name: i for i, name in enumerate(class_names)}
        new_labels = np.array([position[name] for name in self.class_names], dtype=np.int32)
        return replace(self, class_names=list(class_names), labels=new_labels[self.labels])


def list_images(root: str | Path) -> ImageList:
    """List ROOT/CLASS/IMAGE, ignoring hidden files and folders and files with other extensions.

    Raises:
        UserError: no such folder, no class folder, or a class folder without an image.
    """
    root = Path(root)
    class_names = folder_names(root)
    if not class_names:
        raise UserError(f"{root}: found no class folder; {EXPECTED_LAYOUT}.")
    files = [_image_names(root / name) for name in class_names]
    empty = [name for name, found in zip(class_names, files, strict=True) if not found]
    if empty:
        advice = "Remove the empty folders or put their images back."
        if nested := [name for name in empty if folder_names(root / name)]:
            advice = f"These contain folders: did you mean {root / ('train' if 'train' in nested else nested[0])}?"
        raise UserError(
            f"{root}: found no image in {len(empty)} of {len(class_names)} class folders ({', '.join(empty[:3])}); "
            f"{EXPECTED_LAYOUT}. {advice}"
        )
    names = [f"{name}/{file}" for name, found in zip(class_names, files, strict=True) for file in found]
    labels = np.repeat(np.arange(len(class_names), dtype=np.int32), [len(found) for found in files])
    return ImageList(root, class_names, _as_bytes(names), labels)


def list_any_images(root: str | Path) -> ImageList:
    """List ROOT/CLASS/IMAGE, or ROOT/IMAGE if ROOT has no folders.

    Raises:
        UserError: as `list_images`; or there are no images, or images beside folders.
    """
    root = Path(root)
    folders, loose = folder_names(root), _image_names(root)
    if folders and loose:
        raise UserError(
            f"{root}: found images, such as {loose[0]}, beside folders, such as {folders[0]}; "
            "expected images in class folders, or images alone. Move one or the other away."
        )
    if folders:
        return list_images(root)
    if not loose:
        raise UserError(
            f"{root}: found neither class folders nor images; {EXPECTED_LAYOUT}, or ROOT/IMAGE. Give another folder."
        )
    return ImageList(root, [], _as_bytes(loose), np.full(len(loose), -1, dtype=np.int32))


def _as_bytes(names: Sequence[str]) -> np.ndarray:
    """Return names as bytes [N], as they are in the file system."""
    return np.array([os.fsencode(name) for name in names], dtype=np.bytes_)


def folder_names(root: Path) -> list[str]:
    """Return the sorted names of the visible folders. UserError if `root` cannot be listed."""
    return _visible(root, os.DirEntry.is_dir)


def _image_names(folder: Path) -> list[str]:
    """Return the sorted names of the visible image files."""
    return _visible(folder, lambda entry: entry.name.lower().endswith(EXTENSIONS) and is_file(entry))


def _visible(folder: Path, is_wanted: Callable[[os.DirEntry[str]], bool]) -> list[str]:
    """Return the sorted names of the wanted entries of a folder that are not hidden."""
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if not e.name.startswith(".") and is_wanted(e))
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror}); {EXPECTED_LAYOUT}.") from error


def keep_listed(images: ImageList, path: str | Path) -> ImageList:
    """Return the images listed in a file, in the order of `images` and with the same classes.

    Args:
        images: of the training folder.
        path: of the file, one CLASS/FILE per line; empty lines and lines that begin with # are ignored.

    Raises:
        UserError: the file cannot be read, or lists no image, an unknown one, or one twice.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().removeprefix(BOM_UTF8).splitlines()
    except OSError as error:
        raise UserError(
            f"the list of images to train on, {path}, cannot be read ({error.strerror}); expected a text file with one "
            "CLASS/FILE per line. Correct --data.keep_list, or leave it out to train on all images."
        ) from error
    written = [line for line in lines if line.strip() and not line.startswith(COMMENT.encode())]
    names = Counter(line.removeprefix(HERE.encode()) for line in written)
    available = set(images.names.tolist())
    unknown = [os.fsdecode(name) for name in names if name not in available]
    repeated = [os.fsdecode(name) for name, count in names.items() if count > 1]
    if unknown or repeated or not names:
        wrong = "no names"
        if unknown:
            wrong = f"names that are not images in {images.root}: {len(unknown):,}, the first {unknown[0][:99]!r}"
        elif repeated:
            wrong = f"{repeated[0]!r} twice"
        raise UserError(
            f"{path}: found {wrong}; expected names such as {images.name(0)!r}, one per line, each once.\n"
            "  Correct the file, or --data.keep_list."
        )
    kept = np.array([name in names for name in images.names.tolist()])
    return replace(images, names=images.names[kept], labels=images.labels[kept])


def write_keep_list(path: Path, names: Iterable[str], comment: str) -> None:
    """Write a list for `keep_listed` atomically.

    Args:
        path: of the file.
        names: CLASS/FILE of each image.
        comment: its first lines.

    Raises:
        UserError: it cannot be written.
    """
    lines = [f"{COMMENT} {line}" for line in comment.splitlines()]
    # A name that looks like a comment is written as a relative path, which means the same.
    lines += [HERE + name if name.startswith((COMMENT, HERE)) else name for name in names]
    with replacing(path) as temporary:
        temporary.write_bytes(b"".join(os.fsencode(line) + b"\n" for line in lines))
