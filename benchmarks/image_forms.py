"""ImageNet's 1,281,167 images in each form: time until they are listed and joined with a packed store of label maps.

Target: 10 s from each form. Files and members of tar files are empty, but all are there, are found by reading folders
and headers, and are called as in ImageNet. The first listing of tar files makes their index, the later ones open it.
The last figures are of walking a tar file whose 20,000 members lie as far apart as images.
"""

import multiprocessing
import resource
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np

from benchmarks.dataset_scale import CLASSES, IMAGES, simulated_images, write_store
from benchmarks.result import Figure, arguments, report, time_interleaved, with_progress
from relabel.data.images import ImageList
from relabel.data.sources import open_split
from relabel.data.tar_files import BLOCK, walk_tar
from relabel.stores.store import check_one_per_class, check_present, open_label_store

T = TypeVar("T")
FORMS = ("class folders", "Kaggle's tree", "table", "one tar file", "tar file per class", "shards")
PER_SHARD, APART, WALKED = 1_000, 110_080, 20_000


def main() -> None:
    """Write the forms, then open each in several fresh processes."""
    options = arguments(__doc__ or "")
    count, walked, repeats = (3_000, 200, 1) if options.tiny else (IMAGES, WALKED, 3)
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        in_new_process(write_forms, Path(folder), count)
        for form in with_progress(FORMS, "opening the forms", "forms"):
            first, *later = [in_new_process(measure, folder, form) for _ in range(1 + repeats)]
            values = np.array(later)
            figures += [
                Figure.of(f"{form}: the first time", "s", [first[0]]),
                Figure.of(f"{form}: later", "s", values[:, 0]),
                Figure.of(f"{form}: later, processor time", "s", values[:, 1]),
                Figure.of(f"{form}: largest memory, the first time", "MB", [first[2]]),
                Figure.of(f"{form}: largest memory, later", "MB", values[:, 2]),
            ]
        sparse = Path(folder, "sparse.tar")
        write_tar(sparse, [(f"a/{i:08d}.jpg", APART - BLOCK, b"") for i in range(walked)])
        ways: dict[str, Callable[[], object]] = {
            "walk_tar": lambda: list(walk_tar(sparse)),
            "tarfile": lambda: _walk_with_tarfile(sparse),
        }
        seconds = time_interleaved(ways, dict.fromkeys(ways, 1), 2 * repeats)
    figures += [Figure.of(f"{way}, a member", "us", np.array(s) / walked * 1e6) for way, s in seconds.items()]
    report(
        f"{count:,} images of {CLASSES:,} classes, listed and joined with label maps",
        figures,
        ["target: 10 s from each form"],
        options.json,
    )


def _walk_with_tarfile(path: Path) -> None:
    with tarfile.open(path) as tar:
        tar.getmembers()


def in_new_process(function: Callable[..., T], *values: object) -> T:
    """Call a function in a process that has done nothing yet but import."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(function, values)


def write_forms(folder: Path, count: int) -> None:
    """Write empty images in all of FORMS, and their label maps; Kaggle's tree and the table are of the same files."""
    images = simulated_images(count)
    (folder / "maps").mkdir()
    write_store(folder / "maps", images)
    names = [images.name(row) for row in range(len(images))]
    train = folder / FORMS[0] / "train"
    for name in images.class_names:
        (train / name).mkdir(parents=True)
    for name in names:
        (train / name).touch()
    inside = folder / FORMS[1] / "ILSVRC" / "Data" / "CLS-LOC"
    inside.mkdir(parents=True)
    (inside / "train").symlink_to(train)
    (folder / FORMS[2]).mkdir()
    lines = (f"{name},{name.partition('/')[0]}\n" for name in names)
    (folder / FORMS[2] / "train.csv").write_text("image,class\n" + "".join(lines))
    write_tar(folder / FORMS[3] / "train.tar", ((f"train/{name}", 0, b"") for name in names))
    starts = np.flatnonzero(np.diff(images.labels, prepend=-1)).tolist()
    for start, end in zip(starts, [*starts[1:], len(names)], strict=True):
        own = (name.partition("/") for name in names[start:end])
        write_tar(folder / FORMS[4] / f"{images.class_names[images.labels[start]]}.tar", ((n, 0, b"") for *_, n in own))
    mixed = np.random.default_rng(0).permutation(len(names)).tolist()
    for start in range(0, len(names), PER_SHARD):
        rows = mixed[start : start + PER_SHARD]
        write_tar(folder / FORMS[5] / f"train-{start // PER_SHARD:04d}.tar", _samples(images, names, rows))


def _samples(images: ImageList, names: list[str], rows: list[int]) -> Iterator[tuple[str, int, bytes]]:
    """Yield the members of a WebDataset shard."""
    for row in rows:
        text = str(images.labels[row]).encode()
        yield names[row], 0, b""
        yield names[row].replace(".JPEG", ".cls"), len(text), text


def write_tar(path: Path, members: Iterator[tuple[str, int, bytes]] | list[tuple[str, int, bytes]]) -> None:
    """Write a tar file: name and size of each member, and the beginning of its content; the rest is a hole."""
    path.parent.mkdir(exist_ok=True)
    template = bytearray(tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT))
    template[148:156] = b" " * 8
    with path.open("wb", buffering=1 << 20) as file:
        for name, size, content in members:
            header = template.copy()
            header[: len(name)] = name.encode()
            header[124:135] = b"%011o" % size
            header[148:155] = b"%06o\0" % sum(header)
            file.write(header)
            padding = -size % BLOCK
            if content:
                file.write(content + bytes(padding))
            elif size:
                file.seek(size + padding, 1)
        file.write(bytes(2 * BLOCK))


def measure(folder: str, form: str) -> list[float]:
    """Return seconds until listed and joined, processor seconds, and MB at the peak above those at the start."""
    before, start, processor = peak_mb(), time.perf_counter(), time.process_time()
    table = f"{folder}/{form}/train.csv" if form == "table" else ""
    images = open_split(f"{folder}/{'class folders/train' if table else form}", "train", table=table)
    store = open_label_store(f"{folder}/maps", images.keys(), images.class_names)
    check_present(store, images.path)
    check_one_per_class(store, images.labels)
    return [time.perf_counter() - start, time.process_time() - processor, peak_mb() - before]


def peak_mb() -> float:
    """Return the largest memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


if __name__ == "__main__":
    main()
