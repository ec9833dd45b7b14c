"""Predictions, top-1 and top-5 over a test set: the same for any number of processes, in the order of the images."""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from models.digit_net import DigitNet
from relabel.crop_box import WHOLE_IMAGE
from relabel.data.dataset import CenterCrop, ImageDataset, Key, Sample
from relabel.data.folders import list_images
from relabel.data.images import ImageList
from relabel.data.loader import Loader, eval_batches
from relabel.training.validation import NO_CLASS, Predictions, evaluate, predict_classes
from tests.miniatures import AS_IN_2021, colour_network, save_images
from tests.strategies import FEW
from utils.precision import Precision
from utils.processes.distributed import Process

CPU = torch.device("cpu")
O0 = Precision("O0", CPU)
ALONE = Process(0, 1, 0, 1, CPU)
# Class folders 0..6; the network knows a colour by its number. The third image of each class has another one's colour.
COLOURS = {f"{c}/{i}.png": c if i < 2 else (c + 1) % 7 for c in range(7) for i in range(3)}


@pytest.fixture
def images(tmp_path: Path) -> ImageList:
    """21 images in seven folders."""
    return list_images(save_images(tmp_path, COLOURS))


def batches(images: ImageList) -> Loader:
    return Loader(ImageDataset(images, CenterCrop(16, None)), eval_batches(len(images), 4, 0, 1), 0, CPU)


def predict(models: Mapping[str, nn.Module], images: ImageList, **options: object) -> dict[str, Predictions]:
    return predict_classes(models, images, batches(images), O0, ALONE, AS_IN_2021, **options)  # type: ignore[arg-type]


def colours(num_classes: int = 7, shift: int = 0) -> DigitNet:
    """Answers a colour with its number."""
    return colour_network({c: (c + shift) % num_classes for c in range(num_classes)}, num_classes)


def random_network() -> DigitNet:
    """Answers that differ from image to image."""
    torch.manual_seed(0)
    model = DigitNet(7).eval()
    with torch.no_grad():
        model.fc.weight.normal_(std=60)
    return model


def test_answers_by_eye_of_two_networks_in_one_pass(images: ImageList) -> None:
    both = predict({"model": colours(), "ema": colours(shift=1)}, images, keep_probabilities=True)
    found = both["model"]
    assert found.names.tolist() == [name.encode() for name in sorted(COLOURS)]
    assert found.labels.tolist() == [c for c in range(7) for _ in range(3)]
    assert found.top1.tolist() == [COLOURS[name] for name in sorted(COLOURS)]
    assert found.correct.tolist() == [True, True, False] * 7
    assert found.top5.shape == (21, 5) and all(len(set(row)) == 5 for row in found.top5.tolist())
    np.testing.assert_allclose(found.label_probability, found.correct, atol=1e-6)
    np.testing.assert_array_equal(both["ema"].top1, (found.top1 + 1) % 7)


def test_scores_and_probabilities_are_those_of_the_slow_way(images: ImageList) -> None:
    """One image at a time, normalised by hand."""
    dataset, network, logits = ImageDataset(images, CenterCrop(16, None)), random_network(), torch.empty(21, 7)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    for index in range(21):
        pixels = (dataset[(0, index)].image.transpose(1, 2, 0) / 255 - mean) / std
        with torch.inference_mode():
            logits[index] = network(torch.from_numpy(pixels.transpose(2, 0, 1)[None]).float())[0]
    labels, expected = torch.from_numpy(images.labels).long(), logits.softmax(1).numpy()
    found = predict({"model": network}, images, keep_probabilities=True)["model"]
    assert found.probabilities is not None
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-5)
    np.testing.assert_allclose(found.top1_probability, expected.max(1), atol=1e-5)
    np.testing.assert_allclose(found.label_probability, expected[range(21), images.labels], atol=1e-5)
    network.train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    score = evaluate({"model": network}, images, batches(images), O0, ALONE, AS_IN_2021)["model"]
    assert score.images == 21
    assert score.top1_percent == pytest.approx(100 / 21 * (logits.argmax(1) == labels).sum().item())
    assert score.top5_percent == pytest.approx(100 / 21 * (logits.topk(5).indices == labels[:, None]).sum().item())
    assert score.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-4)
    assert network.training and all(torch.equal(before[n], tensor) for n, tensor in network.state_dict().items())


class Noise:
    """Images of 2 x 2 pixels with labels of 7 classes, from nowhere."""

    def path(self, key: Key) -> Path:
        return Path("none")

    def __getitem__(self, key: Key) -> Sample:
        rng = np.random.default_rng(key[1])
        image = rng.integers(256, size=(3, 2, 2), dtype=np.uint8)
        return Sample(image, int(rng.integers(7)), WHOLE_IMAGE, None, None, key[1])


