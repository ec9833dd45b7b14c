"""One parameter of a function as it is typed on a command line: read from text by its annotation, told in words."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter
from pydantic.fields import FieldInfo

from utils.config_schema import boolean, number

_NULL_WORDS = ("none", "null")
_RANGE_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
_STRICT = ConfigDict(strict=True, allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class Kind:
    """How a type is read from text: its word in the usage, what is expected, and the conversion.

    A text that does not fit is left as it is; strict validation refuses it.
    """

    word: str
    expected: str
    read: Callable[[str], object]


_KINDS: dict[object, Kind] = {
    int: Kind("N", "a whole number", number),
    float: Kind("X", "a number", number),
    bool: Kind("true|false", "true or false", boolean),
    str: Kind("TEXT", "text", str),
    Path: Kind("PATH", "a path", lambda text: Path(text) if text else text),  # Path("") would be the current folder
}


@dataclass(frozen=True, slots=True)
class Joined:
    """In an annotation: a tuple of numbers is written with this between them, as 56x72."""

    separator: str


def _is_file(path: Path) -> Path:
    return _require(path, Path.is_file)


def _is_folder(path: Path) -> Path:
    return _require(path, Path.is_dir)


def _require(path: Path, test: Callable[[Path], bool]) -> Path:
    try:
        fits = test(path)
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise ValueError(str(error)) from error
    if not fits:
        raise ValueError("it is not there")
    return path


# Annotations for parameters: Field's title is the word in the usage, its description what is expected.
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
ExistingFile = Annotated[Path, AfterValidator(_is_file), Field(title="FILE", description="a file that exists")]
ExistingFolder = Annotated[Path, AfterValidator(_is_folder), Field(title="DIR", description="a folder that exists")]
NewFile = Annotated[Path, Field(title="FILE", description="a path")]
NewFolder = Annotated[Path, Field(title="DIR", description="a path")]
Size = Annotated[
    tuple[Positive, Positive],
    Joined("x"),
    Field(title="ROWSxCOLUMNS", description="rows x columns in pixels, such as 56x72"),
]


@dataclass(frozen=True)
class Parameter:
    """One parameter of a command.

    Attributes:
        name: as in the signature.
        annotation: its type without `| None`.
        optional: whether the annotation had `| None`; `none` and `null` then mean None.
        default: inspect.Parameter.empty where it must be given.
        positional: may be given by position.
        meaning: its text in the docstring.
    """

    name: str
    annotation: Any
    optional: bool
    default: Any
    positional: bool
    meaning: str

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is inspect.Parameter.empty

    @property
    def subject(self) -> str:
        """What messages call it: IMAGES or --top_k."""
        return self.name.upper() if self.positional else f"--{self.name}"

    @property
    def written(self) -> str:
        """How it is written on a command line: IMAGES or --top_k N."""
        return self.subject if self.positional else f"{self.subject} {self._field.title or self._kind.word}"

    @cached_property
    def choices(self) -> tuple[str, ...]:
        """The allowed texts of a Literal, else ()."""
        return get_args(self._field.annotation) if get_origin(self._field.annotation) is Literal else ()

    @property
    def expected(self) -> str:
        """What it accepts, in words: type, range, choices."""
        metadata = self._field.metadata
        signs = [f"{_RANGE_SIGNS[n]} {getattr(m, n):g}" for m in metadata for n in _RANGE_SIGNS if hasattr(m, n)]
        text = " ".join([self._field.description or self._kind.expected, " and ".join(signs)]).rstrip()
        return f"{text}, or none" if self.optional else text

    def convert(self, text: str) -> object:
        """The value of a text as typed.

        Raises:
            ValidationError: it is not what is `expected`.
        """
        if self.optional and text.lower() in _NULL_WORDS:
            return None
        value: object = TypeAdapter(self.annotation, config=_STRICT).validate_python(self._read(text))
        return value

    def shown_default(self) -> str:
        """The default as a person would type it."""
        if self.default is None:
            return "none"
        if isinstance(self.default, tuple):
            return (self._separator or " ").join(f"{part:g}" for part in self.default)
        return str(self.default).lower() if isinstance(self.default, bool) else str(self.default)

    @cached_property
    def _field(self) -> FieldInfo:
        return FieldInfo.from_annotation(self.annotation)

    @property
    def _kind(self) -> Kind:
        if self.choices:
            return Kind("|".join(self.choices), f"one of {', '.join(self.choices)}", str)
        assert self._field.annotation in _KINDS or self._separator, f"{self.name}: no way to read {self.annotation}"
        return _KINDS.get(self._field.annotation, Kind("X", "numbers", str))

    @property
    def _separator(self) -> str | None:
        return next((m.separator for m in self._field.metadata if isinstance(m, Joined)), None)

    def _read(self, text: str) -> object:
        if self._separator:
            return tuple(number(part) for part in text.split(self._separator))
        return self._kind.read(text)
