"""A public network from a bare file computes here what its own library's pipeline computes."""

import math
import re
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn
from torchvision import transforms
from torchvision.models.vision_transformer import interpolate_embeddings

from models.build import create_model, probe, probe_at
from models.classifier import Weights, open_weights
from models.conversion import embedded_size
from models.data_config import IMAGENET_MEAN, IMAGENET_STD
from models.digit_net import DigitNet
from relabel.augment import normalise
from relabel.data.dataset import CenterCrop
from relabel.data.decode import ImageFile
from relabel.training.network import center_crop
from utils.errors import UserError, with_advice

Transform = Callable[[Image.Image], Tensor]
OF_TORCHVISION = transforms.Compose(
    [
        transforms.Resize(256),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ]
)
FLAGS = "--flags"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A smooth image: the two resizings differ by less than a level."""
    coarse = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((300, 260), Image.Resampling.BICUBIC).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def random_network(arch: str, **options: Any) -> nn.Module:
    """A network whose batch norms and position embeddings matter."""
    torch.manual_seed(1)
    network = timm.create_model(arch.removeprefix("timm/"), **options) if options else create_model(arch, 7)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("running_var"):
                tensor.mul_(0.01)
            if "pos_embed" in name or "relative_position_bias_table" in name:
                tensor.normal_()
    return network.eval()


def saved(network: nn.Module, of: str, folder: Path, **more: Any) -> Weights:
    """The network's weights in a file, bare or with more entries."""
    torch.save({"state_dict": network.state_dict(), **more} if more else network.state_dict(), folder / "w.pth")
    return open_weights(of, str(folder / "w.pth"))


def transform_of(network: nn.Module) -> Transform:
    """timm's own evaluation transform."""
    transform: Transform = create_transform(**resolve_model_data_config(network, use_test_size=True), is_training=False)
    return transform


@pytest.mark.parametrize("arch", ["mobilenet_v3_small", "timm/test_efficientnet", "timm/test_vit", "timm/test_nfnet"])
@torch.inference_mode()
def test_logits_are_those_of_the_librarys_own_pipeline(arch: str, image: Path, tmp_path: Path) -> None:
    network = random_network(arch)
    weights = saved(network, arch, tmp_path)
    config = weights.data_config({}, FLAGS)
    crop = CenterCrop(config.side, config.crop_ratio, config.interpolation)(ImageFile(image, "pillow"), 0, 0)
    pixels = normalise(torch.from_numpy(crop.image.copy())[None], mean=config.mean, std=config.std)
    expected = (OF_TORCHVISION if "/" not in arch else transform_of(network))(Image.open(image))
    torch.testing.assert_close(pixels[0], expected, rtol=0, atol=1e-5)
    ours = weights.build("model", config, "--arch", "--size").eval()(pixels)
    torch.testing.assert_close(ours, network(expected[None]), rtol=1e-4, atol=1e-5)


WHOLE_VIT = torchvision.models.VisionTransformer.__init__


def small_vit(self: nn.Module, image_size: int, patch_size: int, num_classes: int, **_: object) -> None:
    """Build torchvision's vision transformer with one layer."""
    WHOLE_VIT(self, image_size, patch_size, 1, 2, 8, 8, num_classes=num_classes)


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("test_vit", 96),
        ("deit_tiny_patch16_224", 96),
        ("swin_tiny_patch4_window7_224", 112),
        ("eva02_tiny_patch14_224", 98),
    ],
)
@torch.inference_mode()
def test_a_vision_transformer_at_another_size_is_timms_with_its_weights_converted(
    name: str, side: int, tmp_path: Path
) -> None:
    source = random_network(name, num_classes=7)
    weights = saved(source, f"timm/{name}", tmp_path)
    config = weights.data_config({"size": (side, side)}, FLAGS)
    assert f"{side} x {side} pixels instead of" in config.source and "timm resizes " in config.source
    ours = weights.build("model", config, "--arch", "--size").eval()
    theirs = timm.create_model(name, num_classes=7, img_size=side).eval()
    convert = sys.modules[type(theirs).__module__].checkpoint_filter_fn
    theirs.load_state_dict(convert(source.state_dict(), theirs))
    images = torch.randn(2, 3, side, side)
    assert torch.equal(ours(images), theirs(images))


