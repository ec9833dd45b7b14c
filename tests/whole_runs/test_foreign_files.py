"""Foreign files run nothing and write nowhere else: each command with a hostile file wherever it takes one."""

import os
import pickle
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from models.digit_net import DigitNet
from relabel import __main__ as tools
from relabel.annotation.convert import pack
from relabel.checks.object_boxes import read_truth, read_voc_file
from relabel.cli.run import run
from relabel.config.load import load_config
from relabel.crop_box import WHOLE_IMAGE
from relabel.data.decode import ImageFile
from relabel.data.folders import list_images
from relabel.evaluation.imagenet_labels import read_multi_labels, read_real
from relabel.label_map import LabelMap
from relabel.stores.manifest import Manifest
from relabel.stores.packed_writer import PackedWriter
from relabel.stores.pt_folder import list_label_files
from tests.conftest import CLASSES, Flags, Tried
from tests.fuzz_targets import imagenet_images
from tests.traps import Trap, hostile_files
from utils.checkpoint import LAST, PREVIOUS
from utils.errors import UserError, exit_on_user_error

HEADER = "image,label,top1,top1_probability,label_probability,top5\n"


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder and its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def sound(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photos and their label maps, as files and packed, and everything else that a command can be given."""
    folder = tmp_path_factory.mktemp("sound") / "data"
    shutil.copytree(photos, folder)
    pack(folder / "labels", folder / "packed", None, None, skip_damaged=False)
    network = {"arch": "digit_net", "class_names": list(CLASSES), "state_dict": DigitNet(3).state_dict()}
    torch.save(network, folder / "w.pth")
    rows = "".join(f"{name},ant,bee,0.5,0.25,bee/ant\n" for name in ("ant/ant.00.JPEG", "bee/bee.00.JPEG"))
    for name, text in {"p.csv": HEADER + rows, "q.csv": HEADER + rows, "keep.txt": "ant/ant.00.JPEG\n"}.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def data(sound: Path, flags: Flags, tmp_path: Path) -> Path:
    """A copy that a test may damage; the flags of a run point to it."""
    shutil.copytree(sound, tmp_path / "data")
    flags |= {"data.data_path": tmp_path / "data", "data.relabel.path": tmp_path / "data" / "labels"}
    return tmp_path / "data"


# Where a command takes a file: its name in `data`, then the flags of main.py or the words of a tool.
TRAINING: dict[str, tuple[str, dict[str, str]]] = {
    "a label map": ("labels/ant/ant.00.pt", {}),
    "a manifest of files": ("labels/manifest.json", {}),
    "a packed manifest": ("packed/manifest.json", {"data.relabel.path": "packed"}),
    "packed maps": ("packed/maps.npy", {"data.relabel.path": "packed"}),
    "packed keys": ("packed/keys.npy", {"data.relabel.path": "packed"}),
    "packed checksums": ("packed/crc32.npy", {"data.relabel.path": "packed"}),
    "a list of images": ("keep.txt", {"data.keep_list": "keep.txt"}),
    "weights to start from": ("w.pth", {"model.weights": "w.pth"}),
    "bare weights": ("w.safetensors", {"model.weights": "w.safetensors"}),
    "a checkpoint to evaluate": ("w.pth", {"util.test_only": "True", "util.test_weight_file": "w.pth"}),
    "own labels as JSON": ("own.json", {"eval.labels": "own.json"}),
    "own labels as TSV": ("own.tsv", {"eval.labels": "own.tsv"}),
}
TOOLS: dict[str, tuple[str, list[str]]] = {
    "annotate --weights": ("w.pth", ["annotate", "train", "out", "--weights", "w.pth"]),
    "export-model": ("w.pth", ["export-model", "w.pth", "out", "--form", "timm"]),
    "check's manifest": ("packed/manifest.json", ["check", "packed"]),
    "check's keys": ("packed/keys.npy", ["check", "packed", "--images", "train"]),
    "check --boxes": ("boxes.json", ["check", "packed", "--boxes", "boxes.json", "--images", "train"]),
    "pack's maps": ("labels/ant/ant.00.pt", ["pack", "labels", "out"]),
    "pack --classes": ("names.txt", ["pack", "labels", "out", "--classes", "names.txt"]),
    "unpack": ("packed/keys.npy", ["unpack", "packed", "out"]),
    "export-labels": ("packed/crc32.npy", ["export-labels", "packed", "out", "--images", "train"]),
    "compare": ("p.csv", ["compare", "p.csv", "q.csv"]),
}


def assert_refused(command: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2, one error, no traceback."""
    with pytest.raises(SystemExit) as ending, exit_on_user_error():
        command()
    err = capsys.readouterr().err
    assert ending.value.code == 2 and err.startswith("error: "), err
    assert "\nerror: " not in err and "Traceback" not in err, err


Attack = Callable[[list[Path], Callable[[], object]], None]


@pytest.fixture
def attack(tmp_path: Path, capsys: pytest.CaptureFixture[str], tried: Tried) -> Attack:
    """Replace these files by every hostile file in turn, and check that a command refuses it and runs nothing."""

    def put_and_run(paths: list[Path], command: Callable[[], object]) -> None:
        contents = hostile_files(tmp_path / "it-ran").values()
        for content in contents:
            for path in paths:
                path.write_bytes(content)
            assert_refused(command, capsys)
        tried(len(contents))
        assert not (tmp_path / "it-ran").exists()

    return put_and_run


def start(flags: dict[str, Any]) -> None:
    """What main.py does with these flags."""
    run(load_config("", {key: str(value) for key, value in flags.items()}))


@pytest.mark.parametrize("place", TRAINING)
def test_main_runs_nothing_in_a_file(attack: Attack, data: Path, flags: Flags, place: str) -> None:
    name, extra = TRAINING[place]
    run_dir = flags["util.run_dir"]
    flags |= {key: data / value if (data / value).exists() or value == name else value for key, value in extra.items()}
    if name.startswith("own"):
        flags |= {"util.test_only": True, "util.test_weight_file": data / "w.pth"}
    if "util.test_only" in flags:
        flags = {key: flags[key] for key in flags if not key.startswith(("data.relabel", "optim"))}
    attack([data / name], lambda: start(flags))
    assert not run_dir.exists()


@pytest.mark.parametrize("place", TOOLS)
def test_the_tools_run_nothing_in_a_file(
    attack: Attack, data: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    name, words = TOOLS[place]
    monkeypatch.chdir(data)
    attack([Path(name)], lambda: tools.main(words))
    assert not list(Path().glob("out/**/*.pt")) or name.startswith("packed/maps")


def test_a_run_does_not_continue_from_a_hostile_checkpoint(attack: Attack, data: Path, flags: Flags) -> None:
    flags["util.run_dir"].mkdir()
    attack([flags["util.run_dir"] / name for name in (LAST, PREVIOUS)], lambda: start(flags))


READERS: dict[str, Callable[[Path], object]] = {
    "ReaL": lambda path: read_real(path, *imagenet_images()),
    "Shankar": lambda path: read_multi_labels(path, *imagenet_images()),
    "boxes as JSON": read_truth,
    "boxes as XML": lambda path: read_voc_file(path, "ant"),
    "config": lambda path: load_config(str(path), {}),
    "image": lambda path: ImageFile(path).resized_crop(WHOLE_IMAGE, 4, 5),
    "image, fast": lambda path: ImageFile(path, "simplejpeg").resized_crop(WHOLE_IMAGE, 4, 5),
}


@pytest.mark.parametrize("name", READERS)
def test_no_reader_runs_anything(attack: Attack, tmp_path: Path, name: str) -> None:
    attack([tmp_path / "a.file"], lambda: READERS[name](tmp_path / "a.file"))


def test_the_traps_work_on_a_careless_reader(tmp_path: Path) -> None:
    with pytest.raises(AttributeError):  # what it makes is no Trap
        pickle.loads(pickle.dumps(Trap(tmp_path / "it-ran"))).marker  # noqa: B018
    assert (tmp_path / "it-ran").exists()


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\n(a program) show\n%%EOF\n"


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
def test_an_image_that_is_a_program_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Pillow hands PostScript to Ghostscript, whatever the file is called."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\nmkdir -p {tmp_path}/it-ran\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (tmp_path / name).write_bytes(POSTSCRIPT)
    with pytest.raises(UserError, match="in no image format"):
        ImageFile(tmp_path / name).resized_crop(WHOLE_IMAGE, 4, 5)
    assert not (tmp_path / "it-ran").exists()


# Names in files


def one_map() -> LabelMap:
    return LabelMap(np.ones((1, 2, 3), np.float16), np.zeros((1, 2, 3), np.int16))


def write_store(folder: Path, keys: list[bytes], class_name: str = "ant") -> Path:
    """A packed store whose maps and checksums are in order, whatever its keys."""
    folder.mkdir()
    manifest = Manifest(form="packed", maps=len(keys), k=1, h=2, w=3, class_names=[class_name], made_by={})
    writer = PackedWriter(folder, np.array(sorted(keys), dtype=np.bytes_), manifest)
    writer.begin()
    for row in range(len(keys)):
        writer.write(row, one_map())
    writer.commit({})
    return folder


@pytest.mark.parametrize("key", [b"../up", b"ant/../../up", b"/tmp/up", b"..", b"ant/", b"ant//a", b"ant/b/c", b"a\0b"])
def test_keys_of_a_store_cannot_leave_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: bytes
) -> None:
    write_store(tmp_path / "store", [b"ant/first", key])
    before = tree(tmp_path)
    for words in (["unpack", "store", "inside/out"], ["check", "store"]):
        command = [words[0], *(str(tmp_path / word) for word in words[1:])]
        assert_refused(partial(tools.main, command), capsys)
    assert tree(tmp_path) == before and not Path("/tmp/up.pt").exists()


def test_odd_names_stay_inside(tmp_path: Path) -> None:
    odd = [b"ant/..\\up", b"ant/...", b"ant/a\nb", b"ant/\xff", b"-rf/*", b"ant/%2e%2e%2f"]
    write_store(tmp_path / "store", odd)
    tools.main(["unpack", str(tmp_path / "store"), str(tmp_path / "out")])
    written = [os.fsencode(name.removesuffix(".pt")) for name in tree(tmp_path / "out") if name.endswith(".pt")]
    assert sorted(written) == sorted(odd)
    assert {path.name for path in tmp_path.iterdir()} == {"store", "out"}


def test_a_link_among_the_class_folders_is_not_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, out, elsewhere = write_store(tmp_path / "store", [b"ant/a"]), tmp_path / "out", tmp_path / "elsewhere"
    tools.main(["unpack", str(store), str(out)])
    (elsewhere).mkdir()
    (elsewhere / ".thesis.tmp").write_text("not ours")
    shutil.rmtree(out / "ant")
    (out / "ant").symlink_to(elsewhere)
    capsys.readouterr()
    assert_refused(lambda: tools.main(["unpack", str(store), str(out)]), capsys)
    assert tree(elsewhere) == {".thesis.tmp": b"not ours"}


@pytest.mark.parametrize("name", ["maps.npy", "keys.npy", "crc32.npy"])
def test_a_link_in_the_place_of_a_store_file_is_not_written_through(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to(tmp_path / "thesis.tex")
    assert_refused(lambda: tools.main(["pack", str(photos / "labels"), str(tmp_path / "out")]), capsys)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("name", ["/etc/hostname", "ant/../../ant.JPEG", "ant/a\0.JPEG", f"ant/{'x' * 300}.JPEG"])
def test_names_in_predictions_cannot_leave_the_images(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    Image.new("RGB", (8, 6)).save(data / "ant.JPEG")
    for file, share in {"p.csv": 0.25, "q.csv": 0.2}.items():
        (data / file).write_text(f"{HEADER}{name},ant,bee,0.5,{share},bee/ant\n")
    monkeypatch.chdir(data)
    command = ["compare", "p.csv", "q.csv", "--images", "train", "--out", "sheet.png"]
    assert_refused(lambda: tools.main(command), capsys)
    assert not Path("sheet.png").exists()


def test_class_names_cannot_forge_lines_of_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A manifest may name its classes as it likes."""
    store = write_store(tmp_path / "store", [b"a"], class_name="ant\nb.png\tbee")
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 6)).save(tmp_path / "images" / "a.png")
    command = ["export-labels", str(store), str(tmp_path / "out.tsv"), "--images", str(tmp_path / "images")]
    assert_refused(lambda: tools.main(command), capsys)
    assert not (tmp_path / "out.tsv").exists()


# Files that are none


def test_pipes_and_devices_among_images_and_maps_are_passed_over(data: Path) -> None:
    """Opening them would wait for ever."""
    for path in (data / "train" / "ant" / "z.jpg", data / "labels" / "ant" / "z.pt", data / "labels" / "flat.pt"):
        os.mkfifo(path)
        path.with_stem("zero").symlink_to("/dev/zero")
        path.with_stem("gone").symlink_to("/nowhere")
    images, maps = list_images(data / "train"), list_label_files(data / "labels")
    assert [images.name(row) for row in range(len(images)) if "/ant." not in images.name(row)][:1] == ["ant/gone.jpg"]
    # A link to nothing is reported when it is read.
    assert len(images) == 31 and len(maps) == 32 and {"gone", "ant/gone"} < set(maps)


@pytest.mark.parametrize(
    "words",
    [
        ["export-labels", "packed", "packed/maps.npy", "--images", "train"],
        ["check", "labels", "--images", "train", "--json", "train/ant/report.json"],
        ["show", "--labels", "packed", "--images", "train", "--out", "train/ant/ant.00.png"],
        ["pack", "labels", "labels/ant"],
        ["annotate", "train", "train/ant/maps", "--weights", "w.pth"],
        ["compare", "p.csv", "q.csv", "--images", "train", "--out", "train/ant/ant.00.png"],
    ],
)
def test_no_output_replaces_a_part_of_the_input(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    monkeypatch.chdir(data)
    Path("train/ant/ant.00.png").symlink_to("ant.00.JPEG")
    before = tree(data)
    with pytest.raises(SystemExit) as ending:
        tools.main(words)
    err = capsys.readouterr().err
    assert ending.value.code == 2 and "expected another path" in err, err
    assert tree(data) == before
