"""The teacher: a classifier of torchvision, timm or a training of ours as a network of maps, and what it is.

Whatever one must know to use its maps comes with it: classes, input, and a description for their manifest.
"""

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from models.build import OURS, create_model, create_pretrained_model, infer_num_classes, library_of, load_weights
from models.fully_convolutional import fully_convolutional
from relabel.augment import MEAN, STD
from relabel.data.decode import RESAMPLING
from utils.checkpoint import load_checkpoint, named_classes, split_weights
from utils.errors import UserError
from utils.processes.torchrun import first_of_node

PRETRAINED, RANDOM = "pretrained", "random"  # instead of a checkpoint's path
IMAGENET_CLASSES = 1000


@dataclass(frozen=True, slots=True)
class Teacher:
    """A network of maps and what it is.

    Fields:
        network: images float [B, 3, rows, columns] -> logits [B, K, h, w]; in evaluation mode, on the CPU.
        class_names: of its K classes, in their order, as class folders are called (ImageNet's: wnids); None = unknown.
        num_classes: K.
        input_size: (rows, columns) that it was trained with, or was asked for; pixels.
        mean, std: what its input is normalised with, per RGB channel, for pixels in [0, 1].
        interpolation: how images are resized for it; a key of relabel.data.decode.RESAMPLING.
        description: plain JSON: arch, library, library_version, weights (the file's name, not its path),
            weights_sha256, head, mean_is_logits.
    """

    network: nn.Module
    class_names: list[str] | None
    num_classes: int
    input_size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    description: dict[str, object]


@dataclass(frozen=True, slots=True)
class _Input:
    """How a network sees an image; fields of Teacher. No size = it takes any and says none."""

    input_size: tuple[int, int] | None
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    interpolation: str = "bilinear"


@dataclass(frozen=True, slots=True)
class _Classifier:
    """A classifier with its weights; class_names None = they do not say their classes."""

    model: nn.Module
    arch: str
    weights: str
    num_classes: int
    class_names: list[str] | None


def load_teacher(
    arch: str | None,
    weights: str,
    data_classes: Sequence[str] | None,
    *,
    input_size: tuple[int, int] | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    interpolation: str | None = None,
    per_cell: bool = True,
) -> Teacher:
    """The classifier of this name with these weights, as a teacher of label maps.

    Args:
        arch: as in models.build.library_of; None = what the checkpoint says.
        weights: "pretrained" = those that the library publishes; "random" = of a fixed seed, for trying things out;
            else the path of a checkpoint: bare or as the training writes it (of which EMA weights come first), or
            .safetensors.
        data_classes: class folders of the images to annotate, in order; None = they have none. The teacher may know
            more classes than these, in any order; where nobody says its class names, they must be these.
        input_size, mean, std, interpolation: None = the teacher's own: of timm's configuration, or of torchvision's
            default weights. Networks of ours have ImageNet's mean and std, bilinear, and no size.
        per_cell: False leaves the classifier as it is: its network gives logits [B, K] of whole images.

    Raises:
        UserError: the network is unknown, cannot make maps or needs a size; its weights cannot be had or are of
            another network; it does not know the data's classes.
    """
    if weights == PRETRAINED:
        classifier = _published(_named(arch, weights))
    elif weights == RANDOM:
        classifier = _random(_named(arch, weights), data_classes)
    else:
        classifier = _of_file(arch, Path(weights), data_classes)
    class_names = _checked_names(classifier, data_classes)
    asked: dict[str, Any] = {"input_size": input_size, "mean": mean, "std": std, "interpolation": interpolation}
    view = replace(_own_input(classifier), **{name: value for name, value in asked.items() if value is not None})
    fields = _complete(view, classifier.arch)
    description = _description(classifier)  # of the weights as they are: the next line tries them out
    network = classifier.model.eval()
    if per_cell:
        network = fully_convolutional(classifier.model)
        description |= {"head": network.head, "mean_is_logits": network.mean_is_logits}
    if weights == RANDOM:
        _warn_of_random_weights(classifier.arch)
    return Teacher(network, class_names, classifier.num_classes, **fields, description=description)


def _named(arch: str | None, weights: str) -> str:
    if arch is None:
        raise UserError(f"--weights {weights} says no network; give --arch, a name of torchvision's or timm's")
    return arch


# Where the weights come from


def _published(arch: str) -> _Classifier:
    model, name = create_pretrained_model(arch)
    num_classes = infer_num_classes(arch, model.state_dict())
    return _Classifier(model, arch, f"{PRETRAINED} {name}", num_classes, _imagenet_names(num_classes))


def _random(arch: str, data_classes: Sequence[str] | None) -> _Classifier:
    num_classes = len(data_classes) if data_classes else IMAGENET_CLASSES
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # a continued run must find its random teacher again
        model = create_model(arch, num_classes)
    return _Classifier(model, arch, RANDOM, num_classes, None)


