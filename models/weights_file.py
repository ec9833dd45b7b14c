"""What is in a weights file of any trainer: the weights, named as the network names them, and what it records."""

import reprlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.beside import timm_config_beside
from models.build import FORCE_TIMM, networks_named, tensor_shapes
from models.recorded import (
    is_of_timm,
    recorded_arch,
    recorded_classes,
    recorded_data_config,
)
from utils.checkpoint import is_plain, load_checkpoint
from utils.errors import UserError

# The entries of a checkpoint that hold its weights, tried in this order.
WEIGHTS = ("state_dict", "model", "model_state_dict", "net", "network")
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "ema_model", "model_ema_state_dict")
AVERAGED_IN = ("module", "shadow")  # one level deeper, in some trainers
# What trainers and wrappers put before every tensor's name: DataParallel, torch.compile, Lightning, and others.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
# Of second classifiers that only training uses, in Inception-v3 and GoogLeNet.
AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """The content of a weights file.

    Fields:
        path: of the file.
        state_dicts: name -> parameter name -> tensor; "model", and "ema" if the file has averaged weights too.
        arch: the network, as for models.build.library_of: the recorded one; or, if another was given and only the
            one of this name in the other library has these tensors, that one; None: not recorded.
        class_names: of the K classes, in the order of the logits; None: not recorded.
        recorded: what it records of its input: fields of DataConfig.
        note: how the file was read, if it is another trainer's; else "".
    """

    path: Path
    state_dicts: dict[str, dict[str, torch.Tensor]]
    arch: str | None
    class_names: list[str] | None
    recorded: dict[str, Any]
    note: str

    @property
    def preferred(self) -> str:
        """Name of the weights to use if only one can be: the averaged ones, if there are any."""
        return "ema" if "ema" in self.state_dicts else "model"


def read_weights_file(path: Path, arch: str | None = None) -> WeightsFile:
    """Read a checkpoint of this project or of another trainer, or bare weights; nothing in the file is executed.

    Args:
        path: of the file.
        arch: the network that the weights are for, as for models.build.library_of; None: the one that the file names.

    Raises:
        UserError: the file cannot be read or has no weights, or what it records has an unknown form.
    """
    content = load_checkpoint(path)
    found, notes = find_weights(content, path)
    entries = content if isinstance(content, dict) and not are_weights(content) else {}
    class_names, class_note = recorded_classes(entries)
    name = recorded_arch(entries)
    network = fitting_network(name or arch, is_of_timm(entries), next(iter(found.values())))
    if name and network != name:
        reason = "timm's train.py wrote the file" if is_of_timm(entries) else "the tensors are of that one"
        notes.append(f"{name} means {network}: {reason}")
    beside = None if entries else timm_config_beside(path)
    own = _names(arch or network or (beside.arch if beside else None))
    stripped = {key: own_tensors(weights, own) for key, weights in found.items()}
    notes += [*(note for _, note in stripped.values()), class_note]
    return WeightsFile(
        path,
        {key: weights for key, (weights, _) in stripped.items()},
        network if name or network != arch else None,
        class_names,
        recorded_data_config(entries, path),
        ", ".join(dict.fromkeys(filter(None, notes))),
    )


def fitting_network(name: str | None, is_timms: bool, weights: Mapping[str, torch.Tensor]) -> str | None:
    """Choose the library of a name that torchvision and timm both have: the one whose network has these tensors.

    Args:
        name: of a network; None: none is known.
        is_timms: whether timm's train.py wrote the file, so that a name without library is rather timm's.
        weights: as in the file.
    """
    if name is None:
        return None
    networks = sorted(networks_named(name), key=lambda network: is_timms and not network.startswith(FORCE_TIMM))
    own = {network: _names(network) for network in networks}
    return max(networks, key=lambda network: len(own[network] & own_tensors(weights, own[network])[0].keys()))


