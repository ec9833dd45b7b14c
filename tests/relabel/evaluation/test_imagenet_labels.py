"""Published labels of the validation images: ReaL, Shankar et al. and ImageNet-M; miniatures and the real file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from relabel.data.images import ImageList
from relabel.evaluation.imagenet_labels import (
    image_numbers,
    imagenet_positions,
    read_multi_labels,
    read_real,
    real_results,
)
from relabel.evaluation.results import Result
from relabel.training.validation import Predictions
from tests.conftest import ROOT
from tests.miniatures import val_name, wnids
from utils.errors import UserError

REAL = ROOT.parent / "shared" / "data" / "real.json"
KEEP = np.arange(1000)


def listed(names: list[str], labels: list[int] | None = None) -> ImageList:
    """Images of val/ in a folder for each class, in the order given; the files do not exist."""
    labels = labels or [0] * len(names)
    names = [f"{wnids()[label]}/{name}" for name, label in zip(names, labels, strict=True)]
    return ImageList.of_folder(Path("val"), wnids(), np.array(names, dtype=np.bytes_), np.array(labels, dtype=np.int32))


def answers(images: ImageList, classes: list[int]) -> Predictions:
    """Top-1 as given, nothing else."""
    n, zeros = len(images), np.zeros(len(images), dtype=np.float32)
    top1 = np.array(classes)
    assert top1.shape == (n,)
    return Predictions(
        images.names, images.labels.astype(np.int64), images.class_names, top1[:, None], zeros, zeros, None
    )


def values(results: list[Result]) -> dict[str, tuple[float, int]]:
    """Metric -> value, n."""
    return {result.metric: (round(result.value, 6), result.n) for result in results}


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_real_counts_any_label_and_skips_empty_lists(tmp_path: Path) -> None:
    """In val/ in another order, image 4 as the parquet copy of ImageNet spells it, 3 absent, and one more image."""
    path = write(tmp_path / "real.json", [[7], [], [1], [2, 9, 30], [30]])
    parquet = val_name(4).replace(".JPEG", f"_{wnids()[8]}.JPEG")
    images = listed([parquet, val_name(2), val_name(5), val_name(1), "holiday.JPEG"])
    numbers, notes = image_numbers(images)
    assert len(notes) == 1 and ": 1, the first: " in notes[0] and f"{wnids()[0]}/holiday.JPEG" in notes[0]
    truth, notes = read_real(path, images, numbers, KEEP)
    found = values(real_results(truth, answers(images, [9, 7, 31, 7, 7])))
    assert found == {"real_percent": (round(100 * 2 / 3, 6), 3)}
    assert notes == ["eval.real: found 5 lists, expected 50,000"]


@pytest.mark.skipif(not REAL.is_file(), reason="needs the real real.json in ../shared/data")
def test_the_real_file() -> None:
    lists = json.loads(REAL.read_text())
    assert len(lists) == 50_000 and sum(not ids for ids in lists) == 3_163
    images = listed([val_name(number) for number in range(1, 50_001)])
    truth, notes = read_real(REAL, images, image_numbers(images)[0], KEEP)
    right = answers(images, [ids[-1] if ids else 0 for ids in lists])
    half = answers(images, [ids[0] if ids and row % 2 else 1001 for row, ids in enumerate(lists)])
    assert values(real_results(truth, right)) == {"real_percent": (100.0, 46_837)} and notes == []
    expected = 100 * sum(bool(ids) for ids in lists[1::2]) / 46_837
    half.top5[half.top5 == 1001] = -1
    assert values(real_results(truth, half))["real_percent"] == (round(expected, 6), 46_837)


def annotations(**changes: Any) -> dict[str, Any]:
    """Six images of two classes; 6 is annotated as wrong alone, 3 is problematic, 7 and 8 are not annotated."""
    w = wnids()
    content = {
        "initial_annots": {
            val_name(1): {"correct": [w[0], w[5]], "wrong": [w[9]]},
            val_name(2): {"correct": [w[0]], "unclear": [w[7]]},
            val_name(3): {"correct": [w[0]]},
            val_name(4): {"correct": [w[1]]},
            val_name(5): {"correct": [w[1]], "unclear": [w[7], w[8]]},
            val_name(6): {"wrong": [w[9]]},
            "0af3f1b55de791c4144e2fb6d7dfe96dfc22d3fc.jpeg": {"correct": [w[3]]},  # of ImageNetV2
        },
        "problematic_images": {val_name(3): {"reason": "a drawing"}},
        "imagenet_m": [val_name(3), val_name(5)],
    }
    return content | changes


# Class 0: images 1, 2, 3, 7; class 1: images 4, 5, 6, 8.
VAL = [(1, 0), (2, 0), (3, 0), (7, 0), (4, 1), (5, 1), (6, 1), (8, 1)]


def val_images() -> ImageList:
    return listed([val_name(number) for number, _ in VAL], [label for _, label in VAL])


def test_both_protocols_of_shankar_and_imagenet_m_by_hand(tmp_path: Path) -> None:
    images = val_images()
    labels, notes = read_multi_labels(write(tmp_path / "h.json", annotations()), images, image_numbers(images)[0], KEEP)
    # Answers to images:            1  2  3  7  4  5  6  8
    found = values(labels.results(answers(images, [5, 7, 0, 0, 9, 8, 9, 1])))
    # Correct or unclear: class 0 both of two (3 is problematic), class 1 one of three: mean of 100 and 33.3 %.
    assert found["multilabel_per_class_percent"] == (round((100 + 100 / 3) / 2, 6), 5)
    assert found["multilabel_per_image_percent"] == (round(100 * 1 / 5, 6), 5)  # image 1 alone
    assert found["imagenet_m_right"] == (2, 2)  # 3 although problematic; 5, unclear
    assert notes == [
        "eval.multilabel: found 6 of its 6 images in val/; the published file has 20,000",
        "eval.multilabel: found 2 of the 68 images of ImageNet-M",
    ]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"0": []}, r"expected ReaL's real\.json: a list with a list of class ids, 0\.\.999"),
        ([[1], [7, 5000]], r"real\.json: found \[7, 5000\]; expected ReaL's"),
        ([[], [1]], "has no label for any of the 1 images of val.*ImageNet's names"),
    ],
)
def test_malformed_real_json_is_refused(tmp_path: Path, content: Any, match: str) -> None:
    images = listed([val_name(1)])
    with pytest.raises(UserError, match=match):
        read_real(write(tmp_path / "real.json", content), images, image_numbers(images)[0], KEEP)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([], "expected human_accuracy_v3.0.0.json.*`initial_annots`"),
        (annotations(initial_annots={"x.jpeg": {}}), "annotates none of the 8 images"),
        (annotations(initial_annots={val_name(1): {"correct": ["tench"]}}), "found KeyError: 'tench'; expected"),
    ],
)  # fmt: skip
def test_malformed_multi_labels_are_refused(tmp_path: Path, content: Any, match: str) -> None:
    images = val_images()
    with pytest.raises(UserError, match=match):
        read_multi_labels(write(tmp_path / "h.json", content), images, image_numbers(images)[0], KEEP)


def test_a_checkpoint_of_other_classes_is_refused() -> None:
    with pytest.raises(UserError, match=r"(?s)w\.pth has 3 classes, of which 2 are .*eval\.real needs .*--eval\.real"):
        imagenet_positions([wnids()[1], wnids()[0], "cat"], "w.pth", "eval.real")
    with pytest.raises(UserError, match="has 1,001 classes, of which 1,000"):
        imagenet_positions([*wnids(), "cat"], "w.pth", "eval.real")
