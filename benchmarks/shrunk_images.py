"""What `pack-images --shorter 320 --quality 90` does to JPEG files: their bytes, pixels, and how fast they are read.

Packs the files into tar shards, as they are and shrunk, and compares crops of 224 pixels, decoded and resized as in
training, from the images that were shrunk: random ones and those of the evaluation (squares of the middle, crop ratio
0.875). Then the input path reads class folders, shards and shrunk shards in turn, with two workers on two cores.
Targets: shards at least as fast as folders; shrunk 1.6 times the originals.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.decoders import NO_DIFFERENCE
from benchmarks.input_path import DECODER, WORKERS, Amount, Contender, measure, on_cores, read_ours
from benchmarks.peers import SIZE, Job
from benchmarks.peers.photos import images_option, link_photos
from benchmarks.result import Figure, arguments, report
from relabel.crop_box import MIN_AREA, random_crop_box
from relabel.data.decode import ImageFile
from relabel.data.images import ImageList
from relabel.data.shards import pack_images
from relabel.data.sources import open_images
from utils.errors import exit_on_user_error
from utils.random import SAMPLE, keyed_rng

SHORTER, QUALITY, CROP_RATIO = 320, 90, 0.875
COUNT, CROPS = 400, 4  # images, and random crops of each
FOLDERS, SHARDS, SHRUNK = "class folders", "shards", "shrunk shards"
RATIOS = ((SHARDS, FOLDERS), (SHRUNK, FOLDERS), (SHRUNK, SHARDS))


def main() -> None:
    """Pack, compare the pixels, and time the reading."""
    options = arguments(__doc__ or "", images_option())
    count = 24 if options.tiny else COUNT
    amount = Amount(8, 2, 1) if options.tiny else Amount(64, 16, 7)
    with exit_on_user_error(), tempfile.TemporaryDirectory() as name, on_cores(WORKERS):
        folder = Path(name)
        photos = link_photos(options.images, folder, count)
        (shards, rate), (shrunk, shrunk_rate) = (packed(photos, folder / str(side), side) for side in (None, SHORTER))
        sizes = [np.array([len(images.path(i).read_bytes()) for i in range(count)]) for images in (photos, shrunk)]
        rows = np.flatnonzero(sizes[1] < sizes[0]).tolist()
        figures = [
            Figure.of("pack-images, as they are", "images/s", [rate]),
            Figure.of(f"pack-images, --shorter {SHORTER} --quality {QUALITY}", "images/s", [shrunk_rate]),
            Figure.of("shrunk images", "%", [100 * len(rows) / count]),
            Figure.of("bytes, of those before", "%", [100 * sizes[1].sum() / sizes[0].sum()]),
            Figure.of("PSNR, random crops", "dB", random_crops(photos, shrunk, rows)),
            Figure.of("PSNR, crops of the evaluation", "dB", centre_crops(photos, shrunk, rows)),
        ]
        job = Job(photos, folder, amount.batch, WORKERS, folder)
        forms = {FOLDERS: photos, SHARDS: shards, SHRUNK: shrunk}
        readers = {
            form: partial(read_ours, replace(job, photos=images), None, WORKERS) for form, images in forms.items()
        }
        rates = measure([Contender(form, read, WORKERS) for form, read in readers.items()], amount)
    figures += [Figure.of(f"read from {form}", "images/s", values) for form, values in rates.items()]
    figures += [Figure.of(f"{a} / {b}, same round", "x", np.array(rates[a]) / np.array(rates[b])) for a, b in RATIOS]
    remarks = [
        f"{count} JPEG files of {sizes[0].mean() / 1000:.0f} kB, {sizes[1].mean() / 1000:.0f} kB afterwards; warm "
        f"cache; ours decodes by {DECODER}",
        "PSNR only of images that were shrunk: the others keep their bytes; boxes are rounded to pixels in each image",
    ]
    report("shrunk images", figures, remarks, options.json)


def packed(photos: ImageList, out: Path, shorter: int | None) -> tuple[ImageList, float]:
    """Pack images into shards; return these and the images packed per second."""
    start = time.perf_counter()
    pack_images(
        photos, out, split="train", shorter=shorter, quality=QUALITY, skip_unreadable=False, num_workers=WORKERS
    )
    rate = len(photos) / (time.perf_counter() - start)
    return open_images(out), rate


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
