"""Training from files: images/s, the share of the time spent waiting for data, and where the time of an image goes.

Whole runs of main.py on links to JPEG files: with label maps (packed store) and with the folders' labels in turn.
Rates and waiting come from metrics.jsonl, from the second half of each run, when the workers' queues have filled. On a
GPU not all waiting is lost, because it may still be busy with the backward pass; the rate from memory shows the
difference. Then every stage is timed alone, in one process, on the same files; passing batches from workers to the
training process is not among the stages.
"""

import io
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.label_store import random_map, read_all, write_packed
from benchmarks.peers.photos import images_option, link_photos, mean_size
from benchmarks.result import Figure, arguments, report, with_progress
from benchmarks.train_step import augment_batch, batch_targets, memory_trainer, time_parts
from relabel.augment import draw_augmentation
from relabel.config.load import load_config
from relabel.crop_box import random_crop_box
from relabel.data.batch import Batch, collate
from relabel.data.dataset import ImageDataset, RandomResizedCrop
from relabel.data.decode import ImageFile, resolve_decoder
from relabel.data.folders import list_images
from relabel.data.jpeg_rows import decode_rows, read_frame
from relabel.training.build import open_training_data
from relabel.training.run import train
from relabel.training.trainer import Trainer
from utils.config.frozen_munch import FrozenMunch
from utils.errors import exit_on_user_error
from utils.precision import Precision
from utils.processes.distributed import Process, available_cores
from utils.processes.workers import end_workers
from utils.random import SAMPLE, keyed_rng
from utils.run_log import read_metrics

PHOTOS = 400  # different files at most; the training images are links to them
MAPS = 64  # different label maps
ORIGINAL, RELABEL = "original labels", "ReLabel"
FILE, DECODE, CROP = "reading the file", "decoding", "resizing (with header and cutting out)"
SAMPLE_WHOLE = "one sample, all of the above"
COPY, REST = "copying to the device", "forward, loss, backward, update"


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Fields:
        steps: updates of a run, each on images of its own.
        report_every: steps between the trainer's records.
        runs: of each kind of labels.
        rounds: measurements of each stage.
        classes: folders of the training set.
        workers: processes that decode; 0: one per core.
        decoder: as data.decoder.
    """

    arch: str
    crop: int
    batch: int
    steps: int
    report_every: int
    runs: int
    rounds: int
    classes: int
    workers: int = 0
    decoder: str = "auto"


def main() -> None:
    """Time runs of both kinds in turn, then the stages."""
    options = arguments(__doc__ or "", images_option())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = Size("resnet18", 224, 32, steps=32, report_every=4, runs=2, rounds=10, classes=1000)
    if device.type == "cuda":
        size = Size("resnet50", 224, 256, steps=400, report_every=25, runs=2, rounds=20, classes=1000)
    if options.tiny:
        size = Size("digit_net", 32, 8, steps=4, report_every=1, runs=1, rounds=2, classes=20)
    with exit_on_user_error(), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        remark = write_data(folder, options.images, size)
        write_maps(folder, size.classes)
        records = run_records(folder, (ORIGINAL, RELABEL), size, device)
        stages = stage_seconds(folder, size, device)
    figures = [*run_figures(records), *stage_figures(stages)]
    remarks = [
        f"{size.arch} at {size.crop} px, batch {size.batch}, {Precision('O1', device).name} on {device}, "
        f"{available_cores()} workers, decoder {resolve_decoder('auto')}",
        remark,
        *bottleneck(stages, device),
    ]
    report("training from files", figures, remarks, options.json)


def write_data(folder: Path, photos_in: Path | None, size: Size) -> str:
    """Write train/ with as many links as a run reads, over classes and files in turn, and val/; describe them."""
    (folder / "sources").mkdir()
    photos = link_photos(photos_in, folder / "sources", min(PHOTOS, size.steps * size.batch))
    files = [Path(str(photos.path(index))).resolve() for index in range(len(photos))]
    count = size.steps * size.batch
    for number in range(count):
        link(folder / "train" / class_name(number % size.classes) / f"{number:07d}.jpg", files[number % len(files)])
    link(folder / "val" / class_name(0) / "0.jpg", files[0])
    return f"{len(set(files))} photos of {mean_size(photos) / 1000:.0f} kB under {count:,} names, warm cache"


def link(path: Path, target: Path) -> None:
    """Make a symbolic link and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def class_name(label: int) -> str:
    """Return the name of a class folder."""
    return f"n{label:08d}"


