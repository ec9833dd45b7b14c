"""The pictures that scenes are put together from: which split may use which."""

from pathlib import Path

import numpy as np

from relabel.demo.small_images import FolderImages, digit_images
from tests.conftest import make_photos


def test_no_digit_image_is_in_both_splits() -> None:
    train, val = ({image.tobytes() for image in digit_images(split)[0]} for split in ("train", "val"))
    assert len(digit_images("train")[0]) == 1300 and len(digit_images("val")[0]) == 497
    assert not train & val


def test_a_picture_fills_its_patch_with_the_central_square(tmp_path: Path) -> None:
    for split in ("train", "val"):
        make_photos(tmp_path / split, {"ant": 1, "bee": 1}, np.random.default_rng(0))
    pictures = FolderImages(tmp_path)
    assert pictures.class_names == ["ant", "bee"] and pictures.labels("train").tolist() == [0, 1]
    patch = np.full((20, 20, 3), -1.0)
    pictures.draw(patch, "train", 1, np.random.default_rng(0))
    assert patch.min() >= 0 and patch.max() <= 1
    assert patch.mean(axis=(0, 1)).argmax() == 1  # the second class is bright in the second channel
