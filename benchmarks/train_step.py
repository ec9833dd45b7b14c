"""ReLabel training against original labels: the whole update, from batches in memory. Target: at most 0.5 % more.

One trainer takes both: the same images with label maps and without. So both train the same network, and what changes
over time (clocks, memory, other programs) affects both; the order within a pair is random.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import comb
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.label_pooling import align_dense, make_dense
from benchmarks.label_store import SHAPE, K, random_map
from benchmarks.result import Figure, arguments, report, synchronize, time_interleaved, with_progress
from models.data_config import IMAGENET_MEAN, IMAGENET_STD
from relabel.augment import augment, draw_augmentation
from relabel.config.load import load_config
from relabel.crop_box import MIN_AREA, random_crop_box
from relabel.data.batch import Batch, collate
from relabel.data.dataset import Sample
from relabel.data.images import ImageList
from relabel.training.build import TrainingData, make_trainer, set_up_device
from relabel.training.trainer import Trainer
from utils.precision import Precision
from utils.processes.distributed import Process
from utils.run_folder import Start

IMAGES = 1_281_167  # ImageNet's; the schedule's length, so that the learning rate stays in its warm-up
WARM_UP = 3


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Fields:
        steps: updates in one measurement; several on a GPU, where they queue up as in training.
        pairs: measurements of each kind of labels.
        rounds: measurements of each part of a step.
    """

    arch: str
    crop: int
    batch: int
    steps: int
    pairs: int
    rounds: int


def main() -> None:
    """Time pairs of whole steps, then the parts of a step."""
    options = arguments(__doc__ or "")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # ResNet-18 is the paper's smallest network, so the targets weigh most in it. Many short steps give a narrower
    # interval than few long ones; what a batch costs whatever its size weighs more in them, not less.
    size = Size("resnet18", 224, 4, steps=1, pairs=600, rounds=30)
    if device.type == "cuda":
        size = Size("resnet50", 224, 256, steps=5, pairs=200, rounds=30)
    if options.tiny:
        size = Size("resnet18", 32, 4, steps=1, pairs=6, rounds=2)
    on_host = random_batch(size.batch, size.crop)
    relabelled = on_host.to(device)
    original = replace(relabelled, scores=None, classes=None)
    with tempfile.TemporaryDirectory() as folder:
        trainer = memory_trainer(Path(folder), size.arch, size.crop, size.batch, device)
        figures, interval = pair_figures(trainer, ([original], [relabelled]), size)
        figures += part_figures(part_seconds(trainer, original, relabelled, on_host, size))
    remarks = [
        f"{size.arch} at {size.crop} px, batch {size.batch}, {trainer.precision.name} on {device}, {K:,} classes, maps "
        f"{list(SHAPE)}; {size.steps} update(s) a measurement; the batch lies on the device, both arms share it",
        interval,
        "2021: dense label maps [B, K, h, w] made on the CPU, moved to the device, then torchvision's roi_align",
    ]
    report("a training step with label maps and without", figures, remarks, options.json)


def random_batch(count: int, crop: int, num_classes: int = K) -> Batch:
    """Make a training batch on the CPU: random pixels, boxes, label maps, flips, jitter and lighting."""
    rng = np.random.default_rng(0)
    samples = []
    for index in range(count):
        image = rng.integers(0, 256, (3, crop, crop), dtype=np.uint8)
        box = random_crop_box(rng, 500, 375, MIN_AREA)
        # All are flipped, so that small batches flip too; one flip costs as much as all.
        drawn = draw_augmentation(rng, flip_prob=1.0, color_jitter=0.4, lighting=0.1)
        samples.append(Sample(image, int(rng.integers(num_classes)), box, random_map(rng, num_classes), drawn, index))
    return collate(samples)


