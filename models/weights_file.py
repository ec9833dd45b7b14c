"""What is in a weights file of any trainer: the weights, and the class names and input values that it records."""

import reprlib
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.data_config import IMAGENET_MEAN, IMAGENET_STD, INTERPOLATIONS
from utils.checkpoint import is_plain, load_checkpoint
from utils.errors import UserError

# The entries of a checkpoint that hold its weights, tried in this order.
WEIGHTS = ("state_dict", "model", "model_state_dict", "net", "network")
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
# What trainers and wrappers put before every tensor's name: DataParallel, torch.compile, Lightning, and others.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
DATA_CONFIG = "data_config"
KEYS_OF_2021 = ("epoch", "arch", "state_dict", "accuracy", "optimizer")
# What trainings with these keys used, those of 2021 and of this project before it recorded its data config.
FACTS_OF_2021 = {
    "crop_ratio": 0.875,
    "interpolation": "bilinear",
    "mean": IMAGENET_MEAN,
    "std": IMAGENET_STD,
    "bn_eps": 1e-5,
}


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """The content of a weights file.

    Fields:
        path: of the file.
        state_dicts: name -> parameter name -> tensor; "model", and "ema" if the file has averaged weights too.
        arch: the network's name, as written; None: not recorded.
        class_names: of the K classes, in the order of the logits; None: not recorded.
        recorded: what it records of its input: fields of DataConfig.
        note: how the weights were found, if they do not lie in `state_dict` or are not bare; else "".
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


def read_weights_file(path: Path) -> WeightsFile:
    """Read a checkpoint of this project or of another trainer, or bare weights; nothing in the file is executed.

    Raises:
        UserError: the file cannot be read or has no weights, or what it records has an unknown form.
    """
    content = load_checkpoint(path)
    state_dicts, note = find_weights(content, path)
    wrapped = isinstance(content, dict) and not are_weights(content)
    entries: Mapping[str, Any] = content if wrapped else {}
    args = entries.get("args")
    arch = entries.get("arch") or (getattr(args, "model", None) if isinstance(args, Namespace) else None)
    return WeightsFile(
        path,
        state_dicts,
        arch if isinstance(arch, str) else None,
        recorded_classes(entries, path),
        recorded_data_config(entries, path),
        note,
    )


def find_weights(content: Any, path: Path) -> tuple[dict[str, dict[str, torch.Tensor]], str]:
    """Find the weights in a checkpoint, bare or wrapped, and strip prefixes that wrappers put before every name.

    Returns:
        name -> state_dict: 'model', and 'ema' if there are averaged weights too; and a note, as in WeightsFile.

    Raises:
        UserError: there are no weights.
    """
    entries = content if isinstance(content, dict) else {}
    model = next((key for key in WEIGHTS if are_weights(entries.get(key))), None)
    averaged = next((key for key in AVERAGED if are_weights(entries.get(key))), None)
    if model is None and are_weights(entries):
        weights, note = strip_prefixes(entries)
        return {"model": weights}, note
    found = {name: key for name, key in (("model", model or averaged), ("ema", model and averaged)) if key}
    is_damaged = entries.get(AVERAGED[0]) is not None and averaged != AVERAGED[0]
    if not found or is_damaged:
        keys = ", ".join(map(reprlib.repr, list(entries)[:8]))
        raise UserError(
            f"{path} contains no weights: expected a dict of plain tensors, or one with the key "
            f"{', '.join(map(repr, WEIGHTS))} or, averaged, {', '.join(map(repr, AVERAGED))}; found a "
            f"{type(content).__name__} {keys}"
        )
    stripped = {name: strip_prefixes(entries[key]) for name, key in found.items()}
    notes = [f"the key {key!r}" for key in found.values() if key not in ("state_dict", "state_dict_ema")]
    notes += [note for _, note in stripped.values() if note]
    return {name: weights for name, (weights, _) in stripped.items()}, ", ".join(dict.fromkeys(notes))


def strip_prefixes(weights: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], str]:
    """Strip prefixes that all names share, and leave out entries that do not belong to the network."""
    # The number of averaged updates (torch's AveragedModel) is no tensor of the network.
    names = {name: name for name in weights if name != "n_averaged"}
    stripped, left_out = "", 0
    while prefix := next((p for p in PREFIXES if 2 * sum(old.startswith(p) for old in names) > len(names)), None):
        stripped += prefix
        left_out += sum(not old.startswith(prefix) for old in names)
        names = {old.removeprefix(prefix): name for old, name in names.items() if old.startswith(prefix)}
    note = f"without the prefix {stripped!r}" if stripped else ""
    if left_out:
        note += f" and without {left_out} tensors that lack it"
    return {short: weights[name] for short, name in names.items()}, note


def are_weights(value: Any) -> bool:
    """Return whether a value is a dict of plain tensors with names."""
    return (
        isinstance(value, dict)
        and len(value) > 0
        and all(isinstance(n, str) and isinstance(v, torch.Tensor) and is_plain(v) for n, v in value.items())
    )


def recorded_classes(entries: Mapping[str, Any], path: Path) -> list[str] | None:
    """Return the class names that a checkpoint records, in the order of its logits; None if it records none.

    They are its `class_names` (this project), `classes`, or `class_to_idx` (torchvision's image folders).

    Raises:
        UserError: they are not a list of strings.
    """
    order = entries.get("class_to_idx")
    if isinstance(order, dict) and sorted(map(repr, order.values())) == sorted(map(repr, range(len(order)))):
        order = sorted(order, key=order.__getitem__)
    key = next((key for key in ("class_names", "classes") if entries.get(key) is not None), "class_to_idx")
    names = order if key == "class_to_idx" else entries[key]
    if not (names is None or (isinstance(names, list) and all(isinstance(name, str) for name in names))):
        raise UserError(f"{path}: {key} is not a list of strings. Give a checkpoint of a training run.")
    return names


def recorded_data_config(entries: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return what a checkpoint records of its input: fields of DataConfig.

    Trainings of this project record all of it; timm's train.py records in `args` what its user gave; files with the
    keys of 2021 had the values of 2021.

    Raises:
        UserError: a value has an unknown form.
    """
    own, args = entries.get(DATA_CONFIG), entries.get("args")
    if own is None and all(key in entries for key in KEYS_OF_2021):
        return dict(FACTS_OF_2021)
    if own is None:
        return _given_to_timm(vars(args)) if isinstance(args, Namespace) else {}
    wrong = [name for name, is_valid in _VALID.items() if name not in own or not is_valid(own[name])]
    if wrong:
        raise UserError(f"{path}: {DATA_CONFIG} lacks {', '.join(wrong)}. Give an unchanged checkpoint of a training.")
    return {name: own[name] for name in _VALID}


def _are_numbers(value: Any, count: int) -> bool:
    is_list = isinstance(value, list | tuple) and len(value) == count
    return is_list and all(map(_is_number, value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value < 1e6


_VALID: dict[str, Callable[[Any], bool]] = {
    "size": lambda value: _are_numbers(value, 2) and min(value) >= 1,
    "train_size": lambda value: _is_number(value) and value >= 1,
    "crop_ratio": lambda value: value is None or (_is_number(value) and 0 < value <= 1),
    "interpolation": INTERPOLATIONS.__contains__,
    "mean": lambda value: _are_numbers(value, 3),
    "std": lambda value: _are_numbers(value, 3) and min(value) > 0,
    "bn_eps": lambda value: value is None or (_is_number(value) and value > 0),
}


def _given_to_timm(args: Mapping[str, Any]) -> dict[str, Any]:
    """Read the arguments of timm's train.py; those that were not given are None."""
    size = args.get("img_size") or (args.get("input_size") or [None])[-1]
    found = {
        "size": (size, size) if size else None,
        "train_size": size,
        "crop_ratio": args.get("crop_pct"),
        "interpolation": args.get("interpolation") or None,
        "mean": args.get("mean"),
        "std": args.get("std"),
        "bn_eps": args.get("bn_eps"),
    }
    return {name: value for name, value in found.items() if value is not None and _VALID[name](value)}
