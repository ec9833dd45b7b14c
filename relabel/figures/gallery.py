"""From label maps and images to pictures: which images, their random crops, and the targets of these."""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from relabel.annotation.label_set import LabelSet, open_label_set
from relabel.crop_box import MIN_AREA, WHOLE_IMAGE, random_crop_box
from relabel.data.class_names import class_labels
from relabel.data.decode import ImageFile
from relabel.data.images import ImageList
from relabel.figures.axes import draw_axes_figure
from relabel.figures.label_maps import Example, draw_contact_sheet, draw_examples, pooled_target
from utils.errors import UserError
from utils.random import SAMPLE, keyed_rng

LONGEST_SIDE = 900  # pixels of an image in a picture


def draw_figure(
    words: Sequence[str],
    labels: Path,
    images: Path,
    out: Path,
    figure: str,
    *,
    count: int,
    crops: int,
    seed: int,
    fill: float,
    temperature: float,
) -> None:
    """Write a picture of label maps.

    Args:
        words: the images to show, see `named_rows`; some at random where there are none.
        labels, images: see relabel/annotation/label_set.py.
        out: the PNG to write.
        figure: rows (a row per image), sheet (many images) or axes (the first image).
        count: images drawn at random.
        crops: random crops of each image, in rows.
        seed: of the random images and crops.
        fill, temperature: as in `relabel_target`.

    Raises:
        UserError: there is no such image, or it or its map cannot be read.
    """
    found = open_label_set(labels, images)
    assert found.images is not None
    rows = named_rows(found.images, words) if words else random_rows(found, count, seed)
    crops = {"rows": crops, "sheet": 0, "axes": 1}[figure]
    shown = [example(found, row, crops, seed, fill, temperature) for row in (rows[:1] if figure == "axes" else rows)]
    names = class_labels(found.class_names)
    if figure == "rows":
        draw_examples(out, shown, names, fill, temperature)
    elif figure == "sheet":
        draw_contact_sheet(out, shown, names, fill=fill, temperature=temperature)
    else:
        first = shown[0]
        file = ImageFile(found.images.path(rows[0]))
        size = (file.width, file.height)
        settings = {"fill": fill, "temperature": temperature}
        draw_axes_figure(out, first.image, first.crops[0], first.label_map, names, size=size, **settings)


def example(labels: LabelSet, row: int, crops: int, seed: int, fill: float, temperature: float) -> Example:
    """An image with its label map, and random crops as training draws them, one an epoch.

    Args:
        labels: with images.
        row: which of them.
        crops: how many; 0 for none.
        seed: of the crops.
        fill, temperature: as in `relabel_target`.

    Raises:
        UserError: the image or its label map cannot be read.
    """
    assert labels.images is not None
    file, label_map = ImageFile(labels.images.path(row)), labels.store.read(row)
    draws = [keyed_rng(seed, SAMPLE, epoch, row) for epoch in range(crops)]
    boxes = [random_crop_box(rng, file.width, file.height, MIN_AREA) for rng in draws]
    num_classes = len(labels.class_names)
    targets = [pooled_target(label_map, box, num_classes, fill, temperature) for box in boxes]
    label = None if labels.labels is None else int(labels.labels[row])
    return Example(shown_pixels(file), label, label_map, boxes, np.array(targets).reshape(crops, num_classes))


def named_rows(images: ImageList, words: Sequence[str]) -> list[int]:
    """The rows of images that are named as a path, as CLASS/FILE or as a key, CLASS/STEM.

    Raises:
        UserError: there is no such image.
    """
    rows = {name: row for row, name in enumerate(map(os.fsdecode, images.names.tolist()))}
    rows |= {name.rpartition(".")[0]: row for name, row in rows.items()}
    return [_row_named(images, rows, word) for word in words]


def random_rows(labels: LabelSet, count: int, seed: int) -> list[int]:
    """Some images that have a label map, in their order.

    Raises:
        UserError: none has one.
    """
    present = np.setdiff1d(np.arange(len(labels)), labels.store.missing())
    if not len(present):
        raise UserError(
            f"{labels.path} has no label map of any of the {len(labels):,} images; expected maps with their names. "
            f"Compare the names: the maps have {os.fsdecode(labels.store_keys[0])!r}, the images {labels.key(0)!r}"
        )
    return np.sort(keyed_rng(seed, SAMPLE, 0).permutation(present)[:count]).tolist()


def _row_named(images: ImageList, rows: dict[str, int], word: str) -> int:
    inside = _relative(word, images.root)
    if inside in rows:
        return rows[inside]
    near = difflib.get_close_matches(word, rows, n=1)
    hint = f"; did you mean {near[0]}?" if near else "."
    raise UserError(
        f"found no image {word!r} in {images.root}; expected the path of one, or its CLASS/FILE or CLASS/STEM{hint}"
    )


def _relative(word: str, root: Path) -> str:
    """A path from the root on, if it is the path of anything; a link stays the link that it is."""
    try:
        is_path = Path(word).exists()
    except OSError:  # too long a name
        return word
    return os.path.relpath(Path(word).parent.resolve() / Path(word).name, root.resolve()) if is_path else word


def shown_pixels(file: ImageFile) -> np.ndarray:
    """uint8 [H, W, 3]; the image, made smaller where it is large."""
    scale = min(1.0, LONGEST_SIDE / max(file.width, file.height))
    height, width = (max(1, round(side * scale)) for side in (file.height, file.width))
    return file.resized_crop(WHOLE_IMAGE, height, width).transpose(1, 2, 0)
