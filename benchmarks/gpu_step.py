"""The training step on a GPU against timm's: ResNet-50, 224 px, batch 256, float16 autocast, batches on the device.

Targets: 1.03x timm's images/s; the augmentation of a batch in at most 0.6 ms. Ours is the trainer's whole step.
timm's is what its training script does with a batch, assembled from its parts: the prefetcher's normalisation of bytes
on a side stream, channels_last, autocast, CrossEntropyLoss of integer labels, NativeScaler, SGD from its optimizer
factory. Left out, in its favour: the script's loss.item(), its meters and its schedule. timm flips and jitters in its
workers, ours in the step; so ours is also measured on batches that it only normalises, which is the same work.
"""

import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.loader import PrefetchLoader
from timm.optim import create_optimizer_v2
from timm.utils import NativeScaler
from torch import Tensor, nn

from benchmarks.label_store import K
from benchmarks.result import Figure, arguments, report
from benchmarks.train_step import (
    augment_batch,
    batch_targets,
    dense_target,
    memory_trainer,
    random_batch,
    run_steps,
    time_parts,
)
from relabel.data.batch import Batch
from relabel.label_pooling import pool_scores
from relabel.training.trainer import Trainer
from utils.errors import UserError, exit_on_user_error

TIMM = "timm"
OURS = (
    "ours, original labels, only normalised as timm's",
    "ours, original labels, whole augmentation",
    "ours, ReLabel, whole augmentation",
)
# Of the parts.
AUGMENTATION = "augmentation (flip, jitter, lighting, normalisation)"
TARGET, TARGET_2021 = "whole target of ReLabel", "whole target of ReLabel as in 2021, from batches on the CPU"


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Fields:
        steps: updates in a burst; they queue up as in training, and the burst ends when the GPU has done them.
        rounds: bursts of each contender.
        calls: of each part of the step, in a burst.
    """

    arch: str
    crop: int
    batch: int
    steps: int
    rounds: int
    calls: int


def main() -> None:
    """Time bursts of steps of each contender in turn; then what our step does before the network."""
    options = arguments(__doc__ or "")
    with exit_on_user_error():
        on_gpu = torch.cuda.is_available()
        if not (on_gpu or options.tiny):
            raise UserError("found no GPU; this benchmark needs one. --tiny runs it on the CPU to show that it works")
        size = Size("resnet18", 32, 4, 1, 1, 1) if options.tiny else Size("resnet50", 224, 256, 10, 20, 20)
        device = torch.device("cuda" if on_gpu else "cpu")
        figures, remarks = measure(device, size)
        if on_gpu:  # compiling for a CPU takes minutes, and nobody asks for it
            figures += compiled_figures(device, size)
    report("the training step against timm's, from batches on the device", figures, remarks, options.json)


def measure(device: torch.device, size: Size) -> tuple[list[Figure], list[str]]:
    """Time whole steps, and parts of ours, on one batch on the device; return figures and remarks."""
    on_host = random_batch(size.batch, size.crop)
    relabelled = on_host.to(device)
    original = replace(relabelled, scores=None, classes=None)
    normalised = replace(original, flips=None, jitter_orders=None, jitter_factors=None, lighting=None)
    batches = dict(zip(OURS, (normalised, original, relabelled), strict=True))
    with tempfile.TemporaryDirectory() as folder:
        trainer = memory_trainer(Path(folder), size.arch, size.crop, size.batch, device)  # sets cudnn.benchmark too
        figures = step_figures(trainer, batches, size)
    figures += part_figures(trainer, batches, on_host, size)
    remarks = [
        f"{size.arch} at {size.crop} px, batch {size.batch}, {trainer.precision.name} on {device}; bursts of "
        f"{size.steps} updates, {size.calls} calls of a part; targets: 1.03x, augmentation 0.6 ms",
        "timm's step normalises bytes and reads integer labels; it neither flips nor jitters, and counts no accuracy",
    ]
    return figures, remarks


def step_figures(trainer: Trainer, batches: dict[str, Batch], size: Size) -> list[Figure]:
    """Return images per second of timm's step and of ours on each batch, and their ratios."""
    timm_trainer = TimmTrainer(next(iter(batches.values())), size)
    bursts: dict[str, tuple[Callable[[], object], int]] = {TIMM: (timm_trainer.run, 1)}
    for name, batch in batches.items():
        bursts[name] = partial(run_steps, trainer, [batch], size.steps), 1
    seconds = time_parts(bursts, size.rounds, trainer.process.device)
    rates = [Figure.of(name, "images/s", size.batch * size.steps / values) for name, values in seconds.items()]
    return rates + [Figure.of(f"{name} / timm, same round", "x", seconds[TIMM] / seconds[name]) for name in batches]