class Pixels(nn.Module):
    """Logits of 7 classes from a pixel each: no sum whose last bits depend on the batch."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :7]


def predict_noise(count: int, batch_size: int, rank: int, processes: int) -> Predictions:
    labels = np.array([Noise()[(0, index)].label for index in range(count)])
    images = ImageList.of_folder(Path(), list("abcdefg"), np.arange(count).astype("S3"), labels)
    loader = Loader(Noise(), eval_batches(count, batch_size, rank, processes), 0, CPU)
    process = replace(ALONE, rank=rank, world_size=processes)
    return predict_classes({"": Pixels()}, images, loader, O0, process, AS_IN_2021, keep_probabilities=True)[""]


@FEW
@given(count=st.integers(1, 103), processes=st.integers(1, 5), batch_size=st.integers(1, 110))
@example(count=103, processes=2, batch_size=10)
@example(count=3, processes=5, batch_size=1)  # two have nothing to do
def test_the_predictions_of_all_processes_are_those_of_one(count: int, processes: int, batch_size: int) -> None:
    expected, tables = predict_noise(count, 103, 0, 1), [list[Tensor]() for _ in range(processes)]
    with pytest.MonkeyPatch.context() as patch:
        for rank in range(processes):

            def keep(table: Tensor, rank: int = rank) -> Tensor:
                tables[rank].append(table)
                return torch.ones_like(table)

            patch.setattr("relabel.training.validation.sum_over_processes", keep)
            predict_noise(count, batch_size, rank, processes)
        sums = [torch.stack(of_all).sum(dim=0) for of_all in zip(*tables, strict=True)]
        patch.setattr("relabel.training.validation.sum_over_processes", lambda table: sums.pop(0))
        found = predict_noise(count, batch_size, 0, processes)
    for field in fields(Predictions):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(expected, field.name))


def test_an_image_that_no_process_has_read_is_not_passed_over() -> None:
    with pytest.raises(AssertionError, match="once"):
        predict_noise(7, 2, 0, 2)


def test_a_network_chooses_among_some_classes(tmp_path: Path) -> None:
    # Folders b and d of the network's a..e. An image of a's colour is of no class that may be chosen.
    images = list_images(save_images(tmp_path, {"b/1.png": 1, "b/2.png": 3, "d/1.png": 3, "d/2.png": 0}))
    found = predict({"model": colours(5)}, images, among=np.array([1, 3]), keep_probabilities=True)["model"]
    assert found.class_names == ["b", "d"]
    assert found.top1.tolist()[:3] == [0, 1, 1] and found.top5.shape == (4, 2)
    assert found.probabilities is not None
    np.testing.assert_allclose(found.probabilities.sum(1), 1, atol=1e-6)


class Broken(nn.Module):
    """Its logits are nan for dark images."""

    def forward(self, images: Tensor) -> Tensor:
        dark = images.mean((1, 2, 3)) < 0
        return torch.where(dark[:, None], torch.nan, torch.arange(7.0))


def test_logits_that_are_not_finite_are_wrong_answers(images: ImageList) -> None:
    found = predict({"model": Broken()}, images, keep_probabilities=True)["model"]
    bad = found.top1 == NO_CLASS
    assert 0 < bad.sum() < 21 and (found.top1[~bad] == 6).all()
    assert (found.top5[bad] == NO_CLASS).all() and not found.correct[bad].any()
    assert found.probabilities is not None
    for values in (found.top1_probability, found.label_probability, found.probabilities):
        assert not values[bad].any()


class LinearHead(nn.Module):
    """Logits 100.0, 100.1 and 0, which differ in float32 but not in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 7, bias=False)
        with torch.no_grad():
            self.head.weight[:, 0] = torch.tensor([100.0, 100.1, *[0.0] * 5])

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.ones(len(images), 1))
        return logits


def test_half_precision_does_not_round_logits_to_ties(images: ImageList) -> None:
    bf16, model = Precision("bf16", CPU), LinearHead()
    with bf16.autocast():
        logits = model(torch.zeros(1, 3, 2, 2))[0]
    assert logits[0] == logits[1]
    found = predict_classes({"model": model}, images, batches(images), bf16, ALONE, AS_IN_2021)["model"]
    assert (found.top1 == 1).all()
    with bf16.autocast():
        assert torch.equal(model(torch.zeros(1, 3, 2, 2))[0], logits)  # as before
