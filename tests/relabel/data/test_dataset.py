"""Samples: their randomness depends on (seed, epoch, index) and on nothing else."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from relabel.data.dataset import CenterCrop, ImageDataset, RandomResizedCrop, Sample
from relabel.data.decode import ImageFile
from relabel.data.folders import list_images
from relabel.data.images import ImageList
from relabel.label_map import LabelMap
from relabel.stores.pt_folder import write_label_map
from relabel.stores.store import open_label_store
from utils.random import EXTRA_ORDER, ORDER, SAMPLE, STEP, keyed_rng

VIEW = RandomResizedCrop(size=16, min_area=0.08, flip_prob=0.5, color_jitter=0.4, lighting=0.1, seed=11)


def write_image(path: Path, width: int = 30, height: int = 20) -> None:
    """A file of noise; the extension gives the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of three and two images, of very different sizes."""
    for name, width, height in [
        ("bee/a.png", 30, 20),
        ("bee/b.jpg", 21, 40),
        ("bee/c.png", 1, 1),
        ("ant/x.png", 50, 1),
        ("ant/y.png", 64, 48),
    ]:
        write_image(tmp_path / "train" / name, width, height)
    return tmp_path / "train"


def assert_same_sample(first: Sample, second: Sample) -> None:
    """Equal in every field."""
    np.testing.assert_array_equal(first.image, second.image)
    for name in ("label", "box", "augmentation", "index"):
        assert getattr(first, name) == getattr(second, name), name


def test_a_sample_is_the_crop_of_its_box(root: Path) -> None:
    dataset = ImageDataset(list_images(root), VIEW)
    assert len(dataset) == 5
    for index in range(5):
        sample = dataset[(3, index)]
        expected = ImageFile(dataset.images.path(index)).resized_crop(sample.box, 16, 16)
        np.testing.assert_array_equal(sample.image, expected)
        assert sample.image.shape == (3, 16, 16) and sample.image.dtype == np.uint8
        assert (sample.index, sample.label) == (index, [0, 0, 1, 1, 1][index])
        assert sample.label_map is None and sample.augmentation is not None


def test_the_order_of_access_changes_nothing(root: Path) -> None:
    images = list_images(root)
    keys = [(epoch, index) for epoch in range(3) for index in range(5)]
    straight = ImageDataset(images, VIEW)
    forwards = {key: straight[key] for key in keys}
    restarted = pickle.loads(pickle.dumps(ImageDataset(images, VIEW)))
    for key in reversed(keys):
        assert_same_sample(forwards[key], restarted[key])


def test_seed_epoch_and_index_each_change_the_sample(root: Path) -> None:
    write_image(root / "ant" / "z.png", 64, 48)
    images = list_images(root)
    dataset, other = ImageDataset(images, VIEW), ImageDataset(images, replace(VIEW, seed=12))
    samples = [dataset[(0, 1)], dataset[(1, 1)], dataset[(0, 2)], other[(0, 1)]]
    assert len({sample.box for sample in samples}) == len({sample.augmentation for sample in samples}) == 4


def test_no_two_streams_are_the_same() -> None:
    """Small and huge seeds, epochs and indices in each other's places, and every purpose."""
    numbers = (0, 1, 2**32, 2**63 - 1)
    arguments = [
        (s, p, e, i) for s in numbers for p in (SAMPLE, ORDER, STEP, EXTRA_ORDER) for e in numbers for i in numbers
    ]
    draws = {tuple(keyed_rng(*each).integers(2**63, size=2).tolist()) for each in arguments}
    assert len(draws) == len(arguments)


def test_the_test_view_is_the_same_in_every_epoch(root: Path) -> None:
    dataset = ImageDataset(list_images(root), CenterCrop(16, 0.5))
    for index in range(5):
        assert_same_sample(dataset[(0, index)], dataset[(7, index)])
    sample = dataset[(0, 1)]
    assert sample.augmentation is None and sample.box.pixels(64, 48) == (20, 12, 44, 36)
    np.testing.assert_array_equal(sample.image, ImageFile(root / "ant" / "y.png").centre_crop(16, 0.5))


def test_each_image_gets_its_own_label_map(root: Path, tmp_path: Path) -> None:
    """The first score of a map is the position of its image."""
    images = list_images(root)
    for position, key in enumerate(images.keys().tolist()):
        scores = np.full((2, 3, 4), position, dtype=np.float32)
        classes = np.stack([np.zeros((3, 4), dtype=np.int64), np.ones((3, 4), dtype=np.int64)])
        write_label_map(tmp_path / "labels", key.decode(), LabelMap(scores, classes))
    dataset = ImageDataset(images, VIEW, open_label_store(tmp_path / "labels", images.keys(), images.class_names))
    for index in (4, 0, 2):
        label_map = dataset[(0, index)].label_map
        assert label_map is not None and (label_map.scores == index).all() and label_map.shape == (2, 3, 4)


def test_a_dataset_is_cheap_to_pickle() -> None:
    """100,000 images: 4 bytes a character of a name and 8 of a label, next to nothing else."""
    names = np.array([f"n{i // 1300:08d}/n{i // 1300:08d}_{i}.JPEG" for i in range(100_000)], dtype=np.bytes_)
    classes = [f"n{i:08d}" for i in range(77)]
    images = ImageList.of_folder(Path("train"), classes, names, np.arange(100_000) // 1300)
    size = len(pickle.dumps(ImageDataset(images, VIEW)))
    assert size < names.nbytes + images.labels.nbytes + 10_000
