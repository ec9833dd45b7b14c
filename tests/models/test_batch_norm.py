"""Batch-norm settings reach every layer, in the sense they are meant."""

import torch
from torch import nn

from models.batch_norm import set_batch_norm


def test_the_default_recipe_is_torchs_own() -> None:
    layer = nn.BatchNorm2d(1)
    set_batch_norm(layer, momentum=0.9, eps=1e-5)
    assert (layer.momentum, layer.eps) == (nn.BatchNorm2d(1).momentum, nn.BatchNorm2d(1).eps)


def test_eps_is_added_to_the_variance() -> None:
    layer = nn.BatchNorm2d(1).eval()
    set_batch_norm(layer, momentum=None, eps=3.0)
    assert torch.equal(layer(torch.full((1, 1, 1, 2), 4.0)), torch.full((1, 1, 1, 2), 2.0))  # 4 / sqrt(1 + 3)


def test_null_keeps_the_networks_own() -> None:
    layer = nn.BatchNorm1d(2, momentum=0.3, eps=0.7)
    set_batch_norm(nn.Sequential(layer), momentum=None, eps=None)
    assert (layer.momentum, layer.eps) == (0.3, 0.7)


def test_reaches_nested_and_derived_layers_and_no_other() -> None:
    class Derived(nn.BatchNorm2d):
        """As timm's batch norm with an activation is derived."""

    group_norm = nn.GroupNorm(1, 2, eps=0.7)
    network = nn.Sequential(nn.Sequential(Derived(2)), nn.SyncBatchNorm(2), nn.BatchNorm3d(2), group_norm)
    set_batch_norm(network, momentum=0.5, eps=0.25)
    settings = {(m.momentum, m.eps) for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    assert settings == {(0.5, 0.25)}
    assert group_norm.eps == 0.7
