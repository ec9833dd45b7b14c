"""Folders that a program writes into: made, tried, and kept to one process at a time."""

import fcntl
import json
import os
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from utils.errors import UserError

TEMPORARY = ".tmp"
_NAME_KEPT = 40  # letters of a name in its temporary one, which must not grow longer than names may be
_LOCK_PATIENCE_S = 5.0  # the workers of a program that was just killed hold its lock for a moment


def make_writable(folder: Path, name: str, advice: str) -> None:
    """Make a folder and try to write into it, before anything costs time.

    Args:
        folder: it, and all above it, are made where they are not there.
        name: what it is for, for the message: "the run folder".
        advice: what to do where it cannot be written.

    Raises:
        UserError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{name} {folder} cannot be written: {error.strerror}.\n  {advice}") from None


def temporary_name(path: Path) -> Path:
    """What a file or folder is called until it is whole; `remove_temporaries` knows such names."""
    return path.with_name(f".{path.name[-_NAME_KEPT:]}.{os.getpid()}{TEMPORARY}")


@contextmanager
def replacing(path: Path, advice: str = "Make room, or allow writing.") -> Iterator[Path]:
    """A temporary name beside a path, renamed to it in the end: a reader never sees half a file.

    Args:
        path: to write.
        advice: what to do where it cannot be written.

    Raises:
        UserError: it cannot be written; nothing is left of it then.
    """
    temporary = temporary_name(path)
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path} cannot be written: {reason}. {advice}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all, and on the disk when this returns. UserError where it cannot be written."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside a path, renamed to it in the end: the folder is whole or absent.

    Args:
        path: may exist if it is an empty folder.

    Raises:
        UserError: there is something, or it cannot be written.
    """
    path = path.resolve()  # "." has no name
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{path} is taken; expected no such folder, or an empty one. Name another, or remove this one.")
    temporary = temporary_name(path)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}. Make room, or allow writing.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def is_file(entry: os.DirEntry[str]) -> bool:
    """Whether it is to be read as a file: a regular one, or a link to nothing, whose reading tells what is missing.

    Not pipes and devices, which would be waited for without end.
    """
    try:
        return entry.is_file() or (entry.is_symlink() and not Path(entry.path).exists())
    except OSError:  # a link to itself
        return entry.is_symlink()


def remove_temporaries(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder that no other process writes into now."""
    for path in folder.glob(f".*{TEMPORARY}"):
        if re.fullmatch(rf"\..+\.\d+{re.escape(TEMPORARY)}", path.name):  # other people's drafts are theirs
            path.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, name: str, busy: str, advice: str) -> Iterator[None]:
    """Keep a second process out of a folder: each would overwrite what the other writes.

    Args:
        folder: exists.
        name: what it is for.
        busy: what another process is doing in it, for the message: "training".
        advice: what to do then.

    Raises:
        UserError: another process has it, or it cannot be read.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{name} {folder} cannot be read: {error.strerror}.\n  {advice}") from None
    try:
        deadline = time.monotonic() + _LOCK_PATIENCE_S
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                raise UserError(f"another process is {busy} in {folder}.\n  Wait for it, stop it, or: {advice}")
            time.sleep(0.1)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all, and on the disk when this returns. UserError where it cannot be written."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path, expected: str) -> Any:
    """The content of a JSON file.

    Args:
        path: of the file.
        expected: what it should be and what to do, for the message.

    Raises:
        UserError: there is none, it cannot be read, or an object in it has a name twice, of which one would be lost.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for without end
            raise OSError("it is no regular file")
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_repeats)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); {expected}.") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of two equal names the first would be lost without a word."""
    content = dict(pairs)
    if len(content) < len(pairs):
        name = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        raise ValueError(f"the name {name!r} stands there twice")
    return content
