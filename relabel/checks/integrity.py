"""Check that every image has a label map, intact and in range; find unusual names and rotated images."""

import io
import os
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from relabel.annotation.label_set import LabelSet
from relabel.data.class_names import WNID
from relabel.data.decode import FORMATS, MOST_MEGAPIXELS
from relabel.data.images import ImagePath
from relabel.stores.packed import damaged_files
from utils.errors import UserError
from utils.progress import JobProgress

LISTED = 3


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of finding.

    Fields:
        title: for the table and messages.
        advice: what to do about it, or what it means.
        is_problem: the maps should not be used for training; otherwise it is only worth knowing.
    """

    title: str
    advice: str
    is_problem: bool = True


KINDS = {
    "missing_maps": Kind("images without a label map", "Make them with `python -m relabel annotate`, or download them"),
    "damaged_maps": Kind("damaged label maps", "Delete them and make or download them again"),
    "changed_files": Kind("files unlike the manifest", "Their sha256 differs: make or download them again"),
    "maps_without_image": Kind("label maps without an image", "Put the images back, or remove these maps"),
    "unreadable_images": Kind("unreadable images", "Replace or remove them"),
    "missing_maps_spelled_otherwise": Kind("maps under another spelling", "Rename the images, or these maps"),
    "maps_of_other_classes": Kind("label maps of other classes", "Their class folders have no images here", False),
    "names_with_several_dots": Kind(
        "names with several dots",
        "A map has its image's name up to the last dot; the 2021 code cut at the first",
        False,
    ),
    "names_in_parquet_spelling": Kind(
        "names that repeat the class", "As in ImageNet's parquet copy; released maps have the original names", False
    ),
    "rotated_images": Kind(
        "images with a rotation tag", "Training and `annotate` ignore it; maps made with it applied do not fit", False
    ),
}
OF_IMAGES = ("unreadable_images", "rotated_images")


@dataclass(slots=True)
class Finding:
    """The number of cases of one kind, and the first few."""

    count: int = 0
    first: list[str] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Integrity:
    """Findings of a check of all maps and images.

    Fields:
        images: N.
        findings: name of a kind -> its finding; without images, only the kinds that need none.
        usable: int64 [n]; rows with an intact map.
        shape: (k, h, w) of the maps; None if none can be read.
    """

    images: int
    findings: dict[str, Finding]
    usable: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    shape: tuple[int, int, int] | None = None

    def add(self, kind: str, case: str) -> None:
        """Count a case, and keep it if it is one of the first."""
        finding = self.findings[kind]
        finding.count += 1
        finding.first += [case][: LISTED - len(finding.first)]

    def problems(self) -> list[str]:
        """Return what is wrong, each with what to do."""
        return [
            "\n  ".join([f"{title}: {found.count:,}. The first:", *found.first]) + f"\n{advice}."
            for title, found, advice in self._found(is_problem=True)
        ]

    def notes(self) -> list[str]:
        """Return what is worth knowing but not a problem."""
        return [
            f"{title}: {found.count:,}, such as {found.first[0]}. {advice}."
            for title, found, advice in self._found(is_problem=False)
        ]

    def _found(self, is_problem: bool) -> Iterator[tuple[str, Finding, str]]:
        for name, kind in KINDS.items():
            found = self.findings.get(name)
            if found and found.count and kind.is_problem == is_problem:
                yield kind.title[0].upper() + kind.title[1:], found, kind.advice

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: counts, and the first cases of each kind."""
        found = {name: asdict(self.findings[name]) if name in self.findings else None for name in KINDS}
        return {"images": self.images, "shape_k_h_w": self.shape, "whole_maps": len(self.usable), **found}


