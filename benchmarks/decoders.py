"""JPEG decoders on photos: whole images, then crops resized to 224; their speed, and how close they are to Pillow.

Whole images are decoded from memory, crops are read from files in a warm cache, by one thread and by two of one
process. The boxes are those that training draws. Ours and DALI's slice decoder stop where the crop ends, the others
decode the whole image. Quality is measured against Pillow's decoder and antialiased bilinear filter, as in the paper.
Targets for ours: PSNR of 38 dB on average and 36 dB at the 5th percentile, and no shift.
"""

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from benchmarks.peers import SIZE, installed, jpeg_decoders
from benchmarks.peers.jpeg_decoders import Decode, resize_by_opencv
from benchmarks.peers.photos import images_option, link_photos, mean_size
from benchmarks.result import Figure, arguments, report, time_interleaved
from relabel.crop_box import MIN_AREA, CropBox, random_crop_box
from relabel.data.decode import DECODERS, ImageFile
from relabel.data.images import ImageList
from relabel.data.jpeg_rows import decode_rows, read_frame
from utils.errors import exit_on_user_error
from utils.random import SAMPLE, keyed_rng

T = TypeVar("T")
Crop = tuple[Path, CropBox]
CropAll = Callable[[], list[np.ndarray]]  # -> uint8 [S, S, 3] of each photo

CROPS = 400
THREADS = {1: "1 thread", 2: "2 threads"}
# Name -> what to install, and what makes the decoder.
WHOLE_IMAGES = {
    "Pillow": ("pillow", jpeg_decoders.pillow),
    "simplejpeg": ("simplejpeg", jpeg_decoders.simplejpeg),
    "OpenCV": ("opencv-python-headless", jpeg_decoders.opencv),
    "torchvision.io": ("torchvision", jpeg_decoders.torchvision),
    "torchcodec": ("torchcodec", jpeg_decoders.torchcodec),
    "PyTurboJPEG": ("PyTurboJPEG", jpeg_decoders.pyturbojpeg),
}
FAST, PILLOW = (f"ours, {decoder}" for decoder in DECODERS)
SIMPLEJPEG, OPENCV, DALI = "simplejpeg + OpenCV's resize", "OpenCV + its resize", "DALI's slice decoder"
ROWS = "simplejpeg to the crop's last row"
SAME_PIXELS = (PILLOW, OPENCV)  # as the reference, which a test holds; as simplejpeg + OpenCV's resize
NO_DIFFERENCE = 0.5 / (3 * SIZE * SIZE)  # stands for a mean square of 0: half of one value that differs by 1


def main() -> None:
    """Time whole images and crops in turn, several times; then compare the crops' pixels."""
    options = arguments(__doc__ or "", images_option())
    count, rounds = (8, 1) if options.tiny else (CROPS, 7)
    torch.set_num_threads(1)
    with exit_on_user_error(), tempfile.TemporaryDirectory() as folder:
        photos = link_photos(options.images, Path(folder), count)
        crops = [(Path(str(photos.path(index))), random_box(photos, index)) for index in range(count)]
        decoders, absent = installed(WHOLE_IMAGES)
        croppers, absent_too = installed(crop_makers(crops))
        figures = speed_figures(timed_jobs(decoders, croppers, crops), count, rounds)
        references = [pillow_crop(path, box) for path, box in crops]
        for name, crop_all in croppers.items():
            if name not in SAME_PIXELS:
                figures += quality_figures(name, crop_all(1)(), references)
        remarks = [
            f"{count} JPEG files of {mean_size(photos) / 1000:.0f} kB, a random crop of each; quality against Pillow",
            "two equal crops count as 103 dB, as if half of one value differed by 1",
            "DALI reads the files in one thread, in both of its rows",
            f"targets for {FAST}: mean PSNR 38 dB, 5th percentile 36 dB, all crops fit best unshifted",
        ]
    report("JPEG decoders", figures, [*remarks, *absent, *absent_too], options.json)


def random_box(photos: ImageList, index: int) -> CropBox:
    """Return the box that training with seed 0 draws for an image in its first epoch."""
    with Image.open(str(photos.path(index))) as image:
        return random_crop_box(keyed_rng(0, SAMPLE, 0, index), *image.size, MIN_AREA)


def crop_makers(crops: Sequence[Crop]) -> dict[str, tuple[str, Callable[[], Callable[[int], CropAll]]]]:
    """Return, by name, what to install and a maker of functions: number of threads -> function that reads all crops."""

    def by_opencv(decoder: Callable[[], Decode]) -> Callable[[int], CropAll]:
        return partial(over_threads, resize_by_opencv(decoder(), SIZE), crops)

    def dali() -> Callable[[int], CropAll]:
        from benchmarks.peers.dali_loader import box_reader

        return partial(box_reader, [path for path, _ in crops], [box for _, box in crops])

    return {
        FAST: ("simplejpeg", lambda: partial(over_threads, partial(our_crop, "simplejpeg"), crops)),
        PILLOW: ("pillow", lambda: partial(over_threads, partial(our_crop, "pillow"), crops)),
        SIMPLEJPEG: ("opencv-python-headless", lambda: by_opencv(jpeg_decoders.simplejpeg)),
        OPENCV: ("opencv-python-headless", lambda: by_opencv(jpeg_decoders.opencv)),
        DALI: ("nvidia-dali-cuda120", dali),
    }


def our_crop(decoder: str, path: Path, box: CropBox) -> np.ndarray:
    """Read a crop as training does; uint8 [S, S, 3]."""
    return ImageFile(path, decoder).resized_crop(box, SIZE, SIZE).transpose(1, 2, 0)


