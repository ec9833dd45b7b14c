"""The packed store: all label maps of a data set in one file of equal records, each with its checksum.

A folder of
    maps.npy      N records (scores float16 [k, h, w], classes uint16 [k, h, w]), in the order of the keys
    keys.npy      bytes [N]: "CLASS/STEM" of the image that each record belongs to, sorted
    crc32.npy     uint32 [N]: of key and record, so that a map of another image is found out too
    manifest.json what they are (relabel/stores/manifest.py); written last, by a rename: without it there is no store
Images that could not be read when the maps were made have an empty record; the manifest names them. All of it can be
read with numpy alone.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO
from zlib import crc32

import numpy as np

from relabel.label_map import LabelMap, class_dtype, class_translation
from relabel.stores.manifest import MANIFEST, Manifest, read_manifest
from utils.errors import UserError, naming

MAPS, KEYS, CRCS = "maps.npy", "keys.npy", "crc32.npy"
UNFINISHED = "unfinished.json"  # the manifest of a store that is still being written
_HALF = np.dtype("<f2")
AT_ONCE = 65_536  # keys handled together: enough for speed, little memory


def record_type(shape: tuple[int, int, int]) -> np.dtype[np.void]:
    """The record of a map of shape (k, h, w)."""
    return np.dtype([("scores", "<f2", shape), ("classes", "<u2", shape)])


class PackedStore:
    """A LabelStore over a packed store; see relabel/stores/store.py. Reading a map is one pread and one CRC."""

    def __init__(self, folder: Path, keys: np.ndarray, class_names: Sequence[str] | None) -> None:
        """Find the record of every key; no map is read.

        Args:
            folder: of the store.
            keys: bytes [N], without duplicates.
            class_names: the K classes of the data; None: the maps' own.

        Raises:
            UserError: no whole store of this version, or one that does not know a class of the data.
        """
        manifest = read_whole_manifest(folder)
        wanted = manifest.class_names if class_names is None else class_names
        self.shape = manifest.shape
        self._folder = str(folder)
        self._size = record_type(self.shape).itemsize
        store_keys = _load_all_keys(folder)
        self._offset = _data_offset(folder, manifest, len(store_keys))
        self._num_own_classes = manifest.num_classes
        with naming(self._folder):
            self._new_ids = class_translation(manifest.class_names, wanted)
        # Ids up to 32,767 are the same two bytes signed, which every operation of torch takes.
        self._id_type = np.dtype("<i2") if class_dtype(manifest.num_classes) is np.int16 else np.dtype("<u2")
        skipped = _skipped(manifest)
        if manifest.maps != len(store_keys) - int(np.isin(skipped, store_keys).sum() if len(skipped) else 0):
            raise UserError(f"{folder}: {MANIFEST} tells of {manifest.maps:,} maps, {KEYS} of others. {_FETCH_AGAIN}")
        self._records = find_rows(store_keys, keys, skipped)
        crcs = load_array(folder, CRCS, "u", len(store_keys))
        # The manifest names the classes, these sums the maps: of two stores that were mixed, all else could fit.
        if manifest.sha256.get(CRCS) not in (None, sha256_of(folder / CRCS)):
            raise UserError(f"{folder}: {CRCS} is not the one that {MANIFEST} was written with. {_FETCH_AGAIN}")
        self._crcs = record_crcs(crcs if self._records is None else crcs[self._records], keys, self._size)
        self._file = -1

    def __len__(self) -> int:
        """N, the number of keys."""
        return len(self._crcs)

    def __getstate__(self) -> dict[str, object]:
        """Everything but the open file, which every process opens for itself."""
        return {**self.__dict__, "_file": -1}

    def read(self, row: int) -> LabelMap:
        """See LabelStore. The scores are float16, the arrays views of the bytes read."""
        record = self._record(row)
        scores: np.ndarray = np.ndarray(self.shape, _HALF, record)
        classes: np.ndarray = np.ndarray(self.shape, self._id_type, record, self._size // 2)
        if self._new_ids is not None:
            classes = self._new_ids[classes]
        elif classes.dtype != np.int16:
            classes = classes.astype(np.int32)
        return LabelMap(scores, classes)

    def check(self, row: int) -> None:
        """See LabelStore. The CRC says that a record is what was written; this looks at what was written."""
        record = np.frombuffer(self._record(row), record_type(self.shape))[0]
        with naming(self.place(row)):
            LabelMap(record["scores"], record["classes"].astype(np.int32)).validate(self._num_own_classes)

    def missing(self) -> np.ndarray:
        """See LabelStore."""
        return np.zeros(0, np.int64) if self._records is None else np.flatnonzero(self._records < 0)

    def place(self, row: int) -> str:
        """See LabelStore."""
        number = row if self._records is None else int(self._records[row])
        return f"a record of {self._folder}" if number < 0 else f"{self._folder}/{MAPS}, record {number:,}"

    def _record(self, row: int) -> bytes:
        """The bytes of a row's record, checked against its CRC."""
        number = row if self._records is None else self._records.item(row)
        if number < 0:
            raise UserError(f"{self._folder} holds no label map of row {row:,} of the images. Make the missing maps.")
        if self._file < 0:
            self._file = _open(Path(self._folder, MAPS))
        record = os.pread(self._file, self._size, self._offset + number * self._size)
        if crc32(record) != self._crcs.item(row):
            found = "ends before its end" if len(record) < self._size else "does not fit its CRC"
            raise UserError(
                f"{self.place(row)}: the label map {found}; expected the {self._size} bytes that were written. "
                "The file is damaged: fetch it again, or make these maps again."
            )
        return record


