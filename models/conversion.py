"""Weights of earlier versions of a network, or for another image size, converted as its library converts them."""

import copy
import math
import re
import sys
from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn

# Names in torchvision's published files of DenseNet, which its function that downloads them converts.
OLD_DENSENET = re.compile(r"(\.denselayer\d+\.(?:norm|conv))\.(?=[12]\.)")


def with_versions(
    weights: Mapping[str, Tensor], of: Mapping[str, Tensor], prefix: str = ""
) -> OrderedDict[str, Tensor]:
    """Add torch's record of the modules' versions, which some of torchvision's networks ask for, to renamed weights.

    Args:
        weights: parameter name -> tensor.
        of: the weights before they were renamed, which may have such a record.
        prefix: that was removed from the names.
    """
    versions = getattr(of, "_metadata", None)
    versions = {f"{name}.": entry for name, entry in versions.items()} if isinstance(versions, Mapping) else {}
    found = {name[len(prefix) :].rstrip("."): entry for name, entry in versions.items() if name.startswith(prefix)}
    renamed = OrderedDict(weights)
    vars(renamed)["_metadata"] = {name: entry for name, entry in found.items() if isinstance(entry, dict)}
    return renamed


def converted(model: nn.Module, weights: OrderedDict[str, Tensor]) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """Let the network's own code rename and resize weights of earlier versions and of other image sizes.

    Returns:
        the weights, and the network's own after that: its code may rebuild layers.
    """
    own, versions = model.state_dict(), vars(weights)["_metadata"]
    versions.setdefault("", vars(own)["_metadata"][""])  # MNASNet does not load without
    if all(name in own and own[name].shape == tensor.shape for name, tensor in weights.items()):
        return weights, own
    for name in [name for name in weights if OLD_DENSENET.search(name)]:
        weights[OLD_DENSENET.sub(r"\1", name)] = weights.pop(name)
    trial = copy.deepcopy(model)
    for name, module in trial.named_modules():
        prefix = name and f"{name}."
        module._load_from_state_dict(weights, prefix, versions.get(name, {}), False, [], [], [])
    own = trial.state_dict()
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None or all(name in own and own[name].shape == tensor.shape for name, tensor in weights.items()):
        return weights, own
    try:
        resized: dict[str, Tensor] = convert(dict(weights), model)
    except (RuntimeError, KeyError, AssertionError, AttributeError, TypeError):  # weights of another network
        return weights, own
    kernels = [f"{name}.weight" for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)]
    both = [name for name in kernels if name in weights and name in resized and weights[name].ndim == 4]
    if any(weights[name].shape != resized[name].shape for name in both):  # of a network with patches of another size
        return weights, own
    return resized, own


def embedded_size(model: nn.Module, weights: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """Return the image size, pixels, that a vision transformer's position embeddings in a file are for.

    Args:
        model: timm's network, of any size.
        weights: parameter name -> tensor.

    Returns:
        (rows, columns); None: the network has no such embeddings, or the file's are of no square image.
    """
    patches, own = getattr(model, "patch_embed", None), getattr(model, "pos_embed", None)
    count, side = getattr(patches, "num_patches", None), getattr(patches, "patch_size", None)
    found = weights.get("pos_embed")
    if not isinstance(own, Tensor) or own.ndim != 3 or found is None or found.ndim != 3 or not count or not side:
        return None
    grid = found.shape[1] - own.shape[1] + int(count)  # without the tokens that are no patches
    rows = math.isqrt(max(grid, 0))
    return (rows * side[0], rows * side[1]) if grid > 0 and rows * rows == grid else None
