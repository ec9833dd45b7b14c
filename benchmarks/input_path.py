"""Images per second from JPEG files to batches in memory: ours, its peers, and the whole procedure of 2021.

On two cores, with two worker processes or threads for each contender, in batches of 256 and from a warm cache: file,
decode, random resized crop to 224, uint8, unless its name says otherwise. Ours also draws the numbers of flip, jitter
and lighting, which are applied to the whole batch on the device. benchmarks/peers/ describes what each peer does.
Ours and FFCV also read the same images shrunk to a shorter side of 320 pixels; ours reads them, and the originals once
more, from tar shards made by `pack-images`.
Targets: with label maps 4 times the 2021 procedure; without 2 times timm and 1.1 times DALI; shards as fast as folders;
shrunk 1.6 times the originals and 1.1 times FFCV's shrunk. Then ours with 1, 2, 4, ... workers on all cores.
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from benchmarks.label_store import K, write_both
from benchmarks.peers import QUALITY, SHORTER, SIZE, Job, Reader, installed
from benchmarks.peers.photos import images_option, link_photos, mean_size
from benchmarks.result import Figure, arguments, report, with_progress
from models.data_config import IMAGENET_MEAN, IMAGENET_STD
from relabel.augment import augment
from relabel.crop_box import MIN_AREA
from relabel.data.batch import Batch
from relabel.data.dataset import ImageDataset, RandomResizedCrop
from relabel.data.decode import resolve_decoder
from relabel.data.loader import Loader, TrainBatches
from relabel.data.shards import pack_images
from relabel.data.sources import open_images
from relabel.stores.store import LabelStore, open_label_store
from relabel.targets import relabel_target
from utils.errors import exit_on_user_error
from utils.processes.distributed import available_cores
from utils.processes.workers import READ_AHEAD

WORKERS = 2
GROWTH = (1, 2, 4, 8, 16)
PT, PACKED = "pt", "packed"  # folders of label maps
CLASS_NAMES = [f"n{i:08d}" for i in range(K)]  # of the label maps
DECODER = resolve_decoder("auto")
# Module of benchmarks/peers -> what it needs; benchmarks/requirements.txt says more.
PEERS = {
    "reference_2021": "torchvision",
    "timm_loader": "timm",
    "torchvision_loader": "torchvision",
    "dali_loader": "nvidia-dali-cuda120",
    "ffcv_loader": "ffcv opencv-python-headless",
}
OURS, MAPS, WHOLE = "ours", "ours with label maps", "ours, whole: + augmented floats, soft targets"
SHARDS, SHRUNK = "ours, tar shards", f"ours, shrunk to {SHORTER} px"
RATIOS = [
    (SHARDS, OURS),
    (SHRUNK, OURS),
    (SHRUNK, f"FFCV, shrunk to {SHORTER} px"),
    (MAPS, "2021 procedure, whole"),
    (WHOLE, "2021 procedure, whole"),
    (OURS, "timm, crop + flip, uint8"),
    (OURS, "timm, crop + flip + normalise, float"),
    (OURS, "DALI on CPU, fused crop, antialiased"),
    (OURS, "DALI on CPU, fused crop, not antialiased"),
    (OURS, "FFCV, original JPEGs"),
]


@dataclass(frozen=True, slots=True)
class Amount:
    """How much is measured.

    Fields:
        batch: images in a batch.
        batches: timed in each round.
        rounds: values per contender.
    """

    batch: int
    batches: int
    rounds: int

    def dropped(self, workers: int) -> int:
        """Batches before the clock starts: the first ones of each worker pay for its start and for new memory."""
        return (READ_AHEAD + 1) * workers

    def timed(self, workers: int) -> int:
        """Batches, rounded up to whole turns of the workers."""
        return -(-self.batches // workers) * workers

    def images(self, workers: int) -> int:
        """Needed of a contender that stops after an epoch, so that its workers are busy until the clock stops."""
        return (self.dropped(workers) + self.timed(workers) + 2 * workers) * self.batch


@dataclass(frozen=True, slots=True)
class Contender:
    """A reader, its name, and how many workers or threads it has."""

    name: str
    read: Reader
    workers: int


def main() -> None:
    """Measure all contenders in turn, several times; then ours with other numbers of workers."""
    options = arguments(__doc__ or "", images_option())
    amount = Amount(8, 2, 1) if options.tiny else Amount(256, 8, 5)
    with exit_on_user_error(), tempfile.TemporaryDirectory() as folder:
        with on_cores(WORKERS):
            job = make_job(options.images, Path(folder), amount.images(WORKERS), amount.batch)
            others, absent = peer_readers(job)
            readers = our_readers(job) | others
            remarks = describe(job)
            rates = measure([Contender(name, read, WORKERS) for name, read in readers.items()], amount)
        counts = [workers for workers in GROWTH if workers <= available_cores()]
        growth = measure([Contender(f"ours, {n} workers", partial(read_ours, job, None, n), n) for n in counts], amount)
    figures = [Figure.of(name, "images/s", values) for name, values in (rates | growth).items()]
    ratios = {f"{a} / {b}": np.array(rates[a]) / np.array(rates[b]) for a, b in RATIOS if b in rates}
    figures += [Figure.of(f"{name}, same round", "x", values) for name, values in ratios.items()]
    report("from JPEG files to batches of crops", figures, [*remarks, *absent], options.json)


@contextmanager
def on_cores(count: int) -> Iterator[None]:
    """Restrict this process, and all processes and threads that it starts meanwhile, to its first cores."""
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, sorted(cores)[:count])
    torch.set_num_threads(min(count, threads))
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)


def make_job(images: Path | None, scratch: Path, count: int, batch: int) -> Job:
    """Link the images, write their label maps in both forms (PT as in 2021, PACKED as ours), pack them into shards."""
    photos = link_photos(images, scratch, count)
    write_both(scratch / PT, scratch / PACKED, np.sort(photos.keys()), CLASS_NAMES, np.random.default_rng(0))
    forms = []
    for shorter in (None, SHORTER):
        shards = scratch / f"train-{shorter}"
        pack_images(
            photos, shards, split="train", shorter=shorter, quality=QUALITY, skip_unreadable=False, num_workers=WORKERS
        )
        forms.append(open_images(shards))
    return Job(photos, scratch / PT, batch, WORKERS, scratch, *forms)


def peer_readers(job: Job) -> tuple[dict[str, Reader], list[str]]:
    """Return the readers of the peers that are installed, and a remark on each that is not."""
    makers = {module: (packages, partial(readers_of, module, job)) for module, packages in PEERS.items()}
    made, absent = installed(makers)
    return {name: reader for readers in made.values() for name, reader in readers.items()}, absent


def readers_of(module: str, job: Job) -> dict[str, Reader]:
    """Return the readers of a module of benchmarks/peers."""
    readers: dict[str, Reader] = import_module(f"benchmarks.peers.{module}").readers(job)
    return readers


def our_readers(job: Job) -> dict[str, Reader]:
    """Return our readers: without and with label maps, with all that the 2021 procedure does, and of other forms."""
    store = open_label_store(job.scratch / PACKED, job.photos.keys(), CLASS_NAMES)
    forms = {OURS: job.photos, SHARDS: job.shards, SHRUNK: job.shrunk}
    return {
        **{
            name: partial(read_ours, replace(job, photos=form), None, job.workers)
            for name, form in forms.items()
            if form
        },
        MAPS: partial(read_ours, job, store, job.workers),
        WHOLE: partial(read_whole, job, store),
    }


def read_ours(job: Job, store: LabelStore | None, workers: int) -> Iterator[int]:
    """Read epochs without end."""
    for batch in our_batches(job, store, workers):
        assert batch.images.dtype == torch.uint8 and batch.images.shape[1:] == (3, SIZE, SIZE)
        assert (batch.scores is None) == (store is None)
        yield len(batch)


def read_whole(job: Job, store: LabelStore) -> Iterator[int]:
    """Read the same and do on the CPU what training leaves to the device: augmented floats and soft targets."""
    for batch in our_batches(job, store, job.workers):
        images = augment(
            batch.images, batch.flips, batch.jitter_orders, batch.jitter_factors, batch.lighting,
            mean=IMAGENET_MEAN, std=IMAGENET_STD,
        )  # fmt: skip
        assert batch.scores is not None and batch.classes is not None
        targets = relabel_target(batch.scores, batch.classes, batch.boxes, K)
        assert images.dtype == torch.float32 and targets.shape == (len(batch), K)
        yield len(batch)


def our_batches(job: Job, store: LabelStore | None, workers: int) -> Iterator[Batch]:
    """Return the batches that training reads with the paper's settings."""
    view = RandomResizedCrop(SIZE, MIN_AREA, flip_prob=0.5, color_jitter=0.4, lighting=0.1, seed=0)
    sampler = TrainBatches(
        num_images=len(job.photos),
        batch_size_per_process=job.batch,
        accumulation=1,
        rank=0,
        world_size=1,
        seed=0,
        start_step=len(job.photos) // job.batch,  # the second epoch: in the first, files are decoded to their end
        total_steps=sys.maxsize,
    )
    return iter(Loader(ImageDataset(job.photos, view, store, DECODER), sampler, workers, torch.device("cpu")))


