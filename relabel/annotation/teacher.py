"""The teacher: a classifier from torchvision, timm or this project, turned into a network that makes label maps."""

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from utils.errors import UserError, with_advice
from utils.processes.torchrun import is_first_of_node

PRETRAINED, RANDOM = "pretrained", "random"  # instead of a checkpoint's path
IMAGENET_CLASSES = 1000


@dataclass(frozen=True, slots=True)
class Teacher:
    """A network that makes label maps, its classes and its input.

    Fields:
        network: images float [B, 3, rows, columns] -> logits [B, K, h, w]; in evaluation mode, on the CPU.
        class_names: of its K classes, in order, as class folders are named (wnids for ImageNet); None: unknown.
        num_classes: K.
        input_size: (rows, columns) in pixels, as trained with or as requested.
        mean, std: of the input normalisation, per RGB channel, for pixels in [0, 1].
        interpolation: how its images are resized; a key of relabel.data.decode.RESAMPLING.
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
class _Classifier:
    """A classifier with its weights; class_names is None if the weights do not name their classes."""

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
    advice: str = "Correct --arch or --weights.",
) -> Teacher:
    """Load a classifier as a teacher of label maps.

    Args:
        arch: as in models.build.library_of; None: the one that the checkpoint names.
        weights: "pretrained": those that the library publishes; "random": from a fixed seed, for trials;
            else the path of a checkpoint, bare, .safetensors, or as training writes it (EMA weights are preferred).
        data_classes: class folders of the images to annotate, in order; None: there are none. The teacher may know
            more classes, in any order; if its class names are unknown, they are taken to be these.
        input_size, mean, std, interpolation: None: the teacher's own, from timm's configuration or torchvision's
            default weights. Networks of this project use ImageNet's mean and std and bilinear, and have no size.
        per_cell: False: keep the classifier unchanged; its network returns logits [B, K] of whole images.
        advice: for messages, names the flags that select the network and its weights.

    Raises:
        UserError: the network is unknown, cannot make maps, or needs a size; its weights cannot be loaded or are of
            another network; it does not know the data's classes.
    """
    with with_advice(advice):
        if weights not in (PRETRAINED, RANDOM):
            classifier = _from_file(arch, Path(weights), data_classes)
        elif arch is None:
            raise UserError(f"{weights} names no network; expected a name in torchvision or timm")
        else:
            classifier = _published(arch) if weights == PRETRAINED else _random(arch, data_classes)
    class_names = _checked_names(classifier, data_classes)
    requested = {"input_size": input_size, "mean": mean, "std": std, "interpolation": interpolation}
    inputs = _input_of(classifier, requested)
    library = library_of(classifier.arch)
    description: dict[str, object] = {
        "arch": classifier.arch,
        "library": library,
        "library_version": None if library == OURS else version(library),
        "weights": classifier.weights,
        "weights_sha256": _sha256(classifier.model.state_dict()),  # before fully_convolutional runs the model
    }
    network = classifier.model.eval()
    if per_cell:
        network = fully_convolutional(classifier.model)
        description |= {"head": network.head, "mean_is_logits": network.mean_is_logits}
    if weights == RANDOM and is_first_of_node():
        warning = f"warning: {arch} has RANDOM WEIGHTS and its label maps are MEANINGLESS: only for trials"
        print(warning, file=sys.stderr, flush=True)
    return Teacher(network, class_names, classifier.num_classes, **inputs, description=description)


def _published(arch: str) -> _Classifier:
    model, name = create_pretrained_model(arch)
    num_classes = infer_num_classes(arch, model.state_dict())
    return _Classifier(model, arch, f"{PRETRAINED} {name}", num_classes, _imagenet_names(num_classes))


def _random(arch: str, data_classes: Sequence[str] | None) -> _Classifier:
    num_classes = len(data_classes) if data_classes else IMAGENET_CLASSES
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # a continued job needs the same teacher
        model = create_model(arch, num_classes)
    return _Classifier(model, arch, RANDOM, num_classes, None)


def _from_file(arch: str | None, path: Path, data_classes: Sequence[str] | None) -> _Classifier:
    if not path.is_file():
        raise UserError(f"found no file {path}; expected {PRETRAINED}, {RANDOM} or the path of a checkpoint")
    content = load_checkpoint(path)
    by_name = split_weights(content, path)
    state_dict = by_name.get("ema", by_name["model"])
    arch = arch or content.get("arch")
    if not isinstance(arch, str):
        raise UserError(f"{path} does not name its network; expected a name in torchvision or timm")
    try:
        num_classes = infer_num_classes(arch, state_dict)
        model = create_model(arch, num_classes)
        load_weights(model, state_dict)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    names = named_classes(content, path)
    if names is None and num_classes == IMAGENET_CLASSES != len(data_classes or ()) and library_of(arch) != OURS:
        names = _imagenet_names(num_classes)  # a library's network with 1000 classes is taken to be ImageNet's
    return _Classifier(model, arch, path.name, num_classes, names)


def _imagenet_names(num_classes: int) -> list[str] | None:
    """Return the wnids of the ImageNet subset with this many classes, in the order that networks are trained with."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": num_classes})
    return ImageNetInfo(subset).label_names() if subset else None


