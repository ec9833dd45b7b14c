"""The tools for label maps: make, check, show, pack and export them."""

import sys
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from relabel.cli.arguments import Name, Pictures, keep_apart
from utils.config.value_types import (
    Count,
    ExistingFolder,
    ExistingPath,
    Joined,
    NewFile,
    NewFolder,
    NewPicture,
    Positive,
    Size,
)
from utils.errors import UserError
from utils.processes.torchrun import refuse_broken_torchrun

if TYPE_CHECKING:
    from relabel.annotation.teacher import Teacher

# Each command imports what it needs itself: a wrong command line is told before torch is loaded.

Weights = Annotated[str, Field(min_length=1, title="FILE", description="pretrained, random or a checkpoint")]
Classes = Annotated[str, Field(min_length=1, title="FILE", description="imagenet or a text file")]
Percent = Annotated[float, Field(gt=1, le=100)]
Crops = Annotated[int, Field(ge=1, le=20)]
Share = Annotated[float, Field(ge=0, le=1)]
Fill = Annotated[float, Field(ge=-1000, le=1000)]
Temperature = Annotated[float, Field(ge=1e-3, le=1000)]
Deviation = Annotated[float, Field(gt=0)]
Means = Annotated[
    tuple[float, float, float],
    Joined(","),
    Field(title="R,G,B", description="three numbers such as 0.5,0.5,0.5"),
]
Deviations = Annotated[
    tuple[Deviation, Deviation, Deviation],
    Joined(","),
    Field(title="R,G,B", description="three numbers > 0 such as 0.5,0.5,0.5"),
]


def annotate(
    images: ExistingFolder,
    out: NewFolder,
    *,
    arch: Name | None = None,
    weights: Weights = "pretrained",
    size: Size | None = None,
    top_k: Positive | None = None,
    mean: Means | None = None,
    std: Deviations | None = None,
    interpolation: Literal["bilinear", "bicubic", "lanczos"] | None = None,
    flip: bool = False,
    format: Literal["packed", "pt"] = "packed",
    opt_level: Literal["O0", "O1", "bf16"] = "O1",
    batch_size: Positive = 32,
    num_workers: Count = 4,
    unlabelled: bool = False,
    on_error: Literal["stop", "skip"] = "stop",
) -> None:
    """Write the label map of every image: what a strong classifier, the teacher, says about each of its cells.

    Train with the maps as --data.relabel.path OUT. The same command continues an interrupted one; started by
    torchrun, several processes share the work. Both end with the same bytes as one undisturbed process.

    Args:
        images: folder with a folder of images per class, such as DATA/train, or with images only.
        out: folder of the label maps.
        arch: the teacher: a torchvision or timm classifier ("timm/NAME" forces timm), or digit_net. none: the one that
            the checkpoint names.
        weights: pretrained: those that the library publishes; random: meaningless, for trying things out only; or a
            checkpoint, bare or as the training writes it. The teacher must know all classes of IMAGES by name.
        size: what each whole image is squashed to. none: the teacher's own size.
        top_k: classes kept per cell, those with the highest scores. none: 5 as in the paper, or all if there are fewer.
        mean: subtracted from the pixels, which are in 0..1; red, green, blue. none: the teacher's own.
        std: what the difference is divided by. none: the teacher's own.
        interpolation: how the image is resized; always antialiased. none: the teacher's own.
        flip: average each map with that of the mirrored image; twice the work.
        format: packed: a few files, float16; pt: a file per image, float32, as released in 2021.
        opt_level: O1: float16 on a GPU, float32 without one; O0: float32; bf16: bfloat16.
        batch_size: images in one pass of the teacher; less memory with fewer.
        num_workers: processes that read images ahead, at most one per core; 0 reads between the passes.
        unlabelled: the folders of IMAGES name no classes that the teacher must know: for data.extra.path.
        on_error: what an image that cannot be read does: stop: it is an error, told when all others are done; skip:
            it gets no label map, and is listed.
    """
    refuse_broken_torchrun()
    from relabel.annotation.annotator import TOP_K, Settings
    from relabel.annotation.annotator import annotate as write_maps
    from relabel.annotation.teacher import load_teacher
    from relabel.data.images import list_any_images
    from utils.processes.distributed import cores_of
    from utils.processes.launch import shared_job

    with shared_job() as process:
        keep_apart(out, "OUT", {"IMAGES": images})
        found = list_any_images(images)
        teacher = load_teacher(
            arch,
            weights,
            None if unlabelled else found.class_names or None,
            input_size=size,
            mean=mean,
            std=std,
            interpolation=interpolation,
        )
        if process.is_main:
            print(describe(teacher, len(found), len(found.class_names), process.device.type), flush=True)
        write_maps(
            found,
            out,
            teacher,
            Settings(top_k or min(TOP_K, teacher.num_classes), flip, opt_level, batch_size),
            form=format,
            skip_unreadable=on_error == "skip",
            num_workers=min(num_workers, cores_of(process)),
            process=process,
        )
        if process.is_main:
            print(f"label maps: {out}", flush=True)