def check_integrity(labels: LabelSet) -> Integrity:
    """Read every label map and the header of every image; continue after a damaged one.

    Images that were skipped when the maps were made are not counted as missing.
    """
    kinds = [name for name in KINDS if labels.images or name not in OF_IMAGES]
    result = Integrity(len(labels), {name: Finding() for name in kinds})
    _check_names(result, labels.keys)
    _compare_keys(result, labels)
    for name in damaged_files(labels.path, labels.manifest) if labels.manifest else []:
        result.add("changed_files", name)
    missing, usable = set(labels.store.missing().tolist()), []
    with JobProgress("check", len(labels), "images") as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about odd EXIF data, once per image
        for row in range(len(labels)):
            if row not in missing:
                try:
                    labels.store.check(row)
                    usable.append(row)
                except UserError as error:
                    result.add("damaged_maps", str(error))
            if labels.images:
                _check_image(result, labels.images.path(row))
            progress.advance(1)
    result.usable = np.array(usable, dtype=np.int64)
    result.shape = labels.store.read(usable[0]).shape if usable else None
    return result


def _check_names(result: Integrity, keys: np.ndarray) -> None:
    for key in map(os.fsdecode, keys):
        folder, _, stem = key.rpartition("/")
        if "." in stem:
            result.add("names_with_several_dots", key)
        if WNID.fullmatch(folder) and stem.endswith(f"_{folder}"):
            result.add("names_in_parquet_spelling", key)


def _compare_keys(result: Integrity, labels: LabelSet) -> None:
    """Find images without a map and maps without an image."""
    unpaired = dict.fromkeys(np.setdiff1d(labels.store_keys, labels.keys).tolist())
    for row in labels.store.missing().tolist():
        key = labels.key(row)
        if key in labels.skipped:
            continue
        result.add("missing_maps", f"{key}: expected its map at {labels.store.location(row)}")
        other = next((name for name in _other_spellings(key) if os.fsencode(name) in unpaired), None)
        if other:
            result.add("missing_maps_spelled_otherwise", f"image {key}, map {other}")
    folders = {key.rpartition(b"/")[0] for key in labels.keys.tolist()}
    for key in unpaired:
        is_orphan = key.rpartition(b"/")[0] in folders
        result.add("maps_without_image" if is_orphan else "maps_of_other_classes", os.fsdecode(key))


def _other_spellings(key: str) -> list[str]:
    """Return other keys that an image's map may have: the original, the parquet copy's, cut at the first dot."""
    folder, slash, stem = key.rpartition("/")
    stems = (stem.removesuffix(f"_{folder}"), f"{stem}_{folder}", stem.partition(".")[0])
    return [f"{folder}{slash}{other}" for other in stems if folder and other != stem]


def _check_image(result: Integrity, path: ImagePath) -> None:
    try:
        if orientation(path) != 1:
            result.add("rotated_images", str(path))
    except OSError as error:
        result.add("unreadable_images", f"{path}: {error}")


def orientation(path: ImagePath) -> int:
    """Return the EXIF orientation of an image, 1 (as stored) to 8; reads only the file's header.

    TIFF counts as 1: there, orientation is part of the format, and Pillow applies it.

    Raises:
        OSError: no such file, or not an image.
    """
    try:
        # Of a file on its own, only the header is read.
        opened = Image.open(path if isinstance(path, Path) else io.BytesIO(path.read_bytes()), formats=FORMATS)
    except Exception as error:  # damaged headers raise almost anything in Pillow
        reason = getattr(error, "strerror", None) or "not in an image format that Pillow reads"
        raise OSError(reason) from error
    with opened as image:
        if image.width * image.height > MOST_MEGAPIXELS * 1e6:
            raise OSError(f"{image.width:,} x {image.height:,} pixels, more than {MOST_MEGAPIXELS} megapixels")
        if "exif" not in image.info or image.format == "TIFF":
            return 1  # without "exif", Pillow would decode a whole PNG to look for it behind the pixels
        try:
            value = image.getexif().get(ExifTags.Base.Orientation, 1)
        except Exception:
            return 1  # damaged metadata counts as none, and raises almost anything
    return value if value in range(1, 9) else 1
