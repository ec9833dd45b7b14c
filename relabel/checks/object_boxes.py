"""Where the objects are: boxes in ImageNet's localisation format (Pascal-VOC XML), or of the embedded digit scenes.

    FOLDER/n01440764/n01440764_10040.xml   of the image n01440764/n01440764_10040.JPEG; FOLDER/n01440764_10040.xml too
    train.json                             of all images, as `python -m relabel digits` writes it

Annotation files come from elsewhere, so they are read with care: no document type, hence no entities; no name in them
is taken for a path.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np

from relabel.crop_box import CropBox
from relabel.data.class_names import WNID
from utils.errors import UserError
from utils.files import read_json

LARGEST_XML = 1_000_000  # bytes; a thousand objects take 300,000
EXPECTED_SOURCE = (
    "expected a folder of Pascal-VOC files, FOLDER/CLASS/STEM.xml or FOLDER/STEM.xml for the image CLASS/STEM.JPEG, or "
    "the train.json that `python -m relabel digits` writes"
)


@dataclass(frozen=True, slots=True)
class ObjectBox:
    """One object of an image.

    Fields:
        class_name: the name of its class folder; may be a class that the data set does not have.
        box: what it covers.
    """

    class_name: str
    box: CropBox


@dataclass(frozen=True, slots=True)
class Truth:
    """The labels (positions of the class folders) and boxes of a digit scene, the label's own digit first."""

    labels: tuple[int, ...]
    boxes: tuple[CropBox, ...]


class ObjectBoxes(Protocol):
    """Boxes by image, read when asked for."""

    def boxes_of(self, key: str) -> list[ObjectBox]:
        """The objects of the image "CLASS/STEM", none where nobody drew boxes. UserError naming a wrong file."""
        ...


def open_object_boxes(source: str | Path, class_names: Sequence[str]) -> ObjectBoxes:
    """The boxes in a folder of XML files or in a JSON file of digit scenes.

    Args:
        source: see the top of this file.
        class_names: the data's class folders, sorted; digit scenes count classes by their position.

    Raises:
        UserError: there is no such source, or it is something else.
    """
    source = Path(source)
    if source.is_file():
        return SceneBoxes(source, class_names)
    if next(source.glob("*.xml"), None) is None and next(source.glob("*/*.xml"), None) is None:
        found = "no .xml file in its folder or the folders below" if source.is_dir() else "nothing there"
        raise UserError(f"object boxes {source}: found {found}; {EXPECTED_SOURCE}. Give another --boxes.")
    return XmlBoxes(source)


@dataclass(frozen=True, slots=True, eq=False)
class SampleBoxes:
    """The boxes of some images.

    Fields:
        of_row: row -> the objects of that image; only images with boxes.
        asked: how many images were looked up.
        refused: a message for each file that was wrong; ImageNet itself has a few of them.
    """

    of_row: dict[int, list[ObjectBox]]
    asked: int
    refused: list[str]


def look_up(source: ObjectBoxes, keys: np.ndarray, rows: np.ndarray) -> SampleBoxes:
    """The boxes of the images in these rows; wrong files are listed, not raised.

    Args:
        source: of the boxes.
        keys: bytes [N], "CLASS/STEM" of every image.
        rows: int64 [n]; the images to look up.
    """
    of_row, refused = {}, []
    for row in rows.tolist():
        try:
            boxes = source.boxes_of(os.fsdecode(keys[row]))
        except UserError as error:
            refused.append(str(error))
            continue
        if boxes:
            of_row[row] = boxes
    return SampleBoxes(of_row, len(rows), refused)


class XmlBoxes:
    """ObjectBoxes over a folder of Pascal-VOC files; a file is opened when its image is asked for."""

    def __init__(self, root: Path) -> None:
        """Remember the folder."""
        self._root = root

    def boxes_of(self, key: str) -> list[ObjectBox]:
        """See ObjectBoxes."""
        folder, _, stem = key.rpartition("/")
        if folder:
            stem = stem.removesuffix(f"_{folder}")  # the parquet copy of ImageNet appends the class to the stem
        for path in (self._root / folder / f"{stem}.xml", self._root / f"{stem}.xml"):
            if path.is_file():
                return read_voc_file(path, folder)
        return []


