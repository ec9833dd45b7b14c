"""Build how a run trains from its config: batch size, learning rate, optimizer; and say what the data changed in it."""

from functools import partial

import torch
from torch import nn

from models.batch_norm import has_batch_norm
from relabel.training.trainer import Recipe
from utils.config.frozen_munch import FrozenMunch
from utils.errors import UserError
from utils.optimizers import create_optimizer, without_decay_of_norms_and_biases
from utils.processes.distributed import Process
from utils.progress import counted
from utils.schedule import learning_rate

REFERENCE_BATCH = 256
DROPPED_SHARE = 0.01  # of the images; a smaller rest is not worth a line


def global_batch(config: FrozenMunch, num_images: int, process: Process) -> int:
    """Return the number of images in an update, over all processes.

    Args:
        config: of the run.
        num_images: in train/; a batch larger than that is made smaller. 0: it is left as it is.
        process: this process.

    Raises:
        UserError: the batch cannot be divided among processes and micro-batches.
    """
    accumulation, processes = config.optim.accumulation, process.world_size
    share = process.share(config.optim.batch_size, "optim.batch_size")
    if share % accumulation:
        raise UserError(
            f"optim.accumulation is {accumulation}, but the {share} images of a batch on each process are not "
            f"divisible by it.\n  Change --optim.accumulation or --optim.batch_size."
        )
    largest = num_images // (processes * accumulation) * processes * accumulation
    return min(share * processes, largest) if largest else share * processes


def check_micro_batch(config: FrozenMunch, model: nn.Module, batch_size: int, process: Process) -> None:
    """Check that batch norm gets more than one image at a time; of one, it subtracts all that it normalizes.

    Args:
        config: of the run.
        model: its network.
        batch_size: images in an update, over all processes.
        process: this process.

    Raises:
        UserError: each micro-batch is one image.
    """
    accumulation = config.optim.accumulation
    if batch_size > process.world_size * accumulation or not has_batch_norm(model):
        return
    if accumulation > 1:
        parts = next(n for n in range(accumulation // 2, 0, -1) if accumulation % n == 0)
        split, remedy = f" in {accumulation} parts", f"--optim.accumulation {parts}"
    else:
        split, remedy = "", f"--optim.batch_size {2 * process.local_world_size}"
    raise UserError(
        f"the network gets one image at a time (batch of {batch_size}{split}, {process.world_size} process(es)), but "
        f"{config.model.arch} has batch norm, which needs at least two.\n"
        f"  Give {remedy}, or a --model.arch without batch norm."
    )


def make_optimizer(config: FrozenMunch, model: nn.Module, device: torch.device) -> torch.optim.Optimizer:
    """Build the optimizer over every parameter."""
    optim = config.optim
    decays_all = optim.wd.on_norms_and_biases
    return create_optimizer(
        model.parameters() if decays_all else without_decay_of_norms_and_biases(model, optim.wd.base),
        optim.optimizer,
        lr=optim.lr.init,
        momentum=optim.momentum,
        nesterov=optim.nesterov,
        weight_decay=optim.wd.base,
        fused=device.type == "cuda",
    )


def make_recipe(config: FrozenMunch, steps_per_epoch: int, batch_size: int, seed: int) -> Recipe:
    """Build the recipe; steps_per_epoch and the batch size over all processes come from the data."""
    optim, mixing = config.optim, config.data.cutmix
    scale = rate_scale(config, batch_size)
    return Recipe(
        epochs=optim.epochs,
        steps_per_epoch=steps_per_epoch,
        batch_size=batch_size,
        accumulation=optim.accumulation,
        learning_rate=partial(
            learning_rate,
            steps_per_epoch=steps_per_epoch,
            epochs=optim.epochs,
            warmup_epochs=warmup_epochs(config),
            lr_init=optim.lr.init * scale,
            warmup_lr=optim.warmup.lr * scale,
            decay_type=optim.lr.decay_type,
        ),
        cutmix_prob=mixing.prob,
        cutmix_beta=mixing.beta,
        cutmix_epochs=optim.epochs - mixing.off_epoch,
        clip_grad_norm=optim.clip_grad_norm,
        ema_decay=optim.ema.decay,
        seed=seed,
        print_freq=config.util.print_freq,
        checkpoint_minutes=config.util.checkpoint_minutes,
    )


def rate_scale(config: FrozenMunch, batch_size: int) -> float:
    """Return what the configured learning rates are multiplied by."""
    return batch_size / REFERENCE_BATCH if config.optim.lr.per_256 else 1.0


def warmup_epochs(config: FrozenMunch) -> float:
    """Return the length of the warm-up: as configured, or half of a run that is shorter than that."""
    optim = config.optim
    return float(optim.warmup.epochs if optim.warmup.epochs <= optim.epochs else optim.epochs / 2)


def recipe_notes(config: FrozenMunch, num_images: int, recipe: Recipe, process: Process) -> list[str]:
    """Say what became of batch, rate and warm-up with these data, in lines.

    Args:
        config: of the run.
        num_images: in train/.
        recipe: of the run.
        process: this process.
    """
    optim, batch_size, lines = config.optim, recipe.batch_size, []

    def left_out(size: int) -> int:
        return num_images % max(1, size - round(config.data.extra.share * size))

    dropped = left_out(batch_size)
    if batch_size < optim.batch_size:
        lines.append(f"train/ has {counted(num_images, 'image')}: batches of {batch_size:,}, not {optim.batch_size:,}")
    if optim.lr.per_256:
        rate = optim.lr.init * rate_scale(config, batch_size)
        lines.append(f"learning rate {rate:.3g}: {optim.lr.init:g} per 256 images, scaled to batches of {batch_size:,}")
    if dropped > DROPPED_SHARE * num_images:
        share = f"{100 * dropped / num_images:.1f} %"
        unit = process.world_size * recipe.accumulation
        better = min(range(batch_size, batch_size // 2, -unit), key=left_out)
        given = better * process.local_world_size // process.world_size
        remedy = f"; in a new run, --optim.batch_size {given} leaves out {left_out(better) or 'none'}"
        lines.append(
            f"an epoch leaves out {dropped:,} of {num_images:,} images ({share}), others each time, because its last "
            f"batch is not full{remedy if left_out(better) < dropped else ''}"
        )
    if warmup_epochs(config) != optim.warmup.epochs:
        lines.append(
            f"warm-up in the first half of the run: optim.warmup.epochs is {optim.warmup.epochs}, more than its "
            f"{counted(optim.epochs, 'epoch')}"
        )
    return lines
