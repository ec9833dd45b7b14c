"""Images in parquet files, with the columns of ImageNet on the Hugging Face Hub: image{bytes, path} and label.

`pack-images` reads them once, a row group at a time, because an image cannot be read by its position. The names of
the images come from image.path, in which the Hub's ImageNet repeats the class: n01440764_10026_n01440764.JPEG is
n01440764/n01440764_10026.JPEG.
"""

import errno
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from glob import glob, has_magic
from pathlib import Path
from typing import Any

import numpy as np

from relabel.data.folders import SPLIT_FOLDERS
from relabel.data.images import Census, Found, ImageList, image_list
from relabel.data.shard_classes import NAMES_LOST, names_lost
from utils.errors import UserError
from utils.progress import counted

SUFFIX = ".parquet"
EXPECTED = "expected the columns image{bytes, path} and label, as ImageNet has on the Hugging Face Hub"
_NAMED_TWICE = re.compile(r"(.+)_(n\d{8})(\.\w+)")
_SPLIT = re.compile(r"[A-Za-z]*")  # train-00000-of-00294.parquet


@dataclass(frozen=True, slots=True)
class ParquetImage:
    """An image in a parquet file: its row in a row group."""

    file: Path
    name: str
    group: int
    row: int

    def read_bytes(self) -> bytes:
        """Return the bytes of the image; the row group is kept for the next one. OSError if they cannot be read."""
        data: bytes | None = _images_in(self.file, self.group)[self.row].as_py()
        if data is None:
            raise OSError(errno.ENODATA, "the parquet file has its name, but not its bytes")
        return data

    def __str__(self) -> str:
        """Return both names."""
        return f"{self.file}:{self.name}"


@lru_cache(1)
def _images_in(file: Path, group: int) -> Any:
    """Return the bytes of all images in a row group, as an arrow array. OSError if they cannot be read."""
    with _pyarrow().ParquetFile(file) as opened:  # without threads: they would not survive in forked processes
        table = opened.read_row_group(group, columns=["image.bytes"], use_threads=False)
    return table["image"].combine_chunks().field("bytes")


@dataclass(frozen=True, slots=True, eq=False)
class ParquetFiles:
    """N images in parquet files.

    Fields:
        files: the files.
        file, group, row: int32 [N]; index into files, row group, and row in it.
    """

    files: list[Path]
    file: np.ndarray
    group: np.ndarray
    row: np.ndarray

    def path(self, index: int, name: str) -> ParquetImage:
        """Return where image `index`, which is called `name`, lies."""
        return ParquetImage(self.files[self.file[index]], name, int(self.group[index]), int(self.row[index]))

    def take(self, rows: np.ndarray) -> "ParquetFiles":
        """Return those of some images."""
        return ParquetFiles(self.files, self.file[rows], self.group[rows], self.row[rows])


def parquet_files(source: str, split: str | None = None) -> list[Path]:
    """Return the parquet files that a path, a folder or a pattern with * stands for; [] if there are none in a folder.

    Args:
        source: the path, folder or pattern.
        split: "train" or "val": which files of those of several splits.

    Raises:
        UserError: there is no such file, or there are those of several splits.
    """
    folder = Path(source)
    if folder.is_dir():
        found = sorted(folder.glob(f"*{SUFFIX}")) or sorted(folder.glob(f"data/*{SUFFIX}"))
    elif not source.endswith(SUFFIX):
        return []
    else:
        found = sorted(map(Path, glob(source))) if has_magic(source) and not folder.exists() else [folder]  # noqa: PTH207
        if not found or not found[0].is_file():
            raise UserError(
                f"{source}: found no such file; expected parquet files: a folder, a path, or a pattern with *."
            )
    of: dict[str, list[Path]] = {}
    for path in found:
        of.setdefault(_SPLIT.match(path.name)[0], []).append(path)  # type: ignore[index]
    if len(of) < 2:
        return found
    if own := [path for name in SPLIT_FOLDERS.get(split or "", ()) for path in of.get(name, ())]:
        return own
    patterns = [f"'{found[0].parent}/{name}*{SUFFIX}'" for name in sorted(of)]
    raise UserError(
        f"{source}: found parquet files of {counted(len(of), 'split')}; expected those of one. Give "
        f"{' or '.join(patterns)}"
    )