def write_maps(folder: Path, classes: int) -> None:
    """Write labels/: a packed store with a map for each training image, few of them different."""
    rng = np.random.default_rng(0)
    label_maps = [random_map(rng, classes) for _ in range(MAPS)]
    keys = list_images(folder / "train").keys()
    write_packed(folder / "labels", keys, [class_name(label) for label in range(classes)], label_maps)


def run_config(folder: Path, labels: str, run_dir: Path, size: Size) -> FrozenMunch:
    """Return base.yaml for one epoch over train/, one worker per core; a low rate keeps the loss finite."""
    flags = {
        "model.arch": size.arch,
        "data.data_path": str(folder),
        "data.image_size": str(size.crop),
        "optim.batch_size": str(size.batch),
        "optim.epochs": "1",
        "optim.warmup.epochs": "1",
        "optim.lr.init": "0.01",
        "compute.seed": "0",
        "compute.num_workers": str(size.workers or available_cores()),
        "data.decoder": size.decoder,
        "util.print_freq": str(size.report_every),
        "util.run_dir": str(run_dir),
    }
    use = {"data.relabel.use": "False"}
    if labels == RELABEL:
        use = {"data.relabel.path": str(folder / "labels"), "data.relabel.insist": "True"}  # random maps
    return load_config("", flags | use)


def run_records(
    folder: Path, kinds: tuple[str, ...], size: Size, device: torch.device
) -> dict[str, list[dict[str, float]]]:
    """Train runs of each kind of labels in turn; return the records of each."""
    records: dict[str, list[dict[str, float]]] = {labels: [] for labels in kinds}
    runs = [(number, labels) for number in range(size.runs) for labels in kinds]
    for number, labels in with_progress(runs, "training from files", "runs"):
        records[labels] += run(folder, labels, number, size, device)
    return records