def pair_figures(
    trainer: Trainer, arms: tuple[list[Batch], list[Batch]], size: Size, kind: str = ""
) -> tuple[list[Figure], str]:
    """Time pairs of steps.

    Args:
        trainer: of `memory_trainer`.
        arms: the micro-batches of an update, of original labels and of ReLabel.
        size: of the measurement.
        kind: of the update, for the names of the figures.

    Returns:
        The figures, and a remark about the median's interval.
    """
    seconds = paired_seconds(trainer, arms, size.pairs, size.steps)
    percent = 100 * (seconds[:, 1] / seconds[:, 0] - 1)
    figures = [
        Figure.of(f"whole step{kind}, original labels", "ms", 1e3 * seconds[:, 0]),
        Figure.of(f"whole step{kind}, ReLabel", "ms", 1e3 * seconds[:, 1]),
        Figure.of(f"ReLabel against original labels{kind}, same pair", "%", percent),
    ]
    low, high = median_interval(percent)
    return figures, (
        f"median of the pairs{kind}: {np.median(percent):+.2f} %, 95 % interval {low:+.2f} to {high:+.2f} % (from "
        "order statistics, whatever the distribution); target: at most +0.5 %"
    )


def memory_trainer(
    folder: Path, arch: str, crop: int, batch: int, device: torch.device, changed: Mapping[str, str] | None = None
) -> Trainer:
    """Make the trainer that main.py builds from base.yaml for ImageNet, ready for `train_step`; nothing is read.

    Args:
        folder: empty; used as data and run folder.
        arch: the network.
        crop: side of the images, pixels.
        batch: images per update.
        device: where it trains.
        changed: more of the config.

    Returns:
        A trainer for batches with label maps and without; a batch's own maps decide which target is made.
    """
    for split in ("train", "val"):
        (folder / split).mkdir()
    flags = {"model.arch": arch, "data.image_size": str(crop), "optim.batch_size": str(batch), "compute.seed": "0"}
    flags |= {"data.data_path": str(folder), "util.run_dir": str(folder)} | dict(changed or {})
    config = load_config("", flags | {"data.relabel.path": str(folder / "train")})
    names = [f"n{number:08d}" for number in range(K)]
    images = ImageList.of_folder(folder, names, np.zeros(IMAGES, "S1"), np.zeros(IMAGES, np.int32))
    set_up_device(device)
    precision, process = Precision(config.compute.opt_level, device), Process(0, 1, 0, 1, device)
    trainer = make_trainer(config, TrainingData(images, images), precision, process, {}, Start(seed=0))
    trainer.begin()  # as fit() does; no batch is read before the loop
    return trainer


def paired_seconds(trainer: Trainer, arms: Sequence[list[Batch]], pairs: int, steps: int) -> np.ndarray:
    """Return seconds per update, float64 [pairs, arms]; the arms of a pair in random order, one after the other."""
    for batches in arms:
        run_steps(trainer, batches, WARM_UP)
    rng = np.random.default_rng(0)
    seconds = np.empty((pairs, len(arms)))
    for pair in with_progress(range(pairs), "pairs of steps", "pairs"):
        for arm in rng.permutation(len(arms)).tolist():
            start = time.perf_counter()
            run_steps(trainer, arms[arm], steps)
            seconds[pair, arm] = (time.perf_counter() - start) / steps
    return seconds


def run_steps(trainer: Trainer, batches: list[Batch], steps: int) -> None:
    """So many updates on the same micro-batches; back when the device has done them."""
    for _ in range(steps):
        trainer.train_step(batches)
    synchronize(trainer.process.device)


def part_seconds(
    trainer: Trainer, original: Batch, relabelled: Batch, on_host: Batch, size: Size
) -> dict[str, np.ndarray]:
    """Seconds of the whole step of original labels and of its parts, [rounds] each; see `part_figures` for the names.

    Args:
        trainer: of `memory_trainer`.
        original, relabelled: the batch on the device, without label maps and with them.
        on_host: the same batch on the CPU, as it comes from the loader.
        size: of the measurement.
    """
    device, small = trainer.process.device, 10 * size.steps
    parts: dict[str, tuple[Callable[[], object], int]] = {
        "step": (partial(trainer.train_step, [original]), size.steps),
        "augmentation": (partial(augment_batch, original), size.steps),
        "original target": (partial(batch_targets, trainer, original), small),
        "ReLabel target": (partial(batch_targets, trainer, relabelled), small),
        "2021 target": (partial(dense_target, on_host, device), 1),
    }
    return time_parts(parts, size.rounds, device)


