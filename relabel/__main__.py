"""The tools: make, check, show, pack and export label maps; compare and export networks; the paper's comparison on
scenes of small pictures.

Train with label maps: python main.py --help
"""

import signal
import sys

if __name__ == "__main__":
    # Until a command runs, Ctrl-C ends the process at once and without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from utils.config_problems import speak_utf8
from utils.errors import UserError, in_other_words
from utils.tool_commands import run_commands
from utils.value_types import (
    Count,
    ExistingFile,
    ExistingFolder,
    ExistingPath,
    Joined,
    NewFile,
    NewFolder,
    NewPicture,
    Positive,
    Size,
)

if TYPE_CHECKING:
    from relabel.teacher import Teacher

# Each command imports what it needs itself: a wrong command line is told before torch is loaded.

Scenes = Annotated[int, Field(ge=10)]
Name = Annotated[str, Field(min_length=1, title="NAME", description="the name of a network")]
Weights = Annotated[str, Field(min_length=1, title="FILE", description="pretrained, random or a checkpoint")]
Classes = Annotated[str, Field(min_length=1, title="FILE", description="imagenet or a text file")]
Percent = Annotated[float, Field(gt=1, le=100)]
Pictures = Annotated[int, Field(ge=1, le=200)]
Crops = Annotated[int, Field(ge=1, le=20)]
Fill = Annotated[float, Field(ge=-1000, le=1000)]
Share = Annotated[float, Field(ge=0, le=1)]
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
# What shared functions call things that have other names here, as patterns.
OWN_WORDS = {
    r"--data\.data_path": "IMAGES",
    r"--data\.relabel\.path": "LABELS",
    r", or train without label maps: --data\.relabel\.use False": "",
    r"training images have no": "images have no",
    r"name the images that have one in --data\.keep_list, ": "",
    r"to the folder that holds train/ and val/": "to a folder of images",
    r"compute\.opt_level": "--opt_level",
    r"(--)?model\.arch": "--arch",
    r"\bk = (?=\d)": "--top_k = ",
    r"\bgive a k\b": "give a --top_k",
}


def digits(*, out: NewFolder, seed: Count = 0, train: Scenes = 6000, val: Scenes = 1500) -> None:
    """Write the embedded data: scenes of handwritten digits as JPEG files in ImageNet's layout.

    A scene shows two to four digits; the first gives its label. OUT gets train/ and val/ with a folder per
    class, which share no digit image, and train.json and val.json with every scene's labels and boxes.

    Args:
        out: folder to make; may exist if it is empty or holds these very scenes.
        seed: another one gives other scenes.
        train: scenes in train/.
        val: scenes in val/.
    """
    from relabel.scenes import write_scenes
    from relabel.small_pictures import Digits

    write_scenes(Digits(), out, seed, train, val)
    print(f"{train:,} training and {val:,} validation scenes: {out}", flush=True)


