"""The whole report: its parts, its problems, its JSON, and what it does without images, labels or maps."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from relabel.annotation.label_set import LabelSet
from relabel.checks.axes import ROW_COLUMN, TRANSPOSED, Classifier
from relabel.checks.object_boxes import ObjectBox
from relabel.checks.report import Report, Settings, make_report
from relabel.crop_box import CropBox
from relabel.data.images import list_images
from relabel.label_map import LabelMap
from tests.memory_store import MemoryStore

NAMES = ["ant", "bee", "cow"]
PER_CLASS = 12
BOX = CropBox(0.5, 0.0, 1.0, 0.5)


class Boxes:
    """The object is in the top right quarter of every image."""

    def __init__(self, known: bool = True) -> None:
        self.known = known

    def boxes_of(self, key: str) -> list[ObjectBox]:
        return [ObjectBox(key.partition("/")[0], BOX)] if self.known else []


def write_images(root: Path) -> Path:
    """ant/0.jpg ...; the top right quarter is red, green or blue by the class, the rest dark."""
    for channel, name in enumerate(NAMES):
        (root / name).mkdir()
        for i in range(PER_CLASS):
            pixels = np.zeros((28, 40, 3), dtype=np.uint8)
            pixels[:14, 20:, channel] = 200 + i
            Image.fromarray(pixels).save(root / name / f"{i:02d}.jpg", quality=95, subsampling=0)
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


def maps(logit: float = 9.0, swap: bool = False) -> list[LabelMap | str | None]:
    """4 x 6 cells: the class in the top right quarter, another class elsewhere with less."""
    rng, found = np.random.default_rng(0), []
    for label in range(3):
        for _ in range(PER_CLASS):
            dense = rng.normal(0, 0.3, (3, 4, 6)).astype(np.float32)
            dense[(label + 1) % 3] += logit / 4
            dense[label, :2, 3:] += logit
            label_map = LabelMap.from_dense(dense, 2)
            if swap:
                label_map = LabelMap(label_map.scores.swapaxes(1, 2), label_map.classes.swapaxes(1, 2))
            found.append(label_map)
    return list(found)


def label_set(found: list[LabelMap | str | None], folder: Path | None, orphans: Sequence[str] = ()) -> LabelSet:
    """These maps for the images of a folder, or without images; and the keys of maps that belong to no image."""
    keys = [f"{name}/{i:02d}" for name in NAMES for i in range(PER_CLASS)]
    there = sorted([*(key for key, label_map in zip(keys, found, strict=True) if label_map is not None), *orphans])
    return LabelSet(
        path=Path("labels"),
        store=MemoryStore(found),
        keys=np.array([key.encode() for key in keys]),
        store_keys=np.array([key.encode() for key in there]),
        class_names=NAMES,
        images=list_images(folder) if folder else None,
    )


def by_colour(crops: Tensor) -> Tensor:
    return (crops.float().mean(dim=(2, 3)) / 20).softmax(dim=1)


@pytest.fixture(scope="module")
def good(folder: Path) -> Report:
    classifier = Classifier(by_colour, size=8)
    return make_report(
        label_set(maps(), folder), Settings(), boxes=Boxes(), classifier=classifier, teacher_top1_percent=90.0
    )


def test_good_maps_have_no_problem_and_all_parts(good: Report) -> None:
    assert good.problems == [] and good.notes == []
    assert good.calibration and good.calibration.maps == 36 and good.crops and good.crops.images == 36
    assert [check.verdict for check in good.axes] == [ROW_COLUMN, ROW_COLUMN]
    assert good.boxes and len(good.boxes.of_row) == 36


def test_transposed_maps_are_a_problem_by_either_test(folder: Path) -> None:
    labels = label_set(maps(swap=True), folder)
    found = make_report(labels, Settings(), boxes=Boxes(), classifier=Classifier(by_colour, 8))
    assert [check.verdict for check in found.axes] == [TRANSPOSED, TRANSPOSED] and len(found.problems) == 2
    as_told = make_report(labels, Settings(box_axes="yx"), boxes=Boxes(), classifier=Classifier(by_colour, 8))
    assert as_told.problems == []


def test_one_damaged_one_missing_and_one_orphan_are_three_problems(folder: Path) -> None:
    found = maps()
    found[3], found[14] = None, "bee/2.pt: cannot be read"
    report = make_report(label_set(found, folder, ["cow/old"]), Settings())
    assert len(report.problems) == 3 and report.calibration and report.calibration.maps == 34
    assert [p.splitlines()[1].strip().partition(":")[0] for p in report.problems] == ["ant/03", "bee/2.pt", "cow/old"]


def test_no_map_at_all_is_a_report_too(folder: Path) -> None:
    report = make_report(label_set([None] * 36, folder), Settings(), boxes=Boxes())
    assert report.calibration is None and report.crops is None and report.axes == []
    assert "Images without label map: 36." in report.problems[0]
    assert report.problems[-1] == "There is no label map that can be read."
    assert json.loads(json.dumps(report.as_dict(), allow_nan=False))["calibration"] is None


def test_maps_without_images_and_labels_are_measured_as_far_as_they_go() -> None:
    report = make_report(label_set(maps(), None), Settings(maps=10), classifier=Classifier(by_colour, 8))
    assert report.calibration and report.calibration.maps == 10 and report.calibration.top1_agreement is None
    assert report.crops is None and report.axes == [] and report.problems == []


def test_boxes_of_other_images_are_a_problem(folder: Path) -> None:
    (problem,) = make_report(label_set(maps(), folder), Settings(), boxes=Boxes(known=False)).problems
    assert "None of the 36 images of the sample has object boxes" in problem


def test_the_json_is_plain_and_says_its_units(good: Report) -> None:
    found = json.loads(json.dumps(good.as_dict(), allow_nan=False))
    assert found["problems"] == [] and found["integrity"]["whole_maps"] == 36
    assert found["integrity"]["shape_k_h_w"] == [2, 4, 6]
    assert found["calibration"]["top1_agreement_percent"]["n"] == 36
    assert found["crops"]["crops_with_iou_above_half_published_percent"] == 23.5
    assert [check["verdict"] for check in found["axes"]] == [ROW_COLUMN, ROW_COLUMN]
    numbers = [(path, value) for path, value in leaves(found) if isinstance(value, float)]
    inside = {"value", "standard_error", "low95", "high95", "row_column", "transposed"}
    unit = re.compile(r"percent|logit|nats|temperature|fraction|per_crop|difference")
    assert all(path[-1] in inside or unit.search(".".join(path)) for path, _ in numbers), numbers


def leaves(tree: object, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], object]]:
    if isinstance(tree, dict):
        return [leaf for name, value in tree.items() for leaf in leaves(value, (*path, name))]
    if isinstance(tree, list):
        return [leaf for value in tree for leaf in leaves(value, path)]
    return [(path, tree)]


def test_the_same_seed_gives_the_same_report(folder: Path) -> None:
    one, again, other = (
        make_report(label_set(maps(), folder), Settings(maps=20, seed=seed)).as_dict() for seed in (1, 1, 2)
    )
    assert one == again != other


def test_surprises_are_notes_and_no_problems(folder: Path) -> None:
    labels = label_set(maps(), None)
    keys = labels.keys.astype("S60")
    keys[0], keys[13] = b"ant/a.b", b"n01440764/n01440764_1_n01440764"
    there = np.sort(np.append(keys, [b"wasp/a", b"wasp/b"]))
    report = make_report(replace(labels, keys=keys, store_keys=there), Settings())
    assert report.problems == []
    notes = "\n".join(report.notes)
    assert "Label maps of classes that have no images here: 2." in notes
    assert "Names with several dots: 1, such as ant/a.b." in notes and "Names that repeat the class: 1" in notes
