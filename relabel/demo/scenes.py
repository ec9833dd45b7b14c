"""Scenes of several small pictures, one of which is large and gives the label: digits, or photos from any folder.

A small model of what ReLabel is about: an image has one label and several objects, and a random crop often shows
another object than the labelled one. The scenes are not square, so that swapped axes show.

    out/train/digit_3/train_00012.JPEG   scenes, one folder per label
    out/val/digit_3/val_00007.JPEG       made of pictures that no training scene shows
    out/train.json, out/val.json         the truth: {"digit_3/train_00012.JPEG": {"labels": [3, 8], "boxes": [...]}}
    out/scenes.json                      what the folder was made from

Labels are positions of the class folders, sorted; the first of a scene is its own. Boxes are [left, top, right, bottom]
as fractions of the image and hold the picture's whole square, which is a little wider than a digit's ink.
"""

import json
import os
import shutil
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from relabel.crop_box import CropBox
from relabel.demo.small_pictures import SPLITS, SmallPictures
from utils.errors import UserError
from utils.files import read_json
from utils.progress import JobProgress

# Pixels, of digit scenes; pictures with another scale multiply them.
HEIGHT, WIDTH = 56, 72  # the area of a 64x64 image
LABEL_SIZES = (24, 33)  # sides of the picture that gives the label, both ends included
OTHER_SIZES = (18, 27)  # the sides overlap: size is a strong hint, not a giveaway
PICTURE_COUNTS = (2, 4)
PLACE_TRIES = 30  # for one picture
NOISE = 0.08  # standard deviation of the background, in units where white is 1
JPEG_QUALITY = 92


@dataclass(frozen=True, slots=True)
class Scene:
    """One image and what it shows.

    Attributes:
        pixels: uint8 [H, W, 3], RGB, row 0 at the top.
        labels: the classes 0..K-1 in it; the first one is the scene's label and has the largest range of sizes.
        boxes: the square of each picture, in the order of labels.
    """

    pixels: np.ndarray
    labels: tuple[int, ...]
    boxes: tuple[CropBox, ...]


def draw_scene(pictures: SmallPictures, seed: int, split: str, number: int) -> Scene:
    """Draw scene `number` of a split; the pictures and (seed, split, number) alone decide every pixel."""
    rng = np.random.default_rng((seed, SPLITS.index(split), number))
    labels, scale = pictures.labels(split), pictures.scale
    height, width = HEIGHT * scale, WIDTH * scale
    layout = _draw_layout(rng, scale)
    chosen = rng.integers(len(labels), size=len(layout))
    # Scene n shows class n % K: the classes are balanced, and none is empty in a small set.
    chosen[0] = rng.choice(np.flatnonzero(labels == number % len(pictures.class_names)))
    pixels = rng.uniform(0, 0.5, 3) + NOISE * rng.standard_normal((height, width, 3))
    for index, (left, top, side) in zip(chosen, layout, strict=True):
        pictures.put(pixels[top : top + side, left : left + side], split, int(index), rng)
    return Scene(
        pixels=(pixels.clip(0, 1) * 255).round().astype(np.uint8),
        labels=tuple(int(labels[index]) for index in chosen),
        boxes=tuple(CropBox.from_pixels(x, y, x + side, y + side, width, height) for x, y, side in layout),
    )