def run(folder: Path, labels: str, number: int, size: Size, device: torch.device) -> list[dict[str, float]]:
    """Train a whole run; return the trainer's records of its second half."""
    run_dir = folder / f"{labels}-{number}"
    with redirect_stdout(io.StringIO()):
        train(Process(0, 1, 0, 1, device), run_config(folder, labels, run_dir, size))
    end_workers()
    records = [event for event in read_metrics(run_dir) if event["event"] == "train"]
    return records[len(records) // 2 :]


def stage_seconds(folder: Path, size: Size, device: torch.device) -> dict[str, dict[str, np.ndarray]]:
    """Return seconds per image of each stage, [rounds]: in a worker, and in the training process."""
    config = run_config(folder, RELABEL, folder / "stages", size)
    data, opened = config.data, open_training_data(config)
    view = RandomResizedCrop(
        data.image_size, data.rrc_minimum, data.flip_prob, data.color_jitter, data.lighting, seed=0
    )
    dataset = ImageDataset(opened.images, view, opened.store, resolve_decoder(data.decoder))
    (folder / "memory").mkdir()
    trainer = memory_trainer(folder / "memory", size.arch, size.crop, size.batch, device)
    batch = collate([dataset[0, index] for index in range(size.batch)])
    return {
        "in a worker": worker_seconds(dataset, view, size),
        "in the training process": process_seconds(trainer, batch, size.rounds),
    }


def worker_seconds(dataset: ImageDataset, view: RandomResizedCrop, size: Size) -> dict[str, np.ndarray]:
    """Time the stages of a worker, in one thread as there; see `stage_seconds`."""
    indices = list(range(size.batch))
    samples = [dataset[0, index] for index in indices]
    paths = [dataset.images.path(index) for index in indices]
    files = [ImageFile(path, dataset.decoder) for path in paths]
    contents = [path.read_bytes() for path in paths]
    bottoms = [s.box.pixels(f.width, f.height)[3] for s, f in zip(samples, files, strict=True)]
    assert dataset.label_store is not None
    stages: dict[str, Callable[[int], object]] = {
        FILE: lambda i: paths[i].read_bytes(),
        "drawing box and augmentation": lambda i: draw(view, files[i], i),
        DECODE: lambda i: decode(contents[i], bottoms[i]),
        CROP: lambda i: ImageFile(paths[i], dataset.decoder).resized_crop(samples[i].box, view.size, view.size),
        "reading the label map": dataset.label_store.read,
        SAMPLE_WHOLE: lambda i: dataset[0, i],
    }
    parts: dict[str, tuple[Callable[[], object], int]] = {
        name: (partial(read_all, stage, indices), 1) for name, stage in stages.items()
    }
    parts["collating"] = partial(collate, samples), 1
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = time_parts(parts, size.rounds, torch.device("cpu"))
    torch.set_num_threads(threads)
    seconds[CROP] = seconds[CROP] - seconds[FILE] - seconds[DECODE]
    return {name: values / size.batch for name, values in seconds.items()}


def draw(view: RandomResizedCrop, file: ImageFile, index: int) -> None:
    """Draw the random numbers of a sample, as the transform does."""
    rng = keyed_rng(view.seed, SAMPLE, 0, index)
    random_crop_box(rng, file.width, file.height, view.min_area)
    draw_augmentation(rng, view.flip_prob, view.color_jitter, view.lighting)


def decode(content: bytes, rows: int) -> object:
    """Decode what a crop is cut from: the upper rows, or with Pillow a whole file that the fast decoder refuses."""
    frame = read_frame(content)
    pixels = decode_rows(content, frame, rows) if frame else None
    return Image.open(io.BytesIO(content)).convert("RGB") if pixels is None else pixels


def process_seconds(trainer: Trainer, batch: Batch, rounds: int) -> dict[str, np.ndarray]:
    """Time what the training process and its device do with a batch from the loader; see `stage_seconds`."""
    device = trainer.process.device
    there = batch.to(device)
    parts: dict[str, tuple[Callable[[], object], int]] = {
        COPY: (partial(move, batch, device), 1),
        "augmentation": (partial(augment_batch, there), 1),
        "target": (partial(batch_targets, trainer, there), 1),
        REST: (partial(trainer.train_step, [there]), 1),
    }
    seconds = time_parts(parts, rounds, device)
    seconds[REST] = seconds[REST] - seconds["augmentation"] - seconds["target"]
    return {name: values / len(batch) for name, values in seconds.items()}


def move(batch: Batch, device: torch.device) -> Batch:
    """Move a batch to the device, to a GPU through page-locked memory, as the loader does."""
    return (batch.pin_memory() if device.type == "cuda" else batch).to(device)


def run_figures(records: dict[str, list[dict[str, float]]]) -> list[Figure]:
    """Return rate and waiting for each kind of labels."""
    return [
        Figure.of(f"{labels}: {what}", unit, [record[name] for record in kept])
        for labels, kept in records.items()
        for what, unit, name in (
            ("from files", "images/s", "images_per_s"),
            ("waiting for data", "% of the time", "data_wait_percent"),
        )
    ]


def stage_figures(stages: dict[str, dict[str, np.ndarray]]) -> list[Figure]:
    """Return milliseconds per image of each stage, and the rate of the training process when nothing is read."""
    figures = [
        Figure.of(f"{where}: {name}", "ms/image", 1e3 * values)
        for where, seconds in stages.items()
        for name, values in seconds.items()
    ]
    process = stages["in the training process"]
    step = np.sum([values for name, values in process.items() if name != COPY], axis=0)
    return [Figure.of(f"{RELABEL}: the same step from memory", "images/s", 1 / step), *figures]


def bottleneck(stages: dict[str, dict[str, np.ndarray]], device: torch.device) -> list[str]:
    """Report where an image spends most time on either side, and the slower side if they do not share cores."""
    worker, process = ({name: 1e3 * np.median(s) for name, s in seconds.items()} for seconds in stages.values())
    whole, cores = worker.pop(SAMPLE_WHOLE) + worker["collating"], available_cores()
    process.pop(COPY)  # beside the step before
    worker_name, process_name = max(worker, key=worker.__getitem__), max(process, key=process.__getitem__)
    total = sum(process.values())
    remarks = [
        f"a worker needs {whole:.3f} ms for an image, most of it for {worker_name}; {cores} workers need "
        f"{whole / cores:.3f} ms if they have the cores to themselves",
        f"the training process needs {total:.3f} ms, most of it for {process_name}",
    ]
    if device.type == "cuda":
        remarks.append(f"so the bottleneck is {worker_name if whole / cores > total else process_name}")
    return remarks


if __name__ == "__main__":
    main()
