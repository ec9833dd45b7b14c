"""data.decoder gpu, from files to batches. Without a GPU, libjpeg replaces nvJPEG, and the kernel is interpreted."""

import io
import json
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from relabel.data import gpu_decode
from relabel.data.batch import Batch
from relabel.data.dataset import CenterCrop, ImageDataset, RandomResizedCrop, Transform
from relabel.data.decode import ImageFile, UnreadableImage
from relabel.data.folders import list_images
from relabel.data.gpu_decode import GPU_DECODERS, TORCHVISION, Region, decode_jpegs
from relabel.data.loader import Loader, TrainBatches, eval_batches
from relabel.data.skipped_images import SkippingDataset
from relabel.label_map import LabelMap
from relabel.stores.pt_folder import write_label_map
from relabel.stores.store import open_label_store
from tests.conftest import Flags, Tried, cases
from tests.relabel.data.test_damaged_images import CONTENTS
from tests.relabel.data.test_decode import photo_like
from tests.relabel.training.test_run import start
from utils.errors import UserError

CPU = torch.device("cpu")
DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else CPU
LEAST_PSNR = 38 if DEVICE == CPU else 33  # nvJPEG enlarges subsampled colours in its own way; these images are small
TRAINING = RandomResizedCrop(13, 0.2, 0.5, 0.4, 0.1, seed=5)
TURNED = Image.Exif()
TURNED[0x0112] = 6


def jpeg(number: int, mode: str = "RGB", **options: object) -> bytes:
    """A photo as a JPEG file; the higher the number, the wider."""
    file = io.BytesIO()
    photo_like(24 + number, 29).convert(mode).save(file, "JPEG", quality=92, **options)
    return file.getvalue()


def other(number: int, kind: str) -> bytes:
    """A photo in another format."""
    file = io.BytesIO()
    photo_like(24 + number, 29).save(file, kind)
    return file.getvalue()


def as_rgb(data: bytes) -> bytes:
    """The same JPEG file, declared to hold red, green and blue."""
    return data[:2] + b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0" + data[2 + 18 :]


FOR_GPU = {
    "4:2:0": jpeg(0, subsampling="4:2:0"),
    "4:2:2": jpeg(1, subsampling="4:2:2"),
    "4:4:4": jpeg(2, subsampling="4:4:4"),
    "grey": jpeg(3, "L"),
    "restart marks": jpeg(4, restart_marker_blocks=2),
    "turned by EXIF": jpeg(5, exif=TURNED),
}
FOR_CPU = {
    "progressive": jpeg(6, progressive=True),
    "CMYK": jpeg(7, "CMYK"),
    "RGB": as_rgb(jpeg(8)),
    "bytes behind": jpeg(9) + b"more",
    "PNG": other(10, "PNG"),
    "BMP": other(11, "BMP"),
}
FILES = [data for pair in zip(FOR_GPU.values(), FOR_CPU.values(), strict=True) for data in pair]


@pytest.fixture
def dataset(tmp_path: Path) -> ImageDataset:
    """Files of all kinds in two classes, with label maps of 2 x 3 cells, read for a GPU."""
    rng = np.random.default_rng(0)
    for i, data in enumerate(FILES):
        folder = tmp_path / "train" / ("ant" if i < 5 else "bee")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i:02d}.JPEG").write_bytes(data)
    images = list_images(tmp_path / "train")
    for key in images.keys().tolist():
        dense = rng.normal(size=(2, 2, 3)).astype(np.float32)
        write_label_map(tmp_path / "labels", key.decode(), LabelMap.from_dense(dense, 2))
    store = open_label_store(tmp_path / "labels", images.keys(), images.class_names)
    return ImageDataset(images, TRAINING, store, TORCHVISION)


def psnr(ours: Tensor, theirs: Tensor) -> Tensor:
    """Decibels, one value for each image; at most 60."""
    errors = (ours.double() - theirs.double()).square().mean(dim=(1, 2, 3))
    return 10 * (255**2 / errors.clamp(min=255**2 / 1e6)).log10()


