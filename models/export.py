"""Export a trained classifier as a timm folder, as the backbone of torchvision's detectors, or as ONNX.

Each export is checked before it appears under its final name. Networks are in evaluation mode, on the CPU.
"""

import json
import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import safetensors
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from models.batch_norm import batch_norm_eps
from models.build import FORCE_TIMM, load_weights
from models.data_config import DataConfig
from utils.checkpoint import save_checkpoint
from utils.errors import UserError
from utils.files import new_folder, replacing

# Entries of timm's config that describe the architecture; the others describe the weights that timm publishes.
TIMM_FACTS = ("architecture", "first_conv", "classifier", "fixed_input_size")
ONNX_FORM = "Choose the form onnx, which takes any network"
OTHER_FORM = f"{ONNX_FORM}, or train timm's own, timm/NAME"
ONNX_PACKAGES = ("onnx", "onnxscript")
ONNX_TOLERANCE = 1e-4  # relative to the largest logit, or to 1


@dataclass(frozen=True, slots=True)
class Use:
    """What a network's input and its logits are.

    Fields:
        num_classes: K.
        class_names: K texts; None: unknown.
        data_config: how images are prepared for it in evaluation.
    """

    num_classes: int
    class_names: Sequence[str] | None
    data_config: DataConfig

    def images(self, count: int) -> Tensor:
        """Return noise to try a network on, float [count, 3, S, S]."""
        side = self.data_config.side
        return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


# A timm folder, the same format as a model on the Hugging Face Hub


def write_timm_folder(out: Path, model: nn.Module, arch: str, use: Use) -> None:
    """Write config.json and model.safetensors for `timm.create_model("local-dir:OUT", pretrained=True)`.

    timm's own transforms for that config agree with our evaluation's to 2 of 255: timm resizes with Pillow.

    Args:
        out: folder to create; may exist if it is empty.
        model: from timm, or from torchvision if timm has the same network with the same tensor names.
        arch: its name, as for models.build.create_model.
        use: goes into config.json.

    Raises:
        UserError: timm does not have this network, its logits are not bitwise equal, or OUT cannot be written.
    """
    import timm

    twin, arguments = _timm_twin(model, arch, use)
    facts = {name: twin.pretrained_cfg[name] for name in TIMM_FACTS if name in twin.pretrained_cfg}
    config = use.data_config
    twin.pretrained_cfg = facts | {
        "num_classes": use.num_classes,
        "input_size": (3, config.side, config.side),
        "mean": config.mean,
        "std": config.std,
        "interpolation": config.interpolation,
        **_timm_crop(config.side, config.crop_ratio, config.squash),
    }
    labels = {"label_names": list(use.class_names)} if use.class_names else {}
    with new_folder(out) as folder:
        try:
            timm.models.save_for_hf(twin, str(folder), labels, arguments, safe_serialization=True)
        except safetensors.SafetensorError as error:  # a full disk
            raise UserError(f"{out} cannot be written: {error}. Make room, or allow writing.") from error
        mode = (folder / "config.json").stat().st_mode  # safetensors makes its file unreadable for other users
        (folder / "model.safetensors").chmod(mode)
        again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        with torch.inference_mode():
            if not torch.equal(again(use.images(2)), model(use.images(2))):
                raise _timm_refusal(arch, "its logits differ with the same weights")


def _timm_twin(model: nn.Module, arch: str, use: Use) -> tuple[Any, dict[str, Any]]:
    """Build timm's network of the same name with the same weights; also return the arguments that build it."""
    import timm

    name, eps = arch.removeprefix(FORCE_TIMM), batch_norm_eps(model)
    if not timm.is_model(name):
        raise UserError(f"timm has no network {arch}, so it cannot be exported for timm. {OTHER_FORM}")
    config, arguments = use.data_config, dict(use.data_config.model_args)
    twin: Any = timm.create_model(name, num_classes=use.num_classes, **arguments)
    stated = twin.pretrained_cfg
    if stated.get("fixed_input_size") and tuple(stated["input_size"][1:]) != config.size:
        arguments["img_size"] = config.size
        twin = timm.create_model(name, num_classes=use.num_classes, **arguments)
    if batch_norm_eps(twin) != eps and len(eps) == 1:
        with suppress(TypeError):  # raised by most networks, which have no such argument
            twin = timm.create_model(name, num_classes=use.num_classes, bn_eps=next(iter(eps)), **arguments)
            arguments["bn_eps"] = next(iter(eps))
    if (own := batch_norm_eps(twin)) != eps:
        raise _timm_refusal(
            arch,
            f"its batch norm adds {_listed(own)} to the variance, this training added {_listed(eps)} "
            "(optim.bn.eps; none keeps the network's own)",
            ONNX_FORM,
        )
    if other := sorted(twin.state_dict().keys() - model.state_dict().keys()):
        raise _timm_refusal(arch, f"{len(other)} of its tensors have names that this one lacks, such as {other[0]}")
    load_weights(twin, model.state_dict())
    return twin.eval(), arguments


