"""pack-images and unpack-images: what goes in comes out, for us, webdataset and timm, however often it is killed."""

import filecmp
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from relabel.__main__ import main
from relabel.data import shards
from relabel.data.decode import ImageFile
from relabel.data.images import ImageList
from relabel.data.sources import open_images
from relabel.training.trainer import Trainer
from tests.conftest import Flags
from tests.image_forms import make_tar
from tests.relabel.training.test_run import assert_same_weights, start, weights
from utils.errors import UserError

FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}


@pytest.fixture(autouse=True)
def several_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MOST_IMAGES", 3)
    monkeypatch.setattr(shards, "_BATCH", 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Class folders of 13 small images, with names and formats that are easily lost."""
    rng = np.random.default_rng(0)
    names = [f"ant/ant.{i:02d}.JPEG" for i in range(8)]
    names += ["v1.0/50%.png", "v1.0/50.%2E.jpg", "bee/größe\udcff.webp", "bee/png.JPEG", "bee/grey.jpg"]
    for i, name in enumerate(names):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(rng.integers(0, 255, (7, 10, 3), np.uint8).repeat(8, 0).repeat(8, 1))
        image = image if i % 2 else image.crop((0, 0, 24, 16))
        form = {".JPEG": "JPEG", ".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP"}[path.suffix]
        (image.convert("L") if "grey" in name else image).save(path, "PNG" if "png." in name else form, quality=95)
    return tmp_path / "images"


def pack(source: Path | str, out: Path, *flags: str, workers: int = 0) -> None:
    main(["pack-images", str(source), str(out), "--num_workers", str(workers), *flags])


def content(images: ImageList) -> list[tuple[bytes, int, bytes]]:
    return [(images.names[i], int(images.labels[i]), images.path(i).read_bytes()) for i in range(len(images))]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The message of a command that must be refused."""
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        main(list(words))
    return " ".join(capsys.readouterr().err.split())


def test_what_is_packed_comes_out_again(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "out")
    plain, packed = open_images(folder), open_images(tmp_path / "out")
    assert content(packed) == content(plain) and packed.class_names == plain.class_names == ["ant", "bee", "v1.0"]
    assert packed.keys().tolist() == plain.keys().tolist()
    assert len(list((tmp_path / "out").glob("train-*.tar"))) == 5
    main(["unpack-images", str(tmp_path / "out"), str(tmp_path / "back")])
    names = [os.fsdecode(name) for name in plain.names]
    assert filecmp.cmpfiles(folder, tmp_path / "back", names, shallow=False) == (names, [], [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "images", "out"]
    (tmp_path / "out" / "train-00002.tar").unlink()
    assert "without 1 of the 5 shards of train" in open_images(tmp_path / "out").described()


def test_webdataset_and_timm_read_the_shards(folder: Path, tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    from timm.data.readers.reader_factory import create_reader

    pack(folder, tmp_path / "val")
    plain = open_images(folder)
    label_of = dict(zip(plain.names.tolist(), plain.labels.tolist(), strict=True))
    paths = sorted(map(str, (tmp_path / "val").glob("val-*.tar")))
    samples = list(wds.WebDataset(paths, shardshuffle=False))
    assert {os.fsencode(json.loads(s["json"])["filename"]): int(s["cls"]) for s in samples} == label_of
    for sample in samples:  # the extension is that of the format, the key that of the label map
        (extension,) = {*FORMATS} & {*sample}
        assert Image.open(shards.io.BytesIO(sample[extension])).format == {"jpg": "JPEG"}.get(
            extension, extension.upper()
        )
        key = json.loads(sample["json"])["filename"].rpartition(".")[0]
        assert sample["__key__"].replace("%2E", ".").replace("%25", "%") == key
    for split in ("val", "validation"):
        reader = create_reader("wds/", str(tmp_path / "val"), split=split, is_training=False)
        assert sorted(label for _, label in reader) == sorted(label_of.values()) and len(reader) == 13


def test_the_bytes_depend_neither_on_workers_nor_on_the_form(folder: Path, tmp_path: Path) -> None:
    flags = ("--shorter", "32")
    pack(folder, tmp_path / "one" / "x", *flags)
    pack(folder, tmp_path / "two" / "x", *flags, workers=2)
    pack(folder, tmp_path / "plain")
    pack(tmp_path / "plain", tmp_path / "three" / "x", *flags)
    one, two, three = (files(tmp_path / name / "x") for name in ("one", "two", "three"))
    assert one == two and {**one, "_info.json": b""} == {**three, "_info.json": b""}


def test_a_killed_job_continues(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Finished shards are kept, and those that do not have their size are written again."""
    pack(folder, tmp_path / "a" / "x")
    out, work = tmp_path / "b" / "x", tmp_path / "b" / "x.unfinished"
    read: list[int] = []
    getitem = shards._Stores.__getitem__

    def counted(self: Any, row: int, kill_at: int = 99) -> Any:
        read.append(row)
        if len(read) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return getitem(self, row)

    if not (child := os.fork()):
        monkeypatch.setattr(shards._Stores, "__getitem__", lambda self, row: counted(self, row, 9))
        pack(folder, out)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL and not out.exists()
    assert sorted(path.name for path in work.glob("*.tar")) == ["train-00000.tar", "train-00001.tar"]
    assert "an unfinished job with other settings" in refused(
        capsys, "pack-images", str(folder), str(out), "--shorter", "16"
    )
    os.truncate(work / "train-00001.tar", 1024)
    monkeypatch.setattr(shards._Stores, "__getitem__", counted)
    pack(folder, out)
    assert len(read) == 13 - 3 and files(out) == files(tmp_path / "a" / "x") and not work.exists()
    pack(folder, out)  # a finished one is left alone
    assert len(read) == 13 - 3
    assert "already exists" in refused(capsys, "pack-images", str(folder), str(out), "--shorter", "16")


def test_large_images_shrink_and_others_stay(folder: Path, tmp_path: Path) -> None:
    """Nothing is enlarged; what would not become smaller keeps its bytes."""
    Image.new("RGB", (200, 100)).save(folder / "ant" / "plain.png")  # smaller than any JPEG
    Image.new("RGB", (10, 1)).resize((400, 90)).save(folder / "ant" / "wide.jpg", exif=rotated())
    pack(folder, tmp_path / "out", "--shorter", "32", "--quality", "80")
    plain, packed = open_images(folder), open_images(tmp_path / "out")
    shrunk = []
    for row in range(len(plain)):
        before, after = ImageFile(plain.path(row)), ImageFile(packed.path(row))
        if after.data != before.data:
            assert min(after.width, after.height) == 32 < min(before.width, before.height)
            assert after.width / after.height == pytest.approx(before.width / before.height, rel=0.02)
            assert after.checked_format() == "JPEG" and b"Exif" not in after.data and len(after.data) < len(before.data)
            shrunk.append(plain.name(row))
    assert len(shrunk) == 6 and "ant/wide.jpg" in shrunk and "ant/plain.png" not in shrunk


def rotated() -> Image.Exif:
    """Metadata that turn an image by 90 degrees."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize("flags", [(), ("--shorter", "16")])
def test_damaged_images_stop_or_are_left_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...]
) -> None:
    for name in ("ant/ant.03.JPEG", "v1.0/50%.png"):
        os.truncate(folder / name, (folder / name).stat().st_size - 30)
    words = ("pack-images", str(folder), str(tmp_path / "out"), *flags, "--num_workers", "0")
    message = refused(capsys, *words)
    assert "--on_error skip" in message and not (tmp_path / "out").exists()
    main([*words, "--on_error", "skip"])
    assert len(open_images(tmp_path / "out")) == 11
    skipped = json.loads((tmp_path / "out" / "_info.json").read_text())["skipped"]
    assert sorted(skipped) == ["ant/ant.03.JPEG", "v1.0/50%.png"] and "ant.03.JPEG" in capsys.readouterr().out


def test_images_without_classes(folder: Path, tmp_path: Path) -> None:
    pack(folder / "ant", tmp_path / "out")
    assert content(open_images(tmp_path / "out")) == content(open_images(folder / "ant"))
    main(["unpack-images", str(tmp_path / "out"), str(tmp_path / "back")])
    assert files(tmp_path / "back") == files(folder / "ant")


@pytest.mark.parametrize("class_name", ["..", "/tmp", "a/../..", "", "."])
def test_no_image_is_written_outside_the_new_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], class_name: str
) -> None:
    members = {"k.jpg": b"", "k.cls": b"0", "k.json": json.dumps({"filename": "evil.jpg"}).encode()}
    make_tar(tmp_path / "in" / "a.tar", members)
    (tmp_path / "in" / "_info.json").write_text(json.dumps({"class_names": [class_name]}))
    before = sorted(tmp_path.iterdir())
    refused(capsys, "unpack-images", str(tmp_path / "in"), str(tmp_path / "deep" / "out"))
    assert sorted(tmp_path.iterdir()) == before


