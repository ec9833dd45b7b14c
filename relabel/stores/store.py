"""Label maps on disk in either form, the folder of .pt files or the packed store, behind one interface.

A map is read by the row of its key, "CLASS/STEM" of its image, and is checked on every read. Both forms give the same
targets: see relabel/stores/pt_folder.py and relabel/stores/packed.py.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from relabel.label_map import LabelMap
from relabel.stores.manifest import MANIFEST, Manifest, read_manifest
from relabel.stores.packed import MAPS, UNFINISHED, PackedStore, load_keys
from relabel.stores.pt_folder import HOW_TO_CONTINUE, HOW_TO_MAKE_MAPS, SUFFIX, LabelFolder, list_label_files
from utils.errors import UserError
from utils.files import locked, make_writable
from utils.look_alikes import look_alike


class LabelStore(Protocol):
    """The interface to label maps on disk: row i is the map of the i-th key, "CLASS/STEM" of an image.

    A store is cheap to pickle into loader workers and opens no map before the first read.
    """

    def __len__(self) -> int:
        """Return N, the number of keys."""

    def read(self, row: int) -> LabelMap:
        """Read the map of a row, with the data's class ids. UserError, with the file, if it is missing or damaged."""

    def check(self, row: int) -> None:
        """Read a map and check every number in it. UserError, with the file and the first bad cell."""

    def missing(self) -> np.ndarray:
        """Return the rows without a map, int64 [n]."""

    def location(self, row: int) -> str:
        """Return where the map of a row is or should be, for messages."""


class LabelMaps(Mapping[str, LabelMap]):
    """Label maps of either form by key, without their images: `LabelMaps(path)["n01440764/n01440764_10026"]`.

    A read-only mapping in the order of the sorted keys; a map is read on access.

    Attributes:
        classes: K texts; the class of each id.
    """

    def __init__(self, path: str | Path, classes: Sequence[str] = ()) -> None:
        """Open a packed store or a folder of CLASS/STEM.pt files.

        Args:
            path: of the folder.
            classes: the K classes, such as an ImageFolder's; the ids of the maps are then positions in this list. By
                default those in the manifest, or else the class folders.

        Raises:
            UserError: as `open_label_store`.
        """
        self._path, self._keys = path, keys_of(path)
        manifest = manifest_of(Path(path))
        self.classes = list(classes or (manifest.class_names if manifest else class_folders(self._keys)))
        self._store = open_label_store(path, self._keys, self.classes)

    def __getitem__(self, key: str) -> LabelMap:
        """Read the map of "CLASS/STEM". KeyError if there is none, UserError if it is damaged."""
        name = os.fsencode(key)
        row = int(np.searchsorted(self._keys, name))
        if row == len(self._keys) or self._keys[row] != name:
            raise KeyError(key)
        return self._store.read(row)

    def plot(
        self,
        key: str,
        image: str | Path,
        fill: float = 0.0,
        temperature: float = 1.0,
        classes: Sequence[str] | None = None,
    ) -> Any:
        """Draw the map of "CLASS/STEM" over its image, in a notebook or as a figure to save: see `plot_label_map`.

        Args:
            key, image, fill, temperature: as there.
            classes: those that share the target, such as the class folders, as in training; None: `self.classes`.
        """
        import relabel  # finds the figures, which are above this room, and loads matplotlib only here

        maps = LabelMaps(self._path, classes) if classes else self
        return relabel.plot_label_map(maps[key], image, maps.classes, fill, temperature)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys."""
        return map(os.fsdecode, self._keys)

    def __len__(self) -> int:
        """Return the number of maps."""
        return len(self._keys)


def open_label_store(path: str | Path, keys: np.ndarray, class_names: Sequence[str]) -> LabelStore:
    """Open the label maps in a folder, for images of the given keys.

    Class ids of maps made for other classes are translated by name if the maps' manifest names them; classes that the
    data lacks are ignored. Without a manifest (files of 2021), ids are positions in class_names.

    Args:
        path: folder of CLASS/STEM.pt files, or a packed store.
        keys: bytes [N] "CLASS/STEM" ("STEM" for images without class folders), in the order of the images.
        class_names: the K classes of the data.

    Raises:
        UserError: the folder does not exist, its store is unfinished or damaged, or the maps lack a class of the data.
    """
    root = Path(path)
    manifest = manifest_of(root)
    try:
        if manifest is not None and manifest.form == "packed":
            return PackedStore(root, manifest, keys, class_names)
        return LabelFolder(root, keys, class_names, manifest)
    except UserError as error:
        if like := _look_alike(class_names, manifest.class_names if manifest else []):
            raise UserError(f"{error} {like}.") from error
        raise


def _look_alike(class_names: Sequence[str], of_maps: Sequence[str]) -> str:
    """Return what tells the data's first class that the maps lack from one of theirs that looks like it."""
    known = {*of_maps}
    unknown = next((name for name in class_names if name not in known), None)
    return look_alike(unknown, of_maps) if unknown else ""


