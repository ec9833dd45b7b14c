"""Settings of other trainers that may describe the input or the network and are not used, which is said."""

import re
import reprlib
from collections.abc import Collection, Mapping
from typing import Any

from utils.config.dotted_keys import flatten

# Words of keys that may describe the input or the network, unless the last part of the key has one of the others too,
# or any part one that is of no network.
_FACTS = "size resolution crop resize mean std interpolation pool gp chans channels normalize normalization normalise "
_FACTS += "transform transforms preprocess preprocessing preprocessor input img image eps epsilon rgb bgr color colour "
_FACTS += "imgsz sz presize rescale colorspace"
_WHOLE_KEYS = ("channel_order", "scale")  # whose words mean other things in other keys
_OTHERS = "batch train opt kernel hidden patch queue step world layer last save path paths dir folder root loss "
_OTHERS += "smoothing loader lr noise jitter aug"
_OF_NO_NETWORK = "opt optimizer optim scheduler callbacks loss adam scaler amp"
_IF_FALSE = "rgb normalize normalization normalise mean std rescale"  # without them, images are prepared otherwise
_IN_TEXT = re.compile(r"\b\w*(?:mean|std|rgb|bgr|interpolation|img_size|image_size|crop_size)\b(?=[\"']?\s*[=:])")
_OF_NETWORK = re.compile(r"(^|[._])(model|net|network|backbone|encoder|timm)(_?(kw)?(args|cfg|config|params))?$")
_NAMES = ("name", "model_name", "model", "type", "arch", "architecture", "_target_")
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


def flat_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted key -> value, also of the dicts in lists, under their numbers."""

    def tree(value: Any) -> Any:
        if isinstance(value, list) and any(isinstance(one, dict) for one in value):
            value = dict(enumerate(value))
        return {key: tree(one) for key, one in value.items()} if isinstance(value, Mapping) else value

    return flatten(tree(settings))


def words(key: str) -> set[str]:
    """Return the words of a key in lower case: of image_size, imageSize and image-size the same."""
    return set(re.split(r"[\W_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key).lower()))


def not_used(settings: Mapping[str, Any], used: Collection[str]) -> str:
    """Name the settings that may describe the input, or are arguments of the network, and that were not used."""
    found = []
    for key, value in flat_settings({key: value for key, value in settings.items() if key not in used}).items():
        named = dict.fromkeys(_IN_TEXT.findall(value)) if isinstance(value, str) and "\n" in value else {}
        if named:
            found.append(f"{key}, a text with {', '.join(named)}")
        elif isinstance(value, str | int | float | list | tuple) and (_is_fact(key, value) or _is_argument(key, value)):
            found.append(f"{key} {reprlib.repr(value)}")
    return f"not using {', '.join(found)}" if found else ""


def _is_fact(key: str, value: Any) -> bool:
    key = re.sub("(batch|layer)_norm", "norm", key, flags=re.IGNORECASE)
    last = key.rpartition(".")[2]
    is_meant = last.lower() in _WHOLE_KEYS or words(key) & set(_FACTS.split())
    is_other = words(last) & set(_OTHERS.split()) or words(key) & set(_OF_NO_NETWORK.split())
    is_default = value == 3 and words(last) & {"chans", "channels"}
    return bool(is_meant and not is_other and not is_default and (value or words(last) & set(_IF_FALSE.split())))


def _is_argument(key: str, value: Any) -> bool:
    place, _, last = key.rpartition(".")
    return bool(_OF_NETWORK.search(place) and timm_arguments({last: value}) and last not in _NAMES)
