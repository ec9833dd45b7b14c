"""Runs of main.py in processes of their own, forked from one that has imported everything: none waits for torch.

Several processes of a run find each other as under torchrun, by the variables that it sets. A process can be made to
kill itself, or to send itself a signal, at its n-th call of a function: SIGKILL leaves it no more time
than from outside, but the moment is certain.
"""

import multiprocessing
import os
import pkgutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from tests.conftest import Flags

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["relabel.cli.run", "adamp", "tests.forked_runs"])
DEADLINE_S = 600  # for anything to happen on a busy machine
GRACE_S = 1


@dataclass(frozen=True, slots=True)
class SignalAt:
    """Send this process a signal just before its n-th call of a function.

    Fields:
        function: dotted name, as in "relabel.training.trainer.Trainer._update".
        n: counted from 1.
        number: the signal.
    """

    function: str
    n: int
    number: signal.Signals = signal.SIGKILL

    def __call__(self) -> None:
        """Get ready."""
        owner, _, name = self.function.rpartition(".")
        original, calls = pkgutil.resolve_name(self.function), 0

        def counted(*words: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == self.n:
                os.kill(os.getpid(), self.number)
            return original(*words, **named)

        setattr(pkgutil.resolve_name(owner), name, counted)


@dataclass(frozen=True, slots=True)
class ForkedRun:
    """The processes of one run.

    Fields:
        processes: in the order of their ranks.
        output: what all of them print.
    """

    processes: list[ForkServerProcess]
    output: Path

    def ends(self) -> list[int | None]:
        """Wait for all; their exit statuses. What still runs at the deadline is killed, with the status -SIGKILL."""
        deadline = time.monotonic() + DEADLINE_S
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        self.kill()
        wait_until(lambda: not writers(self.output), "all processes, and their workers, had ended")
        return [process.exitcode for process in self.processes]

    def end_of(self, rank: int) -> int | None:
        """Wait for one; its exit status. If it failed the others get a moment, as launchers give, and are killed."""
        self.processes[rank].join(DEADLINE_S)
        if self.processes[rank].exitcode != 0:
            for process in self.processes:
                process.join(GRACE_S)
            self.kill()
        return self.processes[rank].exitcode

    def kill(self) -> None:
        """SIGKILL to all ranks."""
        for process in self.processes:
            process.kill()
            process.join()


def fork_run(
    flags: Flags, output: Path, processes: int = 1, faults: Mapping[int, Callable[[], None]] | None = None
) -> ForkedRun:
    """Start main.py with these flags.

    Args:
        output: file for what is printed; it grows over several runs.
        processes: ranks of the run.
        faults: rank -> what happens in its process before the run starts; picklable.
    """
    words = {key: str(value) for key, value in flags.items()}
    places = [_torchrun_variables(rank, processes, port) for port in [_free_port()] for rank in range(processes)]
    run = ForkedRun(
        [
            CONTEXT.Process(target=_run, args=(words, output, place, (faults or {}).get(rank)))
            for rank, place in enumerate(places)
        ],
        output,
    )
    for process in run.processes:
        process.start()
    return run


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Return when the condition holds. AssertionError, saying what never came, at the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"it never came that {what}"
        time.sleep(0.005)


def writers(output: Path) -> list[int]:
    """The processes whose output goes to a file: those of a run, their workers and launchers. Linux only."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "fd" / "1").readlink() == output:
                found.append(int(folder.name))
        except OSError:  # it has ended
            continue
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _torchrun_variables(rank: int, processes: int, port: int) -> dict[str, str]:
    if processes == 1:
        return {}
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    values = (rank, rank, processes, processes, "127.0.0.1", port)
    return {name: str(value) for name, value in zip(names, values, strict=True)}


def _run(words: dict[str, str], output: Path, variables: dict[str, str], fault: Callable[[], None] | None) -> None:
    """What main.py does."""
    import torch

    from relabel.cli import run as run_module
    from relabel.config.load import load_config
    from utils.errors import exit_on_user_error
    from utils.processes import torchrun

    torchrun.STARTED_BY = os.getppid()
    multiprocessing.set_start_method("fork", force=True)  # of loader workers: else they would import torch anew
    with output.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.environ |= variables | {"CUDA_VISIBLE_DEVICES": ""}
    torch.set_num_threads(1)
    run_module.FIGURES = None  # drawing takes longer than the run
    if fault:
        fault()
    with exit_on_user_error(print_message=variables.get("RANK", "0") == "0"):
        run_module.run(load_config("", words))
    sys.stdout.flush()
