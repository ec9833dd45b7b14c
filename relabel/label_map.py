"""A label map: the k best classes of a strong classifier in each cell of an image."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def class_dtype(num_classes: int) -> type[np.signedinteger]:
    """Return the smallest integer type that can store 0..K: int16 copies to the device four times as fast as int64."""
    return np.int16 if num_classes <= np.iinfo(np.int16).max else np.int32


@dataclass(frozen=True, slots=True, eq=False)
class LabelMap:
    """The k largest logits of each cell and their classes; the map covers the whole image, squashed.

    Fields:
        scores: float16 or float32 [k, h, w]; logits, row 0 at the top of the image.
        classes: integer [k, h, w]; the class of each score, in 0..K-1, no class twice in a cell. Classes that
            the teacher knows but the data lacks have id K, and their scores are ignored.
    """

    scores: np.ndarray
    classes: np.ndarray

    def __post_init__(self) -> None:
        """Check the arrays' shapes and types."""
        scores, classes = self.scores, self.classes
        assert scores.shape == classes.shape and scores.ndim == 3, (scores.shape, classes.shape)
        assert scores.dtype.char in "ef" and classes.dtype.kind in "iu", (scores.dtype, classes.dtype)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(k, h, w)."""
        k, h, w = self.scores.shape
        return k, h, w

    @staticmethod
    def stack(maps: Sequence["LabelMap"]) -> tuple[Tensor, Tensor]:
        """Stack maps of equal shape into scores and classes, [B, k, h, w] each; the dtypes are kept."""
        scores = np.stack([label_map.scores for label_map in maps])
        classes = np.stack([label_map.classes for label_map in maps])
        return torch.from_numpy(scores), torch.from_numpy(classes)

    @classmethod
    def from_dense(cls, dense: np.ndarray | torch.Tensor, k: int) -> "LabelMap":
        """Keep the k largest logits of each cell, largest first.

        Args:
            dense: float [K, h, w]; an array, or a tensor on any device. float16 is kept, other types become float32.
            k: classes to keep per cell, 1..K.
        """
        assert dense.ndim == 3 and 1 <= k <= dense.shape[0], (dense.shape, k)
        values, classes = torch.as_tensor(dense).detach().topk(k, dim=0)
        scores = values if values.dtype == torch.float16 else values.float()
        return cls(scores.cpu().numpy(), classes.cpu().numpy().astype(class_dtype(dense.shape[0])))

    def to_dense(self, num_classes: int, fill: float = 0.0) -> np.ndarray:
        """Return the logits of all K classes, float32 [K, h, w]; `fill` for classes that a cell does not store."""
        dense = np.full((num_classes + 1, *self.scores.shape[1:]), fill, dtype=np.float32)
        np.put_along_axis(dense, self.classes.astype(np.int64), self.scores, axis=0)
        return dense[:num_classes]  # the last plane took the classes that the data lacks

    def validate(self, num_classes: int) -> None:
        """Check that scores are finite, class ids in range, and no class stored twice in a cell.

        Args:
            num_classes: K.

        Raises:
            ValueError: for the first bad cell, with the value found there.
        """
        _raise_at_first(~np.isfinite(self.scores), self.scores, "the score", "finite scores. Make this map again")
        wrong_ids = (self.classes < 0) | (self.classes >= num_classes)
        expected = (
            f"ids in 0..{num_classes - 1} ({num_classes} classes). If these maps are of other classes, name those: "
            "`python -m relabel pack --help`. Otherwise make this map again"
        )
        _raise_at_first(wrong_ids, self.classes, "the class id", expected)
        # Pooling would add both scores, whereas a dense map has only one per class.
        ordered = np.sort(self.classes, axis=0)
        once = "each class at most once in a cell. Make this map again"
        _raise_at_first(ordered[1:] == ordered[:-1], ordered, "a second score of class", once)


def class_translation(map_classes: Sequence[str], data_classes: Sequence[str]) -> np.ndarray | None:
    """Return the data's class id for each class id of the label maps, matched by name.

    Args:
        map_classes: names of the label maps' classes.
        data_classes: names of the data's K classes.

    Returns:
        integer [len(map_classes)]; K for a class that the data lacks. None if the lists are the same.

    Raises:
        ValueError: the data has a class that the maps lack.
    """
    if list(map_classes) == list(data_classes):
        return None
    available = set(map_classes)
    if unknown := [name for name in data_classes if name not in available]:
        raise ValueError(
            f"the label maps lack {len(unknown):,} of the data's {len(data_classes):,} classes, "
            f"the first: {unknown[0]!r}; expected class folders named like the {len(map_classes):,} classes of the "
            f"maps ({map_classes[0]!r}, ...). "
            "Use label maps of a teacher that knows these classes, or rename the folders."
        )
    position = {name: index for index, name in enumerate(data_classes)}
    num_classes = len(data_classes)
    return np.array([position.get(name, num_classes) for name in map_classes], dtype=class_dtype(num_classes))


def _raise_at_first(wrong: np.ndarray, values: np.ndarray, what: str, expected: str) -> None:
    """Raise a ValueError with the first cell in which `wrong` [k, h, w] is set, and the value found there."""
    if wrong.any():
        layer, row, column = (int(i) for i in np.argwhere(wrong)[0])
        found = f"{what} {values[layer, row, column]} in the cell at row {row}, column {column}"
        raise ValueError(f"found {found}; expected {expected}.")
