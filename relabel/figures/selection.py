"""Which images of a data set a figure or page shows."""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from relabel.annotation.label_set import LabelSet
from relabel.crop_box import MIN_AREA, WHOLE_IMAGE, CropBox, random_crop_box
from relabel.data.decode import ImageFile
from relabel.data.images import ImageList
from relabel.label_map import LabelMap
from relabel.targets import relabel_target
from relabel.training.agreement import top_class
from utils.errors import UserError
from utils.random import SAMPLE, keyed_rng


def named_rows(images: ImageList, words: Sequence[str]) -> list[int]:
    """Return the rows of images given by path, CLASS/FILE or CLASS/STEM.

    Raises:
        UserError: an image does not exist.
    """
    rows = {name: row for row, name in enumerate(map(os.fsdecode, images.names.tolist()))}
    rows |= {name.rpartition(".")[0]: row for name, row in rows.items()}
    found = []
    for word in words:
        path = Path(word).parent.resolve() / Path(word).name  # without following a link in the last part
        row = rows.get(word, images.index_at(path))
        if row is None:
            near = difflib.get_close_matches(word, rows, n=1)
            raise UserError(
                f"found no image {word!r} in {images.root}; expected the path of one, or its CLASS/FILE or CLASS/STEM"
                f"{f'; did you mean {near[0]}?' if near else '.'}"
            )
        found.append(row)
    return found


def random_rows(labels: LabelSet, count: int, seed: int) -> list[int]:
    """Draw rows of random images that have a label map: one of each class, then a second one of each, and so on.

    Raises:
        UserError: no image has one.
    """
    present = np.setdiff1d(np.arange(len(labels)), labels.store.missing())
    if not len(present):
        raise UserError(
            f"{labels.path} has a label map for none of the {len(labels):,} images; expected maps with their "
            f"names. Compare: the maps have {os.fsdecode(labels.store_keys[0])!r}, the images {labels.key(0)!r}"
        )
    drawn = keyed_rng(seed, SAMPLE, 0).permutation(present)
    if labels.labels is not None:
        by_class = np.argsort(labels.labels[drawn], kind="stable")
        classes = labels.labels[drawn][by_class]
        turns = np.empty(len(drawn), np.int64)
        turns[by_class] = np.arange(len(drawn)) - np.searchsorted(classes, classes)
        drawn = drawn[np.argsort(turns, kind="stable")]
    return drawn[:count].tolist()


def how_drawn(labels: LabelSet, seed: int) -> str:
    """Describe what `random_rows` does."""
    return f"drawn at random with seed {seed}{', evenly over the classes' * (labels.labels is not None)}"


def mixed_rows(
    labels: LabelSet, rows: Sequence[int], count: int, fill: float, temperature: float
) -> tuple[list[int], int]:
    """Choose among rows: half of them disagree with their label, if there are any, the largest disagreement first.

    Args:
        labels: with labels of its images.
        rows: to choose among; the others are the first of them.
        count: number to choose, at most.
        fill, temperature: as in `relabel_target`.

    Returns:
        The rows, and how many of all disagree.
    """
    assert labels.labels is not None
    disputed: dict[int, float] = {}
    for row in rows:
        target = whole_target(labels.store.read(row), len(labels.class_names), fill, temperature)
        label = int(labels.labels[row])
        if is_disputed(target, label):
            disputed[row] = float(target[label] - target.max())
    by_size = sorted(disputed, key=disputed.__getitem__)
    half = (count + 1) // 2
    agreeing = [row for row in rows if row not in disputed]
    return [*by_size[:half], *agreeing, *by_size[half:]][:count], len(disputed)


def first_crops(file: ImageFile, row: int, crops: int, seed: int) -> list[CropBox]:
    """Return the random crops of an image in the first epochs of a training run with this seed."""
    rngs = [keyed_rng(seed, SAMPLE, epoch, row) for epoch in range(crops)]
    return [random_crop_box(rng, file.width, file.height, MIN_AREA) for rng in rngs]


def clearest_crop(
    labels: LabelSet, rows: Sequence[int], crops: int, seed: int, fill: float, temperature: float
) -> tuple[int, tuple[CropBox, CropBox], float]:
    """Find the crop for which the order of its sides matters most, among the first crops of some images.

    Returns:
        Its row, the crop and its transpose, and the share of the target that moves to other classes between them.
    """
    assert labels.images is not None
    best = -1.0, rows[0], (WHOLE_IMAGE, WHOLE_IMAGE)
    for row in rows:
        maps = LabelMap.stack([labels.store.read(row)] * 2)
        for box in first_crops(ImageFile(labels.images.path(row)), row, crops, seed):
            boxes = box, box.transposed()
            both = relabel_target(
                *maps, CropBox.stack(boxes), len(labels.class_names), fill=fill, temperature=temperature
            )
            best = max(best, (float((both[0] - both[1]).abs().sum()) / 2, row, boxes), key=lambda found: found[0])
    return best[1], best[2], best[0]


def whole_target(label_map: LabelMap, num_classes: int, fill: float, temperature: float) -> np.ndarray:
    """Return the target of a whole image, float [K]."""
    maps = LabelMap.stack([label_map])
    return relabel_target(*maps, None, num_classes, fill=fill, temperature=temperature).numpy()[0]


def is_disputed(target: np.ndarray, label: int) -> bool:
    """Whether the largest class of a target [K] is not the label."""
    return int(top_class(torch.from_numpy(target[None]))) != label
