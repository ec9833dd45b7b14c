"""The configuration: base.yaml <- config file <- dotted flags, checked as a whole, then frozen.

Only this file and its neighbours (config_*.py) know where values come from. Neither torch nor numpy is
imported: a mistake is told within a second and before anything is created.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from utils.command_line import HELP_FLAGS, parse_command_line
from utils.config_file import read_config_file, to_yaml, unknown_key
from utils.config_problems import COMMAND_LINE, Problem, Setting, report
from utils.config_rules import DISK_RULES, RULES, broken_rules, warnings
from utils.config_schema import FILE_FLAG, LEAVES, flatten, nest, validate
from utils.errors import UserError
from utils.frozen_munch import FrozenMunch
from utils.torchrun import first_of_node, torchrun_problems

BASE_FILE = Path(__file__).resolve().parent.parent / "configs" / "base.yaml"
_COMMENT_COLUMN = 48
_USAGE = """\
usage: python main.py --config-file-path FILE [--section.key VALUE ...]

Trains and evaluates, or with --util.test_only True only evaluates. FILE is a recipe such as
configs/relabel_train_resnet50.yaml; flags come last and win. Hyphens and underscores are the same,
so are `--section.key VALUE` and `--section.key=VALUE`. --util.print_config True shows what a command
line resolves to. The label-map tools: python -m relabel --help

