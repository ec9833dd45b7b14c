"""Exponential moving average of a model's weights."""

from copy import deepcopy

import torch
from torch import Tensor, nn


class WeightAverage:
    """The average of a model's weights and floating-point buffers over its updates.

    Counters are copied. torch's AveragedModel gives the same numbers, but waits for the device at each update, to read
    a counter.

    Args:
        model: its weights are the first average.
        decay: weight of the old average at each update, in (0, 1).

    Attributes:
        module: the model with the averaged weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = deepcopy(model).requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, first: bool) -> None:
        """Move the average towards the model's weights; the first update copies them."""
        averages, weights = _floating(self.module), _floating(model)
        if first:
            torch._foreach_copy_(averages, weights)
        else:
            torch._foreach_lerp_(averages, weights, 1 - self._decay)
        for average, buffer in zip(self.module.buffers(), model.buffers(), strict=True):
            if not buffer.is_floating_point():
                average.copy_(buffer)


def _floating(model: nn.Module) -> list[Tensor]:
    """Return weights and floating-point buffers, always in the same order."""
    return [*model.parameters(), *(buffer for buffer in model.buffers() if buffer.is_floating_point())]
