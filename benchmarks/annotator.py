"""`annotate` against what bounds it: the bare forward pass of its teacher and the bare reading of its images.

Same network, batch, precision, decoder and workers. Reading includes the copy to the device and, with decoder gpu, the
decoding there. Target on a GPU: 90 % of the slower of the two.

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
from relabel.annotation.annotator import Settings, annotate, decoder_for
from relabel.annotation.teacher import Teacher, load_teacher
from relabel.annotation.whole_images import SquashedImages, read_squashed
from relabel.data.images import ImageList
from utils.errors import UserError
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
        rounds: values of each figure.
        decoders: each is measured.
    """

    arch: str
    size: int | None
    batch: int
    short: int
    more: int
    rounds: int
    decoders: tuple[str, ...] = ("auto",)


def main() -> None:
    """Time jobs, bare passes and bare reading of each teacher in turn."""
    options = arguments(__doc__ or "", images_option())
    cases = [Case("resnet18", None, 32, 64, 192, rounds=5)]
    if torch.cuda.is_available():
        wave, archs = 256 * available_cores(), ("resnet50", "timm/efficientnet_b3")
        cases = [Case(arch, None, 256, wave, 8 * wave, rounds=5, decoders=("auto", "gpu")) for arch in archs]
    if options.tiny:
        cases = [Case("timm/resnet10t", 64, 4, 8, 8, rounds=1)]
    figures, remarks = measure(cases, options)
    report("label maps of whole images", figures, remarks, options.json)


def measure(cases: Sequence[Case], options: argparse.Namespace) -> tuple[list[Figure], list[str]]:
    """Return the figures of all cases, and remarks."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    figures, refused = [], dict[str, str]()
    with tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate(cases):
            scratch = Path(folder, str(number))
            scratch.mkdir()
            photos = link_photos(options.images, scratch, case.short + case.more)
            decoders = {}
            for choice in case.decoders:
                try:
                    decoders[choice] = decoder_for(choice, device)
                except UserError as error:
                    refused[choice] = str(error).splitlines()[0]
            figures += case_figures(case, decoders, photos, device, scratch)
        size = mean_size(photos.take(np.arange(min(PHOTOS, len(photos)))))
    batches = ", ".join(f"{case.arch} {case.batch}" for case in cases)
    remark = (
        f"photos of {size / 1000:.0f} kB, decoder {decoder_for('auto', device)}, {available_cores()} workers; "
        f"{Precision('O1', device).name} on {device}; batch: {batches}"
    )
    return figures, [remark, *(f"decoder {choice}: not measured; {reason}" for choice, reason in refused.items())]


def case_figures(
    case: Case, decoders: dict[str, str], photos: ImageList, device: torch.device, folder: Path
) -> list[Figure]:
    """Return rates, shares and the time of the start for one teacher; `decoders`: choice -> name."""
    given = {} if case.size is None else {"size": (case.size, case.size)}
    teacher = load_teacher(case.arch, "random", None, given=given)
    measured: dict[str, list[tuple[float, float, float, float]]] = {choice: [] for choice in decoders}
    for number in with_progress(range(case.rounds), case.arch):
        forward = bare_pass(teacher, case, device)
        for choice, decoder in decoders.items():
            settings, out = Settings(5, False, "O1", case.batch, decoder), folder / f"{number}-{choice}"
            rate, start = job_rate(photos, out, teacher, settings, case, device)
            measured[choice].append((rate, start, forward, bare_reading(photos, teacher, settings, case, device)))
    figures = []
    for choice, values in measured.items():
        rate, start, forward, reading = np.array(values).T
        what = case.arch if choice == "auto" else f"{case.arch}, decoder {decoders[choice]}"
        slower = np.minimum(forward, reading)
        figures += [
            Figure.of(f"{what}: annotate", "images/s", rate),
            Figure.of(f"{what}: its start", "s", start),
            Figure.of(f"{what}: bare forward pass", "images/s", forward),
            Figure.of(f"{what}: bare reading", "images/s", reading),
            Figure.of(f"{what}: annotate / bare forward pass, same round", "%", 100 * rate / forward),
            Figure.of(f"{what}: annotate / the slower of both, same round", "%", 100 * rate / slower),
        ]
    return figures


def job_rate(
    photos: ImageList, out: Path, teacher: Teacher, settings: Settings, case: Case, device: torch.device
) -> tuple[float, float]:
    """Return images per second of a job at work, and the seconds of its start."""
    short, long = (
        job_seconds(images, out / str(len(images)), teacher, settings, device)
        for images in (photos.take(np.arange(case.short)), photos)
    )
    rate = case.more / (long - short)
    return rate, short - case.short / rate


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
    """Return images per second from files to the device without the network, after the short job's images."""
    rows, view = np.arange(len(photos)), teacher.data_config
    dataset = SquashedImages(photos, view.size, view.interpolation, settings.decoder, settings.max_megapixels)
    batches = [part.tolist() for part in np.split(rows, range(case.batch, len(rows), case.batch))]
    read, start = 0, 0.0
    for batch in read_squashed(dataset, batches, available_cores(), device):
        read += len(batch.rows)
        if start == 0.0 and read >= case.short:
            start, skipped = time.perf_counter(), read
    synchronize(device)
    end_workers()
    return (read - skipped) / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
