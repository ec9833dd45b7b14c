"""Errors in the input, as opposed to errors in the program."""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_PREEMPTED = 143


class UserError(Exception):
    """Bad input: the message says what was found, what was expected and what to do next.

    Programs print it without a traceback and exit with status 2. Programming errors are asserts.
    """


class SharedError(UserError):
    """A UserError that every process of a run raises alike; the main one reports it."""


def listed(lines: Sequence[str], most: int = 10) -> str:
    """List the first lines, one per line, and the number of others; for the end of a message."""
    rest = f"\n  and {len(lines) - most:,} more" if len(lines) > most else ""
    return "".join(f"\n  {line}" for line in lines[:most]) + rest


@contextmanager
def with_advice(advice: str) -> Iterator[None]:
    """Append what to do to a UserError: the caller knows which flag led to it, a shared function does not."""
    try:
        yield
    except UserError as error:
        error.args = (f"{error}\n  {advice}",)
        raise


@contextmanager
def out_of_memory_reported(advice: str) -> Iterator[None]:
    """Turn an allocation that fails, on a GPU or a CPU, into a UserError with this advice."""
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
        print_message: False on all processes of a node but one, so that a mistake is reported once.
    """
    try:
        yield
    except UserError as error:
        if print_message:
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
