"""Label maps on disk, behind one interface: a map is asked for by the row of its key, and checked whenever it is read.

The form here is the folder of files that the authors released in 2021: FOLDER/CLASS/STEM.pt, a tensor [2, k, h, w] in
float32 or float16, plane 0 the logits, plane 1 the class ids, axes [score or id, k, row, column].
"""

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from relabel.label_map import LabelMap, class_dtype
from utils.errors import UserError

SUFFIX = ".pt"
HOW_TO_GO_ON = (
    "Make the missing maps with `python -m relabel annotate` (it keeps those that are there), "
    "or train without label maps: --data.relabel.use False"
)


class LabelStore(Protocol):
    """What training needs of label maps on disk. Row i is the map of the i-th key; a key is "CLASS/STEM" of an image.

    Cheap to pickle into loader workers, and nothing is opened before the first read.
    """

    def read(self, row: int) -> LabelMap:
        """The map of a row, validated. UserError naming the file where it is missing, damaged or of another shape."""
        ...

    def check_present(self, image_path: Callable[[int], Path]) -> None:
        """Check that every row has a map. UserError with their number and the first pair of paths otherwise.

        Args:
            image_path: gives the image of a row, for the message.
        """
        ...

    def check_one_per_class(self, labels: np.ndarray) -> None:
        """Read one map of each class, so that wrong maps are met before training. UserError as in `read`.

        Args:
            labels: integer [N]; the class of each row.
        """
        ...


def open_label_store(path: str | Path, keys: Sequence[str] | np.ndarray, num_classes: int) -> LabelStore:
    """The label maps under a folder, for images of the given keys.

    Args:
        path: folder of CLASS/STEM.pt files.
        keys: [N] texts "CLASS/STEM" ("STEM" for files without class folders), in the order of the images.
        num_classes: K, for checking class ids.

    Raises:
        UserError: there is no such folder.
    """
    root = Path(path)
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        raise UserError(
            f"found {found} at {root}; expected a folder of label maps, CLASS/STEM{SUFFIX} for each image. "
            f"Correct --data.relabel.path. {HOW_TO_GO_ON}"
        )
    return LabelFolder(root, np.asarray(keys, dtype=np.str_), num_classes)


def write_label_map(folder: str | Path, key: str, label_map: LabelMap) -> Path:
    """Write FOLDER/KEY.pt, float [2, k, h, w] of the scores' dtype, whole or not at all; returns its path.

    Raises:
        UserError: float16 scores, and a class id that float16 cannot hold.
    """
    path = _map_path(folder, key)
    planes = torch.from_numpy(np.stack([label_map.scores, label_map.classes.astype(label_map.scores.dtype)]))
    if (planes[1].numpy() != label_map.classes).any():
        raise UserError(f"{path}: float16 holds class ids exactly only to 2048. Write this map in float32.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # Through a file object: given a path, torch.save stores the temporary name in the file. No fsync: a million of
        # them take hours, and a map that a power failure damaged is refused when read, and made again.
        with temporary.open("wb") as file:
            torch.save(planes, file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


class LabelFolder:
    """A LabelStore over the folder of .pt files; see `open_label_store`."""

    def __init__(self, root: Path, keys: np.ndarray, num_classes: int) -> None:
        """Remember where the maps are; nothing is read.

        Args:
            root: the folder.
            keys: text [N].
            num_classes: K.
        """
        self._root = str(root)
        self._keys = keys
        self._num_classes = num_classes
        self._first: tuple[Path, tuple[int, int, int]] | None = None

    def __len__(self) -> int:
        """N, the number of keys."""
        return len(self._keys)

    def path(self, row: int) -> Path:
        """The file of a row's map."""
        return _map_path(self._root, str(self._keys[row]))

    def read(self, row: int) -> LabelMap:
        """See LabelStore. The first map read fixes the shape that all others must have."""
        path = self.path(row)
        planes = _load_planes(path)
        label_map = LabelMap(planes[0], _class_ids(planes[1], self._num_classes, path))
        label_map.validate(self._num_classes, str(path))
        first_path, first_shape = self._first = self._first or (path, label_map.shape)
        if label_map.shape != first_shape:
            raise UserError(
                f"{path}: found a label map of shape [k, h, w] = {list(label_map.shape)}; expected "
                f"{list(first_shape)} as in {first_path}, because a batch needs one shape. "
                "Keep maps of one annotator, input size and k in a folder."
            )
        return LabelMap(label_map.scores, label_map.classes.astype(class_dtype(self._num_classes)))

    def check_present(self, image_path: Callable[[int], Path]) -> None:
        """See LabelStore. One directory scan per class folder; no file is touched."""
        missing = list(self._missing_rows())
        if not missing:
            return
        path = self.path(missing[0])
        if path.parent.is_dir():
            folder = f"the folder {path.parent} is there, this file is not"
        else:
            folder = f"the whole folder {path.parent} is missing"
        raise UserError(
            f"{len(missing)} of {len(self)} training images have no label map. The first: image "
            f"{image_path(missing[0])}; expected its map at {path} ({folder}). {HOW_TO_GO_ON}"
        )

    def check_one_per_class(self, labels: np.ndarray) -> None:
        """See LabelStore. Reads the first map of each class."""
        for row in np.unique(labels, return_index=True)[1]:
            self.read(int(row))

    def _missing_rows(self) -> Iterator[int]:
        """Rows whose file is not in its folder. Keys of one class stand together, so each folder is scanned once."""
        rows = enumerate(self._keys.tolist())
        for folder, members in groupby(rows, key=lambda item: item[1].rpartition("/")[0]):
            present = _file_names(Path(self._root, folder))
            for row, key in members:
                if f"{key.rpartition('/')[2]}{SUFFIX}" not in present:
                    yield row


def _map_path(root: str | Path, key: str) -> Path:
    """ROOT/KEY.pt; the suffix is appended, because a stem may itself hold dots."""
    return Path(root, f"{key}{SUFFIX}")


def _file_names(folder: Path) -> set[str]:
    """Names in a folder; none where it does not exist."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _load_planes(path: Path) -> np.ndarray:
    """The float16 or float32 array [2, k, h, w] of a file, zip or legacy format; nothing in the file is executed."""
    try:
        planes = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"found no label map at {path}. {HOW_TO_GO_ON}") from None
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
    return planes.detach().numpy()


def _is_planes(value: object) -> bool:
    """Whether a loaded object is a plain tensor of the right type and number of planes."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.dtype in (torch.float16, torch.float32)
        and value.ndim == 4
        and value.shape[0] == 2
        and value.numel() > 0
    )


def _describe(value: object) -> str:
    """What a loaded object is, in a few words."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)} and type {str(value.dtype).removeprefix('torch.')}"
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
