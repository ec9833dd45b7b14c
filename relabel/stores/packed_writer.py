"""Write a packed store (relabel/stores/packed.py); it becomes valid only when it is complete."""

import os
from pathlib import Path
from zlib import crc32

import numpy as np

from relabel.label_map import LabelMap
from relabel.stores.manifest import MANIFEST, Manifest
from relabel.stores.packed import CRC_TYPE, CRCS, KEYS, MAPS, UNFINISHED, open_array, record_type, sha256_of
from utils.errors import UserError, naming
from utils.files import replacing

LARGEST_CLASS_COUNT = 65_535  # ids are uint16


class PackedWriter:
    """Writes a packed store: records in any order, by several processes, over several runs; `commit` completes it.

    There is no journal: a record is done if it matches its CRC. So a complete store can be continued too, to write
    records that were skipped or damaged.
    """

    def __init__(self, folder: Path, keys: np.ndarray, manifest: Manifest) -> None:
        """Create the writer; nothing is written yet.

        Args:
            folder: of the store; must exist.
            keys: bytes [N], sorted, without duplicates.
            manifest: of the finished store, without hashes.

        Raises:
            UserError: there are too many classes for uint16 ids.
        """
        if manifest.num_classes > LARGEST_CLASS_COUNT:
            raise UserError(
                f"found {manifest.num_classes:,} classes; expected at most {LARGEST_CLASS_COUNT:,} in a packed store. "
                "Write .pt files: --format pt"
            )
        self.folder, self.manifest = folder, manifest
        self._keys = keys
        self._type = record_type(manifest.shape)
        self._maps: np.ndarray | None = None
        self._crcs: np.ndarray | None = None

    def begin(self) -> np.ndarray:
        """Create the files at full size, or check that existing ones belong to the same job; one process calls this.

        Returns:
            bool [N]; whether a record is done.

        Raises:
            UserError: the folder contains something else (the message lists the differences), or cannot be written.
        """
        for name in (MAPS, KEYS, CRCS):
            if (self.folder / name).is_symlink():  # writing would change the file that it points to
                raise UserError(f"{self.folder / name} is a link; expected a file of a store, or none. Remove it")
        self.manifest.begin(self.folder, UNFINISHED)
        if not (self.folder / MANIFEST).exists() and not (self.folder / MAPS).exists():  # the last file to be made
            self._make_files()
        return self._done()

    def write(self, row: int, label_map: LabelMap) -> None:
        """Write the record of a key; scores become float16.

        Raises:
            UserError: the map is not valid, or has a score beyond the range of float16.
        """
        key = os.fsdecode(self._keys[row])
        with naming(key):
            label_map.validate(self.manifest.num_classes)
        record = np.empty((), self._type)
        with np.errstate(over="ignore"):
            record["scores"] = label_map.scores
        record["classes"] = label_map.classes
        if not np.isfinite(record["scores"]).all():
            raise UserError(
                f"the label map of {key} has scores beyond 65,504; expected logits that fit float16. Write .pt files"
            )
        if self._maps is None or self._crcs is None:
            self._maps, self._crcs = (np.lib.format.open_memmap(self.folder / name, "r+") for name in (MAPS, CRCS))
        self._maps[row] = record
        self._crcs[row] = self._crc(row, record.tobytes())

    def close(self) -> None:
        """Flush what was written; every process calls this before one of them calls `commit`."""
        self._maps = self._crcs = None

    def commit(self, skipped: dict[str, str]) -> None:
        """Complete the store by writing its manifest; one process calls this.

        Args:
            skipped: key -> reason, of images without a map; the record of such a key stays empty.
        """
        self.close()
        for name in (MAPS, KEYS, CRCS):
            with (self.folder / name).open("rb") as file:
                os.fsync(file.fileno())  # on disk before the manifest declares it complete
        changes = {
            "maps": len(self._keys) - int(np.isin(self._keys, [os.fsencode(key) for key in skipped]).sum()),
            "skipped": skipped,
            "sha256": {name: sha256_of(self.folder / name) for name in (MAPS, KEYS, CRCS)},
        }
        self.manifest.model_copy(update=changes).write(self.folder / MANIFEST)
        (self.folder / UNFINISHED).unlink(missing_ok=True)

    def _crc(self, row: int, record: bytes) -> int:
        return crc32(record, crc32(self._keys[row]))

    def _done(self) -> np.ndarray:
        """Return bool [N]: whether a record matches its CRC."""
        keys = open_array(self.folder / KEYS)
        maps, crcs = (open_array(self.folder / n, t, len(keys)) for n, t in ((MAPS, self._type), (CRCS, CRC_TYPE)))
        if not np.array_equal(keys, self._keys):
            raise UserError(
                f"{self.folder} is a store for other images: the names of its {len(keys):,} are not those of these "
                f"{len(self._keys):,}. A packed store cannot grow: choose another folder for the new maps, or write "
                ".pt files (--format pt)"
            )
        done = np.zeros(len(keys), dtype=bool)
        for row in np.flatnonzero(crcs).tolist():
            done[row] = self._crc(row, maps[row].tobytes()) == crcs[row]
        return done

    def _make_files(self) -> None:
        """Create all files at full length, reserving disk space, so that a full disk is noticed before the work.

        maps.npy is last and is renamed into place: if it exists, so do the others.
        """
        np.save(self.folder / KEYS, self._keys)
        np.save(self.folder / CRCS, np.zeros(len(self._keys), CRC_TYPE))
        with replacing(self.folder / MAPS) as temporary:
            np.lib.format.open_memmap(temporary, "w+", self._type, self._keys.shape, version=(2, 0))
            with temporary.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
