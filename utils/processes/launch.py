"""Start the processes of a run: one per GPU here, or those that torchrun has started."""

import ctypes
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import torch
import torch.distributed as dist

from utils.errors import EXIT_PREEMPTED, EXIT_USER_ERROR, SharedError, UserError, exit_on_user_error
from utils.processes import torchrun
from utils.processes.distributed import Process, StopRequest, available_cores
from utils.processes.startup import expect_reader, keep_freed_memory, prepare_output
from utils.processes.torchrun import ranks, under_torchrun

T = TypeVar("T")

_PR_SET_PDEATHSIG = 1
_GRACE_S = 5.0  # time for the other processes to report their own error after one has failed
_PREEMPTION_GRACE_S = 120.0  # time for preempted processes to write the checkpoint
_JOB_TIMEOUT = timedelta(days=7)  # the processes of a job may end at very different times


def launch(function: Callable[[Process, T], None], argument: T, settings: Any, section: str) -> None:
    """Run function(process, argument) in every process of this node and return when all have ended.

    Args:
        settings: the section of a config with `gpu` (-1 = all) and, below `distributed`, `use`,
            `num_processes_per_node` (1 = one per GPU), `url` and `backend` (auto, nccl, gloo).
        section: its dotted name, for messages.

    Raises:
        UserError: this machine cannot satisfy the settings.
        SystemExit: a process failed; with its exit status.
    """
    expect_reader()
    backend: str = settings.distributed.backend
    gpus, n = torch.cuda.device_count(), settings.distributed.num_processes_per_node
    if backend == "auto":
        backend = "nccl" if gpus else "gloo"
    if under_torchrun():
        _run_under_torchrun(function, argument, settings.gpu, backend, section)
        return
    if settings.gpu >= 0 or not settings.distributed.use:
        n = 1
    elif n == 1:
        n = max(gpus, 1)
    _check_gpus(n, backend, section)
    if n == 1:
        function(Process(0, 1, 0, 1, _device(settings.gpu, 0, section)), argument)
        return
    check_main_module(f"--{section}.distributed.use False")
    _check_port(settings.distributed.url, section)
    context = multiprocessing.get_context("spawn")
    arguments = (os.getpid(), function, argument, n, settings.distributed.url, backend)
    children = [context.Process(target=_child, args=(rank, *arguments)) for rank in range(n)]
    if status := _supervise(children):
        sys.exit(status)


def _check_gpus(processes: int, backend: str, section: str) -> None:
    gpus = torch.cuda.device_count()
    if backend == "nccl" and processes > gpus:
        raise UserError(
            f"this node would run {processes} process(es), but it has {gpus} visible GPU(s); nccl needs one each.\n"
            f"  Start one process per GPU (--{section}.distributed.num_processes_per_node 1), or set "
            f"--{section}.distributed.backend auto (nccl on GPUs, gloo on CPUs) or gloo."
        )


def _device(gpu: int, local_rank: int, section: str = "") -> torch.device:
    count = torch.cuda.device_count()
    if gpu >= count:
        raise UserError(
            f"{section}.gpu is {gpu}, but this machine has {count} visible GPU(s).\n"
            f"  Set --{section}.gpu to {'one of 0..' + str(count - 1) if count else '-1 to run on the CPU'}."
        )
    if not count:
        return torch.device("cpu")
    device = torch.device("cuda", gpu if gpu >= 0 else local_rank % count)
    torch.cuda.set_device(device)
    return device


def _run_under_torchrun(
    function: Callable[[Process, T], None], argument: T, gpu: int, backend: str, section: str
) -> None:
    if gpu >= 0:
        raise UserError(
            f"{section}.gpu is {gpu}, but torchrun gives each process its own GPU.\n"
            f"  Leave --{section}.gpu out, or start the program without torchrun."
        )
    # A signal that torchrun does not handle ends torchrun, but not the processes that it started.
    die_with_parent(torchrun.STARTED_BY, signal.SIGTERM)
    process = _torchrun_process()
    _check_gpus(process.local_world_size, backend, section)
    with _process_group(process, backend):
        function(process, argument)


