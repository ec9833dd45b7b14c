"""A run that is asked to stop loses at most one step: all of its processes stop at the same one, and none is left."""

import itertools
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Flags, command_line, environment
from tests.forked_runs import DEADLINE_S, SignalAt, fork_run, wait_until, writers
from tests.relabel.training.test_run import status
from tests.whole_runs.test_kills import assert_same_run
from tests.whole_runs.test_processes import processes
from utils.checkpoint import LAST, load_checkpoint
from utils.errors import EXIT_PREEMPTED
from utils.processes.distributed import STOP_SIGNALS
from utils.run_log import METRICS


def steps_done(folder: Path) -> int:
    """The step of the last record, 0 before the first."""
    if not (folder / METRICS).exists():
        return 0
    whole_lines = (folder / METRICS).read_text().rpartition("\n")[0]
    return max([0, *(int(line.split('"step": ')[1].split(",")[0]) for line in whole_lines.splitlines())])


def assert_preempted(folder: Path, output: Path) -> int:
    """The run's status says so, with the step of its checkpoint, which is returned."""
    assert status(folder)["state"] == "preempted", output.read_text()
    step = int(status(folder)["step"])
    assert load_checkpoint(folder / LAST)["step"] == step
    return step


@pytest.fixture
def long_run(flags: Flags) -> Flags:
    """Two processes with a loader worker each, 7 steps an epoch; only a stop makes a checkpoint inside one."""
    return flags | {
        "compute.num_workers": 2,
        "util.print_freq": 1,
        "util.checkpoint_minutes": 60,
        "optim.epochs": 2000,
        "optim.batch_size": 4,
        "optim.optimizer": "adamp",
    }


def stop_at(flags: Flags, output: Path, steps: int, number: signal.Signals, rank: int) -> None:
    """Make so many more steps; a signal comes in the last of them, to one of the processes."""
    fault = SignalAt("relabel.training.trainer.Trainer.train_step", steps, number)
    assert fork_run(flags, output, 2, {rank: fault}).ends() == [EXIT_PREEMPTED] * 2, output.read_text()


def assert_as_if_never_stopped(flags: Flags, tmp_path: Path) -> None:
    """A run that stopped, for the last time, at a step stands where one stands that was never stopped before."""
    step = assert_preempted(flags["util.run_dir"], tmp_path / "output")
    stop_at({**flags, "util.run_dir": tmp_path / "undisturbed"}, tmp_path / "output", step, signal.SIGTERM, 0)
    assert_same_run(tmp_path / "undisturbed", flags["util.run_dir"])


@pytest.mark.slow
def test_a_signal_to_any_rank_stops_all_at_the_same_step(long_run: Flags, tmp_path: Path) -> None:
    for i, (number, rank) in enumerate(zip(STOP_SIGNALS, (0, 1, 1, 0), strict=True), start=1):
        stop_at(long_run, tmp_path / "output", 3, number, rank)
        assert assert_preempted(long_run["util.run_dir"], tmp_path / "output") == 3 * i  # that step is the last
    assert_as_if_never_stopped(long_run, tmp_path)


@pytest.mark.slow
def test_signals_while_a_run_stops_do_no_harm(long_run: Flags, tmp_path: Path) -> None:
    """Of every kind, to all ranks, again and again until they have ended."""
    folder, output = long_run["util.run_dir"], tmp_path / "output"
    run = fork_run(long_run, output, 2)
    wait_until(lambda: steps_done(folder) >= 2, "two steps were made")

    def ended_under(number: signal.Signals) -> bool:
        for process in run.processes:
            if process.exitcode is None and process.pid:
                with suppress(ProcessLookupError):  # it has ended this very moment
                    os.kill(process.pid, number)
        return all(process.exitcode is not None for process in run.processes)

    numbers = itertools.cycle(STOP_SIGNALS)
    wait_until(lambda: ended_under(next(numbers)), "the run ended")
    assert run.ends() == [EXIT_PREEMPTED] * 2 and "Traceback" not in output.read_text(), output.read_text()
    assert_as_if_never_stopped(long_run, tmp_path)


# ---- launchers


def fork_ranks() -> None:
    """The launcher forks its ranks, so that they need not import torch; it has a process group, as in a terminal."""
    os.setpgid(0, 0)
    context: Any = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: context


def wait_for_two_steps(folder: Path, exit_status: Callable[[], int | None]) -> None:
    """Return when a run has made two more steps, or has ended before; its exit status is None until then."""
    before = steps_done(folder)
    wait_until(lambda: steps_done(folder) >= before + 2 or exit_status() is not None, "two steps were made")


@pytest.mark.slow
def test_a_run_of_our_own_launcher_stops_with_its_group_and_dies_with_its_launcher(
    long_run: Flags, tmp_path: Path
) -> None:
    folder, output = long_run["util.run_dir"], tmp_path / "output"

    def send_to_launcher(number: signal.Signals, send: Callable[[int, int], None]) -> int | None:
        run = fork_run(long_run | processes(2), output, faults={0: fork_ranks})
        wait_for_two_steps(folder, lambda: run.processes[0].exitcode)
        send(run.processes[0].pid or 0, number)
        return run.ends()[0]

    for number, send in ((signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill)):  # as Ctrl-C does, and schedulers
        assert send_to_launcher(number, send) == EXIT_PREEMPTED, output.read_text()
        assert steps_done(folder) == assert_preempted(folder, output)
    assert send_to_launcher(signal.SIGKILL, os.kill) == -signal.SIGKILL
    assert status(folder)["state"] == "running"  # no process was left to change it; the next command does
    stop_at(long_run, output, 2, signal.SIGTERM, 0)
    assert "the process that trained here before was killed" in output.read_text()
    assert_as_if_never_stopped(long_run, tmp_path)


@pytest.mark.slow
def test_a_run_under_torchrun_stops_however_torchrun_ends(long_run: Flags, tmp_path: Path) -> None:
    """By a signal that it handles; by kill -9, and so by a signal that it does not handle."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "--signals-to-handle", "SIGTERM,SIGUSR1", *command_line(long_run)[1:]]
    folder, output = long_run["util.run_dir"], tmp_path / "output"
    for number in (signal.SIGUSR1, signal.SIGKILL):
        with output.open("ab") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, env=environment(), cwd=ROOT)
        wait_for_two_steps(folder, process.poll)
        process.send_signal(number)
        assert process.wait(DEADLINE_S) != 0
        wait_until(lambda: not writers(output), "all processes, and their workers, had ended")
        assert steps_done(folder) == assert_preempted(folder, output)
    assert_as_if_never_stopped(long_run, tmp_path)


@pytest.mark.slow
def test_a_rank_whose_launcher_dies_while_it_starts_does_not_train(long_run: Flags, tmp_path: Path) -> None:
    """It imports torch for seconds; orphaned meanwhile, it would train on and keep the folder to itself."""
    names = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    output = tmp_path / "output"
    output.touch()
    until_torch = "until grep -q libtorch /proc/$!/maps; do sleep 0.01; done"
    script = f"{shlex.join(command_line(long_run))} >>{output} 2>&1 & {until_torch}; kill -9 $$"
    subprocess.run(["bash", "-c", script], env={**environment(), **names}, cwd=ROOT)
    wait_until(lambda: not writers(output), "the rank had ended")
    assert steps_done(long_run["util.run_dir"]) == 0, output.read_text()
