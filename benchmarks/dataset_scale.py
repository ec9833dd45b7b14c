"""A data set of ImageNet's size in one process: memory, time until it is ready, time into a worker and for an epoch.

Targets: at most 100 MB per process, ready in 2 s once the file list is known, pickled to a worker in 0.1 s. Images and
maps are simulated: names, classes and keys are as many and as long as ImageNet's, records are small (all stay on disk).
"""

import gc
import os
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.result import Figure, arguments, report, with_progress
from relabel.data.dataset import ImageDataset, RandomResizedCrop
from relabel.data.images import ImageList
from relabel.data.loader import TrainBatches
from relabel.label_map import LabelMap
from relabel.stores.manifest import Manifest
from relabel.stores.packed_writer import PackedWriter
from relabel.stores.store import check_one_per_class, check_present, open_label_store

IMAGES, CLASSES, BATCH = 1_281_167, 1000, 256


def main() -> None:
    """Open the same simulated data set in several fresh processes."""
    options = arguments(__doc__ or "")
    count, repeats = (20_000, 1) if options.tiny else (IMAGES, 7)
    with tempfile.TemporaryDirectory() as folder:
        write_store(Path(folder), simulated_images(count))
        command = [sys.executable, "-c", f"from benchmarks.dataset_scale import measure; measure({folder!r}, {count})"]
        rounds = with_progress(range(repeats), "opening the data set")
        lines = [subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in rounds]
    values = np.array([[float(number) for number in line.split()] for line in lines])
    figures = [
        Figure.of("ready: keys, rows of the store, presence, one map of each class", "s", values[:, 0]),
        Figure.of("pickled and unpickled again", "s", values[:, 1]),
        Figure.of("size in a worker (pickled)", "MB", values[:, 2]),
        Figure.of("resident memory held by the data set", "MB", values[:, 3]),
        Figure.of(f"an epoch's order, in batches of {BATCH}", "s", values[:, 4]),
    ]
    report(
        f"{count:,} images and label maps in {CLASSES:,} classes",
        figures,
        ["targets: 2 s, 0.1 s, 100 MB"],
        options.json,
    )


def simulated_images(count: int) -> ImageList:
    """Return a list of images with names like ImageNet's: n01440764/n01440764_10026.JPEG."""
    per_class = -(-count // CLASSES)
    numbers = sorted(f"{13 * i + 2}.JPEG" for i in range(per_class))
    folders = [f"n{1_440_764 + 9_973 * c:08d}" for c in range(CLASSES)]
    names = [f"{folder}/{folder}_{number}" for folder in folders for number in numbers][:count]
    labels = np.repeat(np.arange(CLASSES, dtype=np.int32), per_class)[:count]
    return ImageList.of_folder(Path("train"), folders, np.array([name.encode() for name in names]), labels)


def write_store(folder: Path, images: ImageList) -> None:
    """Write a packed store for the images, with a valid record for the first image of each class."""
    keys = images.keys()
    manifest = Manifest(form="packed", maps=len(keys), k=1, h=1, w=1, class_names=images.class_names, made_by={})
    writer = PackedWriter(folder, keys, manifest)
    writer.begin()
    label_map = LabelMap(np.ones((1, 1, 1), np.float16), np.zeros((1, 1, 1), np.int16))
    for row in np.unique(images.labels, return_index=True)[1].tolist():
        writer.write(row, label_map)
    writer.commit({})


def measure(folder: str, count: int) -> None:
    """Print seconds until ready, seconds through pickle, MB pickled, MB held, seconds of an epoch's order."""
    images = simulated_images(count)
    resident = resident_mb() - (images.names.nbytes + images.labels.nbytes) / 1e6
    start = time.perf_counter()
    keys = images.keys()
    store = open_label_store(folder, keys, images.class_names)
    check_present(store, images.path)
    check_one_per_class(store, images.labels)
    dataset = ImageDataset(images, RandomResizedCrop(224, 0.08, 0.5, 0.4, 0.1, seed=0), store)
    ready = time.perf_counter() - start
    del keys
    held = resident_mb() - resident
    start = time.perf_counter()
    pickle.loads(pickle.dumps(dataset))
    handed_over = time.perf_counter() - start
    size = len(pickle.dumps(dataset)) / 1e6
    steps = count // BATCH
    batches = TrainBatches(count, BATCH, accumulation=1, rank=0, world_size=1, seed=0, start_step=0, total_steps=steps)
    start = time.perf_counter()
    assert sum(len(keys) for keys in batches) == steps * BATCH
    print(ready, handed_over, size, held, time.perf_counter() - start)


def resident_mb() -> float:
    """Return the resident memory of this process."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