Every key with its default:
"""


@dataclass(frozen=True, slots=True)
class Resolution:
    """Where a config file and flags lead: a setting for each key, and all that is wrong with them."""

    settings: dict[str, Setting]
    defaults: dict[str, Any]
    problems: list[Problem]


def fire_arguments(argv: Sequence[str]) -> list[str]:
    """Check a command line and hand it on in the one form that fire cannot misread: `--key=text`.

    fire calls the function first and complains afterwards, keeps the last of two equal flags, and makes True of a flag
    without value.

    Args:
        argv: the words after the program's name.

    Raises:
        UserError: stray words, flags without value or given twice; with them all that else can be found wrong.
        SystemExit: status 0, after `--help` or `-h` was answered with the usage and base.yaml itself.
    """
    if any(word in HELP_FLAGS for word in argv):
        print(f"{_USAGE}\n{BASE_FILE.read_text(encoding='utf-8')}", end="")
        sys.exit(0)
    line = parse_command_line(argv)
    if line.texts.get(FILE_FLAG) == "":
        line.refuse("--config-file-path", "is empty; give the path of a config file, or leave the flag out", FILE_FLAG)
    if line.problems:
        flags = {key: text for key, text in line.texts.items() if key != FILE_FLAG}
        more = resolve(line.texts.get(FILE_FLAG, ""), flags, line.spoiled).problems
        raise UserError(report([*line.problems, *more]))
    return [f"--{key}={text}" for key, text in line.texts.items()]


def load_config(config_file_path: str, flags: dict[str, str]) -> FrozenMunch:
    """Merge base.yaml, a config file and command-line flags into the frozen tree that a run is built from.

    Settings without effect are told on stderr. With `util.print_config` the resolved tree is printed to stdout.

    Args:
        config_file_path: YAML file that names what differs from base.yaml; '' for none.
        flags: dotted key, as in base.yaml -> raw text as typed.

    Raises:
        UserError: lists every mistake in the file, the flags, and the folders that they name.
        SystemExit: status 0, after printing, when `util.print_config` is true.
    """
    resolved = resolve(config_file_path, flags)
    if resolved.problems:
        raise UserError(report(resolved.problems))
    if first_of_node():
        for warning in warnings(resolved.settings, resolved.defaults):
            print(f"warning: {warning}", file=sys.stderr)
    tree = nest({key: setting.value for key, setting in resolved.settings.items()})
    if tree["util"]["print_config"]:
        if first_of_node():
            print("\n".join(_annotated(tree, resolved.settings)))
        sys.exit(0)
    return FrozenMunch(tree)


def read_config(config_file_path: str, flags: dict[str, str]) -> FrozenMunch:
    """How a run was made: the tree of `load_config`, whatever has become of the folders that it names; no warnings.

    Raises:
        UserError: lists every mistake in the file and the flags.
    """
    resolved = resolve(config_file_path, flags, needs_folders=False)
    if resolved.problems:
        raise UserError(report(resolved.problems))
    return FrozenMunch(nest({key: setting.value for key, setting in resolved.settings.items()}))


def resolve(
    config_file_path: str, flags: dict[str, str], spoiled: Iterable[str] = (), needs_folders: bool = True
) -> Resolution:
    """Merge and check without raising; `spoiled` keys were mentioned in a broken way and are not held against rules."""
    base, problems = read_config_file(BASE_FILE, "base")
    settings = {key: replace(setting, where="default") for key, setting in base.items()}
    if config_file_path:
        from_file, file_problems = read_config_file(Path(config_file_path), Path(config_file_path).name)
        settings |= from_file
        problems += file_problems
    from_flags, flag_problems = _read_flags(flags)
    settings |= from_flags
    values, wrong_keys = validate({key: setting.value for key, setting in settings.items()})
    problems += flag_problems
    told = {key for problem in problems for key in problem.keys}
    problems += [_wrong_value(key, settings, base) for key in wrong_keys if key in settings or key not in told]
    settings = {key: replace(setting, value=values[key]) for key, setting in settings.items()}
    bad_keys = {key for problem in problems for key in problem.keys}.union(spoiled)
    if FILE_FLAG in bad_keys:
        bad_keys.update(LEAVES)
    if "util.run_dir" in settings and settings["util.run_dir"].value == "":
        settings["util.run_dir"] = _default_run_dir(config_file_path)
    problems += broken_rules(RULES, settings, bad_keys)
    # Printing starts nothing, so it needs no folders and no other processes.
    if needs_folders and "util.print_config" not in bad_keys and not settings["util.print_config"].value:
        problems += [*broken_rules(DISK_RULES, settings, bad_keys), *torchrun_problems()]
    return Resolution(settings, {key: setting.value for key, setting in base.items()}, problems)


def _read_flags(flags: dict[str, str]) -> tuple[dict[str, Setting], list[Problem]]:
    settings: dict[str, Setting] = {}
    problems = []
    for key, text in flags.items():
        if key in LEAVES:
            settings[key] = Setting(LEAVES[key].read(text), COMMAND_LINE, COMMAND_LINE)
        else:
            problems.append(unknown_key(key, COMMAND_LINE, prefix="--"))
    return settings, problems


def _wrong_value(key: str, settings: dict[str, Setting], base: dict[str, Setting]) -> Problem:
    if key not in settings:
        return Problem(key, str(BASE_FILE), "base.yaml must hold every key; restore this one", keys=(key,))
    setting = settings[key]
    default = base[key].value if key in base else None
    text = LEAVES[key].refusal(setting.value)
    if LEAVES[key].base is str and setting.value is not None and not isinstance(setting.value, str):
        text += "; put it in quotes"
    if default not in ("", None, setting.value):
        text += f"; the default is {default}"
    return Problem(f"{key} = {_shown(setting.value)}", setting.where, text, keys=(key,))


def _shown(value: object) -> str:
    return "null" if value is None else repr(value)


def _default_run_dir(config_file_path: str) -> Setting:
    path = Path(config_file_path or BASE_FILE)
    return Setting(str(Path("runs", path.stem)), "default", f"name of {path.name}")


def _annotated(tree: dict[str, Any], settings: dict[str, Setting], prefix: str = "") -> list[str]:
    """The tree as lines of YAML, each value followed by a comment that says where it comes from."""
    indent = "  " * prefix.count(".")
    lines = []
    for name, value in tree.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}:", *_annotated(value, settings, f"{prefix}{name}.")]
        else:
            line = indent + to_yaml({name: value}).rstrip("\n")
            lines.append(f"{line:<{_COMMENT_COLUMN}} # {settings[prefix + name].source}")
    return lines


def to_plain(config: FrozenMunch) -> dict[str, Any]:
    """The tree as nested dicts of plain values, for checkpoints (a Munch breaks `weights_only=True`) and JSON."""
    return config.toDict()


def changed_keys(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Dotted keys that differ between two plain trees, or that only one of them has; in the order of `new`."""
    before, after = flatten(old), flatten(new)
    missing = object()
    keys = [*after, *(key for key in before if key not in after)]
    return [key for key in keys if before.get(key, missing) != after.get(key, missing)]
