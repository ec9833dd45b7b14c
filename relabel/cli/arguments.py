"""Argument types that several commands share, and a check that outputs are not inside inputs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from utils.errors import UserError

Name = Annotated[str, Field(min_length=1, title="NAME", description="the name of a network")]


def _may_have_images(path: Path) -> Path:
    """Return a path that exists, or that stands for tar files, or for parquet files, of which the tools tell the use.

    ValueError for any other.
    """
    if not (".tar" in str(path) or path.suffix == ".parquet" or path.exists()):
        raise ValueError("not such a path")
    return path


Images = Annotated[
    Path,
    AfterValidator(_may_have_images),
    Field(title="IMAGES", description="a folder, a tar file or a pattern such as 'shards/*.tar', which exists"),
]
ImageOrImages = Annotated[
    Path,
    AfterValidator(_may_have_images),
    Field(title="PATH", description="an image, a folder, a tar file or a pattern such as 'shards/*.tar', which exists"),
]
ImageCount = Annotated[int, Field(ge=1, le=200)]


def keep_apart(out: Path, flag: str, inputs: Mapping[str, Path | None]) -> None:
    """Reject an output that is an input or is inside one: it could overwrite part of it, or be read as part of it.

    Args:
        out: the file or folder to write.
        flag: its name on the command line.
        inputs: flag -> file or folder that is read; None if it was not given.
    """
    for name, given in inputs.items():
        if given and given.resolve() in (out.resolve(), *out.resolve().parents):
            raise UserError(
                f"{flag} {out} is or lies inside {name} {given} and could overwrite part of it; expected another path"
            )
