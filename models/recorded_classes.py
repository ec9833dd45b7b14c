"""The class names that a checkpoint of any trainer records, in the order of its logits."""

import re
import reprlib
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from models.recorded import SETTINGS

# The entries that may hold class names, in a checkpoint, its settings or other dicts in it, tried in this order.
TO_IDS = ("class_to_idx", "label2id", "class_to_id")  # name -> id; else id -> name, unless the values are numbers
CLASS_MAP = "class_map"  # of timm's train.py: the path of a text file with a name per line
CLASS_KEYS = ["class_names", "classes", CLASS_MAP, "label_names", "id2label", "idx_to_class", "names", "categories"]
CLASS_KEYS += ["CLASSES", "class_list", "labels"]
MAY_NAME = re.compile(r"class|label|categor", re.IGNORECASE)  # another key with a list of texts, which is said


@dataclass(frozen=True, slots=True)
class RecordedClasses:
    """Class names in a checkpoint.

    Fields:
        names: in the order of the logits; None: it records none.
        source: where they are from, as text.
        note: what else it records of classes, or cannot be read; else "".
        others: key -> texts, of other lists that could be names.
    """

    names: list[str] | None
    source: str = ""
    note: str = ""
    others: Mapping[str, list[str]] = field(default_factory=dict)


def recorded_classes(entries: Mapping[str, Any], path: Path) -> RecordedClasses:
    """Find the class names in a checkpoint: those of the first entry that has any.

    Args:
        entries: of the checkpoint; {}: bare weights.
        path: of its file.
    """
    found: list[tuple[str, list[str], str]] = []
    unread = []
    for key, value, settings in _candidates(entries):
        names, source = names_in_order(value, key in TO_IDS), f"named in {path.name}"
        source += "" if key == CLASS_KEYS[0] else f" under {key!r}"
        if key == CLASS_MAP and isinstance(value, str):
            names, source = _names_in_file(value, path, settings)
        if names:
            found.append((key, names, source))
        else:
            unread.append(source if key == CLASS_MAP and isinstance(value, str) else f"{key!r}: {_why_not(value)}")
    texts = _other_lists(entries)
    if not found:
        others = [item for place in _dicts(entries) for item in place.items()]
        unread += [
            f"{key!r}, which may name the classes: 'class_names' would"
            for key, value in others
            if MAY_NAME.search(str(key)) and str(key) not in (*CLASS_KEYS, *TO_IDS) and names_in_order(value)
        ]
        return RecordedClasses(None, "", ", ".join(f"not using {text}" for text in dict.fromkeys(unread)), texts)
    first, names, source = found[0]
    differing = dict.fromkeys(key for key, other, _ in found if other != names)
    note = ", ".join(f"{first!r} counts, not {key!r}, which differs" for key in differing)
    return RecordedClasses(names, source, note, texts)


def _other_lists(entries: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return lists of texts under keys that say nothing of classes, beside the weights or in the settings."""
    places = [place for value in (entries, *map(entries.get, SETTINGS)) for place in _dicts(value, 1)]
    items = [(str(key), value) for place in places for key, value in place.items()]
    known = (*CLASS_KEYS, *TO_IDS)
    return {key: names for key, value in items if key not in known and (names := names_in_order(value))}


def _candidates(entries: Mapping[str, Any]) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Yield key, value and the settings it is among, of the entries that may hold class names."""
    first = [place for value in (entries, *map(entries.get, SETTINGS)) for place in _dicts(value, 1)]
    for i, place in enumerate((*first, *_dicts(entries))):
        for key in (*CLASS_KEYS, *TO_IDS):
            value = place.get(key)
            is_given = value is not None and not (isinstance(value, str) and value == "")
            if is_given and (i < len(first) or names_in_order(value, key in TO_IDS)):
                yield key, value, place


def _dicts(value: Any, depth: int = 4) -> Iterator[Mapping[Any, Any]]:
    """Yield a dict or namespace and those inside, to this depth."""
    entries = vars(value) if isinstance(value, Namespace) else value
    if isinstance(entries, Mapping) and depth:
        yield entries
        for one in entries.values():
            yield from _dicts(one, depth - 1)


def names_in_order(value: Any, are_ids: bool = False) -> list[str] | None:
    """Return class names from a list, or from a dict from or to their ids 0, 1, 2, ...; None: they are no such thing.

    Args:
        value: list, tuple, array or dict; ids may be text, as in JSON.
        are_ids: whether the values of a dict are the ids, also if they are text.
    """
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, dict):
        to_ids = are_ids or all(isinstance(i, Integral) for i in value.values())
        by_id = {_number(i): name for i, name in (map(reversed, value.items()) if to_ids else value.items())}
        value = [by_id.get(i) for i in range(len(value))]
    is_names = isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(name, str) for name in value)
    return list(value) if is_names else None


def _why_not(value: Any) -> str:
    """Say why a value is no list of class names."""
    ids = sorted(i for i in value.values() if isinstance(i, Integral)) if isinstance(value, dict) else []
    if len(ids) < 2 or len(ids) < len(value):
        return "no list of class names"
    return f"found the ids {reprlib.repr(ids)}, expected 0 to {len(ids) - 1}"


def _number(class_id: Any) -> int | None:
    is_text = isinstance(class_id, str) and class_id.isdecimal() and len(class_id) < 10
    return int(class_id) if is_text or isinstance(class_id, Integral) else None


def _names_in_file(name: str, path: Path, settings: Mapping[str, Any]) -> tuple[list[str] | None, str]:
    """Read a class map of timm: as it is named, in the data's folder, or beside the checkpoint; also say which."""
    data = settings.get("data_dir") or settings.get("data") or "."
    for file in (Path(name), Path(str(data)) / name, path.with_name(Path(name).name)):
        try:
            if file.suffix.lower() == ".txt" and file.is_file():
                names = [line.strip() for line in file.read_text(encoding="utf-8").rstrip().split("\n")]
                return names, f"named in {file}, the {CLASS_MAP} of {path.name}"
        except (OSError, ValueError):
            continue
    return None, f"{CLASS_MAP!r}: found no text file {name}; copy it to the folder of {path.name}"


def fitting_classes(classes: RecordedClasses, count: int) -> tuple[RecordedClasses, str]:
    """Return class names if there is one for each of a network's classes, else none; and a note on those not used."""
    names = classes.names or []
    notes = [
        f"not using {key!r}, which lists {count:,} texts, as many as there are classes: 'class_names' would name them"
        for key, texts in classes.others.items()
        if count > 1 and len(texts) == count and texts != names and f"{key!r}" not in classes.note
    ]
    if names and not len(names) == len(set(names)) == count:
        repeated = next((name for name in names if names.count(name) > 1), None)
        found = f"{len(names):,} names" + (f", {repeated!r} twice" if repeated else "")
        reason = f"{found}, for {count:,} classes" if count else "there is no classification head"
        notes.insert(0, f"not using the classes {classes.source}: {reason}")
        classes = RecordedClasses(None)
    return classes, ", ".join(notes)
