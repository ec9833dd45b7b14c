"""The two optimizers of the paper."""

from collections.abc import Iterable

import torch
from adamp import AdamP
from torch import Tensor, nn

ADAMP_SECOND_BETA = 0.999


class ChannelsLastAdamP(AdamP):
    """AdamP that also accepts weights in channels-last memory format, for which the adamp package's views fail."""

    def _channel_view(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1)

    def _layer_view(self, x: Tensor) -> Tensor:
        return x.reshape(1, -1)


def create_optimizer(
    parameters: Iterable[nn.Parameter],
    name: str,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    fused: bool,
) -> torch.optim.Optimizer:
    """Create SGD or AdamP over one parameter group: weight decay acts on every parameter, biases and norms included.

    Args:
        parameters: to be trained.
        name: "sgd" or "adamp".
        lr: learning rate of the first step; the trainer sets it before every step.
        momentum: SGD's momentum; AdamP's first beta (the second is 0.999).
        nesterov: SGD only; needs momentum > 0. AdamP ignores it, as in 2021.
        weight_decay: SGD adds weight_decay * weight to the gradient; AdamP decays the weights themselves, by
            lr * weight_decay, and a tenth of that where it projects.
        fused: use SGD's single-kernel update (for CUDA); ignored by AdamP.

    Raises:
        ValueError: an unknown name, or Nesterov without momentum.
    """
    if name == "adamp":
        return ChannelsLastAdamP(parameters, lr=lr, betas=(momentum, ADAMP_SECOND_BETA), weight_decay=weight_decay)
    if name != "sgd":
        raise ValueError(f"name must be sgd or adamp, not {name!r}")
    optimizer = torch.optim.SGD(
        parameters, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, fused=fused
    )
    if fused and momentum:
        # torch allocates these buffers uninitialized and leaves them so if the loss scaler skips the first update,
        # which is common: the second update would start from garbage.
        for parameter in optimizer.param_groups[0]["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer
