"""Write the images of any source into class folders."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from relabel.data.images import ImageList
from relabel.data.job_folder import HOW_TO_CONTINUE, RECORDS, identity, job_folder, size_text
from relabel.data.parquet import ParquetFiles
from relabel.data.tar_files import TarFiles
from utils.errors import UserError
from utils.progress import JobProgress, counted, print_lines


def unpack_images(images: ImageList, out: Path) -> None:
    """Write each image as OUT/CLASS/FILE, byte for byte; the same call continues an interrupted one.

    Args:
        images: of any source; without classes they become OUT/FILE.
        out: the new folder.

    Raises:
        UserError: a name would lie outside `out`; an image cannot be read; `out` exists or cannot be written, or
            another job was begun there.
    """
    names = [images.name(index) for index in range(len(images))]
    _check_names(images.root, names, parts=2 if images.class_names else 1)
    total = 0
    with job_folder(out, identity(images)) as work, JobProgress("unpack-images", len(images), "images") as progress:
        for folder in {name.rpartition("/")[0] for name in names}:
            (work / folder).mkdir(exist_ok=True)
        for index in _reading_order(images).tolist():
            data = _read(images, index)
            file = work / names[index]
            # A file of this size is whole: it was written in one piece, so one cut short is shorter.
            if not file.exists() or file.stat().st_size != len(data):
                _write(file, data)
            total += len(data)
            progress.advance(1)
    print_lines(f"{counted(len(images), 'image')}, {size_text(total)}: {out}")


def _check_names(root: Path, names: Sequence[str], parts: int) -> None:
    """Raise UserError for a name that is not CLASS/FILE, which could lie anywhere."""
    for name in names:
        path = name.split("/")
        if len(path) != parts or {"", ".", "..", RECORDS} & {*path} or "\0" in name:
            raise UserError(
                f"{root}: found an image called {name!r}; expected {'CLASS/FILE' if parts == 2 else 'FILE'}, which "
                "lies inside the new folder. Do not trust where this file comes from; nothing was written."
            )


def _reading_order(images: ImageList) -> np.ndarray:
    """Return an order in which the images lie one after another where they are read."""
    files = images.files
    if isinstance(files, TarFiles):
        return np.lexsort((files.offset, files.tar))
    return (
        np.lexsort((files.row, files.group, files.file)) if isinstance(files, ParquetFiles) else np.arange(len(images))
    )


def _read(images: ImageList, index: int) -> bytes:
    try:
        return images.path(index).read_bytes()
    except OSError as error:
        raise UserError(
            f"{images.path(index)}: cannot be read ({error.strerror}); expected an image. Mend it. {HOW_TO_CONTINUE}"
        ) from error


def _write(file: Path, data: bytes) -> None:
    try:
        file.write_bytes(data)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}. Make room. {HOW_TO_CONTINUE}") from error
