"""The optimizers: SGD, AdamP, AdamW; and which parameters decay."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from adamp import AdamP
from torch import Tensor, nn

SECOND_BETA = 0.999


class DeviceAdamP(AdamP):
    """The adamp package's AdamP for weights on a GPU: channels last, for which its views fail; and without its waiting.

    It decides on the host, for each weight, whether to project: 54 to 108 times in a step of ResNet-50 the host would
    wait for the GPU.
    """

    def _channel_view(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1)

    def _layer_view(self, x: Tensor) -> Tensor:
        return x.reshape(1, -1)

    def _projection(
        self, p: Tensor, grad: Tensor, perturb: Tensor, delta: float, wd_ratio: float, eps: float
    ) -> tuple[Tensor, Any]:
        if p.is_cuda:
            return self._selected_projection(p, grad, perturb, delta, wd_ratio, eps)
        projected: tuple[Tensor, Any] = super()._projection(p, grad, perturb, delta, wd_ratio, eps)
        return projected

    def _selected_projection(
        self, p: Tensor, grad: Tensor, perturb: Tensor, delta: float, wd_ratio: float, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return the same as the package's method; both projections are made, and one or none is selected."""
        weight, selected = p.detach(), perturb
        is_projected = torch.zeros((), dtype=torch.bool, device=p.device)
        per_row = [-1] + [1] * (p.ndim - 1)
        for view in (self._layer_view, self._channel_view):  # of both, the second is selected
            rows = view(weight)
            is_wanted = self._cosine_similarity(grad, weight, eps, view).max() < delta / math.sqrt(rows.size(1))
            direction = weight / rows.norm(dim=1).view(per_row).add_(eps)
            projected = perturb - direction * view(direction * perturb).sum(dim=1).view(per_row)
            selected, is_projected = torch.where(is_wanted, projected, selected), is_projected | is_wanted
        return selected, torch.where(is_projected, wd_ratio, 1.0).double()


def without_decay_of_norms_and_biases(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return two parameter groups, by timm's rule.

    Parameters of at most one dimension, biases, and those that the model itself exempts in `no_weight_decay()`, such as
    position embeddings, do not decay.
    """
    from timm.optim import param_groups_weight_decay  # takes a second to import

    own: Any = getattr(model, "no_weight_decay", tuple)  # a method of some of timm's networks
    groups: list[dict[str, Any]] = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=own())
    return groups


def create_optimizer(
    parameters: Iterable[nn.Parameter] | list[dict[str, Any]],
    name: str,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    fused: bool,
) -> torch.optim.Optimizer:
    """Create SGD, AdamP or AdamW.

    Args:
        parameters: to be trained; or groups of them, which may have a weight decay of their own. Otherwise weight
            decay acts on every parameter, biases and norms included.
        name: "sgd", "adamp" or "adamw".
        lr: learning rate of the first step; the trainer sets it before every step.
        momentum: SGD's momentum; the others' first beta (the second is 0.999).
        nesterov: SGD only; needs momentum > 0. The others ignore it, as AdamP did in 2021.
        weight_decay: SGD adds weight_decay * weight to the gradient; the others decay the weights themselves, by
            lr * weight_decay, and AdamP by a tenth of that where it projects.
        fused: use the single-kernel update of SGD and AdamW (for CUDA).

    Raises:
        ValueError: an unknown name, or Nesterov without momentum.
    """
    betas = (momentum, SECOND_BETA)
    if name == "adamp":
        return DeviceAdamP(parameters, lr=lr, betas=betas, weight_decay=weight_decay)
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, betas=betas, weight_decay=weight_decay, fused=fused)
    if name != "sgd":
        raise ValueError(f"name must be sgd, adamp or adamw, not {name!r}")
    optimizer = torch.optim.SGD(
        parameters, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, fused=fused
    )
    if fused and momentum:
        # torch allocates these buffers uninitialized and leaves them so if the loss scaler skips the first update,
        # which is common: the second update would start from garbage.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer
