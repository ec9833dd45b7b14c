"""Images in tar files, read without unpacking: an index gives the position of each, and a read is one `os.pread`.

The index is made once, by walking from header to header, and kept beside the tar files, or in the cache folder where
that cannot be written. It is made again when the size or time of a tar file has changed.
"""

import errno
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from utils.errors import UserError

BLOCK = 512
COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
_FILE, _LINKS, _PAX, _LONG_NAME, _IGNORED, _SPARSE = b"0\0" + b"7", b"12", b"xX", b"L", b"gK", b"S"
LINK = -1  # as a size: a link to another member
_MOST_HEADER = 1 << 20  # bytes of an extended header; a name is at most 4,096
# After the two blocks of the end mark, tar fills up a record with zeros: 10,240 bytes, with -b another power of two.
_RECORDS = (10_240, *(1 << n for n in range(14, 21)))
OPEN_FILES = 128  # tar files open at a time in each process


@dataclass(frozen=True, slots=True)
class TarMember:
    """A file in a tar file: its name for messages, and where its bytes lie."""

    tar: Path
    name: str
    offset: int
    size: int

    def read_bytes(self) -> bytes:
        """Return the whole file. OSError if it cannot be read."""
        data = os.pread(_opened(self.tar).descriptor, self.size, self.offset)
        if len(data) != self.size:
            raise OSError(errno.EIO, "the tar file has become shorter")
        return data

    def read_ahead(self) -> None:
        """Ask the kernel to read the file, and do not wait. OSError if it cannot be opened."""
        os.posix_fadvise(_opened(self.tar).descriptor, self.offset, self.size, os.POSIX_FADV_WILLNEED)

    def __str__(self) -> str:
        """Return both names."""
        return f"{self.tar}:{self.name}"