def time_parts(
    parts: dict[str, tuple[Callable[[], object], int]], rounds: int, device: torch.device
) -> dict[str, np.ndarray]:
    """Return seconds per call of each function, [rounds]; each round calls it repeatedly, then waits for the device.

    Args:
        parts: by name: a function, and its number of calls in a row.
        rounds: each times all of them in turn.
        device: the device that does the work.
    """

    def burst(function: Callable[[], object], calls: int) -> None:
        for _ in range(calls):
            function()
        synchronize(device)

    functions: dict[str, Callable[[], object]] = {name: partial(burst, *part) for name, part in parts.items()}
    seconds = time_interleaved(functions, dict.fromkeys(functions, 1), rounds)
    return {name: np.array(values) / parts[name][1] for name, values in seconds.items()}


def batch_targets(trainer: Trainer, batch: Batch) -> Tensor:
    """Make the targets [B, K] as the trainer does."""
    return trainer.target_maker(batch.labels, batch.boxes, batch.scores, batch.classes)


def augment_batch(batch: Batch) -> Tensor:
    """Augment a batch as the step does."""
    return augment(
            batch.images, batch.flips, batch.jitter_orders, batch.jitter_factors, batch.lighting,
            mean=IMAGENET_MEAN, std=IMAGENET_STD,
            dtype=torch.float16 if batch.images.is_cuda else torch.float32,
        )  # fmt: skip


def dense_target(batch: Batch, device: torch.device) -> Tensor:
    """Make ReLabel's target as the 2021 procedure did in every step, from a batch on the CPU: float32 [B, K]."""
    assert batch.scores is not None and batch.classes is not None
    dense = make_dense(batch.scores.float(), batch.classes.long(), K)
    return align_dense(dense.to(device), batch.boxes.to(device)).softmax(dim=1)


def part_figures(parts: dict[str, np.ndarray]) -> list[Figure]:
    """Return the parts of the step, and what either way of making ReLabel's target adds to one of original labels."""
    step, target = parts["step"], parts["original target"]
    rest = step - parts["augmentation"] - target
    added = {name: parts[f"{name} target"] - target for name in ("ReLabel", "2021")}
    return [
        Figure.of("  in it: augmentation", "ms", 1e3 * parts["augmentation"]),
        Figure.of("  in it: target of original labels", "ms", 1e3 * target),
        Figure.of("  in it: target of ReLabel instead (pooling, softmax)", "ms", 1e3 * parts["ReLabel target"]),
        Figure.of("  the rest: forward, loss, backward, update", "ms", 1e3 * rest),
        Figure.of("ReLabel's target adds, by the parts", "% of the step", 100 * added["ReLabel"] / step),
        Figure.of("the target as in 2021 would add", "ms", 1e3 * added["2021"]),
        Figure.of("the target as in 2021 would add, by the parts", "% of the step", 100 * added["2021"] / step),
    ]


def median_interval(values: np.ndarray) -> tuple[float, float]:
    """Return an interval that holds the true median with a chance of at least 95 %, whatever the distribution.

    Args:
        values: [n], n >= 6, independent.

    Returns:
        The j-th smallest and the j-th largest value, for the largest j such that among n coin tosses fewer than j are
        heads with a chance of at most 2.5 %.
    """
    n, ways, j = len(values), 1, 0
    assert n >= 6, n
    while 40 * ways <= 2**n:
        j += 1
        ways += comb(n, j)
    ordered = np.sort(values)
    return float(ordered[j - 1]), float(ordered[n - j])


if __name__ == "__main__":
    main()
