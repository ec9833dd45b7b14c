"""The embedded data: scenes of handwritten digits, one of which is large and gives the label.

A small model of what ReLabel is about: an image has one label and several objects, and a random crop often shows
another object than the labelled one. The scenes are not square, so that swapped axes show. The digits are
scikit-learn's 1,797 images of 8x8 pixels.

    out/train/digit_3/train_00012.JPEG   scenes, one folder per label
    out/val/digit_3/val_00007.JPEG       made of digit images that no training scene shows
    out/train.json, out/val.json         the truth: {"digit_3/train_00012.JPEG": {"labels": [3, 8], "boxes": [...]}}
    out/scenes.json                      what the folder was made from

The first digit of a scene is its label. Boxes are [left, top, right, bottom] as fractions of the image and hold the
digit's whole square, which is a little wider than its ink.
"""

import json
import os
import shutil
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from relabel.crop_box import CropBox
from utils.errors import UserError

HEIGHT, WIDTH = 56, 72  # pixels; the area of a 64x64 image
LABEL_SIZES = (24, 33)  # sides of the digit that gives the label, pixels, both ends included
OTHER_SIZES = (18, 27)  # the sides overlap: size is a strong hint, not a giveaway
DIGIT_COUNTS = (2, 4)
PLACE_TRIES = 30  # for one digit
TRAIN_DIGITS = 1300  # of 1,797 digit images; the other 497 make the validation scenes
NOISE = 0.08  # standard deviation of the background, in units where white is 1
JPEG_QUALITY = 92
NUM_CLASSES = 10
SPLITS = ("train", "val")


@dataclass(frozen=True, slots=True)
class Scene:
    """One image and what it shows.

    Attributes:
        pixels: uint8 [HEIGHT, WIDTH, 3], RGB, row 0 at the top.
        labels: the digits 0..9 in it; the first one is the scene's label and has the largest range of sizes.
        boxes: the square of each digit, in the order of labels.
    """

    pixels: np.ndarray
    labels: tuple[int, ...]
    boxes: tuple[CropBox, ...]


def draw_scene(seed: int, split: str, number: int) -> Scene:
    """Draw scene `number` of a split; (seed, split, number) alone decide every pixel."""
    assert split in SPLITS
    rng = np.random.default_rng((seed, SPLITS.index(split), number))
    images, labels = _digits(split)
    layout = _draw_layout(rng)
    chosen = rng.integers(len(labels), size=len(layout))
    # Scene n shows class n % 10: the classes are balanced, and none is empty in a small set.
    chosen[0] = rng.choice(np.flatnonzero(labels == number % NUM_CLASSES))
    pixels = rng.uniform(0, 0.5, 3) + NOISE * rng.standard_normal((HEIGHT, WIDTH, 3))
    for index, (left, top, side) in zip(chosen, layout, strict=True):
        ink = _enlarge(images[index], side)
        patch = pixels[top : top + side, left : left + side]
        patch += ink * (rng.uniform(0.5, 1, 3) - patch)
    return Scene(
        pixels=(pixels.clip(0, 1) * 255).round().astype(np.uint8),
        labels=tuple(int(labels[index]) for index in chosen),
        boxes=tuple(CropBox.from_pixels(x, y, x + side, y + side, WIDTH, HEIGHT) for x, y, side in layout),
    )


