"""Turn a classifier into a network that makes label maps: its own head, applied to each cell instead of to their mean.

How a map relates to the logits of the whole image depends on what follows the features:

    head                  families, in timm and torchvision             the map
    mean, linear layer    ResNet, ResNeXt, RegNet, EfficientNet,        its mean over the cells equals the logits
                          ReXNet, MobileNetV2, DenseNet, Swin
    mean, then more       ConvNeXt, BEiT (a norm), MobileNetV3 (a       each cell has the logits of an image that looks
                          hidden layer), MaxViT (both)                  like it everywhere; the mean differs
    class token, linear   ViT, DeiT (distilled: two tokens), CaiT       each patch token replaces the class token, for
                                                                        which the head was not trained: inspect the maps
    attention pooling     SigLIP's ViT                                  each patch token is pooled alone, likewise

Refused, with the reason: pooling to more than one cell (VGG, AlexNet) or to a maximum (VOLO), several feature maps
(CrossViT), layers between the cells and their mean that timm counts as part of the head (MIT's EfficientViT).
"""

import operator
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from models.cell_head import CellFeatures, CellHead, Layout, Map, Tokens
from utils.errors import UserError

LINEAR_HEAD = "linear after average pooling"
OWN_HEAD = "the network's own head, which is not linear, on each cell"
CLASS_TOKEN_HEAD = "patch tokens, classified by the class token's head"
ATTENTION_HEAD = "patch tokens, each alone through attention pooling and head"

TIMM_NAMES = ("forward_features", "forward_head", "num_features", "get_classifier")
FIRST_TOKEN = (slice(None), 0)
SPATIAL = {(2, 3), (-2, -1)}
# What networks raise for features in another layout than theirs.
MISFITS = (RuntimeError, IndexError, ValueError, AssertionError, TypeError, AttributeError)
CLOSE = 1e-3  # relative; rounding errors are a thousandth of it, differences between kinds of heads far larger


