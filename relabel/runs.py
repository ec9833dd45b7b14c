"""From a config to a training run or an evaluation: all checks, then all parts, then the Trainer."""

import hashlib
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from models.batch_norm import set_batch_norm
from models.build import create_model, infer_num_classes, load_weights
from relabel.dataset import CentreView, ImageDataset, ImageList, RandomView, list_images
from relabel.evaluation import evaluate
from relabel.label_store import LabelStore, open_label_store
from relabel.loader import Batch, TestBatches, TrainBatches, make_loader, steps_per_epoch
from relabel.targets import original_target, relabel_target, smooth
from relabel.trainer import Plan, Preempted, Trainer
from utils.checkpoint import load_checkpoint, split_weights
from utils.distributed import Place, available_cores, from_main, launch
from utils.errors import EXIT_PREEMPTED, UserError
from utils.frozen_munch import FrozenMunch
from utils.optimizers import create_optimizer
from utils.precision import Precision
from utils.run_folder import find_start, open_run_folder
from utils.run_log import record_environment, write_json, write_status
from utils.schedule import learning_rate


def run(config: FrozenMunch) -> None:
    """Train, or evaluate with util.test_only, in all processes of this node.

    Raises:
        UserError: bad input; nothing was created.
        SystemExit: preempted (143), or a process failed.
    """
    launch(test if config.util.test_only else train, config, config.compute)


# ---- training


def train(place: Place, config: FrozenMunch) -> None:
    """One process of a training run: checks, build, resume, fit."""
    set_up_device()
    images, test_images = list_split(config, "train"), list_split(config, "val")
    test_images = test_images.with_classes_of(images.class_names, "the training folders")
    store = checked_label_store(config, images) if config.data.relabel.use else None
    batch_size = place.share(config.optim.batch_size, "optim.batch_size")
    place.share(config.util.val_batch_size, "util.val_batch_size")
    check_batches(images, batch_size, place, config)
    precision = Precision(config.compute.opt_level, place.device)
    fingerprint = hashlib.sha256("\n".join(images.names.tolist()).encode()).hexdigest()
    identity = {"arch": config.model.arch, "class_names": list(images.class_names), "images_sha256": fingerprint}

    folder = Path(config.util.run_dir)
    start = from_main(find_start(folder, config, identity, place.world_size) if place.is_main else None)
    assert start is not None
    torch.manual_seed(start.seed)
    model = build_model(config, len(images.class_names), precision)
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
            best = f"best top-1 {trainer.best_accuracy:.2f} % after epoch {trainer.best_epoch}"
            print(f"{folder} is finished: {best}. Set another --util.run_dir for a new run.", flush=True)
        return
    if place.is_main:
        open_run_folder(folder, config, start.seed)
        introduce(config, images, test_images, trainer)
    fit(trainer)


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
    """Run the trainer; whatever ends it early stands in status.json, from whichever process it came."""
    try:
        trainer.fit()
    except Preempted:
        sys.exit(EXIT_PREEMPTED)
    except Exception as error:
        write_status(trainer.folder, "failed", step=trainer.step, epoch=trainer.epoch, reason=str(error))
        raise


def list_split(config: FrozenMunch, split: str) -> ImageList:
    """The images of train/ or val/."""
    return list_images(Path(config.data.data_path) / split)


def checked_label_store(config: FrozenMunch, images: ImageList) -> LabelStore:
    """The label maps of the training images: all present, one of each class read and sound."""
    store = open_label_store(config.data.relabel.path, images.keys(), len(images.class_names))
    store.check_present(images.path)
    store.check_one_per_class(images.labels)
    return store


def check_batches(images: ImageList, batch_size: int, place: Place, config: FrozenMunch) -> None:
    """Refuse a training set smaller than a batch, and micro-batches that do not come out even."""
    steps_per_epoch(len(images), batch_size * place.world_size)
    if batch_size % config.optim.accumulation:
        raise UserError(
            f"optim.accumulation is {config.optim.accumulation}, which does not divide the {batch_size} images that "
            f"each process has in a batch.\n  Change --optim.accumulation or --optim.batch_size."
        )


def make_plan(config: FrozenMunch, images: ImageList, global_batch: int, seed: int) -> Plan:
    """The recipe as plain values and functions; the schedule's length comes from the data."""
    optim, cut = config.optim, config.data.cutmix
    steps = steps_per_epoch(len(images), global_batch)
    return Plan(
        epochs=optim.epochs,
        steps_per_epoch=steps,
        accumulation=optim.accumulation,
        learning_rate=partial(
            learning_rate,
            steps_per_epoch=steps,
            epochs=optim.epochs,
            warmup_epochs=optim.warmup.epochs,
            lr_init=optim.lr.init,
            warmup_lr=optim.warmup.lr,
            decay_type=optim.lr.decay_type,
        ),
        targets=make_targets(config, len(images.class_names)),
        cutmix_prob=cut.prob,
        cutmix_beta=cut.beta,
        cutmix_epochs=optim.epochs - cut.off_epoch,
        clip_grad_norm=optim.clip_grad_norm,
        ema_decay=optim.ema.decay,
        seed=seed,
        print_freq=config.util.print_freq,
        checkpoint_s=60.0 * config.util.checkpoint_minutes,
    )


