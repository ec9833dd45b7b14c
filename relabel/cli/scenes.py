"""The commands for scenes of small images: write them, train their teacher, run the paper's comparison."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from utils.config.value_types import Count, ExistingFolder, NewFile, NewFolder, Positive

# Each command has its own imports, so that a wrong command line is reported before torch is loaded.

Scenes = Annotated[int, Field(ge=10)]


def reproduce(
    *,
    out: NewFolder | None = None,
    pictures: ExistingFolder | None = None,
    rows: Positive | None = None,
    seeds: Positive = 5,
    train: Scenes = 6000,
    val: Scenes = 1500,
) -> None:
    """Run the paper's comparison on scenes: annotate, train with each kind of supervision, compare.

    Ends with a table and figures and prints where they are. The same command continues an interrupted one; more rows or
    seeds are added to existing results.

    Args:
        out: folder for data, label maps, runs and figures. none: runs/digits, or runs/photos with --pictures.
        pictures: folder with train/CLASS/IMAGE and val/CLASS/IMAGE to make scenes of. none: scikit-learn's digits.
        rows: kinds of supervision, from the first: original labels, ReLabel, ... none: all.
        seeds: training runs of each kind; the table shows their mean.
        train: training scenes; fewer than the default are only good for a trial run.
        val: validation scenes.
    """
    from relabel.demo.reproduce import reproduce as run_reproduction

    run_reproduction(out, pictures, rows, seeds, train, val)


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
