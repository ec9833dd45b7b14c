"""Runs that outlive what is around them: the reader of their log, the disk below it, the terminal, the main thread."""

import fcntl
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import pytest

from relabel.training.trainer import Trainer
from tests.conftest import ROOT, Flags, command_line, environment
from tests.forked_runs import DEADLINE_S, fork_run, wait_until
from tests.relabel.training.test_batch_of_one import as_typed, short
from tests.relabel.training.test_run import start, status
from tests.whole_runs.test_preemption import assert_preempted, steps_done
from tests.whole_runs.test_processes import processes
from utils.errors import EXIT_PREEMPTED, UserError
from utils.processes.startup import prepare_output

TOOL = f"{shlex.quote(sys.executable)} -m relabel check --help"
FULL = "warning: the output cannot be written (No space left on device); going on without it\n"


@pytest.mark.slow
def test_a_run_goes_on_without_the_reader_of_its_log(flags: Flags) -> None:
    pipe = f"{shlex.join(command_line(short(flags)))} | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", pipe], capture_output=True, text=True, env=environment(), timeout=DEADLINE_S)
    assert done.returncode == 0 and status(flags["util.run_dir"])["state"] == "done"
    assert done.stdout.count("\n") == 1
    assert done.stderr == "warning: the output cannot be written (Broken pipe); going on without it\n"


@pytest.mark.parametrize(
    ("where", "stderr"), [("| head -n 1", ""), (">/dev/full", FULL), (">&-", ""), (">/dev/full 2>/dev/full", "")]
)
def test_a_tool_whose_output_goes_nowhere_ends_without_a_traceback(where: str, stderr: str) -> None:
    done = subprocess.run(["bash", "-o", "pipefail", "-c", f"{TOOL} {where}"], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, stderr)


@dataclass(frozen=True, slots=True)
class OnTerminal:
    """Make a terminal the controlling one of this process, and print there."""

    path: str

    def __call__(self) -> None:
        os.setsid()
        terminal = os.open(self.path, os.O_RDWR)
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
        for stream in (0, 1, 2):
            os.dup2(terminal, stream)
        prepare_output()


def test_a_run_whose_terminal_vanishes_is_preempted(flags: Flags) -> None:
    """As when an ssh connection breaks: SIGHUP comes, and what is printed cannot be written."""
    folder, (ours, its) = flags["util.run_dir"], os.openpty()
    output = folder.parent / "output"
    os.set_blocking(ours, False)
    run = fork_run({**flags, "optim.epochs": 20000}, output, faults={0: OnTerminal(os.ttyname(its))})

    def two_steps_shown() -> bool:
        with suppress(BlockingIOError):
            os.read(ours, 4096)  # otherwise the terminal fills up, and the run waits for it
        return steps_done(folder) >= 2

    wait_until(two_steps_shown, "two steps were made")
    os.close(its)
    os.close(ours)
    assert run.ends() == [EXIT_PREEMPTED]
    assert steps_done(folder) <= assert_preempted(folder, output)


def end_before_the_first_step(patch: pytest.MonkeyPatch, end: Callable[[], None]) -> None:
    original = Trainer.begin

    def begin(trainer: Trainer) -> None:
        end()
        original(trainer)

    patch.setattr(Trainer, "begin", begin)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_first_step_preempts(
    flags: Flags, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    end_before_the_first_step(monkeypatch, lambda: os.kill(os.getpid(), number))
    with pytest.raises(SystemExit, match=str(EXIT_PREEMPTED)):
        start(flags)
    assert (status(flags["util.run_dir"])["state"], status(flags["util.run_dir"])["step"]) == ("preempted", 1)


def test_an_exit_of_the_program_around_a_run_is_recorded(flags: Flags, monkeypatch: pytest.MonkeyPatch) -> None:
    end_before_the_first_step(monkeypatch, lambda: sys.exit("enough"))
    with pytest.raises(SystemExit, match="enough"):
        start(flags)
    found = status(flags["util.run_dir"])
    assert (found["state"], found["reason"]) == ("failed", "SystemExit: enough")


# ---- called from elsewhere than a program of its own


def test_a_run_in_a_thread_with_a_worker_is_done(flags: Flags) -> None:
    thread = threading.Thread(target=start, args=(short(flags) | {"compute.num_workers": 1},))
    thread.start()
    thread.join()
    assert status(flags["util.run_dir"])["state"] == "done"


def test_processes_of_a_program_on_stdin_are_refused_and_one_process_runs(
    flags: Flags, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "<stdin>", raising=False)
    with pytest.raises(UserError, match=r"is not a file \(<stdin>\)") as error:
        start(short(flags) | processes(2))
    assert not flags["util.run_dir"].exists()
    start(short(flags) | processes(2) | as_typed(error.value))
    assert status(flags["util.run_dir"])["state"] == "done"


def test_a_program_that_starts_processes_while_it_is_imported_is_told_so(
    flags: Flags, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(UserError, match='below `if __name__ == "__main__":`'):
        start(flags | processes(2))
