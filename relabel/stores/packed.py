"""The packed store: all label maps of a data set in one file of equal-sized records, each with a checksum.

A folder of
    maps.npy      N records (scores float16 [k, h, w], classes uint16 [k, h, w]), in the order of the keys
    keys.npy      bytes [N], sorted: "CLASS/STEM" of the image that each record belongs to
    crc32.npy     uint32 [N]: over key and record, so that the map of another image is detected as well
    manifest.json see relabel/stores/manifest.py; renamed into place last: without it the store is unfinished
Images that could not be read when the maps were made have an empty record; the manifest lists them. NumPy alone can
read all of it.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.lib.format import read_array_header_1_0, read_array_header_2_0, read_magic

from relabel.label_map import LabelMap, class_dtype, class_translation
from relabel.stores.manifest import MANIFEST, Manifest
from utils.errors import UserError, naming

MAPS, KEYS, CRCS = "maps.npy", "keys.npy", "crc32.npy"
UNFINISHED = "unfinished.json"  # the manifest of a store that is still being written
SCORE_TYPE, ID_TYPE, CRC_TYPE = np.dtype("<f2"), np.dtype("<u2"), np.dtype("<u4")
_FETCH_AGAIN = (
    "A file of the store is missing, damaged or of another store: copy or download the whole store again, or delete it "
    "and make it again with `python -m relabel annotate` or `pack`."
)


def record_type(shape: tuple[int, int, int]) -> np.dtype[np.void]:
    """Return the dtype of a record: a map of shape (k, h, w)."""
    return np.dtype([("scores", SCORE_TYPE, shape), ("classes", ID_TYPE, shape)])


class PackedStore:
    """A LabelStore over a packed store; see relabel/stores/store.py. Reading a map is one pread and one CRC."""

    def __init__(self, folder: Path, manifest: Manifest, keys: np.ndarray, class_names: Sequence[str] = ()) -> None:
        """Find the record of every key; no map is read.

        Args:
            folder: of the store.
            manifest: of the store.
            keys: bytes [N], without duplicates.
            class_names: the K classes of the data; by default those of the maps.

        Raises:
            UserError: the store is damaged, or lacks a class of the data.
        """
        self._folder = str(folder)
        self._shape, self._type = manifest.shape, record_type(manifest.shape)
        self._own_classes = manifest.num_classes
        self._id_type = class_dtype(manifest.num_classes)
        with naming(folder):
            self._new_ids = class_translation(manifest.class_names, class_names or manifest.class_names)
        store_keys = _load_store_keys(folder)
        self._offset = open_array(folder / MAPS, self._type, len(store_keys)).offset
        crcs = np.array(open_array(folder / CRCS, CRC_TYPE, len(store_keys)))
        # Files of two stores must not be mixed: the manifest names the classes, the checksums belong to the maps.
        if manifest.sha256.get(CRCS) not in (None, sha256_of(folder / CRCS)):
            raise UserError(f"{folder}: {CRCS} is not the one that {MANIFEST} was written with. {_FETCH_AGAIN}")
        skipped = _skipped(manifest)
        if manifest.maps != len(store_keys) - (find_rows(store_keys, skipped, skipped[:0]) >= 0).sum():
            raise UserError(f"{folder}: {MANIFEST} counts {manifest.maps:,} maps, unlike {KEYS}. {_FETCH_AGAIN}")
        self._records = find_rows(store_keys, keys, skipped)
        self._crcs = crcs[self._records]
        self._key_crcs = np.fromiter(map(crc32, keys), CRC_TYPE, len(keys))
        self._file = -1

    def __len__(self) -> int:
        """Return N, the number of keys."""
        return len(self._crcs)

    def __getstate__(self) -> dict[str, object]:
        """Return everything but the open file: every process opens its own."""
        return {**self.__dict__, "_file": -1}

    def read(self, row: int) -> LabelMap:
        """See LabelStore. The scores are float16; the arrays are views of the bytes read."""
        record = self._record(row)
        scores: np.ndarray = np.ndarray(self._shape, SCORE_TYPE, record)
        classes: np.ndarray = np.ndarray(self._shape, ID_TYPE, record, scores.nbytes)
        largest = classes.item(classes.argmax())  # twice as fast as max()
        if largest >= self._own_classes:  # pooling would write outside its target
            raise UserError(
                f"{self.location(row)}: found the class id {largest}; expected ids in 0..{self._own_classes - 1}, the "
                f"classes of {MANIFEST}. {_FETCH_AGAIN}"
            )
        if self._new_ids is not None:
            return LabelMap(scores, self._new_ids[classes])
        # Ids below 32,768 have the same bytes as int16, which every operation of torch accepts.
        return LabelMap(scores, classes.view(np.int16) if self._id_type is np.int16 else classes.astype(np.int32))

    def check(self, row: int) -> None:
        """See LabelStore. The CRC only shows that a record is unchanged; this also checks the numbers in it."""
        record = np.frombuffer(self._record(row), self._type)[0]
        with naming(self.location(row)):
            LabelMap(record["scores"], record["classes"].astype(np.int32)).validate(self._own_classes)

    def missing(self) -> np.ndarray:
        """See LabelStore."""
        return np.flatnonzero(self._records < 0)

    def location(self, row: int) -> str:
        """See LabelStore."""
        number = self._records.item(row)
        return f"a record of {self._folder}" if number < 0 else f"{self._folder}/{MAPS}, record {number:,}"

    def _record(self, row: int) -> bytes:
        """Return the bytes of a row's record, checked against its CRC."""
        number = self._records.item(row)
        if number < 0:
            raise UserError(f"{self._folder} has no label map for row {row:,} of the images. Make the missing maps.")
        if self._file < 0:
            self._file = os.open(f"{self._folder}/{MAPS}", os.O_RDONLY)
        record = os.pread(self._file, self._type.itemsize, self._offset + number * self._type.itemsize)
        if crc32(record, self._key_crcs.item(row)) != self._crcs.item(row):
            found = "is truncated" if len(record) < self._type.itemsize else "does not match its CRC"
            raise UserError(
                f"{self.location(row)}: the label map {found}; expected the {self._type.itemsize} bytes written. Copy "
                "or download the store again, or repeat the command that made it: it replaces damaged label maps."
            )
        return record


