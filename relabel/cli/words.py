"""What the tools' command lines share: kinds of values, and outputs kept apart from inputs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field

from utils.errors import UserError

Name = Annotated[str, Field(min_length=1, title="NAME", description="the name of a network")]
Pictures = Annotated[int, Field(ge=1, le=200)]


def keep_apart(out: Path, word: str, inputs: Mapping[str, Path | None]) -> None:
    """Refuse an output that is an input or lies in one: it would replace a part of it, or be taken for one.

    Args:
        out: the file or folder to write.
        word: what it is called on the command line.
        inputs: name -> file or folder that is read, None where it was not given.
    """
    for name, given in inputs.items():
        if given and given.resolve() in (out.resolve(), *out.resolve().parents):
            raise UserError(
                f"{word} {out} is or lies in {name} {given}, of which it could replace a part; expected another place"
            )
