"""Names that look alike but are not the same."""

import unicodedata
from collections.abc import Iterable

_SAME_SHAPE = str.maketrans({"0": "o", "1": "l", "I": "l", "|": "l"})


def look_alike(name: str, others: Iterable[str]) -> str:
    """Return what tells a name from one of the others that looks like it, quoted; '' if none does."""
    shape = _shape(name)
    for other in others:
        if other != name and _shape(other) == shape:
            return f"{name!r} looks like {other!r}, but {_difference(name, other)}"
    return ""


def _shape(name: str) -> str:
    plain = "".join(unicodedata.normalize("NFKC", name).split())
    return plain.translate(_SAME_SHAPE).casefold()


def _difference(one: str, two: str) -> str:
    """Say in which way two names that look alike differ."""
    if unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", two):
        return f"their accents are stored differently ({one!a} and {two!a})"
    if one.split() == two.split() or "".join(one.split()) == "".join(two.split()):
        return "they differ in spaces"
    if one.casefold() == two.casefold():
        return "they differ in upper and lower case"
    at = next(i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b)
    return f"character {at + 1} is {unicodedata.name(one[at], 'another')} and {unicodedata.name(two[at], 'another')}"
