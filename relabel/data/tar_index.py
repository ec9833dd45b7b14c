"""Index of the images in tar files, which is found again.

The index is made once, by walking from header to header. It is kept beside the tar files, or in the cache folder where
that cannot be written, and made again when the size or time of a tar file has changed. Its arrays are mapped into
memory, so that all processes of a machine share them.
"""

import copyreg
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from relabel.data.images import Census, ImageList
from relabel.data.shard_classes import INFO
from relabel.data.tar_contents import find_in_tars, source_of
from relabel.data.tar_files import BLOCK, TarFiles, TarMember, is_header
from utils.errors import UserError
from utils.files import new_folder, read_json, write_json

VERSION = 3
FOLDER, MANIFEST = ".relabel-index", "index.json"
_ARRAYS = ("names", "labels", "tar", "offset", "size")


def list_tars(root: Path, tars: Sequence[Path], split: str | None = None) -> ImageList:
    """List the images of tar files, from their index; without classes if the tar files name none.

    Args:
        root: what was given, for messages.
        tars: the files.
        split: "train" or "val": which images of tar files that contain both; None: train, if they contain both.

    Raises:
        UserError: a tar file cannot be read, is compressed or truncated, or has no image.
    """
    info = tars[0].parent / INFO
    files = [*tars, info] if info.is_file() else tars
    state = [_state(file) for file in files]
    key = hashlib.sha256(json.dumps([[name for name, *_ in state], split]).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folders = [tars[0].resolve().parent / FOLDER / key, cache / "relabel" / key]
    for folder in folders:
        if found := _opened(folder, root, tars, state):
            return found
    images = find_in_tars(root, tars, split)
    for folder in folders:
        if not _opened(folder, root, tars, state):  # unless another process has just made the same
            with suppress(OSError, UserError):  # a read-only disk
                _write(folder, images, state)
        if found := _opened(folder, root, tars, state):
            return found
    return images


def _opened(folder: Path, root: Path, tars: Sequence[Path], state: list[list[Any]]) -> ImageList | None:
    """Open an index; None if there is none for the tar files as they are now, or it is damaged."""
    try:
        made = read_json(folder / MANIFEST, "expected an index")
        if made["version"] != VERSION or made["tars"] != state:
            return None
        names, labels, *where = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS)
        passed_over = {kind: (count, first) for kind, (count, first) in made["not_used"].items()}
        census = Census(source_of(tars) + made["about"], passed_over)
        files = TarFiles(list(tars), *where)
        if not all(_is_there(files, row) for row in {0, len(names) // 2, len(names) - 1}):
            return None
        return ImageList(root, made["class_names"], names, labels, files, census, made["numbered"], made["numbers"])
    except (UserError, OSError, ValueError, TypeError, LookupError):
        return None


def _is_there(files: TarFiles, row: int) -> bool:
    """Whether an image lies where the index says; a tar file that was replaced may have the same size and time."""
    member = files.path(row, "")
    header = TarMember(member.tar, "", member.offset - BLOCK, BLOCK)
    return is_header(header.read_bytes(), member.size)


def _write(folder: Path, images: ImageList, state: list[list[Any]]) -> None:
    """Write an index; it is complete or absent."""
    assert isinstance(images.files, TarFiles)
    files = images.files
    arrays = (images.names, images.labels, files.tar, files.offset, files.size)
    content = {
        "version": VERSION,
        "tars": state,
        "class_names": images.class_names,
        "numbered": images.numbered,
        "numbers": list(images.numbers),
        "not_used": images.census.passed_over,
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    with new_folder(folder) as temporary:
        for name, values in zip(_ARRAYS, arrays, strict=True):
            np.save(temporary / f"{name}.npy", values)
        write_json(
            temporary / MANIFEST,
            content | {"about": images.census.source.removeprefix(source_of(files.tars))},
        )
    _remove_stale(folder, {name for name, *_ in state})


def _remove_stale(folder: Path, tars: set[str]) -> None:
    """Remove the other indexes that list one of these tar files and can no longer be used."""
    for other in folder.parent.glob(f"*/{MANIFEST}"):
        with suppress(UserError, OSError, ValueError, TypeError, LookupError):
            made = read_json(other, "expected an index")
            listed = {name: [name, size, time] for name, size, time in made["tars"]}
            is_stale = made["version"] != VERSION or any(_state(Path(name)) != it for name, it in listed.items())
            if other.parent != folder and is_stale and not tars.isdisjoint(listed):
                shutil.rmtree(other.parent)


def _state(file: Path) -> list[Any]:
    """Return what tells that a file has changed: name, size and time; without the latter two if it is gone."""
    if not file.exists():
        return [str(file)]
    about = file.stat()
    return [str(file.resolve()), about.st_size, about.st_mtime_ns]


def _mapped(path: str) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r")
    except FileNotFoundError:
        raise UserError(
            f"{path}: found no such file on this machine; expected the index of the tar files, which another machine "
            "has made. Set XDG_CACHE_HOME to a folder that all machines share, or make the index once where the folder "
            "of the tar files can be written."
        ) from None


def _reduce(values: np.memmap) -> Any:
    """Pickle an array of an index by its path, and any other mapped array, also a part of one, by its values."""
    is_whole = values.filename and values.base is not None and type(values.base) is not np.memmap
    if is_whole and Path(str(values.filename)).with_name(MANIFEST).is_file():
        return _mapped, (str(values.filename),)
    return np.asarray(values).__reduce__()


copyreg.pickle(np.memmap, _reduce)
