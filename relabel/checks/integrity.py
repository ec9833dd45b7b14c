"""Does every image have its label map, whole and in range; and what about names and images surprises people."""

import os
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from relabel.data.class_names import WNID
from relabel.data.decode import FORMATS
from relabel.stores.store import LabelStore
from utils.errors import UserError
from utils.progress import JobProgress

LISTED = 3


@dataclass(slots=True)
class Finding:
    """Something that was met `count` times, and what was said the first few times."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, what: str) -> None:
        """Once more."""
        self.count += 1
        if self.count <= LISTED:
            self.first.append(what)

    def listed(self) -> str:
        """The first ones, on lines of their own."""
        return "".join(f"\n  {what}" for what in self.first)


@dataclass(slots=True, eq=False)
class Integrity:
    """What reading everything found.

    Fields:
        images: N.
        shape: (k, h, w) of the maps; None if none can be read.
        usable: int64 [n]; rows whose map is whole.
        missing: images without map.
        elsewhere: those of them whose map lies under another spelling of the name.
        damaged: maps that cannot be read or hold numbers out of range.
        orphans: maps without image, though their class folder has images.
        other_classes: maps of class folders that have no image at all, as when training on some of the classes.
        several_dots: names such as a.b.JPEG, whose map is a.b.pt; the 2021 code looked for a.pt.
        parquet_spelling: names such as n01440764/n01440764_10026_n01440764, as the parquet copy of ImageNet has them.
        rotated: images whose EXIF or XMP data ask for a rotation or reflection, which crops and maps ignore alike.
        unreadable_images: files whose header is not that of an image.
        changed_files: files of a packed store that are not those that its manifest names.
    """

    images: int
    shape: tuple[int, int, int] | None = None
    usable: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    missing: Finding = field(default_factory=Finding)
    elsewhere: Finding = field(default_factory=Finding)
    damaged: Finding = field(default_factory=Finding)
    orphans: Finding = field(default_factory=Finding)
    other_classes: Finding = field(default_factory=Finding)
    several_dots: Finding = field(default_factory=Finding)
    parquet_spelling: Finding = field(default_factory=Finding)
    rotated: Finding | None = None
    unreadable_images: Finding | None = None
    changed_files: Finding = field(default_factory=Finding)

    def problems(self) -> list[str]:
        """What is wrong, each with what to do."""
        found = [
            (
                "Images without label map",
                self.missing,
                "Make the maps with `python -m relabel annotate`, or fetch them",
            ),
            ("Damaged label maps", self.damaged, "Delete them and make or fetch them again"),
            (
                "Files of the store whose sha256 is not the one in its manifest",
                self.changed_files,
                "Fetch them again, or make these maps again",
            ),
            ("Label maps without image", self.orphans, "Put the images back, or remove these maps"),
            ("Images that cannot be read", self.unreadable_images, "Replace or remove them"),
            (
                "Missing maps that are there under another spelling of the image's name",
                self.elsewhere,
                "Rename the images or the maps so that both have one stem",
            ),
        ]
        return [f"{what}: {f.count:,}. The first:{f.listed()}\n{cure}." for what, f, cure in found if f and f.count]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; counts, and the first of each."""
        found = {"shape_k_h_w": list(self.shape) if self.shape else None, "images": self.images}
        findings = {
            "missing_maps": self.missing,
            "missing_maps_spelled_otherwise": self.elsewhere,
            "damaged_maps": self.damaged,
            "maps_without_image": self.orphans,
            "maps_of_other_classes": self.other_classes,
            "names_with_several_dots": self.several_dots,
            "names_in_parquet_spelling": self.parquet_spelling,
            "rotated_images": self.rotated,
            "unreadable_images": self.unreadable_images,
            "changed_files": self.changed_files,
        }
        found["whole_maps"] = len(self.usable)
        return found | {name: f and {"count": f.count, "first": f.first} for name, f in findings.items()}


