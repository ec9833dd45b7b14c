"""From the config to the parts of a run: data, targets, network, optimizer, plan; each checked as it is built."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from models.batch_norm import set_batch_norm
from models.build import create_model, load_weights, with_own_head
from relabel.config.rules import joined_folders
from relabel.data.dataset import CenterCrop, ImageDataset, RandomResizedCrop
from relabel.data.decode import resolve_decoder
from relabel.data.extra_images import ExtraBatches, ExtraRoot, MixedDataset, open_extra_root
from relabel.data.images import ImageList, keep_listed, list_images
from relabel.data.loader import Batch, Loader, TestBatches, TrainBatches, steps_per_epoch
from relabel.data.skipped_images import SkippingDataset
from relabel.stores.store import LabelStore, check_one_per_class, check_present, open_label_store
from relabel.targets import TargetMaker
from relabel.training.trainer import Recipe
from utils.checkpoint import load_checkpoint, named_classes, split_weights
from utils.config.frozen_munch import FrozenMunch
from utils.device_errors import is_device_error
from utils.errors import UserError, with_advice
from utils.optimizers import create_optimizer
from utils.precision import Precision
from utils.processes.distributed import Process, cores_of, from_main
from utils.schedule import learning_rate

_WITHOUT_MAPS = (
    "Check --data.relabel.path, name the images that have a map in --data.keep_list, or train without label maps: "
    "--data.relabel.use False"
)


def set_up_device(device: torch.device) -> None:
    """On a GPU: TF32 for what stays in float32, and convolutions chosen by timing."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True


def list_split(config: FrozenMunch, split: str) -> ImageList:
    """List the images of train/ (those on the keep list, if there is one) or of val/; the main process does for all."""
    with with_advice("Check --data.data_path."):
        images = from_main(lambda: list_images(Path(config.data.data_path) / split))
    return keep_listed(images, config.data.keep_list) if split == "train" and config.data.keep_list else images


def checked_label_store(config: FrozenMunch, images: ImageList) -> LabelStore:
    """The label maps of the training images: all present, one of each class read and sound."""
    with with_advice(_WITHOUT_MAPS):
        store = open_label_store(config.data.relabel.path, images.keys(), images.class_names)
        from_main(lambda: check_present(store, images.path))
        check_one_per_class(store, images.labels)
    return store


def open_extra_images(config: FrozenMunch, images: ImageList, store: LabelStore) -> list[ExtraRoot]:
    """The folders of data.extra, checked as the training images are, with maps of the same shape; none at share 0."""
    extra = config.data.extra
    if not extra.share:
        return []
    shape = store.read(0).shape
    pairs = zip(joined_folders(extra.path), joined_folders(extra.labels), strict=True)
    return [open_extra_root(path, labels, images.class_names, shape) for path, labels in pairs]


def extra_per_batch(config: FrozenMunch, global_batch: int) -> int:
    """Extra images in the batch of one update over all processes: data.extra.share of it, rounded.

    Raises:
        UserError: that is none of it, or all.
    """
    share = config.data.extra.share
    count = round(share * global_batch)
    if share and not 0 < count < global_batch:
        raise UserError(
            f"data.extra.share is {share:g}, which is {count} of the {global_batch} images of a batch; expected some "
            "of them, and some left for train/.\n  Change --data.extra.share or --optim.batch_size."
        )
    return count


def build_model(config: FrozenMunch, num_classes: int, precision: Precision) -> nn.Module:
    """The network on its device; the same start for every process and every restart of a seed."""
    model = create_model(config.model.arch, num_classes)
    set_batch_norm(model, config.optim.bn.momentum, config.optim.bn.eps)
    return model.to(precision.device).to(memory_format=torch.channels_last)


def start_weights(config: FrozenMunch, model: nn.Module, class_names: Sequence[str]) -> str:
    """Put the weights of model.weights into a new network; returns a line that says what was taken over.

    The averaged (EMA) weights where the file has them. The classification head only where the file names the same
    classes in the same order; otherwise it stays as it is.

    Raises:
        UserError: the file cannot be read, or anything but the head is of another network.
    """
    path = Path(config.model.weights)
    content = load_checkpoint(path)
    weights = split_weights(content, path)
    name = "ema" if "ema" in weights else "model"
    known = named_classes(content, path)
    same = known == list(class_names)
    state_dict = weights[name] if same else with_own_head(model, config.model.arch, weights[name])
    load_from(path, model, state_dict, content.get("arch"))
    named = f"names {len(known)} classes" if known else "does not name its classes"
    head = "too" if same else f"anew: the file {named}, and not these {len(class_names)} in this order"
    return f"starting from {path}{' (EMA)' * (name == 'ema')}, the classification head {head}"


def load_from(
    path: Path, model: nn.Module, state_dict: dict[str, Tensor], arch: str | None, flag: str = "--model.arch"
) -> None:
    """Put a checkpoint's weights into the network; an error names the file and the network it was made with."""
    try:
        load_weights(model, state_dict)
    except UserError as error:
        made_with = f"\n  The file says that it holds a {arch}: set {flag} {arch}." if arch else ""
        raise UserError(f"{path}: {error}{made_with}") from None


