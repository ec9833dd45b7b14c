"""Progress of a long job: a live bar on a terminal, otherwise a line every half minute."""

import re
import shlex
import shutil
import sys
import textwrap
import time
from collections.abc import Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

_LINE_EVERY_S = 30.0
_AT_SPACES: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
_FLAG = re.compile(r"(?<!\S)(--\S+) (?=[^\s-])")  # and the space before its value
_TYPED = "python ", "--"  # beginnings of lines to be typed


def duration(seconds: float) -> str:
    """Format seconds as 42 s, 3 min 05 s or 2 h 10 min."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def counted(n: int, noun: str) -> str:
    """Format a number and what it counts: 1 step, 1,000 steps."""
    return f"{n:,} {noun}{'s' * (n != 1)}"


class JobProgress:
    """Progress of a job of known length, used as a context manager.

    Args:
        title: name of the job.
        total: units of work in all.
        unit: of work, in the plural: images, steps.
        done: units finished by an earlier, interrupted run.
        lines: print a line every half minute if there is no terminal; False if the job prints its own.
        enabled: False on processes that print nothing.

    Attributes:
        live: whether there is a bar.
        note: text at the end of the bar, before the time left; None: rate and time left.
    """

    note: str | None = None

    def __init__(
        self, title: str, total: int, unit: str, done: int = 0, lines: bool = True, enabled: bool = True
    ) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = self._done_before = done
        self._lines = lines and enabled
        self._start = self._last_line = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), TextColumn("{task.fields[note]}"))
        self.live = enabled and sys.stdout.isatty()
        self._bar = Progress(*columns, console=Console(), transient=True, disable=not self.live)
        self._task = self._bar.add_task(title, total=total, completed=done, note="")

    def __enter__(self) -> "JobProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, n: int, note: str = "") -> None:
        """Count n more units; note is printed at the end of the bar or line."""
        self.done += n
        now = time.monotonic()
        if self.live:
            pace = self.pace() if self.note is None else f"{self.note}  {self.time_left()}"
            self._bar.update(self._task, completed=self.done, note="  ".join(filter(None, (note, pace))))
        elif self._lines and (now - self._last_line > _LINE_EVERY_S or self.done == self.total):
            self._last_line = now
            self.print_line(f"{self.title}  {self.done:,} of {self.total:,} {self.unit}  {note or self.pace()}")

    def rate(self) -> float:
        """Return units per second since this object was made."""
        return (self.done - self._done_before) / (time.monotonic() - self._start)

    def time_left(self) -> str:
        """Format the time left, estimated from the work done since this object was made, not by an earlier run."""
        rate = self.rate()
        return f"{duration((self.total - self.done) / rate)} left" if rate else ""

    def pace(self) -> str:
        """Format rate and time left."""
        rate = self.rate()
        decimals = 0 if rate >= 100 else 1 if rate >= 10 else 2
        return f"{rate:,.{decimals}f} {self.unit}/s  {self.time_left()}" if rate else ""

    def print_line(self, text: str) -> None:
        """Print a line that stays, above the bar if there is one."""
        if self.live:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, flush=True)


def print_lines(text: str, stream: TextIO | None = None) -> None:
    """Print lines; on a terminal, one that is too long continues on the next line, indented, at a space.

    A line to be typed, a command or flags, is left as it is: pasted in two lines, it would run as two. A flag in a
    sentence stays on one line with its value.

    Args:
        text: the lines.
        stream: None: stdout.
    """
    stream = stream or sys.stdout
    columns = shutil.get_terminal_size().columns if stream.isatty() else 0
    for line in text.splitlines():
        if columns and len(line) > columns and not line.lstrip().startswith(_TYPED):
            indent = " " * (len(line) - len(line.lstrip(" ")) + 2)
            line = _FLAG.sub("\\1\0", line)
            line = textwrap.fill(line, columns, subsequent_indent=indent, **_AT_SPACES).replace("\0", " ")
        print(line, file=stream, flush=True)


def command_lines(words: Sequence[str], columns: int = 80) -> str:
    """Format a command for a shell, indented; continued on the next line where it is too long, not within a flag."""
    parts: list[list[str]] = []
    for word in words:
        if word.startswith("--") or not parts or not parts[-1][0].startswith("--"):
            parts.append([])
        parts[-1].append(word)
    lines = ["  " + parts[0][0]]
    for part in map(shlex.join, parts[1:]):
        if len(lines[-1]) + len(part) + 3 <= columns:
            lines[-1] += f" {part}"
        else:
            lines[-1] += " \\"
            lines.append(f"      {part}")
    return "\n".join(lines)
