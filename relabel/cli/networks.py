"""Commands for trained networks: compare two, export one."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from relabel.cli.arguments import ImageCount, Name, keep_apart
from utils.config.value_types import ExistingFile, ExistingFolder, NewFile, NewFolder, NewPng
from utils.errors import UserError, with_advice

if TYPE_CHECKING:
    from torch import nn

    from models.export import Use

# Each command imports what it needs itself, so that a wrong command line is reported before torch is loaded.


def compare(
    first: ExistingFile,
    second: ExistingFile,
    *,
    images: ExistingFolder | None = None,
    out: NewPng | None = None,
    count: ImageCount = 12,
    json: NewFile | None = None,
) -> None:
    """Compare two checkpoints on the same images: which is better and how certain that is; draw where they differ most.

    The paired difference in top-1 accuracy (and by own labels, if both files have them) comes with its 95 % bootstrap
    interval over the images. The classes that gained and lost most are named.

    Args:
        first: predictions of one checkpoint: the CSV file that an evaluation with --eval.predictions True writes.
        second: predictions of the other checkpoint for the same images.
        images: folder of the images, such as DATA/val; for the figure.
        out: figure of the images on which the probability of the label differs most.
        count: number of images in the figure.
        json: file to write the results to as well.
    """
    from relabel.evaluation.compare import as_record, class_changes, print_changes, print_differences
    from relabel.evaluation.compare import compare as compare_predictions
    from relabel.evaluation.predictions import read_predictions
    from relabel.figures.comparison import draw_comparison_sheet
    from utils.files import write_json

    if (images is None) != (out is None):
        raise UserError("the figure needs --images, the images' folder, and --out, its file; give both or neither")
    inputs = {"FIRST": first, "SECOND": second, "--images": images}
    for flag, path in {"--json": json, "--out": out}.items():
        if path:
            keep_apart(path, flag, inputs)
    both = read_predictions(first), read_predictions(second)
    differences, changes = compare_predictions(*both), class_changes(*both)
    if images and out:
        draw_comparison_sheet(out, *both, images, count, differences[0])
    if json:
        write_json(json, as_record(first, second, differences, changes))
    print_differences(first, second, differences)
    print_changes(changes)
    if (both[0].in_set is None) != (both[1].in_set is None):
        print(f"not compared by own labels: {first if both[0].in_set is None else second} has none")
    if out:
        print(f"figure: {out}", flush=True)


def export_model(
    weights: ExistingFile,
    out: NewFolder,
    *,
    form: Literal["timm", "backbone", "onnx"],
    arch: Name | None = None,
    config_file_path: ExistingFile | None = None,
    ema: bool = True,
) -> None:
    """Export a trained network for other libraries; its logits are those that --util.test_only evaluates.

    timm: a folder, as on the Hugging Face Hub, that timm.create_model('local-dir:OUT', pretrained=True) reloads bit for
    bit. backbone: a file of a ResNet's weights for backbone.body of torchvision's Faster R-CNN and Mask R-CNN. onnx: a
    file of the whole network, for any batch size; it needs pip install onnx onnxscript onnxruntime.

    Args:
        weights: the checkpoint.
        out: the folder or file to write.
        form: format to write.
        arch: the network. none: the one named in the checkpoint.
        config_file_path: config that gives what its input is; needed for no checkpoint of this project. none: what the
            checkpoint records, or config.yaml beside one of an earlier version.
        ema: use the averaged weights if the checkpoint has them.
    """
    from models.export import write_backbone, write_onnx, write_timm_folder

    if form != "timm" and (out.exists() or not out.parent.is_dir()):
        found = "already exists" if out.exists() else "cannot be written: its folder does not exist"
        raise UserError(f"OUT {out} {found}; expected a new file in a folder that exists. Give another OUT")
    model, arch, use, title = _load_network(weights, arch, config_file_path, ema)
    print(f"{title}, {use.num_classes:,} classes\ninput: {use.data_config.source}", flush=True)
    if form == "timm":
        write_timm_folder(out, model, arch, use)
        print(f"timm folder: {out}\ntimm.create_model('local-dir:{out}', pretrained=True) gives the same logits")
    elif form == "backbone":
        write_backbone(out, model, arch)
        print(f"weights for backbone.body of a torchvision detector: {out}")
    else:
        compared = write_onnx(out, model, use)
        print("its logits agree in onnxruntime" if compared else "not compared: onnxruntime is not installed")
        print(f"ONNX file: {out}")


def _load_network(
    path: Path, arch: str | None, config_file: Path | None, ema: bool
) -> "tuple[nn.Module, str, Use, str]":
    """Build the network as an evaluation does, on the CPU; also return its name, use and the title of its weights."""
    import torch

    from models.classifier import open_weights
    from models.export import Use
    from relabel.config.load import read_config
    from relabel.training.network import evaluation_input
    from utils.run_log import CONFIG

    with with_advice("Correct --arch."):
        weights = open_weights(arch, str(path))
    beside = path.with_name(CONFIG)
    is_earlier = "train_size" not in weights.recorded and beside.is_file()
    file = config_file or (beside if is_earlier else "")
    as_evaluated = {"util.test_only": "True", "util.test_weight_file": str(path)}
    data_config = evaluation_input(read_config(str(file), as_evaluated), weights)
    name = weights.preferred if ema else "model"
    model = weights.build(name, data_config, "--arch", "data.test_size").eval()
    model = model.to(memory_format=torch.contiguous_format)
    use = Use(weights.num_classes, weights.class_names, data_config)
    return model, weights.arch, use, f"{weights}{' (EMA)' * (name == 'ema')}"
