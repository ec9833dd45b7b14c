"""Images as files: in class folders, with folders inside them or not, or in one flat folder without labels."""

import os
import shlex
from collections.abc import Iterable
from itertools import product
from pathlib import Path

import numpy as np

from relabel.data.images import Census, FolderFiles, Found, ImageList, as_bytes, image_list, shortened
from utils.errors import UserError
from utils.files import is_file

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".bmp", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff", ".jp2"),
)
SPLIT_FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation")}
DATA_FOLDERS = ("", "CLS-LOC", "Data/CLS-LOC", "ILSVRC/Data/CLS-LOC")  # in which these may be: Kaggle's ImageNet
EXPECTED_LAYOUT = "expected ROOT/CLASS/IMAGE"
LOOSE = "loose image"
_LEFTOVERS = ("__MACOSX", "@eaDir")  # of macOS archives and of Synology disks: previews, not images


def is_image(name: str) -> bool:
    """Whether a file name ends like that of an image."""
    return name.lower().endswith(EXTENSIONS)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _LEFTOVERS


def kind_of(path: str) -> str:
    """Return the kind of a file that is not used, for the census; '' for an image."""
    if any(map(_is_hidden, path.split("/"))):
        return "hidden file"
    return "" if is_image(path) else f"{Path(path).suffix.lower() or 'extensionless'} file"


def folder_names(root: Path) -> list[str]:
    """Return the sorted names of the visible folders. UserError if `root` cannot be listed."""
    return [entry.name for entry in _entries(root) if _is_dir(entry) and not _is_hidden(entry.name)]


def list_images(root: str | Path) -> ImageList:
    """List the images of ROOT/CLASS, also in folders inside a class folder.

    Raises:
        UserError: no such folder, no class folder, a class folder without an image, or two images of one name.
    """
    root = Path(root)
    class_names = folder_names(root)
    check_level(root, class_names)
    census = Census(f"class folders in {root}")
    paths = {name: walk(root / name, census, f"{name}/") for name in class_names}
    for entry in _entries(root):
        if entry.name not in paths:
            census.pass_over(_kind(entry) or LOOSE, entry.name)
    if empty := [name for name, found in paths.items() if not found]:
        raise UserError(_without_images(root, empty, len(class_names)))
    every = [path for found in paths.values() for path in found]
    return by_class_folder(Found(root, every, FolderFiles(root, as_bytes(every)), census))


def _without_images(root: Path, empty: list[str], number: int) -> str:
    """Say what some of the class folders contain that is no image, and what to do."""
    inside = Census("")
    for name in empty:
        walk(root / name, inside, f"{name}/")
    kinds = sorted(kind for kind in inside.passed_over if kind.startswith("."))
    remedy = f"Convert the {kinds[0]}s to JPEG or PNG" if kinds else "Put their images back"
    known = how_to_read(f"{root}/{first}" for _, first in inside.passed_over.values())
    return (
        f"{root}: found no image in {len(empty)} of {number} class folders ({', '.join(empty[:3])}), only "
        f"{inside.others()}; {EXPECTED_LAYOUT} with images ending in {' '.join(EXTENSIONS)}. "
        f"{known or f'{remedy}, or remove the folders.'}"
    )


def by_class_folder(found: Found) -> ImageList:
    """Build the list of images whose class is their outermost folder; without classes if none is in a folder."""
    folders = [path.partition("/")[0] if "/" in path else "" for path in found.paths]
    class_names = sorted({*folders} - {""})
    if not class_names:
        return without_classes(found)
    position = {name: label for label, name in enumerate(class_names)} | {"": -1}
    labels = np.array([position[folder] for folder in folders], np.int32)
    for row in np.flatnonzero(labels < 0).tolist():
        found.census.pass_over(LOOSE, found.paths[row])
    nested = [path for path in found.paths if path.count("/") > 1]
    if nested:
        found.census.source += f", {len(nested):,} in folders inside a class folder ({shortened(nested[0])})"
    return image_list(found, class_names, labels, labels >= 0)


def without_classes(found: Found) -> ImageList:
    """Build the list of images without labels."""
    return image_list(found, [], np.full(len(found.paths), -1, np.int32))


