"""What is exported is the same network elsewhere: bit for bit in timm, by its tensors in detectors, closely in ONNX."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from models import export
from models.batch_norm import set_batch_norm
from models.build import create_model
from models.classifier import open_weights
from models.data_config import OF_2021, DataConfig
from models.export import Use, write_backbone, write_onnx, write_timm_folder
from relabel.augment import normalise
from relabel.data.decode import ImageFile
from relabel.training.network import center_crop
from utils.errors import UserError

NAMES = ["ant", "bee", "cow", "dog"]


def use_at(side: int, crop_ratio: float | None = 0.875, squash: bool = False) -> Use:
    return Use(4, NAMES, DataConfig(**OF_2021 | {"size": (side, side), "crop_ratio": crop_ratio}, squash=squash))


USE = use_at(64)


def trained(arch: str, eps: float | None = 1e-5) -> nn.Module:
    """A network with batch statistics unlike those of a new one."""
    torch.manual_seed(0)
    model = create_model(arch, len(NAMES))
    set_batch_norm(model, 0.9, eps)
    model(torch.randn(4, 3, 64, 64))
    return model.eval()


@torch.inference_mode()
def logits(model: nn.Module, images: Tensor) -> Tensor:
    result: Tensor = model(images)
    return result


def images(count: int = 3, side: int = 64) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


# tf_efficientnet has another eps of its own than a training of ours gives it; the folder must record it.
@pytest.mark.parametrize("arch", ["resnet18", "timm/test_resnet", "timm/tf_efficientnet_b0"])
def test_timm_reloads_the_folder_bit_for_bit(tmp_path: Path, arch: str) -> None:
    model = trained(arch)
    write_timm_folder(tmp_path / "out", model, arch, USE)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    again: Any = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert torch.equal(logits(again, images()), logits(model, images()))
    assert again.pretrained_cfg["label_names"] == NAMES and again.num_classes == 4
    back = open_weights(None, str(tmp_path / "out" / "model.safetensors"))
    ours = back.build("model", back.data_config({}, "--flags"), "--arch", "--size").eval()
    assert torch.equal(logits(ours, images()), logits(model, images())) and back.class_names == NAMES
    config = json.loads((tmp_path / "out" / "config.json").read_text())["pretrained_cfg"]
    assert config.keys().isdisjoint({"tag", "license", "origin_url", "hf_hub_id", "url", "test_input_size"})


@pytest.mark.parametrize(
    ("size", "crop_ratio", "squash"), [(64, 0.875, False), (61, 0.7, False), (64, None, False), (61, 0.8, True)]
)
def test_timms_transforms_see_an_image_as_our_test_does(
    tmp_path: Path, photos: Path, size: int, crop_ratio: float | None, squash: bool
) -> None:
    use = use_at(size, crop_ratio, squash)
    config = use.data_config
    write_timm_folder(tmp_path / "out", trained("timm/test_resnet"), "timm/test_resnet", use)
    again = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    transform: Any = create_transform(**resolve_model_data_config(again))
    path = sorted(photos.glob("val/*/*"))[0]
    with Image.open(path) as image:
        theirs = transform(image.convert("RGB"))
    pixels = torch.from_numpy(center_crop(config)(ImageFile(path), 0, 0).image.copy())
    ours = normalise(pixels[None], mean=config.mean, std=config.std)[0]
    assert theirs.shape == ours.shape == (3, size, size)
    assert float((theirs - ours).abs().max()) <= 2 / 255 / min(config.std) + 1e-5


@pytest.mark.parametrize(
    ("arch", "eps", "match"),
    [
        ("digit_net", 1e-5, "timm has no network digit_net.*form onnx"),
        ("efficientnet_b0", 1e-5, r"timm's efficientnet_b0 is not this network: \d+ of its tensors have names that"),
        ("timm/test_resnet", 1e-3, r"adds 1e-05 to the variance, this training added 0.001 \(optim.bn.eps; none"),
    ],
)
def test_networks_that_timm_builds_differently_are_refused(tmp_path: Path, arch: str, eps: float, match: str) -> None:
    with pytest.raises(UserError, match=match):
        write_timm_folder(tmp_path / "out", trained(arch, eps), arch, USE)
    assert list(tmp_path.iterdir()) == []


def test_a_network_of_another_image_size_is_reloaded_for_it(tmp_path: Path) -> None:
    model = create_model("timm/test_vit", len(NAMES), (96, 96)).eval()
    write_timm_folder(tmp_path / "out", model, "timm/test_vit", use_at(96))
    again: Any = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert torch.equal(logits(again, images(side=96)), logits(model, images(side=96)))


def test_a_folder_that_is_taken_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("mine")
    with pytest.raises(UserError, match="already exists; expected no such folder, or an empty one"):
        write_timm_folder(tmp_path, trained("timm/test_resnet"), "timm/test_resnet", USE)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("arch", ["resnet18", "timm/resnet18"])
def test_a_detectors_backbone_makes_the_features_of_the_classifier(tmp_path: Path, arch: str) -> None:
    model: Any = trained(arch)
    body = resnet_fpn_backbone(backbone_name="resnet18", weights=None).body
    write_backbone(tmp_path / "backbone.pth", model, arch)
    weights = torch.load(tmp_path / "backbone.pth", weights_only=True)
    assert weights.keys() == body.state_dict().keys()
    body.load_state_dict(weights)
    with torch.inference_mode():
        features = body.eval()(images())["3"]
        torch.testing.assert_close(model.fc(features.mean((2, 3))), model(images()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arch", "eps", "match"),
    [
        ("digit_net", 1e-5, "cannot use digit_net as their backbone; expected one of resnet18, .*form timm or onnx"),
        ("resnet18", 1e-3, r"added 0.001 .* but torchvision's detectors add 1e-05"),
    ],
)
def test_networks_that_detectors_cannot_use_are_refused(tmp_path: Path, arch: str, eps: float, match: str) -> None:
    with pytest.raises(UserError, match=match):
        write_backbone(tmp_path / "backbone.pth", trained(arch, eps), arch)
    assert list(tmp_path.iterdir()) == []


def test_onnx_without_its_packages_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed: onnx, onnxscript. Install them: pip install onnx onnxscript"):
        write_onnx(tmp_path / "model.onnx", trained("digit_net"), USE)
    assert list(tmp_path.iterdir()) == []


needs_onnx = pytest.mark.skipif(
    not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))),
    reason="needs the optional packages onnx, onnxscript and onnxruntime",
)


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("arch", ["digit_net", "resnet18"])
def test_onnx_gives_the_same_logits_for_any_batch(tmp_path: Path, arch: str) -> None:
    import onnxruntime

    model = trained(arch)
    assert write_onnx(tmp_path / "model.onnx", model, USE)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 2, 5):
        (found,) = session.run(["logits"], {"images": images(count).numpy()})
        np.testing.assert_allclose(found, logits(model, images(count)).numpy(), rtol=1e-4, atol=1e-4)
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["class_names"]) == NAMES and json.loads(facts["crop_ratio"]) == 0.875
