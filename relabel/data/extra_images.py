"""Extra training images, with label maps and without labels: a fixed share of every batch.

An epoch is one pass over the labelled images, the main ones. The extra images of all roots together are read in
separate passes, which may end in the middle of an epoch or a batch. All share one index space: 0..N-1 are the main
images, N..N+M-1 the extra ones.
"""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import count, islice, pairwise
from pathlib import Path

import numpy as np

from relabel.data.dataset import ImageDataset, Key, Sample
from relabel.data.images import ImageList, ImagePath
from relabel.data.sources import open_images
from relabel.stores.store import LabelStore, check_one_per_class, check_present, open_label_store
from utils.errors import UserError, with_advice
from utils.processes.distributed import from_main
from utils.random import EXTRA_ORDER, keyed_rng

_WITHOUT_MAPS = "For extra images, add --unlabelled true to this command; or train without them: --data.extra.share 0"


@dataclass(frozen=True, slots=True, eq=False)
class ExtraRoot:
    """A folder of extra images: their list, with all labels -1, and the store whose row i is the map of image i."""

    images: ImageList
    store: LabelStore

    def __len__(self) -> int:
        """Return the number of images in this folder."""
        return len(self.images)


def open_extra_root(
    path: str | Path, labels: str | Path, class_names: Sequence[str], shape: tuple[int, int, int]
) -> ExtraRoot:
    """List a folder of extra images and open its label maps; check that none is missing, and read one per folder.

    Args:
        path: ROOT/CLASS/IMAGE or ROOT/IMAGE, with any class names.
        labels: a packed store, or a folder of .pt files.
        class_names: the K classes of the main images; maps that name other classes are translated.
        shape: (k, h, w) of the main images' maps.

    Raises:
        UserError: images or maps are missing or damaged, the maps lack a class, or have another shape.
    """
    with with_advice("Check --data.extra.path, or train without extra images: --data.extra.share 0"):
        images = from_main(lambda: open_images(path))
    with with_advice(f"These label maps are those of --data.extra.labels, in {labels}."):
        store = open_label_store(labels, images.keys(), class_names)
        with with_advice(_WITHOUT_MAPS):
            from_main(lambda: check_present(store, images.path))
        check_one_per_class(store, images.labels)
    found = store.read(0).shape
    if found != shape:
        raise UserError(
            f"{labels}: found label maps of shape [k, h, w] = {list(found)}; expected {list(shape)} like those of the "
            "training images, because a batch needs one shape. Make them with the same --top_k and --size."
        )
    return ExtraRoot(replace(images, class_names=[], labels=np.full(len(images), -1, dtype=np.int32)), store)


class MixedDataset:
    """Main and extra images in one index space: `dataset[(epoch or pass, index)]` is a Sample. Cheap to pickle."""

    def __init__(self, main: ImageDataset, roots: Sequence[ExtraRoot]) -> None:
        """Append the extra images to the main ones, with the same transform."""
        self._parts = [main]
        for root in roots:
            self._parts.append(replace(main, images=root.images, label_store=root.store, first=len(self)))

    def __len__(self) -> int:
        """Return N + M, the number of all images."""
        return sum(map(len, self._parts))

    def path(self, key: Key) -> ImagePath:
        """Return where the image of a key lies."""
        return self._part(key).path(key)

    def __getitem__(self, key: Key) -> Sample:
        """Read the sample of a key. UserError, naming the file, if image or label map is missing or damaged."""
        return self._part(key)[key]

    def on_cpu(self) -> "MixedDataset":
        """Return the same samples, none of them encoded."""
        mixed = copy(self)
        mixed._parts = [part.on_cpu() for part in self._parts]
        return mixed

    def _part(self, key: Key) -> ImageDataset:
        return next(part for part in reversed(self._parts) if key[1] >= part.first)


@dataclass(frozen=True, slots=True)
class ExtraBatches:
    """The extra images of each update: passes over all of them, each in its own order, cut into equal pieces.

    Fields:
        num_main: N.
        num_extra: M.
        per_batch: extra images per update, over all processes.
        seed: determines the order of each pass.
    """

    num_main: int
    num_extra: int
    per_batch: int
    seed: int

    def from_step(self, step: int) -> Iterator[list[Key]]:
        """Yield, without end, (pass, index) of the extra images of each update from this one on."""
        first_pass, start = divmod(step * self.per_batch, self.num_extra)
        keys = islice(self._passes(first_pass), start, None)
        while True:
            yield list(islice(keys, self.per_batch))

    def _passes(self, first: int) -> Iterator[Key]:
        for number in count(first):
            for image in keyed_rng(self.seed, EXTRA_ORDER, number).permutation(self.num_extra).tolist():
                yield number, self.num_main + image


def spread(main: list[Key], extra: list[Key]) -> list[Key]:
    """Mix main and extra images evenly into one batch.

    Any run of consecutive rows has its share of extra images to within one. So each process and micro-batch gets its
    share, and the batch does not depend on how it is divided.
    """
    total = len(main) + len(extra)
    counts = [row * len(extra) // total for row in range(total + 1)]  # of the extra images above each row
    return [extra[a] if b > a else main[row - a] for row, (a, b) in enumerate(pairwise(counts))]
