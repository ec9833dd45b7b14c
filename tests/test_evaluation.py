"""Top-1 and top-5, counted over a test set."""

from pathlib import Path

import numpy as np
import pytest
import torch

from models.digit_net import DigitNet
from relabel.dataset import CentreView, ImageDataset, list_images
from relabel.evaluation import evaluate
from relabel.loader import Loader, TestBatches
from utils.precision import Precision

CPU = torch.device("cpu")


def network() -> DigitNet:
    """Weights that tell three classes apart, in some way."""
    torch.manual_seed(0)
    return DigitNet(3).eval()


def expected_top1(photos: Path) -> float:
    """Percent, by the slow and plain way: one image at a time."""
    images = list_images(photos / "val")
    dataset = ImageDataset(images, CentreView(16, 0.875))
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
    loader = Loader(ImageDataset(images, CentreView(16, 0.875)), TestBatches(len(images), batch_size, 0, 1), 0, CPU)
    score = evaluate(network(), loader, Precision("O0", CPU))
    assert score.images == 13 and score.top5 == 13  # three classes: the label is always among five
    assert score.top1_percent == pytest.approx(expected_top1(photos))


def test_a_network_in_training_stays_in_training(photos: Path) -> None:
    images = list_images(photos / "val")
    model = network().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loader = Loader(ImageDataset(images, CentreView(16, 0.875)), TestBatches(13, 4, 0, 1), 0, CPU)
    evaluate(model, loader, Precision("O0", CPU))
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