def _checked_names(classifier: _Classifier, data_classes: Sequence[str] | None) -> list[str] | None:
    """Return the teacher's class names, which must include the data's: otherwise training cannot use the maps."""
    names, found = classifier.class_names, f"found a teacher of {classifier.num_classes:,} classes"
    if names is not None and len(set(names)) != classifier.num_classes:
        raise UserError(
            f"{classifier.weights}: {found}, but {len(set(names)):,} different names for them; expected one per class. "
            "Give a complete checkpoint"
        )
    if data_classes is None:
        return names
    if names is None and len(data_classes) == classifier.num_classes:
        return list(data_classes)
    unknown = set(data_classes).difference(names or data_classes)
    if names is not None and not unknown:
        return names
    example = f" (it does not know {min(unknown)})" if unknown else ", which it does not name,"
    raise UserError(
        f"{classifier.weights}: {found}{example} and images of {len(data_classes):,} classes; expected a teacher that "
        "knows all of these by the names of their folders. Give the weights of such a teacher, or the images of its "
        "classes in folders of its names" + (f", such as {names[0]}" if names else "")
    )


def _input_of(classifier: _Classifier, requested: Mapping[str, Any]) -> dict[str, Any]:
    """Return input_size, mean, std and interpolation: as requested, else as stated by the network's library."""
    library = library_of(classifier.arch)
    size, mean, std, interpolation = None, MEAN, STD, "bilinear"
    if library == "timm":
        from timm.data import resolve_model_data_config

        config = resolve_model_data_config(classifier.model)
        size, mean, std = config["input_size"][1:], tuple(config["mean"]), tuple(config["std"])
        interpolation = config["interpolation"]
    elif library == "torchvision":
        # From its default weights: torchvision gives no such values for others. A vision transformer accepts only the
        # size that it was built for.
        preset = torchvision.models.get_model_weights(classifier.arch).DEFAULT.transforms()
        side = getattr(classifier.model, "image_size", preset.crop_size[0])
        size, mean, std = (side, side), tuple(preset.mean), tuple(preset.std)
        interpolation = preset.interpolation.value
    own = {"input_size": size, "mean": mean, "std": std, "interpolation": interpolation}
    values = own | {name: value for name, value in requested.items() if value is not None}
    if values["input_size"] is None:
        raise UserError(f"{classifier.arch} has no image size of its own; give --size ROWSxCOLUMNS")
    if values["interpolation"] not in RESAMPLING:
        raise UserError(
            f"{classifier.arch} was trained with images resized by {interpolation!r}, which is not supported; expected "
            f"{', '.join(RESAMPLING)}. Give the nearest of these as --interpolation"
        )
    return values


def _sha256(state_dict: Mapping[str, Tensor]) -> str:
    """Hash each tensor's name, shape and bytes, in order: the same for the same weights in any file."""
    digest = hashlib.sha256()
    for name, tensor in state_dict.items():
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
