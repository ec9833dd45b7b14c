"""The demo's network: six convolutions of stated widths and strides."""

import torch
from torch import nn

from models.digit_net import DigitNet


def test_layers_are_those_of_the_experiment() -> None:
    convolutions = [layer for layer in DigitNet().modules() if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [24, 48, 48, 96, 96, 128]
    assert [layer.stride[0] for layer in convolutions] == [2, 2, 1, 2, 1, 2]
    assert {layer.kernel_size for layer in convolutions} == {(3, 3)}


def test_any_input_size_gives_logits_of_every_class() -> None:
    network = DigitNet(num_classes=7)
    assert network(torch.zeros(2, 3, 48, 80)).shape == (2, 7)
    assert network.features(torch.zeros(2, 3, 48, 80)).shape == (2, 128, 3, 5)
    assert network(torch.zeros(3, 3, 49, 17)).shape == (3, 7)


def test_learns_to_tell_two_sides() -> None:
    """A bright left half is class 0, a bright right half class 1; a few steps must be enough."""
    torch.manual_seed(0)
    network, images = DigitNet(num_classes=2), torch.zeros(2, 3, 16, 24)
    images[0, :, :, :12], images[1, :, :, 12:] = 1, 1
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for _ in range(20):
        loss = nn.functional.cross_entropy(network(images), torch.tensor([0, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
