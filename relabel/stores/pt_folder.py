"""Label maps as the authors released them in 2021: a folder with one file per image.

FOLDER/CLASS/STEM.pt is a tensor [2, k, h, w] in float32 or float16: plane 0 the logits, plane 1 the class ids, axes
[score or id, k, row, column]. Folders made by this project also have a manifest, which names the classes.
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
from relabel.stores.manifest import MANIFEST, Manifest
from utils.checkpoint import damaged_part, is_plain, refuse_inflated
from utils.errors import UserError, naming
from utils.files import is_file, remove_temporaries, replacing
from utils.look_alikes import look_alike

SUFFIX = ".pt"
HOW_TO_MAKE_MAPS = "Make label maps of all images with `python -m relabel annotate`"
_MAKE_AGAIN = "Delete the file and make it again with `python -m relabel annotate`, or download it again."
HOW_TO_CONTINUE = "Make room or allow writing, then give the same command again: existing label maps are kept"


def write_label_map(folder: str | Path, key: str, label_map: LabelMap) -> Path:
    """Write FOLDER/KEY.pt atomically, float [2, k, h, w] of the scores' dtype; return its path.

    Raises:
        UserError: it cannot be written, or float16 cannot represent a class id.
    """
    path = map_path(folder, key)
    planes = torch.from_numpy(np.stack([label_map.scores, label_map.classes.astype(label_map.scores.dtype)]))
    if (planes[1].numpy() != label_map.classes).any():
        raise UserError(f"{path}: float16 represents class ids exactly only up to 2048. Write this map in float32.")
    content = io.BytesIO()  # with a path, torch.save would store the temporary name in the file
    torch.save(planes, content)
    # No fsync: for a million files it takes hours, and a map damaged by a power failure is refused when read.
    with replacing(path, HOW_TO_CONTINUE) as temporary:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content.getvalue())
    return path


class FolderWriter:
    """Writes label maps as .pt files beside their manifest; existing files are kept. Same interface as PackedWriter."""

    def __init__(self, folder: Path, keys: np.ndarray, manifest: Manifest) -> None:
        """Create the writer; nothing is written yet.

        Args:
            folder: must exist.
            keys: bytes [N].
            manifest: of all the maps.
        """
        self._folder, self._keys, self._manifest = folder, keys, manifest

    def begin(self) -> np.ndarray:
        """Write the manifest, or check that the existing one is the same; one process calls this.

        Returns:
            bool [N]; whether a file exists and is not empty (a power failure can leave empty files).

        Raises:
            UserError: the folder has maps made with other settings (the message lists them), or without a manifest.
        """
        self._manifest.begin(self._folder)
        for folder in filter(Path.is_dir, self._folder.iterdir()):
            if folder.is_symlink():
                raise UserError(f"{folder} is a link, so label maps would be written elsewhere. Remove it")
            remove_temporaries(folder)
        done = np.ones(len(self._keys), dtype=bool)
        done[list(missing_rows(self._folder, self._keys))] = False
        return done

    def write(self, row: int, label_map: LabelMap) -> None:
        """Write the file of a key."""
        write_label_map(self._folder, os.fsdecode(self._keys[row]), label_map)

    def close(self) -> None:
        """Do nothing: no file is left open."""

    def commit(self, skipped: dict[str, str]) -> None:
        """Record the images without a map: key -> reason."""
        self._manifest.model_copy(update={"skipped": skipped}).write(self._folder / MANIFEST)


class LabelFolder:
    """A LabelStore over a folder of .pt files; see relabel/stores/store.py."""

    def __init__(
        self, root: Path, keys: np.ndarray, class_names: Sequence[str], manifest: Manifest | None = None
    ) -> None:
        """Open the folder; no map is read.

        Args:
            root: the folder.
            keys: bytes [N].
            class_names: the K classes of the data.
            manifest: gives the shape of the maps and the classes of their ids; None: the shape is that of the first
                map read, the classes are class_names.

        Raises:
            UserError: the maps lack a class of the data.
        """
        self._root, self._keys = str(root), keys
        own_names = manifest.class_names if manifest else class_names
        self._num_classes = len(own_names)
        self._dtype = class_dtype(len(class_names))
        with naming(root):
            self._new_ids = class_translation(own_names, class_names)
        self._first = (root, manifest.shape) if manifest else None

    def __len__(self) -> int:
        """Return N, the number of keys."""
        return len(self._keys)

    def path(self, row: int) -> Path:
        """Return the path of a row's file."""
        return map_path(self._root, os.fsdecode(self._keys[row]))

    def read(self, row: int) -> LabelMap:
        """See LabelStore."""
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
                "Keep only maps of one teacher, input size and k in a folder."
            )
        classes = label_map.classes if self._new_ids is None else self._new_ids[label_map.classes]
        return LabelMap(label_map.scores, classes.astype(self._dtype))

    def missing(self) -> np.ndarray:
        """See LabelStore. Each class folder is listed once, with the size of each file."""
        return np.fromiter(missing_rows(self._root, self._keys), dtype=np.int64)

    def location(self, row: int) -> str:
        """See LabelStore."""
        path = self.path(row)
        if path.parent.is_dir():
            return f"{path} (the folder exists, the file does not)"
        root = Path(self._root)
        others = [folder.name for folder in root.iterdir()] if root.is_dir() else []
        like = look_alike(path.parent.name, others)
        return f"{path} (the whole folder is missing{like and f'; {like}'})"

    def check(self, row: int) -> None:
        """See LabelStore. Also verifies the checksums in files of the zip format, which torch.load ignores."""
        self.read(row)
        path = self.path(row)
        try:
            damaged = damaged_part(path)
        except Exception as error:  # damaged archives raise almost anything
            damaged = f"{type(error).__name__}: {error}"
        if damaged:
            raise UserError(f"{path} is damaged: the checksum of {damaged} is wrong. {_MAKE_AGAIN}")


