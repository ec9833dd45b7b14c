"""Dropout and stochastic depth at rates of the recipe; the tensors of the checkpoint stay the same."""

import pytest
import timm.layers
from torch import nn
from torchvision.ops import StochasticDepth

from models.build import create_model
from utils.errors import UserError


@pytest.mark.parametrize("arch", ["efficientnet_b0", "convnext_tiny", "timm/test_efficientnet", "timm/test_vit"])
def test_rates_are_set_and_change_no_tensor(arch: str) -> None:
    network = create_model(arch, 3, drop_path_rate=0.4)
    paths = [m for m in network.modules() if isinstance(m, StochasticDepth | timm.layers.DropPath)]
    rates = [float(getattr(m, "p", getattr(m, "drop_prob", 0.0))) for m in paths]
    assert rates == sorted(rates) and rates[0] < rates[-1] and 0.3 < rates[-1] < 0.401
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in create_model(arch, 3).state_dict().items()}


def test_dropout_is_set() -> None:
    of_torchvision, of_timm = (
        create_model("efficientnet_b0", 3, drop_rate=0.4),
        create_model("timm/vgg11", 3, None, 0.4),
    )
    assert [m.p for m in of_torchvision.modules() if isinstance(m, nn.Dropout)] == pytest.approx([0.4])
    assert of_timm.drop_rate == 0.4


@pytest.mark.parametrize("arch", ["resnet18", "digit_net", "timm/vgg11"])
def test_a_network_without_the_rate_is_refused_and_the_one_that_is_named_has_it(arch: str) -> None:
    with pytest.raises(UserError, match=rf"{arch} has no .*drop_path_rate.*such as timm/resnet50"):
        create_model(arch, 3, drop_path_rate=0.1)
    create_model("timm/resnet50", 3, drop_rate=0.1, drop_path_rate=0.1)
