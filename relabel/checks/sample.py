"""A random sample of label maps in memory, for measuring their quality."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from relabel.label_map import LabelMap
from relabel.stores.store import LabelStore
from utils.progress import JobProgress

BATCH = 256


@dataclass(frozen=True, slots=True, eq=False)
class MapSample:
    """Label maps of n images.

    Fields:
        rows: int64 [n]; rows of the store, in ascending order.
        scores: float [n, k, h, w], as stored.
        classes: integer [n, k, h, w]; K for a class that the data lacks.
    """

    rows: np.ndarray
    scores: Tensor
    classes: Tensor

    def __len__(self) -> int:
        """Return the number of maps."""
        return len(self.rows)

    def batches(self) -> Iterator[slice]:
        """Return slices of the sample that are small enough to be measured at once."""
        return (slice(start, min(start + BATCH, len(self))) for start in range(0, len(self), BATCH))

    def only(self, chosen: np.ndarray | slice) -> "MapSample":
        """Select maps by a slice or by indices in the sample, integer [m]."""
        return MapSample(self.rows[chosen], self.scores[chosen], self.classes[chosen])

    def same_cells_percent(self) -> float:
        """Return the percentage of maps whose cells, two or more, all have the same classes and scores."""
        if self.scores.shape[-2:].numel() == 1:
            return 0.0
        same = [(maps == maps[..., :1, :1]).flatten(1).all(dim=1) for maps in (self.scores, self.classes)]
        return 100 * float((same[0] & same[1]).float().mean())


def read_sample(store: LabelStore, rows: np.ndarray, size: int, seed: int = 0) -> MapSample:
    """Read the maps of some of the rows, drawn without replacement; 10,000 maps of the paper's size take 70 MB.

    Args:
        store: of the maps.
        rows: int64 [m], at least one; of maps that can be read.
        size: number of maps to draw; all if there are fewer.
        seed: of the draw.

    Raises:
        UserError: as LabelStore.read.
    """
    drawn = np.sort(np.random.default_rng(seed).permutation(rows)[:size])
    maps = []
    with JobProgress("read a sample", len(drawn), "label maps") as progress:
        for row in drawn.tolist():
            maps.append(store.read(row))
            progress.advance(1)
    return MapSample(drawn, *LabelMap.stack(maps))
