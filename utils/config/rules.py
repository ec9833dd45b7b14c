"""Rules across the keys of a configuration, keys that another key makes useless, what may change on resume."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from utils.config.frozen_munch import FrozenMunch
from utils.config.problems import Problem, Setting
from utils.config.schema import Schema, flatten


@dataclass(frozen=True, slots=True)
class Rule:
    """`broken` gets the values of `keys` in their order; the first key is the one that the message names.

    In `text`, {0} {1} ... are those values.
    """

    keys: tuple[str, ...]
    broken: Callable[..., bool]
    text: str


@dataclass(frozen=True, slots=True)
class Disabled:
    """`when`, called with the values of `by`, says that `keys` change nothing; {0} {1} ... in `reason` are they."""

    keys: tuple[str, ...]
    by: tuple[str, ...]
    when: Callable[..., bool]
    reason: str


def broken_rules(rules: Sequence[Rule], settings: dict[str, Setting], spoiled: set[str]) -> Iterator[Problem]:
    """Check the rules whose keys all hold a valid value; `spoiled` keys do not."""
    for rule in rules:
        if spoiled.isdisjoint(rule.keys):
            values = [settings[key].value for key in rule.keys]
            if rule.broken(*values):
                subject = f"{rule.keys[0]} = {values[0]!r}"
                yield Problem(subject, settings[rule.keys[0]].where, rule.text.format(*values), keys=rule.keys)


def without_effect(table: Sequence[Disabled], settings: dict[str, Setting], defaults: dict[str, Any]) -> Iterator[str]:
    """Name the settings that have no effect; only those that differ from their default."""
    for entry in table:
        by = [settings[key].value for key in entry.by]
        for key in entry.keys:
            value = settings[key].value
            if value != defaults[key] and entry.when(*by):
                yield f"{key} = {value!r} ({settings[key].where}) has no effect: {entry.reason.format(*by)}"


@dataclass(frozen=True, slots=True)
class ResumeRules:
    """What a run may differ in when it continues.

    Attributes:
        schema: the keys that there are.
        free: keys that may change: speed and reports, not weights.
        warned: keys that may change with a warning: the last bits of the weights may differ.
        before: key -> the value with which a run behaves as it did before the key existed. A run of an earlier version
            that lacks the key counts as having this value, so it continues.
        seed: the key of the seed; -1 means the seed of the run in the folder, or a new one.
    """

    schema: Schema
    free: frozenset[str]
    warned: frozenset[str]
    before: Mapping[str, Any]
    seed: str

    def fingerprint(self, config: FrozenMunch) -> str:
        """sha256 of every setting that must stay as it is, the seed apart: it tells which run a checkpoint is of."""
        apart = self.free | self.warned | {self.seed}
        fixed = {
            key: value
            for key, value in flatten(config.toDict()).items()
            if key not in apart and not (key in self.before and self.before[key] == value)
        }
        return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()
