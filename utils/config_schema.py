"""Types, ranges and choices of every key of configs/base.yaml. Defaults live there and only there."""

import inspect
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from utils.value_types import NULL_WORDS, STRICT, Count, Positive, ValueType

FILE_FLAG = "config_file_path"


def _not_a_null_word(text: str) -> str:
    if text.lower() in NULL_WORDS:
        raise ValueError("null is for optional keys")
    return text


def _meeting_point(url: str) -> str:
    match = re.fullmatch(r"tcp://[^/\s]+:([0-9]{1,5})", url)
    if not match or not 1 <= int(match[1]) <= 65535:
        raise ValueError("not tcp://host:port")
    return url


Text = Annotated[str, AfterValidator(_not_a_null_word), Field(description="text ('' where none is wanted)")]
MinusOneOrMore = Annotated[int, Field(ge=-1)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Base of all sections: no conversion between types, no unknown key, no key left out, no infinity."""

    model_config = ConfigDict(**STRICT, extra="forbid", frozen=True)


class Model(Section):
    arch: Annotated[
        str, AfterValidator(_not_a_null_word), Field(min_length=1, description="text (the name of a network)")
    ]


class Relabel(Section):
    use: bool
    path: Text
    supervision: Literal["localized_multi", "localized_single", "global_multi", "global_single"]
    fill: float
    temperature: Annotated[float, Field(ge=1e-3)]  # below, the softmax leaves the range of float32
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
    crop_ratio: Annotated[float, Field(gt=0, le=1)] | None
    test_size: Positive | None
    flip_prob: Share
    color_jitter: Share
    lighting: NonNegative
    relabel: Relabel
    cutmix: CutMix


class BatchNorm(Section):
    momentum: Share | None
    eps: Annotated[float, Field(gt=0)] | None


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
    url: Annotated[str, AfterValidator(_meeting_point), Field(description="text (tcp://HOST:PORT)")]
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


def _leaves(section: type[BaseModel], prefix: str = "") -> dict[str, ValueType]:
    found: dict[str, ValueType] = {}
    for name, annotation in inspect.get_annotations(section).items():
        is_section = inspect.isclass(annotation) and issubclass(annotation, Section)
        found |= _leaves(annotation, f"{prefix}{name}.") if is_section else {prefix + name: ValueType.of(annotation)}
    return found


LEAVES = _leaves(Config)
"""Every dotted key with what it accepts, in the order of base.yaml."""

CONFIG_FLAGS = (FILE_FLAG, *LEAVES)
"""Every flag of main.py."""

SECTIONS = {key.rsplit(".", depth)[0] for key in LEAVES for depth in range(1, key.count(".") + 1)}
"""Every dotted section."""


def keys_below(place: str) -> tuple[str, ...]:
    """Every key of a section; of a key, itself; of a name that is neither, none."""
    return tuple(key for key in LEAVES if key == place or key.startswith(place + "."))


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
