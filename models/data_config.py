"""What a network expects of its input ("data config" in timm), with batch norm's eps: found in one order everywhere.

The order: what the user gave, what the weights' file records, what the network's library states, the values of 2021.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torchvision

from utils.errors import UserError

# The values of the 2021 recipe (Yun et al., 2021): ImageNet's mean and standard deviation, torchvision's resizing.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
OF_2021: dict[str, Any] = {
    "size": (224, 224),
    "train_size": 224,
    "crop_ratio": 0.875,
    "interpolation": "bilinear",
    "mean": IMAGENET_MEAN,
    "std": IMAGENET_STD,
    "bn_eps": None,
    "model_args": {},
}
INTERPOLATIONS = ("bilinear", "bicubic", "lanczos")
NUMBERS_AGREE = 1e-6
# With their published weights, torchvision builds these two so that they convert images (transform_input) that are
# normalised as the others' are. The networks here do not: their mean and std are different instead.
CONVERT_INPUT = ("googlenet", "inception_v3")
CROP_PCT = "crop_pct"  # beside timm's crop_ratio, which is right at its size only
SQUASH = "squash"  # of the same place as the crop_ratio
UNSUPPORTED = "unsupported"  # the key of what timm does to an image and this project cannot do
LARGEST_IN_UNIT_RANGE = 1.5  # a mean or std above it is for pixels in [0, 255]
IN_255 = "in_255"


@dataclass(frozen=True, slots=True)
class DataConfig:
    """What a network expects of its input.

    Fields:
        size: (rows, columns) that it is evaluated at, pixels.
        train_size: side of its training crops, pixels.
        crop_ratio: evaluation resizes the shorter side to ceil(size / crop_ratio); None squashes the whole image.
        squash: whether it resizes both sides so, before it cuts out the centre.
        interpolation: how images are resized, always antialiased: one of INTERPOLATIONS.
        mean, std: of the normalisation, per RGB channel, for pixels in [0, 1].
        bn_eps: added to the variance in batch norm; None: as the network's library builds it.
        model_args: of timm.create_model, with which the network is built, such as global_pool.
        source: text that names the values and where each comes from.
    """

    size: tuple[int, int]
    train_size: int
    crop_ratio: float | None
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bn_eps: float | None
    model_args: Mapping[str, Any]
    squash: bool = False
    source: str = ""

    @property
    def side(self) -> int:
        """Side of the square evaluation crop: the number of its rows."""
        return self.size[0]

    def as_record(self) -> dict[str, Any]:
        """Return the values as plain lists and numbers, for a checkpoint's entry `data_config`."""
        values = asdict(self)
        del values["source"]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def resolve(found: Sequence[tuple[str, Mapping[str, Any]]], flags: str) -> DataConfig:
    """Take each value from the first place that has it; mean and std for pixels in [0, 255] are converted.

    Args:
        found: (place, field -> value) in order, what the user gave first: what it replaces is named in the text; None
            is a value (of crop_ratio, bn_eps).
        flags: the flags that change the values, that of the size among them.

    Raises:
        UserError: images are to be resized in a way that is not supported.
    """
    found = [(place, _in_unit_range(own)) for place, own in found]
    places = [*found, (f"as in 2021; {flags} change it", OF_2021)]
    values: dict[str, Any] = {}
    texts: dict[str, list[str]] = {place: [] for place, _ in places}
    for name in OF_2021:
        place, own = next((place, own) for place, own in places if name in own)
        value = own[name]
        if name == "crop_ratio" and CROP_PCT in own and value is not None:
            value = crop_ratio_for(values["size"][0], math.floor(values["size"][0] / own[CROP_PCT]))
        values[name] = tuple(value) if isinstance(value, list) else value
        if name == "crop_ratio":
            squashing = [own, *(later for _, later in places if CROP_PCT in own)]  # of timm's networks, if not recorded
            values[SQUASH] = next((one[SQUASH] for one in squashing if SQUASH in one), False)
        if name == "train_size" or (name == "bn_eps" and value is None) or value == {}:
            continue
        texts[place].append(_text(name, value) + " of the squashed image" * (name == "crop_ratio" and values[SQUASH]))
        if name == "crop_ratio" and UNSUPPORTED in own:
            texts[place][-1] += f" (timm {own[UNSUPPORTED]}, which is not supported)"
        if name in ("mean", "std") and IN_255 in own:
            texts[place][-1] += " (divided by 255)"
        expected = next((own[name] for _, own in found[1:] if name in own), value)
        if place == found[0][0] and differ(expected, value):
            texts[place][-1] += f" instead of {_text(name, expected)}"
    if values["interpolation"] not in INTERPOLATIONS:
        raise UserError(
            f"found images resized by {values['interpolation']!r}; expected {', '.join(INTERPOLATIONS)}. Give the "
            f"nearest of these: {_flag(flags, 'interpolation')}"
        )
    rows, columns = values["size"]
    if rows != columns and "size" not in found[0][1]:  # `annotate` may be given one that is not square
        raise UserError(
            f"found images of {rows} x {columns} pixels; expected square ones. Give a size: {_flag(flags, 'size')}"
        )
    source = "; ".join(f"{', '.join(parts)} ({place})" for place, parts in texts.items() if parts)
    return DataConfig(**values, source=source)


