"""Ranks, shares of a node, and what processes agree on; whole runs of several processes are in test_processes."""

import os
import signal
import sys
from pathlib import Path

import pytest
import torch

from utils.errors import UserError
from utils.processes import distributed
from utils.processes.distributed import (
    STOP_SIGNALS,
    Process,
    StopRequest,
    cores_of,
    from_main,
    gather_objects,
    sum_over_processes,
)

CPU = torch.device("cpu")


def test_a_total_is_shared_evenly_over_a_node() -> None:
    assert [Process(rank, 4, rank % 2, 2, CPU).share(12, "optim.batch_size") for rank in range(4)] == [6] * 4
    with pytest.raises(
        UserError, match=r"optim\.batch_size is 10, which is not divisible by the 4 processes(.|\n)* for example 8"
    ):
        Process(0, 4, 0, 4, CPU).share(10, "optim.batch_size")


@pytest.mark.parametrize(
    ("affinities", "shares"),
    [
        ([range(8)] * 2, [4, 4]),  # one container for all
        ([range(4), range(4, 8)], [4, 4]),  # srun has bound each process to cores of its own
        ([range(3)] * 4, [1, 1, 1, 1]),
        ([range(6), range(3, 6)], [4, 1]),
    ],
)
def test_cores_are_divided_only_among_the_processes_that_may_run_on_them(
    monkeypatch: pytest.MonkeyPatch, affinities: list[range], shares: list[int]
) -> None:
    """On each of two nodes: the other node's cores have the same numbers and do not count."""
    n = len(affinities)
    everyone = [(node, set(cores)) for node in (0, n) for cores in affinities]
    monkeypatch.setattr(distributed, "gather_objects", lambda value: everyone)
    for rank in range(2 * n):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, rank=rank: everyone[rank][1])
        assert cores_of(Process(rank, 2 * n, rank % n, n, CPU)) == shares[rank % n]


def test_one_process_agrees_with_itself() -> None:
    row = torch.tensor([1.0, 2.0])
    assert gather_objects(3) == [3]
    assert sum_over_processes(row).tolist() == [1.0, 2.0]
    assert from_main(lambda: Path("x")) == Path("x")


@pytest.mark.usefixtures("own_handlers")
def test_stop_requests_are_noted_and_further_signals_ignored() -> None:
    with StopRequest() as stop:
        assert not stop
        signal.raise_signal(signal.SIGUSR1)
        assert stop and stop.signal_name == "SIGUSR1"
    assert {signal.getsignal(number) for number in STOP_SIGNALS} == {signal.SIG_IGN}


@pytest.mark.usefixtures("own_handlers")
def test_in_a_notebook_signals_work_again_after_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "ps1", "In : ", raising=False)
    before = signal.getsignal(signal.SIGINT)
    with StopRequest():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.usefixtures("own_handlers")
def test_under_nohup_a_run_outlives_its_terminal() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert not stop


def test_without_a_request_the_handlers_are_restored() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with StopRequest():
        assert signal.getsignal(signal.SIGUSR1) is not before
    assert signal.getsignal(signal.SIGUSR1) is before
