"""The whole report: its parts, its problems, its JSON, its tables, and what it does without images, labels or maps."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from torch import Tensor

from relabel.annotation.label_set import LabelSet
from relabel.checks.axes import ROW_COLUMN, Classifier
from relabel.checks.object_boxes import ObjectBox
from relabel.checks.report import Report, make_report, print_report
from relabel.crop_box import CropBox
from relabel.data.folders import list_images
from relabel.label_map import LabelMap
from tests.memory_store import MemoryStore

NAMES = ["ant", "bee", "cow"]
PER_CLASS = 12
BOX = CropBox(0.5, 0.0, 1.0, 0.5)


def boxes(key: str) -> list[ObjectBox]:
    """The object is in the top right quarter of every image."""
    return [ObjectBox(key.partition("/")[0], BOX)]


def by_colour(crops: Tensor) -> Tensor:
    return (crops.float().mean(dim=(2, 3)) / 20).softmax(dim=1)


CLASSIFIER = Classifier(by_colour, size=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ant/00.jpg ...; the top right quarter is red, green or blue by the class, the rest dark."""
    root = tmp_path_factory.mktemp("images")
    for channel, name in enumerate(NAMES):
        (root / name).mkdir()
        for i in range(PER_CLASS):
            pixels = np.zeros((28, 40, 3), dtype=np.uint8)
            pixels[:14, 20:, channel] = 200 + i
            Image.fromarray(pixels).save(root / name / f"{i:02d}.jpg", quality=95, subsampling=0)
    return root


def maps(logit: float = 9.0) -> list[LabelMap | str | None]:
    """4 x 6 cells: the class in the top right quarter, another class elsewhere with less."""
    rng, found = np.random.default_rng(0), []
    for label in range(3):
        for _ in range(PER_CLASS):
            dense = rng.normal(0, 0.3, (3, 4, 6)).astype(np.float32)
            dense[(label + 1) % 3] += logit / 4
            dense[label, :2, 3:] += logit
            found.append(LabelMap.from_dense(dense, 2))
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


def good(folder: Path) -> Report:
    """With both tests of the axes."""
    labels = label_set(maps(), folder)
    return make_report(labels, boxes=boxes, classifier=CLASSIFIER, teacher_top1_percent=90.0)


def bad(folder: Path) -> Report:
    """Small logits, another teacher's accuracy, a damaged map of a long name with markup in it."""
    found = maps(logit=0.5)
    found[3] = "x" * 150 + "[/bold]: damaged"
    return make_report(label_set(found, folder), boxes=boxes, teacher_top1_percent=150.0)


def test_good_maps_have_no_problem_and_all_parts(folder: Path) -> None:
    report = good(folder)
    assert report.problems == report.warnings == report.notes == []
    assert report.calibration and report.calibration.maps == 36 and report.crops and report.crops.images == 36
    assert report.object_boxes and len(report.object_boxes.of_row) == 36
    assert report.as_dict() == good(folder).as_dict()  # the sample and its crops are always the same
    found = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert found["problems"] == [] and found["integrity"]["whole_maps"] == 36
    assert found["integrity"]["shape_k_h_w"] == [2, 4, 6] and found["integrity"]["missing_maps"]["count"] == 0
    assert found["calibration"]["top1_agreement_percent"]["n"] == 36
    assert found["crops"]["crops_with_iou_above_half_published_percent"] == 23.5
    assert found["object_boxes"] == {"images_asked": 36, "images_with_boxes": 36, "refused": []}
    assert [(check["verdict"], check["images_informative"]) for check in found["axes"]] == [(ROW_COLUMN, 36)] * 2


def test_boxes_of_other_images_are_a_problem_and_surprising_names_are_notes(folder: Path) -> None:
    labels = label_set(maps(), folder)
    keys = labels.keys.astype("S60")
    keys[0], keys[13] = b"ant/a.b", b"n01440764/n01440764_1_n01440764"
    there = np.sort(np.append(keys, [b"wasp/a", b"wasp/b"]))
    report = make_report(replace(labels, keys=keys, store_keys=there), boxes=lambda key: [])
    (problem,) = report.problems
    assert "None of the 36 images of the sample has object boxes" in problem
    notes = "\n".join(report.notes)
    assert "Label maps of other classes: 2, such as wasp/a." in notes
    assert "Names with several dots: 1, such as ant/a.b." in notes and "Names that repeat the class: 1" in notes


def test_targets_to_which_the_maps_add_no_class_of_the_data_are_counted(folder: Path) -> None:
    found = maps()
    assert not make_report(label_set(found, folder)).warnings
    for row in (0, 20):
        found[row] = LabelMap(np.ones((2, 4, 6), np.float32), np.full((2, 4, 6), 3))
    (warning,) = make_report(label_set(found, folder)).warnings
    assert "targets of 2 of 36 images and of 2 of 36 random crops are uniform" in warning
    assert "--only_folders true" in warning


def test_one_damaged_one_missing_and_one_orphan_are_three_problems(folder: Path) -> None:
    found = maps()
    found[3], found[14] = None, "bee/2.pt: cannot be read"
    report = make_report(label_set(found, folder, ["cow/old"]))
    assert len(report.problems) == 3 and report.calibration and report.calibration.maps == 34
    assert [p.splitlines()[1].strip().partition(":")[0] for p in report.problems] == ["ant/03", "bee/2.pt", "cow/old"]


def printed(report: Report, width: int) -> str:
    console = Console(width=width, file=StringIO(), force_terminal=False)
    print_report(report, console)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("make", [good, bad])
def test_nothing_is_cut_off_and_nothing_overflows(make: Callable[[Path], Report], folder: Path) -> None:
    report = make(folder)
    assert report.calibration
    for width in (80, 200):
        text = printed(report, width)
        assert max(map(len, text.splitlines())) <= width and "…" not in text
        squeezed = re.sub(r"\s+", "", text)
        for sentence in (*report.problems, *report.warnings, *report.notes, report.calibration.reason):
            assert re.sub(r"\s+", "", sentence) in squeezed
    assert make is good or "[/bold]" in printed(report, 300)  # brackets are no markup


def test_what_cannot_be_measured_is_left_out_and_problems_come_last(folder: Path) -> None:
    alone = make_report(label_set(maps(), None), maps=10, classifier=CLASSIFIER)  # without images
    assert alone.calibration and alone.calibration.maps == 10 and alone.calibration.top1_agreement_percent is None
    assert alone.crops is None and alone.axes == [] and alone.problems == []
    assert alone.as_dict()["integrity"]["unreadable_images"] is None
    empty = make_report(label_set([None] * 36, None), boxes=boxes)
    assert json.loads(json.dumps(empty.as_dict(), allow_nan=False))["calibration"] is None
    text = printed(empty, 100)
    lines = text.rstrip().splitlines()
    assert lines[-1].strip() == "- No label map can be read." and "Problems: 2" in lines
    assert "Targets" not in text and "rotation" not in text and "axes" not in text
    text = printed(good(folder), 100)
    assert text.rstrip().endswith("No problems found.") and re.search("verdict +row, column +row, column", text)
