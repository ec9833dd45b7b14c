"""Label maps made by a teacher: right place, right class, nothing lost when interrupted, nothing mixed."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from models.build import create_model
from models.fully_convolutional import fully_convolutional
from relabel.annotator import Annotated, annotate
from relabel.crop_box import WHOLE_IMAGE
from relabel.dataset import list_images
from relabel.decode import ImageFile
from relabel.label_store import open_label_store
from utils.errors import UserError

MEAN, STD = (0.5, 0.25, 0.125), (0.5, 0.25, 0.5)
CPU = torch.device("cpu")


class ColourTeacher(nn.Module):
    """Class c has logit 4 x channel c of the normalised pixel, classes 3 and 4 have 0; a cell is 8 x 8 pixels."""

    def __init__(self, sign: float = 1.0) -> None:
        super().__init__()
        self.sign = sign

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 5, H / 8, W / 8]."""
        cells = nn.functional.avg_pool2d(images, 8) * 4 * self.sign
        return torch.cat([cells, torch.zeros_like(cells[:, :2])], 1)


def write_images(root: Path, classes: int = 2, images: int = 4) -> Path:
    """Photos of 90 x 60: left half red, right half green, the lower third blue; one tint per image."""
    for label in range(classes):
        for number in range(images):
            pixels = np.zeros((60, 90, 3), np.uint8)
            pixels[:, :45, 0], pixels[:, 45:, 1] = 250 - number, 250 - label
            pixels[40:] = (0, 0, 240)
            path = root / f"class{label}" / f"photo.{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_images(tmp_path / "train")


def run(root: Path, out: Path, teacher: nn.Module | None = None, **changes: Any) -> Annotated:
    options: dict[str, Any] = {"input_size": (24, 48), "k": 2, "mean": MEAN, "std": STD, "interpolation": "bilinear"}
    options |= {"batch_size": 3, "device": CPU, "num_workers": 0} | changes
    return annotate(list_images(root), out, teacher or ColourTeacher(), **options)


def test_maps_show_what_stands_where(root: Path, tmp_path: Path) -> None:
    done = run(root, tmp_path / "maps")
    assert (done.written, done.kept, done.shape) == (8, 0, (2, 3, 6))
    label_map = open_label_store(tmp_path / "maps", list_images(root).keys(), 5).read(0)
    assert label_map.scores.dtype == np.float32
    # red is class 0 on the left, green class 1 on the right, blue class 2 in the lowest row
    assert label_map.classes[0].tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1], [2] * 6]
    assert label_map.scores[0, 0, 0] == pytest.approx(4 * (250 / 255 - 0.5) / 0.5, abs=1e-5)


def test_files_are_those_of_the_released_format(root: Path, tmp_path: Path) -> None:
    run(root, tmp_path / "maps")
    files = sorted(str(path.relative_to(tmp_path / "maps")) for path in (tmp_path / "maps").rglob("*.pt"))
    assert files == [f"class{label}/photo.{number}.pt" for label in range(2) for number in range(4)]
    planes = torch.load(tmp_path / "maps" / files[0], weights_only=True)
    assert planes.dtype == torch.float32 and planes.shape == (2, 2, 3, 6)


def test_equals_a_slow_reference(root: Path, tmp_path: Path) -> None:
    """A real network, image by image, top-k by sorting."""
    torch.manual_seed(0)
    teacher = fully_convolutional(create_model("digit_net", 9))
    run(root, tmp_path / "maps", teacher, input_size=(48, 80), k=4, interpolation="bicubic")
    images = list_images(root)
    store = open_label_store(tmp_path / "maps", images.keys(), 9)
    for row in (0, 5, 7):
        pixels = ImageFile(images.path(row)).resized_crop(WHOLE_IMAGE, 48, 80, "bicubic")
        normalised = [(pixels[c] / 255 - MEAN[c]) / STD[c] for c in range(3)]
        with torch.inference_mode():
            dense = teacher(torch.tensor(np.stack(normalised)[None], dtype=torch.float32))[0].numpy()
        found = store.read(row)
        np.testing.assert_allclose(found.scores, -np.sort(-dense, axis=0)[:4], atol=1e-5)
        np.testing.assert_allclose(np.take_along_axis(dense, found.classes.astype(int), 0), found.scores, atol=1e-5)


