"""Scenes of digits and of images from a folder: what they show, what is written, and that it repeats."""

import hashlib
import json
import resource
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from relabel.checks.object_boxes import read_truth
from relabel.demo.scenes import HEIGHT, LABEL_SIZES, NOISE, OTHER_SIZES, WIDTH, Scene, draw_scene, write_scenes
from relabel.demo.small_images import DigitImages, FolderImages, digit_images
from tests.conftest import make_photos
from utils.errors import UserError

DIGITS = DigitImages()


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(DIGITS, 5, "train", number) for number in range(300)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "scenes"
    out.mkdir()  # an empty folder is filled
    write_scenes(DIGITS, out, seed=3, train=30, val=20)
    return out


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Small images of three classes, each bright in a channel of its own."""
    for split in ("train", "val"):
        make_photos(tmp_path / "images" / split, {"ant": 4, "bee": 4, "cow": 4}, np.random.default_rng(0))
    return tmp_path / "images"


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_digits_do_not_overlap_and_have_the_stated_sizes(scenes: list[Scene]) -> None:
    train, val = ({image.tobytes() for image in digit_images(split)[0]} for split in ("train", "val"))
    assert len(digit_images("train")[0]) == 1300 and len(digit_images("val")[0]) == 497 and not train & val
    for scene in scenes:
        boxes = [box.pixels(WIDTH, HEIGHT) for box in scene.boxes]
        sides = [right - left for left, _, right, _ in boxes]
        assert sides == [bottom - top for _, top, _, bottom in boxes]
        assert LABEL_SIZES[0] <= sides[0] <= LABEL_SIZES[1]
        assert all(OTHER_SIZES[0] <= side <= OTHER_SIZES[1] for side in sides[1:])
        assert all(a.iou(b) == 0 for a, b in combinations(scene.boxes, 2))
    assert {len(scene.labels) for scene in scenes} == {2, 3, 4}
    assert np.bincount([scene.labels[0] for scene in scenes]).tolist() == [30] * 10
    largest = [max(scene.boxes, key=lambda box: box.area) == scene.boxes[0] for scene in scenes]
    assert np.mean(largest) > 0.85  # gives the label


def test_ink_is_inside_the_boxes_and_the_rest_is_flat_noise(scenes: list[Scene]) -> None:
    for scene in scenes:
        inside = np.zeros((HEIGHT, WIDTH), dtype=bool)
        for box in scene.boxes:
            left, top, right, bottom = box.pixels(WIDTH, HEIGHT)
            inside[top:bottom, left:right] = True
        background = scene.pixels[~inside] / 255
        assert scene.pixels.shape == (HEIGHT, WIDTH, 3) and scene.pixels.dtype == np.uint8
        assert background.std(axis=0).min() > 0.3 * NOISE and background.std(axis=0).max() < 1.2 * NOISE
        assert scene.pixels[inside].mean() / 255 > background.mean()  # ink is lighter


def test_files_are_laid_out_as_imagenet_with_their_truth(folder: Path) -> None:
    description = json.loads((folder / "scenes.json").read_text())
    assert (description["seed"], description["height"], description["width"]) == (3, HEIGHT, WIDTH)
    for split, count in (("train", 30), ("val", 20)):
        truth = read_truth(folder / f"{split}.json")
        files = sorted(path.relative_to(folder / split).as_posix() for path in (folder / split).glob("*/*"))
        assert sorted(truth) == files and len(files) == count
        assert {name.split("/")[0] for name in files} == {f"digit_{digit}" for digit in range(10)}
        for name, found in truth.items():
            assert name.startswith(f"digit_{found[0][0]}/")
            scene = draw_scene(DIGITS, 3, split, int(Path(name).stem.split("_")[1]))
            expected = zip(scene.labels, scene.boxes, strict=True)
            assert [(label, box.pixels(WIDTH, HEIGHT)) for label, box in found] == [
                (label, box.pixels(WIDTH, HEIGHT)) for label, box in expected
            ]
            with Image.open(folder / split / name) as image:
                assert image.format == "JPEG" and image.size == (WIDTH, HEIGHT) and image.mode == "RGB"
                assert np.abs(np.asarray(image).astype(int) - scene.pixels).mean() < 6


def test_the_bytes_repeat_and_other_files_are_never_overwritten(folder: Path, tmp_path: Path) -> None:
    write_scenes(DIGITS, tmp_path / "again", seed=3, train=30, val=20)
    before, written = contents(folder), (folder / "scenes.json").stat()
    assert contents(tmp_path / "again") == before
    write_scenes(DIGITS, folder, seed=3, train=30, val=20)
    assert (folder / "scenes.json").stat().st_mtime_ns == written.st_mtime_ns
    with pytest.raises(UserError, match=r"already exists(.|\n)*'seed': 3(.|\n)*'seed': 4(.|\n)*--out"):
        write_scenes(DIGITS, folder, seed=4, train=30, val=20)
    with pytest.raises(UserError, match="something else"):
        write_scenes(DIGITS, tmp_path, seed=3, train=30, val=20)
    assert contents(folder) == before and [path.name for path in tmp_path.iterdir()] == ["again"]


def test_a_refused_or_failed_write_leaves_nothing(tmp_path: Path) -> None:
    """No file may grow beyond 3 kB, as on a disk that fills up: the truth of ten scenes fits, no image does."""
    for seed, train, val in ((-1, 30, 20), (0, 9, 20)):
        with pytest.raises(UserError, match=f"seed {seed}, train {train}, val {val}; expected"):
            write_scenes(DIGITS, tmp_path / "scenes", seed=seed, train=train, val=val)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(UserError, match=r"scenes cannot be written: File too large"):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
            write_scenes(DIGITS, tmp_path / "scenes", train=10, val=10)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_scenes_of_any_images_are_those_of_digits_twice_as_large(image_folder: Path) -> None:
    images = FolderImages(image_folder)
    for number in range(30):
        scene = draw_scene(images, 0, "train", number)
        assert scene.pixels.shape == (2 * HEIGHT, 2 * WIDTH, 3) and scene.labels[0] == number % 3
        for label, box in zip(scene.labels, scene.boxes, strict=True):
            left, top, right, bottom = box.pixels(2 * WIDTH, 2 * HEIGHT)
            assert 2 * OTHER_SIZES[0] <= right - left == bottom - top <= 2 * LABEL_SIZES[1]
            # An image of class c is brightest in channel c; what is drawn there must be one of that class.
            assert scene.pixels[top:bottom, left:right].mean(axis=(0, 1)).argmax() == label


def test_scenes_of_a_folder_name_its_classes_and_know_its_images(image_folder: Path, tmp_path: Path) -> None:
    write_scenes(FolderImages(image_folder), tmp_path / "scenes", train=6, val=3)
    assert sorted(path.name for path in (tmp_path / "scenes" / "train").iterdir()) == ["ant", "bee", "cow"]
    (image_folder / "train" / "ant" / "ant.00.JPEG").rename(image_folder / "train" / "ant" / "other.JPEG")
    with pytest.raises(UserError, match="already exists"):  # other images would make other scenes
        write_scenes(FolderImages(image_folder), tmp_path / "scenes", train=6, val=3)
    (image_folder / "val" / "cow").rename(image_folder / "val" / "dog")
    with pytest.raises(UserError, match="different class folders, the first: cow"):
        FolderImages(image_folder)
