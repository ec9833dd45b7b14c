"""Words that the tools' command lines share: kinds of values, and what main.py's keys are called there."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

from pydantic import Field

from utils.errors import UserError, in_other_words

Name = Annotated[str, Field(min_length=1, title="NAME", description="the name of a network")]
Pictures = Annotated[int, Field(ge=1, le=200)]

# What shared functions call things that have other names here, as patterns.
OWN_WORDS = {
    r"--data\.data_path": "IMAGES",
    r"--data\.relabel\.path": "LABELS",
    r", or train without label maps: --data\.relabel\.use False": "",
    r"training images have no": "images have no",
    r"name the images that have one in --data\.keep_list, ": "",
    r"to the folder that holds train/ and val/": "to a folder of images",
    r"compute\.opt_level": "--opt_level",
    r"(--)?model\.arch": "--arch",
    r"\bk = (?=\d)": "--top_k = ",
    r"\bgive a k\b": "give a --top_k",
}


def in_own_words(more: Mapping[str, str] | None = None) -> AbstractContextManager[None]:
    """Tell errors of functions that main.py uses too with the names that this command line has.

    Args:
        more: what a single command calls otherwise, as patterns.
    """
    return in_other_words({**OWN_WORDS, **(more or {})})


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
