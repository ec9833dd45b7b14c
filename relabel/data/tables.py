"""Labels of images in a table: text files with an image and its class on each line, and ImageNet's own forms.

    image,class          any folder: --data.train_labels, --data.val_labels; the header is optional
    ImageId,PredictionString
    ILSVRC2012_val_00000001,n01751748 111 108 325 298     Kaggle's LOC_val_solution.csv: the class, then boxes
    val_0.JPEG<TAB>n03444034<TAB>0<TAB>32<TAB>44<TAB>62   Tiny ImageNet's val_annotations.txt

and the development kit of ILSVRC 2012: ILSVRC2012_validation_ground_truth.txt with meta.mat beside it.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from relabel.data.class_names import WNID
from relabel.data.folders import is_image
from relabel.data.images import NUMBERED, Found, ImageList, image_list
from relabel.data.table_paths import match_paths, without_extension
from utils.errors import UserError
from utils.look_alikes import look_alike

KAGGLE = "LOC_val_solution.csv"
TINY = "val_annotations.txt"
GROUND_TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
SAMPLED = 20  # lines that tell the delimiter
EXPECTED = "expected a CSV or TSV file with an image and its class in the first two columns"


@dataclass(frozen=True, slots=True, eq=False)
class LabelTable:
    """The class of each image that a table lists: image, as written there, -> name of its class.

    Fields:
        path: of the table.
        class_of: image -> class; an image is a path, with its extension or without.
        more: number of further columns.
    """

    path: Path
    class_of: dict[str, str]
    more: int = 0

    @property
    def stems(self) -> set[str]:
        """The file names without their extensions."""
        return {without_extension(image.rpartition("/")[2]) for image in self.class_of}


def read_table(path: Path) -> LabelTable:
    """Read a table in any of the forms at the top of this file.

    Raises:
        UserError: it cannot be read, a line has no class, or an image has two.
    """
    if path.name == GROUND_TRUTH:
        return LabelTable(path, _ground_truth(path))
    class_of: dict[str, str] = {}
    more = 0
    for number, image, text, *others in read_rows(path):
        more = max(more, len(others))
        label, is_image_too = _label(text)
        if is_image_too and not is_image(image):
            raise UserError(
                f"{path}, line {number}: found the image {label} in the second column; {EXPECTED}. Put it into the "
                "first one."
            )
        if class_of.setdefault(image, label) != label:
            raise UserError(
                f"{path}, line {number}: found a second class, {label!r}, of {image}, which was {class_of[image]!r}; "
                "expected one per image. Remove one of the lines."
            )
    if not class_of:
        raise UserError(f"{path}: found no image; {EXPECTED}.")
    return LabelTable(path, class_of, more)


@lru_cache(1 << 16)
def _label(text: str) -> tuple[str, bool]:
    """Return the class in a cell, behind which Kaggle's table has boxes, and whether it looks like an image."""
    first = text.split(" ", 1)[0]
    label = first if WNID.fullmatch(first) else text
    return label, is_image(label)


def read_rows(path: Path) -> Iterator[tuple[Any, ...]]:
    """Yield line number, image, class and the other columns of each line of a table, also of its header.

    Raises:
        UserError: it cannot be read, or one of the first two columns is empty.
    """
    try:
        text = _text(path)
        lines = text.split("\n", 1)
        told = re.fullmatch("sep=(.)", lines[0])  # Excel's line, which is none of the table
        if told:
            text = "\n" + lines[-1]
        delimiter = told[1] if told else _delimiter(text)
        for number, row in enumerate(csv.reader(StringIO(text), delimiter=delimiter), start=1):
            image, label, *others = [*map(str.strip, row), "", ""][: max(2, len(row))]
            if image and label:
                yield number, image, label, *others
            elif any(row):
                raise UserError(
                    f"{path}, line {number}: found {delimiter.join(row)[:99]!r}; {EXPECTED}. Correct this line, or "
                    "leave out the columns before."
                )
    except (OSError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read ({reason}); {EXPECTED}. Correct it or its path.") from error


def _text(path: Path) -> str:
    """Return the content of a text file in UTF-8, its lines ended by newlines.

    Raises:
        UserError: it is none.
        OSError: it cannot be read.
    """
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
        position = content.find(b"\0")
    except UnicodeDecodeError as error:
        text, position = "", error.start
    if position >= 0:
        line = content.count(b"\n", 0, position) + 1
        raise UserError(
            f"{path} is not a text file in UTF-8: line {line} contains the byte 0x{content[position]:02x}; {EXPECTED}. "
            "Save it as CSV in UTF-8."
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _delimiter(text: str) -> str:
    """Return what separates the columns: what does so in the same way on most of the first lines, and comes first.

    A space, as in Caffe's lists, only where nothing else does.
    """
    lines = [line for line in islice(StringIO(text), SAMPLED) if line.strip()]

    def rank(delimiter: str) -> tuple[int, bool, bool, int]:
        columns = Counter(map(len, csv.reader(lines, delimiter=delimiter)))
        return columns[1], len(columns) > 1, delimiter != "\t", lines[0].find(delimiter)

    best = min("\t,;", key=rank) if lines else ","
    return best if any(best in line for line in lines) else " "


def _ground_truth(path: Path) -> dict[str, str]:
    """Return the classes of ILSVRC's validation images; the kit numbers its classes in an order of its own."""
    from scipy.io import loadmat

    meta = path.with_name(META)
    try:
        synsets = loadmat(meta, squeeze_me=True)["synsets"]
        wnids = {int(number): str(wnid) for number, wnid in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)}
        numbers = [int(line) for line in path.read_text().split()]
        return {f"ILSVRC2012_val_{i:08d}": wnids[number] for i, number in enumerate(numbers, start=1)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} and {meta.name} beside it cannot be read ({type(error).__name__}: {error}); expected the files of "
            "the folder data/ in ILSVRC2012_devkit_t12.tar.gz. Extract it again."
        ) from error


