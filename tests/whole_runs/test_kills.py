"""kill -9 at any moment loses nothing: a run continues exactly, and a checkpoint is whole or absent."""

import ctypes
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_flatten

from tests.conftest import Flags, Tried, cases
from tests.forked_runs import CONTEXT, SignalAt, fork_run
from tests.relabel.training.test_run import metrics, start, status
from utils.checkpoint import BEST, LAST, PREVIOUS, DamagedCheckpoint, load_checkpoint, load_latest, save_checkpoint
from utils.errors import UserError
from utils.files import remove_temporaries
from utils.run_log import METRICS

KILLS_OF_A_RUN, KILLS_OF_SAVES, FLIPS = cases(4), cases(25), cases(1000)

CUTMIX = {"data.cutmix.prob": 0.5, "data.cutmix.beta": 1.0, "data.cutmix.off_epoch": 1}
ADAMP = {"optim.optimizer": "adamp"}
EMA = {"optim.ema.decay": 0.9}
ACCUMULATION = {"optim.accumulation": 3, "optim.batch_size": 12, "optim.epochs": 4}
COVERING_RUNS: dict[str, tuple[int, int, Flags]] = {  # workers, processes, flags
    "3 processes, CutMix": (0, 3, CUTMIX),
    "2 workers": (2, 1, {}),
    "AdamP, CutMix, EMA": (0, 1, ADAMP | CUTMIX | EMA),
    "2 processes, 2 workers, AdamP, CutMix, EMA, accumulation": (2, 2, ADAMP | CUTMIX | EMA | ACCUMULATION),
}
# Where a run is killed: dotted name -> a number of calls that every run makes.
MOMENTS = {
    "relabel.training.trainer.Trainer._update": 4,  # between the gradients and the new weights
    "relabel.training.validation.top_classes": 3,  # in validation
    "torch.serialization._save": 2,  # the checkpoint's temporary file is open
    "os.fsync": 8,  # of the metrics, the checkpoint, its folder, the status
    "pathlib.Path.replace": 6,  # last -> previous, new -> last, the status
    "utils.run_log.MetricsLog.write": 3,
}
# The main process alone writes.
BY_ALL = ("relabel.training.trainer.Trainer._update", "relabel.training.validation.top_classes", "")


def state_of(folder: Path, name: str) -> dict[str, Any]:
    """All of a checkpoint but what depends on the clock: the length of the metrics, too, is that of rates."""
    state: dict[str, Any] = load_checkpoint(folder / name)
    return {key: value for key, value in state.items() if key not in ("elapsed_s", "metrics_bytes")}


def assert_equal(first: Any, second: Any, where: str = "") -> None:
    """Bit for bit, all the way down."""
    (leaves, form), (others, other_form) = tree_flatten(first), tree_flatten(second)
    assert form == other_form, where
    for one, other in zip(leaves, others, strict=True):
        if isinstance(one, torch.Tensor):
            assert one.dtype == other.dtype and torch.equal(one, other), where
        else:
            assert one == other, where


def assert_same_run(first: Path, second: Path) -> None:
    """The same checkpoints and metrics, and the same files but for figures and the checkpoint before the last."""
    files = ([path for path in folder.iterdir() if path.suffix != ".png"] for folder in (first, second))
    names, others = ({path.name for path in paths} - {PREVIOUS} for paths in files)
    assert names == others
    for name in names & {LAST, BEST}:
        assert_equal(state_of(first, name), state_of(second, name), name)
    assert metrics(first) == metrics(second)


def start_and_kill(
    flags: Flags, output: Path, processes: int, number: int, rng: np.random.Generator, seconds: float
) -> bool:
    """Start a run and kill one of its processes, and so all. False if the run ended before.

    Args:
        number: of the kill, in turn at each of MOMENTS and at any time of the clock.
        seconds: that the run takes.
    """
    function = [*MOMENTS, ""][number % (len(MOMENTS) + 1)]
    rank = number % processes if function in BY_ALL else 0
    if function:
        fault = SignalAt(function, int(rng.integers(1, MOMENTS[function] + 1)))
        run = fork_run(flags, output, processes, {rank: fault})
    else:
        run = fork_run(flags, output, processes)
        run.processes[rank].join(float(rng.uniform(0, seconds)))
        run.processes[rank].kill()
    if run.end_of(rank) == -signal.SIGKILL:
        return True
    assert run.ends() == [0] * processes, output.read_text()
    return False


