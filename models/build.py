"""Networks by name (torchvision's classifiers, then timm's, and ours), and weights loaded into them."""

import difflib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from models.conversion import converted, with_versions
from models.digit_net import DigitNet
from models.drop_rates import no_drop_rate, set_drop_rates
from utils.errors import UserError

# timm takes a second to import, so it is imported only when torchvision does not have the name.

FORCE_TIMM = "timm/"
OURS = "this project"
OUR_MODELS: dict[str, Callable[[int], nn.Module]] = {"digit_net": DigitNet}
# By default both return several outputs in training mode; init_weights=True keeps their published initialisation.
TORCHVISION_OPTIONS = {arch: {"aux_logits": False, "init_weights": True} for arch in ("googlenet", "inception_v3")}
# A prime, which no layer has as its width: a dimension of this size can only be the number of classes.
PROBE_CLASSES = 7919
LISTED_MISMATCHES = 5
SUGGESTIONS = 5


def library_of(arch: str) -> str:
    """Return the library that defines a network: "torchvision", "timm" or OURS.

    Args:
        arch: a torchvision classifier, otherwise a timm name; "timm/NAME" forces timm's; "digit_net" is ours.

    Raises:
        UserError: no library has the name; the message gives the nearest ones.
    """
    if arch in OUR_MODELS:
        return OURS
    if arch in _torchvision_names():
        return "torchvision"
    import timm

    if timm.is_model(arch.removeprefix(FORCE_TIMM)):
        return "timm"
    raise UserError(_unknown_name_message(arch))


def networks_named(arch: str) -> list[str]:
    """Return a network's name and, if torchvision and timm both have the name, that of the other library's network."""
    bare = arch.removeprefix(FORCE_TIMM)
    if bare not in _torchvision_names():
        return [arch]
    import timm

    other = FORCE_TIMM + bare if arch == bare else bare
    return [arch, other] if timm.is_model(bare) else [arch]


def is_network(name: str) -> bool:
    """Return whether torchvision or timm has a network of this name."""
    try:
        return bool(library_of(name))
    except UserError:
        return False


def create_model(
    arch: str,
    num_classes: int,
    size: tuple[int, int] | None = None,
    drop_rate: float | None = None,
    drop_path_rate: float | None = None,
    model_args: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build a classifier with random weights: images float [B, 3, H, W] -> logits float [B, K].

    Args:
        arch: as for library_of.
        num_classes: K.
        size: (rows, columns) of the images, for networks that are built for one size; None: the network's own.
        drop_rate: probability of dropout; None: the network's own.
        drop_path_rate: probability of stochastic depth in the last block; None: the network's own.
        model_args: other arguments of timm.create_model.

    Raises:
        UserError: no library has the name, timm does not know its tag, or the network does not have these rates or
            arguments.
    """
    library = library_of(arch)
    if library == "timm":
        rates = {"drop_rate": drop_rate, "drop_path_rate": drop_path_rate}
        given = {name: rate for name, rate in rates.items() if rate is not None}
        try:
            return _timm_model(arch, num_classes, size, {**(model_args or {}), **given})
        except (TypeError, ValueError, AssertionError, KeyError, AttributeError, RuntimeError) as error:
            if not model_args or isinstance(error, UserError):
                raise
            reason = f"timm cannot build it so ({str(error).partition(chr(10))[0]})"
            raise _unfit_arguments(arch, model_args, reason) from error
    if model_args:
        raise _unfit_arguments(arch, model_args, f"only timm's networks have such arguments, this is one of {library}")
    if library == OURS:
        model = OUR_MODELS[arch](num_classes)
    else:
        model = _torchvision_model(arch, num_classes, size)
    set_drop_rates(arch, model, drop_rate, drop_path_rate)
    return model


def _unfit_arguments(arch: str, model_args: Mapping[str, Any], reason: str) -> UserError:
    found = ", ".join(f"{name} {value!r}" for name, value in model_args.items())
    return UserError(
        f"{arch} is recorded with {found}, but {reason}. Give the network that the weights are of; or save only the "
        "checkpoint's weights to another file with torch.save: from it, the network is built without these arguments"
    )


def _torchvision_model(arch: str, num_classes: int, size: tuple[int, int] | None) -> nn.Module:
    options: dict[str, Any] = dict(TORCHVISION_OPTIONS.get(arch, {}))
    if size and arch.startswith("vit_"):  # built for one size
        options["image_size"] = size[0]
    try:
        model: nn.Module = torchvision.models.get_model(arch, weights=None, num_classes=num_classes, **options)
    except AssertionError as error:
        raise UserError(
            f"{arch} cannot be built for images of {options['image_size']} pixels: {error} Choose a multiple of its "
            "patches"
        ) from error
    return model


def _timm_model(arch: str, num_classes: int, size: tuple[int, int] | None, rates: dict[str, Any]) -> nn.Module:
    import timm

    try:
        model: Any = timm.create_model(
            arch.removeprefix(FORCE_TIMM), pretrained=False, num_classes=num_classes, **rates
        )
    except TypeError as error:
        if "drop" not in str(error):
            raise
        raise no_drop_rate(arch, "drop_path_rate" if "drop_path_rate" in str(error) else "drop_rate") from error
    except RuntimeError as error:
        if "Invalid pretrained tag" not in str(error):
            raise
        raise UserError(f"found arch {arch!r}: {error} timm.list_pretrained() lists the tags") from error
    own = tuple(model.pretrained_cfg["input_size"][1:])
    is_fixed = model.pretrained_cfg.get("fixed_input_size", False)
    return _built_for(arch, num_classes, size, own, rates) if size and size != own and is_fixed else model


def _built_for(
    arch: str, num_classes: int, size: tuple[int, int], own: tuple[int, int], rates: dict[str, Any]
) -> nn.Module:
    """Build timm's network for images of another size than its own."""
    import timm

    try:
        model: nn.Module = timm.create_model(
            arch.removeprefix(FORCE_TIMM), pretrained=False, num_classes=num_classes, img_size=size, **rates
        )
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{arch} is built for images of {own[0]} x {own[1]} pixels and cannot be built for {size[0]} x {size[1]}: "
            f"{str(error).partition(chr(10))[0]}. Choose {own[0]} x {own[1]}, a multiple of its patches and windows, "
            "or another network"
        ) from error
    return model


