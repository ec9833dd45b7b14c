"""What a checkpoint of any trainer records beside its weights: its network, its classes, and what images must be."""

import json
import re
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from torch import Tensor

from models.build import FORCE_TIMM, is_network
from models.data_config import (
    CROP_PCT,
    IMAGENET_MEAN,
    IMAGENET_STD,
    INTERPOLATIONS,
    SQUASH,
    UNSUPPORTED,
    crop_ratio_for,
    differing,
    from_pretrained_cfg,
)
from models.unused import flat_settings, not_used, timm_arguments, words
from utils.checkpoint import is_plain
from utils.errors import UserError

DATA_CONFIG = "data_config"
IN_TIMMS_HUB = re.compile(r"^hf[-_]hub:(?=timm/)")  # as timm's train.py takes a network: hf-hub:timm/NAME.TAG
_OF_NETWORKS = frozenset(("arch", "architecture", "model", "backbone", "encoder", "network", "net", "timm"))
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
TIMMS_DICTS = ("pretrained_cfg", "default_cfg", DATA_CONFIG)  # of timm's networks, and of its resolve_data_config
MOST_NUMBERS = 64  # larger arrays are no facts of an input
MOST_TENSORS = 8  # dicts with more are weights


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


def as_plain(value: Any, depth: int = 8) -> Any:
    """Return dicts, lists and numbers instead of namespaces, arrays, tensors and NumPy's numbers; None: it is large."""
    if depth == 0:
        return None
    if isinstance(value, Namespace | Mapping):
        entries = vars(value) if isinstance(value, Namespace) else value
        are_weights = sum(isinstance(one, Tensor) for one in entries.values()) > MOST_TENSORS
        return {} if are_weights else {key: as_plain(one, depth - 1) for key, one in entries.items()}
    if isinstance(value, list | tuple):
        return [as_plain(one, depth - 1) for one in value] if len(value) <= MOST_NUMBERS else list(value)
    if isinstance(value, Tensor):
        is_small = is_plain(value) and value.numel() <= MOST_NUMBERS
        value = np.asarray(value.tolist(), np.float32 if value.is_floating_point() else None) if is_small else None
    if isinstance(value, np.ndarray | np.generic):
        if value.size > MOST_NUMBERS:
            return None
        if value.dtype.kind == "f":  # 0.9 of float32 is 0.9, not 0.89999998
            value = value.astype(str).astype(np.float64)
        return value.flatten().tolist() if value.ndim else value.item()
    return value


