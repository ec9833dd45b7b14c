"""Contents of tar files: class folders, tar files of one class each, or WebDataset shards.

train/n01440764/n01440764_10026.JPEG     class folders, below train/ or val/ or other folders or none
n01440764.tar, in a tar file or a folder    ILSVRC 2012: a tar file per class
KEY.jpg KEY.cls KEY.json                 a WebDataset shard: the class is a number or a name; the json is optional
"""

import json
import os
import re
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from relabel.data.class_names import WNID
from relabel.data.folders import EXPECTED_LAYOUT, LOOSE, SPLIT_FOLDERS, by_class_folder, is_image, kind_of
from relabel.data.images import Census, Found, ImageList, image_list
from relabel.data.tar_files import LINK, Member, TarFiles, walk_tar
from utils.errors import UserError
from utils.files import read_json
from utils.progress import JobProgress, counted

INFO = "_info.json"  # beside shards: their number of samples, which timm reads, and the class names
NAMES_LOST = "the images are only numbered, so label maps made from another form of them cannot be found"
_KEY = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")  # of a WebDataset member: up to the first dot of its file name
_CLASS, _FACTS = "cls", "json"
_ADVICE = {
    "train": ". Give the training images: --data.train SOURCE",
    "val": ". Give validation images, --data.val SOURCE, or set a tenth of the others aside: --data.val_share 0.1",
}


def source_of(tars: Sequence[Path]) -> str:
    """Return how many tar files there are, and the first and the last: there may be thousands."""
    names = [tar.name for tar in (tars[0], *tars[1:][-1:])]
    return str(tars[0]) if len(tars) == 1 else f"{len(tars):,} tar files, {tars[0].parent}/{' ... '.join(names)}"


def find_in_tars(root: Path, tars: Sequence[Path], split: str | None) -> ImageList:
    """Build the list of images from the headers of tar files."""
    found = _Members(Census(source_of(tars)))
    sizes = [tar.stat().st_size for tar in tars]
    with JobProgress("index of tar files", sum(sizes) >> 20, "MiB") as progress:
        for number, (tar, size) in enumerate(zip(tars, sizes, strict=True)):
            found.add(number, tar, list(walk_tar(tar)))
            progress.advance(size >> 20)
    if not found.paths:
        raise UserError(
            f"{root}: found no image in {counted(len(tars), 'tar file')}; {EXPECTED_LAYOUT} inside, or WebDataset "
            f"shards with KEY.jpg and KEY.cls; found only {found.census.others()}."
        )
    where = (
        np.frombuffer(found.tar, np.int32),
        np.frombuffer(found.offset, np.int64),
        np.frombuffer(found.size, np.int64),
    )
    images = Found(root, found.paths, TarFiles(list(tars), *where), found.census)
    labelled = sum(map(bool, found.classes))
    if not labelled:
        return by_class_folder(_below_split(images, split))
    if labelled < len(found.paths):
        raise UserError(
            f"{root}: found a class for {labelled:,} of {len(found.paths):,} images; the first without: "
            f"{found.paths[found.classes.index('')]}. Expected KEY.{_CLASS} for each. Give the shards of one data set."
        )
    if all(path.rpartition("/")[2].partition(".")[0].isdigit() for path in found.paths[:1000]):
        found.census.source += f"; {NAMES_LOST}"
    found.census.source += _absent_shards(tars)
    return _shard_list(images, found.classes, tars[0].parent / INFO)


class _Members:
    """The images in some tar files: path, class ('' if unknown), and where their bytes lie."""

    def __init__(self, census: Census) -> None:
        self.paths: list[str] = []
        self.classes: list[str] = []
        self.tar, self.offset, self.size = array("i"), array("q"), array("q")
        self.census = census

    def add(self, number: int, tar: Path, members: list[Member]) -> None:
        """Add the images of a tar file."""
        images = [member for member in members if self._is_image(member)]
        annotations = {name for name, *_ in members if name.endswith((f".{_CLASS}", f".{_FACTS}"))}
        first = _KEY.fullmatch(images[0][0]) if images else None
        if first and {f"{first[1]}.{_CLASS}", f"{first[1]}.{_FACTS}"} & annotations:
            self._add_shard(number, tar, members)
            return
        flat = not any("/" in name for name, *_ in images)
        folder = f"{tar.stem}/" if flat and WNID.fullmatch(tar.stem) else ""
        for name, offset, size in members:
            if kind := kind_of(name) or ("link" if size == LINK else ""):
                self.census.pass_over(kind, name)
            else:
                self._append(folder + name, "", number, offset, size)

    @staticmethod
    def _is_image(member: Member) -> bool:
        return member[2] != LINK and not kind_of(member[0])

    def _append(self, path: str, class_name: str, tar: int, offset: int, size: int) -> None:
        self.paths.append(path)
        self.classes.append(class_name)
        self.tar.append(tar)
        self.offset.append(offset)
        self.size.append(size)

    def _add_shard(self, number: int, tar: Path, members: list[Member]) -> None:
        """Add the samples of a WebDataset shard: members that are called the same up to the first dot."""
        samples: dict[str, dict[str, Member]] = {}
        for member in members:
            if named := _KEY.fullmatch(member[0]):
                samples.setdefault(named[1], {})[named[2].lower()] = member
        descriptor = os.open(tar, os.O_RDONLY)
        try:
            for key, parts in samples.items():
                images = [part for part in parts if is_image(f".{part}") and "." not in part]
                if len(images) != 1:
                    self.census.pass_over(f"{'multi-image' if images else 'imageless'} sample", key)
                    continue
                text = {
                    part: os.pread(descriptor, parts[part][2], parts[part][1])
                    for part in (_CLASS, _FACTS)
                    if part in parts
                }
                facts = _facts(tar, key, text.get(_FACTS, b"{}"))
                path = f"{key}.{images[0]}"
                if isinstance(named := facts.get("filename"), str) and is_image(named):
                    path = named
                label = os.fsdecode(text[_CLASS]).strip() if _CLASS in text else str(facts.get("label", ""))
                self._append(path, label, number, *parts[images[0]][1:])
        finally:
            os.close(descriptor)


