"""Parts of the images that are there: those on a list, and a share of each class for validation."""

import os
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from zlib import crc32

import numpy as np

from relabel.data.images import ImageList
from utils.errors import UserError
from utils.files import replacing

COMMENT, HERE = "#", "./"


def keep_listed(images: ImageList, path: str | Path) -> ImageList:
    """Return the images listed in a file, in the order of `images` and with the same classes.

    Args:
        images: of the training folder.
        path: of the file, one CLASS/FILE per line; empty lines and lines that begin with # are ignored.

    Raises:
        UserError: the file cannot be read, or lists no image, an unknown one, or one twice.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().removeprefix(BOM_UTF8).splitlines()
    except OSError as error:
        raise UserError(
            f"the list of images to train on, {path}, cannot be read ({error.strerror}); expected a text file with one "
            "CLASS/FILE per line. Correct --data.keep_list, or leave it out to train on all images."
        ) from error
    written = [line for line in lines if line.strip() and not line.startswith(COMMENT.encode())]
    names = Counter(line.removeprefix(HERE.encode()) for line in written)
    kept = np.fromiter((name in names for name in images.names), bool, len(images))
    found = set(images.names[kept].tolist())
    unknown = [os.fsdecode(name) for name in names if name not in found]
    repeated = [os.fsdecode(name) for name, count in names.items() if count > 1]
    if unknown or repeated or not names:
        wrong = "no names"
        if unknown:
            wrong = f"names that are not images in {images.root}: {len(unknown):,}, the first {unknown[0][:99]!r}"
        elif repeated:
            wrong = f"{repeated[0]!r} twice"
        raise UserError(
            f"{path}: found {wrong}; expected names such as {images.name(0)!r}, one per line, each once.\n"
            "  Correct the file, or --data.keep_list."
        )
    return images.take(kept)


def write_keep_list(path: Path, names: Iterable[str], comment: str) -> None:
    """Write a list for `keep_listed` atomically.

    Args:
        path: of the file.
        names: CLASS/FILE of each image.
        comment: its first lines.

    Raises:
        UserError: it cannot be written.
    """
    lines = [f"{COMMENT} {line}" for line in comment.splitlines()]
    # A name that looks like a comment is written as a relative path, which means the same.
    lines += [HERE + name if name.startswith((COMMENT, HERE)) else name for name in names]
    with replacing(path) as temporary:
        temporary.write_bytes(b"".join(os.fsencode(line) + b"\n" for line in lines))


def divide(images: ImageList, share: float, split: str) -> ImageList:
    """Return the part of the images that is for training or for validation, the same in every run.

    Of each class with at least two images, that share of them is for validation, but at least one for each; which,
    depends on a hash of their keys.

    Args:
        images: all of them.
        share: of the images, for validation; above 0.
        split: "train" or "val".
    """
    hashes = np.fromiter(map(crc32, images.keys()), np.int64, len(images))
    order = np.lexsort((hashes, images.labels))
    counts = np.bincount(images.labels, minlength=len(images.class_names))
    first = np.cumsum(counts) - counts
    place = np.empty(len(images), np.int64)  # of each image among those of its class, by hash
    place[order] = np.arange(len(images)) - first[images.labels[order]]
    wanted = np.clip(np.round(counts * share), np.minimum(1, counts - 1), counts - 1)
    is_val = place < wanted[images.labels]
    return images.take(is_val if split == "val" else ~is_val)
