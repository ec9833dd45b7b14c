"""`annotate` against the bare forward pass of its teacher: same network, batch, precision. Target on a GPU: 90 %.

The images are generated, 500 x 375 pixels and about 110 kB like ImageNet's, and read by one worker per core.
"""

import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.peers.photos import write_photos
from benchmarks.result import Figure, arguments, report, synchronize, with_progress
from relabel.annotation.annotator import Settings, annotate
from relabel.annotation.teacher import Teacher, load_teacher
from relabel.data.sources import open_images
from utils.precision import Precision
from utils.processes.distributed import Process


def main() -> None:
    """Time whole jobs and bare passes of each teacher in turn."""
    options = arguments(__doc__ or "")
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    archs, count, batch, rounds = ["resnet18"], 256, 32, 5
    if on_gpu:
        archs, count, batch = ["resnet50", "timm/efficientnet_b3"], 20_000, 256
    if options.tiny:
        archs, count, batch, rounds = ["timm/resnet10t"], 16, 8, 1
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        size = write_photos(Path(folder, "photos"), count)
        for arch in archs:
            teacher = load_teacher(arch, "random", None, given={"size": (64, 64)} if options.tiny else {})
            whole, bare = [], []
            for number in with_progress(range(rounds), arch):
                whole.append(whole_job(Path(folder), teacher, number, batch, device))
                bare.append(bare_pass(teacher, count, batch, device))
            figures += [
                Figure.of(f"{arch}: annotate, whole job", "images/s", whole),
                Figure.of(f"{arch}: bare forward pass", "images/s", bare),
                Figure.of(f"{arch}: annotate / bare, same round", "%", 100 * np.array(whole) / np.array(bare)),
            ]
    remarks = [f"{count:,} photos of {size / 1000:.0f} kB, batch {batch}, {workers()} workers, O1 on {device}"]
    report("label maps of whole images", figures, remarks, options.json)


def workers() -> int:
    """Return the number of worker processes."""
    return len(os.sched_getaffinity(0))


def whole_job(folder: Path, teacher: Teacher, number: int, batch: int, device: torch.device) -> float:
    """Return images per second from files to a finished store."""
    images = open_images(folder / "photos")
    out = folder / f"{teacher.description['arch']}-{number}".replace("/", "-")
    start = time.perf_counter()
    annotate(
        images,
        out,
        teacher,
        Settings(k=5, flip=False, opt_level="O1", batch_size=batch),
        form="packed",
        skip_unreadable=False,
        num_workers=workers(),
        process=Process(0, 1, 0, 1, device),
    )
    return len(images) / (time.perf_counter() - start)


@torch.inference_mode()
def bare_pass(teacher: Teacher, count: int, batch: int, device: torch.device) -> float:
    """Return images per second of the network alone, on random input that is already on the device."""
    precision = Precision("O1", device)
    network = teacher.network.to(device).to(memory_format=torch.channels_last)
    images = torch.randn(batch, 3, *teacher.data_config.size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    passes = max(1, count // batch)
    with precision.autocast():
        network(images)
        synchronize(device)
        start = time.perf_counter()
        for _ in range(passes):
            network(images)
        synchronize(device)
    return passes * batch / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
