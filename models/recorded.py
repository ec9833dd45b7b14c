"""What a checkpoint of any trainer records beside its weights: its network, its classes, and what images must be."""

import math
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from models.data_config import IMAGENET_MEAN, IMAGENET_STD, INTERPOLATIONS, crop_ratio_for
from utils.errors import UserError

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
CLASS_KEYS = ("class_names", "classes", "idx_to_class", "class_to_idx")


def settings_of(entries: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings of a training: `args` of timm and torchvision, or Lightning's `hyper_parameters`."""
    found = [entries.get(key) for key in ("args", "hyper_parameters")]
    settings = [vars(value) if isinstance(value, Namespace) else value for value in found]
    return next((value for value in settings if isinstance(value, dict)), {})


def is_of_timm(entries: Mapping[str, Any]) -> bool:
    """Return whether timm's train.py wrote a checkpoint: only its arguments have this name."""
    return "crop_pct" in settings_of(entries)


def recorded_arch(entries: Mapping[str, Any]) -> str | None:
    """Return the name that a checkpoint records of its network, as written; None if it records none."""
    settings = settings_of(entries)
    names = [entries.get("arch"), *(settings.get(key) for key in ("arch", "model", "model_name"))]
    return next((name for name in names if isinstance(name, str)), None)


def recorded_classes(entries: Mapping[str, Any]) -> tuple[list[str] | None, str]:
    """Find the class names that a checkpoint records under one of CLASS_KEYS, in the order of its logits.

    Returns:
        the names, None if it records none; and a note that tells which of these keys hold no names, or "".
    """
    places = {**settings_of(entries), **entries}
    found = {key: places[key] for key in CLASS_KEYS if places.get(key) is not None}
    names = next(filter(None, map(_in_order, found.values())), None)
    return names, f"not using {', '.join(map(repr, found))}: no list of class names" if found and not names else ""


def _in_order(value: Any) -> list[str] | None:
    """Return class names from a list, or from a dict from or to their ids; None: they are no such thing."""
    if isinstance(value, dict):
        ids = value.values()
        by_id = {i: name for name, i in value.items()} if all(isinstance(i, int) for i in ids) else value
        value = [by_id.get(i) for i in range(len(value))]
    is_names = isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)
    return list(value) if is_names else None


def recorded_data_config(entries: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return what a checkpoint records of its input: fields of DataConfig.

    Trainings of this project record all of it, timm's train.py and torchvision's references what their user gave; files
    with the keys of 2021 had the values of 2021.

    Raises:
        UserError: this project's record has an unknown form.
    """
    own, settings = entries.get(DATA_CONFIG), settings_of(entries)
    if own is None and all(key in entries for key in KEYS_OF_2021):
        return dict(FACTS_OF_2021)
    if own is None:
        found = _of_torchvision(settings) if "val_crop_size" in settings else _of_timm(settings)
        return {name: value for name, value in found.items() if _IS_GIVEN[name](value)}
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
# Of other trainers' settings. An interpolation that is not supported is an error where a flag can replace it.
_IS_GIVEN: dict[str, Callable[[Any], bool]] = {
    name: lambda value, is_valid=is_valid: value is not None and is_valid(value) for name, is_valid in _VALID.items()
} | {"interpolation": lambda value: isinstance(value, str) and value != ""}


def _of_timm(args: Mapping[str, Any]) -> dict[str, Any]:
    """Read the arguments of timm's train.py; those that were not given are None."""
    side, size = args.get("img_size"), args.get("input_size")  # the second counts: channels, rows, columns
    rows_columns = size[1:] if isinstance(size, list | tuple) else (side, side)
    ratio = args.get("crop_pct")
    if _IS_GIVEN["size"](rows_columns) and _IS_GIVEN["crop_ratio"](ratio):
        ratio = crop_ratio_for(rows_columns[0], math.floor(rows_columns[0] / ratio))
    return {
        "size": rows_columns,
        "train_size": next(iter(rows_columns), None),
        "crop_ratio": ratio,
        "interpolation": args.get("interpolation"),
        "mean": _three(args.get("mean")),
        "std": _three(args.get("std")),
        "bn_eps": args.get("bn_eps") or (1e-3 if args.get("bn_tf") else None),
    }


def _three(values: Any) -> Any:
    return list(values) * 3 if isinstance(values, list | tuple) and len(values) == 1 else values


def _of_torchvision(args: Mapping[str, Any]) -> dict[str, Any]:
    """Read the arguments of torchvision's reference training."""
    side: Any = args["val_crop_size"]
    shorter: Any = args.get("val_resize_size")
    return {
        "size": (side, side),
        "train_size": args.get("train_crop_size"),
        "crop_ratio": crop_ratio_for(side, shorter) if _IS_GIVEN["size"]((side, shorter)) else None,
        "interpolation": args.get("interpolation"),
    }
