"""Maps of a classifier: their mean over the cells is what the classifier says, and each cell sees its own place."""

import pytest
import torch
from torch import Tensor, nn

from models.build import create_model
from models.digit_net import DigitNet
from models.fully_convolutional import fully_convolutional
from utils.errors import UserError

QUICK = ["digit_net", "resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "mnasnet0_5", "timm/resnet18", "regnety_002"]
SLOW = ["regnet_x_400mf", "resnext50_32x4d", "efficientnet_b0", "densenet121", "swin_t", "rexnet_100"]
SLOW += ["timm/efficientnet_b0", "tf_efficientnet_b0", "resnetv2_50x1_bit"]  # the last one's head is a convolution
REFUSED = {
    "vgg11": "ReLU stands before its last layer",
    "squeezenet1_1": "it ends in flatten, not in a linear layer",
    "mobilenet_v3_small": "Hardswish stands before its last layer",
    "vit_tiny_patch16_224": "does not take features",
    "convnext_atto": "does more than average the cells",
    "mobilenetv3_small_050": "does not take features",
}


def lively(network: nn.Module) -> nn.Module:
    """Random batch-norm settings and head, as training leaves them; fresh networks say nearly 0 to everything."""
    generator = torch.Generator().manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None and layer.running_var is not None:
            layer.running_mean.copy_(0.1 * torch.randn(layer.running_mean.shape, generator=generator))
            layer.running_var.copy_(0.5 + torch.rand(layer.running_var.shape, generator=generator))
    last = [layer for layer in network.modules() if isinstance(layer, nn.Linear | nn.Conv2d)][-1]
    nn.init.normal_(last.weight, std=0.5, generator=generator)
    if last.bias is not None:
        nn.init.normal_(last.bias, generator=generator)
    return network.eval()


@pytest.mark.parametrize("arch", QUICK + [pytest.param(arch, marks=pytest.mark.slow) for arch in SLOW])
@torch.inference_mode()
def test_mean_of_the_map_is_the_classifiers_logits(arch: str) -> None:
    torch.manual_seed(0)
    network = lively(create_model(arch, num_classes=7))
    images = torch.randn(1, 3, 64, 96)
    logits = network(images)
    maps = fully_convolutional(network)(images)
    assert maps.shape[:2] == (1, 7) and maps.shape[2] < maps.shape[3]
    torch.testing.assert_close(maps.mean((2, 3)), logits, rtol=0, atol=1e-5 * max(1.0, float(logits.abs().max())))
    assert float(logits.std()) > 1e-6


@pytest.mark.parametrize("arch", ["resnet18", "timm/resnet18"])
@torch.inference_mode()
def test_classifier_itself_stays_as_it_was(arch: str) -> None:
    network = lively(create_model(arch, num_classes=3))
    images = torch.randn(1, 3, 64, 96)
    logits, weights = network(images), {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fully_convolutional(network)
    assert torch.equal(network(images), logits)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())


@torch.inference_mode()
def test_a_cell_follows_what_stands_there() -> None:
    """An image that differs in its lower right corner only: the map changes there and nowhere far away."""
    torch.manual_seed(0)
    maps_of = fully_convolutional(lively(DigitNet(4)))
    images = torch.rand(2, 3, 192, 320)
    images[1] = images[0]
    images[1, :, 160:, 280:] = 0
    change = (lambda maps: (maps[1] - maps[0]).abs().sum(0))(maps_of(images))
    assert change.shape == (12, 20)
    assert float(change[-1, -1]) > 1e-3
    assert float(change[:6].max()) == 0 and float(change[:, :12].max()) == 0


@torch.inference_mode()
def test_dropout_before_the_head_does_not_act() -> None:
    class Dropping(nn.Module):
        """Pools with a method, drops with a function, has no bias."""

        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 5, 3)
            self.head = nn.Linear(5, 4, bias=False)

        def forward(self, images: Tensor) -> Tensor:
            pooled = self.stem(images).mean([2, 3])
            return self.head(nn.functional.dropout(pooled, 0.9, self.training))

    network = Dropping()
    maps_of = fully_convolutional(network)
    images = torch.randn(2, 3, 7, 9)
    maps = maps_of(images)
    assert maps.shape == (2, 4, 5, 7) and torch.equal(maps, maps_of(images))
    torch.testing.assert_close(maps.mean((2, 3)), network(images))


@pytest.mark.parametrize(("arch", "reason"), REFUSED.items())
def test_other_ends_are_refused_with_the_reason(arch: str, reason: str) -> None:
    with pytest.raises(UserError, match=f"cannot make label maps: .*{reason}.*must end in global average pooling"):
        fully_convolutional(create_model(arch, num_classes=7))


def test_pooling_to_more_than_one_cell_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d((2, 1)), nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(UserError, match="AdaptiveAvgPool2d stands before its last layer"):
        fully_convolutional(network)


def test_maximum_pooling_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    with pytest.raises(UserError, match="AdaptiveMaxPool2d stands before its last layer"):
        fully_convolutional(network)


def test_what_cannot_be_traced_is_refused() -> None:
    class Choosing(nn.Module):
        """Its path depends on the pixels."""

        def forward(self, images: Tensor) -> Tensor:
            return images if images.sum() > 0 else -images

    with pytest.raises(UserError, match="it cannot be traced"):
        fully_convolutional(Choosing())