def scenes(
    pictures: ExistingFolder, *, out: NewFolder, seed: Count = 0, train: Scenes = 6000, val: Scenes = 1500
) -> None:
    """Write scenes of any labelled small pictures, put together as those of `digits` and twice as large.

    Args:
        pictures: folder with train/CLASS/IMAGE, which training scenes show, and val/CLASS/IMAGE.
        out: folder to make; may exist if it is empty or holds these very scenes.
        seed: another one gives other scenes.
        train: scenes in train/.
        val: scenes in val/.
    """
    from relabel.scenes import write_scenes
    from relabel.small_pictures import PictureFolder

    with in_own_words({r"--data\.data_path": "PICTURES"}):
        write_scenes(PictureFolder(pictures), out, seed, train, val)
    print(f"{train:,} training and {val:,} validation scenes: {out}", flush=True)


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
    from relabel.annotator import TOP_K, Settings
    from relabel.annotator import annotate as write_maps
    from relabel.dataset import list_any_images
    from relabel.teacher import load_teacher
    from utils.distributed import available_cores, shared_job

    with in_own_words(), shared_job() as place:
        if images.resolve() in (out.resolve(), *out.resolve().parents):
            raise UserError(f"OUT {out} lies in IMAGES; expected another place, or the maps would be taken for images")
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
        if place.is_main:
            print(describe(teacher, len(found), len(found.class_names), place.device.type), flush=True)
        write_maps(
            found,
            out,
            teacher,
            Settings(top_k or min(TOP_K, teacher.num_classes), flip, opt_level, batch_size),
            form=format,
            skip_unreadable=on_error == "skip",
            num_workers=min(num_workers, max(1, available_cores() // place.local_world_size)),
            place=place,
        )
        if place.is_main:
            print(f"label maps: {out}", flush=True)


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
    from relabel.packing import pack as pack_files

    with in_own_words():
        pack_files(labels, out, images, classes, skip_damaged=on_error == "skip")


def unpack(labels: ExistingFolder, out: NewFolder) -> None:
    """Write each map of a packed store as a .pt file, in the form that was released in 2021.

    Args:
        labels: the packed store.
        out: folder of the files.
    """
    from relabel.packing import unpack as write_files

    with in_own_words():
        write_files(labels, out)


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
    from relabel.axis_check import classifier_named
    from relabel.label_set import open_label_set
    from relabel.object_boxes import open_object_boxes
    from relabel.report import Settings, make_report
    from relabel.report_tables import print_report
    from utils.run_log import write_json

    for flag, value in {"--classifier": classifier, "--teacher_accuracy": teacher_accuracy}.items():
        if value is not None and images is None:
            raise UserError(f"{flag} compares the maps with their images; give --images too, or leave it out")
    with in_own_words({r"(?<=[\s(])--arch\b": "--classifier", r"--weights\b": "--classifier_weights"}):
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
    from relabel.gallery import draw_figure

    with in_own_words():
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
    from relabel.label_export import export_cleaning
    from relabel.label_export import export_labels as write_labels
    from relabel.label_set import open_label_set

    with in_own_words():
        found = open_label_set(labels, images)
        options = {"threshold": threshold, "fill": fill, "temperature": temperature}
        if form in ("agreeing", "disagreeing"):
            count = export_cleaning(found, out, agreeing=form == "agreeing", **options)
            print(f"{count:,} of {len(found):,} images: {out}", flush=True)
        else:
            count = write_labels(found, out, soft=form == "soft", **options)
            print(f"{count:,} labels of {len(found):,} images: {out}", flush=True)


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
    from relabel.model_export import export_model as write_model

    with in_own_words():
        write_model(weights, out, form, arch=arch, config=config_file_path, ema=ema)


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
    from relabel.comparison import as_record, print_differences, read_predictions
    from relabel.comparison import compare as compare_predictions
    from relabel.comparison_sheet import draw_comparison_sheet
    from utils.run_log import write_json

    if (images is None) != (out is None):
        raise UserError("the picture needs both --images, the folder, and --out, its own name; give both or none")
    if json and json.resolve() in (first.resolve(), second.resolve()):
        raise UserError(f"--json {json} is one of the files to compare; expected another name, or it would be lost")
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


def reproduce(
    *,
    out: NewFolder | None = None,
    pictures: ExistingFolder | None = None,
    rows: Positive | None = None,
    seeds: Positive = 5,
    train: Scenes = 6000,
    val: Scenes = 1500,
) -> None:
    """Run the paper's comparison on scenes: annotate, train each kind of supervision, compare.

    Ends with a table and pictures, and says where they are. The same command continues an interrupted one, and more
    rows or seeds are added to what is there.

    Args:
        out: folder for data, label maps, runs and pictures. none: runs/digits, or runs/photos with --pictures.
        pictures: folder with train/CLASS/IMAGE and val/CLASS/IMAGE that the scenes show. none: the embedded digits.
        rows: kinds of supervision, from the first: original labels, ReLabel, ... none: all.
        seeds: trainings of each kind; the table shows their mean.
        train: training scenes; with fewer it is a rehearsal, not a comparison.
        val: validation scenes.
    """
    from relabel.reproduction import reproduce as run_reproduction

    run_reproduction(out, pictures, rows, seeds, train, val)


def digits_annotator(
    *,
    out: NewFile,
    work: NewFolder = Path("runs/digits-annotator"),
    train: Scenes = 16000,
    val: Scenes = 1500,
) -> None:
    """Train the machine annotator of the digit scenes from scratch, on scenes that its students never see.

    Args:
        out: the checkpoint to write.
        work: folder of its scenes and its training run.
        train: training scenes.
        val: validation scenes.
    """
    from relabel.reproduction import make_digits_annotator

    make_digits_annotator(out, work, train, val)


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


def in_own_words(more: Mapping[str, str] | None = None) -> AbstractContextManager[None]:
    """Tell errors of functions that main.py uses too with the names that this command line has.

    Args:
        more: what a single command calls otherwise, as patterns.
    """
    return in_other_words({**OWN_WORDS, **(more or {})})


def main(argv: list[str]) -> None:
    """Run a command line (without the program's name)."""
    label_maps = (annotate, check, show, pack, unpack, export_labels)
    commands = (*label_maps, compare, export_model, reproduce, digits, scenes, digits_annotator)
    run_commands(commands, argv, program="python -m relabel", about=__doc__ or "")


if __name__ == "__main__":
    speak_utf8()
    main(sys.argv[1:])