@pytest.mark.slow
@pytest.mark.parametrize("name", COVERING_RUNS)
def test_a_run_killed_many_times_is_the_undisturbed_run(flags: Flags, tmp_path: Path, name: str, tried: Tried) -> None:
    workers, processes, settings = COVERING_RUNS[name]
    row = list(COVERING_RUNS).index(name)
    flags |= {"optim.epochs": 2, **settings, "compute.num_workers": workers}
    flags["util.checkpoint_minutes"] = 0 if row % 2 else 60
    output, folder, undisturbed = tmp_path / "output", flags["util.run_dir"], tmp_path / "undisturbed"
    began = time.monotonic()
    ends = fork_run({**flags, "util.run_dir": undisturbed}, output, processes).ends()
    assert ends == [0] * processes, output.read_text()
    rng, seconds, kills = np.random.default_rng(row), time.monotonic() - began, 0
    while kills < KILLS_OF_A_RUN:
        if start_and_kill(flags, output, processes, row + kills, rng, seconds):
            kills += 1
        else:
            assert_same_run(undisturbed, folder)
            shutil.rmtree(folder)
    assert fork_run(flags, output, processes).ends() == [0] * processes, output.read_text()
    assert_same_run(undisturbed, folder)
    tried(kills)


@pytest.mark.slow
def test_a_kill_between_the_checkpoints_of_a_validation_loses_neither(flags: Flags, tmp_path: Path) -> None:
    """The best one, then the last one, which records that the epoch was validated."""
    flags |= {"optim.epochs": 1, "optim.warmup.epochs": 0}
    start({**flags, "util.run_dir": tmp_path / "undisturbed"})
    for n, function in ((2, "save_checkpoint"), (1, "link_checkpoint")):
        run = {**flags, "util.run_dir": tmp_path / function}
        kill = {0: SignalAt(f"relabel.training.trainer.{function}", n)}
        assert fork_run(run, tmp_path / "output", 1, kill).ends() == [-signal.SIGKILL]
        start(run)
        assert_same_run(tmp_path / "undisturbed", tmp_path / function)


# ---- one checkpoint


def numbered(step: int) -> dict[str, Any]:
    """A checkpoint whose every part holds its step; 2 MB, so that writing it takes a while."""
    state = {"w": torch.full((500_000,), float(step)), "b": torch.full((3,), float(step))}
    return {"step": step, "state_dict": state, "optimizer": {}, "meters": torch.zeros(1, 3)}


def save_for_ever(folder: Path, first: int, done: Any) -> None:
    """Save checkpoint after checkpoint, and report each step that is saved."""
    torch.set_num_threads(1)
    for step in range(first, first + 1_000_000):
        save_checkpoint(numbered(step), folder / LAST, keep_old_as=folder / PREVIOUS)
        done.send(step)


def test_a_killed_save_leaves_the_checkpoint_before_or_the_new_one(tmp_path: Path, tried: Tried) -> None:
    rng, step, interrupted = np.random.default_rng(0), 0, 0
    for _ in range(KILLS_OF_SAVES):
        receiver, sender = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=save_for_ever, args=(tmp_path, step + 1, sender))
        process.start()
        sender.close()
        step = receiver.recv()  # it is saving; the kill comes at any moment
        process.join(float(rng.uniform(0, 0.02)))
        process.kill()
        process.join()
        while receiver.poll():  # what it reported before its end
            try:
                step = receiver.recv()
            except EOFError:
                break
        interrupted += any(tmp_path.glob(f".{LAST}.*.tmp"))
        remove_temporaries(tmp_path)
        state, _, note = load_latest(tmp_path)
        assert state is not None and note == ""
        assert state["step"] - step in (0, 1)
        step = state["step"]
        assert_equal(state, numbered(step))
        if (tmp_path / PREVIOUS).exists() and (tmp_path / LAST).exists():
            assert_equal(load_checkpoint(tmp_path / PREVIOUS), numbered(step - 1))
    tried(KILLS_OF_SAVES)
    assert interrupted  # saves were met, not only what is between them


