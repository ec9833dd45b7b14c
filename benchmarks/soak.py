"""A long training, observed from outside: do memory, open files, threads or shared memory grow?

    nice -n 19 python -m benchmarks.soak [--minutes N] [--json FILE]

main.py trains the demo's network on digit scenes with label maps, CutMix and averaged weights, on two workers. It
writes a checkpoint after every update and validates, with workers of its own, after every twelve, until it gets
SIGTERM. Meanwhile all its processes are sampled through /proc. Growth is measured in the second half, as the slope of
a line through the medians of ten equal spans. With --json, a figure is written beside the file.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure as Picture
from scipy.special import stdtrit

from benchmarks.label_store import random_map, write_packed
from benchmarks.result import Figure, arguments, report
from relabel.data.folders import list_images
from relabel.demo.scenes import write_scenes
from relabel.demo.small_images import DigitImages
from relabel.figures.colours import INK, MUTED, PALETTE
from relabel.figures.panels import DPI, plain_axes, save
from utils.checkpoint import LAST
from utils.errors import EXIT_PREEMPTED
from utils.run_log import read_metrics

ROOT = Path(__file__).resolve().parents[1]
MINUTES, TINY_MINUTES = 30.0, 0.1
SPANS = 10  # of the second half
TARGET = 1.0  # % of its level by which nothing may grow in an hour
START_PATIENCE_S = 300.0
BATCH, TRAIN, VAL = 32, 384, 100


WATCHED = {
    "memory (PSS)": "MB",
    "memory, what is shared counted each time (RSS)": "MB",
    "memory of the main process (PSS)": "MB",
    "shared memory (in PSS)": "MB",
    "/dev/shm in use, by all programs": "MB",
    "open files": "files",
    "threads": "threads",
    "processes": "processes",
}
# Of the figure: title -> indices of what is drawn.
PANELS = {"memory, MB": (0, 2), "shared memory, MB": (3, 4), "open files": (5,), "threads and processes": (6, 7)}


def main() -> None:
    """Train for some minutes and report what grew."""
    options = arguments(__doc__ or "", minutes_option())
    minutes, train = (TINY_MINUTES, BATCH) if options.tiny else (options.minutes, TRAIN)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder, train)
        with training(folder) as main_process:
            hours, samples = watch(main_process, minutes)
        left = len(processes_of(main_process))
        events = read_metrics(folder / "run")
    validations = sum(event.get("weights") == "model" for event in events)
    second = hours >= hours[-1] / 2
    slopes = [growth(hours[second], samples[second, i]) for i in range(len(WATCHED))]
    remarks = [
        f"digit_net at 48 px, batch {BATCH}, 2 workers; {60 * hours[-1]:.1f} minutes, {len(hours):,} looks, "
        f"{events[-1]['step']:,} updates and checkpoints, {validations:,} validations; "
        f"{left} processes left behind",
        *(growth_in_words(*row) for row in zip(WATCHED, slopes, np.median(samples[second], axis=0), strict=True)),
    ]
    figures = [Figure.of(name, unit, samples[second, i]) for i, (name, unit) in enumerate(WATCHED.items())]
    report("a long training, its second half", figures, remarks, options.json)
    if options.json:
        draw(hours, samples, options.json.with_suffix(".png"))


def minutes_option() -> argparse.ArgumentParser:
    """Make the option --minutes for `arguments`."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="how long to watch (default: %(default)g)")
    return parser


def write_data(folder: Path, train: int) -> None:
    """scenes/ and labels/: digit scenes, and label maps that say anything, which costs as much as the truth."""
    write_scenes(DigitImages(), folder / "scenes", train=train, val=min(train, VAL))
    images = list_images(folder / "scenes" / "train")
    rng = np.random.default_rng(0)
    maps = [random_map(rng, num_classes=20) for _ in range(8)]
    write_packed(folder / "labels", images.keys(), [*images.class_names, *(f"class {i}" for i in range(10, 20))], maps)


@contextmanager
def training(folder: Path) -> Iterator[int]:
    """Run main.py and yield its process id, which is also its session's, once it has written a checkpoint."""
    flags = {
        "data.data_path": folder / "scenes",
        "data.relabel.path": folder / "labels",
        "data.relabel.insist": True,
        "data.cutmix.prob": 0.5,
        "data.cutmix.beta": 1,
        "optim.epochs": 1_000_000,
        "optim.batch_size": BATCH,
        "optim.lr.init": 0.01,
        "optim.ema.decay": 0.99,
        "util.val_batch_size": VAL,
        "util.print_freq": 1,
        "util.checkpoint_minutes": 0,
        "util.tensorboard": True,
        "util.run_dir": folder / "run",
    }
    words = [f"--{key}={value}" for key, value in {"config-file-path": "configs/digits/relabel.yaml", **flags}.items()]
    with (folder / "log").open("wb") as log:
        command = [sys.executable, "main.py", *words]
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + START_PATIENCE_S
        while not (folder / "run" / LAST).exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        if (status := process.wait()) != EXIT_PREEMPTED:
            raise RuntimeError(f"the training ended with status {status}:\n{(folder / 'log').read_text()[-3000:]}")