def _names(arch: str | None) -> frozenset[str]:
    """Return the names of a network's tensors; none if it is unknown, which is reported where it is built."""
    try:
        return frozenset(tensor_shapes(arch)) if arch else frozenset()
    except UserError:
        return frozenset()


def find_weights(content: Any, path: Path) -> tuple[dict[str, dict[str, torch.Tensor]], list[str]]:
    """Find the weights in a checkpoint, bare or wrapped.

    Returns:
        name -> state_dict: 'model', and 'ema' if there are averaged weights too; and notes: their unusual keys.

    Raises:
        UserError: there are no weights.
    """
    entries = dict(content) if isinstance(content, dict) else {}
    for key in AVERAGED:
        inner = entries[key] if isinstance(entries.get(key), dict) else {}
        entries[key] = next((inner[name] for name in AVERAGED_IN if are_weights(inner.get(name))), entries.get(key))
    entries = {key: value for key, value in entries.items() if value is not None or key not in AVERAGED}
    model = next((key for key in WEIGHTS if are_weights(entries.get(key))), None)
    averaged = next((key for key in AVERAGED if are_weights(entries.get(key))), None)
    if model is None and are_weights(entries):
        return {"model": entries}, []
    found = {name: key for name, key in (("model", model or averaged), ("ema", model and averaged)) if key}
    is_damaged = entries.get(AVERAGED[0]) is not None and averaged != AVERAGED[0]
    unread = [key for key in AVERAGED if entries.get(key) not in (None, {}) and not are_weights(entries[key])]
    if not found or is_damaged:
        keys = ", ".join(map(reprlib.repr, list(entries)[:8]))
        raise UserError(
            f"{path} contains no weights: expected a dict of plain tensors, or one with the key "
            f"{', '.join(map(repr, WEIGHTS))} or, averaged, {', '.join(map(repr, AVERAGED))}; found a "
            f"{type(content).__name__} {keys}"
        )
    notes = [f"the key {key!r}" for key in found.values() if key not in ("state_dict", "state_dict_ema")]
    notes += [f"not using {key!r}, which holds no dict of tensors" for key in unread]
    return {name: entries[key] for name, key in found.items()}, notes


def own_tensors(weights: Mapping[str, torch.Tensor], own: Collection[str]) -> tuple[dict[str, torch.Tensor], str]:
    """Strip prefixes that most names share, and leave out entries that do not belong to the network.

    Args:
        weights: tensors with the names in the file.
        own: the network's names, whose own prefixes stay; empty: it is unknown.

    Returns:
        the tensors, and a note of what was stripped and left out, or "".
    """
    # The number of averaged updates (torch's AveragedModel) is no tensor of the network.
    names = {name: name for name in weights if name != "n_averaged"}
    stripped, left_out, notes = "", 0, []
    while prefix := _shared_prefix(names, own):
        stripped += prefix
        left_out += sum(not old.startswith(prefix) for old in names)
        names = {old.removeprefix(prefix): name for old, name in names.items() if old.startswith(prefix)}
    if stripped:
        notes.append(f"without the prefix {stripped!r}" + f" and {left_out} tensors that lack it" * bool(left_out))
    auxiliary = [name for name in names if own and name not in own and name.startswith(AUXILIARY)]
    if auxiliary:
        notes.append(f"without {len(auxiliary)} tensors of auxiliary classifiers")
    return {short: weights[name] for short, name in names.items() if short not in auxiliary}, ", ".join(notes)


def _shared_prefix(names: Collection[str], own: Collection[str]) -> str | None:
    """Return the wrapper's prefix that most names share; None: they share none, or are mostly the network's own."""
    if 2 * sum(name in own for name in names) > len(names):
        return None
    return next((p for p in PREFIXES if 2 * sum(name.startswith(p) for name in names) > len(names)), None)


def are_weights(value: Any) -> bool:
    """Return whether a value is a dict of plain tensors with names."""
    return (
        isinstance(value, dict)
        and len(value) > 0
        and all(isinstance(n, str) and isinstance(v, torch.Tensor) and is_plain(v) for n, v in value.items())
    )
