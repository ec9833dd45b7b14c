"""Which way round maps are stored: planted orders are found, noise is undecided, and nothing is counted twice."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from models.data_config import OF_2021, DataConfig
from models.digit_net import DigitNet
from models.recorded import DATA_CONFIG
from relabel.checks.axes import (
    MIN_IMAGES,
    ROW_COLUMN,
    TRANSPOSED,
    UNDECIDED,
    Classifier,
    check_with_boxes,
    check_with_classifier,
    classifier_named,
)
from relabel.checks.object_boxes import ObjectBox
from relabel.checks.sample import MapSample
from relabel.crop_box import CropBox
from relabel.label_map import LabelMap
from tests.memory_store import left_right_map
from tests.relabel.checks.test_calibration import of, sample_of, transposed
from utils.checkpoint import save_checkpoint

K, H, W = 5, 6, 8
NAMES = [f"class_{i}" for i in range(K)]
Boxes = dict[int, list[ObjectBox]]


def planted(n: int = 60, lift: float = 4.0, shift: float = 0.0) -> tuple[MapSample, Boxes]:
    """Maps of noise, in which an object's class has `lift` more inside its box; `shift` is added to every logit."""
    rng = np.random.default_rng(3)
    maps, boxes = [], {}
    for row in range(n):
        left, top = rng.uniform(0, 0.6, 2)
        box, label = CropBox(left, top, left + rng.uniform(0.2, 0.4), top + rng.uniform(0.2, 0.4)), int(rng.integers(K))
        dense = rng.normal(shift, 1, (K, H, W)).astype(np.float32)
        x, y = (np.arange(W) + 0.5) / W, (np.arange(H) + 0.5) / H
        inside = ((box.top <= y) & (y < box.bottom))[:, None] & ((box.left <= x) & (x < box.right))
        dense[label] += lift * inside
        maps.append(LabelMap.from_dense(dense, 2))
        boxes[row] = [ObjectBox(NAMES[label], box)]
    return sample_of(*maps), boxes


def test_the_left_half_by_hand() -> None:
    """Class 0, on the left: 8 inside the box, 4 in the whole image; the mirrored box is the top half, with 4."""
    boxes = {0: [ObjectBox("class_0", CropBox(0, 0, 0.5, 1))]}
    found = check_with_boxes(sample_of(left_right_map(8.0)), NAMES, boxes)
    assert (found.row_column, found.transposed) == pytest.approx((4, 0), abs=1e-5)
    assert found.images_informative == 1 and found.verdict == UNDECIDED  # one image is no evidence


@pytest.mark.parametrize("shift", [0.0, -10.0, 10.0])
def test_a_planted_order_is_found_whatever_the_level_of_the_logits(shift: float) -> None:
    sample, boxes = planted(shift=shift)
    there, back = check_with_boxes(sample, NAMES, boxes), check_with_boxes(transposed(sample), NAMES, boxes)
    assert (there.verdict, back.verdict) == (ROW_COLUMN, TRANSPOSED)
    assert (there.row_column, there.transposed) == pytest.approx((back.transposed, back.row_column), abs=1e-4)
    assert there.problems("xy") == back.problems("yx") == []
    assert "--data.relabel.box_axes yx" in back.problems("xy")[0]
    assert "--data.relabel.box_axes xy" in there.problems("yx")[0]


def test_noise_is_undecided() -> None:
    """At three standard errors one noise in 400 would be believed; of these 30, none."""
    _, boxes = planted()
    for seed in range(30):
        dense = np.random.default_rng(seed).normal(0, 2, (60, K, H, W)).astype(np.float32)
        sample = sample_of(*(LabelMap.from_dense(d, 2) for d in dense))
        assert check_with_boxes(sample, NAMES, boxes).verdict == UNDECIDED


def test_which_objects_and_images_count() -> None:
    sample, boxes = planted()
    all_images = check_with_boxes(sample, NAMES, boxes)
    few = {row: boxes[row] for row in range(MIN_IMAGES - 1)}
    assert check_with_boxes(sample, NAMES, few).verdict == UNDECIDED
    often = check_with_boxes(sample, NAMES, {row: found * 5 for row, found in boxes.items()})
    assert often.difference and all_images.difference and often.images_informative == all_images.images_informative
    assert often.difference.standard_error == pytest.approx(
        all_images.difference.standard_error
    )  # an image counts once
    person = ObjectBox("person", CropBox(0, 0, 0.1, 1))  # of no class of the data
    assert check_with_boxes(sample, NAMES, {0: [person], 1: [person, *boxes[1]]}).images_examined == 1
    mirrored = {row: [ObjectBox(NAMES[0], CropBox(0.2, 0.2, 0.7, 0.72))] for row in range(30)}  # onto itself
    found = check_with_boxes(sample, NAMES, mirrored | {row: boxes[row] for row in range(7)})
    assert (found.images_informative, found.images_examined) == (7, 30)
    assert check_with_boxes(sample, NAMES, mirrored).difference is None


