"""The JPEG photos that programs read: real ones where there are any, else photo-like ones made here."""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from relabel.data.images import ImageList, list_any_images, list_images
from relabel.data.jpeg_rows import read_frame
from utils.errors import UserError

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "imagenet_sample"
PHOTOS = 32  # different ones are made; the rest are links to them
QUALITY = 98


def images_option() -> argparse.ArgumentParser:
    """The option --images, for `benchmarks.result.arguments`."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--images",
        type=Path,
        default=REAL if REAL.is_dir() else None,
        help="folder of JPEG files, in class folders or without (default: %(default)s; None: such files are made)",
    )
    return parser


def link_photos(images: Path | None, scratch: Path, count: int) -> ImageList:
    """Exactly `count` JPEG files in class folders: links to those of a folder, under several names if they are few.

    Every file is read once, so that the system's cache holds it.

    Others than whole JPEG files of one or three channels, which some readers refuse, are passed over.

    Args:
        images: folder of JPEG files; None makes some.
        scratch: existing folder, to which `photos/` is added.
        count: of links; of more files, as many are taken at equal distances.

    Raises:
        UserError: no such folder, or no such file in it.
    """
    if images is not None and not images.is_dir():
        raise UserError(f"{images} is no folder. Name one of JPEG files with --images.")
    if images is None:
        images = scratch / "made"
        write_photos(images, PHOTOS)
    found = list_any_images(images)
    files = [path for path in map(found.path, range(len(found))) if read_frame(path.read_bytes())]
    if not files:
        raise UserError(f"{images}: found no JPEG file that every reader takes. Name another folder with --images.")
    for number in range(count):
        copy, file = divmod(number, len(files)) if count > len(files) else (0, number * len(files) // count)
        path = files[file]
        folder = scratch / "photos" / (path.parent.name if found.class_names else "photos")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{path.stem}_{file}_{copy}{path.suffix}").symlink_to(path.resolve())
        path.read_bytes()
    return list_images(scratch / "photos")


def mean_size(photos: ImageList) -> float:
    """Bytes per file."""
    return float(np.mean([photos.path(index).stat().st_size for index in range(len(photos))]))


def write_photos(folder: Path, count: int) -> float:
    """Photo-like JPEG files, 500 x 375 pixels and as large as ImageNet's; returns their mean size in bytes."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(min(PHOTOS, count)):
        shapes = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375))
        grain = Image.fromarray(rng.integers(0, 256, (375, 500, 3), dtype=np.uint8)).filter(ImageFilter.GaussianBlur(1))
        Image.blend(shapes, grain, 0.35).save(folder / f"{number:06d}.jpg", quality=QUALITY)
    for number in range(PHOTOS, count):
        (folder / f"{number:06d}.jpg").symlink_to(f"{number % PHOTOS:06d}.jpg")
    return float(np.mean([path.stat().st_size for path in folder.iterdir()]))
