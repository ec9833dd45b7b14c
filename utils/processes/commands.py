"""A program as a row of commands that anybody could type: each is shown and run, some of them side by side."""

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

from utils.errors import EXIT_PREEMPTED
from utils.processes.launch import die_with_parent
from utils.progress import JobProgress

_POLL_S = 0.3
_LOG_LINES = 12  # shown of a command that failed
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_STOP_S = 60.0  # that a training may take to save itself


@dataclass(frozen=True, slots=True)
class Job:
    """A command that runs beside others.

    Fields:
        title: for people.
        words: the command, as for subprocess.
        log: file for what it prints.
        units: how many units of work it has done so far, in this and earlier runs.
        total: units in all.
    """

    title: str
    words: Sequence[str]
    log: Path
    units: Callable[[], int]
    total: int


def run_command(words: Sequence[str], folder: Path) -> None:
    """Show a command and run it; where it fails it has said why, and its status becomes ours.

    Args:
        words: as for subprocess; the first is the Python interpreter.
        folder: to run it in; paths below it are shown short.
    """
    print(f"\n$ {shown(words, folder)}", flush=True)
    process = subprocess.Popen(words, cwd=folder, preexec_fn=_end_with_us())
    try:
        status = process.wait()
    finally:
        _stop([process])
    if status:
        sys.exit(status)


def stop_once() -> None:
    """Let the first SIGTERM or Ctrl-C end this program by SystemExit; none disturbs how it then ends its commands."""

    def stop(number: int, frame: FrameType | None) -> None:
        for each in _STOP_SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        sys.exit(EXIT_PREEMPTED)

    for number in _STOP_SIGNALS:
        signal.signal(number, stop)


def run_side_by_side(jobs: Sequence[Job], folder: Path, at_once: int, threads: int | None, unit: str) -> None:
    """Run commands, some at a time, with one progress for all; one that fails ends all, and its status becomes ours.

    Args:
        jobs: in the order in which they start.
        folder: to run them in.
        at_once: how many run at a time.
        threads: of each for its arithmetic; None leaves that to it.
        unit: of the work, in the plural.
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
                        process = subprocess.Popen(
                            job.words, cwd=folder, stdout=log, stderr=log, env=environment, preexec_fn=_end_with_us()
                        )
                    running[process] = job
                time.sleep(_POLL_S)
                if (news := _units(jobs) - progress.done) > 0:
                    progress.advance(news, progress.time_left())
                for process in [process for process in running if process.poll() is not None]:
                    _tell_end(running.pop(process), process.returncode, progress)
        finally:
            _stop(running)


def shown(words: Sequence[str], folder: Path) -> str:
    """A command as it would be typed in the folder."""
    return shlex.join(["python", *(word.removeprefix(f"{folder}/") for word in words[1:])])


def _end_with_us() -> Callable[[], None]:
    """A command is asked to stop also where this program is killed and cannot ask."""
    return partial(die_with_parent, os.getpid(), signal.SIGTERM)


def _tell_end(job: Job, status: int, progress: JobProgress) -> None:
    """A line that it is done; what it said last, and the end of everything, where it failed."""
    if status:
        lines = job.log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
        progress.print_line("\n".join([f"{job.title} ended with status {status}; the end of {job.log}:", *lines]))
        sys.exit(status if status > 0 else EXIT_PREEMPTED)
    progress.print_line(f"done: {job.title}")


def _units(jobs: Sequence[Job]) -> int:
    return sum(job.units() for job in jobs)


def _stop(processes: Sequence[subprocess.Popen[bytes]] | dict[subprocess.Popen[bytes], Job]) -> None:
    """Ask what still runs to save itself and end, and wait for it."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