def _facts(tar: Path, key: str, text: bytes) -> dict[str, Any]:
    try:
        facts = json.loads(text)
    except ValueError as error:
        raise UserError(
            f"{tar}: {key}.{_FACTS} is not JSON ({error}); expected a whole shard. Make it again."
        ) from error
    return facts if isinstance(facts, dict) else {}


def _shard_list(images: Found, classes: list[str], info: Path) -> ImageList:
    """Build the list of images whose classes are numbers or names.

    The names of numbers come from the info file, else from the images' folders or wnids if each class has one of its
    own, else they are the numbers.
    """
    if not all(map(str.isdecimal, classes)):
        names, numbered = sorted({*classes}), False
        position = {name: label for label, name in enumerate(names)}
    else:
        numbers = sorted({*map(int, classes)})
        stated = _stated_names(info, numbers[-1])
        names = stated or _names_of(numbers, images.paths, classes)
        numbered = not stated and names == [*map(str, numbers)]
        numbers = numbers if len(names) == len(numbers) else list(range(len(names)))
        position = {str(number): label for label, number in enumerate(numbers)}
        classes = [str(int(text)) for text in classes]
    listed = image_list(images, names, np.array([position[text] for text in classes], np.int32))
    if numbered:
        images.census.source += "; its classes have numbers, not names"
    return replace(listed, numbered=numbered)


def _stated_names(info: Path, largest: int) -> list[str]:
    """Return the class names in the info file; [] if there are none."""
    if not info.is_file():
        return []
    names = read_json(info, "expected the info file of the shards").get("class_names", [])
    if names and largest >= len(names):
        raise UserError(
            f"{info}: found {len(names):,} class names, but class {largest} in the shards; expected a name for each. "
            "Give the shards that this file was made with."
        )
    return list(names)


def _absent_shards(tars: Sequence[Path]) -> str:
    """Return a remark if the info file lists more shards of a split than are given, as after a partial download."""
    info = tars[0].parent / INFO
    splits = read_json(info, "expected the info file of the shards").get("splits", {}) if info.is_file() else {}
    given = {tar.name for tar in tars}
    for name, split in splits.items():
        absent = [file for file in split["filenames"] if Path(file).name not in given]
        if 0 < len(absent) < len(split["filenames"]):
            return f"; without {len(absent):,} of the {len(split['filenames']):,} shards of {name} ({absent[0]})"
    return ""


def _names_of(numbers: Iterable[int], paths: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Return the folder or wnid of each class number, or the number as text."""
    of: dict[int, set[str]] = {}
    for path, number in zip(paths, classes, strict=True):
        folder, _, file = path.rpartition("/")
        wnid = WNID.match(file)
        of.setdefault(int(number), set()).add(folder.rpartition("/")[2] or (wnid[0] if wnid else ""))
    names = [next(iter(of[number])) for number in numbers]
    unique = all(len(found) == 1 for found in of.values()) and len({*names}) == len(names) and all(names)
    return names if unique else [str(number) for number in numbers]


def below(split: str) -> str:
    """Return the remark that only what is below the folder of a split is used."""
    return f", {split}/ in it"


def _below_split(found: Found, split: str | None) -> Found:
    """Keep the images below train/ or val/, if there are such folders, and remove what is above the class folders.

    A class may be called train: a folder of a split contains folders, or nothing lies beside it.

    Raises:
        UserError: only the other split is there.
    """
    which = {folder: name for name, folders in SPLIT_FOLDERS.items() for folder in folders}
    parts = [path.split("/") for path in found.paths]
    depths = [next((i for i, part in enumerate(names[:-1]) if part.lower() in which), None) for names in parts]
    has_classes = any(depth is not None and depth < len(names) - 2 for names, depth in zip(parts, depths, strict=True))
    if not has_classes and None in depths:
        above = os.path.commonpath({f"/{'/'.join(names[:-2])}" for names in parts})[1:]
        found.paths = [path[len(above) :].lstrip("/") for path in found.paths]
        return found
    splits = [None if depth is None else which[parts[row][depth].lower()] for row, depth in enumerate(depths)]
    chosen = split or ("train" if "train" in splits else "val")
    if chosen not in splits:
        raise UserError(
            f"{found.root}: found no folder {chosen}/ in it, only {', '.join(sorted({*filter(None, splits)}))}/; "
            f"expected {chosen}/{_ADVICE[chosen]}"
        )
    found.census.source += below(chosen)
    rows = [row for row, name in enumerate(splits) if name == chosen]
    for row, name in enumerate(splits):
        if name is None:
            found.census.pass_over(LOOSE, found.paths[row])
    paths = ["/".join(parts[row][(depths[row] or 0) + 1 :]) for row in rows]
    return Found(found.root, paths, found.files.take(np.array(rows, np.int64)), found.census)
