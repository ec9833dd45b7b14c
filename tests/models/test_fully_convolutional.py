"""Maps of a classifier: what they have in common with its own logits, and that each cell sees its own place."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from models.build import create_model
from models.fully_convolutional import (
    ATTENTION_HEAD,
    CLASS_TOKEN_HEAD,
    LINEAR_HEAD,
    OWN_HEAD,
    fully_convolutional,
)
from utils.errors import UserError

slow = pytest.mark.slow

LINEAR = ["digit_net", "resnet18", "squeezenet1_1", "mobilenet_v2", "regnet_x_400mf"]
LINEAR += ["timm/resnet18", "regnety_002", "rexnet_100", "timm/efficientnet_b0", "test_nfnet"]
SLOW_LINEAR = ["densenet121", "swin_t", "efficientnet_b0", "timm/densenet121", "levit_conv_128s"]
SLOW_LINEAR += ["resnetv2_50x1_bit"]  # its head is a convolution
SQUARE = {"levit_conv_128s": 224, "tiny_vit_5m_224": 224}  # take no other size

OWN = ["convnext_atto", "mobilenetv3_small_050", "ghostnet_050", "test_mambaout", "mobilenet_v3_small"]
SLOW_OWN = ["inception_next_atto", "davit_tiny", "caformer_s18", "tiny_vit_5m_224"]

TOKENS = {
    "vit_tiny_patch16_224": CLASS_TOKEN_HEAD,
    "deit_tiny_distilled_patch16_224": CLASS_TOKEN_HEAD,
    "eva02_tiny_patch14_224": OWN_HEAD,  # pools the mean of its patches
}
SLOW_TOKENS = {
    "vit_small_patch14_reg4_dinov2": CLASS_TOKEN_HEAD,  # and four registers
    "xcit_nano_12_p8_224": CLASS_TOKEN_HEAD,
    "vit_base_patch16_siglip_224": ATTENTION_HEAD,
}

REFUSED = {
    "alexnet": "found avgpool before its last layers instead of the mean of all cells",
    "efficientvit_b0": "its head uses more of the features than their mean",
    "crossvit_tiny_240": "its head uses more of the features",
}


def each(quick: Any, slow_ones: Any) -> list[Any]:
    """Parameters, some of them slow."""
    return [*quick, *(pytest.param(*(arch if isinstance(arch, tuple) else [arch]), marks=slow) for arch in slow_ones)]


def lively(network: nn.Module) -> nn.Module:
    """Random batch-norm settings and head, as training leaves them; new networks give logits near 0 to everything."""
    generator = torch.Generator().manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None and layer.running_var is not None:
            layer.running_mean.copy_(0.1 * torch.randn(layer.running_mean.shape, generator=generator))
            layer.running_var.copy_(0.5 + torch.rand(layer.running_var.shape, generator=generator))
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    for layer in layers:
        if len(layer.weight) == len(layers[-1].weight):  # two heads in a distilled network
            nn.init.normal_(layer.weight, std=0.5, generator=generator)
            if layer.bias is not None:
                nn.init.normal_(layer.bias, generator=generator)
    return network.eval()


@pytest.mark.parametrize("arch", each(LINEAR, SLOW_LINEAR))
@torch.inference_mode()
def test_mean_of_the_map_is_the_logits_of_a_linear_head(arch: str) -> None:
    torch.manual_seed(0)
    network = lively(create_model(arch, num_classes=7))
    images = torch.randn(1, 3, SQUARE.get(arch, 64), SQUARE.get(arch, 96))
    logits = network(images)
    maps_of = fully_convolutional(network)
    maps = maps_of(images)
    assert maps_of.mean_is_logits and maps_of.head == LINEAR_HEAD
    assert maps.shape[:2] == (1, 7) and (maps.shape[2] < maps.shape[3] or arch in SQUARE)
    torch.testing.assert_close(maps.mean((2, 3)), logits, rtol=0, atol=1e-5 * max(1.0, float(logits.abs().max())))
    assert float(logits.std()) > 1e-6


Half = Callable[[Tensor], Tensor]


def halves(network: Any) -> tuple[Half, Half]:
    """The features and the head of a network, as its library calls them."""
    if hasattr(network, "forward_head"):
        return network.forward_features, network.forward_head
    return network.features, lambda features: network.classifier(network.avgpool(features).flatten(1))


def channels_last(features: Tensor, network: Any) -> bool:
    """Whether features are [B, h, w, C]."""
    return features.shape[1] != getattr(network, "num_features", features.shape[1])


@pytest.mark.parametrize("arch", each(OWN, SLOW_OWN))
@torch.inference_mode()
def test_each_cell_has_the_logits_of_the_networks_own_head_for_it_alone(arch: str) -> None:
    torch.manual_seed(0)
    network = lively(create_model(arch, num_classes=7))
    images = torch.randn(2, 3, SQUARE.get(arch, 64), SQUARE.get(arch, 96))
    features_of, head = halves(network)
    features = features_of(images)
    last = channels_last(features, network)
    cells = features.permute(0, 3, 1, 2) if last else features
    maps_of = fully_convolutional(network)
    maps = maps_of(images)
    assert maps_of.head == OWN_HEAD and not maps_of.mean_is_logits
    assert maps.shape == (2, 7, *cells.shape[2:]) and float(maps.std()) > 1e-3
    for i in range(cells.shape[2]):
        for j in range(cells.shape[3]):
            cell = cells[:, :, i : i + 1, j : j + 1]
            alone = head(cell.permute(0, 2, 3, 1) if last else cell)
            torch.testing.assert_close(maps[:, :, i, j], alone, rtol=1e-4, atol=1e-5)
    # Where all cells are alike, the map is the logits of the image everywhere.
    alike = cells[:, :, :1, :1].expand_as(cells)
    logits = head(alike.permute(0, 2, 3, 1) if last else alike)
    torch.testing.assert_close(
        maps_of.classifier(alike), logits[:, :, None, None].expand_as(maps), rtol=1e-4, atol=1e-5
    )


def token_network(arch: str) -> tuple[Any, tuple[int, int]]:
    """A transformer for images that are not square, where it can be built so, and their size: 3 x 5 patches."""
    torch.manual_seed(0)
    if arch.startswith(("cait", "xcit")):
        return lively(create_model(arch, num_classes=7)), (224, 224)
    patch = 14 if "patch14" in arch else 16
    size = (3 * patch, 5 * patch)
    return lively(timm.create_model(arch, num_classes=7, img_size=size)), size


@pytest.mark.parametrize(("arch", "head"), each(TOKENS.items(), SLOW_TOKENS.items()))
@torch.inference_mode()
def test_each_patch_token_is_classified_as_the_image(arch: str, head: str) -> None:
    network, size = token_network(arch)
    images = torch.randn(2, 3, *size)
    maps_of = fully_convolutional(network)
    maps = maps_of(images)
    tokens = network.forward_features(images)
    prefix = network.num_prefix_tokens
    assert maps_of.head == head and not maps_of.mean_is_logits
    assert maps.shape[:2] == (2, 7) and (maps.shape[2:] == (3, 5) or size == (224, 224))
    for n in range(tokens.shape[1] - prefix):
        alone = network.forward_head(tokens[:, prefix + n, None].expand(-1, prefix + 1, -1))
        torch.testing.assert_close(maps.flatten(2)[:, :, n], alone, rtol=1e-4, atol=1e-5)
    assert float(maps.std()) > 1e-3


@torch.inference_mode()
def test_a_transformer_of_any_image_size() -> None:
    network = lively(timm.create_model("vit_tiny_patch16_224", num_classes=7, dynamic_img_size=True))
    assert fully_convolutional(network)(torch.randn(1, 3, 32, 80)).shape == (1, 7, 2, 5)
    padding = lively(timm.create_model("test_vit", num_classes=7, dynamic_img_size=True, dynamic_img_pad=True))
    assert fully_convolutional(padding)(torch.randn(1, 3, 30, 70)).shape == (1, 7, 2, 5)


@torch.inference_mode()
def test_mean_of_patch_tokens_is_the_logits_of_a_linear_head() -> None:
    torch.manual_seed(0)
    network = lively(
        timm.create_model("vit_tiny_patch16_224", img_size=(32, 80), num_classes=7, global_pool="avg", fc_norm=False)
    )
    maps_of = fully_convolutional(network)
    images = torch.randn(2, 3, 32, 80)
    assert maps_of.mean_is_logits and maps_of.head == LINEAR_HEAD
    torch.testing.assert_close(maps_of(images).mean((2, 3)), network(images), rtol=1e-4, atol=1e-5)


def small_torchvision_transformer() -> torchvision.models.VisionTransformer:
    """Of 4 x 4 patches."""
    torch.manual_seed(0)
    sizes = {"num_layers": 2, "num_heads": 2, "hidden_dim": 24, "mlp_dim": 32}
    return lively(torchvision.models.VisionTransformer(image_size=32, patch_size=8, num_classes=7, **sizes))


@pytest.mark.parametrize("arch", ["small", pytest.param("vit_b_16", marks=slow)])
@torch.inference_mode()
def test_torchvisions_patch_tokens_take_the_class_tokens_place(arch: str) -> None:
    network: Any = small_torchvision_transformer() if arch == "small" else lively(create_model(arch, 7))
    encoded: list[Tensor] = []
    network.encoder.register_forward_hook(lambda module, inputs, output: encoded.append(output))
    images = torch.randn(1, 3, network.image_size, network.image_size)
    network(images)
    maps_of = fully_convolutional(network)
    maps = maps_of(images)
    side = network.image_size // network.patch_size
    assert maps.shape == (1, 7, side, side)
    assert maps_of.head == CLASS_TOKEN_HEAD and not maps_of.mean_is_logits
    for n in range(side * side):
        torch.testing.assert_close(maps.flatten(2)[:, :, n], network.heads(encoded[0][:, 1 + n]), rtol=1e-4, atol=1e-5)


PLACED = ["small", "vit_tiny_patch16_224"]
SLOW_PLACED = ["swin_tiny_patch4_window7_224", "mvitv2_tiny", "hiera_tiny_224", "maxvit_t"]


@pytest.mark.parametrize("arch", each(PLACED, SLOW_PLACED))
@torch.inference_mode()
def test_a_patch_changes_its_own_cell_most(arch: str) -> None:
    """Whether tokens lie row by row: the upper right corner of the image is that of the map."""
    torch.manual_seed(0)
    network: Any = small_torchvision_transformer() if arch == "small" else lively(create_model(arch, 7))
    side = getattr(network, "image_size", 224)
    images = torch.randn(1, 3, side, side).expand(2, -1, -1, -1).clone()
    images[1, :, : side // 4, -side // 4 :] = torch.randn(3, side // 4, side // 4)
    maps = fully_convolutional(network)(images)
    change = (maps[1] - maps[0]).abs().sum(0)
    rows, columns = change.shape
    i, j = divmod(int(change.argmax()), columns)
    assert i < rows / 2 and j >= columns / 2


@pytest.mark.parametrize("arch", ["resnet18", "convnext_atto", "vit_tiny_patch16_224"])
@torch.inference_mode()
def test_classifier_itself_stays_as_it_was(arch: str) -> None:
    network = create_model(arch, num_classes=3).eval()
    images = torch.randn(1, 3, 224, 224)
    logits, weights = network(images), {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fully_convolutional(network)
    assert torch.equal(network(images), logits)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())


class Small(nn.Module):
    """Five features of each cell, and whatever head."""

    def __init__(self, head: Callable[[Tensor, Any], Tensor]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3)
        self.linear = nn.Linear(5, 4, bias=False)
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 4]."""
        return self.head(self.stem(images), self.linear)


