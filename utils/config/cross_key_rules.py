"""Rules across the keys of a configuration, keys without effect, and what may change on resume."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from utils.config.dotted_keys import Schema, flatten, nest
from utils.config.frozen_munch import FrozenMunch
from utils.config.problems import Problem, Setting


@dataclass(frozen=True, slots=True)
class Rule:
    """A condition that a configuration must not meet.

    Attributes:
        key: the key that the message names.
        is_broken: called with the tree of all keys with a valid value, as in `c.optim.epochs`.
        text: what was expected and what to do; {c.optim.epochs} is replaced by the value.
    """

    key: str
    is_broken: Callable[[Any], bool]
    text: str


@dataclass(frozen=True, slots=True)
class Disabled:
    """Keys without effect when a condition on the tree is met; `reason` is written as Rule's text."""

    keys: tuple[str, ...]
    when: Callable[[Any], bool]
    reason: str


def broken_rules(rules: Sequence[Rule], settings: dict[str, Setting], malformed: set[str]) -> Iterator[Problem]:
    """Check the rules, except those that read a `malformed` key, which has no valid value."""
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
    """Yield a warning for each setting that has no effect and differs from its default."""
    tree = FrozenMunch(nest({key: setting.value for key, setting in settings.items()}))
    for entry in table:
        for key in entry.keys:
            if settings[key].value != defaults[key] and entry.when(tree):
                found = f"{key} = {settings[key].value!r} ({settings[key].where})"
                yield f"{found} has no effect: {entry.reason.format(c=tree)}"


@dataclass(frozen=True, slots=True)
class ResumeRules:
    """What may change when a run is continued.

    Attributes:
        schema: all keys.
        free: keys that may change: they affect speed and reports, not weights.
        warned: keys that may change with a warning: the last bits of the weights may differ.
        growing: keys of numbers that may become larger, such as the length of the run.
        moved: key of a path -> name of the hash of its content, among the values that identify a run. The path may
            change if the hash does not.
        read_once: names of those hashes whose content is read only by a new run, and so compared only if its path
            has changed.
        before: key -> the value with which a run behaves as it did before the key existed. The config of a run of an
            earlier version lacks the key; it counts as this value, so that the run can be continued.
        unhashed: those keys of `before` that settings_sha256, in checkpoints of earlier versions, never contained.
        renewed: key -> (default before, default now). A run with the former may be continued with the latter; it keeps
            the former, and the checkpoint says how it behaves.
        seed: the key of the seed; -1 means the seed of the run in the folder, or a new one.
    """

    schema: Schema
    free: frozenset[str]
    warned: frozenset[str]
    growing: frozenset[str]
    moved: Mapping[str, str]
    read_once: frozenset[str]
    before: Mapping[str, Any]
    unhashed: frozenset[str]
    renewed: Mapping[str, tuple[Any, Any]]
    seed: str

    def fingerprint(self, config: FrozenMunch) -> str:
        """Return the sha256 of the settings that must not change, without seed, length and paths: it identifies a run.

        A key at its value of `before` does not count, so that a key can be added. A default that is new counts as the
        former one.
        """
        values = flatten(config.toDict())
        values |= {key: old for key, (old, new) in self.renewed.items() if values[key] == new}
        left_out = self.growing | self.moved.keys()
        return self._hash({key: value for key, value in values.items() if key not in left_out}, self.before.keys())

    def earlier_fingerprints(self, config: FrozenMunch, before: Mapping[str, Any]) -> dict[str, str]:
        """Return the hashes that checkpoints of earlier versions contain instead, by their names there.

        Args:
            config: of this command.
            before: the config of the run; these hashes include its paths, its length and defaults that are new.
        """
        kept = {key: before[key] for key in (*self.growing, *self.moved, *self.renewed)}
        values = flatten(config.toDict()) | kept
        hashed = {"config_sha256": self.before.keys(), "settings_sha256": self.unhashed}
        return {name: self._hash(values, skipped) for name, skipped in hashed.items()}

    def _hash(self, values: Mapping[str, Any], skipped: Collection[str]) -> str:
        """Hash settings; keys in `skipped` count unless they have their value of `before`."""
        excluded = self.free | self.warned | {self.seed}
        values = {key: value for key, value in values.items() if key not in excluded}
        fixed = {k: value for k, value in values.items() if k not in skipped or self.before[k] != value}
        return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()
