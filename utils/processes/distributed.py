"""Processes: who takes part in a run, how they start, agree and end.

One process per GPU started here, or by torchrun (utils/processes/torchrun.py); one process alone needs no process
group, and every function below then works on its own values.
"""

import ctypes
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, TypeVar
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from torch import Tensor

from utils.errors import EXIT_PREEMPTED, EXIT_USER_ERROR, SharedError, UserError, exit_on_user_error
from utils.processes import torchrun
from utils.processes.torchrun import ranks, under_torchrun

T = TypeVar("T")

_PR_SET_PDEATHSIG = 1
_GRACE_S = 5.0  # what the other processes get to report their own error after one has failed
_PREEMPTION_GRACE_S = 120.0  # a preempted process still writes its checkpoint
_JOB_PATIENCE = timedelta(days=7)  # processes of a job may end far apart
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@dataclass(frozen=True, slots=True)
class Process:
    """One process among all: its ranks and its device."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """The one process that writes the run folder."""
        return self.rank == 0

    def share(self, total: int, key: str) -> int:
        """This process's share of a per-node total.

        Raises:
            UserError: the processes of the node do not divide the total.
        """
        n = self.local_world_size
        if total % n:
            raise UserError(
                f"{key} is {total}, but this node runs {n} processes, which do not divide it.\n"
                f"  Set --{key} to a multiple of {n}, for example {max(n, total - total % n)}."
            )
        return total // n


def launch(function: Callable[[Process, T], None], argument: T, settings: Any) -> None:
    """Run function(place, argument) in every process of this node and return when all have ended.

    Args:
        settings: the `compute` section of the config (gpu, distributed.*).

    Raises:
        UserError: settings that this machine cannot serve.
        SystemExit: a process failed; its exit status.
    """
    if under_torchrun():
        _run_under_torchrun(function, argument, settings)
        return
    n = _count_processes(settings)
    if n == 1:
        function(Process(0, 1, 0, 1, _device(settings.gpu, 0)), argument)
        return
    _check_url(settings.distributed.url)
    context = multiprocessing.get_context("spawn")
    arguments = (os.getpid(), function, argument, n, settings.distributed.url, _backend(settings))
    children = [context.Process(target=_child, args=(rank, *arguments)) for rank in range(n)]
    if status := _supervise(children):
        sys.exit(status)


def _count_processes(settings: Any) -> int:
    gpus = torch.cuda.device_count()
    wanted = settings.distributed.num_processes_per_node
    backend = _backend(settings)
    if settings.gpu >= 0 or not settings.distributed.use:
        return 1
    n = max(gpus, 1) if wanted == 1 else wanted
    _check_gpus(n, backend)
    return n


def _check_gpus(processes: int, backend: str) -> None:
    gpus = torch.cuda.device_count()
    if backend == "nccl" and processes > max(gpus, 1):
        raise UserError(
            f"this node would run {processes} processes, but it shows {gpus} GPU(s) and nccl needs one for each.\n"
            f"  Start one process per GPU (--compute.distributed.num_processes_per_node 1), or set "
            f"--compute.distributed.backend gloo."
        )


def _backend(settings: Any) -> str:
    """The resolved backend; refused where the machine lacks it, also by a single process that would not use it."""
    backend = settings.distributed.backend
    if backend == "auto":
        return "nccl" if torch.cuda.is_available() else "gloo"
    if backend == "nccl" and not torch.cuda.is_available():
        raise UserError(
            "compute.distributed.backend is nccl, but this machine shows no GPU.\n"
            "  Set --compute.distributed.backend auto (nccl on GPUs, gloo on CPUs)."
        )
    return str(backend)


def _device(gpu: int, local_rank: int) -> torch.device:
    count = torch.cuda.device_count()
    if gpu >= count:
        raise UserError(
            f"compute.gpu is {gpu}, but this machine shows {count} GPU(s).\n"
            f"  Set --compute.gpu to {'one of 0..' + str(count - 1) if count else '-1 to run on the CPU'}."
        )
    if not count:
        return torch.device("cpu")
    device = torch.device("cuda", gpu if gpu >= 0 else local_rank % count)
    torch.cuda.set_device(device)
    return device


def _run_under_torchrun(function: Callable[[Process, T], None], argument: T, settings: Any) -> None:
    if settings.gpu >= 0:
        raise UserError(
            f"compute.gpu is {settings.gpu}, but torchrun gives each process its own GPU.\n"
            f"  Leave --compute.gpu out, or start main.py without torchrun."
        )
    # A signal that torchrun does not handle ends it, but not its processes.
    die_with_parent(torchrun.STARTED_BY, signal.SIGTERM)
    process = _torchrun_place()
    backend = _backend(settings)
    _check_gpus(process.local_world_size, backend)
    if process.world_size > 1:
        dist.init_process_group(backend, device_id=process.device if backend == "nccl" else None)
    function(process, argument)
    if process.world_size > 1:
        dist.destroy_process_group()


@contextmanager
def shared_job() -> Iterator[Process]:
    """The place of this process in a job whose processes meet at its start and end only; alone without torchrun.

    Each process has its own device, where there are GPUs.
    """
    if not under_torchrun():
        yield Process(0, 1, 0, 1, _device(-1, 0))
        return
    process = _torchrun_place()
    if process.world_size > 1:
        dist.init_process_group("gloo", timeout=_JOB_PATIENCE)
    try:
        yield process
    except SharedError:
        raise
    except UserError as error:
        if not process.is_main:  # the others end with this one, and would not know why
            print(f"error: process {process.rank}: {error}", file=sys.stderr, flush=True)
        raise
    if process.world_size > 1:
        dist.destroy_process_group()


def _torchrun_place() -> Process:
    rank, world_size, local_rank, local_world_size = ranks()
    return Process(rank, world_size, local_rank, local_world_size, _device(-1, local_rank))


def _check_url(url: str) -> None:
    """The port must be free: two runs on one machine would otherwise wait for each other."""
    address = urlsplit(url)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.hostname, address.port))
        except OSError as error:
            raise UserError(
                f"compute.distributed.url is {url}, but its port cannot be opened here ({error.strerror}).\n"
                f"  Another run may use it: set --compute.distributed.url tcp://127.0.0.1:PORT with a free port."
            ) from None


def _child(
    rank: int, parent: int, function: Callable[[Process, T], None], argument: T, n: int, url: str, backend: str
) -> None:
    die_with_parent(parent)
    with exit_on_user_error(print_message=rank == 0):
        device = _device(-1, rank)
        if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, available_cores() // n))
        device_id = device if backend == "nccl" else None
        dist.init_process_group(backend, init_method=url, rank=rank, world_size=n, device_id=device_id)
        function(Process(rank, n, rank, n, device), argument)
        dist.destroy_process_group()


def _supervise(children: Sequence[BaseProcess]) -> int:
    """Start the children, pass signals on, wait for all; the status of the first that failed, else 0.

    When one fails the others would wait for it in a collective for ever: after a grace they are killed.
    """

    def forward() -> None:
        for child in children:
            if child.is_alive():
                child.terminate()  # SIGTERM, whatever came: from a terminal the children have their own SIGINT

    with StopRequest(forward):
        for child in children:
            child.start()
        failed, deadline = 0, float("inf")
        while alive := [child for child in children if child.exitcode is None]:
            wait([child.sentinel for child in alive], timeout=0.5)
            if not failed and (failed := next((child.exitcode for child in children if child.exitcode), 0)):
                deadline = time.monotonic() + (_PREEMPTION_GRACE_S if failed == EXIT_PREEMPTED else _GRACE_S)
            if time.monotonic() > deadline:
                for child in alive:
                    child.kill()
    if any(child.exitcode == EXIT_USER_ERROR for child in children):
        return EXIT_USER_ERROR  # the cause; others may have ended for want of this one
    return 128 - failed if failed < 0 else failed


def available_cores() -> int:
    """Cores that this process may use: in a container or under a scheduler fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def die_with_parent(parent: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Ask Linux to send this process a signal when its parent ends, however that ends; elsewhere nothing happens.

    Args:
        parent: process id. If that process has ended before Linux could be asked, this one ends now.
        number: the signal.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
        forked_by_server = multiprocessing.get_start_method() == "forkserver"  # which ends with the parent itself
        if os.getppid() != parent and not forked_by_server:
            os._exit(1)


class StopRequest:
    """Has somebody asked this process to stop? While entered, SIGTERM, SIGINT and SIGUSR1 set a flag and nothing else.

    The flag is read at step boundaries, where all processes agree: a handler must not talk to others. Once it is set
    the process is about to end, so that further signals are ignored from then on, also when this is left.

    Args:
        tell: is called at each signal, too.
    """

    def __init__(self, tell: Callable[[], None] = lambda: None) -> None:
        self.signal_name = ""
        self._tell = tell
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        self._previous = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_IGN if self else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal_name = signal.Signals(number).name
        self._tell()

    def __bool__(self) -> bool:
        return bool(self.signal_name)


def sum_over_processes(values: Tensor) -> Tensor:
    """Sum of a tensor over all processes, in place; the same on every one."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def gather_rows(row: Tensor) -> Tensor:
    """[n] of each process -> [world_size, n], in rank order."""
    if not dist.is_initialized():
        return row[None].clone()
    rows = [torch.empty_like(row) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, row)
    return torch.stack(rows)


def gather_objects(value: T) -> list[T]:
    """The plain values of all processes, in rank order, on every one."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def from_main(function: Callable[[], T]) -> T:
    """What function() gives on the main process, on every process; it is called there alone.

    Raises:
        SharedError: the function raised a UserError there; the same on every process.
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
    """Return when every process has come here."""
    if dist.is_initialized():
        dist.barrier()


def broadcast_buffers(model: torch.nn.Module) -> None:
    """Give every process the main process's buffers (batch-norm statistics differ between processes)."""
    if dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)
