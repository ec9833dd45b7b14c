"""From a checkpoint to a file or folder that others load: the network that `--util.test_only True` would evaluate."""

from pathlib import Path

import torch
from torch import nn

from models.build import infer_num_classes
from models.export import Use, write_backbone, write_onnx, write_timm_folder
from relabel.augment import MEAN, STD
from relabel.config.load import BASE_FILE, read_config
from relabel.training.build import build_model, load_from, test_transform
from utils.checkpoint import load_checkpoint, named_classes, split_weights
from utils.errors import UserError
from utils.precision import Precision
from utils.run_log import CONFIG


def export_model(weights: Path, out: Path, form: str, *, arch: str | None, config: Path | None, ema: bool) -> None:
    """Write a checkpoint's network in another form, and say what was written.

    Args:
        weights: the checkpoint.
        out: the folder (timm) or file to write.
        form: timm, backbone or onnx.
        arch: the network; None = what the checkpoint says.
        config: config file of its training, for batch norm and how tests see images; None = the config.yaml beside
            the checkpoint, else base.yaml.
        ema: take the averaged weights where there are any.

    Raises:
        UserError: the checkpoint or the config cannot be read, they do not fit, or see models/export.py.
    """
    if form != "timm" and (out.exists() or not out.parent.is_dir()):
        found = "is there already" if out.exists() else "cannot be written: its folder is not there"
        raise UserError(f"OUT {out} {found}; expected a new file in a folder that exists. Give another OUT")
    if config is None and weights.with_name(CONFIG).is_file():
        config = weights.with_name(CONFIG)
    model, arch, use, title = load_network(weights, arch, config or BASE_FILE, ema)
    source = f"as {config} says" if config else f"by default: no {CONFIG} beside it; --config_file_path names one"
    view = f"{use.size} pixels, " + ("squashed" if use.crop_ratio is None else f"crop ratio {use.crop_ratio:g}")
    print(f"{title}: {arch}, {use.num_classes:,} classes, tested at {view} ({source})", flush=True)
    if form == "timm":
        write_timm_folder(out, model, arch, use)
        print(f"timm folder: {out}\ntimm.create_model('local-dir:{out}', pretrained=True) gives the same logits")
    elif form == "backbone":
        write_backbone(out, model, arch)
        print(f"weights for backbone.body of a torchvision detector: {out}")
    else:
        compared = write_onnx(out, model, use)
        print("its logits agree in onnxruntime" if compared else "not tried: onnxruntime is not installed")
        print(f"ONNX file: {out}")


def load_network(weights: Path, arch: str | None, config_file: Path, ema: bool) -> tuple[nn.Module, str, Use, str]:
    """The network in evaluation mode on the CPU, its name, how it is used, and what to call its weights."""
    content = load_checkpoint(weights)
    by_name = split_weights(content, weights)
    chosen = "ema" if ema and "ema" in by_name else "model"
    arch = arch or content.get("arch")
    if not isinstance(arch, str):
        raise UserError(
            f"{weights} does not say which network it is of; give --arch, a name of torchvision's or timm's"
        )
    class_names = named_classes(content, weights)
    num_classes = len(class_names) if class_names else infer_num_classes(arch, by_name[chosen])
    config, precision = read_config(str(config_file), {"model.arch": arch}), Precision("O0", torch.device("cpu"))
    model = build_model(config, num_classes, precision)
    load_from(weights, model, by_name[chosen], content.get("arch"), "--arch")
    view = test_transform(config)
    use = Use(num_classes, class_names, view.size, view.crop_ratio, MEAN, STD)
    title = f"{weights}{' (EMA)' * (chosen == 'ema')}"
    return model.eval().to(memory_format=torch.contiguous_format), arch, use, title