@pytest.mark.parametrize(
    "pooled",
    [
        lambda cells: cells.mean(dim=(-2, -1), keepdim=True).flatten(1),
        lambda cells: torch.mean(cells, (2, 3)),
        lambda cells: (pooled := nn.functional.adaptive_avg_pool2d(cells, 1)).view(pooled.size(0), -1),
        lambda cells: nn.functional.dropout(cells.mean([2, 3]), 0.9, training=False),
    ],
)
@torch.inference_mode()
def test_any_way_to_write_the_mean(pooled: Callable[[Tensor], Tensor]) -> None:
    network = Small(lambda cells, linear: linear(pooled(cells)))
    maps_of = fully_convolutional(network)
    images = torch.randn(2, 3, 7, 9)
    maps = maps_of(images)
    assert maps.shape == (2, 4, 5, 7) and maps_of.mean_is_logits
    torch.testing.assert_close(maps.mean((2, 3)), network(images))


@torch.inference_mode()
def test_parameters_used_as_they_are_come_along() -> None:
    network: Any = Small(lambda cells, linear: (cells.mean((2, 3)) @ linear.weight.T) ** 3)
    images = torch.randn(1, 3, 7, 9)
    expected = (network.stem(images).movedim(1, -1) @ network.linear.weight.T) ** 3
    torch.testing.assert_close(fully_convolutional(network)(images), expected.movedim(-1, 1))


@pytest.mark.parametrize(("arch", "reason"), REFUSED.items())
def test_other_ends_are_refused_with_the_reason(arch: str, reason: str) -> None:
    with pytest.raises(UserError, match=f"cannot make label maps: .*{reason}.*ends in global average pooling"):
        fully_convolutional(create_model(arch, num_classes=7))


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (lambda cells, linear: linear(cells.amax((2, 3))), "found images before its last layers"),
        (lambda cells, linear: linear(nn.functional.adaptive_max_pool2d(cells, 1).flatten(1)), "adaptive_max_pool2d"),
        (lambda cells, linear: linear(cells.mean((2, 3)) + cells.amax((2, 3))), "more of the image than the mean"),
        (lambda cells, linear: cells if cells.sum() > 0 else -cells, "it cannot be traced"),
    ],
)
def test_heads_that_need_more_than_the_mean_are_refused(head: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        fully_convolutional(Small(head))
