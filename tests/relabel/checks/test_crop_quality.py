"""Random crops and their targets, in cases whose answer a person knows."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from relabel.checks.crop_quality import CropQuality, crop_quality, draw_crops
from relabel.checks.object_boxes import ObjectBox
from relabel.crop_box import WHOLE_IMAGE, CropBox
from relabel.data.dataset import ImageDataset, RandomResizedCrop
from relabel.data.images import ImageList
from relabel.label_map import LabelMap
from tests.memory_store import left_right_map, uniform_map
from tests.relabel.checks.test_calibration import of, sample_of, transposed
from utils.estimates import Estimate

NAMES = ["ant", "bee", "cow", "dog"]
ROWS = 60


@pytest.fixture(scope="module")
def image_path(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Images of 60 x 40 pixels, ant/0.png to ant/59.png."""
    folder = tmp_path_factory.mktemp("images") / "ant"
    folder.mkdir()
    for row in range(ROWS):
        Image.new("RGB", (60, 40)).save(folder / f"{row}.png")
    return lambda row: folder / f"{row}.png"


def quality(
    maps: list[LabelMap], image_path: Callable[[int], Path], boxes: Mapping[int, list[ObjectBox]] | None = None
) -> CropQuality:
    return crop_quality(sample_of(*maps), image_path, np.zeros(len(maps), dtype=np.int64), NAMES, boxes or {})


def test_the_crops_are_those_of_training(image_path: Callable[[int], Path]) -> None:
    folder = image_path(0).parent
    names = np.array([f"ant/{row}.png".encode() for row in range(ROWS)])
    images = ImageList.of_folder(folder.parent, ["ant"], names, np.zeros(ROWS, int))
    dataset = ImageDataset(images, RandomResizedCrop(8, 0.08, flip_prob=0.5, color_jitter=0.0, lighting=0.0, seed=0))
    drawn = draw_crops(sample_of(*[left_right_map()] * ROWS), image_path)
    assert list(drawn.values()) == [dataset[(0, row)].box for row in range(ROWS)]


def test_maps_of_another_class_always_disagree(image_path: Callable[[int], Path]) -> None:
    found = quality([uniform_map(20.0, 0)] * 3 + [uniform_map(20.0, 2)], image_path)
    disagreeing = found.crops_of_another_class_percent
    assert disagreeing and disagreeing.value == 25 and disagreeing.n == 4
    assert of(found.classes_per_crop) == 1 and found.images == 4


def test_swapped_axes_are_measured_as_training_would_read_them(image_path: Callable[[int], Path]) -> None:
    """A transposed map, read as transposed, gives what the map itself gives; its class 0 is on top.

    About half of the crops lie more to the right, and disagree with class 0 on the left.
    """
    sample, labels = sample_of(*[left_right_map(20.0)] * ROWS), np.zeros(ROWS, dtype=np.int64)
    readings = ((sample, "xy"), (transposed(sample), "yx"), (transposed(sample), "xy"))
    found = [crop_quality(maps, image_path, labels, NAMES, {}, 0, 1, axes) for maps, axes in readings]
    expected, swapped, misread = (of(one.crops_of_another_class_percent) for one in found)
    assert swapped == pytest.approx(expected, abs=2)  # a crop in the very middle may fall to either side
    assert swapped != misread and 30 < expected < 70


def test_the_best_object_of_the_class_counts(image_path: Callable[[int], Path]) -> None:
    """An object that fills the image is covered by crops of more than half of it; the last image has no objects."""

    def covered(*objects: ObjectBox) -> Estimate | None:
        boxes = {row: list(objects) for row in range(ROWS - 1)}
        return quality([left_right_map()] * ROWS, image_path, boxes).crops_with_iou_above_half_percent

    tiny, other = ObjectBox("ant", CropBox(0, 0, 0.1, 0.1)), ObjectBox("bee", WHOLE_IMAGE)
    whole = ObjectBox("ant", WHOLE_IMAGE)
    alone = covered(whole)
    drawn = draw_crops(sample_of(*[left_right_map()] * (ROWS - 1)), image_path)
    large = [crop.area > 0.5 for crop in drawn.values()]
    assert alone and alone.n == ROWS - 1 and alone.value == pytest.approx(100 * np.mean(large))
    assert covered(tiny, whole, other) == alone
    assert of(covered(tiny, other)) == 0 and covered(other) is None


def test_images_that_cannot_be_read_are_left_out(image_path: Callable[[int], Path]) -> None:
    found = quality([uniform_map(20.0, 0)] * (ROWS + 2), image_path)  # of the last two there is no file
    assert found.images == ROWS and found.classes_per_crop and found.classes_per_crop.n == ROWS
    nothing = quality([uniform_map(20.0, 0)] * 8, lambda row: Path("nowhere"))
    assert nothing.images == 0 and nothing.crops_of_another_class_percent is None and nothing.classes_per_crop is None
