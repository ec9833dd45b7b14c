"""Merge a file of defaults, a config file and dotted flags into one checked tree.

Only this package knows where values come from. Neither torch nor numpy is imported: mistakes are reported within a
second and before anything is created.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from utils.config.dotted_keys import Schema, nest
from utils.config.frozen_munch import FrozenMunch
from utils.config.problems import COMMAND_LINE, Problem, Setting, report
from utils.config.value_types import ValueType
from utils.config.yaml_file import read_config_file, to_yaml, unknown_key
from utils.errors import UserError

_COMMENT_COLUMN = 48


@dataclass(frozen=True, slots=True)
class Merged:
    """A setting for each key, the defaults, and every problem of the files and flags."""

    settings: dict[str, Setting]
    defaults: dict[str, Any]
    problems: list[Problem]

    def tree(self, advice: str) -> FrozenMunch:
        """Return the values as a tree. Raises UserError with every problem, and the advice at its end."""
        if self.problems:
            raise UserError(report(self.problems, advice))
        return FrozenMunch(nest({key: setting.value for key, setting in self.settings.items()}))


def merge(schema: Schema, base_file: Path, config_file: str, flags: dict[str, str]) -> Merged:
    """Merge without raising: defaults <- config file <- flags, each value checked against its type.

    Args:
        schema: the keys; base_file must contain every one of them.
        base_file: the defaults.
        config_file: YAML file with the keys that differ from the defaults; '' for none.
        flags: dotted key -> raw text as typed.
    """
    base, problems = read_config_file(base_file, "base", schema)
    settings = {key: replace(setting, where="default") for key, setting in base.items()}
    if config_file:
        from_file, file_problems = read_config_file(Path(config_file), Path(config_file).name, schema)
        settings |= from_file
        problems += file_problems
    for key, text in flags.items():
        if key in schema.types:
            settings[key] = Setting(schema.types[key].read(text), COMMAND_LINE, COMMAND_LINE)
        else:
            problems.append(unknown_key(key, COMMAND_LINE, schema, prefix="--"))
    reported = {key for problem in problems for key in problem.keys}
    for key, kind in schema.types.items():
        if setting := settings.get(key):
            try:
                settings[key] = replace(setting, value=kind.check(setting.value))
            except ValidationError:
                problems.append(_wrong_value(key, kind, setting, base.get(key)))
        elif key not in reported:
            text = f"{base_file.name} must contain every key; restore this one"
            problems.append(Problem(key, str(base_file), text, (key,)))
    return Merged(settings, {key: setting.value for key, setting in base.items()}, problems)


def _wrong_value(key: str, kind: ValueType, setting: Setting, default: Setting | None) -> Problem:
    text = kind.refusal(setting.value)
    if kind.base is str and setting.value is not None and not isinstance(setting.value, str):
        text += "; put it in quotes"
    if default and default.value not in ("", None, setting.value):
        text += f"; the default is {default.value}"
    shown = "null" if setting.value is None else repr(setting.value)
    return Problem(f"{key} = {shown}", setting.where, text, keys=(key,))


def annotated(tree: dict[str, Any], settings: dict[str, Setting], prefix: str = "") -> Iterator[str]:
    """Yield the tree as lines of YAML, each value followed by a comment with its source."""
    indent = "  " * prefix.count(".")
    for name, value in tree.items():
        if isinstance(value, dict):
            yield f"{indent}{name}:"
            yield from annotated(value, settings, f"{prefix}{name}.")
        else:
            line = indent + to_yaml({name: value}).rstrip("\n")
            yield f"{line:<{_COMMENT_COLUMN}} # {settings[prefix + name].source}"