def test_a_bare_vision_transformer_gets_the_size_of_its_position_embeddings_and_another_is_said(tmp_path: Path) -> None:
    source = random_network("deit_tiny_patch16_224", num_classes=7, img_size=96)
    weights = saved(source, "timm/deit_tiny_patch16_224", tmp_path)
    config = weights.data_config({}, FLAGS)
    assert config.size == (96, 96) and config.train_size == 96 and "position embeddings in w.pth" in config.source
    images = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        assert torch.equal(weights.build("model", config, "--arch", "--size").eval()(images), source(images))
    recorded = saved(source, "timm/deit_tiny_patch16_224", tmp_path, args={"img_size": 128})
    assert "timm resizes pos_embed [1, 37, 192] to [1, 65, 192]" in recorded.data_config({}, FLAGS).source


@pytest.mark.parametrize(
    ("arch", "embeddings", "side"),
    [
        ("vit_b_16", {"encoder.pos_embedding": (1, 577, 768)}, 384),
        (
            "timm/vit_tiny_r_s16_p8_224",
            {"pos_embed": (1, 145, 192)},
            384,
        ),  # patches of a convolutional network's output
    ],
)
def test_the_size_of_position_embeddings(arch: str, embeddings: dict[str, tuple[int, ...]], side: int) -> None:
    tensors = {name: torch.empty(shape, device="meta") for name, shape in embeddings.items()}
    assert embedded_size(probe(arch), tensors) == (side, side)
    built = probe_at(arch, (side, side)).state_dict()
    assert all(built[name].shape == tensor.shape for name, tensor in tensors.items())


def test_torchvisions_vision_transformer_at_another_size_is_torchvisions_with_its_embeddings_interpolated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torchvision.models.vision_transformer.VisionTransformer, "__init__", small_vit)
    weights = saved(create_model("vit_b_16", 7, (64, 64)), "vit_b_16", tmp_path)
    assert weights.data_config({}, FLAGS).size == (64, 64)
    config = weights.data_config({"size": (96, 96)}, FLAGS)
    assert "torchvision resizes encoder.pos_embedding [1, 17, 8] to [1, 37, 8]" in config.source
    own = weights.build("model", config, "--arch", "--size").state_dict()
    expected = interpolate_embeddings(96, 16, OrderedDict(weights.state_dicts["model"]))
    assert all(torch.equal(own[name], tensor) for name, tensor in expected.items())
    with pytest.raises(UserError, match=r"cannot be built for images of 100 pixels: .* Choose a multiple"):
        create_model("vit_b_16", 7, (100, 100))


def test_patches_of_another_size_are_not_resized(tmp_path: Path) -> None:
    weights = saved(timm.create_model("test_vit", num_classes=7, patch_size=8), "timm/test_vit", tmp_path)
    with pytest.raises(UserError, match=r"1 of a different shape: patch_embed\.proj\.weight"):
        weights.build("model", weights.data_config({}, FLAGS), "--arch", "--size")


def test_weights_that_timm_cannot_convert_are_refused_and_load_at_the_size_that_is_named(tmp_path: Path) -> None:
    weights = saved(random_network("mixer_s32_224", num_classes=7), "timm/mixer_s32_224", tmp_path)
    with pytest.raises(UserError, match=r"for images of 224 x 224 pixels, and timm cannot convert.*: set --size 224"):
        weights.build("model", weights.data_config({"size": (128, 128)}, FLAGS), "--arch", "--size")
    weights.build("model", weights.data_config({"size": (224, 224)}, FLAGS), "--arch", "--size")
    with pytest.raises(UserError, match=r"pit_ti_224 is built for images of 224 x 224 .* cannot be built for 7 x 7"):
        create_model("timm/pit_ti_224", 7, (7, 7))


