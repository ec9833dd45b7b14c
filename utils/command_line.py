"""What is checked on the command line before fire sees it.

fire calls the function first and complains afterwards, keeps the last of two equal flags, and makes True of a flag
without value. So only a command line without such mistakes is handed on, each flag as one `--key=value`.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from utils.config import BASE_FILE, resolve
from utils.config_problems import Problem, normal_key, report
from utils.config_schema import LEAVES
from utils.errors import UserError

_FILE_KEY = "config_file_path"
_WHERE = "command line"
_USAGE = """\
usage: python main.py --config-file-path FILE [--section.key VALUE ...]

Trains and evaluates, or with --util.test_only True only evaluates. FILE is a recipe such as
configs/relabel_train_resnet50.yaml; flags come last and win. Hyphens and underscores are the same,
so are `--section.key VALUE` and `--section.key=VALUE`. --util.print_config True shows what a command
line resolves to. The label-map tools: python -m relabel --help

Every key with its default:
"""


@dataclass(slots=True)
class CommandLine:
    """A parsed command line: raw texts by normal key, the form's problems, and the keys these leave unknown."""

    texts: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def refuse(self, subject: str, text: str, key: str) -> None:
        """Record a problem of form that leaves `key` unknown; without the config file every key is."""
        keys = tuple(LEAVES) if key == _FILE_KEY else (key,)
        self.problems.append(Problem(subject, _WHERE, text, keys=keys))


def help_text() -> str:
    """The usage and base.yaml itself, comments and all."""
    return f"{_USAGE}\n{BASE_FILE.read_text(encoding='utf-8')}"


def fire_arguments(argv: Sequence[str]) -> list[str]:
    """Check a command line and hand it on in the one form that fire cannot misread.

    Args:
        argv: the words after the program's name.

    Raises:
        UserError: stray words, flags without value or given twice; with them all that else can be found wrong.
        SystemExit: status 0, after `--help` or `-h` was answered.
    """
    if "--help" in argv or "-h" in argv:
        print(help_text(), end="")
        sys.exit(0)
    line = parse_command_line(argv)
    if line.problems:
        flags = {key: text for key, text in line.texts.items() if key != _FILE_KEY}
        spoiled = [key for problem in line.problems for key in problem.keys]
        more = resolve(line.texts.get(_FILE_KEY, ""), flags, spoiled).problems
        raise UserError(report([*line.problems, *more]))
    return [f"--{key}={text}" for key, text in line.texts.items()]


def parse_command_line(argv: Sequence[str]) -> CommandLine:
    """Read flags as `--key value` or `--key=value`; whether keys exist and values fit is not asked here."""
    line = CommandLine()
    words = list(argv)
    while words:
        word = words.pop(0)
        if word == "--":
            line.refuse("--", "what follows would be dropped; remove it", "")
        elif not word.startswith("--"):
            _refuse_stray(line, word, words)
        else:
            has_value = "=" in word or (bool(words) and not words[0].startswith("--"))
            text = "" if "=" in word or not has_value else words.pop(0)
            name, _, attached = word[2:].partition("=")
            _add_flag(line, name, attached or text, has_value)
    return line


def _add_flag(line: CommandLine, name: str, text: str, has_value: bool) -> None:
    key = normal_key(name)
    if not key:
        line.refuse(f"--={text}", "has no key; write --section.key VALUE", "")
        return
    if not has_value and (key in LEAVES or key == _FILE_KEY):
        line.refuse(f"--{name}", f"has no value; write --{name} VALUE", key)
        return  # an unknown key is kept: whoever knows the keys refuses it, with a value or without
    if key in line.texts:
        line.refuse(f"--{name}", f"given twice: {line.texts[key]!r} and {text!r}; keep one of them", key)
    elif key == _FILE_KEY and not text:
        line.refuse(f"--{name}", "is empty; give the path of a config file, or leave the flag out", key)
    line.texts.setdefault(key, text)


def _refuse_stray(line: CommandLine, word: str, words: list[str]) -> None:
    """Refuse a word that belongs to no flag; a flag that only lacks its hyphens takes its value out of `words`."""
    key = normal_key(word.lstrip("-").partition("=")[0])
    if key in LEAVES or key == _FILE_KEY:
        advice = f"flags start with two hyphens; write --{word.lstrip('-')}"
        if "=" not in word and words and not words[0].startswith("--"):
            words.pop(0)
    elif word.endswith((".yaml", ".yml")):
        advice, key = f"a config file goes after its flag; write --config-file-path {word}", _FILE_KEY
    else:
        advice = "belongs to no flag; remove it, or put a value with spaces in quotes"
    line.refuse(word, advice, key)
