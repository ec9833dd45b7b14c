"""Image sources: every form of ImageNet gives the same list; where the images of a split are looked for."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from relabel.data.images import ImageList
from relabel.data.keep_list import divide
from relabel.data.sources import open_images, open_split
from tests.conftest import Flags
from tests.image_forms import FORMS, WNIDS, Form, copy_flat, files, kaggle, make_tar, plain_folders, timms_shards
from utils.errors import UserError


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plain_folders(tmp_path_factory.mktemp("plain"))


def opened(flags: Flags, split: str) -> ImageList:
    keys = ("data.data_path", f"data.{split}", f"data.{split}_labels")
    path, source, table = (str(flags.get(key, "")) for key in keys)
    return open_split(path, split, source, table).with_classes_of(WNIDS, "the training folders")


def content(images: ImageList) -> list[tuple[str, int, bytes]]:
    """Name without extension (shards rename it), label and bytes of every image."""
    rows = range(len(images))
    return [(images.name(i).rpartition(".")[0], int(images.labels[i]), images.path(i).read_bytes()) for i in rows]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_form_gives_the_list_of_plain_folders(plain: Path, tmp_path: Path, form: Form) -> None:
    """Also when the index of tar files is read a second time."""
    flags = form(plain, tmp_path / "form")
    for split in ("train", "val"):
        expected = open_split(str(plain), split)
        for found in (opened(flags, split), opened(flags, split)):
            assert content(found) == content(expected)
            assert found.keys().tolist() == expected.keys().tolist()
            assert f"{len(expected)} images of 3 classes from" in found.described()


def test_a_part_of_the_training_images_is_set_aside(plain: Path, tmp_path: Path) -> None:
    """By key, from each class: the same images in every form."""
    flags = timms_shards(plain, tmp_path / "form")
    kept = {}
    for which, images in (("folders", open_split(str(plain), "train")), ("shards", opened(flags, "train"))):
        train, val = divide(images, 0.25, "train"), divide(images, 0.25, "val")
        assert np.bincount(val.labels).tolist() == [1, 1, 1] and np.bincount(train.labels).tolist() == [3, 3, 3]
        kept[which] = train.keys().tolist(), val.keys().tolist()
        assert sorted([*kept[which][0], *kept[which][1]]) == sorted(images.keys().tolist())
    assert kept["folders"] == kept["shards"]


@pytest.mark.parametrize("share", [0.01, 0.97])
def test_every_class_keeps_an_image_in_either_part(plain: Path, share: float) -> None:
    images = open_split(str(plain), "train")
    counts = [np.bincount(divide(images, share, split).labels).tolist() for split in ("train", "val")]
    assert counts == ([[3] * 3, [1] * 3] if share < 0.5 else [[1] * 3, [3] * 3])


def test_the_test_folder_of_kaggle_has_no_classes(plain: Path, tmp_path: Path) -> None:
    """Though a table lies above it: that of the validation images."""
    kaggle(plain, tmp_path / "form")
    test = tmp_path / "form" / "ILSVRC" / "Data" / "CLS-LOC" / "test"
    (only,) = test.iterdir()
    only.rename(test / "ILSVRC2012_test_00000001.JPEG")
    assert open_images(test).class_names == []


def test_the_validation_images_of_a_part_of_imagenet(plain: Path, tmp_path: Path) -> None:
    """The table that comes with ImageNet may list images that are not there; one that was given may not."""
    kaggle(plain, tmp_path / "form")
    val, table = tmp_path / "form" / "ILSVRC" / "Data" / "CLS-LOC" / "val", tmp_path / "form" / "LOC_val_solution.csv"
    for path in sorted(val.iterdir())[2:]:
        path.unlink()
    assert "not used: 4 unmatched table lines (ILSVRC2012_val_000000" in open_images(val).described()
    with pytest.raises(UserError, match="4 of the 6 images that it lists are not in"):
        open_images(val, table)


def test_own_images_among_those_of_kaggles_table(plain: Path, tmp_path: Path) -> None:
    """One beside the others that sorts first, and one in a folder."""
    kaggle(plain, tmp_path / "form")
    val = tmp_path / "form" / "ILSVRC" / "Data" / "CLS-LOC" / "val"
    for own in ("0_mine.jpg", "more/mine.jpg"):
        (val / own).parent.mkdir(exist_ok=True)
        shutil.copy(files(plain, "val")[0], val / own)
        images = open_images(val)
        assert len(images) == 6 and "unlisted image" in images.described()
    assert "not used: 2 unlisted images (0_mine.jpg)" in images.described()


def test_a_second_source_of_a_split_is_counted(plain: Path, tmp_path: Path) -> None:
    """And folders of the splits are found in upper or lower case."""
    root = Path(shutil.copytree(plain, tmp_path / "data"))
    for old, new in (("train", "Train"), ("val", "VALIDATION")):
        (root / old).rename(root / new)
    (root / "valid").mkdir()
    (root / "training").symlink_to("Train")
    make_tar(root / "train.tar", {"a/1.png": b""})
    train, val = open_split(str(root), "train"), open_images(root / "VALIDATION")
    assert len(train) == 12 and train.described().endswith(f"{root}/Train; not used: 1 other train source (train.tar)")
    with pytest.raises(UserError, match=r"data/valid: found neither"):
        open_split(str(root), "val")
    (root / "valid").rmdir()
    assert open_split(str(root), "val").described() == val.described()


def test_shards_of_one_data_set_and_of_another(plain: Path, tmp_path: Path) -> None:
    """Class numbers without names are positions among the classes of the training images, if these are so many."""
    flags = timms_shards(plain, tmp_path / "form")
    val = open_split(str(flags["data.data_path"]), "val")
    assert val.class_names == ["0", "1", "2"] and "its classes have numbers, not names" in val.described()
    with pytest.raises(UserError, match="1 class number that the training folders do not have, the first: 2"):
        val.with_classes_of(WNIDS[:2], "the training folders")


def test_thousands_of_tar_files_are_said_in_a_line(plain: Path, tmp_path: Path) -> None:
    image = files(plain, "train")[0].read_bytes()
    for i in range(30):
        make_tar(tmp_path / f"train-{i:04d}.tar", {f"{WNIDS[i % 3]}/{i}.jpg": image})
    images = open_split(str(tmp_path), "train")
    assert (
        images.described() == f"30 images of 3 classes from 30 tar files, {tmp_path}/train-0000.tar ... train-0029.tar"
    )
    assert open_images(images.root).names.tolist() == images.names.tolist()


# ---- where the images of a split are; the remedy in each message is typed


LEVELS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "too low": (lambda root: root / "train", r"Did you mean --data.data_path (\S+)\?"),
    "too high": (lambda root: root.parent, r"Did you mean --data.data_path (\S+)\?"),
}


@pytest.mark.parametrize("level", LEVELS)
def test_a_data_folder_one_level_off(plain: Path, tmp_path: Path, level: str) -> None:
    root = Path(shutil.copytree(plain, tmp_path / "above" / "data"))
    off, pattern = LEVELS[level]
    with pytest.raises(UserError, match=r"but no train/; expected train/CLASS/IMAGE") as raised:
        open_split(str(off(root)), "train")
    (remedy,) = re.findall(pattern, str(raised.value))
    assert len(open_split(remedy, "train")) == 12


def test_images_asked_for_one_level_too_high(plain: Path, tmp_path: Path) -> None:
    for form, inside in ((lambda: plain, "train"), (lambda: kaggle(plain, tmp_path / "k")["data.data_path"], "train")):
        with pytest.raises(UserError, match="not class folders") as raised:
            open_images(form())
        (remedy,) = re.findall(r"Did you mean (\S+)\?", str(raised.value))
        assert remedy.endswith(inside) and len(open_images(remedy)) == 12


def test_a_class_may_be_called_train(plain: Path, tmp_path: Path) -> None:
    """CIFAR-100 and COCO have one."""
    root = tmp_path / "vehicles"
    for name in ("bus", "train"):
        copy_flat(files(plain, "train")[:2], root / "train" / name)
    assert open_split(str(root), "train").class_names == ["bus", "train"]
    inside = {f"{name}/{i}.png": b"" for name in ("bus", "train") for i in range(2)}
    assert open_images(make_tar(tmp_path / "a.tar", inside)).class_names == ["bus", "train"]


def test_a_class_folder_is_no_data_folder(plain: Path) -> None:
    with pytest.raises(UserError, match=r"but no train/") as raised:
        open_split(str(plain / "train" / WNIDS[0]), "train")
    assert "--data.val_share" not in str(raised.value)


@pytest.mark.parametrize(
    ("files_there", "split", "message"),
    [
        (["train/a/1.png"], "val", "Without validation images, --data.val_share 0.1"),
        (["train.tar.gz"], "train", "Decompress train.tar.gz once"),
        (["train.beton"], "train", r"\.beton files lack the names of images.*give their source"),
        (["images/1.png", "labels_train.csv"], "train", r"--data.train_labels \S+/labels_train.csv"),
        (["data/train-0.parquet", "train-00000.parquet"], "train", "python -m relabel pack-images"),
        (["train/1.png", "train/2.png"], "train", "2 images of train without classes; .* --data.train_labels FILE"),
        (["train/shard.0.mds"], "train", r"only 1 .mds file \(shard.0.mds\).*lack the names of images"),
        (["a/1.png", "b/1.png"], "train", r"--data.train \S+ --data.val_share 0.1 uses them"),
        (["train/a/1.png", "Test/a/1.png"], "val", r"--data.val \S+/Test uses Test/. Without validation images"),
        (["1.png", "2.png"], "train", "give it: --data.train_labels FILE"),
        (["1.png", "2.png"], "val", "--data.val_share 0.1"),
        (["mine/ILSVRC/Data/CLS-LOC/train/a/1.png"], "train", r"Did you mean --data.data_path \S+/mine\?"),
        (["mine/train.tar"], "train", r"Did you mean --data.data_path \S+/mine\?"),
        (["train/images/a/1.png", "train/images/b/1.png"], "train", r"are the classes, give \S+/train/images\."),
        (["train/a/1.heic", "train/b/1.png"], "train", r"1 .heic file \(a/1.heic\);.* Convert the .heic files"),
        (["val/1.png", "ILSVRC2012_devkit_t12.tar.gz"], "val", r"tar -xzf \S+/ILSVRC2012_devkit_t12.tar.gz -C \S+$"),
        ([], "train", "found nothing, but no train/"),
    ],
)
def test_what_is_there_instead_of_a_split(tmp_path: Path, files_there: list[str], split: str, message: str) -> None:
    for name in files_there:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=message):
        open_split(str(tmp_path), split)


@pytest.mark.parametrize("source", ["gone.tar", "gone-*.tar", "gone-{0..3}.tar", "here.tar:gone.tar", "a.zip"])
def test_a_source_that_does_not_exist(tmp_path: Path, source: str) -> None:
    make_tar(tmp_path / "here.tar", {"a/1.png": b""})
    (tmp_path / "a.zip").touch()
    source = ":".join(f"{tmp_path}/{part}" for part in source.split(":"))
    with pytest.raises(UserError, match="expected a folder of images; or a tar file"):
        open_images(source)
    with pytest.raises(UserError, match=r"pack-images '\S+/\*.parquet' SHARDS"):
        open_images(f"{tmp_path}/*.parquet")


@pytest.mark.parametrize("as_file", [True, False])
def test_a_zip_file_is_unpacked_by_the_command_in_the_message(plain: Path, tmp_path: Path, as_file: bool) -> None:
    shutil.make_archive(str(tmp_path / "my images"), "zip", plain)
    with pytest.raises(UserError, match="Unpack it once: python -m zipfile") as raised:
        open_split(str(tmp_path / "my images.zip" if as_file else tmp_path), "train")
    words = shlex.split(str(raised.value).rpartition("once: python ")[2])
    subprocess.run([sys.executable, *words], check=True)
    assert len(open_split(str(tmp_path / "my images"), "train")) == 12


def test_numbers_in_a_table_are_positions_among_the_names_of_others(plain: Path, tmp_path: Path) -> None:
    copy_flat(files(plain, "val"), tmp_path / "val")
    lines = [f"{path.name} {WNIDS.index(path.parent.name)}\n" for path in files(plain, "val")]
    (tmp_path / "val.txt").write_text("".join(lines))
    val = open_images(tmp_path / "val", tmp_path / "val.txt")
    assert "where others have names, 0 is the first" in val.described()
    assert content(val.with_classes_of(WNIDS, "these")) == content(open_split(str(plain), "val"))
    assert val.with_classes_of(["0", "1", "2", "3"], "these").labels.tolist() == val.labels.tolist()
    (tmp_path / "val.txt").write_text("".join(lines).replace(" 0", " 3"))
    with pytest.raises(
        UserError, match=r"class number that these do not have, the first: 3; .*Write names into \S+.txt"
    ):
        open_images(tmp_path / "val", tmp_path / "val.txt").with_classes_of(WNIDS, "these")


def test_one_split_in_a_tar_file_is_not_the_other(tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "mine.tar", {"train/a/1.png": b"", "train/b/1.png": b""})
    with pytest.raises(UserError, match=r"found no folder val/ in it, only train/.*--data.val_share 0.1"):
        open_split(str(tar), "val")


@pytest.mark.parametrize("names", [["train-0.tar", "train-1.tar", "val-0.tar"], ["a_training.tar", "my-valid.tar"]])
def test_tar_files_are_told_apart_by_their_names(plain: Path, tmp_path: Path, names: list[str]) -> None:
    """In a folder, by a pattern and in a list."""
    for i, name in enumerate(names):
        make_tar(tmp_path / name, {f"{wnid}/{i}{j}.png": b"" for j, wnid in enumerate(WNIDS)})
    for data_path in (tmp_path, f"{tmp_path}/*.tar", ":".join(f"{tmp_path}/{name}" for name in names)):
        found = [open_split(str(data_path), split).names.tolist() for split in ("train", "val")]
        assert len(found[1]) == 3 and len(found[0]) == 3 * len(names) - 3 and not {*found[0]} & {*found[1]}


def test_the_same_tar_files_are_not_training_and_validation_images(tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "mine.tar", {"a/1.png": b"", "b/1.png": b""})
    for data_path in (tmp_path, tar, f"{tmp_path}/*.tar"):
        assert len(open_split(str(data_path), "train")) == 2
        with pytest.raises(UserError, match=r"nothing of val; .*--data.val SOURCE, or .* --data.val_share 0.1"):
            open_split(str(data_path), "val")


def test_odd_places_of_tar_files(tmp_path: Path) -> None:
    """A colon in a path; a folder of shards with another folder in it; a folder of tar files that are unpacked."""
    tar = make_tar(tmp_path / "12:30" / "train.tar", {"a/1.png": b"", "b/1.png": b""})
    (tar.parent / "logs").mkdir()
    assert len(open_images(tar)) == len(open_images(tar.parent)) == 2
    for name in ("1:2", "photos [1]", "a*b"):
        for number in range(2):
            make_tar(tmp_path / name / f"t-{number}.tar", {f"{number}/1.png": b""})
        sources = [f"{tmp_path}/{name}/{pattern}.tar" for pattern in ("t-*", "t-{0..1}", "t-[01]")]
        assert all(len(open_images(source)) == 2 for source in sources)
    (tar.parent / "1.png").touch()
    assert open_images(tar.parent).described().startswith(f"1 image from files in {tar.parent}; not used: 1 .tar file")
    (tar.parent / "1.png").unlink()
    (tar.parent / "logs" / "1.png").touch()
    assert open_images(tar.parent).described().endswith("1 .tar file (train.tar), 1 hidden folder (.relabel-index)")


def test_tar_files_of_both_splits_as_one_source(plain: Path, tmp_path: Path) -> None:
    """The split that is asked for is chosen by name; without one, each remedy opens one of them."""
    folder = timms_shards(plain, tmp_path / "form")["data.data_path"]
    assert len(open_split("", "val", str(folder))) == len(open_images(f"{folder}/*.tar", split="val")) == 6
    for source in (folder, f"{folder}/*.tar"):
        with pytest.raises(UserError, match="found tar files of train and val; expected those of one") as raised:
            open_images(source)
        assert sorted(len(open_images(remedy)) for remedy in re.findall(r"'(\S+)'", str(raised.value))) == [6, 12]


def test_class_numbers_are_joined_by_number(tmp_path: Path) -> None:
    """Also where the training shards lack a class; what they lack is said, and so are the true names."""
    for name, numbers in (("train", (0, 2)), ("val", (0, 1, 2))):
        members = {f"{WNIDS[n]}_{n}.{kind}": b"%d" % n for n in numbers for kind in ("jpg", "cls")}
        if name == "val":
            members = {key.partition("_")[2].replace(".", "v."): data for key, data in members.items()}
        make_tar(tmp_path / f"{name}.tar", members)
    train, val = (open_split(str(tmp_path), split) for split in ("train", "val"))
    assert train.class_names == [WNIDS[0], WNIDS[2]]
    with pytest.raises(UserError, match=r"1 class number that these do not have, the first: 1; .*0 to 2"):
        val.with_classes_of(train.class_names, "these", train.numbers)
    some = val.take(np.array([0, 2])).with_classes_of(train.class_names, "these", train.numbers)
    assert some.names.tolist() == [f"{WNIDS[n]}/{n}v.jpg".encode() for n in (0, 2)] and some.labels.tolist() == [0, 1]
    (tmp_path / "_info.json").write_text(json.dumps({"class_names": WNIDS}))
    train, val = (open_split(str(tmp_path), split) for split in ("train", "val"))
    assert val.with_classes_of(train.class_names, "these", train.numbers).class_names == [*WNIDS]
