"""The list of images to train on: read exactly, refused when it does not fit."""

from pathlib import Path

import numpy as np
import pytest

from relabel.data.images import ImageList, keep_listed, write_keep_list
from utils.errors import UserError

NAMES = ["ant/a.jpg", "ant/b c.jpg", "bee/a.jpg", "bee/größe.jpg"]


@pytest.fixture
def images() -> ImageList:
    return ImageList(Path("train"), ["ant", "bee"], np.array([n.encode() for n in NAMES]), np.array([0, 0, 1, 1]))


def test_the_order_is_that_of_the_images_and_the_classes_stay(images: ImageList, tmp_path: Path) -> None:
    write_keep_list(tmp_path / "keep.txt", [NAMES[3], NAMES[1]], "two lines\nof remarks")
    kept = keep_listed(images, tmp_path / "keep.txt")
    assert [kept.name(row) for row in range(len(kept))] == ["ant/b c.jpg", "bee/größe.jpg"]
    assert kept.labels.tolist() == [0, 1] and kept.class_names == ["ant", "bee"]


def test_names_that_look_like_remarks_and_names_that_cannot_be_listed(tmp_path: Path) -> None:
    names = ["#1/a.jpg", "# 2/b.jpg", "./c.jpg", "d/e.jpg"]
    images = ImageList(Path("train"), ["#1"], np.array([n.encode() for n in names]), np.zeros(4, np.int32))
    write_keep_list(tmp_path / "keep.txt", names, "remark")
    assert len(keep_listed(images, tmp_path / "keep.txt")) == 4
    with pytest.raises(UserError, match=r"found the name 'a\\nb\.jpg', which a file of one name a line cannot hold"):
        write_keep_list(tmp_path / "other.txt", ["a\nb.jpg"], "remark")
    assert not (tmp_path / "other.txt").exists()


def test_lines_of_windows_and_empty_ones(images: ImageList, tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_bytes(b"\xef\xbb\xbf# remark\r\nant/a.jpg\r\n\r\nbee/a.jpg")
    assert len(keep_listed(images, tmp_path / "keep.txt")) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"keep\.txt: found no name in it; expected some of the 4 images in train"),
        ("ant/a.jpg\nant/zebra.jpg\n", r"found 1 of 2 names that are no image in train, the first: 'ant/zebra\.jpg'"),
        ("ant/a\n", r"'ant/a'; expected names such as 'ant/a\.jpg'"),
        ("ant/a.jpg\nbee/a.jpg\nant/a.jpg\n", r"found 'ant/a\.jpg' twice"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(images: ImageList, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "keep.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        keep_listed(images, tmp_path / "keep.txt")


def test_a_missing_list_is_refused(images: ImageList, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"keep\.txt, cannot be read \(No such file.*--data\.keep_list"):
        keep_listed(images, tmp_path / "keep.txt")