def coloured_photos(folder: Path, n: int) -> tuple[MapSample, list[Path]]:
    """Photos of 40 x 28 pixels whose top right and bottom left quarters have the colours of two classes; their maps."""
    rng = np.random.default_rng(2)
    maps, paths = [], []
    for i in range(n):
        upper, lower = rng.permutation(3)[:2]
        pixels, dense = np.zeros((28, 40, 3), dtype=np.uint8), rng.normal(0, 1, (3, 4, 6)).astype(np.float32)
        pixels[:14, 20:, upper] = pixels[14:, :20, lower] = 255
        dense[upper, :2, 3:] += 6
        dense[lower, 2:, :3] += 6
        paths.append(folder / f"{i}.png")
        Image.fromarray(pixels).save(paths[-1])
        maps.append(LabelMap.from_dense(dense, 2))
    return sample_of(*maps), paths


def by_colour(crops: Tensor) -> Tensor:
    """Red is class 0, green 1, blue 2; likely, not sure."""
    assert crops.dtype == torch.uint8 and crops.shape[1:] == (3, 8, 8)
    return (crops.float().mean(dim=(2, 3)) / 100).softmax(dim=1)


def blind(crops: Tensor) -> Tensor:
    return torch.rand(len(crops), 3, generator=torch.Generator().manual_seed(0)).softmax(dim=1)


def test_a_classifier_finds_the_order(tmp_path: Path) -> None:
    sample, paths = coloured_photos(tmp_path, 40)
    classifier = Classifier(by_colour, size=8)
    found = check_with_classifier(sample, paths.__getitem__, 3, classifier)
    assert found.verdict == ROW_COLUMN and found.images_informative == found.images_examined == 40
    assert of(found.favouring_row_column_percent) > 90
    swapped = check_with_classifier(transposed(sample), paths.__getitem__, 3, classifier)
    assert swapped.verdict == TRANSPOSED
    assert (swapped.row_column, swapped.transposed) == pytest.approx((found.transposed, found.row_column), abs=1e-5)
    assert check_with_classifier(sample, paths.__getitem__, 3, Classifier(blind, 8)).verdict == UNDECIDED


@pytest.mark.parametrize("data_classes", [["ant", "bee", "cow", "dog"], ["dog", "bee", "cow", "ant"], ["dog", "ant"]])
def test_a_named_classifier_scores_the_datas_classes(tmp_path: Path, data_classes: list[str]) -> None:
    own = ["ant", "bee", "cow", "dog"]
    network = DigitNet(4).eval()
    config = DataConfig(**OF_2021 | {"size": (40, 40), "mean": (0.5, 0.4, 0.3)})
    state = {"state_dict": network.state_dict(), "class_names": own, DATA_CONFIG: config.as_record()}
    save_checkpoint(state, tmp_path / "w.pth")
    classifier = classifier_named("digit_net", str(tmp_path / "w.pth"), data_classes)
    assert classifier.size == 40
    crops = torch.randint(0, 256, (70, 3, classifier.size, classifier.size), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (config.mean, config.std))
    logits = network((crops / 255 - mean) / std).detach()[:, [own.index(name) for name in data_classes]]
    torch.testing.assert_close(classifier.probabilities(crops), logits.softmax(dim=1), rtol=1e-4, atol=1e-5)


def test_images_that_cannot_be_read_and_maps_of_one_class_are_left_out(tmp_path: Path) -> None:
    sample, paths = coloured_photos(tmp_path, 30)
    paths[3].write_text("damaged")
    paths[4].unlink()
    everywhere = LabelMap.from_dense(np.ones((3, 4, 6), dtype=np.float32) * np.array([[[9.0]], [[0]], [[0]]]), 1)
    one_class = sample_of(*[everywhere] * 30)
    assert check_with_classifier(sample, paths.__getitem__, 3, Classifier(by_colour, 8)).images_examined == 28
    found = check_with_classifier(one_class, paths.__getitem__, 3, Classifier(by_colour, 8))
    assert (found.images_examined, found.images_informative, found.verdict) == (28, 0, UNDECIDED)
    nothing = check_with_classifier(sample, lambda row: Path("nowhere"), 3, Classifier(by_colour, 8))
    assert nothing.images_examined == 0