def write_scenes(out: Path, seed: int = 0, train: int = 6000, val: int = 1500) -> None:
    """Write scenes as JPEG files in ImageNet's layout, with their truth (see the top of this file).

    Two seeds give different scenes but the same division of the digit images: scenes for a machine annotator, which
    the student never sees, are another seed's, and no annotator has met a digit of the validation scenes.

    The folder is whole or absent: it is written under another name beside `out` and renamed. Where `out` already
    holds exactly these scenes, nothing happens. The bytes depend on the arguments and Pillow's JPEG encoder alone.

    Args:
        out: the folder to make; may exist if empty.
        seed: of the scenes.
        train: training scenes, at least 10: one of each class.
        val: validation scenes, at least 10.

    Raises:
        UserError: a number is out of range, or `out` holds something else or cannot be written.
    """
    made_from = _made_from(seed, train, val)
    out = out.resolve()
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        if _holds(out, made_from):
            return
        for split, count in (("train", train), ("val", val)):
            _write_split(partial, split, seed, count)
        _write_json(partial / "scenes.json", made_from)
        partial.rename(out)
    except OSError as error:
        raise UserError(
            f"digit scenes cannot be written to {out}: {error.strerror}. Make room, or name another folder with --out."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@cache
def _digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The digit images (uint8 [n, 8, 8], 255 = ink) and labels (int64 [n]) a split may use."""
    from sklearn.datasets import load_digits  # costs a second; only those who draw scenes pay it

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    mine = order[:TRAIN_DIGITS] if split == "train" else order[TRAIN_DIGITS:]
    return (data.images[mine] * (255 / 16)).round().astype(np.uint8), data.target[mine].astype(np.int64)


def _draw_layout(rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """Draw (left, top, side) in pixels of two to four squares without overlap, the label's first.

    A digit that finds no room is left out as long as two remain: drawing again until all fit would favour small digits.
    """
    count = int(rng.integers(DIGIT_COUNTS[0], DIGIT_COUNTS[1], endpoint=True))
    layout: list[tuple[int, int, int]] = []
    while len(layout) < DIGIT_COUNTS[0]:
        layout = []
        for low, high in [LABEL_SIZES] + [OTHER_SIZES] * (count - 1):
            place = _draw_place(rng, int(rng.integers(low, high, endpoint=True)), layout)
            layout += [place] if place else []
    return layout


def _draw_place(rng: np.random.Generator, side: int, taken: list[tuple[int, int, int]]) -> tuple[int, int, int] | None:
    """Draw where a square of that side overlaps none of the others; None if all tries overlap."""
    lefts = rng.integers(WIDTH - side, size=PLACE_TRIES, endpoint=True)
    tops = rng.integers(HEIGHT - side, size=PLACE_TRIES, endpoint=True)
    free = np.ones(PLACE_TRIES, dtype=bool)
    for left, top, other in taken:
        free &= (lefts >= left + other) | (lefts + side <= left) | (tops >= top + other) | (tops + side <= top)
    if not free.any():
        return None
    first = int(free.argmax())
    return int(lefts[first]), int(tops[first]), side


def _enlarge(digit: np.ndarray, side: int) -> np.ndarray:
    """Enlarge uint8 [8, 8] bilinearly to the opacity of the ink, float64 [side, side, 1] in [0, 1]."""
    enlarged = Image.fromarray(digit).resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(enlarged)[:, :, None] / 255


def _made_from(seed: int, train: int, val: int) -> dict[str, Any]:
    if seed < 0 or min(train, val) < NUM_CLASSES:
        raise UserError(
            f"digit scenes: found seed {seed}, train {train}, val {val}; expected a seed of 0 or more and at least "
            f"{NUM_CLASSES} scenes in each split, one of each class. Give other numbers."
        )
    return {
        "seed": seed,
        "train": train,
        "val": val,
        "height": HEIGHT,
        "width": WIDTH,
        "boxes": "left, top, right, bottom; fractions of the image",
        "format": 1,
    }


def _holds(out: Path, made_from: dict[str, Any]) -> bool:
    """Whether `out` holds the scenes of `made_from`; False if it is absent or empty; UserError for all else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = json.loads((out / "scenes.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        found = "something else"
    if found == made_from:
        return True
    raise UserError(
        f"{out} is taken.\n  found:    {found}\n  expected: nothing, or the scenes {made_from}\n"
        "Name another folder with --out, or remove this one."
    )


def _write_split(folder: Path, split: str, seed: int, count: int) -> None:
    truth = {}
    for digit in range(NUM_CLASSES):
        (folder / split / f"digit_{digit}").mkdir(parents=True)
    for number in range(count):
        scene = draw_scene(seed, split, number)
        name = f"digit_{scene.labels[0]}/{split}_{number:05d}.JPEG"
        (folder / split / name).write_bytes(_jpeg(scene.pixels))
        boxes = [[round(side, 6) for side in (box.left, box.top, box.right, box.bottom)] for box in scene.boxes]
        truth[name] = {"labels": list(scene.labels), "boxes": boxes}
    _write_json(folder / f"{split}.json", truth)


def _jpeg(pixels: np.ndarray) -> bytes:
    # Through memory: given a file, Pillow does not notice that a full disk took only half of it.
    encoded = BytesIO()
    # No chroma subsampling: in scenes this small it would smear one digit's colour over the next.
    Image.fromarray(pixels).save(encoded, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    return encoded.getvalue()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object with one key a line."""
    lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
