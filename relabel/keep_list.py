"""A list of the images to train on: a text file with one CLASS/FILE a line, for label cleaning or any other choice."""

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from relabel.dataset import ImageList
from utils.errors import UserError

COMMENT = "#"


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
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(
            f"the list of images to train on, {path}, cannot be read ({error.strerror}); expected a text file with one "
            "CLASS/FILE a line. Correct --data.keep_list, or leave it out to train on all images."
        ) from error
    names = np.array([line for line in lines if line.strip() and not line.startswith(COMMENT.encode())], np.bytes_)
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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    lines = [f"{COMMENT} {line}" for line in remark.splitlines()] + list(names)
    try:
        temporary.write_bytes(b"".join(os.fsencode(line) + b"\n" for line in lines))
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written: {error.strerror}. Make room, or allow writing.") from error


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
