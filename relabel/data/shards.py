"""Pack the images of any source into tar shards, which this project, webdataset and timm read.

    OUT/train-00000.tar, ...     CLASS/STEM.jpg  CLASS/STEM.cls  CLASS/STEM.json, for each image
    OUT/_info.json               number of images of each shard, as timm reads it, and the class names

The .cls is the class's number, the .json is {"filename": "CLASS/FILE", "label": number}. webdataset ends a key at the
first dot, so dots in CLASS and STEM are written %2E (and % is %25); the names are read from the .json.

The order is that of a hash of the keys: whoever reads shards one after another, shuffling within a buffer, gets a mix
of all classes.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from relabel.crop_box import WHOLE_IMAGE
from relabel.data.decode import ImageFile, UnreadableImage
from relabel.data.images import ImageList
from relabel.data.job_folder import HOW_TO_CONTINUE, RECORDS, identity, job_folder, size_text
from relabel.data.parquet import ParquetFiles
from relabel.data.shard_classes import INFO, read_info
from utils.errors import UserError, listed
from utils.files import read_json, replacing, sync, write_json
from utils.processes.workers import read_batches
from utils.progress import JobProgress, counted, print_lines

MOST_IMAGES, MOST_BYTES = 10_000, 10**9  # a shard ends after so many
_BATCH = 16  # images that a worker reads at a time
_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif", "JPEG2000": "jp2", "DIB": "bmp"}  # others: their own name


class _Stored(NamedTuple):
    """An image as it is written: row in the list, file extension, bytes, size before, and why it cannot be read."""

    row: int
    extension: str
    data: bytes
    size_before: int
    reason: str


class _Stores:
    """Row of an image -> how it is written. Cheap to pickle."""

    def __init__(self, images: ImageList, shorter: int | None, quality: int) -> None:
        self._images, self._shorter, self._quality = images, shorter, quality

    def __getitem__(self, row: int) -> _Stored:
        try:
            file = ImageFile(self._images.path(row))
            extension, data = shrunk(file, self._shorter, self._quality)
            return _Stored(row, extension, data, len(file.data), "")
        except UnreadableImage as error:
            return _Stored(row, "", b"", 0, f"{error.path}: {error.reason}")


def shrunk(file: ImageFile, shorter: int | None, quality: int) -> tuple[str, bytes]:
    """Return the file extension and bytes of an image; smaller ones if its shorter side is longer than allowed.

    It is resized with Pillow's LANCZOS filter, as it is stored (EXIF rotation ignored), and becomes a JPEG without
    metadata; unless this would not be smaller.

    Args:
        file: the image.
        shorter: length of the shorter side, pixels; None: images stay as they are.
        quality: of the JPEG, 1..100.

    Raises:
        UnreadableImage: it is damaged.
    """
    side = min(file.width, file.height)
    if shorter and side > shorter:
        width, height = (round(length * shorter / side) for length in (file.width, file.height))
        pixels = file.resized_crop(WHOLE_IMAGE, height, width, "lanczos")
        jpeg = io.BytesIO()
        Image.fromarray(pixels.transpose(1, 2, 0)).save(jpeg, "JPEG", quality=quality, optimize=True)
        if jpeg.tell() < len(file.data):
            return "jpg", jpeg.getvalue()
    kind = file.checked_format()
    return _EXTENSIONS.get(kind, kind.lower()), file.data


def pack_images(
    images: ImageList,
    out: Path,
    *,
    split: str,
    shorter: int | None,
    quality: int,
    skip_unreadable: bool,
    num_workers: int,
) -> None:
    """Write all images into tar shards; the same call continues an interrupted one. The bytes depend on nothing else.

    Args:
        images: of any source.
        out: the new folder.
        split: "train" or "val", for the shards' names.
        shorter, quality: as in `shrunk`.
        skip_unreadable: leave out images that cannot be read; otherwise they are an error.
        num_workers: processes that read and shrink images.

    Raises:
        UserError: an image cannot be read; `out` exists or cannot be written, or another job was begun there.
    """
    images.keys()  # refuses two images of one key, which would be one sample
    job = {**identity(images), "shorter": shorter, "quality": quality if shorter else None}
    if read_info(out).job == job:
        print_lines(f"{out} is finished: it has all {len(images):,} images")
        return
    order, blocks = packing_order(images)
    with job_folder(out, job) as work:
        shards = _finished_shards(work, split)
        done = sum(shard["images"] + len(shard["skipped"]) for shard in shards)
        with JobProgress("pack-images", len(images), "images", done) as progress:
            batches = [batch.tolist() for batch in _batches(order[done:], blocks)]
            read = read_batches(_Stores(images, shorter, quality), list, batches, num_workers, pin_memory=False)
            stored = (image for batch in read for image in batch)
            while progress.done < len(images):
                path = _shard(work, split, len(shards))
                shards.append(_write_shard(path, images, stored, skip_unreadable, progress))
        info = _info(split, shards, images.class_names) | {"job": job}
        if not info["splits"][split]["num_samples"]:
            raise UserError(f"{images.root}: found no image that can be read; expected at least one.{_skipped(shards)}")
        write_json(work / INFO, info)
    _print_summary(out, shards)


def packing_order(images: ImageList) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the order of images in shards, int64 [N], and the block of each image, int64 [N].

    Blocks are the row groups of parquet files, which are read as a whole: blocks are shuffled, and images within them.
    None: each image can be read alone.
    """
    digests = _hashes(images.keys())
    if not isinstance(images.files, ParquetFiles):
        return np.argsort(digests, kind="stable"), None
    _, blocks = np.unique(images.files.file.astype(np.int64) << 32 | images.files.group, return_inverse=True)
    of_block = _hashes(np.arange(blocks.max() + 1).astype("S"))
    return np.lexsort((digests, of_block[blocks])), blocks


