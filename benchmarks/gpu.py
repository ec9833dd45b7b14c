"""What docs/performance.md says of a GPU, in at most 8 minutes.

These are the programs gpu_step, train_step, data_wait and annotator with fewer rounds; how often an update waits for
the GPU; and its memory over many validations. With 16 cores it takes that long; with fewer, longer.

The JSON file is written again after each part. A part that fails is named, and the others follow; so is one for which
no time is left.
"""

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from pathlib import Path

import torch

from benchmarks import annotator, data_wait, gpu_step, train_step
from benchmarks.annotator import Case
from benchmarks.data_wait import RELABEL, run_records, write_data, write_maps
from benchmarks.peers.photos import images_option, link_photos
from benchmarks.result import Figure, arguments, report, write_result
from benchmarks.train_step import memory_trainer, pair_figures, random_batch, run_steps, time_parts
from models.data_config import OF_2021, DataConfig
from relabel.data.batch import Batch
from relabel.data.dataset import CenterCrop, ImageDataset
from relabel.data.decode import resolve_decoder
from relabel.data.gpu_decode import check_gpu_decoder
from relabel.data.loader import Loader, eval_batches
from relabel.training.validation import evaluate
from utils.errors import UserError, exit_on_user_error
from utils.processes.distributed import Process, available_cores

