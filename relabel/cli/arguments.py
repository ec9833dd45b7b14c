"""What several commands share: types of their arguments, and a check that outputs stay apart from inputs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field

from utils.errors import UserError

Name = Annotated[str, Field(min_length=1, title="NAME", description="the name of a network")]
Pictures = Annotated[int, Field(ge=1, le=200)]


def keep_apart(out: Path, flag: str, inputs: Mapping[str, Path | None]) -> None:
    """Refuse an output that is an input or lies inside one: it could overwrite a part of it, or be read as one.

    Args:
        out: the file or folder to write.
        flag: how it is given on the command line.
        inputs: flag -> file or folder that is read; None where it was not given.
    """
    for name, given in inputs.items():
        if given and given.resolve() in (out.resolve(), *out.resolve().parents):
            raise UserError(
                f"{flag} {out} is or lies in {name} {given} and could overwrite a part of it; expected another place"
            )