def read_whole_manifest(folder: Path) -> Manifest:
    """The manifest of a finished packed store.

    Raises:
        UserError: there is none: the store is unfinished, or a part of it is missing, or these are .pt files.
    """
    manifest = read_manifest(folder)
    if manifest is not None and manifest.form == "pt":
        raise UserError(f"{folder} holds .pt files; expected a packed store. `python -m relabel pack` makes one.")
    if manifest is None:
        raise UserError(
            f"{folder} is no whole packed store: it has no {MANIFEST} of one. If a command is writing it, wait for its "
            "end; if one was interrupted, give the same command again."
        )
    return manifest


def find_rows(store_keys: np.ndarray, keys: np.ndarray, skipped: np.ndarray) -> np.ndarray | None:
    """Where each key stands in a store.

    Args:
        store_keys: bytes [M], sorted; M > 0.
        keys: bytes [N].
        skipped: bytes [n]; those of store_keys that have no map.

    Returns:
        int32 [N]; -1 for a key without map. None where record i is that of key i, for all of them.
    """
    if not len(skipped) and len(keys) == len(store_keys) and np.array_equal(keys, store_keys):
        return None
    places = np.searchsorted(store_keys, keys).clip(max=len(store_keys) - 1)
    is_there = (store_keys[places] == keys) & ~np.isin(keys, skipped)
    return np.where(is_there, places, -1).astype(np.int32)


def record_crcs(crcs: np.ndarray, keys: np.ndarray, size: int) -> np.ndarray:
    """uint32 [N]; what the CRC of each record alone must be.

    CRC-32 is linear: that of key and record is that of the record, xor a linear function of the key's, which is added
    up here from a table for each of its four bytes, and they from what each bit does. So the keys need not be kept to
    check a record.

    Args:
        crcs: integer [N]; of each key and record.
        keys: bytes [N].
        size: of a record, bytes.
    """
    zeros = bytes(size)
    key_crcs, expected = crcs_of(keys), crcs.astype(np.uint32)
    plain = crc32(zeros)
    for shift in (0, 8, 16, 24):
        table = np.zeros(256, np.uint32)
        for bit in range(8):  # each doubles what the table knows
            table[1 << bit : 2 << bit] = table[: 1 << bit] ^ np.uint32(crc32(zeros, 1 << shift + bit) ^ plain)
        expected ^= table[key_crcs >> np.uint32(shift) & np.uint32(255)]
    return expected


def crcs_of(keys: np.ndarray) -> np.ndarray:
    """uint32 [N]; the CRC of each key."""
    crcs = np.empty(len(keys), np.uint32)
    for start in range(0, len(keys), AT_ONCE):
        crcs[start : start + AT_ONCE] = [crc32(key) for key in keys[start : start + AT_ONCE].tolist()]
    return crcs