@pytest.mark.parametrize("side", [64, 96])
def test_an_image_that_timm_squashes_and_crops_is_squashed_and_cropped(side: int, image: Path, tmp_path: Path) -> None:
    network = timm.create_model("test_resnet", num_classes=3)
    stated = {"crop_mode": "squash", "crop_pct": 0.9, "input_size": (3, 64, 64)}
    timm.models.save_for_hf(network, str(tmp_path), {"pretrained_cfg": stated}, safe_serialization=True)
    weights = open_weights(None, str(tmp_path / "model.safetensors"))
    config = weights.data_config({} if side == 64 else {"size": (side, side)}, FLAGS)
    assert "of the squashed image" in config.source
    assert not weights.data_config({"crop_ratio": 0.9}, FLAGS).squash
    crop = center_crop(config)(ImageFile(image, "pillow"), 0, 0)
    expected = create_transform((3, side, side), False, crop_mode="squash", crop_pct=0.9, interpolation="bilinear")
    pixels = normalise(torch.from_numpy(crop.image.copy())[None], mean=IMAGENET_MEAN, std=IMAGENET_STD)
    torch.testing.assert_close(pixels[0], expected(Image.open(image)), rtol=0, atol=1e-5)
    shorter = math.floor(side / 0.9)
    assert crop.box.left == crop.box.top == round((shorter - side) / 2) / shorter


@pytest.mark.parametrize("form", ["train.py", "folder"])
@torch.inference_mode()
def test_a_network_that_timm_built_with_other_arguments_is_built_with_them(form: str, tmp_path: Path) -> None:
    other: dict[str, Any] = {"global_pool": "catavgmax", "act_layer": "gelu"}
    source = timm.create_model("resnet10t", num_classes=3, **other).eval()
    if form == "folder":
        timm.models.save_for_hf(source, str(tmp_path), model_args=other, safe_serialization=True)
        weights = open_weights(None, str(tmp_path / "model.safetensors"))
    else:
        args = {"crop_pct": None, "gp": "catavgmax", "model_kwargs": {"act_layer": "gelu"}}
        weights = saved(source, "timm/resnet10t", tmp_path, args=args)
    config = weights.data_config({}, FLAGS)
    assert "global_pool catavgmax" in config.source and "act_layer gelu" in config.source
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(weights.build("model", config, "--arch", "--size").eval()(images), source(images))


@pytest.mark.parametrize(("arch", "reason"), [("timm/resnet10t", "timm cannot build it"), ("resnet18", "only timm's")])
def test_arguments_that_do_not_fit_are_refused_and_the_bare_weights_load(
    arch: str, reason: str, tmp_path: Path
) -> None:
    network, args = create_model(arch, 3), {"crop_pct": None, "model_kwargs": {"depth_of_the_sea": 3}}
    weights = saved(network, arch, tmp_path, args=args)
    with pytest.raises(UserError, match=f"recorded with depth_of_the_sea 3, but {reason}(.|\n)*only the checkpoint's"):
        weights.build("model", weights.data_config({}, FLAGS), "--arch", "--size")
    weights = saved(network, arch, tmp_path)
    weights.build("model", weights.data_config({}, FLAGS), "--arch", "--size")


@pytest.mark.parametrize("stated", [{"crop_mode": "border", "crop_pct": 1.0}, {"crop_pct": 1.25}])
def test_a_crop_of_timm_that_is_not_supported_is_said(stated: dict[str, Any], tmp_path: Path) -> None:
    network = timm.create_model("test_resnet", num_classes=3)
    timm.models.save_for_hf(network, str(tmp_path), {"pretrained_cfg": stated}, safe_serialization=True)
    config = open_weights(None, str(tmp_path / "model.safetensors")).data_config({}, FLAGS)
    assert config.crop_ratio == 1 and "pads" in config.source and "not supported" in config.source


