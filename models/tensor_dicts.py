"""Dicts of tensors in a checkpoint: weights, wherever they are, and a normaliser's numbers beside a network."""

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch

from utils.checkpoint import is_plain

CHANNELS = 3  # as many numbers beside the network may be a mean or standard deviation
IS_NORMALISER = re.compile(r"(^|[._])(?<!running_)(mean|std)$")


def are_weights(value: Any) -> bool:
    """Return whether a value is a dict of plain tensors with names."""
    return (
        isinstance(value, dict)
        and len(value) > 0
        and all(isinstance(n, str) and isinstance(v, torch.Tensor) and is_plain(v) for n, v in value.items())
    )


def weights_inside(entries: Mapping[Any, Any]) -> dict[tuple[Any, ...], dict[str, torch.Tensor]]:
    """Return the keys that lead to weights, at any depth, and these; those of optimizers are none."""
    found = {}
    places: list[tuple[tuple[Any, ...], Any]] = [((key,), value) for key, value in entries.items()]
    for keys, value in places:  # which grows
        if are_weights(value):
            found[keys] = value
        elif isinstance(value, dict) and "optim" not in str(keys[-1]):
            places += [((*keys, key), inner) for key, inner in value.items()]
    return found


def normalisers(weights: Mapping[str, torch.Tensor], names: Collection[str]) -> dict[str, str]:
    """Return name -> values of tensors beside the network that may be its mean or standard deviation."""
    counts = {name: (1, CHANNELS) if IS_NORMALISER.search(name) else (CHANNELS,) for name in names}
    found = {name: weights[name] for name in names if weights[name].numel() in counts[name] and "loss" not in name}
    return {name: " ".join(f"{x:.4g}" for x in numbers.flatten().tolist()) for name, numbers in found.items()}