def _hashes(texts: np.ndarray) -> np.ndarray:
    """Return a hash of each text, uint64 [N], the same in every version of everything."""
    digests = (hashlib.blake2b(text, digest_size=8).digest() for text in texts)
    return np.frombuffer(b"".join(digests), np.uint64)


def _batches(order: np.ndarray, blocks: np.ndarray | None) -> list[np.ndarray]:
    """Divide images into the batches that are read by one worker."""
    if blocks is None:
        return np.split(order, range(_BATCH, len(order), _BATCH))
    return np.split(order, np.flatnonzero(np.diff(blocks[order])) + 1)


def _finished_shards(work: Path, split: str) -> list[dict[str, Any]]:
    """Return the records of the shards that an interrupted job has finished: those whose tar file has its size."""
    shards: list[dict[str, Any]] = []
    while (record := _record(tar := _shard(work, split, len(shards)))).exists():
        shard = read_json(record, f"remove {work} and start again")
        if not tar.is_file() or tar.stat().st_size != shard["bytes"]:
            break
        shards.append(shard)
    return shards


def _shard(work: Path, split: str, number: int) -> Path:
    return work / f"{split}-{number:05d}.tar"


def _record(shard: Path) -> Path:
    """Return the path of what is known about a finished shard."""
    return shard.parent / RECORDS / f"{shard.stem}.json"


def _write_shard(
    path: Path, images: ImageList, stored: Iterator[_Stored], skip_unreadable: bool, progress: JobProgress
) -> dict[str, Any]:
    """Write the next images into a shard, then its record, which is returned.

    Raises:
        UserError: an image cannot be read and is not to be skipped; or the shard cannot be written.
    """
    shard: dict[str, Any] = {"name": path.name, "images": 0, "shrunk": 0, "before": 0, "after": 0}
    skipped: dict[str, str] = {}
    with replacing(path, f"Make room. {HOW_TO_CONTINUE}") as temporary:
        with tarfile.open(temporary, "w", format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape") as tar:
            for image in stored:
                progress.advance(1)
                if image.reason:
                    if not skip_unreadable:
                        raise UserError(
                            f"{image.reason}; expected a whole image. Replace the file, or leave such images out with "
                            "--on_error skip; the same command continues."
                        )
                    skipped[images.name(image.row)] = image.reason
                    continue
                _add(tar, images.name(image.row), int(images.labels[image.row]), image)
                shard["images"] += 1
                shard["before"] += image.size_before
                shard["after"] += len(image.data)
                shard["shrunk"] += len(image.data) < image.size_before
                if shard["images"] == MOST_IMAGES or tar.offset >= MOST_BYTES:
                    break
        sync(temporary)
        shard |= {"bytes": temporary.stat().st_size, "skipped": skipped}
    write_json(_record(path), shard)
    return shard


def _add(tar: tarfile.TarFile, name: str, label: int, image: _Stored) -> None:
    """Add the members of an image, with no time, owner or anything else that could differ."""
    key = name.rpartition(".")[0].replace("%", "%25").replace(".", "%2E")
    members = {image.extension: image.data}
    facts: dict[str, Any] = {"filename": name}
    if label >= 0:
        members["cls"] = str(label).encode()
        facts["label"] = label
    members["json"] = json.dumps(facts).encode()
    for extension, data in members.items():
        member = tarfile.TarInfo(f"{key}.{extension}")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))


def _info(split: str, shards: Sequence[dict[str, Any]], class_names: Sequence[str]) -> dict[str, Any]:
    """Return the content of the info file. timm asks for "validation" by default, so val has both names."""
    of_split = {
        "name": split,
        "num_samples": sum(shard["images"] for shard in shards),
        "filenames": [shard["name"] for shard in shards],
        "shard_lengths": [shard["images"] for shard in shards],
    }
    names = ("val", "validation") if split == "val" else (split,)
    skipped = {name: reason for shard in shards for name, reason in shard["skipped"].items()}
    return {"splits": dict.fromkeys(names, of_split), "class_names": list(class_names), "skipped": skipped}


def _skipped(shards: Sequence[dict[str, Any]]) -> str:
    return listed([reason for shard in shards for reason in shard["skipped"].values()])


def _print_summary(out: Path, shards: Sequence[dict[str, Any]]) -> None:
    count, shrunk_count, before, after = (
        sum(shard[key] for shard in shards) for key in ("images", "shrunk", "before", "after")
    )
    print_lines(f"{counted(count, 'image')} in {counted(len(shards), 'shard')}: {out}")
    kept = "all as they were"
    if shrunk_count:
        kept = f"{shrunk_count:,} shrunk, {count - shrunk_count:,} as they were"
    print_lines(f"{size_text(before)} of images before, {size_text(after)} after ({kept})")
    if skipped := _skipped(shards):
        print_lines(f"left out, because they cannot be read:{skipped}")
