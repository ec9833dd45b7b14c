"""What a network says of each image: the same for any number of processes, in the order of the images; as CSV."""

import csv
import os
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.digit_net import DigitNet
from relabel.augment import normalise
from relabel.data.dataset import CenterCrop, ImageDataset
from relabel.data.images import ImageList, list_images
from relabel.data.loader import Loader, TestBatches
from relabel.evaluation.predictions import NO_CLASS, Predictions, predict_classes, write_predictions
from tests.miniatures import colour_network, save_pictures
from utils.errors import UserError
from utils.precision import Precision
from utils.processes.distributed import Process

CPU = torch.device("cpu")
ALONE = Process(0, 1, 0, 1, CPU)
# Class folders 0..6 of seven; the network knows a colour by its number. The third picture of each is another colour.
COLOURS = {f"{c}/{i}.png": c if i < 2 else (c + 1) % 7 for c in range(7) for i in range(3)}


@pytest.fixture
def images(tmp_path: Path) -> ImageList:
    """21 pictures in seven folders."""
    return list_images(save_pictures(tmp_path, COLOURS))


def predict(
    images: ImageList, *, rank: int = 0, processes: int = 1, batch_size: int = 4, **options: object
) -> Predictions:
    """One network's answers, of one process."""
    models = {"model": colour_network({c: c for c in range(7)}, 7)}
    return predict_many(models, images, rank, processes, batch_size, **options)["model"]


def predict_many(
    models: Mapping[str, nn.Module], images: ImageList, rank: int, processes: int, batch_size: int, **options: object
) -> dict[str, Predictions]:
    sampler = TestBatches(len(images), batch_size, rank, processes)
    batches = Loader(ImageDataset(images, CenterCrop(16, None)), sampler, 0, CPU)
    process = replace(ALONE, rank=rank, world_size=processes)
    return predict_classes(models, images, batches, Precision("O0", CPU), process, title="test", **options)  # type: ignore[arg-type]


def test_answers_by_eye(images: ImageList) -> None:
    found = predict(images, keep_probabilities=True)
    assert found.names.tolist() == [name.encode() for name in sorted(COLOURS)]
    assert found.labels.tolist() == [c for c in range(7) for _ in range(3)]
    assert found.top1.tolist() == [COLOURS[name] for name in sorted(COLOURS)]
    assert found.right.tolist() == [True, True, False] * 7
    assert found.top5.shape == (21, 5) and found.top5.dtype == np.int64
    assert all(len(set(row)) == 5 for row in found.top5.tolist())
    np.testing.assert_allclose(found.top1_probability, 1, atol=1e-6)
    np.testing.assert_allclose(found.label_probability[found.right], 1, atol=1e-6)
    assert (found.label_probability[~found.right] < 1e-6).all()
    assert found.probabilities is not None
    np.testing.assert_allclose(found.probabilities.sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(found.probabilities.argmax(1), found.top1)


@pytest.mark.parametrize(("processes", "batch_size"), [(2, 1), (3, 5), (22, 64)])  # of 22, one has nothing to do
def test_processes_and_batches_change_nothing(
    images: ImageList, monkeypatch: pytest.MonkeyPatch, processes: int, batch_size: int
) -> None:
    expected = predict(images, keep_probabilities=True)
    tables: list[Tensor] = []

    def give_away(table: Tensor) -> Tensor:
        tables.append(table)
        return torch.ones_like(table)

    monkeypatch.setattr("relabel.evaluation.predictions.sum_over_processes", give_away)
    for rank in range(processes):
        predict(images, rank=rank, processes=processes, batch_size=batch_size, keep_probabilities=True)
    of_a_rank = len(tables) // processes
    sums = [torch.stack(tables[process::of_a_rank]).sum(dim=0) for process in range(of_a_rank)]
    monkeypatch.setattr("relabel.evaluation.predictions.sum_over_processes", lambda table: sums.pop(0))
    found = predict(images, keep_probabilities=True)
    for field in fields(Predictions):
        ours, theirs = getattr(found, field.name), getattr(expected, field.name)
        if "probabilit" in field.name:  # the last bits of a logit depend on the batch it is computed in
            np.testing.assert_allclose(ours, theirs, atol=1e-6)
        else:
            np.testing.assert_array_equal(ours, theirs)


def test_an_image_that_no_process_has_read_is_not_passed_over(images: ImageList) -> None:
    with pytest.raises(AssertionError, match="once"):
        predict(images, rank=0, processes=2)


def test_every_network_sees_the_same_pass(images: ImageList) -> None:
    other = colour_network({c: (c + 1) % 7 for c in range(7)}, 7)
    models = {"model": colour_network({c: c for c in range(7)}, 7), "ema": other}
    found = predict_many(models, images, 0, 1, 4)
    np.testing.assert_array_equal(found["ema"].top1, (found["model"].top1 + 1) % 7)


def test_a_network_chooses_among_some_classes(tmp_path: Path) -> None:
    # Folders b and d of the network's a..e. A picture of a's colour is no class that may be chosen.
    images = list_images(save_pictures(tmp_path, {"b/1.png": 1, "b/2.png": 3, "d/1.png": 3, "d/2.png": 0}))
    models = {"model": colour_network({c: c for c in range(5)}, 5)}
    found = predict_many(models, images, 0, 1, 4, among=np.array([1, 3]), keep_probabilities=True)["model"]
    assert found.class_names == ["b", "d"]
    assert found.top1.tolist()[:3] == [0, 1, 1] and found.top5.shape == (4, 2)
    assert found.probabilities is not None and found.probabilities.shape == (4, 2)
    np.testing.assert_allclose(found.probabilities.sum(1), 1, atol=1e-6)


def test_probabilities_are_the_softmax(images: ImageList) -> None:
    torch.manual_seed(0)
    model = DigitNet(7).eval()
    with torch.no_grad():
        model.fc.weight.normal_(std=60)
    found = predict_many({"model": model}, images, 0, 1, 4, keep_probabilities=True)["model"]
    batch = next(iter(Loader(ImageDataset(images, CenterCrop(16, None)), TestBatches(21, 21, 0, 1), 0, CPU)))
    with torch.inference_mode():
        expected = model(normalise(batch.images)).softmax(1).numpy()
    assert found.probabilities is not None
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)
    np.testing.assert_allclose(found.top1_probability, expected.max(1), atol=1e-6)
    np.testing.assert_allclose(found.label_probability, expected[range(21), images.labels], atol=1e-6)


