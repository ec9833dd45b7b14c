"""Own true labels: read from TSV and JSON, refused where they cannot be meant, and their measures by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from relabel.data.images import ImageList
from relabel.evaluation.true_labels import read_true_labels
from relabel.training.validation import NO_CLASS, Predictions
from utils.errors import UserError

CLASSES = ["ant", "bee", "cow"]


@pytest.fixture
def images() -> ImageList:
    """ant/1 ant/2 bee/1 cow/1 of val/; the files do not exist."""
    names = np.array([b"ant/1.jpg", b"ant/2.jpg", b"bee/1.jpg", b"cow/1.jpg"])
    return ImageList.of_folder(Path("val"), CLASSES, names, np.array([0, 0, 1, 2], dtype=np.int32))


def read(path: Path, text: str, images: ImageList) -> tuple[np.ndarray, list[str]]:
    path.write_text(text, encoding="utf-8", newline="")
    labels, notes = read_true_labels(path, images)
    return labels.truth.astype(int), notes


TRUTH = [[1, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]
FORMS = {
    "names.json": '{"ant/1.jpg": ["ant", "bee"], "ant/2.jpg": ["ant"], "bee/1.jpg": ["bee"], "cow/1.jpg": [2]}',
    "scenes.json": json.dumps(
        {
            "ant/1.jpg": {"labels": [0, 1, 0], "boxes": [[0, 0, 1, 1]] * 3},
            "ant/2.jpg": {"labels": [0]},
            "bee/1.jpg": {"labels": ["bee"]},
            "cow/1.jpg": {"labels": [2]},
        }
    ),
    "a.tsv": "image\tclass\nant/1.jpg\tant\nant/1.jpg\tbee\nant/2.jpg\tant\nbee/1.jpg\tbee\ncow/1.jpg\tcow\n",
}
FORMS["windows.tsv"] = "\ufeff" + FORMS["a.tsv"].replace("\n", "\r\n").removesuffix("\r\n")


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_labels(tmp_path: Path, images: ImageList, name: str) -> None:
    truth, notes = read(tmp_path / name, FORMS[name], images)
    assert truth.tolist() == TRUTH and notes == []


def test_images_without_labels_and_labels_without_images_are_counted(tmp_path: Path, images: ImageList) -> None:
    text = "image\tclass\ntrain/9.jpg\tant\ntrain/8.jpg\tbee\nbee/1.jpg\tbee\n"
    truth, notes = read(tmp_path / "a.tsv", text, images)
    assert truth.tolist() == [[0, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert notes == [
        "eval.labels: names not in val/, left out: 2, the first: train/9.jpg",
        "eval.labels: images without a label, left out: 3, the first: ant/1.jpg",
    ]


def test_measures_by_hand(tmp_path: Path, images: ImageList) -> None:
    text = '{"ant/1.jpg": ["bee", "cow"], "ant/2.jpg": ["ant"], "bee/1.jpg": ["bee"], "cow/1.jpg": []}'
    (tmp_path / "labels.json").write_text(text)
    labels, notes = read_true_labels(tmp_path / "labels.json", images)
    assert notes == ["eval.labels: images without a label, left out: 1, the first: cow/1.jpg"]
    probabilities = np.array([[0.1, 0.2, 0.7], [0.3, 0.6, 0.1], [0.3, 0.5, 0.2], [1, 0, 0]], dtype=np.float32)
    order = (-probabilities).argsort(axis=1)
    predictions = Predictions(
        images.names,
        images.labels.astype(np.int64),
        CLASSES,
        order,
        probabilities.max(1),
        probabilities[range(4), images.labels],
        probabilities,
    )
    found = {result.metric: result for result in labels.results(predictions)}
    # Top-1: cow (is one), bee (is none), bee (is one); cow/1 is not asked about.
    assert found["top1_in_set_percent"].value == pytest.approx(100 * 2 / 3) and found["top1_in_set_percent"].n == 3
    # ant: image 2 of 3 by 0.3, beside bee/1 with the same: 1/2; bee: true are 0.2 and 0.5, false is 0.6; cow: first.
    bee = (1 / 2 + 2 / 3) / 2
    assert found["map_percent"].value == pytest.approx(100 * (1 / 2 + bee + 1) / 3)
    assert found["class_accuracy_percent"].parts == {"ant": 50, "bee": 100}
    assert found["class_accuracy_percent"].value == pytest.approx(75)
    assert labels.in_set(predictions).tolist() == [1, 0, 1, NO_CLASS]


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.tsv", "", "found the first line ''; expected a TSV file with the header"),
        ("a.tsv", "image\tclass\nant/1.jpg ant\n", "line 2: found 'ant/1.jpg ant'; expected CLASS/FILE, a tab"),
        ("a.tsv", "image\tclass\nant/1.jpg\tAnt\nant/2.jpg\tdog\n", "found the class 'Ant'.* such as 'ant'"),
        ("a.tsv", "image\tclass\nant/1.jpg\t0\n", "found the class '0'"),
        ("a.tsv", "image\tclass\nx/1.jpg\tant\n", "no label for any of the 4 images .* found .'x/1.jpg'.; .* 'ant/1"),
        ("a.json", "[1]", r"found \[1\]; expected a TSV file"),
        ("a.json", '{"ant/1.jpg": ["ant"], "ant/1.jpg": ["bee"]}', "the name 'ant/1.jpg' appears twice"),
        ("a.json", {"ant/1.jpg": "ant"}, "found ant for 'ant/1.jpg'"),
        ("a.json", {"ant/1.jpg": [3]}, "found the class 3 .* in 0..2"),
    ],
)  # fmt: skip
def test_invalid_labels_are_refused(tmp_path: Path, images: ImageList, name: str, content: Any, match: str) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    with pytest.raises(UserError, match=match):
        read(tmp_path / name, text, images)
