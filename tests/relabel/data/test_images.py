"""Lists of images: what counts as an image, the order, the keys; lists of images to keep; which process lists."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relabel.data.folders import list_images
from relabel.data.images import ImageList
from relabel.data.keep_list import keep_listed, write_keep_list
from relabel.data.sources import open_images
from tests.conftest import Flags
from tests.forked_runs import fork_run
from tests.strategies import KEY_LISTS
from utils.errors import UserError
from utils.run_log import read_status

NAMES = ["ant/a.jpg", "ant/b c.jpg", "bee/a.jpg", "bee/größe.jpg"]


def touch(root: Path, *files: str) -> Path:
    """Empty files, as listing opens none."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def image_list(*names: str) -> ImageList:
    return ImageList.of_folder(
        Path("train"), ["ant", "bee"], np.array([os.fsencode(n) for n in names]), np.zeros(len(names), int)
    )


def names(images: ImageList) -> list[str]:
    return [images.name(index) for index in range(len(images))]


def test_classes_and_files_are_sorted_as_text(tmp_path: Path) -> None:
    images = list_images(touch(tmp_path, "2/b.png", "2/a.PNG", "10/z.JPEG", "Ant/q.jpg", "bee/r.WebP"))
    assert images.class_names == ["10", "2", "Ant", "bee"]
    assert names(images) == ["10/z.JPEG", "2/a.PNG", "2/b.png", "Ant/q.jpg", "bee/r.WebP"]
    assert images.labels.tolist() == [0, 1, 1, 2, 3] and images.labels.dtype == np.int32
    assert len(images) == 5 and images.path(2) == tmp_path / "2" / "b.png"


def test_files_that_are_no_images_are_skipped_and_links_followed(tmp_path: Path) -> None:
    """A link to nothing is listed all the same, so that training reports it."""
    usual = ["a.jpg", "b.jpeg", "c.png", "d.webp", "e.bmp", "f.ppm", "g.tif", "h.tiff", "i.JPEG"]
    touch(tmp_path, ".cache/a.png", "bee/.a.png", "bee/notes.txt", "bee/folder.png/x", "loose.png")
    touch(tmp_path, *(f"bee/{name}" for name in usual))
    os.mkfifo(tmp_path / "bee" / "pipe.JPEG")
    (tmp_path / "bee" / "j.png").symlink_to("gone.png")
    (tmp_path / "wasp").symlink_to(tmp_path / "bee")
    expected = [*usual, "j.png"]
    assert names(list_images(tmp_path)) == [f"{folder}/{name}" for folder in ("bee", "wasp") for name in expected]


def test_images_may_lie_in_class_folders_or_in_none(tmp_path: Path) -> None:
    flat = open_images(touch(tmp_path / "flat", "b.png", "a.png"))
    assert names(flat) == ["a.png", "b.png"] and flat.class_names == [] and flat.labels.tolist() == [-1, -1]
    assert names(open_images(touch(tmp_path / "folders", "ant/a.png"))) == ["ant/a.png"]
    both = open_images(touch(tmp_path / "folders", "c.png"))
    assert names(both) == ["ant/a.png"] and both.described().endswith("not used: 1 loose image (c.png)")
    assert names(open_images(touch(tmp_path / "flat", "notes/1.txt"))) == ["a.png", "b.png"]
    with pytest.raises(UserError, match="found neither class folders nor images"):
        open_images(touch(tmp_path / "none", "notes.txt"))


