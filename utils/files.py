"""Write files and folders whole or not at all, and keep a folder to one process at a time."""

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
_NAME_KEPT = 40  # characters of a name in its temporary name, which must not become too long for a file name
_LOCK_PATIENCE_S = 5.0  # the workers of a program that was just killed hold its lock for a moment


def make_writable(folder: Path, name: str, advice: str) -> None:
    """Make a folder and try to write into it, before any work is done.

    Args:
        folder: made with its parents where they do not exist.
        name: of the folder in the message, such as "the run folder".
        advice: what to do if it cannot be written.

    Raises:
        UserError: the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{name} {folder} cannot be written: {error.strerror}.\n  {advice}") from None


@contextmanager
def replacing(path: Path, advice: str = "Make room, or allow writing.") -> Iterator[Path]:
    """Yield a temporary name beside a path, and rename it to the path at the end: readers never see half a file.

    Args:
        path: the file to write, or the folder where there is none or an empty one.
        advice: what to do if it cannot be written.

    Raises:
        UserError: the file cannot be written; nothing of it is left then.
    """
    temporary = path.with_name(f".{path.name[-_NAME_KEPT:]}.{os.getpid()}{TEMPORARY}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path} cannot be written: {reason}. {advice}") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all, and sync it to the disk. Raises UserError if it cannot be written."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside a path, and rename it to the path at the end: the folder is whole or absent.

    Args:
        path: may exist if it is an empty folder.

    Raises:
        UserError: the path is taken, or cannot be written.
    """
    path = path.resolve()  # "." has no name
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{path} is taken; expected no such folder, or an empty one. Choose another, or remove this one.")
    with replacing(path) as temporary:
        temporary.mkdir(parents=True)
        yield temporary


def is_file(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is to be read as a file: a regular file, or a broken link, whose reading gives the error.

    Pipes and devices are none: reading them might never end.
    """
    try:
        return entry.is_file() or (entry.is_symlink() and not Path(entry.path).exists())
    except OSError:  # a link to itself
        return entry.is_symlink()


def remove_temporaries(folder: Path) -> None:
    """Remove temporary files of killed processes from a folder that no other process writes into now."""
    for path in folder.glob(f".*{TEMPORARY}"):
        if re.fullmatch(rf"\..+\.\d+{re.escape(TEMPORARY)}", path.name):  # and no other hidden file
            path.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, name: str, busy: str, advice: str) -> Iterator[None]:
    """Hold a folder's lock: two processes would overwrite each other's files.

    Args:
        folder: exists.
        name: of the folder in the message.
        busy: what the other process does there, such as "training".
        advice: what to do if the lock is taken.

    Raises:
        UserError: another process holds the lock, or the folder cannot be read.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{name} {folder} cannot be read: {error.strerror}.\n  {advice}") from None
    try:
        deadline = time.monotonic() + _LOCK_PATIENCE_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    message = f"another process is {busy} in {folder}.\n  Wait for it, stop it, or: {advice}"
                    raise UserError(message) from None
                time.sleep(0.1)
            except OSError:  # a file system without locks
                break
        yield
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    """Write JSON as `write_text` does."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path, expected: str) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        expected: what it should be and what to do, for the message.

    Raises:
        UserError: the file does not exist or cannot be read, or an object in it has a name twice.
    """
    try:
        if path.exists() and not path.is_file():  # reading a pipe might never end
            raise OSError("it is no regular file")
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_repeats)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); {expected}.") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object, in which one of two equal names would be lost."""
    content = dict(pairs)
    if len(content) < len(pairs):
        name = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        raise ValueError(f"the name {name!r} is there twice")
    return content
