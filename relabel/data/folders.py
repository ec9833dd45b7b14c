"""Images as files: in class folders, with folders inside them or not, or in one flat folder without labels."""

import os
from pathlib import Path

import numpy as np

from relabel.data.images import Census, FolderFiles, Found, ImageList, as_bytes, image_list
from utils.errors import UserError
from utils.files import is_file

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".bmp", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff", ".jp2"),
)
SPLIT_FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation")}
EXPECTED_LAYOUT = f"expected ROOT/CLASS/IMAGE with images ending in {' '.join(EXTENSIONS)}"
_ARCHIVE_LEFTOVERS = "__MACOSX"


def is_image(name: str) -> bool:
    """Whether a file name ends like that of an image."""
    return name.lower().endswith(EXTENSIONS)


def kind_of(name: str) -> str:
    """Return the kind of a file that is not used, for the census; '' for an image."""
    base = name.rpartition("/")[2]
    if base.startswith(".") or base == _ARCHIVE_LEFTOVERS:
        return "hidden"
    return "" if is_image(base) else Path(base).suffix.lower() or "without extension"


def folder_names(root: Path) -> list[str]:
    """Return the sorted names of the visible folders. UserError if `root` cannot be listed."""
    return [entry.name for entry in _entries(root) if entry.is_dir() and not kind_of(f"{entry.name}.jpg")]


def list_images(root: str | Path) -> ImageList:
    """List the images of ROOT/CLASS, also in folders inside a class folder.

    Raises:
        UserError: no such folder, no class folder, a class folder without an image, or two images of one name.
    """
    root = Path(root)
    class_names = folder_names(root)
    _check_level(root, class_names)
    census = Census(f"class folders in {root}")
    loose = [entry.name for entry in _entries(root) if not entry.is_dir()]
    for name in loose:
        census.pass_over("beside the class folders" if is_image(name) else kind_of(name), name)
    paths = [walk(root / name, census, f"{name}/") for name in class_names]
    empty = [name for name, found in zip(class_names, paths, strict=True) if not found]
    if empty:
        raise UserError(
            f"{root}: found no image in {len(empty)} of {len(class_names)} class folders ({', '.join(empty[:3])}); "
            f"{EXPECTED_LAYOUT}. Remove the empty folders or put their images back."
        )
    every = [path for found in paths for path in found]
    return by_class_folder(Found(root, every, FolderFiles(root, as_bytes(every)), census))


def by_class_folder(found: Found) -> ImageList:
    """Build the list of images whose class is their outermost folder; without classes if none is in a folder."""
    folders = [path.partition("/")[0] if "/" in path else "" for path in found.paths]
    class_names = sorted({*folders} - {""})
    if not class_names:
        return without_classes(found)
    position = {name: label for label, name in enumerate(class_names)} | {"": -1}
    labels = np.array([position[folder] for folder in folders], np.int32)
    for row in np.flatnonzero(labels < 0).tolist():
        found.census.pass_over("beside the class folders", found.paths[row])
    return image_list(found, class_names, labels, labels >= 0)


def without_classes(found: Found) -> ImageList:
    """Build the list of images without labels."""
    return image_list(found, [], np.full(len(found.paths), -1, np.int32))


def _check_level(root: Path, class_names: list[str]) -> None:
    """Raise UserError if `root` has no class folders, or is above or below the folder that has them."""
    if not class_names:
        raise UserError(f"{root}: found no class folder; {EXPECTED_LAYOUT}.")
    if split := split_folder(root, "train") or split_folder(root, "val"):
        raise UserError(
            f"{root}: found the folder {split.name}/, not class folders; {EXPECTED_LAYOUT}. Did you mean {split}?"
        )


def split_folder(root: Path, split: str) -> Path | None:
    """Return the folder of a split in a data folder, under one of its usual names; None if there is none."""
    return next((root / name for name in SPLIT_FOLDERS[split] if (root / name).is_dir()), None)


def find_images(folder: Path) -> Found:
    """Find all images in a folder and the folders inside it. UserError if there are none."""
    census = Census(f"files in {folder}")
    paths = walk(folder, census)
    if not paths:
        raise UserError(
            f"{folder}: found neither class folders nor images; {EXPECTED_LAYOUT}, or ROOT/IMAGE. Give another folder."
        )
    return Found(folder, paths, FolderFiles(folder, as_bytes(paths)), census)


def walk(folder: Path, census: Census, below: str = "") -> list[str]:
    """Return the paths of all images in a folder and the folders inside it; the census counts everything else."""
    found, folders = [], []
    for entry in _entries(folder):
        name = below + entry.name
        if entry.is_dir():
            if kind := kind_of(f"{entry.name}.jpg"):
                census.pass_over(f"{kind} folder", name)
            else:
                folders.append(entry.name)
        elif kind := kind_of(entry.name) or ("" if is_file(entry) else "not a file"):
            census.pass_over(kind, name)
        else:
            found.append(name)
    for name in folders:
        found += walk(folder / name, census, f"{below}{name}/")
    return found


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what is in a folder, sorted by name. UserError if it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror}); {EXPECTED_LAYOUT}.") from error
