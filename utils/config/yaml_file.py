"""Read and write YAML config files. PyYAML reads YAML 1.1; this reads 1.2's plain values and refuses surprises."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from utils.config.problems import Problem, Setting, did_you_mean, nearest, normal_key
from utils.config.schema import Schema
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


class _Loader(yaml.SafeLoader):
    """Numbers, booleans and null as in YAML 1.2: 1e-3 is a number; 1:30, 0o17, yes, off and 2024-01-01 are texts."""


class _Dumper(yaml.SafeDumper):
    """Writes what _Loader reads: the text '1e-3' gets quotes."""


for _side in (_Loader, _Dumper):
    _side.yaml_implicit_resolvers = {}  # drops what YAML 1.1 takes for numbers, booleans and dates
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
        schema: the keys that there are.

    Returns:
        The settings of known keys, and every problem found. A file that cannot be read spoils every key.
    """
    try:
        root = _compose(_read(path))
        if root is None:
            return {}, []
        if isinstance(root, yaml.MappingNode):
            found = list(_Sections(path, source, schema).walk(root, ""))
            settings = {key: item for key, item in found if isinstance(item, Setting)}
            return settings, [item for _, item in found if isinstance(item, Problem)]
        text = "expected sections, each followed by a colon and by its keys below it, indented"
    except OSError as error:
        text = f"cannot be read: {error.strerror}; give an existing file"
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:  # "\\UFFFFFFFF" is no character
        text = f"is not YAML: {_reason(error)}; correct the file"
    return {}, [Problem("config file", str(path), text, keys=tuple(schema.types))]


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(_LARGEST_FILE + 1)
    if len(data) > _LARGEST_FILE:
        raise yaml.YAMLError("larger than a megabyte")
    return data


def _compose(data: bytes) -> yaml.Node | None:
    """Return the node tree of the only document; nothing in it is constructed, so no tag can run anything."""
    loader = _Loader(data)
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


def _reason(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return " ".join(str(error).split())


@dataclass(frozen=True, slots=True)
class _Sections:
    """The sections of one file, checked against the keys of a schema."""

    path: Path
    source: str
    schema: Schema

    def walk(self, node: yaml.MappingNode, prefix: str) -> Iterator[tuple[str, Setting | Problem]]:
        """Yield (dotted key, setting or problem) for everything below one section."""
        if node.tag != _MAP:
            below, where = prefix[:-1], self._line(node)
            text = f"expected a plain section, found the tag {node.tag}; remove the tag"
            keys = self.schema.keys_below(below) or tuple(self.schema.types)
            yield below, Problem(below or "config file", where, text, keys=keys)
            return
        first_lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            where = self._line(key_node)
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != _STR:
                yield "", _not_a_name(key_node, prefix, where)
                continue
            name = normal_key(key_node.value)
            key = prefix + name
            if name in first_lines:
                text = f"given twice, first on line {first_lines[name]}; keep one of them"
                yield key, Problem(key, where, text, keys=self.schema.keys_below(key))
            elif "." in name:
                text = "keys are nested in a file: the section, a colon, and the key below it, indented"
                yield key, Problem(key, where, text, keys=(key,))
            elif key in self.schema.sections:
                yield from self._section(value_node, key, where)
            elif key in self.schema.types:
                yield key, self._value(value_node, key, where)
            else:
                yield key, unknown_key(key, where, self.schema)
            first_lines.setdefault(name, key_node.start_mark.line + 1)

    def _line(self, node: yaml.Node) -> str:
        return f"{self.path}, line {node.start_mark.line + 1}"

    def _section(self, node: yaml.Node, key: str, where: str) -> Iterator[tuple[str, Setting | Problem]]:
        if isinstance(node, yaml.MappingNode):
            yield from self.walk(node, key + ".")
        elif node.tag != _NULL:  # an empty section, all of its keys commented out, changes nothing
            keys = self.schema.keys_below(key)
            text = f"is a section; its keys go below it, indented: {', '.join(keys[:4])}"
            yield key, Problem(key, where, text, keys=keys)

    def _value(self, node: yaml.Node, key: str, where: str) -> Setting | Problem:
        if not isinstance(node, yaml.ScalarNode):
            text = f"expected one value, found {_kind(node)}; write `{key.rpartition('.')[2]}: VALUE`"
            return Problem(key, where, text, keys=(key,))
        if node.tag not in (_STR, *_PLAIN_VALUES):
            return Problem(key, where, f"expected a plain value, found the tag {node.tag}; remove the tag", keys=(key,))
        return Setting(self._scalar(node, key), where, self.source)

    def _scalar(self, node: yaml.ScalarNode, key: str) -> object:
        if node.tag == _NULL:
            return None
        if node.tag == _BOOL:
            return boolean(node.value)
        if node.tag == _STR:
            return None if self.schema.types[key].is_null(node.value) else node.value
        return number(node.value)


def _not_a_name(node: yaml.Node, prefix: str, where: str) -> Problem:
    found = f"`{node.value}`" if isinstance(node, yaml.ScalarNode) else _kind(node)
    subject = f"a key of {prefix[:-1]}" if prefix else "a key"
    return Problem(subject, where, f"must be plain text, found {found}; write the name of a key")


def _kind(node: yaml.Node) -> str:
    return "a list" if isinstance(node, yaml.SequenceNode) else "a section"


def unknown_key(key: str, where: str, schema: Schema, prefix: str = "") -> Problem:
    """Make the problem of a key that does not exist; `prefix` comes before keys where it is written."""
    if below := schema.keys_below(key):
        names = " or ".join(prefix + name for name in below[:4])
        return Problem(prefix + key, where, f"is a section, not a key; did you mean {names}?", keys=below)
    names_near = nearest(key, schema.flags if prefix else schema.types) or nearest(key, schema.sections)
    keys = tuple(key for name in names_near for key in schema.keys_below(name) or (name,))
    return Problem(prefix + key, where, "no such key" + (did_you_mean(names_near, prefix) or "; remove it"), keys=keys)
