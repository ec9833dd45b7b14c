"""A classifier's weights with what is known about them: from a file, its library, a package, or random; then built."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.batch_norm import set_batch_norm
from models.build import (
    FORCE_TIMM,
    OURS,
    create_model,
    head_tensors,
    infer_num_classes,
    library_of,
    load_weights,
)
from models.data_config import DataConfig, resolve, stated_by_timm, stated_by_torchvision
from models.packaged import IMAGENET_CLASSES, PACKAGES, packaged_state_dict
from models.pretrained import create_pretrained_model
from models.weights_file import FACTS_OF_2021, read_weights_file
from utils.errors import UserError

PRETRAINED, PACKAGED, RANDOM = "pretrained", "packaged", "random"  # instead of the path of a file


@dataclass(frozen=True, slots=True)
class Weights:
    """A classifier's weights.

    Fields:
        title: where they are from: the file's name, or which published ones.
        arch: the network, as for models.build.library_of.
        state_dicts: name -> parameter name -> tensor; "model", and "ema" if a file has averaged weights too.
        num_classes: K; 0: there is no classification head.
        class_names: of the K classes, in the order of the logits; None: the weights do not name them.
        recorded: what the file records of its input: fields of DataConfig.
        stated: what the network's library states of it.
        is_published: whether they are the ones that a library or a package publishes.
        note: how they were found in the file, if it is another trainer's; else "".
        file_arch: the network that the file names; None: it names none.
    """

    title: str
    arch: str
    state_dicts: dict[str, dict[str, Tensor]]
    num_classes: int
    class_names: list[str] | None
    recorded: Mapping[str, Any]
    stated: Mapping[str, Any]
    is_published: bool
    note: str = ""
    file_arch: str | None = None

    @property
    def preferred(self) -> str:
        """Name of the weights to use if only one can be: the averaged ones, if there are any."""
        return "ema" if "ema" in self.state_dicts else "model"

    def __str__(self) -> str:
        return f"{self.title}: {self.arch}" + (f" ({self.note})" if self.note else "")

    def data_config(self, given: Mapping[str, Any], flags: str) -> DataConfig:
        """Find what the network expects of its input.

        Args:
            given: field -> value; what the user gave.
            flags: the flags that change the values.

        Raises:
            UserError: a network of this project without an image size, or a resizing that is not supported.
        """
        library = library_of(self.arch)
        is_assumed = self.recorded == FACTS_OF_2021
        recorded = f"as in 2021, whose keys {self.title} has" if is_assumed else f"recorded in {self.title}"
        places = [("given", given), (recorded, self.recorded)]
        if library == OURS and "size" not in {**given, **self.recorded}:
            raise UserError(f"{self.arch} has no image size of its own, and {self.title} records none; give {flags}")
        return resolve([*places, (f"as {library} states for {self.arch}", self.stated)], flags)

    def build(self, name: str, config: DataConfig, flag: str, size_flag: str) -> nn.Module:
        """Build the network with weights of this name.

        Args:
            name: a key of state_dicts.
            config: what it expects of its input.
            flag, size_flag: those that select the network and the size of its images, for messages.

        Raises:
            UserError: the weights do not fit the network.
        """
        with torch.random.fork_rng(devices=[]):  # its random weights are replaced
            model = create_model(self.arch, self.num_classes, config.size)
        set_batch_norm(model, None, config.bn_eps)
        self.load(model, self.state_dicts[name], flag, size_flag)
        return model

    def load(self, model: nn.Module, state_dict: Mapping[str, Tensor], flag: str, size_flag: str) -> None:
        """Copy these weights, or some of them, into a network.

        Args:
            model: changed in place.
            state_dict: parameter name -> tensor.
            flag, size_flag: those that select the network and the size of its images, for messages.

        Raises:
            UserError: they do not fit the network.
        """
        try:
            load_weights(model, state_dict)
        except UserError as error:
            summary, _, details = str(error).partition("\n")
            advice = f"Correct {flag}."
            if size := self._fitting_size():
                advice = (
                    f"These weights are of {self.arch} for images of {size[0]} x {size[1]} pixels, and timm cannot "
                    f"convert them: set {size_flag} {size[0]}."
                )
            if self.file_arch and self.file_arch != self.arch:
                advice = f"The file says that it is of {self.file_arch}: set {flag} {self.file_arch}."
            raise UserError(f"{self.title}: {summary}\n  {advice}\n{details}") from None

    def _fitting_size(self) -> tuple[int, int] | None:
        """Return the image size, recorded or stated, for which the network has these tensors; None: for neither."""
        shapes = {name: tensor.shape for name, tensor in self.state_dicts["model"].items()}
        for size in {tuple(place["size"]) for place in (self.recorded, self.stated) if "size" in place}:
            own = create_model(self.arch, self.num_classes, size).state_dict()
            if shapes == {name: tensor.shape for name, tensor in own.items()}:
                return size
        return None


def open_weights(
    arch: str | None, weights: str, random_classes: int = IMAGENET_CLASSES, needs_head: bool = True
) -> Weights:
    """Find the weights of a classifier.

    Args:
        arch: as for models.build.library_of; None: the one that the file names.
        weights: "pretrained": those that the network's library publishes; "packaged": those of a package on the
            Python package index; "random": from a fixed seed, for trials; else the path of a file.
        random_classes: K of random weights.
        needs_head: False: a file may lack the classification head.

    Raises:
        UserError: the network is unknown, or the weights cannot be found or read.
    """
    if weights not in (PRETRAINED, PACKAGED, RANDOM):
        return _from_file(arch, Path(weights), needs_head)
    if arch is None:
        names = [f"timm/{name}" for name in PACKAGES]
        expected = f"one of {', '.join(names)}" if weights == PACKAGED else "a name in torchvision or timm"
        raise UserError(f"{weights} names no network; expected {expected}")
    if weights == RANDOM:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # a continued job needs the same weights
            model = create_model(arch, random_classes)
        title, state_dict = RANDOM, model.state_dict()
    elif weights == PRETRAINED:
        model, name = create_pretrained_model(arch)
        title, state_dict = f"{PRETRAINED} {name}", model.state_dict()
    else:
        name = arch.removeprefix(FORCE_TIMM)
        state_dict, title = packaged_state_dict(name)
        arch = FORCE_TIMM + name
    count = infer_num_classes(arch, state_dict)
    return Weights(title, arch, {"model": state_dict}, count, None, {}, _stated(arch, weights), weights != RANDOM)


def _from_file(arch: str | None, path: Path, needs_head: bool) -> Weights:
    if not path.is_file():
        raise UserError(
            f"found no file {path}; expected {PRETRAINED}, {PACKAGED}, {RANDOM} or the path of a checkpoint"
        )
    file = read_weights_file(path)
    arch = arch or file.arch
    if arch is None:
        raise UserError(f"{path} does not name its network; expected a name in torchvision or timm")
    has_head = needs_head or any(name in file.state_dicts["model"] for name in head_tensors(arch))
    try:
        count = infer_num_classes(arch, file.state_dicts["model"]) if has_head else 0
    except UserError as error:
        named = f"\n  The file says that it is of {file.arch}." if file.arch else ""
        raise UserError(f"{path}: {error}{named}") from None
    if has_head and file.class_names is not None and not len(file.class_names) == len(set(file.class_names)) == count:
        raise UserError(
            f"{path}: found {count:,} classes and {len(set(file.class_names)):,} different names for them; expected "
            "one name per class. Give a complete checkpoint"
        )
    stated = _stated(arch, "")
    names, about = file.class_names if has_head else None, (file.note, file.arch)
    return Weights(path.name, arch, file.state_dicts, count, names, file.recorded, stated, False, *about)


def _stated(arch: str, weights: str) -> Mapping[str, Any]:
    """Return what the library states: timm for each of its networks, torchvision only for weights of its own."""
    library = library_of(arch)
    if library == "timm":
        return stated_by_timm(arch.removeprefix(FORCE_TIMM))
    return stated_by_torchvision(arch) if library == "torchvision" and weights == PRETRAINED else {}
