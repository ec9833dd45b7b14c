"""The records in a run folder: metrics.jsonl, status.json, environment.json."""

import hashlib
import json
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch
import yaml

from utils.errors import UserError
from utils.files import read_json, write_json

METRICS, STATUS, ENVIRONMENT, CONFIG = "metrics.jsonl", "status.json", "environment.json", "config.yaml"
_RECORDED_PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "simplejpeg", "adamp")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_status(folder: Path, state: str, **details: Any) -> None:
    """Write status.json: running, done, preempted or failed, with details such as the step and a failure's reason."""
    write_json(folder / STATUS, {"state": state, "time": _now(), **details})


class MetricsLog:
    """Writer of metrics.jsonl, one JSON object per event with units in the names, TensorBoard and wandb events.

    Args:
        folder: the run folder.
        keep_bytes: length of the file at the checkpoint from which the run continues. Anything after that is cut off,
            because it will be written again.
        tensorboard: also write event files into the folder.
        step: the step from which the run continues; TensorBoard discards later events.
        wandb: also send the events to Weights & Biases, as one run there however often it is continued.
    """

    def __init__(
        self, folder: Path, keep_bytes: int = 0, tensorboard: bool = False, step: int = 0, wandb: bool = False
    ) -> None:
        self._path = folder / METRICS
        with self._writing():
            self._file = self._path.open("ab")
            self._file.truncate(min(keep_bytes, self._file.tell()))
        self._board = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder), purge_step=step + 1)
        self._wandb = _wandb_run(folder) if wandb else None

    def write(self, event: str, step: int, **values: Any) -> None:
        """Append one event and flush it; non-finite numbers are written as strings."""
        plain = {name: _finite(value) for name, value in values.items()}
        with self._writing():
            self._file.write(json.dumps({"event": event, "step": step, **plain}, allow_nan=False).encode() + b"\n")
            self._file.flush()
            numbers = {f"{event}/{name}": value for name, value in plain.items() if isinstance(value, int | float)}
            for name, value in numbers.items():
                if self._board:
                    self._board.add_scalar(name, value, step)
            if self._wandb:
                self._wandb.log(numbers, step=step)

    def size_on_disk(self) -> int:
        """Sync the file to disk and return its length in bytes, which a checkpoint records."""
        with self._writing():
            os.fsync(self._file.fileno())
            return os.fstat(self._file.fileno()).st_size

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn a full disk or a missing permission into a UserError."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self._path} could not be written: {error.strerror}.\n  Make room, or allow writing; the same "
                f"command continues from the last checkpoint."
            ) from error

    def close(self) -> None:
        """Close the files."""
        with self._writing():
            self._file.close()
            if self._board:
                self._board.close()
            if self._wandb:
                self._wandb.finish()


def _wandb_run(folder: Path) -> Any:
    """Begin or continue the run at Weights & Biases that belongs to a run folder.

    Its id comes from the first entry of environment.json: another run, later in the same folder, gets another one.

    Raises:
        UserError: it cannot be reached, or nobody is logged in.
    """
    import wandb

    first = read_json(folder / ENVIRONMENT, "expected a list of starts")[0]
    identifier = hashlib.sha256(json.dumps(first).encode()).hexdigest()[:16]
    config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    try:
        return wandb.init(id=identifier, name=folder.name, dir=str(folder), config=config, resume="allow")
    except Exception as error:  # no account, no network
        raise UserError(
            f"Weights & Biases did not start: {str(error).strip()}\n  Log in (wandb login), or keep its records in the "
            "run folder: WANDB_MODE=offline. The same command continues."
        ) from error


def _finite(value: Any) -> Any:
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def read_status(folder: Path) -> str:
    """Return the state in status.json; "" if it cannot be read."""
    try:
        return str(read_json(folder / STATUS, "expected the state of a run")["state"])
    except (UserError, KeyError, TypeError):
        return ""


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the events of a run, in order."""
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def record_environment(folder: Path, **facts: Any) -> None:
    """Append an entry for this (re)start of the run to environment.json.

    Args:
        folder: the run folder.
        facts: further values, such as the first step and the number of processes.
    """
    path, starts = folder / ENVIRONMENT, []
    with suppress(UserError):
        starts = read_json(path, "expected a list of starts")
    earlier = starts if isinstance(starts, list) else []
    write_json(path, [*earlier, {"time": _now(), **facts, **environment()}])


def environment() -> dict[str, Any]:
    """Return what this process runs on: command, code, versions, devices, threads."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "command": shlex.join([sys.executable, *sys.argv]),
        "folder": str(Path.cwd()),
        **git_state(Path(__file__).parent),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {d.name: d.version for d in distributions() if d.name.lower() in _RECORDED_PACKAGES},
        "cuda": torch.version.cuda if gpus else None,
        "gpus": gpus,
        "cpu_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
    }


def git_state(folder: Path) -> dict[str, Any]:
    """Return the commit of the checkout that contains a folder, and the first 100 changes listed by `git status`.

    Both are None outside a checkout, or without git.
    """
    git = ["git", "-c", "safe.directory=*", "--no-optional-locks", "-C", str(folder)]  # another user may own it
    try:
        revision = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return {"git_revision": None, "git_changes": None}
    return {"git_revision": revision.stdout.strip(), "git_changes": changes.stdout.splitlines()[:100]}
