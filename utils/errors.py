"""Errors in the input, as opposed to errors in the program."""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Self

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_PREEMPTED = 143


class UserError(Exception):
    """An error in the input: the message says what was found, what was expected and what to do next.

    Programs print it without a traceback and exit with status 2. Programming errors are asserts.

    Attributes:
        has_remedy: whether its message ends with lines to type, to which `with_advice` adds nothing.
    """

    has_remedy = False

    @classmethod
    def remedied(cls, message: str) -> Self:
        """Return an error whose message ends with lines to type."""
        error = cls(message)
        error.has_remedy = True
        return error


class SharedError(UserError):
    """A UserError that all processes of a run raise together; the main one reports it."""


def listed(entries: Sequence[str], limit: int = 10) -> str:
    """Format the first entries, one per line, and the number of the others, for the end of a message."""
    rest = f"\n  and {len(entries) - limit:,} more" if len(entries) > limit else ""
    return "".join(f"\n  {entry}" for entry in entries[:limit]) + rest


@contextmanager
def with_advice(advice: str) -> Iterator[None]:
    """Append advice to a UserError: the caller knows which flag led to it, a shared function does not."""
    try:
        yield
    except UserError as error:
        if not error.has_remedy:
            error.args = (f"{error}\n  {advice}",)
        raise


@contextmanager
def out_of_memory_reported(advice: str) -> Iterator[None]:
    """Turn a failed allocation, on a GPU or CPU, into a UserError with this advice."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error).partition("\n")[0]
        if not isinstance(error, MemoryError) and not re.search("out of memory|allocate memory|ALLOC_FAILED", text):
            raise
        raise UserError(f"out of memory: {'. '.join(text.split('. ')[:2])}\n  {advice}") from error


@contextmanager
def naming(where: object) -> Iterator[None]:
    """Turn a ValueError into a UserError that begins with the file or record that was read."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


@contextmanager
def exit_on_user_error(print_message: bool = True) -> Iterator[None]:
    """Turn a UserError into one message on stderr and exit status 2; Ctrl-C ends quietly.

    Args:
        print_message: False on all but one process of a node, so that a mistake is reported once.
    """
    try:
        yield
    except UserError as error:
        if print_message:
            from utils.progress import print_lines  # rich is imported only where it is needed

            print_lines(f"error: {error}", sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
