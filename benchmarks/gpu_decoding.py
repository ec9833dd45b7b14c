"""Decoding JPEG files on a GPU (data.decoder gpu), in at most 2 minutes.

The libraries decode whole images in batches and one at a time; their distance from Pillow's pixels. Then the crops of
training: their distance from Pillow's, and whether a second pass gives the same. Then ResNet-50 trains from files with
either decoder and different numbers of workers, against the same updates from memory.
Targets: 38 dB, no crop differs, and 0.95 of the rate from memory with 4 workers.
"""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

if not Path("/dev/nvidiactl").exists():  # before Triton is imported: without a GPU, its kernels are interpreted
    os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.peers import installed
from benchmarks.peers.photos import images_option, link_photos
from benchmarks.result import Figure, arguments, report, synchronize, time_interleaved
from benchmarks.shrunk_images import psnr
from benchmarks.train_step import memory_trainer, random_batch, run_steps
from relabel.crop_box import MIN_AREA
from relabel.data.dataset import ImageDataset, RandomResizedCrop
from relabel.data.decode import resolve_decoder
from relabel.data.gpu_decode import check_gpu_decoder
from relabel.data.images import ImageList
from relabel.data.loader import Loader
from relabel.training.trainer import Trainer
from utils.errors import UserError, exit_on_user_error
from utils.processes.distributed import available_cores

SKIPPED_EPOCH = 1  # the first is slower: workers look for damage in it
Files = list[Tensor]
Decode = Callable[[Files], list[Tensor]]


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Fields:
        photos: different files, as far as there are so many.
        batch, single: files decoded at once, and one after the other, in a round.
        rounds: values of each library.
        arch, crop, train_batch: what trains from files.
        updates: timed with each (decoder, workers) of `cases`.
    """

    photos: int
    batch: int
    single: int
    rounds: int
    arch: str
    crop: int
    train_batch: int
    updates: int
    cases: tuple[tuple[str, int], ...]


ON_GPU = Size(400, 128, 32, 10, "resnet50", 224, 256, 40, (("gpu", 4), ("gpu", 16), ("auto", 4), ("auto", 16)))
TINY = Size(4, 2, 1, 1, "digit_net", 16, 2, 1, (("gpu", 1), ("auto", 0)))


def main() -> None:
    """Measure libraries, crops and training."""
    options = arguments(__doc__ or "", images_option())
    with exit_on_user_error(), tempfile.TemporaryDirectory() as folder:
        device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        if device.type == "cuda":
            check_gpu_decoder(device)
        elif not options.tiny:
            raise UserError("found no GPU; this benchmark needs one. --tiny runs it on the CPU to show that it works")
        size = TINY if options.tiny else ON_GPU
        images = options.images or (small_photos(Path(folder), size.photos) if options.tiny else None)
        figures, remarks = measure(size, images, Path(folder), device)
    report("decoding on a GPU", figures, remarks, options.json)


def small_photos(folder: Path, count: int) -> Path:
    """Write images that the interpreted kernel resizes in seconds."""
    (folder / "small").mkdir()
    for number in range(count):
        Image.radial_gradient("L").resize((60, 45)).convert("RGB").save(folder / "small" / f"{number}.jpg", quality=95)
    return folder / "small"


def measure(size: Size, images: Path | None, folder: Path, device: torch.device) -> tuple[list[Figure], list[str]]:
    """Return all figures and remarks; `images`: as in `link_photos`."""
    photos = link_photos(images, folder, size.photos)
    view = RandomResizedCrop(size.crop, MIN_AREA, 0.5, 0.4, 0.1, seed=0)
    dataset = ImageDataset(photos, view, None, resolve_decoder("gpu"))
    encoded = {index: dataset[SKIPPED_EPOCH, index].encoded for index in range(len(photos))}
    files = {
        index: torch.frombuffer(bytearray(image.data), dtype=torch.uint8)
        for index, image in encoded.items()
        if image is not None
    }
    decoders, remarks = installed({name: (name, partial(make, device)) for name, make in LIBRARIES.items()})
    remarks.append(f"{len(files)} of {len(photos)} files are decoded on the GPU; {available_cores()} cores")
    figures = library_figures(decoders, photos, files, size, device)
    figures += crop_figures(dataset, size, device)
    return figures + training_figures(dataset, size, folder, device), remarks


def torchvision(device: torch.device) -> Decode:
    """torchvision.io, deprecated since 0.29."""
    from torchvision.io import ImageReadMode, decode_jpeg

    return lambda files: decode_jpeg(files, mode=ImageReadMode.RGB, device=device)


def torchcodec(device: torch.device) -> Decode:
    """torchcodec, its successor."""
    from torchcodec.decoders import decode_jpeg

    return lambda files: decode_jpeg(files, mode="RGB", device=device)


def nvimgcodec(device: torch.device) -> Decode:
    """nvImageCodec, with interpolated colours, as libjpeg does it."""
    from nvidia import nvimgcodec

    if device.type != "cuda":
        raise RuntimeError("it needs a GPU")
    decoder = nvimgcodec.Decoder(device_id=device.index, options=":fancy_upsampling=1")

    def decode(files: Files) -> list[Tensor]:
        images = decoder.decode([nvimgcodec.CodeStream(file.numpy()) for file in files])
        return [torch.as_tensor(image, device=device).permute(2, 0, 1) for image in images]

    return decode


LIBRARIES = {"torchvision": torchvision, "torchcodec": torchcodec, "nvidia-nvimgcodec-cu13": nvimgcodec}


def library_figures(
    decoders: dict[str, Decode], photos: ImageList, files: dict[int, Tensor], size: Size, device: torch.device
) -> list[Figure]:
    """Time the libraries on whole images, and compare their pixels with Pillow's."""
    batch, single = (list(files.values())[:count] for count in (size.batch, size.single))
    jobs: dict[str, Callable[[], object]] = {}
    counts: dict[str, int] = {}
    for name, decode in decoders.items():
        jobs |= {
            f"{name}, batches of {len(batch)}": partial(decode_all, decode, [batch], device),
            f"{name}, single images": partial(decode_all, decode, [[file] for file in single], device),
        }
    for job in jobs:
        counts[job] = len(batch) if "batches" in job else len(single)
    seconds = time_interleaved(jobs, dict.fromkeys(jobs, 1), size.rounds)
    figures = [Figure.of(job, "images/s", counts[job] / np.array(values)) for job, values in seconds.items()]
    for name, decode in decoders.items():
        decibels = []
        for index, file in files.items():
            with Image.open(str(photos.path(index))) as image:
                expected = np.asarray(image.convert("RGB"))
            decibels.append(psnr(decode([file])[0].permute(1, 2, 0).cpu().numpy(), expected))
        figures += quality_figures(f"{name}, whole images against Pillow", decibels)
    return figures