def check_level(root: Path, class_names: list[str]) -> None:
    """Raise UserError if `root` has no class folders, or is above the folder that has them.

    A class may be called train: CIFAR-100 and COCO have it. A folder of a split contains folders, but no image.
    """
    if not class_names:
        census = Census("")
        for path in walk(root, census):
            census.pass_over("image", path)
        raise UserError(
            f"{root}: found no class folder, only {census.others()}; {EXPECTED_LAYOUT}. Give the folder that contains "
            "the class folders."
        )
    for inside, split in product(DATA_FOLDERS, SPLIT_FOLDERS):
        folder = split_folder(root / inside, split)
        if folder and (
            inside or (folder_names(folder) and not any(is_image(entry.name) for entry in _entries(folder)))
        ):
            raise UserError(
                f"{root}: found the folder {folder.name}/, not class folders; {EXPECTED_LAYOUT}. Did you mean {folder}?"
            )


def split_folder(root: Path, split: str) -> Path | None:
    """Return the folder of a split in a data folder, under one of its usual names; None if there is none."""
    return next(iter(split_folders(root, split)), None)


def split_folders(root: Path, split: str) -> list[Path]:
    """Return the folders in a data folder that have a usual name of a split, in any case: the most usual first."""
    usual = SPLIT_FOLDERS[split]
    found = [name for name in folder_names(root) if name.lower() in usual] if root.is_dir() else []
    return [root / name for name in sorted(found, key=lambda name: (usual.index(name.lower()), name not in usual))]


def find_images(folder: Path) -> Found:
    """Find all images in a folder and the folders inside it. UserError if there are none."""
    census = Census(f"files in {folder}")
    paths = walk(folder, census)
    if not paths:
        others = [f"{folder}/{first}" for _, first in census.passed_over.values()]
        raise UserError(
            f"{folder}: found neither class folders nor images, only {census.others()}; {EXPECTED_LAYOUT}, or "
            f"ROOT/IMAGE. {how_to_read(others) or 'Give another folder.'}"
        )
    return Found(folder, paths, FolderFiles(folder, as_bytes(paths)), census)


def how_to_read(files: Iterable[str], split: str = "") -> str:
    """Say what to do about the first of these files that is of a form which is not read as it is; '' if none is.

    Args:
        files: their paths, or patterns of them.
        split: "train" or "val", of which images are looked for; '' if not known.
    """
    for file in files:
        path, name = Path(file), file.rpartition("/")[2]
        if name.endswith(".parquet"):
            source, out = path if "*" in name else path.parent, "SHARDS"
            if split:
                source, out = path.with_name(f"{split}*.parquet"), f"SHARDS/{split}"
            return f"Make tar files of parquet once: python -m relabel pack-images '{source}' {out}"
        if name.endswith((".mds", ".beton")):
            return "MDS and .beton files lack the names of images, by which label maps are found: give their source."
        if name.endswith((".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst")) and "devkit" not in name:
            return f"Decompress {name} once, to a plain tar file or a folder."
        if name.endswith(".zip"):
            return f"Unpack it once: python -m zipfile -e {shlex.quote(file)} {shlex.quote(str(path.with_suffix('')))}"
    return ""


def walk(folder: Path, census: Census, below: str = "") -> list[str]:
    """Return the paths of all images in a folder and the folders inside it; the census counts everything else."""
    found, folders = [], []
    for entry in _entries(folder):
        name = below + entry.name
        if kind := _kind(entry) or ("circular link" if _leads_back(entry) else ""):
            census.pass_over(kind, name)
        elif _is_dir(entry):
            folders.append(entry.name)
        else:
            found.append(name)
    for name in folders:
        found += walk(folder / name, census, f"{below}{name}/")
    return found


def _kind(entry: os.DirEntry[str]) -> str:
    """Return the kind of a file or folder that is not used; '' for an image or a folder to look into."""
    if _is_dir(entry):
        return "hidden folder" if _is_hidden(entry.name) else ""
    return kind_of(entry.name) or ("" if is_file(entry) else "special file")


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _leads_back(entry: os.DirEntry[str]) -> bool:
    """Whether this is a link to a folder that contains it."""
    if not (entry.is_symlink() and _is_dir(entry)):
        return False
    folder = Path(entry).parent.resolve()
    return Path(entry).resolve() in (folder, *folder.parents)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what is in a folder, sorted by name. UserError if it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be listed ({error.strerror}); {EXPECTED_LAYOUT}. Correct the path, or the permissions."
        ) from error