def measure(contenders: Sequence[Contender], amount: Amount) -> dict[str, list[float]]:
    """Return images per second of each, in rounds that take all of them in turn."""
    rates: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for _ in with_progress(range(amount.rounds), f"{len(contenders)} contenders"):
        for contender in contenders:
            rates[contender.name].append(images_per_s(contender, amount))
    return rates


def images_per_s(contender: Contender, amount: Amount) -> float:
    """Measure once all workers are busy. They finish batches nearly together, so whole turns of them are timed."""
    counts = contender.read()
    sum(islice(counts, amount.dropped(contender.workers)))
    start = time.perf_counter()
    images = sum(islice(counts, amount.timed(contender.workers)))
    seconds = time.perf_counter() - start
    assert images == amount.timed(contender.workers) * amount.batch, f"{contender.name} ended early"
    return images / seconds


def describe(job: Job) -> list[str]:
    """Describe what was read and how, and the targets."""
    different = len({Path(str(job.photos.path(index))).resolve() for index in range(len(job.photos))})
    return [
        f"{len(job.photos):,} JPEG files of {mean_size(job.photos) / 1000:.0f} kB, {different:,} different ones, warm "
        f"cache, batch {job.batch}, {WORKERS} cores, {WORKERS} workers or threads; ours decodes by {DECODER}",
        "targets: with label maps / 2021 4x; without / timm 2x, / DALI 1.1x; shards / folders 1.0x; shrunk / originals "
        "1.6x, / FFCV's shrunk 1.1x",
        "ours with 1, 2, ... workers: on all cores, after the others",
    ]


if __name__ == "__main__":
    main()
