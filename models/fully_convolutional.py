"""Turns a classifier into a network of feature maps: its last layer applied to each cell instead of to their mean."""

from collections.abc import Callable

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from utils.errors import UserError

# What may stand between the pooling and the last layer: nothing that changes a value in evaluation mode.
TRANSPARENT_MODULES = (nn.Dropout, nn.Identity, nn.Flatten)
TRANSPARENT_FUNCTIONS = (torch.flatten, F.dropout)
TRANSPARENT_METHODS = ("flatten",)


def fully_convolutional(model: nn.Module) -> nn.Module:
    """The same network without its global average pooling: images [B, 3, H, W] -> logits [B, K, h, w], float.

    Averaging is linear and so is the last layer, so the mean of the map over its cells is what the classifier says
    about the whole image (section 3.1 of the paper). Weights are shared with `model`, which is
    put into evaluation mode; the result stays in that mode.

    Args:
        model: a classifier that ends in global average pooling, dropout and one linear layer.

    Raises:
        UserError: the network does not end so; the message says what was found instead.
    """
    model = model.eval()
    if callable(getattr(model, "forward_features", None)) and callable(getattr(model, "forward_head", None)):
        return _from_halves(model)
    return _from_graph(model)


class _CellClassifier(nn.Module):
    """Features, then the last layer on each cell. For timm's networks, which name the two halves."""

    def __init__(self, model: nn.Module, head: nn.Conv2d) -> None:
        super().__init__()
        self.model = model
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, K, h, w]."""
        cells: Tensor = self.head(self._forward_features(images))
        return cells

    def _forward_features(self, images: Tensor) -> Tensor:
        forward_features: Callable[[Tensor], Tensor] = self.model.forward_features  # type: ignore[assignment]
        return forward_features(images)


def _from_halves(model: nn.Module) -> nn.Module:
    head = _as_convolution(_last_layer(model), model)
    _check_head_by_probe(model, head)
    return _CellClassifier(model, head).eval()


def _last_layer(model: nn.Module) -> nn.Module:
    layer = model.get_classifier()  # type: ignore[operator]
    return layer if isinstance(layer, nn.Module) else nn.Identity()


def _as_convolution(layer: nn.Module, model: nn.Module) -> nn.Conv2d:
    """The last layer as a 1x1 convolution that shares its weights."""
    if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1):
        return layer
    if not isinstance(layer, nn.Linear):
        raise _refusal(model, f"its last layer is no linear one but {type(layer).__name__}")
    convolution = nn.Conv2d(layer.in_features, layer.out_features, 1, bias=layer.bias is not None, device="meta")
    convolution.weight = nn.Parameter(layer.weight.detach()[:, :, None, None], requires_grad=False)
    if layer.bias is not None:
        convolution.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    return convolution.eval()


@torch.inference_mode()
def _check_head_by_probe(model: nn.Module, head: nn.Conv2d) -> None:
    """Refuse a second half that is not mean, then linear: on random features both orders must say the same."""
    weight = head.weight
    generator = torch.Generator().manual_seed(0)
    # More rows than columns, and neither as many as channels: a layout with the channels last cannot pass by chance.
    probe = torch.randn(1, head.in_channels, 3, 2, generator=generator).to(weight)
    means = head(probe).mean((2, 3))
    try:
        logits: Tensor = model.forward_head(probe)  # type: ignore[operator]
    except (RuntimeError, IndexError, ValueError, AssertionError) as error:
        reason = f"its head does not take features [B, {head.in_channels}, h, w] and average them ({error})"
        raise _refusal(model, reason) from error
    if logits.shape != means.shape or not torch.allclose(logits, means, rtol=0, atol=1e-2 * float(means.abs().max())):
        raise _refusal(model, "its head does more than average the cells and apply one linear layer")


def _from_graph(model: nn.Module) -> nn.Module:
    """Cut the pooling out of the traced network. torchvision's classifiers do not name their halves, but all trace."""
    try:
        cells = fx.symbolic_trace(model)
    except (fx.proxy.TraceError, TypeError) as error:
        raise _refusal(model, f"it cannot be traced ({error})") from error
    output = next(node for node in reversed(cells.graph.nodes) if node.op == "output")
    last = _input_node(output, model)
    if last.op != "call_module":
        raise _refusal(model, f"it ends in {_describe(last, model)}, not in a linear layer")
    convolution = _as_convolution(model.get_submodule(str(last.target)), model)
    pooling = _input_node(last, model)
    while _is_transparent(pooling, model):
        pooling = _input_node(pooling, model)
    if not _is_global_average(pooling, model):
        raise _refusal(model, f"{_describe(pooling, model)} stands before its last layer, not global average pooling")
    last.args = (_input_node(pooling, model),)
    cells.graph.eliminate_dead_code()
    cells.set_submodule(str(last.target), convolution)
    cells.recompile()
    return cells.eval()


def _input_node(node: fx.Node, model: nn.Module) -> fx.Node:
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        raise _refusal(model, f"{_describe(node, model)} at its end does not act on one tensor")
    return source


def _is_transparent(node: fx.Node, model: nn.Module) -> bool:
    if node.op == "call_module":
        return isinstance(model.get_submodule(str(node.target)), TRANSPARENT_MODULES)
    if node.op == "call_method":
        return node.target in TRANSPARENT_METHODS
    return node.op == "call_function" and node.target in TRANSPARENT_FUNCTIONS


def _is_global_average(node: fx.Node, model: nn.Module) -> bool:
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        return isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1))
    if node.target is F.adaptive_avg_pool2d:
        return node.args[1:] in ((1,), ((1, 1),), ([1, 1],))
    return node.target in ("mean", torch.mean) and node.args[1:] in (([2, 3],), ((2, 3),))


def _describe(node: fx.Node, model: nn.Module) -> str:
    if node.op == "call_module":
        return type(model.get_submodule(str(node.target))).__name__
    return str(getattr(node.target, "__name__", node.target))


def _refusal(model: nn.Module, reason: str) -> UserError:
    return UserError(
        f"{type(model).__name__} cannot make label maps: {reason}. A teacher must end in global average pooling and "
        "one linear layer: ResNet, ResNeXt, RegNet, EfficientNet, ReXNet, MobileNetV2, DenseNet or alike"
    )