def check(
    labels: ExistingFolder,
    *,
    images: ExistingFolder | None = None,
    boxes: ExistingPath | None = None,
    teacher_accuracy: Percent | None = None,
    classifier: Name | None = None,
    classifier_weights: Weights = "pretrained",
    fill: Fill = 0.0,
    temperature: Temperature = 1.0,
    box_axes: Literal["xy", "yx"] = "xy",
    maps: Positive = 10_000,
    json: NewFile | None = None,
) -> None:
    """Say whether label maps are whole, make good targets, and lie the right way round; status 1 if not.

    Reads every map and the header of every image, then measures targets on a sample.

    Args:
        labels: a packed store or a folder of .pt files.
        images: folder of the images that the maps are for. none: only the maps themselves are checked.
        boxes: where the objects are: a folder of Pascal-VOC XML files, CLASS/STEM.xml, or the JSON file that
            `digits` writes. For the quality of crops and the test of the axes.
        teacher_accuracy: known top-1 accuracy of the maps' teacher, percent; maps far below it are wrong.
        classifier: a torchvision or timm classifier that looks at crops, for the test of the axes without boxes.
        classifier_weights: pretrained, random, or its checkpoint.
        fill: as data.relabel.fill in training.
        temperature: as data.relabel.temperature in training.
        box_axes: as data.relabel.box_axes in training.
        maps: label maps to measure; all are read in any case.
        json: file to write the report to as well.
    """
    from relabel.annotation.label_set import open_label_set
    from relabel.checks.axes import classifier_named
    from relabel.checks.object_boxes import open_object_boxes
    from relabel.checks.report import Settings, make_report
    from relabel.checks.report_tables import print_report
    from utils.files import write_json

    if json:
        keep_apart(json, "--json", {"LABELS": labels, "--images": images, "--boxes": boxes})
    for flag, value in {"--classifier": classifier, "--teacher_accuracy": teacher_accuracy}.items():
        if value is not None and images is None:
            raise UserError(f"{flag} compares the maps with their images; give --images too, or leave it out")
    found = open_label_set(labels, images)
    report = make_report(
        found,
        Settings(fill=fill, temperature=temperature, box_axes=box_axes, maps=maps),
        boxes=open_object_boxes(boxes, found.class_names) if boxes else None,
        classifier=classifier_named(classifier, classifier_weights, found.class_names) if classifier else None,
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
    images: ExistingFolder,
    out: NewPicture,
    figure: Literal["rows", "sheet", "axes"] = "rows",
    count: Pictures = 4,
    crops: Crops = 3,
    fill: Fill = 0.0,
    temperature: Temperature = 1.0,
    seed: Count = 0,
) -> None:
    """Draw label maps: over their images, with random crops and their targets.

    Args:
        image: path of an image, or CLASS/FILE or CLASS/STEM of one; without any, some are drawn at random.
        labels: a packed store or a folder of .pt files.
        images: folder of the images.
        out: the picture to write.
        figure: rows: image, map, crops and targets of each; sheet: many images with their likeliest classes; axes: why
            the order of a crop's sides matters, on the first image.
        count: images drawn at random.
        crops: random crops of each image, in rows.
        fill: as data.relabel.fill in training.
        temperature: as data.relabel.temperature in training.
        seed: of the random images and crops.
    """
    from relabel.figures.gallery import draw_figure

    keep_apart(out, "--out", {"--labels": labels, "--images": images})
    draw_figure(
        image,
        labels,
        images,
        out,
        figure,
        count=count,
        crops=crops,
        seed=seed,
        fill=fill,
        temperature=temperature,
    )
    print(f"picture: {out}", flush=True)


