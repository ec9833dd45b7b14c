"""Networks by name: torchvision's classifiers, then timm's, and ours; and weights put into them."""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from models.digit_net import DigitNet
from utils.errors import UserError

# timm takes a second to import, so it is imported where no other library has the name.

FORCE_TIMM = "timm/"
OURS = "this project"
OUR_MODELS: dict[str, Callable[[int], nn.Module]] = {"digit_net": DigitNet}
# Both give several outputs while training unless told otherwise; init_weights=True keeps their published start.
TORCHVISION_OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}
# Prime, so it is no layer's width: a dimension of this size can only be the class count.
PROBE_CLASSES = 7919
LISTED_MISMATCHES = 10
SUGGESTIONS = 3  # of each library


def library_of(arch: str) -> str:
    """Where a network comes from: "torchvision", "timm" or OURS.

    Args:
        arch: a torchvision classification name, else a timm name; "timm/NAME" forces timm's; "digit_net" is ours.

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


def create_model(arch: str, num_classes: int) -> nn.Module:
    """A classifier with random weights: images float [B, 3, H, W] -> logits float [B, K].

    Args:
        arch: as for library_of.
        num_classes: K.

    Raises:
        UserError: no library has the name, or the library that has it cannot build it for K classes.
    """
    library = library_of(arch)
    if library == OURS:
        return OUR_MODELS[arch](num_classes)
    if library == "torchvision":
        options = TORCHVISION_OPTIONS.get(arch, {})
        model: nn.Module = torchvision.models.get_model(arch, weights=None, num_classes=num_classes, **options)
        return model
    return _create_timm_model(arch, num_classes)


def create_pretrained_model(arch: str) -> tuple[nn.Module, str]:
    """A classifier with the weights that its library publishes, from the library's cache or the network.

    Args:
        arch: as for library_of; a timm name may say which weights ("NAME.TAG"), torchvision's are its DEFAULT ones.

    Returns:
        the network, for the classes of those weights, and the weights' name.

    Raises:
        UserError: no library has the name, has weights for it, or can fetch them now.
    """
    library = library_of(arch)
    if library == OURS:
        raise UserError(f"{arch} has no published weights; expected a checkpoint of {arch}")
    fetch = _pretrained_torchvision_model if library == "torchvision" else _pretrained_timm_model
    try:
        model, name = fetch(arch)
    except Exception as error:  # fetching involves four libraries, each with errors of its own; the reason is kept
        reason = f"{type(error).__name__}: {str(error).split(chr(10))[0]}"
        raise UserError(
            f"the published weights of {arch} are not in {library}'s cache and cannot be fetched, or cannot be read "
            f"({reason}). Give a checkpoint of {arch} brought here by other means, connect this "
            "machine to the network, or try things out with random weights"
        ) from error
    if getattr(model, "num_classes", None) == 0:
        raise UserError(
            f"the published weights {name} make features and know no classes; expected those of a classifier. Name an "
            "architecture whose tag ends in in1k or the like: timm.list_pretrained() lists them"
        )
    return model, name


def infer_num_classes(arch: str, state_dict: Mapping[str, Tensor]) -> int:
    """Class count K of a checkpoint that does not say it: the rows of the layer that K shapes in this architecture.

    Args:
        arch: as for create_model.
        state_dict: parameter name -> tensor; a "module." in front of every name is ignored.

    Raises:
        UserError: unknown arch, or the checkpoint lacks that layer (it is of another architecture).
    """
    class_layers = head_tensors(arch)
    weights = _without_module_prefix(state_dict)
    counts = {weights[name].shape[0] for name in class_layers if name in weights and weights[name].ndim > 0}
    if len(counts) != 1:
        found = f"gives {sorted(counts)}" if counts else f"has none of them, but {_some(list(weights), 3)}"
        raise UserError(
            f"cannot tell the number of classes: arch {arch} keeps it in {_some(class_layers, 3)}, "
            f"the checkpoint {found}; expected the arch that the checkpoint was trained with"
        )
    return counts.pop()


def head_tensors(arch: str) -> list[str]:
    """Names of the tensors of a network's classification head: those with a row for each class.

    Args:
        arch: as for create_model.
    """
    return [name for name, shape in _shapes(arch, PROBE_CLASSES).items() if PROBE_CLASSES in shape[:1]]


def with_own_head(model: nn.Module, arch: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's weights, but the network's own ones for its classification head: a start for other classes.

    Args:
        model: whose head it is.
        arch: of the network, as for create_model.
        state_dict: parameter name -> tensor, with or without a head; a "module." in front of every name is ignored.
    """
    own = model.state_dict()
    return _without_module_prefix(state_dict) | {name: own[name] for name in head_tensors(arch)}


