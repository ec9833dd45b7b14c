"""A training run or an evaluation, from its config to its end: every check comes before anything is created."""

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from models.build import infer_num_classes, load_weights
from relabel.build import (
    build_model,
    check_batches,
    check_image_sizes,
    checked_label_store,
    list_split,
    make_optimizer,
    make_plan,
    set_up_device,
    test_loader,
    train_loader,
)
from relabel.dataset import ImageList
from relabel.evaluation import evaluate
from relabel.trainer import Preempted, Trainer
from utils.checkpoint import load_checkpoint, split_weights
from utils.distributed import Place, from_main, launch
from utils.errors import EXIT_PREEMPTED, SharedError, UserError
from utils.frozen_munch import FrozenMunch
from utils.precision import Precision
from utils.run_folder import find_start, make_run_folder, open_run_folder
from utils.run_log import read_status, record_environment, write_json, write_status
from utils.workers import raise_worker_death


def run(config: FrozenMunch) -> None:
    """Train, or evaluate with util.test_only, in all processes of this node.

    Raises:
        UserError: bad input; nothing was created.
        SystemExit: preempted (143), or a process failed.
    """
    launch(test if config.util.test_only else train, config, config.compute)


def train(place: Place, config: FrozenMunch) -> None:
    """One process of a training run: checks, build, resume, fit."""
    set_up_device(place.device)
    images, test_images = list_split(config, "train"), list_split(config, "val")
    test_images = test_images.with_classes_of(images.class_names, "the training folders")
    store = checked_label_store(config, images) if config.data.relabel.use else None
    batch_size = place.share(config.optim.batch_size, "optim.batch_size")
    place.share(config.util.val_batch_size, "util.val_batch_size")
    check_batches(images, batch_size, place, config)
    precision = Precision(config.compute.opt_level, place.device)
    identity = {
        "arch": config.model.arch,
        "class_names": list(images.class_names),
        "images_sha256": fingerprint(images),
        "validation_images_sha256": fingerprint(test_images),
        "precision": precision.name,
    }

    folder = Path(config.util.run_dir)
    start = from_main(lambda: find_start(folder, config, identity, place.world_size))
    torch.manual_seed(start.seed)
    model = build_model(config, len(images.class_names), precision)
    check_image_sizes(config, model, len(images.class_names), precision)
    plan = make_plan(config, images, batch_size * place.world_size, start.seed)
    trainer = Trainer(
        model=model,
        optimizer=make_optimizer(config, model, place.device),
        plan=plan,
        precision=precision,
        place=place,
        train_batches=train_loader(config, images, store, plan, batch_size, place),
        test_batches=test_loader(config, test_images, place),
        folder=folder,
        identity=identity,
        tensorboard=config.util.tensorboard,
    )
    if start.state is not None:
        trainer.resume(start.state)
    if trainer.finished:
        if place.is_main:
            if read_status(folder) != "done":  # killed between its last checkpoint and its last word
                trainer.write_done()
            best = f"best top-1 {trainer.best_accuracy:.2f} % after epoch {trainer.best_epoch}"
            print(f"{folder} is finished: {best}. Set another --util.run_dir for a new run.", flush=True)
        return
    with open_run_folder(folder, config, start) if place.is_main else nullcontext():
        if place.is_main:
            introduce(config, images, test_images, trainer)
        if config.compute.compile:
            model.compile()
        fit(trainer)


def fingerprint(images: ImageList) -> str:
    """Hash of the names of all images, classes included."""
    return hashlib.sha256(os.fsencode("\n".join(images.names.tolist()))).hexdigest()


def introduce(config: FrozenMunch, images: ImageList, test_images: ImageList, trainer: Trainer) -> None:
    """Say what is about to run, and record what it runs on."""
    plan, place, folder = trainer.plan, trainer.place, trainer.folder
    record_environment(
        folder,
        start_step=trainer.step,
        processes=place.world_size,
        device=str(place.device),
        precision=trainer.precision.name,
    )
    parameters = sum(p.numel() for p in trainer.model.parameters())
    labels = f"label maps {config.data.relabel.path}" if config.data.relabel.use else "the folders' labels"
    for line in (
        trainer.precision.note,
        f"{config.model.arch}, {parameters / 1e6:.2f} million parameters, {trainer.precision.name}, "
        f"{place.world_size} process(es) on {place.device.type}, seed {plan.seed}",
        f"{len(images):,} training images of {len(images.class_names):,} classes with {labels}; "
        f"{len(test_images):,} validation images",
        f"{plan.epochs} epochs of {plan.steps_per_epoch:,} steps, batch {config.optim.batch_size}; run folder {folder}",
        f"continuing at step {trainer.step:,} of {plan.total_steps:,}" if trainer.step else "",
    ):
        if line:
            print(line, flush=True)