@torch.inference_mode()
def check_image_sizes(config: FrozenMunch, model: nn.Module, num_classes: int, precision: Precision) -> None:
    """One forward pass for each image size of the run: some networks refuse small images, or only take one size."""
    model.eval()
    for size in sorted({config.data.image_size, config.data.test_size or config.data.image_size}):
        try:
            shape = model(torch.zeros(1, 3, size, size, device=precision.device)).shape
            assert shape == (1, num_classes), f"it gives {list(shape)} instead of one logit per class"
        except (RuntimeError, ValueError, AssertionError, AttributeError) as error:
            if is_device_error(error):
                raise
            raise UserError(
                f"{config.model.arch} cannot classify images of {size} x {size} pixels: {str(error).splitlines()[0]}\n"
                f"  Set another --model.arch, --data.image_size or --data.test_size."
            ) from error
    model.train()


def memory_advice(config: FrozenMunch) -> str:
    """Name the batch sizes, and the keys that lower them, for when memory runs out."""
    return (
        f"optim.batch_size is {config.optim.batch_size} in {config.optim.accumulation} part(s), util.val_batch_size "
        f"{config.util.val_batch_size}. Lower --optim.batch_size, raise --optim.accumulation or lower "
        "--util.val_batch_size; or end other programs on this device."
    )


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


def check_batches(images: ImageList, batch_size: int, process: Process, config: FrozenMunch) -> None:
    """Refuse a training set smaller than a batch, and micro-batches that do not come out even."""
    global_batch = batch_size * process.world_size
    steps_per_epoch(len(images), global_batch - extra_per_batch(config, global_batch))
    if batch_size % config.optim.accumulation:
        raise UserError(
            f"optim.accumulation is {config.optim.accumulation}, which does not divide the {batch_size} images that "
            f"each process has in a batch.\n  Change --optim.accumulation or --optim.batch_size."
        )


def make_recipe(config: FrozenMunch, images: ImageList, global_batch: int, seed: int) -> Recipe:
    """The recipe as plain values and functions; the schedule's length comes from the data."""
    optim, cut = config.optim, config.data.cutmix
    steps = steps_per_epoch(len(images), global_batch - extra_per_batch(config, global_batch))
    return Recipe(
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


def make_targets(config: FrozenMunch, num_classes: int) -> TargetMaker:
    """What makes soft targets [B, K] of a batch's label maps or of its labels."""
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
    config: FrozenMunch,
    images: ImageList,
    store: LabelStore | None,
    extra: Sequence[ExtraRoot],
    recipe: Recipe,
    batch_size: int,
    process: Process,
) -> Callable[[int], Iterable[Batch]]:
    """First update -> this process's training batches from there to the end of the run."""
    data = config.data
    view = RandomResizedCrop(
        data.image_size, data.rrc_minimum, data.flip_prob, data.color_jitter, data.lighting, recipe.seed
    )
    main = ImageDataset(images, view, store, resolve_decoder(data.decoder))
    mixed = MixedDataset(main, extra) if extra else None
    per_batch = extra_per_batch(config, batch_size * process.world_size)
    dataset = SkippingDataset(mixed or main) if data.on_error == "skip" else mixed or main
    passes = ExtraBatches(len(main), len(mixed) - len(main), per_batch, recipe.seed) if mixed else None

    def batches(start_step: int) -> Iterable[Batch]:
        sampler = TrainBatches(
            num_images=len(images),
            batch_size_per_process=batch_size,
            accumulation=recipe.accumulation,
            rank=process.rank,
            world_size=process.world_size,
            seed=recipe.seed,
            start_step=start_step,
            total_steps=recipe.total_steps,
            extra=passes,
        )
        return Loader(dataset, sampler, workers_of(config, process), process.device)

    return batches


def test_view(config: FrozenMunch) -> CenterCrop:
    """How a test looks at images: resized and centre-cropped."""
    return CenterCrop(config.data.test_size or config.data.image_size, config.data.crop_ratio)


def test_loader(
    config: FrozenMunch, images: ImageList, process: Process, view: CenterCrop | None = None
) -> Callable[[], Iterable[Batch]]:
    """This process's share of a test set; view: None = test_view."""
    dataset = ImageDataset(images, view or test_view(config), decoder=resolve_decoder(config.data.decoder))
    batch_size = process.share(config.util.val_batch_size, "util.val_batch_size")

    def batches() -> Iterable[Batch]:
        sampler = TestBatches(len(images), batch_size, process.rank, process.world_size)
        return Loader(dataset, sampler, workers_of(config, process), process.device)

    return batches


def workers_of(config: FrozenMunch, process: Process) -> int:
    """Loader workers of this process: its share, rounded up and capped by its share of the cores; 0 stays 0."""
    wanted = -(-config.compute.num_workers // process.local_world_size)
    return min(wanted, cores_of(process))