def decode_all(decode: Decode, batches: Sequence[Files], device: torch.device) -> None:
    """Decode all; back when the device has done it."""
    for files in batches:
        decode(files)
    synchronize(device)


def quality_figures(what: str, decibels: Sequence[float]) -> list[Figure]:
    """Return the distribution, mean and minimum of a PSNR."""
    return [
        Figure.of(what, "dB", decibels),
        Figure.of(f"{what}, mean", "dB", [float(np.mean(decibels))]),
        Figure.of(f"{what}, lowest", "dB", [min(decibels)]),
    ]


def crop_figures(dataset: ImageDataset, size: Size, device: torch.device) -> list[Figure]:
    """Compare the crops of training with Pillow's, and with those of a second pass."""
    keys = [(SKIPPED_EPOCH, index) for index in range(len(dataset))]
    sampler = [keys[first : first + size.train_batch] for first in range(0, len(keys), size.train_batch)]
    passes = [
        torch.cat([batch.images.permute(0, 2, 3, 1).cpu() for batch in Loader(dataset, sampler, 0, device)])
        for _ in range(2)
    ]
    reference = replace(dataset, decoder="pillow")
    expected = [reference[key].image.transpose(1, 2, 0) for key in keys]
    decibels = [psnr(ours.numpy(), theirs) for ours, theirs in zip(passes[0], expected, strict=True)]
    differ = int((passes[0] != passes[1]).flatten(1).any(1).sum())
    return [
        *quality_figures("crops against Pillow's", decibels),
        Figure.of("crops that differ in a second pass", "images", [differ]),
    ]


def training_figures(dataset: ImageDataset, size: Size, folder: Path, device: torch.device) -> list[Figure]:
    """Return the rate of updates from memory, then from files with each decoder and number of workers."""
    (folder / "trainer").mkdir()
    trainer = memory_trainer(folder / "trainer", size.arch, size.crop, size.train_batch, device)
    batch = random_batch(size.train_batch, size.crop).to(device)
    original = replace(batch, scores=None, classes=None)
    run_steps(trainer, [original], 3)
    start = time.perf_counter()
    run_steps(trainer, [original], size.updates)
    memory = size.updates * size.train_batch / (time.perf_counter() - start)
    figures = [Figure.of(f"{size.arch} from memory", "images/s", [memory])]
    for decoder, wanted in size.cases:
        workers = min(wanted, available_cores())
        rate = rate_from_files(trainer, replace(dataset, decoder=resolve_decoder(decoder)), workers, size)
        what = f"{size.arch} from files, {resolve_decoder(decoder)}, {workers} workers"
        figures += [
            Figure.of(what, "images/s", [rate]),
            Figure.of(f"{what} / from memory", "x", [rate / memory]),
        ]
    return figures


def rate_from_files(trainer: Trainer, dataset: ImageDataset, workers: int, size: Size) -> float:
    """Return images per second of updates from files, after the workers have started."""
    dropped = 2 * workers
    epochs = -(-(dropped + size.updates) * size.train_batch // len(dataset)) + 1
    order = [(SKIPPED_EPOCH + epoch, index) for epoch in range(epochs) for index in range(len(dataset))]
    sampler = [order[first : first + size.train_batch] for first in range(0, len(order), size.train_batch)]
    batches = iter(Loader(dataset, sampler, workers, trainer.process.device))
    for batch in islice(batches, dropped):
        trainer.train_step([batch])
    synchronize(trainer.process.device)
    start = time.perf_counter()
    for batch in islice(batches, size.updates):
        trainer.train_step([batch])
    synchronize(trainer.process.device)
    return size.updates * size.train_batch / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
