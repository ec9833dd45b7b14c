"""ImageNet-21K as 3,000 tar files on one node: time until a run goes on in the middle of an epoch, and memory.

Targets: opened from the index in 5 s, the order of an epoch in 2 s, the first batch of a continued run in 5 s, and
1.5 GB for a main process, 2 ranks and their 8 workers together: the sum of their PSS, in which a page that several
processes share counts once, after the whole index has been read. The same with few images shows what Python and torch
take. The tar files are sparse (no bytes on the disk) and their index is written without walking them; names, classes
and positions are as many and as long as ImageNet-21K's, in an order without a pattern.
"""

import multiprocessing
import pickle
import tarfile
import tempfile
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist

from benchmarks.result import Figure, arguments, report, with_progress
from relabel.crop_box import CropBox
from relabel.data.dataset import Key, Sample
from relabel.data.images import Census, ImageList, ImagePath
from relabel.data.loader import Loader, TrainBatches, epoch_order
from relabel.data.sources import open_split
from relabel.data.tar_files import TarFiles
from relabel.data.tar_index import list_tars
from relabel.training.run import fingerprint
from utils.processes.distributed import from_main
from utils.processes.startup import keep_freed_memory

IMAGES, CLASSES, SHARDS = 14_197_122, 21_841, 3_000
RANKS, WORKERS, BATCH = 2, 4, 256  # workers and batch of each rank
BATCHES = 8  # read before the memory is measured
STEP_BYTES, IMAGE_BYTES = 110_080, 109_056  # from image to image, and of each

UNITS = {
    "opened from the index": "s",
    "order of an epoch": "s",
    "order of an epoch, processor time": "s",
    "first batch of a continued run, with opening and hashing the names": "s",
    "the same, processor time of the rank": "s",
    "size in a worker (pickled)": "MB",
    "memory of all processes": "MB",
}


def main() -> None:
    """Continue the simulated run several times: with all images or few, workers forked or started anew."""
    options = arguments(__doc__ or "")
    count, shards = (20_000, 30) if options.tiny else (IMAGES, SHARDS)
    sizes = (count,) if options.tiny else (count, 10 * shards)
    repeats_of = {"fork": 1} if options.tiny else {"fork": 3, "forkserver": 1}
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        for images in sizes:
            _run(write_shards, folder, images, shards)
            for method, repeats in repeats_of.items():
                rounds = with_progress(range(repeats), f"continuing, {images:,} images, {method}")
                values = np.array([node(folder, method) for _ in rounds])
                figures += [
                    Figure.of(f"{what}; {images:,} images, {method}", unit, values[:, column])
                    for column, (what, unit) in enumerate(UNITS.items())
                ]
    report(
        f"{count:,} images of {CLASSES:,} classes in {shards:,} tar files; {RANKS} ranks with {WORKERS} workers each",
        figures,
        ["targets: opened 5 s, order 2 s, first batch 5 s, 1,500 MB"],
        options.json,
    )