def make_targets(config: FrozenMunch, num_classes: int) -> Callable[[Batch], Tensor]:
    """Batch -> soft targets [B, K]: from the label maps or the folders' labels, then smoothed."""
    smoothing = config.optim.label_smoothing
    relabel = config.data.relabel
    if not relabel.use:
        return lambda batch: smooth(original_target(batch.labels, num_classes), smoothing)

    def targets(batch: Batch) -> Tensor:
        assert batch.scores is not None and batch.classes is not None, "the dataset was built with a label store"
        target = relabel_target(
            batch.scores,
            batch.classes,
            batch.boxes,
            batch.labels,
            num_classes,
            fill=relabel.fill,
            temperature=relabel.temperature,
            supervision=relabel.supervision,
            ground_truth_weight=relabel.ground_truth_weight,
            box_axes=relabel.box_axes,
        )
        return smooth(target, smoothing)

    return targets


def train_loader(
    config: FrozenMunch, images: ImageList, store: LabelStore | None, plan: Plan, batch_size: int, place: Place
) -> Callable[[int], Iterable[Batch]]:
    """First update -> this process's training batches from there to the end of the run."""
    data = config.data
    view = RandomView(data.image_size, data.rrc_minimum, data.flip_prob, data.color_jitter, data.lighting, plan.seed)
    dataset = ImageDataset(images, view, store)

    def batches(start_step: int) -> Iterable[Batch]:
        sampler = TrainBatches(
            num_images=len(images),
            batch_size_per_process=batch_size,
            accumulation=plan.accumulation,
            rank=place.rank,
            world_size=place.world_size,
            seed=plan.seed,
            start_step=start_step,
            total_steps=plan.total_steps,
        )
        return make_loader(dataset, sampler, workers_of(config, place), place.device)

    return batches


# ---- what training and evaluation share


def set_up_device() -> None:
    """TF32 for what stays in float32, and convolutions chosen by timing; neither touches a CPU."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True


def build_model(config: FrozenMunch, num_classes: int, precision: Precision) -> nn.Module:
    """The network on its device; the same start for every process and every restart of a seed."""
    model = create_model(config.model.arch, num_classes)
    set_batch_norm(model, config.optim.bn.momentum, config.optim.bn.eps)
    return model.to(precision.device).to(memory_format=precision.memory_format)


def make_optimizer(config: FrozenMunch, model: nn.Module, device: torch.device) -> torch.optim.Optimizer:
    """The optimizer over every parameter."""
    optim = config.optim
    return create_optimizer(
        model.parameters(),
        optim.optimizer,
        lr=optim.lr.init,
        momentum=optim.momentum,
        nesterov=optim.nesterov,
        weight_decay=optim.wd.base,
        fused=device.type == "cuda",
    )


def test_loader(config: FrozenMunch, images: ImageList, place: Place) -> Callable[[], Iterable[Batch]]:
    """This process's share of a test set: whole images, resized and centre-cropped."""
    size = config.data.test_size or config.data.image_size
    dataset = ImageDataset(images, CentreView(size, config.data.crop_ratio))
    batch_size = place.share(config.util.val_batch_size, "util.val_batch_size")

    def batches() -> Iterable[Batch]:
        sampler = TestBatches(len(images), batch_size, place.rank, place.world_size)
        return make_loader(dataset, sampler, workers_of(config, place), place.device)

    return batches


def workers_of(config: FrozenMunch, place: Place) -> int:
    """Loader workers of this process: its share, capped by its share of the cores; 0 stays 0."""
    wanted = place.share(config.compute.num_workers, "compute.num_workers")
    return min(wanted, max(1, available_cores() // place.local_world_size))


# ---- evaluation


def test(place: Place, config: FrozenMunch) -> None:
    """One process of `--util.test_only True`: print top-1 and top-5 with n, write evaluation-<weights>.json."""
    set_up_device()
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
    scores = {}
    for name, state_dict in weights.items():
        load_from(path, model, state_dict, content.get("arch"))
        scores[name] = evaluate(model, test_loader(config, images, place)(), precision)
        if place.is_main:
            print(f"{path}{' (EMA)' * (name == 'ema')}  {scores[name]}", flush=True)
    if place.is_main:
        folder = Path(config.util.run_dir)
        folder.mkdir(parents=True, exist_ok=True)
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
