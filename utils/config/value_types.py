"""Value types of config keys and tool parameters: read from text by annotation, checked, described in words."""

import math
import os
import re
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter
from pydantic.fields import FieldInfo

from utils.config.problems import did_you_mean, nearest

_STRICT = ConfigDict(strict=True, allow_inf_nan=False)
NULL_WORDS = ("none", "null")
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")  # 18 digits fit into 64 bits
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_RANGE_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def number(text: str) -> int | float | str:
    """Return a text as a number if it is one in YAML 1.2, else unchanged.

    1e-3 is a number and 010 is ten; 1_0, 0x1 and 1e400 stay texts.
    """
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text) and math.isfinite(value := float(text)):
        return value
    return text


def boolean(text: str) -> bool | str:
    """Return a bool for true and false in any case, else the text unchanged."""
    return {"true": True, "false": False}.get(text.lower(), text)


# Type -> its placeholder in a usage, what is expected, and how it is read from text. An invalid text is returned
# unchanged; strict validation then rejects it.
_KINDS: dict[Any, tuple[str, str, Callable[[str], object]]] = {
    int: ("N", "a whole number", number),
    float: ("X", "a number", number),
    float | str: ("X", "a number or a word", number),
    bool: ("true|false", "true or false", boolean),
    str: ("TEXT", "text", str),
    Path: ("PATH", "a path", lambda text: Path(text) if text else text),  # Path("") would be the current folder
}


@dataclass(frozen=True, slots=True)
class Joined:
    """In an annotation: the text between the numbers of a tuple, as in 56x72."""

    separator: str


def _path_that(test: Callable[[Path], bool]) -> AfterValidator:
    """Reject paths that do not pass a test."""

    def check(path: Path) -> Path:
        """Return the path. ValueError if it does not pass."""
        try:
            fits = test(path)
        except OSError as error:  # a name that is too long, a folder that may not be entered
            raise ValueError(str(error)) from error
        if not fits:
            raise ValueError("not such a path")
        return path

    return AfterValidator(check)


def _can_be_written(path: Path) -> bool:
    """Whether a file can be written or replaced there: it is written beside the path and renamed."""
    return not path.is_dir() and path.parent.is_dir() and os.access(path.parent, os.W_OK | os.X_OK)


# A Field's title is its placeholder in a usage; its description is what is expected, or a remark on choices.
_NEW = "in a folder that exists and can be written"
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
ExistingFile = Annotated[Path, _path_that(Path.is_file), Field(title="FILE", description="a file that exists")]
ExistingFolder = Annotated[Path, _path_that(Path.is_dir), Field(title="DIR", description="a folder that exists")]
ExistingPath = Annotated[Path, _path_that(Path.exists), Field(title="PATH", description="a path that exists")]
NewFile = Annotated[Path, _path_that(_can_be_written), Field(title="FILE", description=f"a file {_NEW}")]
NewPng = Annotated[
    Path,
    _path_that(lambda path: path.suffix.lower() == ".png" and _can_be_written(path)),
    Field(title="FILE.png", description=f"a .png file {_NEW}"),
]
NewPngOrHtml = Annotated[
    Path,
    _path_that(lambda path: path.suffix.lower() in (".png", ".html") and _can_be_written(path)),
    Field(title="FILE", description=f"a .png or .html file {_NEW}"),
]
NewFolder = Annotated[Path, Field(title="DIR", description="a path")]
Size = Annotated[
    tuple[Positive, Positive],
    Joined("x"),
    Field(title="ROWSxCOLUMNS", description="rows x columns in pixels, such as 56x72"),
]


@dataclass(frozen=True)
class ValueType:
    """A type with its range, choices and remarks.

    Attributes:
        annotation: the type, possibly Annotated, without `| None`.
        optional: whether None is allowed; the texts `none` and `null` then mean None.
    """

    annotation: Any
    optional: bool

    @classmethod
    def of(cls, annotation: Any) -> "ValueType":
        """Build one from a type or a type `| None`."""
        if get_origin(annotation) not in (Union, types.UnionType):
            return cls(annotation, optional=False)
        (kind,) = (kind for kind in get_args(annotation) if kind is not types.NoneType)
        return cls(kind, optional=True)

    @property
    def base(self) -> Any:
        """The bare type: int, Path, a Literal."""
        return self._field.annotation

    @property
    def word(self) -> str:
        """The placeholder of a value in a usage: N, FILE."""
        return self._field.title or self._kind[0]

    @property
    def choices(self) -> tuple[str, ...]:
        """The allowed texts of a Literal, else ()."""
        return get_args(self.base) if get_origin(self.base) is Literal else ()

    @property
    def separator(self) -> str | None:
        """The text between the numbers of a tuple, or None."""
        return next((m.separator for m in self._field.metadata if isinstance(m, Joined)), None)

    @property
    def expected(self) -> str:
        """What is accepted, in words: type, range, choices, none."""
        (_, kind, _), metadata, remark = self._kind, self._field.metadata, self._field.description
        signs = [f"{_RANGE_SIGNS[n]} {getattr(m, n):g}" for m in metadata for n in _RANGE_SIGNS if hasattr(m, n)]
        text = f"{kind} ({remark})" if self.choices and remark else remark or kind
        return " ".join([text, " and ".join(signs)]).rstrip() + (", or none" if self.optional else "")

    def refusal(self, value: object) -> str:
        """Return the advice on an invalid value."""
        return f"expected {self.expected}" + did_you_mean(nearest(str(value), self.choices))

    def is_null(self, text: str) -> bool:
        """Whether a text means None."""
        return self.optional and text.lower() in NULL_WORDS

    def read(self, text: str) -> object:
        """Return the value of a text as typed; an invalid text is returned unchanged or as a tuple of its parts."""
        if self.is_null(text):
            return None
        if self.separator:
            return tuple(number(part) for part in text.split(self.separator))
        return self._kind[2](text)

    def check(self, value: object) -> object:
        """Return a value in its declared type: 1 becomes 1.0 where a float is declared.

        Raises:
            ValidationError: it is not what is `expected`.
        """
        return None if value is None and self.optional else self._adapter.validate_python(value)

    def parse(self, text: str) -> object:
        """Read a text and check its value. ValidationError if it is invalid."""
        return self.check(self.read(text))

    @cached_property
    def _field(self) -> FieldInfo:
        return FieldInfo.from_annotation(self.annotation)

    @cached_property
    def _adapter(self) -> TypeAdapter[Any]:
        return TypeAdapter(self.annotation, config=_STRICT)

    @property
    def _kind(self) -> tuple[str, str, Callable[[str], object]]:
        if self.choices:
            return "|".join(self.choices), f"one of {', '.join(self.choices)}", str
        return ("X", "numbers", str) if self.separator else _KINDS[self.base]