def _run(function: object, *values: object) -> None:
    """Call a function in a process of its own, whose memory ends with it."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=values)  # type: ignore[arg-type]
    process.start()
    process.join()
    assert process.exitcode == 0


def write_shards(folder: str, count: int, shards: int) -> None:
    """Write sparse tar files and their index, whose names are like n01440764/n01440764_10026.JPEG."""
    root, per_tar = Path(folder), -(-count // shards)
    tars = [root / f"train-{i:04d}.tar" for i in range(shards)]
    for tar in tars:
        with tar.open("wb") as file:
            file.truncate(per_tar * STEP_BYTES)
    class_names = [f"n{1_440_764 + 497 * c:08d}" for c in range(CLASSES)]
    labels = (np.arange(count) * CLASSES // count).astype(np.int32)
    numbers = np.arange(count) - np.searchsorted(labels, np.arange(CLASSES))[labels]  # of each image in its class
    names = np.empty(count, "S30")
    for start in range(0, count, 1 << 20):
        part = slice(start, start + (1 << 20))
        folders = [class_names[label] for label in labels[part].tolist()]
        names[part] = [f"{c}/{c}_{i:05d}.JPEG" for c, i in zip(folders, numbers[part].tolist(), strict=True)]
    place = np.random.default_rng(0).permutation(count)
    offsets = place % per_tar * STEP_BYTES + tarfile.BLOCKSIZE
    where = TarFiles(tars, (place // per_tar).astype(np.int32), offsets, np.full(count, IMAGE_BYTES))
    member = tarfile.TarInfo("image.jpg")
    member.size = IMAGE_BYTES
    for row in (0, count // 2, count - 1):  # those that are looked at when an index is opened
        with tars[where.tar[row]].open("r+b") as tar:
            tar.seek(offsets[row] - tarfile.BLOCKSIZE)
            tar.write(member.tobuf())
    images = ImageList(root, class_names, names, labels, where, Census(str(root)))
    with patch("relabel.data.tar_index.find_in_tars", return_value=images):
        list_tars(root, tars, "train")


class StoredImages:
    """A data set that reads an image's bytes and label, but has none to decode."""

    def __init__(self, images: ImageList) -> None:
        self.images = images

    def path(self, key: Key) -> ImagePath:
        """Return where the image of a key lies."""
        return self.images.path(key[1])

    def __getitem__(self, key: Key) -> Sample:
        """Read the sample of (epoch, index)."""
        row = key[1]
        assert len(self.path(key).read_bytes()) == IMAGE_BYTES
        pixels = np.zeros((3, 1, 1), np.uint8)
        return Sample(pixels, int(self.images.labels[row]), CropBox(0, 0, 1, 1), None, None, row)


def node(folder: str, method: str) -> list[float]:
    """Continue a run in the middle of an epoch with all its processes; return the values of UNITS."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(RANKS)]
    with tempfile.TemporaryDirectory() as meeting:
        ranks = [
            context.Process(target=continue_run, args=(folder, method, rank, f"file://{meeting}/ranks", pipe[1]))
            for rank, pipe in enumerate(pipes)
        ]
        for process, pipe in zip(ranks, pipes, strict=True):
            process.start()
            pipe[1].close()  # so that a process that fails ends the wait for it
        values = [pipe[0].recv() for pipe in pipes]
        memory = sum(map(proportional_mb, processes_below(multiprocessing.current_process().pid or 0)))
        for pipe in pipes:
            pipe[0].send("end")
        for process in ranks:
            process.join()
    return [*np.max(values, axis=0).tolist(), memory]


def continue_run(folder: str, method: str, rank: int, meeting: str, pipe: Connection) -> None:
    """Do as a rank does until its workers have read some batches; send the times, and end when told to."""
    warnings.filterwarnings("ignore", "This DataLoader will create")
    multiprocessing.set_start_method(method, force=True)
    keep_freed_memory()
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=RANKS)
    start, processor_start = time.perf_counter(), time.process_time()
    images = from_main(lambda: open_split(folder, "train"))
    opened = time.perf_counter() - start
    fingerprint(images)
    step = len(images) // (RANKS * BATCH) // 2
    sampler = TrainBatches(len(images), BATCH, 1, rank, RANKS, seed=0, start_step=step, total_steps=10 * step)
    batches = iter(Loader(StoredImages(images), sampler, WORKERS, torch.device("cpu")))
    first = next(batches)
    resumed = time.perf_counter() - start, time.process_time() - processor_start
    own = (step * RANKS + rank) * BATCH
    before, processor = time.perf_counter(), time.process_time()
    order = epoch_order(0, 0, len(images))
    ordered = time.perf_counter() - before, time.process_time() - processor
    assert first.indices.tolist() == order[own : own + BATCH].tolist()
    del order
    for _ in range(BATCHES):
        next(batches)
    assert isinstance(images.files, TarFiles)
    for values in (images.labels, images.files.tar, images.files.offset, images.files.size):
        values.max()  # reads every page
    pipe.send([opened, *ordered, *resumed, len(pickle.dumps(images)) / 1e6])
    pipe.recv()
    batches.close()  # type: ignore[attr-defined]
    dist.destroy_process_group()


def processes_below(pid: int) -> list[int]:
    """Return a process and all that it and these have started."""
    children = [
        int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()
    ]
    return [pid, *(below for child in children for below in processes_below(child))]


def proportional_mb(pid: int) -> float:
    """Return the PSS of a process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024 / 1e6


if __name__ == "__main__":
    main()
