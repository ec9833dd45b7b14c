"""annotate --decoder gpu. Without a GPU, libjpeg replaces nvJPEG, and the kernel is interpreted."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from relabel import __main__ as tools
from relabel.data import gpu_decode
from relabel.data.decode import ImageFile, resolve_decoder
from tests.relabel.annotation.test_annotator import Hooked, contents, maps_of, run
from tests.relabel.data.test_gpu_decode import DEVICE, jpeg, other, resize
from utils.errors import UserError
from utils.processes.distributed import Process

GPU = resolve_decoder("gpu")
HERE = Process(0, 1, 0, 1, DEVICE)
VALUE = 4 / 0.25 / 255  # what one of 255 levels of green changes a logit by
TOLERANCE = VALUE if DEVICE.type == "cpu" else 12 * VALUE  # nvJPEG enlarges colours in its own way

DAMAGED = jpeg(5)[:-300] + b"\xff\xd9"  # a decoder that does not look for damage returns an image
# In batches of three: a batch all of which the GPU decodes, one with others, one without any.
FILES = {
    "a.jpg": jpeg(0),
    "b.jpg": jpeg(1, "L"),
    "c.jpg": jpeg(2),
    "d.png": other(3, "PNG"),
    "e.jpg": jpeg(4),
    "f.jpg": DAMAGED,
    "g.jpg": jpeg(6, progressive=True),
    "h.png": other(7, "PNG"),
}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "train" / "class0"
    folder.mkdir(parents=True)
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    return folder.parent


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of files that each call of the GPU's decoder has decoded."""
    counts: list[int] = []
    decode = gpu_decode.decode_jpegs

    def counted(files: list[Tensor], device: torch.device) -> list[Tensor]:
        counts.append(len(files))
        return decode(files, device)

    monkeypatch.setattr(gpu_decode, "decode_jpegs", counted)
    return counts


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, torch does the kernel's work: the interpreter takes seconds."""
    if DEVICE.type == "cpu":
        monkeypatch.setattr("relabel.data.resize_kernel.resize_regions", resize)


def assert_close(root: Path, ours: Path, theirs: Path, row: int) -> None:
    """Maps of 3 x 6 cells with all classes: the same logits to rounding."""
    maps = [maps_of(out, root).read(row) for out in (ours, theirs)]
    first, second = (np.take_along_axis(each.scores, np.argsort(each.classes, 0), 0) for each in maps)
    assert first.shape == (5, 3, 6)
    np.testing.assert_allclose(first, second, atol=TOLERANCE)


def annotated(root: Path, out: Path, decoder: str = GPU, **changes: Any) -> Any:
    options: dict[str, Any] = {
        "k": 5,
        "form": "pt",
        "interpolation": "bicubic",
        "skip_unreadable": True,
        "process": HERE,
    } | changes
    return run(root, out, decoder=decoder, **options)


def test_maps_of_a_gpu_decoder_are_those_of_pillow(photos: Path, tmp_path: Path, decoded: list[int]) -> None:
    """To rounding; the damaged file is named, and keeps its place; the others are decoded by the workers."""
    expected = annotated(photos, tmp_path / "pillow", "pillow")
    assert decoded == []
    found = annotated(photos, tmp_path / "gpu", num_workers=2)
    assert decoded == [3, 1]
    assert found.skipped.keys() == expected.skipped.keys() == {"class0/f.jpg"} and found.written == 7
    for row in (0, 1, 2, 3, 4, 6, 7):
        assert_close(photos, tmp_path / "gpu", tmp_path / "pillow", row)
    manifest = json.loads((tmp_path / "gpu" / "manifest.json").read_text())
    assert manifest["made_by"]["decoder"] == GPU
    with pytest.raises(UserError, match=r"made_by\.decoder: 'gpu.*', not 'simplejpeg'"):
        annotated(photos, tmp_path / "gpu", "simplejpeg")


@pytest.mark.usefixtures("fast")
def test_an_interrupted_job_ends_with_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    calls = itertools.count()

    def interrupt(images: Tensor) -> None:
        if next(calls) > 1:
            raise KeyboardInterrupt

    annotated(photos, tmp_path / "whole", form="packed")
    with pytest.raises(KeyboardInterrupt):
        annotated(photos, tmp_path / "maps", form="packed", network=Hooked(interrupt))
    assert annotated(photos, tmp_path / "maps", form="packed").kept in (0, 3)
    assert contents(tmp_path / "maps") == contents(tmp_path / "whole")


def refuse(monkeypatch: pytest.MonkeyPatch, root: Path, name: str, spoil: bool) -> Path:
    """Let the GPU's decoder fail on a file, as it does: without a result for the whole batch. Return the path."""
    path, decode = root / "class0" / name, gpu_decode._library()
    data = ImageFile(path, GPU).encoded(check=True)

    def failing(files: list[Tensor], device: torch.device) -> list[Tensor]:
        if data in [file.numpy().tobytes() for file in files]:
            if spoil:
                path.write_text("no image any more")
            raise RuntimeError("nvjpeg error 7\nat line 3")
        return decode(files, device)

    monkeypatch.setattr(gpu_decode, "_library", lambda: failing)
    monkeypatch.setattr(gpu_decode, "_reported", [])
    return path


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("spoil", [False, True])
def test_a_file_that_the_gpu_refuses(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], spoil: bool
) -> None:
    """The CPU decodes it, or finds that it has become unreadable; the maps of the others keep their bytes."""
    annotated(photos, tmp_path / "whole")
    capsys.readouterr()
    path = refuse(monkeypatch, photos, "c.jpg", spoil)
    found = annotated(photos, tmp_path / "maps")
    printed = capsys.readouterr()
    whole, maps = contents(tmp_path / "whole"), contents(tmp_path / "maps")
    assert all(maps[f"class0/{stem}.pt"] == whole[f"class0/{stem}.pt"] for stem in "abdegh")
    if spoil:
        assert sorted(found.skipped) == ["class0/c.jpg", "class0/f.jpg"] and str(path) in printed.out
    else:
        assert_close(photos, tmp_path / "maps", tmp_path / "whole", 2)
        assert f"{path}: decoded on the CPU, because the GPU could not (nvjpeg error 7)" in printed.err


def test_the_flag_and_its_remedy(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without an NVIDIA GPU it is refused, before anything is written."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    options = ["--arch", "digit_net", "--weights", "random", "--size", "48x64", "--num_workers", "0"]
    words = ["annotate", str(photos), str(tmp_path / "maps"), *options, "--on_error", "skip", "--decoder"]
    with pytest.raises(SystemExit) as refused:
        tools.main([*words, "gpu"])
    message = capsys.readouterr().err
    remedy = re.search(r"expected an NVIDIA GPU(?:.|\n)* --decoder (\w+)", message)
    assert refused.value.code == 2 and remedy and not (tmp_path / "maps").exists()
    tools.main([*words, remedy[1]])
    assert len(maps_of(tmp_path / "maps", photos, ["class0"])) == 8
