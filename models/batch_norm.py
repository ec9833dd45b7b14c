"""Batch-norm settings of a whole network."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def has_batch_norm(model: nn.Module) -> bool:
    """Return whether the network has a batch-norm layer."""
    return any(isinstance(layer, _BatchNorm) for layer in model.modules())


def batch_norm_eps(model: nn.Module) -> set[float]:
    """Return what the network's batch-norm layers add to the variance."""
    return {layer.eps for layer in model.modules() if isinstance(layer, _BatchNorm)}


def set_batch_norm(model: nn.Module, momentum: float | None, eps: float | None) -> None:
    """Apply these settings to every batch-norm layer of the network, including SyncBatchNorm and timm's subclasses.

    Args:
        model: changed in place.
        momentum: share of the running statistics that is kept at each step, TensorFlow's convention: 0.9 is torch's
            0.1. None leaves the layers unchanged.
        eps: added to the variance. None leaves the layers unchanged.
    """
    for layer in model.modules():
        if not isinstance(layer, _BatchNorm):
            continue
        if momentum is not None:
            # 1 - 0.9 is 0.09999999999999998 in binary; rounding gives the 0.1 of torch's own networks.
            layer.momentum = round(1 - momentum, 12)
        if eps is not None:
            layer.eps = eps