def compiled_figures(device: torch.device, size: Size) -> list[Figure]:
    """Return the rates of whole steps with both networks compiled, as by compute.compile and timm's --torchcompile."""
    batch = random_batch(size.batch, size.crop).to(device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = memory_trainer(Path(folder), size.arch, size.crop, size.batch, device)
        timm_trainer = TimmTrainer(batch, size)
        for model in (timm_trainer.model, trainer.model):
            model.compile()
        ours = partial(run_steps, trainer, [batch], size.steps)
        seconds = time_parts({TIMM: (timm_trainer.run, 1), OURS[-1]: (ours, 1)}, size.rounds, device)
    rates = [
        Figure.of(f"{name}, compiled", "images/s", size.batch * size.steps / values) for name, values in seconds.items()
    ]
    ratio = seconds[TIMM] / seconds[OURS[-1]]
    return [*rates, Figure.of(f"{OURS[-1]} / timm, both compiled, same round", "x", ratio)]


def part_figures(trainer: Trainer, batches: dict[str, Batch], on_host: Batch, size: Size) -> list[Figure]:
    """Return milliseconds of what our step does before the network, and of the target as in 2021."""
    normalised, original, relabelled = batches.values()
    assert relabelled.scores is not None and relabelled.classes is not None
    functions: dict[str, Callable[[], object]] = {
        AUGMENTATION: partial(augment_batch, original),
        "normalisation alone": partial(augment_batch, normalised),
        "pooling of the label maps": partial(pool_scores, relabelled.scores, relabelled.classes, relabelled.boxes, K),
        TARGET: partial(batch_targets, trainer, relabelled),
        "whole target of original labels": partial(batch_targets, trainer, original),
    }
    parts = {name: (function, size.calls) for name, function in functions.items()}
    parts[TARGET_2021] = (partial(dense_target, on_host, original.images.device), 1)
    seconds = time_parts(parts, size.rounds, original.images.device)
    return [Figure.of(f"part: {name}", "ms per batch", 1e3 * values) for name, values in seconds.items()]


class TimmTrainer:
    """timm's training step for a batch of bytes on the device."""

    def __init__(self, batch: Batch, size: Size) -> None:
        """Make network, optimizer and scaler as timm's script does for `--amp --channels-last --opt sgd`."""
        self.device = batch.images.device
        self.amp = self.device.type == "cuda"
        model: nn.Module = timm.create_model(size.arch, num_classes=K)
        self.model = model.to(self.device)
        if self.amp:
            self.model.to(memory_format=torch.channels_last)
        self.model.train()
        self.optimizer = create_optimizer_v2(self.model, opt="sgd", lr=1e-3, momentum=0.9, weight_decay=1e-4)
        self.scaler = NativeScaler(device=self.device.type) if self.amp else None
        self.loss = nn.CrossEntropyLoss()
        burst: Any = [(batch.images, batch.labels)] * size.steps  # stands for a DataLoader, which is only iterated
        self.batches = PrefetchLoader(burst, device=self.device)  # one for all bursts: it keeps its stream's memory

    def run(self) -> None:
        """Start a burst of updates; return before the GPU has finished them."""
        for images, labels in self.batches:
            self.step(images, labels)

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Make one update.

        Args:
            images: float32 [B, 3, S, S]; normalised.
            labels: int64 [B].
        """
        if self.amp:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.float16) if self.amp else nullcontext():
            loss = self.loss(self.model(images), labels)
        if self.scaler is not None:
            self.scaler(loss, self.optimizer)
        else:
            loss.backward()
            self.optimizer.step()
        self.optimizer.zero_grad()


if __name__ == "__main__":
    main()
