"""A label store in memory: maps that a test writes by hand, and places where one is missing or damaged."""

from collections.abc import Sequence

import numpy as np

from relabel.label_map import LabelMap
from utils.errors import UserError


class MemoryStore:
    """A LabelStore over a list of maps; None is a missing map, a text the error message of a damaged one."""

    def __init__(self, maps: Sequence[LabelMap | str | None]) -> None:
        self._maps = maps

    def __len__(self) -> int:
        return len(self._maps)

    def read(self, row: int) -> LabelMap:
        found = self._maps[row]
        if not isinstance(found, LabelMap):
            raise UserError(found or f"no map of row {row}")
        return found

    def check(self, row: int) -> None:
        self.read(row)

    def missing(self) -> np.ndarray:
        return np.array([row for row, found in enumerate(self._maps) if found is None], dtype=np.int64)

    def location(self, row: int) -> str:
        return f"labels/{row}.pt"


def left_right_map(logit: float = 8.0, left: int = 0, right: int = 1) -> LabelMap:
    """4 x 6 cells with one class each: one class on the left half, another on the right."""
    classes = np.full((1, 4, 6), left, dtype=np.int16)
    classes[:, :, 3:] = right
    return LabelMap(np.full((1, 4, 6), logit, dtype=np.float32), classes)


def uniform_map(logit: float, label: int, k: int = 1, others: float = -30.0) -> LabelMap:
    """4 x 6 cells with one class of that logit everywhere, and the k - 1 classes after it with another logit."""
    scores = np.full((k, 4, 6), others, dtype=np.float32)
    scores[0] = logit
    classes = np.broadcast_to(label + np.arange(k, dtype=np.int16)[:, None, None], (k, 4, 6)).copy()
    return LabelMap(scores, classes)
