"""Labels of images in a table: CSV or TSV files with an image and its class on each line, and ImageNet's own forms.

    image,class          any folder: --data.train_labels, --data.val_labels; the header is optional
    ImageId,PredictionString
    ILSVRC2012_val_00000001,n01751748 111 108 325 298     Kaggle's LOC_val_solution.csv: the class, then boxes
    val_0.JPEG<TAB>n03444034<TAB>0<TAB>32<TAB>44<TAB>62   Tiny ImageNet's val_annotations.txt

and the development kit of ILSVRC 2012: ILSVRC2012_validation_ground_truth.txt with meta.mat beside it.
"""

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from relabel.data.class_names import WNID
from relabel.data.images import Found, ImageList, image_list
from utils.errors import UserError

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


def read_table(path: Path) -> LabelTable:
    """Read a table in any of the forms at the top of this file.

    Raises:
        UserError: it cannot be read, a line has no class, or an image has two.
    """
    if path.name == GROUND_TRUTH:
        return LabelTable(path, _ground_truth(path))
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {EXPECTED}. Correct its path.") from error
    delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
    class_of: dict[str, str] = {}
    for number, row in enumerate(csv.reader(text.splitlines(), delimiter=delimiter), start=1):
        if not any(row):
            continue
        image, label = row[0].strip(), _class_in(row)
        if not image or not label:
            raise UserError(
                f"{path}, line {number}: found {delimiter.join(row)[:99]!r}; {EXPECTED}. Correct this line."
            )
        if class_of.setdefault(image, label) != label:
            raise UserError(
                f"{path}, line {number}: found a second class, {label!r}, of {image}, which was {class_of[image]!r}; "
                "expected one per image. Remove one of the lines."
            )
    if not class_of:
        raise UserError(f"{path}: found no image; {EXPECTED}.")
    return LabelTable(path, class_of)


def _class_in(row: Sequence[str]) -> str:
    """Return the class on a line: its second column, of which Kaggle's has boxes behind the class."""
    label = row[1].strip() if len(row) > 1 else ""
    first = label.split(" ", 1)[0]
    return first if WNID.fullmatch(first) else label


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


def table_beside(folder: Path) -> Path | None:
    """Return the table that ImageNet's or Tiny ImageNet's validation images come with: in the folder or above it."""
    kit = Path("ILSVRC2012_devkit_t12", "data", GROUND_TRUTH)
    above = [folder, *folder.resolve().parents[:4]]
    found = [parent / name for parent in above[:2] for name in (TINY,)]
    found += [parent / name for parent in above for name in (KAGGLE, GROUND_TRUTH, kit)]
    return next((path for path in found if path.is_file()), None)


def with_labels(found: Found, table: LabelTable) -> ImageList:
    """Return the images that a table lists, with its classes, sorted as text; the census counts the others.

    A table may give paths below its own folder or below that of the images, or file names, with or without extension.

    Raises:
        UserError: the table lists an image that does not exist, or is ambiguous.
    """
    row_of = _rows_by_name(found, Path(os.path.relpath(found.root, table.path.parent)).as_posix())
    class_of = {os.path.normpath(image): label for image, label in table.class_of.items()}
    first, of_first = next(iter(class_of.items()))
    if first not in row_of and [*class_of.values()].count(of_first) == 1:  # the header
        del class_of[first]
    missing = [image for image in class_of if image not in row_of]
    if missing:
        raise UserError(
            f"{table.path}: {len(missing):,} of the {len(class_of):,} images that it lists are not in {found.root}; "
            f"the first: {missing[0]}. Expected paths such as {found.paths[0]}, with or without folders and extension. "
            "Correct the table, or remove these lines."
        )
    class_names = sorted({*class_of.values()})
    position = {name: label for label, name in enumerate(class_names)}
    labels = np.full(len(found.paths), -1, np.int32)
    for image, label in class_of.items():
        row = row_of[image]
        if row < 0 or labels[row] >= 0:
            raise UserError(
                f"{table.path}: {image} may be two images in {found.root}, or is listed twice; expected a path."
            )
        labels[row] = position[label]
    for row in np.flatnonzero(labels < 0).tolist():
        found.census.pass_over("not in the table", found.paths[row])
    found.census.source += f", classes from {table.path}"
    return image_list(found, class_names, labels, labels >= 0)


def _rows_by_name(found: Found, folder: str) -> dict[str, int]:
    """Return the row of each image by every name that a table may give it; -1 for a name of two images."""
    full = [f"{folder}/{path}" for path in found.paths]
    files = [path.rpartition("/")[2] for path in found.paths]
    ways = [names for whole in (full, found.paths, files) for names in (whole, [_stem(name) for name in whole])]
    rows: dict[str, int] = {}
    for names in ways:
        same: dict[str, int] = {}
        for row, name in enumerate(names):
            same[name] = row if same.setdefault(name, row) == row else -1
        rows = same | rows  # the earlier, more exact names win
    return rows


def _stem(path: str) -> str:
    """Return a path without the extension."""
    folder, slash, file = path.rpartition("/")
    return folder + slash + (file.rpartition(".")[0] or file)