def fit(trainer: Trainer) -> None:
    """Run the trainer; whatever ends it early stands in status.json, from whichever process it came.

    Raises:
        UserError: as the trainer; a process other than the main one has already told its own.
        SystemExit: 143 when preempted; 1 when another process has failed and told why.
    """
    try:
        with tell_worker_deaths():
            trainer.fit()
    except Preempted:
        sys.exit(EXIT_PREEMPTED)
    except UserError as error:
        note_failure(trainer, error)
        if not (trainer.place.is_main or isinstance(error, SharedError)):
            print(f"error: {error}", file=sys.stderr, flush=True)
        raise
    except Exception as error:
        if trainer.place.world_size > 1 and read_status(trainer.folder) == "failed":
            sys.exit(1)  # this process only lost its connection to the one that failed
        note_failure(trainer, error)
        raise


@contextmanager
def tell_worker_deaths() -> Iterator[None]:
    """A loader worker's death reaches the main thread wherever it is; here it becomes a UserError."""
    try:
        yield
    except RuntimeError as error:
        raise_worker_death(error)
        raise


def note_failure(trainer: Trainer, error: Exception) -> None:
    """Into status.json if it can be written; the error itself matters more than that it cannot."""
    with suppress(OSError):
        write_status(trainer.folder, "failed", step=trainer.step, epoch=trainer.epoch, reason=str(error))


def test(place: Place, config: FrozenMunch) -> None:
    """One process of `--util.test_only True`: print top-1 and top-5 with n, write evaluation-<weights>.json."""
    set_up_device(place.device)
    path = Path(config.util.test_weight_file)
    content = load_checkpoint(path)
    weights = split_weights(content, path)
    images = list_split(config, "val")
    class_names = content.get("class_names")
    if class_names:
        images, num_classes = images.with_classes_of(class_names, str(path)), len(class_names)
    else:
        num_classes = infer_num_classes(config.model.arch, weights["model"])
        check_class_count(images, num_classes, path)
    precision = Precision(config.compute.opt_level, place.device)
    model = build_model(config, num_classes, precision)
    check_image_sizes(config, model, num_classes, precision)
    folder, scores = Path(config.util.run_dir), {}
    for name, state_dict in weights.items():
        load_from(path, model, state_dict, content.get("arch"))
        if place.is_main:
            make_run_folder(folder)  # before the work, in case it cannot be written
        scores[name] = evaluate(model, test_loader(config, images, place)(), precision)
        if place.is_main:
            print(f"{path}{' (EMA)' * (name == 'ema')}  {scores[name]}", flush=True)
    if place.is_main:
        report = {
            "weights": str(path),
            "arch": config.model.arch,
            "data": str(images.root),
            "precision": precision.name,
        }
        report |= {name: score.as_record() for name, score in scores.items()}
        write_json(folder / f"evaluation-{path.stem}.json", report)


def check_class_count(images: ImageList, num_classes: int, path: Path) -> None:
    """A checkpoint that does not name its classes fits only a folder of as many classes."""
    if len(images.class_names) != num_classes:
        raise UserError(
            f"{images.root} has {len(images.class_names)} class folders, but {path} tells {num_classes} classes apart "
            f"and does not name them.\n  Set --data.data_path to the data it was trained for."
        )


def load_from(path: Path, model: nn.Module, state_dict: dict[str, Tensor], arch: str | None) -> None:
    """Put a checkpoint's weights into the network; an error names the file and the network it was made with."""
    try:
        load_weights(model, state_dict)
    except UserError as error:
        made_with = f"\n  The file says that it holds a {arch}: set --model.arch {arch}." if arch else ""
        raise UserError(f"{path}: {error}{made_with}") from None