def check_integrity(
    store: LabelStore,
    keys: np.ndarray,
    store_keys: np.ndarray,
    image_path: Callable[[int], Path] | None = None,
    skipped: Collection[str] = (),
) -> Integrity:
    """Read every label map, and the header of every image; nothing stops at the first mistake.

    Args:
        store: row i is the map of key i.
        keys: bytes [N], "CLASS/STEM" of every image.
        store_keys: bytes [M]; the keys of all maps that there are.
        image_path: gives the file of a row; None: there are no images to look at.
        skipped: keys that are known to have no map; they are not counted as missing.
    """
    result = Integrity(len(keys))
    _check_names(result, keys, store_keys)
    missing = store.missing()
    unpaired = np.setdiff1d(store_keys, keys)
    unexpected = missing[~np.isin(keys[missing], [os.fsencode(key) for key in skipped])] if skipped else missing
    _list_missing(result, store, keys, unexpected, set(unpaired.tolist()))
    _list_orphans(result, keys, unpaired)
    _read_all(result, store, set(missing.tolist()), image_path)
    return result


def _check_names(result: Integrity, keys: np.ndarray, store_keys: np.ndarray) -> None:
    for key in map(os.fsdecode, keys):
        folder, _, stem = key.rpartition("/")
        if "." in stem:
            result.several_dots.add(key)
        if WNID.fullmatch(folder) and stem.endswith(f"_{folder}"):
            result.parquet_spelling.add(key)


def _list_missing(
    result: Integrity, store: LabelStore, keys: np.ndarray, rows: np.ndarray, unpaired: set[bytes]
) -> None:
    for row in rows.tolist():
        key = os.fsdecode(keys[row])
        result.missing.add(f"{key}: expected its map at {store.location(row)}")
        other = next((name for name in _other_spellings(key) if os.fsencode(name) in unpaired), None)
        if other:
            result.elsewhere.add(f"image {key}, map {other}")


def _other_spellings(key: str) -> list[str]:
    """What others call the map of an image: the parquet copy's stem, the original's, the stem up to the first dot."""
    folder, slash, stem = key.rpartition("/")
    stems = (stem.removesuffix(f"_{folder}"), f"{stem}_{folder}", stem.partition(".")[0])
    return [f"{folder}{slash}{other}" for other in stems if folder and other != stem]


def _list_orphans(result: Integrity, keys: np.ndarray, unpaired: np.ndarray) -> None:
    folders = {key.rpartition(b"/")[0] for key in keys.tolist()}
    for key in unpaired.tolist():
        finding = result.orphans if key.rpartition(b"/")[0] in folders else result.other_classes
        finding.add(os.fsdecode(key))


def _read_all(
    result: Integrity, store: LabelStore, missing: set[int], image_path: Callable[[int], Path] | None
) -> None:
    usable = []
    if image_path is not None:
        result.rotated, result.unreadable_images = Finding(), Finding()
    with JobProgress("check", result.images, "images") as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's about odd EXIF data, once an image
        for row in range(result.images):
            if row not in missing and _is_whole(result, store, row):
                usable.append(row)
            if image_path is not None:
                _look_at_image(result, image_path(row))
            progress.advance(1)
    result.usable = np.array(usable, dtype=np.int64)
    result.shape = store.read(usable[0]).shape if usable else None


def _is_whole(result: Integrity, store: LabelStore, row: int) -> bool:
    try:
        store.check(row)
    except UserError as error:
        result.damaged.add(str(error))
        return False
    return True


def _look_at_image(result: Integrity, path: Path) -> None:
    assert result.rotated is not None and result.unreadable_images is not None
    try:
        asked = orientation(path)
    except OSError as error:  # what Pillow raises of a header that it does not know, too
        result.unreadable_images.add(f"{path}: {error.strerror or 'it is in no image format that Pillow reads'}")
        return
    if asked != 1:
        result.rotated.add(str(path))


def orientation(path: Path) -> int:
    """How a viewer is asked to turn an image, 1 (not at all) to 8; from the file's header, without decoding.

    TIFF counts as 1: there orientation is part of the format, and Pillow turns the pixels itself.

    Raises:
        OSError: no such file, or no image.
    """
    try:
        opened = Image.open(path, formats=FORMATS)
    except OSError:
        raise
    except Exception as error:  # damaged headers raise almost anything in Pillow
        raise UnidentifiedImageError(str(error)) from error
    with opened as image:
        told = image.info.keys() & {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}
        # Without "exif", Pillow would decode a whole PNG to look for it behind the pixels.
        if not told or image.format == "TIFF" or (image.format == "PNG" and "exif" not in told):
            return 1
        try:
            value = image.getexif().get(ExifTags.Base.Orientation, 1)
        except Exception:
            return 1  # damaged metadata can ask for nothing, and raises almost anything
    return value if value in range(1, 9) else 1
