"""Lists of the images to train on, a subset of those that are there."""

import os
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

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
