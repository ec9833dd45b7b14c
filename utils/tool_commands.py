"""Functions as the commands of a program: signature and docstring make the command line, its checks and its help.

    python -m PROGRAM COMMAND [ARGUMENT ...] [--flag VALUE ...]

A parameter without default that can be given by position is an argument, every other one a flag; its annotation says
type, range and choices (utils/tool_parameters.py), the function's `Args:` say what it is for. fire calls a function
first and complains afterwards, so only lines without mistakes are handed on, each value as one `--key=text`.
"""

import inspect
import re
import signal
import sys
import textwrap
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Union, get_args, get_origin, get_type_hints

import fire
from pydantic import ValidationError

from utils.config_problems import Problem, did_you_mean, first_of_node, nearest, normal_key
from utils.errors import UserError, exit_on_user_error
from utils.tool_parameters import Parameter

EXIT_INTERRUPTED = 130  # what shells report for a program that Ctrl-C ended
_WHERE = "command line"
_HELP_FLAGS = ("--help", "-h")
_WIDTH, _COLUMN, _NARROW_COLUMN = 100, 26, 20  # of a help screen; where explanations of flags and commands start
_FORM = "Flags are --flag VALUE or --flag=VALUE; hyphens and underscores are the same in their names."


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
        text, meanings = _split_docstring(inspect.cleandoc(function.__doc__ or ""))
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
        parameters = "\n".join(_entry(parameter) for parameter in self.parameters.values())
        sections = [_usage(self, program), _filled(self.summary), _filled(self.details), parameters, _FORM]
        return "\n\n".join(section for section in sections if section) + "\n"


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


def _find_command(commands: Mapping[str, Command], argv: Sequence[str], program: str) -> Command:
    """The command that a line names first."""
    word = argv[0]
    if normal_key(word) in commands:
        return commands[normal_key(word)]
    names = [command.name for command in commands.values()]
    later = [commands[normal_key(other)].name for other in argv if normal_key(other) in commands]
    if word.startswith("-"):
        advice = f"the command comes first; write {program} {later[0] if later else 'COMMAND'} ..."
    else:
        advice = f"no such command{did_you_mean(nearest(word, names))}; expected one of {', '.join(names)}"
    raise UserError(_report([Problem(word, _WHERE, advice)], f"What each does: {program} --help"))


def _call(command: Command, texts: Mapping[str, str], program: str) -> None:
    """Let fire call the function with its values."""

    @fire.decorators.SetParseFn(str)
    def call(**texts: str) -> None:
        values, problems = _wrong_values(command, texts)
        assert not problems, f"checked before: {problems}"
        command.function(**values)

    words = [command.name, *(f"--{name}={text}" for name, text in texts.items())]
    try:
        fire.Fire({command.name: call}, command=words, name=program)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(EXIT_INTERRUPTED)


def _report(problems: Sequence[Problem], advice: str) -> str:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return "\n".join([f"{count}; nothing was started.", *(f"  - {problem}" for problem in problems), advice])


# ---- reading a function


def _split_docstring(text: str) -> tuple[str, dict[str, str]]:
    """What stands before the sections of a docstring, and the meaning of each name under `Args:`."""
    description, _, args = text.partition("\nArgs:\n")
    args = re.split(r"^\S", args, maxsplit=1, flags=re.MULTILINE)[0]  # the next section
    meanings: dict[str, str] = {}
    for name, meaning in re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", args, flags=re.MULTILINE):
        meanings[name] = " ".join(meaning.split())
    description = re.split(r"^(?:Raises|Returns):$", description, maxsplit=1, flags=re.MULTILINE)[0]
    return description.strip(), meanings


def _without_none(annotation: Any) -> tuple[Any, bool]:
    """`T | None` -> T, True; any other type -> itself, False."""
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not types.NoneType]
        assert len(kinds) == 1, f"a parameter has one type, or one and None; not {annotation}"
        return kinds[0], True
    return annotation, False


# ---- help


def _overview(commands: Mapping[str, Command], program: str, about: str) -> str:
    """The first screen: usage, what the program is, each command in a line."""
    entries = "\n".join(_columns(command.name, command.summary, _NARROW_COLUMN) for command in commands.values())
    usage = f"usage: {program} COMMAND [ARGUMENT ...] [--flag VALUE ...]"
    return "\n\n".join([usage, _filled(about), entries, f"All of a command: {program} COMMAND --help"]) + "\n"


def _entry(parameter: Parameter) -> str:
    """A parameter's lines of a help screen."""
    default = "required" if parameter.required else f"default {parameter.shown_default()}"
    return _columns(parameter.written, f"{parameter.meaning} [{parameter.expected}; {default}]", _COLUMN)


def _columns(left: str, text: str, column: int) -> str:
    """A name, and its explanation beside it; below it where the name is too long."""
    indent = " " * column
    lines = textwrap.fill(text, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    start = f"  {left}"
    return start.ljust(column) + lines[column:] if len(start) < column - 1 else f"{start}\n{lines}"


def _filled(text: str) -> str:
    """The paragraphs of a docstring in lines of equal length."""
    paragraphs = text.strip().split("\n\n") if text else []
    return "\n\n".join(textwrap.fill(paragraph, _WIDTH, break_on_hyphens=False) for paragraph in paragraphs)


def _usage(command: Command, program: str) -> str:
    """The line that names every parameter, those with a default in brackets."""
    start = f"usage: {program} {command.name} "
    parts = [p.written if p.required else f"[{p.written}]" for p in command.parameters.values()]
    whole = start + " ".join(part.replace(" ", "\0") for part in parts)  # a flag and its value stay on one line
    lines = textwrap.wrap(whole, _WIDTH, subsequent_indent=" " * len(start), break_on_hyphens=False)
    return "\n".join(lines).replace("\0", " ")
