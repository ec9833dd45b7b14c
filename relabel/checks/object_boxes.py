"""Object boxes in ImageNet's localisation format (Pascal-VOC XML), or of the embedded digit scenes.

    FOLDER/n01440764/n01440764_10040.xml   of the image n01440764/n01440764_10040.JPEG; FOLDER/n01440764_10040.xml too
    LOC_train_solution.csv                 Kaggle's: ImageId, then "WNID left top right bottom" of each object
    train.json                             of all images, as `python -m relabel digits` writes it

Annotation files are untrusted: no document type is accepted, hence no entities, and no name in them is used as a path.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import XML, Element, ParseError, TreeBuilder, XMLParser

import numpy as np

from relabel.annotation.label_set import LabelSet
from relabel.crop_box import CropBox
from relabel.data.class_names import WNID
from relabel.data.decode import ImageFile
from relabel.data.tables import read_rows
from utils.errors import UserError
from utils.files import read_json

LARGEST_XML = 1_000_000  # bytes; a thousand objects take 300,000


@dataclass(frozen=True, slots=True)
class ObjectBox:
    """An object in an image: its class folder's name, which the data set may lack, and its box."""

    class_name: str
    box: CropBox


# Objects of a digit scene, the labelled one first: the index of the class folder, and the box.
Truth = list[tuple[int, CropBox]]

# Key of an image, "CLASS/STEM" -> its objects, empty if it has no boxes. Raises UserError for an invalid file.
BoxReader = Callable[[str], list[ObjectBox]]


def open_object_boxes(source: Path, class_names: Sequence[str], labels: LabelSet | None = None) -> BoxReader:
    """Open a folder of XML files, Kaggle's CSV file or a JSON file of digit scenes.

    Args:
        source: see the top of this file.
        class_names: the data's class folders, sorted; digit scenes refer to classes by index.
        labels: with the images, whose sizes Kaggle's boxes need.

    Raises:
        UserError: the source does not exist, or is something else.
    """
    if source.is_file():
        return _open_kaggle(source, labels) if source.suffix == ".csv" else open_scene_boxes(source, class_names)
    if next(source.glob("*.xml"), None) is None and next(source.glob("*/*.xml"), None) is None:
        found = "no .xml file in its folder or the folders below" if source.is_dir() else "nothing there"
        raise UserError(
            f"object boxes {source}: found {found}; expected a folder of Pascal-VOC files, FOLDER/CLASS/STEM.xml or "
            "FOLDER/STEM.xml for the image CLASS/STEM.JPEG, Kaggle's LOC_val_solution.csv, or the train.json that "
            "`python -m relabel digits` writes. Give another --boxes."
        )
    return partial(_read_xml_boxes, source)


@dataclass(frozen=True, slots=True, eq=False)
class SampleBoxes:
    """The boxes of some images.

    Fields:
        of_row: row -> the objects of that image; only images with boxes.
        asked: number of images that were looked up.
        refused: a message for each invalid file; ImageNet itself has a few of them.
    """

    of_row: dict[int, list[ObjectBox]]
    asked: int
    refused: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"images_asked": self.asked, "images_with_boxes": len(self.of_row), "refused": self.refused}


def look_up(read: BoxReader, keys: np.ndarray, rows: np.ndarray) -> SampleBoxes:
    """Read the boxes of the images in some rows; invalid files are listed, not raised.

    Args:
        read: reads the objects of one image.
        keys: bytes [N], "CLASS/STEM" of every image.
        rows: int64 [n]; the images to look up.
    """
    of_row, refused = {}, []
    for row in rows.tolist():
        try:
            if boxes := read(os.fsdecode(keys[row])):
                of_row[row] = boxes
        except UserError as error:
            refused.append(str(error))
    return SampleBoxes(of_row, len(rows), refused)


def _read_xml_boxes(root: Path, key: str) -> list[ObjectBox]:
    folder, _, stem = key.rpartition("/")
    if folder:
        stem = stem.removesuffix(f"_{folder}")  # the parquet copy of ImageNet appends the class to the stem
    for path in (root / folder / f"{stem}.xml", root / f"{stem}.xml"):
        if path.is_file():
            return read_voc_file(path, folder)
    return []


def _open_kaggle(path: Path, labels: LabelSet | None) -> BoxReader:
    """Open Kaggle's boxes, in pixels; a box is read with the size of its image."""
    images = labels.images if labels else None
    if labels is None or images is None:
        raise UserError(f"object boxes {path} are in pixels; expected --images too, to read the images' sizes")
    texts = {image: text for _, image, text, *_ in read_rows(path)}
    row_of = {key: row for row, key in enumerate(labels.keys.tolist())}

    def read(key: str) -> list[ObjectBox]:
        words = texts.get(key.rpartition("/")[2], "").split()
        if not words:
            return []
        file = ImageFile(images.path(row_of[os.fsencode(key)]))
        try:
            groups = [(words[i], [float(word) for word in words[i + 1 : i + 5]]) for i in range(0, len(words), 5)]
            return [ObjectBox(name, _box(sides, file.width, file.height)) for name, sides in groups]
        except ValueError as error:
            raise UserError(
                f"{path}: the boxes of {key} cannot be read ({error}); expected WNID left top right bottom of each "
                "object, inside the image. Correct this line or remove it."
            ) from error

    return read


