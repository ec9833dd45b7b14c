"""Run commands as subprocesses: each is printed as one would type it; several may run side by side."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from utils.errors import EXIT_PREEMPTED
from utils.processes.launch import die_with_parent
from utils.progress import JobProgress

_POLL_S = 0.3
_LOG_LINES = 12  # printed of a command that failed
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # SIGHUP: the terminal is gone
_STOP_S = 60.0  # the time that a command has to save its state after SIGTERM


@dataclass(frozen=True, slots=True)
class Job:
    """A command that runs beside others.

    Fields:
        title: its name in messages.
        words: the command, as for subprocess.
        log: file for its output.
        units: returns the units of work done so far, in this and earlier runs.
        total: units of work in total.
    """

    title: str
    words: Sequence[str]
    log: Path
    units: Callable[[], int]
    total: int


def run_command(words: Sequence[str], folder: Path) -> None:
    """Print a command and run it; exit with its status if it fails.

    Args:
        words: as for subprocess; the first is the Python interpreter.
        folder: to run it in; paths below it are printed relative to it.
    """
    print(f"\n$ {shown(words, folder)}", flush=True)
    process = _start(words, folder)
    try:
        status = process.wait()
    finally:
        _stop([process])
    if status:
        sys.exit(status)


def stop_once() -> None:
    """End with SystemExit at the first SIGTERM, SIGHUP or Ctrl-C; ignore others while the commands are stopped."""

    def stop(number: int, frame: FrameType | None) -> None:
        for each in _STOP_SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        sys.exit(EXIT_PREEMPTED)

    for number in _STOP_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, stop)


def run_side_by_side(jobs: Sequence[Job], folder: Path, at_once: int, threads: int | None, unit: str) -> None:
    """Run commands, several at a time, with one progress bar; if one fails, stop all and exit with its status.

    Args:
        jobs: in starting order.
        folder: to run them in.
        at_once: number of jobs that run at a time.
        threads: OMP_NUM_THREADS of each; None leaves the environment as it is.
        unit: of work, in the plural.
    """
    waiting, running = list(jobs), dict[subprocess.Popen[bytes], Job]()
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    with JobProgress("all", sum(job.total for job in jobs), unit, done=_units(jobs)) as progress:
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    job = waiting.pop(0)
                    progress.print_line(f"$ {shown(job.words, folder)}")
                    with job.log.open("ab") as log:
                        running[_start(job.words, folder, stdout=log, stderr=log, env=environment)] = job
                time.sleep(_POLL_S)
                if (done_since := _units(jobs) - progress.done) > 0:
                    progress.advance(done_since, progress.time_left())
                for process in [process for process in running if process.poll() is not None]:
                    _report_end(running.pop(process), process.returncode, progress)
        finally:
            _stop(running)


def shown(words: Sequence[str], folder: Path) -> str:
    """Format a command as it would be typed in the folder."""
    return shlex.join(["python", *(word.removeprefix(f"{folder}/") for word in words[1:])])


def _start(words: Sequence[str], folder: Path, **options: Any) -> subprocess.Popen[bytes]:
    """Start a subprocess that gets SIGTERM even when this program is killed."""
    die_too = partial(die_with_parent, os.getpid(), signal.SIGTERM)
    return subprocess.Popen(words, cwd=folder, preexec_fn=die_too, **options)


def _report_end(job: Job, status: int, progress: JobProgress) -> None:
    """Print that a job is done; if it failed, print the end of its log and exit."""
    if status:
        lines = job.log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
        progress.print_line("\n".join([f"{job.title} ended with status {status}; the end of {job.log}:", *lines]))
        sys.exit(status if status > 0 else EXIT_PREEMPTED)
    progress.print_line(f"done: {job.title}")


def _units(jobs: Sequence[Job]) -> int:
    return sum(job.units() for job in jobs)


def _stop(processes: Sequence[subprocess.Popen[bytes]] | dict[subprocess.Popen[bytes], Job]) -> None:
    """Send SIGTERM to the running processes, give them time to save their state, and then kill them."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
