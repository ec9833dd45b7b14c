"""Rules across the keys of main.py, files and folders that must exist, keys without effect, what may change on resume.

In a rule, `c` is the tree of the configuration.
"""

import stat
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from typing import Any

from relabel.config.schema import SCHEMA
from utils.config.cross_key_rules import Disabled, ResumeRules, Rule


def joined_folders(paths: str) -> list[str]:
    """Split a list of folders joined by ':'; '' is an empty list."""
    return paths.split(":") if paths else []


PUBLISHED = ("pretrained", "packaged")  # instead of the path of a file of weights


def _kind(path: str) -> str:
    """Return "folder", "file" (anything else), "nothing", or "unusable" (name too long, parent not accessible)."""
    try:
        return "folder" if stat.S_ISDIR(Path(path).stat().st_mode) else "file"
    except (FileNotFoundError, NotADirectoryError):
        return "nothing"
    except (OSError, ValueError):
        return "unusable"


def _is_no_path(path: str) -> bool:
    """Whether nothing is there; of a folder, the error that names the file in it comes where weights are opened."""
    return path == "" or _kind(path) not in ("file", "folder")


def _is_wrong(path: str, kind: str) -> bool:
    """Whether a path was given and is not of that kind."""
    return path != "" and _kind(path) != kind


def _lies_in(path: str, folders: Sequence[str]) -> bool:
    try:
        resolved = Path(path).resolve()
        return any(Path(folder).resolve() in (resolved, *resolved.parents) for folder in folders if folder)
    except (OSError, ValueError, RuntimeError):  # the other rules report these
        return False


def _input_folders(c: Any) -> list[str]:
    """List the folders of images and label maps, in which a run must not be written."""
    splits = [f"{c.data.data_path}/{split}" for split in ("train", "val") if c.data.data_path]
    return [
        *splits,
        c.data.train,
        c.data.val,
        c.data.relabel.path,
        *joined_folders(c.data.extra.path),
        *joined_folders(c.data.extra.labels),
    ]


def _can_continue(c: Any) -> bool:
    """Whether the run folder has a checkpoint to continue from."""
    return any(_kind(f"{c.util.run_dir}/checkpoint-{which}.pth") == "file" for which in ("last", "previous"))


def _evaluates(c: Any) -> bool:
    return bool(c.util.test_only)


def _trains(c: Any) -> bool:
    return not c.util.test_only


def _starts_from_weights(c: Any) -> bool:
    """Whether a new run reads model.weights."""
    return bool(_trains(c) and c.model.weights != "" and not _can_continue(c))


def _trains_on_maps(c: Any) -> bool:
    return bool(c.data.relabel.use and _trains(c))


def _trains_on_extra_images(c: Any) -> bool:
    return bool(c.data.extra.share > 0 and _trains(c))


def _needs_val(c: Any) -> bool:
    """Whether data.data_path is needed: not if an evaluation reads only image sets with their own folder."""
    sets_alone = any(c.eval[name] for name in _IMAGE_SETS) and not any(c.eval[name] for name in _LABEL_FILES)
    return not (c.util.test_only and sets_alone)


_DATA_LAYOUT = (
    "expected the folder with train/CLASS/IMAGE and val/CLASS/IMAGE, or tar files of both; give --data.data_path FOLDER"
)
_LABEL_MAPS = (
    "expected label maps of the training images, a packed store or CLASS/STEM.pt files; give --data.relabel.path "
    "FOLDER, make the maps with `python -m relabel annotate`, or train without them: --data.relabel.use False"
)
_LABEL_FILES = {
    "real": "real.json of ReaL",
    "multilabel": "human_accuracy_v3.0.0.json of Shankar et al.",
    "labels": "true labels of the images in val/, TSV or JSON",
}
_IMAGE_SETS = {
    "imagenet_v2": "a variant of ImageNetV2, with the folders 0, 1, ... 999, or a folder of several variants",
    "imagenet_a": "ImageNet-A: WNID/IMAGE",
    "imagenet_r": "ImageNet-R: WNID/IMAGE",
    "imagenet_c": "ImageNet-C: CORRUPTION/SEVERITY/WNID/IMAGE",
}

