"""Checkpoints: whole or absent, and loaded without running anything that is in them."""

import io
import os
import re
import reprlib
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import safetensors.torch
import torch

from utils.errors import UserError
from utils.files import temporary_name

LAST, PREVIOUS, BEST = "checkpoint-last.pth", "checkpoint-previous.pth", "checkpoint-best.pth"
WRAPPERS = ("state_dict", "model")  # where checkpoints hold their weights; the second as in published DeiT files

# Checkpoints of 2021 hold their accuracy as a NumPy scalar. Rebuilding one from its bytes runs nothing.
_NUMPY_SCALARS: list[Any] = [
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),  # type: ignore[attr-defined]
    (np._core.multiarray.scalar, "numpy._core.multiarray.scalar"),  # type: ignore[attr-defined]
    np.dtype,
    *(type(np.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64", "bool")),
]


class DamagedCheckpoint(UserError):
    """The file is not a checkpoint, or no longer a whole one."""


def save_checkpoint(state: dict[str, Any], path: Path, keep_old_as: Path | None = None) -> None:
    """Write a checkpoint under a temporary name, force it to the disk, rename it into place.

    Args:
        state: plain tensors, numbers, strings, lists and dicts: what weights_only=True loads again.
        keep_old_as: where the file that it replaces goes; None = it is overwritten.

    Raises:
        UserError: the file cannot be written (the old one, if any, is untouched).
    """
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        if keep_old_as and path.exists():
            path.replace(keep_old_as)
        temporary.replace(path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # torch's own word for a full disk
            raise
        raise UserError(
            f"{path} could not be written: {error}\n  Make room, or set another --util.run_dir; the same command "
            f"continues from the checkpoint before."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """A rename is on the disk only when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load_checkpoint(path: Path) -> Any:
    """Read a checkpoint onto the CPU: ours, or of 2021, in torch's zip or legacy format; or bare weights .safetensors.

    Raises:
        DamagedCheckpoint: the file is no tensor file (nothing in it was run), truncated, or fails its checksums.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        if damaged := damaged_part(path):
            raise DamagedCheckpoint(f"{path} is damaged: the checksum of its part {damaged} is wrong.")
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DamagedCheckpoint(f"{path} does not exist.") from None
    except UnpicklingError as error:
        culprit = re.search(r"GLOBAL (\S+)", str(error))
        found = f"\n  It refers to {culprit[1]}." if culprit else ""
        raise DamagedCheckpoint(
            f"{path} is not a file of plain tensors, as a checkpoint must be; nothing in it was run.{found}"
        ) from None
    except DamagedCheckpoint:
        raise
    except (PermissionError, MemoryError) as error:  # says nothing about the file's content
        raise UserError(f"{path} cannot be read: {type(error).__name__}. Allow reading it, or free memory.") from None
    except Exception as error:  # damaged bytes make torch raise almost anything; the reason is kept
        reason = f"{type(error).__name__}: {str(error).split(chr(10))[0]}"
        raise DamagedCheckpoint(f"{path} cannot be read as a checkpoint: {reason}") from None


def damaged_part(path: Path) -> str | None:
    """What does not fit its checksum in a file of torch.save; None where all does, or for a file that has none.

    torch itself loads flipped bits without a word. Damaged archives make this raise almost anything.

    Raises:
        ValueError: it would grow when it is unpacked.
    """
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        _refuse_growth(archive, path.stat().st_size)
        return archive.testzip()


def refuse_inflated(content: bytes) -> None:
    """Refuse an archive that would fill the memory: torch.save never compresses. ValueError where it would grow."""
    if content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            _refuse_growth(archive, len(content))


def _refuse_growth(archive: zipfile.ZipFile, size: int) -> None:
    if (unpacked := sum(member.file_size for member in archive.infolist())) > size:
        raise ValueError(f"{size:,} bytes that would be {unpacked:,} when unpacked")


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether numbers lie in memory one after the other: files may also hold sparse, nested or quantized tensors."""
    return not tensor.is_nested and tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta


def load_latest(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """The newest whole checkpoint of a run folder.

    Returns:
        its content, or None where the run has none yet; and a line for the person where the last one was damaged.
    """
    note = ""
    for name in (LAST, PREVIOUS):
        if not (folder / name).exists():
            continue
        try:
            return _load_run(folder / name), note and f"{note} Continuing from {name}."
        except DamagedCheckpoint as error:
            note = str(error)
    if note:
        raise UserError(f"{note}\n  No whole checkpoint is left in {folder}: set another --util.run_dir to start anew.")
    return None, ""


def _load_run(path: Path) -> dict[str, Any]:
    """A checkpoint from which a run can be continued. DamagedCheckpoint: as above, or it lacks what that takes."""
    content = load_checkpoint(path)
    state: dict[str, Any] = content if isinstance(content, dict) else {}
    kinds = {"step": int, "state_dict": dict, "optimizer": dict, "meters": torch.Tensor}
    if lacking := [key for key, kind in kinds.items() if not isinstance(state.get(key), kind)]:
        raise DamagedCheckpoint(f"{path} is none from which a run can be continued: it lacks {', '.join(lacking)}.")
    return state


def set_aside_damaged(folder: Path) -> None:
    """Rename a last checkpoint that was found damaged, so that it never takes the place of the whole previous one."""
    (folder / LAST).replace(folder / "checkpoint-damaged.pth")


def split_weights(content: Any, path: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The weights in a checkpoint, bare or wrapped.

    Returns:
        name -> state_dict: 'model', and 'ema' where the checkpoint holds averaged weights.

    Raises:
        UserError: there are none.
    """
    if isinstance(content, dict):
        wrapped = next((content[key] for key in WRAPPERS if isinstance(content.get(key), dict)), content)
        averaged = content.get("state_dict_ema")
        named = {"model": wrapped} if averaged is None or averaged == {} else {"model": wrapped, "ema": averaged}
        if all(map(_are_weights, named.values())):
            return named
    found = (
        f"a dict of {', '.join(map(reprlib.repr, list(content)[:8]))}"
        if isinstance(content, dict)
        else type(content).__name__
    )
    raise UserError(
        f"{path} holds no weights: expected a dict of plain tensors, or one with the key "
        f"{' or '.join(map(repr, WRAPPERS))}; found {found}."
    )


def _are_weights(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) > 0
        and all(isinstance(n, str) and isinstance(v, torch.Tensor) and is_plain(v) for n, v in value.items())
    )


def named_classes(content: Any, path: Path) -> list[str] | None:
    """The classes that a checkpoint names, in the order of its logits; None where it names none.

    Raises:
        UserError: it holds something else in their place.
    """
    names = content.get("class_names")
    if not (names is None or (isinstance(names, list) and all(isinstance(name, str) for name in names))):
        raise UserError(f"{path}: found class_names that are no list of texts. Give a checkpoint of a training.")
    return names
