"""Types, ranges and choices of every key of configs/base.yaml. Defaults live there and only there."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from utils.config.dotted_keys import Schema
from utils.config.value_types import NULL_WORDS, Count, Joined, Positive, ValueType

FILE_FLAG = "config_file_path"


def _plain_text(text: str) -> str:
    if text.lower() in NULL_WORDS or "\0" in text:
        raise ValueError("null is for optional keys, and no file name contains a null character")
    return text


def _rendezvous_url(url: str) -> str:
    match = re.fullmatch(r"tcp://[^/\s\0]+:([0-9]{1,5})", url)
    if not match or not 1 <= int(match[1]) <= 65535:
        raise ValueError("not tcp://host:port")
    return url


def _auto_or_fraction(value: float | str) -> float | str:
    if value != "auto" and (isinstance(value, str) or not 0 < value <= 1):
        raise ValueError("neither auto nor a fraction")
    return value


Text = Annotated[str, AfterValidator(_plain_text), Field(description="text ('' for none)")]
MinusOneOrMore = Annotated[int, Field(ge=-1)]
NonNegative = Annotated[float, Field(ge=0, le=1e30)]  # above this, float32 overflows
Share = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
CropRatio = Annotated[
    float | str, AfterValidator(_auto_or_fraction), Field(description="auto, or a number > 0 and <= 1")
]
Deviation = Annotated[float, Field(gt=0)]
Means = Annotated[
    tuple[float, float, float], Joined(","), Field(title="R,G,B", description="three numbers such as 0.5,0.5,0.5")
]
Deviations = Annotated[
    tuple[Deviation, Deviation, Deviation],
    Joined(","),
    Field(title="R,G,B", description="three numbers > 0 such as 0.5,0.5,0.5"),
]

_TYPES: dict[str, Any] = {
    "model.arch": Annotated[Text, Field(min_length=1, description="text (the name of a network)")],
    "model.weights": Text,
    "model.drop_rate": BelowOne | None,
    "model.drop_path_rate": BelowOne | None,
    "data.dataset": Literal["imagenet"],
    "data.data_path": Text,
    "data.train": Text,
    "data.val": Text,
    "data.train_labels": Text,
    "data.val_labels": Text,
    "data.val_share": BelowOne,
    "data.keep_list": Text,
    "data.decoder": Literal["auto", "pillow", "gpu"],
    "data.on_error": Literal["stop", "skip"],
    "data.max_megapixels": Annotated[float, Field(gt=0)],
    "data.image_size": Positive | None,
    "data.rrc_minimum": Annotated[float, Field(gt=0, le=1)],
    "data.crop_ratio": CropRatio | None,
    "data.test_size": Positive | None,
    "data.mean": Means | None,
    "data.std": Deviations | None,
    "data.interpolation": Literal["bilinear", "bicubic", "lanczos"] | None,
    "data.flip_prob": Share,
    "data.color_jitter": Share,
    "data.lighting": NonNegative,
    "data.relabel.use": bool,
    "data.relabel.path": Text,
    "data.relabel.supervision": Literal["localized_multi", "localized_single", "global_multi", "global_single"],
    "data.relabel.fill": Annotated[float, Field(ge=-1000, le=1000)],  # beyond this, float32 loses digits of the scores
    "data.relabel.temperature": Annotated[float, Field(ge=1e-3)],  # below this, the softmax exceeds float32
    "data.relabel.ground_truth_weight": Share,
    "data.relabel.box_axes": Literal["xy", "yx"],
    "data.relabel.insist": bool,
    "data.extra.path": Text,
    "data.extra.labels": Text,
    "data.extra.share": BelowOne,
    "data.cutmix.prob": Share,
    "data.cutmix.beta": NonNegative,
    "data.cutmix.off_epoch": Count,
    "optim.optimizer": Literal["sgd", "adamp", "adamw"],
    "optim.epochs": Positive,
    "optim.start_epoch": int,  # a rule rejects every value but 0 and explains why
    "optim.batch_size": Positive,
    "optim.accumulation": Positive,
    "optim.bn.momentum": Share | None,
    "optim.bn.eps": Annotated[float, Field(gt=0, le=1)] | None,
    "optim.lr.init": NonNegative,
    "optim.lr.per_256": bool,
    "optim.lr.decay_type": Literal["cos", "linear", "default"],
    "optim.warmup.lr": NonNegative,
    "optim.warmup.epochs": Count,
    "optim.nesterov": bool,
    "optim.momentum": BelowOne,
    "optim.wd.base": NonNegative,
    "optim.wd.on_norms_and_biases": bool,
    "optim.label_smoothing": BelowOne,
    "optim.clip_grad_norm": NonNegative,
    "optim.ema.decay": BelowOne,
    "compute.seed": MinusOneOrMore,
    "compute.gpu": MinusOneOrMore,
    "compute.opt_level": Annotated[
        Literal["O0", "O1", "O2", "bf16"],
        Field(description="O3, pure float16, is refused as unsafe: O1 or bf16 are the fast ones"),
    ],
    "compute.num_workers": Count,
    "compute.compile": bool,
    "compute.distributed.use": bool,
    "compute.distributed.num_processes_per_node": Positive,
    "compute.distributed.url": Annotated[
        str, AfterValidator(_rendezvous_url), Field(description="text (tcp://HOST:PORT)")
    ],
    "compute.distributed.backend": Literal["auto", "nccl", "gloo"],
    "util.run_dir": Text,
    "util.print_freq": Positive,
    "util.val_batch_size": Positive,
    "util.checkpoint_minutes": NonNegative,
    "util.tensorboard": bool,
    "util.wandb": bool,
    "util.test_only": bool,
    "util.test_weight_file": Text,
    "util.print_config": bool,
    "eval.classes": Text,
    "eval.real": Text,
    "eval.multilabel": Text,
    "eval.labels": Text,
    "eval.imagenet_v2": Text,
    "eval.imagenet_a": Text,
    "eval.imagenet_r": Text,
    "eval.imagenet_c": Text,
    "eval.predictions": bool,
}

SCHEMA = Schema({key: ValueType.of(annotation) for key, annotation in _TYPES.items()}, FILE_FLAG)
"""Every key of main.py, in the order of base.yaml."""