def _timm_refusal(arch: str, reason: str, remedy: str = OTHER_FORM) -> UserError:
    return UserError(f"timm's {arch.removeprefix(FORCE_TIMM)} is not this network: {reason}. {remedy}")


def _timm_crop(size: int, crop_ratio: float | None, squash: bool) -> dict[str, Any]:
    """Convert a crop ratio: timm resizes the shorter side to floor(size / crop_pct), we to ceil(size / crop_ratio)."""
    if crop_ratio is None:
        return {"crop_mode": "squash", "crop_pct": 1.0}
    shorter = math.ceil(size / crop_ratio)
    fraction = size / shorter
    fraction = fraction if size // fraction == shorter else math.nextafter(fraction, 0)
    return {"crop_mode": "squash" if squash else "center", "crop_pct": fraction}


# The backbone of a detector


def write_backbone(out: Path, model: nn.Module, arch: str) -> None:
    """Write the state_dict of a ResNet without its head, for `backbone.body` of torchvision's detectors.

        backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=3)
        backbone.body.load_state_dict(torch.load(OUT, weights_only=True))
        detector = FasterRCNN(backbone, num_classes=91)   # or MaskRCNN

    Args:
        out: the file to write.
        model: a ResNet of torchvision, or timm's of the same name.
        arch: its name.

    Raises:
        UserError: torchvision has no detector with such a backbone, or OUT cannot be written.
    """
    name = arch.removeprefix(FORCE_TIMM)
    resnets = [function for function in torchvision.models.resnet.__all__ if function.islower()]
    if name not in resnets:
        raise UserError(
            f"torchvision's detectors cannot use {arch} as their backbone; expected one of {', '.join(resnets)}. "
            "Choose the form timm or onnx"
        )
    body = resnet_fpn_backbone(backbone_name=name, weights=None).body
    eps = {layer.eps for layer in body.modules() if isinstance(layer, FrozenBatchNorm2d)}
    if batch_norm_eps(model) != eps:
        raise UserError(
            f"this training added {_listed(batch_norm_eps(model))} to the variance in batch norm (optim.bn.eps), but "
            f"torchvision's detectors add {_listed(eps)}: the same weights would give other features. Train with theirs"
        )
    weights = {
        key: tensor
        for key, tensor in model.state_dict().items()
        if not key.startswith("fc.") and not key.endswith("num_batches_tracked")
    }
    load_weights(body, weights)
    save_checkpoint(weights, out)


# ONNX


def write_onnx(out: Path, model: nn.Module, use: Use) -> bool:
    """Write an ONNX file: `images` float32 [batch, 3, S, S], normalised -> `logits` [batch, K]; any batch size.

    Its metadata contain num_classes, class_names, and size, crop_ratio, interpolation, mean, std as JSON.

    Returns:
        whether its logits were compared (to 1e-4) in onnxruntime; False if that is not installed.

    Raises:
        UserError: packages are missing, the network cannot be exported, or OUT cannot be written.
    """
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(
            f"the form onnx needs packages that are not installed: {', '.join(missing)}. Install them: "
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
        raise UserError(f"this network cannot be exported to ONNX: {_root_cause(error)}") from error
    assert program is not None
    facts = {"num_classes": use.num_classes, "class_names": use.class_names, **use.data_config.as_record()}
    facts["size"] = use.data_config.side
    program.model.metadata_props.update({name: json.dumps(value) for name, value in facts.items()})
    with replacing(out) as temporary:
        program.save(temporary, external_data=False)
        if find_spec("onnxruntime") is None:
            return False
        _check_in_onnxruntime(temporary, model, use.images(3))
    return True


@torch.inference_mode()
def _check_in_onnxruntime(file: Path, model: nn.Module, images: Tensor) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    found, expected = torch.from_numpy(session.run(None, {"images": images.numpy()})[0]), model(images)
    error = float((found - expected).abs().max())
    if error > ONNX_TOLERANCE * max(1.0, float(expected.abs().max())):
        raise UserError(f"the logits of the ONNX file are {error:.2g} off. Try other versions of torch and onnxscript")


def _root_cause(error: BaseException) -> str:
    """Return the first line of the error at the root of a chain of causes."""
    while error.__cause__:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _listed(numbers: Iterable[float]) -> str:
    return ", ".join(f"{number:g}" for number in sorted(numbers))
