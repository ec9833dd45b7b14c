"""Labels of whole images out of label maps, and the list of images to train on."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from relabel.annotation.export import export_cleaning, export_labels
from relabel.annotation.label_set import LabelSet
from relabel.data.images import ImageList
from relabel.data.keep_list import keep_listed
from relabel.label_map import LabelMap
from tests.memory_store import MemoryStore
from utils.errors import UserError

CLASSES = ["ant", "bee", "cow"]
# What each image shows, as logits of its three classes in every one of its 2 x 3 cells.
LOGITS = {"ant/a.jpg": (9, 8.5, 0), "ant/b.jpg": (0, 0, 7), "bee/größe.jpg": (0, 7, 0), "cow/d.jpg": (6, 6, 6.5)}
OPTIONS = {"threshold": 0.2, "fill": 0.0, "temperature": 1.0}


def maps() -> MemoryStore:
    def uniform(logits: tuple[float, ...]) -> LabelMap:
        return LabelMap.from_dense(np.array(logits, np.float32)[:, None, None].repeat(2, 1).repeat(3, 2), 3)

    return MemoryStore([uniform(logits) for logits in LOGITS.values()])


def label_set(folder: Path, store: MemoryStore) -> LabelSet:
    labels = np.array([CLASSES.index(name.partition("/")[0]) for name in LOGITS])
    images = ImageList.of_folder(folder, CLASSES, np.array([name.encode() for name in LOGITS]), labels)
    return LabelSet(folder, store, images.keys(), images.keys(), CLASSES, images)


@pytest.fixture
def labels(tmp_path: Path) -> LabelSet:
    return label_set(tmp_path, maps())


def test_multi_hot_labels(labels: LabelSet, tmp_path: Path) -> None:
    count = export_labels(labels, tmp_path / "labels.json", soft=False, **OPTIONS)
    expected = {"ant/a.jpg": ["ant", "bee"], "ant/b.jpg": ["cow"], "bee/größe.jpg": ["bee"]}
    found = json.loads((tmp_path / "labels.json").read_text())
    assert found == {**expected, "cow/d.jpg": ["cow", "ant", "bee"]} and count == 7


def test_both_formats_say_the_same(labels: LabelSet, tmp_path: Path) -> None:
    for name in ("labels.tsv", "labels.json"):
        export_labels(labels, tmp_path / name, soft=True, **OPTIONS)
    with (tmp_path / "labels.tsv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file, delimiter="\t"))
    table: dict[str, dict[str, float]] = {}
    for line in lines:
        table.setdefault(line["image"], {})[line["class"]] = float(line["probability"])
    assert table == json.loads((tmp_path / "labels.json").read_text())
    assert table["ant/a.jpg"]["ant"] == pytest.approx(1 / (1 + np.exp(-0.5)), abs=1e-3)


def test_the_likeliest_class_is_a_label_however_unlikely(labels: LabelSet, tmp_path: Path) -> None:
    options = {**OPTIONS, "threshold": 1.0}
    assert export_labels(labels, tmp_path / "labels.tsv", soft=False, **options) == 4


def test_the_list_of_agreeing_images_serves_as_keep_list(labels: LabelSet, tmp_path: Path) -> None:
    assert export_cleaning(labels, tmp_path / "keep.txt", agreeing=True, **OPTIONS) == (3, 4, 3)
    assert export_cleaning(labels, tmp_path / "other.txt", agreeing=False, **OPTIONS) == (1, 4, 3)
    assert labels.images is not None
    kept = keep_listed(labels.images, tmp_path / "keep.txt")
    assert [kept.name(row) for row in range(3)] == ["ant/a.jpg", "bee/größe.jpg", "cow/d.jpg"]
    assert kept.labels.tolist() == [0, 1, 2] and kept.class_names == CLASSES
    other = keep_listed(labels.images, tmp_path / "other.txt")
    assert other.name(0) == "ant/b.jpg" and len(other) == 1


def test_images_without_class_folders_have_nothing_to_agree_with(labels: LabelSet, tmp_path: Path) -> None:
    assert labels.images is not None
    flat = replace(labels, images=replace(labels.images, class_names=[]))
    with pytest.raises(UserError, match="no class folders to compare label maps with"):
        export_cleaning(flat, tmp_path / "keep.txt", agreeing=True, **OPTIONS)


def test_a_failed_export_leaves_nothing(labels: LabelSet, tmp_path: Path) -> None:
    damaged = label_set(tmp_path, MemoryStore(["the map is damaged"] * len(LOGITS)))
    with pytest.raises(UserError, match="damaged"):
        export_labels(damaged, tmp_path / "labels.tsv", soft=True, **OPTIONS)
    with pytest.raises(UserError, match=r"cannot be written: No such file"):
        export_labels(labels, tmp_path / "no" / "labels.tsv", soft=True, **OPTIONS)
    assert list(tmp_path.iterdir()) == []
