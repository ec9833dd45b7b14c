"""Batch-norm settings of a whole network."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def set_batch_norm(model: nn.Module, momentum: float | None, eps: float | None) -> None:
    """Give every batch-norm layer of the network (subclasses such as SyncBatchNorm or timm's too) these settings.

    Args:
        model: changed in place.
        momentum: share of the old running statistics that survives a step, in TensorFlow's sense: 0.9 is torch's
            0.1. None keeps each layer's own.
        eps: added to the variance. None keeps each layer's own.
    """
    for layer in model.modules():
        if not isinstance(layer, _BatchNorm):
            continue
        if momentum is not None:
            # 1 - 0.9 is 0.09999999999999998 in binary; rounding gives the 0.1 that torch's own networks carry.
            layer.momentum = round(1 - momentum, 12)
        if eps is not None:
            layer.eps = eps