class _Opened:
    """A tar file that stays open until it is forgotten."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        os.close(self.descriptor)


# Workers share the descriptors that they inherit, which is harmless: a positioned read has no position to share.
_opened = lru_cache(OPEN_FILES)(_Opened)


@dataclass(frozen=True, slots=True, eq=False)
class TarFiles:
    """N images in tar files.

    Fields:
        tars: the tar files.
        tar: int32 [N]; index into tars.
        offset, size: int64 [N]; of each image, bytes.
    """

    tars: list[Path]
    tar: np.ndarray
    offset: np.ndarray
    size: np.ndarray

    def path(self, index: int, name: str) -> TarMember:
        """Return where image `index`, which is called `name`, lies."""
        return TarMember(self.tars[self.tar[index]], name, int(self.offset[index]), int(self.size[index]))

    def take(self, rows: np.ndarray) -> "TarFiles":
        """Return those of some images."""
        return TarFiles(self.tars, self.tar[rows], self.offset[rows], self.size[rows])


Member = tuple[str, int, int]  # name, offset, size


def walk_tar(path: Path) -> Iterator[Member]:
    """Yield name, offset and size of every file in a tar file, those in tar files inside it as STEM/NAME.

    Raises:
        UserError: it cannot be read, is compressed, truncated or not a tar file, or has sparse files.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); expected a tar file.") from error
    try:
        _check_form(path, os.pread(descriptor, BLOCK, 0))
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # the images in between need not be read
        yield from _members(path, descriptor, 0, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


def _check_form(path: Path, start: bytes) -> None:
    program = next((program for magic, program in COMPRESSED.items() if start.startswith(magic)), None)
    if program:
        raise UserError(
            f"{path} is compressed; expected a plain tar file, in which an image can be read by its position. "
            f"Decompress it once: {program} < {shlex.quote(str(path))} > {shlex.quote(_plain(str(path)))}"
        )


def _plain(path: str) -> str:
    """Return a name for the decompressed file."""
    stem = re.sub(r"\.(gz|bz2|xz|zst|tgz|tbz2?|txz)$", "", path.removesuffix(".tar"))
    return f"{stem.removesuffix('.tar')}{'-plain' * (path == f'{stem}.tar')}.tar"


def _members(path: Path, descriptor: int, start: int, end: int) -> Iterator[Member]:
    """Yield the files between two offsets of a tar file; those of an inner tar file have its stem in front."""
    position, long_name, long_size = start, "", None
    while True:
        header = os.pread(descriptor, BLOCK, position)
        if position + BLOCK > end:
            raise _truncated(path, end)
        if header[0] == 0 and not any(header):
            position = start = _after_zeros(path, descriptor, start, position, end)
            if position == end:
                return
            continue
        size = _number(path, header, position) if long_size is None else long_size
        kind, data = header[156:157], position + BLOCK
        position = data + (size + BLOCK - 1) // BLOCK * BLOCK
        if position > end:
            raise _truncated(path, end)
        if kind == _LONG_NAME:
            long_name = os.fsdecode(os.pread(descriptor, min(size, _MOST_HEADER), data).rstrip(b"\0"))
        elif kind in _PAX:
            long_name, long_size = _pax(path, os.pread(descriptor, min(size, _MOST_HEADER), data), data)
        elif kind == _SPARSE:
            raise _sparse(path, _name(header))
        elif kind not in _IGNORED:
            name = (long_name or _name(header)).removeprefix("./").lstrip("/")
            long_name, long_size = "", None
            if kind in _FILE and name.endswith(".tar"):
                stem = name.rpartition("/")[2].removesuffix(".tar")
                yield from ((f"{stem}/{inner}", o, n) for inner, o, n in _members(path, descriptor, data, data + size))
            elif kind in _FILE and not name.endswith("/"):
                yield name, data, size
            elif kind in _LINKS:
                yield name, data, LINK


def _after_zeros(path: Path, descriptor: int, start: int, position: int, end: int) -> int:
    """Return where the next tar file begins that was appended with `cat`; `end` if only padding follows.

    Raises:
        UserError: there are more zeros than a tar file ends with, as after an interrupted download, or something else
            follows them.
    """
    rest = os.pread(descriptor, min(end - position, _RECORDS[-1] + 3 * BLOCK), position)
    zeros = len(rest) - len(rest.lstrip(b"\0"))
    following = position + zeros // BLOCK * BLOCK
    if zeros > 2 * BLOCK + max(size for size in _RECORDS if size == _RECORDS[0] or (following - start) % size == 0):
        raise _damaged(path, position, "more zeros than a tar file ends with")
    if zeros == len(rest):
        return end
    if not is_header(rest[following - position :][:BLOCK]):
        raise _damaged(path, following, "bytes after the end mark that are no header")
    return following


def is_header(block: bytes, size: int | None = None) -> bool:
    """Whether a block is the header of a file, of that size if one is given."""
    try:
        right = len(block) == BLOCK and _checksum(block) == int(block[148:156].strip(b" \0"), 8)
        return right and size in (None, _number(Path(), block, 0))
    except (ValueError, UserError):
        return False


def link_target(tar: Path, offset: int) -> str:
    """Return the name of the member that a hard link stands for; '' for a symbolic link.

    Args:
        tar: the tar file.
        offset: of the link, as `walk_tar` gives it.
    """
    header = os.pread(_opened(tar).descriptor, BLOCK, offset - BLOCK)
    name = os.fsdecode(header[157:257].partition(b"\0")[0])
    return name.removeprefix("./").lstrip("/") if header[156:157] == b"1" else ""


def _name(header: bytes) -> str:
    """Return the name in a header, with the prefix that the ustar form has for long ones."""
    name = header[:100].partition(b"\0")[0]
    if header[257:263] == b"ustar\0" and header[345]:
        name = header[345:500].partition(b"\0")[0] + b"/" + name
    return os.fsdecode(name)


def _number(path: Path, header: bytes, position: int) -> int:
    """Return the size in a header. UserError if it is not one."""
    field = header[124:136]
    try:
        if header[257:262] != b"ustar" and _checksum(header) != int(header[148:156].strip(b" \0"), 8):
            raise ValueError
        return int.from_bytes(field[1:]) if field[0] & 0x80 else int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        raise _damaged(path, position) from None


def _checksum(header: bytes) -> int:
    """Return the sum of a header's bytes, its own field counted as spaces."""
    return sum(header) - sum(header[148:156]) + 8 * ord(" ")


def _pax(path: Path, data: bytes, position: int) -> tuple[str, int | None]:
    """Return the name ('' if it is not given) and the size of the next file, from an extended header."""
    name, size = "", None
    while data[:1].isdigit():
        try:
            length = int(data.partition(b" ")[0])
            key, equals, value = data[:length].partition(b" ")[2].removesuffix(b"\n").partition(b"=")
            if not equals:
                raise ValueError
            if key == b"path":
                name = os.fsdecode(value)
            elif key == b"size":
                size = int(value)
        except ValueError:
            raise _damaged(path, position) from None
        if key.startswith(b"GNU.sparse"):
            raise _sparse(path, name)
        data = data[length:]
    return name, size


def _damaged(path: Path, position: int, found: str = "no header of a tar file") -> UserError:
    return UserError(
        f"{path}: found {found} at byte {position:,}; expected a whole tar file. Copy or download it again."
    )


def _sparse(path: Path, name: str) -> UserError:
    return UserError(
        f"{path}: found {name or 'a file'} without its zeros (a sparse file); expected whole files, which can be read "
        "by their position. Make the tar file again without --sparse."
    )


def _truncated(path: Path, end: int) -> UserError:
    return UserError(
        f"{path} is truncated: it ends at byte {end:,}, in the middle of a file or without the end mark of a tar file. "
        "Copy or download it again."
    )