def test_wrong_commands(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert "--shorter 320" in refused(capsys, "pack-images", str(folder), out, "--quality", "80")
    assert "gone" in refused(capsys, "pack-images", str(tmp_path / "gone"), out)
    assert "inside SOURCE" in refused(capsys, "pack-images", str(folder), str(folder / "out"))
    (tmp_path / "out.unfinished").mkdir()
    (tmp_path / "out.unfinished" / "mine.txt").touch()
    assert "Remove it" in refused(capsys, "unpack-images", str(folder), out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "out.unfinished"]


def test_a_run_begun_on_folders_continues_on_shards(
    flags: Flags, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With label maps, to the same weights bit for bit, as far as the images keep their bytes."""
    start({**flags, "util.run_dir": tmp_path / "folders"})
    for split in ("train", "val"):
        pack(photos / split, tmp_path / "shards" / split)
    update, calls = Trainer._update, 0

    def interrupted(trainer: Trainer) -> None:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise KeyboardInterrupt
        update(trainer)

    monkeypatch.setattr(Trainer, "_update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start(flags)
    start(flags | {"data.data_path": tmp_path / "shards"})
    assert calls == 8 + 10  # two of three epochs on the shards
    assert_same_weights(weights(tmp_path / "folders"), weights(flags["util.run_dir"]))


def test_the_split_of_a_tar_file_with_both(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From --split, else from OUT's name; what is not written is counted. One with val/ only is called val."""
    paths = [path for path in sorted(folder.rglob("*.*")) if path.is_file()]
    of = {
        split: {f"{split}/{path.relative_to(folder)}": path.read_bytes() for path in paths}
        for split in ("train", "val")
    }
    both = make_tar(tmp_path / "one.tar", of["train"] | dict([*of["val"].items()][:6]))
    only = make_tar(tmp_path / "v.tar", of["val"])
    assert "6 validation images" in open_images(both).described()
    for command in ("pack-images", "unpack-images"):
        out = str(tmp_path / command)
        message = refused(capsys, command, str(both), out)
        assert "--split train or --split val" in message and not Path(out).exists()
        main([command, str(both), f"{out}-s", "--split", "val"])
        main([command, str(both), f"{out}/val"])
        assert len(open_images(f"{out}-s")) == len(open_images(f"{out}/val")) == 6
        assert "--split val" in refused(capsys, command, str(only), f"{out}/train")
    pack(only, tmp_path / "p")
    pack(only, tmp_path / "train", "--split", "val")
    for name in ("pack-images/val", "p", "train"):
        assert [*(tmp_path / name).glob("*-00000.tar")] == [tmp_path / name / "val-00000.tar"]


def test_shards_of_both_splits_in_one_folder(folder: Path, tmp_path: Path) -> None:
    """One info file survives; the classes in the file names decide, and one that contradicts them is refused."""
    val = tmp_path / "few"
    (val / "bee").mkdir(parents=True)
    (folder / "bee" / "grey.jpg").rename(val / "bee" / "grey.jpg")
    for split, source in (("train", folder), ("val", val)):
        pack(source, tmp_path / split)
        for path in (tmp_path / split).iterdir():
            (tmp_path / "both").mkdir(exist_ok=True)
            path.replace(tmp_path / "both" / path.name)
    for split, source in (("train", folder), ("val", val)):
        assert content(open_images(tmp_path / "both", split=split)) == content(open_images(source))
    info = tmp_path / "both" / "_info.json"
    info.write_text(json.dumps({"class_names": ["bee", "ant", "v1.0"]}))
    with pytest.raises(UserError, match="found bee for class 0, whose images lie in ant/"):
        open_images(tmp_path / "both", split="train")
    malformed: list[Any] = [[], {"splits": []}, {"class_names": "ant"}, {"splits": {"train": {}}}]
    for wrong in malformed:
        info.write_text(json.dumps(wrong))
        with pytest.raises(UserError, match="Correct or remove it"):
            open_images(tmp_path / "both", split="train")
    info.unlink()
    assert content(open_images(tmp_path / "both", split="train")) == content(open_images(folder))