def pillow_crop(path: Path, box: CropBox) -> np.ndarray:
    """Read the reference, uint8 [S, S, 3]: Pillow decodes, crops and resizes by its antialiased bilinear filter."""
    image = Image.open(path).convert("RGB")
    return np.asarray(image.crop(box.pixels(*image.size)).resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def over_threads(function: Callable[..., T], items: Sequence[Any], threads: int) -> Callable[[], list[T]]:
    """Return a function that calls another for each tuple of arguments, in that many threads."""
    if threads == 1:
        return lambda: [function(*item) for item in items]
    pool = ThreadPoolExecutor(threads)
    return lambda: list(pool.map(lambda item: function(*item), items))


def timed_jobs(
    decoders: dict[str, Decode], croppers: dict[str, Callable[[int], CropAll]], crops: Sequence[Crop]
) -> dict[str, Callable[[], object]]:
    """Return everything that is timed; each job goes through all images once."""
    files = [(path.read_bytes(),) for path, _ in crops]
    jobs: dict[str, Callable[[], object]] = {}
    for threads, ending in THREADS.items():
        for name, decode in decoders.items():
            jobs[f"whole image, {name}, {ending}"] = over_threads(partial(decode_only, decode), files, threads)
        jobs[f"upper rows, {ROWS}, {ending}"] = over_threads(decode_to_bottom, crops, threads)
        for name, crop_all in croppers.items():
            jobs[f"crop, {name}, {ending}"] = crop_all(threads)
    return jobs


def decode_to_bottom(path: Path, box: CropBox) -> None:
    """Read and decode as the fast decoder does before it resizes."""
    data = path.read_bytes()
    frame = read_frame(data)
    assert frame is not None
    decode_rows(data, frame, box.pixels(frame.width, frame.height)[3])


def decode_only(decode: Decode, data: bytes) -> None:
    """Decode an image and discard it: 400 whole images would take too much memory."""
    decode(data)


def speed_figures(jobs: dict[str, Callable[[], object]], count: int, rounds: int) -> list[Figure]:
    """Return time per image for one thread, images per second for two, and what the fast decoder saves."""
    seconds = {name: np.array(v) for name, v in time_interleaved(jobs, dict.fromkeys(jobs, 1), rounds).items()}
    one, two = THREADS.values()
    figures = [Figure.of(name, "ms/image", 1e3 * v / count) for name, v in seconds.items() if name.endswith(one)]
    figures += [Figure.of(name, "images/s", count / v) for name, v in seconds.items() if name.endswith(two)]
    saved = seconds[f"crop, {PILLOW}, {two}"] / seconds[f"crop, {FAST}, {two}"]
    return [*figures, Figure.of(f"crop, {FAST} / {PILLOW}, {two}, same round", "x", saved)]


def quality_figures(name: str, crops: Sequence[np.ndarray], references: Sequence[np.ndarray]) -> list[Figure]:
    """Compare crops with their references, all uint8 [S, S, 3]."""
    pairs = list(zip(crops, references, strict=True))
    differences = [np.abs(crop.astype(np.float32) - reference) for crop, reference in pairs]
    squares = np.array([np.square(difference).mean() for difference in differences])
    psnr = 10 * np.log10(255**2 / np.maximum(squares, NO_DIFFERENCE))
    large = [(difference > 1).mean() for difference in differences]
    greys = [(grey(crop), grey(reference)) for crop, reference in pairs]
    found = [correlations(crop, reference) for crop, reference in greys]
    own = [correlations(reference, reference) for _, reference in greys]
    unshifted = [c[1, 1] >= c.max() for c in found]
    return [
        Figure.of(f"{name}: PSNR", "dB", psnr),
        Figure.of(f"{name}: PSNR, mean", "dB", [psnr.mean()]),
        Figure.of(f"{name}: PSNR, 5th percentile", "dB", [np.quantile(psnr, 0.05)]),
        Figure.of(f"{name}: PSNR, worst", "dB", [psnr.min()]),
        Figure.of(f"{name}: values that differ by more than 1", "%", [100 * np.mean(large)]),
        Figure.of(f"{name}: crops that fit best unshifted, of {len(pairs)}", "crops", [np.sum(unshifted)]),
        Figure.of(f"{name}: shift, estimated", "pixels", np.abs(peaks(found) - peaks(own)).max(axis=1)),
    ]


def grey(crop: np.ndarray) -> np.ndarray:
    """Return the luma float32 [S, S] of uint8 [S, S, 3]."""
    return crop @ np.array([0.299, 0.587, 0.114], np.float32)


def correlations(crop: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Correlate two grey images with the crop shifted by -1, 0, 1 rows and columns, float [3, 3]; 0 for a flat one."""
    inner = reference[1:-1, 1:-1].ravel()
    height, width = reference.shape
    found = np.zeros((3, 3))
    for row, column in np.ndindex(3, 3):
        window = crop[row : height - 2 + row, column : width - 2 + column].ravel()
        if inner.std() and window.std():
            found[row, column] = np.corrcoef(inner, window)[0, 1]
    return found


def peaks(found: Sequence[np.ndarray]) -> np.ndarray:
    """Return float [N, 2]: pixels down and across to the peak of the parabola through the middle column and middle row.

    The content at a crop's border moves it a little, even when an image is compared with itself.
    """
    values = np.array([(c[:, 1], c[1]) for c in found])
    before, middle, after = np.moveaxis(values, 2, 0)
    curvature = 2 * middle - before - after
    return (after - before) / np.where(curvature > 0, 2 * curvature, np.inf)


if __name__ == "__main__":
    main()