def small_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]]:
    """A checkpoint of a few kilobytes, with what it holds."""
    state = {
        "step": 7,
        "accuracy": 61.5,
        "state_dict": {"w": torch.arange(60.0).reshape(5, 12), "n": torch.tensor(3)},
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(5, 12)}}, "param_groups": [{"lr": 0.1}]},
        "class_names": ["ant", "bee"],
    }
    save_checkpoint(state, folder / LAST)
    return folder / LAST, state


def test_no_flipped_bit_is_read_silently(tmp_path: Path, tried: Tried) -> None:
    """Flips in padding change nothing that is read; any other is found."""
    path, state = small_checkpoint(tmp_path)
    whole = path.read_bytes()
    rng, found, flips = np.random.default_rng(1), 0, min(FLIPS, 8 * len(whole))
    for bit in rng.choice(8 * len(whole), flips, replace=False).tolist():
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert_equal(load_checkpoint(path), state, f"bit {bit}")
        except DamagedCheckpoint:
            found += 1
    tried(flips)
    assert found > flips // 10


def test_no_truncated_checkpoint_is_read(tmp_path: Path, tried: Tried) -> None:
    path, _ = small_checkpoint(tmp_path)
    whole = path.read_bytes()
    for length in np.linspace(0, len(whole) - 1, 100, dtype=int).tolist():
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedCheckpoint, match=LAST):
            load_checkpoint(path)
    tried(100)


# ---- disks that are full, folders that are read-only


@contextmanager
def without_roots_rights() -> Iterator[None]:
    """Permissions bind this process even as root: it drops CAP_DAC_OVERRIDE for a while."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    before, without = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    assert libc.capget(header, before) == libc.capget(header, without) == 0
    without[0] &= ~(1 << 1)
    assert libc.capset(header, without) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0


def test_a_folder_that_may_not_be_written_is_refused_before_the_first_step(
    flags: Flags, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new run and one to be continued; nothing in the folder changes."""
    folder = flags["util.run_dir"]
    folder.mkdir()
    monkeypatch.setattr("relabel.training.trainer.Trainer.train_step", None)
    refusal = rf"run folder {folder} cannot be written: Permission denied"
    for _ in ("new", "begun"):
        content = {path.name: path.read_bytes() for path in folder.iterdir()}
        folder.chmod(0o555)
        with without_roots_rights(), pytest.raises(UserError, match=refusal):
            start(flags)
        folder.chmod(0o755)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == content
        with pytest.raises(TypeError):  # it may be written now, and train_step is None
            start(flags)


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file grows above this many bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(tmp_path: Path) -> None:
    save_checkpoint(numbered(1), tmp_path / LAST)
    size = (tmp_path / LAST).stat().st_size
    for room in (0, 100, size // 2, size - 1):
        with disk_of(room), pytest.raises(UserError, match=rf"{LAST} cannot be written.*Make room"):
            save_checkpoint(numbered(2), tmp_path / LAST, keep_old_as=tmp_path / PREVIOUS)
        assert [path.name for path in tmp_path.iterdir()] == [LAST]
    assert_equal(load_checkpoint(tmp_path / LAST), numbered(1))


@pytest.mark.parametrize(("size", "what"), [(1000, "config.yaml"), (5000, METRICS), (100_000, LAST)])
def test_a_run_on_a_full_disk_says_so_and_continues_when_there_is_room(
    flags: Flags, tmp_path: Path, size: int, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The three grow in this order, and beyond these sizes: 15 lines of metrics come before the first checkpoint.

    What is printed is kept in memory (capsys): it would meet the limit, too.
    """
    flags |= {"util.print_freq": 1, "optim.batch_size": 2, "data.image_size": 32}
    flags |= {"optim.epochs": 1, "optim.warmup.epochs": 0}
    start({**flags, "util.run_dir": tmp_path / "undisturbed"})
    with disk_of(size), pytest.raises(UserError, match=rf"{what} (could not|cannot) be written: (.|\n)*Make room"):
        start(flags)
    if what != "config.yaml":
        assert status(flags["util.run_dir"])["state"] == "failed"
    start(flags)
    assert_same_run(tmp_path / "undisturbed", flags["util.run_dir"])
