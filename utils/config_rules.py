"""Rules across keys, folders that must exist, and keys without effect. Every table is read from top to bottom."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.config_problems import Problem, Setting

Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rule:
    """`broken` gets the values of `keys` in their order; the first key is the one that the message names.

    In `text`, {0} {1} ... are those values.
    """

    keys: tuple[str, ...]
    broken: Callable[..., bool]
    text: str


@dataclass(frozen=True, slots=True)
class Disabled:
    """`when`, called with the values of `by`, says that `keys` change nothing; {0} {1} ... in `reason` are they."""

    keys: tuple[str, ...]
    by: tuple[str, ...]
    when: Callable[..., bool]
    reason: str


def _is_folder(path: str, name: str = "") -> bool:
    try:
        return path != "" and Path(path, name).is_dir()
    except (OSError, ValueError):  # too long, no permission, a null byte: not a folder that could be used
        return False


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def _lacks(data_path: str, split: str) -> bool:
    return _is_folder(data_path) and not _is_folder(data_path, split)


_DATA_LAYOUT = "the folder that holds train/CLASS/IMAGE and val/CLASS/IMAGE; give --data.data_path FOLDER"
_LABEL_ADVICE = (
    "give --data.relabel.path FOLDER, make the maps with `python -m relabel annotate`, "
    "or train without them: --data.relabel.use False"
)
_WEIGHT_KEYS = ("util.test_weight_file", "util.test_only")
_LABEL_KEYS = ("data.relabel.path", "data.relabel.use", "util.test_only")
_DATA_KEYS = ("data.data_path", "util.test_only")

RULES = (
    Rule(
        ("optim.start_epoch",),
        lambda epoch: epoch != 0,
        "expected 0: it resumes nothing. The same command again continues an unfinished run; remove the key",
    ),
    Rule(
        ("optim.warmup.epochs", "optim.epochs"),
        lambda warmup, epochs: warmup > epochs,
        "expected at most optim.epochs = {1}; lower it with --optim.warmup.epochs or raise optim.epochs",
    ),
    Rule(
        ("data.cutmix.beta", "data.cutmix.prob"),
        lambda beta, prob: prob > 0 and beta == 0,
        "expected a number > 0 while data.cutmix.prob = {1}; give --data.cutmix.beta 1.0 (the paper)",
    ),
    Rule(
        ("optim.batch_size", "optim.accumulation"),
        lambda batch, accumulation: batch % accumulation != 0,
        "expected a multiple of optim.accumulation = {1}, into which many equal parts it is cut; change one of them",
    ),
    Rule(
        ("optim.nesterov", "optim.momentum", "optim.optimizer"),
        lambda nesterov, momentum, optimizer: nesterov and momentum == 0 and optimizer == "sgd",
        "Nesterov needs optim.momentum > 0; give --optim.nesterov False for plain SGD",
    ),
    Rule(
        _WEIGHT_KEYS,
        lambda path, test_only: test_only and not path,
        "expected the checkpoint to evaluate; give --util.test_weight_file FILE",
    ),
)
"""Rules that need no look at the disk."""

DISK_RULES = (
    Rule(("data.data_path",), lambda path: path == "", f"expected {_DATA_LAYOUT}"),
    Rule(
        ("data.data_path",),
        lambda path: path != "" and not _is_folder(path),
        f"no such folder; expected {_DATA_LAYOUT}",
    ),
    Rule(
        _DATA_KEYS,
        lambda path, test_only: not test_only and _lacks(path, "train"),
        f"the folder has no train/ in it; expected {_DATA_LAYOUT}",
    ),
    Rule(
        _DATA_KEYS,
        lambda path, test_only: _lacks(path, "val"),
        f"the folder has no val/ in it; expected {_DATA_LAYOUT}",
    ),
    Rule(
        _LABEL_KEYS,
        lambda path, use, test_only: use and not test_only and path == "",
        f"expected the folder of label maps, CLASS/STEM.pt for each training image; {_LABEL_ADVICE}",
    ),
    Rule(
        _LABEL_KEYS,
        lambda path, use, test_only: use and not test_only and path != "" and not _is_folder(path),
        f"no such folder; expected label maps, CLASS/STEM.pt for each training image; {_LABEL_ADVICE}",
    ),
    Rule(
        _WEIGHT_KEYS,
        lambda path, test_only: test_only and path != "" and (not _exists(path) or _is_folder(path)),
        "no such file; expected the checkpoint to evaluate; give --util.test_weight_file FILE",
    ),
    Rule(
        ("util.run_dir",),
        lambda path: _exists(path) and not _is_folder(path),
        "is a file; expected a folder, made if it is not there; give another --util.run_dir",
    ),
)
"""Folders and files that must be there. Their contents are checked by those who read them."""

DISABLED = (
    Disabled(
        tuple(
            f"data.relabel.{name}"
            for name in ("path", "supervision", "fill", "temperature", "ground_truth_weight", "box_axes")
        ),
        ("data.relabel.use",),
        lambda use: not use,
        "data.relabel.use is False",
    ),
    Disabled(
        ("data.relabel.temperature",),
        ("data.relabel.use", "data.relabel.supervision"),
        lambda use, supervision: use and supervision.endswith("_single"),
        "data.relabel.supervision = {1} takes the largest logit",
    ),
    Disabled(
        ("data.relabel.box_axes",),
        ("data.relabel.use", "data.relabel.supervision"),
        lambda use, supervision: use and supervision.startswith("global_"),
        "data.relabel.supervision = {1} pools the whole image",
    ),
    Disabled(
        ("data.cutmix.beta", "data.cutmix.off_epoch"),
        ("data.cutmix.prob",),
        lambda prob: prob == 0,
        "data.cutmix.prob is 0",
    ),
    Disabled(
        ("optim.nesterov",),
        ("optim.optimizer",),
        lambda optimizer: optimizer == "adamp",
        "optim.optimizer = adamp has no Nesterov momentum",
    ),
    Disabled(
        ("optim.warmup.lr",),
        ("optim.warmup.epochs",),
        lambda epochs: epochs == 0,
        "optim.warmup.epochs is 0",
    ),
    Disabled(
        tuple(f"compute.distributed.{name}" for name in ("num_processes_per_node", "url", "backend")),
        ("compute.distributed.use",),
        lambda use: not use,
        "compute.distributed.use is False: one process",
    ),
    Disabled(
        tuple(f"compute.distributed.{name}" for name in ("num_processes_per_node", "url", "backend")),
        ("compute.gpu", "compute.distributed.use"),
        lambda gpu, use: gpu >= 0 and use,
        "compute.gpu = {0} means one process on that GPU",
    ),
    Disabled(
        ("util.test_weight_file",),
        ("util.test_only",),
        lambda test_only: not test_only,
        "util.test_only is False: training starts from fresh weights",
    ),
)
"""Keys that another key makes useless. An evaluation (util.test_only) uses no training key and may keep them all."""


def broken_rules(rules: tuple[Rule, ...], settings: dict[str, Setting], spoiled: set[str]) -> Iterator[Problem]:
    """Check rules whose keys all hold a valid value; `spoiled` keys do not."""
    for rule in rules:
        if spoiled.isdisjoint(rule.keys):
            values = [settings[key].value for key in rule.keys]
            if rule.broken(*values):
                subject = f"{rule.keys[0]} = {values[0]!r}"
                yield Problem(subject, settings[rule.keys[0]].where, rule.text.format(*values), keys=rule.keys)


def warnings(settings: dict[str, Setting], defaults: Values) -> Iterator[str]:
    """Say which settings have no effect; only those that differ from their default."""
    values: Values = {key: setting.value for key, setting in settings.items()}
    if values["util.test_only"]:
        return
    for entry in DISABLED:
        by = [values[key] for key in entry.by]
        for key in entry.keys:
            if values[key] != defaults[key] and entry.when(*by):
                reason = entry.reason.format(*by)
                yield f"{key} = {values[key]!r} ({settings[key].where}) has no effect: {reason}"
    off_epoch, epochs = values["data.cutmix.off_epoch"], values["optim.epochs"]
    if values["data.cutmix.prob"] > 0 and off_epoch >= epochs:
        yield (
            f"CutMix never runs: data.cutmix.off_epoch = {off_epoch} switches it off in the last {off_epoch} "
            f"of {epochs} epochs; lower it with --data.cutmix.off_epoch"
        )