def _warn_of_random_weights(arch: str) -> None:
    if not first_of_node():
        return
    print(
        f"warning: {arch} has RANDOM WEIGHTS and its label maps are MEANINGLESS: good for trying the tools, not for "
        "training",
        file=sys.stderr,
        flush=True,
    )


def _of_file(arch: str | None, path: Path, data_classes: Sequence[str] | None) -> _Classifier:
    if not path.is_file():
        raise UserError(f"found no file {path}; expected {PRETRAINED}, {RANDOM} or the path of a checkpoint")
    content = load_checkpoint(path)
    by_name = split_weights(content, path)
    state_dict = by_name.get("ema", by_name["model"])
    arch = arch or content.get("arch")
    if not isinstance(arch, str):
        raise UserError(f"{path} does not say which network it is of; give --arch, a name of torchvision's or timm's")
    try:
        num_classes = infer_num_classes(arch, state_dict)
        model = create_model(arch, num_classes)
        load_weights(model, state_dict)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    names = named_classes(content, path)
    if names is None and num_classes == IMAGENET_CLASSES != len(data_classes or ()) and library_of(arch) != OURS:
        names = _imagenet_names(num_classes)  # whoever trained these networks for 1000 classes trained them on ImageNet
    return _Classifier(model, arch, path.name, num_classes, names)


# Its classes


def _imagenet_names(num_classes: int) -> list[str] | None:
    """Wnids of the subset of ImageNet that has so many classes, in the order that networks are trained with."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": num_classes})
    return ImageNetInfo(subset).label_names() if subset else None


def _checked_names(classifier: _Classifier, data_classes: Sequence[str] | None) -> list[str] | None:
    """Names of the teacher's classes, which hold every class of the data: maps mean nothing to training otherwise."""
    names, found = classifier.class_names, f"found a teacher of {classifier.num_classes:,} classes"
    if names is not None and len(set(names)) != classifier.num_classes:
        raise UserError(
            f"{classifier.weights}: {found}, but {len(set(names)):,} different names for them; expected one for each. "
            "Give a whole checkpoint"
        )
    if data_classes is None:
        return names
    if names is None and len(data_classes) == classifier.num_classes:
        return list(data_classes)
    strange = set(data_classes).difference(names or data_classes)
    if names is not None and not strange:
        return list(names)
    example = f" (it does not know {min(strange)})" if strange else ", whose names nobody says,"
    raise UserError(
        f"{classifier.weights}: {found}{example} and images of {len(data_classes):,} classes; expected a teacher that "
        "knows all of these by the names of their folders. Give the weights of such a teacher, or the images of its "
        "classes in folders of its names" + (f", such as {names[0]}" if names else "")
    )


# How it sees an image


def _own_input(classifier: _Classifier) -> _Input:
    """What the library says of this network."""
    library = library_of(classifier.arch)
    if library == OURS:
        return _Input(None)
    return _timm_input(classifier.model) if library == "timm" else _torchvision_input(classifier)


def _timm_input(model: nn.Module) -> _Input:
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(model)
    return _Input(config["input_size"][1:], tuple(config["mean"]), tuple(config["std"]), config["interpolation"])


def _torchvision_input(classifier: _Classifier) -> _Input:
    """As the default weights want it, whichever are in: torchvision says it of no others."""
    view = torchvision.models.get_model_weights(classifier.arch).DEFAULT.transforms()
    # Built without weights, its vision transformers take the size that they were built for and no other.
    size = getattr(classifier.model, "image_size", view.crop_size[0])
    return _Input((size, size), tuple(view.mean), tuple(view.std), view.interpolation.value)


def _complete(view: _Input, arch: str) -> dict[str, Any]:
    """The fields, all known."""
    if view.input_size is None:
        raise UserError(f"{arch} does not say which image size it was trained with; give --size ROWSxCOLUMNS")
    if view.interpolation not in RESAMPLING:
        raise UserError(
            f"{arch} was trained with images resized by {view.interpolation!r}, which is not done here; expected "
            f"{', '.join(RESAMPLING)}. Give the nearest of these as --interpolation"
        )
    return asdict(view)


# What its maps say of it


def _description(classifier: _Classifier) -> dict[str, object]:
    library = library_of(classifier.arch)
    return {
        "arch": classifier.arch,
        "library": library,
        "library_version": None if library == OURS else version(library),
        "weights": classifier.weights,
        "weights_sha256": _sha256(classifier.model.state_dict()),
    }


def _sha256(state_dict: Mapping[str, Tensor]) -> str:
    """Over each tensor's name, shape and bytes, in order: the same weights in any file give the same."""
    digest = hashlib.sha256()
    for name, tensor in state_dict.items():
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
