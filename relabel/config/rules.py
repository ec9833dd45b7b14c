"""Rules across the keys of main.py, folders that must exist, keys without effect, and what may change on resume."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from relabel.config.schema import SCHEMA
from utils.config.problems import Setting
from utils.config.rules import Disabled, ResumeRules, Rule, without_effect


def joined_folders(paths: str) -> list[str]:
    """The folders of a value that joins several by ':'; none of ''."""
    return paths.split(":") if paths else []


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


def _is_file(path: str) -> bool:
    return _exists(path) and not _is_folder(path)


def _cannot_be_looked_at(path: str) -> bool:
    try:
        Path(path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError):  # a name too long, a folder above it that may not be entered
        return True
    return False


def _lies_in(path: str, folders: list[str]) -> bool:
    try:
        place = Path(path).resolve()
        return any(Path(folder).resolve() in (place, *place.parents) for folder in folders if folder)
    except (OSError, ValueError, RuntimeError):  # told by the other rules
        return False


def _lacks(data_path: str, split: str) -> bool:
    return _is_folder(data_path) and not _is_folder(data_path, split)


def _can_continue(run_dir: str) -> bool:
    """Whether the run in a folder, if there is one, has a checkpoint of its own to go on from."""
    return any(_exists(f"{run_dir}/checkpoint-{which}.pth") for which in ("last", "previous"))


def _needs_data(path: str, test_only: bool, *label_files_and_sets: str) -> bool:
    """Training needs data.data_path, and an evaluation unless all it wants are image sets of their own."""
    label_files, sets = label_files_and_sets[: len(_LABEL_FILES)], label_files_and_sets[len(_LABEL_FILES) :]
    return path == "" and not (test_only and any(sets) and not any(label_files))


_DATA_LAYOUT = "the folder that holds train/CLASS/IMAGE and val/CLASS/IMAGE; give --data.data_path FOLDER"
_LABEL_ADVICE = (
    "give --data.relabel.path FOLDER, make the maps with `python -m relabel annotate`, "
    "or train without them: --data.relabel.use False"
)
_WEIGHT_KEYS = ("util.test_weight_file", "util.test_only")
_LABEL_KEYS = ("data.relabel.path", "data.relabel.use", "util.test_only")
_DATA_KEYS = ("data.data_path", "util.test_only")
_EXTRA_SWITCHES = ("data.extra.share", "util.test_only")
_LABEL_FILES = {
    "eval.real": "real.json of ReaL",
    "eval.multilabel": "human_accuracy_v3.0.0.json of Shankar et al.",
    "eval.labels": "true labels of the images in val/, TSV or JSON",
}
_IMAGE_SETS = {
    "eval.imagenet_v2": "a variant of ImageNetV2, which holds the folders 0, 1, ... 999, or several variants",
    "eval.imagenet_a": "ImageNet-A: WNID/IMAGE",
    "eval.imagenet_r": "ImageNet-R: WNID/IMAGE",
    "eval.imagenet_c": "ImageNet-C: CORRUPTION/SEVERITY/WNID/IMAGE",
}

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
        (*_EXTRA_SWITCHES, "data.relabel.use"),
        lambda share, test_only, use: share > 0 and not test_only and not use,
        "expected 0 while data.relabel.use is False: extra images have label maps, no labels; give --data.relabel.use "
        "True or --data.extra.share 0",
    ),
    Rule(
        ("data.extra.path", *_EXTRA_SWITCHES),
        lambda path, share, test_only: share > 0 and not test_only and path == "",
        "expected the folders of the extra images, joined by ':', while data.extra.share = {1}; "
        "give --data.extra.path, or --data.extra.share 0 to train without them",
    ),
    Rule(
        ("data.extra.labels", "data.extra.path", *_EXTRA_SWITCHES),
        lambda labels, path, share, test_only: (
            share > 0 and not test_only and path != "" and len(joined_folders(labels)) != len(joined_folders(path))
        ),
        "expected as many folders of label maps as data.extra.path = {1!r} has of images, joined by ':'; make them "
        "with `python -m relabel annotate IMAGES LABELS --unlabelled true` and give --data.extra.labels",
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
        ("util.run_dir",),
        lambda path: path.startswith("~"),
        "only a shell replaces ~, and not after =; write the whole path: --util.run_dir /home/...",
    ),
    Rule(
        _WEIGHT_KEYS,
        lambda path, test_only: test_only and not path,
        "expected the checkpoint to evaluate; give --util.test_weight_file FILE",
    ),
)
"""Rules that need no look at the disk."""

DISK_RULES = (
    Rule((*_DATA_KEYS, *_LABEL_FILES, *_IMAGE_SETS), _needs_data, f"expected {_DATA_LAYOUT}"),
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
    *(
        Rule(
            (key, *_EXTRA_SWITCHES),
            lambda paths, share, test_only: (
                share > 0 and not test_only and not all(_is_folder(path) for path in joined_folders(paths))
            ),
            f"a folder of it is not there; expected {what}, joined by ':'; correct --{key}",
        )
        for key, what in {"data.extra.path": "folders of images", "data.extra.labels": "a folder of maps each"}.items()
    ),
    Rule(
        _WEIGHT_KEYS,
        lambda path, test_only: test_only and path != "" and (not _exists(path) or _is_folder(path)),
        "no such file; expected the checkpoint to evaluate; give --util.test_weight_file FILE",
    ),
    *(
        Rule(
            (key, "util.test_only"),
            lambda path, test_only: test_only and path != "" and not _is_file(path),
            f"no such file; expected {what}; correct --{key}, or leave it out",
        )
        for key, what in _LABEL_FILES.items()
    ),
    *(
        Rule(
            (key, "util.test_only"),
            lambda path, test_only: test_only and path != "" and not _is_folder(path),
            f"no such folder; expected {what}; correct --{key}, or leave it out",
        )
        for key, what in _IMAGE_SETS.items()
    ),
    Rule(
        ("model.weights", "util.run_dir", "util.test_only"),
        lambda path, run_dir, test_only: (
            not (test_only or path == "" or _can_continue(run_dir)) and (not _exists(path) or _is_folder(path))
        ),
        "no such file; expected the checkpoint to start from; give --model.weights FILE, or leave it out",
    ),
    Rule(
        ("data.keep_list", "util.test_only"),
        lambda path, test_only: not test_only and path != "" and not _is_file(path),
        "no such file; expected the list of the images to train on; correct --data.keep_list, or leave it out",
    ),
    Rule(
        ("util.run_dir",),
        _is_file,
        "is a file; expected a folder, made if it is not there; give another --util.run_dir",
    ),
    Rule(
        ("util.run_dir",),
        _cannot_be_looked_at,
        "too long, or below a folder that may not be entered; give another --util.run_dir",
    ),
    Rule(
        ("util.run_dir", "data.data_path", "data.relabel.path", "data.extra.path", "data.extra.labels"),
        lambda run_dir, data_path, *others: _lies_in(
            run_dir,
            [*(f"{data_path}/{split}" for split in ("train", "val") if data_path), *":".join(others).split(":")],
        ),
        "lies among the images or label maps, and would be taken for a class; give another --util.run_dir",
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
        ("data.extra.path", "data.extra.labels"),
        ("data.extra.share",),
        lambda share: share == 0,
        "data.extra.share is 0",
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
        "util.test_only is False; a training starts from --model.weights FILE",
    ),
    Disabled(
        (*_LABEL_FILES, *_IMAGE_SETS, "eval.predictions"),
        ("util.test_only",),
        lambda test_only: not test_only,
        "util.test_only is False: a training measures top-1 and top-5 on val/",
    ),
)
"""Keys that another key makes useless. An evaluation (util.test_only) uses no training key and may keep them all."""


def warnings(settings: dict[str, Setting], defaults: dict[str, Any]) -> Iterator[str]:
    """Name the settings that have no effect in a training; an evaluation may keep all training keys."""
    if settings["util.test_only"].value:
        return
    yield from without_effect(DISABLED, settings, defaults)
    prob, off_epoch, epochs = (
        settings[key].value for key in ("data.cutmix.prob", "data.cutmix.off_epoch", "optim.epochs")
    )
    if prob > 0 and off_epoch >= epochs:  # type: ignore[operator]  # both are numbers: they have been validated
        yield (
            f"CutMix never runs: data.cutmix.off_epoch = {off_epoch} switches it off in the last {off_epoch} "
            f"of {epochs} epochs; lower it with --data.cutmix.off_epoch"
        )


RESUME = ResumeRules(
    schema=SCHEMA,
    free=frozenset(
        {
            "data.on_error",  # a run that met a damaged image may go on without it
            "compute.num_workers",
            "compute.distributed.url",
            "util.print_freq",
            "util.val_batch_size",
            "util.checkpoint_minutes",
            "util.tensorboard",
            "util.print_config",
            "util.run_dir",
            "util.test_weight_file",
            *SCHEMA.keys_below("eval"),
        }
    ),
    warned=frozenset(
        {
            "compute.gpu",
            "compute.distributed.use",
            "compute.distributed.num_processes_per_node",
            "compute.distributed.backend",
        }
    ),
    before={
        "data.keep_list": "",
        "data.decoder": "pillow",
        "model.weights": "",
        "data.extra.path": "",
        "data.extra.labels": "",
        "data.extra.share": 0.0,
    },
    seed="compute.seed",
)
"""What a run may differ in when the same command continues it."""
