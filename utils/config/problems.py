"""Mistakes in a configuration or command line, reported all at once: where, what was expected, what to do."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

COMMAND_LINE = "command line"


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake of the user.

    Attributes:
        subject: what is wrong, as the user wrote it: a dotted key, `key = value`, or a word of the command line.
        where: a file with the line, or "command line".
        text: what was expected and what to do.
        keys: dotted keys without a usable value because of it; no further rule is checked on them.
    """

    subject: str
    where: str
    text: str
    keys: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.subject} ({self.where}): {self.text}"


@dataclass(frozen=True, slots=True)
class Setting:
    """The value of one key, where it is set (file and line) and its short source (base, file name, command line).

    `value` is None, a bool, int, float or str.
    """

    value: object
    where: str
    source: str


def normal_key(name: str) -> str:
    """Return a key with underscores instead of hyphens; the two are the same in keys."""
    return name.replace("-", "_")


def nearest(name: str, candidates: Iterable[str]) -> list[str]:
    """Find at most three candidates that the user may have meant, best first.

    If the last part of the name (after the last dot) exists, it is taken for a key in the wrong section or without one;
    otherwise for a misspelling, or for an abbreviation of the only key that begins with it.
    """
    lower = {key.lower(): key for key in candidates}
    if name.lower() in lower:
        return [lower[name.lower()]]
    last = name.lower().rpartition(".")[2]
    moved = [key for low, key in lower.items() if low.rpartition(".")[2] == last]
    if moved:
        return [lower[low] for low in difflib.get_close_matches(name.lower(), map(str.lower, moved), n=3, cutoff=0.0)]
    close = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.6)
    started = [low for low in lower if name and low.startswith(name.lower())]
    return [lower[low] for low in close or started[: len(started) == 1]]


def did_you_mean(names: Sequence[str], prefix: str = "") -> str:
    """Return `; did you mean a or b?`, or '' when there is no candidate."""
    return f"; did you mean {' or '.join(prefix + name for name in names)}?" if names else ""


def report(problems: Sequence[Problem], advice: str) -> str:
    """Format the message of one UserError: every problem, then where to read more."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return "\n".join([f"{count}; nothing was started.", *(f"  - {problem}" for problem in problems), advice])