def watch(leader: int, minutes: float) -> tuple[np.ndarray, np.ndarray]:
    """Sample a training until the time is over.

    Args:
        leader: process id; of the session too.
        minutes: duration.

    Returns:
        Hours since the first sample [n], and the samples [n, len(WATCHED)].
    """
    seconds: list[float] = []
    samples: list[list[float]] = []
    start = time.monotonic()
    pause = min(1.0, 60 * minutes / 50)
    next_line = 60.0
    while len(seconds) < 2 * SPANS or seconds[-1] < 60 * minutes:
        samples.append(look(leader))
        seconds.append(time.monotonic() - start)
        if seconds[-1] > next_line:
            next_line += 60
            print(
                f"soak  {seconds[-1] / 60:.0f} of {minutes:g} minutes  {samples[-1][0]:,.0f} MB of memory", flush=True
            )
        time.sleep(pause)
    return np.array(seconds) / 3600, np.array(samples)


def look(leader: int) -> list[float]:
    """Return each of WATCHED, now."""
    found = {pid: seen for pid in processes_of(leader) if (seen := look_at(pid)) is not None}
    rss, pss, shared, files, threads = np.array(list(found.values())).sum(axis=0)
    disk = os.statvfs("/dev/shm")
    in_use = (disk.f_blocks - disk.f_bfree) * disk.f_frsize / 1e6
    return [pss, rss, found[leader][1], shared, in_use, files, threads, len(found)]


def processes_of(leader: int) -> list[int]:
    """Return the processes of a session."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(ProcessLookupError):
            if os.getsid(int(place.name)) == leader:
                found.append(int(place.name))
    return found


def look_at(pid: int) -> tuple[float, float, float, int, int] | None:
    """Return MB of RSS, PSS and shared memory in PSS, open files, threads; None for a process that has just ended."""
    place = Path("/proc", str(pid))
    try:
        lines = (place / "smaps_rollup").read_text().splitlines()[1:]
        files, threads = (len(list((place / name).iterdir())) for name in ("fd", "task"))
    except OSError:
        return None
    memory = {line.split(":")[0]: int(line.split()[1]) * 1024 / 1e6 for line in lines}
    return (memory["Rss"], memory["Pss"], memory["Pss_Shmem"], files, threads) if memory else None


def growth(hours: np.ndarray, values: np.ndarray) -> tuple[float, float, float]:
    """Fit a line through the medians of equal spans; return its slope per hour with the 95 % interval of Student's t.

    Consecutive samples are correlated, so a line through all of them would look more certain than it is.

    Args:
        hours: float [n], rising.
        values: float [n].

    Returns:
        Slope, and the interval around it.
    """
    spans = np.array_split(np.arange(len(hours)), SPANS)
    x, y = (np.array([np.median(of[span]) for span in spans]) for of in (hours, values))
    x, y = x - x.mean(), y - y[0]
    slope = float(x @ y / (x @ x))
    rest = y - y.mean() - slope * x
    half = float(stdtrit(SPANS - 2, 0.975) * np.sqrt(rest @ rest / (SPANS - 2) / (x @ x)))
    return slope, slope - half, slope + half


def growth_in_words(name: str, slope: tuple[float, float, float], level: float) -> str:
    """Describe the growth of one of WATCHED, and whether it significantly exceeds the target."""
    grows = slope[1] > 0 and slope[0] > TARGET / 100 * level
    interval = f"{slope[0]:+.3g} {WATCHED[name]} an hour, 95 % interval {slope[1]:+.3g} to {slope[2]:+.3g}"
    return f"{name}: {interval}{f'; GROWS by more than {TARGET:g} %' if grows else ''}"


def draw(hours: np.ndarray, samples: np.ndarray, out: Path) -> None:
    """Draw the values over time, one point per sample.

    Args:
        hours: float [n].
        samples: float [n, len(WATCHED)].
        out: the PNG to write.
    """
    names = list(WATCHED)
    picture = Picture(figsize=(7.3, 5.6), layout="constrained", dpi=DPI)
    for place, (title, panel) in enumerate(PANELS.items(), 1):
        axes = picture.add_subplot(2, 2, place)
        for colour, i in zip(PALETTE, panel, strict=False):
            axes.plot(60 * hours, samples[:, i], ".", markersize=2, color=colour, label=names[i])
        axes.axvline(30 * hours[-1], ymax=0.75, color=INK, linewidth=0.8, linestyle=":")
        axes.set_ylim(0, 1.45 * max(samples[:, panel].max(), 1))
        axes.set_title(title, fontsize=11, color=INK, loc="left")
        axes.set_xlabel("minutes", fontsize=10, color=INK)
        axes.legend(frameon=False, fontsize=9, loc="upper left", markerscale=4, handletextpad=0.1)
        plain_axes(axes, "y")
    picture.supxlabel("dotted: the start of the second half, in which growth is measured", fontsize=10, color=MUTED)
    save(picture, out)
    print(f"written: {out}")


if __name__ == "__main__":
    main()
