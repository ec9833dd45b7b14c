"""Weights of earlier versions of a network, or for another image size, converted as its library converts them."""

import copy
import math
import re
import sys
from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn
from torchvision.models import VisionTransformer
from torchvision.models.vision_transformer import interpolate_embeddings

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
    of_timm = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    convert = _with_resized_embeddings if isinstance(model, VisionTransformer) else of_timm
    if convert is None or all(name in own and own[name].shape == tensor.shape for name, tensor in weights.items()):
        return weights, own
    try:
        resized: Mapping[str, Tensor] = convert(dict(weights), model)
    except (RuntimeError, KeyError, AssertionError, AttributeError, TypeError, ValueError):  # of another network
        return weights, own
    kernels = [f"{name}.weight" for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)]
    both = [name for name in kernels if name in weights and name in resized and weights[name].ndim == 4]
    if any(weights[name].shape != resized[name].shape for name in both):  # of a network with patches of another size
        return weights, own
    return resized, own


def _with_resized_embeddings(weights: dict[str, Tensor], model: VisionTransformer) -> Mapping[str, Tensor]:
    return interpolate_embeddings(model.image_size, model.patch_size, OrderedDict(weights))


def embedded_size(model: nn.Module, weights: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """Return the image size, pixels, that a vision transformer's position embeddings in a file are for.

    Args:
        model: timm's or torchvision's network, of any size.
        weights: parameter name -> tensor.

    Returns:
        (rows, columns); None: the network has no such embeddings, or the file's are of no square image.
    """
    name, patches, own = "pos_embed", getattr(model, "patch_embed", None), getattr(model, "pos_embed", None)
    # Of the network as it was built: a hybrid's patches are of a convolutional network's features, not of pixels.
    sides, grid = getattr(patches, "img_size", None), getattr(patches, "grid_size", None)
    if isinstance(model, VisionTransformer):
        name, own = "encoder.pos_embedding", model.encoder.pos_embedding
        sides, grid = (model.image_size,) * 2, (model.image_size // model.patch_size,) * 2
    found = weights.get(name)
    if not isinstance(own, Tensor) or own.ndim != 3 or found is None or found.ndim != 3 or not sides or not grid:
        return None
    count = found.shape[1] - own.shape[1] + math.prod(grid)  # without the tokens that are no patches
    rows = math.isqrt(max(count, 0))
    return (rows * (sides[0] // grid[0]), rows * (sides[1] // grid[1])) if count > 0 and rows * rows == count else None
