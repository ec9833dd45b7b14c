"""Rank and device of this process, and how the processes of a run share values and stop together.

A single process needs no process group: every function below then works on its values alone.
"""

import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from utils.errors import SharedError, UserError

T = TypeVar("T")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)  # SIGHUP: the terminal is gone


@dataclass(frozen=True, slots=True)
class Process:
    """Rank, world size and device of this process; `local` counts the processes of this node."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def share(self, total: int, key: str) -> int:
        """Return this process's share of a total per node.

        Args:
            total: over all processes of a node.
            key: its config key, for the message.

        Raises:
            UserError: the total is not divisible by the number of processes.
        """
        n = self.local_world_size
        if total % n:
            raise UserError(
                f"{key} is {total}, which is not divisible by the {n} processes of this node.\n"
                f"  Set --{key} to a multiple of {n}, for example {max(n, total - total % n)}."
            )
        return total // n


def available_cores() -> int:
    """Return the number of cores that this process may use, in a container or under a scheduler fewer than exist."""
    return len(_affinity())


def cores_of(process: Process) -> int:
    """Return this process's share of the cores, at least 1; all processes must call this together.

    Each core is shared among the processes of the node that may run on it: usually all of them, but only one if a
    scheduler has bound each process to its own cores, as srun does.
    """
    first_rank = process.rank - process.local_rank  # of this node: torchrun numbers a node's processes in a row
    affinities = [cores for node, cores in gather_objects((first_rank, _affinity())) if node == first_rank]
    users = Counter(core for cores in affinities for core in cores)
    return max(1, int(sum(1 / users[core] for core in _affinity()) + 1e-6))


def _affinity() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


class StopRequest:
    """A flag that STOP_SIGNALS set inside a `with` block instead of ending the process.

    The flag is read at step boundaries, where all processes agree: a signal handler must not communicate. Once it is
    set the process is about to end, so signals are ignored after the block, except in a notebook or at a prompt. In a
    thread other than the main one, where Python allows no handlers, signals keep their effect.

    Args:
        on_signal: also called at each signal.
    """

    def __init__(self, on_signal: Callable[[], None] = lambda: None) -> None:
        self.signal_name = ""
        self._on_signal = on_signal
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            # nohup ignores SIGHUP, for its command to outlive the terminal
            numbers = [n for n in STOP_SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
            self._previous = {number: signal.signal(number, self._record) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        ends = bool(self) and not hasattr(sys, "ps1")
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_IGN if ends else handler)

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.signal_name = signal.Signals(number).name
        self._on_signal()

    def __bool__(self) -> bool:
        return bool(self.signal_name)


def sum_over_processes(values: Tensor) -> Tensor:
    """Sum a tensor over all processes, in place; every process gets the sum."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def gather_objects(value: T) -> list[T]:
    """Gather plain values of all processes, in rank order, on every process."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def from_main(function: Callable[[], T]) -> T:
    """Call a function on the main process alone and return its result on every process.

    Raises:
        SharedError: on every process, when the function raised a UserError.
    """
    if not dist.is_initialized():
        return function()
    box: list[Any] = [None, None]  # value, error
    if dist.get_rank() == 0:
        try:
            box[0] = function()
        except UserError as error:
            box[1] = str(error)
    dist.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise SharedError(box[1])
    value: T = box[0]
    return value


def wait_for_all() -> None:
    """Wait until every process has called this."""
    if dist.is_initialized():
        dist.barrier()


def broadcast_buffers(model: torch.nn.Module) -> None:
    """Copy the main process's buffers to every process (batch-norm statistics differ between processes)."""
    if dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)
