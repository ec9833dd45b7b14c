"""Scenes of several small images, of which the largest usually gives the label: digits, or images from any folder.

A small model of ReLabel's problem: an image has one label and several objects, and a random crop often shows an object
other than the labelled one. The scenes are not square, so that swapped axes are noticed.

    out/train/digit_3/train_00012.JPEG   scenes, one folder per label
    out/val/digit_3/val_00007.JPEG       made of images that are in no training scene
    out/train.json, out/val.json         the truth: {"digit_3/train_00012.JPEG": {"labels": [3, 8], "boxes": [...]}}
    out/scenes.json                      what the folder was made from

Labels are positions in the sorted class folders; the first is that of the scene. Boxes are [left, top, right, bottom]
as fractions of the scene and contain the whole square of an image, which is a little wider than a digit's ink.
"""

import json
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from relabel.crop_box import CropBox
from relabel.demo.small_images import SPLITS, SmallImages
from utils.errors import UserError
from utils.files import new_folder, read_json
from utils.processes.distributed import available_cores
from utils.processes.workers import read_batches
from utils.progress import JobProgress

# In pixels, for digit scenes; multiplied by the scale of other images.
HEIGHT, WIDTH = 56, 72  # the area of a 64x64 image
LABEL_SIZES = (24, 33)  # side of the image that gives the label, both ends included
OTHER_SIZES = (18, 27)  # the ranges overlap: size is a strong hint, not proof
IMAGE_COUNTS = (2, 4)
TRIES = 30  # positions tried for each image
NOISE = 0.08  # standard deviation of the background, in units where white is 1
JPEG_QUALITY = 92
BATCH = 50  # scenes that a worker process draws at a time
SCENES_PER_WORKER = 500  # fewer are drawn sooner than a process starts


@dataclass(frozen=True, slots=True)
class Scene:
    """A scene and its objects.

    Fields:
        pixels: uint8 [H, W, 3], RGB, row 0 at the top.
        labels: the classes 0..K-1 in it; the first is the scene's label, with a side from LABEL_SIZES.
        boxes: the square of each image, in the order of labels.
    """

    pixels: np.ndarray
    labels: tuple[int, ...]
    boxes: tuple[CropBox, ...]


def draw_scene(images: SmallImages, seed: int, split: str, number: int) -> Scene:
    """Draw scene `number` of a split; every pixel depends only on the images and on (seed, split, number)."""
    rng = np.random.default_rng((seed, SPLITS.index(split), number))
    labels = images.labels(split)
    height, width = HEIGHT * images.scale, WIDTH * images.scale
    squares = _draw_squares(rng, images.scale)
    chosen = rng.integers(len(labels), size=len(squares))
    # The label of scene n is class n % K: classes are balanced, and none is empty in a small set.
    chosen[0] = rng.choice(np.flatnonzero(labels == number % len(images.class_names)))
    pixels = rng.uniform(0, 0.5, 3) + NOISE * rng.standard_normal((height, width, 3))
    for index, (left, top, side) in zip(chosen, squares, strict=True):
        images.draw(pixels[top : top + side, left : left + side], split, int(index), rng)
    return Scene(
        pixels=(pixels.clip(0, 1) * 255).round().astype(np.uint8),
        labels=tuple(int(labels[index]) for index in chosen),
        boxes=tuple(CropBox.from_pixels(x, y, x + side, y + side, width, height) for x, y, side in squares),
    )


def write_scenes(images: SmallImages, out: Path, seed: int = 0, train: int = 6000, val: int = 1500) -> None:
    """Write scenes as JPEG files in ImageNet's layout, with their truth (see the top of this file).

    Different seeds give different scenes but split the images in the same way: the teacher's scenes have another seed,
    so the student never sees them, and no teacher has seen an image of the validation scenes.

    Nothing happens if `out` already contains exactly these scenes; otherwise it is created atomically. The bytes depend
    only on the arguments and Pillow's JPEG encoder.

    Args:
        images: the small images.
        out: the folder to create; may exist if it is empty.
        seed: of the scenes.
        train, val: scenes per split, at least one per class.

    Raises:
        UserError: a number is out of range, `out` contains something else or cannot be written, or an image is
            unreadable.
    """
    description = _describe(images, seed, train, val)
    if _has_scenes(out, description):
        return
    with new_folder(out) as folder, JobProgress("scenes", train + val, "scenes") as progress:
        for split, count in (("train", train), ("val", val)):
            _write_split(images, folder, split, seed, count, progress)
        _write_json(folder / "scenes.json", description)


