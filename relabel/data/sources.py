"""The images of a data set in any form in which people have them.

    ROOT/train/CLASS/IMAGE                      class folders, also with folders inside them
    ROOT/ILSVRC/Data/CLS-LOC/{train,val}        Kaggle's ImageNet; val/ with LOC_val_solution.csv
    any folder and a table                      image,class on each line
    TAR, FOLDER of tar files, pattern or list   class folders inside, a tar file per class, WebDataset shards

Each becomes an ImageList with the same names in the same order, so nothing after it depends on the form.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from relabel.data.folders import (
    DATA_FOLDERS,
    SPLIT_FOLDERS,
    find_images,
    folder_names,
    how_to_read,
    is_image,
    list_images,
    split_folder,
    split_folders,
    walk,
)
from relabel.data.images import Census, Found, ImageList, shortened
from relabel.data.path_patterns import as_source, expanded, matching
from relabel.data.tables import TINY, read_table, table_beside, with_labels, with_table_beside
from relabel.data.tar_contents import OtherSplit, below
from relabel.data.tar_index import list_tars
from utils.errors import UserError

EXPECTED_SOURCE = (
    "expected a folder of images; or a tar file, a pattern such as 'shards/*.tar' or shards/{000..127}.tar, or several "
    "joined by ':'"
)
_OTHER_SPLIT = {
    "train": "Give the training images: --data.train SOURCE",
    "val": "Give validation images, --data.val SOURCE, or set a tenth of the others aside: --data.val_share 0.1",
}


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
        own = _of_one_split(root, tars, split)
        return _open_tars(root if own == tars else as_source(own), own, table, split)
    _check_folder(root)
    if table:
        return with_labels(find_images(root), read_table(Path(table)))
    if (root / TINY).is_file() or not _has_class_folders(root):
        return with_table_beside(find_images(root), root)
    return _mostly_loose(root) or list_images(root)


def _check_folder(root: Path) -> None:
    """Raise UserError if this is no folder; tell how files of other forms can be used."""
    if not root.is_dir():
        found = "is a file" if root.exists() else "does not exist"
        raise UserError(f"{root} {found}; {EXPECTED_SOURCE}. {how_to_read([str(root)])}".rstrip())


def _mostly_loose(root: Path) -> ImageList | None:
    """List a folder's images by the table beside, or UserError; None if at least half of them are in class folders."""
    if not _has_images(root):
        return None
    found = find_images(root)
    loose = [path for path in found.paths if "/" not in path]
    inside = len(found.paths) - len(loose)
    if len(loose) <= inside:
        return None
    table = table_beside(found, root)
    if not table:
        raise UserError(
            f"{root}: found {len(loose):,} images beside the folders, such as {loose[0]}, and only {inside:,} in them; "
            "expected class folders, or a folder with images only. Move the images or the folders elsewhere, or give a "
            "table of the images' classes."
        )
    return with_labels(found, table, may_lack=True)


def _of_one_split(root: Path, tars: list[Path], split: str | None) -> list[Path]:
    """Return those of the tar files of a folder or a pattern that are of the split; a list may join several.

    Raises:
        UserError: there are those of several splits by name, and none or another one is asked for.
    """
    names = [name for name in (*SPLIT_FOLDERS, "test") if any(is_of(tar.stem, name) for tar in tars)]
    if len(names) < 2 or (":" in str(root) and not root.exists()):
        return tars
    own = {name: [tar for tar in tars if is_of(tar.stem, name)] for name in names}
    if split not in own:
        patterns = " or ".join(f"'{as_source(found)}'" for found in own.values())
        raise UserError(
            f"{root}: found tar files of {' and '.join(names)}; expected those of one. Did you mean {patterns}?"
        )
    return own[split]


def _open_tars(root: Path, tars: list[Path], table: str | Path, split: str | None) -> ImageList:
    """List images in tar files, whose classes may be in a table."""
    images = list_tars(root, tars, split)
    if images.class_names and not table:
        return images
    found = Found(root, [images.name(row) for row in range(len(images))], images.files, images.census)
    return with_labels(found, read_table(Path(table))) if table else with_table_beside(found, tars[0].parent)


def _has_images(root: Path) -> bool:
    return any(is_image(entry.name) for entry in root.iterdir())


def _has_class_folders(root: Path) -> bool:
    """Whether a folder has folders with images; a flat folder of images may have others."""
    if not any(is_image(entry.name) or entry.suffix == ".tar" for entry in root.iterdir()):
        return bool(folder_names(root))
    return any(walk(root / name, Census("")) for name in folder_names(root))


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
    tars = [] if source or Path(data_path).is_dir() else tar_files(data_path)
    try:
        if source:
            images = open_images(source, table, split)
        else:
            images = _open_tars_of(tars, split, table) if tars else _open_in(Path(data_path), split, table)
    except OtherSplit as error:
        raise UserError(f"{error} {_OTHER_SPLIT[split]}") from error
    if not images.class_names:
        raise UserError(
            f"{images.root}: found {len(images):,} images of {split} without classes; expected class folders, or a "
            f"table with an image and its class on each line: --data.{split}_labels FILE.{_kit_hint(images.root)}"
        )
    return images


def _kit_hint(root: Path) -> str:
    """Say how to get the classes of ImageNet's validation images if the development kit is there, but packed."""
    kits = (kit for folder in (root, *root.absolute().parents[:2]) for kit in folder.glob("ILSVRC2012_devkit*.tar.gz"))
    return next((f" Or unpack ImageNet's: tar -xzf {kit} -C {kit.parent}" for kit in kits), "")


