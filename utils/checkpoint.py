"""Checkpoints: written atomically, and loaded without executing anything in them."""

import argparse
import io
import os
import pathlib
import re
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import safetensors.torch
import torch

from utils.errors import UserError
from utils.files import replacing, sync

LAST, PREVIOUS, BEST = "checkpoint-last.pth", "checkpoint-previous.pth", "checkpoint-best.pth"
DAMAGED = "checkpoint-damaged.pth"

_MULTIARRAY: Any = np._core.multiarray  # type: ignore[attr-defined]
_DTYPES = ("bool", "uint8", "uint32", "uint64", "int8", "int32", "int64", "float16", "float32", "float64", "U1", "S1")


def _dict_instead(*_: object) -> dict[Any, Any]:
    """Rebuild a defaultdict as a dict, because torch sets no items of other types."""
    return {}


# Checkpoints of other trainers hold more than tensors and numbers. These types are plain data: rebuilding one from a
# file executes nothing of the file. The state of a random generator is such data, a Generator object is not.
_PLAIN_TYPES: list[Any] = [
    *((_MULTIARRAY.scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_MULTIARRAY._reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    np.ndarray,
    np.dtype,
    *(type(np.dtype(name)) for name in _DTYPES),
    argparse.Namespace,
    *((pathlib.PurePosixPath, f"{module}.PosixPath") for module in ("pathlib", "pathlib._local")),
    *((pathlib.PureWindowsPath, f"{module}.WindowsPath") for module in ("pathlib", "pathlib._local")),
    (_dict_instead, "collections.defaultdict"),
    *(list, dict, int, float, str),  # the factories of defaultdict
]


_CONVERSION = """\
  If you trust it, these lines run the code in it and write its weights and plain data, which can be read:
    import torch
    from utils.checkpoint import plain_entries
    content = torch.load({path!r}, map_location="cpu", weights_only=False)
    torch.save(plain_entries(content), {new!r})"""


class DamagedCheckpoint(UserError):
    """The file is not a checkpoint, or not an intact one."""


def save_checkpoint(state: dict[str, Any], path: Path, keep_old_as: Path | None = None) -> None:
    """Write a checkpoint under a temporary name, sync it to disk, and rename it into place.

    Args:
        state: plain tensors, numbers, strings, lists and dicts, which weights_only=True loads again.
        path: of the checkpoint.
        keep_old_as: new name for the file that it replaces; None: that file is overwritten.

    Raises:
        UserError: the file cannot be written. The old one, if any, is untouched.
    """
    with _renamed_to(path, keep_old_as) as temporary:
        try:
            with temporary.open("wb") as file:
                torch.save(state, file)
        except RuntimeError as error:
            if "inline_container" in str(error):  # how torch reports a full disk
                raise OSError(str(error)) from error
            raise
        sync(temporary)


def link_checkpoint(source: Path, path: Path, keep_old_as: Path | None = None) -> None:
    """Give a checkpoint a second name without writing it again; replacing either file later does not change the other.

    It is a hard link, or a copy on file systems without links. Arguments and errors as in `save_checkpoint`.
    """
    with _renamed_to(path, keep_old_as) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
            sync(temporary)


@contextmanager
def _renamed_to(path: Path, keep_old_as: Path | None) -> Iterator[Path]:
    """Yield a temporary name that becomes `path` at the end; syncing the folder makes the rename durable."""
    with replacing(path) as temporary:
        yield temporary
        if keep_old_as and path.exists():
            path.replace(keep_old_as)
    sync(path.parent)


def load_checkpoint(path: Path) -> Any:
    """Read a checkpoint onto the CPU: a file of torch.save, zip or legacy format, or bare weights in .safetensors.

    Raises:
        DamagedCheckpoint: the file is not a tensor file (nothing in it was run), is truncated, or fails its checksums.
        UserError: there is no permission to read it, or not enough memory.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        if damaged := damaged_part(path):
            raise ValueError(f"the checksum of its part {damaged} is wrong")
        return _load_plain(path)
    except FileNotFoundError:
        raise DamagedCheckpoint(f"{path} does not exist.") from None
    except UnpicklingError as error:
        culprit = re.search(r"GLOBAL (\S+)", str(error))
        found = f"\n  It refers to {culprit[1]}." if culprit else ""
        raise DamagedCheckpoint.remedied(
            f"{path} is not a file of plain tensors, as a checkpoint must be; nothing in it was run.{found}\n"
            f"{_CONVERSION.format(path=str(path), new=str(path.with_name(f'{path.stem}-weights.pth')))}"
        ) from None
    except (PermissionError, MemoryError) as error:  # the file itself may be intact
        raise UserError(f"{path} cannot be read: {type(error).__name__}. Allow reading it, or free memory.") from None
    except Exception as error:  # damaged bytes make torch raise almost anything
        reason = f"{type(error).__name__}: {str(error).split(chr(10))[0]}"
        raise DamagedCheckpoint(f"{path} cannot be read as a checkpoint: {reason}") from None


def _load_plain(file: Path | io.BytesIO) -> Any:
    with torch.serialization.safe_globals(_PLAIN_TYPES):
        return torch.load(file, map_location="cpu", weights_only=True)


def plain_entries(content: Any) -> dict[str, Any]:
    """Return what `load_checkpoint` can read of a loaded file, and print the entries that it leaves out.

    Args:
        content: a whole network or a dict; networks and others with a state_dict become that.
    """
    entries = content if isinstance(content, dict) else {"state_dict": content}
    plain: dict[str, Any] = {}
    for key, value in entries.items():
        one = value.state_dict() if hasattr(value, "state_dict") else value
        file = io.BytesIO()
        try:
            torch.save({key: one}, file)
            file.seek(0)
            plain |= _load_plain(file)
        except Exception:  # objects may fail to be saved in any way
            print(f"left out {key!r}: {type(value).__name__}")
    return plain


def damaged_part(path: Path) -> str | None:
    """Return the part of a torch.save file with a wrong checksum; None if all match, or the file has none.

    torch itself loads flipped bits silently. For a damaged archive this can raise almost any exception.

    Raises:
        ValueError: the archive is compressed.
    """
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        _refuse_growth(archive, path.stat().st_size)
        return archive.testzip()


def refuse_inflated(content: bytes) -> None:
    """Raise ValueError for a compressed archive, which could fill the memory; torch.save never compresses."""
    if content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            _refuse_growth(archive, len(content))


def _refuse_growth(archive: zipfile.ZipFile, size: int) -> None:
    if (unpacked := sum(member.file_size for member in archive.infolist())) > size:
        raise ValueError(f"it has {size:,} bytes and would have {unpacked:,} when unpacked")


def is_plain(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is dense and in memory; files may also contain sparse, nested or quantized tensors."""
    return not tensor.is_nested and tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta


def load_latest(folder: Path) -> tuple[dict[str, Any] | None, Path | None, str]:
    """Read the newest intact checkpoint of a run folder.

    Returns:
        content and path, both None if there is no checkpoint yet; a message if the last one was damaged, else "".

    Raises:
        UserError: there are checkpoints, but all are damaged.
    """
    note = ""
    for path in (folder / LAST, folder / PREVIOUS):
        if path.exists():
            try:
                return _load_run(path), path, note and f"{note} Continuing from {path.name}."
            except DamagedCheckpoint as error:
                note = str(error)
    if note:
        raise UserError(f"{note}\n  No intact checkpoint is left in {folder}.")
    return None, None, ""


def _load_run(path: Path) -> dict[str, Any]:
    """Read a checkpoint to continue from. DamagedCheckpoint: as load_checkpoint, or entries are missing."""
    content = load_checkpoint(path)
    state: dict[str, Any] = content if isinstance(content, dict) else {}
    kinds = {"step": int, "state_dict": dict, "optimizer": dict, "meters": torch.Tensor}
    if missing := [key for key, kind in kinds.items() if not isinstance(state.get(key), kind)]:
        raise DamagedCheckpoint(f"{path} is not a checkpoint of a run: it lacks {', '.join(missing)}.")
    return state
