"""Write files and folders atomically, and lock a folder for one process at a time."""

import fcntl
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from utils.errors import UserError

TEMPORARY = ".tmp"
_NAME_KEPT = 40  # characters of a name that its temporary name keeps, which could otherwise become too long
_LOCK_WAIT_S = 5.0  # the workers of a program that was just killed keep its lock for a moment


def make_writable(folder: Path, name: str, advice: str) -> None:
    """Create a folder and try to write into it, before any work is done.

    Args:
        folder: created, with its parents, if it does not exist.
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
    """Yield a temporary path beside a path, and rename it at the end: readers never see a partial file.

    Args:
        path: the file to write, or a folder that does not exist or is empty.
        advice: what to do if it cannot be written.

    Raises:
        UserError: the file cannot be written; nothing of it is left behind.
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
    """Write a file atomically and sync it to disk. Raises UserError if it cannot be written."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        sync(temporary)


def sync(path: Path) -> None:
    """Sync a file or a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside a path, and rename it at the end: the folder is complete or absent.

    Args:
        path: may exist if it is an empty folder.

    Raises:
        UserError: the path exists already, or cannot be written.
    """
    path = path.resolve()  # "." has no name
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(
            f"{path} already exists; expected no such folder, or an empty one. Choose another, or remove this one."
        )
    with replacing(path) as temporary:
        temporary.mkdir(parents=True)
        yield temporary


def is_file(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is read as a file: a regular file, or a broken link, which then fails when it is read.

    Pipes and devices are not files: reading them might never end.
    """
    try:
        return entry.is_file() or (entry.is_symlink() and not Path(entry.path).exists())
    except OSError:  # a link to itself
        return entry.is_symlink()


def remove_temporaries(folder: Path) -> None:
    """Remove temporary files of killed processes from a folder that no other process is writing to."""
    for path in folder.glob(f".*{TEMPORARY}"):
        if re.fullmatch(rf"\..+\.\d+{re.escape(TEMPORARY)}", path.name):  # but no other hidden file
            path.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, name: str, busy: str, advice: str) -> Iterator[None]:
    """Lock a folder: two processes would overwrite each other's files.

    Args:
        folder: must exist.
        name: of the folder in the message.
        busy: what the other process does there, such as "training".
        advice: what to do if the lock is taken.

    Raises:
        UserError: another process has the lock, or the folder cannot be read.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{name} {folder} cannot be read: {error.strerror}.\n  {advice}") from None
    try:
        deadline = time.monotonic() + _LOCK_WAIT_S
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
        UserError: the file does not exist or cannot be read, or repeats a name in an object.
    """
    try:
        if path.exists() and not path.is_file():  # reading a pipe might never end
            raise OSError("it is not a regular file")
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_repeats)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); {expected}.") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object, rejecting repeated names: json would keep only the last."""
    content: dict[str, Any] = {}
    for name, value in pairs:
        if name in content:
            raise ValueError(f"the name {name!r} appears twice")
        content[name] = value
    return content
