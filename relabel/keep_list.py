"""A list of the images to train on: a text file with one CLASS/FILE a line, for label cleaning or any other choice."""

import os
from codecs import BOM_UTF8
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from relabel.dataset import ImageList
from utils.errors import UserError
from utils.folders import replacing

COMMENT, HERE = "#", "./"
LONGEST_NAME = 4096  # bytes, of any path


def keep_listed(images: ImageList, path: str | Path) -> ImageList:
    """The images that a file names, in the order of `images`; the classes stay all the same.

    Args:
        images: of the training folder.
        path: of the file; lines that are empty or begin with # are passed over.

    Raises:
        UserError: the file cannot be read, is empty, or names an image that is not there, or one twice.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().removeprefix(BOM_UTF8).splitlines()
    except OSError as error:
        raise UserError(
            f"the list of images to train on, {path}, cannot be read ({error.strerror}); expected a text file with one "
            "CLASS/FILE a line. Correct --data.keep_list, or leave it out to train on all images."
        ) from error
    found = [line for line in lines if line.strip() and not line.startswith(COMMENT.encode())]
    if any(len(line) > LONGEST_NAME for line in found):
        raise UserError(f"{path}: found a line of over {LONGEST_NAME:,} bytes; expected one CLASS/FILE a line.")
    names = np.array([line.removeprefix(HERE.encode()) for line in found], np.bytes_)
    kept = np.isin(images.names, names)
    if len(names) == 0 or kept.sum() != len(names):
        raise UserError(f"{path}: {_what_is_wrong(names, images)} Correct the file, or --data.keep_list.")
    return replace(images, names=images.names[kept], labels=images.labels[kept])


def write_keep_list(path: Path, names: Iterable[str], remark: str) -> None:
    """Write such a file, whole or not at all.

    Args:
        path: of the file.
        names: CLASS/FILE of each image.
        remark: its first lines; say where the list comes from.

    Raises:
        UserError: it cannot be written.
    """
    names = list(names)
    broken = [name for name in names if "\n" in name or "\r" in name]
    if broken:
        raise UserError(f"found the name {broken[0]!r}, which a file of one name a line cannot hold. Rename the image.")
    # A name that begins as a remark does is written as a path from here, which means the same.
    lines = [f"{COMMENT} {line}" for line in remark.splitlines()]
    lines += [HERE + name if name.startswith((COMMENT, HERE)) else name for name in names]
    with replacing(path) as temporary:
        temporary.write_bytes(b"".join(os.fsencode(line) + b"\n" for line in lines))


def _what_is_wrong(names: np.ndarray, images: ImageList) -> str:
    if len(names) == 0:
        return f"found no name in it; expected some of the {len(images):,} images in {images.root}, one a line."
    strange = names[~np.isin(names, images.names)]
    if len(strange):
        return (
            f"found {len(strange):,} of {len(names):,} names that are no image in {images.root}, the first: "
            f"{os.fsdecode(strange[0])!r}; expected names such as {images.name(0)!r}."
        )
    unique, counts = np.unique(names, return_counts=True)
    return f"found {os.fsdecode(unique[counts > 1][0])!r} twice; expected each image once."