def keys_of(path: str | Path) -> np.ndarray:
    """Return the keys of all label maps in a folder, bytes [N], sorted. UserError as in `open_label_store`."""
    root = Path(path)
    manifest = manifest_of(root)
    if manifest is not None and manifest.form == "packed":
        return load_keys(root, manifest)
    return sorted_keys(list_label_files(root))


def sorted_keys(keys: Sequence[str]) -> np.ndarray:
    """Convert keys to a sorted array, bytes [N]."""
    return np.sort(np.array([os.fsencode(key) for key in keys], dtype=np.bytes_))


def class_folders(keys: np.ndarray) -> list[str]:
    """Return the class folders in keys (bytes [N]), sorted; empty if keys are only STEM."""
    return sorted({os.fsdecode(key.partition(b"/")[0]) for key in keys.tolist() if b"/" in key})


def check_present(store: LabelStore, image_path: Callable[[int], object]) -> None:
    """Check that every row has a map.

    Args:
        store: the label maps.
        image_path: returns the image of a row, for the message.

    Raises:
        UserError: maps are missing; with their number and the first pair of paths.
    """
    missing = store.missing()
    if len(missing):
        first = int(missing[0])
        raise UserError(
            f"images without a label map: {len(missing):,} of {len(store):,}. The first: image {image_path(first)}; "
            f"expected its map at {store.location(first)}. {HOW_TO_MAKE_MAPS}"
        )


def check_one_per_class(store: LabelStore, labels: np.ndarray) -> None:
    """Check one map of each class, to detect wrong maps before training. UserError as in LabelStore.check.

    Args:
        store: the label maps.
        labels: integer [N]; the class of each row.
    """
    for row in np.unique(labels, return_index=True)[1]:
        store.check(int(row))


def label_fingerprint(path: str | Path, store: LabelStore, labels: np.ndarray) -> str:
    """Identify label maps without reading them all: the sha256 of their manifest and of one map of each class.

    The manifest of a packed store contains the sha256 of its files.

    Args:
        path: the folder of the store.
        store: the label maps.
        labels: integer [N]; the class of each row.
    """
    digest = hashlib.sha256()
    with suppress(FileNotFoundError):
        digest.update(Path(path, MANIFEST).read_bytes())
    for row in np.unique(labels, return_index=True)[1]:
        label_map = store.read(int(row))
        digest.update(label_map.scores.tobytes() + label_map.classes.tobytes())
    return digest.hexdigest()


@contextmanager
def exclusive_folder(out: Path) -> Iterator[None]:
    """Create the folder `out` and lock it while this process writes label maps into it.

    Raises:
        UserError: it cannot be written, now or later, or another process is writing label maps into it.
    """
    make_writable(out, "the folder of label maps", "Choose another folder, or allow writing.")
    with locked(out, "the folder of label maps", "writing label maps", "Choose another folder."):
        try:
            yield
        except OSError as error:
            raise UserError(f"cannot write label maps into {out}: {error}. {HOW_TO_CONTINUE}") from error


def manifest_of(root: Path) -> Manifest | None:
    """Return the manifest of label maps of either form; None for bare .pt files.

    Raises:
        UserError: the folder does not exist, or its store is unfinished.
    """
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        raise UserError(
            f"found {found} at {root}; expected a folder of label maps: a packed store, or CLASS/STEM{SUFFIX} for each "
            f"image. {HOW_TO_MAKE_MAPS}"
        )
    manifest = read_manifest(root)
    if manifest is None and any((root / name).is_file() for name in (UNFINISHED, MAPS)):
        raise UserError(
            f"{root} is not a complete packed store: it has no {MANIFEST}. If a command is still writing it, wait; "
            "if one was interrupted, give the same command again."
        )
    return manifest