RULES = (
    Rule(
        "optim.start_epoch",
        lambda c: c.optim.start_epoch != 0,
        "expected 0: the key does not resume a run. To continue an unfinished run, repeat its command; remove the key",
    ),
    Rule(
        "data.cutmix.beta",
        lambda c: c.data.cutmix.prob > 0 and c.data.cutmix.beta == 0,
        "expected a number > 0 while data.cutmix.prob = {c.data.cutmix.prob}; give --data.cutmix.beta 1.0 (the paper)",
    ),
    Rule(
        "data.extra.share",
        lambda c: _trains_on_extra_images(c) and not c.data.relabel.use,
        "expected 0 while data.relabel.use is False: extra images have label maps and no labels; give "
        "--data.relabel.use True or --data.extra.share 0",
    ),
    Rule(
        "data.extra.path",
        lambda c: _trains_on_extra_images(c) and c.data.extra.path == "",
        "expected the folders of the extra images, joined by ':', while data.extra.share = {c.data.extra.share}; "
        "give --data.extra.path, or --data.extra.share 0 to train without them",
    ),
    Rule(
        "data.extra.labels",
        lambda c: (
            _trains_on_extra_images(c)
            and c.data.extra.path != ""
            and len(joined_folders(c.data.extra.labels)) != len(joined_folders(c.data.extra.path))
        ),
        "expected as many folders of label maps as data.extra.path = {c.data.extra.path!r} has of images, joined by "
        "':'; make them with `python -m relabel annotate IMAGES LABELS --unlabelled true` and give --data.extra.labels",
    ),
    Rule(
        "optim.batch_size",
        lambda c: c.optim.batch_size % c.optim.accumulation != 0,
        "expected a multiple of optim.accumulation = {c.optim.accumulation}, the number of equal parts that a batch is "
        "split into; change one of them",
    ),
    Rule(
        "optim.nesterov",
        lambda c: c.optim.nesterov and c.optim.momentum == 0 and c.optim.optimizer == "sgd",
        "Nesterov needs optim.momentum > 0; give --optim.nesterov False for plain SGD",
    ),
    Rule(
        "util.wandb",
        lambda c: c.util.wandb and _trains(c) and find_spec("wandb") is None,
        "needs a package that is not installed: pip install wandb, or leave --util.wandb out",
    ),
    Rule(
        "util.run_dir",
        lambda c: c.util.run_dir.startswith("~"),
        "only a shell replaces ~, and not after =; write the whole path: --util.run_dir /home/...",
    ),
)
"""Rules that are checked without reading the disk."""


def _must_exist(key: str, kind: str, expected: str, needed: Callable[[Any], bool]) -> Rule:
    value = attrgetter(key)
    text = f"no such {kind}; expected {expected}; correct --{key}, or leave it out"
    return Rule(key, lambda c: needed(c) and _is_wrong(value(c), kind), text)


def _folders_must_exist(key: str, expected: str, or_tars: bool = False) -> Rule:
    value = attrgetter(key)

    def is_wrong(path: str) -> bool:
        return _is_wrong(path, "folder") and not (or_tars and ".tar" in path)

    return Rule(
        key,
        lambda c: _trains_on_extra_images(c) and any(map(is_wrong, joined_folders(value(c)))),
        f"one of the folders does not exist; expected {expected}, joined by ':'; correct --{key}",
    )


def has_images(c: Any, split: str) -> bool:
    """Whether something says where the images of a split are; those of val may be a share of those of train."""
    keys = c.data
    return any((keys.data_path, keys[split], split == "val" and keys.val_share and keys.train))


