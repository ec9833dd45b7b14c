"""What a checkpoint of any trainer records beside its weights: its network, its classes, and what images must be."""

import json
import math
import re
import reprlib
from argparse import Namespace
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from torch import Tensor

from models.data_config import IMAGENET_MEAN, IMAGENET_STD, INTERPOLATIONS, crop_ratio_for
from utils.config.dotted_keys import flatten
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


SETTINGS = ("args", "hyper_parameters", "datamodule_hyper_parameters", "hparams", "config", "cfg")


def safetensors_metadata(path: Path) -> dict[str, Any]:
    """Return what a file says beside its tensors; {} for files of torch.save. Its text is read as JSON if it is any."""
    if path.suffix != ".safetensors":
        return {}
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    return {key: _from_json(text) for key, text in metadata.items() if key != "format"}


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def settings_of(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a training, `args` of timm and torchvision or others of SETTINGS; the first ones count."""
    found = [entries.get(key) for key in reversed(SETTINGS)]
    settings = [vars(value) if isinstance(value, Namespace) else value for value in found]
    return {key: value for each in settings if isinstance(each, dict) for key, value in each.items()}


def is_of_timm(entries: Mapping[str, Any]) -> bool:
    """Return whether timm's train.py wrote a checkpoint: only its arguments have this name."""
    return isinstance(entries.get("args"), Namespace | dict) and "crop_pct" in settings_of({"args": entries["args"]})


def recorded_arch(entries: Mapping[str, Any]) -> str | None:
    """Return the name that a checkpoint records of its network, as written; None if it records none."""
    settings = settings_of(entries)
    names = [entries.get("arch"), *(settings.get(key) for key in ("arch", "model", "model_name"))]
    return next((name for name in names if isinstance(name, str)), None)


def recorded_data_config(entries: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], str]:
    """Find what a checkpoint records of its input.

    Trainings of this project record all of it, others under the keys of _KEYS, among their settings or beside the
    weights; files with the keys of 2021 had the values of 2021.

    Returns:
        fields of DataConfig; and a note that names what else may describe the input or the network, or "".

    Raises:
        UserError: this project's record has an unknown form.
    """
    own = entries.get(DATA_CONFIG)
    if own is None and all(key in entries for key in KEYS_OF_2021):
        return dict(FACTS_OF_2021), ""
    if own is None:
        beside = {key: value for key, value in entries.items() if not isinstance(value, dict | Namespace)}
        return _of_other_trainers({**settings_of(entries), **beside}, is_of_timm(entries))
    own = {"model_args": {}, **own} if isinstance(own, dict) else {}
    wrong = [name for name, is_valid in _VALID.items() if name not in own or not is_valid(own[name])]
    if wrong:
        raise UserError(f"{path}: {DATA_CONFIG} lacks {', '.join(wrong)}. Give an unchanged checkpoint of a training.")
    return {name: own[name] for name in _VALID}, ""


