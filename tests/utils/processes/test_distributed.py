"""Places, shares and launching; whole runs of several processes are in test_processes."""

import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from utils.errors import UserError
from utils.processes.distributed import Process, StopRequest, from_main, gather_rows, launch, sum_over_processes

CPU = torch.device("cpu")


def settings(gpu: int = -1, use: bool = True, n: int = 1, backend: str = "auto") -> SimpleNamespace:
    """The compute section."""
    distributed = SimpleNamespace(use=use, num_processes_per_node=n, url="tcp://127.0.0.1:6946", backend=backend)
    return SimpleNamespace(gpu=gpu, distributed=distributed)


def test_a_total_is_shared_evenly_over_a_node() -> None:
    assert [Process(rank, 4, rank % 2, 2, CPU).share(12, "optim.batch_size") for rank in range(4)] == [6] * 4


def test_a_total_that_is_not_even_is_refused_with_one_that_is() -> None:
    with pytest.raises(UserError, match=r"optim\.batch_size is 10, but this node runs 4 (.|\n)* for example 8"):
        Process(0, 4, 0, 4, CPU).share(10, "optim.batch_size")


@pytest.mark.parametrize("values", [settings(), settings(use=False, n=3)])
@pytest.mark.skipif(torch.cuda.is_available(), reason="expects a CPU")
def test_one_process_runs_here_without_a_group(values: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    places: list[tuple[Process, str]] = []
    launch(lambda process, argument: places.append((process, argument)), "argument", values)
    assert places == [(Process(0, 1, 0, 1, CPU), "argument")]
    assert places[0][0].is_main


@pytest.mark.parametrize(
    ("values", "message"),
    [(settings(gpu=99), r"compute\.gpu is 99"), (settings(backend="nccl"), "shows no GPU")],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU refuses")
def test_what_the_machine_lacks_is_refused(values: SimpleNamespace, message: str) -> None:
    with pytest.raises(UserError, match=message):
        launch(lambda process, argument: None, None, values)


def test_a_chosen_gpu_is_refused_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="torchrun gives each process its own GPU"):
        launch(lambda process, argument: None, None, settings(gpu=0))


def test_one_process_agrees_with_itself() -> None:
    row = torch.tensor([1.0, 2.0])
    assert gather_rows(row).tolist() == [[1.0, 2.0]]
    assert sum_over_processes(row).tolist() == [1.0, 2.0]
    assert from_main(lambda: Path("x")) == Path("x")


@pytest.mark.usefixtures("own_handlers")
def test_stop_requests_are_noted_and_further_signals_ignored() -> None:
    with StopRequest() as stop:
        assert not stop
        signal.raise_signal(signal.SIGUSR1)
        assert stop and stop.signal_name == "SIGUSR1"
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        assert signal.getsignal(number) is signal.SIG_IGN


def test_without_a_request_the_handlers_are_restored() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with StopRequest():
        assert signal.getsignal(signal.SIGUSR1) is not before
    assert signal.getsignal(signal.SIGUSR1) is before
