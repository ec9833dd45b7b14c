"""A classifier's weights with what is known about them: from a file, its library, a package, or random; then built."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.batch_norm import batch_norm_eps, set_batch_norm
from models.beside import TIMM_CONFIG, classes_beside, input_beside, input_of_run_beside, timm_config_beside
from models.build import (
    FORCE_TIMM,
    OURS,
    create_model,
    head_tensors,
    infer_num_classes,
    library_of,
    load_weights,
    probe,
    tensor_shapes,
)
from models.conversion import embedded_size
from models.data_config import CONVERT_INPUT, DataConfig, differing, resolve, stated_by_timm, stated_by_torchvision
from models.misfit import check_arguments, check_is_whole_file, misfit, resized
from models.packaged import IMAGENET_CLASSES, PACKAGES, packaged_state_dict
from models.pretrained import create_pretrained_model
from models.recorded import FACTS_OF_2021
from models.recorded_classes import fitting_classes
from models.weights_file import WeightsFile, read_weights_file
from utils.errors import UserError
from utils.run_log import CONFIG

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
        records: what the file and what lies beside it record of its input: (place, fields of DataConfig), in order.
        stated: what the network's library states of it.
        is_published: whether they are the ones that a library or a package publishes.
        note: what is to be said of how they were found; else "".
        file_arch: the network that the file names; None: it names none.
        classes_from: where the class names are from, as text.
        class_note: what the file records of its classes and is not used; else "".
    """

    title: str
    arch: str
    state_dicts: dict[str, dict[str, Tensor]]
    num_classes: int
    class_names: list[str] | None
    records: Sequence[tuple[str, Mapping[str, Any]]]
    stated: Mapping[str, Any]
    is_published: bool
    note: str = ""
    file_arch: str | None = None
    classes_from: str = ""
    class_note: str = ""

    @property
    def unnamed(self) -> str:
        """Say that the classes are not named, and why."""
        reason = f" whose names are not known ({self.class_note})" if self.class_note else " and does not name them"
        return f"{self.title} has {self.num_classes:,} classes{reason}"

    @property
    def preferred(self) -> str:
        """Name of the weights to use if only one can be: the averaged ones, if there are any."""
        return "ema" if "ema" in self.state_dicts else "model"

    @property
    def recorded(self) -> Mapping[str, Any]:
        """All that is recorded: the first place counts."""
        return {name: value for _, fields in reversed(self.records) for name, value in fields.items()}

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
        places = [("given", given), *self.records]
        if library == OURS and "size" not in {**given, **self.recorded}:
            raise UserError(f"{self.arch} has no image size of its own, and {self.title} records none; give {flags}")
        stated = dict(self.stated)
        if "bn_eps" in given and len(eps := batch_norm_eps(probe(self.arch))) == 1:  # which it replaces
            stated["bn_eps"] = eps.pop()
            places = [
                (place, {k: v for k, v in own.items() if v is not None or k != "bn_eps"}) for place, own in places
            ]
        found = resolve([*places, (f"as {library} states for {self.arch}", stated)], flags)
        if changed := resized(self.arch, found.size, found.model_args, self.state_dicts["model"]):
            found = replace(found, source=f"{found.source}; {library} resizes {changed}")
        is_assumed = self.records and not {"mean", "std"} & {*given, *self.recorded}
        if self.arch not in CONVERT_INPUT or not is_assumed or self.is_published:
            return found
        published = resolve([("", stated_by_torchvision(self.arch))], flags).source.removesuffix(" ()")
        return replace(found, source=f"{found.source}; torchvision's own weights expect {published}")

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
            model = create_model(self.arch, self.num_classes, config.size, model_args=config.model_args)
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
                    f"These weights are of {self.arch} for images of {size[0]} x {size[1]} pixels, and "
                    f"{library_of(self.arch)} cannot convert them: set {size_flag} {size[0]}."
                )
            if reason := misfit(self.arch, model.state_dict(), state_dict):
                advice = f"{reason}." if self.file_arch else f"{reason}. If it is of another network, correct {flag}."
            if self.file_arch and not _is_same(self.arch, self.file_arch):
                advice = f"The file is of {self.file_arch}: set {flag} {self.file_arch}."
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
    return Weights(title, arch, {"model": state_dict}, count, None, (), _stated(arch, weights), weights != RANDOM)