@given(KEY_LISTS, st.lists(st.sampled_from([".JPEG", ".png", ".tar.webp"]), min_size=5, max_size=5))
def test_a_key_is_the_name_up_to_the_last_dot(keys: list[str], extensions: list[str]) -> None:
    """In the order of the images, whatever sorts before a slash; two images with one key are refused."""
    files = [key + extension for key, extension in zip(keys, extensions, strict=False)]
    images = image_list(*files)
    expected = [os.fsencode(file[: file.rindex(".")]) for file in files]
    assert names(images) == files
    if len(set(expected)) < len(expected):
        with pytest.raises(UserError, match="differ only in the extension"):
            images.keys()
    else:
        assert images.keys().tolist() == expected


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["loose.png"], r"no class folder, only 1 image \(loose.png\); expected ROOT/CLASS/IMAGE"),
        (["ant/a.png", "cat/readme.txt", "dog/.a.png"], r"found no image in 2 of 3 class folders \(cat, dog\)"),
        (
            ["val/ant/a.png", "train/ant/a.png"],
            r"found the folder train/, not class folders; .* you mean .*/train/train\?$",
        ),
        ([], r"train: cannot be listed \(No such file.*expected ROOT/CLASS/IMAGE"),
    ],
)
def test_a_folder_without_images_is_refused(tmp_path: Path, files: list[str], message: str) -> None:
    touch(tmp_path / "train", *files)
    with pytest.raises(UserError, match=message):
        list_images(tmp_path / "train")


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train: cannot be listed \(Not a directory"):
        list_images(touch(tmp_path, "train") / "train")


# ---- the list of images to keep


def test_the_kept_images_stay_in_order_and_so_do_the_classes(tmp_path: Path) -> None:
    write_keep_list(tmp_path / "keep.txt", [NAMES[3], NAMES[1]], "a comment\nof two lines")
    kept = keep_listed(image_list(*NAMES), tmp_path / "keep.txt")
    assert names(kept) == ["ant/b c.jpg", "bee/größe.jpg"] and kept.class_names == ["ant", "bee"]
    (tmp_path / "keep.txt").write_bytes(b"\xef\xbb\xbf# Windows\r\nant/a.jpg\r\n\r\nbee/a.jpg")
    assert names(keep_listed(image_list(*NAMES), tmp_path / "keep.txt")) == ["ant/a.jpg", "bee/a.jpg"]


def test_names_that_look_like_comments_are_kept(tmp_path: Path) -> None:
    odd = ["#1/a.jpg", "# 2/b.jpg", "./c.jpg", "d/e.jpg"]
    write_keep_list(tmp_path / "keep.txt", odd, "a comment")
    assert names(keep_listed(image_list(*odd), tmp_path / "keep.txt")) == odd


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# nothing else", r"keep\.txt: found no names.*expected names such as 'ant/a\.jpg'"),
        ("ant/a.jpg\nant/zebra.jpg\n", r"names that are not images in train: 1, the first 'ant/zebra\.jpg"),
        ("ant/a.jpg\nbee/a.jpg\nant/a.jpg\n", r"found 'ant/a\.jpg' twice"),
        (None, r"keep\.txt, cannot be read \(No such file.*--data\.keep_list"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "keep.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        keep_listed(image_list(*NAMES), tmp_path / "keep.txt")


# ---- runs of several processes


def refuse_scans(root: Path) -> None:
    """Make this process fail where it lists a folder below root."""
    scan: Callable[..., object] = os.scandir

    def scandir(path: str | Path = ".") -> object:
        assert not Path(path).is_relative_to(root), f"this process lists {path}"
        return scan(path)

    os.scandir = scandir  # type: ignore[assignment]


@pytest.mark.slow
def test_the_main_process_lists_images_and_label_maps_for_all(flags: Flags, photos: Path, tmp_path: Path) -> None:
    extra = {"data.extra.path": photos / "val", "data.extra.labels": tmp_path / "labels", "data.extra.share": 0.5}
    for path in (photos / "val").rglob("*.JPEG"):
        copy = tmp_path / "labels" / path.relative_to(photos / "val").with_suffix(".pt")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.symlink_to(photos / "labels" / "ant" / "ant.00.pt")
    flags |= {"optim.epochs": 1, "optim.warmup.epochs": 0, **extra}
    faults = {1: partial(refuse_scans, photos)}
    run = fork_run(flags, tmp_path / "output", 2, faults)
    assert run.ends() == [0, 0], (tmp_path / "output").read_text()
    assert read_status(flags["util.run_dir"]) == "done"
