"""Published test sets in miniature: their real layouts and names, with images of one colour each.

The network that goes with them classifies colours, each as a given class, so that results can be counted by hand.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from PIL import Image

from models.data_config import OF_2021, DataConfig
from models.digit_net import DigitNet
from relabel.augment import normalise
from relabel.data.class_names import class_names_of_imagenet

AS_IN_2021 = DataConfig(**OF_2021)


def colour(number: int) -> tuple[int, int, int]:
    """The number-th of 27 colours, far from each other."""
    red, green, blue = (40 + 85 * (number // 3**place % 3) for place in range(3))
    return red, green, blue


def save_image(path: Path, number: int, width: int = 40, height: int = 28) -> None:
    """Save an image of the number-th colour; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), colour(number)).save(path, quality=95)


def save_images(root: Path, colours: Mapping[str, int], width: int = 40, height: int = 28) -> Path:
    """Save an image for each CLASS/FILE below a folder, which is returned."""
    for name, number in colours.items():
        save_image(root / name, number, width, height)
    return root


@cache
def wnids() -> list[str]:
    """ImageNet's classes; reading the list takes seconds."""
    return class_names_of_imagenet()


def val_name(number: int) -> str:
    """The name of one of ImageNet's validation images, from 1."""
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def colour_network(class_of: Mapping[int, int], num_classes: int = 1000) -> DigitNet:
    """A network that classifies images of one colour; the second class is at least 20 logits behind.

    Args:
        class_of: colour -> class, each once.
        num_classes: K; a class without a colour is never predicted.
    """
    model = DigitNet(num_classes).eval()
    colours = torch.tensor([colour(number) for number in class_of], dtype=torch.uint8)
    centres = normalise(colours[:, :, None, None], mean=AS_IN_2021.mean, std=AS_IN_2021.std)[:, :, 0, 0]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for layer in model.features:
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.weight.fill_(1)
            elif isinstance(layer, torch.nn.Conv2d):
                _pass_colours(layer)
        # Nearest centre: -10 |x - c|^2 without what all classes share; the features are x+ and x-.
        classes = list(class_of.values())
        model.fc.bias.fill_(-1e4)
        model.fc.weight[classes, :3] = 20 * centres
        model.fc.weight[classes, 3:6] = -20 * centres
        model.fc.bias[classes] = -10 * centres.square().sum(1)
    return model


def _pass_colours(layer: torch.nn.Conv2d) -> None:
    """Pass on red, green, blue and their negatives, because ReLU cuts negative values."""
    for channel in range(min(6, 2 * layer.in_channels)):
        source = channel % layer.in_channels
        layer.weight[channel, source, 1, 1] = -1 if channel >= layer.in_channels else 1