def write_scenes(pictures: SmallPictures, out: Path, seed: int = 0, train: int = 6000, val: int = 1500) -> None:
    """Write scenes as JPEG files in ImageNet's layout, with their truth (see the top of this file).

    Two seeds give different scenes but the same division of the pictures: scenes for a machine annotator, which the
    student never sees, are another seed's, and no annotator has met a picture of the validation scenes.

    The folder is whole or absent: it is written under another name beside `out` and renamed. Where `out` already
    holds exactly these scenes, nothing happens. The bytes depend on the arguments and Pillow's JPEG encoder alone.

    Args:
        pictures: what the scenes show.
        out: the folder to make; may exist if empty.
        seed: of the scenes.
        train: training scenes, at least one of each class.
        val: validation scenes, at least as many.

    Raises:
        UserError: a number is out of range, `out` holds something else or cannot be written, or a picture cannot be
            read.
    """
    made_from = _made_from(pictures, seed, train, val)
    out = out.resolve()
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        if _holds(out, made_from):
            return
        with JobProgress("scenes", train + val, "scenes") as progress:
            for split, count in (("train", train), ("val", val)):
                _write_split(pictures, partial, split, seed, count, progress)
        _write_json(partial / "scenes.json", made_from)
        partial.rename(out)
    except OSError as error:
        raise UserError(
            f"scenes cannot be written to {out}: {error.strerror}. Make room, or name another folder with --out."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _draw_layout(rng: np.random.Generator, scale: int) -> list[tuple[int, int, int]]:
    """Draw (left, top, side) in pixels of two to four squares without overlap, the label's first.

    A picture that finds no room is left out as long as two remain: drawing again until all fit would favour small ones.
    """
    count = int(rng.integers(PICTURE_COUNTS[0], PICTURE_COUNTS[1], endpoint=True))
    layout: list[tuple[int, int, int]] = []
    while len(layout) < PICTURE_COUNTS[0]:
        layout = []
        for low, high in [LABEL_SIZES] + [OTHER_SIZES] * (count - 1):
            side = int(rng.integers(low * scale, high * scale, endpoint=True))
            place = _draw_place(rng, side, layout, scale)
            layout += [place] if place else []
    return layout


def _draw_place(
    rng: np.random.Generator, side: int, taken: list[tuple[int, int, int]], scale: int
) -> tuple[int, int, int] | None:
    """Draw where a square of that side overlaps none of the others; None if all tries overlap."""
    lefts = rng.integers(WIDTH * scale - side, size=PLACE_TRIES, endpoint=True)
    tops = rng.integers(HEIGHT * scale - side, size=PLACE_TRIES, endpoint=True)
    free = np.ones(PLACE_TRIES, dtype=bool)
    for left, top, other in taken:
        free &= (lefts >= left + other) | (lefts + side <= left) | (tops >= top + other) | (tops + side <= top)
    if not free.any():
        return None
    first = int(free.argmax())
    return int(lefts[first]), int(tops[first]), side


def _made_from(pictures: SmallPictures, seed: int, train: int, val: int) -> dict[str, Any]:
    classes = len(pictures.class_names)
    if seed < 0 or min(train, val) < classes:
        raise UserError(
            f"scenes: found seed {seed}, train {train}, val {val}; expected a seed of 0 or more and at least "
            f"{classes} scenes in each split, one of each class. Give other numbers."
        )
    return {
        "pictures": pictures.source,
        "seed": seed,
        "train": train,
        "val": val,
        "height": HEIGHT * pictures.scale,
        "width": WIDTH * pictures.scale,
        "boxes": "left, top, right, bottom; fractions of the image",
        "format": 2,
    }


def _holds(out: Path, made_from: dict[str, Any]) -> bool:
    """Whether `out` holds the scenes of `made_from`; False if it is absent or empty; UserError for all else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = read_json(out / "scenes.json", "expected what scenes were made from")
    except UserError:
        found = "something else"
    if found == made_from:
        return True
    raise UserError(
        f"{out} is taken.\n  found:    {found}\n  expected: nothing, or the scenes {made_from}\n"
        "Name another folder with --out, or remove this one."
    )


def _write_split(
    pictures: SmallPictures, folder: Path, split: str, seed: int, count: int, progress: JobProgress
) -> None:
    truth = {}
    for name in pictures.class_names:
        (folder / split / name).mkdir(parents=True)
    for number in range(count):
        scene = draw_scene(pictures, seed, split, number)
        name = f"{pictures.class_names[scene.labels[0]]}/{split}_{number:05d}.JPEG"
        (folder / split / name).write_bytes(_jpeg(scene.pixels))
        boxes = [[round(side, 6) for side in (box.left, box.top, box.right, box.bottom)] for box in scene.boxes]
        truth[name] = {"labels": list(scene.labels), "boxes": boxes}
        progress.advance(1)
    _write_json(folder / f"{split}.json", truth)


def _jpeg(pixels: np.ndarray) -> bytes:
    # Through memory: given a file, Pillow does not notice that a full disk took only half of it.
    encoded = BytesIO()
    # No chroma subsampling: in scenes this small it would smear one picture's colour over the next.
    Image.fromarray(pixels).save(encoded, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    return encoded.getvalue()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object with one key a line."""
    lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
