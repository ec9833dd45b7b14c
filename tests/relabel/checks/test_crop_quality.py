"""Random crops and their targets, in cases whose answer a person knows."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from relabel.checks.crop_quality import CropQuality, _draw_crops, crop_quality
from relabel.checks.object_boxes import ObjectBox
from relabel.crop_box import CropBox
from relabel.data.dataset import ImageDataset, RandomResizedCrop
from relabel.data.images import ImageList
from relabel.label_map import LabelMap
from tests.memory_store import left_right_map, uniform_map
from tests.relabel.checks.test_calibration import of, sample_of

NAMES = ["ant", "bee", "cow", "dog"]
WHOLE = CropBox(0, 0, 1, 1)


@pytest.fixture(scope="module")
def image_path(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Images of 60 x 40 pixels, ant/0.png to ant/5.png."""
    folder = tmp_path_factory.mktemp("images") / "ant"
    folder.mkdir()
    for i in range(6):
        Image.new("RGB", (60, 40)).save(folder / f"{i}.png")
    return lambda row: folder / f"{row}.png"


def quality(
    maps: list[LabelMap],
    image_path: Callable[[int], Path],
    boxes: dict[int, list[ObjectBox]] | None = None,
    crops_per_image: int = 1,
) -> CropQuality:
    labels = np.zeros(len(maps), dtype=np.int64)
    return crop_quality(sample_of(*maps), image_path, labels, NAMES, boxes or {}, crops_per_image=crops_per_image)


def test_the_crops_are_those_of_training(image_path: Callable[[int], Path]) -> None:
    sample = sample_of(*[left_right_map()] * 6)
    folder = image_path(0).parent
    images = ImageList(folder.parent, ["ant"], np.array([f"ant/{i}.png".encode() for i in range(6)]), np.zeros(6, int))
    dataset = ImageDataset(images, RandomResizedCrop(8, 0.2, flip_prob=0.5, color_jitter=0.0, lighting=0.0, seed=5))
    drawn = _draw_crops(sample, image_path, min_area=0.2, count=3, seed=5)
    assert drawn == [[dataset[(epoch, row)].box for epoch in range(3)] for row in range(6)]


def test_maps_of_another_class_always_disagree(image_path: Callable[[int], Path]) -> None:
    found = quality([uniform_map(20.0, 0)] * 3 + [uniform_map(20.0, 2)], image_path, crops_per_image=5)
    assert of(found.other_class) == 25 and found.other_class and found.other_class.n == 4
    assert of(found.classes) == 1 and found.images == 4 and found.crops_per_image == 5


def test_crops_of_the_other_half_disagree(image_path: Callable[[int], Path]) -> None:
    """Half the crops lie more to the right, and most show both halves."""
    found = quality([left_right_map(20.0)] * 6, image_path, crops_per_image=200)
    assert 40 < of(found.other_class) < 60
    assert 1 < of(found.classes) < 2


def test_swapped_axes_are_measured_as_training_would_have_them(image_path: Callable[[int], Path]) -> None:
    """A transposed map, read as transposed, gives what the map itself gives; its class 0 is on top."""
    sample, labels = sample_of(*[left_right_map(20.0)] * 6), np.zeros(6, dtype=np.int64)
    expected, swapped, misread = (
        crop_quality(maps, image_path, labels, NAMES, {}, crops_per_image=50, box_axes=axes).other_class
        for maps, axes in ((sample, "xy"), (sample.transposed(), "yx"), (sample.transposed(), "xy"))
    )
    assert of(swapped) == pytest.approx(of(expected), abs=1)  # a crop in the very middle may fall to either side
    assert swapped != misread


def test_an_object_that_fills_the_image_is_covered_by_crops_of_more_than_half(
    image_path: Callable[[int], Path],
) -> None:
    maps, crops = [left_right_map()] * 6, 100
    boxes = {row: [ObjectBox("ant", WHOLE)] for row in range(6)}
    found = quality(maps, image_path, boxes, crops_per_image=crops)
    drawn = _draw_crops(sample_of(*maps), image_path, 0.08, crops, 0)
    assert of(found.covered) == pytest.approx(100 * np.mean([[c.area > 0.5 for c in image] for image in drawn]))


def test_the_best_of_several_objects_counts_and_those_of_other_classes_do_not(
    image_path: Callable[[int], Path],
) -> None:
    tiny, maps = ObjectBox("ant", CropBox(0, 0, 0.1, 0.1)), [left_right_map()] * 2
    whole, other = ObjectBox("ant", WHOLE), ObjectBox("bee", WHOLE)
    alone, best = (
        quality(maps, image_path, {0: found}, crops_per_image=50) for found in ([whole], [tiny, whole, other])
    )
    assert alone.covered == best.covered and alone.covered and alone.covered.n == 1
    assert of(quality(maps, image_path, {0: [tiny, other]}, crops_per_image=50).covered) == 0
    assert quality(maps, image_path, {0: [other]}).covered is None


def test_images_that_cannot_be_read_are_passed_over(image_path: Callable[[int], Path]) -> None:
    found = quality([uniform_map(20.0, 0)] * 8, image_path)  # of the last two there is no file
    assert found.images == 6 and found.other_class and found.other_class.n == 6
    nothing = quality([uniform_map(20.0, 0)] * 8, lambda row: Path("nowhere"))
    assert nothing.images == 0 and nothing.other_class is None and nothing.classes is None
