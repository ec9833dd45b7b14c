"""Launching one process, and what the machine or torchrun refuses; whole runs of several are in test_processes."""

from types import SimpleNamespace

import pytest
import torch

from utils.errors import UserError
from utils.processes.distributed import Process
from utils.processes.launch import launch

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="expects a machine without a GPU")


def run(gpu: int = -1, use: bool = True, n: int = 1, backend: str = "auto") -> list[object]:
    """Launch with these settings; returns what the function was called with."""
    distributed = SimpleNamespace(use=use, num_processes_per_node=n, url="tcp://127.0.0.1:6946", backend=backend)
    calls: list[object] = []
    settings = SimpleNamespace(gpu=gpu, distributed=distributed)
    launch(lambda *arguments: calls.extend(arguments), "argument", settings, "compute")
    return calls


def test_one_process_runs_here_without_a_group() -> None:
    process = Process(0, 1, 0, 1, torch.device("cpu"))
    assert run() == run(use=False, n=3) == [process, "argument"] and process.is_main


def test_what_the_machine_lacks_is_refused() -> None:
    with pytest.raises(UserError, match=r"compute\.gpu is 99(.|\n)*--compute\.gpu"):
        run(gpu=99)
    with pytest.raises(UserError, match=r"has 0 visible GPU(.|\n)*--compute\.distributed\.backend auto"):
        run(backend="nccl")


def test_a_chosen_gpu_is_refused_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="torchrun gives each process its own GPU"):
        run(gpu=0)