def _are_numbers(value: Any, count: int) -> bool:
    is_list = isinstance(value, list | tuple) and len(value) == count
    return is_list and all(map(_is_number, value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e6


_VALID: dict[str, Callable[[Any], bool]] = {
    "size": lambda value: _are_numbers(value, 2) and min(value) >= 1,
    "train_size": lambda value: _is_number(value) and value >= 1,
    "crop_ratio": lambda value: value is None or (_is_number(value) and 0 < value <= 1),
    "interpolation": INTERPOLATIONS.__contains__,
    "mean": lambda value: _are_numbers(value, 3),
    "std": lambda value: _are_numbers(value, 3) and min(value) > 0,
    "bn_eps": lambda value: value is None or (_is_number(value) and value > 0),
    "model_args": lambda value: isinstance(value, dict) and all(isinstance(key, str) for key in value),
}
# Of other trainers' settings. An interpolation that is not supported is an error where a flag can replace it.
_IS_GIVEN: dict[str, Callable[[Any], bool]] = _VALID | {
    "interpolation": lambda value: isinstance(value, str) and value != ""
}


def _size(value: Any) -> Any:
    """Return (rows, columns) of one side, of these two, or of channels, rows, columns."""
    return (value, value) if _is_number(value) else tuple(value)[-2:] if isinstance(value, list | tuple) else None


def _three(values: Any) -> Any:
    values = values.flatten().tolist() if isinstance(values, np.ndarray | Tensor) else values
    return list(values) * 3 if isinstance(values, list | tuple) and len(values) == 1 else values


# Field of DataConfig, the key that records it, its value. The first key with a valid value counts.
_KEYS: list[tuple[str, str, Callable[[Any], Any]]] = [
    *(("size", key, _size) for key in ("val_crop_size", "input_size", "img_size", "image_size")),
    ("train_size", "train_crop_size", lambda value: value),
    ("crop_ratio", "crop_pct", lambda value: value),
    ("interpolation", "interpolation", lambda value: value),
    *(("mean", key, _three) for key in ("mean", "image_mean")),
    *(("std", key, _three) for key in ("std", "image_std")),
    ("bn_eps", "bn_eps", lambda value: value),
    ("bn_eps", "bn_tf", lambda value: 1e-3 if value is True else None),
]


def _of_other_trainers(settings: Mapping[str, Any], is_timms: bool) -> tuple[dict[str, Any], str]:
    """Read settings; those that were not given are None, or "" of timm's train.py."""
    found: dict[str, Any] = {}
    kwargs = settings.get("model_kwargs") if is_timms else None
    if isinstance(kwargs, dict):
        settings = {**{key: kwargs[key] for key in ("img_size", "bn_eps") if key in kwargs}, **_given(settings)}
    used = {key for key, value in settings.items() if key == "in_chans" and str(value) == "3"}
    for field, key, convert in _KEYS:
        value = convert(settings.get(key))
        is_valid = value is not None and _IS_GIVEN[field](value)
        if is_valid and found.setdefault(field, value) == value:
            used.add(key)
    shorter: Any = settings.get("val_resize_size")
    if "crop_pct" in used and "size" in found:  # timm rounds the size before the crop down
        found["crop_ratio"] = crop_ratio_for(found["size"][0], math.floor(found["size"][0] / found["crop_ratio"]))
    elif "size" in found and _is_number(shorter) and shorter >= found["size"][0]:
        found["crop_ratio"] = crop_ratio_for(found["size"][0], shorter)
        used.add("val_resize_size")
    if "size" in found and "val_crop_size" not in used:  # only torchvision's references have a size for training
        found.setdefault("train_size", found["size"][0])
    if is_timms and (arguments := timm_arguments({"global_pool": settings.get("gp")}, kwargs)):
        found["model_args"] = arguments
        used |= {"gp", "model_kwargs"}
    return found, _not_used(settings, used)


# What describes no network, or is another field of DataConfig, or is only of interest in training.
_NO_ARGUMENTS = ("num_classes", "in_chans", "img_size", "bn_eps", "checkpoint_path")


def timm_arguments(*places: Any) -> dict[str, Any]:
    """Return the arguments of timm.create_model, from dicts of them, that make another network than the usual one."""
    arguments = {str(key): value for place in places if isinstance(place, dict) for key, value in place.items()}
    return {
        key: value
        for key, value in arguments.items()
        if value is not None and key not in _NO_ARGUMENTS and not key.startswith("pretrained") and "drop" not in key
    }


# Words of keys that may describe the input or the network, unless the key has one of the others too.
_FACTS = "size resolution crop resize mean std interpolation pool gp chans channels normalize normalization normalise "
_FACTS += "transform transforms preprocessing input img image eps rgb bgr kwargs"
_OTHERS = "batch train opt optimizer optim kernel hidden patch loader queue step world dataset layer last save path "
_OTHERS += "paths dir folder root loss"


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if value is not None}


def _not_used(settings: Mapping[str, Any], used: Collection[str]) -> str:
    """Name the settings that may describe the input or the network, and whose values were not used."""
    found = []
    for key, value in flatten({key: value for key, value in settings.items() if key not in used}).items():
        words = set(re.split(r"[\W_]+", key.lower()))
        is_plain = isinstance(value, str | int | float | list | tuple) and bool(value)
        if is_plain and words & set(_FACTS.split()) and not words & set(_OTHERS.split()):
            found.append(f"{key} {reprlib.repr(value)}")
    return f"not using {', '.join(found)}" if found else ""
