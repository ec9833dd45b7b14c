"""Build the network of a run from its config: what it expects of its input, and the weights that it starts from."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.batch_norm import set_batch_norm
from models.beside import input_of_run
from models.build import create_model, head_tensors, with_own_head
from models.classifier import Weights, open_weights
from models.data_config import DataConfig, resolve
from models.recorded import DATA_CONFIG, FACTS_OF_2021, recorded_data_config
from relabel.data.class_names import class_order
from relabel.data.dataset import CenterCrop
from utils.checkpoint import LAST
from utils.config.dotted_keys import flatten
from utils.config.frozen_munch import FrozenMunch
from utils.errors import UserError, with_advice
from utils.precision import Precision
from utils.run_folder import Start

CLASSES_FLAG = "--eval.classes"
INPUT_FLAGS = "--data.test_size, --data.crop_ratio, --data.interpolation, --data.mean and --data.std"


def open_start(config: FrozenMunch) -> Weights:
    """Find the weights that a new run starts from; they may lack the classification head."""
    with with_advice("Correct --model.arch or --model.weights."):
        return open_weights(config.model.arch, config.model.weights, needs_head=False)


def given_input(config: FrozenMunch) -> dict[str, Any]:
    """Return the fields of DataConfig that a config gives; null (`auto` for crop_ratio) leaves a key to the network."""
    data = config.data
    found = {"interpolation": data.interpolation, "mean": data.mean, "std": data.std, "bn_eps": config.optim.bn.eps}
    if data.test_size:
        found["size"] = (data.test_size, data.test_size)
    given = {name: value for name, value in found.items() if value is not None}
    return given if data.crop_ratio == "auto" else given | {"crop_ratio": data.crop_ratio}


def training_input(config: FrozenMunch, weights: Weights | None, start: Start) -> DataConfig:
    """Find what the network of a run expects of its input.

    Args:
        config: of the run.
        weights: those that a new run starts from; None: random ones, which get the values of 2021.
        start: where the run starts.
    """
    given, side = given_input(config), config.data.image_size
    if side:
        given = {"size": (side, side), "train_size": side} | given
    if start.state is not None:
        found = resolve([("given", given), ("as before", _as_before(config, start))], INPUT_FLAGS)
    elif weights:
        found = weights.data_config(given, f"--data.image_size, {INPUT_FLAGS}")
    else:
        found = resolve([("given", given)], INPUT_FLAGS)
    if found.train_size == found.side:
        return found
    return replace(found, source=f"training crops of {found.train_size} x {found.train_size} pixels; {found.source}")


def _as_before(config: FrozenMunch, start: Start) -> dict[str, Any]:
    """Return what the checkpoint records; or, of an earlier version that records nothing, its run's config."""
    assert start.state is not None
    recorded, _ = recorded_data_config(start.state, Path(LAST))
    if DATA_CONFIG in start.state:
        return recorded
    return FACTS_OF_2021 | input_of_run({**flatten(config.toDict()), **start.kept})


def evaluation_input(config: FrozenMunch, weights: Weights) -> DataConfig:
    """Find what the network of a checkpoint expects of its input; data.image_size counts if no test size is known."""
    given, side, recorded = given_input(config), config.data.image_size, weights.recorded
    if side and "size" not in recorded:
        given = {"size": (side, side)} | given
    found = weights.data_config(given, INPUT_FLAGS)
    if not side or "size" in given or side in (found.side, recorded.get("train_size")):
        return found
    ignored = f"data.image_size {side} has no effect here, --data.test_size {side} has"
    return replace(found, source=f"{found.source}; {ignored}")


def build_model(config: FrozenMunch, num_classes: int, precision: Precision, data_config: DataConfig) -> nn.Module:
    """Build a new network on its device; torch's seed must be set: every process starts from the same weights.

    Raises:
        UserError: the network does not exist, or cannot classify images of the run's sizes.
    """
    names = config.model
    with with_advice("Correct --model.arch, or leave out the drop rate that it does not have."):
        rates = names.drop_rate, names.drop_path_rate
        model = create_model(names.arch, num_classes, data_config.size, *rates, data_config.model_args)
    set_batch_norm(model, config.optim.bn.momentum, data_config.bn_eps)
    check_image_sizes(config.model.arch, model.eval(), {data_config.train_size, data_config.side})
    return model.train().to(precision.device).to(memory_format=torch.channels_last)


@torch.inference_mode()
def check_image_sizes(
    arch: str,
    model: nn.Module,
    sizes: Collection[int],
    flags: str = "--model.arch, --data.image_size or --data.test_size",
) -> None:
    """Check that the network accepts images of these sizes; on the CPU, where no error can come from a GPU.

    Args:
        arch: its name, for the message.
        model: in evaluation mode.
        sizes: sides of square images, pixels.
        flags: those that select the network and the size, for the message.

    Raises:
        UserError: it does not.
    """
    for size in sorted(sizes):
        try:
            shape = model(torch.zeros(1, 3, size, size)).shape
            assert len(shape) == 2, f"it gives {list(shape)} instead of one logit per class"
        except (RuntimeError, ValueError, AssertionError, AttributeError) as error:
            raise UserError(
                f"{arch} cannot classify images of {size} x {size} pixels: {str(error).splitlines()[0]}\n"
                f"  Set another {flags}."
            ) from error


def start_from(weights: Weights, model: nn.Module, class_names: Sequence[str], class_list: str | None = None) -> str:
    """Load weights into a new network; of a file with averaged weights, those.

    The classification head is loaded only if it is for the same classes, and then in their order; otherwise it is zero,
    so that every class begins with the same probability.

    Args:
        weights: to start from.
        model: changed in place.
        class_names: of the training folders.
        class_list: as in relabel.data.class_names.class_order.

    Returns:
        a line that describes what was loaded.

    Raises:
        UserError: tensors other than the head do not match, or the class list is of other classes.
    """
    name, order = weights.preferred, class_order(weights, class_list, class_names, CLASSES_FLAG)
    state_dict = weights.state_dicts[name]
    same = order.groups is None and sorted(order.names or ()) == sorted(class_names)
    if same and order.names is not None and order.names != list(class_names):
        rows = [order.names.index(class_name) for class_name in class_names]
        state_dict = state_dict | {tensor: state_dict[tensor][rows] for tensor in head_tensors(weights.arch)}
    own = state_dict if same else with_own_head(model, weights.arch, state_dict)
    if not same:  # a random head would begin with confident errors, and spoil what the weights know
        own |= {tensor: torch.zeros_like(own[tensor]) for tensor in head_tensors(weights.arch)}
    weights.load(model, own, "--model.arch", "--data.image_size")
    if same:
        head = f"included (classes: {order.source})"
    elif weights.num_classes == 0:
        head = "new: they have none"
    else:
        head = f"new: theirs is for {weights.num_classes:,} classes ({order.source}), not these {len(class_names):,}"
    note = f" ({weights.note})" if weights.note else ""
    return f"starting from {weights.title}{' (EMA)' * (name == 'ema')}{note}, classification head {head}"


def center_crop(data_config: DataConfig) -> CenterCrop:
    """Build the evaluation transform: resize and center crop."""
    return CenterCrop(data_config.side, data_config.crop_ratio, data_config.interpolation, data_config.squash)
