"""Rules across the keys of a configuration, keys that another key makes useless, what may change on resume."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from utils.config.frozen_munch import FrozenMunch
from utils.config.problems import Problem, Setting
from utils.config.schema import Schema, flatten, nest


@dataclass(frozen=True, slots=True)
class Rule:
    """What must not hold of a configuration.

    Attributes:
        key: the key that the message names.
        is_broken: called with the tree of all keys that hold a valid value, as in `c.optim.epochs`.
        text: what was expected and what to do; {c.optim.epochs} is replaced by the value.
    """

    key: str
    is_broken: Callable[[Any], bool]
    text: str


@dataclass(frozen=True, slots=True)
class Disabled:
    """Keys that change nothing when a condition on the tree holds; `reason` is written as in Rule."""

    keys: tuple[str, ...]
    when: Callable[[Any], bool]
    reason: str


def broken_rules(rules: Sequence[Rule], settings: dict[str, Setting], malformed: set[str]) -> Iterator[Problem]:
    """Check the rules, but not those that read one of the `malformed` keys, which hold no valid value."""
    valid = {key: setting.value for key, setting in settings.items() if key not in malformed}
    tree = FrozenMunch(nest(valid))
    for rule in rules:
        try:
            if rule.key in valid and rule.is_broken(tree):
                where = settings[rule.key].where
                yield Problem(f"{rule.key} = {valid[rule.key]!r}", where, rule.text.format(c=tree), keys=(rule.key,))
        except (AttributeError, KeyError):  # the rule reads a malformed key
            continue


def without_effect(table: Sequence[Disabled], settings: dict[str, Setting], defaults: dict[str, Any]) -> Iterator[str]:
    """Name the settings that have no effect; only those that differ from their default."""
    tree = FrozenMunch(nest({key: setting.value for key, setting in settings.items()}))
    for entry in table:
        for key in entry.keys:
            if settings[key].value != defaults[key] and entry.when(tree):
                found = f"{key} = {settings[key].value!r} ({settings[key].where})"
                yield f"{found} has no effect: {entry.reason.format(c=tree)}"


@dataclass(frozen=True, slots=True)
class ResumeRules:
    """What a run may differ in when it continues.

    Attributes:
        schema: the keys that there are.
        free: keys that may change: they concern speed and reports, not weights.
        warned: keys that may change with a warning: the last bits of the weights may differ.
        before: key -> the value with which a run behaves as it did before the key existed. A run of an earlier version,
            whose config lacks the key, counts as having this value, so it continues.
        seed: the key of the seed; -1 means the seed of the run in the folder, or a new one.
    """

    schema: Schema
    free: frozenset[str]
    warned: frozenset[str]
    before: Mapping[str, Any]
    seed: str

    def fingerprint(self, config: FrozenMunch) -> str:
        """Return the sha256 of every setting that must not change, the seed apart: it identifies a checkpoint's run."""
        apart = self.free | self.warned | {self.seed}
        fixed = {
            key: value
            for key, value in flatten(config.toDict()).items()
            if key not in apart and not (key in self.before and self.before[key] == value)
        }
        return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()
