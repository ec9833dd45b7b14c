"""Dicts of tensors in a checkpoint: weights, wherever they are, and a normaliser's numbers beside a network."""

from collections.abc import Collection, Mapping
from typing import Any

import torch

from utils.checkpoint import is_plain

CHANNELS = 3  # as many numbers beside the network may be a mean or standard deviation


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


def normalisers(weights: Mapping[str, torch.Tensor], names: Collection[str]) -> list[str]:
    """Return name and values of tensors beside the network that may be its mean or standard deviation."""
    found = {name: weights[name] for name in names if weights[name].numel() == CHANNELS and "loss" not in name}
    return [f"{name} {' '.join(f'{x:.4g}' for x in three.flatten().tolist())}" for name, three in found.items()]
