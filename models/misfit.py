"""Why a weights file does not fit: it is a folder or a part, or its tensors are those of a network built otherwise."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torchvision.models import VisionTransformer

from models.build import PROBE_CLASSES, create_model, probe, probe_at
from utils.errors import UserError
from utils.progress import counted

# What trainers name the best weights of a folder, tried in this order.
IN_FOLDERS = (
    "model.safetensors",
    "pytorch_model.bin",
    "model_best.pth.tar",
    "checkpoint-best.pth",
    "checkpoint-last.pth",
    "last.pth.tar",
)
SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.safetensors|\.bin)")
LISTED = 3


def check_is_whole_file(path: Path, expected: str) -> None:
    """Check that a path is a file that is not one of several which hold the weights together.

    Args:
        path: of the file.
        expected: what else may be given, for the message.

    Raises:
        UserError: it is not; the message says which file to give, or how to make it.
    """
    files = sorted(path.iterdir()) if path.is_dir() else []
    if found := [path / name for name in IN_FOLDERS if path / name in files]:
        raise UserError(f"{path} is a folder; expected a file. Give {found[0]}, which is in it")
    shards = [file for file in (*files, path) if SHARD.fullmatch(file.name)]
    if path.name.endswith(".index.json") and path.is_file():
        shards = sorted(file for file in path.parent.iterdir() if SHARD.fullmatch(file.name))
    if shards:
        raise UserError.remedied(_merging(path, shards[0]))
    if path.is_dir():
        raise UserError(f"{path} is a folder without {', '.join(IN_FOLDERS)}; expected {expected}")
    if not path.is_file():
        raise UserError(f"found no file {path}; expected {expected}")


def _merging(path: Path, shard: Path) -> str:
    """Return the error for weights in several files, with lines that merge them."""
    match = SHARD.fullmatch(shard.name)
    assert match
    stem, number, count, ending = match.groups()
    what = (
        f"is file {int(number)} of {int(count)} with a part of the weights"
        if path == shard
        else "holds the weights in parts"
    )
    safe = ending == ".safetensors"
    new = shard.with_name(stem + ending)
    return f"""\
{path} {what}; expected all weights in one file. These lines merge them; then give {new}:
    from pathlib import Path
    {"from safetensors.torch import load_file, save_file" if safe else "import torch"}
    whole = {{}}
    for part in sorted(Path({str(shard.parent)!r}).glob({f"{stem}-*-of-{count}{ending}"!r})):
        whole |= {"load_file(part)" if safe else "torch.load(part, weights_only=True)"}
    {"save_file" if safe else "torch.save"}(whole, {str(new)!r})"""


def check_arguments(arch: str, named: str, arguments: Mapping[str, Any] | None, path: Path) -> None:
    """Check that a network can be built with the arguments that a file records for another one.

    Args:
        arch: of the network.
        named: the network that the file names.
        arguments: of timm.create_model; None: it records none.
        path: of the file.

    Raises:
        UserError: it cannot, and the other one can.
    """
    if not arguments or _is_built(arch, arguments) or not _is_built(named, arguments):
        return
    listed = ", ".join(f"{name} {value!r}" for name, value in arguments.items())
    raise UserError(
        f"{path} is of {named}, built with {listed}; found the arch {arch}, which cannot be built so. "
        f"Set the arch {named}"
    )


def _is_built(arch: str, arguments: Mapping[str, Any]) -> bool:
    try:
        create_model(arch, 1, model_args=arguments)
    except UserError:
        return False
    return True


def misfit(arch: str, own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str:
    """Say what a network of this name would be that the weights fit; "": it is not known.

    Args:
        arch: of the network.
        own: its tensors.
        weights: those to load.
    """
    reshaped = [name for name in own if name in weights and weights[name].shape != own[name].shape]
    for name in reshaped:
        found, expected = weights[name].shape, own[name].shape
        if len(found) == len(expected) == 4 and expected[1] == 3 != found[1] and found[0] == expected[0]:
            channels = counted(found[1], "input channel")
            return f"The weights are of a network with {channels}; only 3 are supported"
    extra = [name for name in weights if name not in own]
    if reshaped or not extra or not own.keys() <= weights.keys():
        return ""
    shown = ", ".join(extra[:LISTED]) + f" and {len(extra) - LISTED} more" * (len(extra) > LISTED)
    return f"{arch} has no place for {shown}. If only training used them, leave them out of the file"


def resized(arch: str, size: tuple[int, int], model_args: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    """Name the tensors of a file whose shapes differ in a network that is built for images of this size; "": none."""
    own = probe(arch)
    if not getattr(own, "pretrained_cfg", {}).get("fixed_input_size") and not isinstance(own, VisionTransformer):
        return ""
    found = [
        f"{name} {list(weights[name].shape)} to {list(own.shape)}"
        for name, own in probe_at(arch, size, model_args).state_dict().items()
        if name in weights and weights[name].shape != own.shape and PROBE_CLASSES not in own.shape
    ]
    return "".join(found[:1]) + f" and {len(found) - 1} more" * (len(found) > 1)
