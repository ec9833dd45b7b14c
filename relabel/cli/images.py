"""The commands for images: pack them into tar shards, and unpack them into class folders."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from relabel.cli.arguments import keep_apart
from utils.config.value_types import Count, ExistingFile, NewFolder
from utils.errors import UserError
from utils.progress import print_lines

if TYPE_CHECKING:
    from relabel.data.images import ImageList

# Each command imports what it needs itself: a wrong command line is reported before torch is loaded.

Split = Literal["train", "val"]
Source = Annotated[
    str, Field(min_length=1, title="SOURCE", description="a folder, a file, or a pattern such as 'shards/*.tar'")
]


def pack_images(
    source: Source,
    out: NewFolder,
    *,
    split: Split | None = None,
    table: ExistingFile | None = None,
    shorter: Annotated[int, Field(ge=16)] | None = None,
    quality: Annotated[int, Field(ge=1, le=100)] | None = None,
    num_workers: Count = 4,
    on_error: Literal["stop", "skip"] = "stop",
) -> None:
    """Pack images into tar shards, which this project, webdataset and timm read; shrink them on the way if asked to.

    Keys stay CLASS/STEM, so label maps are found as before, and they stay valid for shrunk images. A shard ends after
    10,000 images or 1 GB. The same command continues an interrupted one; OUT appears when it is complete.

    Args:
        source: images of one split: a folder of class folders, or with a table; tar files; parquet files.
        out: folder to write the shards to.
        split: which images of a source that contains both, and what the shards are called. none: what OUT is called.
        table: CSV or TSV file with an image and its class on each line. none: the class folders, or the table that
            ImageNet comes with.
        shorter: shrink images whose shorter side has more pixels to this, as JPEG. none: keep all bytes.
        quality: of these JPEG files. none: 90.
        num_workers: processes that read and shrink images, at most one per core; 0: this process does it.
        on_error: stop: fail at an image that is damaged; skip: leave such images out and list them.
    """
    if quality and not shorter:
        raise UserError(
            f"--quality {quality} is for images that are shrunk; give --shorter too, such as --shorter 320, or leave "
            "it out"
        )
    from relabel.data.shards import pack_images as pack
    from utils.processes.distributed import available_cores

    images, of_split = _open(source, out, table, split)
    pack(
        images,
        out,
        split=of_split,
        shorter=shorter,
        quality=quality or 90,
        skip_unreadable=on_error == "skip",
        num_workers=min(num_workers, available_cores()),
    )


def unpack_images(
    source: Source, out: NewFolder, *, split: Split | None = None, table: ExistingFile | None = None
) -> None:
    """Write the images of tar shards, or of any other form, into class folders: OUT/CLASS/FILE, byte for byte.

    The same command continues an interrupted one; OUT appears when it is complete.

    Args:
        source: as in `pack-images`.
        out: folder to write the class folders to.
        split: which images of a source that contains both. none: what OUT is called.
        table: as in `pack-images`.
    """
    from relabel.data.unpack import unpack_images as unpack

    unpack(_open(source, out, table, split)[0], out)


def _open(source: str, out: Path, table: Path | None, split: Split | None) -> "tuple[ImageList, str]":
    """List the images of a source, print what was found, and tell which split they are of."""
    from relabel.data.parquet import list_parquet, parquet_files
    from relabel.data.sources import open_images
    from relabel.data.tar_contents import OtherSplit, below, has_both_splits

    keep_apart(out, "OUT", {"SOURCE": Path(source)})
    asked = split or _named_split(out.name)
    files = parquet_files(source, asked)
    if files and table:
        raise UserError(f"--table {table}: the classes of parquet files are in their column label. Leave --table out")
    try:
        images = list_parquet(source, files) if files else open_images(source, table or "", asked)
    except OtherSplit as error:
        other = "val" if asked == "train" else "train"
        raise UserError(f"{error} Give another SOURCE, or name the images what they are: --split {other}") from error
    if not asked and has_both_splits(images):
        raise UserError(
            f"{source}: found images of train and val; expected which of them to write. Add --split train or --split "
            "val, or give OUT a name that ends in train or val"
        )
    print_lines(images.described())
    inside = "val" if below("val") in images.census.source else None
    return images, asked or inside or _named_split(Path(source).name) or "train"


def _named_split(name: str) -> Split | None:
    """Return the split that a name has as a word; None if it has none."""
    from relabel.data.sources import is_of

    return "train" if is_of(name, "train") else "val" if is_of(name, "val") else None