def test_another_network_of_the_same_tensors_is_obeyed_and_said(tmp_path: Path) -> None:
    network = create_model("timm/resnet10t", 3)
    for named, arch, said in (
        ("resnet10t", "timm/resnet10t", ""),
        ("resnet10t", "timm/resnet14t", " (instead of resnet10t, which it names)"),
    ):
        torch.save({"arch": named, "state_dict": network.state_dict()}, tmp_path / "w.pth")
        assert str(open_weights(arch, str(tmp_path / "w.pth"))) == f"w.pth: {arch}{said}"


def test_another_network_than_the_files_is_refused_with_its_name(tmp_path: Path) -> None:
    weights = saved(create_model("timm/test_resnet", 3), "timm/test_resnet", tmp_path, arch="timm/test_resnet")
    assert open_weights(None, str(tmp_path / "w.pth")).arch == weights.arch
    for arch in ("timm/test_vit", "digit_net"):
        with pytest.raises(UserError, match=r"w.pth: (.|\n)*The file is of timm/test_resnet"):
            other = open_weights(arch, str(tmp_path / "w.pth"))
            other.build("model", other.data_config({"size": (160, 160)}, FLAGS), "--arch", "--size")


@pytest.mark.parametrize(
    ("options", "more", "reason"),
    [
        ({"in_chans": 1}, {}, "1 input channel; only 3 are supported"),
        ({}, {"temperature": torch.ones(1)}, "has no place for temperature. (?!.*Correct)"),
    ],
)
def test_tensors_that_do_not_fit_the_right_network_are_explained(
    options: dict[str, Any], more: dict[str, Tensor], reason: str, tmp_path: Path
) -> None:
    tensors = timm.create_model("test_resnet", num_classes=3, **options).state_dict() | more
    torch.save({"state_dict": tensors, "arch": "timm/test_resnet"}, tmp_path / "w.pth")
    weights = open_weights("timm/test_resnet", str(tmp_path / "w.pth"))
    with pytest.raises(UserError, match=reason):
        weights.build("model", weights.data_config({}, FLAGS), "--arch", "--size")


def test_arguments_of_another_network_than_the_one_given_are_refused_with_its_name(tmp_path: Path) -> None:
    args = {"crop_pct": None, "gp": "catavgmax"}
    with pytest.raises(UserError, match=r"w.pth is of resnet10t.* found the arch resnet18.* Set the arch resnet10t"):
        saved(timm.create_model("resnet10t", num_classes=3), "resnet18", tmp_path, arch="resnet10t", args=args)


@pytest.mark.parametrize("form", [".safetensors", ".bin"])
def test_weights_in_several_files_are_refused_with_lines_that_merge_them(form: str, tmp_path: Path) -> None:
    tensors, write = DigitNet(3).state_dict(), save_file if form == ".safetensors" else torch.save
    index = tmp_path / f"model{form}.index.json"
    index.write_text("{}")
    for number, names in enumerate((list(tensors)[:2], list(tensors)[2:]), 1):
        write({name: tensors[name] for name in names}, tmp_path / f"model-0000{number}-of-00002{form}")
    for given in (tmp_path / f"model-00002-of-00002{form}", index, tmp_path):
        with pytest.raises(UserError, match="These lines merge them") as caught, with_advice("Correct --arch."):
            open_weights("digit_net", str(given))
        assert "Correct --arch" not in str(caught.value)
    exec("\n".join(re.findall(r"^    (.+)$", str(caught.value), flags=re.MULTILINE)), {})  # noqa: S102
    assert open_weights("digit_net", str(tmp_path / f"model{form}")).num_classes == 3


def test_a_folder_is_refused_with_the_file_in_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        open_weights("digit_net", str(tmp_path))
    torch.save(DigitNet(3).state_dict(), tmp_path / "checkpoint-best.pth")
    with pytest.raises(UserError, match=f"is a folder.* Give {re.escape(str(tmp_path))}/checkpoint-best.pth"):
        open_weights("digit_net", str(tmp_path))
