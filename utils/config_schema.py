"""Types, ranges and choices of every key of configs/base.yaml. Defaults live there and only there."""

import math
import re
import types
from inspect import isclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")  # 18 digits fit into 64 bits
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_BOOLEANS = {"true": True, "false": False}
_NULL_WORDS = ("none", "null")
_TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_RANGE_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def _not_a_null_word(text: str) -> str:
    if text.lower() in _NULL_WORDS:
        raise ValueError("null is for optional keys")
    return text


def _meeting_point(url: str) -> str:
    match = re.fullmatch(r"tcp://[^/\s]+:([0-9]{1,5})", url)
    if not match or not 1 <= int(match[1]) <= 65535:
        raise ValueError("not tcp://host:port")
    return url


Text = Annotated[str, AfterValidator(_not_a_null_word), Field(description="'' where none is wanted")]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
MinusOneOrMore = Annotated[int, Field(ge=-1)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Base of all sections: no conversion between types, no unknown key, no key left out, no infinity."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Model(Section):
    arch: Annotated[str, AfterValidator(_not_a_null_word), Field(min_length=1, description="the name of a network")]


class Relabel(Section):
    use: bool
    path: Text
    supervision: Literal["localized_multi", "localized_single", "global_multi", "global_single"]
    fill: float
    temperature: Annotated[float, Field(gt=0)]
    ground_truth_weight: Share
    box_axes: Literal["xy", "yx"]


class CutMix(Section):
    prob: Share
    beta: NonNegative
    off_epoch: Count


class Data(Section):
    dataset: Literal["imagenet"]
    data_path: Text
    image_size: Positive
    rrc_minimum: Annotated[float, Field(gt=0, le=1)]
    crop_ratio: Annotated[float | None, Field(gt=0, le=1)]
    test_size: Annotated[int | None, Field(ge=1)]
    flip_prob: Share
    color_jitter: Share
    lighting: NonNegative
    relabel: Relabel
    cutmix: CutMix


class BatchNorm(Section):
    momentum: Annotated[float | None, Field(ge=0, le=1)]
    eps: Annotated[float | None, Field(gt=0)]


class LearningRate(Section):
    init: NonNegative
    decay_type: Literal["cos", "linear", "default"]


class WarmUp(Section):
    lr: NonNegative
    epochs: Count


class WeightDecay(Section):
    base: NonNegative


class Ema(Section):
    decay: BelowOne


class Optim(Section):
    optimizer: Literal["sgd", "adamp"]
    epochs: Positive
    start_epoch: int  # any other than 0 is refused by a rule that says why
    batch_size: Positive
    accumulation: Positive
    bn: BatchNorm
    lr: LearningRate
    warmup: WarmUp
    nesterov: bool
    momentum: BelowOne
    wd: WeightDecay
    label_smoothing: BelowOne
    clip_grad_norm: NonNegative
    ema: Ema


class Distributed(Section):
    use: bool
    num_processes_per_node: Positive
    url: Annotated[str, AfterValidator(_meeting_point), Field(description="tcp://HOST:PORT")]
    backend: Literal["auto", "nccl", "gloo"]


class Compute(Section):
    seed: MinusOneOrMore
    gpu: MinusOneOrMore
    opt_level: Annotated[
        Literal["O0", "O1", "O2", "bf16"],
        Field(description="O3, pure float16, is refused as unsafe: O1 or bf16 are the fast ones"),
    ]
    num_workers: Count
    compile: bool
    distributed: Distributed


class Util(Section):
    run_dir: Text
    print_freq: Positive
    val_batch_size: Positive
    checkpoint_minutes: NonNegative
    tensorboard: bool
    test_only: bool
    test_weight_file: Text
    print_config: bool


class Config(Section):
    """The whole tree of base.yaml."""

    model: Model
    data: Data
    optim: Optim
    compute: Compute
    util: Util


def _is_section(annotation: object) -> bool:
    return isclass(annotation) and issubclass(annotation, Section)


def _leaves(section: type[BaseModel], prefix: str = "") -> dict[str, FieldInfo]:
    found: dict[str, FieldInfo] = {}
    for name, field in section.model_fields.items():
        annotation: Any = field.annotation
        found |= _leaves(annotation, f"{prefix}{name}.") if _is_section(annotation) else {prefix + name: field}
    return found


LEAVES = _leaves(Config)
"""Every dotted key with its pydantic field, in the order of base.yaml."""

SECTIONS = {key.rsplit(".", depth)[0] for key in LEAVES for depth in range(1, key.count(".") + 1)}
"""Every dotted section."""


def keys_below(place: str) -> tuple[str, ...]:
    """Every key of a section; of a key, itself; of a name that is neither, none."""
    return tuple(key for key in LEAVES if key == place or key.startswith(place + "."))


def _kinds(key: str) -> tuple[Any, ...]:
    """The types that a key may have: (int,), (float, NoneType), (str,); the type of its choices for a choice."""
    annotation = LEAVES[key].annotation
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def choices(key: str) -> tuple[str, ...]:
    """The allowed values of a key with choices, else ()."""
    annotation = LEAVES[key].annotation
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def number(text: str) -> int | float | str:
    """The number that a text is in YAML 1.2, else the text: 1e-3 is one, 010 is ten; 1_0, 0x1 and 1e400 are none."""
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text) and math.isfinite(value := float(text)):
        return value
    return text


def boolean(text: str) -> bool | str:
    """true and false in any case; anything else stays the text that it is."""
    return _BOOLEANS.get(text.lower(), text)


def null(key: str, text: str) -> str | None:
    """None for `none` and `null` where the key is optional; anything else stays the text that it is."""
    return None if types.NoneType in _kinds(key) and text.lower() in _NULL_WORDS else text


def convert_flag(key: str, text: str) -> object:
    """The value of a command-line flag by its key's declared type; a text that does not fit is left for `validate`."""
    kinds = _kinds(key)
    if null(key, text) is None:
        return None
    if bool in kinds:
        return boolean(text)
    return number(text) if int in kinds or float in kinds else text


def expected(key: str) -> str:
    """What a key accepts, in words: type, range, choices, null, and a remark where the key has one."""
    names = [_TYPE_NAMES[kind] for kind in _kinds(key) if kind in _TYPE_NAMES]
    text = " or ".join(names) or f"one of {', '.join(choices(key))}"
    field = LEAVES[key]
    signs = [f"{_RANGE_SIGNS[n]} {getattr(m, n):g}" for m in field.metadata for n in _RANGE_SIGNS if hasattr(m, n)]
    text += " " + " and ".join(signs) if signs else ""
    text += ", or null" if types.NoneType in _kinds(key) else ""
    return text + (f" ({field.description})" if field.description else "")


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"optim": {"lr": {"init": 1}}} -> {"optim.lr.init": 1}."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def nest(flat: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, name = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    return tree


def validate(flat: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Hold dotted values against the schema.

    Returns:
        The values in their declared types (1 becomes 1.0 where a number is declared), and the dotted keys whose value
        does not fit or is missing; the values come back as they were if there is one.
    """
    try:
        return flatten(Config.model_validate(nest(flat)).model_dump()), []
    except ValidationError as error:
        places = [".".join(str(part) for part in details["loc"]) for details in error.errors()]
        return flat, [key for place in places for key in keys_below(place)]