class Broken(nn.Module):
    """Its logits are no numbers for dark pictures."""

    def forward(self, images: Tensor) -> Tensor:
        dark = images.mean((1, 2, 3)) < 0
        return torch.where(dark[:, None], torch.nan, torch.arange(7.0))


def test_logits_that_are_no_numbers_are_wrong_answers(images: ImageList) -> None:
    found = predict_many({"model": Broken()}, images, 0, 1, 4, keep_probabilities=True)["model"]
    bad = found.top1 == NO_CLASS
    assert 0 < bad.sum() < 21 and (found.top1[~bad] == 6).all()
    assert (found.top5[bad] == NO_CLASS).all() and not found.right[bad].any()
    assert not found.top1_probability[bad].any() and not found.label_probability[bad].any()
    assert found.probabilities is not None and not found.probabilities[bad].any()


def test_a_damaged_image_is_an_error(images: ImageList) -> None:
    images.path(7).write_bytes(images.path(7).read_bytes()[:40])
    with pytest.raises(UserError, match=images.name(7)):
        predict(images)


def test_the_file_says_what_the_arrays_say(tmp_path: Path) -> None:
    predictions = Predictions(
        names=np.array([b"a cat, black/1.jpg", b"dog/\xff.jpg", b"dog/3.jpg"]),
        labels=np.array([0, 1, 1]),
        class_names=["a cat, black", "dog", 'a "fox"'],
        top5=np.array([[2, 0, 1], [1, 0, 2], [NO_CLASS] * 3]),
        top1_probability=np.array([0.5, 2 / 3, 0], dtype=np.float32),
        label_probability=np.array([0.25, 2 / 3, 0], dtype=np.float32),
        probabilities=None,
    )
    write_predictions(tmp_path / "p.csv", predictions, np.array([0, 1, NO_CLASS]))
    with (tmp_path / "p.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["image", "label", "top1", "top1_probability", "label_probability", "top5", "in_set"],
        ["a cat, black/1.jpg", "a cat, black", 'a "fox"', "0.5", "0.25", 'a "fox"/a cat, black/dog', "0"],
        [os.fsdecode(b"dog/\xff.jpg"), "dog", "dog", "0.666667", "0.666667", 'dog/a cat, black/a "fox"', "1"],
        ["dog/3.jpg", "dog", "", "0", "0", "", ""],
    ]
    write_predictions(tmp_path / "p.csv", predictions)
    assert (tmp_path / "p.csv").read_bytes().splitlines()[
        0
    ] == b"image,label,top1,top1_probability,label_probability,top5"