def load_weights(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Copy a checkpoint's weights into the network, all or nothing.

    Args:
        model: changed in place.
        state_dict: parameter name -> tensor; a "module." in front of every name (DataParallel's) is ignored.

    Raises:
        UserError: names or shapes differ; lists what is missing, unexpected and of another shape.
    """
    expected = model.state_dict()
    weights = _without_module_prefix(state_dict)
    # Checkpoints older than torch 0.4.1 lack these counters, and nothing here reads them.
    missing = [name for name in expected if name not in weights and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in weights if name not in expected]
    reshaped = [
        f"{name} {list(weights[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if missing or unexpected or reshaped:
        groups = {
            "missing": [f"{name} {list(expected[name].shape)}" for name in missing],
            "unexpected": [f"{name} {list(weights[name].shape)}" for name in unexpected],
            "of another shape": reshaped,
        }
        raise UserError(_mismatch_message(groups, len(expected)))
    model.load_state_dict(weights, strict=False)  # compared above; strict would ask for the counters


def _shapes(arch: str, num_classes: int) -> dict[str, torch.Size]:
    """Shape of each tensor of a network, without the memory and the initialisation where the network allows it."""
    try:
        with torch.device("meta"):
            model = create_model(arch, num_classes)
    except NotImplementedError:  # some networks read numbers out of tensors while they are built
        model = create_model(arch, num_classes)
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def _create_timm_model(arch: str, num_classes: int) -> nn.Module:
    import timm

    try:
        name = arch.removeprefix(FORCE_TIMM)
        model: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes)
    except NotImplementedError:
        raise  # the network cannot be built on the meta device, which is not the user's doing; see _shapes
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise UserError(f"timm has {arch} but cannot build it for {num_classes} classes: {error}") from error
    return model


def _pretrained_torchvision_model(arch: str) -> tuple[nn.Module, str]:
    weights = torchvision.models.get_model_weights(arch).DEFAULT
    options = {"aux_logits": False} if arch in TORCHVISION_OPTIONS else {}
    return torchvision.models.get_model(arch, weights=weights, **options), str(weights)


def _pretrained_timm_model(arch: str) -> tuple[nn.Module, str]:
    import timm

    model: Any = timm.create_model(arch.removeprefix(FORCE_TIMM), pretrained=True)
    published: dict[str, str] = model.pretrained_cfg
    return model, ".".join(part for part in (published["architecture"], published.get("tag")) if part)


def _torchvision_names() -> list[str]:
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


def _timm_names() -> list[str]:
    import timm

    names: list[str] = timm.list_models()
    return names


def _unknown_name_message(arch: str) -> str:
    name = arch.removeprefix(FORCE_TIMM)
    near_timm = [arch.removesuffix(name) + match for match in _nearest(name, _timm_names())]
    near = {"timm": near_timm}
    if arch == name:
        near = {"torchvision": _nearest(name, _torchvision_names()), **near, "the demo": _nearest(name, OUR_MODELS)}
    suggestions = [f"{', '.join(names)} ({library})" for library, names in near.items() if names]
    hint = f"Did you mean {' or '.join(suggestions)}?" if suggestions else "No name is near it."
    return (
        f"found arch {arch!r}; expected a classification network of {' or '.join(near)}. {hint} All names: "
        "torchvision.models.list_models(module=torchvision.models), timm.list_models(), digit_net"
    )


def _nearest(name: str, known: Iterable[str]) -> list[str]:
    """Known names that continue the given one, shortest first, then those that differ little."""
    name = name.lower()
    continuations = sorted((candidate for candidate in known if candidate.startswith(name)), key=len)
    similar = difflib.get_close_matches(name, known, n=SUGGESTIONS)
    return list(dict.fromkeys([*continuations, *similar]))[:SUGGESTIONS]


def _without_module_prefix(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    odd = [str(name) for name, value in state_dict.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if odd or not state_dict:
        found = f"{_some(odd, 3)} is no tensor" if odd else "it is empty"
        raise UserError(f"the checkpoint's weights must be a table of name -> tensor, but {found}")
    prefix = "module." if all(name.startswith("module.") for name in state_dict) else ""
    return {name.removeprefix(prefix): tensor for name, tensor in state_dict.items()}


def _mismatch_message(groups: Mapping[str, Sequence[str]], num_expected: int) -> str:
    lines = [f"the checkpoint does not fit the network, which has {num_expected} tensors:"]
    for title, entries in groups.items():
        if entries:
            lines.append(f"  {len(entries)} {title}: {_some(entries, LISTED_MISMATCHES)}")
    lines.append("  expected the arch that the checkpoint was trained with")
    return "\n".join(lines)


def _some(entries: Sequence[str], count: int) -> str:
    rest = len(entries) - count
    return ", ".join(entries[:count]) + (f" and {rest} more" if rest > 0 else "")
