"""Split a command line into flags with values and arguments; anything else is a mistake."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from utils.config.problems import COMMAND_LINE, Problem, normal_key

HELP_FLAGS = ("--help", "-h")


@dataclass(slots=True)
class CommandLine:
    """The parts of a command line.

    Attributes:
        names: names of flags and arguments, with underscores.
        arguments: those that can be given by position, in order.
        takes_more: whether any number of further words may follow.
        file_flag: the flag that names a config file, '' if there is none.
        more: the further words.
        texts: name -> raw text; the caller rejects unknown names.
        problems: mistakes in the form of the command line.
    """

    names: Collection[str]
    arguments: Sequence[str]
    takes_more: bool = False
    file_flag: str = ""
    more: list[str] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def malformed(self) -> set[str]:
        """Names without a usable text, because of a problem."""
        return {key for problem in self.problems for key in problem.keys}

    def refuse(self, subject: str, text: str, *names: str) -> None:
        """Record a problem because of which `names` have no usable text."""
        self.problems.append(Problem(subject, COMMAND_LINE, text, keys=names))


def parse_command_line(
    argv: Sequence[str],
    names: Collection[str],
    arguments: Sequence[str] = (),
    takes_more: bool = False,
    file_flag: str = "",
) -> CommandLine:
    """Read flags as `--name value` or `--name=value`; the values are not checked here.

    Args:
        argv: the words after the name of the program or of its command.
        names, arguments, takes_more, file_flag: as in CommandLine.
    """
    line = CommandLine(names, arguments, takes_more, file_flag)
    words = list(argv)
    while words:
        word = words.pop(0)
        if word == "--":
            line.refuse("--", "what follows would be ignored; remove it")
        elif word.startswith("--"):
            _read_flag(line, word, words)
        else:
            _read_word(line, word, words)
    return line


def _read_flag(line: CommandLine, word: str, words: list[str]) -> None:
    """Read a flag, with the next word as its value unless one is attached."""
    flag, attached, text = word[2:].partition("=")
    has_value = bool(attached) or _value_follows(words)
    if has_value and not attached:
        text = words.pop(0)
    name = normal_key(flag)
    if not name:
        line.refuse(word, "has no name; write --NAME VALUE")
    elif name not in line.names:
        line.texts.setdefault(name, text)
    elif not has_value:
        line.refuse(f"--{flag}", f"has no value; write --{flag} VALUE", name)
    elif name in line.texts:
        line.refuse(f"--{flag}", f"given twice: {line.texts[name]!r} and {text!r}; keep one of them", name)
    else:
        line.texts[name] = text


def _read_word(line: CommandLine, word: str, words: list[str]) -> None:
    """Read a word as the next argument, or reject it; a flag without hyphens also removes its value from `words`."""
    name = normal_key(word.lstrip("-").partition("=")[0])
    looks_like_flag = word.startswith("-") or ("=" in word and name in line.names)
    free = [argument for argument in line.arguments if argument not in line.texts]
    if free and not looks_like_flag:
        line.texts[free[0]] = word
    elif line.takes_more and not looks_like_flag:
        line.more.append(word)
    elif name in line.names and not (name in line.arguments and name in line.texts):
        line.refuse(word, f"flags start with two hyphens; write --{word.lstrip('-')}", name)
        if "=" not in word and _value_follows(words):
            words.pop(0)
    elif line.file_flag and word.endswith((".yaml", ".yml")):
        flag = line.file_flag.replace("_", "-")
        line.refuse(word, f"a config file goes after its flag; write --{flag} {word}", line.file_flag)
    else:
        line.refuse(word, "belongs to no flag; remove it, or put a value with spaces in quotes")


def _value_follows(words: Sequence[str]) -> bool:
    return bool(words) and not words[0].startswith("--")
