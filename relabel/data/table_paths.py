"""Paths of images in a table: relative to the table or to the images, absolute, of another machine, or only names."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence, Set
from functools import lru_cache
from pathlib import Path, PureWindowsPath

_ABSOLUTE = re.compile(r"/|\w+:/")


def match_paths(
    table: Path, listed: Iterable[str], root: Path, paths: Sequence[str], header: str | None
) -> dict[str, int]:
    """Return the row of each image that a table lists and that exists; -1 if it may be two. The exact names win.

    Args:
        table: its path.
        listed: the images, as written in it.
        root: what the images are in.
        paths: of the images, inside it.
        header: one that is listed and need not exist, if any.
    """
    wanted = _normal_forms(table.parent, [*listed], paths)
    folder = Path(os.path.relpath(root, table.parent)).as_posix()
    folder = folder if any(name.startswith(f"{folder}/") for name in wanted) else "."
    rows: dict[str, int] = {}
    for names in _ways(paths, folder):
        if wanted.keys() <= {header}:  # every other line is found
            break
        of_way: dict[str, int] = {}
        for row, name in enumerate(names):
            if name in wanted:
                of_way[name] = row if of_way.setdefault(name, row) == row else -1
        rows |= {wanted.pop(name): row for name, row in of_way.items()}
    return rows


def _normal_forms(folder: Path, listed: Sequence[str], paths: Sequence[str]) -> dict[str, str]:
    """Return the normal form of each path in a table in a folder -> as written there, given the images' own paths."""
    text = "\n" + "\n".join(listed)
    if not any(mark in text for mark in ("\n/", "\\", ":/", "./", "//")):  # calling _inside would take seconds
        return {image: image for image in listed}
    known = {*paths, *map(without_extension, paths)}
    return {_inside(image, folder, known): image for image in listed}


_is_folder = lru_cache(1 << 16)(os.path.isdir)


def _inside(image: str, folder: Path, known: Set[str]) -> str:
    """Return the normal form of a path; of an absolute one the part below a folder.

    Of one from another machine it is the end that is an image.

    Args:
        image: the path, also one of Windows, or a URL.
        folder: that of the table.
        known: paths of the images, with the extension and without.
    """
    if "\\" in image and image not in known:
        image = PureWindowsPath(image).as_posix()
    if image.startswith("/") and _is_folder(image.rpartition("/")[0]):
        return os.path.relpath(image, folder.resolve())
    if _ABSOLUTE.match(image):
        ends = (image[match.end() :] for match in re.finditer("/", image))
        return next((end for end in ends if end in known), image)
    return os.path.normpath(image) if "./" in image or "//" in image else image  # the call takes longer than the rest


def _ways(paths: Sequence[str], folder: str) -> Iterator[list[str]]:
    """Yield the names that a table may give the images at these paths in a folder: the more exact ones first."""
    if folder != ".":
        yield [f"{folder}/{path}" for path in paths]
        yield [f"{folder}/{without_extension(path)}" for path in paths]
    for names in (list(paths), [path.rpartition("/")[2] for path in paths]):
        yield names
        yield [without_extension(name) for name in names]


def without_extension(path: str) -> str:
    """Return a path without the extension."""
    folder, slash, file = path.rpartition("/")
    return folder + slash + (file.rpartition(".")[0] or file)
