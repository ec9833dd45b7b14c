"""Further training images, which have label maps and need no labels: a fixed share of every batch.

An epoch stays one pass over the labelled images, the main ones. The extra images of all roots together are gone through
in passes of their own, which end where they end. Main and extra images share one index space: 0..N-1 are the main ones,
N..N+M-1 the extra ones.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice, pairwise
from pathlib import Path

import numpy as np

from relabel.data.dataset import Crop, ImageDataset, Key, Sample, Transform
from relabel.data.decode import ImageFile
from relabel.data.images import ImageList, list_any_images
from relabel.stores.store import LabelStore, check_one_per_class, check_present, open_label_store
from utils.errors import UserError, with_advice
from utils.processes.distributed import from_main
from utils.random import EXTRA_ORDER, keyed_rng

_WITHOUT_MAPS = (
    "Check --data.extra.labels, make them with `python -m relabel annotate IMAGES LABELS --unlabelled true`, or train "
    "without extra images: --data.extra.share 0"
)


@dataclass(frozen=True, slots=True, eq=False)
class ExtraRoot:
    """A folder of extra images: a list whose labels are all -1, and a store whose row i is the map of the i-th."""

    images: ImageList
    store: LabelStore

    def __len__(self) -> int:
        """Images."""
        return len(self.images)


def open_extra_root(
    path: str | Path, labels: str | Path, class_names: Sequence[str], shape: tuple[int, int, int]
) -> ExtraRoot:
    """List a folder of extra images and open its label maps: all present, one of each folder read and sound.

    Args:
        path: ROOT/CLASS/IMAGE or ROOT/IMAGE; what the class folders are called does not matter.
        labels: a packed store, or a folder of .pt files.
        class_names: the K classes of the main images, which the maps are translated to where they name their own.
        shape: (k, h, w) of the main images' maps.

    Raises:
        UserError: there are no such images or maps, some are missing or damaged, their teacher does not know the
            classes, or they have another shape.
    """
    with with_advice("Check --data.extra.path, or train without extra images: --data.extra.share 0"):
        images = from_main(lambda: list_any_images(path))
    with with_advice(_WITHOUT_MAPS):
        store = open_label_store(labels, images.keys(), class_names)
        from_main(lambda: check_present(store, images.path))
        check_one_per_class(store, images.labels)
    found = store.read(0).shape
    if found != shape:
        raise UserError(
            f"{labels}: found label maps of shape [k, h, w] = {list(found)}; expected {list(shape)} as of the training "
            "images, because a batch needs one shape. Make them with the --top_k and --size of the others."
        )
    return ExtraRoot(replace(images, class_names=[], labels=np.full(len(images), -1, dtype=np.int32)), store)


@dataclass(frozen=True, slots=True)
class _Shifted:
    """A view whose draws belong to an image's index among all images, so that no two images share one."""

    view: Transform
    first: int

    def __call__(self, file: ImageFile, epoch: int, index: int) -> Crop:
        """The crop of the index-th image of a root that begins at `first`."""
        return self.view(file, epoch, self.first + index)


class MixedDataset:
    """Main and extra images behind one index: `dataset[(epoch or pass, index)]` is a Sample; label -1 of an extra one.

    Cheap to pickle; files are opened when a sample is asked for.
    """

    def __init__(self, main: ImageDataset, roots: Sequence[ExtraRoot]) -> None:
        """Put them one after the other.

        Args:
            main: the labelled images, with label maps.
            roots: at least one; seen as the main images are.
        """
        self._parts, self._firsts = [main], [0]
        for root in roots:
            first = len(self)
            self._parts.append(ImageDataset(root.images, _Shifted(main.view, first), root.store, main.decoder))
            self._firsts.append(first)

    def __len__(self) -> int:
        """N + M."""
        return self._firsts[-1] + len(self._parts[-1])

    def __getitem__(self, key: Key) -> Sample:
        """The sample of a key. UserError naming the file: image or label map missing or damaged."""
        epoch, index = key
        part = bisect_right(self._firsts, index) - 1
        return replace(self._parts[part][(epoch, index - self._firsts[part])], index=index)


@dataclass(frozen=True, slots=True)
class ExtraBatches:
    """Which extra images an update takes: passes over all of them, each in its own order, cut into equal pieces.

    A pass takes each image once before the next one begins, be it in the middle of a batch.

    Fields:
        num_main: N.
        num_extra: M.
        per_batch: extra images in an update, over all processes.
        seed: of the orders.
    """

    num_main: int
    num_extra: int
    per_batch: int
    seed: int

    def from_step(self, step: int) -> Iterator[list[Key]]:
        """(pass, index) of the extra images of each update from this one on, without end."""
        keys = self._from_position(step * self.per_batch)
        while True:
            yield list(islice(keys, self.per_batch))

    def _from_position(self, position: int) -> Iterator[Key]:
        first_pass, start = divmod(position, self.num_extra)
        for number in count(first_pass):
            order = keyed_rng(self.seed, EXTRA_ORDER, number).permutation(self.num_extra)
            for image in order[start:]:
                yield number, self.num_main + int(image)
            start = 0


def spread(main: list[Key], extra: list[Key]) -> list[Key]:
    """A batch of both, evenly mixed: any rows of it hold the extra images' share of them, to less than one image.

    So every process and every micro-batch gets its share, and the batch does not depend on how it is cut up.
    """
    total = len(main) + len(extra)
    before = [row * len(extra) // total for row in range(total + 1)]  # extra images above each row
    return [extra[a] if b > a else main[row - a] for row, (a, b) in enumerate(pairwise(before))]
