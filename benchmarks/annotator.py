"""`annotate` against what bounds it: the bare forward pass of its teacher and the bare reading of its images.

Same network, batch, precision, decoder and workers. Target on a GPU: 90 % of the slower of the two.

A short and a long job run in turn. Their difference gives the rate of a job at work; what the short one takes beyond
that is its start: workers, the first batches, the first forward passes. The images are generated, 500 x 375 pixels and
about 110 kB like ImageNet's, or those of --images; one worker per core reads them.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.peers.photos import images_option, link_photos, mean_size
from benchmarks.result import Figure, arguments, report, synchronize, with_progress
from relabel.annotation.annotator import Settings, annotate, decoder_for, read_squashed
from relabel.annotation.teacher import Teacher, load_teacher
from relabel.data.images import ImageList
from utils.precision import Precision
from utils.processes.distributed import Process, available_cores
from utils.processes.workers import end_workers

PHOTOS = 400  # different files at most


@dataclass(frozen=True, slots=True)
class Case:
    """A teacher and how much is measured.

    Fields:
        arch: the teacher, with random weights.
        size: of its input, pixels; None: its own.
        batch: images per forward pass.
        short: images of the short job; a batch for each worker, at least.
        more: images that the long job has beyond these.
    """

    arch: str
    size: int | None
    batch: int
    short: int
    more: int


def main() -> None:
    """Time jobs, bare passes and bare reading of each teacher in turn."""
    options = arguments(__doc__ or "", images_option())
    cases, rounds = [Case("resnet18", None, 32, 64, 192)], 5
    if torch.cuda.is_available():
        wave = 256 * available_cores()
        cases = [Case(arch, None, 256, wave, 8 * wave) for arch in ("resnet50", "timm/efficientnet_b3")]
    if options.tiny:
        cases, rounds = [Case("timm/resnet10t", 64, 4, 8, 8)], 1
    figures, remarks = measure(cases, rounds, options)
    report("label maps of whole images", figures, remarks, options.json)


def measure(cases: Sequence[Case], rounds: int, options: argparse.Namespace) -> tuple[list[Figure], list[str]]:
    """Return the figures of all cases, and remarks."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate(cases):
            scratch = Path(folder, str(number))
            scratch.mkdir()
            photos = link_photos(options.images, scratch, case.short + case.more)
            figures += case_figures(case, photos, rounds, device, scratch)
        size = mean_size(photos.take(np.arange(min(PHOTOS, len(photos)))))
    batches = ", ".join(f"{case.arch} {case.batch}" for case in cases)
    remark = (
        f"photos of {size / 1000:.0f} kB, decoder {decoder_for('auto', device)}, {available_cores()} workers; "
        f"{Precision('O1', device).name} on {device}; batch: {batches}"
    )
    return figures, [remark]


def case_figures(case: Case, photos: ImageList, rounds: int, device: torch.device, folder: Path) -> list[Figure]:
    """Return rates, shares and the time of the start for one teacher."""
    given = {} if case.size is None else {"size": (case.size, case.size)}
    teacher = load_teacher(case.arch, "random", None, given=given)
    settings = Settings(5, False, "O1", case.batch, decoder_for("auto", device))
    few, measured = photos.take(np.arange(case.short)), []
    for number in with_progress(range(rounds), case.arch):
        seconds = [
            job_seconds(images, folder / f"{number}-{len(images)}", teacher, settings, device)
            for images in (few, photos)
        ]
        rate = case.more / (seconds[1] - seconds[0])
        forward, reading = bare_pass(teacher, case, device), bare_reading(photos, teacher, settings, case, device)
        measured.append((rate, seconds[0] - case.short / rate, forward, reading))
    rate, start, forward, reading = np.array(measured).T
    return [
        Figure.of(f"{case.arch}: annotate", "images/s", rate),
        Figure.of(f"{case.arch}: its start", "s", start),
        Figure.of(f"{case.arch}: bare forward pass", "images/s", forward),
        Figure.of(f"{case.arch}: bare reading", "images/s", reading),
        Figure.of(f"{case.arch}: annotate / bare forward pass, same round", "%", 100 * rate / forward),
        Figure.of(
            f"{case.arch}: annotate / the slower of both, same round", "%", 100 * rate / np.minimum(forward, reading)
        ),
    ]


def job_seconds(images: ImageList, out: Path, teacher: Teacher, settings: Settings, device: torch.device) -> float:
    """Return the seconds from files to a finished store."""
    start = time.perf_counter()
    annotate(
        images,
        out,
        teacher,
        settings,
        form="packed",
        skip_unreadable=False,
        num_workers=available_cores(),
        process=Process(0, 1, 0, 1, device),
    )
    end_workers()
    return time.perf_counter() - start


@torch.inference_mode()
def bare_pass(teacher: Teacher, case: Case, device: torch.device) -> float:
    """Return images per second of the network alone, on random input that is already on the device."""
    precision = Precision("O1", device)
    network = teacher.network.to(device).to(memory_format=torch.channels_last)
    images = torch.randn(case.batch, 3, *teacher.data_config.size, device=device, dtype=precision.input_dtype)
    images = images.contiguous(memory_format=torch.channels_last)
    passes = max(1, case.more // case.batch)
    with precision.autocast():
        network(images)
        synchronize(device)
        start = time.perf_counter()
        for _ in range(passes):
            network(images)
        synchronize(device)
    return passes * case.batch / (time.perf_counter() - start)


def bare_reading(photos: ImageList, teacher: Teacher, settings: Settings, case: Case, device: torch.device) -> float:
    """Return images per second of the workers alone, after the short job's images."""
    rows = np.arange(len(photos))
    batches = [part.tolist() for part in np.split(rows, range(case.batch, len(rows), case.batch))]
    read, start = 0, 0.0
    for batch in read_squashed(photos, teacher, settings, batches, available_cores(), device.type == "cuda"):
        read += len(batch.rows)
        if start == 0.0 and read >= case.short:
            start, skipped = time.perf_counter(), read
    end_workers()
    return (read - skipped) / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