def sha256_of(path: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damaged_files(folder: Path, manifest: Manifest) -> list[str]:
    """The files of a packed store whose bytes are not those that its manifest names; none for .pt files."""
    names = (MAPS, KEYS, CRCS) if manifest.form == "packed" else ()
    return [name for name in names if sha256_of(folder / name) != manifest.sha256.get(name)]


def load_keys(folder: Path) -> np.ndarray:
    """bytes [N], sorted; the keys of all maps in a finished store, fit to be names of files below a folder.

    Raises:
        UserError: they cannot be read, or one of them leads out of a folder.
    """
    manifest = read_whole_manifest(folder)
    keys, skipped = _load_all_keys(folder), _skipped(manifest)
    for key in keys.tolist():
        parts = key.split(b"/")
        if len(parts) > 2 or b"\0" in key or not {b"", b".", b".."}.isdisjoint(parts):
            raise UserError(f"{folder / KEYS}: found the key {key!r}; expected CLASS/STEM. {_FETCH_AGAIN}")
    return np.setdiff1d(keys, skipped) if len(skipped) else keys


def _load_all_keys(folder: Path) -> np.ndarray:
    """bytes [N], sorted; also of images without map. UserError where they are no such keys."""
    keys = load_array(folder, KEYS, "S")
    if not len(keys):
        raise UserError(f"{folder / KEYS}: found no key, and so a store without label maps. {_FETCH_AGAIN}")
    if (keys[1:] <= keys[:-1]).any():
        raise UserError(f"{folder / KEYS}: the keys are not sorted, or one stands there twice. {_FETCH_AGAIN}")
    return keys


def _skipped(manifest: Manifest) -> np.ndarray:
    """bytes [n]; keys of images without map."""
    return np.array([os.fsencode(key) for key in manifest.skipped], dtype=np.bytes_)


def load_array(folder: Path, name: str, kind: str, count: int | None = None) -> np.ndarray:
    """An array [N] of a store, of numbers or bytes.

    Args:
        folder: of the store.
        name: of the file.
        kind: of its type, as numpy calls it: S for bytes, u for numbers.
        count: N, where it is known.

    Raises:
        UserError: it cannot be read, is not as long as its header says, or is something else.
    """
    length, found, offset = array_in(folder / name)
    if found.kind != kind or (count is not None and length != count):
        expected = "a list" if count is None else f"a list of {count:,}"
        raise UserError(f"{folder / name}: found {found} [{length}]; expected {expected}. {_FETCH_AGAIN}")
    return np.fromfile(folder / name, found, offset=offset)


def array_in(path: Path) -> tuple[int, np.dtype[Any], int]:
    """Length, type and first byte of the array [N] in an .npy file, of which the header alone is read.

    Raises:
        UserError: there is none, or the file is not as long as it says.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for without end
            raise OSError("it is no regular file")
        with path.open("rb") as file:
            shape, kind = _read_header(file)
            offset, size = file.tell(), os.fstat(file.fileno()).st_size
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}). {_FETCH_AGAIN}") from error
    if len(shape) != 1 or kind.itemsize == 0 or size != offset + shape[0] * kind.itemsize:
        raise UserError(f"{path}: found {size:,} bytes; its header tells of {list(shape)} of {kind}. {_FETCH_AGAIN}")
    return shape[0], kind, offset


def _read_header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of the array in an .npy file. ValueError where it is none."""
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_2_0 if version == (2, 0) else np.lib.format.read_array_header_1_0
        shape, _, kind = read(file)
    except OSError:
        raise
    except Exception as error:  # numpy hands the header to Python's parser, which raises errors of its own
        raise ValueError(str(error) or "it is empty") from error
    return shape, kind


def _data_offset(folder: Path, manifest: Manifest, count: int) -> int:
    """Where the first of `count` records begins; refused where the file is not as long as it must be."""
    path, expected = folder / MAPS, record_type(manifest.shape)
    length, kind, offset = array_in(path)
    if length != count or kind != expected:
        raise UserError(
            f"{path}: found {length:,} records of {kind}; expected {count:,} of {expected}, as {KEYS} and {MANIFEST} "
            f"say. {_FETCH_AGAIN}"
        )
    return offset


_FETCH_AGAIN = "A file of the store is missing or damaged: fetch it again, or make these maps again."


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{path} cannot be opened ({error.strerror}). {_FETCH_AGAIN}") from error
