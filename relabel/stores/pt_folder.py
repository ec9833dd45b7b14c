"""Label maps as the authors released them in 2021: a folder with one file per image.

FOLDER/CLASS/STEM.pt is a tensor [2, k, h, w] in float32 or float16, plane 0 the logits, plane 1 the class ids, axes
[score or id, k, row, column]. Folders made by this project also hold a manifest, which names the classes.
"""

import io
import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from relabel.label_map import LabelMap, class_dtype, class_translation
from relabel.stores.manifest import MANIFEST, Manifest, read_manifest
from utils.checkpoint import damaged_part, is_plain, refuse_inflated
from utils.errors import UserError, naming
from utils.files import is_file, remove_temporaries, replacing

SUFFIX = ".pt"
HOW_TO_MAKE_MAPS = "Make label maps of all images with `python -m relabel annotate`"
HOW_TO_CONTINUE = "Make room or allow writing, then give the same command again: the label maps that are there are kept"


def write_label_map(folder: str | Path, key: str, label_map: LabelMap) -> Path:
    """Write FOLDER/KEY.pt, float [2, k, h, w] of the scores' dtype, whole or not at all; returns its path.

    Raises:
        UserError: it cannot be written; or float16 scores, and a class id that float16 cannot hold.
    """
    path = map_path(folder, key)
    planes = torch.from_numpy(np.stack([label_map.scores, label_map.classes.astype(label_map.scores.dtype)]))
    if (planes[1].numpy() != label_map.classes).any():
        raise UserError(f"{path}: float16 holds class ids exactly only to 2048. Write this map in float32.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Through a file object: given a path, torch.save stores the temporary name in the file. No fsync: a million of
        # them take hours, and a map that a power failure damaged is refused when read.
        with replacing(path, HOW_TO_CONTINUE) as temporary, temporary.open("wb") as file:
            torch.save(planes, file)
    except (OSError, RuntimeError) as error:  # torch.save tells some write errors as RuntimeError
        raise UserError(f"{path} cannot be written: {error}. {HOW_TO_CONTINUE}") from error
    return path


class FolderWriter:
    """Writes label maps as .pt files beside their manifest; files that are there already are kept."""

    def __init__(self, folder: Path, keys: np.ndarray, manifest: Manifest) -> None:
        """Remember what will be written.

        Args:
            folder: exists.
            keys: bytes [N].
            manifest: of all the maps.
        """
        self._folder, self._keys, self._manifest = folder, keys, manifest

    def begin(self) -> None:
        """Put the manifest there, or check that the one there is the same. One process calls this.

        Raises:
            UserError: the folder holds maps that were made otherwise (naming the differences), or nobody knows how.
        """
        found = read_manifest(self._folder)
        if found is not None:
            found.refuse_unless_equal(self._manifest, self._folder)
        elif strange := sorted(path.name for path in self._folder.iterdir() if not path.name.startswith(".")):
            raise UserError(
                f"{self._folder} is taken: it holds {strange[0]}, and no {MANIFEST} says how its maps were made; "
                "expected a new or empty folder, or label maps of this very making. Name another folder"
            )
        else:
            self._manifest.write(self._folder / MANIFEST)
        for folder in (self._folder, *(path for path in self._folder.iterdir() if path.is_dir())):
            if folder is not self._folder and folder.is_symlink():
                raise UserError(f"{folder} is a link, which leads label maps elsewhere; expected a folder. Remove it")
            remove_temporaries(folder)

    def open(self) -> None:
        """Nothing to open."""

    def finished(self) -> np.ndarray:
        """bool [N]; the files that are there and not empty, as a power failure leaves them."""
        done = np.ones(len(self._keys), dtype=bool)
        done[list(missing_rows(self._folder, self._keys))] = False
        return done

    def write(self, row: int, label_map: LabelMap) -> None:
        """Write the file of a key."""
        write_label_map(self._folder, os.fsdecode(self._keys[row]), label_map)

    def commit(self, skipped: dict[str, str]) -> None:
        """Record which images have no map, and why: key -> reason."""
        self._manifest.model_copy(update={"skipped": skipped}).write(self._folder / MANIFEST)

    def close(self) -> None:
        """Nothing to close."""


class LabelFolder:
    """A LabelStore over the folder of .pt files; see relabel/stores/store.py."""

    def __init__(self, root: Path, keys: np.ndarray, class_names: Sequence[str], own_names: Sequence[str]) -> None:
        """Remember where the maps are; none is read.

        Args:
            root: the folder.
            keys: bytes [N].
            class_names: the K classes of the data.
            own_names: the classes that the files' ids stand for.

        Raises:
            UserError: the maps do not know a class of the data.
        """
        self._root = str(root)
        self._keys = keys
        self._num_classes = len(own_names)
        self._dtype = class_dtype(len(class_names))
        with naming(root):
            self._new_ids = class_translation(own_names, class_names)
        self._first: tuple[Path, tuple[int, int, int]] | None = None

    def __len__(self) -> int:
        """N, the number of keys."""
        return len(self._keys)

    def path(self, row: int) -> Path:
        """The file of a row's map."""
        return map_path(self._root, os.fsdecode(self._keys[row]))

    def read(self, row: int) -> LabelMap:
        """See LabelStore. The first map read fixes the shape that all others must have."""
        path = self.path(row)
        planes = _load_planes(path)
        label_map = LabelMap(planes[0], _class_ids(planes[1], self._num_classes, path))
        with naming(path):
            label_map.validate(self._num_classes)
        first_path, first_shape = self._first = self._first or (path, label_map.shape)
        if label_map.shape != first_shape:
            raise UserError(
                f"{path}: found a label map of shape [k, h, w] = {list(label_map.shape)}; expected "
                f"{list(first_shape)} as in {first_path}, because a batch needs one shape. "
                "Keep maps of one annotator, input size and k in a folder."
            )
        classes = label_map.classes if self._new_ids is None else self._new_ids[label_map.classes]
        return LabelMap(label_map.scores, classes.astype(self._dtype))

    def expect(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Let this be the shape that all maps must have, whatever the first one has."""
        self._first = (Path(self._root), shape)
        return shape

    def missing(self) -> np.ndarray:
        """See LabelStore. One directory scan per class folder; no file is touched."""
        return np.fromiter(missing_rows(self._root, self._keys), dtype=np.int64)

    def place(self, row: int) -> str:
        """See LabelStore."""
        path = self.path(row)
        is_there = "the folder is there, the file is not" if path.parent.is_dir() else "the whole folder is missing"
        return f"{path} ({is_there})"

    def check(self, row: int) -> None:
        """See LabelStore. Reading checks every number; the checksum in a file of the zip format, which reading does
        not look at, tells of numbers that changed within their range.
        """
        self.read(row)
        path = self.path(row)
        try:
            damaged = damaged_part(path)
        except Exception as error:  # damaged archives raise almost anything
            damaged = f"{type(error).__name__}: {error}"
        if damaged:
            raise UserError(f"{path} is damaged: the checksum of {damaged} is wrong. Make or fetch it again.")


def missing_rows(root: str | Path, keys: np.ndarray) -> Iterator[int]:
    """Rows of `keys` whose file is not there. Keys of one class stand together, so each folder is scanned once."""
    rows = enumerate(map(os.fsdecode, keys.tolist()))
    for folder, members in groupby(rows, key=lambda item: item[1].rpartition("/")[0]):
        present = _file_names(Path(root, folder))
        for row, key in members:
            if f"{key.rpartition('/')[2]}{SUFFIX}" not in present:
                yield row


def list_label_files(root: Path) -> list[str]:
    """Keys of the .pt files under a folder, ROOT/STEM.pt and ROOT/CLASS/STEM.pt, in no order. Hidden names are skipped.

    Raises:
        UserError: a folder cannot be listed.
    """
    try:
        with os.scandir(root) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
        keys = [e.name.removesuffix(SUFFIX) for e in visible if e.name.endswith(SUFFIX) and is_file(e)]
        for folder in (entry for entry in visible if entry.is_dir()):
            with os.scandir(folder) as entries:
                found = [e.name for e in entries if e.name.endswith(SUFFIX) and e.name[0] != "." and is_file(e)]
            keys += [f"{folder.name}/{name.removesuffix(SUFFIX)}" for name in found]
    except OSError as error:
        raise UserError(f"{error.filename or root} cannot be listed ({error.strerror}). Allow reading it.") from error
    return keys


def map_path(root: str | Path, key: str) -> Path:
    """ROOT/KEY.pt; the suffix is appended, because a stem may itself hold dots."""
    return Path(root, f"{key}{SUFFIX}")


def _file_names(folder: Path) -> set[str]:
    """Names of label maps in a folder that are not empty; none where it does not exist.

    Raises:
        UserError: it cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.name.endswith(SUFFIX) and _size(entry)}
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        raise UserError(f"{folder} cannot be listed ({error.strerror}). Allow reading it.") from error


def _size(entry: os.DirEntry[str]) -> int:
    """Bytes of a file; 0 of one that is not there, as behind a link to nothing."""
    try:
        return entry.stat().st_size
    except OSError:
        return 0


def _load_planes(path: Path) -> np.ndarray:
    """The float16 or float32 array [2, k, h, w] of a file, zip or legacy format; nothing in the file is executed."""
    try:
        content = path.read_bytes()
        refuse_inflated(content)
        planes = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"found no label map at {path}. {HOW_TO_MAKE_MAPS}") from None
    except Exception as error:
        # Damaged pickles raise almost anything; the reason is kept, and nothing but reading has failed.
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{path}: cannot be read as a label map ({type(error).__name__}: {reason}); expected a tensor file of "
            "torch.save. It is damaged, or not a label map: delete it and make it again with "
            "`python -m relabel annotate`, or fetch it again."
        ) from error
    if not _is_planes(planes):
        raise UserError(
            f"{path}: found {_describe(planes)}; expected a float32 or float16 tensor [2, k, h, w], plane 0 the scores "
            "and plane 1 the class ids. Give the folder of label maps in --data.relabel.path."
        )
    return planes.numpy(force=True)  # whatever the file says about gradients and pending signs


