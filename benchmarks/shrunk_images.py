"""What `pack-images --shorter 320 --quality 90` does to JPEG files: their bytes and pixels, and how fast it is.

Packs the files into tar shards, as they are and shrunk, with two workers on two cores. Then compares crops of 224
pixels, decoded and resized as in training, from the images that were shrunk: random ones, and those of the evaluation
(crop ratio 0.875). benchmarks.input_path measures how fast both are read.
"""

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.decoders import NO_DIFFERENCE
from benchmarks.input_path import DECODER, WORKERS, on_cores
from benchmarks.peers import QUALITY, SHORTER, SIZE
from benchmarks.peers.photos import images_option, link_photos
from benchmarks.result import Figure, arguments, report
from relabel.crop_box import MIN_AREA, random_crop_box
from relabel.data.decode import ImageFile
from relabel.data.images import ImageList
from relabel.data.shards import pack_images
from relabel.data.sources import open_images
from utils.errors import exit_on_user_error
from utils.random import SAMPLE, keyed_rng

CROP_RATIO = 0.875
COUNT, CROPS = 400, 4  # images, and random crops of each


def main() -> None:
    """Pack, and compare the pixels."""
    options = arguments(__doc__ or "", images_option())
    count = 24 if options.tiny else COUNT
    with exit_on_user_error(), tempfile.TemporaryDirectory() as name, on_cores(WORKERS):
        folder = Path(name)
        photos = link_photos(options.images, folder, count)
        (_, as_they_are), (shrunk, shrinking) = (packed(photos, folder / str(side), side) for side in (None, SHORTER))
        sizes = [np.array([len(images.path(i).read_bytes()) for i in range(count)]) for images in (photos, shrunk)]
        rows = np.flatnonzero(sizes[1] < sizes[0]).tolist()
        figures = [
            *as_they_are,
            *shrinking,
            Figure.of("shrunk images", "%", [100 * len(rows) / count]),
            Figure.of("bytes, of those before", "%", [100 * sizes[1].sum() / sizes[0].sum()]),
            Figure.of("PSNR, random crops", "dB", random_crops(photos, shrunk, rows)),
            Figure.of("PSNR, crops of the evaluation", "dB", centre_crops(photos, shrunk, rows)),
        ]
    remarks = [
        f"{count} JPEG files of {sizes[0].mean() / 1000:.0f} kB, {sizes[1].mean() / 1000:.0f} kB afterwards; "
        f"warm cache; decoded by {DECODER}",
        "PSNR only of images that were shrunk: the others keep their bytes; boxes are rounded to pixels in each image",
    ]
    report("shrunk images", figures, remarks, options.json)


def packed(photos: ImageList, out: Path, shorter: int | None) -> tuple[ImageList, list[Figure]]:
    """Pack images into shards; return these, how fast it was, and the time that cores spent on it."""
    name = f"pack, --shorter {shorter} --quality {QUALITY}" if shorter else "pack, as they are"
    start, cores = time.perf_counter(), core_seconds()
    pack_images(
        photos, out, split="train", shorter=shorter, quality=QUALITY, skip_unreadable=False, num_workers=WORKERS
    )
    rate, cores = len(photos) / (time.perf_counter() - start), core_seconds() - cores
    figures = [
        Figure.of(name, "images/s", [rate]),
        Figure.of(f"{name}, of a core", "ms/image", [1e3 * cores / len(photos)]),
    ]
    return open_images(out), figures


def core_seconds() -> float:
    """Return the seconds that cores have worked for this process and for those that it started and that have ended."""
    return sum(os.times()[:4])


def random_crops(before: ImageList, after: ImageList, rows: Sequence[int]) -> np.ndarray:
    """Return the PSNR of random crops as training draws them, dB."""
    found = []
    for row in rows:
        first, second = ImageFile(before.path(row), DECODER), ImageFile(after.path(row), DECODER)
        for crop in range(CROPS):
            box = random_crop_box(keyed_rng(0, SAMPLE, crop, row), second.width, second.height, MIN_AREA)
            found.append(psnr(*(file.resized_crop(box, SIZE, SIZE) for file in (first, second))))
    return np.array(found)


def centre_crops(before: ImageList, after: ImageList, rows: Sequence[int]) -> np.ndarray:
    """Return the PSNR of the crops that an evaluation sees, dB."""
    files = ([ImageFile(images.path(row), DECODER) for images in (before, after)] for row in rows)
    return np.array([psnr(*(file.centre_crop(SIZE, CROP_RATIO) for file in pair)) for pair in files])


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio of two uint8 images, dB; 103 if they are equal."""
    square = np.square(first.astype(np.float32) - second).mean()
    return float(10 * np.log10(255**2 / max(float(square), NO_DIFFERENCE)))


if __name__ == "__main__":
    main()