TITLE = "one GPU"
LATEST_START_S = 390  # of a part; the longest takes a minute and a half
EMA = {"optim.ema.decay": "0.9999"}
Part = tuple[list[Figure], list[str]]


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Fields:
        step, pairs: of gpu_step and train_step.
        files: of data_wait, for each (network, workers, decoder) of `from_files`; workers 0: one per core.
        from_files: see files.
        annotated: of annotator.
        validations, images: how often how many images are evaluated.
    """

    step: gpu_step.Size
    pairs: train_step.Size
    files: data_wait.Size
    from_files: tuple[tuple[str, int, str], ...]
    annotated: tuple[Case, ...]
    validations: int
    images: int


WAVE = 4096  # images: a batch for each of 16 workers
ON_GPU = Size(
    step=gpu_step.Size("resnet50", 224, 256, steps=10, rounds=8, calls=20),
    pairs=train_step.Size("resnet50", 224, 256, steps=5, pairs=30, rounds=5),
    files=data_wait.Size("resnet50", 224, 256, steps=160, report_every=10, runs=1, rounds=0, classes=1000),
    from_files=(("resnet50", 0, "auto"), ("resnet50", 4, "gpu"), ("resnet18", 0, "auto"), ("resnet18", 0, "gpu")),
    annotated=(
        Case("timm/efficientnet_b3", None, 256, WAVE, 4 * WAVE, rounds=2, decoders=("auto", "gpu")),
        Case("resnet50", None, 256, WAVE, 6 * WAVE, rounds=2, decoders=("auto", "gpu")),
        Case("timm/tf_efficientnet_l2", 475, 64, 1024, 1024, rounds=1),
    ),
    validations=20,
    images=512,
)
TINY = Size(
    step=gpu_step.Size("resnet18", 32, 4, 1, 1, 1),
    pairs=train_step.Size("digit_net", 32, 4, steps=1, pairs=6, rounds=1),
    files=data_wait.Size("digit_net", 32, 8, steps=4, report_every=1, runs=1, rounds=0, classes=20),
    from_files=(("digit_net", 1, "auto"), ("digit_net", 1, "gpu")),
    annotated=(Case("timm/resnet10t", 64, 4, 8, 8, rounds=1, decoders=("auto", "gpu")),),
    validations=2,
    images=8,
)


def main() -> None:
    """Measure part after part; report after each."""
    start, options = time.monotonic(), arguments(__doc__ or "", images_option())
    on_gpu = torch.cuda.is_available()
    with exit_on_user_error():
        if not (on_gpu or options.tiny):
            raise UserError("found no GPU; this benchmark needs one. --tiny runs it on the CPU to show that it works")
    size, device = TINY if options.tiny else ON_GPU, torch.device("cuda" if on_gpu else "cpu")
    parts: dict[str, Callable[[], Part]] = {
        # First: the others let cuDNN choose algorithms by timing, which annotate does not.
        "annotate": partial(annotator.measure, size.annotated, options),
        "an update with label maps": partial(paired_updates, size.pairs, device),
        "waiting for the device": partial(waits, size.pairs, device),
        "training from files": partial(from_files, size, options, device),
        "memory": partial(memory, size, options, device),
        "an update against timm's": partial(gpu_step.measure, device, size.step),
    }
    if on_gpu:
        parts["the same, compiled"] = lambda: (gpu_step.compiled_figures(device, size.step), [])
    figures: list[Figure] = []
    remarks: list[str] = []
    for name, part in parts.items():
        if time.monotonic() - start > LATEST_START_S:
            remarks.append(f"{name}: not measured; no time was left")
            continue
        began = time.monotonic()
        try:
            more, said = part()
        except Exception as error:  # the figures of the other parts are worth having
            more, said = [], [f"{name}: not measured; {type(error).__name__}: {error}"]
        said = [*said, f"{name}: {time.monotonic() - began:.0f} s"]
        report(f"{TITLE}: {name}", more, said, None)
        figures += more
        remarks += said
        if options.json:
            write_result(TITLE, figures, remarks, options.json)


def paired_updates(size: train_step.Size, device: torch.device) -> Part:
    """Compare ReLabel with original labels: the default update, then one with EMA and two micro-batches."""
    figures, remarks = [], []
    for kind, changed, parts in (("", {}, 1), (", EMA, two micro-batches", EMA, 2)):
        relabelled = random_batch(size.batch, size.crop).to(device)
        original = replace(relabelled, scores=None, classes=None)
        with tempfile.TemporaryDirectory() as folder:
            trainer = memory_trainer(Path(folder), size.arch, size.crop, size.batch, device, changed)
            arms = micro_batches(original, parts), micro_batches(relabelled, parts)
            more, remark = pair_figures(trainer, arms, size, kind)
        figures += more
        remarks.append(remark)
    return figures, remarks


def micro_batches(batch: Batch, parts: int) -> list[Batch]:
    """Cut a batch into equal parts."""
    rows = len(batch) // parts
    return [batch.map(itemgetter(slice(first, first + rows))) for first in range(0, len(batch), rows)]


def waits(size: train_step.Size, device: torch.device) -> Part:
    """Count how often the host waits for the device in an update, as far as torch sees that; none does on a CPU."""
    kinds: dict[str, dict[str, str]] = {
        "SGD": {},
        "SGD with EMA": EMA,
        "SGD, clipped": {"optim.clip_grad_norm": "1"},
        "AdamW": {"optim.optimizer": "adamw"},
        "AdamP": {"optim.optimizer": "adamp"},
    }
    batch, figures = random_batch(8, size.crop).to(device), []
    for kind, changed in kinds.items():
        with tempfile.TemporaryDirectory() as folder:
            trainer = memory_trainer(Path(folder), size.arch, size.crop, 8, device, changed)
            run_steps(trainer, [batch], 3)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                if device.type == "cuda":
                    torch.cuda.set_sync_debug_mode("warn")
                trainer.train_step([batch])
                if device.type == "cuda":
                    torch.cuda.set_sync_debug_mode("default")
        count = sum("called a synchronizing" in str(warning.message) for warning in caught)
        figures.append(Figure.of(f"host waits for the device, {kind}", "per update", [count]))
    return figures, ["an update's wait for its own loss, during the backward pass, is not counted"]


def from_files(size: Size, options: argparse.Namespace, device: torch.device) -> Part:
    """Compare training from files with the same updates from memory."""
    figures, remarks = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        remarks.append(write_data(folder, options.images, size.files))
        write_maps(folder, size.files.classes)
        for number, (arch, workers, decoder) in enumerate(size.from_files):
            kind = f"{arch}, decoder {resolve_decoder(decoder)}, {workers or available_cores()} workers"
            try:
                if decoder == "gpu":
                    check_gpu_decoder(device)
            except UserError as error:
                remarks.append(f"{kind}: not measured; {str(error).splitlines()[0]}")
                continue
            case = replace(size.files, arch=arch, workers=workers, decoder=decoder)
            memory_rates = rates_from_memory(folder / f"memory-{number}", case, device)
            (folder / f"runs-{number}").mkdir()
            for part in ("train", "val", "labels"):
                (folder / f"runs-{number}" / part).symlink_to(folder / part)
            records = run_records(folder / f"runs-{number}", (RELABEL,), case, device)[RELABEL]
            rates = [record["images_per_s"] for record in records]
            figures += [
                Figure.of(f"{kind}: from files", "images/s", rates),
                Figure.of(f"{kind}: from memory", "images/s", memory_rates),
                Figure.of(f"{kind}: from files / from memory, medians", "x", [median(rates) / median(memory_rates)]),
            ]
    return figures, remarks


def rates_from_memory(folder: Path, size: data_wait.Size, device: torch.device) -> list[float]:
    """Return images per second of bursts of updates on one batch."""
    folder.mkdir()
    trainer = memory_trainer(folder, size.arch, size.crop, size.batch, device)
    batch = random_batch(size.batch, size.crop).to(device)
    seconds = time_parts({"updates": (partial(run_steps, trainer, [batch], 10), 1)}, 5, device)["updates"]
    return [10 * size.batch / value for value in seconds]


def median(values: list[float]) -> float:
    """Return the median."""
    return float(torch.tensor(values, dtype=torch.float64).quantile(0.5))


def memory(size: Size, options: argparse.Namespace, device: torch.device) -> Part:
    """Measure the GPU memory held after the second and the last of many validations of a network and its EMA."""
    held = []
    torch.cuda.empty_cache()
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "trainer").mkdir()
        trainer = memory_trainer(
            Path(name) / "trainer", size.pairs.arch, size.pairs.crop, size.pairs.batch, device, EMA
        )
        assert trainer.ema is not None
        images = link_photos(options.images, Path(name), size.images)
        dataset = ImageDataset(images, CenterCrop(size.pairs.crop, 0.875), None, "simplejpeg")
        batches = Loader(dataset, eval_batches(len(images), size.pairs.batch, 0, 1), min(4, available_cores()), device)
        networks, process = {"model": trainer.model, "ema": trainer.ema.module}, Process(0, 1, 0, 1, device)
        for _ in range(size.validations):
            evaluate(networks, images, batches, trainer.precision, process, DataConfig(**OF_2021))
            held.append(torch.cuda.memory_reserved() / 1e6 if device.type == "cuda" else 0.0)
    return [
        Figure.of("GPU memory after the 2nd validation", "MB", held[1:2]),
        Figure.of(f"GPU memory after validation {size.validations}", "MB", held[-1:]),
    ], []


if __name__ == "__main__":
    main()