class SceneBoxes:
    """ObjectBoxes of digit scenes, from one JSON file."""

    def __init__(self, path: Path, class_names: Sequence[str]) -> None:
        """Read the file. UserError: it is none of digit scenes, or counts more classes than there are."""
        self._class_names = list(class_names)
        self._truth = {name.rpartition(".")[0]: truth for name, truth in read_truth(path).items()}
        largest = max((label for truth in self._truth.values() for label in truth.labels), default=0)
        if largest >= len(class_names):
            raise UserError(
                f"{path}: found the class {largest}; expected 0..{len(class_names) - 1}, the positions of the images' "
                f"{len(class_names)} class folders. Give the boxes that belong to these images."
            )

    def boxes_of(self, key: str) -> list[ObjectBox]:
        """See ObjectBoxes."""
        truth = self._truth.get(key, Truth((), ()))
        pairs = zip(truth.labels, truth.boxes, strict=True)
        return [ObjectBox(self._class_names[label], box) for label, box in pairs]


def read_truth(path: Path) -> dict[str, Truth]:
    """Read train.json or val.json of a folder of digit scenes: "CLASS/FILE" -> Truth.

    Raises:
        UserError: the file is missing or is not such a file.
    """
    expected = f"expected the true labels that `python -m relabel digits --out {path.parent}` writes"
    entries = read_json(path, expected)
    try:
        return {name: _truth(entry["labels"], entry["boxes"]) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {error}); {expected}.") from error


def _truth(labels: Sequence[int], boxes: Sequence[Sequence[float]]) -> Truth:
    if len(labels) != len(boxes) or not all(type(label) is int and label >= 0 for label in labels):
        raise ValueError(f"found the labels {labels} and {len(boxes)} boxes; expected a class number for each box")
    return Truth(tuple(labels), tuple(_box(*sides) for sides in boxes))


def read_voc_file(path: Path, class_folder: str) -> list[ObjectBox]:
    """The objects of a Pascal-VOC file, in its order; their parts (a person's head) are passed over.

    A box that crosses the image's border is cut there: some of ImageNet's do.

    Args:
        path: of the file.
        class_folder: of the image. Many of ImageNet's dogs bear their English name where all others bear a folder's;
            they are taken for objects of this folder.

    Raises:
        UserError: naming the file and the reason.
    """
    try:
        root = _parse(_read_small(path))
        width, height = _number(root, "size/width"), _number(root, "size/height")
        if width <= 0 or height <= 0:
            raise ValueError(f"its <size> is {width:g} x {height:g}")
        return [_object(element, width, height, class_folder) for element in root.iterfind("object")]
    except (OSError, ValueError, LookupError, expat.ExpatError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise UserError(
            f"{path}: cannot be read as object boxes: {reason}. Expected a Pascal-VOC file: <size> and, for each "
            "<object>, <name> and <bndbox> inside the image. Correct it or remove it."
        ) from error


def _read_small(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(LARGEST_XML + 1)
    if len(content) > LARGEST_XML:
        raise ValueError(f"it has more than {LARGEST_XML:,} bytes")
    return content


def _parse(content: bytes) -> Element:
    """The root of an XML document without document type, so that nothing in it can expand or point elsewhere."""
    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = _refuse_doctype
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.Parse(content, True)
    return builder.close()


def _refuse_doctype(name: str, *_: object) -> None:
    raise ValueError("it declares a document type, through which a file could reach out of itself")


def _object(element: Element, width: float, height: float, class_folder: str) -> ObjectBox:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise ValueError("an <object> has no <name>")
    if WNID.fullmatch(class_folder) and not WNID.fullmatch(name):
        name = class_folder
    sides = [_number(element, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
    left, top, right, bottom = sides
    # The first pixel is number 1 in VOC and 0 in some of ImageNet's files: one pixel of doubt, less than a map shows.
    box = (left - 1) / width, (top - 1) / height, right / width, bottom / height
    if not (left < right and top < bottom):
        raise ValueError(f"the box xmin, ymin, xmax, ymax = {_listed(sides)} is empty")
    try:
        return ObjectBox(name, _box(*(min(max(side, 0.0), 1.0) for side in box)))
    except ValueError:
        outside = f"the box {_listed(sides)} is outside the {width:g} x {height:g} pixels of <size>"
        raise ValueError(outside) from None


def _number(element: Element, path: str) -> float:
    """The finite number in a descendant element. ValueError naming it otherwise."""
    text = element.findtext(path)
    try:
        value = float(text or "")
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise ValueError(f"<{path}> is {'missing' if text is None else repr(text[:40])}, not a number")
    return value


def _listed(sides: Sequence[float]) -> str:
    return ", ".join(f"{side:g}" for side in sides)


def _box(left: float, top: float, right: float, bottom: float) -> CropBox:
    """A CropBox; ValueError, not a failed assertion, where the sides come from a file."""
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        sides = _listed((left, top, right, bottom))
        raise ValueError(f"found the box {sides}; expected left, top, right, bottom as fractions of the image")
    return CropBox(left, top, right, bottom)
