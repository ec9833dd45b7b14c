"""The folder of a job that writes images: complete or absent, continued after an interruption.

The job works in OUT.unfinished, which is renamed to OUT at the end.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from relabel.data.images import ImageList
from utils.errors import UserError, listed
from utils.files import locked, make_writable, read_json, remove_temporaries, sync, write_json

UNFINISHED = ".unfinished"
RECORDS, JOB = ".job", "job.json"  # in an unfinished folder: what it is made from and how, and what is done
HOW_TO_CONTINUE = "The same command continues."


def identity(images: ImageList) -> dict[str, Any]:
    """Return what tells the images of one job from those of another."""
    digest = hashlib.sha256(json.dumps(images.class_names).encode())
    for start in range(0, len(images), 1 << 16):
        digest.update(b"\n".join(images.names[start : start + (1 << 16)].tolist()) + b"\n")
    digest.update(images.labels.tobytes())
    return {"source": str(images.root.resolve()), "images": len(images), "names_sha256": digest.hexdigest()}


@contextmanager
def job_folder(out: Path, job: dict[str, Any]) -> Iterator[Path]:
    """Yield the folder in which a job works; rename it to OUT at the end, or leave it to be continued.

    Args:
        out: the new folder.
        job: what the job is made from and how; plain values.

    Raises:
        UserError: OUT exists or cannot be written; or another job was begun.
    """
    out = out.resolve()
    work = out.with_name(out.name + UNFINISHED)
    if out.is_mount():  # nothing can be renamed to it
        raise UserError(f"{out} is a mount point; expected a new folder. Give one inside it: {out / 'images'}")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(
            f"{out} already exists; expected no such folder, or an empty one. Choose another, or remove this one."
        )
    make_writable(work, "the folder", "Choose another folder, or allow writing.")
    with locked(work, "the folder", "writing images", "choose another folder."):
        _begin(work, job)
        yield work
        sync(work)
        try:
            work.replace(out)
        except OSError as error:
            raise UserError(f"{work} cannot be renamed to {out} ({error.strerror}). Rename it yourself.") from error
        shutil.rmtree(out / RECORDS)


def _begin(work: Path, job: dict[str, Any]) -> None:
    """Write down which job this is, or check that it is the one that was begun."""
    remove_temporaries(work)
    if not (work / RECORDS / JOB).exists():
        if any(path.name != RECORDS for path in work.iterdir()):
            raise UserError(f"{work} has files of something else; expected none. Remove it, or choose another folder.")
        (work / RECORDS).mkdir(exist_ok=True)
        write_json(work / RECORDS / JOB, job)
        return
    begun = read_json(work / RECORDS / JOB, f"remove {work} and start again")
    differences = [f"{key}: {begun.get(key)}, now {value}" for key, value in job.items() if begun.get(key) != value]
    if differences or begun.keys() != job.keys():
        raise UserError(
            f"{work} is an unfinished job with other settings. Give its own command again, or remove this folder, or "
            f"choose another one:{listed(differences)}"
        )


def size_text(number: int) -> str:
    """Format a number of bytes."""
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.1f} MB"
