"""Read and write YAML config files. PyYAML reads YAML 1.1; this reads plain values as in 1.2 and rejects surprises."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from utils.config.dotted_keys import Schema
from utils.config.problems import Problem, Setting, did_you_mean, nearest, normal_key
from utils.config.value_types import boolean, number

_LARGEST_FILE = 1_000_000  # bytes; a path to a checkpoint or a tar file must not be read whole
_STR, _NULL, _BOOL, _INT, _FLOAT = (f"tag:yaml.org,2002:{name}" for name in ("str", "null", "bool", "int", "float"))
_MAP = "tag:yaml.org,2002:map"
_PLAIN_VALUES = {
    _NULL: r"(null|Null|NULL|~|)$",
    _BOOL: r"(true|True|TRUE|false|False|FALSE)$",
    _INT: r"[-+]?[0-9]+$",
    _FLOAT: r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$",
}
_READ: dict[str, Callable[[str], object]] = {_STR: str, _BOOL: boolean, _INT: number, _FLOAT: number}


class _Loader(yaml.SafeLoader):
    """Numbers, booleans and null as in YAML 1.2: 1e-3 is a number; 1:30, 0o17, yes, off and 2024-01-01 are texts."""


class _Dumper(yaml.SafeDumper):
    """Writes what _Loader reads: the text '1e-3' gets quotes."""


for _side in (_Loader, _Dumper):
    _side.yaml_implicit_resolvers = {}  # drops what YAML 1.1 reads as numbers, booleans and dates
    for _tag, _pattern in _PLAIN_VALUES.items():
        _side.add_implicit_resolver(_tag, re.compile(_pattern), None)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # PyYAML loses some line separators inside plain and single-quoted texts.
    return dumper.represent_scalar(_STR, text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _represent_text)


def to_yaml(tree: dict[str, Any]) -> str:
    """Write a plain nested dict as YAML that `read_config_file` reads back to the same values."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=float("inf"))


def read_config_file(path: Path, source: str, schema: Schema) -> tuple[dict[str, Setting], list[Problem]]:
    """Read a config file into dotted settings; values are not yet checked against the types of their keys.

    Args:
        path: the file; may be a pipe.
        source: its short name.
        schema: all keys.

    Returns:
        The settings of known keys, and every problem found. If the file cannot be read, the problem names every key.
    """
    reader = _Reader(path, source, schema)
    try:
        root = _compose(path)
        if isinstance(root, yaml.MappingNode):
            reader.read_section(root, "")
            return reader.settings, reader.problems
        if root is None:
            return {}, []
        section = next(iter(schema.types)).partition(".")[0]
        text = f"expected sections such as `{section}:`, each with its keys below it, indented"
    except OSError as error:
        text = f"cannot be read: {error.strerror}; give an existing file"
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:  # "\\UFFFFFFFF" is not a character
        reason = " ".join(str(error).split())
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
            reason = f"line {error.problem_mark.line + 1}: {error.problem}"
        text = f"is not YAML: {reason}; correct the file"
    return {}, [Problem("config file", str(path), text, keys=tuple(schema.types))]


def _compose(path: Path) -> yaml.Node | None:
    """Return the node tree of the only document; nothing in it is constructed, so no tag can run anything."""
    with path.open("rb") as file:
        data = file.read(_LARGEST_FILE + 1)
    if len(data) > _LARGEST_FILE:
        raise yaml.YAMLError("larger than a megabyte")
    return yaml.compose(data, Loader=_Loader)


@dataclass(slots=True)
class _Reader:
    """Settings and problems of one file, found by checking its nodes against the keys of a schema."""

    path: Path
    source: str
    schema: Schema
    settings: dict[str, Setting] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def read_section(self, node: yaml.MappingNode, prefix: str) -> None:
        """Read everything below one section; `prefix` is its dotted name and a dot, or ''."""
        if node.tag != _MAP:
            text = f"expected a plain section, found the tag {node.tag}; remove the tag"
            keys = self.schema.keys_below(prefix[:-1]) or tuple(self.schema.types)
            self._report(node, prefix[:-1] or "config file", text, keys)
            return
        first_lines: dict[str, int] = {}
        for name_node, value_node in node.value:
            if not isinstance(name_node, yaml.ScalarNode) or name_node.tag != _STR:
                found = f"`{name_node.value}`" if isinstance(name_node, yaml.ScalarNode) else _kind(name_node)
                subject = f"a key of {prefix[:-1]}" if prefix else "a key"
                self._report(name_node, subject, f"must be plain text, found {found}; write the name of a key", ())
                continue
            key = prefix + normal_key(name_node.value)
            if key in first_lines:
                text = f"given twice, first on line {first_lines[key]}; keep one of them"
                self._report(name_node, key, text, self.schema.keys_below(key))
            elif "." in name_node.value:
                text = "keys are nested in a file: the section, a colon, and the key below it, indented"
                self._report(name_node, key, text, (key,))
            elif key in self.schema.sections and isinstance(value_node, yaml.MappingNode):
                self.read_section(value_node, key + ".")
            elif key in self.schema.sections:
                if value_node.tag != _NULL:  # an empty section, all of its keys commented out, changes nothing
                    keys = self.schema.keys_below(key)
                    text = f"is a section; its keys go below it, indented: {', '.join(keys[:4])}"
                    self._report(name_node, key, text, keys)
            elif key in self.schema.types:
                self._read_value(name_node, value_node, key)
            else:
                self.problems.append(unknown_key(key, self._line(name_node), self.schema))
            first_lines.setdefault(key, name_node.start_mark.line + 1)

    def _read_value(self, name_node: yaml.Node, node: yaml.Node, key: str) -> None:
        kind = self.schema.types[key]
        if kind.separator and isinstance(node, yaml.SequenceNode):
            value = tuple(number(str(item.value)) for item in node.value)
            self.settings[key] = Setting(value, self._line(name_node), self.source)
        elif not isinstance(node, yaml.ScalarNode):
            text = f"expected one value, found {_kind(node)}; write `{key.rpartition('.')[2]}: VALUE`"
            self._report(name_node, key, text, (key,))
        elif node.tag != _NULL and node.tag not in _READ:
            text = f"expected a plain value, found the tag {node.tag}; remove the tag"
            self._report(name_node, key, text, (key,))
        else:
            is_null = node.tag == _NULL or (node.tag == _STR and kind.is_null(node.value))
            read = kind.read if kind.separator else _READ.get(node.tag, str)
            self.settings[key] = Setting(None if is_null else read(node.value), self._line(name_node), self.source)

    def _line(self, node: yaml.Node) -> str:
        return f"{self.path}, line {node.start_mark.line + 1}"

    def _report(self, node: yaml.Node, subject: str, text: str, keys: tuple[str, ...]) -> None:
        self.problems.append(Problem(subject, self._line(node), text, keys=keys))


def _kind(node: yaml.Node) -> str:
    return "a list" if isinstance(node, yaml.SequenceNode) else "a section"


def unknown_key(key: str, where: str, schema: Schema, prefix: str = "") -> Problem:
    """Return the problem of a key that does not exist; `prefix` is what the user writes before a key."""
    if below := schema.keys_below(key):
        names = " or ".join(prefix + name for name in below[:4])
        return Problem(prefix + key, where, f"is a section, not a key; did you mean {names}?", keys=below)
    names_near = nearest(key, schema.flags if prefix else schema.types) or nearest(key, schema.sections)
    keys = tuple(key for name in names_near for key in schema.keys_below(name) or (name,))
    return Problem(prefix + key, where, "no such key" + (did_you_mean(names_near, prefix) or "; remove it"), keys=keys)