def _places(entries: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Return what may be facts, what is beside the weights under the name "", then settings; and all other dicts."""
    plain = {key: as_plain(value) for key, value in entries.items()}
    beside = {key: value for key, value in plain.items() if not isinstance(value, dict)}
    settings = {key: plain[key] for key in SETTINGS if isinstance(plain.get(key), dict)}
    others = {key: value for key, value in plain.items() if isinstance(value, dict) and key not in settings}
    return {"": beside, **settings}, others


def _merged(places: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of all places, of which the first ones count, and those that differ from them."""
    merged: dict[str, Any] = {}
    differing = {}
    for name, settings in places.items():
        for key, value in settings.items():
            if value is not None and value != "" and merged.setdefault(key, value) != value:
                differing[f"{name}.{key}"] = value
    return merged, differing


def is_of_timm(entries: Mapping[str, Any]) -> bool:
    """Return whether timm's train.py wrote a checkpoint: only its arguments have this name."""
    arguments = entries.get("args")
    return "crop_pct" in (vars(arguments) if isinstance(arguments, Namespace) else arguments or ())


def is_of_2021(entries: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint has the keys of 2021, so that what it does not record was FACTS_OF_2021."""
    return DATA_CONFIG not in entries and all(key in entries for key in KEYS_OF_2021)


def recorded_arch(entries: Mapping[str, Any]) -> str | None:
    """Return the name that a checkpoint records of its network; None if it records none."""
    places, others = _places(entries)
    settings, _ = _merged({key: value for key, value in places.items() if key})
    names = [entries.get("arch"), *(settings.get(key) for key in ("arch", "model", "model_name"))]
    timms = [others[key].get("architecture") for key in TIMMS_DICTS if key in others]
    names += [FORCE_TIMM + name for name in timms if isinstance(name, str)]
    named = next((name for name in names if isinstance(name, str)), None)
    return IN_TIMMS_HUB.sub("", named) if named else _only_network(settings | others | places[""])


def _names_network(key: set[str]) -> bool:
    return bool(key & _OF_NETWORKS) and not key & {"loss", "perceptual", "teacher"}


def _only_network(settings: Mapping[str, Any]) -> str | None:
    """Return the one network of torchvision or timm that settings name, under any key that is of networks."""
    texts = [value for key, value in flat_settings(settings).items() if _names_network(words(key))]
    names = {value for value in texts if isinstance(value, str) and is_network(value)}
    return names.pop() if len(names) == 1 else None


def recorded_data_config(entries: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], str]:
    """Find what a checkpoint records of its input.

    Trainings of this project record all of it, others under the keys of _KEYS, among their settings or beside the
    weights, or in a dict of timm.

    Returns:
        fields of DataConfig; and a note that names what else may describe the input or the network, or "".

    Raises:
        UserError: this project's record has an unknown form.
    """
    own = entries.get(DATA_CONFIG)
    if not isinstance(own, dict) or not {"train_size", "crop_ratio"} & own.keys():
        return _of_other_trainers(entries)
    own = {"model_args": {}, SQUASH: False, **own}
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
    SQUASH: lambda value: isinstance(value, bool),
}
# Of other trainers' settings. An interpolation that is not supported is an error where a flag can replace it.
_IS_GIVEN: dict[str, Callable[[Any], bool]] = _VALID | {
    "interpolation": lambda value: isinstance(value, str) and value != ""
}


def _size(value: Any) -> Any:
    """Return (rows, columns) of one side, of these two, or of these with the channels before or after them."""
    if isinstance(value, list | tuple):
        return tuple(value)[:2] if len(value) == 3 and value[-1] in (1, 3) else tuple(value)[-2:]
    return (value, value) if _is_number(value) else None


def _three(values: Any) -> Any:
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


def _of_other_trainers(entries: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Read the settings of other trainers; those that were not given are None, or "" of timm's train.py."""
    places, others = _places(entries)
    settings, differ = _merged(places)
    found: dict[str, Any] = {}
    is_timms = is_of_timm(entries)
    kwargs = settings.get("model_kwargs") if is_timms else None
    if isinstance(kwargs, dict):
        settings = {key: kwargs[key] for key in ("img_size", "bn_eps") if key in kwargs} | settings
    used = {key for key, value in settings.items() if key == "in_chans" and str(value) == "3"}
    used |= {"scale"} if is_timms else set()  # of its random crops
    for field, key, convert in _KEYS:
        value = convert(settings.get(key))
        is_valid = value is not None and _IS_GIVEN[field](value)
        if is_valid and found.setdefault(field, value) == value:
            used.add(key)
    shorter: Any = settings.get("val_resize_size")
    if "crop_pct" in used:  # timm rounds the size before the crop down
        found[CROP_PCT] = found["crop_ratio"]
        found |= {} if is_timms else {SQUASH: False}  # timm's train.py squashes where timm states it
    elif "size" in found and _is_number(shorter) and shorter >= found["size"][0]:
        found["crop_ratio"] = crop_ratio_for(found["size"][0], shorter)
        used.add("val_resize_size")
    if "size" in found and "val_crop_size" not in used:  # only torchvision's references have a size for training
        found.setdefault("train_size", found["size"][0])
    if is_timms and (arguments := timm_arguments({"global_pool": settings.get("gp")}, kwargs)):
        found["model_args"] = arguments
        used |= {"gp", "model_kwargs"}
    timms = {key: value for key, value in {**settings, **others}.items() if key in TIMMS_DICTS}
    for key, stated in timms.items():
        if fields := _of_timms_dict(stated):
            used.add(key)
            differ |= {f"{key}.{name}": fields[name] for name in differing(found, fields)}
            found = _filled(found, fields)
    return found, not_used(settings | differ | others, used)


def _of_timms_dict(stated: Any) -> dict[str, Any]:
    """Return the fields of DataConfig in a dict of timm; {}: it is no such dict."""
    try:
        fields = from_pretrained_cfg(stated) if "input_size" in stated else {}
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError):
        return {}
    return fields if all(_IS_GIVEN[name](value) for name, value in fields.items() if name in _IS_GIVEN) else {}


def _filled(found: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Add the fields of another place that the first one lacks; what belongs to a crop ratio comes with it."""
    of_crop = (CROP_PCT, SQUASH, UNSUPPORTED) if "crop_ratio" in found else ()
    return {name: value for name, value in others.items() if name not in of_crop} | dict(found)
