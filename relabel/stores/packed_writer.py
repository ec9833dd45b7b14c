"""Writes a packed store (relabel/stores/packed.py), whole or not at all."""

import os
from pathlib import Path
from zlib import crc32

import numpy as np

from relabel.label_map import LabelMap
from relabel.stores.manifest import MANIFEST, Manifest, read_manifest
from relabel.stores.packed import CRCS, KEYS, MAPS, UNFINISHED, array_in, load_array, record_type, sha256_of
from utils.errors import UserError, naming
from utils.files import remove_temporaries, replacing

LARGEST_CLASS_COUNT = 65_535  # ids are uint16


class PackedWriter:
    """Writes a packed store: records in any order, by several processes, over several runs; `commit` makes it a store.

    No journal is needed: a record is done when it fits its CRC. So a finished store can be begun again too, for records
    that were skipped or damaged since.
    """

    def __init__(self, folder: Path, keys: np.ndarray, manifest: Manifest) -> None:
        """Remember what will be written.

        Args:
            folder: of the store; exists.
            keys: bytes [N], sorted, without duplicates.
            manifest: of the finished store, without hashes.

        Raises:
            UserError: more classes than the records' ids can tell apart.
        """
        if manifest.num_classes > LARGEST_CLASS_COUNT:
            raise UserError(
                f"a packed store holds maps of at most {LARGEST_CLASS_COUNT:,} classes, and these have "
                f"{manifest.num_classes:,}. Write .pt files: --format pt"
            )
        self.folder, self.manifest = folder, manifest
        self._keys = keys
        self._type = record_type(manifest.shape)
        self._types = {MAPS: self._type, CRCS: np.dtype("<u4")}
        self._maps: np.ndarray | None = None
        self._crcs: np.ndarray | None = None

    def begin(self) -> None:
        """Make the files at their full size, or check that those there belong to the same job. One process calls this.

        Raises:
            UserError: the folder holds something else (the message names the differences), or cannot be written.
        """
        for name in (MAPS, KEYS, CRCS):
            if (self.folder / name).is_symlink():  # which would be followed to what it names, and that written over
                raise UserError(f"{self.folder / name} is a link; expected a file of a store, or none. Remove it")
        finished = read_manifest(self.folder)
        begun = finished or read_manifest(self.folder, UNFINISHED)
        if begun is not None:
            begun.refuse_unless_equal(self.manifest, self.folder)
        else:
            self._refuse_other_files()
            self.manifest.write(self.folder / UNFINISHED)
        remove_temporaries(self.folder)
        if finished is None and not (self.folder / MAPS).exists():  # it comes last
            self._make_files()
        self._refuse_other_images()

    def open(self) -> None:
        """Map the files of `begin` into memory; every process that writes calls this."""
        self._crcs = np.lib.format.open_memmap(self.folder / CRCS, "r+")
        self._maps = np.lib.format.open_memmap(self.folder / MAPS, "r+")

    def finished(self) -> np.ndarray:
        """bool [N]; the records that are done."""
        assert self._maps is not None and self._crcs is not None
        done = np.zeros(len(self._keys), dtype=bool)
        for row in np.flatnonzero(self._crcs).tolist():
            done[row] = self._crc(row, self._maps[row].tobytes()) == self._crcs[row]
        return done

    def write(self, row: int, label_map: LabelMap) -> None:
        """Write the record of a key; scores become float16.

        Raises:
            UserError: a score that float16 cannot hold, or a map that is not valid.
        """
        with naming(os.fsdecode(self._keys[row])):
            label_map.validate(self.manifest.num_classes)
        assert self._maps is not None and self._crcs is not None
        record = np.empty((), self._type)
        with np.errstate(over="ignore"):
            record["scores"] = label_map.scores
        record["classes"] = label_map.classes
        if not np.isfinite(record["scores"]).all():
            key = os.fsdecode(self._keys[row])
            raise UserError(
                f"the label map of {key} has scores beyond 65,504; expected logits that float16 holds. Write .pt files"
            )
        self._maps[row] = record
        self._crcs[row] = self._crc(row, record.tobytes())

    def commit(self, skipped: dict[str, str]) -> None:
        """Make the folder a store. One process calls this, when all have closed their files.

        Args:
            skipped: key -> reason, of images without map; where they are among the keys, their record stays empty.
        """
        self.close()
        for name in (MAPS, KEYS, CRCS):
            _sync(self.folder / name)
        changes = {
            "maps": len(self._keys) - int(np.isin(self._keys, [os.fsencode(key) for key in skipped]).sum()),
            "skipped": skipped,
            "sha256": {name: sha256_of(self.folder / name) for name in (MAPS, KEYS, CRCS)},
        }
        self.manifest.model_copy(update=changes).write(self.folder / MANIFEST)
        (self.folder / UNFINISHED).unlink(missing_ok=True)

    def close(self) -> None:
        """Hand everything to the system."""
        self._maps = self._crcs = None

    def _crc(self, row: int, record: bytes) -> int:
        return crc32(record, crc32(self._keys[row]))

    def _refuse_other_files(self) -> None:
        """A folder that holds anything, and no manifest that says that it is a store's, is not ours to write into."""
        if strange := sorted(path.name for path in self.folder.iterdir() if not path.name.startswith(".")):
            raise UserError(
                f"{self.folder} is taken: it holds {strange[0]}{' and more' if len(strange) > 1 else ''}; expected a "
                "new or empty folder, or an unfinished store of these very maps. Name another folder"
            )

    def _refuse_other_images(self) -> None:
        """A store goes on for the images that it was begun for."""
        found = load_array(self.folder, KEYS, "S")
        if any(array_in(self.folder / name)[:2] != (len(found), kind) for name, kind in self._types.items()):
            raise UserError(f"{self.folder} is damaged: its files differ in length. Delete it, and make the maps again")
        if not np.array_equal(found, self._keys):
            raise UserError(
                f"{self.folder} is for the label maps of other images: of {len(found):,} that are not these "
                f"{len(self._keys):,} by name. A packed store cannot grow: name another folder for the new maps, or "
                "write .pt files (--format pt)"
            )

    def _make_files(self) -> None:
        """All files in full length: the room of all records is reserved, so that a full disk shows before the work.

        The last one appears whole: where it is, the others are.
        """
        with (self.folder / KEYS).open("wb") as file:
            np.save(file, self._keys)
        with (self.folder / CRCS).open("wb") as file:
            np.save(file, np.zeros(len(self._keys), self._types[CRCS]))
        header = {"descr": np.lib.format.dtype_to_descr(self._type), "fortran_order": False}
        with replacing(self.folder / MAPS) as temporary, temporary.open("wb") as file:
            np.lib.format.write_array_header_2_0(file, {**header, "shape": (len(self._keys),)})
            file.flush()
            os.posix_fallocate(file.fileno(), 0, file.tell() + len(self._keys) * self._type.itemsize)


def _sync(path: Path) -> None:
    """Bytes on the disk, before the manifest says so."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
