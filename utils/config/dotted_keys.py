"""The keys of a configuration and what each accepts; conversion between nested trees and dotted keys."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from utils.config.value_types import ValueType


@dataclass(frozen=True)
class Schema:
    """The keys of a configuration.

    Attributes:
        types: dotted key -> what it accepts, in the order of the file of defaults.
        file_flag: the flag that names a config file, with underscores.
    """

    types: Mapping[str, ValueType]
    file_flag: str

    @cached_property
    def flags(self) -> tuple[str, ...]:
        """Every flag of the program's command line."""
        return (self.file_flag, *self.types)

    @cached_property
    def sections(self) -> set[str]:
        """Every dotted section."""
        return {key.rsplit(".", depth)[0] for key in self.types for depth in range(1, key.count(".") + 1)}

    def keys_below(self, name: str) -> tuple[str, ...]:
        """Return the keys of a section; for a key, only itself; for any other name, none."""
        return tuple(key for key in self.types if key == name or key.startswith(name + "."))


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {"a.b.c": 1} for {"a": {"b": {"c": 1}}}."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Invert `flatten`."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, name = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    return tree
