"""Random crops and their targets, in cases whose answer a person knows."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from relabel.checks.crop_quality import CropQuality, crop_quality, draw_crops
from relabel.checks.object_boxes import ObjectBox
from relabel.crop_box import CropBox
from relabel.data.dataset import ImageDataset, RandomResizedCrop
from relabel.data.images import ImageList
from relabel.label_map import LabelMap
from tests.memory_store import left_right_map, uniform_map
from tests.relabel.checks.test_calibration import of, sample_of, transposed
from utils.estimates import Estimate

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
    dataset = ImageDataset(images, RandomResizedCrop(8, 0.08, flip_prob=0.5, color_jitter=0.0, lighting=0.0, seed=5))
    drawn = draw_crops(sample, image_path, count=3, seed=5)
    assert list(drawn.values()) == [[dataset[(epoch, row)].box for epoch in range(3)] for row in range(6)]


def test_maps_of_another_class_always_disagree(image_path: Callable[[int], Path]) -> None:
    found = quality([uniform_map(20.0, 0)] * 3 + [uniform_map(20.0, 2)], image_path, crops_per_image=5)
    disagreeing = found.crops_of_another_class_percent
    assert disagreeing and disagreeing.value == 25 and disagreeing.n == 4
    assert of(found.classes_per_crop) == 1 and found.images == 4 and found.crops_per_image == 5


def test_swapped_axes_are_measured_as_training_would_read_them(image_path: Callable[[int], Path]) -> None:
    """A transposed map, read as transposed, gives what the map itself gives; its class 0 is on top.

    Half the crops lie more to the right, and disagree with class 0 on the left.
    """
    sample, labels = sample_of(*[left_right_map(20.0)] * 6), np.zeros(6, dtype=np.int64)
    readings = ((sample, "xy"), (transposed(sample), "yx"), (transposed(sample), "xy"))
    found = [crop_quality(maps, image_path, labels, NAMES, {}, 0, 1, axes, 50) for maps, axes in readings]
    expected, swapped, misread = (of(one.crops_of_another_class_percent) for one in found)
    assert swapped == pytest.approx(expected, abs=1)  # a crop in the very middle may fall to either side
    assert swapped != misread and 40 < expected < 60


def covered(image_path: Callable[[int], Path], *objects: ObjectBox) -> Estimate | None:
    """Of 50 crops of one image with these objects; a second image has none."""
    found = quality([left_right_map()] * 2, image_path, {0: list(objects)}, crops_per_image=50)
    return found.crops_with_iou_above_half_percent


def test_the_best_object_of_the_class_counts(image_path: Callable[[int], Path]) -> None:
    """An object that fills the image is covered by crops of more than half of it."""
    tiny, whole, other = ObjectBox("ant", CropBox(0, 0, 0.1, 0.1)), ObjectBox("ant", WHOLE), ObjectBox("bee", WHOLE)
    alone = covered(image_path, whole)
    drawn = draw_crops(sample_of(left_right_map()), image_path, 50)[0]
    assert alone and alone.n == 1 and alone.value == pytest.approx(100 * np.mean([crop.area > 0.5 for crop in drawn]))
    assert covered(image_path, tiny, whole, other) == alone
    assert of(covered(image_path, tiny, other)) == 0 and covered(image_path, other) is None


def test_images_that_cannot_be_read_are_left_out(image_path: Callable[[int], Path]) -> None:
    found = quality([uniform_map(20.0, 0)] * 8, image_path)  # of the last two there is no file
    assert found.images == 6 and found.classes_per_crop and found.classes_per_crop.n == 6
    nothing = quality([uniform_map(20.0, 0)] * 8, lambda row: Path("nowhere"))
    assert nothing.images == 0 and nothing.crops_of_another_class_percent is None and nothing.classes_per_crop is None
