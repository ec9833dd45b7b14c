"""Label maps made by a teacher: right cell, right class, nothing lost when interrupted, nothing mixed."""

import itertools
import json
import math
import os
import re
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from models.build import create_model
from models.data_config import OF_2021, DataConfig
from models.fully_convolutional import fully_convolutional
from relabel import __main__ as tools
from relabel.annotation.annotator import Settings, Summary, annotate, decoder_for
from relabel.annotation.teacher import Teacher
from relabel.crop_box import WHOLE_IMAGE
from relabel.data.decode import ImageFile
from relabel.data.folders import list_images
from relabel.stores.manifest import Manifest
from relabel.stores.store import LabelStore, open_label_store
from tests.forked_runs import CONTEXT, SignalAt
from utils.errors import UserError
from utils.processes import torchrun
from utils.processes.distributed import Process

MEAN, STD = (0.5, 0.25, 0.125), (0.5, 0.25, 0.5)
CLASSES = ["class0", "class1", "class2", "class3", "class4"]
HERE = Process(0, 1, 0, 1, torch.device("cpu"))

FILES = ["crc32.npy", "keys.npy", "manifest.json", "maps.npy"]


class ColourTeacher(nn.Module):
    """Class c has logit 4 x channel c of the normalised pixel, classes 3 and 4 have 0; a cell is 8 x 8 pixels."""

    def __init__(self, sign: float = 1.0) -> None:
        super().__init__()
        self.sign = sign

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 5, H / 8, W / 8]."""
        cells = nn.functional.avg_pool2d(images, 8) * 4 * self.sign
        return torch.cat([cells, torch.zeros_like(cells[:, :2])], 1)


class Hooked(ColourTeacher):
    """Calls a function with the images of each forward pass; the first one is a trial of one image."""

    def __init__(self, hook: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.hook = hook

    def forward(self, images: Tensor) -> Tensor:
        self.hook(images)
        return super().forward(images)


def write_images(root: Path, classes: int = 2, images: int = 4, damaged: int = 0) -> Path:
    """Images of 90 x 60: left half red, right half green, the lower third blue; one tint per image.

    The first `damaged` images of class 0 are cut short.
    """
    for label in range(classes):
        for number in range(images):
            pixels = np.zeros((60, 90, 3), np.uint8)
            pixels[:, :45, 0], pixels[:, 45:, 1] = 250 - number % 50, 250 - label
            pixels[40:] = (0, 0, 240)
            path = root / f"class{label}" / f"photo.{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    for number in range(damaged):
        path = root / "class0" / f"photo.{number}.png"
        path.write_bytes(path.read_bytes()[:90])
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_images(tmp_path / "train")


def run(root: Path, out: Path, network: nn.Module | None = None, **changes: Any) -> Summary:
    view: dict[str, Any] = {"size": (24, 48), "mean": MEAN, "std": STD, "interpolation": "bilinear"}
    view |= {name: changes.pop(name) for name in view if name in changes}
    settings: dict[str, Any] = {"k": 2, "flip": False, "opt_level": "O0", "batch_size": 3}
    settings |= {name: changes.pop(name) for name in (*settings, "decoder") if name in changes}
    names = changes.pop("class_names", CLASSES)
    config = DataConfig(**OF_2021 | view)
    teacher = Teacher(network or ColourTeacher(), names, len(names), config, "named", {"arch": "colours"})
    images = changes.pop("images", None) or list_images(root)
    options: dict[str, Any] = {"form": "packed", "skip_unreadable": False, "num_workers": 0, "process": HERE} | changes
    return annotate(images, out, teacher, Settings(**settings), **options)


def maps_of(out: Path, root: Path, class_names: list[str] = CLASSES) -> LabelStore:
    return open_label_store(out, list_images(root).keys(), class_names)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("form", ["packed", "pt"])
def test_maps_show_what_is_where_and_the_manifest_how_they_were_made(
    root: Path, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run(root, tmp_path / "maps", form=form)
    assert (done.written, done.kept, done.skipped) == (8, 0, {})
    progress, made, absent = capsys.readouterr().out.splitlines()
    assert "8 of 8 images" in progress and "images/s" in progress
    assert "2 classes per cell, 3 x 6 cells; 8 written" in made and re.search(r"\d % of a cell's probability", absent)
    store = maps_of(tmp_path / "maps", root)
    label_map = store.read(0)
    assert label_map.shape == (2, 3, 6) and len(store.missing()) == 0
    # red is class 0 on the left, green class 1 on the right, blue class 2 in the lowest row
    assert label_map.classes[0].tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1], [2] * 6]
    assert label_map.scores[0, 0, 0] == pytest.approx(4 * (250 / 255 - 0.5) / 0.5, rel=1e-5 if form == "pt" else 1e-3)
    manifest = json.loads((tmp_path / "maps" / "manifest.json").read_text())
    assert (manifest["form"], manifest["maps"], manifest["class_names"]) == (form, 8, CLASSES)
    view = {"input_size": [24, 48], "mean": list(MEAN), "std": list(STD), "interpolation": "bilinear", "flip": False}
    view |= {"decoder": "pillow"}
    settings = {"precision": "float32", "batch_size": 3, "device": "cpu"}
    assert manifest["made_by"] == {"teacher": {"arch": "colours"}, **view, **settings}


def test_equals_a_slow_reference(root: Path, tmp_path: Path) -> None:
    """A real network, image by image, top-k by sorting; with and without the mirrored image."""
    torch.manual_seed(0)
    teacher = fully_convolutional(create_model("digit_net", 9))
    images = list_images(root)
    for flip in (False, True):
        options = {"size": (48, 80), "k": 4, "interpolation": "bicubic", "flip": flip, "form": "pt"}
        run(root, tmp_path / str(flip), teacher, class_names=[f"class{i}" for i in range(9)], **options)
        store = maps_of(tmp_path / str(flip), root, [f"class{i}" for i in range(9)])
        for row in (0, 5, 7):
            pixels = ImageFile(images.path(row)).resized_crop(WHOLE_IMAGE, 48, 80, "bicubic")
            normalised = torch.tensor(np.stack([(pixels[c] / 255 - MEAN[c]) / STD[c] for c in range(3)])[None]).float()
            with torch.inference_mode():
                dense = teacher(normalised)[0]
                if flip:
                    dense = (dense + teacher(normalised.flip(3))[0].flip(2)) / 2
            found = store.read(row)
            np.testing.assert_allclose(found.scores, -np.sort(-dense.numpy(), axis=0)[:4], atol=1e-5)
            at_ids = np.take_along_axis(dense.numpy(), found.classes.astype(int), 0)
            np.testing.assert_allclose(at_ids, found.scores, atol=1e-5)


@pytest.mark.parametrize("batches", [0, 2])
def test_an_interrupted_store_ends_with_the_same_bytes(root: Path, tmp_path: Path, batches: int) -> None:
    calls = itertools.count()

    def interrupt(images: Tensor) -> None:
        if next(calls) > batches:
            raise KeyboardInterrupt

    run(root, tmp_path / "whole", num_workers=2)  # workers change nothing
    with pytest.raises(KeyboardInterrupt):
        run(root, tmp_path / "maps", Hooked(interrupt))
    assert not (tmp_path / "maps" / "manifest.json").exists()
    with pytest.raises(UserError, match=r"not a complete packed store.*give the same command again"):
        maps_of(tmp_path / "maps", root)
    run(root, tmp_path / "maps")
    whole = contents(tmp_path / "whole")
    assert contents(tmp_path / "maps") == whole and sorted(whole) == FILES
    again = run(root, tmp_path / "maps")
    assert (again.written, again.kept) == (0, 8)
    assert contents(tmp_path / "maps") == whole


@pytest.mark.parametrize("state", ["packed", "pt", "unfinished"])
def test_maps_of_two_teachers_are_not_mixed(root: Path, tmp_path: Path, state: str) -> None:
    form = "pt" if state == "pt" else "packed"
    if state == "unfinished":
        with pytest.raises(UserError):
            run(write_images(tmp_path / "train", damaged=1), tmp_path / "maps")
    else:
        run(root, tmp_path / "maps", form=form)
    whole = contents(tmp_path / "maps")
    changes: list[tuple[dict[str, Any], str]] = [
        ({"k": 3}, "k: 2, not 3"),
        ({"size": (48, 24)}, "h: 3, not 6"),
        ({"mean": (0.5, 0.5, 0.5)}, r"made_by\.mean: \[0\.5, 0\.25, 0\.125\], not \[0\.5, 0\.5, 0\.5\]"),
        ({"flip": True}, r"made_by\.flip: False, not True"),
        ({"decoder": "simplejpeg"}, r"made_by\.decoder: 'pillow', not 'simplejpeg'"),
        ({"class_names": ["class1", "class0", *CLASSES[2:]]}, r"class_names: \['class0', .*, not \['class1'"),
    ]
    for changed, problem in changes:
        with pytest.raises(UserError, match=f"were made with settings other than(.|\n)*{problem}"):
            run(root, tmp_path / "maps", form=form, **changed)
    assert contents(tmp_path / "maps") == whole


@pytest.mark.parametrize(("form", "num_workers"), [("packed", 0), ("pt", 2)])
def test_unreadable_images_are_listed_when_all_others_are_done_or_left_out(
    root: Path, tmp_path: Path, form: str, num_workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "maps"
    options: dict[str, Any] = {"form": form, "num_workers": num_workers}
    run(root, tmp_path / "whole", **options)
    (root / "class0" / "photo.2.png").write_bytes((root / "class0" / "photo.2.png").read_bytes()[:90])
    (root / "class1" / "photo.3.png").write_text("no image")
    bad = [str(root / name) for name in ("class0/photo.2.png", "class1/photo.3.png")]
    refused = r"^images that cannot be read .*: 2 of 8; .*leave them out with --on_error skip"
    with pytest.raises(UserError, match=refused) as caught:
        run(root, out, **options)
    assert all(path in str(caught.value) for path in bad)
    for _ in range(2):
        done = run(root, out, skip_unreadable=True, **options)
        assert (done.written, done.kept, len(done.skipped)) == (0, 6, 2)
        printed = capsys.readouterr().out
        assert all(f"\n  {path}: cannot be read as an image" in printed for path in bad)
    manifest = json.loads((out / "manifest.json").read_text())
    assert sorted(manifest["skipped"]) == ["class0/photo.2", "class1/photo.3"]
    with pytest.raises(UserError, match=refused):
        run(root, out, **options)
    store = maps_of(out, root)  # it is still one
    assert store.missing().tolist() == [2, 7] and store.read(3).classes[0, 0].tolist() == [0, 0, 0, 1, 1, 1]
    write_images(root)  # repaired
    assert run(root, out, **options).written == 2
    assert contents(out) == contents(tmp_path / "whole")


def test_maps_do_not_show_which_decoder_read_the_files(tmp_path: Path) -> None:
    """Photos of two sizes; a file that breaks off is no image for either."""
    rng, root = np.random.default_rng(0), tmp_path / "train"
    for number, (height, width) in enumerate([(60, 90), (150, 100)]):
        (root / "class0").mkdir(parents=True, exist_ok=True)
        smooth = Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)).resize((width, height))
        smooth.save(root / "class0" / f"{number}.jpg", quality=95)
    whole = (root / "class0" / "1.jpg").read_bytes()
    (root / "class0" / "2.jpg").write_bytes(whole[: len(whole) // 2] + whole[-2:])
    found = []
    for decoder in ("pillow", "simplejpeg"):
        out = tmp_path / decoder
        done = run(root, out, decoder=decoder, form="pt", interpolation="bicubic", skip_unreadable=True, num_workers=1)
        assert (done.written, list(done.skipped)) == (2, ["class0/2.jpg"])
        assert json.loads((out / "manifest.json").read_text())["made_by"]["decoder"] == decoder
        found.append(np.stack([maps_of(out, root).read(row).scores for row in range(2)]))
    np.testing.assert_allclose(found[0], found[1], atol=4 / 0.25 / 255)  # the value of a colour, of 255, in a logit
    assert [decoder_for("auto", torch.device(kind)) for kind in ("cpu", "cuda")] == ["pillow", "simplejpeg"]


def test_maps_begun_before_the_decoder_was_recorded_continue(root: Path, tmp_path: Path) -> None:
    (root / "class0" / "photo.0.png").rename(tmp_path / "away.png")
    (root / "class0" / "photo.0.png").write_text("no image")
    run(root, tmp_path / "maps", form="pt", skip_unreadable=True)
    (tmp_path / "away.png").rename(root / "class0" / "photo.0.png")
    earlier = json.loads((tmp_path / "maps" / "manifest.json").read_text())
    del earlier["made_by"]["decoder"], earlier["sha256"]
    (tmp_path / "maps" / "manifest.json").write_text(json.dumps(earlier))
    with pytest.raises(UserError, match=r"made_by\.decoder: 'pillow', not 'simplejpeg'"):
        run(root, tmp_path / "maps", form="pt", decoder="simplejpeg")
    assert run(root, tmp_path / "maps", form="pt").written == 1


def test_images_none_of_which_can_be_read(tmp_path: Path) -> None:
    root = write_images(tmp_path / "train", classes=1, images=3, damaged=3)
    with pytest.raises(UserError, match=r"^images that cannot be read and have no label map: 3 of 3; there is nothing"):
        run(root, tmp_path / "maps", skip_unreadable=True)
    assert not (tmp_path / "maps" / "manifest.json").exists()


def test_images_can_be_added_to_files_and_not_to_a_store(root: Path, tmp_path: Path) -> None:
    for form in ("packed", "pt"):
        run(root, tmp_path / form, form=form)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "pt").rglob("*.pt")}
    write_images(root, images=5)
    done = run(root, tmp_path / "pt", form="pt")
    assert (done.written, done.kept) == (2, 8) and {path: path.stat().st_mtime_ns for path in kept} == kept
    (root / "class0" / "photo.0.png").rename(root / "class0" / "photo.9.png")
    message = "other images: the names of its 8 are not those of these 10.*cannot grow: choose another folder"
    with pytest.raises(UserError, match=message):
        run(root, tmp_path / "packed")


@pytest.mark.parametrize(("name", "skip"), [("maps.npy", True), ("manifest.json", False), ("unfinished.json", True)])
def test_a_kill_while_the_store_is_finished_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, skip: bool
) -> None:
    """Before the files are on the disk, before the manifest is, and before the unfinished one is removed."""

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    root = write_images(tmp_path / "train", damaged=2 * skip)
    run(root, tmp_path / "whole", skip_unreadable=skip)
    with monkeypatch.context() as patch:
        if name == "maps.npy":
            patch.setattr("relabel.stores.packed_writer.sha256_of", killed)
        elif name == "manifest.json":
            write = Manifest.write
            patch.setattr(Manifest, "write", lambda m, path: killed() if path.name == name else write(m, path))
        else:
            patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            run(root, tmp_path / "maps", skip_unreadable=skip)
    run(root, tmp_path / "maps", skip_unreadable=skip)
    assert contents(tmp_path / "maps") == contents(tmp_path / "whole")


def test_absent_probability_is_what_the_softmax_gives_away(root: Path, tmp_path: Path) -> None:
    """Logits 4, 0, 0, 0, 0 in every cell and k = 1: four absent classes at 0."""

    class Constant(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.tensor([0.0, 4, 0, 0, 0]).view(1, 5, 1, 1).expand(len(images), 5, 2, 3)

    for k, expected in ((1, 4 / (4 + math.exp(4))), (5, 0)):
        assert run(root, tmp_path / str(k), Constant(), k=k).absent_sum / 8 == pytest.approx(expected)


def test_input_size_the_teacher_cannot_take(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot take images of 4 x 40 pixels \(rows x columns\)"):
        run(root, tmp_path / "maps", size=(4, 40))


def test_out_of_memory_names_the_batch_size_and_other_faults_are_not_blamed_on_the_size(
    root: Path, tmp_path: Path
) -> None:
    def fail(images: Tensor) -> None:
        if len(images) > 1:
            raise error

    error: Exception = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    with pytest.raises(UserError, match=r"out of memory(.|\n)*2\.00 GiB(.|\n)*--batch_size \(now 3\)"):
        run(root, tmp_path / "maps", Hooked(fail))
    error = RuntimeError("CUDA error: an illegal memory access")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run(root, tmp_path / "maps", Hooked(fail))


def tf32_allowed() -> tuple[bool, bool]:
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


def test_o0_computes_in_float32_as_the_manifest_states(
    root: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(lambda: torch.set_float32_matmul_precision("highest"))
    torch.set_float32_matmul_precision("high")
    for level, allowed in (("O0", (False, False)), ("bf16", (True, True))):
        seen: set[tuple[bool, bool]] = set()
        run(root, tmp_path / level, Hooked(lambda images, seen=seen: seen.add(tf32_allowed())), opt_level=level)  # type: ignore[misc]
        assert seen == {allowed} and tf32_allowed() == (True, True)


def test_non_finite_logits_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"logits for class0/photo\.0\.png are not finite"):
        run(root, tmp_path / "maps", ColourTeacher(math.nan))


def test_map_that_cannot_be_written(root: Path, tmp_path: Path) -> None:
    def block(images: Tensor) -> None:
        if (tmp_path / "maps").exists():
            (tmp_path / "maps" / "class1").write_text("not a folder")

    with pytest.raises(UserError, match=r"class1.* cannot be written.*existing label maps are kept"):
        run(root, tmp_path / "maps", Hooked(block), form="pt")
    assert len(list((tmp_path / "maps" / "class0").glob("*.pt"))) == 4


# Whole processes


def annotate_elsewhere(words: list[str], output: Path, rank: int, port: int, killed_at: int) -> None:
    """Run the command in a process of its own, one of two where there is a port; it may be killed at its n-th map."""
    torchrun.STARTED_BY = os.getppid()
    with output.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if port:
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
        os.environ |= {"MASTER_ADDR": "127.0.0.1"} | {name: str(value) for name, value in ranks.items()}
    torch.set_num_threads(1)
    if killed_at:
        SignalAt("relabel.stores.packed_writer.PackedWriter.write", killed_at)()
    tools.main(["annotate", *words])


@pytest.mark.slow
def test_a_killed_job_continues_in_several_processes_and_reports_a_bad_image_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 at the tenth map, then two processes, then one: the bytes of one undisturbed process."""
    torch.set_num_threads(1)  # sums keep their order
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    root, out, log = write_images(tmp_path / "train", classes=3, images=10), tmp_path / "maps", tmp_path / "log"
    options = ["--arch", "digit_net", "--weights", "random", "--size", "48x64", "--batch_size", "4"]
    words = [str(root), str(out), *options, "--num_workers", "0"]

    def end(processes: int = 1, port: int = 0, killed_at: int = 0) -> list[int | None]:
        arguments = [(words, log, rank, port, killed_at) for rank in range(processes)]
        started = [CONTEXT.Process(target=annotate_elsewhere, args=each) for each in arguments]
        for process in started:
            process.start()
        for process in started:
            process.join(120)
        return [process.exitcode for process in started]

    tools.main(["annotate", str(root), str(tmp_path / "whole"), *options])
    assert end(killed_at=10) == [-signal.SIGKILL]
    assert np.count_nonzero(np.load(out / "crc32.npy")) == 9 and not (out / "manifest.json").exists()
    bad = root / "class2" / "photo.9.png"  # in an odd batch: of the second process
    content = bad.read_bytes()
    bad.write_text("no image")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    assert end(2, port) == [2, 2]
    assert log.read_text().count("have no label map: 1 of 30;") == 1 and str(bad) in log.read_text()
    assert np.count_nonzero(np.load(out / "crc32.npy")) == 29
    bad.write_bytes(content)
    tools.main(["annotate", *words])
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_maps_of_the_gpu_are_those_of_the_cpu(root: Path, tmp_path: Path) -> None:
    """The files that are there when the job is interrupted, and those that it makes when it continues."""
    options: dict[str, Any] = {"form": "pt", "process": Process(0, 1, 0, 1, torch.device("cuda")), "num_workers": 2}
    calls = itertools.count()

    def interrupt(images: Tensor) -> None:
        if next(calls) > 2:
            raise KeyboardInterrupt

    run(root, tmp_path / "cpu", form="pt")
    run(root, tmp_path / "gpu", **options)
    with pytest.raises(KeyboardInterrupt):
        run(root, tmp_path / "cut", Hooked(interrupt), **options)
    assert run(root, tmp_path / "cut", **options).kept in (3, 6)
    assert contents(tmp_path / "cut") == contents(tmp_path / "gpu")
    for row in range(8):
        cpu, gpu = (maps_of(tmp_path / name, root).read(row) for name in ("cpu", "gpu"))
        np.testing.assert_allclose(cpu.scores, gpu.scores, atol=1e-4)
        np.testing.assert_array_equal(cpu.classes[0], gpu.classes[0])