def find_rows(store_keys: np.ndarray, keys: np.ndarray, skipped: np.ndarray) -> np.ndarray:
    """Find the record of each key in a store.

    Args:
        store_keys: bytes [M], sorted; M > 0.
        keys: bytes [N].
        skipped: bytes [n]; those store_keys without a map.

    Returns:
        int32 [N]; -1 for a key without a map.
    """
    records = np.searchsorted(store_keys, keys).clip(max=len(store_keys) - 1)
    is_there = (store_keys[records] == keys) & ~np.isin(keys, skipped)
    return np.where(is_there, records, -1).astype(np.int32)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damaged_files(folder: Path, manifest: Manifest) -> list[str]:
    """Return the files of a packed store that do not match the sha256 in its manifest; none for .pt files."""
    names = (MAPS, KEYS, CRCS) if manifest.form == "packed" else ()
    return [name for name in names if sha256_of(folder / name) != manifest.sha256.get(name)]


def load_keys(folder: Path, manifest: Manifest) -> np.ndarray:
    """Return the keys of all maps in a finished store, bytes [N], sorted; each is safe as a relative path.

    Raises:
        UserError: they cannot be read, or one of them leads out of a folder.
    """
    keys = _load_store_keys(folder)
    for key in keys.tolist():
        parts = key.split(b"/")
        if len(parts) > 2 or b"\0" in key or not {b"", b".", b".."}.isdisjoint(parts):
            raise UserError(f"{folder / KEYS}: found the key {key!r}; expected CLASS/STEM. {_FETCH_AGAIN}")
    return np.setdiff1d(keys, _skipped(manifest))


def open_array(path: Path, dtype: np.dtype | None = None, count: int | None = None) -> np.memmap:
    """Map the array [N] of an .npy file into memory, read-only.

    Args:
        path: of the file.
        dtype: expected type; None: bytes of any length.
        count: expected N; None: any.

    Raises:
        UserError: the file cannot be read, its length does not match its header, or it is not the expected array.
    """
    try:
        if path.exists() and not path.is_file():  # opening a pipe would block
            raise OSError("it is not a regular file")
        with path.open("rb") as file:
            read_header = read_array_header_1_0 if read_magic(file) == (1, 0) else read_array_header_2_0
            shape, _, found = read_header(file)
            offset, size = file.tell(), path.stat().st_size
    except Exception as error:  # numpy passes a damaged header to Python's parser, which raises other errors
        raise UserError(f"{path} cannot be read ({error or 'it is empty'}). {_FETCH_AGAIN}") from error
    fits = found == dtype if dtype else found.kind == "S" and found.itemsize > 0
    if not fits or len(shape) != 1 or count not in (None, *shape):
        expected = f"[{count}] of {dtype}, as {KEYS} and {MANIFEST} say" if dtype else "[N] of bytes"
        raise UserError(f"{path}: found {list(shape)} of {found}; expected {expected}. {_FETCH_AGAIN}")
    if size != (whole := offset + shape[0] * found.itemsize):
        raise UserError(f"{path}: found {size:,} bytes; expected {whole:,}. {_FETCH_AGAIN}")
    return np.memmap(path, found, "r", offset, shape)


def _load_store_keys(folder: Path) -> np.ndarray:
    """Return all keys of a store, bytes [N], sorted, including those of images without a map."""
    keys = np.array(open_array(folder / KEYS))
    if not len(keys):
        raise UserError(f"{folder / KEYS}: found no key, so the store has no label maps. {_FETCH_AGAIN}")
    if (keys[1:] <= keys[:-1]).any():
        raise UserError(f"{folder / KEYS}: the keys are not sorted, or one of them occurs twice. {_FETCH_AGAIN}")
    return keys


def _skipped(manifest: Manifest) -> np.ndarray:
    """Return the keys of images without a map, bytes [n]."""
    return np.array([os.fsencode(key) for key in manifest.skipped], dtype=np.bytes_)