def test_workers_and_batch_size_change_nothing(root: Path, tmp_path: Path) -> None:
    first = run(root, tmp_path / "a")
    second = run(root, tmp_path / "b", num_workers=2, batch_size=5)
    assert first.absent_probability == pytest.approx(second.absent_probability)
    for path in (tmp_path / "a").rglob("*.pt"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_half_precision_maps(root: Path, tmp_path: Path) -> None:
    run(root, tmp_path / "single"), run(root, tmp_path / "half", half=True)
    keys = list_images(root).keys()
    single = open_label_store(tmp_path / "single", keys, 5).read(3)
    half = open_label_store(tmp_path / "half", keys, 5).read(3)
    assert half.scores.dtype == np.float16
    np.testing.assert_allclose(half.scores, single.scores, rtol=1e-3)
    np.testing.assert_array_equal(half.classes, single.classes)


def test_half_precision_is_refused_where_ids_would_be_rounded(root: Path, tmp_path: Path) -> None:
    teacher = nn.Conv2d(3, 2050, 8, 8)
    with pytest.raises(UserError, match=r"at most 2049 classes exactly.*knows 2050; write float32"):
        run(root, tmp_path / "maps", teacher, half=True)
    assert not (tmp_path / "maps").exists()


def test_restart_keeps_finished_maps_and_makes_the_rest(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "maps"
    run(root, out)
    whole = {path: path.read_bytes() for path in out.rglob("*.pt")}
    stamps = {path: path.stat().st_mtime_ns for path in whole}
    removed = [out / "class0" / "photo.0.pt", out / "class1" / "photo.3.pt", out / "class1" / "photo.1.pt"]
    for path in removed:
        path.unlink()
    done = run(root, out)
    assert (done.written, done.kept) == (3, 5)
    assert {path: path.read_bytes() for path in out.rglob("*.pt")} == whole
    assert all(path.stat().st_mtime_ns == stamps[path] for path in whole if path not in removed)


def test_finished_job_makes_nothing(root: Path, tmp_path: Path) -> None:
    run(root, tmp_path / "maps")
    done = run(root, tmp_path / "maps")
    assert (done.written, done.kept) == (0, 8) and math.isnan(done.absent_probability)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"teacher": ColourTeacher(-1)}, "is not the one this teacher makes"),
        ({"input_size": (48, 24)}, r"shape \[k, h, w\] = \[2, 3, 6\], this run makes \[2, 6, 3\]"),
        ({"k": 3}, r"= \[2, 3, 6\], this run makes \[3, 3, 6\]"),
    ],
)
def test_maps_of_two_teachers_are_not_mixed(root: Path, tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    run(root, tmp_path / "maps")
    (tmp_path / "maps" / "class1" / "photo.2.pt").unlink()
    with pytest.raises(UserError, match=f"another teacher or other settings: .*class0/photo.0.pt .*{problem}"):
        run(root, tmp_path / "maps", **changes)
    assert not (tmp_path / "maps" / "class1" / "photo.2.pt").exists()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_images_are_listed_when_all_others_are_done(root: Path, tmp_path: Path, num_workers: int) -> None:
    bad = [root / "class0" / "photo.2.png", root / "class1" / "photo.3.png"]
    bad[0].write_bytes(bad[0].read_bytes()[:90])
    bad[1].write_text("no image")
    with pytest.raises(UserError, match=r"^2 of 8 images cannot be read") as caught:
        run(root, tmp_path / "maps", num_workers=num_workers, batch_size=2)
    assert all(str(path) in str(caught.value) for path in bad)
    assert len(list((tmp_path / "maps").rglob("*.pt"))) == 6
    write_images(root)  # repaired
    assert run(root, tmp_path / "maps").written == 2


@pytest.mark.parametrize("k", [0, 6])
def test_k_must_suit_the_teacher(root: Path, tmp_path: Path, k: int) -> None:
    with pytest.raises(UserError, match=rf"k = {k} .*teacher knows 5; give a k in 1..5"):
        run(root, tmp_path / "maps", k=k)
    assert not (tmp_path / "maps").exists()


def test_all_classes_may_be_kept(root: Path, tmp_path: Path) -> None:
    done = run(root, tmp_path / "maps", k=5)
    assert done.shape == (5, 3, 6) and done.absent_probability == 0


def test_absent_probability_is_what_the_softmax_gives_away(tmp_path: Path) -> None:
    """Logits 4, 0, 0, 0, 0 in every cell and k = 1: four absent classes at 0."""

    class Constant(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.tensor([0.0, 4, 0, 0, 0]).view(1, 5, 1, 1).expand(len(images), 5, 2, 3)

    done = run(write_images(tmp_path / "train"), tmp_path / "maps", Constant(), k=1)
    assert done.absent_probability == pytest.approx(4 / (4 + math.exp(4)))


def test_input_size_the_teacher_cannot_take(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot take images of 4 x 40 pixels \(rows x columns\)"):
        run(root, tmp_path / "maps", input_size=(4, 40))


def test_non_finite_teacher_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the teacher's label map of class0/photo.0.*nan"):
        run(root, tmp_path / "maps", ColourTeacher(math.nan))


def occupied(path: Path) -> Path:
    path.write_text("a file, not a folder")
    return path


@pytest.mark.parametrize("out_of", [occupied, lambda path: occupied(path) / "below"])
def test_folder_that_cannot_be_made(root: Path, tmp_path: Path, out_of: Callable[[Path], Path]) -> None:
    out = out_of(tmp_path / "occupied")
    with pytest.raises(UserError, match=rf"cannot write label maps into {re.escape(str(out))}: .*Give another folder"):
        run(root, out)


def test_map_that_cannot_be_written(root: Path, tmp_path: Path) -> None:
    (tmp_path / "maps").mkdir()
    occupied(tmp_path / "maps" / "class1")
    with pytest.raises(
        UserError, match=r"cannot write the label map .*class1/photo.0.pt.*the maps that are there are kept"
    ):
        run(root, tmp_path / "maps")
    assert len(list((tmp_path / "maps" / "class0").glob("*.pt"))) == 4


def test_says_what_it_did(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(root, tmp_path / "maps")
    lines = capsys.readouterr().out.splitlines()
    assert "8 of 8 images" in lines[-2] and "images/s" in lines[-2]
    assert re.search(r"2 classes in 3 x 6 cells: 8 written .*% of its probability at fill 0", lines[-1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_maps_of_the_gpu_are_those_of_the_cpu(root: Path, tmp_path: Path) -> None:
    run(root, tmp_path / "cpu"), run(root, tmp_path / "gpu", device=torch.device("cuda"), num_workers=2)
    keys = list_images(root).keys()
    for row in range(8):
        cpu, gpu = (open_label_store(tmp_path / name, keys, 5).read(row) for name in ("cpu", "gpu"))
        np.testing.assert_allclose(cpu.scores, gpu.scores, atol=1e-4)
        np.testing.assert_array_equal(cpu.classes[0], gpu.classes[0])
