"""Reading one label map: packed store against torch.load of a .pt file. Target: at least 50 times faster."""

import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.result import Figure, arguments, report, time_interleaved
from relabel.label_folder import write_label_map
from relabel.label_manifest import Manifest
from relabel.label_map import LabelMap
from relabel.label_store import open_label_store, sorted_keys
from relabel.packed_writer import PackedWriter

K, SHAPE = 1000, (5, 15, 15)  # those of the paper


def main() -> None:
    """Write the same maps in both forms, read them in turn in random order, warm cache, one core."""
    options = arguments(__doc__ or "")
    torch.set_num_threads(1)
    maps, rounds = (50, 3) if options.tiny else (2000, 60)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        pt, packed = Path(folder, "pt"), Path(folder, "packed")
        keys = sorted_keys([f"n{i % 10:08d}/image_{i:06d}" for i in range(maps)])
        names = [f"n{i:08d}" for i in range(K)]
        write_both(pt, packed, keys, names, rng)
        store, files = open_label_store(packed, keys, names), open_label_store(pt, keys, names)
        paths = [pt / f"{key.decode()}.pt" for key in keys.tolist()]
        rows = rng.integers(maps, size=2000).tolist()
        functions: dict[str, Callable[[], object]] = {
            "torch.load of a .pt file": lambda: read_all(
                lambda row: torch.load(paths[row], weights_only=True), rows[:50]
            ),
            "LabelFolder.read: load, check every number": lambda: read_all(files.read, rows[:50]),
            "PackedStore.read: pread, CRC, views": lambda: read_all(store.read, rows),
        }
        seconds = time_interleaved(functions, dict.fromkeys(functions, 1), rounds)
        for name, reads in zip(functions, (50, 50, len(rows)), strict=True):
            seconds[name] = [value / reads for value in seconds[name]]
    first, _, last = functions
    ratios = [slow / fast for slow, fast in zip(seconds[first], seconds[last], strict=True)]
    figures = [Figure.of(name, "us", [1e6 * s for s in values]) for name, values in seconds.items()]
    figures.append(Figure.of("torch.load / PackedStore.read, same round", "x", ratios))
    report("one label map [2, 5, 15, 15], warm cache, one core", figures, [f"{maps:,} maps; target 50x"], options.json)


def read_all(read: Callable[[int], object], rows: list[int]) -> None:
    """Read maps one after the other, and keep none."""
    deque(map(read, rows), maxlen=0)


def write_both(pt: Path, packed: Path, keys: np.ndarray, names: list[str], rng: np.random.Generator) -> None:
    """Random maps as .pt files and as a packed store."""
    k, h, w = SHAPE
    packed.mkdir()
    writer = PackedWriter(
        packed, keys, Manifest(form="packed", maps=len(keys), k=k, h=h, w=w, class_names=names, made_by={})
    )
    writer.begin()
    writer.open()
    for row, key in enumerate(keys.tolist()):
        classes = rng.permuted(np.tile(np.arange(20), (h * w, 1)), axis=1)[:, :k].T.reshape(SHAPE)
        label_map = LabelMap(rng.normal(8, 3, SHAPE).astype(np.float16), classes * 50)
        writer.write(row, label_map)
        write_label_map(pt, key.decode(), LabelMap(label_map.scores.astype(np.float32), label_map.classes))
    writer.commit({})


if __name__ == "__main__":
    main()
