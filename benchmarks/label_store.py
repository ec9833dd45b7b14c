"""Reading label maps: packed store against torch.load of a .pt file, and packed stores up to ImageNet's size.

Target: a read of the packed store at least 50 times faster. The largest store takes 5.8 GB and minutes to write.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np
import torch

from benchmarks.dataset_scale import IMAGES, resident_mb, simulated_images
from benchmarks.result import Figure, arguments, report, time_interleaved, with_progress
from relabel.label_map import LabelMap
from relabel.stores.manifest import Manifest
from relabel.stores.packed import record_type
from relabel.stores.packed_writer import PackedWriter
from relabel.stores.pt_folder import write_label_map
from relabel.stores.store import LabelMaps, keys_of, open_label_store, sorted_keys

K, SHAPE = 1000, (5, 15, 15)  # those of the paper
SIZES = (1000, 10_000, 100_000, IMAGES)  # records of a store
DIFFERENT = 100  # maps, of which a store of the growth is made


def main() -> None:
    """Compare the two forms, then measure packed stores of growing size; warm cache, one core."""
    options = arguments(__doc__ or "")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        maps, rounds = (50, 3) if options.tiny else (2000, 60)
        figures = compare_forms(Path(folder), maps, rounds)
    with tempfile.TemporaryDirectory() as folder:
        stores, remarks = write_stores(Path(folder), (100, 1000) if options.tiny else SIZES)
        figures += measure_reads(stores, *((200, 2) if options.tiny else (20_000, 30)))
        figures += measure_opening(stores, 1 if options.tiny else 7)
    remarks = [f"the two forms: {maps:,} maps; target 50x", *remarks]
    report("one label map [2, 5, 15, 15], warm cache, one core", figures, remarks, options.json)


def compare_forms(folder: Path, maps: int, rounds: int) -> list[Figure]:
    """Write the same maps in both forms, and read them in turn in random order."""
    rng = np.random.default_rng(0)
    pt, packed = folder / "pt", folder / "packed"
    keys = sorted_keys([f"n{i % 10:08d}/image_{i:06d}" for i in range(maps)])
    names = [f"n{i:08d}" for i in range(K)]
    write_both(pt, packed, keys, names, rng)
    store, files = open_label_store(packed, keys, names), open_label_store(pt, keys, names)
    paths = [pt / f"{key.decode()}.pt" for key in keys.tolist()]
    rows = rng.integers(maps, size=2000).tolist()
    functions: dict[str, Callable[[], object]] = {
        "torch.load of a .pt file": lambda: read_all(lambda row: torch.load(paths[row], weights_only=True), rows[:50]),
        "LabelFolder.read: load, check every number": lambda: read_all(files.read, rows[:50]),
        "PackedStore.read: pread, CRC, views": lambda: read_all(store.read, rows),
    }
    seconds = time_interleaved(functions, dict.fromkeys(functions, 1), rounds)
    for name, reads in zip(functions, (50, 50, len(rows)), strict=True):
        seconds[name] = [value / reads for value in seconds[name]]
    first, _, last = functions
    ratios = [slow / fast for slow, fast in zip(seconds[first], seconds[last], strict=True)]
    figures = [Figure.of(name, "us", [1e6 * s for s in values]) for name, values in seconds.items()]
    return [*figures, Figure.of("torch.load / PackedStore.read, same round", "x", ratios)]


def write_stores(folder: Path, sizes: Iterable[int]) -> tuple[dict[int, Path], list[str]]:
    """Write packed stores of these sizes if there is room twice over; return them, and a remark for each left out."""
    rng = np.random.default_rng(0)
    label_maps = [random_map(rng) for _ in range(DIFFERENT)]
    stores, remarks = {}, []
    for size in sizes:
        room, needed = shutil.disk_usage(folder).free, size * record_type(SHAPE).itemsize
        if room < 2 * needed:
            remarks.append(
                f"left out: {size:,} records, {needed / 1e9:.1f} GB, with {room / 1e9:.1f} GB free in {folder.parent}"
            )
            continue
        images = simulated_images(size)
        stores[size] = folder / str(size)
        write_packed(stores[size], images.keys(), images.class_names, label_maps)
    return stores, remarks


def measure_reads(stores: dict[int, Path], reads: int, rounds: int) -> list[Figure]:
    """Time one read of a random row, mean of many; the stores in turn. All rows were read before: no disk access."""
    rng = np.random.default_rng(0)
    functions: dict[str, Callable[[], object]] = {}
    for size, folder in stores.items():
        store = open_label_store(folder, keys_of(folder), LabelMaps(folder).classes)
        functions[f"{store_name(size)}: one read"] = partial(
            read_all, store.read, rng.integers(size, size=reads).tolist()
        )
    seconds = time_interleaved(functions, dict.fromkeys(functions, 1), rounds)
    return [Figure.of(name, "us", 1e6 * np.array(values) / reads) for name, values in seconds.items()]


def measure_opening(stores: dict[int, Path], rounds: int) -> list[Figure]:
    """Measure the time to open each store and the memory it then holds, in fresh processes; the stores in turn."""
    values: dict[int, list[list[float]]] = {size: [] for size in stores}
    for _ in with_progress(range(rounds), "opening stores"):
        for size, folder in stores.items():
            code = f"from benchmarks.label_store import print_opening; print_opening({str(folder)!r})"
            done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
            values[size].append([float(number) for number in done.stdout.split()])
    figures = []
    for size, measured in values.items():
        milliseconds, megabytes = np.array(measured).T
        figures += [
            Figure.of(f"{store_name(size)}: open, every key found", "ms", milliseconds),
            Figure.of(f"{store_name(size)}: memory held", "MB", megabytes),
        ]
    return figures


def print_opening(folder: str) -> None:
    """Print milliseconds until the record of every key is known, and MB of memory held from then on."""
    keys, names = keys_of(folder), LabelMaps(folder).classes
    resident = resident_mb()
    start = time.perf_counter()
    store = open_label_store(folder, keys, names)
    milliseconds = 1e3 * (time.perf_counter() - start)
    print(milliseconds, resident_mb() - resident)
    assert len(store) == len(keys)  # it lives until here


def store_name(size: int) -> str:
    """Return how the names of a store's values begin."""
    return f"packed store, {size:,} records"


