"""The teacher: a classifier from torchvision, timm or this project, turned into a network that makes label maps."""

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from models.build import OURS, library_of
from models.classifier import IMAGENET_CLASSES, RANDOM, Weights, open_weights
from models.data_config import DataConfig
from models.fully_convolutional import fully_convolutional
from models.merged_classes import MergedClasses
from relabel.data.class_names import LIST_IMAGENET, ClassOrder, class_labels, class_order, similar_names
from utils.errors import UserError, with_advice
from utils.processes.torchrun import is_first_of_node
from utils.progress import print_lines

CLASSES_FLAG = "--classes"


@dataclass(frozen=True, slots=True)
class Teacher:
    """A network that makes label maps, its classes and its input.

    Fields:
        network: images float [B, 3, rows, columns] -> logits [B, K, h, w]; in evaluation mode, on the CPU.
        class_names: of its K classes, in order, as class folders are named (wnids for ImageNet); None: unknown.
        num_classes: K.
        data_config: what it expects of its input; its size as trained with or as requested.
        class_source: where the class names are from, as text.
        description: plain JSON: arch, library, library_version, weights (the file's name, not its path),
            weights_sha256, head, mean_is_logits, merged (folder -> the indices of the classes that it stands for),
            merged_by ("mean"; absent: the sum).
        note: ", " and what is to be said of how the weights were found; or "".
    """

    network: nn.Module
    class_names: list[str] | None
    num_classes: int
    data_config: DataConfig
    class_source: str
    description: dict[str, object]
    note: str = ""


def load_teacher(
    arch: str | None,
    weights: str,
    data_classes: Sequence[str] | None,
    *,
    class_list: str | None = None,
    only_data_classes: bool = False,
    given: Mapping[str, Any] | None = None,
    per_cell: bool = True,
    merge: str = "sum",
    advice: str = "Correct --arch or --weights.",
    input_flags: str = "--size, --mean, --std, --interpolation",
) -> Teacher:
    """Load a classifier as a teacher of label maps.

    Args:
        arch, weights: as in models.classifier.open_weights; of a file, the averaged weights are preferred.
        data_classes: class folders of the images to annotate, in order; None: there are none. The teacher may know
            more classes, in any order.
        class_list: as in relabel.data.class_names.class_order.
        only_data_classes: leave out the teacher's other classes; needs data_classes.
        given: field of DataConfig -> value that replaces the teacher's own.
        per_cell: False: keep the classifier unchanged; its network returns logits [B, K] of whole images.
        merge: sum or mean, of the probabilities of classes with one folder.
        advice: for messages, names the flags that select the network and its weights.
        input_flags: for messages, names the flags of what is given.

    Raises:
        UserError: the network is unknown, cannot make maps, or needs a size; its weights cannot be loaded or are of
            another network; it does not know the data's classes.
    """
    with with_advice(advice):
        found = open_weights(arch, weights, len(data_classes) if data_classes else IMAGENET_CLASSES)
    order = class_order(found, class_list, data_classes, CLASSES_FLAG)
    if data_classes is not None:
        _check_known(found, order, data_classes)
        order = order.only(data_classes) if only_data_classes else order
    data_config = found.data_config(given or {}, input_flags)
    model = found.build(found.preferred, data_config, "--arch", "--size").eval()
    library = library_of(found.arch)
    description: dict[str, object] = {
        "arch": found.arch,
        "library": library,
        "library_version": None if library == OURS else version(library),
        "weights": found.title,
        "weights_sha256": _sha256(model.state_dict()),  # before fully_convolutional runs the model
    }
    network, is_merged = model, any(len(logits) > 1 for logits in order.groups or ())
    if per_cell:
        network = fully_convolutional(model)
        description |= {"head": network.head, "mean_is_logits": network.mean_is_logits and not is_merged}
    if order.groups is not None:
        network = MergedClasses(network, order.groups, merge == "mean")
        merged = zip(order.names or (), order.groups, strict=True)
        description["merged"] = {folder: logits for folder, logits in merged if len(logits) > 1}
        if merge != "sum" and description["merged"]:
            description["merged_by"] = merge
    if weights == RANDOM and is_first_of_node():
        warning = f"warning: {arch} has RANDOM WEIGHTS and its label maps are MEANINGLESS: only for trials"
        print_lines(warning, sys.stderr)
    num_classes = len(order.groups) if order.groups is not None else found.num_classes
    notes = ["averaged weights (EMA)"] * (found.preferred == "ema") + [found.note]
    note = "".join(f", {text}" for text in notes if text)
    return Teacher(network, order.names, num_classes, data_config, order.source, description, note)


def _check_known(weights: Weights, order: ClassOrder, data_classes: Sequence[str]) -> None:
    """Check that the teacher knows the data's classes by name: otherwise training cannot use the maps."""
    unknown = sorted({*data_classes}.difference(order.names or ()))
    if not unknown:
        return
    classes, images = f"{weights.num_classes:,} classes", f"images of {len(data_classes):,} classes"
    if order.names is None:
        note = f" ({weights.note})" if weights.note else ""
        raise UserError(
            f"{weights.title}: found a teacher of {classes} that it does not name{note}, and {images}; "
            f"expected a list of its classes. Give {CLASSES_FLAG} FILE, with a line NAME or NAME<TAB>FOLDER for each, "
            "in order; or give another teacher"
        )
    labels = class_labels(order.names)
    similar = similar_names(unknown[0], order.names) or order.names[0]
    example = next((label for label in labels if unknown[0].casefold() in label.casefold().split()), labels[0])
    are_readable = labels == order.names
    raise UserError(
        f"{weights.title}: found {images}, of which the teacher does not know {len(unknown):,}, the first: "
        f"{unknown[0]}; expected folders with the names of its classes, such as {similar} ({order.source}).\n"
        f"  Give {CLASSES_FLAG} FILE, a text file with a line NAME<TAB>FOLDER for each of its classes whose folder has "
        f"another name, such as {example}<TAB>{unknown[0]}; several may have the same folder.\n"
        + ("" if are_readable else f"  NAME is a WordNet id or its English name. All of them:\n{LIST_IMAGENET}\n")
        + "  Or rename the folders, or give another teacher"
    )


def _sha256(state_dict: Mapping[str, Tensor]) -> str:
    """Hash each tensor's name, shape and bytes, in order: the same for the same weights in any file."""
    digest = hashlib.sha256()
    for name, tensor in state_dict.items():
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
