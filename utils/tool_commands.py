"""Functions as the commands of a program: signature and docstring make the command line, its checks and its help.

    python -m PROGRAM COMMAND [ARGUMENT ...] [--flag VALUE ...]

A parameter without default that can be given by position is an argument, every other one a flag; its annotation says
type, range and choices, the function's `Args:` say what it is for. fire calls the function first and complains
afterwards, so it is handed only command lines without mistakes, each value as one `--key=text`.
"""

import inspect
import re
import signal
import sys
import textwrap
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from inspect import cleandoc
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import fire
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from utils.config_problems import Problem, did_you_mean, first_of_node, nearest, normal_key
from utils.config_schema import boolean, number
from utils.errors import UserError, exit_on_user_error

EXIT_INTERRUPTED = 130  # what shells report for a program that Ctrl-C ended
_WHERE = "command line"
_HELP_FLAGS = ("--help", "-h")
_NULL_WORDS = ("none", "null")
_WIDTH, _COLUMN = 100, 28  # of a help screen; where its explanations start
_RANGE_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
_STRICT = ConfigDict(strict=True, allow_inf_nan=False)
_DASHES = "flags are written --flag VALUE or --flag=VALUE; hyphens and underscores are the same in their names."


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


@dataclass(frozen=True, slots=True)
class Command:
    """A function as a command: its name with hyphens, the first paragraph of its docstring, the rest, parameters."""

    name: str
    function: Callable[..., None]
    summary: str
    details: str
    parameters: Mapping[str, Parameter]

    @classmethod
    def of(cls, function: Callable[..., None]) -> "Command":
        """Read a function whose parameters are all annotated and explained under `Args:`."""
        text, meanings = _split_docstring(cleandoc(function.__doc__ or ""))
        summary, _, details = text.partition("\n\n")
        hints = get_type_hints(function, include_extras=True)
        parameters = {}
        for name, parameter in inspect.signature(function).parameters.items():
            assert name in meanings and name in hints, f"{function.__name__}: {name} lacks its type or its docstring"
            annotation, optional = _without_none(hints[name])
            required = parameter.default is parameter.empty
            positional = required and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            parameters[name] = Parameter(name, annotation, optional, parameter.default, positional, meanings[name])
        return cls(function.__name__.replace("_", "-"), function, summary.replace("\n", " "), details, parameters)

    def help_text(self, program: str) -> str:
        """Usage, docstring, and every parameter with its meaning, type and default."""
        parts = [p.written if p.required else f"[{p.written}]" for p in self.parameters.values()]
        start = f"usage: {program} {self.name} "
        # What belongs together stays on one line.
        usage = textwrap.fill(
            start + " ".join(part.replace(" ", "\0") for part in parts),
            _WIDTH,
            subsequent_indent=" " * len(start),
            break_on_hyphens=False,
            break_long_words=False,
        ).replace("\0", " ")
        sections = [usage, self.summary, self.details, "\n".join(_entry(p) for p in self.parameters.values()), _DASHES]
        return "\n\n".join(_wrapped(section) for section in sections if section) + "\n"


def run_commands(functions: Sequence[Callable[..., None]], argv: Sequence[str], program: str, about: str) -> None:
    """Run a command line (without the program's name), or answer `--help`.

    Args:
        functions: the commands; `a_b` is typed a-b or a_b. They import what costs time themselves.
        argv: the words after the program's name; none of them shows the commands.
        program: how the program is started, for the screens.
        about: what it is, for the first screen.

    Raises:
        SystemExit: 2 with every mistake listed when the line is wrong or a command raises UserError; 0 after help;
            130 after Ctrl-C.
    """
    commands = {normal_key(command.name): command for command in map(Command.of, functions)}
    with exit_on_user_error(speaks=first_of_node()):
        if not argv or argv[0] in _HELP_FLAGS:
            print(_overview(commands, program, about), end="")
            sys.exit(0)
        command = _find_command(commands, argv, program)
        if any(word in _HELP_FLAGS for word in argv):
            print(command.help_text(program), end="")
            sys.exit(0)
        texts = check_line(command, argv[1:], program)
        # Until here Ctrl-C may end the process at once; a command may have to clean up.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _call(command, texts, program)


