"""The tools for trained networks: compare two of them, write one in a form that others load."""

from typing import Literal

from relabel.cli.arguments import Name, Pictures, keep_apart
from utils.config.value_types import ExistingFile, ExistingFolder, NewFile, NewFolder, NewPicture
from utils.errors import UserError

# Each command imports what it needs itself: a wrong command line is told before torch is loaded.


def compare(
    first: ExistingFile,
    second: ExistingFile,
    *,
    images: ExistingFolder | None = None,
    out: NewPicture | None = None,
    count: Pictures = 12,
    json: NewFile | None = None,
) -> None:
    """Say which of two checkpoints is better on the same images, and how sure that is; draw where they differ most.

    The paired difference in top-1 accuracy (and by own true labels, where both files have them) comes with its 95 %
    bootstrap interval over the images.

    Args:
        first: what one checkpoint says of each image: the CSV file that an evaluation with --eval.predictions True
            writes.
        second: the other checkpoint's, of the same images.
        images: folder of the images, such as DATA/val; for the picture.
        out: picture of the images whose label's probability differs most.
        count: images in the picture.
        json: file to write the figures to as well.
    """
    from relabel.evaluation.compare import as_record, print_differences, read_predictions
    from relabel.evaluation.compare import compare as compare_predictions
    from relabel.figures.comparison import draw_comparison_sheet
    from utils.files import write_json

    if (images is None) != (out is None):
        raise UserError("the picture needs both --images, the folder, and --out, its own name; give both or none")
    inputs = {"FIRST": first, "SECOND": second, "--images": images}
    for flag, path in {"--json": json, "--out": out}.items():
        if path:
            keep_apart(path, flag, inputs)
    both = read_predictions(first), read_predictions(second)
    differences = compare_predictions(*both)
    if images and out:
        draw_comparison_sheet(out, *both, images, count)
    if json:
        write_json(json, as_record(first, second, differences))
    print_differences(first, second, differences)
    if (both[0].in_set is None) != (both[1].in_set is None):
        print(f"not compared by true labels: {first if both[0].in_set is None else second} was made without them")
    if out:
        print(f"picture: {out}", flush=True)


def export_model(
    weights: ExistingFile,
    out: NewFolder,
    *,
    form: Literal["timm", "backbone", "onnx"],
    arch: Name | None = None,
    config_file_path: ExistingFile | None = None,
    ema: bool = True,
) -> None:
    """Write a trained network in a form that others load; its logits are those of --util.test_only.

    timm: a folder, as on the Hugging Face Hub, that timm.create_model('local-dir:OUT', pretrained=True) reloads bit for
    bit. backbone: a file of a ResNet's weights for backbone.body of torchvision's Faster R-CNN and Mask R-CNN. onnx: a
    file of the whole network, for any batch size; it needs pip install onnx onnxscript onnxruntime.

    Args:
        weights: the checkpoint.
        out: the folder or file to write.
        form: what to write.
        arch: the network. none: the one that the checkpoint names.
        config_file_path: config of its training, for batch norm and how tests see images. none: config.yaml beside the
            checkpoint, or the defaults where there is none.
        ema: take the averaged weights where the checkpoint has them.
    """
    from relabel.cli.model_export import export_model as write_model

    write_model(weights, out, form, arch=arch, config=config_file_path, ema=ema)
