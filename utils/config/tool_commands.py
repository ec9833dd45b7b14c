"""Turn functions into the commands of a program: signature and docstring give the flags, their checks and the help.

    python -m PROGRAM COMMAND [ARGUMENT ...] [--flag VALUE ...]

A parameter without a default that can be given by position is an argument, `*name` takes any number of them, every
other one is a flag. Its annotation gives type, range and choices (utils/config/value_types.py), and the `Args:` section
of the function explains it.
"""

import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_type_hints

from pydantic import ValidationError

from utils.config.command_line import HELP_FLAGS, CommandLine
from utils.config.problems import COMMAND_LINE, Problem, did_you_mean, nearest, normal_key, report
from utils.config.value_types import ValueType
from utils.errors import EXIT_INTERRUPTED, UserError, exit_on_user_error
from utils.processes.startup import raise_on_ctrl_c
from utils.processes.torchrun import is_first_of_node

_WIDTH, _COLUMN, _NARROW_COLUMN = 80, 24, 20  # of a help screen, in characters; where explanations start
_FORM = "Flags are --flag VALUE or --flag=VALUE; hyphens and underscores are the same in their names."


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a command.

    Attributes:
        name: as in the signature.
        type: what it accepts.
        default: inspect.Parameter.empty if it must be given.
        positional: may be given by position.
        repeated: any number of them may be given.
        meaning: its explanation in the docstring.
    """

    name: str
    type: ValueType
    default: Any
    positional: bool
    repeated: bool
    meaning: str

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return self.default is inspect.Parameter.empty and not self.repeated

    @property
    def subject(self) -> str:
        """Its name in messages: IMAGES or --top_k."""
        return self.name.upper() if self.positional else f"--{self.name}"

    @property
    def written(self) -> str:
        """How it is written on a command line: IMAGES or --top_k N."""
        if self.repeated:
            return f"{self.subject} ..."
        return self.subject if self.positional else f"{self.subject} {self.type.word}"

    @property
    def shown_default(self) -> str:
        """The default as a person would type it."""
        if isinstance(self.default, tuple):
            return (self.type.separator or " ").join(f"{part:g}" for part in self.default)
        return str(self.default).lower() if isinstance(self.default, bool | None) else str(self.default)

    def help_entry(self) -> str:
        """Return its lines on a help screen: name, meaning, type and default."""
        state = "any number" if self.repeated else "required" if self.required else f"default {self.shown_default}"
        return _columns(self.written, f"{self.meaning} [{self.type.expected}; {state}]", _COLUMN)


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
            required = parameter.default is parameter.empty
            repeated = parameter.kind is parameter.VAR_POSITIONAL
            positional = repeated or (required and parameter.kind is parameter.POSITIONAL_OR_KEYWORD)
            kind = ValueType.of(hints[name])
            parameters[name] = Parameter(name, kind, parameter.default, positional, repeated, meanings[name])
        return cls(function.__name__.replace("_", "-"), function, summary.replace("\n", " "), details, parameters)

    def parse(self, argv: Sequence[str], program: str) -> tuple[list[Any], dict[str, Any]]:
        """Read the words after the command's name into the function's positional and keyword arguments.

        Raises:
            UserError: lists every mistake: form, missing and unknown names, invalid values.
        """
        single = {name: parameter for name, parameter in self.parameters.items() if not parameter.repeated}
        repeated = next((name for name in self.parameters if name not in single), "")
        positional = [name for name in single if single[name].positional]
        line = CommandLine(single, positional, takes_more=repeated != "").read(argv)
        given = [(name, text) for name, text in line.texts.items() if name in single]
        values: dict[str, list[Any]] = {name: [] for name in self.parameters}
        for name, text in [*given, *((repeated, text) for text in line.more)]:
            parameter = self.parameters[name]
            try:
                values[name].append(parameter.type.parse(text))
            except ValidationError:
                advice = parameter.type.refusal(text)
                if parameter.default is not inspect.Parameter.empty:
                    advice += f"; the default is {parameter.shown_default}"
                line.refuse(f"{parameter.subject} = {text!r}", advice, name)
        for name in [name for name in line.texts if name not in single]:
            near = nearest(name, single)
            line.refuse(f"--{name}", f"no such flag{did_you_mean(near, prefix='--')}", *near)
        for name, parameter in single.items():
            if parameter.required and name not in {*line.texts, *line.malformed}:
                line.refuse(parameter.written, f"is missing; expected {parameter.type.expected}")
        if line.problems:
            raise UserError(report(line.problems, f"How to call it: {program} {self.name} --help"))
        arguments = [value for name in (*positional, repeated) for value in values.pop(name, [])]
        return arguments, {name: found[0] for name, found in values.items() if found}

    def help_text(self, program: str) -> str:
        """Return usage, docstring, and every parameter with its meaning, type and default."""
        entries = "\n".join(parameter.help_entry() for parameter in self.parameters.values())
        sections = [self._usage(program), _filled(self.summary), _filled(self.details), entries, _filled(_FORM)]
        return "\n\n".join(section for section in sections if section) + "\n"

    def _usage(self, program: str) -> str:
        """List every parameter, those with a default in brackets."""
        parts = [p.written if p.required else f"[{p.written}]" for p in self.parameters.values()]
        words = " ".join(part.replace(" ", "\0") for part in parts)  # a flag and its value stay on one line
        return _wrapped(f"usage: {program} {self.name} {words}", " " * 7).replace("\0", " ")


def run_commands(
    functions: Sequence[Callable[..., None]],
    argv: Sequence[str],
    program: str,
    about: str,
    unparsed: Sequence[Callable[[list[str]], None]] = (),
) -> None:
    """Run a command line (without the program's name), or answer `--help`.

    Args:
        functions: the commands; `a_b` is typed a-b or a_b. They import slow modules themselves.
        argv: the words after the program's name; if there are none, the commands are listed.
        program: how the program is started, for help and messages.
        about: what it does, for the first help screen.
        unparsed: commands that get the words after their name and read them themselves; listed first.

    Raises:
        SystemExit: 2 with every mistake listed when the line is wrong or a command raises UserError; 0 after help;
            130 after Ctrl-C.
    """
    found = [*(Command(f.__name__, f, f.__doc__ or "", "", {}) for f in unparsed), *map(Command.of, functions)]
    commands = {normal_key(command.name): command for command in found}
    with exit_on_user_error(print_message=is_first_of_node()):
        if not argv or argv[0] in HELP_FLAGS:
            print(_overview(commands, program, about), end="")
            sys.exit(0)
        command = _find_command(commands, argv, program)
        if command.function in unparsed:
            command.function(list(argv[1:]))
            return
        if any(word in HELP_FLAGS for word in argv):
            print(command.help_text(program), end="")
            sys.exit(0)
        arguments, flags = command.parse(argv[1:], program)
        # Up to here Ctrl-C may end the process at once; a command may have to clean up.
        raise_on_ctrl_c()
        try:
            command.function(*arguments, **flags)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr, flush=True)
            sys.exit(EXIT_INTERRUPTED)


def _find_command(commands: Mapping[str, Command], argv: Sequence[str], program: str) -> Command:
    """Return the command that the first word names."""
    word = argv[0]
    if normal_key(word) in commands:
        return commands[normal_key(word)]
    names = [command.name for command in commands.values()]
    later = [commands[normal_key(other)].name for other in argv if normal_key(other) in commands]
    if word.startswith("-"):
        advice = f"the command comes first; write {program} {later[0] if later else 'COMMAND'} ..."
    else:
        advice = f"no such command{did_you_mean(nearest(word, names))}; expected one of {', '.join(names)}"
    raise UserError(report([Problem(word, COMMAND_LINE, advice)], f"All commands: {program} --help"))


def _split_docstring(text: str) -> tuple[str, dict[str, str]]:
    """Return the text of a docstring before its sections, and the meaning of each name under `Args:`."""
    description, _, args = text.partition("\nArgs:\n")
    args = re.split(r"^\S", args, maxsplit=1, flags=re.MULTILINE)[0]  # up to the next section
    entries = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", args, flags=re.MULTILINE)
    description = re.split(r"^(?:Raises|Returns):$", description, maxsplit=1, flags=re.MULTILINE)[0]
    return description.strip(), {name: " ".join(meaning.split()) for name, meaning in entries}


def _overview(commands: Mapping[str, Command], program: str, about: str) -> str:
    """Return the first help screen: usage, what the program does, one line per command."""
    entries = "\n".join(_columns(command.name, command.summary, _NARROW_COLUMN) for command in commands.values())
    usage = f"usage: {program} COMMAND [ARGUMENT ...] [--flag VALUE ...]"
    return "\n\n".join([usage, _filled(about), entries, f"Help on a command: {program} COMMAND --help"]) + "\n"


def _columns(left: str, text: str, column: int) -> str:
    """Put an explanation beside a name, or below it where the name is too long."""
    indent, start = " " * column, f"  {left}"
    lines = _wrapped(indent + text, indent)
    return start.ljust(column) + lines[column:] if len(start) < column - 1 else f"{start}\n{lines}"


def _filled(text: str) -> str:
    """Wrap the paragraphs of a docstring."""
    return "\n\n".join(_wrapped(" ".join(paragraph.split())) for paragraph in text.strip().split("\n\n"))


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, _WIDTH, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)