def _open_in(root: Path, split: str, table: str) -> ImageList:
    """List the images of a split in a data folder. UserError if they are not there."""
    _check_folder(root)
    tars = _tars_in(root)
    folders = [folder for inside in DATA_FOLDERS for folder in split_folders(root / inside, split)]
    if folders:
        images = open_images(folders[0], table, split)
        for other in [*folders[1:], *(tar for tar in tars if is_of(tar.stem, split))]:
            if not other.samefile(folders[0]):
                images.census.pass_over(f"other {split} source", str(other.relative_to(root)))
        return images
    if any(is_of(tar.stem, split) for tar in tars) or (tars and not table):
        return _open_tars_of(tars, split, table)
    if table:
        return open_images(root, table, split)
    raise UserError(_no_split(root, split))


def _folder_of(root: Path, split: str) -> Path | None:
    """Return the folder of a split in a data folder; None if there is none."""
    return next(filter(None, (split_folder(root / inside, split) for inside in DATA_FOLDERS)), None)


def named_after(data_path: str, split: str) -> Path | None:
    """Return the folder of a split, or the first tar file with its name; None if there is neither."""
    folder = Path(data_path)
    tars = _tars_in(folder) if folder.is_dir() else tar_files(data_path)
    return _folder_of(folder, split) or next((tar for tar in tars if is_of(tar.stem, split)), None)


def _open_tars_of(tars: list[Path], split: str, table: str) -> ImageList:
    """List the images of a split in tar files: those with its name, or those that contain its folder.

    Raises:
        UserError: there are none.
    """
    own = [tar for tar in tars if is_of(tar.stem, split)]
    named = [tar for tar in tars if any(is_of(tar.stem, name) for name in SPLIT_FOLDERS)]
    images = None if named and not own else _open_tars(as_source(own or tars), own or tars, table, split)
    if images is None or (split == "val" and not own and below(split) not in images.census.source):
        raise UserError(
            f"{as_source(tars)}: found {tars[0].name}{', ...' * (len(tars) > 1)}, but nothing of {split}; expected "
            f"{split} in the name of a tar file or a folder {split}/ in it. Give --data.{split} SOURCE"
            f"{', or set a tenth of the training images aside: --data.val_share 0.1' * (split == 'val')}"
        )
    return images


def tar_files(source: str) -> list[Path]:
    """Return the tar files that a path, a pattern or a list stands for; [] if it stands for something else.

    Raises:
        UserError: one of them does not exist.
    """
    if Path(source).is_dir():
        tars = _tars_in(Path(source))
        return [] if tars and (_has_images(Path(source)) or _has_class_folders(Path(source))) else tars
    if ".tar" not in source and ".tgz" not in source:
        return []
    found: list[Path] = []
    parts = [source] if all(map(matching, expanded(source))) else source.split(":")
    for path in (path for text in parts for path in expanded(text)):
        matches = matching(path)
        if not matches or not Path(matches[0]).is_file():
            raise UserError(f"{shortened(source)}: found no tar file {path}; {EXPECTED_SOURCE}.")
        found += map(Path, matches)
    return found


def _tars_in(folder: Path) -> list[Path]:
    """Return the visible tar files of a folder, sorted by name; [] if it is none."""
    return sorted(path for path in folder.glob("[!.]*.tar") if path.is_file())


def is_of(name: str, split: str) -> bool:
    """Whether a file name has the name of a split as a word: train, val or validation, test."""
    return any(re.search(rf"(?<![a-z]){word}(?![a-z])", name.lower()) for word in SPLIT_FOLDERS.get(split, (split,)))


def _no_split(root: Path, split: str) -> str:
    """Say what was found where the images of a split were expected, and what to do."""
    inside = folder_names(root)
    files = sorted(path.name for path in root.iterdir() if path.is_file() and not path.name.startswith("."))
    kinds = {"folders": inside, "files": files}
    found = [f"the {kind} {', '.join(names[:3])}{', ...' * (len(names) > 3)}" for kind, names in kinds.items() if names]
    expected = f"{split}/CLASS/IMAGE, tar files with {split} in their names, or --data.{split} SOURCE"
    hint = _hint(root, split, inside, files)
    return f"{root}: found {' and '.join(found) or 'nothing'}, but no {split}/; expected {expected}.{hint}"


def _hint(root: Path, split: str, inside: Sequence[str], files: Sequence[str]) -> str:
    """Say what to do where a folder, which contains these folders and files, lacks a split; '' if nothing is known."""
    around = [root.resolve().parent, *(root / name for name in inside)]
    level = None if _has_training(root) else next(filter(_has_training, around), None)
    if level:
        return f" Did you mean --data.data_path {level}?"
    others = [*(str(root / name) for name in files), *map(str, root.glob("data/*.parquet"))]
    if remedy := how_to_read(others, split):
        return f" {remedy}"
    if tables := [name for name in files if name.endswith((".csv", ".tsv")) and (split in name or split == "train")]:
        return f" If a table has the classes of the images, give it: --data.{split}_labels {root / tables[0]}"
    if split == "val":
        test = "".join(f" --data.val {root / name} uses {name}/." for name in inside if name.lower() == "test")
        return f"{test} Without validation images, --data.val_share 0.1 sets a tenth of the training images aside."
    if any(map(is_image, files)):
        return " If a table has the classes of the images, give it: --data.train_labels FILE"
    if len(inside) > 1 and _has_class_folders(root):
        return f" If these are the classes, --data.train {root} --data.val_share 0.1 uses them."
    return ""


def _has_training(root: Path) -> bool:
    """Whether a data folder has training images, as a folder or in tar files named so."""
    return bool(_folder_of(root, "train")) or any(is_of(tar.stem, "train") for tar in _tars_in(root))