def open_scene_boxes(path: Path, class_names: Sequence[str]) -> BoxReader:
    """Open the JSON file of digit scenes. UserError: it is not one, or has classes that do not exist."""
    truths = {name.rpartition(".")[0]: truth for name, truth in read_truth(path).items()}
    largest = max((label for truth in truths.values() for label, _ in truth), default=0)
    if largest >= len(class_names):
        raise UserError(
            f"{path}: found the class {largest}; expected 0..{len(class_names) - 1}, the indices of the images' "
            f"{len(class_names)} class folders. Give the boxes that belong to these images."
        )
    boxes = {key: [ObjectBox(class_names[label], box) for label, box in truth] for key, truth in truths.items()}
    return lambda key: boxes.get(key, [])


def read_truth(path: Path) -> dict[str, Truth]:
    """Read train.json or val.json of a folder of digit scenes: "CLASS/FILE" -> Truth.

    Raises:
        UserError: the file is missing or of another form.
    """
    expected = f"expected the true labels that `python -m relabel digits --out {path.parent}` writes"
    entries = read_json(path, expected)
    try:
        return {name: _truth(entry["labels"], entry["boxes"]) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {error}); {expected}.") from error


def _truth(labels: Sequence[int], boxes: Sequence[Sequence[float]]) -> Truth:
    if len(labels) != len(boxes) or not all(type(label) is int and label >= 0 for label in labels):
        raise ValueError(f"found the labels {labels} and {len(boxes)} boxes; expected a class index for each box")
    for left, top, right, bottom in boxes:
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise ValueError(f"found the box {boxes}; expected left, top, right, bottom as fractions of the image")
    return [(label, CropBox(*sides)) for label, sides in zip(labels, boxes, strict=True)]


def read_voc_file(path: Path, class_folder: str) -> list[ObjectBox]:
    """Read the objects of a Pascal-VOC file, without their parts (such as a person's head).

    A box that crosses the image's border is clipped: some of ImageNet's do.

    Args:
        path: of the file.
        class_folder: of the image. Many of ImageNet's dogs have an English name where all other objects have the name
            of a folder; they count as objects of this folder.

    Raises:
        UserError: the file cannot be read; with the reason.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_XML + 1)
        if len(content) > LARGEST_XML:
            raise ValueError(f"it has more than {LARGEST_XML:,} bytes")
        root = XML(content, XMLParser(target=_TreeWithoutDoctype()))  # noqa: S314 (no entities without doctype)
        width, height = _number(root, "size/width"), _number(root, "size/height")
        if width <= 0 or height <= 0:
            raise ValueError(f"its <size> is {width:g} x {height:g}")
        return [_object(element, width, height, class_folder) for element in root.iterfind("object")]
    except (OSError, ValueError, LookupError, ParseError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise UserError(
            f"{path}: cannot be read as object boxes: {reason}. Expected a Pascal-VOC file: <size> and, for each "
            "<object>, <name> and <bndbox> inside the image. Correct it or remove it."
        ) from error


class _TreeWithoutDoctype(TreeBuilder):
    """Builds the tree of an XML document that cannot expand or refer to other files."""

    def doctype(self, *_: object) -> None:
        raise ValueError("it declares a document type, which could refer to other files")


def _object(element: Element, width: float, height: float, class_folder: str) -> ObjectBox:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise ValueError("an <object> has no <name>")
    if WNID.fullmatch(class_folder) and not WNID.fullmatch(name):
        name = class_folder
    sides = [_number(element, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
    return ObjectBox(name, _box(sides, width, height))


def _box(sides: Sequence[float], width: float, height: float) -> CropBox:
    """Convert left, top, right, bottom in pixels. ValueError for an empty box.

    The first pixel is number 1 in VOC and 0 in some of ImageNet's files; one pixel is less than a map can resolve.
    """
    if len(sides) != 4:
        raise ValueError(f"found {len(sides)} sides")
    left, top, right, bottom = np.clip((np.array(sides) - (1, 1, 0, 0)) / (width, height, width, height), 0, 1).tolist()
    if not (sides[0] < sides[2] and sides[1] < sides[3] and left < right and top < bottom):
        numbers = ", ".join(f"{side:g}" for side in sides)
        raise ValueError(f"the box {numbers} is empty or outside the {width:g} x {height:g} pixels of the image")
    return CropBox(left, top, right, bottom)


def _number(element: Element, path: str) -> float:
    """Return the finite number in a descendant element. ValueError if there is none."""
    text = element.findtext(path)
    with suppress(ValueError):
        if np.isfinite(value := float(text or "")):
            return value
    raise ValueError(f"<{path}> is {'missing' if text is None else repr(text[:40])}, not a number")
