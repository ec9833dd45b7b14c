"""The demo's network: six convolutions of stated widths and strides."""

import torch

from models.digit_net import DigitNet


def test_any_input_size_gives_logits_of_every_class() -> None:
    network = DigitNet(num_classes=7)
    assert network(torch.zeros(2, 3, 48, 80)).shape == (2, 7)
    assert network.features(torch.zeros(2, 3, 48, 80)).shape == (2, 128, 3, 5)
    assert network(torch.zeros(3, 3, 49, 17)).shape == (3, 7)
