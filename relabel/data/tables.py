"""Labels of images in a table: CSV or TSV files with an image and its class on each line, and ImageNet's own forms.

    image,class          any folder: --data.train_labels, --data.val_labels; the header is optional
    ImageId,PredictionString
    ILSVRC2012_val_00000001,n01751748 111 108 325 298     Kaggle's LOC_val_solution.csv: the class, then boxes
    val_0.JPEG<TAB>n03444034<TAB>0<TAB>32<TAB>44<TAB>62   Tiny ImageNet's val_annotations.txt

and the development kit of ILSVRC 2012: ILSVRC2012_validation_ground_truth.txt with meta.mat beside it.
"""

import csv
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np

from relabel.data.class_names import WNID
from relabel.data.images import Found, ImageList, image_list
from utils.errors import UserError
from utils.look_alikes import look_alike

KAGGLE = "LOC_val_solution.csv"
TINY = "val_annotations.txt"
GROUND_TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
EXPECTED = "expected a CSV or TSV file with an image and its class on each line"


@dataclass(frozen=True, slots=True, eq=False)
class LabelTable:
    """The class of each image that a table lists: image, as written there, -> name of its class.

    Fields:
        path: of the table.
        class_of: image -> class; an image is a path, with its extension or without.
    """

    path: Path
    class_of: dict[str, str]

    @property
    def stems(self) -> set[str]:
        """The file names without their extensions."""
        return {_stem(image.rpartition("/")[2]) for image in self.class_of}


def read_table(path: Path) -> LabelTable:
    """Read a table in any of the forms at the top of this file.

    Raises:
        UserError: it cannot be read, a line has no class, or an image has two.
    """
    if path.name == GROUND_TRUTH:
        return LabelTable(path, _ground_truth(path))
    class_of: dict[str, str] = {}
    for number, image, text in read_rows(path):
        first = text.split(" ", 1)[0]  # Kaggle's table has boxes behind the class
        label = first if WNID.fullmatch(first) else text
        if class_of.setdefault(image, label) != label:
            raise UserError(
                f"{path}, line {number}: found a second class, {label!r}, of {image}, which was {class_of[image]!r}; "
                "expected one per image. Remove one of the lines."
            )
    if not class_of:
        raise UserError(f"{path}: found no image; {EXPECTED}.")
    return LabelTable(path, class_of)


def read_rows(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield line number and first two columns of a CSV or TSV file, also of its header.

    Raises:
        UserError: it cannot be read, or one of them is empty.
    """
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
        if "\0" in text:
            raise UserError(f"{path} is not a text file in UTF-8; {EXPECTED}. Save it as CSV in UTF-8.")
        delimiter = next((character for character in "\t,;" if character in text.partition("\n")[0]), ",")
        rows = list(csv.reader(StringIO(text, newline=""), delimiter=delimiter))
    except (OSError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read ({reason}); {EXPECTED}. Correct it or its path.") from error
    for number, row in enumerate(rows, start=1):
        image, label = [*(cell.strip() for cell in row), "", ""][:2]
        if any(row) and not (image and label):
            raise UserError(
                f"{path}, line {number}: found {delimiter.join(row)[:99]!r}; {EXPECTED}. Correct this line."
            )
        if any(row):
            yield number, image, label


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
        if 2 * sum(_stem(name.rpartition("/")[2]) in listed for name in found.paths) > len(found.paths):
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
    found.census.table = table.path
    rows = _rows(found, table)
    first = next(iter(class_of))
    if first not in rows and Counter(class_of.values())[class_of[first]] == 1:
        found.census.source += f" (header: {first}, {class_of.pop(first)})"
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


def _rows(found: Found, table: LabelTable) -> dict[str, int]:
    """Return the row of each image that a table lists and that exists; -1 if it may be two. The exact names win."""
    beside = table.path.parent
    folder = os.path.relpath(found.root, beside)
    wanted = {_inside(image, beside): image for image in table.class_of}
    labels = [*table.class_of.values()]
    header = {next(iter(wanted))} if labels.count(labels[0]) == 1 < len(labels) else set()
    rows: dict[str, int] = {}
    for names in _ways(found.paths, Path(folder).as_posix()):
        if wanted.keys() <= header:  # every other line is found
            break
        of_way: dict[str, int] = {}
        for row, name in enumerate(names):
            if name in wanted:
                of_way[name] = row if of_way.setdefault(name, row) == row else -1
        rows |= {wanted.pop(name): row for name, row in of_way.items()}
    return rows


def _inside(image: str, folder: Path) -> str:
    """Return the normal form of a path; an absolute one below a folder."""
    if image.startswith("/"):
        return os.path.relpath(image, folder.resolve())
    return os.path.normpath(image) if "./" in image or "//" in image else image  # the call takes longer than the rest


def _ways(paths: Sequence[str], folder: str) -> Iterator[list[str]]:
    """Yield the names that a table may give the images at these paths in a folder: the more exact ones first."""
    for names in (
        paths if folder == "." else [f"{folder}/{path}" for path in paths],
        paths,
        [p.rpartition("/")[2] for p in paths],
    ):
        yield list(names)
        yield [_stem(name) for name in names]


def _stem(path: str) -> str:
    """Return a path without the extension."""
    folder, slash, file = path.rpartition("/")
    return folder + slash + (file.rpartition(".")[0] or file)
