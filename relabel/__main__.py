"""The tools for label maps: make them with a strong classifier, and try the whole method on embedded data.

Train with them afterwards: python main.py --help
"""

import re
import signal
import sys

if __name__ == "__main__":
    # Until a command runs, Ctrl-C ends the process at once and without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from utils.config_problems import speak_utf8
from utils.errors import UserError
from utils.tool_commands import run_commands
from utils.value_types import Count, ExistingFile, ExistingFolder, Joined, NewFile, NewFolder, Positive, Size

if TYPE_CHECKING:
    from torch import nn

    from relabel.dataset import ImageList

# Each command imports what it needs itself: a wrong command line is told before torch is loaded.

Scenes = Annotated[int, Field(ge=10)]
Name = Annotated[str, Field(min_length=1, title="NAME", description="the name of a network")]
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
    from relabel.digit_scenes import write_scenes

    write_scenes(out, seed, train, val)
    print(f"{train:,} training and {val:,} validation scenes: {out}", flush=True)


def annotate(
    images: ExistingFolder,
    out: NewFolder,
    *,
    arch: Name,
    weights: ExistingFile | None = None,
    size: Size = (224, 224),
    top_k: Positive = 5,
    mean: Means = (0.485, 0.456, 0.406),
    std: Deviations = (0.229, 0.224, 0.225),
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = "bilinear",
    batch_size: Positive = 32,
    num_workers: Count = 4,
    half: bool = False,
) -> None:
    """Write the label map of every image: what a strong classifier, the teacher, says about each of its cells.

    OUT gets CLASS/STEM.pt for every IMAGES/CLASS/STEM.JPEG, in the form that was released in 2021; train with
    it as --data.relabel.path OUT. Maps that are there already are kept: the same command continues an
    interrupted run. Give the size, mean, std and interpolation that the teacher was trained with.

    Args:
        images: folder with a folder of images per class, such as DATA/train.
        out: folder of the label maps.
        arch: the teacher: a torchvision or timm classifier ("timm/NAME" forces timm), or digit_net. It must end
            in global average pooling and one linear layer.
        weights: its checkpoint, bare or as the training writes it; it must know the same classes as IMAGES.
            Without it the weights are random and the maps mean nothing: for trying things out only.
        size: what each whole image is squashed to.
        top_k: classes kept per cell, those with the highest scores.
        mean: subtracted from the pixels, which are in 0..1; red, green, blue. The default is ImageNet's.
        std: what the difference is divided by. The default is ImageNet's.
        interpolation: how the image is resized; always antialiased.
        batch_size: images in one pass of the teacher; less memory with fewer.
        num_workers: processes that read images ahead, at most one per core; 0 reads between the passes.
        half: write float16 maps, which take half the room, instead of float32.
    """
    import torch

    from relabel import annotator
    from relabel.dataset import list_images
    from utils.distributed import available_cores

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with in_own_words():
        found = list_images(images)
        teacher = load_teacher(arch, weights, found)
        print(f"{len(found):,} images of {len(found.class_names):,} classes; {arch} on {device.type}", flush=True)
        annotator.annotate(
            found,
            out,
            teacher,
            input_size=size,
            k=top_k,
            mean=mean,
            std=std,
            interpolation=interpolation,
            batch_size=batch_size,
            device=device,
            num_workers=min(num_workers, available_cores()),
            half=half,
        )
    print(f"label maps: {out}", flush=True)


def demo(*, out: NewFolder = Path("runs/demo"), seeds: Positive = 1, train: Scenes = 6000, val: Scenes = 1500) -> None:
    """Run the main job on the embedded data: annotate, train with and without label maps, compare.

    Ends with a table of both trainings and pictures, and says where they are. The same command continues an
    interrupted run.

    Args:
        out: folder for data, label maps, runs and pictures.
        seeds: trainings of each kind; the table shows their mean.
        train: training scenes; with fewer it is a rehearsal, not a comparison.
        val: validation scenes.
    """
    from relabel.digit_demo import run_demo

    run_demo(out, seeds, train, val)


def digits_annotator(
    *,
    out: NewFile,
    work: NewFolder = Path("runs/digits-annotator"),
    train: Scenes = 16000,
    val: Scenes = 1500,
) -> None:
    """Train the demo's machine annotator from scratch, on scenes that its students never see.

    Args:
        out: the checkpoint to write.
        work: folder of its scenes and its training run.
        train: training scenes.
        val: validation scenes.
    """
    from relabel.digit_demo import train_annotator

    train_annotator(out, work, train, val)


def load_teacher(arch: str, weights: Path | None, images: "ImageList") -> "nn.Module":
    """The teacher as a network of maps, images [B, 3, H, W] -> logits [B, K, h, w] with K the classes of `images`.

    Raises:
        UserError: unknown name, weights of another network or of other classes, a network that cannot make maps.
    """
    import torch

    from models.build import create_model
    from models.fully_convolutional import fully_convolutional

    torch.manual_seed(0)  # a continued run must find its random teacher again
    model = create_model(arch, len(images.class_names))
    if weights is not None:
        fill_with_weights(model, arch, weights, images.class_names)
    teacher = fully_convolutional(model)
    if weights is None:
        print(
            f"warning: no --weights, so {arch} has RANDOM WEIGHTS and its label maps are MEANINGLESS: "
            "good for trying the tools, not for training",
            file=sys.stderr,
            flush=True,
        )
    return teacher


def fill_with_weights(model: "nn.Module", arch: str, path: Path, class_names: Sequence[str]) -> None:
    """Load a checkpoint that knows these classes; the averaged weights (EMA) where it holds them.

    Raises:
        UserError: no checkpoint, no weights in it, weights of another network or of other classes.
    """
    from models.build import infer_num_classes, load_weights
    from utils.checkpoint import load_checkpoint, split_weights

    content = load_checkpoint(path)
    by_name = split_weights(content, path)
    state_dict = by_name.get("ema", by_name["model"])
    try:
        check_classes(infer_num_classes(arch, state_dict), content.get("class_names"), class_names)
        load_weights(model, state_dict)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def check_classes(num_classes: int, names: Sequence[str] | None, folders: Sequence[str]) -> None:
    """Label maps hold class numbers, which training takes for the position of a class folder: both must agree.

    Args:
        num_classes: that the teacher tells apart.
        names: of these classes, where the checkpoint says them.
        folders: the class folders of the images.
    """
    if num_classes == len(folders) and list(names or folders) == list(folders):
        return
    strange = [folder for folder in folders if names and folder not in names]
    example = f" (it does not know {strange[0]})" if strange else ""
    raise UserError(
        f"found a teacher of {num_classes:,} classes{example} and images of {len(folders):,} classes; expected the "
        "same classes in the same order, because label maps hold class numbers. Give --weights of a teacher of these "
        "classes, or the images of its classes"
    )


@contextmanager
def in_own_words() -> Iterator[None]:
    """Tell errors of functions that main.py uses too with the names that this command line has."""
    try:
        yield
    except UserError as error:
        message = str(error)
        for theirs, ours in OWN_WORDS.items():
            message = re.sub(theirs, ours, message)
        raise UserError(message) from None


def main(argv: list[str]) -> None:
    """Run a command line (without the program's name)."""
    commands = (digits, annotate, demo, digits_annotator)
    run_commands(commands, argv, program="python -m relabel", about=__doc__ or "")


if __name__ == "__main__":
    speak_utf8()
    main(sys.argv[1:])
