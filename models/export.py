"""A trained classifier in the forms that others load: timm's folder, the backbone of torchvision's detectors, ONNX.

Each is loaded again and compared before it gets its name. Networks come in evaluation mode, on the CPU.
"""

import json
import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import safetensors
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from models.build import FORCE_TIMM, load_weights
from utils.errors import UserError
from utils.files import new_folder, replacing

# What timm says of a network in general; the rest of its words are about the weights that it publishes.
TIMM_FACTS = ("architecture", "first_conv", "classifier", "fixed_input_size")
INTERPOLATION = "bilinear"
OTHER_FORM = "Give --form onnx, which takes any network, or train timm's own, timm/NAME"
ONNX_PACKAGES = ("onnx", "onnxscript")
ONNX_CLOSE = 1e-4  # of the largest logit, or of 1


@dataclass(frozen=True, slots=True)
class Use:
    """How a test makes images ready for a network, and what its logits stand for.

    Fields:
        num_classes: K.
        class_names: K texts; None = unknown.
        size: S, side of the crop, pixels.
        crop_ratio: shorter side to ceil(S / crop_ratio) first; None squashes the whole image.
        mean, std: what its input is normalised with, per RGB channel, for pixels in [0, 1].
    """

    num_classes: int
    class_names: Sequence[str] | None
    size: int
    crop_ratio: float | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def images(self, count: int) -> Tensor:
        """float [count, 3, S, S]; noise to try a network on."""
        return torch.randn(count, 3, self.size, self.size, generator=torch.Generator().manual_seed(0))


# ---- timm's folder, which is also that of a model on the Hugging Face Hub


def write_timm_folder(out: Path, model: nn.Module, arch: str, use: Use) -> None:
    """config.json and model.safetensors, which `timm.create_model("local-dir:OUT", pretrained=True)` reloads.

    timm's own transforms of that config see an image as our test does, to 2 of 255: timm resizes with Pillow.

    Args:
        out: folder to make; may exist if it is empty.
        model: of timm, or of torchvision where timm has the same network with the same names of tensors.
        arch: its name, as for models.build.create_model.
        use: goes into config.json.

    Raises:
        UserError: timm has no such network, or its one gives other logits in as much as a bit; OUT cannot be written.
    """
    import timm

    twin, arguments = _timm_twin(model, arch, use.num_classes)
    twin.pretrained_cfg = _timm_config(twin, use)
    labels = {"label_names": list(use.class_names)} if use.class_names else {}
    with new_folder(out) as folder:
        try:
            timm.models.save_for_hf(twin, str(folder), labels, arguments, safe_serialization=True)
        except safetensors.SafetensorError as error:  # a full disk
            raise UserError(f"{out} cannot be written: {error}. Make room, or allow writing.") from error
        mode = (folder / "config.json").stat().st_mode  # safetensors lets nobody else read its file
        (folder / "model.safetensors").chmod(mode)
        again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        if not torch.equal(_logits(again, use), _logits(model, use)):
            raise _timm_refusal(arch, "it gives other logits with the same weights")


def _timm_twin(model: nn.Module, arch: str, num_classes: int) -> tuple[Any, dict[str, Any]]:
    """timm's network of the same name with the same weights, and what timm must be told to build it."""
    import timm

    name, eps = arch.removeprefix(FORCE_TIMM), _batch_norm_eps(model)
    if not timm.is_model(name):
        raise UserError(f"timm has no network {arch}, so it cannot be exported for timm. {OTHER_FORM}")
    arguments: dict[str, Any] = {}
    twin = timm.create_model(name, num_classes=num_classes)
    if _batch_norm_eps(twin) != eps and len(eps) == 1:
        arguments = {"bn_eps": float(next(iter(eps)))}
        with suppress(TypeError):  # of most networks, which cannot be told
            twin = timm.create_model(name, num_classes=num_classes, **arguments)
    if (own := _batch_norm_eps(twin)) != eps:
        reason = f"its batch norm adds {_listed(own)} to the variance and this training {_listed(eps)} "
        raise _timm_refusal(arch, reason + "(optim.bn.eps; none keeps its own)")
    if other := sorted(twin.state_dict().keys() - model.state_dict().keys()):
        raise _timm_refusal(arch, f"{len(other)} of its tensors have names that this one lacks, such as {other[0]}")
    load_weights(twin, model.state_dict())
    return twin.eval(), arguments


def _timm_refusal(arch: str, reason: str) -> UserError:
    return UserError(f"timm's {arch.removeprefix(FORCE_TIMM)} is not this network: {reason}. {OTHER_FORM}")


def _timm_config(twin: Any, use: Use) -> dict[str, Any]:
    """What timm calls pretrained_cfg."""
    published: dict[str, Any] = twin.pretrained_cfg
    return {
        **{name: published[name] for name in TIMM_FACTS if name in published},
        "num_classes": use.num_classes,
        "input_size": (3, use.size, use.size),
        "mean": use.mean,
        "std": use.std,
        "interpolation": INTERPOLATION,
        **_timm_crop(use.size, use.crop_ratio),
    }