def check_line(command: Command, argv: Sequence[str], program: str) -> dict[str, str]:
    """The raw text of every parameter that a command line names.

    Raises:
        UserError: lists all that is wrong with it: its form, missing and unknown names, values that do not fit.
    """
    line = _parse(command, argv)
    problems = line.problems + _wrong_values(command, line.texts)[1]
    for parameter in command.parameters.values():
        if parameter.required and parameter.name not in {*line.texts, *line.spoiled}:
            text = f"is missing; expected {parameter.expected}"
            problems.append(Problem(parameter.written, _WHERE, text))
    if problems:
        raise UserError(_report(problems, f"How it is written: {program} {command.name} --help"))
    return line.texts


# ---- reading a line


@dataclass(slots=True)
class _Line:
    """Raw texts by parameter, what is wrong with the form, and the parameters whose text is unknown because of it."""

    texts: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    spoiled: set[str] = field(default_factory=set)

    def refuse(self, subject: str, text: str, name: str = "") -> None:
        self.problems.append(Problem(subject, _WHERE, text))
        self.spoiled.add(name)


def _parse(command: Command, argv: Sequence[str]) -> _Line:
    line = _Line()
    words = list(argv)
    while words:
        word = words.pop(0)
        if word == "--":
            line.refuse("--", "what follows would be dropped; remove it")
        elif word.startswith("--"):
            _read_flag(line, command, word, words)
        else:
            _read_word(line, command, word, words)
    return line


def _read_flag(line: _Line, command: Command, word: str, words: list[str]) -> None:
    """Take a flag, with the next word as its value unless one is attached."""
    flag, attached, text = word[2:].partition("=")
    has_value = bool(attached) or _value_follows(words)
    if has_value and not attached:
        text = words.pop(0)
    name = normal_key(flag)
    if name not in command.parameters:
        line.refuse(f"--{flag}", f"no such flag{did_you_mean(nearest(name, command.parameters), prefix='--')}")
    elif not has_value:
        line.refuse(f"--{flag}", f"has no value; write --{flag} VALUE", name)
    elif name in line.texts:
        line.refuse(f"--{flag}", f"given twice: {line.texts[name]!r} and {text!r}; keep one of them", name)
    else:
        line.texts[name] = text


def _read_word(line: _Line, command: Command, word: str, words: list[str]) -> None:
    """Take a word as the next argument, or refuse it; a flag that lacks its hyphens takes its value out of `words`."""
    name = normal_key(word.lstrip("-").partition("=")[0])
    looks_like_flag = word.startswith("-") or ("=" in word and name in command.parameters)
    free = [p.name for p in command.parameters.values() if p.positional and p.name not in line.texts]
    if free and not looks_like_flag:
        line.texts[free[0]] = word
    elif name in command.parameters and not (name in line.texts and command.parameters[name].positional):
        line.refuse(word, f"flags start with two hyphens; write --{word.lstrip('-')}", name)
        if "=" not in word and _value_follows(words):
            words.pop(0)
    else:
        line.refuse(word, "belongs to no flag; remove it, or put a value with spaces in quotes")


def _value_follows(words: Sequence[str]) -> bool:
    return bool(words) and not words[0].startswith("--")


def _wrong_values(command: Command, texts: Mapping[str, str]) -> tuple[dict[str, object], list[Problem]]:
    """The value of each text that fits, and a problem for each that does not."""
    values, problems = {}, []
    for name, text in texts.items():
        parameter = command.parameters[name]
        try:
            values[name] = parameter.convert(text)
        except ValidationError:
            expected = f"expected {parameter.expected}{did_you_mean(nearest(text, parameter.choices))}"
            default = "" if parameter.required else f"; the default is {parameter.shown_default()}"
            problems.append(Problem(f"{parameter.subject} = {text!r}", _WHERE, expected + default))
    return values, problems