DISK_RULES = (
    Rule(
        "data.data_path",
        lambda c: (_trains(c) and not has_images(c, "train")) or (_needs_val(c) and not has_images(c, "val")),
        _DATA_LAYOUT,
    ),
    Rule(
        "data.data_path",
        lambda c: c.data.data_path != "" and ".tar" not in c.data.data_path and _is_no_path(c.data.data_path),
        f"no such folder; {_DATA_LAYOUT}",
    ),
    Rule("data.relabel.path", lambda c: _trains_on_maps(c) and c.data.relabel.path == "", _LABEL_MAPS),
    Rule(
        "data.relabel.path",
        lambda c: _trains_on_maps(c) and _is_wrong(c.data.relabel.path, "folder"),
        f"no such folder; {_LABEL_MAPS}",
    ),
    _folders_must_exist("data.extra.path", "folders of images, tar files or patterns of them", or_tars=True),
    _folders_must_exist("data.extra.labels", "a folder of label maps for each"),
    Rule(
        "util.test_weight_file",
        lambda c: _evaluates(c) and c.util.test_weight_file not in PUBLISHED and _is_no_path(c.util.test_weight_file),
        "no such file; expected the checkpoint to evaluate, pretrained or packaged; give --util.test_weight_file FILE",
    ),
    _must_exist(
        "eval.classes",
        "file",
        "imagenet, or a text file with a class per line",
        lambda c: (_evaluates(c) or _starts_from_weights(c)) and c.eval.classes != "imagenet",
    ),
    *(_must_exist(f"eval.{name}", "file", what, _evaluates) for name, what in _LABEL_FILES.items()),
    *(_must_exist(f"eval.{name}", "folder", what, _evaluates) for name, what in _IMAGE_SETS.items()),
    Rule(
        "model.weights",
        lambda c: c.model.weights not in PUBLISHED and _starts_from_weights(c) and _is_no_path(c.model.weights),
        "no such file; expected the checkpoint to start from, pretrained or packaged; correct --model.weights, or "
        "leave it out",
    ),
    _must_exist("data.keep_list", "file", "the list of the images to train on", _trains),
    Rule(
        "util.run_dir",
        lambda c: _kind(c.util.run_dir) == "file",
        "is a file; expected a folder, which is created if it does not exist; give another --util.run_dir",
    ),
    Rule(
        "util.run_dir",
        lambda c: _kind(c.util.run_dir) == "unusable",
        "too long, or below a folder that may not be entered; give another --util.run_dir",
    ),
    Rule(
        "util.run_dir",
        lambda c: _lies_in(c.util.run_dir, _input_folders(c)),
        "lies among the images or label maps, and would be taken for a class; give another --util.run_dir",
    ),
)
"""Files and folders that must exist. Their contents are checked where they are read."""


def _switched_by(switch: str) -> tuple[str, ...]:
    """List the other keys of a switch's section."""
    return tuple(key for key in SCHEMA.keys_below(switch.rpartition(".")[0]) if key != switch)


