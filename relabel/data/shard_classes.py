"""The classes of WebDataset shards, which number or name them, and the info file beside the shards."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from relabel.data.class_names import WNID
from relabel.data.images import NUMBERED, Found, ImageList, image_list
from relabel.data.tar_files import TarFiles
from utils.errors import UserError
from utils.files import read_json

INFO = "_info.json"  # beside shards: their number of samples, which timm reads, and the class names
_EXPECTED = (
    'expected {"class_names": ["NAME", ...], "splits": {"SPLIT": {"filenames": [...]}}}, both or one of them, as '
    "pack-images and timm write it"
)
NAMES_LOST = "the images are only numbered, so label maps made from another form of them cannot be found"


@dataclass(frozen=True, slots=True)
class Info:
    """The info file beside shards.

    Fields:
        path: of the file, which may not exist.
        class_names: of class 0, 1, ...; [] if it names none.
        shards: the file names of the shards of each split; {} if it lists none.
        job: what pack-images was asked for, if it wrote the file.
    """

    path: Path
    class_names: list[str]
    shards: dict[str, list[str]]
    job: Any

    def absent(self, tars: Sequence[Path]) -> str:
        """Return a remark if more shards of a split are listed than given, as after a partial download."""
        given = {tar.name for tar in tars}
        for split, names in self.shards.items():
            absent = [name for name in names if Path(name).name not in given]
            if 0 < len(absent) < len(names):
                return f"; without {len(absent):,} of the {len(names):,} shards of {split} ({absent[0]})"
        return ""

    def is_of_others(self, tars: Sequence[Path]) -> bool:
        """Whether shards are listed, but none of these."""
        listed = {Path(name).name for names in self.shards.values() for name in names}
        return bool(listed) and not listed & {tar.name for tar in tars}


def read_info(folder: Path) -> Info:
    """Read the info file of the shards in a folder, if there is one. UserError if it is none."""
    path = folder / INFO
    content = read_json(path, f"{_EXPECTED}. Correct or remove it") if path.is_file() else {}
    try:
        splits = {name: list(map(str, split["filenames"])) for name, split in content.get("splits", {}).items()}
        names = content.get("class_names", [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TypeError
        return Info(path, names, splits, content.get("job"))
    except (AttributeError, TypeError, LookupError):
        raise UserError(f"{path}: found other content; {_EXPECTED}. Correct or remove it.") from None


def shard_list(images: Found, classes: list[str], info: Info) -> ImageList:
    """Build the list of images whose classes are numbers or names.

    The names of numbers come from the info file, else from the images' folders or wnids if each class has one of its
    own, else they are the numbers.
    """
    numbers: list[int] = []
    numbered = False
    if not all(map(str.isdecimal, classes)):
        names = sorted({*classes})
        position = {name: label for label, name in enumerate(names)}
    else:
        numbers = sorted({*map(int, classes)})
        stated = _stated_names(images, numbers, classes, info)
        names = stated or _names_of(numbers, images.paths, classes) or [*map(str, numbers)]
        numbered = not stated and names == [*map(str, numbers)]
        numbers = list(range(len(names))) if stated else numbers
        position = {str(number): label for label, number in enumerate(numbers)}
        classes = [str(int(text)) for text in classes]
    labels = np.array([position[text] for text in classes], np.int32)
    if names_lost(images.paths[:1000], [names[label] for label in labels[:1000]]):
        images.census.source += f"; {NAMES_LOST}"
    listed = image_list(images, names, labels)
    if numbered:
        images.census.source += NUMBERED
    return replace(listed, numbered=numbered, numbers=numbers)


def names_lost(paths: Sequence[str], classes: Sequence[str]) -> bool:
    """Whether all images are called by a number only, in no folder that is called like their class."""
    parts = [path.split("/") for path in paths]
    return all(
        file.partition(".")[0].isdigit() and folders[-1:] != [name]
        for (*folders, file), name in zip(parts, classes, strict=True)
    )


def _stated_names(images: Found, numbers: list[int], classes: list[str], info: Info) -> list[str]:
    """Return the class names in the info file; [] if there are none, or they are of other shards.

    Raises:
        UserError: there are fewer names than classes, or the images' folders have others.
    """
    assert isinstance(images.files, TarFiles)
    names = info.class_names
    folders = _names_of(numbers, images.paths, classes, wnids=False) if names else []
    stated = [names[number] if number < len(names) else "no name" for number in numbers]
    wrong = next((i for i, folder in enumerate(folders) if folder != stated[i]), None)
    if wrong is not None and info.is_of_others(images.files.tars):
        images.census.source += f"; {INFO} beside them is of other shards"
        return []
    if wrong is not None:
        raise UserError(
            f"{info.path}: found {stated[wrong]} for class {numbers[wrong]}, whose images lie in {folders[wrong]}/ "
            f"according to their file names; expected the same. Give the shards that this file was made with, or "
            "remove it: the classes are then named after these folders."
        )
    if names and numbers[-1] >= len(names):
        raise UserError(
            f"{info.path}: found {len(names):,} class names, but class {numbers[-1]} in the shards; expected a name "
            "for each. Give the shards that this file was made with."
        )
    return names


def _names_of(numbers: Iterable[int], paths: Sequence[str], classes: Sequence[str], wnids: bool = True) -> list[str]:
    """Return the folder of each class number, or its wnid; [] unless each has one of its own."""
    of: dict[int, set[str]] = {}
    for path, number in zip(paths, classes, strict=True):
        folder, _, file = path.rpartition("/")
        wnid = WNID.match(file) if wnids else None
        of.setdefault(int(number), set()).add(folder.rpartition("/")[2] or (wnid[0] if wnid else ""))
    names = [next(iter(of[number])) for number in numbers]
    unique = all(len(found) == 1 for found in of.values()) and len({*names}) == len(names) and all(names)
    return names if unique else []