def list_parquet(source: str, files: Sequence[Path]) -> ImageList:
    """List the images of parquet files, without reading their bytes.

    Classes are named after the wnids in the images' names, or as in the files' metadata, or by their numbers.

    Raises:
        UserError: a file cannot be read or has other columns; the images have no names or no classes.
    """
    paths: list[str] = []
    labels: list[int] = []
    groups: list[tuple[int, int, int]] = []  # file, row group, number of rows
    for number, file in enumerate(files):
        part, part_labels, group_sizes = _read_names(file)
        paths += part
        labels += part_labels
        groups += [(number, group, size) for group, size in enumerate(group_sizes)]
    _check_labels(source, labels)
    of_file, of_group, sizes = (np.array(column, np.int32) for column in zip(*groups, strict=True))
    row = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes])
    where = ParquetFiles(list(files), np.repeat(of_file, sizes), np.repeat(of_group, sizes), row)
    census = Census(f"{counted(len(files), 'parquet file')}, {source}")
    names, class_names, classes = _named(source, paths, labels, _stated_names(files[0]))
    if names_lost(paths[:1000], [class_names[label] for label in classes[:1000]]):
        census.source += f"; {NAMES_LOST}"
    found = Found(Path(source), names, where, census)
    return image_list(found, class_names, np.array(classes, np.int32))


def _read_names(file: Path) -> tuple[list[str], list[int], list[int]]:
    """Return path and label of each image in a file, and the sizes of its row groups."""
    try:
        with _pyarrow().ParquetFile(file) as opened:
            schema = opened.schema_arrow
            fields = {schema.field(i).name: schema.field(i).type for i in range(len(schema))}
            inside = {fields["image"].field(i).name for i in range(getattr(fields.get("image"), "num_fields", 0))}
            if not {"bytes", "path"} <= inside or "label" not in fields:
                raise UserError(f"{file}: found the columns {', '.join(fields)}; {EXPECTED}.")
            table = opened.read(columns=["image.path", "label"])
            sizes = [opened.metadata.row_group(i).num_rows for i in range(opened.num_row_groups)]
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise UserError(
            f"{file}: cannot be read as a parquet file ({error}); expected a whole one. Copy or download it again."
        ) from error
    names = table["image"].combine_chunks().field("path").to_pylist()
    if nameless := sum(not name for name in names):
        raise UserError(
            f"{file}: found {nameless:,} of {len(names):,} images without a name in image.path; expected one for each, "
            "because label maps are found by it. Give files that have the names."
        )
    return names, table["label"].to_pylist(), sizes


def _check_labels(source: str, labels: Sequence[int | None]) -> None:
    without = sum(label is None or label < 0 for label in labels)
    if without or not labels:
        raise UserError(
            f"{source}: found {without:,} of {len(labels):,} images without a class; expected one for each (the Hub's "
            "test splits have none). Give the files of another split."
        )


def _named(
    source: str, paths: Sequence[str], labels: Sequence[int], stated: Sequence[str]
) -> tuple[list[str], list[str], list[int]]:
    """Return the file name of each image, the class names, and the class of each image."""
    files = [path.rpartition("/")[2] for path in paths]
    twice = [_NAMED_TWICE.fullmatch(name) for name in files]
    if not all(twice):
        names = list(stated) or [str(number) for number in range(max(labels) + 1)]
        if max(labels) >= len(names):
            raise UserError(f"{source}: found label {max(labels)}, but {len(names):,} class names in the metadata.")
        return files, names, list(labels)
    found = [match.groups() for match in twice if match]
    of_label = dict(zip(labels, (wnid for _, wnid, _ in found), strict=True))
    for (_, wnid, _), label, path in zip(found, labels, paths, strict=True):
        if of_label[label] != wnid:
            raise UserError(
                f"{source}: {path} has label {label}, which other images have with {of_label[label]}; expected one "
                "class id per label. Download the files again."
            )
    names = sorted({*of_label.values()})
    position = {name: label for label, name in enumerate(names)}
    return [stem + ending for stem, _, ending in found], names, [position[of_label[label]] for label in labels]


def _stated_names(file: Path) -> list[str]:
    """Return the names of the labels in a file's metadata; [] if there are none."""
    with _pyarrow().ParquetFile(file) as opened:
        metadata = opened.schema_arrow.metadata or {}
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        return list(map(str, features.get("label", {}).get("names") or []))
    except (ValueError, AttributeError):
        return []


def _pyarrow() -> Any:
    """Return pyarrow's module for parquet, which only these files need. UserError if it is not installed."""
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise UserError("parquet files are read by pyarrow, which is not installed: pip install pyarrow") from error
    return parquet
