"""Build the parts of a run from its config: data, loaders, targets, trainer; each is checked when built."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.data_config import DataConfig
from relabel.config.rules import joined_folders
from relabel.data.batch import Batch
from relabel.data.dataset import CenterCrop, ImageDataset, RandomResizedCrop
from relabel.data.decode import resolve_decoder
from relabel.data.extra_images import ExtraBatches, ExtraRoot, MixedDataset, open_extra_root
from relabel.data.folders import folder_names
from relabel.data.gpu_decode import check_gpu_decoder
from relabel.data.images import HOW_TO_NAME, ImageList
from relabel.data.keep_list import divide, keep_listed
from relabel.data.loader import Loader, TrainBatches, eval_batches, steps_per_epoch
from relabel.data.skipped_images import SkippedImages, SkippingDataset
from relabel.data.sources import named_after, open_split
from relabel.stores.store import LabelStore, check_one_per_class, check_present, open_label_store
from relabel.targets import TargetMaker
from relabel.training.network import build_model, center_crop, open_start, start_from, training_input
from relabel.training.recipe import check_micro_batch, global_batch, make_optimizer, make_recipe
from relabel.training.trainer import Trainer
from relabel.training.validation import Score, evaluate
from utils.config.frozen_munch import FrozenMunch
from utils.errors import UserError, with_advice
from utils.precision import Precision
from utils.processes.distributed import Process, cores_of, from_main
from utils.progress import print_lines
from utils.run_folder import Start

_DATA_ADVICE = "Check --data.data_path."
_WITHOUT_MAPS = (
    "Or train on a list of the images that have a map, --data.keep_list FILE, or without label maps, "
    "--data.relabel.use False."
)


@dataclass(frozen=True, slots=True, eq=False)
class TrainingData:
    """The data that a run trains and validates on.

    Fields:
        images: of train/.
        val: images of val/, with the classes of train/.
        store: label maps of the training images; None: their folders' labels are used.
        extra: folders of extra images with their label maps.
    """

    images: ImageList
    val: ImageList
    store: LabelStore | None = None
    extra: Sequence[ExtraRoot] = ()

    @property
    def extra_images(self) -> int:
        """Number of extra images."""
        return sum(map(len, self.extra))

    def image_name(self, index: int) -> str:
        """Return the name of an image; extra images are counted after those of train/."""
        for images in (self.images, *(root.images for root in self.extra)):
            if index < len(images):
                return images.name(index)
            index -= len(images)
        raise IndexError(index)


def set_up_device(device: torch.device, decoder: str = "auto") -> None:
    """On a GPU, use TF32 for what stays in float32, and choose convolution algorithms by timing.

    Raises:
        UserError: data.decoder is gpu, but this device cannot decode.
    """
    if decoder == "gpu":
        check_gpu_decoder(device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True


def list_split(config: FrozenMunch, split: str) -> ImageList:
    """Return the images of train (only those on the keep list, if any) or of val, listed by the main process.

    One line says where they come from and what is not used.
    """
    keys = config.data

    def listed() -> ImageList:
        part = "train" if split == "val" and keys.val_share else split
        given = [key for key in (part if keys[part] else "data_path", f"{part}_labels") if keys[key]]
        with with_advice(f"Check {' and '.join(f'--data.{key}' for key in given)}."):
            images = open_split(keys.data_path, part, keys[part], keys[f"{part}_labels"])
        if keys.val_share:
            _check_no_val(keys)
            images = divide(images, keys.val_share, split)
        if split == "train" and keys.keep_list:
            images = keep_listed(images, keys.keep_list)
        print_lines(images.described(split))
        return images

    return from_main(listed)


def _check_no_val(keys: FrozenMunch) -> None:
    """Raise UserError if there are validation images although some of the training images are to be set aside."""
    if (
        found := keys.val
        or keys.val_labels
        or (keys.data_path and not keys.train and named_after(keys.data_path, "val"))
    ):
        raise UserError(
            f"data.val_share is {keys.val_share:g}, but there are validation images: {found}; expected one of the two. "
            "Leave out --data.val_share, or give the training images with --data.train SOURCE"
        )


def open_training_data(config: FrozenMunch) -> TrainingData:
    """List the images and open their label maps; check that none is missing and that one per class is valid.

    Raises:
        UserError: there is one class; or images or label maps are missing, damaged or of other classes.
    """
    images, val = list_split(config, "train"), list_split(config, "val")
    _check_two_classes(images)
    with with_advice(_DATA_ADVICE):
        val = val.with_classes_of(images.class_names, "the training folders", images.numbers)
    if not config.data.relabel.use:
        return TrainingData(images, val)
    with with_advice(f"These label maps are those of --data.relabel.path {config.data.relabel.path}."):
        with with_advice(HOW_TO_NAME) if images.numbered else nullcontext():
            store = open_label_store(config.data.relabel.path, images.keys(), images.class_names)
            with with_advice(_WITHOUT_MAPS):
                from_main(lambda: check_present(store, images.path))
        check_one_per_class(store, images.labels)
    extra = config.data.extra
    folders = zip(joined_folders(extra.path), joined_folders(extra.labels), strict=True) if extra.share else ()
    shape = store.read(0).shape
    roots = [open_extra_root(path, labels, images.class_names, shape) for path, labels in folders]
    return TrainingData(images, val, store, roots)


def _check_two_classes(images: ImageList) -> None:
    """Raise UserError if there is one class; tell if its folder seems to contain the class folders."""
    if len(images.class_names) != 1:
        return
    name = images.class_names[0]
    below = Path(images.root, name)
    inside = folder_names(below) if below.is_dir() else []
    hint = f" Or did you mean --data.train {below}, with {inside[0]}/, {inside[1]}/?" if len(inside) > 1 else ""
    raise UserError(
        f"{images.root}: found one class, {name}; expected at least two, because with one there is nothing to learn. "
        f"Put the images of each class into a folder of their own.{hint}\n  {_DATA_ADVICE}"
    )


def make_trainer(
    config: FrozenMunch,
    data: TrainingData,
    precision: Precision,
    process: Process,
    identity: dict[str, Any],
    start: Start,
) -> Trainer:
    """Build the trainer, in the state of the checkpoint if there is one; nothing is written yet."""
    weights = open_start(config) if config.model.weights and not start.state else None
    data_config = training_input(config, weights, start)
    batch_size = global_batch(config, 0 if data.extra else len(data.images), process)
    steps, train_batches = train_loader(config, data, batch_size, process, start.seed, data_config)
    val_batches = eval_loader(config, data.val, process, center_crop(data_config))
    torch.manual_seed(start.seed)
    model = build_model(config, len(data.images.class_names), precision, data_config)
    check_micro_batch(config, model, batch_size, process)
    loaded = start_from(weights, model, data.images.class_names, config.eval.classes or None) if weights else ""
    if process.is_main:
        decoder = "" if config.data.decoder != "gpu" else f"JPEG files: decoder {resolve_decoder('gpu')}"
        print_lines("\n".join(filter(None, [loaded, f"input: {data_config.source}", decoder])))

    def validate(networks: Mapping[str, nn.Module]) -> dict[str, Score]:
        return evaluate(networks, data.val, val_batches(), precision, process, data_config)

    trainer = Trainer(
        model=model,
        optimizer=make_optimizer(config, model, process.device),
        recipe=make_recipe(config, steps, batch_size, start.seed),
        precision=precision,
        process=process,
        train_batches=train_batches,
        target_maker=build_target_maker(config, len(data.images.class_names)),
        evaluate=validate,
        skipped_images=SkippedImages(Path(config.util.run_dir), len(data.images) + data.extra_images),
        identity={**identity, "seed": start.seed},
        data_config=data_config,
        folder=Path(config.util.run_dir),
        tensorboard=config.util.tensorboard,
        wandb=config.util.wandb,
    )
    if start.state is not None:
        trainer.resume(start.state)
    return trainer


def memory_advice(config: FrozenMunch) -> str:
    """Return the advice for when memory runs out: the batch sizes, and the keys that lower them."""
    return (
        f"optim.batch_size is {config.optim.batch_size} in {config.optim.accumulation} part(s), util.val_batch_size "
        f"{config.util.val_batch_size}. Lower --optim.batch_size, raise --optim.accumulation or lower "
        "--util.val_batch_size; or end other programs on this device."
    )


def build_target_maker(config: FrozenMunch, num_classes: int) -> TargetMaker:
    """Build the TargetMaker, which makes targets [B, K] from a batch's label maps or labels."""
    relabel = config.data.relabel
    return TargetMaker(
        num_classes,
        smoothing=config.optim.label_smoothing,
        fill=relabel.fill,
        temperature=relabel.temperature,
        supervision=relabel.supervision,
        ground_truth_weight=relabel.ground_truth_weight,
        box_axes=relabel.box_axes,
    )