def _timm_crop(size: int, crop_ratio: float | None) -> dict[str, Any]:
    """timm resizes the shorter side to floor(size / crop_pct), we to ceil(size / crop_ratio)."""
    if crop_ratio is None:
        return {"crop_mode": "squash", "crop_pct": 1.0}
    shorter = math.ceil(size / crop_ratio)
    fraction = size / shorter
    return {"crop_mode": "center", "crop_pct": fraction if size // fraction == shorter else math.nextafter(fraction, 0)}


# ---- the backbone of a detector


def write_backbone(out: Path, model: nn.Module, arch: str) -> None:
    """The state_dict of a ResNet without its head, as torchvision's detectors have it in `backbone.body`.

        backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=3)
        backbone.body.load_state_dict(torch.load(OUT, weights_only=True))
        detector = FasterRCNN(backbone, num_classes=91)   # or MaskRCNN

    Args:
        out: the file to write.
        model: a ResNet of torchvision, or timm's of the same name.
        arch: its name.

    Raises:
        UserError: torchvision has no detector on such a network, or OUT cannot be written.
    """
    name = arch.removeprefix(FORCE_TIMM)
    if name not in _resnets():
        raise UserError(
            f"torchvision's detectors do not stand on {arch}; expected one of {', '.join(_resnets())}. Give --form "
            "timm or onnx"
        )
    body = resnet_fpn_backbone(backbone_name=name, weights=None).body
    eps = {layer.eps for layer in body.modules() if isinstance(layer, FrozenBatchNorm2d)}
    if _batch_norm_eps(model) != eps:
        raise UserError(
            f"this training's batch norm adds {_listed(_batch_norm_eps(model))} to the variance (optim.bn.eps), and "
            f"that of torchvision's detectors {_listed(eps)}: another network of the same weights. Train with theirs"
        )
    weights = {
        key: tensor
        for key, tensor in model.state_dict().items()
        if not key.startswith("fc.") and not key.endswith("num_batches_tracked")
    }
    load_weights(body, weights)
    content = BytesIO()  # given a file, torch turns a full disk into an error of its own kind
    torch.save(weights, content)
    with replacing(out) as temporary:
        temporary.write_bytes(content.getbuffer())


def _resnets() -> list[str]:
    """torchvision's names of networks that its detectors take as a backbone."""
    here, names = torchvision.models, torchvision.models.list_models(module=torchvision.models)
    return [name for name in names if here.get_model_builder(name).__module__ == here.resnet.__name__]


# ---- ONNX


def write_onnx(out: Path, model: nn.Module, use: Use) -> bool:
    """An ONNX file: `images` float32 [batch, 3, S, S], normalised -> `logits` [batch, K]; any batch size.

    Its metadata hold, as JSON: class_names, mean, std, size, crop_ratio.

    Returns:
        whether its logits were compared (to 1e-4) in onnxruntime; False where that is not installed.

    Raises:
        UserError: the packages for it are not installed, the network cannot be exported, or OUT cannot be written.
    """
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(
            f"--form onnx needs packages that are not installed: {', '.join(missing)}. Install them: "
            "pip install onnx onnxscript onnxruntime"
        )
    try:
        program = torch.onnx.export(
            model,
            (use.images(2),),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        raise UserError(f"this network cannot be exported to ONNX: {_cause(error)}") from error
    assert program is not None
    facts = {name: getattr(use, name) for name in ("class_names", "mean", "std", "size", "crop_ratio")}
    program.model.metadata_props.update({name: json.dumps(value) for name, value in facts.items()})
    with replacing(out) as temporary:
        program.save(temporary, external_data=False)
        return _agrees_in_onnxruntime(temporary, model, use)


def _agrees_in_onnxruntime(file: Path, model: nn.Module, use: Use) -> bool:
    if find_spec("onnxruntime") is None:
        return False
    import onnxruntime

    images = use.images(3)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    with torch.inference_mode():
        expected = model(images)
    off = float((found - expected).abs().max())
    if off > ONNX_CLOSE * max(1.0, float(expected.abs().max())):
        raise UserError(
            f"the ONNX file gives logits that are {off:.2g} off. Try other versions of torch and onnxscript"
        )
    return True


def _cause(error: BaseException) -> str:
    """The first line of the error at the root."""
    while error.__cause__:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _listed(numbers: Iterable[float]) -> str:
    return ", ".join(f"{number:g}" for number in sorted(numbers))


def _batch_norm_eps(model: nn.Module) -> set[float]:
    return {layer.eps for layer in model.modules() if isinstance(layer, _BatchNorm)}


@torch.inference_mode()
def _logits(model: nn.Module, use: Use) -> Tensor:
    logits: Tensor = model(use.images(2))
    return logits
