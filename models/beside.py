"""What lies beside a weights file and tells what is in it: a run's config.yaml, or config.json of timm."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from models.build import FORCE_TIMM
from models.data_config import OF_2021, from_pretrained_cfg
from models.recorded import recorded_arch, recorded_data_config
from models.recorded_classes import RecordedClasses, recorded_classes
from models.unused import timm_arguments
from utils.config.dotted_keys import flatten
from utils.errors import UserError
from utils.run_log import CONFIG

TIMM_CONFIG = "config.json"
CONFIGS = (TIMM_CONFIG, "preprocessor_config.json")  # of other libraries


def input_of_run(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run of an earlier version, whose checkpoints do not record it, expected of its input.

    Args:
        settings: dotted key -> value, of the run's config.

    Returns:
        fields of DataConfig.
    """
    train_size = settings["data.image_size"]
    size, ratio = settings.get("data.test_size") or train_size, settings["data.crop_ratio"]
    return {
        "size": (size, size),
        "train_size": train_size,
        "crop_ratio": OF_2021["crop_ratio"] if ratio == "auto" else ratio,
        "bn_eps": settings["optim.bn.eps"],
    }


def input_of_run_beside(path: Path, arch: str | None) -> dict[str, Any]:
    """Return input_of_run of the config.yaml beside a checkpoint; {}: there is none of a run of this network."""
    try:
        tree = yaml.safe_load(path.with_name(CONFIG).read_text(encoding="utf-8"))
        settings = flatten(tree)
        return input_of_run(settings) if settings["model.arch"] == arch else {}
    except (OSError, ValueError, yaml.YAMLError, AttributeError, KeyError):
        return {}


@dataclass(frozen=True, slots=True)
class TimmConfig:
    """The config.json beside weights of timm, as on the Hugging Face Hub.

    Fields:
        arch: the network, as for models.build.library_of.
        classes: their names.
        recorded: what is said of the input: fields of DataConfig.
    """

    arch: str
    classes: RecordedClasses
    recorded: dict[str, Any]


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def classes_beside(path: Path) -> RecordedClasses:
    """Return the class names in the config.json beside a weights file, of any library."""
    file = path.with_name(TIMM_CONFIG)
    return recorded_classes(_read_json(file), file)


def input_beside(path: Path) -> Iterator[tuple[str | None, str, dict[str, Any], str]]:
    """Yield the configs of other libraries than timm beside a weights file.

    Yields:
        the network that they name, or None; their place, as text; fields of DataConfig in them; a note on what else may
            describe the input, or "".
    """
    for name in CONFIGS:
        file = path.with_name(name)
        content = _read_json(file)
        if not ("architecture" in content and name == TIMM_CONFIG):
            fields, note = recorded_data_config(content, file)
            yield recorded_arch(content), f"from {name} beside {path.name}", fields, note and f"{note} of {name}"


def timm_config_beside(path: Path) -> TimmConfig | None:
    """Read the config.json beside a weights file; None: there is none of timm.

    Raises:
        UserError: it is of timm, and its values have an unknown form.
    """
    file = path.with_name(TIMM_CONFIG)
    content = _read_json(file)
    if (arch := content.get("architecture")) is None:
        return None
    stated = content.get("pretrained_cfg") or content  # older ones have no such entry
    try:
        arguments = content.get("model_args") or {}
        if stated.get("fixed_input_size") and (size := arguments.get("img_size")):
            stated = {**stated, "input_size": (3, size, size) if isinstance(size, int) else (3, *size)}
        recorded = from_pretrained_cfg(stated)
        numbers = [*recorded["mean"], *recorded["std"]]
        if eps := arguments.get("bn_eps"):
            recorded["bn_eps"] = eps
        recorded["model_args"] = timm_arguments({"global_pool": content.get("global_pool")}, arguments)
        if len(numbers) != 6 or not all(isinstance(value, int | float) for value in numbers):
            raise ValueError("mean and std are not three numbers each")
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"{file}: found a pretrained_cfg that timm cannot read ({error}); expected that of timm's folder. Correct "
            "it, or move the weights to a folder without it"
        ) from error
    return TimmConfig(FORCE_TIMM + str(arch), recorded_classes({**stated, **content}, file), recorded)
