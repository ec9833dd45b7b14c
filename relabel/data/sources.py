"""The images of a data set in any form in which people have them.

    ROOT/train/CLASS/IMAGE                      class folders, also with folders inside them
    ROOT/ILSVRC/Data/CLS-LOC/{train,val}        Kaggle's ImageNet; val/ with LOC_val_solution.csv
    any folder and a table                      image,class on each line
    TAR, FOLDER of tar files, pattern or list   class folders inside, a tar file per class, WebDataset shards

Each becomes an ImageList with the same names in the same order, so nothing after it depends on the form.
"""

import re
from glob import glob, has_magic
from itertools import product
from pathlib import Path
from zlib import crc32

import numpy as np

from relabel.data.folders import (
    SPLIT_FOLDERS,
    find_images,
    folder_names,
    list_images,
    split_folder,
    without_classes,
)
from relabel.data.images import Found, ImageList
from relabel.data.tables import TINY, read_table, table_beside, with_labels
from relabel.data.tar_index import list_tars
from utils.errors import UserError

KAGGLE_TREE = Path("ILSVRC", "Data", "CLS-LOC")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def open_images(source: str | Path, table: str | Path = "", split: str | None = None) -> ImageList:
    """List images in any form; without classes if nothing names them.

    Args:
        source: a folder; or a tar file, a folder of them, a pattern with * or {000..127}, or several joined by ":".
        table: of the images' classes, as in relabel/data/tables.py; '' = class folders, or the table that ImageNet
            comes with.
        split: of a source that contains both, "train" or "val".

    Raises:
        UserError: there are no images, or their classes are ambiguous.
    """
    root = Path(source)
    if tars := tar_files(str(source)):
        images = list_tars(root, tars, split)
        table = table or (not images.class_names and table_beside(tars[0].parent)) or ""
        names = [images.name(row) for row in range(len(images))] if table else []
        return (
            with_labels(Found(root, names, images.files, images.census), read_table(Path(table))) if table else images
        )
    if not table and folder_names(root) and not (root / TINY).is_file():
        return list_images(root)
    table = table or table_beside(root) or ""
    return with_labels(find_images(root), read_table(Path(table))) if table else without_classes(find_images(root))


def open_split(data_path: str, split: str, source: str = "", table: str = "") -> ImageList:
    """List the images of train or val.

    Args:
        data_path: the folder of both: with a folder or with tar files of each; or a tar file, or a pattern.
        split: "train" or "val".
        source: what `open_images` takes, instead of that in data_path; '' = find it.
        table: of the images' classes; '' = as in `open_images`.

    Raises:
        UserError: there are no such images, or they have no classes.
    """
    images = open_images(source or _find_split(data_path, split, table), table, split)
    if not images.class_names:
        raise UserError(
            f"{images.root}: found {len(images):,} images of {split} without classes; expected class folders, or a "
            f"table with an image and its class on each line: --data.{split}_labels FILE"
        )
    return images


def _find_split(data_path: str, split: str, table: str) -> str:
    """Return where in data_path the images of a split are. UserError if they are not there."""
    root = Path(data_path)
    if not root.is_dir() and tar_files(data_path):
        return data_path
    if folder := split_folder(root, split) or split_folder(root / KAGGLE_TREE, split):
        return str(folder)
    if tars := _tars_of(root, split):
        return ":".join(map(str, tars))
    if table:
        return data_path
    raise UserError(_no_split(root, split))


def tar_files(source: str) -> list[Path]:
    """Return the tar files that a path, a pattern or a list stands for; [] if it stands for something else.

    Raises:
        UserError: one of them does not exist.
    """
    if Path(source).is_dir():
        return [] if folder_names(Path(source)) else _tars_in(Path(source))
    if ".tar" not in source and ".tgz" not in source:
        return []
    found: list[Path] = []
    for path in (path for text in source.split(":") for path in _expanded(text)):
        matches = sorted(glob(path)) if has_magic(path) and not Path(path).exists() else [path]  # noqa: PTH207
        if not matches or not Path(matches[0]).is_file():
            raise UserError(
                f"{source}: found no tar file {path}; expected one, a pattern with * or {{000..127}}, or several "
                "joined by ':'."
            )
        found += map(Path, matches)
    return found


def _expanded(pattern: str) -> list[str]:
    """Return the paths that a pattern with {000..127} stands for."""
    ends = _RANGE.findall(pattern)
    ranges = [[f"{i:0{len(first)}d}" for i in range(int(first), int(last) + 1)] for first, last in ends]
    return [_RANGE.sub("{}", pattern).format(*numbers) for numbers in product(*ranges)] if ends else [pattern]


def _tars_in(folder: Path) -> list[Path]:
    """Return the visible tar files of a folder, sorted by name; [] if it is none."""
    return sorted(path for path in folder.glob("[!.]*.tar") if path.is_file())


def _is_of(name: str, split: str) -> bool:
    """Whether a file name has the word train, or val or validation."""
    return any(re.search(rf"(?<![a-z]){word}(?![a-z])", name.lower()) for word in SPLIT_FOLDERS[split])


def _tars_of(root: Path, split: str) -> list[Path]:
    """Return the tar files of a split in a data folder: by their names, or all where no name says anything."""
    tars = _tars_in(root)
    own = [tar for tar in tars if _is_of(tar.stem, split)]
    return own or ([] if any(_is_of(tar.stem, name) for tar in tars for name in SPLIT_FOLDERS) else tars)


def _no_split(root: Path, split: str) -> str:
    """Say what was found where the images of a split were expected, and what to do."""
    inside = folder_names(root)
    found = f"the folders {', '.join(inside[:3])}{', ...' if len(inside) > 3 else ''}" if inside else "no folder"
    expected = f"{split}/CLASS/IMAGE, tar files with {split} in their names, or --data.{split} SOURCE"
    above = root.resolve().parent
    level = next((root / name for name in inside if split_folder(root / name, "train")), None)
    level = above if split_folder(above, "train") else level
    hint = ""
    if level:
        hint = f" Did you mean --data.data_path {level}?"
    elif split == "val" and split_folder(root, "train"):
        hint = " Without validation images, --data.val_share 0.1 sets a tenth of the training images aside."
    return f"{root}: found {found}, but no {split}/; expected {expected}.{hint}"


def divide(images: ImageList, share: float, split: str) -> ImageList:
    """Return the part of the images that is for training or for validation, the same in every run.

    Of each class with at least two images, that share of them is for validation, at least one; which, depends on a
    hash of their keys.

    Args:
        images: all of them.
        share: of the images, for validation; above 0.
        split: "train" or "val".
    """
    hashes = np.fromiter(map(crc32, images.keys()), np.int64, len(images))
    order = np.lexsort((hashes, images.labels))
    counts = np.bincount(images.labels, minlength=len(images.class_names))
    first = np.cumsum(counts) - counts
    place = np.empty(len(images), np.int64)  # of each image among those of its class, by hash
    place[order] = np.arange(len(images)) - first[images.labels[order]]
    wanted = np.where(counts > 1, np.maximum(1, np.round(counts * share)), 0)
    is_val = place < wanted[images.labels]
    return images.take(is_val if split == "val" else ~is_val)
