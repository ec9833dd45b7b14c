"""Split a command line into flags with values and arguments; anything else is a mistake."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from utils.config.problems import COMMAND_LINE, Problem, normal_key

HELP_FLAGS = ("--help", "-h")


@dataclass(slots=True)
class CommandLine:
    """What a command line may contain, and after `read` its parts.

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
    arguments: Sequence[str] = ()
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

    def read(self, argv: Sequence[str]) -> "CommandLine":
        """Read the words after the name of the program or of its command; flags are `--name value` or `--name=value`.

        The values are not checked here.
        """
        words = list(argv)
        while words:
            word = words.pop(0)
            if word == "--":
                self.refuse("--", "what follows would be ignored; remove it")
            elif word.startswith("--"):
                self._read_flag(word, words)
            else:
                self._read_word(word, words)
        return self

    def _read_flag(self, word: str, words: list[str]) -> None:
        """Read a flag, with the next word as its value unless one is attached."""
        flag, attached, text = word[2:].partition("=")
        has_value = bool(attached) or _value_follows(words)
        if has_value and not attached:
            text = words.pop(0)
        name = normal_key(flag)
        if not name:
            self.refuse(word, "has no name; write --NAME VALUE")
        elif name not in self.names:
            self.texts.setdefault(name, text)
        elif not has_value:
            self.refuse(f"--{flag}", f"has no value; write --{flag} VALUE", name)
        elif name in self.texts:
            self.refuse(f"--{flag}", f"given twice: {self.texts[name]!r} and {text!r}; keep one of them", name)
        else:
            self.texts[name] = text

    def _read_word(self, word: str, words: list[str]) -> None:
        """Read a word as the next argument, or reject it, a flag without hyphens together with its value."""
        name = normal_key(word.lstrip("-").partition("=")[0])
        looks_like_flag = word.startswith("-") or ("=" in word and name in self.names)
        free = [argument for argument in self.arguments if argument not in self.texts]
        if free and not looks_like_flag:
            self.texts[free[0]] = word
        elif self.takes_more and not looks_like_flag:
            self.more.append(word)
        elif name in self.names and not (name in self.arguments and name in self.texts):
            self.refuse(word, f"flags start with two hyphens; write --{word.lstrip('-')}", name)
            if "=" not in word and _value_follows(words):
                words.pop(0)
        elif self.file_flag and word.endswith((".yaml", ".yml")):
            flag = self.file_flag.replace("_", "-")
            self.refuse(word, f"a config file goes after its flag; write --{flag} {word}", self.file_flag)
        else:
            self.refuse(word, "belongs to no flag; remove it, or put a value with spaces in quotes")


def _value_follows(words: Sequence[str]) -> bool:
    return bool(words) and not words[0].startswith("--")