def missing_rows(root: str | Path, keys: np.ndarray) -> Iterator[int]:
    """Yield the rows of `keys` without a file, or with an empty one. A folder is listed once per run of its keys."""
    rows = enumerate(map(os.fsdecode, keys.tolist()))
    for folder, members in groupby(rows, key=lambda item: item[1].rpartition("/")[0]):
        present = {e.name for e in _entries(Path(root, folder)) if e.name.endswith(SUFFIX) and _size(e)}
        for row, key in members:
            if f"{key.rpartition('/')[2]}{SUFFIX}" not in present:
                yield row


def list_label_files(root: Path) -> list[str]:
    """List the keys of ROOT/STEM.pt and ROOT/CLASS/STEM.pt, in arbitrary order. Hidden files and folders are skipped.

    Raises:
        UserError: a folder cannot be listed.
    """
    classes = [entry for entry in _entries(root) if entry.name[0] != "." and Path(entry).is_dir()]
    return [
        prefix + entry.name.removesuffix(SUFFIX)
        for prefix, folder in (("", root), *((f"{entry.name}/", Path(entry)) for entry in classes))
        for entry in _entries(folder)
        if entry.name.endswith(SUFFIX) and entry.name[0] != "." and is_file(entry)
    ]


def map_path(root: str | Path, key: str) -> Path:
    """Return ROOT/KEY.pt; the suffix is appended, because a stem may itself contain dots."""
    return Path(root, f"{key}{SUFFIX}")


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield what is in a folder; nothing if it does not exist. UserError if it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise UserError(f"{folder} cannot be listed ({error.strerror}). Allow reading it.") from error


def _size(entry: os.DirEntry[str]) -> int:
    """Return the size of a file in bytes; 0 for a broken link."""
    try:
        return entry.stat().st_size
    except OSError:
        return 0


def _load_planes(path: Path) -> np.ndarray:
    """Load the array [2, k, h, w], float16 or float32, of a file in zip or legacy format; nothing is executed."""
    try:
        content = path.read_bytes()
        refuse_inflated(content)
        planes = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"found no label map at {path}. {HOW_TO_MAKE_MAPS}") from None
    except Exception as error:  # damaged pickles raise almost anything
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{path}: cannot be read as a label map ({type(error).__name__}: {reason}); expected a tensor file of "
            f"torch.save. {_MAKE_AGAIN}"
        ) from error
    problem = _problem(planes)
    if problem:
        raise UserError(
            f"{path}: found {problem}; expected a float32 or float16 tensor [2, k, h, w], plane 0 the scores "
            f"and plane 1 the class ids. Give the folder of the label maps. If this is it: {_MAKE_AGAIN}"
        )
    return planes.numpy(force=True)  # detaches it and resolves a lazy negation


def _problem(value: object) -> str:
    """Return what a loaded object is if it is not a plain tensor of two planes; '' if it is."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    if not is_plain(value):
        return "a sparse, nested or quantized tensor"
    found = f"of shape {list(value.shape)} and type {str(value.dtype).removeprefix('torch.')}"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():  # a small file could fill the memory
        return f"a tensor of repeated numbers {found}"
    is_map = value.ndim == 4 and value.shape[0] == 2 and value.numel() > 0
    return "" if is_map and value.dtype in (torch.float16, torch.float32) else f"a tensor {found}"


def _class_ids(plane: np.ndarray, num_classes: int, path: Path) -> np.ndarray:
    """Convert plane 1 [k, h, w] to int64 ids; reject floats that are not whole numbers, or not exact."""
    ids = plane.astype(np.float64)
    whole = (ids == np.floor(ids)) & (np.abs(ids) < 2**31)  # false for nan and inf
    if not whole.all():
        raise UserError(
            f"{path}: found the class id {ids[~whole][0]} in plane 1; expected whole numbers in "
            f"0..{num_classes - 1}. The file is damaged or its planes are in another order. {_MAKE_AGAIN}"
        )
    # 2049 is stored as 2048 in half precision, so 2048 is unambiguous only if there is no larger id.
    if plane.dtype == np.float16 and num_classes > 2049 and ids.max() >= 2048:
        raise UserError(
            f"{path}: found the class id {ids.max():.0f} in half precision, which is exact only below 2048; "
            "expected float32 for so many classes. Delete these maps and make them again in float32."
        )
    return ids.astype(np.int64)