class FullyConvolutional(nn.Module):
    """A network of maps: images float [B, 3, H, W] -> logits [B, K, h, w].

    Attributes:
        head: what classifies a cell; one of the phrases above.
        mean_is_logits: whether the mean of a map over its cells equals the classifier's logits for the whole image.
    """

    def __init__(self, features: nn.Module, classifier: nn.Module, head: str) -> None:
        super().__init__()
        self.features = features
        self.classifier = classifier
        self.head = head
        self.mean_is_logits = head == LINEAR_HEAD

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, K, h, w]."""
        cells: Tensor = self.classifier(self.features(images))
        return cells


def fully_convolutional(model: nn.Module) -> FullyConvolutional:
    """Remove a classifier's global pooling; the table above describes the maps.

    The head is applied to each cell as if it were the pooled feature of a whole image. A linear head is then a 1x1
    convolution, and averaging the cells before or after it is the same (section 3.1 of the paper). Weights are shared
    with `model`, which is put into evaluation mode.

    Args:
        model: a classifier: images [B, 3, H, W] -> logits [B, K].

    Raises:
        UserError: its head does not act on one feature per image; the message names what was found instead.
    """
    model = model.eval()
    named = all(hasattr(model, name) for name in TIMM_NAMES)
    return (_from_methods if named else _from_graph)(model).eval()


# timm's networks name their halves, forward_features and forward_head, but neither the layout between them nor the kind
# of head: both are found by trying random features.


class _Method(nn.Module):
    """A method of a network as a module."""

    def __init__(self, model: nn.Module, method: str) -> None:
        super().__init__()
        self.model, self.method = model, method

    def forward(self, inputs: Tensor) -> Tensor:
        """Call the method."""
        method: Callable[[Tensor], Tensor] = getattr(self.model, self.method)
        return method(inputs)


def _from_methods(model: nn.Module) -> FullyConvolutional:
    second = _Method(model, "forward_head")
    channels: int = model.num_features  # type: ignore[assignment]
    layouts: list[Layout] = [Map(), Map(channels_last=True)]
    stages = getattr(model, "feature_info", None)
    if isinstance(stages, list) and stages:
        layouts.append(Tokens(getattr(model, "num_prefix_tokens", 0), stages[-1]["reduction"]))
    for layout in layouts:
        own_head = CellHead(second, layout)
        head = _describe_head(own_head, channels, getattr(model, "global_pool", None))
        if head:
            features = CellFeatures(_Method(model, "forward_features"), layout)
            return FullyConvolutional(features, own_head, head)
    raise _refusal(model, "its head uses more of the features than their mean or a class token")


@torch.inference_mode()
def _describe_head(own_head: CellHead, channels: int, pooling: object) -> str | None:
    """Return the kind of a head, from its logits for random features; None if the layout does not fit."""
    layout, cells = own_head.layout, _probe(own_head, channels)
    features = layout.features(cells)
    logits, cell_logits = _attempt(own_head.part, features), _attempt(own_head, cells)
    if logits is None or cell_logits is None or logits.shape != cell_logits.shape[:2]:
        return None
    if isinstance(layout, Tokens) and pooling == "map":
        return ATTENTION_HEAD
    if not _agree(own_head(cells.mean((2, 3), keepdim=True))[:, :, 0, 0], logits):
        return None
    if isinstance(layout, Tokens) and not _agree(own_head.part(layout.without_prefix(features)), logits):
        return CLASS_TOKEN_HEAD
    return LINEAR_HEAD if _agree(cell_logits.mean((2, 3)), logits) else OWN_HEAD


def _attempt(module: nn.Module, features: Tensor) -> Tensor | None:
    """Apply a module to features; None if they do not fit it."""
    try:
        output: Tensor = module(features)
    except MISFITS:
        return None
    return output


def _probe(model: nn.Module, channels: int) -> Tensor:
    """Return random features of cells, [1, C, 3, 2]; no side equals C, so that swapped axes do not fit."""
    cells = torch.randn(1, channels, 3, 2, generator=torch.Generator().manual_seed(0))
    return cells.to(next(model.parameters(), cells))


def _agree(found: Tensor | None, expected: Tensor | None) -> bool:
    if found is None or expected is None or found.shape != expected.shape:
        return False
    return bool((found - expected).abs().max() <= CLOSE * expected.abs().max())


# torchvision's networks do not name their halves, but all can be traced: the graph is cut at the pooling.


def _from_graph(model: nn.Module) -> FullyConvolutional:
    try:
        network = fx.symbolic_trace(model)
    except (fx.proxy.TraceError, TypeError) as error:
        raise _refusal(model, f"it cannot be traced ({error})") from error
    output = network.graph.output_node()
    last, pooling = _input_node(output, model), _find_pooling(output, model)
    second = _graph_from(pooling, network, model)
    output.args = (_input_node(pooling, model),)
    network.graph.eliminate_dead_code()
    network.recompile()
    if _takes_class_token(pooling, model):
        layout = Tokens(1, model.patch_size)  # type: ignore[arg-type]
        return FullyConvolutional(CellFeatures(network, layout), CellHead(second, layout), CLASS_TOKEN_HEAD)
    own_head = CellHead(second, Map())
    layer = model.get_submodule(str(last.target)) if last.op == "call_module" else None
    # If the features pass a hidden layer first, this is the wrong width; such a head is not linear anyway.
    head = _describe_head(own_head, getattr(layer, "in_features", 5), None)
    return FullyConvolutional(network, own_head, head or OWN_HEAD)


def _find_pooling(output: fx.Node, model: nn.Module) -> fx.Node:
    """Search backwards from the output for the node that reduces all cells to one feature."""
    node = _input_node(output, model)
    while not (_is_global_average(node, model) or _takes_class_token(node, model)):
        if "pool" in node.name:
            raise _refusal(model, f"found {node.name} before its last layers instead of the mean of all cells")
        node = _input_node(node, model)
    return node


def _graph_from(pooling: fx.Node, network: fx.GraphModule, model: nn.Module) -> fx.GraphModule:
    """Cut out the network from its pooling to its output: features -> logits [B, K]."""
    graph = fx.Graph()
    features = {_input_node(pooling, model): graph.placeholder("features")}
    copies = {pooling: graph.node_copy(pooling, features.__getitem__)}
    for node in network.graph.nodes:
        # The weights, and every node that depends on the pooling.
        if node.op != "placeholder" and copies.keys() >= set(node.all_input_nodes):
            copies[node] = graph.node_copy(node, copies.__getitem__)
    if network.graph.output_node() not in copies:
        raise _refusal(model, "its last layers use more of the image than the mean of all cells")
    second = fx.GraphModule(network, graph)
    second.graph.eliminate_dead_code()
    second.recompile()
    return second


def _input_node(node: fx.Node, model: nn.Module) -> fx.Node:
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        raise _refusal(model, f"found {node.name} before its last layers instead of the mean of all cells")
    return source


def _is_global_average(node: fx.Node, model: nn.Module) -> bool:
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        return isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1))
    if node.target is F.adaptive_avg_pool2d:
        return node.args[1:] in ((1,), ((1, 1),), ([1, 1],))
    dimensions = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    return node.target in ("mean", torch.mean) and isinstance(dimensions, Sequence) and tuple(dimensions) in SPATIAL


def _takes_class_token(node: fx.Node, model: nn.Module) -> bool:
    """Whether the node picks the first token of a network of known patch size, as torchvision's ViT does."""
    is_first = node.target is operator.getitem and node.args[1] == FIRST_TOKEN
    return is_first and isinstance(getattr(model, "patch_size", None), int)


def _refusal(model: nn.Module, reason: str) -> UserError:
    return UserError(
        f"{type(model).__name__} cannot make label maps: {reason}. Expected a network that ends in global average "
        "pooling and any layers after it, or in patch tokens and a class token, such as ResNet, RegNet, EfficientNet, "
        "ReXNet, ConvNeXt, MobileNet, DenseNet, Swin, ViT, DeiT"
    )
