"""Top-1 and top-5, counted over a test set."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from models.digit_net import DigitNet
from relabel.crop_box import WHOLE_IMAGE
from relabel.data.dataset import CenterCrop, ImageDataset, Key, Sample
from relabel.data.images import list_images
from relabel.data.loader import Loader, TestBatches
from relabel.training.validation import Score, evaluate
from tests.strategies import FEW
from utils.precision import Precision

CPU = torch.device("cpu")


def network() -> DigitNet:
    """Weights that tell three classes apart, in some way."""
    torch.manual_seed(0)
    return DigitNet(3).eval()


def expected_top1(photos: Path) -> float:
    """Percent, by the slow and plain way: one image at a time."""
    images = list_images(photos / "val")
    dataset = ImageDataset(images, CenterCrop(16, 0.875))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    right = 0
    for index in range(len(images)):
        pixels = dataset[(0, index)].image.transpose(1, 2, 0) / 255
        image = torch.from_numpy(((pixels - mean) / std).transpose(2, 0, 1)[None]).float()
        with torch.inference_mode():
            right += int(network()(image).argmax()) == images.labels[index]
    return 100 * right / len(images)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_counts_do_not_depend_on_the_batch_size(photos: Path, batch_size: int) -> None:
    images = list_images(photos / "val")
    loader = Loader(ImageDataset(images, CenterCrop(16, 0.875)), TestBatches(len(images), batch_size, 0, 1), 0, CPU)
    score = evaluate(network(), loader, Precision("O0", CPU))
    assert score.images == 13 and score.top5 == 13  # three classes: the label is always among five
    assert score.top1_percent == pytest.approx(expected_top1(photos))


class Noise:
    """Images of 2 x 2 pixels with labels of 7 classes, from nowhere."""

    def __getitem__(self, key: Key) -> Sample:
        rng = np.random.default_rng(key[1])
        image = rng.integers(256, size=(3, 2, 2), dtype=np.uint8)
        return Sample(image, int(rng.integers(7)), WHOLE_IMAGE, None, None, key[1])


class Pixels(torch.nn.Module):
    """Logits of 7 classes from a pixel each: no sum whose last bits depend on the batch."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :7]


@FEW
@given(num_images=st.integers(1, 103), processes=st.integers(1, 5), batch_size=st.integers(1, 110))
@example(num_images=103, processes=2, batch_size=10)
@example(num_images=103, processes=3, batch_size=1)
def test_the_counts_of_all_processes_are_those_of_one(num_images: int, processes: int, batch_size: int) -> None:
    def score(rank: int, world_size: int, size: int) -> Score:
        loader = Loader(Noise(), TestBatches(num_images, size, rank, world_size), 0, CPU)
        return evaluate(Pixels(), loader, Precision("O0", CPU))

    ranks = [score(rank, processes, batch_size) for rank in range(min(processes, num_images))]
    alone = score(0, 1, 103)
    assert alone.images == num_images
    for name in ("top1", "top5", "images"):
        assert sum(getattr(rank, name) for rank in ranks) == getattr(alone, name)


def test_a_network_in_training_stays_in_training(photos: Path) -> None:
    images = list_images(photos / "val")
    model = network().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loader = Loader(ImageDataset(images, CenterCrop(16, 0.875)), TestBatches(13, 4, 0, 1), 0, CPU)
    evaluate(model, loader, Precision("O0", CPU))
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