def with_table_beside(found: Found, folder: Path) -> ImageList:
    """Return images with the classes of the table that ImageNet comes with, or without classes."""
    if table := table_beside(found, folder):
        return with_labels(found, table, may_lack=True)
    return image_list(found, [], np.full(len(found.paths), -1, np.int32))


def table_beside(found: Found, folder: Path) -> LabelTable | None:
    """Return the table that ImageNet comes with, if it lists most of these images.

    Args:
        found: the images.
        folder: theirs. The table is in it or above it.
    """
    kit = Path("ILSVRC2012_devkit_t12", "data", GROUND_TRUTH)
    above = [folder, *folder.resolve().parents[:4]]
    paths = [parent / TINY for parent in above[:2]] + [p / name for p in above for name in (KAGGLE, GROUND_TRUTH, kit)]
    for path in filter(Path.is_file, paths):
        table = read_table(path)
        listed = table.stems
        if 2 * sum(without_extension(name.rpartition("/")[2]) in listed for name in found.paths) > len(found.paths):
            return table
    return None


def with_labels(found: Found, table: LabelTable, may_lack: bool = False) -> ImageList:
    """Return the images that a table lists, with its classes, sorted as text; the census counts the others.

    A table may give paths below its own folder or below that of the images, or file names, with or without extension.

    Args:
        found: the images.
        table: their classes.
        may_lack: the table may list images that do not exist.

    Raises:
        UserError: the table lists an image that does not exist, or is ambiguous.
    """
    class_of = dict(table.class_of)
    found.census.source += f", classes from {table.path}"
    if table.more:
        found.census.pass_over("further table column", f"from column 3 of {table.path.name}", table.more)
    found.census.table = table.path
    header = _header(class_of)
    rows = match_paths(table.path, class_of, found.root, found.paths, header if len(class_of) > 1 else None)
    if header and header not in rows:
        found.census.source += f" (header: {header}, {class_of.pop(header)})"
    if not class_of:
        raise UserError(f"{table.path}: found no image, only the header {header}; {EXPECTED}.")
    missing = [image for image in class_of if image not in rows]
    if missing and (not may_lack or len(missing) == len(class_of)):
        like = look_alike(missing[0], found.paths)
        raise UserError(
            f"{table.path}: {len(missing):,} of the {len(class_of):,} images that it lists are not in {found.root}; "
            f"the first: {missing[0]}{like and f', where {like}'}. Expected paths such as {found.paths[0]}, "
            "with or without folders and extension. Correct the table, or remove these lines."
        )
    if missing:
        found.census.pass_over("unmatched table line", missing[0], len(missing))
    class_names = sorted({class_of[image] for image in rows if image in class_of})
    if all(map(str.isdecimal, class_names)):
        found.census.source += NUMBERED
    position = {name: label for label, name in enumerate(class_names)}
    labels = np.full(len(found.paths), -1, np.int32)
    for image, row in rows.items():
        if row < 0 or labels[row] >= 0:
            raise UserError(
                f"{table.path}: {image} may be two images in {found.root}, or is listed twice; expected a path "
                f"such as {found.paths[0]}, once. Correct this line."
            )
        labels[row] = position[class_of[image]]
    for row in np.flatnonzero(labels < 0).tolist():
        found.census.pass_over("unlisted image", found.paths[row])
    return image_list(found, class_names, labels, labels >= 0)


def _header(class_of: dict[str, str]) -> str | None:
    """Return the first image of a table if it may be a header: no file name of an image, with a class of its own."""
    first = next(iter(class_of))
    return None if is_image(first) or Counter(class_of.values())[class_of[first]] > 1 else first