def train_loader(
    config: FrozenMunch, data: TrainingData, global_batch: int, process: Process, seed: int, data_config: DataConfig
) -> tuple[int, Callable[[int], Iterable[Batch]]]:
    """Build the training batches of `global_batch` images over all processes.

    Returns:
        The number of updates in an epoch; and a function: first update -> this process's batches from there to the end
        of the run.

    Raises:
        UserError: the images do not fill a batch, or there is no room for extra images in it.
    """
    keys = config.data
    from_extra = round(keys.extra.share * global_batch)
    if data.extra and not 0 < from_extra < global_batch:
        raise UserError(
            f"data.extra.share is {keys.extra.share:g}, which is {from_extra} of the {global_batch} images of a batch; "
            "expected at least one, and one left for train/.\n  Change --data.extra.share or --optim.batch_size."
        )
    steps = steps_per_epoch(len(data.images), global_batch - from_extra)
    transform = RandomResizedCrop(
        data_config.train_size, keys.rrc_minimum, keys.flip_prob, keys.color_jitter, keys.lighting, seed,
        data_config.interpolation, always_check=keys.decoder == "gpu" and keys.on_error == "skip",
    )  # fmt: skip
    decoder, most = resolve_decoder(keys.decoder), keys.max_megapixels
    main = ImageDataset(data.images, transform, data.store, decoder, max_megapixels=most)
    mixed = MixedDataset(main, data.extra) if data.extra else main
    dataset = SkippingDataset(mixed, skip=keys.on_error == "skip")
    extra = ExtraBatches(len(main), data.extra_images, from_extra, seed) if data.extra else None

    def batches(start_step: int) -> Iterable[Batch]:
        """Return this process's batches from an update to the end of the run."""
        sampler = TrainBatches(
            num_images=len(data.images),
            batch_size_per_process=global_batch // process.world_size,
            accumulation=config.optim.accumulation,
            rank=process.rank,
            world_size=process.world_size,
            seed=seed,
            start_step=start_step,
            total_steps=config.optim.epochs * steps,
            extra=extra,
        )
        return Loader(dataset, sampler, workers_of(config, process), process.device)

    return steps, batches


def eval_loader(
    config: FrozenMunch, images: ImageList, process: Process, transform: CenterCrop
) -> Callable[[], Iterable[Batch]]:
    """Return a function that gives this process's share of an evaluation set."""
    decoder, most = resolve_decoder(config.data.decoder), config.data.max_megapixels
    dataset = ImageDataset(images, transform, decoder=decoder, max_megapixels=most)
    batch_size = process.share(config.util.val_batch_size, "util.val_batch_size")

    def batches() -> Iterable[Batch]:
        """Return this process's batches of the set, once."""
        sampler = eval_batches(len(images), batch_size, process.rank, process.world_size)
        return Loader(dataset, sampler, workers_of(config, process), process.device)

    return batches


def workers_of(config: FrozenMunch, process: Process) -> int:
    """Return the number of loader workers of this process: its share, rounded up, at most its share of the cores."""
    wanted = -(-config.compute.num_workers // process.local_world_size)
    return min(wanted, cores_of(process))
