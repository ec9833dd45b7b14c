"""The learning rate as a pure function of the step, so that resuming needs no scheduler state."""

import math

STEP_DECAY_EPOCHS = (30, 60, 90)


def learning_rate(
    step: int,
    steps_per_epoch: int,
    epochs: int,
    warmup_epochs: float,
    lr_init: float,
    warmup_lr: float,
    decay_type: str,
) -> float:
    """Return the learning rate of one update: linear warm-up, then decay, equal to the 2021 code's (tests/golden).

    Args:
        step: updates done before this one, 0 .. epochs * steps_per_epoch - 1.
        steps_per_epoch: updates in an epoch, from the actual length of the data.
        epochs: length of the whole run, warm-up included.
        warmup_epochs: epochs in which the rate rises linearly from warmup_lr; the first step after them has lr_init.
        lr_init: the peak rate.
        warmup_lr: rate of step 0, if there is a warm-up.
        decay_type: "cos" or "linear": decay per step over the steps after the warm-up, to 0 one step after the last;
            or "default": x 0.1 at epochs 30, 60 and 90 counted from epoch 0, constant within an epoch.

    Returns:
        The learning rate.

    Raises:
        ValueError: an unknown decay_type.
    """
    warmup_steps = warmup_epochs * steps_per_epoch
    if step < warmup_steps:
        return warmup_lr + (lr_init - warmup_lr) * step / warmup_steps
    # max: a run that is all warm-up gets here only for the rate after its last step.
    progress = (step - warmup_steps) / max(epochs * steps_per_epoch - warmup_steps, 1)
    match decay_type:
        case "cos":
            return lr_init * (1 + math.cos(math.pi * progress)) / 2
        case "linear":
            return lr_init * (1 - progress)
        case "default":
            epoch = step // steps_per_epoch
            return lr_init * 0.1 ** sum(epoch >= drop for drop in STEP_DECAY_EPOCHS)
    raise ValueError(f"decay_type must be cos, linear or default, not {decay_type!r}")
