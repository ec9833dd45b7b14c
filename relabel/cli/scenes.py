"""The paper's comparison, and the scenes of small images that it can run on."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from relabel.cli.arguments import Images
from utils.config.value_types import Count, ExistingFolder, NewFile, NewFolder, Positive

# Each command has its own imports, so that a wrong command line is reported before torch is loaded.

Scenes = Annotated[int, Field(ge=10)]


def reproduce(
    *,
    on: Literal["digits", "photos", "imagewoof", "imagewoof-small"] = "digits",
    images: Images | None = None,
    out: NewFolder | None = None,
    rows: Positive | None = None,
    seeds: Positive | None = None,
    epochs: Positive | None = None,
    train: Scenes | None = None,
    val: Scenes | None = None,
) -> None:
    """Run the paper's comparison in small: annotate, train with each kind of supervision, compare.

    Ends with tables and figures and prints where they are. The same command continues an interrupted one; more rows or
    seeds are added to existing results.

    Args:
        on: digits: scenes of handwritten digits, which need no data; photos: the same of small photos; imagewoof: ten
            dog breeds of ImageNet; imagewoof-small: three rows with a small network, for two CPU cores.
        images: for photos: folder with train/CLASS/IMAGE and val/CLASS/IMAGE to make scenes of; for imagewoof: its
            folder with train/ and val/, or with tar files named after them.
        out: folder for data, label maps, runs and figures. none: runs/ and the name of the experiment.
        rows: kinds of supervision, from the first: original labels, ReLabel, ... none: all.
        seeds: training runs of each kind; the table shows their mean. none: 5 for digits, 3 for photos and imagewoof,
            2 in small.
        epochs: of each training run. none: those of the recipes.
        train: training scenes; fewer than the default are only good for a trial run. none: 6,000.
        val: validation scenes. none: 1,500.
    """
    from relabel.demo.reproduce import reproduce as run_reproduction

    run_reproduction(on, images, out, rows, seeds, epochs, train, val)


def digits(*, out: NewFolder, seed: Count = 0, train: Scenes = 6000, val: Scenes = 1500) -> None:
    """Write scenes of handwritten digits as JPEG files in ImageNet's layout.

    A scene shows two to four digits, one of which gives its label. OUT gets train/ and val/ with a folder per class,
    which share no digit image, and train.json and val.json with the labels and boxes of every scene.

    Args:
        out: folder to create; may exist if it is empty or already contains these scenes.
        seed: another seed gives other scenes.
        train: scenes in train/.
        val: scenes in val/.
    """
    from relabel.demo.scenes import write_scenes
    from relabel.demo.small_images import DigitImages

    write_scenes(DigitImages(), out, seed, train, val)
    print(f"{train:,} training and {val:,} validation scenes: {out}", flush=True)


def scenes(
    pictures: ExistingFolder, *, out: NewFolder, seed: Count = 0, train: Scenes = 6000, val: Scenes = 1500
) -> None:
    """Write scenes of any small labelled images, composed like those of `digits` and twice as large.

    Args:
        pictures: folder with train/CLASS/IMAGE, for the training scenes, and val/CLASS/IMAGE.
        out: folder to create; may exist if it is empty or already contains these scenes.
        seed: another seed gives other scenes.
        train: scenes in train/.
        val: scenes in val/.
    """
    from relabel.demo.scenes import write_scenes
    from relabel.demo.small_images import FolderImages

    write_scenes(FolderImages(pictures), out, seed, train, val)
    print(f"{train:,} training and {val:,} validation scenes: {out}", flush=True)


def digits_annotator(
    *, out: NewFile, work: NewFolder = Path("runs/digits-annotator"), train: Scenes = 16000, val: Scenes = 1500
) -> None:
    """Train the teacher of the digit scenes from scratch, on scenes that its students never see.

    Args:
        out: the checkpoint to write.
        work: folder for its scenes and training run.
        train: training scenes.
        val: validation scenes.
    """
    from relabel.demo.reproduce import make_digits_teacher

    make_digits_teacher(out, work, train, val)
