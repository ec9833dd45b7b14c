"""Worker processes: their errors, their deaths, their signals, and how they end."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing import resource_sharer
from operator import itemgetter

import pytest
import torch

from tests.conftest import ROOT
from utils.errors import UserError
from utils.processes.workers import BatchMemory, read_batches

KEYS = [[1, 2], [3, 4], [5]]


class Trouble:
    """A data set that returns the key itself, or makes the trouble that the key names."""

    def __getitem__(self, key: int | str) -> int | str:
        if key == "refuse":
            raise UserError("a.jpg: found a cat; expected a dog. Swap them.")
        if key == "bug":
            raise IndexError("a programmer's mistake")
        if key == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if key == "hang":
            threading.Event().wait()
        return os.getpid() if key == "pid" else key


def read(key_lists: Sequence[Sequence[int | str]], num_workers: int) -> list[list[int | str]]:
    """All batches."""
    return list(read_batches(Trouble(), list, key_lists, num_workers, pin_memory=False))  # type: ignore[arg-type]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_come_in_order(num_workers: int) -> None:
    assert read(KEYS, num_workers) == KEYS


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_user_error_arrives_as_it_was_raised(num_workers: int) -> None:
    batches = read_batches(Trouble(), list, [[1], ["refuse"], [3]], num_workers, pin_memory=False)
    assert next(batches) == [1]
    with pytest.raises(UserError) as refusal:
        next(batches)
    assert str(refusal.value) == "a.jpg: found a cat; expected a dog. Swap them."


class Written:
    """A data set of batches, each the key in every byte, in memory that the worker reuses."""

    def __init__(self) -> None:
        self.memory = BatchMemory()

    def __getitem__(self, key: int) -> torch.Tensor:
        return self.memory.take(300 - key, 7).fill_(key)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_memory_of_a_batch_is_not_written_again_before_the_next_is_asked_for(num_workers: int) -> None:
    batches = read_batches(Written(), itemgetter(0), [[key] for key in range(12)], num_workers, False)
    for key, batch in enumerate(batches):
        time.sleep(0.02)  # the worker has by now read as far ahead as it may
        assert batch.shape == (300 - key, 7) and (batch == key).all()


def test_a_killed_worker_ends_the_loop_with_a_message() -> None:
    with pytest.raises(UserError, match=r"a process that loads images died \(.*worker.*lower --num_workers"):
        read([[1], ["die"], [3]], 1)


@pytest.mark.parametrize("kind", [ConnectionResetError, EOFError])
def test_a_worker_that_died_before_its_batch_was_fetched_is_reported_alike(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def gone(handle: resource_sharer.DupFd) -> int:
        raise kind("the socket of a dead process is closed")

    monkeypatch.setattr(resource_sharer.DupFd, "detach", gone)  # how the memory of a batch comes over
    with pytest.raises(UserError, match="a process that loads images died"):
        list(read_batches(list(range(6)), torch.tensor, KEYS, 1, pin_memory=False))


@pytest.mark.parametrize("key", ["refuse", "bug", "die"])
def test_no_worker_outlives_an_error(key: str) -> None:
    """Even while the exception is kept, and with it the frames and the iterator."""
    with pytest.raises((UserError, IndexError)) as error:
        read([[1], [key], [3], [4]], 2)
    assert multiprocessing.active_children() == []
    assert error.value.__traceback__ is not None


def test_no_worker_outlives_a_loop_that_was_left() -> None:
    for batch in read_batches(Trouble(), list, KEYS * 5, 2, pin_memory=False):
        if batch == [3, 4]:
            break
    assert multiprocessing.active_children() == []


def test_signals_to_the_group_do_not_stop_workers() -> None:
    """The parent decides when to stop; it may still want the batches under way."""
    batches = read_batches(Trouble(), list, [["pid"]] + [[i] for i in range(20)], 1, pin_memory=False)
    (worker,) = next(batches)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        os.kill(worker, number)
    assert list(batches) == [[i] for i in range(20)]


def test_the_stream_of_torchs_random_numbers_is_left_alone() -> None:
    before = torch.get_rng_state()
    read(KEYS, 1)
    assert torch.equal(before, torch.get_rng_state())


def start(program: str) -> "subprocess.Popen[str]":
    """Start a Python program that can use this file, in a session of its own."""
    command = [sys.executable, "-c", f"from tests.utils.processes.test_workers import *\n{program}"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


@pytest.mark.parametrize("ending", ["sys.exit(1)", "next(batches)"])
def test_a_program_ends_though_its_loop_is_not_finished(ending: str) -> None:
    """By its own will or by an uncaught error, with the loop held in a cycle that nothing collects in time."""
    program = start(
        "batches = read_batches(Trouble(), list, [['pid'], ['bug']] + [['pid']] * 9, 2, pin_memory=False)\n"
        "held = [batches]\n"
        "held.append(held)\n"
        f"next(batches)\n{ending}\n"
    )
    program.communicate(timeout=60)
    assert program.returncode == 1


def test_workers_die_with_a_killed_program() -> None:
    """Reading the output ends when the last process that could write to it is gone: a worker, hanging."""
    program = start(
        "batches = read_batches(Trouble(), list, [['pid'], ['hang']], 1, pin_memory=False)\n"
        "print(*next(batches), flush=True)\n"
        "next(batches)\n"
    )
    assert program.stdout is not None and program.stdout.readline().strip().isdigit()
    program.kill()
    program.communicate(timeout=60)
    assert program.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_worker_that_hangs_does_not_keep_a_program_from_ending() -> None:
    """Stopped, as a process is that waits for a disk that has gone."""
    program = start(
        "batches = read_batches(Trouble(), list, [['pid']] * 99, 1, pin_memory=False)\n"
        "os.kill(next(batches)[0], signal.SIGSTOP)\n"
        "print('ending', flush=True)\n"
    )
    assert program.communicate(timeout=60)[0] == "ending\n" and program.returncode == 0


@pytest.mark.slow
def test_signals_while_workers_start_do_not_kill_them() -> None:
    """Spawned ones import torch for seconds; under our launcher they do so at each validation."""
    program = start(
        "multiprocessing.set_start_method('spawn')\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('asked to stop', flush=True))\n"
        "threading.Timer(0.5, os.killpg, (0, signal.SIGTERM)).start()\n"
        "print(list(read_batches(Trouble(), list, [[1, 2], [3]], 2, pin_memory=False)), flush=True)\n"
    )
    assert program.communicate(timeout=120)[0].splitlines() == ["asked to stop", "[[1, 2], [3]]"]