def _from_file(arch: str | None, path: Path, needs_head: bool) -> Weights:
    check_is_whole_file(path, f"{PRETRAINED}, {PACKAGED}, {RANDOM} or the path of a checkpoint")
    file, records = _with_what_lies_beside(read_weights_file(path, arch))
    arch = arch or file.arch
    if arch is None:
        raise UserError(f"{path} does not name its network; expected a name in torchvision or timm")
    if file.arch and not _is_same(arch, file.arch):
        check_arguments(arch, file.arch, file.recorded.get("model_args"), path)
    has_head = needs_head or any(name in file.state_dicts["model"] for name in head_tensors(arch))
    try:
        count = infer_num_classes(arch, file.state_dicts["model"]) if has_head else 0
    except UserError as error:
        named = f"\n  The file is of {file.arch}." if file.arch else ""
        if tensor_shapes(arch).keys() - {*head_tensors(arch)} <= file.state_dicts["model"].keys():
            named = "\n  Only the classification head is missing, or has other names in the file: rename its tensors."
        named += f"\n  The file was read so: {file.note}." if file.note else ""
        raise UserError(f"{path}: {error}{named}") from None
    size = embedded_size(probe(arch), file.state_dicts["model"])
    if size and all("size" not in fields for _, fields in records):
        records.append((f"as the position embeddings in {path.name}", {"size": size, "train_size": size[0]}))
    classes, class_note = fitting_classes(file.classes, count)
    instead = "" if _is_same(arch, file.arch) else f"instead of {file.arch}, which it names"
    return Weights(
        path.name,
        arch,
        file.state_dicts,
        count,
        classes.names,
        records,
        _stated(arch, ""),
        is_published=False,
        note=_joined(instead, file.note, class_note),
        class_note=_joined(file.classes.note, class_note),
        file_arch=file.arch,
        classes_from=classes.source,
    )


def _with_what_lies_beside(file: WeightsFile) -> tuple[WeightsFile, list[tuple[str, Mapping[str, Any]]]]:
    """Add what a config beside the file tells and the file does not; also return where its input is recorded."""
    name = file.path.name
    records: list[tuple[str, Mapping[str, Any]]] = [(f"recorded in {name}", file.recorded)]
    if file.is_of_2021:
        if found := input_of_run_beside(file.path, file.arch):
            records.append((f"from {CONFIG} beside {name}", found))
        records.append((f"as in 2021, whose keys {name} has", FACTS_OF_2021))
    timm, others = timm_config_beside(file.path), list(input_beside(file.path))
    if timm is None:
        records += [(place, fields) for _, place, fields, _ in others if fields]
        arch = file.arch or next((arch for arch, *_ in others if arch), None)
        classes = file.classes if file.classes.names else classes_beside(file.path)
        classes = classes if classes.names else file.classes
        return replace(
            file, arch=arch, classes=classes, note=_joined(file.note, *(note for *_, note in others))
        ), records
    if file.arch and not _is_same(timm.arch, file.arch):
        return replace(file, note=_joined(file.note, f"not using {TIMM_CONFIG} beside it, of {timm.arch}")), records
    known = {field: value for _, fields in reversed(records) for field, value in fields.items()}
    unused = differing(known, timm.recorded)
    classes = file.classes if file.classes.names else timm.classes
    unused += ["class names"] * (timm.classes.names not in (None, classes.names))
    what = f"except for {' and '.join(sorted(unused))}, of which {name} says otherwise" if unused else ""
    notes = [file.note, f"with {TIMM_CONFIG} beside it", what, classes.note if classes is timm.classes else ""]
    notes += [
        f"not {place}: {', '.join(rest)}" for _, place, one, _ in others if (rest := differing(timm.recorded, one))
    ]
    records.insert(1, (f"from {TIMM_CONFIG} beside {name}", timm.recorded))
    return replace(file, arch=file.arch or timm.arch, classes=classes, note=_joined(*notes)), records


def _joined(*notes: str) -> str:
    return ", ".join(filter(None, notes))


def _is_same(arch: str, named: str | None) -> bool:
    """Return whether a network is the one that a file names, if it names one: timm's names may lack the prefix."""
    bare = arch.removeprefix(FORCE_TIMM)
    return named in (None, arch) or (named.removeprefix(FORCE_TIMM) == bare and library_of(bare) == "timm")


def _stated(arch: str, weights: str) -> Mapping[str, Any]:
    """Return what the library states: timm for each of its networks, torchvision only for weights of its own."""
    library = library_of(arch)
    if library == "timm":
        return stated_by_timm(arch.removeprefix(FORCE_TIMM))
    return stated_by_torchvision(arch) if library == "torchvision" and weights == PRETRAINED else {}