def infer_num_classes(arch: str, state_dict: Mapping[str, Tensor]) -> int:
    """Infer the number of classes K of a checkpoint from the shape of its classification head.

    Args:
        arch: as for library_of.
        state_dict: parameter name -> tensor; a "module." prefix of every name is ignored.

    Raises:
        UserError: unknown arch, or the checkpoint lacks that head (it is of another architecture).
    """
    class_layers = head_tensors(arch)
    weights = _without_module_prefix(state_dict)
    counts = {weights[name].shape[0] for name in class_layers if name in weights and weights[name].ndim > 0}
    if len(counts) != 1:
        found = f"gives {sorted(counts)}" if counts else f"has none of them, but {_some(list(weights), 3)}"
        raise UserError(
            f"cannot infer the number of classes: arch {arch} has it in {_some(class_layers, 3)}, the checkpoint "
            f"{found}; expected the arch that the checkpoint was trained with"
        )
    return counts.pop()


def head_tensors(arch: str) -> list[str]:
    """Return the names of the tensors in a network's classification head: those with one row per class."""
    return [name for name, shape in tensor_shapes(arch).items() if PROBE_CLASSES in shape[:1]]


@cache
def probe(arch: str) -> nn.Module:
    """Build a network of its own size with `probe_at`."""
    return probe_at(arch, None)


def probe_at(arch: str, size: tuple[int, int] | None, model_args: Mapping[str, Any] | None = None) -> nn.Module:
    """Build a network for PROBE_CLASSES classes, whose tensors are only to be looked at: most have no memory.

    Arguments and errors as in `create_model`.
    """
    try:
        with torch.device("meta"):  # no memory, no initialisation
            return create_model(arch, PROBE_CLASSES, size, model_args=model_args)
    except NotImplementedError:  # some networks read values of tensors while they are built
        return create_model(arch, PROBE_CLASSES, size, model_args=model_args)


@cache
def tensor_shapes(arch: str) -> dict[str, torch.Size]:
    """Return the names and shapes of a network's tensors, for PROBE_CLASSES classes."""
    return {name: tensor.shape for name, tensor in probe(arch).state_dict().items()}


def with_own_head(model: nn.Module, arch: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace the classification head in a checkpoint's weights with the network's own, to start from other classes.

    Args:
        model: the network that provides the head.
        arch: of the network, as for library_of.
        state_dict: parameter name -> tensor, with or without a head; a "module." prefix of every name is ignored.
    """
    own = model.state_dict()
    return _without_module_prefix(state_dict) | {name: own[name] for name in head_tensors(arch)}


def load_weights(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Copy a checkpoint's weights into the network, all or nothing.

    Args:
        model: changed in place.
        state_dict: parameter name -> tensor; a "module." prefix of every name (from DataParallel) is ignored.

    Raises:
        UserError: names or shapes differ; the message lists missing, unexpected and reshaped tensors.
    """
    weights, own = converted(model, _without_module_prefix(state_dict))
    # Checkpoints from before torch 0.4.1 lack these counters, which are not used here.
    missing = [name for name in own if name not in weights and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in weights if name not in own]
    reshaped = [name for name in own if name in weights and weights[name].shape != own[name].shape]
    problems = {
        "missing": [f"{name} {list(own[name].shape)}" for name in missing],
        "unexpected": [f"{name} {list(weights[name].shape)}" for name in unexpected],
        "of a different shape": [f"{n} {list(weights[n].shape)} instead of {list(own[n].shape)}" for n in reshaped],
    }
    lines = [f"  {len(found)} {kind}: {_some(found, LISTED_MISMATCHES)}" for kind, found in problems.items() if found]
    if lines:
        expected = (
            f"the network, which has {len(own)} tensors; expected the arch, and for a network of one image size the "
            "size, that it was trained with"
        )
        raise UserError("\n".join([f"the checkpoint does not fit {expected}", *lines]))
    model.load_state_dict(weights, strict=False)  # compared above; strict would require the counters


def _torchvision_names() -> list[str]:
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


def _unknown_name_message(arch: str) -> str:
    import timm

    name = arch.removeprefix(FORCE_TIMM)
    names = timm.list_models() if arch != name else [*OUR_MODELS, *_torchvision_names(), *timm.list_models()]
    similar = difflib.get_close_matches(name.lower(), dict.fromkeys(names), n=SUGGESTIONS, cutoff=0.5)
    suggestions = ", ".join(arch.removesuffix(name) + match for match in similar)
    return (
        f"found arch {arch!r}; expected a classification network of torchvision or timm, or digit_net. "
        + (f"Did you mean {suggestions}?" if suggestions else "No similar name was found.")
        + " All names: torchvision.models.list_models(module=torchvision.models), timm.list_models()"
    )


def _without_module_prefix(state_dict: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    prefix = "module." if all(name.startswith("module.") for name in state_dict) else ""
    return with_versions({name.removeprefix(prefix): tensor for name, tensor in state_dict.items()}, state_dict, prefix)


def _some(entries: Sequence[str], count: int) -> str:
    rest = len(entries) - count
    return ", ".join(entries[:count]) + (f" and {rest} more" if rest > 0 else "")