def _flag(flags: str, name: str) -> str:
    """Return the last of the flags whose name ends so."""
    return ([flag for flag in re.findall(r"--[\w.]+", flags) if flag.endswith(name)] or [flags])[-1]


def _in_unit_range(own: Mapping[str, Any]) -> Mapping[str, Any]:
    """Convert mean and std for pixels in [0, 255] into those for pixels in [0, 1]."""
    numbers = {name: own[name] for name in ("mean", "std") if name in own}
    if max(map(max, numbers.values()), default=0) <= LARGEST_IN_UNIT_RANGE:
        return own
    return {**own, IN_255: True} | {name: tuple(value / 255 for value in three) for name, three in numbers.items()}


def _text(name: str, value: Any) -> str:
    if name == "size":
        return f"{value[0]} x {value[1]} pixels"
    if name == "crop_ratio":
        return "the whole image squashed" if value is None else f"crop ratio {value:.4g}"
    if name in ("mean", "std"):
        return f"{name} {' '.join(f'{number:g}' for number in value)}"
    if name == "bn_eps":
        return "the network's own" if value is None else f"batch norm eps {value:g}"
    if name == "model_args":
        return ", ".join(f"{key} {argument}" for key, argument in value.items())
    return str(value)


def differ(one: Any, other: Any) -> bool:
    """Return whether two values of a field differ by more than a rounding."""
    if isinstance(one, str | Mapping) or one is None or other is None:
        return bool(one != other)
    pairs = zip(one, other, strict=True) if isinstance(one, Sequence) else [(one, other)]
    return any(abs(a - b) > NUMBERS_AGREE for a, b in pairs)


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the fields that both have and that differ; of crop ratios the share that timm states, if both have it."""
    both = one.keys() & other.keys()
    both -= {"crop_ratio"} if CROP_PCT in both else set()
    return sorted(name for name in both if differ(one[name], other[name]))


def stated_by_timm(name: str) -> dict[str, Any]:
    """Return what timm states for one of its networks: the values that its validate.py uses."""
    import timm

    stated = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return from_pretrained_cfg(stated.to_dict() if stated else {})


def from_pretrained_cfg(stated: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of DataConfig that a pretrained_cfg of timm states, its test size if it has one."""
    from timm.data import resolve_data_config

    config = resolve_data_config(pretrained_cfg=stated, use_test_size=True)
    rows, columns = config["input_size"][1:]
    # timm resizes the shorter side to floor(size / crop_pct), this project to ceil(size / crop_ratio): `resolve` finds
    # the ratio that does the same at another size.
    ratio = crop_ratio_for(rows, math.floor(rows / config["crop_pct"]))
    is_squashed = config["crop_mode"] == "squash" and config["crop_pct"] <= 1
    is_whole = is_squashed and config["crop_pct"] == 1
    unsupported = "fits the whole image into the square and pads it" * (config["crop_mode"] == "border")
    if config["crop_pct"] > 1:
        unsupported, ratio = f"pads images at crop_pct {config['crop_pct']:g}", 1.0
    return {
        "size": (rows, columns),
        "train_size": (stated.get("input_size") or config["input_size"])[1],
        "crop_ratio": None if is_whole else ratio,
        CROP_PCT: min(config["crop_pct"], 1),
        SQUASH: is_squashed and not is_whole,
        **({UNSUPPORTED: unsupported} if unsupported else {}),
        "interpolation": config["interpolation"],
        "mean": tuple(config["mean"]),
        "std": tuple(config["std"]),
    }


def stated_by_torchvision(arch: str) -> dict[str, Any]:
    """Return what torchvision states for the default weights of a network."""
    preset = torchvision.models.get_model_weights(arch).DEFAULT.transforms()
    (side,), (shorter,) = preset.crop_size, preset.resize_size
    half = (0.5, 0.5, 0.5) if arch in CONVERT_INPUT else None
    return {
        "size": (side, side),
        "train_size": side,
        "crop_ratio": crop_ratio_for(side, shorter),
        "interpolation": preset.interpolation.value,
        "mean": half or tuple(preset.mean),
        "std": half or tuple(preset.std),
    }


def crop_ratio_for(side: int, shorter: int) -> float:
    """Return the crop ratio with which the shorter side becomes exactly this many pixels: ceil(side / ratio)."""
    ratio = side / shorter
    return ratio if math.ceil(side / ratio) == shorter else math.nextafter(ratio, 1)