@contextmanager
def shared_job() -> Iterator[Process]:
    """Set up a job that torchrun may split among processes, which wait for each other only at its start and end.

    With GPUs, each process has its own. Without torchrun there is one process.
    """
    if not under_torchrun():
        yield Process(0, 1, 0, 1, _device(-1, 0))
        return
    process = _torchrun_process()
    with _process_group(process, "gloo", timeout=_JOB_TIMEOUT):
        try:
            yield process
        except UserError as error:
            if not process.is_main and not isinstance(error, SharedError):
                # torchrun ends the others when this one fails, so it must print the reason itself
                print(f"error: process {process.rank}: {error}", file=sys.stderr, flush=True)
            raise


@contextmanager
def _process_group(process: Process, backend: str, **options: Any) -> Iterator[None]:
    """Open torch's process group, unless there is only one process, and close it.

    After an unexpected error it stays open, because closing could wait for an exchange that never ends. A process that
    exits without closing it may abort instead ("terminate called without an active exception", status 134).
    """
    if process.world_size == 1:
        yield
        return
    dist.init_process_group(backend, device_id=process.device if backend == "nccl" else None, **options)
    try:
        yield
    except (UserError, SystemExit):
        if backend == "gloo":
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _torchrun_process() -> Process:
    rank, world_size, local_rank, local_world_size = ranks()
    return Process(rank, world_size, local_rank, local_world_size, _device(-1, local_rank))


def _check_port(url: str, section: str) -> None:
    """Check that the port is free: two runs on one machine would otherwise wait for each other."""
    address = urlsplit(url)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.hostname, address.port))
        except OSError as error:
            raise UserError(
                f"{section}.distributed.url is {url}, but its port cannot be opened here ({error.strerror}).\n"
                f"  Another run may use it: set --{section}.distributed.url tcp://127.0.0.1:PORT with a free port."
            ) from None


def _child(
    rank: int, parent: int, function: Callable[[Process, T], None], argument: T, n: int, url: str, backend: str
) -> None:
    die_with_parent(parent)
    prepare_output()
    expect_reader()
    keep_freed_memory()
    with exit_on_user_error(print_message=rank == 0):
        process = Process(rank, n, rank, n, _device(-1, rank))
        if process.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, available_cores() // n))
        with _process_group(process, backend, init_method=url, rank=rank, world_size=n):
            function(process, argument)


def _supervise(children: Sequence[BaseProcess]) -> int:
    """Start the children, pass signals on, wait for all; return the status of the first that failed, else 0.

    When one fails, the others would wait for it in a collective forever: they are killed after a grace period.
    """

    def forward() -> None:
        for child in children:
            if child.is_alive():
                child.terminate()  # always SIGTERM: a terminal sends SIGINT to the children itself

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
        return EXIT_USER_ERROR  # the cause; others may have failed because this process ended
    return 128 - failed if failed < 0 else failed


def check_main_module(without: str) -> None:
    """Check that a new process can import the program that is running, as multiprocessing makes it do.

    Args:
        without: the flag, with its value, with which no process is started.

    Raises:
        UserError: the program was read from stdin, or it starts processes while it is imported.
    """
    file = getattr(sys.modules["__main__"], "__file__", None)
    if file is not None and not Path(file).exists():
        raise UserError(
            f"the program that is running is not a file ({file}), so no further process can be started from it.\n"
            f"  Save it and run the file, or start no process: {without}"
        )
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise UserError(
            "this program was imported by a process that it had started, and would now start more.\n"
            f'  Put what it does below `if __name__ == "__main__":`, or start no process: {without}'
        )


def die_with_parent(parent: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Ask Linux to send this process a signal when its parent ends, for whatever reason; elsewhere do nothing.

    Args:
        parent: its process id. If that process has already ended, this one exits now.
        number: the signal.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
        forked_by_server = multiprocessing.get_start_method() == "forkserver"  # the server ends with the parent
        if os.getppid() != parent and not forked_by_server:
            os._exit(1)
