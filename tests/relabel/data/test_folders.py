"""Class folders: what is used, what is passed over and said; names that look alike."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest

from relabel.__main__ import main as relabel
from relabel.data.folders import list_images
from relabel.data.images import MOST_KINDS, Census
from relabel.data.sources import open_images
from relabel.label_map import LabelMap
from relabel.stores.pt_folder import write_label_map
from relabel.stores.store import check_present, open_label_store
from tests.relabel.data.test_images import names, touch
from utils.errors import UserError
from utils.progress import print_lines


def test_images_and_files_as_they_lie_in_own_folders(tmp_path: Path) -> None:
    """Every format that Pillow opens is used, at any depth; every other file is counted with its kind."""
    used = ["a/1.jpg", "a/more/2.JFIF", "a/more/still/3.gif", "b/4.pgm", "b/5.avif", "b/6.jp2"]
    hidden = [".DS_Store", "__MACOSX/a/._1.jpg", "a/.ipynb_checkpoints/1-checkpoint.jpg", "a/@eaDir/1.jpg/THUMB.jpg"]
    touch(tmp_path, *used, *hidden, "a/notes.txt", "b/7.heic", "b/8.HEIC", "b/README", "loose.jpg")
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
    (tmp_path / "b" / "loop").symlink_to("..")
    for name in ("gone", "b/gone"):  # links to themselves
        (tmp_path / name).symlink_to(tmp_path / name)
    images = list_images(tmp_path)
    assert sorted(names(images)) == ["a/1.jpg", "a/2.JFIF", "a/3.gif", "b/4.pgm", "b/5.avif", "b/6.jp2"]
    assert [Path(str(images.path(i))).is_file() for i in range(6)] == [True] * 6
    about = images.described()
    assert f"6 images of 2 classes from class folders in {tmp_path}, 2 in folders inside a class folder" in about
    for kind in (
        "2 .heic files (b/7.heic)",
        "1 .txt file",
        "1 loose image",
        "2 circular links",
        "3 extensionless files",
    ):
        assert kind in about
    assert "3 hidden folders (a/.ipynb_checkpoints)" in about


def test_the_line_stays_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    census = Census("class folders in data/train")
    for i in range(MOST_KINDS + 3):
        census.pass_over(f".x{i} file", f"{'long/' * 30}{i}.x{i}")
    assert str(census).endswith(" and 3 other kinds") and len(str(census)) < 700
    print_lines(str(census))
    assert capsys.readouterr().out.count("\n") == 1  # wrapped on terminals only


@pytest.mark.parametrize(
    ("name", "other", "difference"),
    [
        ("cat ", "cat", "they differ in spaces"),
        ("cat", "Cat", "they differ in upper and lower case"),
        (unicodedata.normalize("NFD", "café"), "café", r"their accents are stored differently ('cafe\u0301' and"),
        ("n0144O764", "n01440764", "character 6 is LATIN CAPITAL LETTER O and DIGIT ZERO"),
        ("b\u2010c", "b\u2011c", "character 2 is HYPHEN and NON-BREAKING HYPHEN"),
    ],
)
def test_class_folders_that_look_alike(tmp_path: Path, name: str, other: str, difference: str) -> None:
    images = list_images(touch(tmp_path, f"{name}/1.png", "dog/1.png"))
    with pytest.raises(UserError) as raised:
        images.with_classes_of(["ape", "dog", other], "the training folders")
    assert f"{name!r} looks like {other!r}, but {difference}" in str(raised.value)
    (tmp_path / name).rename(tmp_path / "as told")
    (tmp_path / "as told").rename(tmp_path / other)
    assert list_images(tmp_path).with_classes_of(["ape", "dog", other], "").labels.tolist() == (
        [2, 1] if other < "dog" else [1, 2]
    )


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ["a/1.png", "a/x/1.png", "b/2.png"],
            r"a/1.png and \S+x/1.png are both called a/1.png.*Rename or remove",
        ),
        (["a/1.heic", "b/2.heic"], r"found no image in 2 of 2 class folders \(a, b\), only 2 .heic files \(a/1.heic\)"),
        ([".git/1.png", "x.txt"], r"neither class folders nor images, only 1 .txt file \(x.txt\), 1 hidden folder"),
        ([], "neither class folders nor images, only empty folders"),
    ],
)
def test_folders_that_are_no_data_set(tmp_path: Path, files: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_images(touch(tmp_path, *files))


def test_equal_keys_in_folders_inside_a_class_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x/1.jpg and \S+y/1.png differ only in the extension"):
        list_images(touch(tmp_path, "a/x/1.jpg", "a/y/1.png")).keys()


def test_a_folder_that_may_not_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For root every folder may be listed, so the refusal is played."""
    from relabel.data import folders

    touch(tmp_path, "a/1.png", "a/closed/2.png")
    scan = folders.os.scandir

    def scandir(path: Path) -> object:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(folders.os, "scandir", scandir)
    with pytest.raises(UserError, match=r"a/closed: cannot be listed \(Permission denied\).*the permissions"):
        list_images(tmp_path)


def test_class_folders_of_images_and_of_label_maps_look_alike(tmp_path: Path) -> None:
    """Of either form of label maps."""
    images = list_images(touch(tmp_path / "images", "cat/1.png", "dog/1.png"))
    label_map = LabelMap.from_dense(np.eye(2, dtype=np.float32)[:, :, None], 2)
    for key in ("Cat/1", "dog/1"):
        write_label_map(tmp_path / "files", key, label_map)
    store = open_label_store(tmp_path / "files", images.keys(), images.class_names)
    with pytest.raises(UserError, match="'cat' looks like 'Cat', but they differ in upper and lower case"):
        check_present(store, images.path)
    relabel(["pack", str(tmp_path / "files"), str(tmp_path / "packed")])
    with pytest.raises(UserError, match="'cat' looks like 'Cat', but they differ in upper and lower case"):
        open_label_store(tmp_path / "packed", images.keys(), images.class_names)


def test_more_loose_images_than_images_in_folders(tmp_path: Path) -> None:
    """A flat folder with a few images in another folder is no data set of one class."""
    images = touch(tmp_path, "1.png", "2.png", "chosen/2.png")
    with pytest.raises(UserError, match=r"2 images beside the folders, such as 1.png, and only 1 in them"):
        open_images(images)
    (tmp_path / "t.csv").write_text("1,ant\nchosen/2,bee\n")
    assert names(open_images(images, tmp_path / "t.csv")) == ["ant/1.png", "bee/2.png"]