def _draw_squares(rng: np.random.Generator, scale: int) -> list[tuple[int, int, int]]:
    """Draw (left, top, side) in pixels of two to four squares that do not overlap, the label's first.

    A square that does not fit is left out as long as two remain: redrawing until all fit would favour small ones.
    """
    count = int(rng.integers(*IMAGE_COUNTS, endpoint=True))
    squares: list[tuple[int, int, int]] = []
    while len(squares) < IMAGE_COUNTS[0]:
        squares = []
        for low, high in [LABEL_SIZES] + [OTHER_SIZES] * (count - 1):
            side = int(rng.integers(low * scale, high * scale, endpoint=True))
            lefts = rng.integers(WIDTH * scale - side, size=TRIES, endpoint=True)
            tops = rng.integers(HEIGHT * scale - side, size=TRIES, endpoint=True)
            free = np.ones(TRIES, dtype=bool)
            for left, top, other in squares:
                free &= (lefts >= left + other) | (lefts + side <= left) | (tops >= top + other) | (tops + side <= top)
            if free.any():
                first = free.argmax()
                squares.append((int(lefts[first]), int(tops[first]), side))
    return squares


def _describe(images: SmallImages, seed: int, train: int, val: int) -> dict[str, Any]:
    """Return what scenes.json records."""
    classes = len(images.class_names)
    if seed < 0 or min(train, val) < classes:
        raise UserError(
            f"scenes: found seed {seed}, train {train}, val {val}; expected a seed of 0 or more and at least "
            f"{classes} scenes per split, one per class. Give other numbers."
        )
    return {
        "pictures": images.source,
        "seed": seed,
        "train": train,
        "val": val,
        "height": HEIGHT * images.scale,
        "width": WIDTH * images.scale,
        "boxes": "left, top, right, bottom; fractions of the image",
        "format": 2,
    }


def _has_scenes(out: Path, description: dict[str, Any]) -> bool:
    """Return whether `out` contains these scenes; False if it is absent or empty; UserError for anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = read_json(out / "scenes.json", "expected the description of scenes")
    except UserError:
        found = "something else"
    if found != description:
        raise UserError(
            f"{out} already exists.\n  found:    {found}\n  expected: nothing, or the scenes {description}\n"
            "Choose another folder with --out, or remove this one."
        )
    return True


def _write_split(images: SmallImages, folder: Path, split: str, seed: int, count: int, progress: JobProgress) -> None:
    truth = {}
    for name in images.class_names:
        (folder / split / name).mkdir(parents=True)
    images.labels(split)  # read once, before workers are forked
    numbers = [list(range(first, min(first + BATCH, count))) for first in range(0, count, BATCH)]
    workers = min(available_cores(), count // SCENES_PER_WORKER)
    for batch in read_batches(_Files(images, split, seed), list, numbers, workers, pin_memory=False):
        for name, jpeg, truth[name] in batch:
            (folder / split / name).write_bytes(jpeg)
        progress.advance(len(batch))
    _write_json(folder / f"{split}.json", truth)


@dataclass(frozen=True, slots=True)
class _Files:
    """The scenes of a split by number: the file's name, its content, and the truth."""

    images: SmallImages
    split: str
    seed: int

    def __getitem__(self, number: int) -> tuple[str, bytes, dict[str, Any]]:
        scene = draw_scene(self.images, self.seed, self.split, number)
        name = f"{self.images.class_names[scene.labels[0]]}/{self.split}_{number:05d}.JPEG"
        boxes = [[round(side, 6) for side in (box.left, box.top, box.right, box.bottom)] for box in scene.boxes]
        return name, _jpeg(scene.pixels), {"labels": list(scene.labels), "boxes": boxes}


def _jpeg(pixels: np.ndarray) -> bytes:
    # Via memory: writing to a file, Pillow does not notice that a full disk took only half of it.
    encoded = BytesIO()
    # No chroma subsampling: in scenes this small it would smear colours from one image into the next.
    Image.fromarray(pixels).save(encoded, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    return encoded.getvalue()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object with one key per line."""
    lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