def read_all(read: Callable[[int], object], rows: list[int]) -> None:
    """Read maps one after the other and keep none."""
    deque(map(read, rows), maxlen=0)


def write_both(pt: Path, packed: Path, keys: np.ndarray, names: list[str], rng: np.random.Generator) -> None:
    """Write random maps as .pt files and as a packed store."""
    label_maps = [random_map(rng) for _ in range(len(keys))]
    write_packed(packed, keys, names, label_maps)
    for key, label_map in zip(keys.tolist(), label_maps, strict=True):
        write_label_map(pt, key.decode(), LabelMap(label_map.scores.astype(np.float32), label_map.classes))


def random_map(rng: np.random.Generator, num_classes: int = K) -> LabelMap:
    """Draw 5 of 20 classes in each cell, with logits like a strong teacher's, in the types of a packed store."""
    k, h, w = SHAPE
    some = rng.choice(num_classes, min(20, num_classes), replace=False).astype(np.int16)
    kept = rng.permuted(np.tile(some, (h * w, 1)), axis=1)[:, :k].T.reshape(SHAPE)
    return LabelMap(rng.normal(8, 3, SHAPE).astype(np.float16), kept)


def write_packed(folder: Path, keys: np.ndarray, names: list[str], label_maps: list[LabelMap]) -> None:
    """Write a packed store with a map for each key; the maps repeat if they are fewer than the keys."""
    k, h, w = SHAPE
    folder.mkdir()
    manifest = Manifest(form="packed", maps=len(keys), k=k, h=h, w=w, class_names=names, made_by={})
    writer = PackedWriter(folder, keys, manifest)
    writer.begin()
    rows = with_progress(range(len(keys)), "writing a store", "label maps")
    for row, label_map in zip(rows, cycle(label_maps), strict=False):
        writer.write(row, label_map)
    writer.commit({})


if __name__ == "__main__":
    main()
