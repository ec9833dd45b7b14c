"""The JPEG files that programs read: a folder of them, or generated ones that resemble photos."""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from relabel.data.folders import list_images
from relabel.data.images import ImageList
from relabel.data.jpeg_rows import read_frame
from relabel.data.sources import open_images
from utils.errors import UserError

PHOTOS = 32  # different ones are generated; the rest are links to them
QUALITY = 98


def images_option() -> argparse.ArgumentParser:
    """Make the option --images for `benchmarks.result.arguments`."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--images",
        type=Path,
        help="folder of JPEG files, with or without class folders (default: generate such files)",
    )
    return parser


def link_photos(images: Path | None, scratch: Path, count: int) -> ImageList:
    """Link exactly `count` JPEG files into class folders, under several names if there are fewer.

    Every file is read once, so that the system's cache holds it. Files other than whole JPEG files of one or three
    channels, which some readers refuse, are skipped.

    Args:
        images: folder of JPEG files; None generates some.
        scratch: existing folder, to which `photos/` is added.
        count: number of links; if there are more files, equally spaced ones are taken.

    Raises:
        UserError: the folder does not exist or holds no such file.
    """
    if images is not None and not images.is_dir():
        raise UserError(f"--images {images} is not a folder; expected one of JPEG files")
    if images is None:
        images = scratch / "made"
        write_photos(images, PHOTOS)
    found = open_images(images)
    paths = [Path(str(found.path(index))) for index in range(len(found))]
    files = [path for path in paths if read_frame(path.read_bytes())]
    if not files:
        raise UserError(f"--images {images}: found no JPEG file that every reader accepts. Choose another folder")
    for number in range(count):
        copy, file = divmod(number, len(files)) if count > len(files) else (0, number * len(files) // count)
        path = files[file]
        folder = scratch / "photos" / (path.parent.name if found.class_names else "photos")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{path.stem}_{file}_{copy}{path.suffix}").symlink_to(path.resolve())
        path.read_bytes()
    return list_images(scratch / "photos")


def mean_size(photos: ImageList) -> float:
    """Return the mean size of a file in bytes."""
    return float(np.mean([len(photos.path(index).read_bytes()) for index in range(len(photos))]))


def write_photos(folder: Path, count: int) -> float:
    """Write JPEG files that resemble photos, 500 x 375 pixels and as large as ImageNet's; return their mean size."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(min(PHOTOS, count)):
        shapes = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375))
        grain = Image.fromarray(rng.integers(0, 256, (375, 500, 3), dtype=np.uint8)).filter(ImageFilter.GaussianBlur(1))
        Image.blend(shapes, grain, 0.35).save(folder / f"{number:06d}.jpg", quality=QUALITY)
    for number in range(PHOTOS, count):
        (folder / f"{number:06d}.jpg").symlink_to(f"{number % PHOTOS:06d}.jpg")
    return float(np.mean([path.stat().st_size for path in folder.iterdir()]))