def pack(
    labels: ExistingFolder,
    out: NewFolder,
    *,
    images: ExistingFolder | None = None,
    classes: Classes | None = None,
    on_error: Literal["stop", "skip"] = "stop",
) -> None:
    """Put label maps from a folder of .pt files into a packed store: a few files, less than half the room, fast.

    Scores become float16; how much that changes the targets of random crops is measured and printed. A partial download
    can be packed. The same command continues an interrupted one.

    Args:
        labels: folder of CLASS/STEM.pt files, such as those released in 2021.
        out: folder of the store.
        images: folder of the images that the maps are for; says which of them have no map.
        classes: what the class ids in the files stand for: imagenet, or a text file with a class folder's name a line.
            none: the class folders of --images, or else those of LABELS, sorted.
        on_error: what a map that cannot be read does: stop: it is an error, told when all others are done; skip: it is
            left out and listed.
    """
    from relabel.annotation.convert import pack as pack_files

    keep_apart(out, "OUT", {"LABELS": labels, "--images": images})
    pack_files(labels, out, images, classes, skip_damaged=on_error == "skip")


def unpack(labels: ExistingFolder, out: NewFolder) -> None:
    """Write each map of a packed store as a .pt file, in the form that was released in 2021.

    Args:
        labels: the packed store.
        out: folder of the files.
    """
    from relabel.annotation.convert import unpack as write_files

    keep_apart(out, "OUT", {"LABELS": labels})
    write_files(labels, out)


def export_labels(
    labels: ExistingFolder,
    out: NewFile,
    *,
    images: ExistingFolder,
    form: Literal["multi-hot", "soft", "agreeing", "disagreeing"] = "multi-hot",
    threshold: Share = 0.1,
    fill: Fill = 0.0,
    temperature: Temperature = 1.0,
) -> None:
    """Write the labels of whole images, or the list of images whose label map agrees with their folder.

    Args:
        labels: a packed store or a folder of .pt files.
        out: the file to write; for multi-hot and soft labels JSON if it ends in .json, else TSV.
        images: folder of the images.
        form: multi-hot: the classes of each image; soft: with their probabilities; agreeing: the images whose map
            names the folder's class, for training as --data.keep_list OUT; disagreeing: the others.
        threshold: smallest probability of a label; the likeliest class is one in any case.
        fill: as data.relabel.fill in training.
        temperature: as data.relabel.temperature in training.
    """
    from relabel.annotation.export import export_cleaning
    from relabel.annotation.export import export_labels as write_labels
    from relabel.annotation.label_set import open_label_set

    keep_apart(out, "OUT", {"LABELS": labels, "--images": images})
    found = open_label_set(labels, images)
    options = {"threshold": threshold, "fill": fill, "temperature": temperature}
    if form in ("agreeing", "disagreeing"):
        count = export_cleaning(found, out, agreeing=form == "agreeing", **options)
        print(f"{count:,} of {len(found):,} images: {out}", flush=True)
    else:
        count = write_labels(found, out, soft=form == "soft", **options)
        print(f"{count:,} labels of {len(found):,} images: {out}", flush=True)


def describe(teacher: "Teacher", images: int, classes: int, device: str) -> str:
    """What is about to be annotated, by whom."""
    rows, columns = teacher.input_size
    about = teacher.description
    lines = [
        f"{images:,} images{f' of {classes:,} classes' if classes else ''}, squashed to {rows} x {columns} pixels",
        f"teacher: {about['arch']} ({about['weights']}), {teacher.num_classes:,} classes, on {device}; {about['head']}",
    ]
    if not about["mean_is_logits"]:
        lines.append(
            "its maps do not average to what it says of the whole image: see what `check` says of their targets"
        )
    return "\n".join(lines)