def _is_planes(value: object) -> bool:
    """Whether a loaded object is a plain tensor of the right type and number of planes."""
    return (
        isinstance(value, Tensor)
        and is_plain(value)
        and value.dtype in (torch.float16, torch.float32)
        and value.ndim == 4
        and value.shape[0] == 2
        and value.numel() > 0
        and not _repeats(value)
    )


def _repeats(tensor: Tensor) -> bool:
    """Whether a dense tensor on the CPU has more numbers than are stored: a small file could fill the memory."""
    return tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()


def _describe(value: object) -> str:
    """What a loaded object is, in a few words."""
    if isinstance(value, Tensor) and value.is_nested:
        return "a nested tensor"
    if isinstance(value, Tensor):
        repeated = " of repeated numbers" * (is_plain(value) and _repeats(value))
        return f"a tensor{repeated} of shape {list(value.shape)} and type {str(value.dtype).removeprefix('torch.')}"
    return f"a {type(value).__name__}"


def _class_ids(plane: np.ndarray, num_classes: int, path: Path) -> np.ndarray:
    """The ids of plane 1 [k, h, w] as int64, refused where the stored floats are not whole or not exact."""
    ids = plane.astype(np.float64)
    whole = (ids == np.floor(ids)) & (np.abs(ids) < 2**31)  # neither holds for nan and inf
    if not whole.all():
        raise UserError(
            f"{path}: found the class id {ids[~whole][0]} in plane 1; expected whole numbers in "
            f"0..{num_classes - 1}. The file is damaged or its planes are in another order: make this map again."
        )
    # 2049 is stored as 2048 in half precision, so 2048 is sure only where no larger id exists.
    if plane.dtype == np.float16 and num_classes > 2049 and ids.max() >= 2048:
        raise UserError(
            f"{path}: found the class id {ids.max():.0f} in half precision, which is exact only below 2048; "
            "expected float32 for so many classes. Make these maps again in float32."
        )
    return ids.astype(np.int64)