DISABLED = (
    Disabled(_switched_by("data.relabel.use"), lambda c: not c.data.relabel.use, "data.relabel.use is False"),
    Disabled(
        ("data.relabel.temperature",),
        lambda c: c.data.relabel.use and c.data.relabel.supervision.endswith("_single"),
        "data.relabel.supervision = {c.data.relabel.supervision} takes the largest logit",
    ),
    Disabled(
        ("data.relabel.box_axes",),
        lambda c: c.data.relabel.use and c.data.relabel.supervision.startswith("global_"),
        "data.relabel.supervision = {c.data.relabel.supervision} pools the whole image",
    ),
    Disabled(("data.extra.path", "data.extra.labels"), lambda c: c.data.extra.share == 0, "data.extra.share is 0"),
    Disabled(("data.cutmix.beta", "data.cutmix.off_epoch"), lambda c: c.data.cutmix.prob == 0, "data.cutmix.prob is 0"),
    Disabled(
        ("data.cutmix.prob",),
        lambda c: c.data.cutmix.off_epoch >= c.optim.epochs,
        "data.cutmix.off_epoch = {c.data.cutmix.off_epoch} switches CutMix off in the last {c.data.cutmix.off_epoch} "
        "of {c.optim.epochs} epochs; lower it",
    ),
    Disabled(
        ("optim.nesterov",),
        lambda c: c.optim.optimizer != "sgd",
        "optim.optimizer = {c.optim.optimizer} has no Nesterov momentum",
    ),
    Disabled(("optim.wd.on_norms_and_biases",), lambda c: c.optim.wd.base == 0, "optim.wd.base is 0"),
    Disabled(("optim.warmup.lr",), lambda c: c.optim.warmup.epochs == 0, "optim.warmup.epochs is 0"),
    Disabled(
        _switched_by("compute.distributed.use"),
        lambda c: not c.compute.distributed.use,
        "compute.distributed.use is False: one process",
    ),
    Disabled(
        _switched_by("compute.distributed.use"),
        lambda c: c.compute.gpu >= 0 and c.compute.distributed.use,
        "compute.gpu = {c.compute.gpu} means one process on that GPU",
    ),
    Disabled(
        ("util.test_weight_file",),
        lambda c: not c.util.test_only,
        "util.test_only is False; training starts from --model.weights FILE",
    ),
    Disabled(
        tuple(key for key in SCHEMA.keys_below("eval") if key != "eval.classes"),
        lambda c: not c.util.test_only,
        "util.test_only is False: training measures top-1 and top-5 on val/",
    ),
    Disabled(
        ("eval.classes",),
        lambda c: not c.util.test_only and c.model.weights == "",
        "util.test_only is False and model.weights is empty: there are no weights whose classes it could list",
    ),
)
"""Keys that have no effect in training because of another key. An evaluation (util.test_only) may keep them all."""

_NEW_KEYS = {
    "data.train": "",
    "data.val": "",
    "data.train_labels": "",
    "data.val_labels": "",
    "data.val_share": 0.0,
    "data.mean": None,
    "data.std": None,
    "data.interpolation": None,
    "model.drop_rate": None,
    "model.drop_path_rate": None,
    "optim.lr.per_256": False,
    "optim.wd.on_norms_and_biases": True,
}

RESUME = ResumeRules(
    schema=SCHEMA,
    free=frozenset(
        {
            "data.on_error",  # a run that stopped at a damaged image may continue without it
            "data.max_megapixels",  # likewise, at one that is too large
            "data.val",
            "data.val_labels",
            "data.relabel.insist",  # checked once, before a run begins
            "compute.num_workers",
            "compute.distributed.url",
            *SCHEMA.keys_below("util"),
            *SCHEMA.keys_below("eval"),
        }
    )
    - {"util.test_only"},
    warned=frozenset({"compute.gpu", *SCHEMA.keys_below("compute.distributed")}) - {"compute.distributed.url"},
    growing=frozenset({"optim.epochs"}),
    moved={
        "data.data_path": "images_sha256",
        "data.train": "images_sha256",
        "data.train_labels": "images_sha256",
        "data.keep_list": "images_sha256",
        "data.relabel.path": "label_maps_sha256",
        "data.extra.path": "extra_images_sha256",
        "data.extra.labels": "extra_label_maps_sha256",
        "model.weights": "weights_sha256",
    },
    read_once=frozenset({"weights_sha256"}),
    before={
        "data.keep_list": "",
        "data.decoder": "pillow",
        "model.weights": "",
        "data.extra.path": "",
        "data.extra.labels": "",
        "data.extra.share": 0.0,
        **_NEW_KEYS,
    },
    unhashed=frozenset(_NEW_KEYS),
    renewed={"data.image_size": (224, None), "data.crop_ratio": (0.875, "auto"), "optim.bn.eps": (1e-5, None)},
    seed="compute.seed",
)
"""What may change when a run is continued."""
