"""Shared by several test files: a small data set of photos with label maps, and ways to run main.py on it.

Property-based tests try 350 generated cases each, the same in every run; attacks try the number in their files. With
RELABEL_TEST_CASES=N in the environment each tries N, and the generated cases differ from run to run. The last lines of
a run count the cases.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not Path("/dev/nvidiactl").exists():  # before Triton is imported: without a GPU, its kernels are interpreted
    os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from relabel.label_map import LabelMap
from relabel.stores.pt_folder import write_label_map
from tests.promises import GENERATED, HEADINGS, TRIED, counted
from utils.processes.distributed import STOP_SIGNALS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
CLASSES = ("ant", "bee", "cow")

ASKED = int(os.environ.get("RELABEL_TEST_CASES", 0))


def cases(usual: int) -> int:
    """Number of cases that a test tries: its usual number, or that of the environment."""
    return ASKED or usual


settings.register_profile("tests", max_examples=cases(350), derandomize=not ASKED, deadline=None)
settings.load_profile("tests")

Flags = dict[str, Any]
Tried = Callable[[int], None]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Count the cases of a property-based test that hold; a user property reaches the report from other processes."""
    test = getattr(getattr(item, "obj", None), "hypothesis", None)
    if test is None:
        return (yield)
    inner, tried = test.inner_test, 0

    def counting(*words: object, **named: object) -> None:
        nonlocal tried
        inner(*words, **named)
        tried += 1

    test.inner_test = counting
    try:
        return (yield)
    finally:
        test.inner_test = inner
        item.user_properties.append((GENERATED, tried))


@pytest.fixture
def tried(record_property: Callable[[str, object], None]) -> Tried:
    """Record the number of cases that a test has tried, if it is not one."""
    return lambda count: record_property(TRIED, count)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was tried against each promise."""
    reports = [r for word in ("passed", "failed") for r in terminalreporter.getreports(word) if r.when == "call"]
    if lines := list(counted(reports)):
        terminalreporter.write_line("\n".join([HEADINGS, *lines]))


def make_photos(folder: Path, per_class: dict[str, int], rng: np.random.Generator) -> None:
    """Noisy photos, 40 x 28 pixels; each class is bright in a channel of its own."""
    for channel, (name, count) in enumerate(per_class.items()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 160, (28, 40, 3))
            pixels[:, :, channel] += 90
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{name}.{i:02d}.JPEG", quality=95)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ of 30 and val/ of 13 images in three classes, and labels/: correct maps of 3 x 4 cells."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    make_photos(folder / "train", dict.fromkeys(CLASSES, 10), rng)
    make_photos(folder / "val", {"ant": 5, "bee": 4, "cow": 4}, rng)
    for label, name in enumerate(CLASSES):
        for i in range(10):
            dense = rng.normal(size=(3, 3, 4)).astype(np.float32)
            dense[label] += 8
            write_label_map(folder / "labels", f"{name}/{name}.{i:02d}", LabelMap.from_dense(dense, 2))
    return folder


@pytest.fixture
def own_handlers() -> Iterator[None]:
    """Restore signal handlers after a test: a run that was asked to stop ignores signals until its process ends."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def flags(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_handlers: None) -> Flags:
    """A run of seconds: 3 epochs of 5 updates of 6 small crops, repeatable on a CPU, in the test's own run folder."""
    torch.set_num_threads(1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("relabel.cli.run.FIGURES", None)  # drawing takes longer than the run
    return {
        "model.arch": "digit_net",
        "data.data_path": photos,
        "data.relabel.path": photos / "labels",
        "data.image_size": 16,
        "optim.batch_size": 6,
        "optim.epochs": 3,
        "optim.warmup.epochs": 1,
        "optim.lr.init": 0.05,
        "compute.seed": 3,
        "compute.num_workers": 0,
        "compute.opt_level": "O0",
        "util.print_freq": 2,
        "util.val_batch_size": 6,
        "util.run_dir": tmp_path / "run",
    }


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> "list[Figure]":
    """The figures that are saved while a test runs."""
    from matplotlib.figure import Figure  # takes half a second, and most tests do not need it

    figures: list[Figure] = []
    save = Figure.savefig

    def keep(self: Figure, *words: object, **settings: object) -> None:
        figures.append(self)
        save(self, *words, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def command_line(flags: Flags) -> list[str]:
    """main.py with these flags over base.yaml."""
    words = [sys.executable, str(ROOT / "main.py")]
    for key, value in flags.items():
        words += [f"--{key}", str(value)]
    return words


def environment() -> dict[str, str]:
    """One thread for each process, so that sums keep their order; no GPU, where runs do not repeat bit for bit."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture
def run_main() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run main.py to its end in a process of its own."""

    def run(flags: Flags, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        command = command_line(flags)
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment())

    return run