@pytest.mark.parametrize(
    ("transform", "num_workers"),
    [
        (TRAINING, 2),
        (CenterCrop(13, 0.875, "bicubic"), 0),
        (CenterCrop(13, 0.875, squash=True), 1),
    ],
)
def test_batches_are_those_of_the_cpu(
    dataset: ImageDataset, transform: Transform, num_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels, boxes, label maps, order and what the CPU decodes bit for bit; the other pixels nearly."""
    monkeypatch.setattr(gpu_decode, "MOST_PIXELS_AT_ONCE", 1_500)  # a few images at a time
    dataset = replace(dataset, transform=transform)
    training = transform.__class__ is RandomResizedCrop
    sampler = TrainBatches(12, 6, 1, 0, 1, 5, 1, 3) if training else eval_batches(12, 5, 0, 1)  # of epochs 0 and 1
    quality = []
    expected = Loader(dataset.on_cpu(), sampler, 0, CPU)
    for theirs, ours in zip(expected, Loader(dataset, sampler, num_workers, DEVICE), strict=True):
        assert ours.images.device == DEVICE and ours.images.permute(0, 2, 3, 1).is_contiguous()
        assert_same_but_images(ours.to(CPU), theirs)
        for row, index in enumerate(theirs.indices.tolist()):
            if FILES[index] in FOR_CPU.values():
                assert torch.equal(ours.images[row].cpu(), theirs.images[row])
        quality.append(psnr(ours.images.cpu(), theirs.images))
    assert torch.cat(quality).mean() >= LEAST_PSNR and torch.cat(quality).min() > 30


def assert_same_but_images(ours: Batch, theirs: Batch) -> None:
    """Bit by bit."""
    for field in fields(Batch):
        a, b = getattr(ours, field.name), getattr(theirs, field.name)
        if isinstance(b, Tensor) and field.name != "images":
            assert a.dtype == b.dtype and torch.equal(a, b), field.name
        elif field.name != "images":
            assert a == b, field.name


@pytest.mark.parametrize("kind", [*FOR_GPU, *FOR_CPU])
def test_a_gpu_decodes_usual_jpeg_files(tmp_path: Path, kind: str) -> None:
    """From the file without metadata, torchvision and torchcodec read what we read; the rest is left to the CPU."""
    (tmp_path / "photo.JPEG").write_bytes((FOR_GPU | FOR_CPU)[kind])
    file = ImageFile(tmp_path / "photo.JPEG", TORCHVISION)
    found = file.encoded(check=True)
    assert (found is not None) == (kind in FOR_GPU)
    assert ImageFile(tmp_path / "photo.JPEG", "simplejpeg").encoded(check=False) is None
    if found is not None:
        pixels = decode_jpegs([torch.frombuffer(bytearray(found), dtype=torch.uint8)], DEVICE)[0].cpu()
        with Image.open(tmp_path / "photo.JPEG") as image:
            expected = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        assert psnr(pixels[None], expected[None]) > LEAST_PSNR


def test_damaged_files_stay_with_the_cpu(tmp_path: Path, tried: Tried) -> None:
    """Which refuses them in the first epoch; and no header, however mutilated, ends a worker."""
    path, rng = tmp_path / "photo.JPEG", np.random.default_rng(0)
    for content in CONTENTS.values():
        path.write_bytes(content)
        with suppress(UnreadableImage):
            assert ImageFile(path, TORCHVISION).encoded(check=True) is None
    names = list(FOR_GPU)
    for case in range(cases(300)):
        data = bytearray(FOR_GPU[names[case % len(names)]])
        for at in rng.integers(2, data.index(b"\xff\xda") + 14, rng.integers(1, 4)).tolist():
            data[at] = int(rng.integers(256))
        path.write_bytes(data)
        with suppress(UnreadableImage):
            ImageFile(path, TORCHVISION).encoded(check=bool(case % 2))
    tried(cases(300))


def refuse(monkeypatch: pytest.MonkeyPatch, file: bytes) -> None:
    """Let the GPU's decoder fail on a file, as it does: without a result for the whole batch."""
    decode = gpu_decode._library()

    def failing(files: list[Tensor], device: torch.device) -> list[Tensor]:
        if any(len(data) == len(file) for data in files):
            raise RuntimeError("nvjpeg error 7\nat line 3")
        return decode(files, device)

    monkeypatch.setattr(gpu_decode, "_library", lambda: failing)
    monkeypatch.setattr(gpu_decode, "_reported", [])


def test_the_cpu_decodes_what_the_gpu_cannot(
    dataset: ImageDataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image = dataset[1, 2].encoded
    assert image is not None
    refuse(monkeypatch, image.data)
    sampler = [[(1, index) for index in range(6)]]
    expected, found = (next(iter(Loader(data, sampler, 0, DEVICE))) for data in (dataset.on_cpu(), dataset))
    assert (
        torch.equal(found.images[2], expected.images[2]) and psnr(found.images.cpu(), expected.images.cpu()).min() > 30
    )
    assert_same_but_images(found, expected)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {dataset.path((1, 2))}") and "nvjpeg error 7" in line


@pytest.mark.parametrize("skip", [True, False])
def test_images_that_turn_out_to_be_damaged_follow_on_error(
    dataset: ImageDataset, monkeypatch: pytest.MonkeyPatch, skip: bool
) -> None:
    """Found by the GPU's decoder, in a later epoch than the first, which looks for it."""
    path = Path(str(dataset.path((1, 2))))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 3 // 4] + data[-2:])
    image = dataset[1, 2].encoded
    assert image is not None
    for early in (dataset, replace(dataset, transform=replace(TRAINING, always_check=True))):
        with pytest.raises(UnreadableImage, match="premature end"):
            early[0 if early is dataset else 1, 2]
    refuse(monkeypatch, image.data)
    sampler = [[(1, index) for index in range(6)]]
    expected, found = (Loader(SkippingDataset(data, skip), sampler, 0, DEVICE) for data in (dataset.on_cpu(), dataset))
    if not skip:
        with pytest.raises(UserError, match=r"premature end.*--data.on_error skip"):
            list(found)
        return
    [theirs], [ours] = expected, found
    assert_same_but_images(ours, theirs)
    assert [image.path for image in ours.skipped] == [str(path)] and len(ours) == len(ours.images) == 5
    assert psnr(ours.images.cpu(), theirs.images.cpu()).min() > 30


def test_without_a_gpu_it_is_refused(flags: Flags, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"uses the cpu; expected an NVIDIA GPU.\n  .*--data.decoder auto"):
        start({**flags, "data.decoder": "gpu"})
    assert not (tmp_path / "run").exists()


def resize(images: list[Tensor], regions: list[Region], height: int, width: int, interpolation: str) -> Tensor:
    """The kernel's work for training, by torch: the interpreter would take minutes for a run."""
    cuts = [image[None, :, r.top : r.bottom, r.left : r.right] for image, r in zip(images, regions, strict=True)]
    return torch.cat([F.interpolate(cut, (height, width), mode=interpolation, antialias=True) for cut in cuts])


def test_a_run_with_the_decoder_gpu(flags: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and validation decode there, environment.json says so, and no other decoder continues the run."""
    monkeypatch.setattr("relabel.training.build.check_gpu_decoder", lambda device: None)
    monkeypatch.setattr("relabel.data.resize_kernel.resize_regions", resize)
    decoded: list[int] = []

    def counted(files: list[Tensor], device: torch.device) -> list[Tensor]:
        decoded.append(len(files))
        return decode_jpegs(files, device)

    monkeypatch.setattr(gpu_decode, "decode_jpegs", counted)
    flags |= {"data.decoder": "gpu", "data.crop_ratio": "null", "optim.epochs": 1, "optim.warmup.epochs": 0}
    start(flags)
    assert sum(decoded) == 30 + 13
    [record] = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert record["decoder"] in GPU_DECODERS
    with pytest.raises(UserError, match=r"data.decoder"):
        start({**flags, "data.decoder": "auto", "optim.epochs": 2})
    monkeypatch.setattr("relabel.training.run.resolve_decoder", lambda choice: "gpu (another)")
    with pytest.raises(UserError, match=r"decoder: gpu \(tor.*\) there, gpu \(another\) now"):
        start({**flags, "optim.epochs": 2})
