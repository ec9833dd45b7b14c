"""Dropout and stochastic depth at rates that a recipe sets; the names of a network's tensors do not depend on them."""

from collections.abc import Sequence

from torch import nn
from torchvision.ops import StochasticDepth

from utils.errors import UserError

_OF_TIMM = "; most of timm's networks have both, such as timm/resnet50"


def set_drop_rates(arch: str, model: nn.Module, drop_rate: float | None, drop_path_rate: float | None) -> None:
    """Set the rates of a network that was built with its own ones.

    Args:
        arch: its name, for messages.
        model: of torchvision, or ours; changed in place.
        drop_rate: probability of its dropout layers; None: its own.
        drop_path_rate: probability of stochastic depth in the last block, from which it falls linearly to the first
            one, as it does in the network itself; None: its own.

    Raises:
        UserError: the network uses none.
    """
    if drop_rate is not None:
        _scale(arch, [m for m in model.modules() if isinstance(m, nn.Dropout)], drop_rate, "dropout (drop_rate)")
    if drop_path_rate is not None:
        paths = [m for m in model.modules() if isinstance(m, StochasticDepth)]
        _scale(arch, paths, drop_path_rate, "stochastic depth (drop_path_rate)")


def _scale(arch: str, layers: Sequence[nn.Dropout | StochasticDepth], rate: float, kind: str) -> None:
    own = max((layer.p for layer in layers), default=0.0)
    if not own:
        raise no_drop_rate(arch, kind)
    for layer in layers:
        layer.p *= rate / own


def no_drop_rate(arch: str, kind: str) -> UserError:
    """Return the error for a network without dropout or stochastic depth."""
    return UserError(f"{arch} has no {kind}{_OF_TIMM}.")
